"""Bytes to frames and back: server-sent events, and lines of JSON.

A framer is fed whatever pieces a socket gives and returns the frames that are whole so far; what
is not whole it holds, up to a bound. Cut anywhere, even inside a character or between CR and LF,
the same bytes give the same frames. A framer never reads a socket, never decodes JSON, and
raises nothing but `Malformed`.
"""

from __future__ import annotations

import re
from typing import Protocol

import msgspec

from tropilla.ir import Malformed

MAX_FRAME = 16 * 1024 * 1024
"""Bytes of one event. A final native event repeats the whole prompt, so this is generous."""


class Frame(msgspec.Struct, frozen=True, gc=False):
    """One event, or one line. A comment, which only says "I live", has the event `COMMENT`."""

    event: str
    data: bytes


COMMENT = ":"
_PLAIN_START = b"data: "
_PLAIN_NEXT = b"\n\ndata: "
_LINE_END = re.compile(rb"\r\n|\n|\r")
_EMPTY_LINE = re.compile(rb"\n[\r\n]|\r\r")


class Framer(Protocol):
    """Takes pieces, gives what is whole."""

    def feed(self, piece: bytes) -> list[Frame]:
        """Take the next piece; return the frames that are now whole.

        Raises:
            Malformed: one of them is larger than the limit.
        """

    def around(self) -> tuple[bytes, bytes] | None:
        """What is before and after the data of the next frame, if that is a plain one.

        `None` while a part of a frame is held. A piece that is so, and has no line break in its
        data, is that frame, and need not be fed.
        """

    def end(self) -> list[Frame]:
        """The stream is over: what was held is the last frame, if it was one."""


class SseFramer:
    """Server-sent events as browsers read them, and as old llama.cpp servers write them.

    Since b1542 a llama-server tells of an error as a field of its own, `error: {...}`: that is
    the event `error` with this data (llama.cpp #4131; gone in b6523).
    """

    __slots__ = ("_first", "_held", "_limit", "_size", "_tail")

    def __init__(self, limit: int = MAX_FRAME) -> None:
        self._held: list[bytes] = []
        """What is not whole yet, as it came: it is put together once, when it is."""
        self._size = 0
        self._tail = b""
        """The last two bytes of that."""
        self._limit = limit
        self._first = True

    def feed(self, piece: bytes) -> list[Frame]:
        """Take the next piece; return the events that are now whole.

        Raises:
            Malformed: one event is larger than the limit.
        """
        # Most pieces are events of one line each, and no part of another.
        if (
            not self._size
            and piece.startswith(_PLAIN_START)
            and piece.endswith(b"\n\n")
            and len(piece) <= self._limit
            and b"\r" not in piece
        ):
            self._first = False
            if piece.find(b"\n") == len(piece) - 2:
                return [Frame("", piece[6:-2])]
            lines = piece[6:-2].split(_PLAIN_NEXT)
            if piece.count(b"\n") == 2 * len(lines):
                return [Frame("", line) for line in lines]
        self._held.append(piece)
        self._size += len(piece)
        last = self._tail + piece
        self._tail = last[-2:]
        if self._size <= self._limit + 2 and not self._first and not _has_empty_line(last):
            return []
        return self._take(b"".join(self._held))

    def _take(self, data: bytes) -> list[Frame]:
        """Read what is whole, and hold the rest."""
        if self._first and data:
            if b"\xef\xbb\xbf".startswith(data):
                self._hold(data)
                return []
            self._first = False
            data = data.removeprefix(b"\xef\xbb\xbf")
        if b"\r" in data:
            data = self._unify(data)
        blocks = data.split(b"\n\n")
        rest = blocks.pop()
        self._hold(rest)
        # What is held may end in half of the empty line: that is not part of the event.
        if len(rest) > self._limit + 2:
            raise self._too_large()
        frames: list[Frame] = []
        one_line_each = data.count(b"\n") == 2 * len(blocks)
        for block in blocks:
            if len(block) > self._limit:
                raise self._too_large()
            if block.startswith(_PLAIN_START) and (one_line_each or b"\n" not in block):
                frames.append(Frame("", block[6:]))
            elif block:
                self._read(block, frames)
        return frames

    def around(self) -> tuple[bytes, bytes] | None:
        """What is before and after the data of an event that is one line."""
        return None if self._size or self._first else (_PLAIN_START, b"\n\n")

    def _hold(self, data: bytes) -> None:
        self._held = [data] if data else []
        self._size = len(data)
        self._tail = data[-2:]

    def end(self) -> list[Frame]:
        """The stream is over: what was held is the last event, if it was one."""
        held = _LINE_END.sub(b"\n", b"".join(self._held)).rstrip(b"\n")
        self._hold(b"")
        frames: list[Frame] = []
        if held:
            self._read(held, frames)
        return frames

    def _too_large(self) -> Malformed:
        return Malformed(f"An event of the stream is larger than {self._limit} bytes.")

    @staticmethod
    def _unify(data: bytes) -> bytes:
        # A CR at the very end may be half of a CRLF: it waits for what comes next.
        if data.endswith(b"\r"):
            return _LINE_END.sub(b"\n", data[:-1]) + b"\r"
        return _LINE_END.sub(b"\n", data)

    @staticmethod
    def _read(block: bytes, frames: list[Frame]) -> None:
        event, lines, comment = "", [], False
        for line in block.split(b"\n"):
            name, colon, value = line.partition(b":")
            value = value.removeprefix(b" ")
            if name == b"data":
                lines.append(value)
            elif name == b"error":
                event = "error"
                lines.append(value)
            elif name == b"event":
                event = value.decode("utf-8", "replace")
            elif colon and not name:
                comment = True
        if lines:
            frames.append(Frame(event, b"\n".join(lines)))
        elif comment:
            frames.append(Frame(COMMENT, b""))


