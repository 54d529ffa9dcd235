"""A soak in small, without the time: everybody comes, and nothing of them stays.

`make soak` is the long one; here its judgement is tried too.
"""

from __future__ import annotations

import asyncio

import pytest

from bodies import BODIES
from conftest import Serve
from soak.crowd import KEY, ODD, Crowd
from soak.odd import SCRIPTS, odd
from soak.slopes import LIMITS, Sample, slopes
from tropilla import dialects
from tropilla.config import QueueConfig

VISITS = 250


def test_every_dialect_is_asked() -> None:
    routes = {route.path for name in dialects.names() for route in dialects.named(name).ROUTES}
    assert BODIES.keys() <= routes
    asked = {name for name in dialects.names()
             if BODIES.keys() & {route.path for route in dialects.named(name).ROUTES}}  # fmt: skip
    assert asked == set(dialects.names())


@pytest.mark.anyio
async def test_a_crowd_leaves_nothing_behind(gateway: Serve, engine: str) -> None:
    server = odd(ODD)
    await server.start()
    try:
        # Nobody waits long for the server that is often away.
        queue = QueueConfig(seconds=0.5)
        tropilla = await gateway(engine, server.url, api_keys=(KEY,), queue=queue)
        tasks = len(asyncio.all_tasks())
        crowd = Crowd(tropilla.port, patience=0.05)
        await crowd.visit(16, VISITS)
        assert not crowd.heard["hung"] + crowd.heard["defect"], crowd.heard
        # All kinds of visitors were there, and were told all kinds of things.
        assert {"200", "400", "401", "left", "slow", "garbage"} <= crowd.heard.keys()
        assert len(SCRIPTS) > 20
        pool = tropilla.fleet.pool
        await tropilla.has(lambda: not tropilla.listener.connections)
        await tropilla.has(lambda: not pool.waiting and not pool._held and not pool._running)
        await tropilla.has(lambda: not tropilla.fleet._asked)
        assert all(one.leases == 0 for one in tropilla.fleet.upstreams)
        assert tropilla.listener.held == 0
        await tropilla.has(lambda: len(asyncio.all_tasks()) <= tasks + len(server._tasks))
    finally:
        await server.stop()


# The judgement.


def told(**grows: float) -> dict[str, bool]:
    """What is flat, where some things grow by so much in each of forty samples."""
    samples = [
        Sample(15.0 * at, {what: 100 + at * grows.get(what, 0) for what in LIMITS})
        for at in range(40)
    ]
    return {one.what: one.flat for one in slopes(samples)}


def test_what_stays_is_flat() -> None:
    assert set(told().values()) == {True}


@pytest.mark.parametrize(("what", "by"), [("files", 0.2), ("tasks", 1), ("memory", 400_000)])
def test_what_grows_is_not(what: str, by: float) -> None:
    assert [name for name, flat in told(**{what: by}).items() if not flat] == [what]


def test_a_moment_is_no_slope() -> None:
    counts = dict.fromkeys(LIMITS, 10.0)
    samples = [Sample(15.0 * at, counts) for at in range(40)]
    samples[25] = Sample(15.0 * 25, dict.fromkeys(LIMITS, 10.0**9))
    assert all(one.flat and one.grown == 0 for one in slopes(samples))


def test_what_is_made_once_is_no_slope() -> None:
    def at(number: int) -> dict[str, float]:
        return {what: min(number, 9) * 10.0**6 for what in LIMITS}

    assert all(one.flat for one in slopes([Sample(15.0 * n, at(n)) for n in range(40)]))
