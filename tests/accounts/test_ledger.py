"""What was used is told to the token: by rows and by sums, after any crash, and never twice."""

from __future__ import annotations

import asyncio
import time
from collections.abc import AsyncIterator
from pathlib import Path
from typing import Any

import pytest

from tropilla.accounts import usage
from tropilla.accounts.ledger import SUMS, Ledger
from tropilla.accounts.spool import Spool
from tropilla.accounts.store import Cell, Row, Statement, Store, StoreError, open_store
from tropilla.ir import Problem, Usage
from tropilla.record import Record

pytestmark = pytest.mark.anyio

MOST = 1_000_000


def record(id_: str = "req_1", *, at: float = 7200.0, **fields: Any) -> Record:
    one = Record(id_, "POST", "/v1/chat/completions", time.perf_counter())
    one.metered, one.at, one.key, one.model = True, at, "k", "m"
    one.upstream, one.dialect, one.status = "u", "openai_chat", 200
    one.used(Usage(prompt_tokens=7, completion_tokens=3, cached_tokens=2))
    for name, value in fields.items():
        setattr(one, name, value)
    return one


class Failing:
    """A store that fails when it is told to, before or after it has written."""

    def __init__(self, store: Store) -> None:
        self.url = store.url
        self._store = store
        self.fails: str | None = None

    async def read(self, sql: str, *args: Cell) -> list[Row]:
        if self.fails:
            raise StoreError(self.fails)
        return await self._store.read(sql, *args)

    async def write(self, *statements: Statement) -> list[int]:
        if self.fails == "after":
            await self._store.write(*statements)
        if self.fails:
            raise StoreError(self.fails)
        return await self._store.write(*statements)

    async def close(self) -> None:
        await self._store.close()


@pytest.fixture
async def store(store_url: str) -> AsyncIterator[Failing]:
    it = Failing(await open_store(store_url))
    yield it
    await it.close()


@pytest.fixture
async def ledger(store: Failing, tmp_path: Path) -> AsyncIterator[Ledger]:
    it = Ledger(store, Spool(tmp_path / "spool", MOST), cost=lambda one: one.written * 5)
    yield it
    await it.close()


async def caught_up(ledger: Ledger) -> None:
    assert ledger._catcher is not None
    await asyncio.wait_for(ledger._catcher, 30)


async def rows(store: Store) -> list[dict[str, Any]]:
    return await usage.rows(store, most=100_000)


async def test_a_row_is_there_once_enter_returns(
    ledger: Ledger, store: Failing, store_url: str
) -> None:
    await ledger.enter(record(session="s", finish="stop", queued=0.25, first=0.5, took=2.0))
    other = await open_store(store_url)
    assert await other.read("SELECT count(*) FROM requests") == [(1,)]
    await other.close()
    (row,) = await rows(store)
    assert row | {"cost": 15, "cached": 2, "written": 3, "prompt": 7, "problem": ""} == row
    assert (row["queue_ms"], row["first_ms"], row["total_ms"]) == (250, 500, 2000)
    assert (row["key"], row["model"], row["finish"], row["session"]) == ("k", "m", "stop", "s")


async def test_what_takes_nothing_of_an_upstream_has_no_row(ledger: Ledger, store: Failing) -> None:
    await ledger.enter(record(metered=False))
    ledger.over(record(metered=False))
    await ledger.close()
    assert await rows(store) == []


async def test_who_leaves_has_a_row_and_who_was_entered_no_second_one(
    ledger: Ledger, store: Failing
) -> None:
    ledger.over(record("left", cancelled=True, status=0, took=1.0))
    told = record("told")
    await told.enter()
    told.entered = True
    await ledger.enter(told)
    ledger.over(told)
    await ledger.close()
    assert sorted((row["id"], row["cancelled"]) for row in await rows(store)) == [
        ("left", 1), ("told", 0),
    ]  # fmt: skip


async def test_sums_are_what_the_rows_say(ledger: Ledger, store: Failing) -> None:
    many = [
        record(
            f"req_{number}", at=3600.0 * (number % 3) + number, key=f"k{number % 2}",
            problem=Problem(kind="timeout", message="x") if number % 5 == 0 else None,
        )
        for number in range(200)
    ]  # fmt: skip
    await asyncio.gather(*(ledger.enter(one) for one in many))
    found = await rows(store)
    assert len(found) == 200
    for by in usage.BYS:
        told = await usage.sums(store, [by])
        for name in ("prompt", "written", "cached", "cost"):
            assert sum(one[name] for one in told) == sum(row[name] for row in found)
        assert sum(one["requests"] for one in told) == 200
        assert sum(one["errors"] for one in told) == 40
    (half,) = await usage.sums(store, [], since=3600, until=7200, where={"key": "k1"})
    kept = [row for row in found if row["key"] == "k1" and 3600 <= row["at"] < 7200]
    assert (half["requests"], half["prompt"]) == (len(kept), sum(row["prompt"] for row in kept))


