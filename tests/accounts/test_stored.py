"""The store of responses: whose they are, what leads to them, and when they go."""

from __future__ import annotations

import asyncio
from collections.abc import AsyncIterator
from pathlib import Path
from typing import Any

import pytest

from doubles import databases
from tropilla.accounts.store import MEMORY, open_store
from tropilla.accounts.stored import Keeper, Kept
from tropilla.config import ResponsesConfig
from tropilla.ir import ProblemError

pytestmark = pytest.mark.anyio


class Clock:
    """A clock that a test sets."""

    def __init__(self) -> None:
        self.now = 1000.0

    def __call__(self) -> float:
        return self.now


@pytest.fixture
def clock() -> Clock:
    return Clock()


@pytest.fixture(params=["memory", "sqlite", "postgresql"])
def where(request: pytest.FixtureRequest, tmp_path: Path) -> str:
    """The address of a new store, of every kind that there is."""
    match request.param:
        case "memory":
            return MEMORY
        case "sqlite":
            return f"sqlite:///{tmp_path}/responses.db"
    server: databases.Postgres = request.getfixturevalue("postgres")
    return server.database()


@pytest.fixture
async def keeper(clock: Clock, where: str) -> AsyncIterator[Keeper]:
    one = Keeper(ResponsesConfig(ttl=100, max_bytes=1000), where, clock)
    yield one
    await one.close()


@pytest.fixture
async def pair(clock: Clock, store_url: str) -> AsyncIterator[tuple[Keeper, Keeper]]:
    """Those of two gateways on one store, which is open already."""
    config = ResponsesConfig(ttl=100, max_bytes=1000)
    stores = [await open_store(store_url) for _ in range(2)]
    yield Keeper(config, stores[0], clock), Keeper(config, stores[1], clock)
    for store in stores:
        await store.close()


def kept(id_: str, previous: str | None = None, owner: str = "", text: str = "") -> Kept:
    response: dict[str, Any] = {"id": id_, "output": [{"id": f"msg_{id_}", "text": text}]}
    items = ({"id": f"in_{id_}", "type": "message"},)
    return Kept(id=id_, owner=owner, previous=previous, items=items, response=response)


async def names(keeper: Keeper, id_: str, owner: str = "") -> tuple[list[str], str | None]:
    led, missing = await keeper.chain(id_, owner)
    return [one.id for one in led], missing


async def found(keeper: Keeper, *ids: str) -> str:
    """Those of them that are there."""
    return "".join([id_ for id_ in ids if await keeper.find(id_, "") is not None])


async def test_what_is_kept_is_found_as_it_was(keeper: Keeper) -> None:
    await keeper.keep(kept("a", text="你好 \x00 \U0001f642"))

    assert await keeper.find("a", "") == kept("a", text="你好 \x00 \U0001f642")
    assert await keeper.find("b", "") is None


async def test_it_is_there_for_its_owner_alone(keeper: Keeper) -> None:
    await keeper.keep(kept("a", owner="one"))
    await keeper.keep(kept("b", "a", owner="two"))

    assert await keeper.find("a", "two") is None
    assert await keeper.find("a", "") is None
    assert not await keeper.forget("a", "two")
    assert await names(keeper, "a", "two") == ([], "a")
    assert await names(keeper, "b", "two") == (["b"], "a")
    assert await keeper.find("a", "one") is not None


async def test_a_chain_begins_with_the_first(keeper: Keeper) -> None:
    for id_, previous in (("a", None), ("b", "a"), ("c", "b"), ("d", "a")):
        await keeper.keep(kept(id_, previous))

    assert await names(keeper, "c") == (["a", "b", "c"], None)
    assert await names(keeper, "d") == (["a", "d"], None)


async def test_a_chain_without_its_beginning_says_so(keeper: Keeper) -> None:
    for id_, previous in (("a", None), ("b", "a"), ("c", "b")):
        await keeper.keep(kept(id_, previous))
    assert await keeper.forget("a", "")
    assert not await keeper.forget("a", "")

    assert await names(keeper, "c") == (["b", "c"], "a")


