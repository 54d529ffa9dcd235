"""What a client hears: events to chat completion chunks, and a whole answer to one completion."""

from __future__ import annotations

import math

from tropilla.dialects import Stamp
from tropilla.dialects._openai import (
    ChunkRenderer,
    decode,
    encode,
    write_usage,
)
from tropilla.dialects.openai_chat.tools import render_call
from tropilla.ir import (
    Answer,
    Chat,
    Choice,
    ChoiceEnded,
    Event,
    Extras,
    Failed,
    Finished,
    FinishReason,
    JsonObject,
    PartDelta,
    PartEnded,
    PartKind,
    PartStarted,
    Progress,
    Reasoning,
    Refusal,
    Request,
    Started,
    ToolCall,
)


class _Renderer(ChunkRenderer):
    """Writes chunks."""

    __slots__ = ("_begin_text", "_calls", "_kinds", "_more", "_old", "_text_of")

    def __init__(self, request: Request, stamp: Stamp) -> None:
        super().__init__(request, stamp)
        self._kinds: dict[int, PartKind] = {}
        self._text_of = -1
        """The choice whose text was begun last."""
        self._begin_text = b""
        """What is before each token of it."""
        self._calls: dict[int, int] = {}
        self._more: dict[int, bytes] = {}
        """Around what is told of the arguments of the open call."""
        self._old = _is_old(request)

    def feed(self, event: Event) -> bytes:
        if (
            type(event) is PartDelta
            and event.choice == self._text_of
            and event.extras is None
            and event.logprobs is None
        ):
            # Nearly all of them.
            return b"%b%b%b" % (self._begin_text, encode(event.text), self._after)
        match event:
            case PartDelta():
                return self._delta(event)
            case PartStarted():
                return self._release() + self._part(event)
            case PartEnded():
                return b""
            case Started():
                return self._start(event)
            case Progress():
                return self._tell_progress(event)
            case ChoiceEnded():
                return self._release() + self._end_choice(event)
            case Finished():
                return self._finish(event)
            case Failed():
                return self._fail(event)

    def _start(self, event: Started) -> bytes:
        stamp = self._stamp
        head: JsonObject = {
            "id": event.id or f"chatcmpl-{stamp.unique}",
            "object": "chat.completion.chunk",
            "created": event.created or stamp.created,
            "model": stamp.model,
        }
        if event.fingerprint is not None:
            head["system_fingerprint"] = event.fingerprint
        self._begin(head, b"}")
        # All roles first, in order: openai-python fails where the first chunk is not choice 0's.
        role = b'"role":"assistant","content":"","refusal":null'
        told = [self._plain(index, role) for index in range(self._request.choices)]
        return b"".join(told)

    def _begin_delta(self, index: int) -> bytes:
        return b'%b"choices":[{"index":%d,"delta":{' % (self._before, index)

    def _plain(self, index: int, delta: bytes) -> bytes:
        return self._begin_delta(index) + delta + self._after

    def _delta(self, event: PartDelta) -> bytes:
        kind = self._kinds[event.choice]
        text = encode(event.text)
        if kind == "text":
            delta = b'"content":' + text
        elif kind == "tool_call":
            delta = self._more[event.choice] % text
        elif kind == "reasoning":
            # llama.cpp's and vLLM's name for it; clients read either.
            delta = b'"reasoning_content":%b,"reasoning":%b' % (text, text)
        else:
            delta = b'"refusal":' + text
        if event.logprobs is None and event.extras is None:
            return self._plain(event.choice, delta)
        return self._rich(event, decode(b"{%b}" % delta))

    def _rich(self, event: PartDelta, delta: JsonObject) -> bytes:
        extras = event.extras or Extras()
        choice: JsonObject = {
            "index": event.choice,
            "delta": delta | extras.part,
            "logprobs": self._logprobs(event),
            "finish_reason": None,
            **extras.choice,
        }
        return self._chunk(choice, extras.top)

    def _logprobs(self, event: PartDelta | ChoiceEnded) -> JsonObject | None:
        refused = self._kinds.get(event.choice) == "refusal"
        return _render_logprobs(event.logprobs, self._request, refused=refused)

    def _part(self, event: PartStarted) -> bytes:
        self._kinds[event.choice] = event.kind
        if event.kind == "text":
            self._text_of = event.choice
            self._begin_text = self._begin_delta(event.choice) + b'"content":'
        elif event.choice == self._text_of:
            self._text_of = -1
        if event.kind != "tool_call":
            return b""
        number = self._calls.get(event.choice, -1) + 1
        self._calls[event.choice] = number
        if self._old:
            self._more[event.choice] = b'"function_call":{"arguments":%b}'
            old = {"name": event.name, "arguments": ""}
            return self._plain(event.choice, b'"function_call":' + encode(old))
        kind, text = (b"custom", b"input") if event.custom else (b"function", b"arguments")
        self._more[event.choice] = b'"tool_calls":[{"index":%d,"%b":{"%b":%%b}}]' % (
            number, kind, text,
        )  # fmt: skip
        call = ToolCall(
            id=event.id or _call_id(self._stamp, event.choice, number),
            name=event.name or "",
            arguments="",
            custom=event.custom,
        )
        return self._plain(
            event.choice, b'"tool_calls":[%b]' % encode({"index": number} | render_call(call))
        )

    def _tell_progress(self, event: Progress) -> bytes:
        if not self._request.extras.get("return_progress"):
            return b""
        progress = {
            "total": event.total,
            "cache": event.cached,
            "processed": event.processed,
            "time_ms": event.time_ms,
        }
        choice = {"index": event.choice, "delta": {}, "logprobs": None, "finish_reason": None}
        top = event.extras.top if event.extras else {}
        return self._chunk(choice, {"prompt_progress": progress} | top)

    def _end_choice(self, event: ChoiceEnded) -> bytes:
        extras = event.extras or Extras()
        choice: JsonObject = {
            "index": event.choice,
            "delta": extras.part,
            "logprobs": self._logprobs(event),
            "finish_reason": _reason(event.reason, self._request),
            **extras.choice,
        }
        return self._last_of(choice, extras.top)


