"""Clients leave, whenever: nothing of them may stay."""

from __future__ import annotations

import asyncio
import random
import time
from contextlib import suppress

from faults.load import chat
from faults.score import Line, Run, at_most
from faults.stage import Gateway, Herd, gateway, herd
from tropilla.upstream.http import Link
from tropilla.upstream.probe import busy_slots

AT_ONCE = 48
LONG = 1500
"""Tokens of an answer that takes its time."""
SETTLING = 5.0
"""Seconds until everything has to be as it was: connections that idle are kept for 3."""
MEGABYTE = 2**20


async def leaving(run: Run) -> list[Line]:
    """Many leave; then everything is counted."""
    chance = random.Random(5)
    async with herd(2) as engines, gateway(engines, run.off, queue={"size": 32}) as tropilla:
        before = await tropilla.inside()
        # What is only made once is made now.
        await _leave(tropilla, run.some(1000, 200), chance)
        await asyncio.sleep(SETTLING)
        memory = (await tropilla.inside())["memory"]
        await _leave(tropilla, run.some(10_000, 3000), chance)
        idle, _ = await asyncio.gather(_idle(engines), asyncio.sleep(SETTLING))
        after = await tropilla.inside()
    more = {name: after[name] - before[name] for name in before}
    grown = (after["memory"] - memory) / MEGABYTE
    return [
        at_most("the engines work for nobody after", 1, idle, "hangup", "s"),
        at_most("leases more than before", 0, more["leases"], "release", "leases"),
        at_most("requests more than before", 0, more["requests"], "release", "requests"),
        at_most("sockets more than before", 0, more["sockets"], "hangup", "sockets",
                before=before["sockets"]),
        at_most("tasks more than before", 0, more["tasks"], "hangup", "tasks",
                before=before["tasks"]),
        at_most("memory more than before", 3, grown, "forgetting", "MB", before=memory / MEGABYTE),
    ]  # fmt: skip


async def _idle(engines: Herd) -> float:
    """Seconds until no slot of any engine is at work; `inf` if that takes too long."""
    began = time.perf_counter()
    while await _busy(engines):
        if time.perf_counter() - began > SETTLING:
            return float("inf")
        await asyncio.sleep(0.02)
    return time.perf_counter() - began


async def _busy(engines: Herd) -> int:
    """Slots that work, as the engines say."""
    busy = 0
    for address in engines.addresses:
        link = Link(address)
        busy += await busy_slots(link) or 0
        await link.close()
    return busy


async def _leave(tropilla: Gateway, number: int, chance: random.Random) -> None:
    """So many clients ask and leave, some dozens at a time."""
    left = number

    async def one_after_the_other() -> None:
        nonlocal left
        while left > 0:
            left -= 1
            with suppress(OSError):
                await _leave_one(tropilla, chance)

    async with asyncio.TaskGroup() as group:
        for _ in range(AT_ONCE):
            group.create_task(one_after_the_other())


async def _leave_one(tropilla: Gateway, chance: random.Random) -> None:
    """Ask, and leave: in the middle of asking, while waiting, or in the middle of the answer."""
    reader, writer = await asyncio.open_connection("127.0.0.1", tropilla.port)
    body = chat(stream=chance.random() < 0.7, tokens=chance.choice((1, LONG, LONG)))
    data = tropilla.client().request("POST /v1/chat/completions HTTP/1.1\r\n", body)
    match chance.randrange(5):
        case 0:
            writer.write(data[: chance.randrange(len(data))])
        case 1:
            writer.write(data)
        case 2:
            writer.write(data)
            await asyncio.sleep(chance.random() * 0.3)
        case _:
            writer.write(data)
            with suppress(TimeoutError):
                async with asyncio.timeout(1.0):
                    for _ in range(chance.randrange(1, 30)):
                        if not await reader.read(4096):
                            break
    if chance.random() < 0.5:
        writer.transport.abort()  # with a reset, and what is unsent stays so
    else:
        writer.close()
