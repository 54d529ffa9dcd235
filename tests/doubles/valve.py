"""A valve in front of a server: what it says can be held, or cut off, after its first words.

So any server, a real engine too, can be caught in the middle of an answer without a sleep.
"""

from __future__ import annotations

import asyncio
from collections.abc import AsyncIterator
from contextlib import asynccontextmanager
from typing import Literal, cast
from urllib.parse import urlsplit


class Valve:
    """Passes connections on to a server."""

    def __init__(self, url: str) -> None:
        self.to = urlsplit(url)
        self.after_first: Literal["go on", "hold", "cut"] = "go on"
        """What happens to an answer when its first events have passed."""
        self.passing = 1
        """How many that are."""
        self.holds = asyncio.Event()
        """Set when an answer is held."""
        self.left = asyncio.Event()
        """Set when the gateway has closed a connection whose answer is held."""
        self.url = ""
        self.ends: set[_End] = set()


class _End(asyncio.Protocol):
    """One of the two ends of a connection."""

    def __init__(self, valve: Valve, other: _End | None = None) -> None:
        self.valve = valve
        self.transport: asyncio.Transport | None = None
        self.other = other
        self.gone = asyncio.get_running_loop().create_future()
        self.held = False
        self._early = b""
        self._said = b""

    def connection_made(self, transport: asyncio.BaseTransport) -> None:
        self.transport = cast("asyncio.Transport", transport)  # uvloop's is no subclass
        self.valve.ends.add(self)

    def write(self, data: bytes) -> None:
        if self.transport is not None and not self.transport.is_closing():
            self.transport.write(data)

    def abort(self) -> None:
        if self.transport is not None:
            self.transport.abort()

    def connection_lost(self, exc: Exception | None) -> None:  # noqa: ARG002
        self.gone.set_result(None)
        self.valve.ends.discard(self)
        if self.held:
            self.valve.left.set()
        if self.other is not None:
            self.other.abort()


class _Near(_End):
    """Where the gateway is."""

    def connection_made(self, transport: asyncio.BaseTransport) -> None:
        super().connection_made(transport)
        self._dialling = asyncio.ensure_future(self._dial())

    async def _dial(self) -> None:
        to, loop = self.valve.to, asyncio.get_running_loop()
        try:
            if to.scheme == "unix":
                await loop.create_unix_connection(lambda: _Far(self.valve, self), to.path)
            else:
                host, port = to.hostname or "", to.port or 0
                await loop.create_connection(lambda: _Far(self.valve, self), host, port)
        except OSError:
            self.abort()

    def data_received(self, data: bytes) -> None:
        self._early += data
        self.pass_on()

    def pass_on(self) -> None:
        """Send what has come, once there is somebody to send it to."""
        if self.other is not None:
            early, self._early = self._early, b""
            self.other.write(early)


class _Far(_End):
    """Where the server is."""

    def connection_made(self, transport: asyncio.BaseTransport) -> None:
        super().connection_made(transport)
        near = cast("_Near", self.other)
        near.other = self
        near.pass_on()
        if near.gone.done():
            self.abort()

    def data_received(self, data: bytes) -> None:
        near = cast("_Near", self.other)
        if near.held:
            return
        if self.valve.after_first == "go on":
            near.write(data)
            return
        self._said += data
        end = self._said.find(b"data: ")
        for _ in range(self.valve.passing):
            end = self._said.find(b"\n\n", end) + 2 if end > 1 else end
        if end < 2:
            near.write(data)
            return
        # The pieces before are out: the rest of these events, and no more.
        near.write(data[: max(0, len(data) - (len(self._said) - end))])
        if self.valve.after_first == "hold":
            near.held = True
            self.valve.holds.set()
        elif near.transport is not None:
            near.transport.close()


@asynccontextmanager
async def valve(url: str) -> AsyncIterator[Valve]:
    """A valve in front of the server at this address; a path of it goes on below the valve's."""
    it = Valve(url)
    loop = asyncio.get_running_loop()
    server = await loop.create_server(lambda: _Near(it), "127.0.0.1", 0)
    below = it.to.path if it.to.scheme != "unix" else ""
    it.url = f"http://127.0.0.1:{server.sockets[0].getsockname()[1]}{below}"
    try:
        yield it
    finally:
        server.close()
        while it.ends:
            ends = list(it.ends)
            for end in ends:
                end.abort()
            await asyncio.gather(*(end.gone for end in ends))
        await server.wait_closed()
