"""One upstream server over HTTP: the only place that opens a socket outward.

A request that is given up closes its connection at once: that is the only way to make a
llama-server stop. No redirect is followed, no body is decompressed or decoded, and nothing is
tried twice, except on a connection of the pool that was dead already. Every failure leaves as a
`ProblemError` which says whether another upstream may do.
"""

from __future__ import annotations

import asyncio
import io
import os
from base64 import b64encode
from collections.abc import AsyncIterator, Mapping
from contextlib import asynccontextmanager, suppress
from typing import TYPE_CHECKING, Any
from urllib.parse import unquote
from weakref import WeakSet

import aiohttp
import msgspec
import yarl

from tropilla.config import TimeoutsConfig
from tropilla.ir import JsonObject, Problem, ProblemError

_DEFAULT_TIMEOUTS = TimeoutsConfig()

MAX_WHOLE = 64 * 1024 * 1024
"""Bytes of an answer that is wanted whole."""

_END_SECONDS = 0.05
"""How long the end of a complete answer is waited for: it follows, but in a packet of its own."""

# llama-server closes an idle connection after 5 s, and any after 100 requests.
_KEEP_SECONDS = 3.0


_LARGE_BYTES = 256 * 1024


def _in_pieces(body: bytes | None) -> bytes | io.BytesIO | None:
    """What is large is written piece by piece: meanwhile others are served."""
    return body if body is None or len(body) <= _LARGE_BYTES else io.BytesIO(body)


class Incoming:
    """An answer on its way: its head, and its body piece by piece."""

    __slots__ = ("_read", "_response", "_url", "content_type", "retry_after", "status")

    def __init__(self, response: aiohttp.ClientResponse, url: str) -> None:
        self.status = response.status
        self.content_type = response.headers.get("Content-Type", "")
        self.retry_after = _seconds(response.headers.get("Retry-After", ""))
        self._response = response
        self._read = response.content.readany
        self._url = url

    async def read(self) -> bytes:
        """The next piece, as it came; empty at the end.

        Raises:
            ProblemError: the upstream broke off or fell silent.
        """
        try:
            return await self._read()
        except (aiohttp.ClientError, OSError) as error:
            raise ProblemError(_broken(self._url, error)) from error

    async def whole(self) -> bytes:
        """All that is left of the body.

        Raises:
            ProblemError: as `read` does; or there is more than anybody would want.
        """
        pieces, size = [], 0
        while piece := await self.read():
            size += len(piece)
            if size > MAX_WHOLE:
                raise ProblemError(
                    Problem(
                        kind="upstream_failed",
                        message=f"The upstream {self._url} answered with over {MAX_WHOLE} bytes.",
                    )
                )
            pieces.append(piece)
        return b"".join(pieces)

    def give_up(self) -> None:
        """Break it off: whoever reads it hears that the upstream has."""
        self._response.close()

    async def finish(self) -> None:
        """Take the end of an answer that has said everything, if it comes at once.

        With it comes the right to use the connection again.
        """
        with suppress(TimeoutError, ProblemError):
            async with asyncio.timeout(_END_SECONDS):
                while await self.read():
                    pass


if TYPE_CHECKING:
    _Base = aiohttp.BaseConnector
else:
    _Base = object


class _Knowing(_Base):
    """A connector that knows which tasks were given a connection that had been used before."""

    def __init__(self, *args: Any, **kwargs: Any) -> None:
        super().__init__(*args, **kwargs)
        self._used: WeakSet[Any] = WeakSet()
        self.given_used: WeakSet[Any] = WeakSet()

    async def connect(self, *args: Any, **kwargs: Any) -> aiohttp.connector.Connection:
        """Get a connection, and note whether it is new."""
        task = asyncio.current_task()
        self.given_used.discard(task)
        connection = await super().connect(*args, **kwargs)
        protocol = connection.protocol
        if protocol in self._used:
            self.given_used.add(task)
        elif protocol is not None:
            self._used.add(protocol)
        return connection


class _Tcp(_Knowing, aiohttp.TCPConnector):
    pass


class _Unix(_Knowing, aiohttp.UnixConnector):
    pass


