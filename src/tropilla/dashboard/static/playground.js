// The playground: this browser asks the gateway, as any client does.
"use strict";

const PATH = "/v1/chat/completions";
const $ = (id) => document.getElementById(id);
const knobs = $("knobs"), log = $("log"), play = $("play");
let turns = []; // the messages so far; what the first model answered is what goes on
let images = [];
let asking = null;
let as = "curl";

function field(name) { const one = knobs.elements[name]; return one ? one.value.trim() : ""; }
function made(tag, kind, text) {
  const one = document.createElement(tag);
  if (kind) one.className = kind;
  if (text !== undefined) one.textContent = text;
  return one;
}
function wrong(text) { $("wrong").textContent = text; $("wrong").hidden = !text; }
function key() { return field("key"); }

function request(model, messages) {
  const system = field("system");
  const body = { model, messages: [...(system ? [{ role: "system", content: system }] : []), ...messages] };
  for (const name of ["temperature", "top_p", "max_tokens", "seed"]) {
    if (field(name) !== "") body[name] = Number(field(name));
  }
  const stop = field("stop").split(",").map((one) => one.trim()).filter(Boolean);
  if (stop.length) body.stop = stop;
  if (field("tools")) body.tools = JSON.parse(field("tools"));
  if (field("schema")) {
    body.response_format = { type: "json_schema", json_schema: { name: "answer", schema: JSON.parse(field("schema")) } };
  }
  if (knobs.elements.logprobs.checked) { body.logprobs = true; body.top_logprobs = 3; }
  if (knobs.elements.stream.checked) { body.stream = true; body.stream_options = { include_usage: true }; }
  return body;
}

function content(text, pictures) {
  if (!pictures.length) return text;
  return [{ type: "text", text }, ...pictures.map((url) => ({ type: "image_url", image_url: { url } }))];
}

// What is shown of an answer, as it grows.
class Answer {
  constructor(place, model) {
    this.began = performance.now();
    this.first = null;
    this.text = "";
    this.calls = [];
    const turn = made("div", "turn assistant");
    turn.append(made("p", "who", model));
    this.thought = made("div", "thought");
    this.thought.hidden = true;
    this.shown = made("div", "text");
    this.tools = made("pre");
    this.tools.hidden = true;
    this.told = made("p", "told");
    turn.append(this.thought, this.shown, this.tools, this.told);
    place.append(turn);
  }

  take(part, logprobs) {
    if (this.first === null) this.first = performance.now();
    const thought = part.reasoning_content || part.reasoning;
    if (thought) { this.thought.hidden = false; this.thought.append(thought); }
    if (part.content) this.text += part.content;
    if (logprobs && logprobs.content && logprobs.content.length) {
      for (const one of logprobs.content) this.shown.append(coloured(one));
    } else if (part.content) {
      this.shown.append(part.content);
    }
    for (const call of part.tool_calls || []) {
      const at = call.index ?? this.calls.length;
      const one = this.calls[at] ??= { id: call.id, type: "function", function: { name: "", arguments: "" } };
      one.function.name += call.function?.name ?? "";
      one.function.arguments += call.function?.arguments ?? "";
      this.tools.hidden = false;
      this.tools.textContent = this.calls.map((each) => `${each.function.name}(${each.function.arguments})`).join("\n");
    }
    log.scrollTop = log.scrollHeight;
  }

  end(usage, reason, id) {
    const spent = performance.now() - this.began;
    const first = this.first === null ? spent : this.first - this.began;
    const words = [`first after ${Math.round(first)} ms`, `${(spent / 1000).toFixed(2)} s in all`];
    if (usage) {
      words.push(`${usage.prompt_tokens} tokens read, ${usage.completion_tokens} written`);
      if (spent > first) words.push(`${Math.round(usage.completion_tokens / ((spent - first) / 1000))} tokens/s`);
    }
    if (reason) words.push(reason);
    this.told.textContent = `${words.join(" \u00b7 ")} `;
    if (id) {
      const link = made("a", "", "Look at it");
      link.href = `/ui/activity/${encodeURIComponent(id)}`;
      this.told.append(link);
    }
  }

