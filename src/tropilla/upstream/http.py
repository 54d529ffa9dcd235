"""One upstream server over HTTP: the only place that opens a socket outward.

A request that is given up closes its connection at once: that is the only way to make a
llama-server stop. No redirect is followed, no body is decompressed or decoded, and nothing is
tried twice, except on a connection of the pool that was dead already. Every failure leaves as a
`ProblemError` which says whether another upstream may do.

There are two clients, which do the same: `lean`, and for what that has not, which is TLS, `aio`.
"""

from __future__ import annotations

import string
from base64 import b64decode, b64encode
from collections.abc import Awaitable, Callable, Iterable, Iterator, Mapping
from contextlib import suppress
from types import TracebackType
from typing import Protocol
from urllib.parse import quote, unquote

import msgspec

from tropilla.capture import CAPTURED
from tropilla.config import TimeoutsConfig
from tropilla.ir import JsonObject
from tropilla.observing.trace import TOLD
from tropilla.upstream import lean
from tropilla.upstream.incoming import Incoming

_DEFAULT_TIMEOUTS = TimeoutsConfig()
_SENDABLE = string.ascii_letters + string.digits + string.punctuation


class Client(Protocol):
    """What asks a server; which one, `url` says."""

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

    async def close(self) -> None:
        """Close every connection: whoever waits for an answer hears that the upstream has."""


class _Sending:
    """An exchange, as long as an `async with` lasts."""

    __slots__ = ("_begin", "_incoming")

    def __init__(self, begin: Callable[[], Awaitable[Incoming]]) -> None:
        self._begin = begin

    async def __aenter__(self) -> Incoming:
        self._incoming = await self._begin()
        return self._incoming

    async def __aexit__(
        self,
        kind: type[BaseException] | None,
        error: BaseException | None,
        trace: TracebackType | None,
    ) -> None:
        self._incoming.leave()


class Link:
    """A client of one server. `url` is http(s)://[user:password@]host[:port][/base] or unix:///path.

    A password is sent, and never shown: `url` goes without. `headers` go with every request, and
    are not shown either: servers repeat what they refuse, and that is taken out of it.
    Without TLS the lean client asks, unless it is not `plain`.
    """

    def __init__(
        self,
        url: str,
        *,
        headers: Mapping[str, str] | None = None,
        timeouts: TimeoutsConfig = _DEFAULT_TIMEOUTS,
        plain: bool = True,
    ) -> None:
        shown, authorization = _apart(url.rstrip("/"))
        self.url = shown
        told = {"Accept-Encoding": "identity", "User-Agent": "tropilla"}
        if authorization:
            told["Authorization"] = authorization
        told |= headers or {}
        # A password that another header has replaced is no less secret.
        secret = _secrets([("Authorization", authorization or ""), *told.items()])
        self._secrets = sorted(set(secret), key=len, reverse=True)
        self.shows_key = told.keys() & {"Authorization", "X-API-KEY"} != set()
        self._client = _client(shown, told, timeouts, plain=plain)

    def send(
        self,
        method: str,
        path: str,
        body: bytes | None = None,
        headers: Mapping[str, str] | None = None,
        seconds: float | None = None,
    ) -> _Sending:
        """Ask; the answer's head has come when this is entered, and leaving ends it for good.

        `seconds` bounds the whole exchange; without, only silence is bounded. What is entered
        raises a `ProblemError` where no answer comes.
        """
        return _Sending(lambda: self.begin(method, path, body, headers, seconds))

    async def begin(
        self,
        method: str,
        path: str,
        body: bytes | None = None,
        headers: Mapping[str, str] | None = None,
        seconds: float | None = None,
    ) -> Incoming:
        """The same, for one who leaves the answer in the end.

        Raises:
            ProblemError: no answer comes.
        """
        # What cannot stand in the head of a request is quoted: nothing of it becomes another.
        if not (path.isascii() and path.isprintable()) or " " in path:
            path = quote(path, safe=_SENDABLE)
        if (trace := TOLD.get()) is not None:
            headers = trace if headers is None else {**headers, **trace}
        if (captured := CAPTURED.get()) is not None:
            captured.asks(self.url, method, path, None if body is None else self.hide(body))
        answer = await self._client.ask(method, path, body, headers, seconds)
        answer.hide = self.hide
        return answer

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

    def hide(self, told: bytes) -> bytes:
        """What an upstream has told, without the secrets that it was shown."""
        for secret in self._secrets:
            told = told.replace(secret, b"***")
        return told

    async def close(self) -> None:
        """Close every connection: whoever waits for an answer hears that the upstream has.

        What is sent after that has new ones.
        """
        await self._client.close()


def _client(
    url: str, headers: Mapping[str, str], timeouts: TimeoutsConfig, *, plain: bool
) -> Client:
    if plain and not url.startswith("https://"):
        return lean.Client(url, headers, timeouts)
    from tropilla.upstream import aio  # noqa: PLC0415 - half of the time to start would be its

    return aio.Client(url, headers, timeouts)


_OPEN = {"accept-encoding", "host", "user-agent"}
_SHORTEST_SECRET = 8
"""Bytes: what is shorter is found by chance, and is no secret for long."""


def _secrets(headers: Iterable[tuple[str, str]]) -> Iterator[bytes]:
    """What is secret in the headers that an upstream is sent."""
    for name, value in headers:
        if name.lower() in _OPEN:
            continue
        shown = [value]
        if name.lower() == "authorization":
            scheme, _, token = value.partition(" ")
            shown.append(token)
            if scheme.lower() == "basic":
                with suppress(ValueError):
                    shown.append(b64decode(token).decode().partition(":")[2])
        for one in shown:
            if len(secret := one.encode()) >= _SHORTEST_SECRET:
                yield secret


def _apart(url: str) -> tuple[str, str | None]:
    """An address without the user and the password in it, and the header that says them."""
    scheme, _, rest = url.partition("://")
    place, slash, path = rest.partition("/")
    who, at, host = place.rpartition("@")
    if not at:
        return url, None
    encoded = b64encode(unquote(who).encode()).decode()
    return f"{scheme}://{host}{slash}{path}", f"Basic {encoded}"
