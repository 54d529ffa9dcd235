// What a program that uses `openai` on Node expects: run by ../run.py, with 6.x and with 7.x.
import assert from "node:assert/strict";
import { readFileSync } from "node:fs";

import OpenAI from "openai";

const { TROPILLA_BASE, TROPILLA_FLAKY, TROPILLA_CLOSED, TROPILLA_KEY } = process.env;
const model = process.env.TROPILLA_MODEL;
const messages = [{ role: "user", content: "Hello!" }];

const connect = (options = {}) =>
  new OpenAI({
    baseURL: TROPILLA_BASE, apiKey: TROPILLA_KEY, maxRetries: 0, timeout: 30_000, ...options,
  });
const client = connect();

async function gather(promise) {
  const chunks = [];
  for await (const chunk of await promise) chunks.push(chunk);
  return chunks;
}

/** One id, one role, some text and one reason for each choice, in this order. */
function isOneAnswer(chunks, choices = 1) {
  assert.equal(new Set(chunks.map((one) => `${one.id} ${one.created} ${one.model}`)).size, 1);
  for (let index = 0; index < choices; index++) {
    const mine = chunks.flatMap((one) => one.choices).filter((one) => one.index === index);
    assert.equal(mine[0].delta.role, "assistant");
    assert.ok(mine.slice(1).every((one) => one.delta.role === undefined));
    assert.ok(mine.slice(0, -1).every((one) => one.finish_reason === null));
    assert.match(mine.at(-1).finish_reason, /^(stop|length)$/);
    assert.ok(mine.map((one) => one.delta.content ?? "").join(""));
  }
}

