"""`GET /docs`: what is served, as a page for people, made from the OpenAPI document.

One page with its style in it, without a script: it asks no other host for anything, and a browser
is told that it may not. What others say (the host that was asked, a model's name) is escaped.
"""

from __future__ import annotations

import base64
import hashlib
import re
from collections.abc import Iterator
from html import escape

from tropilla import __version__
from tropilla.ir import Json, JsonObject
from tropilla.server.openapi import describe

CONTENT_TYPE = "text/html; charset=utf-8"
_STYLE = """
:root { color-scheme: light dark; --line: #8884; --soft: #8882; }
* { box-sizing: border-box; }
body { font: 16px/1.5 system-ui, sans-serif; margin: 0 auto; max-width: 60rem; padding: 1rem; }
h1 { font-size: 1.6rem; } h2 { font-size: 1.2rem; margin-top: 2rem; }
nav { display: flex; flex-wrap: wrap; gap: .2rem .9rem; }
pre, code { font: 14px/1.45 ui-monospace, monospace; }
pre { background: var(--soft); border-radius: 6px; overflow-x: auto; padding: .8rem; }
details { border-bottom: 1px solid var(--line); padding: .35rem 0; }
summary { cursor: pointer; display: flex; flex-wrap: wrap; gap: .2rem .7rem; }
summary b { font: 600 12px/1.8 ui-monospace, monospace; min-width: 4rem; }
summary code { overflow-wrap: anywhere; }
table { border-collapse: collapse; display: block; overflow-x: auto; margin: .5rem 0; }
td, th { border-bottom: 1px solid var(--line); padding: .2rem .8rem .2rem 0; text-align: left;
  vertical-align: top; }
"""
_HASH = base64.b64encode(hashlib.sha256(_STYLE.encode()).digest()).decode()
HEADERS = {
    "content-security-policy": f"default-src 'none'; style-src 'sha256-{_HASH}'; base-uri 'none'; "
    "form-action 'none'; frame-ancestors 'none'",
    "x-content-type-options": "nosniff",
    "referrer-policy": "no-referrer",
    "cache-control": "no-cache",
}
_FIRST, _LAST = "OpenAI", "Passed on"
_METHODS = ("get", "head", "post", "put", "delete")
_CURL = """curl {base}/v1/chat/completions \\
  -H "Content-Type: application/json" \\
  -H "Authorization: Bearer $TROPILLA_API_KEY" \\
  -d '{{"model": "{model}", "messages": [{{"role": "user", "content": "Hello!"}}]}}'"""
_PYTHON = """from openai import OpenAI

client = OpenAI(base_url="{base}/v1", api_key="YOUR_KEY")
answer = client.chat.completions.create(
    model="{model}", messages=[{{"role": "user", "content": "Hello!"}}], stream=True
)
for chunk in answer:
    print(chunk.choices[0].delta.content or "", end="", flush=True)"""
_NODE = """import OpenAI from "openai";

const client = new OpenAI({{ baseURL: "{base}/v1", apiKey: "YOUR_KEY" }});
const answer = await client.chat.completions.create({{
  model: "{model}", messages: [{{ role: "user", content: "Hello!" }}], stream: true,
}});
for await (const chunk of answer) process.stdout.write(chunk.choices[0]?.delta?.content ?? "");"""


