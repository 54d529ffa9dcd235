"""Everybody who comes to a gateway at once: who asks, who leaves, who does not read, who babbles.

A visit is one connection. What was heard is counted: an answer that never ends is `hung`, one that
tells of a defect is `defect`, and neither may be.
"""

from __future__ import annotations

import asyncio
import random
import socket
from collections import Counter
from collections.abc import Awaitable, Callable
from contextlib import suppress
from typing import Any, TypeAlias

import msgspec

from bodies import BODIES, CHAT

KEY = "key-of-the-crowd"
ODD = "odd"
"""The model whose server says anything."""
HUNG_SECONDS = 60.0
_TEXTS = 500
_SLOW_BUFFER = 8192
ASIDE: list[tuple[str, str, dict[str, Any] | None]] = [
    ("GET", "/v1/models", None),
    ("GET", "/health", None),
    ("GET", "/api/herd", None),
    ("GET", "/openapi.json", None),
    ("GET", "/nowhere", None),
    ("POST", "/api/route", {"messages": CHAT}),
    ("POST", "/tokenize", {"content": "@"}),
    ("POST", "/v1/chat/completions/input_tokens", {"messages": CHAT}),
    ("POST", "/v1/embeddings", {"input": "@"}),
    ("POST", "/v1/chat/completions", {"messages": []}),
    ("POST", "/v1/completions", {"prompt": "@", "temperature": -1}),
]
"""What is asked besides."""

GARBAGE = [
    b"\x16\x03\x01\x02\x00\x01\x00\x01",
    b"GET / HTTP/1.1\nHost: t\n\n",
    b"GET http://t/ HTTP/1.1\r\nHost: t\r\n\r\n",
    b"GET / HTTP/1.1\r\nHost: t\r\n" + b"X: y\r\n" * 200 + b"\r\n",
    b"GET / HTTP/1.1\r\nHost: t\r\nX: " + b"x" * 70_000,
    b"POST /v1/completions HTTP/1.1\r\nHost: t\r\nTransfer-Encoding: chunked\r\n\r\nzz\r\n",
    b"POST /v1/completions HTTP/1.1\r\nHost: t\r\nContent-Length: 99999999999\r\n\r\n{",
    b"POST /v1/completions HTTP/1.1\r\nHost: t\r\nContent-Length: 5\r\n\r\n[[[[[",
    b"\r\n" * 1000,
    b"",
]

Visit: TypeAlias = Callable[["Crowd"], Awaitable[None]]


class Crowd:
    """Visitors of the gateway at a port; the same seed makes the same visits."""

    def __init__(self, port: int, seed: int = 1, patience: float = 2.0) -> None:
        self._port = port
        self.patience = patience
        """Seconds that who does nothing stays."""
        self.chance = random.Random(seed)
        self.heard: Counter[str] = Counter()
        self._over = False

    async def visit(self, at_once: int, visits: int | None = None) -> None:
        """So many come at once, again and again; until `go`, or until there were so many visits."""
        self._over = False
        left = visits if visits is not None else 2**62

        async def one_after_the_other() -> None:
            nonlocal left
            while left > 0 and not self._over:
                left -= 1
                await self._one(self.chance.choices(*_KINDS)[0])

        async with asyncio.TaskGroup() as group:
            for _ in range(at_once):
                group.create_task(one_after_the_other())

    def go(self) -> None:
        """Who is there ends what it does, and nobody comes any more."""
        self._over = True

    async def _one(self, kind: Visit) -> None:
        try:
            async with asyncio.timeout(HUNG_SECONDS):
                await kind(self)
        except TimeoutError:
            self.heard["hung"] += 1
        except (OSError, asyncio.IncompleteReadError):
            # A garbled one is let go, and who sends on is reset.
            self.heard["let go"] += 1

    async def connect(self, *, slow: bool = False) -> Line:
        """A connection; a slow one has room for little."""
        sock = socket.socket()
        sock.setblocking(False)  # noqa: FBT003
        if slow:
            sock.setsockopt(socket.SOL_SOCKET, socket.SO_RCVBUF, _SLOW_BUFFER)
        await asyncio.get_running_loop().sock_connect(sock, ("127.0.0.1", self._port))
        limit = _SLOW_BUFFER if slow else 2**16
        return Line(*await asyncio.open_connection(sock=sock, limit=limit))

    def request(self, *, key: str = KEY, long: bool = False) -> bytes:
        """Any request for a text, streamed or not."""
        path = self.chance.choice([*BODIES])
        body = self.chance.choice(BODIES[path]) | {"stream": self.chance.random() < 0.5}
        if "models" not in path:
            body["model"] = self.chance.choices([None, ODD, "none"], [16, 6, 1])[0]
        if long:
            limit = "n_predict" if "predict" in f"{body}" else "max_tokens"
            body |= {limit: 1500, "ignore_eos": True} if "models" not in path else {}
        return self._said("POST", path, body, key)

    def aside(self) -> bytes:
        """Any other request."""
        method, path, body = self.chance.choice(ASIDE)
        return self._said(method, path, body, KEY)

    def _said(self, method: str, path: str, body: dict[str, Any] | None, key: str) -> bytes:
        text = f"Tell me story {self.chance.randrange(_TEXTS)}."
        data = b"" if body is None else msgspec.json.encode(body).replace(b"@", text.encode())
        head = f"{method} {path} HTTP/1.1\r\nHost: t\r\nAuthorization: Bearer {key}\r\n"
        if self.chance.random() < 0.1:
            head += "X-Session-ID: s\r\n"
        return f"{head}Content-Length: {len(data)}\r\n\r\n".encode() + data

    def count(self, status: int, body: bytes) -> None:
        """What an answer comes to."""
        self.heard[f"{status}"] += 1
        if b"Tropilla failed" in body:
            self.heard["defect"] += 1


