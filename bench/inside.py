"""What an answer and a token cost inside: the whole gateway, and no sockets.

Its client and its upstream are transports that only keep what is written, so that what is measured
is Python's time and the loop's: what is left to gain, and where it goes (`--profile`). The books
but for the metrics are left out. A token is measured in one stream, and in many that have one in
turns: there its price is the memory that it touches. The best of many short rounds counts: on a
machine that does other work, some of them are not disturbed.

    .venv/bin/python -m bench.inside --profile
"""

from __future__ import annotations

import argparse
import asyncio
import cProfile
import gc
import pstats
import socket
import sys
import time
from collections.abc import Awaitable, Callable, Iterator
from contextlib import contextmanager
from typing import Any

import uvloop

from bench import double
from bench.load import Plan, request_of
from tropilla.config import Config, UpstreamConfig
from tropilla.server.app import Gateway
from tropilla.server.http import Connection, Listener
from tropilla.templates import Classic
from tropilla.upstream import lean
from tropilla.upstream.fleet import Fleet

TOKENS = 16
_ROUNDS = 100
_LAST_CHUNK = b"0\r\n\r\n"
_STREAMS = 200
_PER_ANSWER = 50
"""An answer is had once where so many tokens would be: a round of either takes as long."""


class _Pipe(asyncio.Transport):
    """A transport that keeps what is written."""

    def __init__(self) -> None:
        super().__init__()
        self.written: list[bytes] = []
        self._ends = socket.socketpair()

    def write(self, data: Any) -> None:
        self.written.append(data)

    def get_extra_info(self, name: str, default: Any = None) -> Any:
        return {"socket": self._ends[0], "peername": ("127.0.0.1", 1)}.get(name, default)

    def is_closing(self) -> bool:
        return False

    def get_write_buffer_size(self) -> int:
        return 0

    def abort(self) -> None:
        pass


class _Stage:
    """A gateway between one client and what its upstreams are made to say."""

    def __init__(self, gateway: Gateway) -> None:
        self._upstreams: list[tuple[lean._Connection, _Pipe]] = []
        listener = Listener(gateway)
        listener.loop = asyncio.get_running_loop()
        listener._look()
        self.heard = _Pipe()
        self._client = Connection(listener)
        self._client.connection_made(self.heard)

    def open(self, client: lean.Client, loop: asyncio.AbstractEventLoop) -> lean._Connection:
        """In the place of a connection to an upstream."""
        connection, pipe = lean._Connection(client, loop), _Pipe()
        connection.connection_made(pipe)
        self._upstreams.append((connection, pipe))
        return connection

    async def ask(self, request: bytes) -> lean._Connection:
        """Have the client ask; the connection on which an upstream is asked then."""
        self._client.data_received(request)
        while True:
            for connection, pipe in self._upstreams:
                if pipe.written:
                    pipe.written.clear()
                    return connection
            await asyncio.sleep(0)

    async def answer(self, request: bytes, answer: bytes, last: bytes) -> None:
        """One answer, from its request to its last bytes."""
        upstream = await self.ask(request)
        upstream.data_received(answer)
        await self.end(last)

    async def end(self, last: bytes) -> None:
        """Wait for the end of what the client hears."""
        while not (self.heard.written and self.heard.written[-1].endswith(last)):  # noqa: ASYNC110 - a turn or two
            await asyncio.sleep(0)
        self.heard.written.clear()


async def _best(times: int, work: Callable[[], Awaitable[None]], *, profile: bool) -> float:
    """Seconds of CPU for each of so many times, in the best round."""
    profiler = cProfile.Profile()
    rounds = []
    for _ in range(_ROUNDS):
        began = time.process_time()
        if profile:
            profiler.enable()
        await work()
        profiler.disable()
        rounds.append((time.process_time() - began) / times)
    if profile:
        pstats.Stats(profiler, stream=sys.stdout).sort_stats("tottime").print_stats(30)
    return min(rounds)


async def _begun(*, translates: bool) -> Gateway:
    """A gateway whose upstream was looked at, and is not there any more."""
    loop = asyncio.get_running_loop()
    server = await loop.create_server(lambda: double._Connection(TOKENS, 0), "127.0.0.1", 0)
    url = f"http://127.0.0.1:{server.sockets[0].getsockname()[1]}"
    # The classic template: chat becomes a prompt here, for the server's own /completion.
    upstream = UpstreamConfig(url=url, template=Classic() if translates else None)
    config = Config(upstreams=(upstream,), api_keys=("bench",))
    fleet = Fleet(config)
    await fleet.start()
    while fleet.state() != "ready":  # noqa: ASYNC110 - a turn or two
        await asyncio.sleep(0.01)
    await fleet.upstreams[0].link.close()
    for watch in fleet._watches.values():
        watch.cancel()
    server.close()
    return Gateway(config, fleet)


