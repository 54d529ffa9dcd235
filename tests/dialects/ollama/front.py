"""The rows of the matrix: how a client of Ollama asks, and reads the answer."""

from __future__ import annotations

from typing import Any

from matrix.fronts import Front, JsonObject, Told, Want


def _asked(want: Want) -> JsonObject:
    options: JsonObject = {"num_predict": want.limit, "temperature": 0}
    if want.stop:
        options["stop"] = list(want.stop)
    # Nothing said is a stream.
    return {"model": "m", "options": options} | ({} if want.stream else {"stream": False})


def _chat(want: Want) -> JsonObject:
    return _asked(want) | {"messages": [{"role": "user", "content": want.text}]}


def _generate(want: Want) -> JsonObject:
    return _asked(want) | {"prompt": want.text}


def _said(body: JsonObject) -> str:
    text: str = body["message"]["content"] if "message" in body else body["response"]
    return text


def _whole(body: Any) -> Told:
    assert body["done"] is True
    return Told(_said(body), body["done_reason"], body["prompt_eval_count"], body["eval_count"])


def _stream(lines: list[Any]) -> Told:
    assert [line["done"] for line in lines] == [False] * (len(lines) - 1) + [True]
    return _whole(lines[-1])._replace(text="".join(map(_said, lines)))


FRONTS = (
    Front("Ollama chat", "/api/chat", _chat, _whole, _stream),
    Front("Ollama generate", "/api/generate", _generate, _whole, _stream),
)
