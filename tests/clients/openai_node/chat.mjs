// Chat completions: whole, streamed and gathered by the SDK's helper.
import assert from "node:assert/strict";

import { client, gather, isOneAnswer, messages, model, textOf } from "./harness.mjs";

export default {
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

  async "a conversation"() {
    const got = await client.chat.completions.create({
      model,
      messages: [
        { role: "developer", content: "Be brief." },
        { role: "user", content: [{ type: "text", text: "Hello" }] },
        { role: "assistant", content: "Hello.", refusal: null },
        { role: "user", content: "And now?", name: "ana" },
      ],
      max_completion_tokens: 5, user: "someone", metadata: { a: "b" }, store: false,
    });
    assert.ok(got.choices[0].message.content);
    assert.ok(got.usage.completion_tokens <= 5);
  },

  async stream() {
    const chunks = await gather(client.chat.completions.create({ model, messages, stream: true }));
    isOneAnswer(chunks);
    assert.ok(chunks.every((one) => one.choices.length === 1 && one.usage == null));
  },

  async "stream with usage"() {
    const chunks = await gather(client.chat.completions.create({
      model, messages, stream: true, stream_options: { include_usage: true },
    }));
    const last = chunks.pop();
    isOneAnswer(chunks);
    assert.ok(chunks.every((one) => one.usage === null));
    assert.deepEqual(last.choices, []);
    assert.ok(last.usage.total_tokens > 0);
  },

  async "stream helper gathers the same answer"() {
    const ask = { model, messages, temperature: 0, seed: 7 };
    const whole = await client.chat.completions.create(ask);
    const stream = client.chat.completions.stream({
      ...ask, stream_options: { include_usage: true },
    });
    const deltas = [];
    stream.on("content", (delta) => deltas.push(delta));
    const gathered = await stream.finalChatCompletion();
    assert.equal(gathered.choices[0].message.role, "assistant");
    assert.equal(gathered.choices[0].message.content, whole.choices[0].message.content);
    assert.equal(gathered.choices[0].message.content, deltas.join(""));
    assert.equal(gathered.choices[0].finish_reason, whole.choices[0].finish_reason);
    assert.equal(await stream.finalContent(), deltas.join(""));
    assert.equal((await stream.totalUsage()).completion_tokens, whole.usage.completion_tokens);
  },

  async "three choices"() {
    const ask = { model, messages, n: 3, max_tokens: 6 };
    const got = await client.chat.completions.create(ask);
    assert.deepEqual(got.choices.map((one) => one.index), [0, 1, 2]);
    assert.ok(got.choices.every((one) => one.message.content));
    assert.ok(got.usage.completion_tokens > 6);
    isOneAnswer(await gather(client.chat.completions.create({ ...ask, stream: true })), 3);
  },

  async "three choices gathered by the helper"() {
    const stream = client.chat.completions.stream({ model, messages, n: 3 });
    const got = await stream.finalChatCompletion();
    assert.deepEqual(got.choices.map((one) => one.index), [0, 1, 2]);
    assert.ok(got.choices.every((one) => one.message.content));
  },

  async logprobs() {
    const ask = { model, messages, max_tokens: 4, logprobs: true, top_logprobs: 3 };
    const got = await client.chat.completions.create(ask);
    const told = got.choices[0].logprobs.content;
    assert.equal(told.map((one) => one.token).join(""), got.choices[0].message.content);
    assert.ok(told.every((one) => one.logprob <= 0 && one.top_logprobs.length === 3));
    for (const one of told) assert.equal(Buffer.from(one.bytes).toString(), one.token);
    for (const chunk of await gather(client.chat.completions.create({ ...ask, stream: true }))) {
      const [choice] = chunk.choices;
      assert.equal(Boolean(choice.delta.content), Boolean(choice.logprobs?.content?.length));
    }
  },

  async "logprobs gathered by the helper"() {
    const got = await client.chat.completions.stream({
      model, messages, max_tokens: 4, logprobs: true, top_logprobs: 2,
    }).finalChatCompletion();
    const [choice] = got.choices;
    assert.equal(
      choice.logprobs.content.map((one) => one.token).join(""), choice.message.content,
    );
  },

  async seed() {
    const texts = [];
    for (const seed of [5, 5, 6]) {
      const got = await client.chat.completions.create({
        model, messages, seed, temperature: 1, max_tokens: 12,
      });
      texts.push(got.choices[0].message.content);
    }
    assert.equal(texts[0], texts[1]);
    assert.notEqual(texts[1], texts[2]);
  },

  async stop() {
    const ask = { model, messages, temperature: 0 };
    const whole = await client.chat.completions.create(ask);
    const [first, word] = whole.choices[0].message.content.split(" ");
    const got = await client.chat.completions.create({ ...ask, stop: [word, "\u2603"] });
    assert.equal(got.choices[0].finish_reason, "stop");
    assert.equal(got.choices[0].message.content.trimEnd(), first);
    const chunks = await gather(client.chat.completions.create({ ...ask, stop: word, stream: true }));
    assert.equal(textOf(chunks).trimEnd(), first);
  },
};
