"""What clients do to a gateway, as cheaply as it can be done; prints what they saw as JSON.

`python -m bench.load '{"port": 8080, ...}'` with the fields of `Plan`.
"""

from __future__ import annotations

import asyncio
import re
import sys
import time
from typing import cast

import msgspec
import uvloop

_HOPELESS = 100
"""Failures after which it is no use to go on."""

_TOKEN = re.compile(rb'"content": ?"[^"]')
"""Where a chunk tells text: many gateways tell an empty one first, or none."""


class Plan(msgspec.Struct, frozen=True, kw_only=True):
    """What to do."""

    port: int
    path: str = "/v1/chat/completions"
    model: str = "m"
    stream: bool = False
    connections: int = 16
    requests: int = 1000
    """In all; each connection asks again as soon as it is answered."""
    seconds: float = 20.0
    """After which nothing more is asked."""
    ramp: float = 0.0
    """Seconds over which the connections begin."""
    key: str = "bench"
    headers: tuple[str, ...] = ()


class Seen(msgspec.Struct, kw_only=True):
    """What was seen."""

    seconds: float = 0.0
    failed: int = 0
    statuses: dict[str, int] = {}
    first: list[float] = []
    """Seconds until the first text of a stream, or the first byte of a whole answer."""
    whole: list[float] = []
    """Seconds until the end."""
    gaps: list[float] = []
    """The longest silence in each stream, once it has begun."""


def percentile(values: list[float], part: float) -> float:
    """The value below which that part of the values lies."""
    ordered = sorted(values)
    return ordered[min(len(ordered) - 1, int(len(ordered) * part))] if ordered else 0.0


class _Client(asyncio.Protocol):
    def __init__(self, load: _Load) -> None:
        self._load = load
        self._transport: asyncio.Transport
        self._held = b""
        self._asked = self._first = self._last = self._gap = 0.0
        self._told = False
        self.over: asyncio.Future[None] = asyncio.get_running_loop().create_future()

    def connection_made(self, transport: asyncio.BaseTransport) -> None:
        self._transport = cast("asyncio.Transport", transport)
        self._ask()

    def _ask(self) -> None:
        if self._load.left <= 0 or time.perf_counter() > self._load.until:
            self._load.left = 0
            self._transport.close()
            return
        self._load.left -= 1
        self._held, self._told = b"", False
        self._first = self._last = self._gap = 0.0
        self._asked = time.perf_counter()
        self._transport.write(self._load.request)

    def data_received(self, data: bytes) -> None:
        now = time.perf_counter()
        if self._last and now - self._last > self._gap:
            self._gap = now - self._last
        self._last = now
        self._held = (self._held + data) if len(self._held) < 65536 else self._held[-4096:] + data
        if not self._first and (not self._load.plan.stream or _TOKEN.search(self._held)):
            self._first = now
        if not self._told and self._is_over():
            self._told = True
            self._note(now)
            if b"connection: close" in self._held[:1000].lower():
                self._transport.close()
            else:
                self._ask()

    def _is_over(self) -> bool:
        held = self._held
        if held.endswith(b"0\r\n\r\n"):
            return True
        head, mark, body = held.partition(b"\r\n\r\n")
        lower = head.lower()
        at = lower.find(b"content-length:")
        return bool(mark) and at >= 0 and len(body) >= int(lower[at + 15 :].split(b"\r\n", 1)[0])

    def _note(self, now: float) -> None:
        seen = self._load.seen
        status = self._held[9:12].decode() if self._held.startswith(b"HTTP") else "200"
        seen.statuses[status] = seen.statuses.get(status, 0) + 1
        seen.first.append(self._first - self._asked)
        seen.whole.append(now - self._asked)
        if self._load.plan.stream:
            seen.gaps.append(self._gap)
            seen.failed += b"[DONE]" not in self._held[-200:]

    def connection_lost(self, exc: Exception | None) -> None:
        del exc
        if self._asked and not self._told:
            self._load.seen.failed += 1
        if not self.over.done():
            self.over.set_result(None)


def request_of(plan: Plan) -> bytes:
    """What each client sends."""
    words = {"role": "user", "content": "Tell me a story about the llamas of the high plains."}
    body = msgspec.json.encode({
        "model": plan.model, "stream": plan.stream, "max_tokens": 100, "temperature": 0.7,
        "messages": [{"role": "system", "content": "You are a helpful assistant."}, words],
    })  # fmt: skip
    more = "".join(f"{header}\r\n" for header in plan.headers)
    return (
        f"POST {plan.path} HTTP/1.1\r\nHost: 127.0.0.1:{plan.port}\r\n"
        f"Authorization: Bearer {plan.key}\r\nContent-Type: application/json\r\n"
        "Accept: application/json\r\nUser-Agent: OpenAI/Python 2.54.0\r\n"
        f"Content-Length: {len(body)}\r\n{more}\r\n"
    ).encode() + body


class _Load:
    def __init__(self, plan: Plan) -> None:
        self.plan = plan
        self.left = plan.requests
        self.until = time.perf_counter() + plan.seconds
        self.seen = Seen(statuses={}, first=[], whole=[], gaps=[])
        self.request = request_of(plan)

    async def _client(self) -> None:
        """One client; a gateway that closes its connection is asked on another."""
        loop = asyncio.get_running_loop()
        while self.left > 0 and self.seen.failed < _HOPELESS:
            _, client = await loop.create_connection(
                lambda: _Client(self), "127.0.0.1", self.plan.port
            )
            await client.over

    async def run(self) -> Seen:
        """Do what is planned."""
        loop = asyncio.get_running_loop()
        clients: list[asyncio.Task[None]] = []
        began = time.perf_counter()
        for number in range(self.plan.connections):
            if self.plan.ramp:
                due = began + self.plan.ramp * number / self.plan.connections
                await asyncio.sleep(max(0.0, due - time.perf_counter()))
            clients.append(loop.create_task(self._client()))
        await asyncio.gather(*clients)
        self.seen.seconds = time.perf_counter() - began
        return self.seen


if __name__ == "__main__":
    load = _Load(msgspec.json.decode(sys.argv[1].encode(), type=Plan))
    sys.stdout.buffer.write(msgspec.json.encode(uvloop.run(load.run())))
