"""What an upstream answers: flat objects, streamed or whole, to the IR.

A whole answer is a stream of one object, and is read as one. Whatever the bytes are, the events
keep the grammar of `ir`: a stream that is no answer ends in `Failed`.
"""

from __future__ import annotations

import re
from collections.abc import Sequence
from contextlib import suppress
from typing import NamedTuple

import msgspec

from tropilla.dialects import _problems, _streams
from tropilla.dialects._openai import decode, encode, read_usage
from tropilla.dialects._streams import CUT_SHORT
from tropilla.dialects.afs.leaks import Leak, Leaks
from tropilla.framing import Frame
from tropilla.ir import (
    Answer,
    Chat,
    ChoiceEnded,
    Event,
    Extras,
    Finished,
    FinishReason,
    Json,
    JsonObject,
    Malformed,
    PartDelta,
    PartEnded,
    PartKind,
    PartStarted,
    Problem,
    ProblemError,
    Request,
    Started,
    Usage,
    fold,
)

_PATIENCE = 16
"""How many frames in a row may be no answer: long outputs hold broken lines now and then."""

# What sse-starlette sends to say that it lives, with `event: ping` before it or without.
_CLOCK = re.compile(rb"\d{4}-\d\d-\d\d[ T]\d\d:\d\d:\d\d")

_TEXTS = {"generated_text", "reasoning_content", "choices"}
_CALLS = {"function_call", "tool_calls"}
_FLAT_COUNTS = {"prompt_tokens", "generated_tokens", "total_tokens"}
_KNOWN = _TEXTS | _CALLS | _FLAT_COUNTS | {"usage", "finish_reason", "model"}
_SIGNS = _KNOWN - {"model"}
_OPENAI = {"id", "object", "created", "system_fingerprint"}


def stream_parser(request: Request, *, extras: bool) -> _Parser:
    """A parser of streamed flat objects."""
    return _Parser(extras=extras, leaks=_leaks_for(request))


def _leaks_for(request: Request | None) -> Leaks | None:
    """Leaked calls are looked for where calls are expected."""
    chat = request.input if request else None
    if not isinstance(chat, Chat) or not chat.tools:
        return None
    return None if chat.tool_choice and chat.tool_choice.mode == "none" else Leaks()


class _Said(NamedTuple):
    """What one object says, in whichever of the three shapes."""

    text: str
    reasoning: str
    calls: list[JsonObject]
    reason: Json


class _Call:
    """A call that is being put together."""

    __slots__ = ("arguments", "id", "name", "number")

    def __init__(self, number: int | None, id_: str | None, name: str) -> None:
        self.number = number
        self.id = id_
        self.name = name
        self.arguments = ""


