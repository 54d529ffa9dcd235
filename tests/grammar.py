"""The grammar of events, as a check; and streams in the form in which the laws compare them."""

from __future__ import annotations

from collections.abc import Iterable, Sequence
from typing import Any, NamedTuple

from tropilla.dialects import Dialect, Stamp, StreamParser
from tropilla.framing import Framer, SseFramer, framer
from tropilla.ir import (
    Answer,
    ChoiceEnded,
    Event,
    Failed,
    Finished,
    Malformed,
    PartDelta,
    PartEnded,
    PartKind,
    PartStarted,
    Problem,
    Progress,
    Reasoning,
    Refusal,
    Request,
    Started,
    TokenLogprob,
    Traits,
    Usage,
)

TODAY = Traits(chat=True, build=11549)
"""A llama.cpp server that knows everything."""
STAMP = Stamp(unique="u", created=1, model="asked")
CUT = Problem(kind="upstream_failed", message="The connection broke.")


def check_grammar(events: Sequence[Event]) -> None:
    """Law 8: parts nest in their choice, a choice ends once, one terminal event ends all."""
    open_: set[int] = set()
    ended: set[int] = set()
    for place, event in enumerate(events):
        match event:
            case Started():
                assert place == 0, "the beginning is told once, first"
            case Progress():
                assert event.choice not in ended
            case PartStarted():
                assert event.choice not in open_, "one part of a choice is open at a time"
                assert event.choice not in ended, "nothing of a choice follows its end"
                open_.add(event.choice)
            case PartDelta():
                assert event.choice in open_, "a delta belongs to an open part"
            case PartEnded():
                assert event.choice in open_, "only what is open can end"
                open_.remove(event.choice)
            case ChoiceEnded():
                assert event.choice not in open_, "the parts end before their choice"
                assert event.choice not in ended, "a choice ends once"
                ended.add(event.choice)
            case Finished() | Failed():
                assert not open_, "nothing is open at the end"
                assert place == len(events) - 1, "nothing follows the end"
                if isinstance(event, Finished):
                    assert ended, "an answer has a choice"
    assert events, "there is an end"
    assert isinstance(events[-1], Finished | Failed), "there is an end"


class ToldPart(NamedTuple):
    """A part, however it was cut into deltas."""

    kind: PartKind
    id: str | None
    name: str | None
    text: str
    logprobs: list[TokenLogprob]
    tokens: list[int]


_NOTHING = ToldPart("text", None, None, "", [], [])


class Told(NamedTuple):
    """What a stream says: cuts between deltas and turns between choices say nothing."""

    started: tuple[Any, ...]
    progress: dict[int, list[tuple[Any, ...]]]
    choices: dict[int, list[Any]]
    end: tuple[Any, ...]


def told(
    events: Iterable[Event], *, ids: bool = True, details: bool = True, late: bool = False
) -> Told:
    """The normal form of a stream, without what one of the dialects cannot carry."""
    started: tuple[Any, ...] = ()
    progress: dict[int, list[tuple[Any, ...]]] = {}
    choices: dict[int, list[Any]] = {}
    end: tuple[Any, ...] = ()
    for event in events:
        match event:
            case Started():
                started = (event.id, event.created, event.fingerprint) if ids else ()
            case PartStarted():
                part = ToldPart(event.kind, event.id, event.name, "", [], [])
                choices.setdefault(event.choice, []).append(part)
            case PartDelta():
                part = choices[event.choice].pop()
                choices[event.choice].append(
                    part._replace(
                        text=part.text + event.text,
                        logprobs=part.logprobs + (event.logprobs or []),
                        tokens=part.tokens + (event.tokens or []),
                    )
                )
            case PartEnded():
                if choices[event.choice][-1] == _NOTHING._replace(
                    kind=choices[event.choice][-1].kind
                ):
                    choices[event.choice].pop()
            case ChoiceEnded():
                ended = ("ended", event.reason, event.stop_word, event.logprobs or [])
                choices.setdefault(event.choice, []).append(ended)
            case Progress():
                step = (event.total, event.cached, event.processed, event.time_ms)
                progress.setdefault(event.choice, []).append(step)
            case Finished():
                end = (usage_of(event.usage, details=details), event.timings)
            case Failed():
                end = (event.problem.message,)
                if late:
                    for parts in choices.values():
                        parts[:] = [part for part in parts if isinstance(part, ToldPart)]
    choices = {index: parts for index, parts in choices.items() if parts}
    if not choices and not progress:
        started = ()  # where nothing was said, nobody needs to have begun
    return Told(started, progress, choices, end)


def usage_of(usage: Usage | None, *, details: bool = True) -> tuple[int, ...]:
    """Usage in numbers; what is not known is 0, as OpenAI writes it."""
    usage = usage or Usage()
    reasoning = (usage.reasoning_tokens or 0,) if details else ()
    return (usage.prompt_tokens, usage.completion_tokens, usage.cached_tokens or 0, *reasoning)


def told_answer(answer: Answer, *, details: bool = True) -> tuple[Any, ...]:
    """The normal form of a whole answer: texts of one kind are one text, then the calls."""
    choices = [
        (
            choice.index,
            [choice.text(kind) or "" for kind in (Reasoning, Refusal)],
            choice.text() or "",
            [(call.id, call.name, call.arguments) for call in choice.tool_calls],
            choice.reason,
            choice.stop_word,
            choice.logprobs or [],
            choice.tokens,
        )
        for choice in answer.choices
    ]
    return (choices, usage_of(answer.usage, details=details), answer.timings)


def rendered(front: Dialect, request: Request, events: Iterable[Event]) -> bytes:
    """The bytes of a whole stream."""
    renderer = front.stream_renderer(request, STAMP)
    return b"".join([renderer.feed(event) for event in events])


def parsed(
    back: Dialect, request: Request, pieces: Iterable[bytes], *, extras: bool = False
) -> list[Event]:
    """The events of a whole stream, as the relay reads them; the grammar is checked."""
    parser = back.stream_parser(request, extras=extras)
    return read(parser, pieces, cut_by=framed(back))


def framed(dialect: Dialect) -> Framer:
    """A framer for the streams of a dialect."""
    found = framer(dialect.CONTENT_TYPE)
    assert found is not None
    return found


def read(
    parser: StreamParser,
    pieces: Iterable[bytes],
    broken: Problem | None = None,
    *,
    cut_by: Framer | None = None,
) -> list[Event]:
    """Feed a parser; its bytes are over, or with `broken` they break off."""
    cut_by = cut_by or SseFramer()
    events: list[Event] = []
    try:
        for piece in pieces:
            events += parser.feed(cut_by.feed(piece))
        if broken is None:
            events += parser.feed(cut_by.end())
            events += parser.end()
    except Malformed as error:
        # From the framer. A parser that raises one itself must not have told anything before it.
        events += parser.abort(error.problem)
    if broken is not None:
        events += parser.abort(broken)
    check_grammar(events)
    return events
