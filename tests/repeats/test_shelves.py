"""Shelves of answers: one at a time claims a name, and what is kept stays as long as it may."""

from __future__ import annotations

import asyncio
from collections.abc import AsyncIterator
from pathlib import Path
from typing import Any

import msgspec
import pytest

from doubles import databases
from tropilla.accounts.repeats import Found, Name, Result, Shelf
from tropilla.accounts.store import MEMORY, Later, Store, open_store
from tropilla.config import RepeatsConfig

pytestmark = pytest.mark.anyio

NAME = Name("key_1", "k")
RESULT = Result(
    status=200, content_type="text/event-stream", headers={"x-tropilla-upstream": "u"},
    body=b"data: \x00\xff\n\n", streamed=True, request="req_1", model="m",
)  # fmt: skip
EVER = float("-inf")


class Clock:
    now = 1000.0

    def __call__(self) -> float:
        return self.now


@pytest.fixture
def clock() -> Clock:
    return Clock()


@pytest.fixture(params=["memory", "sqlite", "postgresql"])
async def store(request: pytest.FixtureRequest, tmp_path: Path) -> AsyncIterator[Store]:
    url = MEMORY if request.param == "memory" else f"sqlite:///{tmp_path}/a.db"
    if request.param == "postgresql":
        server: databases.Postgres = request.getfixturevalue("postgres")
        url = server.database()
    it = Later(url)
    yield it
    await it.close()


@pytest.fixture
def shelf(store: Store, clock: Clock) -> Shelf:
    return Shelf(store, RepeatsConfig(max_bytes=5000, ttl=100), clock)


def sized(size: int) -> Result:
    return msgspec.structs.replace(RESULT, body=bytes(size))


async def fill(shelf: Shelf, clock: Clock, *keys: str, size: int = 1000) -> None:
    for key in keys:
        clock.now += 1
        assert await shelf.claim(Name("o", key), "m", "t", EVER) is None
        assert await shelf.keep(Name("o", key), "t", sized(size))


async def there(shelf: Shelf, *keys: str) -> list[str]:
    """Those of the keys that have an answer."""
    found = [(key, await shelf.claim(Name("o", key), "m", "new", EVER)) for key in keys]
    return [key for key, one in found if one is not None]


async def test_an_answer_is_what_was_kept(shelf: Shelf) -> None:
    assert await shelf.claim(NAME, "mark", "t", EVER) is None
    assert await shelf.keep(NAME, "t", RESULT)
    assert await shelf.claim(NAME, "other", "u", EVER) == Found("mark", "t", 0, RESULT)
    for other in (Name("key_2", "k"), Name("key_1", "K")):
        assert await shelf.claim(other, "mark", "u", EVER) is None


async def test_what_is_released_may_be_done_by_the_next(shelf: Shelf) -> None:
    assert await shelf.claim(NAME, "mark", "t", EVER) is None
    await shelf.release(NAME, "t")
    assert await shelf.claim(NAME, "other", "u", EVER) is None
    assert await shelf.keep(NAME, "u", RESULT)
    # What is kept nobody releases.
    await shelf.release(NAME, "u")
    assert await shelf.claim(NAME, "other", "v", EVER) is not None


async def test_an_answer_that_is_too_old_is_none(shelf: Shelf, clock: Clock) -> None:
    await shelf.claim(NAME, "mark", "t", EVER)
    await shelf.keep(NAME, "t", RESULT)
    clock.now += 10
    assert await shelf.claim(NAME, "mark", "u", clock.now - 10.5) is not None
    assert await shelf.claim(NAME, "another", "u", clock.now - 10) is None
    assert await shelf.keep(NAME, "u", sized(3))
    found = await shelf.claim(NAME, "another", "v", EVER)
    assert found is not None
    assert (found.mark, found.result) == ("another", sized(3))


