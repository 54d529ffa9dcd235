"""An engine stands still for a minute; then none is there at all."""

from __future__ import annotations

import asyncio
import time

from faults.load import Told, asking
from faults.score import Line, Run, at_most, percentile
from faults.stage import ENGINES, Gateway, Herd, gateway, herd

AT_ONCE = 24
TOKENS = 64
GRACE = 15.0
"""Seconds in which it has to be found out."""
PATIENCE = 30.0
"""Seconds that a client waits for its answer."""
STILL = 2
KNOWN = 3.0
"""Seconds in which it has to be known that nobody is there."""


async def standing(run: Run) -> list[Line]:
    """One of four is stopped, as by SIGSTOP: its connections live, and nothing comes."""
    async with (
        herd(4) as engines,
        gateway(engines, run.off) as tropilla,
        asking(tropilla.client(), AT_ONCE, tokens=TOKENS, seconds=PATIENCE) as told,
    ):
        await asyncio.sleep(3)
        engines.halt(STILL)
        stopped = time.perf_counter()
        await asyncio.sleep(run.seconds(60, GRACE + PATIENCE))
        engines.go_on(STILL)
        went_on = time.perf_counter()
        back = await tropilla.until(lambda now: now["upstreams"][STILL]["state"] == "ready", GRACE)
        await asyncio.sleep(2)
    failed = [one for one in told if not one.well]
    held = [one.ended - stopped for one in told if one.began < stopped + GRACE - 5]
    return [
        at_most(
            "errors of clients after the first 15 s", 0,
            sum(one.ended > stopped + GRACE for one in failed), "pings", "errors",
            of=sum(one.ended > stopped + GRACE for one in told),
            errors_before=sum(one.ended <= stopped + GRACE for one in failed),
        ),
        at_most(
            "the last that it held is served after", GRACE, max(held), "pings", "s",
            stood_still_seconds=went_on - stopped,
        ),
        at_most("it is back, once it goes on, in", 10, back, "look", "s"),
    ]  # fmt: skip


async def all_down(run: Run) -> list[Line]:
    """All four are killed; half a minute later they come back."""
    async with herd(4) as engines, gateway(engines, run.off) as tropilla:
        for number in range(ENGINES):
            await engines.kill(number)
        killed = time.perf_counter()
        asked = asyncio.create_task(_ask_all_the_time(tropilla, run.seconds(30, 6)))
        known = await tropilla.until(
            lambda now: all(one["state"] == "down" for one in now["upstreams"]), KNOWN
        )
        # Until then they may be back any moment: who asks waits.
        told = [one for one in await asked if one.began > killed + min(known, KNOWN)]
        recovered = await _recover(engines, tropilla)
    heads = [one.head_at - one.began if one.head_at else float("inf") for one in told]
    wrong = [one for one in told if one.status != 503 or "retry-after" not in one.headers]
    return [
        at_most("all are known to be down after", KNOWN, known, "giving_up", "s"),
        at_most("answers other than 503 with Retry-After", 0, len(wrong), "giving_up", "answers",
                of=len(told)),
        at_most("a 503 takes, p99", 50, percentile(heads, 0.99) * 1000, "giving_up", "ms",
                p50=percentile(heads, 0.5) * 1000, longest=max(heads) * 1000),
        at_most("once they are back, it serves in", 5, recovered, "look", "s"),
    ]  # fmt: skip


async def _ask_all_the_time(tropilla: Gateway, seconds: float) -> list[Told]:
    """Twenty requests a second, each after the other's turn, whatever comes of them."""
    client, told = tropilla.client(), []
    async with asyncio.TaskGroup() as group:
        for number in range(int(seconds * 20)):
            ask = client.chat(stream=number % 2 == 0, tokens=4, seconds=3)
            told.append(group.create_task(ask))
            await asyncio.sleep(0.05)
    return [one.result() for one in told]


async def _recover(engines: Herd, tropilla: Gateway) -> float:
    """Seconds from when all serve again until a client is served."""
    await asyncio.gather(*(engines.start(number) for number in range(ENGINES)))
    began = time.perf_counter()
    while time.perf_counter() - began < 10:
        if (await tropilla.client().chat(stream=False, tokens=4, seconds=5)).well:
            return time.perf_counter() - began
        await asyncio.sleep(0.05)
    return float("inf")
