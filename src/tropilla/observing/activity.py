"""What is going on, and what went on: the open requests, the last ones, and sums of five minutes.

A book of the latest, for people who look: everything in it is bounded, and nothing is in it that
was said. It costs a request two looks into a dictionary and a few sums.
"""

from __future__ import annotations

import time
from collections import deque
from collections.abc import Callable, Iterator
from typing import Final

from tropilla.record import Record

MOST: Final = 1000
"""Requests that are over and remembered."""
CELL: Final = 5
"""Seconds of which the sums are kept apart."""
CELLS: Final = 60
_MOST_NAMES: Final = 1000
"""Keys and upstreams that are told apart within one cell."""


class Count:
    """What some requests came to."""

    __slots__ = (
        "cached", "cancelled", "errors", "first", "firsts", "known", "limited", "prompt",
        "requests", "written",
    )  # fmt: skip

    def __init__(self) -> None:
        self.requests = 0
        self.errors = 0
        """Those that an upstream, or Tropilla, has failed."""
        self.limited = 0
        """Those that were refused for asking too much."""
        self.cancelled = 0
        self.prompt = 0
        self.written = 0
        self.known = 0
        """Tokens of prompts of which it is known how many were cached."""
        self.cached = 0
        self.first = 0.0
        """Seconds until the first of their answers, of so many."""
        self.firsts = 0

    def take(self, record: Record) -> None:
        """Count a request."""
        self.requests += 1
        if record.problem is not None:
            if record.problem.kind == "limited":
                self.limited += 1
            elif record.status >= 500 or record.status == 200:
                self.errors += 1
        self.cancelled += record.cancelled
        self.prompt += record.prompt
        self.written += record.written
        if record.cached is not None:
            self.known += record.prompt
            self.cached += record.cached
        if record.first is not None:
            self.first += record.first
            self.firsts += 1

    def add(self, other: Count) -> None:
        """Count what another one has counted."""
        for name in self.__slots__:
            setattr(self, name, getattr(self, name) + getattr(other, name))


class _Cell:
    __slots__ = ("all", "at", "keys", "upstreams")

    def __init__(self, at: int) -> None:
        self.at = at
        self.all = Count()
        self.keys: dict[str, Count] = {}
        self.upstreams: dict[str, Count] = {}


class Activity:
    """A book of what is going on. `clock` tells seconds that never go back."""

    def __init__(self, clock: Callable[[], float] = time.monotonic) -> None:
        self._clock = clock
        self._open: dict[str, Record] = {}
        self._over: deque[Record] = deque(maxlen=MOST)
        self._cells: deque[_Cell] = deque(maxlen=CELLS)

    # As a book.

    def begun(self, record: Record) -> None:
        """It is open."""
        self._open[record.id] = record

    async def enter(self, record: Record) -> None:
        """It is nearly over."""

    def over(self, record: Record) -> None:
        """It is over: remembered, if it asked a model for something; counted, if it took some."""
        self._open.pop(record.id, None)
        if record.asks_a_model:
            self._over.append(record)
        if not record.metered:
            return
        at = int(self._clock()) // CELL
        if not self._cells or self._cells[-1].at != at:
            self._cells.append(_Cell(at))
        cell = self._cells[-1]
        cell.all.take(record)
        _of(cell.keys, record.key).take(record)
        if record.upstream:
            _of(cell.upstreams, record.upstream).take(record)
        for name in record.earlier:
            count = _of(cell.upstreams, name)
            count.requests += 1
            count.errors += 1

    # Looking.

    def open(self) -> list[Record]:
        """The requests that are not over, the newest first."""
        return [one for one in reversed(self._open.values()) if one.asks_a_model]

    def over_(self) -> Iterator[Record]:
        """Those that are, the newest first."""
        return reversed(self._over)

    def find(self, id_: str) -> Record | None:
        """A request that is open, or remembered."""
        found = self._open.get(id_)
        if found is not None:
            return found
        return next((one for one in self._over if one.id == id_), None)

    def lately(self, seconds: int = CELL * CELLS) -> tuple[dict[str, Count], dict[str, Count]]:
        """The sums of the last seconds, by key and by upstream."""
        since = int(self._clock()) // CELL - seconds // CELL
        keys: dict[str, Count] = {}
        upstreams: dict[str, Count] = {}
        for cell in self._cells:
            if cell.at > since:
                for found, told in ((keys, cell.keys), (upstreams, cell.upstreams)):
                    for name, count in told.items():
                        _of(found, name).add(count)
        return keys, upstreams

    def course(self) -> list[Count]:
        """The sums of all requests, a cell after the other, the latest last."""
        now = int(self._clock()) // CELL
        told = {cell.at: cell.all for cell in self._cells}
        return [told.get(at) or Count() for at in range(now - CELLS + 1, now + 1)]


def _of(counts: dict[str, Count], name: str) -> Count:
    if name not in counts:
        if len(counts) >= _MOST_NAMES:
            name = "..."
        counts.setdefault(name, Count())
    return counts[name]
