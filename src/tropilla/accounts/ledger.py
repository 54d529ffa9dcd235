"""What every request took: a row each, and their sums by the hour.

A row is in the store before its client hears the end of the answer; while one batch of rows is
written the next one gathers, so that a disk that is slow costs no request more than two of its
writes. Rows are only added, and the sums change in the same transaction: what the sums say is what
the rows say. Whoever leaves before the end has a row too, which nobody waits for.

A store that fails takes nothing with it: rows go to a spool, a file that is synced to the disk
before a client hears the end, and from there to the store once that works again, each exactly
once. When the spool is full there is no place for another row, and `full` says so: nothing new is
to be served then.
"""

from __future__ import annotations

import asyncio
import time
from collections.abc import Callable, Iterable
from contextlib import suppress
from operator import itemgetter
from typing import Any, Final, TypeAlias

from tropilla import log
from tropilla.accounts.spool import Spool
from tropilla.accounts.store import Cell, Store, StoreError
from tropilla.ir import ProblemKind
from tropilla.record import Record

COLUMNS: Final = (
    "id", "at", "key", "model", "upstream", "dialect", "path", "session", "stream", "status",
    "problem", "finish", "cancelled", "failed_over", "attempts", "prompt", "cached", "written",
    "reasoning", "estimated", "cost", "queue_ms", "first_ms", "total_ms",
)  # fmt: skip
SUMS: Final = (
    "requests", "errors", "cancelled", "limited", "prompt", "cached", "written", "reasoning",
    "cost", "queue_ms", "firsts", "first_ms", "total_ms",
)  # fmt: skip
_GROUP: Final = ("hour", "key", "model", "upstream", "dialect")
_ROW_AT = COLUMNS.index("at")
_group = itemgetter(*map(COLUMNS.index, _GROUP[1:]))
_added: Callable[[Row], tuple[Any, ...]] = itemgetter(
    *map(COLUMNS.index, (
        "problem", "cancelled", "prompt", "cached", "written", "reasoning", "cost", "queue_ms",
        "first_ms", "total_ms",
    ))
)  # fmt: skip
"""What a row adds to the sums."""


def _marks(count: int) -> str:
    return ", ".join(f"${number}" for number in range(1, count + 1))


# Only the names above become SQL.
_INSERT = f"INSERT INTO requests ({', '.join(COLUMNS)}) VALUES ({_marks(len(COLUMNS))})"  # noqa: S608
_ADD = (
    f"INSERT INTO hours ({', '.join((*_GROUP, *SUMS))}) "  # noqa: S608
    f"VALUES ({_marks(len(_GROUP) + len(SUMS))}) ON CONFLICT ({', '.join(_GROUP)}) DO UPDATE SET "
    + ", ".join(f"{name} = hours.{name} + excluded.{name}" for name in SUMS)
)
_MOST_TEXT = 200
"""Characters of a text that a client has chosen."""
_MOST_TOKENS = 2**31 - 1
_MOST_COST = 2**53
"""An upstream may tell any number; a store has place for one like these, and for their sums."""
_MOST_IDS = 500
_CROWD = 4
_GATHER_SECONDS = 0.004
_RETRY_SECONDS = 1.0
_WHOLE_SECONDS = 30.0
_HOUR = 3600

Row: TypeAlias = tuple[Cell, ...]
Limited: TypeAlias = dict[tuple[int, str, str], int]
"""How often a key was refused for asking too much: by hour, key and model."""


