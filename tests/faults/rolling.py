"""All four engines are restarted, one after the other; each loads its model for 5 s."""

from __future__ import annotations

import asyncio
from collections.abc import Callable
from typing import Any

from faults.load import asking
from faults.score import Line, Run, at_most
from faults.stage import ENGINES, gateway, herd

AT_ONCE = 16
TOKENS = 64
LOADING = 5.0


async def rolling(run: Run) -> list[Line]:
    """No warning is given: what an engine has in hand when it ends goes on elsewhere."""
    async with (
        herd(4) as engines,
        gateway(engines, run.off) as tropilla,
        asking(tropilla.client(), AT_ONCE, tokens=TOKENS) as told,
    ):
        for number in range(run.some(ENGINES, 2)):
            await asyncio.sleep(1)
            await engines.kill(number)
            async with engines.loading(number):
                await asyncio.sleep(run.seconds(LOADING, 1))
            await engines.start(number)
            await tropilla.until(_serves(number), 12)
        await asyncio.sleep(1)
    streams = [one for one in told if one.stream]
    whole = [one for one in told if not one.stream]
    return [
        at_most("errors in whole answers", 0, sum(not one.well for one in whole), "retries",
                "errors", of=len(whole)),
        at_most("errors in streams", 0, sum(not one.well for one in streams), "failover",
                "errors", of=len(streams)),
    ]  # fmt: skip


def _serves(number: int) -> Callable[[Any], bool]:
    """Whether one is ready, and has something to do."""

    def serves(now: Any) -> bool:
        upstream = now["upstreams"][number]
        return bool(upstream["state"] == "ready" and upstream["leases"])

    return serves