async def test_a_long_chain_lets_others_have_their_turn(
    where: str, monkeypatch: pytest.MonkeyPatch
) -> None:
    from tropilla.accounts import stored

    monkeypatch.setattr(stored, "_MUCH", 100)
    keeper = Keeper(ResponsesConfig(), where)
    for number in range(100):
        await keeper.keep(kept(f"r{number}", f"r{number - 1}" if number else None))
    rows = await keeper._read(stored._LEAD, "r99", "", 0.0)
    turns = 0

    async def other() -> None:
        nonlocal turns
        while True:
            turns += 1
            await asyncio.sleep(0)

    task = asyncio.create_task(other())
    assert len(await stored._told(rows)) == 100
    task.cancel()
    assert turns >= 49
    assert (await names(keeper, "r99"))[0] == [f"r{number}" for number in range(100)]
    await keeper.close()


async def test_what_was_not_used_for_the_time_to_live_is_gone(keeper: Keeper, clock: Clock) -> None:
    await keeper.keep(kept("a"))
    await keeper.keep(kept("b", "a"))
    clock.now += 99
    assert await names(keeper, "b") == (["a", "b"], None)  # this uses both

    clock.now += 99
    assert await found(keeper, "a") == "a"
    clock.now += 1
    assert await found(keeper, "a", "b") == ""
    assert not await keeper.forget("b", "")
    assert await names(keeper, "b") == ([], "b")


async def test_beyond_the_bytes_the_longest_unused_goes_first(keeper: Keeper, clock: Clock) -> None:
    for id_ in ("a", "b", "c"):
        clock.now += 1
        await keeper.keep(kept(id_, text="x" * 200))
    clock.now += 1
    await keeper.chain("a", "")
    clock.now += 1
    await keeper.keep(kept("d", text="x" * 200))

    assert await found(keeper, "a", "b", "c", "d") == "acd"


async def test_what_is_larger_than_everything_is_not_kept(keeper: Keeper) -> None:
    await keeper.keep(kept("a"))
    assert not await keeper.keep(kept("b", text="x" * 1000))

    assert await found(keeper, "a", "b") == "a"


async def test_what_has_gone_leaves_nothing_behind(where: str, clock: Clock) -> None:
    # What is too old is taken out once in a while, and what is too much by small parts.
    keeper = Keeper(ResponsesConfig(ttl=100, max_bytes=64_000), where, clock)
    rows, size = 0, "SELECT COALESCE(SUM(size), 0), count(*) FROM responses"
    for number in range(400):
        await keeper.keep(kept(f"r{number:03}", text="x" * 500))
        total, rows = (await keeper._read(size))[0]
        assert total <= 64_000 + 2 * 1000
        clock.now += 0.01
    assert 90 < rows < 130
    assert await found(keeper, "r000", "r200", "r399") == "r399"

    clock.now += 200
    await keeper.keep(kept("last"))
    assert (await keeper._read(size))[0][1] == 1
    await keeper.close()


async def test_two_gateways_have_one_store(pair: tuple[Keeper, Keeper], clock: Clock) -> None:
    one, other = pair
    await one.keep(kept("a"))
    await other.keep(kept("b", "a"))
    assert await names(one, "b") == (["a", "b"], None)
    assert await one.forget("a", "")
    assert await names(other, "b") == (["b"], "a")

    # What may be kept is for both together, and what one uses is used.
    for keeper, id_ in ((one, "c"), (other, "d"), (one, "e")):
        clock.now += 1
        await keeper.keep(kept(id_, text="x" * 200))
    clock.now += 1
    await other.chain("c", "")
    clock.now += 1
    await one.keep(kept("f", text="x" * 200))
    assert await found(other, "b", "c", "d", "e", "f") == "cef"


