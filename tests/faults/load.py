"""Clients down to the bytes: what they were told, when, and whether it was in order.

Each request has a connection of its own. Nothing is judged here but the form: an answer that just
breaks off, or whose JSON is none, is `broken`.
"""

from __future__ import annotations

import asyncio
import itertools
import time
from collections.abc import AsyncIterator
from contextlib import asynccontextmanager, suppress
from dataclasses import dataclass, field
from typing import Any, Literal, TypeAlias

import msgspec

Outcome: TypeAlias = Literal["whole", "streamed", "told", "refused", "broken"]
"""`told` is a stream that ended with an error event, `refused` an error before anything else."""

_numbers = itertools.count()


@dataclass
class Told:
    """What one client heard of one request; times are those of `perf_counter`."""

    stream: bool
    began: float
    outcome: Outcome = "broken"
    status: int = 0
    headers: dict[str, str] = field(default_factory=dict)
    body: bytes = b""
    head_at: float = 0.0
    heard: list[float] = field(default_factory=list)
    """When something of the answer came: signs of life are none."""
    ended: float = 0.0

    @property
    def json(self) -> Any:
        """The body."""
        return msgspec.json.decode(self.body)

    @property
    def seconds(self) -> float:
        """From the request until the end."""
        return self.ended - self.began

    @property
    def upstream(self) -> str:
        """Who has answered."""
        return self.headers.get("x-tropilla-upstream", "")

    @property
    def well(self) -> bool:
        """Whether it is the answer."""
        return self.outcome in {"whole", "streamed"}

    def next_after(self, moment: float) -> float:
        """Seconds from a moment until it heard more, or the end."""
        return next((at for at in self.heard if at > moment), self.ended) - moment


class Client:
    """One who asks."""

    def __init__(self, port: int, key: str = "") -> None:
        self._port = port
        self._key = key

    async def get(self, path: str) -> Told:
        """Ask for a document."""
        return await self._ask(f"GET {path} HTTP/1.1\r\n", b"", stream=False)

    async def chat(
        self, *, stream: bool, tokens: int = 64, text: str = "", seconds: float = 120.0
    ) -> Told:
        """Ask for a chat completion; no request is like another."""
        body = chat(stream=stream, tokens=tokens, text=text)
        try:
            async with asyncio.timeout(seconds):
                return await self._ask(
                    "POST /v1/chat/completions HTTP/1.1\r\n", body, stream=stream
                )
        except TimeoutError:
            return Told(stream, time.perf_counter() - seconds, ended=time.perf_counter())

    async def say(self, key: str, body: bytes, *, stream: bool) -> Told:
        """Say a request for a chat completion under a key, as often as one likes."""
        line = f"POST /v1/chat/completions HTTP/1.1\r\nIdempotency-Key: {key}\r\n"
        return await self._ask(line, body, stream=stream)

    def request(self, line: str, body: bytes) -> bytes:
        """The bytes of a request."""
        key = f"Authorization: Bearer {self._key}\r\n" if self._key else ""
        head = f"{line}Host: t\r\n{key}Connection: close\r\nContent-Length: {len(body)}\r\n\r\n"
        return head.encode() + body

    async def _ask(self, line: str, body: bytes, *, stream: bool) -> Told:
        told = Told(stream, time.perf_counter())
        writer: asyncio.StreamWriter | None = None
        with suppress(OSError, asyncio.IncompleteReadError, ValueError):
            reader, writer = await asyncio.open_connection("127.0.0.1", self._port)
            told.began = time.perf_counter()
            writer.write(self.request(line, body))
            await _read(reader, told)
        told.ended = time.perf_counter()
        if writer is not None:
            writer.close()
        with suppress(msgspec.DecodeError, KeyError, TypeError, IndexError, AssertionError):
            told.outcome = _outcome(told)
        return told


def chat(*, stream: bool, tokens: int, text: str = "") -> bytes:
    """The body of a request that is like no other."""
    number = next(_numbers)
    return msgspec.json.encode(
        {
            "model": "m",
            "messages": [{"role": "user", "content": f"Tell me story {number}. {text}"}],
            "stream": stream,
            "max_tokens": tokens,
            "ignore_eos": True,
            "temperature": 0,
        }
    )


async def _read(reader: asyncio.StreamReader, told: Told) -> None:
    head = (await reader.readuntil(b"\r\n\r\n")).decode("latin-1").split("\r\n")
    told.head_at = time.perf_counter()
    told.status = int(head[0].split()[1])
    pairs = (line.partition(":") for line in head[1:] if line)
    told.headers = {name.lower(): value.strip() for name, _, value in pairs}
    if told.headers.get("transfer-encoding") != "chunked":
        told.body = await reader.readexactly(int(told.headers["content-length"]))
        told.heard.append(time.perf_counter())
        return
    pieces: list[bytes] = []
    async for piece in _chunks(reader):
        pieces.append(piece)
        if not piece.startswith(b":"):
            told.heard.append(time.perf_counter())
    told.body = b"".join(pieces)


async def _chunks(reader: asyncio.StreamReader) -> AsyncIterator[bytes]:
    while size := int(await reader.readuntil(b"\r\n"), 16):
        yield await reader.readexactly(size)
        await reader.readexactly(2)
    await reader.readexactly(2)


def _outcome(told: Told) -> Outcome:
    if told.status != 200:
        assert told.json["error"]["message"]
        return "refused"
    if not told.stream:
        return "whole"
    blocks = [one for one in told.body.split(b"\n\n") if one and not one.startswith(b":")]
    assert blocks.pop() == b"data: [DONE]"
    events = [msgspec.json.decode(one.removeprefix(b"data: ")) for one in blocks]
    if "error" in events[-1]:
        assert events[-1]["error"]["message"]
        return "told"
    assert any(choice["finish_reason"] for one in events for choice in one["choices"])
    return "streamed"


@asynccontextmanager
async def asking(
    client: Client, at_once: int, *, tokens: int, seconds: float = 120.0
) -> AsyncIterator[list[Told]]:
    """Meanwhile so many ask, each again and again; half of them want streams.

    When this is left, all have their answers.
    """
    told: list[Told] = []
    over = False

    async def ask(number: int) -> None:
        while not over:
            one = await client.chat(stream=number % 2 == 0, tokens=tokens, seconds=seconds)
            told.append(one)
            if one.outcome in {"refused", "broken"}:
                await asyncio.sleep(0.05)

    async with asyncio.TaskGroup() as group:
        for number in range(at_once):
            group.create_task(ask(number))
        try:
            yield told
        finally:
            over = True
