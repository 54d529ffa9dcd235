// What a program that uses `openai` on Node expects: run by ../run.py, with 6.x and with 7.x.
import { readFileSync } from "node:fs";

import chat from "./chat.mjs";
import completions from "./completions.mjs";
import embeddings from "./embeddings.mjs";
import errors from "./errors.mjs";
import formats from "./formats.mjs";
import { runAll } from "./harness.mjs";
import models from "./models.mjs";
import responses from "./responses.mjs";
import tools from "./tools.mjs";
import transport from "./transport.mjs";

const installed = new URL("./node_modules/openai/package.json", import.meta.url);
const { version } = JSON.parse(readFileSync(installed, "utf8"));
await runAll(version, {
  chat, completions, embeddings, errors, formats, models, tools, transport, responses,
});