async def test_many_at_once_make_no_more_room_than_is_needed(pair: tuple[Keeper, Keeper]) -> None:
    await asyncio.gather(
        *(pair[number % 2].keep(kept(f"r{number:02}", text="x" * 90)) for number in range(60))
    )
    ((total, size),) = await pair[0]._read("SELECT SUM(size), MAX(size) FROM responses")
    assert 1000 - size < total <= 1000


async def test_a_store_that_is_not_its_own_stays_open(pair: tuple[Keeper, Keeper]) -> None:
    one, other = pair
    await one.close()
    store = other._store
    assert store is not None
    await other.close()

    assert await store.read("SELECT count(*) FROM responses") == [(0,)]


async def test_a_file_outlives_its_gateway(tmp_path: Path) -> None:
    place = f"sqlite:///{tmp_path}/responses.db"
    first = Keeper(ResponsesConfig(), place)
    await first.keep(kept("a"))
    second = Keeper(ResponsesConfig(), place)
    assert await second.find("a", "") == kept("a")
    await first.close()
    await second.keep(kept("b", "a"))
    await second.close()

    third = Keeper(ResponsesConfig(), place)
    assert await names(third, "b") == (["a", "b"], None)
    await third.close()


async def test_memory_does_not() -> None:
    keeper = Keeper(ResponsesConfig())
    await keeper.keep(kept("a"))
    await keeper.close()

    assert await keeper.find("a", "") is None
    await keeper.close()


@pytest.mark.parametrize("id_", ["a\0", "\ud800", "é", ""])
async def test_what_can_be_no_id_is_not_there(keeper: Keeper, id_: str) -> None:
    assert await keeper.find(id_, "") is None
    assert not await keeper.forget(id_, "")
    assert await keeper.chain(id_, "") == ([], id_)


async def test_to_see_whether_it_works_keeps_nothing(keeper: Keeper) -> None:
    assert await keeper.keep(kept("a"))
    await keeper.works("b")
    await asyncio.gather(*(keeper.works(f"c{number}") for number in range(8)))
    assert await keeper._read("SELECT id FROM responses") == [("a",)]


async def test_a_store_that_takes_nothing_is_no_store_to_keep_in(keeper: Keeper) -> None:
    assert await keeper.keep(kept("a"))
    async with databases.refusing(keeper._store, "INSERT"):
        for ask in (keeper.works("b"), keeper.keep(kept("b"))):
            with pytest.raises(ProblemError):
                await ask
        assert await names(keeper, "a") == (["a"], None)
    await keeper.works("b")
    assert await keeper.keep(kept("b"))


async def test_what_is_kept_is_kept_also_where_nothing_can_go(keeper: Keeper, clock: Clock) -> None:
    assert await keeper.keep(kept("a"))
    clock.now += 200
    async with databases.refusing(keeper._store, "DELETE"):
        assert await keeper.keep(kept("b"))
    assert await keeper._read("SELECT id FROM responses ORDER BY id") == [("a",), ("b",)]


async def broken(keeper: Keeper) -> None:
    for ask in (
        keeper.works("b"), keeper.keep(kept("b")), keeper.find("a", ""), keeper.chain("a", ""),
        keeper.forget("a", ""),
    ):  # fmt: skip
        with pytest.raises(ProblemError) as error:
            await ask
        problem = error.value.problem
        assert (problem.kind, problem.code) == ("unavailable", "store_unavailable")


async def test_a_place_that_cannot_be_had_is_an_error() -> None:
    keeper = Keeper(ResponsesConfig(), "sqlite:////proc/none/responses.db")
    await broken(keeper)
    await keeper.close()


async def test_an_outage_is_an_error_and_then_over(postgres: databases.Postgres) -> None:
    keeper = Keeper(ResponsesConfig(), postgres.database())
    await keeper.keep(kept("a"))
    postgres.stop()
    try:
        await broken(keeper)
    finally:
        postgres.start()
    assert await names(keeper, "a") == (["a"], None)
    assert await keeper.find("b", "") is None
    await keeper.close()
