"""A client of one server without TLS, with nothing in it that a gateway does not need.

A connection carries one exchange at a time, and each exchange has a parser (llhttp) of its own:
no byte of one can get into another. Nobody asked for what comes on an idle connection, so that
closes it; one that has lain for long, or that the server has closed, is not used. Where a used
connection ends at once, before a byte of the answer has come, the request is put once more, on a
new one.

A piece of the body is handed over as it came: who has it poured gets it at once, in the callback
of the socket, and that costs no task, no timer and no future. What is one chunk, no more and no
less, goes past the parser. Nothing is read from the socket while too much waits for its reader.
Heads and trailers are bounded, and so is the time in which they come.
"""

from __future__ import annotations

import asyncio
import math
import re
import select
import socket
from collections import deque
from collections.abc import Callable, Mapping
from contextlib import suppress
from functools import cache
from ipaddress import ip_address
from time import monotonic
from typing import Any, Final, TypeAlias, cast
from urllib.parse import quote, urlsplit

from aiohappyeyeballs import start_connection
from httptools import HttpParserError, HttpParserUpgrade, HttpResponseParser

from tropilla.config import TimeoutsConfig
from tropilla.ir import Malformed, Problem, ProblemError
from tropilla.observing import trace
from tropilla.upstream import incoming
from tropilla.upstream.incoming import Incoming

_MOST_AHEAD = 64 * 1024
"""Bytes of a body that wait for their reader, before no more is read from the socket."""
_MOST_IDLE = 256
"""Connections that are kept for the next request."""
_MOST_CHUNK = 4096
"""Bytes of a chunk that is looked for where one should be, with all that frames it."""
_MOST_HEADS = 256
"""Heads of requests that are not put together again."""
_LARGE_BYTES = 64 * 1024
"""A body of this size is not copied to be sent in one piece with its head."""
_NEXT_ADDRESS_SECONDS = 0.25
"""When the next address of a host is tried, beside the one that does not answer (RFC 8305)."""
_LAST_SECONDS = 1.0
"""How long connections that are closed may take to end."""
_TOO_LARGE: Final = f"its head has over {incoming.MAX_HEAD} bytes"
_TOO_MANY: Final = f"its head has over {incoming.MAX_HEADERS} headers"
_HEADER = re.compile(r"[^\r\n\0]*")

_Address: TypeAlias = tuple[Any, ...]


class _Garbage(Exception):  # noqa: N818 - what was read, no failure of ours
    """What the parser does not mind, and we do."""


@cache
def _size_line(size: int) -> bytes:
    """How a chunk begins that has so many bytes in all; empty if there is none of that size."""
    for digits in range(1, 5):
        if (told := size - digits - 4) > 0 and len(line := b"%x\r\n" % told) == digits + 2:
            return line
    return b""


