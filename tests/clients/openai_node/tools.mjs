// Tools: forced, chosen, streamed, and several steps of them.
import assert from "node:assert/strict";

import { zodFunction } from "openai/helpers/zod";
import { z } from "zod";

import { client, gather, model } from "./harness.mjs";

const messages = [{ role: "user", content: "How is Lima?" }];
const parameters = {
  type: "object",
  properties: { town: { type: "string", enum: ["Lima", "Cusco"] } },
  required: ["town"],
  additionalProperties: false,
};
const weather = {
  type: "function",
  function: { name: "weather", description: "The weather in a town.", parameters, strict: true },
};
const now = {
  type: "function", function: { name: "now", parameters: { type: "object", properties: {} } },
};
const Weather = z.object({ town: z.enum(["Lima", "Cusco"]) });
const forced = {
  // The tiny model may prattle, which takes its time: it is stopped.
  model, messages, tools: [weather], tool_choice: "required", temperature: 0, max_tokens: 400,
};

export default {
  async required() {
    const got = await client.chat.completions.create(forced);
    const [choice] = got.choices;
    assert.equal(choice.finish_reason, "tool_calls");
    assert.ok(!choice.message.content);
    assert.ok(choice.message.tool_calls.length);
    for (const call of choice.message.tool_calls) {
      assert.ok(call.id);
      assert.equal(call.type, "function");
      assert.equal(call.function.name, "weather");
      Weather.parse(JSON.parse(call.function.arguments));
    }
  },

  async "one by its name"() {
    const got = await client.chat.completions.create({
      ...forced, tools: [now, weather],
      tool_choice: { type: "function", function: { name: "weather" } },
    });
    const calls = got.choices[0].message.tool_calls;
    assert.ok(calls.length && calls.every((call) => call.function.name === "weather"));
  },

  async "one at a time"() {
    const got = await client.chat.completions.create({
      ...forced, tools: [weather, now], parallel_tool_calls: false,
    });
    assert.equal(got.choices[0].message.tool_calls.length, 1);
  },

  async "allowed ones"() {
    const got = await client.chat.completions.create({
      ...forced, tools: [weather, now],
      tool_choice: {
        type: "allowed_tools",
        allowed_tools: { mode: "required", tools: [{ type: "function", function: { name: "now" } }] },
      },
    });
    const calls = got.choices[0].message.tool_calls;
    assert.ok(calls.length && calls.every((call) => call.function.name === "now"));
  },

  async none() {
    const got = await client.chat.completions.create({ ...forced, tool_choice: "none" });
    assert.ok(!got.choices[0].message.tool_calls?.length);
    assert.ok(got.choices[0].message.content);
  },

  async streamed() {
    const chunks = await gather(client.chat.completions.create({
      ...forced, parallel_tool_calls: false, stream: true,
    }));
    const [first, ...rest] = chunks.flatMap((one) => one.choices)
      .flatMap((one) => one.delta.tool_calls ?? []);
    assert.ok(first.index === 0 && first.id && first.type === "function");
    assert.equal(first.function.name, "weather");
    assert.ok(rest.every((one) => one.index === 0 && !one.id && one.function.name === undefined));
    const text = [first, ...rest].map((one) => one.function.arguments ?? "").join("");
    Weather.parse(JSON.parse(text));
    assert.equal(chunks.at(-1).choices[0].finish_reason, "tool_calls");
  },

  async "streamed by the helper"() {
    const whole = await client.chat.completions.create(forced);
    const stream = client.chat.completions.stream(forced);
    const done = [];
    stream.on("tool_calls.function.arguments.done", (event) => done.push(event));
    const got = await stream.finalChatCompletion();
    const told = (from) => from.choices[0].message.tool_calls.map((call) => call.function.arguments);
    assert.deepEqual(told(got), told(whole));
    assert.deepEqual(done.map((event) => event.arguments), told(whole));
    assert.ok((await stream.finalFunctionToolCall()).name === "weather");
  },

  async parsed() {
    const got = await client.chat.completions.parse({
      ...forced, tools: [zodFunction({ name: "weather", parameters: Weather })],
    });
    const calls = got.choices[0].message.tool_calls;
    assert.ok(calls.length && calls.every((call) => call.function.parsed_arguments.town));
  },

  async "several steps"() {
    const said = [];
    for (const [ask, content] of [["How is Lima?", "Fog, 17 °C"], ["And Cusco?", "Rain"]]) {
      said.push({ role: "user", content: ask });
      const got = await client.chat.completions.create({
        ...forced, messages: said, parallel_tool_calls: false,
      });
      const { message } = got.choices[0];
      assert.ok(message.tool_calls?.length);
      said.push(message);
      for (const call of message.tool_calls) {
        said.push({ role: "tool", tool_call_id: call.id, content });
      }
    }
    const got = await client.chat.completions.create({
      ...forced, messages: said, tool_choice: "none",
    });
    assert.ok(got.choices[0].message.content);
  },

  /** The SDK calls the function itself, and sends back what it says. */
  async "run by the SDK"() {
    for (const stream of [false, true]) {
      const asked = [];
      const runner = client.chat.completions.runTools({
        model, temperature: 0, stream, messages,
        tool_choice: { type: "function", function: { name: "weather" } },
        tools: [{
          type: "function",
          function: {
            ...weather.function,
            parse: (text) => Weather.parse(JSON.parse(text)),
            function: ({ town }) => {
              asked.push(town);
              return "Fog, 17 degrees";
            },
          },
        }],
      });
      await runner.done();
      assert.ok(asked.length && asked.every((town) => ["Lima", "Cusco"].includes(town)));
      assert.equal(await runner.finalFunctionToolCallResult(), "Fog, 17 degrees");
    }
  },

  async custom() {
    const got = await client.chat.completions.create({
      ...forced,
      tools: [{ type: "custom", custom: { name: "note", description: "Takes a note." } }],
    });
    const calls = got.choices[0].message.tool_calls;
    assert.ok(calls.length);
    for (const call of calls) {
      assert.equal(call.type, "custom");
      assert.equal(call.custom.name, "note");
      assert.equal(typeof call.custom.input, "string");
    }
  },
};
