"""What a client hears: events to the events of a message, and a whole answer to one message.

Each part of an answer is a block. What the prompt took is known at the end: the counts that come
with the end of a message are those of all of it.
"""

from __future__ import annotations

from tropilla.dialects import Stamp
from tropilla.dialects._openai import encode
from tropilla.dialects._sealed import seal
from tropilla.dialects.anthropic.messages import SIGNATURE
from tropilla.dialects.anthropic.names import read
from tropilla.dialects.anthropic.problems import envelope
from tropilla.framing import sse
from tropilla.ir import (
    Answer,
    Choice,
    ChoiceEnded,
    Event,
    Failed,
    Finished,
    FinishReason,
    JsonObject,
    Part,
    PartDelta,
    PartEnded,
    PartKind,
    PartStarted,
    Progress,
    Reasoning,
    Refusal,
    Request,
    Started,
    Text,
    ToolCall,
    Usage,
)

PING = b'event: ping\ndata: {"type": "ping"}\n\n'

_REASONS: dict[FinishReason | None, str] = {
    "length": "max_tokens",
    "content_filter": "refusal",
    "tool_calls": "tool_use",
    "function_call": "tool_use",
}


def _omits(request: Request) -> bool:
    """Whether the client does not want to see thoughts, only to send them back."""
    thinking = request.extras.get("thinking")
    return type(thinking) is dict and thinking.get("display") == "omitted"


def _message(stamp: Stamp, id_: str | None) -> JsonObject:
    """The message before anything of it is there."""
    return {
        "id": id_ or f"msg_{stamp.unique}",
        "type": "message",
        "role": "assistant",
        "model": stamp.model,
        "content": [],
        "stop_reason": None,
        "stop_sequence": None,
        "usage": _usage(Usage()),
    }


def _usage(usage: Usage) -> JsonObject:
    """The counts: what was in the cache is not part of `input_tokens` here."""
    cached = min(usage.cached_tokens or 0, usage.prompt_tokens)
    body: JsonObject = {
        "input_tokens": usage.prompt_tokens - cached,
        "cache_creation_input_tokens": 0,
        "cache_read_input_tokens": cached,
        "output_tokens": usage.completion_tokens,
    }
    if usage.reasoning_tokens is not None:
        body["output_tokens_details"] = {"thinking_tokens": usage.reasoning_tokens}
    if usage.extras.get("estimated") is True:
        body["estimated"] = True
    return body


def _end(reason: FinishReason | None, word: str | None, *, called: bool) -> JsonObject:
    """Why a message ended. That calls were made is what agents go on for, whoever told it how."""
    if called and reason in {"stop", None}:
        reason = "tool_calls"
    if reason == "stop" and word is not None:
        return {"stop_reason": "stop_sequence", "stop_sequence": word}
    return {"stop_reason": _REASONS.get(reason, "end_turn"), "stop_sequence": None}


def _call_id(id_: str | None, stamp: Stamp, index: int) -> str:
    return id_ or f"toolu_{stamp.unique}_{index}"


# The stream.

_EMPTY: dict[PartKind, JsonObject] = {
    "text": {"type": "text", "text": ""},
    "refusal": {"type": "text", "text": ""},
    "reasoning": {"type": "thinking", "thinking": "", "signature": ""},
}
_DELTAS: dict[PartKind, tuple[str, str]] = {
    "text": ("text_delta", "text"),
    "refusal": ("text_delta", "text"),
    "reasoning": ("thinking_delta", "thinking"),
    "tool_call": ("input_json_delta", "partial_json"),
}


def stream_renderer(request: Request, stamp: Stamp) -> Renderer:
    """A renderer of the events of a message."""
    return Renderer(request, stamp)