class _Answer(Incoming):
    """One exchange: llhttp tells it of the answer, and a reader takes that."""

    __slots__ = (
        "_barren", "_between", "_bodiless", "_chunk", "_connection", "_head_bytes", "_headed",
        "_headers", "_held", "_into", "_keeps", "_loop", "_over", "_parser", "_pieces", "_problem",
        "_silence", "_timer", "_until", "_until_end", "_waiter", "answered", "lost",
    )  # fmt: skip

    def __init__(
        self,
        connection: _Connection,
        url: str,
        *,
        bodiless: bool,
        silence: float,
        until: float,
    ) -> None:
        super().__init__(url)
        self._connection: _Connection | None = connection
        self._loop = connection.loop
        self._bodiless = bodiless
        """Whether it ends with its head, whatever that says of a body."""
        self._silence = silence
        """Seconds in which there must be a sign of life, while somebody waits for it."""
        self._until = until
        """When all of it must have come (`monotonic`)."""
        self._timer: asyncio.TimerHandle | None = None
        self._waiter: asyncio.Future[None] | None = None
        self._into: Callable[[bytes], bool] | None = None
        """Who takes what comes at once."""
        self._pieces: list[bytes] = []
        self._held = 0
        """Bytes in them."""
        self._chunk = True
        """Whether a chunk has begun and not ended, or there are none."""
        self._between = False
        """Whether the next byte is the first of a chunk."""
        self._barren = 0
        """Bytes since the last that told anything."""
        self._headers = 0
        self._head_bytes = 0
        self._headed = False
        """Whether its head has come."""
        self.answered = False
        """Whether a byte has come."""
        self._until_end = False
        """Whether the end of the connection is its end."""
        self._over = False
        self._keeps = False
        """Whether the connection can be used again."""
        self._problem: Problem | None = None
        """Why there is no more of it."""
        self.lost = False
        """Whether that is because the connection ended."""
        parser = self._parser = HttpResponseParser(self)
        # What servers are known to do that cannot be misread.
        parser.set_dangerous_leniencies(
            lenient_optional_cr_before_lf=True, lenient_spaces_after_chunk_size=True
        )

    # What the connection tells.

    def feed(self, data: bytes) -> None:
        """Take what has come."""
        into, size = self._into, len(data)
        if self._between and size <= _MOST_CHUNK and into is not None and self._waiter is not None:
            line = _size_line(size)
            if line and data.startswith(line) and data.endswith(b"\r\n"):
                self._give(data[len(line) : -2], into)
                return
        self.answered = True
        self._barren += size
        if self._over:
            self._spoil()
        elif self._problem is None:
            try:
                self._parser.feed_data(data)
            except (HttpParserError, HttpParserUpgrade) as error:
                if self._over:
                    self._spoil()
                else:
                    self._no_http(error.__context__ or error)
            else:
                self._between = not self._chunk and data.endswith(b"\r\n")
                if self._barren > incoming.MAX_HEAD:
                    self._no_http(_TOO_LARGE)
        if into is not None and self._pieces and self._waiter is not None:
            self._give(self._taken(), into)

    def unasked(self) -> None:
        """The server has spoken before it was asked."""
        self._no_http("it speaks before it is asked")

    def end(self, error: Exception | None) -> None:
        """The connection has ended."""
        if self._over or self._problem is not None:
            return
        if self._headed and self._until_end and error is None:
            self._over = True
            self._wake()
        else:
            self.lost = True
            self._fail(incoming.broken(self.url) if self._headed else incoming.closed(self.url))

    # What the parser tells.

    def on_message_begin(self) -> None:
        if self._over:
            raise _Garbage("it goes on after its end")
        self._until_end = True  # unless a header says how long it is

    def on_header(self, name: bytes, value: bytes) -> None:
        # Of a trailer nobody wants to know anything, but how much of it there is.
        self._headers += 1
        self._head_bytes += len(name) + len(value)
        if self._headers > incoming.MAX_HEADERS:
            raise _Garbage(_TOO_MANY)
        if self._head_bytes > incoming.MAX_HEAD:
            raise _Garbage(_TOO_LARGE)
        if self._headed:
            return
        match name.lower():
            case b"content-type":
                self.content_type = value.decode("latin-1")
            case b"retry-after":
                self.retry_after = incoming.seconds(value.decode("latin-1"))
            case b"content-length":
                self._until_end = False
            case b"transfer-encoding":
                self._until_end = False
                self._chunk = False
                if not value.lower().endswith(b"chunked"):
                    raise _Garbage("it is encoded in a way that nobody asked for")

    def on_headers_complete(self) -> None:
        self.status = self._parser.get_status_code()
        if self.status >= 200:
            self._headed = True
            self._barren = 0
            self._over = self._bodiless
            self._wake()

    def on_body(self, data: bytes) -> None:
        self._barren = 0
        self._pieces.append(data)
        self._held += len(data)
        if self._held > _MOST_AHEAD and self._connection is not None:
            self._connection.rest()
        if self._into is None and self._waiter is not None:
            self._wake()

    def on_chunk_header(self) -> None:
        self._chunk = True

    def on_chunk_complete(self) -> None:
        self._chunk = False

    def on_message_complete(self) -> None:
        if self._headed:
            self._over = True
            self._keeps = not self._bodiless and self._parser.should_keep_alive()
            self._wake()
        else:
            # An interim answer (1xx) tells only that there is somebody.
            self.content_type, self.retry_after = "", None
            self.since = monotonic()

    # What a reader wants.

    async def head(self) -> None:
        """Wait for the head.

        Raises:
            ProblemError: there is none.
        """
        while not self._headed:
            if self._problem is not None:
                raise ProblemError(self._problem)
            await self._more()

    async def read(self) -> bytes:
        while not self._pieces:
            if self._over:
                return b""
            if self._problem is not None:
                raise ProblemError(self._problem)
            await self._more()
        return self._taken()

    async def pour(self, into: Callable[[bytes], bool]) -> bool:
        while True:
            if not (self._pieces or self._over or self._problem is not None):
                self._into = into
                try:
                    await self._more()
                    if self._into is None:
                        return True
                finally:
                    self._into = None
            elif not (piece := await self.read()):
                return False
            elif not into(piece):
                return True

    def _give(self, piece: bytes, into: Callable[[bytes], bool]) -> None:
        """Give what has come to who takes it at once, and waits for more."""
        try:
            more = into(piece)
        except BaseException as error:  # noqa: BLE001 - it is raised where it is waited for
            waiter, self._waiter = self._waiter, None
            if waiter is not None and not waiter.done():
                waiter.set_exception(error)
            return
        self.since = monotonic()
        if not more:
            self._into = None
            self._wake()

    def _taken(self) -> bytes:
        """What has come, which from now on is somebody else's."""
        pieces, self._pieces = self._pieces, []
        if self._held > _MOST_AHEAD and self._connection is not None:
            self._connection.read_on()
        self._held = 0
        return pieces[0] if len(pieces) == 1 else b"".join(pieces)

    async def finish(self) -> None:
        if not self._over:
            await super().finish()

    def give_up(self) -> None:
        if not self._over and self._problem is None:
            self._fail(incoming.broken(self.url))

    def leave(self) -> None:
        connection, self._connection = self._connection, None
        if self._timer is not None:
            self._timer.cancel()
            self._timer = None
        if connection is not None:
            connection.leave(used_again=self._over and self._keeps)

    # Time.

    async def _more(self) -> None:
        """Wait until there is more to tell, whatever it is."""
        self.since = monotonic()
        if self._timer is None:
            self._timer = self._loop.call_later(self._due() - monotonic(), self._look)
        self._waiter = self._loop.create_future()
        await self._waiter

    def _due(self) -> float:
        return min(self.since + self._silence, self._until)

    def _look(self) -> None:
        """It may have been silent for too long: while nobody listens, that does not count."""
        now = monotonic()
        if self._waiter is None:
            self.since = now
        self._timer = None
        if now < self._due():
            self._timer = self._loop.call_later(self._due() - now, self._look)
        elif not self._over and self._problem is None:
            self._fail(incoming.silent(self.url) if self._headed else incoming.late(self.url))

    def _wake(self) -> None:
        waiter, self._waiter = self._waiter, None
        if waiter is not None and not waiter.done():
            waiter.set_result(None)

    # What goes wrong.

    def _no_http(self, why: BaseException | str) -> None:
        self._fail(
            incoming.broken(self.url) if self._headed else incoming.not_http(self.url, str(why))
        )

    def _fail(self, problem: Problem) -> None:
        self._problem = problem
        self._spoil()
        self._wake()

    def _spoil(self) -> None:
        """Whatever comes on this connection is not to be trusted."""
        self._keeps = False
        if self._connection is not None:
            self._connection.abort()


