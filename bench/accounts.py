"""What accounts cost: a request's row, a limit on Valkey, a long ledger asked, a response kept.

    python -m bench.accounts

CPU is that of this process alone, all of its threads: the best of several rounds. Valkey (or Redis)
and PostgreSQL are started on a socket; without them their lines are left out.
"""

from __future__ import annotations

import asyncio
import sys
import tempfile
import time
from collections.abc import Iterator
from pathlib import Path

sys.path.insert(0, str(Path(__file__).parents[1] / "tests"))

from doubles import databases
from tropilla.accounts import usage
from tropilla.accounts.ledger import _ADD, _INSERT, COLUMNS, Ledger, Row, sums
from tropilla.accounts.limits import Amount, Hold, Scope, Spending, cap
from tropilla.accounts.meters.valkey import Shared
from tropilla.accounts.repeats import Name, Result, Shelf
from tropilla.accounts.spool import Spool
from tropilla.accounts.store import Store, open_store
from tropilla.accounts.stored import Keeper, Kept
from tropilla.accounts.valkey import Valkey
from tropilla.config import BudgetConfig, LimitsConfig, RepeatsConfig, ResponsesConfig
from tropilla.ir import JsonObject
from tropilla.record import Record
from tropilla.server.http import _request_id

ROUNDS = 5
TIMES = 2_000
AT_ONCE = 32
ROWS = 1_000_000
_DAYS = 90
_BATCH = 20_000
_RESPONSES = 8_000
_TURNS = 20


async def main() -> None:
    """Measure, and print a line for each."""
    with tempfile.TemporaryDirectory() as folder:
        store = await open_store(f"sqlite:///{folder}/accounts.db")
        try:
            await _row(store, Path(folder), "a new one")
            await _responses(store, "SQLite")
            await _repeats(store, "SQLite")
            await _question(store)
            await _row(store, Path(folder), f"one of {ROWS} rows")
        finally:
            await store.close()
    if databases.postgres_bin() is not None:
        with databases.postgres() as postgres:
            store = await open_store(postgres.database())
            await _responses(store, "PostgreSQL")
            await _repeats(store, "PostgreSQL")
            await store.close()
    if databases.valkey_bin() is not None:
        with databases.valkey() as server:
            await _limit(server.database())


def _tell(value: float, unit: str, what: str) -> None:
    sys.stdout.write(f"{value:9.2f} {unit}  {what}\n")
    sys.stdout.flush()