class _Parser(_streams.Parser):
    def __init__(self, *, extras: bool, leaks: Leaks | None) -> None:
        super().__init__()
        self._extras = extras
        self._leaks = leaks
        self._started = False
        self._ended = False
        self._kind: PartKind | None = None
        self._calls: list[_Call] = []
        self._called = False
        self._counted = False
        self._usage: Usage | None = None
        self._untold: JsonObject = {}
        self._bad = 0

    def end(self) -> list[Event]:
        """The bytes are over: the terminal event, if it was not told yet."""
        # The deployments of 2023 tell no finish reason: there the counts are the end.
        whole = self._over or self._ended or self._counted
        return super().end() if whole else self.abort(CUT_SHORT)

    def _frame(self, frame: Frame, events: list[Event]) -> None:
        data = frame.data.strip()
        if frame.event == "error":
            self._fail(_problem(_error_of(data)), events)
        elif data == b"[DONE]":
            self._finish(events)
        elif data and frame.event != "ping" and not _CLOCK.match(data):
            self._object(data, events)

    def whole(self, body: JsonObject) -> list[Event]:
        """The events of an answer in one object."""
        events: list[Event] = []
        if not self._chunk(body, events):
            raise Malformed("The upstream's answer has no 'generated_text'.")
        if not self._over:
            self._finish(events)
        return events

    def _object(self, data: bytes, events: list[Event]) -> None:
        try:
            chunk = decode(data)
        except Malformed:
            chunk = data
        if chunk is None:
            return
        if type(chunk) is dict and self._chunk(chunk, events):
            self._bad = 0
            return
        self._bad += 1
        if self._bad > _PATIENCE:
            raise Malformed(f"The upstream's stream is no answer: {self._bad} events in a row.")

    def _chunk(self, chunk: JsonObject, events: list[Event]) -> bool:
        """Tell what an object says; whether it is one of an answer at all."""
        error = _error_in(chunk)
        if error is not None:
            self._fail(_problem(error), events)
            return True
        if not chunk.keys() & _SIGNS:
            return False
        said = _read(chunk)
        if not self._started:
            self._start(chunk, events)
        usage = _read_usage(chunk)
        if usage is not None:
            self._usage = usage
            self._counted = "finish_reason" not in chunk and "choices" not in chunk
        if self._ended and (said.text or said.reasoning or said.calls):
            raise Malformed("The upstream's stream goes on after the answer has ended.")
        if self._extras:
            self._untold |= _rest(chunk, said)
        final = bool(said.reason)
        if said.reasoning:
            if self._leaks is not None and self._leaks.holds:
                # A thought does not overtake the text before it.
                self._pieces(self._leaks.end(), events)
                self._leaks = Leaks()
            self._tell("reasoning", said.reasoning, events, final=final)
        if said.text:
            pieces = [said.text] if self._leaks is None else self._leaks.feed(said.text)
            self._pieces(pieces, events, final=final)
        for call in said.calls:
            self._gather(call)
        if final and not self._ended:
            self._end_choice(said.reason, events)
        return True

    def _start(self, chunk: JsonObject, events: list[Event]) -> None:
        self._started = True
        if "choices" not in chunk:
            events.append(Started())
            return
        id_, created = chunk.get("id"), chunk.get("created")
        model, fingerprint = chunk.get("model"), chunk.get("system_fingerprint")
        events.append(
            Started(
                id=id_ if type(id_) is str and id_ else None,
                model=model if type(model) is str else None,
                created=created if type(created) is int else None,
                fingerprint=fingerprint if type(fingerprint) is str else None,
            )
        )

    def _take_untold(self) -> Extras | None:
        untold, self._untold = self._untold, {}
        return Extras(top=untold) if untold else None

    def _pieces(
        self, pieces: Sequence[str | Leak], events: list[Event], *, final: bool = True
    ) -> None:
        for piece in pieces:
            if isinstance(piece, Leak):
                self._tell_call(None, piece.name, piece.arguments, events)
            else:
                self._tell("text", piece, events, final=final)

    def _tell(self, kind: PartKind, text: str, events: list[Event], *, final: bool) -> None:
        if self._kind != kind:
            self._close(events)
            self._kind = kind
            events.append(PartStarted(kind=kind))
        # What the last object says beside its text belongs to the end.
        events.append(PartDelta(text=text, extras=None if final else self._take_untold()))

    def _tell_call(self, id_: str | None, name: str, arguments: str, events: list[Event]) -> None:
        self._close(events)
        self._called = True
        events.append(PartStarted(kind="tool_call", id=id_, name=name))
        if arguments:
            events.append(PartDelta(text=arguments))
        events.append(PartEnded())

    def _gather(self, told: JsonObject) -> None:
        """Put calls together, which come whole, in fragments, or whole more than once."""
        function = told.get("function", told)
        if type(function) is not dict:
            raise Malformed("A tool call of the upstream is malformed.")
        number, id_, name = told.get("index"), told.get("id"), function.get("name")
        number = number if type(number) is int else None
        id_ = id_ if type(id_) is str and id_ else None
        arguments = _arguments(function.get("arguments"))
        if number is None and id_ is None and name:
            told_before = [(call.name, call.arguments) for call in self._calls]
            if (name, arguments) in told_before:
                return
        call = self._find(number, id_, name)
        if call is None:
            if type(name) is not str or not name:
                raise Malformed("A tool call of the upstream begins without a name.")
            call = _Call(number, id_, name)
            self._calls.append(call)
        elif arguments == call.arguments and name == call.name:
            return
        call.id = call.id or id_
        call.arguments += arguments

    def _find(self, number: int | None, id_: str | None, name: Json) -> _Call | None:
        for call in reversed(self._calls):
            if number is not None and call.number is not None and number != call.number:
                continue
            if id_ is not None and call.id is not None:
                if id_ == call.id:
                    return call
                continue
            # Nothing tells them apart but the name, which is said where a call begins.
            if not name or (number is not None and number == call.number and name == call.name):
                return call
        return None

    def _end_choice(self, raw: Json, events: list[Event]) -> None:
        self._ended = True
        if self._leaks is not None:
            self._pieces(self._leaks.end(), events)
        for call in self._calls:
            self._tell_call(call.id, call.name, call.arguments, events)
        self._close(events)
        reason = _REASONS.get(raw, "stop") if type(raw) is str else "stop"
        if reason == "stop" and self._called:
            # A leaked call ends in an ordinary end: to a client it is a call like any other.
            reason = "tool_calls"
            self._untold.pop("finish_reason", None)
        events.append(
            ChoiceEnded(
                reason=reason,
                # Which one it was, AFS does not say.
                stop_word="" if raw == "stop_sequence" and reason == "stop" else None,
                extras=self._take_untold(),
            )
        )

    def _close(self, events: list[Event]) -> None:
        if self._kind is not None:
            self._kind = None
            events.append(PartEnded())

    def _finish(self, events: list[Event]) -> None:
        if not self._started:
            self._fail(CUT_SHORT, events)
            return
        if not self._ended:
            self._end_choice(None, events)
        self._over = True
        events.append(Finished(usage=self._usage, extras=self._take_untold()))

    def _close_open(self, events: list[Event]) -> None:
        self._close(events)


