"""A server that is no more than sockets: a test says every byte of it."""

from __future__ import annotations

import asyncio
import re
import socket
import struct
from collections.abc import Awaitable, Callable
from typing import TypeAlias

from doubles.upstream import DEADLINE


class Talk:
    """One connection, as its server has it."""

    def __init__(self, reader: asyncio.StreamReader, writer: asyncio.StreamWriter) -> None:
        self.reader = reader
        self.writer = writer

    async def asked(self) -> tuple[str, bytes]:
        """The next request: its target and its body."""
        head = (await self.reader.readuntil(b"\r\n\r\n")).decode()
        length = re.search(r"(?i)^content-length: (\d+)", head, re.MULTILINE)
        return head.split()[1], await self.reader.readexactly(int(length[1]) if length else 0)

    async def say(self, data: bytes) -> None:
        """Write at once.

        Raises:
            ConnectionError: the other side is gone.
        """
        if self.writer.is_closing():
            raise ConnectionResetError
        self.writer.write(data)
        await self.writer.drain()

    async def drip(self, data: bytes) -> None:
        """Write each byte by itself."""
        for at in range(len(data)):
            await self.say(data[at : at + 1])
            await asyncio.sleep(0)

    def reset(self) -> None:
        """Break it off."""
        sock = self.writer.get_extra_info("socket")
        sock.setsockopt(socket.SOL_SOCKET, socket.SO_LINGER, struct.pack("ii", 1, 0))
        self.writer.transport.abort()

    async def left(self) -> None:
        """Wait until the other side is gone."""
        async with asyncio.timeout(DEADLINE):
            try:
                while await self.reader.read(65536):
                    pass
            except ConnectionError:
                pass


Script: TypeAlias = Callable[[Talk], Awaitable[None]]


class Server:
    """Has a script for each connection, in order; the last one for all that follow."""

    def __init__(self) -> None:
        self.scripts: list[Script] = []
        self.accepted = 0
        self.said = asyncio.Event()
        """Set when the first answer has been said."""
        self._server: asyncio.Server
        self._tasks: set[asyncio.Task[None]] = set()
        self.url = ""

    async def start(self, host: str = "127.0.0.1") -> None:
        """Listen."""
        self._server = await asyncio.start_server(self._serve, host, 0)
        literal = f"[{host}]" if ":" in host else host
        self.url = f"http://{literal}:{self._server.sockets[0].getsockname()[1]}"

    async def stop(self) -> None:
        """Be gone."""
        self._server.close()
        for task in list(self._tasks):
            task.cancel()
        await asyncio.gather(*self._tasks, return_exceptions=True)

    async def _serve(self, reader: asyncio.StreamReader, writer: asyncio.StreamWriter) -> None:
        task = asyncio.current_task()
        assert task is not None
        self._tasks.add(task)
        task.add_done_callback(self._tasks.discard)
        script = self.scripts[min(self.accepted, len(self.scripts) - 1)]
        self.accepted += 1
        try:
            await script(Talk(reader, writer))
        except (ConnectionError, asyncio.IncompleteReadError, asyncio.CancelledError):
            pass
        finally:
            writer.transport.abort()
