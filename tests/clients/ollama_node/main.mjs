// What a program that uses `ollama` on Node expects: run by ../run.py.
import assert from "node:assert/strict";

import { Ollama } from "ollama";

import { tellAll } from "./telling.mjs";

const { TROPILLA_ROOT: host, TROPILLA_KEY: key, TROPILLA_MODEL: model } = process.env;
const connect = (more = {}) =>
  new Ollama({ host, headers: { Authorization: `Bearer ${key}` }, ...more });
const client = connect();
const messages = [{ role: "user", content: "Hello!" }];
const options = { num_predict: 8, temperature: 0, seed: 1 };
const schema = {
  type: "object",
  properties: { name: { type: "string", maxLength: 8 }, age: { type: "integer" } },
  required: ["name", "age"],
};
const tools = [{
  type: "function",
  function: {
    name: "weather", description: "Tell the weather.",
    parameters: { type: "object", properties: { city: { type: "string" } }, required: ["city"] },
  },
}];

async function gather(promise) {
  const parts = [];
  for await (const part of await promise) parts.push(part);
  return parts;
}

const refused = (ask, status, says) =>
  assert.rejects(ask, (error) => {
    assert.equal(error.name, "ResponseError", String(error));
    assert.equal(error.status_code, status);
    assert.ok(error.message.includes(says), error.message);
    return true;
  });

const groups = {
  chat: {
    "an answer, its counts and durations": async () => {
      const answer = await client.chat({ model, messages, options, keep_alive: "5m" });
      assert.equal(answer.message.role, "assistant");
      assert.ok(answer.message.content);
      assert.ok(answer.done && answer.eval_count > 0 && answer.prompt_eval_count > 0);
      assert.ok(answer.total_duration >= answer.eval_duration && answer.eval_duration > 0);
    },
    "a stream says what the whole says": async () => {
      const whole = await client.chat({ model, messages, options });
      const parts = await gather(client.chat({ model, messages, options, stream: true }));
      assert.ok(parts.length > 2);
      const text = parts.map((part) => part.message.content).join("");
      assert.equal(text, whole.message.content);
      assert.equal(parts.at(-1).done_reason, whole.done_reason);
    },
    "without messages a model is loaded": async () => {
      assert.equal((await client.chat({ model })).done_reason, "load");
    },
  },
  completions: {
    "a prompt is answered, streamed and whole": async () => {
      const asked = { model, prompt: "Hello!", system: "Be kind.", options };
      const whole = await client.generate(asked);
      const parts = await gather(client.generate({ ...asked, stream: true }));
      assert.equal(parts.map((part) => part.response).join(""), whole.response);
      assert.deepEqual(parts.at(-1).context, whole.context);
    },
    "raw text is gone on with": async () => {
      const answer = await client.generate({ model, prompt: "Once upon a", raw: true, options });
      assert.ok(answer.response);
    },
  },
  tools: {
    "a call is whole and has an object": async () => {
      const asked = { model: "caller", tools };
      asked.messages = [{ role: "user", content: "Weather in Rome?" }];
      const whole = await client.chat({ ...asked });
      const told = { name: "weather", arguments: { city: "Rome" } };
      assert.deepEqual(whole.message.tool_calls.map((one) => one.function), [{ index: 0, ...told }]);
      const parts = await gather(client.chat({ ...asked, stream: true }));
      assert.deepEqual(parts[0].message.tool_calls, whole.message.tool_calls);
      assert.ok(parts.length === 2 && parts[1].done);
    },
    "the engine takes tools": async () => {
      const asked = [{ role: "user", content: "Weather in Rome?" }];
      const parts = await gather(client.chat({ model, messages: asked, tools, stream: true }));
      assert.ok(parts.at(-1).done);
    },
    "a result goes back by the name of its tool": async () => {
      const call = { function: { name: "weather", arguments: { city: "Rome" } } };
      const asked = [
        { role: "user", content: "Weather in Rome?" },
        { role: "assistant", content: "", tool_calls: [call] },
        { role: "tool", content: "Sunny.", tool_name: "weather" },
      ];
      assert.ok((await client.chat({ model, messages: asked, tools, options })).done);
    },
  },
  formats: {
    "a schema is kept": async () => {
      const answer = await client.chat({ model, messages, format: schema, options: { seed: 1 } });
      assert.deepEqual(Object.keys(JSON.parse(answer.message.content)), ["name", "age"]);
    },
  },
  embeddings: {
    "one text and several": async () => {
      const asked = { model: "embedder", input: ["Hello!", "Good day"] };
      const told = await client.embed(asked);
      assert.equal(told.embeddings.length, 2);
      assert.ok((await client.embeddings({ model: "embedder", prompt: "a" })).embedding.length > 9);
    },
  },
  models: {
    "they are listed, shown, and told to be loaded": async () => {
      const { models } = await client.list();
      assert.ok(models.some((one) => one.name === `${model}:latest`));
      const shown = await client.show({ model });
      assert.ok(shown.capabilities.includes("completion"));
      assert.ok((await client.ps()).models.some((one) => one.name === `${model}:latest`));
      assert.ok((await client.version()).version);
    },
  },
  errors: {
    "an unknown model": async () => {
      await refused(() => client.chat({ model: "nobody", messages }), 404, "nobody");
      const streamed = { model: "nobody", messages, stream: true };
      await refused(() => client.chat(streamed), 404, "nobody");
    },
    "a wrong key": () => refused(() => connect({ headers: {} }).list(), 401, "API key"),
    "a server that breaks off": async () => {
      const texts = [];
      await assert.rejects(async () => {
        for await (const part of await client.chat({ model: "cut", messages, stream: true })) {
          texts.push(part.message.content);
        }
      }, /broke off/);
      assert.equal(texts.join(""), "Once upon");
    },
    "what is Ollama's own business": async () => {
      await refused(() => client.pull({ model }), 501, "Tropilla");
      await refused(() => client.delete({ model }), 501, "Tropilla");
      await refused(() => client.create({ model: "other", from: model }), 501, "Tropilla");
    },
  },
  transport: {
    "a stream that is left": async () => {
      const stream = await client.chat({ model: "endless", messages, stream: true });
      await assert.rejects(async () => {
        for await (const part of stream) {
          assert.ok(!part.done);
          stream.abort();
        }
      }, { name: "AbortError" });
      assert.ok((await client.chat({ model, messages, options })).done);
    },
  },
};

await tellAll("ollama", groups);
