// The Responses API: created, streamed, parsed, continued, kept and forgotten.
import assert from "node:assert/strict";

import OpenAI from "openai";
import { zodTextFormat } from "openai/helpers/zod";
import { z } from "zod";

import { client, gather, model, refused } from "./harness.mjs";

const Wool = z.object({ colour: z.enum(["brown", "white"]), soft: z.boolean() });
const weather = {
  type: "function",
  name: "weather",
  description: "The weather in a town.",
  parameters: {
    type: "object",
    properties: { town: { type: "string", enum: ["Lima", "Cusco"] } },
    required: ["town"],
    additionalProperties: false,
  },
  strict: true,
};
const ask = { model, input: "Hello!", temperature: 0 };
const forced = {
  model, input: "How is Lima?", tools: [weather], tool_choice: "required", temperature: 0,
  max_output_tokens: 400,
};
const callsOf = (response) => response.output.filter((item) => item.type === "function_call");
const outputs = (calls, output) =>
  calls.map(({ call_id }) => ({ type: "function_call_output", call_id, output }));

export default {
  async created() {
    const got = await client.responses.create({ ...ask, instructions: "Be brief." });
    assert.match(got.id, /^resp_/);
    assert.equal(got.object, "response");
    assert.equal(got.status, "completed");
    assert.equal(got.error, null);
    assert.equal(got.instructions, "Be brief.");
    assert.ok(got.output_text);
    const [message] = got.output.filter((item) => item.type === "message");
    assert.match(message.id, /^msg_/);
    assert.equal(message.role, "assistant");
    const { input_tokens, output_tokens, total_tokens } = got.usage;
    assert.equal(total_tokens, input_tokens + output_tokens);
    assert.ok(got._request_id);
  },

  async streamed() {
    const events = await gather(client.responses.create({ ...ask, stream: true }));
    const kinds = events.map((event) => event.type);
    assert.deepEqual(kinds.slice(0, 4), [
      "response.created", "response.in_progress", "response.output_item.added",
      "response.content_part.added",
    ]);
    assert.deepEqual(kinds.slice(-4), [
      "response.output_text.done", "response.content_part.done", "response.output_item.done",
      "response.completed",
    ]);
    assert.deepEqual(events.map((event) => event.sequence_number), events.map((_, index) => index));
    const deltas = events.filter((event) => event.type === "response.output_text.delta");
    const text = deltas.map((event) => event.delta).join("");
    assert.equal(text, events.at(-1).response.output[0].content[0].text);
  },

  async "streamed by the helper"() {
    const whole = await client.responses.create(ask);
    const stream = client.responses.stream(ask);
    const got = await stream.finalResponse();
    assert.equal(got.output_text, whole.output_text);
    assert.equal(got.usage.output_tokens, whole.usage.output_tokens);
  },

  async parsed() {
    const format = { ...ask, text: { format: zodTextFormat(Wool, "wool") } };
    const got = await client.responses.parse(format);
    Wool.parse(got.output_parsed);
    const streamed = await client.responses.stream(format).finalResponse();
    assert.deepEqual(streamed.output_parsed, got.output_parsed);
  },

  async incomplete() {
    const got = await client.responses.create({
      ...ask, max_output_tokens: 16, ignore_eos: true,
    });
    assert.equal(got.status, "incomplete");
    assert.equal(got.incomplete_details.reason, "max_output_tokens");
  },

  /** Kept by the server: each step sends only what is new. */
  async "tools in several steps"() {
    let step = await client.responses.create(forced);
    for (const tool_choice of ["required", "none"]) {
      const calls = callsOf(step);
      assert.ok(calls.length && calls.every((call) => call.name === "weather" && call.call_id));
      step = await client.responses.create({
        ...forced, previous_response_id: step.id, tool_choice,
        input: [...outputs(calls, "Fog"), { role: "user", content: "And Cusco?" }],
      });
    }
    assert.equal(callsOf(step).length, 0);
    assert.ok(step.output_text);
  },

  /** Kept by the program: everything is sent each time, as the SDK's own objects. */
  async "tools in several steps without a store"() {
    const first = await client.responses.create({ ...forced, store: false });
    const calls = callsOf(first);
    assert.ok(calls.length);
    const got = await client.responses.create({
      ...forced, store: false, tool_choice: "none",
      input: [{ role: "user", content: forced.input }, ...first.output, ...outputs(calls, "Fog")],
    });
    assert.ok(got.output_text);
  },

  async "a tool that is streamed"() {
    const stream = client.responses.stream(forced);
    const done = [];
    stream.on("event", (event) => {
      if (event.type === "response.function_call_arguments.done") done.push(event.arguments);
    });
    const got = await stream.finalResponse();
    assert.ok(done.length);
    assert.deepEqual(done, callsOf(got).map((call) => call.arguments));
  },

  async "retrieved, listed and deleted"() {
    const made = await client.responses.create(ask);
    assert.equal((await client.responses.retrieve(made.id)).output_text, made.output_text);
    const items = await gather(client.responses.inputItems.list(made.id));
    assert.deepEqual(items.map((item) => [item.type, item.role]), [["message", "user"]]);
    await client.responses.delete(made.id);
    await assert.rejects(() => client.responses.retrieve(made.id), OpenAI.NotFoundError);
  },

  async "not stored"() {
    const made = await client.responses.create({ ...ask, store: false });
    await assert.rejects(() => client.responses.retrieve(made.id), OpenAI.NotFoundError);
  },

  async "input tokens"() {
    const counted = await client.responses.inputTokens.count({ model, input: ask.input });
    const made = await client.responses.create({ ...ask, store: false });
    assert.equal(counted.input_tokens, made.usage.input_tokens);
  },

  async "what does not exist"() {
    await refused(
      () => client.responses.create({ ...ask, model: "no/such" }),
      OpenAI.NotFoundError, { code: "model_not_found", param: "model" },
    );
    await assert.rejects(() => client.responses.retrieve("resp_none"), OpenAI.NotFoundError);
    await assert.rejects(() => client.responses.delete("resp_none"), OpenAI.NotFoundError);
    await refused(
      () => client.responses.create({ ...ask, previous_response_id: "resp_none" }),
      OpenAI.BadRequestError,
      { code: "previous_response_not_found", param: "previous_response_id" },
      "resp_none",
    );
  },

  async "bad parameters"() {
    const wrong = { temperature: 9, top_p: "much", max_output_tokens: -5, input: 5, tools: "all" };
    for (const [name, value] of Object.entries(wrong)) {
      await assert.rejects(() => client.responses.create({ ...ask, [name]: value }), (error) => {
        assert.ok(error instanceof OpenAI.BadRequestError, `${name}: ${error}`);
        assert.equal(error.param?.split(".")[0], name);
        return true;
      });
    }
  },
};
