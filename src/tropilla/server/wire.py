"""The bytes of HTTP/1.1 requests, read strictly: what is not clearly one request is none.

A request that two readers could take for different ones (two lengths, a bare line feed, a folded
line) is refused, not guessed at: behind a proxy it would be a way to slip in another. Pure: bytes
in, values out.

Of RFC 9112 this takes origin-form targets, bodies of a known length or in chunks, and HTTP/1.0 for
the sake of old clients. There is no upgrade to another protocol: a wish for one is passed over.
"""

from __future__ import annotations

import re
from typing import NamedTuple, Protocol

MOST_HEAD = 32 * 1024
"""Bytes of a head, and of what may follow the last chunk."""
MOST_FIELDS = 100

_TOKEN = rb"[!#$%&'*+.^_`|~0-9A-Za-z-]"
_LINE = re.compile(rb"(%b{1,32}+) (/[!\x22$-~]*+|\*) HTTP/1\.([01])" % _TOKEN)
_FIELDS = re.compile(rb"(?:%b++:[\t\x20-\x7e\x80-\xff]*+\r\n)*+" % _TOKEN)
_HOST = re.compile(rb"(?:[A-Za-z0-9._~!$&'()*+,;=%-]++|\[[0-9A-Fa-f:.]++\])(?::[0-9]{0,5})?")
_LENGTH = re.compile(rb"[0-9]{1,15}")
_SIZE = re.compile(rb"([0-9A-Fa-f]{1,8})(?:[\t ]*;[\t\x20-\x7e\x80-\xff]*)?")
_MOST_SIZE_LINE = 256
_SMALL = 4096
_ONCE = frozenset({b"host", b"content-length", b"transfer-encoding"})


class Refused(Exception):  # noqa: N818 - no error of ours
    """These bytes are no request that is served here; `status` says why in HTTP's words."""

    def __init__(self, message: str, status: int = 400) -> None:
        super().__init__(message)
        self.message = message
        self.status = status


class Head(NamedTuple):
    """What a request says of itself before its body."""

    method: str
    path: str
    """As it was sent: nothing in it is unescaped."""
    query: str
    headers: dict[bytes, bytes]
    """Names in lower case; what came several times is joined by commas, in order."""
    length: int | None
    """Of the body, in bytes; `None` if it comes in chunks."""
    keeps: bool
    """Whether the client wants the connection for another request."""
    old: bool
    """Whether the client speaks HTTP/1.0, and so knows no chunks."""


def parse_head(data: bytes) -> Head:
    """Read a head; `data` ends with its last line break, before the empty line.

    Raises:
        Refused: it is not one, or could be taken for something else.
    """
    first, _, rest = data.partition(b"\r\n")
    line = _LINE.fullmatch(first)
    if line is None or (line[2] == b"*" and line[1] != b"OPTIONS"):
        raise Refused(what_is_wrong_with(first))
    if _FIELDS.fullmatch(rest) is None:
        raise Refused("A header is not one: NAME: VALUE is expected, in lines that end in CR LF.")
    lines = rest.split(b"\r\n")
    if len(lines) > MOST_FIELDS + 1:  # the last one is empty
        raise Refused(f"There are more than {MOST_FIELDS} headers.", 431)
    headers: dict[bytes, bytes] = {}
    for one in lines[:-1]:
        name, _, value = one.partition(b":")
        name, value = name.lower(), value.strip(b" \t")
        if name in headers:
            if name in _ONCE:
                raise Refused(f"There are two headers {name.decode()}.")
            value = headers[name] + b", " + value
        headers[name] = value
    old = line[3] == b"0"
    host = headers.get(b"host")
    if host is None:
        if not old:
            raise Refused("There is no Host header.")
    elif _HOST.fullmatch(host) is None:
        raise Refused("The Host header is no host.")
    wishes = headers.get(b"connection", b"").lower()
    path, _, query = line[2].decode("ascii").partition("?")
    return Head(
        method=line[1].decode("ascii"),
        path=path,
        query=query,
        headers=headers,
        length=_length(headers, old=old),
        keeps="keep-alive" in _words(wishes) if old else "close" not in _words(wishes),
        old=old,
    )


def _words(value: bytes) -> list[str]:
    return [word.strip() for word in value.decode("latin-1").split(",")] if value else []


def what_is_wrong_with(line: bytes) -> str:
    """Why this is not the first line of a request."""
    if line.startswith(b"\x16\x03"):
        return "This is TLS, and here is plain HTTP: use an http:// address."
    words = line.split(b" ")
    if len(words) == 3 and words[2].startswith(b"HTTP/") and words[2] not in _VERSIONS:
        return "Only HTTP/1.1 is spoken here."
    if len(words) == 3 and words[2] in _VERSIONS and not words[1].startswith(b"/"):
        return "The target of a request must be a path, from its first slash on."
    if len(words) == 3 and words[2] in _VERSIONS and b"#" in words[1]:
        return "The target of a request has no fragment (#)."
    return "This is not HTTP: METHOD /PATH HTTP/1.1 is expected."