async def test_a_question_for_what_nobody_used_is_answered_by_zeros(store: Failing) -> None:
    assert await usage.sums(store, []) == [dict.fromkeys(SUMS, 0)]
    assert await usage.sums(store, ["day"]) == []
    with pytest.raises(ValueError, match="no; --"):
        await usage.sums(store, [], where={"no; --": ""})


async def test_who_asks_too_much_is_counted_without_a_row(ledger: Ledger, store: Failing) -> None:
    problem = Problem(kind="limited", message="x")
    for number in range(50):
        await ledger.enter(record(f"r{number}", problem=problem))
    await ledger.close()
    assert await rows(store) == []
    (told,) = await usage.sums(store, ["key"])
    assert (told["limited"], told["requests"], told["key"]) == (50, 0, "k")


@pytest.mark.parametrize("when", ["before", "after"])
async def test_rows_of_a_store_that_fails_wait_and_count_once(
    ledger: Ledger, store: Failing, tmp_path: Path, when: str, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr("tropilla.accounts.ledger._RETRY_SECONDS", 0.01)
    store.fails = when  # nobody knows whether what failed was written
    await ledger.enter(record("a"))
    await ledger.enter(record("b"))
    assert len(list((tmp_path / "spool").iterdir())) == 1
    store.fails = None
    await ledger.enter(record("c"))
    await caught_up(ledger)
    assert sorted(row["id"] for row in await rows(store)) == ["a", "b", "c"]
    assert [one["requests"] for one in await usage.sums(store, [])] == [3]
    assert list((tmp_path / "spool").iterdir()) == []


async def test_rows_of_a_process_that_ended_are_taken_by_the_next(
    ledger: Ledger, store: Failing, tmp_path: Path
) -> None:
    store.fails = "before"
    await ledger.enter(record("a"))
    (file,) = (tmp_path / "spool").iterdir()
    other = Spool(tmp_path / "spool", MOST)
    assert other.rows == []  # the process lives
    await ledger.close()
    with file.open("ab") as end:
        end.write(b'["half a row"')
    store.fails = None
    again = Ledger(store, Spool(tmp_path / "spool", MOST))
    await caught_up(again)
    await again.close()
    assert [row["id"] for row in await rows(store)] == ["a"]
    assert list((tmp_path / "spool").iterdir()) == []


async def test_a_full_spool_says_so(
    store: Failing, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    ledger = Ledger(store, Spool(tmp_path / "little", 500))
    monkeypatch.setattr("tropilla.accounts.ledger._RETRY_SECONDS", 0.01)
    store.fails = "before"
    assert not ledger.full
    for number in range(4):
        await ledger.enter(record(f"r{number}"))
    assert ledger.full
    store.fails = None
    await caught_up(ledger)
    assert not ledger.full
    await ledger.close()
    assert len(await rows(store)) == 4


async def test_old_rows_go_and_their_sums_stay(ledger: Ledger, store: Failing) -> None:
    await ledger.enter(record("old", at=10.0))
    await ledger.enter(record("new", at=7200.0))
    assert await ledger.prune(7200.0) == 1
    assert [row["id"] for row in await rows(store)] == ["new"]
    assert [one["requests"] for one in await usage.sums(store, [])] == [2]


async def test_what_others_say_fits_into_a_row(ledger: Ledger, store: Failing) -> None:
    await ledger.enter(
        record(
            model="\ud800\0" * 10_000, session="x" * 10_000, path="/" * 10_000,
            prompt=10**30, cached=-5, written=-1, reasoning=2**63,
        )
    )  # fmt: skip
    (row,) = await rows(store)
    assert (row["model"], len(row["session"]), len(row["path"])) == ("?" * 200, 200, 200)
    assert (row["prompt"], row["cached"], row["written"]) == (2**31 - 1, 0, 0)


async def test_who_stops_waiting_leaves_the_others_rows_alone(
    ledger: Ledger, store: Failing
) -> None:
    one = asyncio.create_task(ledger.enter(record("a")))
    other = asyncio.create_task(ledger.enter(record("b")))
    await asyncio.sleep(0)
    one.cancel()
    await other
    assert sorted(row["id"] for row in await rows(store)) == ["a", "b"]
