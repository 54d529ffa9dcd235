"""What a relay in Python costs at least: bytes go through uvloop and llhttp, and nothing is known.

Each client has a connection of its own to one upstream; a request goes on as it came, an answer's
body chunk by chunk. No keys, no JSON, no slots, no time limits, no care: it is a measure, no gateway.
`python relay.py PORT UPSTREAM`.
"""

from __future__ import annotations

import asyncio
import sys
from typing import Any, cast

import uvloop
from httptools import HttpResponseParser


class _Up(asyncio.Protocol):
    """Towards the upstream."""

    def __init__(self, client: _Client) -> None:
        self._client = client
        self.transport: asyncio.Transport
        self._parser: Any = None
        self._out: list[bytes] = []
        self._chunks = False

    def connection_made(self, transport: asyncio.BaseTransport) -> None:
        self.transport = cast("asyncio.Transport", transport)

    def ask(self, request: bytes) -> None:
        self._parser, self._chunks = HttpResponseParser(self), False
        self.transport.write(request)

    def data_received(self, data: bytes) -> None:
        self._parser.feed_data(data)
        out, self._out = self._out, []
        self._client.transport.write(b"".join(out))

    def on_header(self, name: bytes, value: bytes) -> None:
        if name.lower() == b"transfer-encoding":
            self._chunks = True
        self._out.append(b"%b: %b\r\n" % (name, value))

    def on_headers_complete(self) -> None:
        line = b"HTTP/1.1 %d OK\r\n" % self._parser.get_status_code()
        self._out = [line, *self._out, b"\r\n"]

    def on_body(self, body: bytes) -> None:
        self._out.append(b"%x\r\n%b\r\n" % (len(body), body) if self._chunks else body)

    def on_message_complete(self) -> None:
        if self._chunks:
            self._out.append(b"0\r\n\r\n")

    def connection_lost(self, exc: Exception | None) -> None:
        del exc
        self._client.transport.close()


class _Client(asyncio.Protocol):
    """Towards a client."""

    def __init__(self, upstream: int) -> None:
        self.transport: asyncio.Transport
        self._upstream = upstream
        self._held = b""
        self._up: _Up | None = None
        self._task: asyncio.Task[None] | None = None

    def connection_made(self, transport: asyncio.BaseTransport) -> None:
        self.transport = cast("asyncio.Transport", transport)

    def data_received(self, data: bytes) -> None:
        self._held += data
        head, mark, body = self._held.partition(b"\r\n\r\n")
        at = head.lower().find(b"content-length:")
        length = int(head[at + 15 :].split(b"\r\n", 1)[0]) if at >= 0 else 0
        if mark and len(body) >= length:
            request, self._held = self._held, b""
            if self._up is None:
                self._task = asyncio.ensure_future(self._connect(request))
            else:
                self._up.ask(request)

    async def _connect(self, request: bytes) -> None:
        loop = asyncio.get_running_loop()
        _, self._up = await loop.create_connection(lambda: _Up(self), "127.0.0.1", self._upstream)
        self._up.ask(request)

    def connection_lost(self, exc: Exception | None) -> None:
        del exc
        if self._up is not None:
            self._up.transport.close()


async def _serve(port: int, upstream: int) -> None:
    loop = asyncio.get_running_loop()
    server = await loop.create_server(lambda: _Client(upstream), "127.0.0.1", port, backlog=4096)
    await server.serve_forever()


if __name__ == "__main__":
    uvloop.run(_serve(int(sys.argv[1]), int(sys.argv[2])))
