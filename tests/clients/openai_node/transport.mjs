// Headers, retries, timeouts and leaving.
import assert from "node:assert/strict";

import OpenAI from "openai";

import {
  client, connect, flaky, gather, isOneAnswer, messages, model, refused, root,
} from "./harness.mjs";

const endless = { model: "endless", messages };

/** Whether nothing is written any more for those that have left. */
async function isIdle() {
  const slots = await client.get(`${root}/slots?model=endless`);
  assert.ok(slots.length > 1);
  return !slots.some((slot) => slot.is_processing);
}

/** Nothing is written any more, soon: by itself it would end much later. */
async function becomesIdle() {
  const deadline = Date.now() + 10_000;
  while (!(await isIdle())) assert.ok(Date.now() < deadline, "a slot still works");
}

export default {
  async headers() {
    const { data, response, request_id } =
      await client.chat.completions.create({ model, messages }).withResponse();
    assert.equal(response.headers.get("x-request-id"), request_id);
    assert.equal(data._request_id, request_id);
    assert.ok(Number(response.headers.get("openai-processing-ms")) >= 0);
    const streamed = await client.chat.completions.create({ model, messages, stream: true })
      .withResponse();
    assert.ok(streamed.request_id);
    assert.match(streamed.response.headers.get("content-type"), /^text\/event-stream/);
    isOneAnswer(await gather(streamed.data));
    const raw = await client.chat.completions.create({ model, messages }).asResponse();
    assert.equal((await raw.json()).object, "chat.completion");
  },

  /** `retry-after-ms` of whatever stands before the gateway. */
  async "retries after 503"() {
    const twice = connect({ baseURL: flaky, maxRetries: 2 });
    const { data, response } =
      await twice.chat.completions.create({ model, messages }).withResponse();
    assert.equal(response.headers.get("x-attempts"), "2");
    assert.ok(data.choices[0].message.content);
    const once = connect({ baseURL: flaky });
    await assert.rejects(() => once.chat.completions.create({ model, messages }), (error) => {
      assert.ok(error instanceof OpenAI.InternalServerError, String(error));
      return error.code === "server_is_overloaded";
    });
  },

  /** The gateway's own word. */
  async "retries after 429"() {
    const got = await connect({ maxRetries: 1 }).chat.completions.create({
      model: "limited", messages: [{ role: "user", content: `again, ${process.pid}` }],
    });
    assert.equal(got.choices[0].message.content, "Here again");
  },

  /** Under a key of the client's own. */
  async "said again"() {
    const ask = async (body = {}, headers = { "Idempotency-Key": crypto.randomUUID() }) => {
      const got = await connect({ maxRetries: 5 }).chat.completions
        .create({ model, messages, ...body }, { headers }).asResponse();
      return [got.headers.get("idempotency-replayed"), await got.text(), headers];
    };
    for (const body of [{}, { stream: true }]) {
      const [first, told, key] = await ask(body);
      assert.deepEqual([first, ...(await ask(body, key))], [null, "true", told, key]);
      await refused(() => ask({ ...body, seed: 1 }, key), OpenAI.ConflictError, {
        code: "idempotency_key_reused", param: "Idempotency-Key",
      });
    }
  },

  /** The SDK's own key, the same for each try: what was refused is not told again. */
  async "retries under a key"() {
    const keyed = connect({ maxRetries: 1 });
    keyed.idempotencyHeader = "Idempotency-Key";
    const { data, response } = await keyed.chat.completions.create({
      model: "limited", messages: [{ role: "user", content: `under a key, ${process.pid}` }],
    }).withResponse();
    assert.equal(data.choices[0].message.content, "Here again");
    assert.equal(response.headers.get("idempotency-replayed"), null);
  },

  // More often than there are slots: one that is not given back would be missed.
  async "leaving a stream midway"() {
    for (let turn = 0; turn < 12; turn++) {
      const stream = await client.chat.completions.create({ ...endless, stream: true });
      let seen = 0;
      for await (const chunk of stream) {
        assert.ok(chunk.choices);
        if (++seen === 3 && turn % 2) break; // either way of leaving
        if (seen === 3) stream.controller.abort();
      }
    }
    await becomesIdle();
    const got = await client.chat.completions.create({ model, messages });
    assert.ok(got.choices[0].message.content);
  },

  async "leaving a helper's stream midway"() {
    const stream = client.chat.completions.stream(endless);
    stream.once("content", () => stream.abort());
    await assert.rejects(() => stream.done(), OpenAI.APIUserAbortError);
    await becomesIdle();
  },

  /** The client gives up; the work is given up, too. */
  async "timeout of a whole answer"() {
    await assert.rejects(
      () => connect({ timeout: 300 }).chat.completions.create(endless),
      OpenAI.APIConnectionTimeoutError,
    );
    await becomesIdle();
  },
};
