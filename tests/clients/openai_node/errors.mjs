// Every class of error, with all that the SDK shows of it.
import assert from "node:assert/strict";

import OpenAI from "openai";

import {
  client, closed, connect, gather, maxBody, messages, model, refused, root, textOf,
} from "./harness.mjs";

let number = 0;
/** Words that no server has heard before. */
const unheard = () => [{ role: "user", content: `${process.pid}, ${number++}` }];
const chat = (fields, options) =>
  client.chat.completions.create({ model, messages, ...fields }, options);

export default {
  async "400: bad parameters"() {
    const wrong = {
      temperature: 9, n: 0, top_p: "much", max_tokens: -5, messages: "Hello!", stop: [1],
      logit_bias: "much", top_logprobs: 3, seed: "x", tools: [{ type: "function" }],
      tool_choice: "sometimes", response_format: { type: "sonnet" },
    };
    for (const [name, value] of Object.entries(wrong)) {
      await assert.rejects(() => chat({ [name]: value }), (error) => {
        assert.ok(error instanceof OpenAI.BadRequestError, `${name}: ${error}`);
        assert.equal(error.param?.split(".")[0], name);
        assert.equal(error.type, "invalid_request_error");
        assert.ok(error.requestID);
        return true;
      });
    }
  },

  async "400: wrong deep within"() {
    const content = [{ type: "text", text: "Hello" }, { type: "sound" }];
    await refused(
      () => chat({ messages: [{ role: "user", content }] }),
      OpenAI.BadRequestError, { code: "invalid_value", param: "messages.0.content.1.type" },
    );
  },

  async "400: the context is too short"() {
    for (const stream of [false, true]) {
      const content = "llama ".repeat(20_000);
      await refused(
        () => chat({ messages: [{ role: "user", content }], stream }),
        OpenAI.BadRequestError, { code: "context_length_exceeded" }, "8192",
      );
    }
  },

  async "400: a picture for a model of text"() {
    const url = "data:image/png;base64,iVBORw0KGgo=";
    const content = [{ type: "image_url", image_url: { url } }];
    await assert.rejects(() => chat({ messages: [{ role: "user", content }] }), (error) => {
      assert.ok(error instanceof OpenAI.BadRequestError, String(error));
      assert.match(error.param, /^messages/);
      return /image/.test(error.message);
    });
  },

  async "401: wrong key"() {
    const stranger = connect({ apiKey: "wrong" });
    for (const ask of [
      () => stranger.chat.completions.create({ model, messages }), () => stranger.models.list(),
    ]) {
      await refused(ask, OpenAI.AuthenticationError, { code: "invalid_api_key" });
    }
  },

  async "403: what is not allowed"() {
    await assert.rejects(() => client.post(`${root}/props`, { body: {} }), (error) => {
      // The path is llama.cpp's own, and so are the type and the code.
      assert.ok(error instanceof OpenAI.PermissionDeniedError, String(error));
      return /--allow-admin/.test(error.message);
    });
  },

  async "404: unknown model"() {
    for (const ask of [
      () => chat({ model: "no/such" }),
      () => chat({ model: "no/such", stream: true }),
      () => client.completions.create({ model: "no/such", prompt: "x" }),
      () => client.embeddings.create({ model: "no/such", input: "x" }),
      () => client.models.retrieve("no/such"),
    ]) {
      await refused(
        ask, OpenAI.NotFoundError, { code: "model_not_found", param: "model" }, "no/such",
      );
    }
  },

  async "404: unknown path"() {
    await refused(
      () => client.files.list(), OpenAI.NotFoundError,
      { code: "unknown_url", type: "invalid_request_error" },
    );
  },

  async "405: wrong method"() {
    await refused(
      () => client.get("/chat/completions"), OpenAI.APIError, { code: "method_not_allowed" }, "POST",
    );
  },

  async "413: too large"() {
    await refused(
      () => chat({ messages: [{ role: "user", content: "x".repeat(maxBody) }] }),
      OpenAI.APIError, { code: "request_too_large" }, String(maxBody),
    );
  },

  async "415: compressed"() {
    await refused(
      () => chat({}, { headers: { "Content-Encoding": "gzip" } }),
      OpenAI.APIError, { code: "unsupported_media_type" },
    );
  },

  async "429, and when to come again"() {
    await assert.rejects(() => chat({ model: "limited", messages: unheard() }), (error) => {
      assert.ok(error instanceof OpenAI.RateLimitError, String(error));
      assert.equal(error.code, "rate_limit_exceeded");
      assert.equal(error.type, "rate_limit_error");
      assert.equal(error.headers.get("retry-after"), "1");
      assert.equal(error.headers.get("retry-after-ms"), "1000");
      return true;
    });
  },

  /** It might have been generated already: the SDK asks once, however often it may. */
  async "502, and not to come again"() {
    const told = new Set();
    for (const one of [client, connect({ maxRetries: 2 })]) {
      const ask = () => one.chat.completions.create({ model: "broken", messages: unheard() });
      await assert.rejects(ask, (error) => {
        assert.ok(error instanceof OpenAI.InternalServerError, String(error));
        assert.equal(error.status, 502);
        assert.equal(error.code, "upstream_error");
        assert.equal(error.headers.get("x-should-retry"), "false");
        told.add(error.message);
        return true;
      });
    }
    assert.equal(told.size, 1); // the server counts how often it was asked
  },

  async "503: nobody is there"() {
    await refused(
      () => chat({ model: "down" }), OpenAI.InternalServerError,
      { code: "no_upstream", type: "server_error" },
    );
  },

  async "504: silence"() {
    await refused(
      () => chat({ model: "silent" }), OpenAI.InternalServerError,
      { code: "upstream_timeout", type: "server_error" },
    );
  },

  async "in the middle of a stream"() {
    const heard = [];
    await refused(async () => {
      for await (const chunk of await chat(
        { model: "cut", messages: unheard(), stream: true },
      )) heard.push(chunk);
    }, OpenAI.APIError, { code: "upstream_error", type: "server_error" });
    assert.equal(textOf(heard), "Once upon");
    assert.ok(heard.every((one) => one.choices[0].finish_reason === null));
  },

  async "in the middle of a whole answer"() {
    await refused(
      () => chat({ model: "cut", messages: unheard() }), OpenAI.InternalServerError,
      { code: "upstream_error", type: "server_error" },
    );
  },

  async "connection refused"() {
    await assert.rejects(() => gather(connect({ baseURL: closed }).models.list()), (error) => {
      assert.ok(error instanceof OpenAI.APIConnectionError, String(error));
      return !(error instanceof OpenAI.APIConnectionTimeoutError);
    });
  },
};
