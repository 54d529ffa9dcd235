"""Four real engines, and what befalls them; `make faults` is the long version.

Where it is cheap a control follows: without the mechanism the same fault does harm.
"""

from __future__ import annotations

import asyncio
import os
import random
import signal
from collections import Counter
from collections.abc import AsyncIterator, Iterator
from contextlib import contextmanager

import pytest

from conftest import CHAT, Answer, Serve, Served
from tropilla.config import TINY_MODEL
from tropilla.herd.pool import Effect, Pool
from tropilla.upstream import fleet, probe
from tropilla.upstream.engine import Engine, EngineOptions
from tropilla.upstream.fleet import Fleet
from tropilla.upstream.probe import busy_slots

pytestmark = pytest.mark.anyio


@pytest.fixture
async def engines() -> AsyncIterator[list[Engine]]:
    """Four of them, each with two slots."""
    # One thread each: more of them would wait for each other on a busy machine.
    options = EngineOptions(model=TINY_MODEL, alias="m", slots=2, threads=1)
    herd = [Engine(options) for _ in range(4)]
    await asyncio.gather(*(one.start() for one in herd))
    yield herd
    await asyncio.gather(*(one.stop() for one in herd))


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
    assert engines[1].pid is not None
    os.kill(engines[1].pid, signal.SIGKILL)
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
    assert engines[1].pid is not None
    os.kill(engines[1].pid, signal.SIGKILL)
    outcomes = Counter([outcome(await one) for one in asked])
    assert outcomes["whole"] == 14


@contextmanager
def stopped(pid: int | None) -> Iterator[None]:
    """Meanwhile a process stands still."""
    assert pid is not None
    os.kill(pid, signal.SIGSTOP)
    try:
        yield
    finally:
        os.kill(pid, signal.SIGCONT)


async def test_an_engine_that_stands_still_is_passed_over(
    gateway: Serve, engines: list[Engine], monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(probe, "_LIFE_SECONDS", 0.5)
    tropilla = await gateway(*(one.address for one in engines))
    upstream = tropilla.fleet.upstreams[2]
    # Some are in the middle of their answers there, others are given to it later.
    asked = [asyncio.create_task(ask(tropilla, number, tokens=300)) for number in range(24)]
    await tropilla.has(lambda: upstream.leases == 2)
    with stopped(engines[2].pid):
        assert Counter([outcome(await one) for one in asked]) == {"whole": 12, "streamed": 12}
        assert upstream.state != "ready"
    await tropilla.until(lambda: upstream.state == "ready")


async def test_without_signs_of_life_an_engine_that_stands_still_holds_what_it_has(
    gateway: Serve, engines: list[Engine], monkeypatch: pytest.MonkeyPatch
) -> None:
    tropilla = await gateway(*(one.address for one in engines))
    monkeypatch.setattr(Fleet, "_failed", lambda *_: None)
    monkeypatch.setattr(fleet, "_DEAD_PROBES", 10**9)
    with stopped(engines[2].pid):
        asked = [asyncio.create_task(ask(tropilla, number)) for number in range(24)]
        await tropilla.has(lambda: sum(one.done() for one in asked) == 22)
        assert tropilla.fleet.upstreams[2].leases == 2
    assert Counter([outcome(await one) for one in asked]) == {"whole": 12, "streamed": 12}


async def test_all_of_them_down_is_told_and_passes(gateway: Serve, engines: list[Engine]) -> None:
    tropilla = await gateway(*(one.address for one in engines))
    pids = [one.pid for one in engines]
    for pid in pids:
        assert pid is not None
        os.kill(pid, signal.SIGSTOP)
    for upstream in tropilla.fleet.upstreams:
        tropilla.fleet._set(upstream, "down", None)
    answer = await ask(tropilla, 1)
    assert (answer.status, answer.error["code"]) == (503, "no_upstream")
    assert answer.headers["retry-after"] == "2"
    for pid in pids:
        assert pid is not None
        os.kill(pid, signal.SIGCONT)
    for upstream in tropilla.fleet.upstreams:
        upstream.recheck.set()
    await tropilla.until(lambda: tropilla.fleet.state() == "ready")
    assert outcome(await ask(tropilla, 1)) == "whole"


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
    tropilla = await gateway(*(one.address for one in engines[:2]))
    raw = await tropilla.connect()
    await raw.post("/v1/chat/completions", CHAT | {"max_tokens": 1000, "ignore_eos": True})
    upstreams = tropilla.fleet.upstreams
    await tropilla.has(lambda: any(one.leases for one in upstreams))
    raw.leave()
    await tropilla.has(lambda: not any(one.leases for one in upstreams))
    assert tropilla.fleet.pool._held
