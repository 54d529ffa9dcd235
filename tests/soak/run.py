"""The soak: `make soak`. Everybody comes at once and everything goes wrong, and nothing may grow.

A real `tropilla serve` stands before four real engines and a server that says anything. Rounds of
traffic follow one another, in each of which an engine is killed; after each there is rest, in which
the gateway's files, tasks, leases, requests and memory are counted. It prints the slopes, and ends
with 1 if something grows, an answer never ends, or one tells of a defect.
"""

from __future__ import annotations

import argparse
import asyncio
import random
import sys
import time
from collections import Counter
from pathlib import Path
from typing import Any

import msgspec
from rich.console import Console
from rich.table import Table

sys.path.insert(0, str(Path(__file__).parents[1]))

from faults.stage import ENGINES, Gateway, Herd, gateway, herd
from soak.crowd import KEY, ODD, Crowd
from soak.odd import odd
from soak.slopes import LIMITS, Sample, Slope, slopes

AT_ONCE = 48
ROUND_SECONDS = 15.0
REST_SECONDS = 4.0
"""Connections to upstreams that idle are kept for 3 s."""
MEGABYTE = 2**20
LEAST_SAMPLES = 4


async def soak(seconds: float, seed: int) -> tuple[list[Sample], Counter[str]]:
    """Rounds for so many seconds; what was counted after each, and what was heard in all."""
    server = odd(ODD, seed)
    await server.start()
    more: dict[str, Any] = {
        "api_keys": [KEY],
        "responses": {"max_bytes": MEGABYTE},
        "queue": {"seconds": 20},
    }
    try:
        async with herd(2) as engines:
            more["upstreams"] = [*engines.addresses, server.url]
            async with gateway(engines, (), **more) as tropilla:
                return await _rounds(engines, tropilla, seconds, seed)
    finally:
        await server.stop()


async def _rounds(
    engines: Herd, tropilla: Gateway, seconds: float, seed: int
) -> tuple[list[Sample], Counter[str]]:
    crowd = Crowd(tropilla.port, seed)
    chance = random.Random(seed)
    samples: list[Sample] = []
    began = time.monotonic()
    while not samples or time.monotonic() - began < seconds:
        visiting = asyncio.create_task(crowd.visit(AT_ONCE))
        await asyncio.sleep(ROUND_SECONDS / 2)
        number = chance.randrange(ENGINES)
        await engines.kill(number)
        await asyncio.sleep(1)
        await engines.start(number)
        await asyncio.sleep(ROUND_SECONDS / 2)
        crowd.go()
        await visiting
        await tropilla.until(_all_ready)
        await asyncio.sleep(REST_SECONDS)
        samples.append(Sample(time.monotonic() - began, await _counted(tropilla)))
        _say(samples[-1], crowd.heard)
    return samples, crowd.heard


def _all_ready(told: Any) -> bool:
    return all(one["state"] == "ready" for one in told["upstreams"])


async def _counted(tropilla: Gateway) -> dict[str, float]:
    told = await tropilla.inside()
    told["files"] = told.pop("sockets")
    return {what: float(told[what]) for what in LIMITS}


def _say(sample: Sample, heard: Counter[str]) -> None:
    counts = " ".join(f"{what} {shown(what, of)}" for what, of in sample.counts.items())
    sys.stderr.write(f"{sample.seconds:6.0f} s  {counts}  {sum(heard.values())} answers\n")
    sys.stderr.flush()


def shown(what: str, value: float) -> str:
    """A count as people write it."""
    return (
        f"{value / MEGABYTE:.2f} MiB"
        if what == "memory"
        else f"{value:.2f}".rstrip("0").rstrip(".")
    )


def table(found: list[Slope]) -> Table:
    made = Table(
        "what", "first", "last", "slope, an hour", "grown", "at most", "flat", title="Soak"
    )
    for one in found:
        numbers = (one.first, one.last, one.an_hour, one.grown, one.limit)
        told = (shown(one.what, number) for number in numbers)
        made.add_row(one.what, *told, "yes" if one.flat else "NO")
    return made


def main() -> int:
    parser = argparse.ArgumentParser(description=__doc__, allow_abbrev=False)
    parser.add_argument(
        "--seconds", type=float, default=600.0, help="how long; 600 are ten minutes"
    )
    parser.add_argument("--seed", type=int, default=1)
    parser.add_argument("--json", type=Path, metavar="FILE", help="write everything counted")
    options = parser.parse_args()
    import uvloop

    samples, heard = uvloop.run(soak(options.seconds, options.seed))
    console = Console(width=None if sys.stdout.isatty() else 120)
    console.print(", ".join(f"{count} x {what}" for what, count in heard.most_common()))
    if options.json is not None:
        told = {"samples": [one._asdict() for one in samples], "heard": heard}
        options.json.write_bytes(msgspec.json.format(msgspec.json.encode(told)))
    if len(samples) < LEAST_SAMPLES:
        sys.stderr.write(f"{len(samples)} rounds tell of no slope: give it more --seconds.\n")
        return 1
    found = slopes(samples)
    console.print(table(found))
    wrong = heard["hung"] + heard["defect"]
    if wrong:
        sys.stderr.write(f"{wrong} answers never ended, or told of a defect.\n")
    return 0 if not wrong and all(one.flat for one in found) else 1


if __name__ == "__main__":
    sys.exit(main())
