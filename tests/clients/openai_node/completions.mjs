// Legacy completions, with echo and logprobs.
import assert from "node:assert/strict";

import { client, gather, model } from "./harness.mjs";

const prompt = "The llama";

export default {
  async "whole and streamed"() {
    const ask = { model, prompt, max_tokens: 16, temperature: 0, seed: 7 };
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

  async "several prompts"() {
    const got = await client.completions.create({
      model, prompt: [prompt, "The sun"], n: 2, max_tokens: 4, logprobs: 1,
    });
    assert.deepEqual(got.choices.map((one) => one.index), [0, 1, 2, 3]);
    for (const { text, logprobs } of got.choices) {
      assert.equal(logprobs.tokens.join(""), text);
      assert.equal(logprobs.tokens.length, logprobs.token_logprobs.length);
      assert.equal(logprobs.tokens.length, logprobs.text_offset.length);
    }
  },

  async "prompts of token ids"() {
    const got = await client.completions.create({
      model, prompt: [[300, 301], [302, 303, 304]], max_tokens: 4,
    });
    assert.deepEqual(got.choices.map((one) => one.index), [0, 1]);
  },

  async echo() {
    const ask = { model, prompt, max_tokens: 4, temperature: 0, echo: true };
    const { text } = (await client.completions.create(ask)).choices[0];
    assert.ok(text.startsWith(prompt) && text.length > prompt.length);
    const chunks = await gather(client.completions.create({ ...ask, stream: true }));
    assert.equal(chunks.map((one) => one.choices[0].text).join(""), text);
  },

  /** How likely a text is, as evaluations ask it: nothing is written. */
  async "echo with logprobs"() {
    const got = await client.completions.create({
      model, prompt, max_tokens: 0, temperature: 0, echo: true, logprobs: 2,
    });
    const [{ text, logprobs }] = got.choices;
    assert.equal(text, prompt);
    // A token that only marks the beginning has no place in the text.
    const ends = [...logprobs.text_offset.slice(1), text.length];
    logprobs.tokens.forEach((token, index) => {
      const piece = text.slice(logprobs.text_offset[index], ends[index]);
      assert.ok(piece === token || piece === "", token);
    });
    assert.equal(logprobs.token_logprobs[0], null);
    assert.equal(logprobs.top_logprobs[0], null);
    assert.ok(logprobs.token_logprobs.length > 1);
    assert.ok(logprobs.token_logprobs.slice(1).every((one) => one <= 0));
    assert.equal(logprobs.text_offset[0], 0);
    assert.equal(got.usage.completion_tokens, 0);
  },

  async "best of"() {
    const got = await client.completions.create({
      model, prompt, n: 2, best_of: 3, max_tokens: 4, temperature: 1, seed: 3,
    });
    assert.deepEqual(got.choices.map((one) => one.index), [0, 1]);
  },
};
