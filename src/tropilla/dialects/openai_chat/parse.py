"""What an upstream answers: chat completion chunks, or one whole completion, to the IR.

Whatever the bytes are, the events keep the grammar of `ir`; bytes that make no sense end in
`Failed`.
"""

from __future__ import annotations

from tropilla.dialects import _lists
from tropilla.dialects._openai import (
    Chunks,
    distinct,
    no_choices,
    read_reason,
    read_started,
    read_stop_word,
    read_token_logprobs,
    read_usage,
    sum_usages,
)
from tropilla.dialects._streams import CUT_SHORT
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
    Progress,
    Reasoning,
    Refusal,
    Request,
    Text,
    ToolCall,
    Usage,
)

_TOP = frozenset({
    "id", "object", "created", "model", "system_fingerprint", "choices", "usage", "timings",
    "prompt_progress",
})  # fmt: skip
_CHOICE = frozenset({"index", "delta", "finish_reason", "logprobs"})
_SAYING = frozenset({
    "content", "refusal", "reasoning_content", "reasoning", "tool_calls", "function_call",
})  # fmt: skip
_DELTA = _SAYING | {"role"}


def stream_parser(request: Request, *, extras: bool) -> _Parser:
    """A parser of chat completion chunks."""
    return _Parser(request.choices, extras=extras)


class _OpenChoice:
    __slots__ = ("call", "call_id", "ended", "kind", "old")

    def __init__(self) -> None:
        self.kind: PartKind | None = None
        self.call: int | None = None
        self.call_id: str | None = None
        self.ended = False
        self.old = False
        """Whether it calls a function in the form of before tools (`function_call`)."""


