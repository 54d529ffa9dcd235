"""What a client sends, as bytes and as JSON, which is read in a bounded time.

Nothing else happens while JSON is decoded, and a thread would not change that. Text is decoded at
gigabytes a second, but what is not text may take a thousand times as long for its size: lists of
nothing, objects of one name each, numbers with exponents. So of a large body these are counted
before it is decoded, which takes a few milliseconds.
"""

from __future__ import annotations

import re
from array import array
from itertools import accumulate

import msgspec

from tropilla.ir import Json, JsonObject, Malformed

MOST_BRACKETS = 200_000
"""Objects and arrays."""
MOST_STRINGS = 150_000
MOST_VALUES = 1_500_000
"""Numbers and all else, as far as commas tell."""
MOST_EXPONENTS = 2000
"""Numbers such as 1e-300: each may take 25 microseconds."""
MOST_DEPTH = 200
"""Objects and arrays one in the other. Python reads 1000; but what was read is looked through, and
written again, where more of its stack is taken."""
_SMALL = 128 * 1024
"""Bytes that may hold anything."""
_MEDIA = re.compile(rb"[A-Za-z0-9+/=]{4096,}+")
"""What is in base64: it is read at once, however long it is."""
_STEPS = bytes.maketrans(b"{[]}", b"\x01\x01\xff\xff")
"""One more, or one less."""
_NO_STEPS = bytes(one for one in range(256) if one not in b"{[]}")


def media_in(body: bytes) -> int:
    """How many bytes of a body are in base64."""
    return sum(one.end() - one.start() for one in _MEDIA.finditer(body))


def json_object(body: bytes) -> JsonObject:
    """A client's JSON, whatever its Content-Type says.

    Raises:
        Malformed: it is none, or no object, or holds more than can be read at once.
    """
    if not body.strip():
        raise Malformed("The request has no body: a JSON object is expected.")
    large = len(body) > _SMALL
    if large or body.count(b"{") + body.count(b"[") > MOST_DEPTH:
        bare = _bare(body)
        if large:
            _weigh(bare)
        if _depth(bare) > MOST_DEPTH:
            raise Malformed(f"The JSON of the body is nested more than {MOST_DEPTH} deep.")
    try:
        value: Json = msgspec.json.decode(body)
    except (msgspec.DecodeError, UnicodeDecodeError) as error:
        raise Malformed(f"The body is not JSON: {error}.") from None
    if type(value) is not dict:
        raise Malformed("The body is not a JSON object.")
    return value


def _bare(body: bytes) -> bytes:
    """What is outside of its texts."""
    if b"\\" in body:
        # Of a run of backslashes each second one is escaped: then only quotes are, by what is left.
        body = body.replace(b"\\\\", b"").replace(b'\\"', b"")
    if body.count(b'"') > 2 * MOST_STRINGS:
        raise _too_much(MOST_STRINGS, "texts")
    return b"".join(body.split(b'"')[::2])


def _depth(bare: bytes) -> int:
    steps = array("b", bare.translate(_STEPS, _NO_STEPS))
    return max(accumulate(steps), default=0)


def _weigh(bare: bytes) -> None:
    """See that a large body is mostly text."""
    if bare.count(b"{") + bare.count(b"[") > MOST_BRACKETS:
        raise _too_much(MOST_BRACKETS, "objects and arrays")
    if bare.count(b",") > MOST_VALUES:
        raise _too_much(MOST_VALUES, "values")
    exponents = bare.count(b"e") + bare.count(b"E")
    if exponents - bare.count(b"true") - bare.count(b"false") > MOST_EXPONENTS:
        raise _too_much(MOST_EXPONENTS, "numbers with an exponent")


def _too_much(most: int, what: str) -> Malformed:
    return Malformed(f"The body holds more than {most} {what}.", code="body_too_complex")