@contextmanager
def _upstreams(stage: Callable[[], _Stage]) -> Iterator[None]:
    """Who opens a connection to an upstream has one of this stage."""
    original = lean.Client._open

    async def opened(client: lean.Client, loop: asyncio.AbstractEventLoop) -> lean._Connection:
        return stage().open(client, loop)

    lean.Client._open = opened  # type: ignore[method-assign,assignment]
    try:
        yield
    finally:
        lean.Client._open = original  # type: ignore[method-assign]


async def _measure_turns(*, translates: bool, times: int, profile: bool) -> None:
    """Many streams at once, each of which has a token when all the others have had theirs."""
    gateway = await _begun(translates=translates)
    told = double.answers(TOKENS)[translates]
    request = request_of(Plan(port=1, stream=True))
    stages = [_Stage(gateway) for _ in range(_STREAMS)]
    connections: list[lean._Connection] = []
    with _upstreams(lambda: stages[len(connections)]):
        for stage in stages:
            connection = await stage.ask(request)
            connections.append(connection)
            connection.data_received(told.first + told.tokens[0])
            while not stage.heard.written:  # noqa: ASYNC110 - a turn or two
                await asyncio.sleep(0)
            await asyncio.sleep(0)
    gc.collect()
    gc.freeze()
    rounds = max(times // _STREAMS, 1)

    async def in_turns() -> None:
        for number in range(rounds):
            token = told.tokens[number % TOKENS]
            for connection in connections:
                connection.data_received(token)
        for stage in stages:
            stage.heard.written.clear()

    await in_turns()
    cost = await _best(rounds * _STREAMS, in_turns, profile=profile)
    _tell(translates, f"a token of {_STREAMS} streams in turns", cost)
    for stage, connection in zip(stages, connections, strict=True):
        connection.data_received(told.last)
        await stage.end(_LAST_CHUNK)


def _tell(translates: bool, name: str, cost: float) -> None:  # noqa: FBT001 - it is whose cost
    what = "chat to /completion" if translates else "the same dialect"
    sys.stdout.write(f"{what}: {name}: {cost * 1e6:.1f} us\n")


async def _measure(*, translates: bool, times: int, profile: bool) -> None:
    stage = _Stage(await _begun(translates=translates))
    with _upstreams(lambda: stage):
        await _measure_one(stage, translates=translates, times=times, profile=profile)


async def _measure_one(stage: _Stage, *, translates: bool, times: int, profile: bool) -> None:
    """One client, one answer after the other."""
    gc.collect()
    gc.freeze()
    gc.set_threshold(10_000)
    told = double.answers(TOKENS)[translates]
    request, streamed = (request_of(Plan(port=1, stream=stream)) for stream in (False, True))

    answer = told.first + b"".join(told.tokens) + told.last
    answers = max(times // _PER_ANSWER, 1)

    async def wholes() -> None:
        for _ in range(answers):
            await stage.answer(request, answer, b"}")

    async def streams() -> None:
        for _ in range(answers):
            await stage.answer(streamed, answer, _LAST_CHUNK)

    async def tokens() -> None:
        connection = await stage.ask(streamed)
        connection.data_received(told.first + told.tokens[0])
        while not stage.heard.written:  # noqa: ASYNC110 - a turn or two
            await asyncio.sleep(0)
        await asyncio.sleep(0)
        for number in range(times):
            connection.data_received(told.tokens[number % TOKENS])
        connection.data_received(told.last)
        await stage.end(_LAST_CHUNK)

    for name, often, work in (
        (f"an answer of {TOKENS} tokens", answers, wholes),
        (f"a stream of {TOKENS} tokens that come at once", answers, streams),
        ("a streamed token", times, tokens),
    ):
        await work()
        cost = await _best(often, work, profile=profile)
        _tell(translates, name, cost)


def main() -> None:
    """Measure both ways."""
    parser = argparse.ArgumentParser(prog="bench.inside", description=__doc__.split("\n")[0])
    parser.add_argument("--profile", action="store_true", help="tell where the time goes")
    parser.add_argument("--times", type=int, default=2000, help="tokens of each round")
    asked = parser.parse_args()
    for translates in (False, True):
        for measure in (_measure, _measure_turns):
            measured = measure(translates=translates, times=asked.times, profile=asked.profile)
            with asyncio.Runner(loop_factory=uvloop.new_event_loop) as runner:
                runner.run(measured)


if __name__ == "__main__":
    main()
