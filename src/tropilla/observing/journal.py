"""A line of the log for every request, and the last lines of all for whoever looks.

A request is noted when it is over, and written with those that end in the same moment: that costs
it no call of the system's, and a token nothing. Lines are written as `log` writes its own; none of
them says what was said, or shows a key.
"""

from __future__ import annotations

import asyncio
import itertools
import logging
from collections import deque
from collections.abc import Iterator
from contextlib import suppress
from typing import Final, Literal, TypeAlias

import msgspec

from tropilla import log
from tropilla.record import Record

EVENT: Final = "request"
MOST_KEPT: Final = 2000
"""Lines that are kept to be looked at."""
_PAUSE_SECONDS = 0.1
_MOST_WAITING = 500
"""Requests that wait to be written together."""

Level: TypeAlias = Literal["info", "warning", "error"]


class Line(msgspec.Struct, frozen=True, kw_only=True, omit_defaults=True):
    """What is told of a request; what there is nothing to tell of is left out."""

    time: str
    level: Level
    event: str
    request: str
    trace: str = ""
    method: str
    path: str
    status: int
    dialect: str = ""
    key: str = ""
    model: str = ""
    upstream: str = ""
    attempts: int = 0
    failed_over: bool = False
    replays: str = ""
    stream: bool = False
    problem: str = ""
    why: str = ""
    finish: str = ""
    left: bool = False
    prompt_tokens: int = 0
    cached_tokens: int = 0
    completion_tokens: int = 0
    reasoning_tokens: int = 0
    estimated: bool = False
    queue_ms: float = 0.0
    first_ms: float | None = None
    total_ms: float


class _Clock:
    """Times as text; the seconds of many requests are the same."""

    def __init__(self) -> None:
        self._second = 0
        self._text = ""

    def __call__(self, at: float) -> str:
        second = int(at)
        if second != self._second:
            self._second, self._text = second, log.moment(second)[:-4]
        return f"{self._text}{int((at - second) * 1000):03d}Z"


_clock = _Clock()
_encode = msgspec.json.Encoder().encode


def level_of(record: Record) -> Level:
    """How bad it is: whose fault it was, if anybody's."""
    if record.status >= 500 or (record.problem is not None and 0 < record.status < 400):
        return "error"
    return "warning" if record.status >= 400 or record.cancelled else "info"


def line_of(record: Record) -> Line:
    """What is told of a request that is over."""
    problem, trace = record.problem, record.trace
    took = record.took or 0.0
    return Line(
        time=_clock(record.at + took),
        level=level_of(record),
        event=EVENT,
        request=record.id,
        trace="" if trace is None else trace.id,
        method=record.method,
        path=log.short(record.path),
        status=record.status,
        dialect=record.dialect,
        key=record.key,
        model=log.short(record.model or ""),
        upstream=record.upstream,
        attempts=record.attempts,
        failed_over=record.failed_over,
        replays=record.replays,
        stream=record.stream,
        problem="" if problem is None else problem.kind,
        why="" if problem is None else log.short(problem.message),
        finish=record.finish or "",
        left=record.cancelled,
        prompt_tokens=record.prompt,
        cached_tokens=record.cached or 0,
        completion_tokens=record.written,
        reasoning_tokens=record.reasoning or 0,
        estimated=record.estimated,
        queue_ms=round(record.queued * 1000, 1),
        first_ms=None if record.first is None else round(record.first * 1000, 1),
        total_ms=round(took * 1000, 1),
    )


def as_json(line: Line) -> str:
    """A line for programs."""
    return log.printable(_encode(line).decode())


def as_words(line: Line) -> str:
    """A line for people."""
    told = [line.request, str(line.status or "left"), line.method, line.path]
    told += [one for one in (line.model, line.upstream, line.key) if one]
    if line.prompt_tokens or line.completion_tokens:
        cached = f" ({line.cached_tokens} cached)" if line.cached_tokens else ""
        told.append(f"{line.prompt_tokens}{cached} + {line.completion_tokens} tokens")
    told.append(f"{line.total_ms / 1000:.2f} s")
    if line.queue_ms >= 1:
        told.append(f"queued {line.queue_ms / 1000:.2f} s")
    if line.replays:
        told.append(f"as {line.replays}")
    if line.why:
        told.append(line.why)
    return log.printable("  ".join(told))


class Last:
    """The last lines of this process: what has happened, and the requests that were served."""

    def __init__(self, most: int = MOST_KEPT) -> None:
        self._kept: deque[tuple[int, str | Line]] = deque(maxlen=most)
        self._numbers = itertools.count(1)

    def add(self, line: str | Line) -> None:
        """Keep one more, as JSON, or as what becomes JSON once somebody looks."""
        self._kept.append((next(self._numbers), line))

    def since(self, number: int = 0) -> Iterator[tuple[int, str]]:
        """Those after one, oldest first, each with its number."""
        for at, line in list(self._kept):
            if at > number:
                yield at, line if isinstance(line, str) else as_json(line)


class _Events(logging.Handler):
    """Keeps what has happened among the last lines."""

    def __init__(self, last: Last) -> None:
        super().__init__()
        self._last = last
        self.setFormatter(log.Json())

    def emit(self, record: logging.LogRecord) -> None:
        """Keep one."""
        with suppress(Exception):  # as every handler: who tells of something does not fail by it
            self._last.add(self.format(record))


class Journal:
    """A book that has a line for each request; without `on`, it only keeps what has happened."""

    def __init__(self, *, on: bool = True) -> None:
        self.on = on
        self.last = Last()
        self._waiting: list[Line] = []
        self._timer: asyncio.TimerHandle | None = None
        self._events = _Events(self.last)
        logging.getLogger().addHandler(self._events)

    def begun(self, record: Record) -> None:
        """Nothing is told of what has only begun."""

    async def enter(self, record: Record) -> None:
        """Nothing is told before it is over."""

    def over(self, record: Record) -> None:
        """Have it told soon."""
        if not self.on or not record.worth_a_line:
            return
        self._waiting.append(line_of(record))
        if self._timer is None:
            loop = asyncio.get_running_loop()
            self._timer = loop.call_later(_PAUSE_SECONDS, self.write)
        if len(self._waiting) >= _MOST_WAITING:
            self.write()

    def write(self) -> None:
        """Write what waits."""
        if self._timer is not None:
            self._timer.cancel()
            self._timer = None
        lines, self._waiting = self._waiting, []
        if not lines:
            return
        out = log.out
        if out is not None and out.form == "human":
            out.write([as_words(line) for line in lines])
        texts: list[str] | list[Line] = lines
        if out is not None and out.form == "json":
            texts = [as_json(line) for line in lines]
            out.write(texts)
        for text in texts:
            self.last.add(text)

    def close(self) -> None:
        """Write what waits, and hear of nothing more."""
        self.write()
        if log.out is not None:
            log.out.finish()
        logging.getLogger().removeHandler(self._events)
