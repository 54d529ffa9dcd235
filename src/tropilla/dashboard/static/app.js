// What all pages do: look again while somebody looks, copy, and ask before what cannot be undone.
"use strict";

const EVERY = 1000;

// Live parts wait for this; a page that nobody sees asks for nothing.
setInterval(() => {
  if (document.visibilityState === "visible") document.body.dispatchEvent(new Event("tick"));
}, EVERY);

document.addEventListener("input", (event) => {
  const form = event.target.form;
  if (form && form.id === "filter") {
    document.body.dispatchEvent(new Event("look"));
    const asked = new URLSearchParams(new FormData(form));
    history.replaceState(null, "", `${location.pathname}?${asked}`);
  }
  const other = event.target.dataset.replaces;
  if (other) replaceKey(other, event.target.value);
});

document.addEventListener("change", (event) => {
  const form = event.target.form;
  if (form && "now" in form.dataset) form.submit();
});

document.addEventListener("submit", (event) => {
  if (event.target.id === "filter") event.preventDefault();
  const sure = event.submitter && event.submitter.dataset.sure;
  if (sure && !confirm(sure)) event.preventDefault();
});

document.addEventListener("click", async (event) => {
  const button = event.target.closest("[data-copy]");
  if (!button) return;
  const from = document.getElementById(button.dataset.copy);
  try {
    await navigator.clipboard.writeText(from.textContent);
    button.textContent = "Copied";
  } catch {
    getSelection().selectAllChildren(from); // no clipboard without TLS: it is one key away
    button.textContent = "Selected";
  }
  setTimeout(() => { button.textContent = "Copy"; }, 1500);
});

// The key that somebody types stays in this page.
const originals = new Map();
function replaceKey(mark, key) {
  for (const code of document.querySelectorAll(".code code")) {
    if (!originals.has(code)) originals.set(code, code.textContent);
    code.textContent = originals.get(code).replaceAll(mark, key || mark);
  }
}

// A request once more, as its client sent it, with the key of this tab.
const replay = document.getElementById("replay");
if (replay) {
  const key = replay.elements.key, shown = document.getElementById("replayed");
  if (key) key.value = sessionStorage.getItem("key") ?? "";
  replay.addEventListener("submit", async (event) => {
    event.preventDefault();
    const headers = { "content-type": "application/json" };
    if (key) {
      headers.authorization = `Bearer ${key.value}`;
      sessionStorage.setItem("key", key.value);
    }
    shown.closest(".code").hidden = false;
    shown.textContent = "";
    const answer = await fetch(replay.dataset.path, { method: "POST", headers, body: replay.dataset.body });
    const reader = answer.body.pipeThrough(new TextDecoderStream()).getReader();
    shown.append(`${answer.status} ${answer.statusText}\n`);
    for (;;) {
      const { done, value } = await reader.read();
      if (done) break;
      shown.append(value);
    }
  });
}
