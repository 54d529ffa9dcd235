"""Four real engines, and what befalls them; `make faults` is the long version.

A control follows each: without the mechanism the same fault does harm.
"""

from __future__ import annotations

import asyncio
import os
import random
import signal
from collections import Counter
from collections.abc import AsyncIterator
from typing import Any

import pytest

from conftest import CHAT, Answer, Serve, Served, expect_signs, stopped
from tropilla.config import TINY_MODEL, QueueConfig
from tropilla.herd.pool import Effect, Pool
from tropilla.upstream import fleet
from tropilla.upstream.engine import Engine, EngineOptions
from tropilla.upstream.fleet import Fleet
from tropilla.upstream.member import Upstream
from tropilla.upstream.probe import busy_slots

pytestmark = pytest.mark.anyio

PATH = "/v1/chat/completions"


@pytest.fixture(scope="module")
async def herd(anyio_backend: Any) -> AsyncIterator[list[Engine]]:  # noqa: ARG001
    """Four of them, each with two slots."""
    # One thread each: more of them would wait for each other on a busy machine.
    options = EngineOptions(model=TINY_MODEL, alias="m", slots=2, threads=1)
    herd = [Engine(options) for _ in range(4)]
    await asyncio.gather(*(one.start() for one in herd))
    yield herd
    await asyncio.gather(*(one.stop() for one in herd))


@pytest.fixture
async def engines(herd: list[Engine]) -> AsyncIterator[list[Engine]]:
    """All four, alive; whom a test has killed serves again after it."""
    yield herd
    await asyncio.gather(*(one.start() for one in herd if one.pid is None))


async def kill(engine: Engine) -> None:
    """End one as the kernel would; `start` has it serve again where it was."""
    assert engine.pid is not None
    assert engine._child is not None
    os.kill(engine.pid, signal.SIGKILL)
    await engine._child.death()
    engine._remove_files()


def look_again(tropilla: Served) -> None:
    """Have the gateway find out now, and not after two seconds, who is there."""
    for upstream in tropilla.fleet.upstreams:
        upstream.recheck.set()


async def ask(tropilla: Served, number: int, *, tokens: int = 60) -> Answer:
    return await tropilla.chat(
        messages=[{"role": "user", "content": f"Tell me story {number}."}],
        stream=number % 2 == 0,
        max_tokens=tokens,
        ignore_eos=True,
        temperature=0,
        seed=number,
    )


def outcome(answer: Answer) -> str:
    """What became of a request; nothing may just break off."""
    if answer.headers["content-type"] == "application/json":
        return "whole" if answer.status == 200 else f"{answer.status} {answer.error['message']}"
    assert answer.events[-1] == "[DONE]"
    if "error" in (last := answer.events[-2]):
        assert last["error"]["code"] == "upstream_error"
        assert not any(
            choice["finish_reason"] for one in answer.events[:-2] for choice in one["choices"]
        ), "an answer that broke off has no reason to have ended"
        return "told"
    return "streamed"


async def test_a_killed_engine_loses_no_answer(gateway: Serve, engines: list[Engine]) -> None:
    tropilla = await gateway(*(one.address for one in engines))
    asked = [asyncio.create_task(ask(tropilla, number)) for number in range(40)]
    victim = tropilla.fleet.upstreams[1]
    await tropilla.has(lambda: victim.leases == 2)
    await kill(engines[1])
    outcomes = Counter([outcome(await one) for one in asked])
    assert outcomes["whole"] == 20
    assert outcomes["streamed"] + outcomes["told"] == 20
    assert outcomes["told"] <= 2, "only what it was in the middle of"
    await tropilla.has(lambda: all(one.leases == 0 for one in tropilla.fleet.upstreams))


