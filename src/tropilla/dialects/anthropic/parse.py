"""What an upstream answers: the events of a message, or one whole message, to the IR.

Whatever the bytes are, the events keep the grammar of `ir`; bytes that make no sense end in
`Failed`. Blocks that Anthropic's own servers add (their searches, thoughts that cannot be read)
are passed over.
"""

from __future__ import annotations

from typing import Any

from tropilla.dialects import _streams
from tropilla.dialects._fields import count_of
from tropilla.dialects._openai import decode, read_started
from tropilla.dialects._streams import CUT_SHORT
from tropilla.dialects.anthropic.names import said
from tropilla.dialects.anthropic.problems import TOLD
from tropilla.framing import Frame
from tropilla.ir import (
    Answer,
    Choice,
    ChoiceEnded,
    Event,
    Finished,
    FinishReason,
    Json,
    JsonObject,
    Malformed,
    Part,
    PartDelta,
    PartEnded,
    PartKind,
    PartStarted,
    Reasoning,
    Request,
    Started,
    Text,
    ToolCall,
    Usage,
)

_REASONS: dict[str, FinishReason] = {
    "max_tokens": "length",
    "model_context_window_exceeded": "length",
    "refusal": "content_filter",
}
_DELTAS: dict[str, tuple[PartKind, str]] = {
    "text_delta": ("text", "text"),
    "thinking_delta": ("reasoning", "thinking"),
    "input_json_delta": ("tool_call", "partial_json"),
}


def stream_parser(request: Request, *, extras: bool) -> _Parser:  # noqa: ARG001 - nothing is kept
    """A parser of the events of a message."""
    return _Parser()


class _Parser(_streams.Parser):
    def __init__(self) -> None:
        super().__init__()
        self._told = False
        self._kind: PartKind | None = None
        self._place: int | None = None
        """Which of the blocks is open."""
        self._called = False
        self._silent = False
        """Whether the open call has no arguments yet."""
        self._usage: JsonObject = {}
        self._end: JsonObject = {}
        self._timings: JsonObject | None = None

    def _frame(self, frame: Frame, events: list[Event]) -> None:
        told = decode(frame.data)
        if type(told) is not dict:
            raise Malformed("An event of the upstream's stream is not an object.")
        kind = told.get("type")
        if kind == "error" or frame.event == "error":
            self._fail_with(_error(told), events)
            return
        match kind:
            case "message_start":
                message = _object(told, "message")
                self._count(message)
                if not self._told:
                    self._told = True
                    events.append(_started(message))
            case "content_block_start":
                self._open(told, events)
            case "content_block_delta":
                self._delta(told, events)
            case "content_block_stop":
                if self._kind == "tool_call" and self._silent:
                    # Whoever reads arguments elsewhere reads JSON.
                    events.append(PartDelta(text="{}"))
                self._close_open(events)
            case "message_delta":
                self._close_open(events)
                self._end |= _object(told, "delta")
                self._count(told)
            case "message_stop":
                self._stop(events)
            case str():
                pass  # a ping, or what later versions say
            case _:
                raise Malformed("An event of the upstream's stream has no 'type'.")

    def _count(self, told: JsonObject) -> None:
        """Take the numbers: those that come later count for all of the message."""
        usage, timings = told.get("usage"), told.get("timings")
        if type(usage) is dict:
            self._usage |= {name: value for name, value in usage.items() if value is not None}
        if type(timings) is dict:
            self._timings = timings

    def _open(self, told: JsonObject, events: list[Event]) -> None:
        self._close_open(events)
        block, place = _object(told, "content_block"), _index(told)
        part = _part({"input": {}} | block)  # a llama-server leaves it out here
        self._told = True
        match part:
            case Text() | Reasoning():
                kind: PartKind = "text" if isinstance(part, Text) else "reasoning"
                self._begin(PartStarted(kind=kind), place, part.text, events)
            case ToolCall(id=id_, name=name, arguments=text):
                self._called = self._silent = True
                head = PartStarted(kind="tool_call", id=id_, name=name)
                self._begin(head, place, "" if text == "{}" else text, events)

    def _begin(self, head: PartStarted, place: int, text: str, events: list[Event]) -> None:
        self._kind, self._place = head.kind, place
        events.append(head)
        if text:
            self._silent = False
            events.append(PartDelta(text=text))

    def _delta(self, told: JsonObject, events: list[Event]) -> None:
        delta, place = _object(told, "delta"), _index(told)
        form: Any = delta.get("type")
        kind, name = _DELTAS.get(form, (None, "")) if type(form) is str else (None, "")
        if kind is None:
            return  # a signature, or a citation
        text = delta.get(name)
        if type(text) is not str:
            raise Malformed("A 'delta' of the upstream's stream has no text.")
        if (self._kind, self._place) != (kind, place):
            if kind == "tool_call":
                if self._kind is None:
                    return  # of a call that is Anthropic's own
                raise Malformed("A call of the upstream's stream goes on that did not begin.")
            self._close_open(events)
            self._told = True
            self._begin(PartStarted(kind=kind), place, "", events)
        if text:
            self._silent = False
            events.append(PartDelta(text=text))

    def _stop(self, events: list[Event]) -> None:
        self._close_open(events)
        self._over = True
        reason, word = _reason(self._end, called=self._called)
        events.append(ChoiceEnded(reason=reason, stop_word=word))
        events.append(Finished(usage=_read_usage(self._usage), timings=self._timings))

    def _finish(self, events: list[Event]) -> None:
        self._fail(CUT_SHORT, events)

    def _close_open(self, events: list[Event]) -> None:
        if self._kind is not None:
            self._kind = self._place = None
            self._silent = False
            events.append(PartEnded())