def stream_renderer(request: Request, stamp: Stamp) -> _Renderer:
    """A renderer of chat completion chunks."""
    return _Renderer(request, stamp)


def render_answer(answer: Answer, request: Request, stamp: Stamp) -> bytes:
    """The chat completion, whole."""
    body: JsonObject = {
        "id": answer.id or f"chatcmpl-{stamp.unique}",
        "object": "chat.completion",
        "created": answer.created or stamp.created,
        "model": stamp.model,
        "choices": [_render_choice(choice, request, stamp) for choice in answer.choices],
        "usage": write_usage(answer.usage),
    }
    if answer.fingerprint is not None:
        body["system_fingerprint"] = answer.fingerprint
    body |= answer.extras
    if answer.timings is not None:
        body["timings"] = answer.timings
    return encode(body)


def _render_choice(choice: Choice, request: Request, stamp: Stamp) -> JsonObject:
    text, reasoning, calls = choice.text(), choice.text(Reasoning), choice.tool_calls
    message: JsonObject = {
        "role": "assistant",
        "content": text if text is not None or calls else "",
        "refusal": choice.text(Refusal),
        "annotations": [],
    }
    if reasoning is not None:
        message["reasoning_content"] = message["reasoning"] = reasoning
    if calls and _is_old(request):
        message["function_call"] = {"name": calls[0].name, "arguments": calls[0].arguments}
    elif calls:
        message["tool_calls"] = [
            render_call(call) | {"id": call.id or _call_id(stamp, choice.index, number)}
            for number, call in enumerate(calls)
        ]
    return {
        "index": choice.index,
        "message": message | choice.part_extras,
        "logprobs": _render_logprobs(
            choice.logprobs, request, refused=text is None and message["refusal"] is not None
        ),
        "finish_reason": _reason(choice.reason, request),
        **choice.extras,
    }


def _is_old(request: Request) -> bool:
    """Whether the client spoke of functions: it hears of a call in the same form."""
    return isinstance(request.input, Chat) and request.input.functions


def _reason(reason: FinishReason | None, request: Request) -> FinishReason | None:
    return "function_call" if reason == "tool_calls" and _is_old(request) else reason


def _call_id(stamp: Stamp, choice: int, number: int) -> str:
    return f"call_{stamp.unique}_{choice}_{number}"


def _render_logprobs(
    entries: list[JsonObject] | None, request: Request, *, refused: bool
) -> JsonObject | None:
    if entries is None or request.logprobs is None:
        return None
    told = [_chance(entry, request.logprobs) for entry in entries]
    return {"content": None, "refusal": told} if refused else {"content": told, "refusal": None}


_CHANCE = {"token", "logprob", "bytes"}
_UNLIKELY = -9999.0
"""OpenAI's value for a token too unlikely to be told of."""


def _chance(entry: JsonObject, wanted: int | None = None) -> JsonObject:
    """The probability of a token, and of so many of its alternatives, with every key.

    After sampling (`post_sampling_probs`) llama.cpp tells of `prob` and `top_probs`.
    """
    whole = entry if entry.keys() >= _CHANCE else _completed(entry)
    if wanted is None:
        return whole
    tops = entry.get("top_logprobs") or entry.get("top_probs")
    told = [
        top if top.keys() >= _CHANCE else _chance(top)
        for top in (tops if type(tops) is list else ())[:wanted]
        if type(top) is dict
    ]
    return whole | {"top_logprobs": told}


def _completed(entry: JsonObject) -> JsonObject:
    rest = {key: entry[key] for key in entry if key not in {"prob", "top_probs"}}
    token, prob = str(entry.get("token", "")), entry.get("prob")
    logprob = _UNLIKELY
    if isinstance(prob, int | float) and prob > 0:
        logprob = math.log(prob)
    told = {"token": token, "logprob": logprob, "bytes": list(token.encode("utf-8", "replace"))}
    return told | rest
