"""What a client sends, as bytes and as JSON."""

from __future__ import annotations

import re

import msgspec

from tropilla.ir import Json, JsonObject, Malformed

_MEDIA = re.compile(rb"[A-Za-z0-9+/=]{4096,}+")
"""What is in base64: it is read at once, however long it is."""


def media_in(body: bytes) -> int:
    """How many bytes of a body are in base64."""
    return sum(one.end() - one.start() for one in _MEDIA.finditer(body))


def json_object(body: bytes) -> JsonObject:
    """A client's JSON, whatever its Content-Type says.

    Raises:
        Malformed: it is none, or no object.
    """
    if not body.strip():
        raise Malformed("The request has no body: a JSON object is expected.")
    try:
        value: Json = msgspec.json.decode(body)
    except RecursionError:
        raise Malformed("The JSON of the body is nested too deeply.") from None
    except (msgspec.DecodeError, UnicodeDecodeError) as error:
        raise Malformed(f"The body is not JSON: {error}.") from None
    if type(value) is not dict:
        raise Malformed("The body is not a JSON object.")
    return value