const checks = {
  async chat() {
    const got = await client.chat.completions.create({ model, messages });
    assert.match(got.id, /^chatcmpl-/);
    assert.equal(got.object, "chat.completion");
    assert.equal(got.model, model);
    assert.ok(Number.isInteger(got.created));
    assert.equal(got.choices.length, 1);
    const [choice] = got.choices;
    assert.equal(choice.index, 0);
    assert.match(choice.finish_reason, /^(stop|length)$/);
    assert.equal(choice.logprobs, null);
    assert.equal(choice.message.role, "assistant");
    assert.ok(choice.message.content);
    assert.equal(choice.message.refusal, null);
    const { prompt_tokens, completion_tokens, total_tokens } = got.usage;
    assert.ok(prompt_tokens > 0 && completion_tokens > 0);
    assert.equal(total_tokens, prompt_tokens + completion_tokens);
    assert.ok(got._request_id);
  },

  async "chat stream"() {
    const chunks = await gather(client.chat.completions.create({ model, messages, stream: true }));
    isOneAnswer(chunks);
    assert.ok(chunks.every((one) => one.choices.length === 1 && one.usage == null));
  },

  async "chat stream with usage"() {
    const chunks = await gather(client.chat.completions.create({
      model, messages, stream: true, stream_options: { include_usage: true },
    }));
    const last = chunks.pop();
    isOneAnswer(chunks);
    assert.ok(chunks.every((one) => one.usage === null));
    assert.deepEqual(last.choices, []);
    assert.ok(last.usage.total_tokens > 0);
  },

  async "chat stream helper gathers the same answer"() {
    const ask = { model, messages, temperature: 0, seed: 7 };
    const whole = await client.chat.completions.create(ask);
    const stream = client.chat.completions.stream({
      ...ask, stream_options: { include_usage: true },
    });
    const gathered = await stream.finalChatCompletion();
    assert.equal(gathered.choices[0].message.role, "assistant");
    assert.equal(gathered.choices[0].message.content, whole.choices[0].message.content);
    assert.equal(gathered.choices[0].finish_reason, whole.choices[0].finish_reason);
    assert.equal((await stream.totalUsage()).completion_tokens, whole.usage.completion_tokens);
  },

  async "two choices"() {
    const ask = { model, messages, n: 2, max_tokens: 6 };
    const got = await client.chat.completions.create(ask);
    assert.deepEqual(got.choices.map((one) => one.index), [0, 1]);
    assert.ok(got.choices.every((one) => one.message.content));
    isOneAnswer(await gather(client.chat.completions.create({ ...ask, stream: true })), 2);
  },

  async logprobs() {
    const ask = { model, messages, max_tokens: 4, logprobs: true, top_logprobs: 3 };
    const got = await client.chat.completions.create(ask);
    const told = got.choices[0].logprobs.content;
    assert.equal(told.map((one) => one.token).join(""), got.choices[0].message.content);
    assert.ok(told.every((one) => one.logprob <= 0 && one.top_logprobs.length === 3));
    for (const chunk of await gather(client.chat.completions.create({ ...ask, stream: true }))) {
      const [choice] = chunk.choices;
      assert.equal(Boolean(choice.delta.content), Boolean(choice.logprobs?.content?.length));
    }
  },

  async completions() {
    const ask = { model, prompt: "The llama", max_tokens: 16, temperature: 0, seed: 7 };
    const whole = await client.completions.create(ask);
    assert.equal(whole.object, "text_completion");
    assert.ok(whole.choices[0].text);
    assert.equal(whole.choices[0].logprobs, null);
    const chunks = await gather(client.completions.create({
      ...ask, stream: true, stream_options: { include_usage: true },
    }));
    const last = chunks.pop();
    assert.equal(chunks.map((one) => one.choices[0].text).join(""), whole.choices[0].text);
    assert.equal(chunks.at(-1).choices[0].finish_reason, whole.choices[0].finish_reason);
    assert.deepEqual(last.choices, []);
    assert.equal(last.usage.completion_tokens, whole.usage.completion_tokens);
  },

  async models() {
    const listed = await gather(client.models.list());
    const mine = listed.find((one) => one.id === model);
    assert.equal(mine.object, "model");
    assert.ok(Number.isInteger(mine.created));
    assert.equal(typeof mine.owned_by, "string");
    assert.equal((await client.models.retrieve(model)).id, model);
  },

  async "unknown model"() {
    for (const ask of [
      () => client.chat.completions.create({ model: "no/such", messages }),
      () => client.completions.create({ model: "no/such", prompt: "x" }),
      () => client.models.retrieve("no/such"),
    ]) {
      await assert.rejects(ask, (error) => {
        assert.ok(error instanceof OpenAI.NotFoundError, String(error));
        assert.equal(error.code, "model_not_found");
        assert.equal(error.param, "model");
        assert.equal(error.type, "invalid_request_error");
        assert.ok(error.requestID);
        return true;
      });
    }
  },

  async "bad parameters"() {
    const wrong = { temperature: 9, n: 0, top_p: "much", max_tokens: -5, messages: "Hello!" };
    for (const [name, value] of Object.entries(wrong)) {
      const ask = () => client.chat.completions.create({ model, messages, [name]: value });
      await assert.rejects(ask, (error) => {
        assert.ok(error instanceof OpenAI.BadRequestError, `${name}: ${error}`);
        assert.equal(error.param, name);
        assert.ok(error.requestID);
        return true;
      });
    }
  },

  async "wrong key"() {
    const ask = () => connect({ apiKey: "wrong" }).chat.completions.create({ model, messages });
    await assert.rejects(ask, (error) => {
      assert.ok(error instanceof OpenAI.AuthenticationError, String(error));
      assert.equal(error.code, "invalid_api_key");
      assert.ok(error.requestID);
      return true;
    });
  },

  async "connection refused"() {
    await assert.rejects(() => connect({ baseURL: TROPILLA_CLOSED }).models.list(), (error) => {
      assert.ok(error instanceof OpenAI.APIConnectionError, String(error));
      return !(error instanceof OpenAI.APIConnectionTimeoutError);
    });
  },

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
  },

  // More often than there are slots: one that is not given back would be missed.
  async "leaving a stream midway"() {
    for (let turn = 0; turn < 12; turn++) {
      const stream = await client.chat.completions.create({
        model, messages, stream: true, max_tokens: 2000, ignore_eos: true,
      });
      let seen = 0;
      for await (const chunk of stream) {
        assert.ok(chunk.choices);
        if (++seen === 3 && turn % 2) break; // either way of leaving
        if (seen === 3) stream.controller.abort();
      }
    }
    const got = await client.chat.completions.create({ model, messages });
    assert.ok(got.choices[0].message.content);
  },

  async "retries after 503"() {
    const flaky = connect({ baseURL: TROPILLA_FLAKY, maxRetries: 2 });
    const { data, response } =
      await flaky.chat.completions.create({ model, messages }).withResponse();
    assert.equal(response.headers.get("x-attempts"), "2");
    assert.ok(data.choices[0].message.content);
    const once = connect({ baseURL: TROPILLA_FLAKY });
    await assert.rejects(() => once.chat.completions.create({ model, messages }), (error) => {
      assert.ok(error instanceof OpenAI.InternalServerError, String(error));
      return error.code === "server_is_overloaded";
    });
  },
};

const installed = new URL("./node_modules/openai/package.json", import.meta.url);
console.log(`version ${JSON.parse(readFileSync(installed, "utf8")).version}`);
for (const [name, check] of Object.entries(checks)) {
  try {
    await check();
    console.log(`ok ${name}`);
  } catch (error) {
    process.exitCode = 1;
    const place = /main\.mjs:(\d+)/.exec(error.stack ?? "")?.[1] ?? "?";
    const why = `${error.name} ${error.message}`.replace(/\s+/g, " ").slice(0, 300);
    console.log(`FAIL ${name}: line ${place}: ${why}`);
  }
}