class Ledger:
    """A book of what was used. `cost` says what a request costs, in billionths of money."""

    def __init__(
        self, store: Store, spool: Spool, *, cost: Callable[[Record], int] = lambda _: 0
    ) -> None:
        self._store = store
        self._spool = spool
        self._cost = cost
        self._rows: list[Row] = []
        self._limited: Limited = {}
        self._loop = asyncio.get_running_loop()
        self._waiters: list[asyncio.Future[None]] = []
        """Who waits for the rows that gather now; each alone: who leaves leaves the others."""
        self._writer: asyncio.Task[None] | None = None
        self._catcher: asyncio.Task[None] | None = None
        if spool.rows:
            self._catch_up_soon()

    @property
    def full(self) -> bool:
        """Whether there is no place for another row."""
        return self._spool.full

    @property
    def waiting(self) -> int:
        """How many rows wait for the store to work again."""
        return len(self._spool.rows)

    async def whole(self) -> None:
        """Wait until the store has all that was spooled before.

        Raises:
            StoreError: it does not take it.
        """
        if self._catcher is not None:
            await asyncio.wait({self._catcher}, timeout=_WHOLE_SECONDS)
        if self._spool.rows:
            raise StoreError("The store does not take the rows that wait for it in the spool.")

    def begun(self, record: Record) -> None:
        """Nothing is known yet that would be worth a row."""

    async def enter(self, record: Record) -> None:
        """Have its row safe."""
        if not record.metered:
            return
        if record.problem is not None and record.problem.kind == "limited":
            self._limit(record)
            return
        self._rows.append(self._row(record))
        safe = self._loop.create_future()
        self._waiters.append(safe)
        self._write_soon()
        await safe

    def over(self, record: Record) -> None:
        """Whoever left has a row too."""
        if record.metered and not record.entered:
            self._rows.append(self._row(record))
            self._write_soon()

    def _limit(self, record: Record) -> None:
        """Who asks too much is counted, and gets no row: he would fill the disk with them."""
        hour = int(record.at) // _HOUR * _HOUR
        place = (hour, record.key, _cut(record.model or ""))
        self._limited[place] = self._limited.get(place, 0) + 1
        self._write_soon()

    def _row(self, record: Record) -> Row:
        problem: ProblemKind | str = "" if record.problem is None else record.problem.kind
        took = record.took if record.took is not None else time.perf_counter() - record.began
        return (
            record.id,
            record.at,
            record.key,
            _cut(record.model or ""),
            record.upstream,
            record.dialect,
            _cut(record.path),
            _cut(record.session),
            int(record.stream),
            record.status or (0 if record.cancelled else 200),
            problem,
            record.finish or "",
            int(record.cancelled),
            int(record.failed_over),
            record.attempts,
            _bounded(record.prompt),
            None if record.cached is None else _bounded(record.cached),
            _bounded(record.written),
            None if record.reasoning is None else _bounded(record.reasoning),
            int(record.estimated),
            _bounded(self._cost(record), _MOST_COST),
            record.queued * 1000,
            None if record.first is None else record.first * 1000,
            took * 1000,
        )

    def _write_soon(self) -> None:
        if self._writer is None or self._writer.done():
            self._writer = self._loop.create_task(self._write())

    async def _write(self) -> None:
        """Have safe what has gathered, until nothing gathers any more."""
        gathers = True
        while gathers:
            rows, self._rows = self._rows, []
            waiters, self._waiters = self._waiters, []
            if self._spool.rows or not await self._keep(rows):
                await self._put_aside(rows)
            for safe in waiters:
                if not safe.done():
                    safe.set_result(None)
            if len(rows) >= _CROWD:
                # Where many end at once they share a transaction; who ends alone waits for nobody.
                await asyncio.sleep(_GATHER_SECONDS)
            gathers = bool(self._rows)

    async def _keep(self, rows: list[Row]) -> bool:
        """Have rows in the store; whether that went well."""
        limited, self._limited = self._limited, {}
        try:
            await self._store.write((_INSERT, rows), (_ADD, sums(rows, limited)))
        except StoreError as error:
            log.error("ledger.failed", "The ledger cannot be written: {why}", why=str(error))
            for place, count in limited.items():
                self._limited[place] = self._limited.get(place, 0) + count
            return False
        return True

    async def _put_aside(self, rows: list[Row]) -> None:
        try:
            await self._spool.add(rows)
        except OSError as error:
            log.error(
                "ledger.lost", "{rows} rows of the ledger are lost: {why}",
                rows=len(rows), why=str(error),
            )  # fmt: skip
        self._catch_up_soon()

    def _catch_up_soon(self) -> None:
        if self._catcher is None or self._catcher.done():
            self._catcher = self._loop.create_task(self._catch_up())

    async def _catch_up(self) -> None:
        """Bring the spool to the store, as soon as that works again."""
        while spooled := self._spool.rows:
            with suppress(StoreError):
                if await self._keep(await self._unknown(spooled)):
                    await self._spool.drop(len(spooled))
                    text = "The ledger has {rows} rows of its spool."
                    log.info("ledger.caught_up", text, rows=len(spooled))
                    continue
            await asyncio.sleep(_RETRY_SECONDS)

    async def _unknown(self, rows: list[Row]) -> list[Row]:
        """Those that the store has not: of a write that failed nobody knows what has become."""
        known: set[str] = set()
        for start in range(0, len(rows), _MOST_IDS):
            ids = [row[0] for row in rows[start : start + _MOST_IDS]]
            asked = f"SELECT id FROM requests WHERE id IN ({_marks(len(ids))})"  # noqa: S608 - marks
            known.update(row[0] for row in await self._store.read(asked, *ids))
        return [row for row in rows if row[0] not in known]

    async def prune(self, before: float) -> int:
        """Forget the rows before a time; the sums stay. How many that were."""
        return (await self._store.write(("DELETE FROM requests WHERE at < $1", [(before,)])))[0]

    async def close(self) -> None:
        """Have everything safe that was given."""
        if self._writer is not None:
            await self._writer
        if self._catcher is not None:
            self._catcher.cancel()
            with suppress(asyncio.CancelledError):
                await self._catcher
        await self._spool.close()


def sums(rows: Iterable[Row], limited: Limited) -> list[Row]:
    """What rows add to the sums, in one order for all: writers do not wait for each other twice."""
    found: dict[Row, list[Any]] = {}
    for row in rows:
        hour = int(row[_ROW_AT]) // _HOUR * _HOUR  # type: ignore[arg-type] # it is a time
        group = (hour, *_group(row))
        total = found.get(group)
        if total is None:
            total = found[group] = [0] * len(SUMS)
        (problem, left, read, cached, written, reasoning, cost, queued, first, took) = _added(row)
        total[0] += 1
        total[1] += problem != ""
        total[2] += left
        total[4] += read
        total[5] += cached or 0
        total[6] += written
        total[7] += reasoning or 0
        total[8] += cost
        total[9] += queued
        if first is not None:
            total[10] += 1
            total[11] += first
        total[12] += took
    for (hour, key, model), count in limited.items():
        total = found.setdefault((hour, key, model, "", ""), [0] * len(SUMS))
        total[3] += count
    return [(*group, *total) for group, total in sorted(found.items(), key=lambda one: one[0])]


def _cut(text: str) -> str:
    """Not more of a text than a row has place for, and nothing that no store takes."""
    if len(text) <= _MOST_TEXT and text.isascii() and "\0" not in text:
        return text  # as almost all are
    return text[:_MOST_TEXT].encode("utf-8", "replace").decode().replace("\0", "?")


def _bounded(number: int, most: int = _MOST_TOKENS) -> int:
    if 0 <= number <= most:
        return number  # as almost all are
    return most if number > 0 else 0
