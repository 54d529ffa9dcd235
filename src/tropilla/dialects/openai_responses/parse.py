"""What an upstream answers: the events of a response, or one whole response, to the IR.

Whatever the bytes are, the events keep the grammar of `ir`; bytes that make no sense end in
`Failed`. Of a summary of thoughts the text is taken like that of a thought.
"""

from __future__ import annotations

from typing import Any

from tropilla.dialects import _streams
from tropilla.dialects._fields import count_of
from tropilla.dialects._openai import decode, read_token_logprobs
from tropilla.dialects._streams import CUT_SHORT
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
    Refusal,
    Request,
    Started,
    Text,
    TokenLogprob,
    ToolCall,
    Usage,
)

_DELTAS: dict[str, PartKind] = {
    "response.output_text.delta": "text",
    "response.refusal.delta": "refusal",
    "response.reasoning_text.delta": "reasoning",
    "response.reasoning_summary_text.delta": "reasoning",
    "response.function_call_arguments.delta": "tool_call",
    "response.custom_tool_call_input.delta": "tool_call",
}
_ENDS = ("response.completed", "response.incomplete")


def stream_parser(request: Request, *, extras: bool) -> _Parser:  # noqa: ARG001 - nothing is kept
    """A parser of the events of a response."""
    return _Parser()


class _Parser(_streams.Parser):
    def __init__(self) -> None:
        super().__init__()
        self._told = False
        self._kind: PartKind | None = None
        self._place: int | None = None
        """Where in the output the open part is."""
        self._called = False

    def _frame(self, frame: Frame, events: list[Event]) -> None:
        if frame.data == b"[DONE]":
            self._finish(events)
            return
        told = decode(frame.data)
        if type(told) is not dict:
            raise Malformed("An event of the upstream's stream is not an object.")
        kind = told.get("type")
        if kind == "error" or (type(kind) is not str and told.get("error") is not None):
            self._fail_with(told.get("error") or told, events)
        elif kind == "response.failed":
            body = _object(told, "response")
            self._fail_with(body.get("error") or {}, events)
        elif kind in _ENDS:
            self._end(_object(told, "response"), events)
        elif kind == "response.created" and not self._told:
            body = _object(told, "response")
            events.append(_started(body))
            self._told = True
        elif kind == "response.output_item.added":
            self._added(told, events)
        elif kind == "response.output_item.done":
            self._close_open(events)
        elif type(kind) is str and kind in _DELTAS:
            self._delta(told, _DELTAS[kind], events)
        elif type(kind) is not str:
            raise Malformed("An event of the upstream's stream has no 'type'.")

    def _added(self, told: JsonObject, events: list[Event]) -> None:
        self._close_open(events)
        item = _object(told, "item")
        match item:
            case {
                "type": "function_call" | "custom_tool_call" as kind,
                "call_id": str(id_),
                "name": str(name),
            }:
                custom = kind == "custom_tool_call"
                self._told = self._called = True
                self._kind, self._place = "tool_call", _index(told)
                events.append(PartStarted(kind="tool_call", id=id_, name=name, custom=custom))
            case {"type": "function_call" | "custom_tool_call"}:
                raise Malformed("A call of the upstream's stream has no 'call_id' or no 'name'.")

    def _delta(self, told: JsonObject, kind: PartKind, events: list[Event]) -> None:
        text, place = told.get("delta"), _index(told)
        if type(text) is not str:
            raise Malformed("A 'delta' of the upstream's stream is no string.")
        if (self._kind, self._place) != (kind, place):
            if kind == "tool_call":
                raise Malformed("A call of the upstream's stream goes on that did not begin.")
            self._close_open(events)
            self._told = True
            self._kind, self._place = kind, place
            events.append(PartStarted(kind=kind))
        logprobs = _logprobs(told.get("logprobs")) if kind == "text" else None
        if text or logprobs:
            events.append(PartDelta(text=text, logprobs=logprobs or None))

    def _end(self, body: JsonObject, events: list[Event]) -> None:
        self._close_open(events)
        self._over = True
        events.append(ChoiceEnded(reason=_reason(body, called=self._called)))
        events.append(Finished(usage=_read_usage(body.get("usage")), timings=_timings(body)))

    def _finish(self, events: list[Event]) -> None:
        self._fail(CUT_SHORT, events)

    def _close_open(self, events: list[Event]) -> None:
        if self._kind is not None:
            self._kind = self._place = None
            events.append(PartEnded())