class _Parser(Chunks):
    def __init__(self, choices: int, *, extras: bool) -> None:
        super().__init__()
        self._wanted = choices
        self._extras = extras
        self._started = False
        self._choices: dict[int, _OpenChoice] = {}
        self._usage: Usage | None = None
        self._usages: list[Usage] = []
        self._timings: JsonObject | None = None
        self._last: JsonObject = {}

    def _read(self, chunk: JsonObject, events: list[Event]) -> None:
        top = self._top(chunk)
        if not self._started:
            self._started = True
            events.append(read_started(chunk))
        usage = read_usage(chunk.get("usage"))
        if usage is not None:
            self._usage = usage
        timings, choices = chunk.get("timings"), chunk.get("choices")
        if type(timings) is dict:
            self._timings = timings
        if not choices:
            if type(choices) is not list and (choices is not None or usage is None):
                raise Malformed("A chunk of the upstream's stream has no 'choices'.")
            if usage is not None:
                self._usages.append(usage)
            self._last |= top
            return
        if type(choices) is not list:
            raise Malformed("'choices' of the upstream's stream is not an array.")
        told = self._progress(chunk, choices[0], top, events)
        if told:
            top = {}
        for item in choices:
            if type(item) is not dict:
                raise Malformed("A choice of the upstream's stream is not an object.")
            timed = self._extras and type(timings) is dict and not item.get("finish_reason")
            if timed and not told:
                top = top | {"timings": timings}
            self._choice(item, chunk, top, events)
            top, told = {}, True

    def _top(self, chunk: JsonObject) -> JsonObject:
        if not self._extras or _TOP.issuperset(chunk):
            return {}
        return {key: chunk[key] for key in chunk.keys() - _TOP}

    def _progress(
        self, chunk: JsonObject, first: Json, top: JsonObject, events: list[Event]
    ) -> bool:
        """Tell how far the prompt is, where the chunk says it; everything else goes with it."""
        index = first.get("index", 0) if type(first) is dict else None
        match chunk.get("prompt_progress"):
            case {
                "total": int(total),
                "cache": int(cached),
                "processed": int(processed),
                "time_ms": int() | float() as time_ms,
            } if type(index) is int and not self._ended(index):
                if self._extras and type(chunk.get("timings")) is dict:
                    top = top | {"timings": chunk["timings"]}
                events.append(
                    Progress(
                        choice=index,
                        total=total,
                        cached=cached,
                        processed=processed,
                        time_ms=time_ms,
                        extras=Extras(top=top) if top else None,
                    )
                )
                return True
        return False

    def _ended(self, index: int) -> bool:
        choice = self._choices.get(index)
        return choice is not None and choice.ended

    def _choice(
        self, item: JsonObject, chunk: JsonObject, top: JsonObject, events: list[Event]
    ) -> None:
        index, delta = item.get("index", 0), item.get("delta")
        if type(index) is not int or not 0 <= index < self._wanted:
            raise Malformed("A choice of the upstream's stream has no valid 'index'.")
        choice = self._choices.get(index)
        if choice is None:
            choice = self._choices[index] = _OpenChoice()
        delta = {} if delta is None else delta
        if type(delta) is not dict:
            raise Malformed("A 'delta' of the upstream's stream is not an object.")
        logprobs = _logprobs_of(item.get("logprobs"))
        extras = self._extras_of(item, delta, top)
        # Some servers write "" where others write null.
        reason = item.get("finish_reason") or None
        if choice.ended:
            if any(delta.get(name) for name in _SAYING):
                raise Malformed("The upstream's stream goes on after a choice has ended.")
            self._last |= top
            return
        if reason is None:
            told = self._delta(index, choice, delta, logprobs, extras, events)
            if not told and (logprobs or extras):
                self._note(index, choice, logprobs, extras, events)
            return
        if self._delta(index, choice, delta, logprobs, None, events):
            logprobs = None
        self._close(index, choice, events)
        choice.ended = True
        events.append(
            ChoiceEnded(
                choice=index,
                reason=_reason_of(reason, old=choice.old),
                stop_word=read_stop_word(item, chunk),
                logprobs=logprobs,
                extras=extras,
            )
        )

    def _extras_of(self, item: JsonObject, delta: JsonObject, top: JsonObject) -> Extras | None:
        if not self._extras:
            return None
        if not top and _CHOICE.issuperset(item) and _DELTA.issuperset(delta):
            return None
        choice = {key: item[key] for key in item.keys() - _CHOICE}
        part = {key: delta[key] for key in delta.keys() - _DELTA}
        return Extras(top=top, choice=choice, part=part) if top or choice or part else None

    def _delta(
        self,
        index: int,
        choice: _OpenChoice,
        delta: JsonObject,
        logprobs: list[JsonObject] | None,
        extras: Extras | None,
        events: list[Event],
    ) -> bool:
        """Tell what a delta says; whether the probabilities and extras went with it."""
        content = delta.get("content")
        reasoning = delta.get("reasoning_content") or delta.get("reasoning")
        refusal, calls = delta.get("refusal"), delta.get("tool_calls")
        if function := delta.get("function_call"):
            choice.old = True
            calls = [{"index": 0, "function": function}]
        told = False
        kinds: tuple[tuple[Json, PartKind], ...] = (
            (reasoning, "reasoning"),
            (content, "text"),
            (refusal, "refusal"),
        )
        for text, kind in kinds:
            if text:
                if type(text) is not str:
                    raise Malformed(f"The {kind} of a chunk of the upstream's stream is no string.")
                self._open(index, choice, kind, events)
                events.append(PartDelta(choice=index, text=text, logprobs=logprobs, extras=extras))
                logprobs = extras = None
                told = True
        if calls:
            if type(calls) is not list:
                raise Malformed("'tool_calls' of the upstream's stream is not an array.")
            for call in calls:
                self._call(index, choice, call, events)
            if not told and (logprobs or extras):
                self._note(index, choice, logprobs, extras, events)
                told = True
        return told

    def _note(
        self,
        index: int,
        choice: _OpenChoice,
        logprobs: list[JsonObject] | None,
        extras: Extras | None,
        events: list[Event],
    ) -> None:
        """Tell what came with no text: it belongs to the open part, or else to the text."""
        if choice.kind is None:
            self._open(index, choice, "text", events)
        events.append(PartDelta(choice=index, text="", logprobs=logprobs, extras=extras))

    def _call(self, index: int, choice: _OpenChoice, call: Json, events: list[Event]) -> None:
        match call:
            case {"index": int(number)}:
                pass
            case dict():
                number = 0
            case _:
                raise Malformed("A tool call of the upstream's stream is not an object.")
        custom = call.get("custom") is not None
        function = call.get("custom" if custom else "function")
        function = {} if function is None else function
        if type(function) is not dict:
            raise Malformed("A tool call's 'function' in the upstream's stream is not an object.")
        arguments = function.get("input" if custom else "arguments")
        name, id_ = function.get("name"), call.get("id")
        id_ = id_ if type(id_) is str and id_ else None
        # Some servers number no call, or every one with 0: there the id tells them apart.
        other = id_ is not None and id_ != choice.call_id and type(name) is str and bool(name)
        if choice.kind != "tool_call" or choice.call != number or other:
            if choice.call is not None and number <= choice.call and not (other and number == 0):
                raise Malformed("The tool calls of the upstream's stream are out of order.")
            if type(name) is not str:
                raise Malformed("A tool call of the upstream's stream begins without a name.")
            self._close(index, choice, events)
            choice.kind, choice.call, choice.call_id = "tool_call", number, id_
            events.append(
                PartStarted(choice=index, kind="tool_call", id=id_, name=name, custom=custom)
            )
        if type(arguments) is str and arguments:
            events.append(PartDelta(choice=index, text=arguments))
        elif arguments is not None and type(arguments) is not str:
            raise Malformed("The arguments of a tool call in the upstream's stream are no string.")

    def _open(self, index: int, choice: _OpenChoice, kind: PartKind, events: list[Event]) -> None:
        if choice.kind != kind:
            self._close(index, choice, events)
            choice.kind = kind
            events.append(PartStarted(choice=index, kind=kind))

    @staticmethod
    def _close(index: int, choice: _OpenChoice, events: list[Event]) -> None:
        if choice.kind is not None:
            choice.kind = None
            events.append(PartEnded(choice=index))

    def _finish(self, events: list[Event]) -> None:
        # Every choice that was asked for must have told its end: a server that breaks off after
        # the first of two must not look like one that is done.
        if sum(choice.ended for choice in self._choices.values()) < self._wanted:
            self._fail(CUT_SHORT, events)
            return
        self._over = True
        extras = Extras(top=self._last) if self._last else None
        # Chunks of nothing but usage give the total; a llama-server sends one for every choice.
        usage = sum_usages(self._usages, self._wanted) or self._usage
        events.append(Finished(usage=usage, timings=self._timings, extras=extras))

    def _close_open(self, events: list[Event]) -> None:
        for index, choice in self._choices.items():
            self._close(index, choice, events)


