// What a program that uses `@anthropic-ai/sdk` expects: run by ../run.py.
import assert from "node:assert/strict";

import Anthropic from "@anthropic-ai/sdk";

import { tellAll } from "./telling.mjs";

const {
  TROPILLA_ROOT: baseURL, TROPILLA_KEY: apiKey, TROPILLA_MODEL: model, TROPILLA_ALIAS: alias,
  TROPILLA_CLOSED: closed, TROPILLA_FLAKY: flaky,
} = process.env;
const connect = (more = {}) =>
  new Anthropic({ baseURL, apiKey, maxRetries: 0, timeout: 30_000, ...more });
const client = connect();
const messages = [{ role: "user", content: "Hello!" }];
const short = { model, max_tokens: 8, messages };
const still = { ...short, temperature: 0 };
const weather = {
  name: "weather", description: "Tell the weather.",
  input_schema: {
    type: "object", properties: { town: { enum: ["Lima", "Cusco"] } }, required: ["town"],
  },
};
let number = 0;
const unheard = () => [{ role: "user", content: `${process.pid}, node, ${number++}` }];

/** That it is refused, in all that the SDK shows of a refusal. */
const refused = (ask, kind, status, type, says = "") =>
  assert.rejects(async () => ask(), (error) => {
    assert.ok(error instanceof kind, String(error));
    assert.deepEqual([error.status, error.type], [status, type], String(error));
    assert.ok(error.message.includes(says), error.message);
    assert.ok(error.requestID);
    return true;
  });

