// Structured output: JSON, a schema, and what the SDK makes of it.
import assert from "node:assert/strict";

import { zodResponseFormat } from "openai/helpers/zod";
import { z } from "zod";

import { client, model } from "./harness.mjs";

const messages = [{ role: "user", content: "Who are you?" }];
const Wool = z.object({ colour: z.enum(["brown", "white"]), soft: z.boolean() });
const Animal = z.object({
  name: z.enum(["llama", "alpaca"]),
  legs: z.union([z.literal(2), z.literal(4)]),
  wool: Wool,
  friends: z.array(z.enum(["Ana", "José"])).min(1).max(2),
});
const ask = { model, messages, temperature: 0, max_tokens: 200 };

export default {
  async "JSON object"() {
    const got = await client.chat.completions.create({
      ...ask, response_format: { type: "json_object" },
    });
    assert.equal(typeof JSON.parse(got.choices[0].message.content), "object");
  },

  async "JSON schema"() {
    const schema = {
      type: "object", properties: { yes: { type: "boolean" } }, required: ["yes"],
      additionalProperties: false,
    };
    const got = await client.chat.completions.create({
      ...ask,
      response_format: { type: "json_schema", json_schema: { name: "a", strict: true, schema } },
    });
    assert.equal(typeof JSON.parse(got.choices[0].message.content).yes, "boolean");
  },

  async parsed() {
    const got = await client.chat.completions.parse({
      ...ask, response_format: zodResponseFormat(Animal, "animal"),
    });
    Animal.parse(got.choices[0].message.parsed);
  },

  async "three parsed"() {
    const got = await client.chat.completions.parse({
      ...ask, response_format: zodResponseFormat(Wool, "wool"), n: 3,
    });
    assert.equal(got.choices.length, 3);
    for (const choice of got.choices) Wool.parse(choice.message.parsed);
  },

  async "streamed by the helper"() {
    const stream = client.chat.completions.stream({
      ...ask, response_format: zodResponseFormat(Animal, "animal"),
    });
    const got = await stream.finalChatCompletion();
    Animal.parse(got.choices[0].message.parsed);
  },
};
