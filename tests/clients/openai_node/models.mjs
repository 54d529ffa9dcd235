// The list of models, and one of them by any name.
import assert from "node:assert/strict";

import { alias, client, gather, messages, model } from "./harness.mjs";

export default {
  async listed() {
    const listed = await gather(client.models.list());
    for (const name of [model, alias, "embedder"]) {
      assert.ok(listed.some((one) => one.id === name), name);
    }
    for (const one of listed) {
      assert.equal(one.object, "model");
      assert.ok(Number.isInteger(one.created));
      assert.equal(typeof one.owned_by, "string");
    }
  },

  async retrieved() {
    assert.equal((await client.models.retrieve(model)).id, model);
  },

  async "a name with a slash"() {
    assert.ok(alias.includes("/"));
    assert.equal((await client.models.retrieve(alias)).id, alias);
    const got = await client.chat.completions.create({ model: alias, messages });
    assert.equal(got.model, alias);
  },
};