  get message() {
    const message = { role: "assistant", content: this.text };
    if (this.calls.length) message.tool_calls = this.calls;
    return message;
  }
}

function coloured(one) {
  const likely = Math.exp(one.logprob);
  const token = made("span", `p${Math.min(4, Math.floor(likely * 5))}`, one.token);
  const others = (one.top_logprobs || []).map((other) => `${JSON.stringify(other.token)} ${(Math.exp(other.logprob) * 100).toFixed(1)} %`);
  token.title = `${(likely * 100).toFixed(1)} %${others.length ? `\n${others.join("\n")}` : ""}`;
  return token;
}

async function ask(model, messages, answer, signal) {
  const headers = { "content-type": "application/json" };
  if (key()) headers.authorization = `Bearer ${key()}`;
  const body = JSON.stringify(request(model, messages));
  const reply = await fetch(PATH, { method: "POST", headers, body, signal });
  const id = reply.headers.get("x-request-id");
  if (!reply.ok) {
    const told = await reply.json().catch(() => null);
    answer.end(null, `refused (${reply.status})`, id);
    throw new Error(told?.error?.message ?? `The gateway answered ${reply.status}.`);
  }
  let usage = null, reason = null, failed = null;
  const take = (told) => {
    if (told.error) { failed = told.error.message; return; }
    usage = told.usage ?? usage;
    for (const choice of told.choices ?? []) {
      answer.take(choice.delta ?? choice.message ?? {}, choice.logprobs);
      reason = choice.finish_reason ?? reason;
    }
  };
  try {
    if ((reply.headers.get("content-type") ?? "").startsWith("text/event-stream")) {
      await events(reply.body, take);
    } else {
      take(await reply.json());
    }
  } finally {
    answer.end(usage, reason ?? (signal.aborted ? "stopped" : failed ? "failed" : null), id);
  }
  if (failed) throw new Error(failed);
}

async function events(stream, take) {
  const reader = stream.pipeThrough(new TextDecoderStream()).getReader();
  let held = "";
  for (;;) {
    const { done, value } = await reader.read();
    if (done) return;
    held += value;
    const lines = held.split("\n");
    held = lines.pop();
    for (const line of lines) {
      if (!line.startsWith("data: ") || line === "data: [DONE]") continue;
      take(JSON.parse(line.slice(6)));
    }
  }
}

async function go() {
  wrong("");
  const models = [field("model"), field("other")].filter(Boolean);
  const place = made("div", "answers");
  const answers = models.map((model) => new Answer(place, model));
  log.append(place);
  asking = new AbortController();
  busy(true);
  const messages = [...turns];
  const ended = await Promise.allSettled(models.map((model, at) => ask(model, messages, answers[at], asking.signal)));
  const problem = ended.find((one) => one.status === "rejected" && one.reason.name !== "AbortError");
  if (problem) wrong(problem.reason.message);
  if (answers[0].text || answers[0].calls.length) turns.push(answers[0].message);
  asking = null;
  busy(false);
  same();
}

function busy(now) {
  $("send").disabled = now;
  $("stop").disabled = !now;
  $("again").disabled = now || !turns.some((one) => one.role === "user");
  $("clear").disabled = now;
}