async def _row(store: Store, folder: Path, which: str) -> None:
    """A row, as a request has it written: with others that end at the same time."""
    ledger = Ledger(store, Spool(folder / "spool", 2**30))

    async def client() -> None:
        for _ in range(TIMES // AT_ONCE):
            record = Record(_request_id(), "POST", "/v1/chat/completions", time.perf_counter())
            record.metered, record.model, record.key = True, "m", "key"
            record.entered = True
            await ledger.enter(record)
            ledger.over(record)

    best = loop = float("inf")
    for _ in range(ROUNDS):
        began, ours = time.process_time(), time.thread_time()
        await asyncio.gather(*(client() for _ in range(AT_ONCE)))
        best = min(best, (time.process_time() - began) / TIMES)
        loop = min(loop, (time.thread_time() - ours) / TIMES)
    await ledger.close()
    _tell(loop * 1e6, "us", f"a row of the ledger, {which}, {AT_ONCE} at once: of its own thread")
    _tell(best * 1e6, "us", "the same, with the thread that writes to SQLite")


async def _responses(store: Store, name: str) -> None:
    """A response kept, and a conversation gone on from, in a store that has all that it may."""
    keeper = Keeper(ResponsesConfig(), store)
    item: JsonObject = {"type": "message", "content": [{"type": "output_text", "text": "x" * 8000}]}

    def kept(number: int, previous: str | None = None) -> Kept:
        return Kept(
            id=f"resp_{number}", owner="key", previous=previous, items=(item,),
            response={"id": f"resp_{number}", "output": [{"type": "message"}]},
        )  # fmt: skip

    for number in range(_RESPONSES):
        await keeper.keep(kept(number))
    for number in range(_TURNS):
        before = f"resp_{_RESPONSES + number - 1}" if number else None
        await keeper.keep(kept(_RESPONSES + number, before))
    last = f"resp_{_RESPONSES + _TURNS - 1}"
    took = []
    for number in range(TIMES):
        began = time.perf_counter()
        await keeper.keep(kept(_RESPONSES + _TURNS + number))
        took.append(time.perf_counter() - began)
    took.sort()
    _tell(took[TIMES // 2] * 1e3, "ms", f"a response of 8 kB kept in {name}: what its client waits")
    _tell(took[-1] * 1e3, "ms", "the longest, where old ones had to go")
    best = float("inf")
    for _ in range(ROUNDS):
        began = time.perf_counter()
        led, missing = await keeper.chain(last, "key")
        best = min(best, time.perf_counter() - began)
        assert (len(led), missing) == (_TURNS, None)  # noqa: S101 - all is there
    _tell(best * 1e3, "ms", f"a conversation of {_TURNS} such responses gone on from")


async def _repeats(store: Store, name: str) -> None:
    """A request under a key of its own, and one that is said again."""
    shelf = Shelf(store, RepeatsConfig(max_bytes=TIMES * 4096))
    result = Result(
        status=200, content_type="text/event-stream", headers={}, body=b"x" * 4096, streamed=True,
        request="req_1", model="m",
    )  # fmt: skip
    once, again = [], []
    for number in range(TIMES * 2):
        key = Name("key", str(number))
        began = time.perf_counter()
        assert await shelf.claim(key, "mark", "token", 0.0) is None  # noqa: S101 - it is new
        await shelf.keep(key, "token", result)
        done = time.perf_counter()
        assert await shelf.claim(key, "mark", "token", 0.0) is not None  # noqa: S101 - it is kept
        once.append(done - began)
        again.append(time.perf_counter() - done)
    once.sort()
    _tell(once[TIMES] * 1e3, "ms", f"a request with an Idempotency-Key, 4 kB kept in {name}")
    _tell(once[-1] * 1e3, "ms", "the longest, where old ones had to go")
    _tell(sorted(again)[TIMES] * 1e3, "ms", "the same said again: until its answer is there")


def _rows(first: int) -> Iterator[Row]:
    """Requests of ninety days, by forty keys for three models."""
    now = time.time()
    for number in range(first, first + _BATCH):
        told: dict[str, str | int | float | None] = dict.fromkeys(COLUMNS, 0)
        told |= {"id": _request_id(), "at": now - number / ROWS * _DAYS * 86400}
        told |= {"key": f"key{number % 40}", "model": f"model{number % 3}", "prompt": 100}
        told |= dict.fromkeys(("upstream", "dialect", "path", "session", "problem"), "")
        yield tuple((told | {"finish": "stop", "written": 50, "first_ms": None}).values())


async def _question(store: Store) -> None:
    """`tropilla usage --by day`, of a long ledger."""
    for first in range(0, ROWS, _BATCH):
        rows = list(_rows(first))
        await store.write((_INSERT, rows), (_ADD, sums(rows, {})))
    for by in (("day",), ("key", "model")):
        began = time.perf_counter()
        found = await usage.sums(store, by)
        spent = time.perf_counter() - began
        _tell(spent * 1e3, "ms", f"{ROWS} rows summed by {' and '.join(by)}: {len(found)} lines")


async def _limit(url: str) -> None:
    """A limit that gateways share: one round trip, and what is told without waiting."""
    valkey = await Valkey.open(url)

    async def nothing() -> Spending:
        return []

    meter = Shared(valkey, nothing)
    limits = LimitsConfig(requests=10**9, tokens=10**12, concurrent=10**6)
    key = Scope("key/a", limits, (cap(BudgetConfig(money=10**6, per="month")),))
    team = Scope("team/t", limits)
    most, used = Amount(1, 500, 900, 5_000), Amount(1, 300, 300, 3_000)
    for scopes, what in (((key,), "a key"), ((key, team), "a key and its team")):
        best = waits = float("inf")
        for _ in range(ROUNDS):
            cpu, waited = time.process_time(), 0.0
            for _ in range(TIMES // 4):
                asked = time.perf_counter()
                hold = await meter.reserve(scopes, most)
                waited += time.perf_counter() - asked
                assert isinstance(hold, Hold)  # noqa: S101 - there is enough of everything
                meter.settle(hold, used)
                meter.release(hold)
            best = min(best, (time.process_time() - cpu) / (TIMES // 4))
            waits = min(waits, waited / (TIMES // 4))
        _tell(best * 1e6, "us", f"{what} on Valkey, with all limits: CPU of the gateway")
        _tell(waits * 1e6, "us", "and how long a request waits for it")
    await valkey.close()


if __name__ == "__main__":
    import uvloop

    uvloop.run(main())