def _has_empty_line(data: bytes) -> bool:
    """Whether an event ends in these bytes, or will with the next one."""
    return b"\n\n" in data or (b"\r" in data and _EMPTY_LINE.search(data) is not None)


class LineFramer:
    """Lines of JSON (NDJSON). An empty line, and the space before a line, say nothing."""

    __slots__ = ("_held", "_limit", "_size")

    def __init__(self, limit: int = MAX_FRAME) -> None:
        self._held: list[bytes] = []
        """The line that is not whole yet, as it came."""
        self._size = 0
        self._limit = limit

    def feed(self, piece: bytes) -> list[Frame]:
        """Take the next piece; return the lines that are now whole.

        Raises:
            Malformed: one line is larger than the limit.
        """
        first, *rest = piece.split(b"\n")
        self._held.append(first)
        self._size += len(first)
        if not rest:
            self._check(self._size)
            return []
        lines = [b"".join(self._held), *rest]
        self._hold(lines.pop())
        return [frame for line in lines for frame in self._read(line)]

    def end(self) -> list[Frame]:
        """The stream is over: what was held is the last line, if it was one."""
        held = b"".join(self._held)
        self._hold(b"")
        return self._read(held)

    def around(self) -> tuple[bytes, bytes] | None:
        """What is before and after the data of a line."""
        return None if self._size else (b"", b"\n")

    def _hold(self, data: bytes) -> None:
        self._check(len(data))
        self._held, self._size = [data], len(data)

    def _read(self, line: bytes) -> list[Frame]:
        self._check(len(line))
        line = line.strip(b" \t\r")
        return [Frame("", line)] if line else []

    def _check(self, size: int) -> None:
        if size > self._limit:
            raise Malformed(f"A line of the stream is larger than {self._limit} bytes.")


_FRAMERS: dict[str, type[SseFramer | LineFramer]] = {
    "text/event-stream": SseFramer, "application/x-ndjson": LineFramer,
}  # fmt: skip


def framer(content_type: str) -> Framer | None:
    """A framer for a stream of this type; `None` if it is no stream."""
    kind = _FRAMERS.get(content_type.partition(";")[0].strip().lower())
    return None if kind is None else kind()


def sse(data: bytes, event: str = "") -> bytes:
    """One server-sent event. `data` is JSON, which never holds a line break."""
    if event:
        return b"event: %b\ndata: %b\n\n" % (event.encode(), data)
    return b"data: %b\n\n" % data


SSE_DONE = b"data: [DONE]\n\n"
SSE_PING = b": ping\n\n"