$("say").addEventListener("submit", (event) => {
  event.preventDefault();
  const text = $("text").value.trim();
  if (!text || asking) return;
  try { request(field("model"), []); } catch (error) { wrong(`The tools or the schema are no JSON: ${error.message}`); return; }
  if (!turns.length) log.replaceChildren();
  const turn = made("div", "turn user");
  turn.append(made("p", "who", "You"), made("div", "text", text));
  for (const url of images) {
    const picture = made("img");
    picture.src = url;
    picture.alt = "A picture of yours";
    turn.append(picture);
  }
  log.append(turn);
  turns.push({ role: "user", content: content(text, images) });
  images = [];
  $("images").textContent = "";
  $("text").value = "";
  go();
});
$("text").addEventListener("keydown", (event) => {
  if (event.key === "Enter" && !event.shiftKey && !event.isComposing) {
    event.preventDefault();
    $("say").requestSubmit();
  }
});
$("stop").addEventListener("click", () => asking?.abort());
$("again").addEventListener("click", () => {
  while (turns.length && turns.at(-1).role !== "user") turns.pop();
  go();
});
$("clear").addEventListener("click", () => {
  turns = [];
  log.replaceChildren(made("p", "empty", "Say something. Nothing of it is kept."));
  wrong("");
  busy(false);
  same();
});
$("image").addEventListener("change", async (event) => {
  for (const file of event.target.files) {
    images.push(await new Promise((done) => {
      const reader = new FileReader();
      reader.onload = () => done(reader.result);
      reader.readAsDataURL(file);
    }));
  }
  $("images").textContent = images.length ? `${images.length} with it` : "";
  event.target.value = "";
});
$("give")?.addEventListener("click", async () => {
  const token = document.querySelector('meta[name="csrf"]').content;
  const reply = await fetch("/ui/playground/key", { method: "POST", headers: { "x-csrf-token": token, accept: "application/json" } });
  if (!reply.ok) { wrong(await reply.text()); return; }
  $("key").value = (await reply.json()).key;
  remember();
});

// The same request elsewhere.
function quoted(text) { return `'${text.replaceAll("'", "'\\''")}'`; }
function same() {
  let body;
  try { body = request(field("model"), turns.length ? turns : [{ role: "user", content: $("text").value || "Hello!" }]); } catch { return; }
  const shown = "$TROPILLA_KEY", needs = Boolean($("key"));
  const text = JSON.stringify(body, null, 2), root = play.dataset.root;
  const told = {
    curl: () => `curl -N ${quoted(root + PATH)}${needs ? ` -H "Authorization: Bearer ${shown}"` : ""} \\\n  -H 'Content-Type: application/json' -d ${quoted(text)}\n`,
    python: () => `import json, os\nfrom openai import OpenAI\n\nclient = OpenAI(base_url=${JSON.stringify(`${root}/v1`)}, api_key=${needs ? 'os.environ["TROPILLA_KEY"]' : '"none"'})\nrequest = json.loads(${JSON.stringify(JSON.stringify(body))})\nanswer = client.chat.completions.create(**request)\n${body.stream ? 'for chunk in answer:\n    if chunk.choices:\n        print(chunk.choices[0].delta.content or "", end="", flush=True)\n' : "print(answer.choices[0].message.content)\n"}`,
    js: () => `import OpenAI from "openai";\n\nconst client = new OpenAI({ baseURL: ${JSON.stringify(`${root}/v1`)}, apiKey: ${needs ? "process.env.TROPILLA_KEY" : '"none"'} });\nconst answer = await client.chat.completions.create(${text});\n${body.stream ? 'for await (const chunk of answer) process.stdout.write(chunk.choices[0]?.delta?.content ?? "");\n' : "console.log(answer.choices[0].message.content);\n"}`,
  };
  $("same").textContent = told[as]();
}
for (const button of document.querySelectorAll("[data-as]")) {
  button.addEventListener("click", () => {
    as = button.dataset.as;
    for (const one of document.querySelectorAll("[data-as]")) one.setAttribute("aria-pressed", String(one === button));
    same();
  });
}
knobs.addEventListener("submit", (event) => event.preventDefault());
knobs.addEventListener("input", () => { remember(); same(); });
$("text").addEventListener("input", same);

// A key stays in this tab, until it is closed.
function remember() { if ($("key")) sessionStorage.setItem("key", key()); }
if ($("key")) $("key").value = sessionStorage.getItem("key") ?? "";
same();
