"""One HTTP answer: what is on every one, whatever it says, and how its body is framed.

What is written before the loop turns goes out in one piece, the head with the first of the body.
"""

from __future__ import annotations

import time
from collections.abc import Callable, Iterable, Mapping, Sequence
from http import HTTPStatus
from typing import Protocol

# A browser may read these of an answer from another origin. Keys travel in headers, never in
# cookies, so every origin may ask, and none needs credentials.
_EVERY = (
    b"access-control-allow-origin: *\r\n"
    b"access-control-expose-headers: x-request-id, request-id, openai-processing-ms, retry-after, "
    b"retry-after-ms, x-should-retry, x-tropilla-dropped, x-tropilla-upstream, "
    b"x-tropilla-queue-ms, x-tropilla-overhead-ms, x-tropilla-cache-tokens, "
    b"idempotency-replayed\r\n"
    b"openai-version: 2020-10-01\r\n"
)
_STREAMED = ("text/event-stream", "application/x-ndjson")
_STREAM = b"cache-control: no-cache\r\nx-accel-buffering: no\r\n"
_METHODS = "GET, POST, DELETE, HEAD, OPTIONS"
_DEFAULT_ALLOWED = "authorization, content-type, x-api-key, api-key"
_LINES = {one.value: b"HTTP/1.1 %d %b\r\n" % (one.value, one.phrase.encode()) for one in HTTPStatus}
_BODILESS = frozenset({204, 304})


class Connection(Protocol):
    """Where the bytes go."""

    @property
    def date(self) -> bytes:
        """The time, as HTTP writes it."""

    @property
    def keeps(self) -> bool:
        """Whether another request may come after this answer."""

    def send(self, data: bytes) -> bool:
        """Send bytes; whether the client reads as fast as that."""

    async def sent(self) -> None:
        """Wait while the client does not read."""


def head(
    status: int,
    content_type: str,
    date: bytes,
    spent: float,
    more: Iterable[tuple[str, str]],
    *,
    shared: bool = True,
) -> bytes:
    """The head of an answer, but for its framing and its end; `spent` is in seconds.

    A value that would end its line goes on in it instead: what an upstream is called, or says, is
    nobody's header.
    """
    told = [f"content-type: {_one_line(content_type)}\r\n"]
    told += [f"{name}: {_one_line(value)}\r\n" for name, value in more]
    return b"%b%bdate: %b\r\nopenai-processing-ms: %d\r\n%b" % (
        _LINES.get(status) or b"HTTP/1.1 %d Unknown\r\n" % status,
        "".join(told).encode("latin-1", "replace"),
        date,
        round(spent * 1000),
        _EVERY if shared else b"",
    )


def _one_line(value: str) -> str:
    return value if value.isprintable() else "".join(c if c.isprintable() else " " for c in value)


class Reply:
    """Writes one answer; `write` waits while the client does not read."""

    __slots__ = (
        "_bodiless", "_chunks", "_old", "_to", "began", "ended", "keeps", "more", "request_id",
        "shared", "started", "status", "told",
    )  # fmt: skip

    def __init__(
        self, connection: Connection, request_id: str, *, headless: bool, old: bool
    ) -> None:
        self._to = connection
        self._bodiless = headless
        """Whether it was asked by HEAD: then there is no body, whatever the head says of one."""
        self._old = old
        """Whether the client knows no chunks: then the end of the connection ends the body."""
        self._chunks = False
        self.began = time.perf_counter()
        self.request_id = request_id
        self.status = 0
        """What the head said; 0 while it is not sent."""
        self.started = False
        self.ended = False
        self.keeps = True
        """Whether the head said that the connection stays."""
        self.more: Callable[[], Mapping[str, str]] = dict
        """Headers of this answer, whatever it is, as they are when its head is sent."""
        self.shared = True
        """Whether pages of any origin may read it."""
        self.told: Sequence[tuple[str, str]] = ()
        """Its headers, but for those that every one has, once its head is sent."""

    async def start(
        self, status: int, content_type: str, headers: Mapping[str, str], first: bytes = b""
    ) -> None:
        """Send the head of an answer of unknown length, and the first piece of its body."""
        self._chunks = not self._old
        framing = _STREAM if content_type.startswith(_STREAMED) else b""
        if self._chunks:
            framing += b"transfer-encoding: chunked\r\n"
        told = self._head(status, content_type, headers, framing, keeps=self._chunks)
        if not self._to.send(told + self._framed(first)):
            await self.sent()

    def _head(
        self,
        status: int,
        content_type: str,
        headers: Mapping[str, str],
        framing: bytes,
        *,
        keeps: bool,
    ) -> bytes:
        self.started, self.status = True, status
        self.keeps = keeps and self._to.keeps
        if not self.keeps:
            framing += b"connection: close\r\n"
        elif self._old:
            framing += b"connection: keep-alive\r\n"
        spent = time.perf_counter() - self.began
        more = self.told = (*headers.items(), *self.more().items())
        told = head(status, content_type, self._to.date, spent, more, shared=self.shared)
        id_ = self.request_id.encode()
        return b"%bx-request-id: %b\r\nrequest-id: %b\r\n%b\r\n" % (told, id_, id_, framing)

    def _framed(self, data: bytes) -> bytes:
        if not data or self._bodiless:
            return b""
        return b"%x\r\n%b\r\n" % (len(data), data) if self._chunks else data

    async def write(self, data: bytes) -> None:
        """Send a piece of the body."""
        if not self.push(data):
            await self.sent()

    def push(self, data: bytes) -> bool:
        """Send a piece of the body; whether the client reads as fast as that."""
        return self._to.send(self._framed(data))

    async def sent(self) -> None:
        """Wait while the client does not read."""
        await self._to.sent()

    async def end(self) -> None:
        """Send the end of the body."""
        self.ended = True
        if self._chunks and not self._bodiless:
            self._to.send(b"0\r\n\r\n")

    async def whole(
        self,
        status: int,
        body: bytes,
        headers: Mapping[str, str] | None = None,
        content_type: str = "application/json",
    ) -> None:
        """Send an answer of known length."""
        framing = b"" if status in _BODILESS else b"content-length: %d\r\n" % len(body)
        told = self._head(status, content_type, headers or {}, framing, keeps=True)
        self.ended = True
        self._to.send(told if self._bodiless or status in _BODILESS else told + body)

    async def preflight(self, asked_headers: str) -> None:
        """Answer a browser's question whether it may ask."""
        told = {
            "access-control-allow-methods": _METHODS,
            # `*` would not cover Authorization, so what was asked for is allowed by name.
            "access-control-allow-headers": asked_headers or _DEFAULT_ALLOWED,
            "access-control-max-age": "86400",
            "vary": "Access-Control-Request-Headers",
            "allow": _METHODS,
        }
        await self.whole(204, b"", told)
