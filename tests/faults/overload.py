"""Three times as much is asked as can be answered; one key asks fifty times as much as before."""

from __future__ import annotations

import asyncio
import time

from faults.load import Client, Told, asking
from faults.score import Line, Run, at_least, at_most, percentile
from faults.stage import Gateway, gateway, herd

SLOTS = 2
TOKENS = 200
OF_USE = 5.0
"""Seconds in which an answer has to be there: it is of no use later."""


async def overload(run: Run) -> list[Line]:
    """What is more than can be done is refused at once, and what can be done is done."""
    seconds = run.seconds(20, 12)
    async with herd(SLOTS) as engines, gateway(engines, run.off) as tropilla:
        capacity = await _capacity(tropilla, seconds / 2)
        told, lags = await _ask_at(tropilla.client(), 3 * capacity, seconds)
    # Until the queue is full nothing is late yet, and when nobody asks any more it empties.
    began = told[0].began
    good = [one for one in told if one.well and 2 < one.ended - began <= seconds]
    refused = [
        one.head_at - one.began for one in told
        if one.outcome == "refused" and "retry-after" in one.headers
    ]  # fmt: skip
    goodput = 100 * len(good) / (seconds - 2) / capacity
    return [
        at_least("answers within 5 s, of what can be done,", 90, goodput, "bound", "%",
                 capacity_per_second=capacity, asked_per_second=len(told) / seconds),
        at_most("a refusal takes, p99", 20, percentile(refused, 0.99) * 1000, "bound", "ms",
                p50=percentile(refused, 0.5) * 1000, refusals=len(refused),
                late_itself_p99=percentile(lags, 0.99) * 1000),
    ]  # fmt: skip


async def _capacity(tropilla: Gateway, seconds: float) -> float:
    """Answers a second, while all slots are always taken."""
    async with asking(tropilla.client(), 16, tokens=TOKENS) as told:
        await asyncio.sleep(1)
        before, began = len(told), time.perf_counter()
        await asyncio.sleep(seconds)
        return (len(told) - before) / (time.perf_counter() - began)


async def _ask_at(client: Client, rate: float, seconds: float) -> tuple[list[Told], list[float]]:
    """So many requests a second, whatever comes of them; and how late this process was itself."""
    told: list[asyncio.Task[Told]] = []
    lags: list[float] = []
    began = time.perf_counter()
    async with asyncio.TaskGroup() as group:
        while (now := time.perf_counter() - began) < seconds:
            while len(told) < now * rate:
                ask = client.chat(stream=len(told) % 2 == 0, tokens=TOKENS, seconds=OF_USE)
                told.append(group.create_task(ask))
            await asyncio.sleep(0.5 / rate)
            lags.append(time.perf_counter() - began - now - 0.5 / rate)
    return [one.result() for one in told], lags


KEYS = ("one", "two", "three", "four", "five")
EACH = 2


async def flooding(run: Run) -> list[Line]:
    """Five keys ask as much as can be done, each the same; then one of them fifty times that."""
    seconds = run.seconds(20, 8)
    async with (
        herd(SLOTS) as engines,
        gateway(engines, run.off, api_keys=KEYS) as tropilla,
    ):
        before = await _others(tropilla, EACH, seconds)
        after = await _others(tropilla, EACH * 50, seconds)
    calm, flooded = (percentile([one.seconds for one in told if one.well], 0.99)
                     for told in (before, after))  # fmt: skip
    return [
        at_most("the p99 of the others rises to", 1.5, flooded / calm, "turns", "times",
                before_ms=calm * 1000, then_ms=flooded * 1000),
        at_most("the others are refused", 0, sum(not one.well for one in after), "room",
                "times", of=len(after)),
    ]  # fmt: skip


async def _others(tropilla: Gateway, first: int, seconds: float) -> list[Told]:
    """What the keys but the first one are told while that one asks with so many clients."""
    async with (
        asking(tropilla.client(KEYS[0]), first, tokens=TOKENS),
        asking(tropilla.client(KEYS[1]), EACH, tokens=TOKENS) as one,
        asking(tropilla.client(KEYS[2]), EACH, tokens=TOKENS) as two,
        asking(tropilla.client(KEYS[3]), EACH, tokens=TOKENS) as three,
        asking(tropilla.client(KEYS[4]), EACH, tokens=TOKENS) as four,
    ):
        await asyncio.sleep(seconds)
    return [*one, *two, *three, *four]
