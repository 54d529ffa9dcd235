// What all checks need.
import assert from "node:assert/strict";

import OpenAI from "openai";

export const {
  TROPILLA_ROOT: root, TROPILLA_FLAKY: flaky, TROPILLA_CLOSED: closed, TROPILLA_MODEL: model,
  TROPILLA_ALIAS: alias,
} = process.env;
export const maxBody = Number(process.env.TROPILLA_MAX_BODY);
export const messages = [{ role: "user", content: "Hello!" }];

export const connect = (options = {}) =>
  new OpenAI({
    baseURL: process.env.TROPILLA_BASE, apiKey: process.env.TROPILLA_KEY, maxRetries: 0,
    timeout: 30_000, ...options,
  });
export const client = connect();

export async function gather(promise) {
  const chunks = [];
  for await (const chunk of await promise) chunks.push(chunk);
  return chunks;
}

export const textOf = (chunks, index = 0) =>
  chunks.flatMap((one) => one.choices).filter((one) => one.index === index)
    .map((one) => one.delta.content ?? "").join("");

/** One id, one role, some text and one reason for each choice, in this order. */
export function isOneAnswer(chunks, choices = 1) {
  assert.equal(new Set(chunks.map((one) => `${one.id} ${one.created} ${one.model}`)).size, 1);
  assert.equal(chunks[0].choices[0].index, 0);
  for (let index = 0; index < choices; index++) {
    const mine = chunks.flatMap((one) => one.choices).filter((one) => one.index === index);
    assert.equal(mine[0].delta.role, "assistant");
    assert.ok(mine.slice(1).every((one) => one.delta.role === undefined));
    assert.ok(mine.slice(0, -1).every((one) => one.finish_reason === null));
    assert.match(mine.at(-1).finish_reason, /^(stop|length)$/);
    assert.ok(textOf(chunks, index));
  }
}

/** That it is refused, in all that the SDK shows of a refusal. */
export async function refused(ask, kind, told, says = "") {
  await assert.rejects(async () => ask(), (error) => {
    assert.ok(error instanceof kind, String(error));
    const { type, code, param } = error;
    assert.deepEqual(
      { type, code, param }, { type: "invalid_request_error", param: null, ...told }, String(error),
    );
    assert.ok(error.message.includes(says), error.message);
    if (error.status) assert.ok(error.requestID);
    return true;
  });
}
