"""A llama.cpp-like server that does exactly what a test says, and sees everything.

Each request is an `Exchange`. Either a script answers it, or the test takes it in its own hands
(`await double.arrives()`) and sends what it wants, when it wants: no test has to sleep.
"""

from __future__ import annotations

import asyncio
import socket
import struct
import time
from collections import defaultdict, deque
from collections.abc import Awaitable, Callable
from contextlib import suppress
from pathlib import Path
from typing import Any, TypeAlias, cast

import httptools
import msgspec

DEADLINE = 30.0
"""Seconds after which what should have happened has not."""

SSE = "text/event-stream"
JSON = "application/json; charset=utf-8"


class Exchange:
    """One request that has arrived, and the answer that a test gives."""

    def __init__(self, connection: _Connection, method: str, target: str) -> None:
        self._connection = connection
        self.server = connection.server
        """Who was asked."""
        self.number = connection.number
        """How many requests came on its connection before."""
        self.method = method
        self.target = target
        self.path = target.partition("?")[0]
        self.headers: dict[str, str] = {}
        self.body = b""
        self.gone = asyncio.Event()
        """Set when the gateway has closed the connection."""
        self.gone_at = 0.0
        self.written = 0
        """Bytes of body that were sent and that the connection took."""
        self._chunked = False

    @property
    def json(self) -> Any:
        """The request's body."""
        return msgspec.json.decode(self.body)

    async def head(
        self, status: int = 200, content_type: str = SSE, *more: str, chunked: bool = True
    ) -> None:
        """Send the head; more lines may follow those that every llama-server sends."""
        self._chunked = chunked
        lines = [
            f"HTTP/1.1 {status} Whatever",
            f"Content-Type: {content_type}",
            "Access-Control-Allow-Origin: https://upstream.example",
            "Access-Control-Allow-Credentials: true",
            "Server: llama.cpp",
            "Set-Cookie: upstream=1",
            *more,
        ]
        if chunked:
            lines.append("Transfer-Encoding: chunked")
        await self.raw(("\r\n".join(lines) + "\r\n\r\n").encode())

    async def send(self, data: bytes) -> None:
        """Send a piece of the body as one write, and wait while the gateway does not read."""
        await self.raw(b"%x\r\n%b\r\n" % (len(data), data) if self._chunked else data)
        self.written += len(data)

    async def raw(self, data: bytes) -> None:
        """Send bytes."""
        await self._connection.write(data)

    async def end(self) -> None:
        """End the answer in order."""
        if self._chunked:
            await self.raw(b"0\r\n\r\n")
        else:
            self._connection.transport.close()

    async def whole(self, status: int, body: bytes, content_type: str = JSON, *more: str) -> None:
        """Answer with one body."""
        length = f"Content-Length: {len(body)}"
        await self.head(status, content_type, length, *more, chunked=False)
        await self.raw(body)

    async def stream(self, *pieces: bytes) -> None:
        """Answer with these pieces, each a write of its own."""
        await self.head()
        for piece in pieces:
            await self.send(piece)
            # The next piece is a packet of its own, as far as that can be had.
            await asyncio.sleep(0)
        await self.end()

    def reset(self) -> None:
        """Break the connection off."""
        sock = self._connection.transport.get_extra_info("socket")
        sock.setsockopt(socket.SOL_SOCKET, socket.SO_LINGER, struct.pack("ii", 1, 0))
        self._connection.transport.abort()

    async def left(self) -> float:
        """Wait until the gateway has closed the connection; when that was (perf_counter)."""
        await asyncio.wait_for(self.gone.wait(), DEADLINE)
        return self.gone_at


Script: TypeAlias = Callable[[Exchange], Awaitable[None]]


