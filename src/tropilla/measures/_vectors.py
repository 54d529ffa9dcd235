"""Vectors: read from numbers or base64, cut to a size, written as little-endian float32."""

from __future__ import annotations

import math
import sys
from array import array
from base64 import b64decode

from tropilla.ir import Json, Malformed
from tropilla.measures import Vector


def read(value: Json, *, holes: bool = False) -> Vector:
    """A vector, as an upstream says it; with `holes`, a number may be null, and is 0 then.

    Raises:
        Malformed: it is none, or holds something that is no finite number.
    """
    try:
        if type(value) is str:
            vector = _singles(value)
        elif type(value) is list:
            vector = array("d", [item or 0 for item in value] if holes else value)
        else:
            raise TypeError
    except (TypeError, ValueError, OverflowError):
        raise Malformed("A vector of the upstream is no list of numbers.") from None
    if not vector:
        raise Malformed("A vector of the upstream is empty.")
    if not math.isfinite(sum(vector)):
        raise Malformed("A vector of the upstream holds something that is no finite number.")
    return vector


def _singles(text: str) -> Vector:
    vector = array("f")
    vector.frombytes(b64decode(text, validate=True))
    return _swapped(vector)


def _swapped(vector: Vector) -> Vector:
    """The same bytes read the other way round, where the wire's way is not the machine's."""
    if sys.byteorder == "big":
        vector.byteswap()
    return vector


def little_endian(vector: Vector) -> bytes:
    """The bytes of a vector of float32, which become base64 where they are put into JSON."""
    return _swapped(array("f", vector)).tobytes()


def shortened(vector: Vector, size: int) -> Vector:
    """The beginning of a vector, with a length of 1 again, as OpenAI's models shorten theirs."""
    head = vector[:size]
    length = math.hypot(*head)
    return array("d", [number / length for number in head]) if length else head
