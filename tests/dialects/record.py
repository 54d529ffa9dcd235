"""Record twins of a real llama.cpp server: the same question asked streamed and not.

    python tests/dialects/record.py MODEL.gguf [DIALECT...]

writes `<dialect>/<case>.request.json`, `.sse` and `.json`. The engine is the one in xllamacpp. At
temperature 0, with the prompt cached by a first asking, the twins differ in nothing but ids and
timings. Only `openai_chat/tools` is not of its making: it needs a model that knows how to call.
"""

from __future__ import annotations

import sys
import urllib.request
from pathlib import Path
from typing import Any

import msgspec

HERE = Path(__file__).parent
SAY = {"messages": [{"role": "user", "content": "Say hello."}], "max_tokens": 6}
SCHEMA = {
    "type": "object",
    "properties": {"on": {"type": "boolean"}},
    "required": ["on"],
    "additionalProperties": False,
}

CASES: dict[str, tuple[str, dict[str, dict[str, Any]]]] = {
    "openai_chat": (
        "/v1/chat/completions",
        {
            "plain": SAY,
            "n2": SAY | {"n": 2, "max_tokens": 3},
            "logprobs": SAY | {"logprobs": True, "top_logprobs": 2, "max_tokens": 3},
            "timings": SAY | {"timings_per_token": True, "max_tokens": 3},
            "json_schema": SAY
            | {
                "max_tokens": 64,
                "response_format": {
                    "type": "json_schema",
                    "json_schema": {"name": "light", "schema": SCHEMA},
                },
            },
            "verbose": SAY | {"verbose": True, "max_tokens": 2},
        },
    ),
    "openai_completions": (
        "/v1/completions",
        {
            "plain": {"prompt": "Hello", "max_tokens": 5},
            "n2": {"prompt": "Hello", "max_tokens": 3, "n": 2},
            "multi": {"prompt": ["Hello", "World"], "max_tokens": 3},
            "logprobs": {"prompt": "Hello", "max_tokens": 3, "logprobs": 2},
        },
    ),
    "llamacpp": (
        "/completion",
        {
            "plain": {"prompt": "Hello", "max_tokens": 5},
            "n2": {"prompt": "Hello", "n_predict": 3, "n_cmpl": 2},
            "multi": {"prompt": ["Hello", "World"], "n_predict": 3},
            "n_probs": {"prompt": "Hello", "n_predict": 3, "n_probs": 2},
            "post_sampling_probs": {
                "prompt": "Hello",
                "n_predict": 3,
                "n_probs": 2,
                "post_sampling_probs": True,
            },
            "return_tokens": {"prompt": "Hello", "n_predict": 4, "return_tokens": True},
            "timings": {"prompt": "Hello", "n_predict": 3, "timings_per_token": True},
            "infill": {"input_prefix": "def f(", "input_suffix": "return", "n_predict": 4},
        },
    ),
    "anthropic": (
        "/v1/messages",
        {
            "plain": SAY,
            "blocks": {
                "max_tokens": 6,
                "system": [
                    {"type": "text", "text": "Be kind."},
                    {"type": "text", "text": "Be brief."},
                ],
                "messages": [{"role": "user", "content": [{"type": "text", "text": "Say hello."}]}],
            },
            "tools": SAY
            | {
                "max_tokens": 64,
                "tools": [{"name": "light", "input_schema": SCHEMA}],
                "tool_choice": {"type": "any"},
            },
        },
    ),
}


def ask(address: str, path: str, body: dict[str, Any]) -> bytes:
    """What the server answers, byte for byte."""
    request = urllib.request.Request(
        address + path, msgspec.json.encode(body), {"Content-Type": "application/json"}
    )
    with urllib.request.urlopen(request, timeout=60) as answer:
        data: bytes = answer.read()
    return data


def record(address: str, dialect: str, path: str, case: str, body: dict[str, Any]) -> None:
    """Write one case."""
    body = body | {"temperature": 0, "seed": 7}
    streamed = body | {"stream": True}
    if dialect.startswith("openai"):
        streamed["stream_options"] = {"include_usage": True}
    ask(address, path, body)  # from now on the prompt is cached
    whole, stream = ask(address, path, body), ask(address, path, streamed)
    stem = HERE / dialect / case
    stem.with_suffix(".request.json").write_bytes(
        msgspec.json.format(msgspec.json.encode({"path": path, "body": streamed})) + b"\n"
    )
    stem.with_suffix(".json").write_bytes(whole)
    stem.with_suffix(".sse").write_bytes(stream)


def main() -> None:
    """Start the engine, and record everything."""
    import xllamacpp

    params = xllamacpp.CommonParams()
    params.model.path = sys.argv[1]
    params.model_alias = ["tiny"]
    params.n_parallel = 4
    params.n_ctx = 4096
    params.use_jinja = True
    params.ui = False
    params.verbosity = 1
    server = xllamacpp.Server(params)
    address = server.listening_address
    chosen = {name: cases for name, cases in CASES.items() if name in (sys.argv[2:] or CASES)}
    for dialect, (path, cases) in chosen.items():
        for case, body in cases.items():
            record(address, dialect, "/infill" if case == "infill" else path, case, body)
    for dialect, (path, cases) in chosen.items():
        record(address, dialect, path, "stop_word", stopped(address, dialect, path, cases["plain"]))


def stopped(address: str, dialect: str, path: str, plain: dict[str, Any]) -> dict[str, Any]:
    """A question that ends at a stop word: a text that the model is known to say."""
    asked = plain | {"max_tokens": 24}
    answer = msgspec.json.decode(ask(address, path, asked | {"temperature": 0, "seed": 7}))
    match answer:
        case {"content": str(text)} | {"choices": [{"text": str(text)}]}:
            pass
        case {"content": [{"text": str(text)}]}:
            pass
        case _:
            text = answer["choices"][0]["message"]["content"]
    middle = len(text) // 2
    name = "stop_sequences" if dialect == "anthropic" else "stop"
    return asked | {name: [text[middle : middle + 4]]}


if __name__ == "__main__":
    main()