class Line:
    """One connection of a visitor."""

    def __init__(self, reader: asyncio.StreamReader, writer: asyncio.StreamWriter) -> None:
        self.reader = reader
        self.writer = writer

    async def answer(self) -> tuple[int, bytes]:
        """The next answer, whole."""
        head = (await self.reader.readuntil(b"\r\n\r\n")).decode("latin-1").lower()
        status = int(head.split()[1])
        fields = dict(line.split(": ", 1) for line in head.split("\r\n")[1:] if line)
        if fields.get("transfer-encoding") != "chunked":
            return status, await self.reader.readexactly(int(fields.get("content-length", "0")))
        pieces: list[bytes] = []
        while size := int(await self.reader.readuntil(b"\r\n"), 16):
            pieces.append(await self.reader.readexactly(size))
            await self.reader.readexactly(2)
        await self.reader.readexactly(2)
        return status, b"".join(pieces)

    def leave(self, *, abruptly: bool) -> None:
        """Be gone, with a reset or without."""
        if abruptly:
            self.writer.transport.abort()
        else:
            self.writer.close()


# The kinds of visits.


async def asks(crowd: Crowd) -> None:
    """Ask some things one after the other on one connection, and hear them all out."""
    line = await crowd.connect()
    try:
        for _ in range(crowd.chance.randrange(1, 5)):
            line.writer.write(crowd.request())
            crowd.count(*await line.answer())
    finally:
        line.leave(abruptly=False)


async def looks_around(crowd: Crowd) -> None:
    """Ask for what is no text, some of it ahead of its answers."""
    line = await crowd.connect()
    try:
        many = crowd.chance.randrange(1, 6)
        line.writer.write(b"".join(crowd.aside() for _ in range(many)))
        for _ in range(many):
            crowd.count(*await line.answer())
    finally:
        line.leave(abruptly=False)


async def leaves(crowd: Crowd) -> None:
    """Ask, and leave at any time: in the request, before the answer, or in the middle of it."""
    chance = crowd.chance
    line = await crowd.connect()
    data = crowd.request(long=chance.random() < 0.5)
    try:
        if chance.random() < 0.25:
            line.writer.write(data[: chance.randrange(len(data))])
            return
        line.writer.write(data)
        with suppress(TimeoutError):
            async with asyncio.timeout(chance.random() * crowd.patience / 2):
                for _ in range(chance.randrange(30)):
                    if not await line.reader.read(4096):
                        break
    finally:
        crowd.heard["left"] += 1
        line.leave(abruptly=chance.random() < 0.5)


async def reads_slowly(crowd: Crowd) -> None:
    """Ask for much, and read some of it, in drops."""
    line = await crowd.connect(slow=True)
    try:
        line.writer.write(crowd.request(long=True))
        with suppress(TimeoutError):
            async with asyncio.timeout(2 * crowd.patience):
                for _ in range(10):
                    await asyncio.sleep(crowd.patience / 10)
                    await line.reader.read(64)
        crowd.heard["slow"] += 1
    finally:
        line.leave(abruptly=crowd.chance.random() < 0.5)


async def has_no_key(crowd: Crowd) -> None:
    """Ask with a wrong key."""
    line = await crowd.connect()
    try:
        line.writer.write(crowd.request(key=f"wrong-{crowd.chance.random()}"))
        crowd.count(*await line.answer())
    finally:
        line.leave(abruptly=False)


async def babbles(crowd: Crowd) -> None:
    """Say what is no request, or not all of one; hear what is said to that."""
    line = await crowd.connect()
    try:
        line.writer.write(crowd.chance.choice(GARBAGE))
        with suppress(TimeoutError):
            async with asyncio.timeout(crowd.patience):
                while await line.reader.read(4096):
                    pass
        crowd.heard["garbage"] += 1
    finally:
        line.leave(abruptly=crowd.chance.random() < 0.5)


_SHARES: dict[Visit, int] = {
    asks: 8, looks_around: 3, leaves: 6, reads_slowly: 1, has_no_key: 2, babbles: 2,
}  # fmt: skip
_KINDS = ([*_SHARES], [*_SHARES.values()])