const groups = {
  chat: {
    "a message": async () => {
      const message = await client.messages.create(short);
      assert.equal(message.type, "message");
      assert.equal(message.model, model);
      assert.ok(message.content[0].text);
      assert.ok(["end_turn", "max_tokens"].includes(message.stop_reason));
      assert.ok(message.usage.output_tokens > 0 && message.usage.output_tokens <= 8);
      assert.match(message._request_id, /^req_/);
    },
    "the helper gathers what the whole says": async () => {
      const whole = await client.messages.create(still);
      const stream = client.messages.stream(still);
      const texts = [];
      stream.on("text", (text) => texts.push(text));
      const message = await stream.finalMessage();
      assert.ok(texts.length > 2);
      assert.equal(texts.join(""), whole.content[0].text);
      assert.equal(message.content[0].text, whole.content[0].text);
      assert.equal(message.stop_reason, whole.stop_reason);
      assert.equal(message.usage.output_tokens, whole.usage.output_tokens);
    },
    "the events have their order": async () => {
      const kinds = [];
      for await (const event of await client.messages.create({ ...short, stream: true })) {
        kinds.push(event.type);
      }
      assert.deepEqual(kinds.slice(0, 2), ["message_start", "content_block_start"]);
      assert.deepEqual(
        kinds.slice(-3), ["content_block_stop", "message_delta", "message_stop"],
      );
    },
    "the stop word is named": async () => {
      const { text } = (await client.messages.create(still)).content[0];
      const word = text.slice(text.length / 2).slice(0, 3);
      const message = await client.messages.create({ ...still, stop_sequences: [word] });
      assert.equal(message.stop_reason, "stop_sequence");
      assert.equal(message.stop_sequence, word);
      assert.equal(message.content[0].text, text.slice(0, text.indexOf(word)));
    },
    "a conversation in blocks": async () => {
      const cache_control = { type: "ephemeral" };
      const message = await client.messages.create({
        model: alias, max_tokens: 8,
        system: [{ type: "text", text: "Be kind.", cache_control }],
        messages: [
          ...messages, { role: "assistant", content: [{ type: "text", text: "Yes?" }] },
          { role: "user", content: [{ type: "text", text: "Who are you?", cache_control }] },
        ],
      });
      assert.equal(message.model, alias);
      assert.ok(message.content[0].text);
    },
  },
  tools: {
    "a forced call and its result": async () => {
      const asked = { ...short, max_tokens: 200, tools: [weather] };
      const message = await client.messages.create({ ...asked, tool_choice: { type: "any" } });
      assert.equal(message.stop_reason, "tool_use");
      const call = message.content.find((block) => block.type === "tool_use");
      assert.ok(["Lima", "Cusco"].includes(call.input.town));
      const after = await client.messages.create({
        ...asked, max_tokens: 8, tool_choice: { type: "none" },
        messages: [
          ...messages, { role: "assistant", content: message.content },
          { role: "user", content: [{ type: "tool_result", tool_use_id: call.id, content: "Fog" }] },
        ],
      });
      assert.equal(after.content[0].type, "text");
    },
    "a forced call in a stream": async () => {
      const stream = client.messages.stream({
        ...short, max_tokens: 200, tools: [weather],
        tool_choice: { type: "tool", name: "weather", disable_parallel_tool_use: true },
      });
      const pieces = [];
      stream.on("inputJson", (piece) => pieces.push(piece));
      const message = await stream.finalMessage();
      assert.ok(pieces.length > 1);
      assert.ok(["Lima", "Cusco"].includes(message.content.at(-1).input.town));
    },
    "what Anthropic's servers would run is passed over": async () => {
      const tools = [{ type: "web_search_20250305", name: "web_search" }];
      assert.ok((await client.messages.create({ ...short, tools })).content.length);
    },
  },
  models: {
    "tokens are counted": async () => {
      const asked = { model, messages, system: "Be kind.", tools: [weather] };
      const { input_tokens: counted } = await client.messages.countTokens(asked);
      const { usage } = await client.messages.create({ ...asked, max_tokens: 1 });
      assert.equal(counted, usage.input_tokens + usage.cache_read_input_tokens);
    },
    "all models and one": async () => {
      const names = [];
      for await (const one of client.models.list({ limit: 2 })) names.push(one.id);
      assert.ok(names.includes(model) && names.includes(alias) && names.includes("down"));
      assert.ok((await client.models.retrieve(model)).max_input_tokens > 0);
    },
  },
  errors: {
    "of 400": async () => {
      const say = [Anthropic.BadRequestError, 400, "invalid_request_error"];
      for (const more of [
        { max_tokens: -1 }, { messages: [] }, { temperature: 9 }, { tool_choice: { type: "any" } },
      ]) {
        await refused(() => client.messages.create({ ...short, ...more }), ...say);
      }
      const url = { type: "url", url: "http://127.0.0.1:1/x.png" };
      const content = [{ type: "image", source: url }];
      await refused(
        () => client.messages.create({ ...short, messages: [{ role: "user", content }] }), ...say,
        "fetched",
      );
    },
    "of 401 and 404": async () => {
      await refused(
        () => connect({ apiKey: "wrong" }).messages.create(short), Anthropic.AuthenticationError,
        401, "authentication_error",
      );
      await refused(
        () => client.messages.create({ ...short, model: "claude-none" }), Anthropic.NotFoundError,
        404, "not_found_error", "claude-none",
      );
    },
    "of 429, 502 and 529": async () => {
      for (const [name, kind, status, type] of [
        ["limited", Anthropic.RateLimitError, 429, "rate_limit_error"],
        ["broken", Anthropic.InternalServerError, 502, "api_error"],
        ["down", Anthropic.InternalServerError, 529, "overloaded_error"],
      ]) {
        const asked = { ...short, model: name, messages: unheard() };
        await refused(() => client.messages.create(asked), kind, status, type);
      }
    },
    "in the middle of a stream": async () => {
      const texts = [];
      await assert.rejects(async () => {
        const stream = client.messages.stream({ ...short, model: "cut", messages: unheard() });
        stream.on("text", (text) => texts.push(text));
        await stream.finalMessage();
      }, (error) => error.type === "api_error");
      assert.equal(texts.join(""), "Once upon");
    },
  },
  transport: {
    "nobody listens": async () => {
      const nobody = connect({ baseURL: closed.replace("/v1", "") });
      await assert.rejects(
        () => nobody.messages.create(short), (error) => error instanceof Anthropic.APIConnectionError,
      );
    },
    "it asks again": async () => {
      const unsteady = connect({ baseURL: flaky.replace("/v1", ""), maxRetries: 1 });
      assert.ok((await unsteady.messages.create(short)).content.length);
    },
    "a stream that is left": async () => {
      const asked = { ...short, model: "endless", messages: unheard(), stream: true };
      const stream = await client.messages.create(asked);
      const kinds = [];
      for await (const event of stream) {
        kinds.push(event.type);
        stream.controller.abort();
      }
      assert.equal(kinds[0], "message_start");
      assert.ok(!kinds.includes("message_stop"));
      assert.ok((await client.messages.create(short)).content.length);
    },
  },
};

await tellAll("@anthropic-ai/sdk", groups);