class Link:
    """A client of one server. `url` is http(s)://[user:password@]host[:port][/base] or unix:///path.

    A password is sent, and never shown: `url` goes without. `headers` go with every request.
    """

    def __init__(
        self,
        url: str,
        *,
        headers: Mapping[str, str] | None = None,
        timeouts: TimeoutsConfig = _DEFAULT_TIMEOUTS,
    ) -> None:
        shown, authorization = _apart(url.rstrip("/"))
        self.url = shown
        self._headers = {"Accept-Encoding": "identity", "User-Agent": "tropilla"}
        if authorization:
            self._headers["Authorization"] = authorization
        self._headers |= headers or {}
        self.shows_key = self._headers.keys() & {"Authorization", "X-API-KEY"} != set()
        self._connect_seconds = timeouts.connect
        self._timeout = aiohttp.ClientTimeout(
            total=None, sock_connect=timeouts.connect, sock_read=timeouts.idle
        )
        self._base = "http://localhost" if url.startswith("unix://") else self.url
        self._urls: dict[str, yarl.URL] = {}
        self._session: aiohttp.ClientSession | None = None
        self._given_used: WeakSet[Any] = WeakSet()

    def _open(self) -> aiohttp.ClientSession:
        if self._session is None:
            connector: _Knowing
            if self.url.startswith("unix://"):
                path = self.url.removeprefix("unix://")
                connector = _Unix(path, limit=0, keepalive_timeout=_KEEP_SECONDS)
            else:
                connector = _Tcp(limit=0, keepalive_timeout=_KEEP_SECONDS)
            self._given_used = connector.given_used
            self._session = aiohttp.ClientSession(
                connector=connector,
                headers=self._headers,
                cookie_jar=aiohttp.DummyCookieJar(),
                auto_decompress=False,
                max_line_size=65536,
                max_field_size=65536,
            )
        return self._session

    def _target(self, path: str) -> yarl.URL:
        url = self._urls.get(path)
        if url is None:
            url = yarl.URL(self._base + path, encoded=True)
            if "?" not in path:
                self._urls[path] = url
        return url

    @asynccontextmanager
    async def send(
        self,
        method: str,
        path: str,
        body: bytes | None = None,
        headers: Mapping[str, str] | None = None,
        seconds: float | None = None,
    ) -> AsyncIterator[Incoming]:
        """Ask; the answer's head has come when this is entered, and leaving ends it for good.

        `seconds` bounds the whole exchange; without, only silence is bounded.

        Raises:
            ProblemError: no answer came.
        """
        timeout = self._timeout if seconds is None else aiohttp.ClientTimeout(total=seconds)
        response = await self._ask(method, path, body, headers, timeout)
        try:
            yield Incoming(response, self.url)
        finally:
            # An answer that was not read to its end takes its connection with it.
            if response.content.at_eof() and response.content.exception() is None:
                response.release()
            else:
                response.close()

    async def _ask(
        self,
        method: str,
        path: str,
        body: bytes | None,
        headers: Mapping[str, str] | None,
        timeout: aiohttp.ClientTimeout,  # noqa: ASYNC109 - aiohttp's own
    ) -> aiohttp.ClientResponse:
        while True:
            try:
                return await self._open().request(
                    method,
                    self._target(path),
                    data=_in_pieces(body),
                    headers=headers,
                    allow_redirects=False,
                    timeout=timeout,
                )
            except (aiohttp.ClientError, OSError, ValueError) as error:
                # A connection of the pool may have died unnoticed. The next one may have too; in
                # the end there is a new one.
                closed = isinstance(error, aiohttp.ServerDisconnectedError | aiohttp.ClientOSError)
                if not closed or asyncio.current_task() not in self._given_used:
                    raise ProblemError(
                        _no_answer(self.url, error, self._connect_seconds)
                    ) from error

    async def ask(
        self, method: str, path: str, body: JsonObject | None = None, seconds: float | None = 10.0
    ) -> tuple[int, bytes]:
        """A small question: the status and the whole answer.

        Raises:
            ProblemError: no answer came, or not all of it.
        """
        data = None if body is None else msgspec.json.encode(body)
        headers = None if body is None else {"Content-Type": "application/json"}
        async with self.send(method, path, data, headers, seconds) as answer:
            return answer.status, await answer.whole()

    async def close(self) -> None:
        """Close every connection: whoever waits for an answer hears that the upstream has.

        What is sent after that has new ones.
        """
        session, self._session = self._session, None
        if session is not None:
            await session.close()


def _apart(url: str) -> tuple[str, str | None]:
    """An address without the user and the password in it, and the header that says them."""
    scheme, _, rest = url.partition("://")
    place, slash, path = rest.partition("/")
    who, at, host = place.rpartition("@")
    if not at:
        return url, None
    encoded = b64encode(unquote(who).encode()).decode()
    return f"{scheme}://{host}{slash}{path}", f"Basic {encoded}"


def _seconds(retry_after: str) -> float | None:
    """When to ask again; a date is of no use where two clocks differ."""
    return float(retry_after) if retry_after.isdecimal() and len(retry_after) < 6 else None


def _no_answer(url: str, error: Exception, connect_seconds: float) -> Problem:
    died = False
    match error:
        case aiohttp.ConnectionTimeoutError():
            why = (
                f"The upstream {url} cannot be reached: it did not answer in {connect_seconds:g} s."
            )
        case TimeoutError():
            return Problem(
                kind="timeout",
                message=f"The upstream {url} did not answer in time.",
            )
        case aiohttp.ClientConnectorCertificateError() | aiohttp.ClientConnectorSSLError():
            why = f"TLS with the upstream {url} failed: {error}."
        case aiohttp.ClientConnectorDNSError():
            why = f"The upstream {url} has no address: its host name is unknown here."
        case aiohttp.ClientConnectorError():
            number = error.os_error.errno
            reason = os.strerror(number) if number else str(error.os_error)
            why = f"The upstream {url} cannot be reached: {reason}."
        case aiohttp.ClientOSError() | aiohttp.ServerDisconnectedError():
            why = f"The upstream {url} closed the connection before it answered."
            died = True
        case _:
            why = f"The upstream {url} answered with something that is not HTTP: {error}."
    return Problem(kind="unavailable", message=why, retryable=True, retry_after=1, died=died)


def _broken(url: str, error: Exception) -> Problem:
    if isinstance(error, TimeoutError):
        return Problem(kind="timeout", message=f"The upstream {url} fell silent.")
    return Problem(
        kind="upstream_failed",
        message=f"The upstream {url} broke off in the middle of its answer.",
        retryable=True,
        died=True,
    )
