// Embeddings: in base64, which is what the SDK asks for by itself, and in numbers.
import assert from "node:assert/strict";

import { client } from "./harness.mjs";

const model = "embedder";
const input = ["The llama eats.", "Ünïcödé ✓"];

export default {
  async "base64 and numbers"() {
    const packed = await client.embeddings.create({ model, input });
    const plain = await client.embeddings.create({ model, input, encoding_format: "float" });
    assert.deepEqual(packed.data.map((one) => one.index), [0, 1]);
    assert.ok(packed.usage.prompt_tokens > 0);
    packed.data.forEach(({ embedding }, index) => {
      assert.ok(embedding.length > 10);
      assert.deepEqual(embedding, plain.data[index].embedding.map(Math.fround));
    });
  },

  async "base64 as text"() {
    const got = await client.embeddings.create({ model, input, encoding_format: "base64" });
    assert.ok(got.data.every((one) => typeof one.embedding === "string"));
  },

  async "token ids"() {
    const got = await client.embeddings.create({ model, input: [[300, 301], [302]] });
    assert.deepEqual(got.data.map((one) => one.index), [0, 1]);
  },
};
