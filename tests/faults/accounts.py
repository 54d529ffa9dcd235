"""The gateway is killed in its work: what clients were told of is in the ledger, and once.

Each life of a gateway has a key of its own, with a budget. It is killed at some instant while that
is used up; the next one goes on with it, until there is none left: then the rows of that key come
to the budget exactly.
"""

from __future__ import annotations

import asyncio
import random
import tempfile
from collections import Counter

from doubles.upstream import Double, answers, chunk, event, streams
from faults.load import Client
from faults.score import Line, Run, at_most
from faults.stage import gateway
from tropilla.accounts import usage
from tropilla.accounts.store import open_store

KILLS = 200
REQUESTS = 50
"""For which a key has a budget."""
AT_ONCE = 8
_READ, _WRITTEN = 10, 20
_EACH = _READ + _WRITTEN
_PATH = "/v1/chat/completions"
_USAGE = {"prompt_tokens": _READ, "completion_tokens": _WRITTEN, "total_tokens": _EACH}


class _Upstream:
    """One whose answers all take as much as they may at most."""

    def __init__(self) -> None:
        self.double = Double(slots=AT_ONCE * 2)

    async def start(self) -> None:
        self.double.on(
            _PATH,
            streams(
                chunk("yes"), chunk(reason="length"), event({"choices": [], "usage": _USAGE}),
                b"data: [DONE]\n\n",
            ),
        )  # fmt: skip
        counted = b'{"input_tokens":%d}' % _READ
        self.double.on(f"{_PATH}/input_tokens", answers(200, counted))
        await self.double.start()

    @property
    def addresses(self) -> list[str]:
        return [self.double.url]


async def accounts(run: Run) -> list[Line]:
    """So many kills, and then the accounts are looked at."""
    kills, chance, told = run.some(KILLS, 3), random.Random(8), Counter[str]()
    upstream = _Upstream()
    await upstream.start()
    try:
        with tempfile.TemporaryDirectory() as folder:
            where = f"sqlite:///{folder}/accounts.db"
            for life in range(kills + 1):
                keys = {
                    f"key{number}": {
                        "key": f"secret{number}",
                        "budgets": [{"tokens": REQUESTS * _EACH}],
                    }
                    for number in (life - 1, life)
                }
                config = {"api_keys": ["watch"], "accounts": {"store": where, "keys": keys}}
                asking: asyncio.Task[None] | None = None
                async with gateway(upstream, run.off, **config) as tropilla:
                    if life:
                        await _use_up(tropilla.client(f"secret{life - 1}"), told)
                    if life < kills:
                        client = tropilla.client(f"secret{life}")
                        enough = len(told) + chance.randint(1, REQUESTS - AT_ONCE)
                        asking = asyncio.create_task(_use(client, told))
                        while len(told) < enough and not asking.done():  # noqa: ASYNC110 - a count, not an event
                            await asyncio.sleep(0.001)
                        await asyncio.sleep(chance.uniform(0.0, 0.005))
                # It was killed.
                if asking is not None:
                    await asking
            return await _judged(where, told, kills)
    finally:
        await upstream.double.stop()


async def _one(client: Client, told: Counter[str], *, stream: bool) -> str:
    """Ask once; what was told of it, or why not."""
    answer = await client.chat(stream=stream, tokens=_WRITTEN)
    if answer.well:
        told[answer.headers["x-request-id"]] += 1
        return "served"
    return answer.json["error"]["code"] if answer.outcome == "refused" else "broken"


async def _use(client: Client, told: Counter[str]) -> None:
    """Some ask at once, again and again, until nobody answers or there is no more."""

    async def ask(number: int) -> None:
        while (await _one(client, told, stream=number % 2 == 0)) == "served":
            pass

    await asyncio.gather(*(ask(number) for number in range(AT_ONCE)))


async def _use_up(client: Client, told: Counter[str]) -> None:
    """One asks until there is no more."""
    while (await _one(client, told, stream=True)) == "served":
        pass


async def _judged(where: str, told: Counter[str], kills: int) -> list[Line]:
    store = await open_store(where)
    try:
        rows = await usage.rows(store, most=kills * REQUESTS * 2 + 1000)
        sums = {row["key"]: row for row in await usage.sums(store, ["key"])}
    finally:
        await store.close()
    kept = Counter(row["id"] for row in rows)
    served, tokens = Counter[str](), Counter[str]()
    for row in rows:
        served[row["key"]] += 1
        tokens[row["key"]] += row["prompt"] + row["written"]
    apart = sum(abs(sums[key]["requests"] - count) for key, count in served.items())
    apart += sum(kept[id_] - 1 for id_ in kept)
    wrong = sum(abs(count - REQUESTS * _EACH) for count in tokens.values())
    missing = len(told.keys() - kept.keys())
    more = {"kills": float(kills), "requests": float(len(told))}
    return [
        at_most("answers told, and not in the ledger", 0, missing, "commit", "rows", **more),
        at_most("rows counted twice, or not in the sums", 0, apart, "sums", "rows"),
        at_most("tokens that budgets were wrong by", 0, wrong, "commit", "tokens"),
    ]
