"""What a server of Ollama's answers: lines, or one object, to events."""

from __future__ import annotations

from typing import Any

from tropilla.dialects import _problems, _streams
from tropilla.dialects._fields import count_of
from tropilla.dialects._openai import decode, encode, read_token_logprobs
from tropilla.dialects._streams import CUT_SHORT
from tropilla.framing import Frame
from tropilla.ir import (
    Answer,
    Choice,
    ChoiceEnded,
    Event,
    Extras,
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
    Problem,
    Reasoning,
    Request,
    Started,
    Text,
    TokenLogprob,
    ToolCall,
    Usage,
)

_TOP = {
    "model", "created_at", "message", "response", "thinking", "tool_calls", "logprobs", "done",
    "done_reason", "total_duration", "load_duration", "prompt_eval_count",
    "prompt_eval_duration", "eval_count", "eval_duration",
}  # fmt: skip


def stream_parser(request: Request, *, extras: bool) -> _Parser:  # noqa: ARG001 - it tells all
    """A parser of the lines of an answer."""
    return _Parser(extras=extras)


class _Parser(_streams.Parser):
    def __init__(self, *, extras: bool) -> None:
        super().__init__()
        self._extras = extras
        self._open: PartKind | None = None
        self._started = self._called = False

    def _frame(self, frame: Frame, events: list[Event]) -> None:
        line = decode(frame.data)
        if type(line) is not dict:
            raise Malformed("A line of the upstream's stream is not an object.")
        if line.get("error") is not None:
            self._fail_with(line["error"], events)
            return
        said = _read(line)
        if not self._started:
            self._started = True
            events.append(Started())
        chances = said.logprobs
        for kind, text in (("reasoning", said.thinking), ("text", said.text)):
            if text:
                self._say(kind, text, chances, events)
                chances = None
        for call in said.calls:
            self._close(events)
            self._called = True
            events += [
                PartStarted(kind="tool_call", id=call.id or None, name=call.name),
                PartDelta(text=call.arguments),
                PartEnded(),
            ]
        if line.get("done") is True:
            self._close(events)
            self._over = True
            reason = _reason(line, called=self._called)
            top = {key: line[key] for key in line.keys() - _TOP} if self._extras else {}
            last = Extras(top=top) if top else None
            events.append(ChoiceEnded(reason=reason, logprobs=chances))
            events.append(Finished(usage=_usage(line), extras=last))
        elif chances:
            self._say("text", "", chances, events)

    def _say(
        self, kind: Any, text: str, chances: list[TokenLogprob] | None, events: list[Event]
    ) -> None:
        if self._open != kind:
            self._close(events)
            self._open = kind
            events.append(PartStarted(kind=kind))
        events.append(PartDelta(text=text, logprobs=chances))

    def _close(self, events: list[Event]) -> None:
        if self._open is not None:
            self._open = None
            events.append(PartEnded())

    def _finish(self, events: list[Event]) -> None:
        self._fail(CUT_SHORT, events)

    def _close_open(self, events: list[Event]) -> None:
        self._close(events)


class _Said:
    """What one line says, in either form."""

    def __init__(self, body: JsonObject) -> None:
        message = body.get("message")
        told: JsonObject = message if type(message) is dict else body
        self.text = told.get("content" if told is not body else "response") or ""
        self.thinking = told.get("thinking") or ""
        self.calls = [_call(one) for one in _list(told.get("tool_calls"))]
        chances = _list(body.get("logprobs"))
        if not all(type(one) is dict for one in chances):
            raise Malformed("The token probabilities of the upstream are malformed.")
        self.logprobs = read_token_logprobs(chances) or None
        if type(self.text) is not str or type(self.thinking) is not str:
            raise Malformed("A text of the upstream's answer is not a string.")


def _read(body: JsonObject) -> _Said:
    if type(body.get("message")) is not dict and "response" not in body:
        raise Malformed("The upstream's answer has neither 'message' nor 'response'.")
    return _Said(body)


def _list(value: Json) -> list[Json]:
    if value is not None and type(value) is not list:
        raise Malformed("A list of the upstream's answer is none.")
    return value or []


def _call(value: Json) -> ToolCall:
    match value:
        case {"function": {"name": str(name), "arguments": dict(arguments)}}:
            id_ = value.get("id")
            said = encode(arguments).decode()
            return ToolCall(id=id_ if type(id_) is str else "", name=name, arguments=said)
    raise Malformed("A tool call of the upstream's answer is malformed.")


def _reason(body: JsonObject, *, called: bool) -> FinishReason:
    if body.get("done_reason") == "length":
        return "length"
    return "tool_calls" if called else "stop"


def _usage(body: JsonObject) -> Usage:
    return Usage(
        prompt_tokens=count_of(body, "prompt_eval_count") or 0,
        completion_tokens=count_of(body, "eval_count") or 0,
    )


def parse_answer(body: Json, request: Request | None = None) -> Answer:  # noqa: ARG001 - it tells all
    """Read an unstreamed answer."""
    if type(body) is not dict:
        raise Malformed("The upstream's answer is not an object.")
    said = _read(body)
    parts: list[Part] = []
    if said.thinking:
        parts.append(Reasoning(text=said.thinking))
    if said.text:
        parts.append(Text(text=said.text))
    choice = Choice(
        parts=(*parts, *said.calls),
        reason=_reason(body, called=bool(said.calls)),
        logprobs=said.logprobs,
    )
    rest = {key: body[key] for key in body.keys() - _TOP}
    return Answer(choices=(choice,), usage=_usage(body), extras=rest)


def parse_problem(status: int, body: bytes) -> Problem:
    """Read a server's refusal."""
    return _problems.parse(status, body)
