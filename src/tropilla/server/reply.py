"""One HTTP answer over ASGI: what is on every answer, whatever it says."""

from __future__ import annotations

import time
from collections.abc import Awaitable, Callable, Mapping, MutableMapping
from typing import Any, TypeAlias

Message: TypeAlias = MutableMapping[str, Any]
Send: TypeAlias = Callable[[Message], Awaitable[None]]

# A browser may read these of an answer from another origin. Keys travel in headers, never in
# cookies, so every origin may ask, and none needs credentials.
_EVERY = (
    (b"access-control-allow-origin", b"*"),
    (
        b"access-control-expose-headers",
        (
            b"x-request-id, request-id, openai-processing-ms, retry-after, retry-after-ms, "
            b"x-should-retry, x-tropilla-dropped, x-tropilla-upstream, x-tropilla-queue-ms, "
            b"x-tropilla-overhead-ms, x-tropilla-cache-tokens"
        ),
    ),
    (b"openai-version", b"2020-10-01"),
)
_STREAM = ((b"cache-control", b"no-cache"), (b"x-accel-buffering", b"no"))
_METHODS = b"GET, POST, DELETE, HEAD, OPTIONS"
_DEFAULT_ALLOWED = b"authorization, content-type, x-api-key, api-key"


class Reply:
    """Writes one answer. `write` waits while the client does not read (uvicorn's flow control)."""

    def __init__(self, send: Send, request_id: str) -> None:
        self._send = send
        self.began = time.perf_counter()
        self.request_id = request_id
        self.started = False
        self.ended = False

    async def start(self, status: int, content_type: str, headers: Mapping[str, str]) -> None:
        """Send the head of an answer of unknown length."""
        more = [(name.encode(), value.encode("latin-1")) for name, value in headers.items()]
        if content_type.startswith("text/event-stream"):
            more += _STREAM
        await self._head(status, content_type, more)

    async def _head(self, status: int, content_type: str, more: list[tuple[bytes, bytes]]) -> None:
        self.started = True
        spent = (time.perf_counter() - self.began) * 1000
        headers = [
            (b"content-type", content_type.encode("latin-1")),
            (b"x-request-id", self.request_id.encode()),
            (b"openai-processing-ms", b"%d" % round(spent)),
            *_EVERY,
            *more,
        ]
        await self._send({"type": "http.response.start", "status": status, "headers": headers})

    async def write(self, data: bytes) -> None:
        """Send a piece of the body."""
        await self._send({"type": "http.response.body", "body": data, "more_body": True})

    async def end(self) -> None:
        """Send the end of the body."""
        self.ended = True
        await self._send({"type": "http.response.body", "body": b"", "more_body": False})

    async def whole(
        self,
        status: int,
        body: bytes,
        headers: Mapping[str, str] | None = None,
        content_type: str = "application/json",
        before_end: Awaitable[None] | None = None,
    ) -> None:
        """Send an answer of known length; `before_end` has the connection kept so long."""
        more = [(name.encode(), value.encode("latin-1")) for name, value in (headers or {}).items()]
        more.append((b"content-length", b"%d" % len(body)))
        await self._head(status, content_type, more)
        if before_end is not None:
            await self.write(body)
            await before_end
            body = b""
        self.ended = True
        await self._send({"type": "http.response.body", "body": body, "more_body": False})

    async def preflight(self, asked_headers: bytes | None) -> None:
        """Answer a browser's question whether it may ask."""
        self.started = self.ended = True
        headers = [
            (b"x-request-id", self.request_id.encode()),
            (b"openai-processing-ms", b"0"),
            *_EVERY,
            (b"access-control-allow-methods", _METHODS),
            # `*` would not cover Authorization, so what was asked for is allowed by name.
            (b"access-control-allow-headers", asked_headers or _DEFAULT_ALLOWED),
            (b"access-control-max-age", b"86400"),
            (b"vary", b"Access-Control-Request-Headers"),
            (b"allow", _METHODS),
        ]
        await self._send({"type": "http.response.start", "status": 204, "headers": headers})
        await self._send({"type": "http.response.body", "body": b"", "more_body": False})
