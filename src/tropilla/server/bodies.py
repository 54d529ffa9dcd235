"""What a client sends, as bytes and as JSON, which is read in a bounded time.

Nothing else happens while JSON is decoded, and a thread would not change that. Text is decoded at
gigabytes a second, but what is not text may take a thousand times as long for its size: lists of
nothing, objects of one name each, numbers with exponents. So of a large body these are counted
before it is decoded, which takes a few milliseconds.
"""

from __future__ import annotations

import re

import msgspec

from tropilla.ir import Json, JsonObject, Malformed

MOST_BRACKETS = 200_000
"""Objects and arrays."""
MOST_STRINGS = 150_000
MOST_VALUES = 1_500_000
"""Numbers and all else, as far as commas tell."""
MOST_EXPONENTS = 2000
"""Numbers such as 1e-300: each may take 25 microseconds."""
_SMALL = 128 * 1024
"""Bytes that may hold anything."""
_MEDIA = re.compile(rb"[A-Za-z0-9+/=]{4096,}+")
"""What is in base64: it is read at once, however long it is."""


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
    if len(body) > _SMALL:
        _weigh(body)
    try:
        value: Json = msgspec.json.decode(body)
    except RecursionError:
        raise Malformed("The JSON of the body is nested too deeply.") from None
    except (msgspec.DecodeError, UnicodeDecodeError) as error:
        raise Malformed(f"The body is not JSON: {error}.") from None
    if type(value) is not dict:
        raise Malformed("The body is not a JSON object.")
    return value


def _weigh(body: bytes) -> None:
    """See that a large body is mostly text."""
    if b"\\" in body:
        # Of a run of backslashes each second one is escaped: then only quotes are, by what is left.
        body = body.replace(b"\\\\", b"").replace(b'\\"', b"")
    if body.count(b'"') > 2 * MOST_STRINGS:
        raise _too_much(MOST_STRINGS, "texts")
    bare = b"".join(body.split(b'"')[::2])
    if bare.count(b"{") + bare.count(b"[") > MOST_BRACKETS:
        raise _too_much(MOST_BRACKETS, "objects and arrays")
    if bare.count(b",") > MOST_VALUES:
        raise _too_much(MOST_VALUES, "values")
    exponents = bare.count(b"e") + bare.count(b"E")
    if exponents - bare.count(b"true") - bare.count(b"false") > MOST_EXPONENTS:
        raise _too_much(MOST_EXPONENTS, "numbers with an exponent")


def _too_much(most: int, what: str) -> Malformed:
    return Malformed(f"The body holds more than {most} {what}.", code="body_too_complex")
