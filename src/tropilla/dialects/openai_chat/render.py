"""What a client hears: events to chat completion chunks, and a whole answer to one completion."""

from __future__ import annotations

from tropilla.dialects import Stamp
from tropilla.dialects._openai import (
    ChunkRenderer,
    decode,
    encode,
    write_usage,
)
from tropilla.dialects.openai_chat.request import render_call
from tropilla.ir import (
    Answer,
    Choice,
    ChoiceEnded,
    Event,
    Extras,
    Failed,
    Finished,
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
)


class _Renderer(ChunkRenderer):
    """Writes chunks."""

    def __init__(self, request: Request, stamp: Stamp) -> None:
        super().__init__(request, stamp)
        self._kinds: dict[int, PartKind] = {}
        self._calls: dict[int, int] = {}

    def feed(self, event: Event) -> bytes:
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

    def _plain(self, index: int, delta: bytes) -> bytes:
        return b'%b"choices":[{"index":%d,"delta":{%b%b' % (self._before, index, delta, self._after)

    def _delta(self, event: PartDelta) -> bytes:
        kind = self._kinds[event.choice]
        text = encode(event.text)
        if kind == "text":
            delta = b'"content":' + text
        elif kind == "tool_call":
            number = self._calls[event.choice]
            delta = b'"tool_calls":[{"index":%d,"function":{"arguments":%b}}]' % (number, text)
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
            "logprobs": _render_logprobs(event.logprobs, self._request),
            "finish_reason": None,
            **extras.choice,
        }
        return self._chunk(choice, extras.top)

    def _part(self, event: PartStarted) -> bytes:
        self._kinds[event.choice] = event.kind
        if event.kind != "tool_call":
            return b""
        number = self._calls.get(event.choice, -1) + 1
        self._calls[event.choice] = number
        call = {
            "index": number,
            "id": event.id or _call_id(self._stamp, event.choice, number),
            "type": "function",
            "function": {"name": event.name, "arguments": ""},
        }
        return self._plain(event.choice, b'"tool_calls":[%b]' % encode(call))

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
            "logprobs": _render_logprobs(event.logprobs, self._request),
            "finish_reason": event.reason,
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
    if calls:
        message["tool_calls"] = [
            render_call(call) | {"id": call.id or _call_id(stamp, choice.index, number)}
            for number, call in enumerate(calls)
        ]
    return {
        "index": choice.index,
        "message": message | choice.part_extras,
        "logprobs": _render_logprobs(choice.logprobs, request),
        "finish_reason": choice.reason,
        **choice.extras,
    }


def _call_id(stamp: Stamp, choice: int, number: int) -> str:
    return f"call_{stamp.unique}_{choice}_{number}"


def _render_logprobs(entries: list[JsonObject] | None, request: Request) -> JsonObject | None:
    if entries is None or request.logprobs is None:
        return None
    wanted = request.logprobs
    cut = [
        entry | {"top_logprobs": top[:wanted]}
        if type(top := entry.get("top_logprobs")) is list and len(top) > wanted
        else entry
        for entry in entries
    ]
    return {"content": cut, "refusal": None}
