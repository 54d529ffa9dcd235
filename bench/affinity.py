"""What it saves to send a prompt where its beginning was read: `python -m bench.affinity`.

Four real engines with a model that takes its time to read, one thread each, behind one gateway in
this process; the same conversations under each policy. Told are the part of the prompts that was
in a cache, by the engines' own counts, and the time to the first token.
"""

from __future__ import annotations

import asyncio
import random
import socket
import statistics
import sys
import tempfile
import time
from collections.abc import AsyncIterator, Awaitable, Callable
from contextlib import AsyncExitStack, asynccontextmanager
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

import aiohttp
import msgspec
from rich.console import Console
from rich.progress import Progress
from rich.table import Table

from bench.larger_model import write
from tropilla.config import Config, UpstreamConfig
from tropilla.herd.balance import Pick, judge
from tropilla.herd.pool import Ask, Pool
from tropilla.server.app import Gateway
from tropilla.server.http import Listener
from tropilla.server.run import listen
from tropilla.upstream.engine import Engine, EngineOptions
from tropilla.upstream.fleet import Fleet

ENGINES, SLOTS, AT_ONCE = 4, 2, 6
WORDS = ("the", "old", "llama", "walks", "to", "market", "and", "young", "one", "stays", "in")

Messages = list[dict[str, str]]


@dataclass
class Measured:
    """What one policy came to."""

    prompt: int = 0
    cached: int = 0
    first: list[float] = field(default_factory=list)
    seconds: float = 0.0


# Policies: each is a way to pick, in the place of the pool's own.


def _free(pool: Pool, ask: Ask, now: float) -> list[int]:
    return [
        upstream
        for upstream, one in pool._candidates(ask, now)
        if judge(one, ask.model, ask.needs) == "free"
    ]


def round_robin() -> Callable[[Pool, Ask, float], Pick]:
    """The next one that has a slot."""
    last = -1

    def pick(pool: Pool, ask: Ask, now: float) -> Pick:
        nonlocal last
        free = _free(pool, ask, now)
        if not free:
            return Pick(otherwise="queue")
        last = next((one for one in free if one > last), free[0])
        return Pick(index=last)

    return pick


def least_busy() -> Callable[[Pool, Ask, float], Pick]:
    """The one with the most free slots."""
    own = Pool._pick

    def pick(pool: Pool, ask: Ask, now: float) -> Pick:
        return own(pool, msgspec.structs.replace(ask, chain=(), session=None), now)

    return pick


def consistent_hash() -> Callable[[Pool, Ask, float], Pick]:
    """The one that the first 512 bytes of the prompt name, or the next that has a slot."""

    def pick(pool: Pool, ask: Ask, now: float) -> Pick:
        free = _free(pool, ask, now)
        if not free:
            return Pick(otherwise="queue")
        wanted = hash(ask.chain[:4]) % ENGINES
        return Pick(index=min(free, key=lambda one: (one - wanted) % ENGINES))

    return pick


def tropilla() -> Callable[[Pool, Ask, float], Pick]:
    """Tropilla's own."""
    return Pool._pick


POLICIES = {
    "round robin": round_robin,
    "least busy": least_busy,
    "consistent hash": consistent_hash,
    "tropilla": tropilla,
}


SMG = Path(__file__).parent.parent / ".venvs/bench-smg/bin/smg"
"""Another gateway, which `make bench` sets up."""


# Loads.


def prose(chance: random.Random, words: int) -> str:
    return " ".join(chance.choice(WORDS) for _ in range(words))


async def chats(ask: Callable[[Messages], Awaitable[str]], tick: Callable[[], None]) -> None:
    """24 conversations of 5 turns, each growing by about 150 words a turn."""
    chance = random.Random(1)
    told = [[prose(chance, 150) for _ in range(5)] for _ in range(24)]
    limit = asyncio.Semaphore(AT_ONCE)

    async def talk(turns: list[str]) -> None:
        messages: Messages = []
        for turn in turns:
            messages.append({"role": "user", "content": turn})
            async with limit:
                messages.append({"role": "assistant", "content": await ask(messages)})
            tick()

    await asyncio.gather(*(talk(turns) for turns in told))


async def shared(ask: Callable[[Messages], Awaitable[str]], tick: Callable[[], None]) -> None:
    """120 questions below one of 6 system prompts of 600 words; one is asked half of the time."""
    chance = random.Random(2)
    systems = [prose(chance, 600) for _ in range(6)]
    limit = asyncio.Semaphore(AT_ONCE)

    async def question() -> None:
        which = systems[0] if chance.random() < 0.5 else chance.choice(systems[1:])
        user = {"role": "user", "content": prose(chance, 20)}
        async with limit:
            await ask([{"role": "system", "content": which}, user])
        tick()

    await asyncio.gather(*(question() for _ in range(120)))


LOADS = {"chats that grow": chats, "shared beginnings": shared}


# Measuring.


@asynccontextmanager
async def served(engines: list[Engine]) -> AsyncIterator[str]:
    """A gateway in front of them, with an empty memory."""
    urls = tuple(UpstreamConfig(url=one.address) for one in engines)
    config = Config(listen="127.0.0.1:0", upstreams=urls)
    (sock,), fleet = listen(config), Fleet(config)
    listener = Listener(Gateway(config, fleet))
    await fleet.start()
    await listener.open(sock)
    while any(one.state != "ready" for one in fleet.upstreams):  # noqa: ASYNC110
        await asyncio.sleep(0.05)
    try:
        yield f"http://127.0.0.1:{sock.getsockname()[1]}"
    finally:
        await listener.close()
        await fleet.stop()