def _object(told: JsonObject, name: str) -> JsonObject:
    value = told.get(name)
    if type(value) is not dict:
        raise Malformed(f"An event of the upstream's stream has no '{name}'.")
    return value


def _index(told: JsonObject) -> int:
    value = told.get("output_index", 0)
    if type(value) is not int:
        raise Malformed("An 'output_index' of the upstream's stream is no whole number.")
    return value


def _started(body: JsonObject) -> Started:
    id_, model = body.get("id"), body.get("model")
    created: Any = body.get("created_at")
    return Started(
        id=id_ if type(id_) is str and id_ else None,
        model=model if type(model) is str else None,
        created=int(created) if type(created) in {int, float} and abs(created) < 1e15 else None,
    )


def _reason(body: JsonObject, *, called: bool) -> FinishReason:
    match body:
        case {"incomplete_details": {"reason": "content_filter"}}:
            return "content_filter"
        case {"incomplete_details": {"reason": _}} | {"status": "incomplete"}:
            return "length"
    return "tool_calls" if called else "stop"


def _timings(body: JsonObject) -> JsonObject | None:
    timings = body.get("timings")
    return timings if type(timings) is dict else None


def _logprobs(value: Json) -> list[TokenLogprob]:
    return read_token_logprobs(value) if type(value) is list else []


def _read_usage(value: Json) -> Usage | None:
    if type(value) is not dict:
        return None
    estimated = value.get("estimated") is True
    return Usage(
        prompt_tokens=count_of(value, "input_tokens") or 0,
        completion_tokens=count_of(value, "output_tokens") or 0,
        cached_tokens=count_of(value.get("input_tokens_details"), "cached_tokens"),
        reasoning_tokens=count_of(value.get("output_tokens_details"), "reasoning_tokens"),
        extras={"estimated": True} if estimated else {},
    )


# An upstream's whole answer.


def parse_answer(body: Json, request: Request | None = None) -> Answer:  # noqa: ARG001 - it tells all
    """Read an unstreamed response."""
    match body:
        case {"output": list(items)}:
            pass
        case {"error": {"message": str(message)}}:
            raise Malformed(message)
        case _:
            raise Malformed("The upstream's answer has no 'output'.")
    parts: list[Part] = []
    logprobs: list[TokenLogprob] = []
    for item in items:
        parts += _parts(item, logprobs)
    started = _started(body)
    called = any(isinstance(part, ToolCall) for part in parts)
    choice = Choice(
        parts=tuple(parts),
        reason=_reason(body, called=called),
        logprobs=logprobs or None,
    )
    return Answer(
        id=started.id,
        model=started.model,
        created=started.created,
        choices=(choice,),
        usage=_read_usage(body.get("usage")),
        timings=_timings(body),
    )


def _parts(item: Json, logprobs: list[TokenLogprob]) -> list[Part]:
    match item:
        case {
            "type": "function_call", "call_id": str(id_), "name": str(name), "arguments": str(text),
        }:  # fmt: skip
            return [ToolCall(id=id_, name=name, arguments=text)]
        case {
            "type": "custom_tool_call", "call_id": str(id_), "name": str(name), "input": str(text),
        }:  # fmt: skip
            return [ToolCall(id=id_, name=name, arguments=text, custom=True)]
        case {"type": "function_call" | "custom_tool_call"}:
            raise Malformed("A call of the upstream's answer is malformed.")
        case {"type": "message" | "reasoning", "content": list(content)}:
            return [part for one in content if (part := _part(one, logprobs)) is not None]
        case dict():
            return []
    raise Malformed("An item of the upstream's answer is not an object.")


def _part(content: Json, logprobs: list[TokenLogprob]) -> Part | None:
    match content:
        case {"type": "output_text", "text": str(text)}:
            logprobs += _logprobs(content.get("logprobs"))
            return Text(text=text)
        case {"type": "refusal", "refusal": str(text)}:
            return Refusal(text=text)
        case {"type": "reasoning_text", "text": str(text)}:
            return Reasoning(text=text)
        case dict():
            return None
    raise Malformed("A content of the upstream's answer is not an object.")