async def test_without_retries_a_killed_engine_takes_answers_along(
    gateway: Serve, engines: list[Engine], monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(Pool, "may_retry", lambda *_: False)
    tropilla = await gateway(*(one.address for one in engines))
    whole = range(1, 33, 2)
    asked = [asyncio.create_task(ask(tropilla, number, tokens=300)) for number in whole]
    victim = tropilla.fleet.upstreams[1]
    await tropilla.has(lambda: victim.leases == 2)
    await kill(engines[1])
    outcomes = Counter([outcome(await one) for one in asked])
    assert outcomes["whole"] == 14


async def test_an_engine_that_stands_still_is_passed_over(
    gateway: Serve, engines: list[Engine], monkeypatch: pytest.MonkeyPatch
) -> None:
    tropilla = await gateway(*(one.address for one in engines))
    upstream = tropilla.fleet.upstreams[2]
    expect_signs(upstream, 0.5, monkeypatch)
    # Some are in the middle of their answers there, others are given to it later.
    asked = [asyncio.create_task(ask(tropilla, number, tokens=300)) for number in range(24)]
    await tropilla.has(lambda: upstream.leases == 2)
    with stopped(engines[2]):
        assert Counter([outcome(await one) for one in asked]) == {"whole": 12, "streamed": 12}
        assert upstream.state != "ready"
    await tropilla.until(lambda: upstream.state == "ready")


async def test_without_signs_of_life_an_engine_that_stands_still_holds_what_it_has(
    gateway: Serve, engines: list[Engine], monkeypatch: pytest.MonkeyPatch
) -> None:
    tropilla = await gateway(*(one.address for one in engines))
    monkeypatch.setattr(Fleet, "_failed", lambda *_: None)
    monkeypatch.setattr(fleet, "_DEAD_PROBES", 10**9)
    with stopped(engines[2]):
        asked = [asyncio.create_task(ask(tropilla, number)) for number in range(24)]
        await tropilla.has(lambda: sum(one.done() for one in asked) == 22)
        assert tropilla.fleet.upstreams[2].leases == 2
    assert Counter([outcome(await one) for one in asked]) == {"whole": 12, "streamed": 12}


@pytest.mark.usefixtures("hasty_probes")
async def test_all_of_them_down_is_told_and_passes(gateway: Serve, engines: list[Engine]) -> None:
    tropilla = await gateway(*(one.address for one in engines))
    await asyncio.gather(*map(kill, engines))
    look_again(tropilla)
    await tropilla.until(lambda: all(one.state == "down" for one in tropilla.fleet.upstreams))
    answer = await ask(tropilla, 1)
    assert (answer.status, answer.error["code"]) == (503, "no_upstream")
    assert answer.headers["retry-after"] == "2"
    await asyncio.gather(*(one.start() for one in engines))
    await tropilla.until(lambda: tropilla.fleet.state() == "ready")
    assert outcome(await ask(tropilla, 1)) == "whole"


async def test_without_giving_up_who_asks_the_dead_waits(
    gateway: Serve, engines: list[Engine], monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(fleet, "_HOPEFUL_TRIES", 10**9)
    tropilla = await gateway(*(one.address for one in engines))
    await asyncio.gather(*map(kill, engines))
    look_again(tropilla)
    await tropilla.until(lambda: all(one.state == "starting" for one in tropilla.fleet.upstreams))
    asked = asyncio.create_task(ask(tropilla, 1))
    await tropilla.has(lambda: tropilla.fleet.pool.waiting == 1)
    asked.cancel()


async def restart(tropilla: Served, engine: Engine, upstream: Upstream) -> None:
    """Kill one while it works, and start it again; return when it is asked again."""
    await tropilla.has(lambda: upstream.leases > 0)
    await kill(engine)
    await tropilla.until(lambda: upstream.state != "ready")
    await engine.start()
    await tropilla.until(lambda: upstream.state == "ready")


@pytest.mark.parametrize("retried", [True, False], ids=["retried", "control"])
async def test_restarts_one_after_the_other_lose_nothing(
    gateway: Serve, engines: list[Engine], monkeypatch: pytest.MonkeyPatch, *, retried: bool
) -> None:
    if not retried:
        monkeypatch.setattr(Pool, "may_retry", lambda *_: False)
    tropilla = await gateway(*(one.address for one in engines))
    outcomes: Counter[str] = Counter()
    over = False

    async def asks(number: int) -> None:
        while not over:
            outcomes[outcome(await ask(tropilla, 2 * number + 1))] += 1

    async with asyncio.TaskGroup() as group:
        for number in range(6):
            group.create_task(asks(number))
        for engine, upstream in zip(engines, tropilla.fleet.upstreams, strict=True):
            await restart(tropilla, engine, upstream)
        over = True
    assert (outcomes.keys() == {"whole"}) == retried


@pytest.mark.parametrize("bounded", [True, False], ids=["bounded", "control"])
async def test_what_is_too_much_is_refused(
    gateway: Serve, engines: list[Engine], *, bounded: bool
) -> None:
    queue = QueueConfig(size=4 if bounded else 1000)
    tropilla = await gateway(*(one.address for one in engines[:2]), queue=queue)
    # 4 slots, and a queue of 4: none becomes free until all are there.
    with stopped(engines[0]), stopped(engines[1]):
        held = [asyncio.create_task(ask(tropilla, 1)) for _ in range(4)]
        await tropilla.has(lambda: sum(one.leases for one in tropilla.fleet.upstreams) == 4)
        asked = [asyncio.create_task(ask(tropilla, number)) for number in range(24)]
        await tropilla.has(
            lambda: tropilla.fleet.pool.waiting + sum(one.done() for one in asked) == 24
        )
    outcomes = Counter([outcome(await one)[:3] for one in asked])
    assert outcomes["503"] == (20 if bounded else 0)
    assert outcomes["who"] + outcomes["str"] == (4 if bounded else 24)
    assert [outcome(await one) for one in held] == ["whole"] * 4


@pytest.mark.parametrize("turns", [True, False], ids=["turns", "control"])
async def test_a_key_that_floods_does_not_keep_the_others_waiting(
    gateway: Serve, engines: list[Engine], monkeypatch: pytest.MonkeyPatch, *, turns: bool
) -> None:
    if not turns:
        monkeypatch.setattr(Pool, "_in_turn", lambda pool: iter(list(pool._waiting)))
    keys = ("flood", "other")
    tropilla = await gateway(engines[0].address, api_keys=keys)
    pool, served = tropilla.fleet.pool, list[str]()

    async def asks(key: str) -> None:
        body = CHAT | {"max_tokens": 8, "ignore_eos": True}
        shown = {"authorization": f"Bearer {key}"}
        assert (await tropilla.ask("POST", PATH, body, shown)).status == 200
        served.append(key)

    async with asyncio.TaskGroup() as group:
        with stopped(engines[0]):
            for _ in range(50):
                group.create_task(asks("flood"))
            await tropilla.has(lambda: pool.waiting == 48)
            group.create_task(asks("other"))
            await tropilla.has(lambda: pool.waiting == 49)
    # It has the first slot that becomes free; of those before it, two had theirs.
    assert (served.index("other") < 10) == turns


async def many_leave(tropilla: Served, many: int) -> None:
    """So many ask, and leave at some time."""
    chance = random.Random(7)

    async def leaves(number: int) -> None:
        task = asyncio.create_task(ask(tropilla, number))
        for _ in range(chance.choice([0, 1, 3, 10, 30, 100])):
            await asyncio.sleep(0)
        task.cancel()
        await asyncio.wait([task])

    for start in range(0, many, 24):
        await asyncio.gather(*(leaves(start + number) for number in range(24)))


async def test_whoever_leaves_whenever_leaves_nothing_behind(
    gateway: Serve, engines: list[Engine]
) -> None:
    tropilla = await gateway(*(one.address for one in engines[:2]))
    await ask(tropilla, 0)
    before = len(asyncio.all_tasks())
    await many_leave(tropilla, 240)
    pool = tropilla.fleet.pool
    await tropilla.has(lambda: not pool.waiting and not pool._held)
    assert all(one.leases == 0 for one in tropilla.fleet.upstreams)
    assert not tropilla.fleet._asked
    assert not pool._running
    for one in tropilla.fleet.upstreams:
        # The engines have heard of it too.
        while await busy_slots(one.link):
            pass
    await tropilla.has(lambda: len(asyncio.all_tasks()) <= before)
    assert outcome(await ask(tropilla, 1)) == "whole"


async def test_without_release_whoever_leaves_keeps_a_slot(
    gateway: Serve, engines: list[Engine], monkeypatch: pytest.MonkeyPatch
) -> None:
    def keeps(pool: Pool, request: int, _: float) -> list[Effect]:
        pool._waiting.pop(request, None)
        return []

    monkeypatch.setattr(Pool, "on_cancel", keeps)
    tropilla = await gateway(engines[0].address)
    (upstream,) = tropilla.fleet.upstreams
    with stopped(engines[0]):
        raw = await tropilla.connect()
        await raw.post("/v1/chat/completions", CHAT)
        await tropilla.has(lambda: upstream.leases > 0)
        raw.leave()
        await tropilla.has(lambda: upstream.leases == 0)
    assert tropilla.fleet.pool._held