# One object.


def _read(chunk: JsonObject) -> _Said:
    """What an object says: flat, with calls at its root, or in OpenAI's `choices`."""
    choices = chunk.get("choices")
    source, reason = chunk, chunk.get("finish_reason")
    text = chunk.get("generated_text")
    if choices:
        match choices:
            case [dict(choice), *_]:
                pass
            case _:
                raise Malformed("'choices' of the upstream is not an array of objects.")
        reason = choice.get("finish_reason") or reason
        inner = choice.get("delta") or choice.get("message") or {}
        if type(inner) is not dict:
            raise Malformed("A choice of the upstream has no object for its message.")
        source, text = inner, inner.get("content") or text
    reasoning = source.get("reasoning_content") or source.get("reasoning")
    if type(text or "") is not str or type(reasoning or "") is not str:
        raise Malformed("A text of the upstream is not a string.")
    calls = source.get("tool_calls") or chunk.get("tool_calls") or []
    old = source.get("function_call") or chunk.get("function_call")
    if not calls and old:
        calls = [old]
    if type(calls) is not list or any(type(call) is not dict for call in calls):
        raise Malformed("'tool_calls' of the upstream is not an array of objects.")
    return _Said(text or "", reasoning or "", calls, reason)


def _rest(chunk: JsonObject, said: _Said) -> JsonObject:
    """What the IR does not model; the reason in AFS's own words is a part of it."""
    unknown = chunk.keys() - _KNOWN - (_OPENAI if "choices" in chunk else set())
    rest = {name: chunk[name] for name in unknown}
    if rest.get("details", rest) is None:
        del rest["details"]
    if type(said.reason) is str and said.reason:
        rest["finish_reason"] = said.reason
    return rest


_REASONS: dict[str, FinishReason] = {
    "stop": "stop",
    "eos_token": "stop",
    "stop_sequence": "stop",
    "length": "length",
    "max_tokens": "length",
    "length_limit": "length",
    # A call is a call: the client's own form gives it its name again.
    "function_call": "tool_calls",
    "tool_calls": "tool_calls",
    "content_filter": "content_filter",
}


def _arguments(value: Json) -> str:
    match value:
        case None:
            return ""
        case str():
            return value
        case dict():
            with suppress(RecursionError):  # what could just be read may be too deep to be written
                return encode(value).decode()
    raise Malformed("The arguments of a tool call of the upstream are malformed.")