class Renderer:
    """Writes the events of one message."""

    def __init__(self, request: Request, stamp: Stamp) -> None:
        self._stamp = stamp
        self._omits = _omits(request)
        self._begun = False
        self._blocks = 0
        self._kind: PartKind = "text"
        self._before = b""
        """How a delta of the open block begins, up to its text."""
        self._thought: list[str] = []
        """What was thought, where it is not shown."""
        self._called = False
        self._ended: ChoiceEnded | None = None

    def feed(self, event: Event) -> bytes:
        """The bytes that tell this event; often none."""
        match event:
            case PartDelta(text=text):
                if self._omits and self._kind == "reasoning":
                    self._thought.append(text)
                    return b""
                return b"%b%b}}\n\n" % (self._before, encode(text)) if text else b""
            case Failed(problem=problem):
                return _event("error", envelope(problem))
            case Progress():
                return b""
            case ChoiceEnded():
                self._ended = event
                return b""
        begun = self._begin(event)
        match event:
            case PartStarted():
                return begun + self._open(event)
            case PartEnded():
                return begun + self._close()
            case Finished():
                return begun + self._finish(event)
        return begun

    def _begin(self, event: Event) -> bytes:
        if self._begun:
            return b""
        self._begun = True
        id_ = event.id if isinstance(event, Started) else None
        return _event("message_start", {"message": _message(self._stamp, id_)})

    def _open(self, event: PartStarted) -> bytes:
        index, self._kind = self._blocks, event.kind
        self._blocks += 1
        if event.kind == "tool_call":
            self._called = True
            id_ = _call_id(event.id, self._stamp, index)
            block = {"type": "tool_use", "id": id_, "name": event.name or "", "input": {}}
        else:
            block = _EMPTY[event.kind]
        kind, name = _DELTAS[event.kind]
        self._before = (
            b"event: content_block_delta\n"
            b'data: {"type":"content_block_delta","index":%d,"delta":{"type":"%b","%b":'
            % (index, kind.encode(), name.encode())
        )
        return _event("content_block_start", {"index": index, "content_block": block})

    def _close(self) -> bytes:
        index, signed = self._blocks - 1, b""
        if self._kind == "reasoning":
            signature = seal("".join(self._thought)) if self._omits else SIGNATURE
            self._thought = []
            delta = {"type": "signature_delta", "signature": signature}
            signed = _event("content_block_delta", {"index": index, "delta": delta})
        return signed + _event("content_block_stop", {"index": index})

    def _finish(self, event: Finished) -> bytes:
        ended = self._ended
        delta = _end(
            ended.reason if ended else None,
            ended.stop_word if ended else None,
            called=self._called,
        )
        told: JsonObject = {"delta": delta, "usage": _usage(event.usage or Usage())}
        if event.timings is not None:
            told["timings"] = event.timings
        return _event("message_delta", told) + _event("message_stop", {})


def _event(name: str, told: JsonObject) -> bytes:
    return sse(encode({"type": name} | told), name)


# The whole answer.


def render_answer(answer: Answer, request: Request, stamp: Stamp) -> bytes:
    """The message, whole."""
    choice = answer.choices[0] if answer.choices else Choice()
    omits = _omits(request)
    body = _message(stamp, answer.id)
    body["content"] = [
        _block(part, index, stamp, omits=omits) for index, part in enumerate(choice.parts)
    ]
    body |= _end(choice.reason, choice.stop_word, called=bool(choice.tool_calls))
    body["usage"] = _usage(answer.usage or Usage())
    if answer.timings is not None:
        body["timings"] = answer.timings
    return encode(body)


def render_count(usage: Usage) -> bytes:
    """How many tokens a prompt is."""
    return encode({"input_tokens": usage.prompt_tokens, **usage.extras})


def _block(part: Part, index: int, stamp: Stamp, *, omits: bool) -> JsonObject:
    match part:
        case Reasoning(text=text):
            thought, signature = ("", seal(text)) if omits else (text, SIGNATURE)
            return {"type": "thinking", "thinking": thought, "signature": signature}
        case ToolCall():
            return {
                "type": "tool_use",
                "id": _call_id(part.id, stamp, index),
                "name": part.name,
                "input": read(part.arguments),
            }
        case Text(text=text) | Refusal(text=text):
            return {"type": "text", "text": text}
    return {"type": "text", "text": ""}
