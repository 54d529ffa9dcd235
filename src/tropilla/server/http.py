"""HTTP/1.1 as this gateway speaks it: its clients' connections, and what they may cost.

A connection carries one request after another, and one answer to each, in order. Who sends half a
head, drips a body, does not read, or never says anything is let go in a bounded time, with a
clear answer where one can be read; who leaves has what is done for them cancelled at once. There
is one look a second at all connections, and no timer of their own: a token passes none.
"""

from __future__ import annotations

import asyncio
import io
import os
import re
import socket
import time
from collections.abc import Awaitable, Callable
from contextlib import suppress
from email.utils import formatdate
from typing import TypeAlias, cast

from tropilla.accounts.keys import ANYBODY
from tropilla.dialects import Dialect
from tropilla.dialects._openai import render_problem
from tropilla.ir import Problem, ProblemError
from tropilla.record import Record
from tropilla.server.reply import Reply, head
from tropilla.server.wire import (
    MOST_HEAD,
    Body,
    Head,
    Refused,
    body_of,
    parse_head,
    what_is_wrong_with,
)

Answer: TypeAlias = Callable[["Call"], Awaitable[None]]
"""Answers one request; it never raises, and returns at once if it is cancelled."""

IDLE_SECONDS = 75.0
HEAD_SECONDS = 10.0
BODY_SECONDS = 30.0
"""How long a body may take, and as much longer as `BODY_RATE` gives it."""
BODY_RATE = 10_000
"""Bytes a second."""
UNREAD_SECONDS = 30.0
"""How long a client may read nothing of what is there for it."""
LINGER_SECONDS = 10.0
"""How long what a client still sends goes by unread, so that it can read its refusal."""
MOST_HELD = 256 * 1024 * 1024
"""Bytes of all bodies at once."""
_MOST_AHEAD = 64 * 1024
"""Bytes that are taken before anybody wants them: of a body, or of the requests after it."""
_BARE = re.compile(rb"(?<!\r)\n")
_HOPELESS = re.compile(rb"[^!#$%&'*+.^_`|~0-9A-Za-z\r-]")
_SPARE_FILES = 512
_LAST_SECONDS = 2.0
"""How long a cancelled answer may take to end."""


class Call:
    """One request of a client: its head, then its body, then whether it is still there."""

    __slots__ = (
        "_connection",
        "_read",
        "account",
        "allowed",
        "dialect",
        "head",
        "headers",
        "method",
        "owner",
        "path",
        "record",
        "reply",
    )

    def __init__(self, connection: Connection, told: Head) -> None:
        self._connection = connection
        self._read: bytes | None = None
        self.head = told
        self.method, self.path, self.headers = told.method, told.path, told.headers
        self.dialect: Dialect
        """In whose envelope a refusal is; whoever answers says so first."""
        self.allowed = ""
        """The methods of its path, once it is refused for its own."""
        self.account = ANYBODY
        """Who asks, once that is known."""
        self.owner = ""
        """Whose it is, once that is known; empty for those who need no key."""
        self.reply = Reply(
            connection,
            _request_id(),
            headless=told.method == "HEAD",
            old=told.old,
        )
        self.record: Record
        """What is told of it afterwards; whoever answers begins it."""

    @property
    def client(self) -> str:
        """The address that it comes from; empty where there is none."""
        return self._connection.client

    @property
    def gone(self) -> bool:
        """Whether the client has left: there is nobody to answer."""
        return self._connection.gone

    def text(self, name: bytes) -> str:
        """One header as text; empty if it is not there."""
        return self.headers.get(name, b"").decode("latin-1")

    def texts(self) -> dict[str, str]:
        """The headers as text."""
        return {
            name.decode("latin-1"): value.decode("latin-1") for name, value in self.headers.items()
        }

    async def body(self, limit: int, *, again: bool = False) -> bytes:
        """The whole body, once; with `again` it can be had once more.

        Raises:
            ProblemError: it is larger than the limit, compressed, too slow, or no body.
        """
        if self._read is not None:
            data, self._read = self._read, None
            return data
        if self.headers.get(b"content-encoding", b"identity").lower() != b"identity":
            message = "A compressed body is not accepted: send it plain."
            raise ProblemError(Problem(kind="unsupported_media", message=message))
        data = await self._connection.body(limit)
        self._read = data if again else None
        return data