class _Connection(asyncio.Protocol):
    """One connection, for one answer after another."""

    __slots__ = (
        "_answer", "_client", "_poll", "_resting", "_transport", "_unasked", "gone", "loop",
        "since", "used",
    )  # fmt: skip

    def __init__(self, client: Client, loop: asyncio.AbstractEventLoop) -> None:
        self._client = client
        self._transport: asyncio.Transport
        self._answer: _Answer | None = None
        self._poll: Any = None
        self._resting = False
        self._unasked = False
        """Whether something came that nobody had asked for."""
        self.gone = False
        """Whether it has ended."""
        self.loop = loop
        self.used = False
        """Whether it has carried an exchange."""
        self.since = 0.0
        """Since when it is idle."""

    # What the loop tells.

    def connection_made(self, transport: asyncio.BaseTransport) -> None:
        self._transport = cast("asyncio.Transport", transport)
        if hasattr(select, "poll"):
            self._poll = select.poll()
            sock = transport.get_extra_info("socket")
            self._poll.register(sock.fileno(), select.POLLIN)

    def data_received(self, data: bytes) -> None:
        if self._answer is None:
            self._unasked = True
            self.abort()
        else:
            self._answer.feed(data)

    def connection_lost(self, exc: Exception | None) -> None:
        self.gone = True
        self._client.open.discard(self)
        if self._answer is not None:
            self._answer.end(exc)

    # What the client and the answer want.

    @property
    def fresh(self) -> bool:
        """Whether it can take a request: it is open, and nothing lies unread in it."""
        return not (
            self.gone
            or self._transport.is_closing()
            or (self._poll is not None and self._poll.poll(0))
        )

    def put(self, head: bytes, body: bytes | None, answer: _Answer) -> None:
        """Send a request; what comes from now on is its answer."""
        self._answer = answer
        if self._unasked:
            answer.unasked()
        elif self.gone:
            answer.end(None)
        elif body is None or len(body) <= _LARGE_BYTES:
            self._transport.write(head if body is None else head + body)
        else:
            self._transport.write(head)
            self._transport.write(body)

    def leave(self, *, used_again: bool) -> None:
        """The exchange is over."""
        self._answer = None
        self.used = True
        if not used_again or self.gone or self._transport.get_write_buffer_size():
            self.abort()
        else:
            self.read_on()
            self._client.keep(self)

    def rest(self) -> None:
        """Read nothing for now."""
        if not self._resting:
            self._resting = True
            self._transport.pause_reading()

    def read_on(self) -> None:
        """Read again."""
        if self._resting:
            self._resting = False
            if not self._transport.is_closing():
                self._transport.resume_reading()

    def abort(self) -> None:
        """Close at once."""
        self._transport.abort()