@asynccontextmanager
async def smg(engines: list[Engine]) -> AsyncIterator[str]:
    """SMG in front of the same engines, with its cache-aware policy."""
    async with AsyncExitStack() as stack:
        urls = [await stack.enter_async_context(_on_tcp(one)) for one in engines]
        with (
            socket.create_server(("127.0.0.1", 0)) as one,
            socket.create_server(("127.0.0.1", 0)) as other,
        ):
            port, metrics = (sock.getsockname()[1] for sock in (one, other))
        process = await asyncio.create_subprocess_exec(
            str(SMG), "launch", "--worker-urls", *urls, "--policy", "cache_aware",
            "--backend", "openai", "--log-level", "error", "--host", "127.0.0.1",
            "--port", str(port), "--prometheus-port", str(metrics),
            stdout=asyncio.subprocess.DEVNULL, stderr=asyncio.subprocess.DEVNULL,
        )  # fmt: skip
        base = f"http://127.0.0.1:{port}"
        try:
            async with aiohttp.ClientSession() as session, asyncio.timeout(60):
                while not await _serves(session, base):  # noqa: ASYNC110
                    await asyncio.sleep(0.2)
            yield base
        finally:
            process.kill()
            await process.wait()


async def _serves(session: aiohttp.ClientSession, base: str) -> bool:
    body = {"model": "m", "messages": [{"role": "user", "content": "x"}], "max_tokens": 1}
    try:
        async with session.post(f"{base}/v1/chat/completions", json=body) as answer:
            return answer.status == 200
    except aiohttp.ClientError:
        return False


@asynccontextmanager
async def _on_tcp(engine: Engine) -> AsyncIterator[str]:
    """An engine's own socket is a file; others want a port."""

    async def copy(reader: asyncio.StreamReader, writer: asyncio.StreamWriter) -> None:
        try:
            while data := await reader.read(65536):
                writer.write(data)
                await writer.drain()
        except ConnectionError:
            pass
        finally:
            writer.close()

    async def relay(reader: asyncio.StreamReader, writer: asyncio.StreamWriter) -> None:
        there = await asyncio.open_unix_connection(engine.address.removeprefix("unix://"))
        await asyncio.gather(copy(reader, there[1]), copy(there[0], writer))

    async with await asyncio.start_server(relay, "127.0.0.1", 0) as server:
        yield f"http://127.0.0.1:{server.sockets[0].getsockname()[1]}"


async def measure(load: str, policy: str, model: Path, tick: Callable[[], None]) -> Measured:
    """One load under one policy, on engines that remember nothing."""
    engines = [
        Engine(EngineOptions(model=model, alias="m", slots=SLOTS, threads=1, ctx_size=8192))
        for _ in range(ENGINES)
    ]
    await asyncio.gather(*(one.start() for one in engines))
    measured = Measured()
    if policy != "SMG":
        Pool._pick = POLICIES[policy]()  # type: ignore[method-assign, assignment]
    gateway = smg if policy == "SMG" else served
    try:
        async with gateway(engines) as base, aiohttp.ClientSession() as session:

            async def ask(messages: Messages) -> str:
                return await _ask(session, base, messages, measured)

            began = time.perf_counter()
            await LOADS[load](ask, tick)
            measured.seconds = time.perf_counter() - began
    finally:
        Pool._pick = _OWN  # type: ignore[method-assign]
        await asyncio.gather(*(one.stop() for one in engines))
    return measured


_OWN = Pool._pick


async def _ask(
    session: aiohttp.ClientSession, base: str, messages: Messages, measured: Measured
) -> str:
    body = {
        "model": "m", "messages": messages, "max_tokens": 8, "temperature": 0, "stream": True,
        "stream_options": {"include_usage": True},
    }  # fmt: skip
    began, text, first = time.perf_counter(), "", None
    async with session.post(f"{base}/v1/chat/completions", json=body) as answer:
        async for line in answer.content:
            if not line.startswith(b"data: {"):
                continue
            chunk: Any = msgspec.json.decode(line[6:])
            for choice in chunk["choices"]:
                if said := choice["delta"].get("content"):
                    first = first or time.perf_counter()
                    text += said
            if usage := chunk.get("usage"):
                measured.prompt += usage["prompt_tokens"]
                measured.cached += usage["prompt_tokens_details"]["cached_tokens"]
    measured.first.append((first or time.perf_counter()) - began)
    return text or "."


def main() -> int:
    """Print the table, as docs/routing.md has it."""
    table = Table()
    for name in ("load", "policy"):
        table.add_column(name)
    for name in ("cached", "first token, mean", "p95", "all of it"):
        table.add_column(name, justify="right")
    policies = [*POLICIES, *(["SMG"] if SMG.exists() else [])]
    if not SMG.exists():
        Console(stderr=True).print("SMG is not here (make bench sets it up): left out.")
    with tempfile.TemporaryDirectory() as folder, Progress(console=Console(stderr=True)) as bar:
        model = Path(folder) / "larger.gguf"
        write(model)
        row = bar.add_task("requests", total=120 * len(LOADS) * len(policies))
        for load in LOADS:
            for policy in policies:
                bar.update(row, description=f"{load}, {policy}")
                told = asyncio.run(measure(load, policy, model, lambda: bar.advance(row)))
                spread = statistics.quantiles(told.first, n=20)
                table.add_row(
                    load,
                    policy,
                    f"{told.cached / told.prompt:.0%}",
                    f"{statistics.mean(told.first) * 1000:.0f} ms",
                    f"{spread[-1] * 1000:.0f} ms",
                    f"{told.seconds:.1f} s",
                )
    Console(width=100).print(table)
    return 0


if __name__ == "__main__":
    sys.exit(main())