class Connection(asyncio.Protocol):
    """One connection of a client."""

    __slots__ = (
        "_blank", "_body", "_call", "_counted", "_drained", "_fault", "_held", "_limit", "_lingers",
        "_listener", "_loop", "_resting", "_since", "_stalled", "_transport", "_unsent", "_wanted",
        "gone", "task",
    )  # fmt: skip

    def __init__(self, listener: Listener) -> None:
        self._listener = listener
        self._loop = listener.loop
        self._transport: asyncio.Transport
        self._held = b""
        """What has come of the next request."""
        self._call: Call | None = None
        """The request that is being answered."""
        self._body: Body | None = None
        """The body of it, or what is left of the last one's, which nobody wants any more."""
        self._counted = 0
        """How much of that is counted as held."""
        self._fault: Problem | None = None
        """Why there is no more of the body."""
        self._wanted: asyncio.Future[None] | None = None
        """Who waits for the body."""
        self._limit = _MOST_AHEAD
        self._resting = False
        """Whether nothing is read for now."""
        self._blank = False
        """Whether an empty line came before the next request; there may be one."""
        self._lingers = False
        """Whether what comes is not even looked at."""
        self._since = 0.0
        """When what is waited for was first waited for."""
        self._unsent = 0
        self._drained: asyncio.Future[None] | None = None
        self._stalled = 0.0
        """Since when the client has read nothing of what is unsent."""
        self.task: asyncio.Task[None] | None = None
        """What answers the present request."""
        self.gone = False

    # What a reply needs.

    @property
    def date(self) -> bytes:
        """The time, as HTTP writes it."""
        return self._listener.date

    @property
    def keeps(self) -> bool:
        """Whether another request may come after this answer."""
        call, body = self._call, self._body
        if call is None or body is None or not call.head.keeps or self._listener.ending:
            return False
        length = call.head.length
        return body.complete or (
            self._fault is None and length is not None and length - body.size <= _MOST_AHEAD
        )

    def send(self, data: bytes) -> bool:
        """Send bytes; whether the client reads as fast as that."""
        if not self.gone:
            self._transport.write(data)
        return self._drained is None

    async def sent(self) -> None:
        """Wait while the client does not read."""
        if self._drained is not None:
            await self._drained

    @property
    def client(self) -> str:
        """The address that it comes from; empty where there is none."""
        name = self._transport.get_extra_info("peername")
        return name[0] if name and type(name) is tuple else ""

    # What the loop tells.

    def connection_made(self, transport: asyncio.BaseTransport) -> None:
        """Take the connection, unless there are too many."""
        self._transport = cast("asyncio.Transport", transport)
        self._since = self._loop.time()
        connections = self._listener.connections
        connections.add(self)
        if len(connections) > self._listener.most:
            self._refuse("There are too many connections.", 503)

    def data_received(self, data: bytes) -> None:
        """Take what has come."""
        if self._lingers:
            return
        body = self._body
        if body is not None and not body.complete:
            self._feed(body, data)
        else:
            if not self._held:
                self._held = data
                self._since = self._loop.time()
            else:
                self._held += data
            if self._call is None:
                self._next()
            elif len(self._held) > _MOST_AHEAD:
                self._rest()

    def connection_lost(self, exc: Exception | None) -> None:
        """The client is gone: what is done for it ends."""
        del exc
        self.gone = True
        self._listener.forget(self)
        self._let_go_of_body()
        self.resume_writing()
        if self.task is not None and self._call is not None and not self._call.reply.ended:
            self.task.cancel()

    def pause_writing(self) -> None:
        """The client does not read as fast as it is written."""
        self._drained = self._loop.create_future()
        self._unsent = self._transport.get_write_buffer_size()
        self._stalled = self._loop.time()

    def resume_writing(self) -> None:
        """It has read."""
        if self._drained is not None:
            if not self._drained.done():
                self._drained.set_result(None)
            self._drained = None

    # Requests, one after the other.

    def _next(self) -> None:
        """Serve the next request, once all of its head is there."""
        data = self._held
        if data.startswith(b"\r\n") and not self._blank:
            data = self._held = data[2:]  # RFC 9112, 2.2: old clients end a body so
            self._blank = True
        end = data.find(b"\r\n\r\n")
        if (len(data) if end < 0 else end) > MOST_HEAD:
            self._refuse(f"The head of a request has at most {MOST_HEAD} bytes.", 431)
        elif end >= 0:
            try:
                told = parse_head(data[: end + 2])
            except Refused as error:
                self._refuse(error.message, error.status)
            else:
                self._begin(told, data[end + 4 :])
        elif data.startswith(b"\r\n"):
            self._refuse(what_is_wrong_with(b""))
        elif _BARE.search(data):
            self._refuse("The lines of a head end in CR LF.")
        elif _HOPELESS.match(data):
            self._refuse(what_is_wrong_with(data))

    def _begin(self, told: Head, rest: bytes) -> None:
        body = self._body = body_of(told)
        self._held, self._blank = b"", False
        self._limit = _MOST_AHEAD
        self._since = self._loop.time()
        call = self._call = Call(self, told)
        if not rest or body.complete:
            self._held = rest
        else:
            self._feed(body, rest)
        self.task = self._loop.create_task(self._serve(call))

    async def _serve(self, call: Call) -> None:
        await self._listener.answer(call)
        if not self.gone:
            self._over(call.reply)

    def _over(self, reply: Reply) -> None:
        """The answer is given, or has to be cut short: go on with the next request."""
        self.task = self._call = None
        self._since = self._loop.time()
        body = self._body
        self._let_go_of_body()
        if not reply.ended:
            self._transport.close()  # without the end that its framing wants
        elif body is not None and not body.complete:
            if not reply.keeps:
                self._linger()
            elif self._resting:
                self._read_on()
        elif not reply.keeps:
            self._transport.close()
        else:
            self._body = None
            self._read_on()
            if self._held:
                self._next()

    def _refuse(self, message: str, status: int = 400) -> None:
        """Say that this is no request, in the envelope that most clients can read."""
        body = render_problem(Problem(kind="malformed", message=message), status)
        more = {
            "x-request-id": _request_id(),
            "connection": "close",
            "content-length": str(len(body)),
        }
        told = head(status, "application/json", self.date, 0, more.items())
        self.send(b"%b\r\n%b" % (told, body))
        self._linger()

    def _linger(self) -> None:
        """Say that there is no more, and let go by what the client still sends.

        A connection that is closed while its client sends is reset, and takes the answer with it
        that the client has not read yet.
        """
        self._lingers = True
        self._held = b""
        self._since = self._loop.time()
        self._read_on()
        if self._transport.can_write_eof():
            self._transport.write_eof()

    def _rest(self) -> None:
        if not self._resting:
            self._resting = True
            self._transport.pause_reading()

    def _read_on(self) -> None:
        if self._resting:
            self._resting = False
            self._transport.resume_reading()

    # Bodies.

    async def body(self, limit: int) -> bytes:
        """The body of the present request.

        Raises:
            ProblemError: there is none that can be taken.
        """
        body, call = self._body, self._call
        if body is None or call is None:
            return b""
        self._limit = limit
        if max(body.size, call.head.length or 0) > limit:
            self._fail(_too_large(limit))
        elif not body.complete and self._fault is None:
            if call.text(b"expect").lower() == "100-continue" and not body.size:
                self.send(b"HTTP/1.1 100 Continue\r\n\r\n")
            self._read_on()
            self._wanted = self._loop.create_future()
            await self._wanted
            self._wanted = None
        if self._fault is not None:
            raise ProblemError(self._fault)
        data = body.take()
        self._let_go_of_body()
        return data

    def _feed(self, body: Body, data: bytes) -> None:
        before = body.size
        try:
            rest = body.feed(data)
        except Refused as error:
            self._fail(Problem(kind="malformed", message=error.message))
            return
        if self._call is None:
            body.drop()
            if body.complete:
                self._body, self._held = None, rest
                self._next()
            return
        self._counted += body.size - before
        self._listener.held += body.size - before
        if body.size > self._limit:
            if self._wanted is None:
                self._rest()
            else:
                self._fail(_too_large(self._limit))
        elif self._listener.held > MOST_HELD:
            message = "Too many large requests come at once."
            self._fail(Problem(kind="unavailable", message=message, retry_after=1))
        elif body.complete:
            self._held = rest
            self._wake()

    def _fail(self, problem: Problem) -> None:
        """There is no body, nor any request after it."""
        self._fault = problem
        self._lingers = True
        self._since = self._loop.time()
        self._let_go_of_body()
        self._read_on()
        self._wake()
        if self._call is None:
            self._transport.close()

    def _wake(self) -> None:
        if self._wanted is not None and not self._wanted.done():
            self._wanted.set_result(None)

    def _let_go_of_body(self) -> None:
        self._listener.held -= self._counted
        self._counted = 0
        if self._body is not None:
            self._body.drop()

    # What takes too long.

    def look(self, now: float) -> None:
        """Let go of a client that keeps everybody waiting; `now` is the loop's time."""
        waited, body = now - self._since, self._body
        if self._drained is not None:
            unsent = self._transport.get_write_buffer_size()
            if unsent < self._unsent:
                self._unsent, self._stalled = unsent, now
            elif now - self._stalled > UNREAD_SECONDS:
                self._transport.abort()
        elif self._call is None and self._transport.is_closing():
            if waited > UNREAD_SECONDS:
                self._transport.abort()
        elif self._lingers:
            if self._call is None and waited > LINGER_SECONDS:
                self._transport.abort()
        elif body is not None and not body.complete:
            if not self._resting and waited > BODY_SECONDS + body.size / BODY_RATE:
                message = f"The body comes slower than {BODY_RATE} bytes a second."
                self._fail(Problem(kind="too_slow", message=message))
        elif self._call is None and self._held:
            if waited > HEAD_SECONDS:
                message = f"The head of the request took longer than {HEAD_SECONDS:.0f} s."
                self._refuse(message, 408)
        elif self._call is None and waited > IDLE_SECONDS:
            self._transport.close()

    def close(self) -> None:
        """End, once what was written is sent; what is being answered ends at once."""
        if self.task is not None:
            self._transport.abort()
        else:
            self._transport.close()

    def abort(self) -> None:
        """End at once."""
        self._transport.abort()


