"""A client of one server by aiohttp: it has TLS, and everything else.

Where there is no TLS, `lean` does the same for a fraction of the work.
"""

from __future__ import annotations

import asyncio
import io
from collections.abc import Mapping
from time import monotonic
from typing import TYPE_CHECKING, Any
from weakref import WeakSet

import aiohttp
import yarl

from tropilla.config import TimeoutsConfig
from tropilla.ir import Problem, ProblemError
from tropilla.upstream import incoming
from tropilla.upstream.incoming import Incoming

_LARGE_BYTES = 256 * 1024


def _in_pieces(body: bytes | None) -> bytes | io.BytesIO | None:
    """What is large is written piece by piece: meanwhile others are served."""
    return body if body is None or len(body) <= _LARGE_BYTES else io.BytesIO(body)


class _Answer(Incoming):
    __slots__ = ("__weakref__", "_limit", "_read", "_response")

    def __init__(self, response: aiohttp.ClientResponse, url: str, limit: float | None) -> None:
        super().__init__(url)
        self._limit = limit
        self.status = response.status
        self.content_type = response.headers.get("Content-Type", "")
        self.retry_after = incoming.seconds(response.headers.get("Retry-After", ""))
        self._response = response
        self._read = response.content.readany

    async def read(self) -> bytes:
        self.since = monotonic()
        try:
            # After an invalid chunk aiohttp's own limits are forgotten, and its reader waits.
            async with asyncio.timeout(self._limit):
                return await self._read()
        except TimeoutError as error:
            raise ProblemError(incoming.silent(self.url)) from error
        except (aiohttp.ClientError, OSError) as error:
            raise ProblemError(incoming.broken(self.url)) from error

    def give_up(self) -> None:
        self._response.close()

    def leave(self) -> None:
        content = self._response.content
        if content.at_eof() and content.exception() is None:
            self._response.release()
        else:
            self._response.close()


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
        while True:
            connection = await super().connect(*args, **kwargs)
            protocol = connection.protocol
            if protocol is None or not protocol.should_close:
                break
            connection.close()  # what nobody has asked for has come on it
        if protocol in self._used:
            self.given_used.add(task)
        elif protocol is not None:
            self._used.add(protocol)
        return connection


class _Tcp(_Knowing, aiohttp.TCPConnector):
    pass


class _Unix(_Knowing, aiohttp.UnixConnector):
    pass


class Client:
    """Asks one server; `headers` go with every request, and `url` may be shown."""

    def __init__(self, url: str, headers: Mapping[str, str], timeouts: TimeoutsConfig) -> None:
        self._url = url
        self._headers = headers
        self._connect_seconds = timeouts.connect
        self._idle_seconds = timeouts.idle
        self._timeout = aiohttp.ClientTimeout(
            total=None, sock_connect=timeouts.connect, sock_read=timeouts.idle
        )
        self._base = "http://localhost" if url.startswith("unix://") else url
        self._session: aiohttp.ClientSession | None = None
        self._given_used: WeakSet[Any] = WeakSet()
        self._answers: WeakSet[_Answer] = WeakSet()
        """Those on their way: to close a session does not wake who reads one."""

    def _open(self) -> aiohttp.ClientSession:
        if self._session is None:
            connector: _Knowing
            if self._url.startswith("unix://"):
                path = self._url.removeprefix("unix://")
                connector = _Unix(path, limit=0, keepalive_timeout=incoming.KEEP_SECONDS)
            else:
                connector = _Tcp(limit=0, keepalive_timeout=incoming.KEEP_SECONDS)
            self._given_used = connector.given_used
            self._session = aiohttp.ClientSession(
                connector=connector,
                headers=self._headers,
                cookie_jar=aiohttp.DummyCookieJar(),
                auto_decompress=False,
                max_line_size=incoming.MAX_HEAD,
                max_field_size=incoming.MAX_HEAD,
                max_headers=incoming.MAX_HEADERS,
            )
        return self._session

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
        timeout = self._timeout if seconds is None else aiohttp.ClientTimeout(total=seconds)
        began, lost = monotonic(), False
        while True:
            try:
                # aiohttp bounds the silence within a head, and not how long that drips.
                async with asyncio.timeout(
                    None if seconds is not None else self._connect_seconds + self._idle_seconds
                ):
                    response = await self._open().request(
                        method,
                        yarl.URL(self._base + target, encoded=True),
                        data=_in_pieces(body),
                        headers=headers,
                        allow_redirects=False,
                        timeout=timeout,
                    )
            except (aiohttp.ClientError, OSError, ValueError) as error:
                # A connection of the pool may have died unnoticed. The next one may have too; in
                # the end there is a new one.
                closed = isinstance(error, aiohttp.ServerDisconnectedError | aiohttp.ClientOSError)
                stale = monotonic() - began <= incoming.STALE_SECONDS
                if not closed or not stale or asyncio.current_task() not in self._given_used:
                    problem = incoming.after_a_loss(self._why(error), lost=lost)
                    raise ProblemError(problem) from error
                lost = True
            else:
                if response.status < 200:
                    response.close()
                    raise ProblemError(incoming.not_http(self._url, "it changes the protocol"))
                answer = _Answer(response, self._url, seconds or self._idle_seconds)
                self._answers.add(answer)
                return answer

    def _why(self, error: Exception) -> Problem:
        url = self._url
        match error:
            case aiohttp.ConnectionTimeoutError():
                return incoming.not_reached_in_time(url, self._connect_seconds)
            case TimeoutError():
                return incoming.late(url)
            case aiohttp.ClientConnectorCertificateError() | aiohttp.ClientConnectorSSLError():
                return incoming.no_tls(url, error)
            case aiohttp.ClientConnectorDNSError():
                return incoming.no_address(url)
            case aiohttp.ClientConnectorError():
                return incoming.not_reached(url, error.os_error)
            case aiohttp.ClientOSError() | aiohttp.ServerDisconnectedError():
                return incoming.closed(url)
        return incoming.not_http(url, error)

    async def close(self) -> None:
        """Close every connection: whoever waits for an answer hears that the upstream has."""
        for answer in list(self._answers):
            answer.give_up()
        session, self._session = self._session, None
        if session is not None:
            await session.close()
