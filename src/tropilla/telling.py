"""How a stream reaches its client: its head, what it tells, and signs of life in between.

Whoever waits for a slot, or for a long prompt to be read, hears that the connection lives. Such a
sign is nothing of the answer: until the first of that was told, the request can still be given
to another upstream. Once a sign was sent there is no other status, and what goes wrong is told in
the stream.
"""

from __future__ import annotations

import asyncio
from collections.abc import Callable, Mapping, Sequence
from contextlib import suppress
from time import monotonic
from typing import Protocol, Self

from tropilla.dialects import Dialect, Stamp, StreamRenderer
from tropilla.exchanges.failover import Joint
from tropilla.ir import Event, PartDelta, Request
from tropilla.record import Record

SILENCE_SECONDS = 10.0
"""The longest that a client hears nothing of its stream."""

_PLACED = "text/event-stream"


class Reply(Protocol):
    """Where the answer goes; `write` waits while the client does not read."""

    @property
    def started(self) -> bool:
        """Whether a byte has been sent: from then on there is no other status."""

    @property
    def ended(self) -> bool:
        """Whether all has been sent."""

    async def start(
        self, status: int, content_type: str, headers: Mapping[str, str], first: bytes = b""
    ) -> None:
        """Send the head, and the first piece of the body with it."""

    async def write(self, data: bytes) -> None:
        """Send a piece of the body."""

    def push(self, data: bytes) -> bool:
        """Send a piece that is not the last; whether the client reads as fast as that."""

    async def sent(self) -> None:
        """Wait while the client does not read."""

    async def end(self) -> None:
        """Send the end of the body."""

    async def whole(self, status: int, body: bytes, headers: Mapping[str, str]) -> None:
        """Send a JSON answer in one piece."""


class Telling:
    """One stream to one client, as long as a `with` lasts; `place` is its place in the queue."""

    __slots__ = (
        "_front", "_joint", "_last", "_place", "_record", "_renderer", "_reply", "_request",
        "_sign", "_timer", "told",
    )  # fmt: skip

    def __init__(
        self,
        front: Dialect,
        request: Request,
        reply: Reply,
        record: Record,
        joint: Joint,
        place: Callable[[], int],
    ) -> None:
        self.told = False
        """Whether any of the answer has been told."""
        self._front = front
        self._request = request
        self._reply = reply
        self._record = record
        self._joint = joint
        self._place = place
        self._last = monotonic()
        self._timer: asyncio.TimerHandle | None = None
        self._sign: asyncio.Task[None] | None = None
        self._renderer: StreamRenderer | None = None

    def __enter__(self) -> Self:
        self._look_again()
        return self

    def __exit__(self, *_: object) -> None:
        if self._timer is not None:
            self._timer.cancel()
        if self._sign is not None:
            self._sign.cancel()

    async def tell(self, data: bytes, headers: Callable[[], Mapping[str, str]]) -> None:
        """Send some of the answer; `headers` are for its head."""
        self.told = True
        await self._send(data, headers)

    def take(self, batch: list[Event]) -> bool:
        """Tell more of the answer at once, but not its end; whether the client reads as fast.

        This is where a token passes, from the upstream's socket to the client's.
        """
        renderer = self._renderer
        assert renderer is not None, "some of it was told"  # noqa: S101
        batch = self._joint.joined(batch)
        if len(batch) == 1:  # nearly always
            data = renderer.feed(batch[0])
        else:
            data = b"".join([renderer.feed(event) for event in batch])
        if batch and type(batch[-1]) is not PartDelta:
            self._record.take(batch)
        if not data:
            return True
        self._last = monotonic()
        return self._reply.push(data)

    async def sent(self) -> None:
        """Wait while the client does not read."""
        await self._reply.sent()

    def renderer(self, stamp: Stamp) -> StreamRenderer:
        """The one renderer of this stream, whoever answers; a new one while nothing was told."""
        if self._renderer is None or not self.told:
            self._renderer = self._front.stream_renderer(self._request, stamp)
        return self._renderer

    async def fail(self, end: Sequence[Event], stamp: Stamp) -> None:
        """Tell in the stream that there will be no answer, or no more of it."""
        feed = self.renderer(stamp).feed
        await self._send(b"".join([feed(event) for event in end]), dict)
        await self._reply.end()

    async def _send(self, data: bytes, headers: Callable[[], Mapping[str, str]]) -> None:
        self._last = monotonic()
        if self._reply.started:
            await self._reply.write(data)
        else:
            await self._reply.start(200, self._front.CONTENT_TYPE, headers(), data)

    def _look_again(self) -> None:
        loop = asyncio.get_running_loop()
        silent = monotonic() - self._last
        if silent >= SILENCE_SECONDS and (self._sign is None or self._sign.done()):
            self._sign = loop.create_task(self._give_sign())
            silent = 0.0
        self._timer = loop.call_later(max(SILENCE_SECONDS - silent, 0.01), self._look_again)

    async def _give_sign(self) -> None:
        place = self._place()
        sign = self._front.PING
        if place and self._front.CONTENT_TYPE.startswith(_PLACED):
            sign = b": queue %d\n\n" % place
        # A client that has left is noticed elsewhere.
        with suppress(ConnectionError):
            await self._send(sign, dict)
