"""The gateway is killed in its work, and clients say their requests again under the keys they had.

Each request is said until its answer was heard to the end, by whichever life of the gateway; then
the next life is asked for it again. Every time that a request is done its answer is another one, so
that one which is made twice is seen.
"""

from __future__ import annotations

import asyncio
import random
import tempfile
from collections import Counter
from dataclasses import dataclass

import msgspec

from doubles.upstream import DONE, USAGE, Double, Exchange, chunk
from faults.load import Client
from faults.score import Line, Run, at_most
from faults.stage import gateway

KILLS = 200
REQUESTS = 50
"""Of each life, at most."""
AT_ONCE = 8
_AT_A_LOOK = 64
_PATH = "/v1/chat/completions"


@dataclass
class _Request:
    """What is said, and what was heard of it to the end."""

    key: str
    body: bytes
    stream: bool
    heard: bytes | None = None


class _Upstream:
    """One that knows how often it has done something."""

    def __init__(self) -> None:
        self.double = Double(slots=AT_ONCE * 2)
        self.done = Counter[str]()

    async def start(self) -> None:
        self.double.on(_PATH, self._answer)
        await self.double.start()

    async def _answer(self, exchange: Exchange) -> None:
        text = exchange.json["messages"][-1]["content"]
        self.done[text] += 1
        time = chunk(f"time {self.done[text]} of {text}")
        await exchange.stream(chunk("Once"), time, chunk(reason="stop"), USAGE, DONE)

    @property
    def addresses(self) -> list[str]:
        return [self.double.url]


def _request(number: int) -> _Request:
    key, stream = f"key-{number}", number % 2 == 0
    messages = [{"role": "user", "content": key}]
    body = msgspec.json.encode({"model": "m", "messages": messages, "stream": stream})
    return _Request(key, body, stream)


class _Crowd:
    """Those who ask, over all lives of the gateway."""

    def __init__(self) -> None:
        self.requests: list[_Request] = []
        self.open: list[_Request] = []
        """Those that were said, and whose answer nobody has heard to the end."""
        self.told = 0
        self.otherwise = 0
        """Answers that were others when they were told again."""

    async def ask(self, client: Client) -> None:
        """Say what is open, and more, until nobody answers."""
        await asyncio.gather(*(self._ask(client) for _ in range(AT_ONCE)))

    async def _ask(self, client: Client) -> None:
        while True:
            if self.open:
                one = self.open.pop()
            else:
                one = _request(len(self.requests))
                self.requests.append(one)
            if not await self._hear(client, one):
                self.open.append(one)
                return

    async def rest(self, client: Client) -> None:
        """Say what is open, until there is nothing."""
        rest, self.open = self.open, []
        heard = await asyncio.gather(*(self._hear(client, one) for one in rest))
        assert all(heard), "a gateway that lives answers"

    async def _hear(self, client: Client, one: _Request) -> bool:
        answer = await client.say(one.key, one.body, stream=one.stream)
        if answer.outcome == "refused":
            raise RuntimeError(f"It was refused: {answer.body!r}.")
        if answer.well:
            one.heard = answer.body
            self.told += 1
        return answer.well

    async def look(self, client: Client, since: int) -> None:
        """Have what was heard be told again."""
        heard = [one for one in self.requests[since:] if one.heard is not None]
        for first in range(0, len(heard), _AT_A_LOOK):
            await asyncio.gather(
                *(self._compare(client, one) for one in heard[first : first + _AT_A_LOOK])
            )

    async def _compare(self, client: Client, one: _Request) -> None:
        answer = await client.say(one.key, one.body, stream=one.stream)
        self.otherwise += answer.body != one.heard


async def repeats(run: Run) -> list[Line]:
    """So many kills, and each answer twice."""
    kills, chance = run.some(KILLS, 3), random.Random(9)
    upstream, crowd, since = _Upstream(), _Crowd(), 0
    await upstream.start()
    try:
        with tempfile.TemporaryDirectory() as folder:
            accounts = {"store": f"sqlite:///{folder}/accounts.db"}
            for life in range(kills + 1):
                asking: asyncio.Task[None] | None = None
                async with gateway(upstream, (*run.off, "patience"), accounts=accounts) as tropilla:
                    client = tropilla.client()
                    await crowd.look(client, since)
                    since = len(crowd.requests)
                    if life == kills:
                        await crowd.rest(client)
                        await crowd.look(client, 0)
                        break
                    enough = crowd.told + chance.randint(1, REQUESTS)
                    asking = asyncio.create_task(crowd.ask(client))
                    while crowd.told < enough and not asking.done():  # noqa: ASYNC110 - a count, not an event
                        await asyncio.sleep(0.001)
                    await asyncio.sleep(chance.uniform(0.0, 0.005))
                # It was killed.
                await asking
    finally:
        await upstream.double.stop()
    twice = sum(count > 1 for count in upstream.done.values())
    more = {"kills": float(kills), "requests": float(crowd.told), "begun_twice": float(twice)}
    return [
        at_most(
            "answers told, and others told again", 0, crowd.otherwise, "keeping", "answers", **more
        )
    ]