def _read_usage(chunk: JsonObject) -> Usage | None:
    """The counts, which are null or 0 before the last object, and were fewer in 2023."""
    counts = chunk.get("usage")
    if type(counts) is dict:
        counts = counts.copy()
    else:
        counts = {name: chunk[name] for name in _FLAT_COUNTS & chunk.keys()}
    written = counts.pop("generated_tokens", None)
    counts.setdefault("completion_tokens", written)
    total = counts.get("total_tokens")
    usage = read_usage(counts)
    if usage is None or not (usage.prompt_tokens or usage.completion_tokens):
        return None
    if counts.get("prompt_tokens") is None and type(total) is int:
        prompt = max(0, total - usage.completion_tokens)
        return Usage(prompt_tokens=prompt, completion_tokens=usage.completion_tokens)
    return usage


# A whole answer.


def parse_answer(body: Json, request: Request | None = None) -> Answer:
    """Read an unstreamed answer: what has no text and no call is none, whatever its status."""
    if type(body) is not dict:
        raise Malformed("The upstream's answer is not an object.")
    try:
        answer = fold(_Parser(extras=True, leaks=_leaks_for(request)).whole(body))
    except ProblemError as error:
        raise Malformed(error.problem.message) from None
    told = body.get("choices") or type(body.get("generated_text")) is str
    if not told and not any(choice.parts for choice in answer.choices):
        raise Malformed("The upstream's answer has no 'generated_text'.")
    return answer


# Problems.


def parse_problem(status: int, body: bytes) -> Problem:
    """Read a refusal: `detail` as FastAPI writes it, `error` or `message`."""
    try:
        decoded = decode(body)
    except Malformed:
        decoded = None
    error = _error_in(decoded) if type(decoded) is dict else None
    if error is not None or status in _REFUSED:
        return _problem(error or {}, status)
    return _tried_elsewhere(_problems.parse(status, body))


_REFUSED = {401, 403}


def _problem(error: JsonObject, status: int | None = None) -> Problem:
    """The problem that an error is; within a stream nothing but the error tells a status.

    What is said of a refused key may show it, and is not passed on.
    """
    refused = error.get("code") if status is None else status
    if type(refused) is int and refused in _REFUSED:
        return Problem(
            kind="upstream_failed",
            message=f"AFS refused this gateway's own key ({refused}): its api_key in the config "
            "has to be the key of this service.",
            retryable=True,
        )
    return _tried_elsewhere(_problems.of_error(error, status))


def _tried_elsewhere(problem: Problem) -> Problem:
    """A limit is a key's own: what is refused here for that, another deployment may serve."""
    limited = problem.kind == "limited"
    return msgspec.structs.replace(problem, retryable=True) if limited else problem


def _error_of(data: bytes) -> JsonObject:
    """What an event of the name `error` says; it may say it in plain text."""
    try:
        decoded = decode(data)
    except Malformed:
        decoded = None
    if type(decoded) is dict:
        return _error_in(decoded) or decoded
    text = decoded if type(decoded) is str else data.decode("utf-8", "replace")
    return {"message": text}


def _error_in(body: JsonObject) -> JsonObject | None:
    """The error that an object is, in whichever of its keys; none if it is an answer."""
    for name in ("error", "detail", "message"):
        value = body.get(name)
        if name == "message" and body.keys() & _SIGNS:
            return None
        match value:
            case None | "":
                continue
            case list() | dict() if not value:
                continue
            case str():
                return {"message": value}
            case list():
                return _validation(value)
            case dict():
                return {"message": value.get("msg")} | value
            case _:
                return {"message": str(value)}
    return None


def _validation(entries: list[Json]) -> JsonObject:
    """FastAPI's list of what is wrong: `[{loc, msg, type}]`."""
    told, first = [], None
    for entry in entries:
        match entry:
            case {"loc": list(loc), "msg": str(why)}:
                param = ".".join(str(step) for step in loc if step != "body")
                first = first or param
                told.append(f"{param}: {why}" if param else why)
            case str():
                told.append(entry)
    return {"message": "; ".join(told), "param": first}
