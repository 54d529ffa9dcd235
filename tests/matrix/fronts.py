"""The ways in which a client asks for text, and how it reads the answer."""

from __future__ import annotations

from collections.abc import Callable
from importlib import import_module
from importlib.util import find_spec
from typing import Any, NamedTuple

import msgspec

from conftest import Answer
from tropilla.dialects import names

JsonObject = dict[str, Any]


class Want(NamedTuple):
    """What is asked for, in no dialect."""

    stream: bool = False
    stop: tuple[str, ...] = ()
    limit: int = 24
    text: str = "Hello!"


class Told(NamedTuple):
    """What a client has heard, in no dialect."""

    text: str
    reason: str
    prompt_tokens: int
    completion_tokens: int


class Front(NamedTuple):
    """One client dialect."""

    name: str
    path: str
    ask: Callable[[Want], JsonObject]
    whole: Callable[[Any], Told]
    stream: Callable[[list[Any]], Told]
    named: bool = False
    """Whether the events of its stream have names."""

    @property
    def done(self) -> bool:
        """Whether its stream ends with `[DONE]`: OpenAI's do."""
        return self.path.startswith("/v1/") and not self.named

    def told(self, answer: Answer) -> Told:
        """What an answer says; it must be complete."""
        assert answer.status == 200, answer.body
        kind = answer.headers["content-type"]
        if kind == "application/json":
            return self.whole(answer.json)
        events = [event for event in read(answer.body, kind) if event is not None]
        if self.done:
            assert events.pop() == "[DONE]"
        return self.stream(events)

    def fault(self, answer: Answer) -> str:
        """What the error of a failed answer says, in this dialect's envelope."""
        if answer.status != 200:
            error = answer.json["error"]
        else:
            events = read(answer.body, answer.headers["content-type"])
            if self.done:
                assert events.pop() == "[DONE]"
            error = events[-1]["error"]
        message: str = error if isinstance(error, str) else error["message"]
        return message


def read(body: bytes, kind: str) -> list[Any]:
    """The events of a stream, as a client reads them: pings are none."""
    if kind == "application/x-ndjson":
        return [msgspec.json.decode(line) for line in body.splitlines()]
    blocks = body.split(b"\n\n")
    assert blocks.pop() == b"", "the stream ends in the middle of an event"
    lines = [line for block in blocks for line in block.split(b"\n")]
    data = [line.removeprefix(b"data: ") for line in lines if line.startswith(b"data: ")]
    return ["[DONE]" if one == b"[DONE]" else msgspec.json.decode(one) for one in data]


def _openai(want: Want) -> JsonObject:
    options = {"stream_options": {"include_usage": True}} if want.stream else {}
    asked = {"model": "m", "max_tokens": want.limit, "stream": want.stream, "temperature": 0}
    return asked | options | ({"stop": list(want.stop)} if want.stop else {})


def _usage(body: JsonObject) -> tuple[int, int]:
    usage = body["usage"]
    assert usage["total_tokens"] == usage["prompt_tokens"] + usage["completion_tokens"]
    return usage["prompt_tokens"], usage["completion_tokens"]


def _ask_chat(want: Want) -> JsonObject:
    return _openai(want) | {"messages": [{"role": "user", "content": want.text}]}


def _whole_chat(body: Any) -> Told:
    (choice,) = body["choices"]
    assert choice["message"]["role"] == "assistant"
    return Told(choice["message"]["content"], choice["finish_reason"], *_usage(body))


def _stream_chat(chunks: list[Any]) -> Told:
    *chunks, last = chunks
    assert last["choices"] == []
    deltas = [chunk["choices"][0]["delta"] for chunk in chunks]
    assert [delta.get("role") for delta in deltas] == ["assistant"] + [None] * (len(deltas) - 1)
    assert len({chunk["id"] for chunk in (*chunks, last)}) == 1
    text = "".join(delta.get("content") or "" for delta in deltas)
    return Told(text, chunks[-1]["choices"][0]["finish_reason"], *_usage(last))


def _ask_text(want: Want) -> JsonObject:
    return _openai(want) | {"prompt": want.text}


def _whole_text(body: Any) -> Told:
    (choice,) = body["choices"]
    return Told(choice["text"], choice["finish_reason"], *_usage(body))


def _stream_text(chunks: list[Any]) -> Told:
    *chunks, last = chunks
    choices = [chunk["choices"][0] for chunk in chunks]
    text = "".join(choice["text"] for choice in choices)
    return Told(text, choices[-1]["finish_reason"], *_usage(last))


def _ask_native(want: Want) -> JsonObject:
    asked = {"prompt": want.text, "n_predict": want.limit, "stream": want.stream}
    return asked | {"temperature": 0} | ({"stop": list(want.stop)} if want.stop else {})


_NATIVE_REASONS = {"eos": "stop", "word": "stop", "limit": "length"}


def _whole_native(body: Any) -> Told:
    assert body["stop"] is True
    counts = body["tokens_evaluated"], body["tokens_predicted"]
    return Told(body["content"], _NATIVE_REASONS[body["stop_type"]], *counts)


def _stream_native(chunks: list[Any]) -> Told:
    assert [chunk["stop"] for chunk in chunks] == [False] * (len(chunks) - 1) + [True]
    text = "".join(chunk["content"] for chunk in chunks)
    return _whole_native(chunks[-1])._replace(text=text)


def _afs(want: Want) -> JsonObject:
    parameters: JsonObject = {"max_new_tokens": want.limit, "temperature": 0}
    if want.stop:
        parameters["stop_sequences"] = list(want.stop)
    return {"model": "m", "parameters": parameters, "stream": want.stream}


def _ask_conversation(want: Want) -> JsonObject:
    return _afs(want) | {"messages": [{"role": "human", "content": want.text}]}


def _ask_generate(want: Want) -> JsonObject:
    return _afs(want) | {"inputs": want.text}


_AFS_REASONS = {"eos_token": "stop", "stop_sequence": "stop", "length": "length"}


def _whole_afs(body: Any) -> Told:
    assert body["total_tokens"] == body["prompt_tokens"] + body["generated_tokens"]
    assert body["total_time_taken"].endswith(" sec")
    counts = body["prompt_tokens"], body["generated_tokens"]
    return Told(body["generated_text"], _AFS_REASONS[body["finish_reason"]], *counts)


def _stream_afs(chunks: list[Any]) -> Told:
    assert [chunk["finish_reason"] for chunk in chunks[:-1]] == [None] * (len(chunks) - 1)
    text = "".join(chunk["generated_text"] for chunk in chunks)
    return _whole_afs(chunks[-1])._replace(text=text)


_CONVERSATION, _GENERATE = "/api/models/conversation", "/api/models/generate"
FRONTS: tuple[Front, ...] = (
    Front("OpenAI chat", "/v1/chat/completions", _ask_chat, _whole_chat, _stream_chat),
    Front("OpenAI completions", "/v1/completions", _ask_text, _whole_text, _stream_text),
    Front("llama.cpp native", "/completion", _ask_native, _whole_native, _stream_native),
    Front("AFS conversation", _CONVERSATION, _ask_conversation, _whole_afs, _stream_afs),
    Front("AFS generate", _GENERATE, _ask_generate, _whole_afs, _stream_afs),
)
# Dialects that say it themselves, in `dialects/NAME/front.py`.
for _name in names():
    if find_spec(f"dialects.{_name}") and find_spec(f"dialects.{_name}.front"):
        FRONTS += import_module(f"dialects.{_name}.front").FRONTS