def _reason_of(value: Json, *, old: bool) -> FinishReason:
    """A finish reason; a call in the old form is told as a tool call, and so is its end."""
    reason = read_reason(value)
    return "tool_calls" if old and reason == "function_call" else reason


def _logprobs_of(value: Json) -> list[JsonObject] | None:
    """OpenAI's for chat, or its older parallel lists, which llama-cpp-python has here too.

    Those of a refusal stand under a name of their own.
    """
    match value:
        case {"refusal": [_, *_] as entries} if not value.get("content"):
            return read_token_logprobs(entries)
    return _lists.read(value)


# An upstream's whole answer.


def parse_answer(body: Json, request: Request | None = None) -> Answer:  # noqa: ARG001 - it tells all
    """Read an unstreamed chat completion."""
    match body:
        case {"choices": [_, *_] as choices}:
            pass
        case _:
            raise no_choices(body)
    started, timings = read_started(body), body.get("timings")
    return Answer(
        id=started.id,
        model=started.model,
        created=started.created,
        fingerprint=started.fingerprint,
        choices=distinct(_parse_choice(choice, body) for choice in choices),
        usage=read_usage(body.get("usage")),
        timings=timings if type(timings) is dict else None,
        extras={key: body[key] for key in body.keys() - _TOP},
    )


def _parse_choice(choice: Json, body: JsonObject) -> Choice:
    match choice:
        case {"message": dict(message)}:
            pass
        case _:
            raise Malformed("A choice of the upstream's answer has no 'message'.")
    parts: list[Part] = []
    reasoning = message.get("reasoning_content") or message.get("reasoning")
    pairs = (
        (reasoning, Reasoning),
        (message.get("content"), Text),
        (message.get("refusal"), Refusal),
    )
    for text, kind in pairs:
        if text:
            if type(text) is not str:
                raise Malformed("A text of the upstream's answer is not a string.")
            parts.append(kind(text=text))
    calls = message.get("tool_calls") or []
    if type(calls) is not list:
        raise Malformed("'tool_calls' of the upstream's answer is not an array.")
    old = message.get("function_call")
    for call in [{"function": old}] if old else calls:
        match call:
            case {"function": {"name": str(name), "arguments": str(arguments)}} | {
                "custom": {"name": str(name), "input": str(arguments)}
            }:
                id_ = call.get("id")
                parts.append(
                    ToolCall(
                        id=id_ if type(id_) is str else "",
                        name=name,
                        arguments=arguments,
                        custom=call.get("custom") is not None,
                    )
                )
            case _:
                raise Malformed("A tool call of the upstream's answer is malformed.")
    index = choice.get("index", 0)
    if type(index) is not int or index < 0:
        raise Malformed("A choice of the upstream's answer has no valid 'index'.")
    known = _DELTA | {"annotations"}
    return Choice(
        index=index,
        parts=tuple(parts),
        reason=_reason_of(choice.get("finish_reason"), old=bool(old)),
        stop_word=read_stop_word(choice, body),
        logprobs=_logprobs_of(choice.get("logprobs")),
        extras={key: choice[key] for key in choice.keys() - _CHOICE - {"message"}},
        part_extras={key: message[key] for key in message.keys() - known},
    )
