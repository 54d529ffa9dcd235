"""The store of responses: whose they are, what leads to them, and when they go."""

from __future__ import annotations

from collections.abc import Iterator
from pathlib import Path
from typing import Any

import pytest

from tropilla.config import ResponsesConfig
from tropilla.ir import ProblemError
from tropilla.stored import Kept, Store

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


@pytest.fixture
def store(clock: Clock) -> Iterator[Store]:
    one = Store(ResponsesConfig(ttl=100, max_bytes=1000), clock)
    yield one
    one.close()


def kept(id_: str, previous: str | None = None, owner: str = "", text: str = "") -> Kept:
    response: dict[str, Any] = {"id": id_, "output": [{"id": f"msg_{id_}", "text": text}]}
    items = ({"id": f"in_{id_}", "type": "message"},)
    return Kept(id=id_, owner=owner, previous=previous, items=items, response=response)


async def names(store: Store, id_: str, owner: str = "") -> tuple[list[str], str | None]:
    led, missing = await store.chain(id_, owner)
    return [one.id for one in led], missing


async def test_what_is_kept_is_found_as_it_was(store: Store) -> None:
    await store.keep(kept("a", text="你好 \x00 \U0001f642"))

    assert await store.find("a", "") == kept("a", text="你好 \x00 \U0001f642")
    assert await store.find("b", "") is None


async def test_it_is_there_for_its_owner_alone(store: Store) -> None:
    await store.keep(kept("a", owner="one"))
    await store.keep(kept("b", "a", owner="two"))

    assert await store.find("a", "two") is None
    assert await store.find("a", "") is None
    assert not await store.forget("a", "two")
    assert await names(store, "a", "two") == ([], "a")
    assert await names(store, "b", "two") == (["b"], "a")
    assert await store.find("a", "one") is not None


async def test_a_chain_begins_with_the_first(store: Store) -> None:
    for id_, previous in (("a", None), ("b", "a"), ("c", "b"), ("d", "a")):
        await store.keep(kept(id_, previous))

    assert await names(store, "c") == (["a", "b", "c"], None)
    assert await names(store, "d") == (["a", "d"], None)


async def test_a_chain_without_its_beginning_says_so(store: Store) -> None:
    for id_, previous in (("a", None), ("b", "a"), ("c", "b")):
        await store.keep(kept(id_, previous))
    assert await store.forget("a", "")
    assert not await store.forget("a", "")

    assert await names(store, "c") == (["b", "c"], "a")


async def test_what_was_not_used_for_the_time_to_live_is_gone(store: Store, clock: Clock) -> None:
    await store.keep(kept("a"))
    await store.keep(kept("b", "a"))
    clock.now += 99
    assert await names(store, "b") == (["a", "b"], None)  # this uses both

    clock.now += 99
    assert await store.find("a", "") is not None
    clock.now += 1
    assert await store.find("a", "") is None
    assert await store.find("b", "") is None
    assert not await store.forget("b", "")
    assert await names(store, "b") == ([], "b")


async def test_beyond_the_bytes_the_longest_unused_goes_first(store: Store, clock: Clock) -> None:
    for id_ in ("a", "b", "c"):
        clock.now += 1
        await store.keep(kept(id_, text="x" * 200))
    clock.now += 1
    await store.chain("a", "")
    clock.now += 1
    await store.keep(kept("d", text="x" * 200))

    assert await store.find("b", "") is None
    for id_ in ("a", "c", "d"):
        assert await store.find(id_, "") is not None


async def test_what_is_larger_than_everything_is_not_kept(store: Store) -> None:
    await store.keep(kept("a"))
    await store.keep(kept("b", text="x" * 1000))

    assert await store.find("b", "") is None
    assert await store.find("a", "") is not None


async def test_a_file_outlives_its_gateway(tmp_path: Path) -> None:
    config = ResponsesConfig(store=str(tmp_path / "responses.db"))
    first = Store(config)
    await first.keep(kept("a"))
    second = Store(config)
    assert await second.find("a", "") == kept("a")
    first.close()
    await second.keep(kept("b", "a"))
    second.close()

    third = Store(config)
    assert await names(third, "b") == (["a", "b"], None)
    third.close()


async def test_memory_does_not(store: Store) -> None:
    await store.keep(kept("a"))
    store.close()

    assert await store.find("a", "") is None


async def test_a_place_that_cannot_be_written_is_an_error(tmp_path: Path) -> None:
    store = Store(ResponsesConfig(store=str(tmp_path / "none" / "responses.db")))

    with pytest.raises(ProblemError) as broken:
        await store.keep(kept("a"))
    assert broken.value.problem.kind == "unavailable"
    store.close()