async def test_one_of_many_claims_it(store_url: str) -> None:
    stores = [await open_store(store_url) for _ in range(2)]
    shelves = [Shelf(one, RepeatsConfig()) for one in stores]
    told = await asyncio.gather(
        *(shelves[number % 2].claim(NAME, "mark", f"t{number}", EVER) for number in range(20))
    )
    (winner,) = (f"t{number}" for number, found in enumerate(told) if found is None)
    assert {found for found in told if found} == {Found("mark", winner, 0, None)}
    for one in stores:
        await one.close()


async def test_who_lives_is_not_taken_over(shelf: Shelf) -> None:
    await shelf.claim(NAME, "mark", "t", EVER)
    seen = await shelf.claim(NAME, "mark", "u", EVER)
    assert seen is not None
    await shelf.beat([(NAME, "t"), (Name("nobody", "k"), "t")])
    assert not await shelf.take_over(NAME, "u", seen)
    seen = await shelf.claim(NAME, "mark", "u", EVER)
    assert seen == Found("mark", "t", 1, None)
    assert await shelf.take_over(NAME, "u", seen)
    assert not await shelf.take_over(NAME, "v", seen)
    # Whoever comes back has nothing to say any more.
    await shelf.beat([(NAME, "t")])
    await shelf.release(NAME, "t")
    assert not await shelf.keep(NAME, "t", sized(1))
    assert await shelf.claim(NAME, "mark", "v", EVER) == Found("mark", "u", 0, None)
    assert await shelf.keep(NAME, "u", RESULT)
    # What a failing store was told twice is there once.
    assert await shelf.keep(NAME, "u", RESULT)
    assert not await shelf.take_over(NAME, "v", Found("mark", "u", 0, None))


async def test_who_looked_too_early_takes_nothing_away(
    shelf: Shelf, store: Store, clock: Clock, monkeypatch: pytest.MonkeyPatch
) -> None:
    assert await shelf.claim(NAME, "mark", "t", EVER) is None
    read = store.read
    missed = [True]

    async def early(*arguments: Any) -> Any:
        return [] if missed and missed.pop() else await read(*arguments)

    monkeypatch.setattr(store, "read", early)
    # However old it is: it is being done.
    assert await shelf.claim(NAME, "mark", "u", clock.now) == Found("mark", "t", 0, None)
    assert not missed


async def test_no_more_is_held_than_may_be(shelf: Shelf, clock: Clock) -> None:
    await shelf.claim(NAME, "mark", "t", EVER)
    await fill(shelf, clock, "a", "b", "c", "d")
    assert await there(shelf, "a", "b", "c", "d") == ["b", "c", "d"]
    await fill(shelf, clock, "huge", size=6000)
    assert await there(shelf, "b", "c", "d", "huge") == []
    # What is being done is no answer, however old it is.
    assert await shelf.claim(NAME, "mark", "u", EVER) == Found("mark", "t", 0, None)


async def test_what_is_old_is_swept(shelf: Shelf, store: Store, clock: Clock) -> None:
    await fill(shelf, clock, *"abc")
    await shelf.claim(NAME, "mark", "t", EVER)
    assert await shelf.sweep() == 0
    clock.now += 99
    assert await shelf.sweep() == 2
    assert await there(shelf, *"abc") == ["c"]
    clock.now += 1
    assert await shelf.sweep() == 1
    # What is being done is nobody's to sweep, as long as it lives.
    assert await shelf.claim(NAME, "mark", "u", EVER) == Found("mark", "t", 0, None)
    clock.now += 3600
    await shelf.beat([(NAME, "t")])
    await shelf.sweep()
    assert await shelf.claim(NAME, "mark", "u", EVER) == Found("mark", "t", 1, None)
    clock.now += 3600
    await shelf.sweep()
    assert await store.read("SELECT * FROM repeats") == []


async def test_two_that_sweep_at_once_leave_what_may_stay(
    shelf: Shelf, store: Store, clock: Clock
) -> None:
    shelf.config = RepeatsConfig()
    await fill(shelf, clock, *"abcdef")
    shelves = [Shelf(store, RepeatsConfig(max_bytes=5000), clock) for _ in range(2)]
    assert sum(await asyncio.gather(*(one.sweep() for one in shelves))) == 3
    assert await there(shelf, *"abcdef") == ["d", "e", "f"]
