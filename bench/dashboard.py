"""What the dashboard costs a gateway: its book on every request, and its pages each second.

The book is told of requests as the gateway tells it; the pages are made as a browser asks for them,
with 1000 requests remembered, 200 open, 20 upstreams of 4 slots and 50 keys. Asking llama-servers
what their slots do is not in it: that is one small request a second to each. What comes out is the
share of a core at 10,000 requests a minute, with as many people looking as is said.

    .venv/bin/python -m bench.dashboard --people 3
"""

from __future__ import annotations

import argparse
import asyncio
import sys
import time
from collections.abc import Callable, Coroutine
from typing import Any

from tropilla.capture import Capture
from tropilla.config import Config, UpstreamConfig
from tropilla.dashboard import Dashboard, House, Visit
from tropilla.herd.balance import Candidate
from tropilla.herd.pool import Weighed
from tropilla.ir import Traits
from tropilla.observing.activity import MOST, Activity
from tropilla.record import Record
from tropilla.upstream.fleet import Fleet

_PER_MINUTE = 10_000
_UPSTREAMS, _KEYS, _OPEN = 20, 50, 200
_ROUNDS = 5
_ADDRESS = "http://127.0.0.1:{}"


def _record(number: int) -> Record:
    one = Record(f"req_{number:032x}", "POST", "/v1/chat/completions", time.perf_counter())
    one.dialect, one.metered, one.status = "openai_chat", True, 200
    one.key, one.model = f"key_{number % _KEYS:016x}", "llama-3.3-70b-instruct"
    one.asks(_ADDRESS.format(number % _UPSTREAMS + 1), "llamacpp", 0.01, 0.5)
    one.prompt, one.cached, one.written, one.first, one.took = 800, 600, 200, 0.3, 4.0
    among = [(at, Candidate(state="ready", models=("m",), slots=4)) for at in range(_UPSTREAMS)]
    one.weighed = Weighed("m", (), 9, number % _UPSTREAMS, among)
    return one


def _book(activity: Activity) -> float:
    """Seconds of CPU for a request that comes and goes."""
    records = [_record(number) for number in range(20_000)]
    began = time.process_time()
    for one in records:
        activity.begun(one)
        activity.over(one)
    return (time.process_time() - began) / len(records)


async def _page(dashboard: Dashboard, place: str) -> float:
    """Seconds of CPU for one look at a page."""
    headers = {"host": "127.0.0.1:8081"}
    visit = Visit("GET", place, "", headers, b"", time.time())
    assert (await dashboard.answer(visit)).status == 200  # noqa: S101 - or it measures nothing
    times = 20
    began = time.process_time()
    for _ in range(times):
        await dashboard.answer(visit)
    return (time.process_time() - began) / times


async def _measure(people: int) -> None:
    upstreams = tuple(UpstreamConfig(url=_ADDRESS.format(at + 1)) for at in range(_UPSTREAMS))
    config, activity = Config(upstreams=upstreams), Activity()
    fleet = Fleet(config)
    await fleet.start()
    for watch in fleet._watches.values():
        watch.cancel()
    for one in fleet.upstreams:
        # Ready, as far as the pages go; there is nobody whose slots could be asked for.
        one.traits, one.tells_busy = Traits(slots=4, n_ctx=32768, build=9000), False
        fleet._set(one, "ready", None)
    house = House(
        config=config, fleet=fleet, activity=activity, capture=Capture(config.capture),
        accounts=None, levels=lambda _: {}, who=lambda _: None, is_open=lambda: True,
    )  # fmt: skip
    dashboard = Dashboard(house)
    each = min([_book(activity) for _ in range(_ROUNDS)])
    for number in range(MOST, MOST + _OPEN):
        activity.begun(_record(number))
    told = {"the book, for each request": each}

    async def best(look: Callable[[], Coroutine[Any, Any, float]]) -> float:
        return min([await look() for _ in range(_ROUNDS)])

    for name in ("herd", "activity"):
        told[f"a look at /ui/{name}"] = await best(
            lambda name=name: _page(dashboard, f"/{name}/live")  # type: ignore[misc]
        )
    for what, cost in told.items():
        sys.stdout.write(f"{what}: {cost * 1e6:.1f} us\n")
    looks = max(told[f"a look at /ui/{name}"] for name in ("herd", "activity"))
    book = each * _PER_MINUTE / 60
    sys.stdout.write(
        f"at {_PER_MINUTE} requests a minute: {book:.2%} of a core with nobody looking, "
        f"{book + people * looks:.2%} with {people} who look at the dearer page\n"
    )
    await fleet.stop()


def main() -> None:
    """Measure."""
    parser = argparse.ArgumentParser(prog="bench.dashboard", description=__doc__.split("\n")[0])
    parser.add_argument("--people", type=int, default=1, help="how many look at the dearer page")
    asyncio.run(_measure(parser.parse_args().people))


if __name__ == "__main__":
    main()