class _Connection(asyncio.Protocol):
    transport: asyncio.Transport

    def __init__(self, server: Double) -> None:
        self.server = server
        self._parser = httptools.HttpRequestParser(self)
        self._writable = asyncio.Event()
        self._writable.set()
        self.exchange: Exchange | None = None
        self.number = 0

    def connection_made(self, transport: asyncio.BaseTransport) -> None:
        self.transport = cast("asyncio.Transport", transport)  # uvloop's is no subclass
        # So that `written` means what the gateway's side took.
        self.transport.set_write_buffer_limits(0)
        sock = self.transport.get_extra_info("socket")
        sock.setsockopt(socket.SOL_SOCKET, socket.SO_SNDBUF, 32768)
        self.server.connections.add(self)
        self.server.accepted += 1

    def data_received(self, data: bytes) -> None:
        try:
            self._parser.feed_data(data)
        except httptools.HttpParserError:
            self.transport.close()

    def eof_received(self) -> None:
        self._over()

    def connection_lost(self, exc: Exception | None) -> None:  # noqa: ARG002
        self._over()
        self._writable.set()
        self.server.connections.discard(self)

    def _over(self) -> None:
        if self.exchange is not None and not self.exchange.gone.is_set():
            self.exchange.gone_at = time.perf_counter()
            self.exchange.gone.set()

    def pause_writing(self) -> None:
        self._writable.clear()

    def resume_writing(self) -> None:
        self._writable.set()

    async def write(self, data: bytes) -> None:
        await self._writable.wait()
        if self.transport.is_closing():
            raise ConnectionResetError
        self.transport.write(data)
        await self._writable.wait()

    # What the parser calls.

    def on_message_begin(self) -> None:
        self._target = b""
        self._headers: dict[str, str] = {}
        self._body: list[bytes] = []

    def on_url(self, url: bytes) -> None:
        self._target += url

    def on_header(self, name: bytes, value: bytes) -> None:
        self._headers[name.decode().lower()] = value.decode("latin-1")

    def on_body(self, body: bytes) -> None:
        self._body.append(body)

    def on_message_complete(self) -> None:
        method = self._parser.get_method().decode()
        self.exchange = Exchange(self, method, self._target.decode())
        self.exchange.headers, self.exchange.body = self._headers, b"".join(self._body)
        self.server.take(self.exchange)
        self.number += 1


_TOLD = {"/health", "/v1/models", "/props", "/slots"}
_REFUSED = {"/v1/embeddings", "/v1/rerank", "/infill"}
"""What a probe asks nothing of, to hear whether it is there."""
_ASIDE = {"/tokenize", "/apply-template", "/metrics"}
"""What usage is counted with, where an answer tells none, and metrics: none without a script."""


class Double:
    """A llama.cpp-like server on a free port of this machine."""

    def __init__(self, *models: str, n_ctx: int = 4096, slots: int = 4) -> None:
        self.models = models or ("m",)
        self.requests: list[Exchange] = []
        """Every request but the probes', in order."""
        self.probes: list[Exchange] = []
        self.connections: set[_Connection] = set()
        self.accepted = 0
        self.keeps = True
        """Whether a connection on which it was probed may be used again."""
        self.health = (200, b'{"status":"ok"}')
        self.busy = 0
        """How many of its slots are at work, as it says."""
        self.props: dict[str, Any] = {
            "default_generation_settings": {"n_ctx": n_ctx},
            "total_slots": slots,
            "build_info": "b11549-double",
        }
        self._scripts: dict[str, deque[Script]] = defaultdict(deque)
        self._arrived: asyncio.Queue[Exchange] = asyncio.Queue()
        self._tasks: set[asyncio.Task[None]] = set()
        self._server: asyncio.Server | None = None
        self.port = 0

    @property
    def url(self) -> str:
        """Its address."""
        return f"http://127.0.0.1:{self.port}"

    async def start(self, path: Path | None = None, host: str = "127.0.0.1") -> None:
        """Listen, again on the same port after `stop`; or on a unix socket."""
        loop = asyncio.get_running_loop()
        if path is not None:
            self._server = await loop.create_unix_server(lambda: _Connection(self), str(path))
            return
        self._server = await loop.create_server(
            lambda: _Connection(self), host, self.port, reuse_address=True
        )
        self.port = self._server.sockets[0].getsockname()[1]

    async def stop(self) -> None:
        """Be gone, with every connection."""
        for task in list(self._tasks):
            task.cancel()
        if self._server is not None:
            self._server.close()
            for connection in list(self.connections):
                connection.transport.abort()
            await self._server.wait_closed()
            self._server = None
        await asyncio.gather(*self._tasks, return_exceptions=True)

    def on(self, path: str, *scripts: Script) -> None:
        """Answer the next requests for a path so; the last script answers all that follow."""
        self._scripts[path] = deque(scripts)

    async def arrives(self) -> Exchange:
        """Wait for the next request that no script answers."""
        return await asyncio.wait_for(self._arrived.get(), DEADLINE)

    def take(self, exchange: Exchange) -> None:
        """Answer a request, or leave it to the test."""
        scripts = self._scripts.get(exchange.path)
        script: Script | None = None
        if exchange.body == b"{}" and exchange.path in _REFUSED:
            script = self._probed
        elif scripts:
            script = scripts.popleft() if len(scripts) > 1 else scripts[0]
        elif exchange.path in _ASIDE or (exchange.method == "GET" and exchange.path in _TOLD):
            script = self._probed
        if script == self._probed or exchange.path == "/health":
            self.probes.append(exchange)
        else:
            self.requests.append(exchange)
        if script is None:
            self._arrived.put_nowait(exchange)
            return
        task = asyncio.get_running_loop().create_task(_run(script, exchange))
        self._tasks.add(task)
        task.add_done_callback(self._tasks.discard)

    async def _probed(self, exchange: Exchange) -> None:
        more = () if self.keeps else ("Connection: close",)
        match exchange.path:
            case "/health":
                status, body = self.health
                await exchange.whole(status, body, JSON, *more)
            case "/v1/models":
                data = [{"id": name, "object": "model", "created": 1} for name in self.models]
                body = msgspec.json.encode({"object": "list", "data": data})
                await exchange.whole(200, body, JSON, *more)
            case "/slots":
                told = [{"id": n, "is_processing": n < self.busy} for n in range(4)]
                await exchange.whole(200, msgspec.json.encode(told), JSON, *more)
            case "/props":
                await exchange.whole(200, msgspec.json.encode(self.props), JSON, *more)
            case path:
                status = 404 if path in _ASIDE else 400
                error = {"code": status, "message": "what?", "type": "invalid_request_error"}
                await exchange.whole(status, msgspec.json.encode({"error": error}), JSON, *more)