def page(host: str, models: list[str]) -> bytes:
    """The page, for a client that asked this host, and may know of these models."""
    document = describe()
    tags = _by_tag(document)
    base = f"http://{host}"
    model = _plain(models[0]) if models else "MODEL"
    served = "".join(f"<li><code>{escape(one)}</code>" for one in models)
    return "".join([
        '<!doctype html><html lang="en"><head><meta charset="utf-8">',
        '<meta name="viewport" content="width=device-width, initial-scale=1">',
        f"<title>Tropilla: what is served</title><style>{_STYLE}</style></head><body>",
        f"<h1>Tropilla {escape(__version__)}</h1>",
        "<p>One OpenAI-compatible endpoint for a herd of llama.cpp servers.</p><nav>",
        '<a href="/openapi.json">openapi.json</a>',
        *(f'<a href="#{_anchor(tag)}">{escape(tag)}</a>' for tag in tags),
        "</nav>",
        f"<h2>Models</h2><ul>{served}</ul>" if models else "",
        "<h2>Try it</h2>",
        *(
            f"<details{' open' if not number else ''}><summary>{name}</summary>"
            f"<pre>{escape(text.format(base=base, model=model))}</pre></details>"
            for number, (name, text) in enumerate(
                (("curl", _CURL), ("Python", _PYTHON), ("JavaScript", _NODE))
            )
        ),
        *(part for tag, rows in tags.items() for part in _section(tag, rows, document)),
        "</body></html>",
    ]).encode()  # fmt: skip


def _plain(model: str) -> str:
    """A name as it can stand between quotes, in a shell and in a program."""
    return model if re.fullmatch(r"[\w./:@ +-]+", model) else "MODEL"


def _by_tag(document: JsonObject) -> dict[str, list[tuple[str, str, JsonObject]]]:
    tags: dict[str, list[tuple[str, str, JsonObject]]] = {}
    for path, methods in document["paths"].items():
        for method in _METHODS:
            if method in methods:
                told = methods[method]
                tags.setdefault(told["tags"][0], []).append((method.upper(), path, told))
    return dict(sorted(tags.items(), key=lambda one: (one[0] == _LAST, one[0] != _FIRST)))


def _anchor(tag: str) -> str:
    return re.sub(r"[^a-z0-9]+", "-", tag.lower())


def _section(
    tag: str, rows: list[tuple[str, str, JsonObject]], document: JsonObject
) -> Iterator[str]:
    yield f'<h2 id="{_anchor(tag)}">{escape(tag)}</h2>'
    for method, path, told in rows:
        yield (
            f"<details><summary><b>{method}</b> <code>{escape(path)}</code> "
            f"<span>{escape(told['summary'])}</span></summary>"
        )
        for one in told.get("parameters", ()):
            yield f"<p>In the {escape(one['in'])}: <code>{escape(one['name'])}</code></p>"
        yield from _fields(told, document)
        yield (
            "<p>Answers: "
            + ", ".join(f"<code>{escape(status)}</code>" for status in told["responses"])
            + "</p></details>"
        )


def _fields(told: JsonObject, document: JsonObject) -> Iterator[str]:
    """The fields of the body that is sent there."""
    content = told.get("requestBody", {}).get("content", {})
    schema = _resolved(content.get("application/json", {}).get("schema", {}), document)
    properties = schema.get("properties", {})
    if not properties:
        return
    needed = schema.get("required", ())
    yield "<table><tr><th>field<th>type"
    for name, one in properties.items():
        mark = " (needed)" if name in needed else ""
        yield f"<tr><td><code>{escape(name)}</code>{mark}<td>{escape(_kind(one))}"
    yield "</table>"


def _resolved(schema: JsonObject, document: JsonObject) -> JsonObject:
    name = schema.get("$ref", "").rpartition("/")[2]
    found: JsonObject = document["components"]["schemas"].get(name, {}) if name else schema
    return found


def _kind(schema: Json) -> str:
    """A type in few words."""
    if not isinstance(schema, dict):
        return "anything"
    if "$ref" in schema:
        return str(schema["$ref"]).rpartition("/")[2]
    if "const" in schema:
        return repr(schema["const"])
    if "enum" in schema:
        return " | ".join(map(str, schema["enum"]))
    for several in ("anyOf", "oneOf"):
        if several in schema:
            return " | ".join(dict.fromkeys(map(_kind, schema[several])))
    kind = schema.get("type", "anything")
    if kind == "array":
        return f"list of {_kind(schema.get('items', {}))}"
    return " | ".join(kind) if isinstance(kind, list) else str(kind)
