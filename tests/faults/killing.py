"""One engine of four is killed while 200 ask, and comes back; again and again."""

from __future__ import annotations

import asyncio

from faults.load import asking
from faults.score import Line, Run, at_most
from faults.stage import ENGINES, Gateway, Herd, gateway, herd

AT_ONCE = 200
TOKENS = 64
PAUSE = 1.0


async def killing(run: Run) -> list[Line]:
    """All of it, as lines."""
    out, back = [], []
    kills: list[tuple[float, str]] = []
    async with (
        herd(4) as engines,
        gateway(engines, run.off, queue={"size": AT_ONCE}) as tropilla,
        asking(tropilla.client(), AT_ONCE, tokens=TOKENS) as told,
    ):
        for number in range(run.some(20, 2)):
            await asyncio.sleep(PAUSE)
            victim = number % ENGINES
            moment, gone = await _kill(engines, tropilla, victim)
            kills.append((moment, engines.addresses[victim]))
            out.append(gone)
            await asyncio.sleep(PAUSE)
            await engines.start(victim)
            back.append(await _serves(tropilla, victim))
            if back[-1] == float("inf"):
                break
    streams = [one for one in told if one.stream]
    cut = {
        id(one): one.next_after(moment)
        for moment, upstream in kills
        for one in streams
        if one.upstream == upstream and one.head_at < moment < one.ended
    }
    lost = [one for one in told if not one.stream and one.outcome != "whole"]
    wrong = [one for one in streams if one.outcome in {"broken", "refused"}]
    late = [one for one in streams if cut.get(id(one), 0.0) > 1.0 and one not in wrong]
    return [
        at_most(
            "whole answers lost", 0, len(lost), "retries", "answers",
            of=len(told) - len(streams), kills=len(kills),
        ),
        at_most(
            "streams neither continued nor ended by an error within 1 s",
            0, len(wrong) + len(late), "ends", "streams",
            cut=len(cut),
            continued=sum(one.well for one in streams if id(one) in cut),
            longest_seconds=max(cut.values(), default=0.0),
        ),
        at_most("the dead one is out after", 1, max(out), "notice", "s"),
        at_most("it is back after its restart in", 10, max(back), "look", "s"),
    ]  # fmt: skip


async def _kill(engines: Herd, tropilla: Gateway, victim: int) -> tuple[float, float]:
    """The moment, and the seconds until it got nothing more."""
    out = asyncio.create_task(
        tropilla.until(lambda now: now["upstreams"][victim]["state"] != "ready", 3)
    )
    await asyncio.sleep(0)
    return await engines.kill(victim), await out


async def _serves(tropilla: Gateway, number: int) -> float:
    """Seconds until one serves, by the number of requests that it was given."""
    before = (await tropilla.herd())["upstreams"][number]["served"]
    return await tropilla.until(lambda now: now["upstreams"][number]["served"] > before, 12)