class Client:
    """Asks one server; `headers` go with every request, and `url` may be shown."""

    def __init__(self, url: str, headers: Mapping[str, str], timeouts: TimeoutsConfig) -> None:
        self._url = url
        self._timeouts = timeouts
        self._path: str | None = None
        """Of a unix socket."""
        self._host, self._port, self._base, named = "", 0, "", "localhost"
        if url.startswith("unix://"):
            self._path = url.removeprefix("unix://")
        else:
            split = urlsplit(url)
            self._host, self._port = _ascii(split.hostname or ""), split.port or 80
            self._base = quote(split.path, safe="/%-._~!$&'()*+,;=:@")
            named = f"[{self._host}]" if ":" in self._host else self._host
            named += f":{self._port}" if self._port != 80 else ""
        self._addresses = _numeric(self._host, self._port)
        told = {"Host": named, "Accept": "*/*", **headers}
        self._headers = {name.lower(): (name, value) for name, value in told.items()}
        self._heads: dict[tuple[object, ...], bytes] = {}
        self._idle: deque[_Connection] = deque()
        self._sweep: asyncio.TimerHandle | None = None
        self.open: set[_Connection] = set()
        """Every connection."""

    async def ask(
        self,
        method: str,
        target: str,
        body: bytes | None,
        headers: Mapping[str, str] | None,
        seconds: float | None,
    ) -> Incoming:
        """Ask, and wait for the head of the answer.

        Raises:
            ProblemError: there is none.
        """
        head = self._head(method, target, body, headers)
        loop = asyncio.get_running_loop()
        silence, until = self._timeouts.idle, math.inf
        if seconds is not None:
            silence, until = math.inf, monotonic() + seconds
        connection, began = self._take(monotonic()), monotonic()
        lost = False
        while True:
            if connection is None:
                try:
                    connection = await self._connect(loop, until)
                except ProblemError as error:
                    raise ProblemError(incoming.after_a_loss(error.problem, lost=lost)) from None
            answer = _Answer(
                connection, self._url, bodiless=method == "HEAD", silence=silence, until=until
            )
            used = connection.used
            try:
                connection.put(head, body, answer)
                await answer.head()
            except ProblemError:
                answer.leave()
                at_once = monotonic() - began <= incoming.STALE_SECONDS
                if not (used and at_once) or answer.answered or not answer.lost:
                    raise
                connection, lost = None, True  # it was dead already
            except BaseException:
                answer.leave()
                raise
            else:
                return answer

    def _head(
        self, method: str, target: str, body: bytes | None, headers: Mapping[str, str] | None
    ) -> bytes:
        """The head of a request; one that is of a trace comes once, and is not kept."""
        key = (method, target, None if headers is None else tuple(headers.items()))
        head = self._heads.get(key)
        if head is None:
            told = dict(self._headers)
            for name, value in (headers or {}).items():
                told[name.lower()] = name, value
            lines = [f"{method} {self._base}{target} HTTP/1.1"]
            for name, value in told.values():
                if not _HEADER.fullmatch(value):
                    raise Malformed(f"The header '{name}' cannot be sent: it has a line break.")
                lines.append(f"{name}: {value}")
            head = "\r\n".join((*lines, "")).encode()
            if headers is None or trace.PARENT not in headers:
                if len(self._heads) >= _MOST_HEADS:
                    self._heads.clear()
                self._heads[key] = head
        if body is None and method in {"GET", "HEAD"}:
            return head + b"\r\n"
        return b"%bContent-Length: %d\r\n\r\n" % (head, len(body or b""))

    # Connections.

    async def _connect(self, loop: asyncio.AbstractEventLoop, until: float) -> _Connection:
        """A new connection.

        Raises:
            ProblemError: the server cannot be reached.
        """
        limited = until == math.inf
        left = self._timeouts.connect if limited else until - monotonic()
        try:
            async with asyncio.timeout(left):
                one = await self._open(loop)
        except TimeoutError as error:
            if error.errno:  # the kernel's
                problem = incoming.not_reached(self._url, error)
            elif limited:
                problem = incoming.not_reached_in_time(self._url, self._timeouts.connect)
            else:
                problem = incoming.late(self._url)
        except (socket.gaierror, UnicodeError):
            problem = incoming.no_address(self._url)
        except OSError as error:
            problem = incoming.not_reached(self._url, error)
        else:
            # Only now: of one that is given up before that, no end would be told.
            if not one.gone:
                self.open.add(one)
            return one
        raise ProblemError(problem)

    async def _open(self, loop: asyncio.AbstractEventLoop) -> _Connection:
        one = _Connection(self, loop)
        if self._path is not None:
            try:
                await loop.create_unix_connection(lambda: one, self._path)
            except BaseException:
                self.open.discard(one)  # as below
                raise
            return one
        addresses = self._addresses or await loop.getaddrinfo(
            self._host, self._port, type=socket.SOCK_STREAM
        )
        sock = await start_connection(
            addresses, happy_eyeballs_delay=_NEXT_ADDRESS_SECONDS, interleave=1, loop=loop
        )
        try:
            sock.setsockopt(socket.IPPROTO_TCP, socket.TCP_NODELAY, 1)
            await loop.create_connection(lambda: one, sock=sock)
        except BaseException:
            # Cancelled in the turn in which it was made: uvloop never tells that it is lost.
            self.open.discard(one)
            sock.close()
            raise
        return one

    def _take(self, now: float) -> _Connection | None:
        """An idle connection, the one that was used last."""
        while self._idle:
            one = self._idle.pop()
            if now - one.since <= incoming.KEEP_SECONDS and one.fresh:
                return one
            one.abort()
        return None

    def keep(self, one: _Connection) -> None:
        """Keep a connection for the next request."""
        one.since = monotonic()
        self._idle.append(one)
        if len(self._idle) > _MOST_IDLE:
            self._idle.popleft().abort()
        if self._sweep is None:
            self._sweep = one.loop.call_later(incoming.KEEP_SECONDS, self._sweep_out)

    def _sweep_out(self) -> None:
        """Close what has been idle for long."""
        self._sweep = None
        while self._idle:
            one = self._idle[0]
            left = one.since + incoming.KEEP_SECONDS - monotonic()
            if left > 0:
                self._sweep = one.loop.call_later(left, self._sweep_out)
                return
            self._idle.popleft().abort()

    async def close(self) -> None:
        """Close every connection: whoever waits for an answer hears that the upstream has."""
        if self._sweep is not None:
            self._sweep.cancel()
            self._sweep = None
        self._idle.clear()
        closing = set(self.open)
        for one in closing:
            one.abort()
        with suppress(TimeoutError):
            async with asyncio.timeout(_LAST_SECONDS):
                while any(not one.gone for one in closing):  # noqa: ASYNC110 - a turn or two
                    await asyncio.sleep(0)


def _ascii(host: str) -> str:
    """A host's name as the network knows it; one that cannot be is left to who looks it up."""
    try:
        return host.encode("idna").decode()
    except UnicodeError:
        return host


def _numeric(host: str, port: int) -> list[_Address]:
    """The address of a host whose name is one: nobody has to be asked for it."""
    try:
        version = ip_address(host).version
    except ValueError:
        return []
    family = socket.AF_INET if version == 4 else socket.AF_INET6
    place = (host, port) if version == 4 else (host, port, 0, 0)
    return [(family, socket.SOCK_STREAM, socket.IPPROTO_TCP, "", place)]