_VERSIONS = (b"HTTP/1.0", b"HTTP/1.1")


def _length(headers: dict[bytes, bytes], *, old: bool) -> int | None:
    length, coding = headers.get(b"content-length"), headers.get(b"transfer-encoding")
    if coding is not None:
        if length is not None:
            raise Refused("Content-Length and Transfer-Encoding exclude each other.")
        if old:
            raise Refused("HTTP/1.0 has no Transfer-Encoding.")
        if coding.lower() != b"chunked":
            raise Refused("The only Transfer-Encoding here is chunked.", 501)
        return None
    if length is None:
        return 0
    if _LENGTH.fullmatch(length) is None:
        raise Refused("Content-Length is no number of bytes.")
    return int(length)


class Body(Protocol):
    """The bytes of one body, as they come."""

    size: int
    """Bytes of the body so far."""
    complete: bool

    def feed(self, data: bytes) -> bytes:
        """Take what belongs to this body; what follows it is given back.

        Raises:
            Refused: this is no body.
        """

    def take(self) -> bytes:
        """All that has come; none of it is kept."""

    def drop(self) -> None:
        """Nobody wants what has come."""


class Sized:
    """A body whose length was told."""

    def __init__(self, length: int) -> None:
        self._pieces: list[bytes] = []
        self.size = 0
        self.length = length
        self.complete = not length

    def feed(self, data: bytes) -> bytes:
        """Take what belongs to this body; what follows it is given back."""
        lacks = self.length - self.size
        if len(data) < lacks:
            self._pieces.append(data)
            self.size += len(data)
            return b""
        self.complete = True
        self.size = self.length
        self._pieces.append(data if len(data) == lacks else data[:lacks])
        return data[lacks:]

    def take(self) -> bytes:
        """All that has come; none of it is kept."""
        pieces, self._pieces = self._pieces, []
        return pieces[0] if len(pieces) == 1 else b"".join(pieces)

    def drop(self) -> None:
        """Nobody wants what has come."""
        self._pieces.clear()


class Chunked:
    """A body in chunks; what follows the last one is checked, and let go."""

    def __init__(self) -> None:
        self._pieces: list[bytes | bytearray] = []
        self.size = 0
        self.complete = False
        self._held = b""
        self._lacks = 0
        """Bytes of the present chunk that have not come, its line break included."""
        self._trails = False
        self._trailed = 0
        """Bytes of what follows the last chunk."""

    def feed(self, data: bytes) -> bytes:
        """Take what belongs to this body; what follows it is given back.

        Raises:
            Refused: this is not in chunks.
        """
        data = self._held + data if self._held else data
        at = 0
        while not self.complete:
            if self._lacks:
                at = self._take(data, at)
                if self._lacks:
                    break
                continue
            end = data.find(b"\r\n", at)
            if self._trails:
                if end < 0:
                    break
                at = self._trailer(data, at, end)
            elif end < 0 or end - at > _MOST_SIZE_LINE:
                if len(data) - at > _MOST_SIZE_LINE:
                    raise Refused("The size of a chunk is expected.")
                break
            else:
                size = _SIZE.fullmatch(data, at, end)
                if size is None:
                    raise Refused("The size of a chunk is expected.")
                at = end + 2
                self._lacks = int(size[1], 16)
                self._trails = not self._lacks
                self._lacks += 2 if self._lacks else 0
        self._held = b"" if self.complete else data[at:]
        if self._trailed + len(self._held) > MOST_HEAD:
            raise Refused("What follows the last chunk is too large.", 431)
        return data[at:] if self.complete else b""

    def _take(self, data: bytes, at: int) -> int:
        """Some of the present chunk; its line break only as a whole."""
        here = len(data) - at
        body = min(self._lacks - 2, here)
        if body > 0:
            self._keep(data[at : at + body])
            self.size += body
            self._lacks -= body
            at += body
            here -= body
        if self._lacks == 2 and here >= 2:
            if data[at : at + 2] != b"\r\n":
                raise Refused("A chunk is longer than its size.")
            self._lacks = 0
            at += 2
        return at

    def take(self) -> bytes:
        """All that has come; none of it is kept."""
        pieces, self._pieces = self._pieces, []
        return b"".join(pieces)

    def drop(self) -> None:
        """Nobody wants what has come."""
        self._pieces.clear()

    def _keep(self, piece: bytes) -> None:
        """Keep a piece; small ones together, for a chunk may be one byte."""
        if len(piece) >= _SMALL:
            self._pieces.append(piece)
            return
        last = self._pieces[-1] if self._pieces else b""
        if isinstance(last, bytearray) and len(last) < _SMALL:
            last += piece
        else:
            self._pieces.append(bytearray(piece))

    def _trailer(self, data: bytes, at: int, end: int) -> int:
        if end == at:
            self.complete = True
        elif _FIELDS.fullmatch(data, at, end + 2) is None:
            raise Refused("What follows the last chunk is no header.")
        self._trailed += end + 2 - at
        return end + 2


def body_of(head: Head) -> Body:
    """Where the body of a request goes."""
    return Chunked() if head.length is None else Sized(head.length)