class Listener:
    """Where clients come in, on one address or more."""

    def __init__(self, answer: Answer) -> None:
        self.answer = answer
        self.connections: set[Connection] = set()
        self.most = _most_connections()
        """How many connections there may be."""
        self.ending = False
        """Whether no answer is followed by another on its connection any more."""
        self.held = 0
        """Bytes of bodies that are on their way."""
        self.date = b""
        """The time, as HTTP writes it."""
        self.loop: asyncio.AbstractEventLoop
        self._left = asyncio.Event()
        """Set when somebody left."""
        self._servers: list[asyncio.Server] = []
        self._timer: asyncio.TimerHandle | None = None

    async def open(self, sock: socket.socket) -> None:
        """Let clients in."""
        self.loop = asyncio.get_running_loop()
        if self._timer is None:
            self._look()
        server = await self.loop.create_server(lambda: Connection(self), sock=sock)
        self._servers.append(server)

    def forget(self, connection: Connection) -> None:
        """A connection is over."""
        self.connections.discard(connection)
        self._left.set()

    def _look(self) -> None:
        self.date = formatdate(time.time(), usegmt=True).encode()
        self.look(self.loop.time())
        self._timer = self.loop.call_later(1, self._look)

    def look(self, now: float) -> None:
        """Let go of clients that keep everybody waiting; `now` is the loop's time."""
        for connection in list(self.connections):
            connection.look(now)

    def give_up(self) -> None:
        """Cancel what is being answered; the answers say so themselves."""
        for connection in list(self.connections):
            if connection.task is not None:
                connection.task.cancel()

    async def close(self) -> None:
        """Let nobody in, and everybody go: those who read have their answers, for a moment."""
        for server in self._servers:
            server.close()
        tasks = {one.task for one in self.connections if one.task is not None}
        for connection in list(self.connections):
            connection.close()
        with suppress(TimeoutError):
            async with asyncio.timeout(_LAST_SECONDS):
                while self.connections:
                    self._left.clear()
                    await self._left.wait()
        for connection in list(self.connections):
            connection.abort()
        if tasks:
            await asyncio.wait(tasks, timeout=_LAST_SECONDS)
        if self._timer is not None:
            self._timer.cancel()
        for server in self._servers:
            await server.wait_closed()


def _most_connections() -> int:
    """Each may need a second file, towards an upstream; some are for other things."""
    try:
        import resource  # noqa: PLC0415 - not on Windows
    except ImportError:
        return 4096
    files, _ = resource.getrlimit(resource.RLIMIT_NOFILE)
    if files == resource.RLIM_INFINITY:
        return 1 << 20
    return max((files - _SPARE_FILES) // 2, files // 4)


_chance = io.BytesIO()


def _request_id() -> str:
    """A name for a request that nobody can guess; chance is fetched for many of them at once.

    It begins with the time, so that an index of them grows at its end alone: if they fell anywhere,
    each row of a long ledger would be written with a page of its own.
    """
    global _chance  # noqa: PLW0603
    if not (some := _chance.read(10)):
        _chance = io.BytesIO(os.urandom(10 * 256))
        some = _chance.read(10)
    return f"req_{time.time_ns() >> 16:012x}{some.hex()}"


def _too_large(limit: int) -> Problem:
    return Problem(kind="too_large", message=f"The body is larger than {limit} bytes.")