async def _run(script: Script, exchange: Exchange) -> None:
    # Where the gateway has left, the exchange says so.
    with suppress(ConnectionError):
        await script(exchange)


# What servers say.


def chunk(text: str | None = None, reason: str | None = None, **top: Any) -> bytes:
    """One event of a streamed chat answer."""
    delta = {} if text is None else {"content": text}
    choice = {"index": 0, "delta": delta, "finish_reason": reason}
    return event(
        {
            "id": "chatcmpl-double",
            "object": "chat.completion.chunk",
            "created": 1,
            "model": "m",
            "choices": [choice],
            **top,
        }
    )


def native(text: str, *, stop: bool = False, **more: Any) -> bytes:
    """One event of a streamed native answer."""
    return event({"index": 0, "content": text, "stop": stop, "tokens": [1], **more})


def event(value: Any) -> bytes:
    """One server-sent event."""
    return b"data: " + msgspec.json.encode(value) + b"\n\n"


DONE = b"data: [DONE]\n\n"
USAGE = event(
    {
        "id": "chatcmpl-double",
        "choices": [],
        "usage": {"prompt_tokens": 3, "completion_tokens": 2, "total_tokens": 5},
    }
)


def told(*texts: str) -> tuple[bytes, ...]:
    """A whole streamed chat answer."""
    return (*(chunk(text) for text in texts), chunk(reason="stop"), USAGE, DONE)


def native_told(*texts: str) -> tuple[bytes, ...]:
    """A whole streamed native answer."""
    last = native("", stop=True, stop_type="eos", tokens_predicted=2, tokens_evaluated=3)
    return (*(native(text) for text in texts), last)


def streams(*pieces: bytes) -> Script:
    """Answer with a stream of these pieces."""
    return lambda exchange: exchange.stream(*pieces)


def answers(status: int, body: bytes, content_type: str = JSON, *more: str) -> Script:
    """Answer with one body."""
    return lambda exchange: exchange.whole(status, body, content_type, *more)


def refuses(status: int, message: str, type_: str, **more: Any) -> Script:
    """Answer with an error as llama.cpp has it."""
    error = {"code": status, "message": message, "type": type_, **more}
    return answers(status, msgspec.json.encode({"error": error}))


async def resets(exchange: Exchange) -> None:
    """Break off before the first byte."""
    exchange.reset()


async def closes(exchange: Exchange) -> None:
    """Close in order before the first byte."""
    exchange._connection.transport.close()


def breaks(*pieces: bytes) -> Script:
    """Send some pieces, then break off."""

    async def script(exchange: Exchange) -> None:
        await exchange.head()
        for piece in pieces:
            await exchange.send(piece)
        exchange.reset()

    return script


LOADING = refuses(503, "Loading model", "unavailable_error")
