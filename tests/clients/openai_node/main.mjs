// What a program that uses `openai` on Node expects: run by ../run.py, with 6.x and with 7.x.
import chat from "./chat.mjs";
import completions from "./completions.mjs";
import embeddings from "./embeddings.mjs";
import errors from "./errors.mjs";
import formats from "./formats.mjs";
import models from "./models.mjs";
import responses from "./responses.mjs";
import { tellAll } from "./telling.mjs";
import tools from "./tools.mjs";
import transport from "./transport.mjs";

await tellAll("openai", {
  chat, completions, embeddings, errors, formats, models, tools, transport, responses,
});
