"""A connection to Valkey, or to Redis: commands go out in order, and so do their answers come in.

A command is on its way once `send` has returned, so that what is not waited for keeps its place. A
connection that has failed stays so: whoever holds it makes another one.
"""

from __future__ import annotations

import asyncio
import ssl
from collections import deque
from contextlib import suppress
from typing import TypeAlias, cast
from urllib.parse import parse_qs, unquote, urlsplit

Answer: TypeAlias = "bytes | int | list[Answer] | None"
_SECONDS = 2.0
"""How long it may take to connect."""
_PORT = 6379
_MOST_HELD = 64 * 1024 * 1024
"""Bytes of one answer: more is nothing that was asked for here."""


class ValkeyError(Exception):
    """The server cannot be used; the message says why."""


class RefusedError(ValkeyError):
    """The server was reached, and does not do this."""


class Wire(asyncio.Protocol):
    """An open connection."""

    def __init__(self) -> None:
        self._transport: asyncio.Transport | None = None
        self._waiting: deque[asyncio.Future[Answer]] = deque()
        self._held = b""
        self.lost: asyncio.Future[None] = asyncio.get_running_loop().create_future()
        """Done once the connection is no more."""

    @classmethod
    async def open(cls, url: str) -> Wire:
        """Connect.

        Raises:
            ValkeyError: that cannot be.
        """
        loop, place = asyncio.get_running_loop(), _Place(url)
        try:
            async with asyncio.timeout(_SECONDS):
                if place.path is not None:
                    _, wire = await loop.create_unix_connection(cls, place.path)
                else:
                    _, wire = await loop.create_connection(
                        cls, place.host, place.port, ssl=place.tls
                    )
                try:
                    for command in place.first:
                        await wire.send(*command)
                except BaseException:
                    wire.close()
                    raise
        except (OSError, TimeoutError, RefusedError) as error:
            raise ValkeyError(f"{shown(url)}: {str(error) or 'it does not answer'}") from error
        return wire

    def send(self, *command: str | bytes) -> asyncio.Future[Answer]:
        """Send a command; what comes of it is its answer, or `ValkeyError`."""
        answer: asyncio.Future[Answer] = asyncio.get_running_loop().create_future()
        if self._transport is None or self.lost.done():
            answer.set_exception(ValkeyError("The connection to Valkey is lost."))
            return answer
        parts = [one if isinstance(one, bytes) else one.encode() for one in command]
        told = b"".join(b"$%d\r\n%b\r\n" % (len(one), one) for one in parts)
        self._waiting.append(answer)
        self._transport.write(b"*%d\r\n%b" % (len(parts), told))
        return answer

    def close(self) -> None:
        """Let go of it, at once: what is waited for has failed."""
        if self._transport is not None:
            self._transport.abort()

    # As a protocol.

    def connection_made(self, transport: asyncio.BaseTransport) -> None:
        """As `Protocol` says."""
        self._transport = cast("asyncio.Transport", transport)

    def data_received(self, data: bytes) -> None:
        """As `Protocol` says."""
        self._held += data
        at = 0
        try:
            while self._waiting:
                answer, at = read(self._held, at)
                waiting = self._waiting.popleft()
                if waiting.done():
                    continue  # nobody wants to know any more
                if isinstance(answer, RefusedError):
                    waiting.set_exception(answer)
                    waiting.exception()  # it may be that nobody asks
                else:
                    waiting.set_result(answer)
        except IncompleteError:
            pass
        except (ValueError, RecursionError):
            self.close()  # whatever that is, it does not speak this
        self._held = self._held[at:]
        if len(self._held) > _MOST_HELD:
            self.close()

    def connection_lost(self, exc: Exception | None) -> None:
        """As `Protocol` says."""
        why = ValkeyError(f"The connection to Valkey is lost: {exc or 'it was closed'}.")
        if not self.lost.done():
            self.lost.set_result(None)
        while self._waiting:
            waiting = self._waiting.popleft()
            with suppress(asyncio.InvalidStateError):
                waiting.set_exception(why)
                waiting.exception()


class IncompleteError(Exception):
    """There is more to come."""


def read(data: bytes, at: int) -> tuple[Answer | RefusedError, int]:
    """The answer that begins there, and where it ends.

    Raises:
        IncompleteError: its end is not there yet.
        ValueError: it is no answer.
    """
    end = data.find(b"\r\n", at)
    if end < 0:
        raise IncompleteError
    kind, line, at = data[at : at + 1], data[at + 1 : end], end + 2
    match kind:
        case b"+":
            return line, at
        case b"-":
            return RefusedError(line.decode("utf-8", "replace")), at
        case b":":
            return int(line), at
        case b"$":
            size = int(line)
            if size < 0:
                return None, at
            if len(data) < at + size + 2:
                raise IncompleteError
            return data[at : at + size], at + size + 2
        case b"*":
            found: list[Answer] = []
            for _ in range(int(line)):
                one, at = read(data, at)
                found.append(one.args[0] if isinstance(one, RefusedError) else one)
            return found, at
    raise ValueError(kind)


class _Place:
    """Where a server is, and what it is told first."""

    def __init__(self, url: str) -> None:
        parts = urlsplit(url)
        self.tls = ssl.create_default_context() if parts.scheme in _WITH_TLS else None
        self.path = unquote(parts.path) if parts.scheme == "unix" else None
        self.host, self.port = parts.hostname or "localhost", parts.port or _PORT
        number = parts.path.strip("/")
        if self.path is not None:
            number = parse_qs(parts.query).get("db", [""])[0]
        self.first: list[tuple[str, ...]] = []
        if parts.password:
            user = (unquote(parts.username),) if parts.username else ()
            self.first.append(("AUTH", *user, unquote(parts.password)))
        if number:
            self.first.append(("SELECT", number))


_WITH_TLS = frozenset({"valkeys", "rediss"})


def shown(url: str) -> str:
    """An address without what is secret in it."""
    parts = urlsplit(url)
    return f"{parts.scheme}://{parts.netloc.rpartition('@')[2]}{parts.path}"