def _error(told: JsonObject) -> JsonObject:
    """The error that an event tells, as Anthropic has it or as a llama-server does."""
    error = told.get("error") or told
    if type(error) is not dict:
        return {"message": str(error)}
    kind = error.get("type")
    status = TOLD.get(kind) if type(kind) is str else None
    return error if status is None or "code" in error else error | {"code": status}


def _object(told: JsonObject, name: str) -> JsonObject:
    value = told.get(name)
    if type(value) is not dict:
        raise Malformed(f"An event of the upstream's stream has no '{name}'.")
    return value


def _index(told: JsonObject) -> int:
    value = told.get("index", 0)
    if type(value) is not int:
        raise Malformed("An 'index' of the upstream's stream is no whole number.")
    return value


def _started(message: JsonObject) -> Started:
    told = read_started(message)
    return Started(id=told.id, model=told.model)


def _reason(told: JsonObject, *, called: bool) -> tuple[FinishReason, str | None]:
    """Why it ended, and the stop word that ended it."""
    reason, word = told.get("stop_reason"), told.get("stop_sequence")
    if type(reason) is str and reason in _REASONS:
        return _REASONS[reason], None
    if called:
        return "tool_calls", None
    # A llama-server names the word, and says 'end_turn' all the same.
    return "stop", word if type(word) is str else None


def _read_usage(usage: JsonObject) -> Usage | None:
    """The counts: what was in the cache, or went into it, is not part of `input_tokens` here."""
    if not usage:
        return None
    cached, created = count_of(usage, "cache_read_input_tokens"), "cache_creation_input_tokens"
    read = (count_of(usage, "input_tokens"), cached, count_of(usage, created))
    return Usage(
        prompt_tokens=sum(one or 0 for one in read),
        completion_tokens=count_of(usage, "output_tokens") or 0,
        cached_tokens=cached,
        reasoning_tokens=count_of(usage.get("output_tokens_details"), "thinking_tokens"),
        extras={"estimated": True} if usage.get("estimated") is True else {},
    )


# An upstream's whole answer.


def parse_answer(body: Json, request: Request | None = None) -> Answer:  # noqa: ARG001 - it tells all
    """Read an unstreamed message."""
    match body:
        case {"content": list(content)}:
            pass
        case {"error": {"message": str(message)}}:
            raise Malformed(message)
        case _:
            raise Malformed("The upstream's answer has no 'content'.")
    parts: list[Part] = []
    for block in content:
        if type(block) is not dict:
            raise Malformed("A block of the upstream's answer is not an object.")
        part = _part(block)
        if part is not None:
            parts.append(part)
    started = _started(body)
    called = any(isinstance(part, ToolCall) for part in parts)
    reason, word = _reason(body, called=called)
    usage, timings = body.get("usage"), body.get("timings")
    return Answer(
        id=started.id,
        model=started.model,
        choices=(Choice(parts=tuple(parts), reason=reason, stop_word=word),),
        usage=_read_usage(usage) if type(usage) is dict else None,
        timings=timings if type(timings) is dict else None,
    )


def _part(block: JsonObject) -> Text | Reasoning | ToolCall | None:
    """What a block says, as far as it goes."""
    match block:
        case {"type": "text", "text": str(text)}:
            return Text(text=text)
        case {"type": "thinking", "thinking": str(text)}:
            return Reasoning(text=text)
        case {"type": "tool_use", "id": str(id_), "name": str(name), "input": dict(given)}:
            return ToolCall(id=id_, name=name, arguments=said(given))
        case {"type": "text" | "thinking" | "tool_use"}:
            raise Malformed("A block of the upstream's answer lacks what it should say.")
        case {"type": str()}:
            return None
    raise Malformed("A block of the upstream's answer has no 'type'.")
