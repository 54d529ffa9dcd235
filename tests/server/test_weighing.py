"""Bodies that would hold up everybody while they are read: counted first, and refused."""

from __future__ import annotations

import msgspec
import pytest

from tropilla.ir import Malformed
from tropilla.server import bodies
from tropilla.server.bodies import json_object

TEXT = b'{"a":"%b","b":[%b]}'
FILL = b"x" * 200_000
"""A small body may hold anything."""


def body(units: bytes, times: int, text: bytes = FILL) -> bytes:
    return TEXT % (text, b",".join([units] * times))


SHAPES = {
    "arrays": (b"[]", bodies.MOST_BRACKETS, "arrays"),
    "objects": (b"{}", bodies.MOST_BRACKETS, "objects"),
    "texts": (b'""', bodies.MOST_STRINGS, "texts"),
    "names that end in backslashes": (b'{"\\\\":0}', bodies.MOST_STRINGS, "texts"),
    "numbers": (b"0", bodies.MOST_VALUES, "values"),
    "exponents": (b"1e-300", bodies.MOST_EXPONENTS, "exponent"),
    "large exponents": (b"1E-300", bodies.MOST_EXPONENTS, "exponent"),
}


@pytest.mark.parametrize(("unit", "most", "word"), SHAPES.values(), ids=SHAPES.keys())
def test_what_takes_long_is_counted(unit: bytes, most: int, word: str) -> None:
    with pytest.raises(Malformed, match=word) as caught:
        json_object(body(unit, most + 2))
    assert str(most) in caught.value.problem.message
    assert len(json_object(body(unit, most - 20))["b"]) == most - 20


@pytest.mark.parametrize(
    "text",
    [
        b'\\"' * 500_000, b"[{" * 300_000, b"1e5, " * 300_000, b"\\\\\\n" * 300_000,
        b'{\\"a\\\\\\": [1e-5, true]}' * 60_000, "\u00e9".encode() * 400_000, b"," * 2_000_000,
    ],
    ids=lambda text: repr(text[:9]),
)  # fmt: skip
def test_what_is_in_a_text_counts_for_nothing(text: bytes) -> None:
    data = body(b'true,false,null,"e[{,"', 400, text)
    assert json_object(data) == msgspec.json.decode(data)


@pytest.mark.parametrize("text", [b"", FILL, b'[{\\"[' * 300], ids=["small", "large", "brackets"])
def test_depth_is_bounded(text: bytes) -> None:
    def nested(depth: int, aside: bytes = b"") -> bytes:
        return TEXT % (text, aside + b'{"a]":[' * (depth // 2) + b"]}" * (depth // 2))

    most = bodies.MOST_DEPTH - 2  # beside the body itself, and the list in it
    beside = b'[{"x":[[1],[2]]}],' * 1000
    assert json_object(nested(most)) == msgspec.json.decode(nested(most))
    assert json_object(nested(most, beside)) == msgspec.json.decode(nested(most, beside))
    for aside in (b"", beside):
        with pytest.raises(Malformed, match=f"nested more than {bodies.MOST_DEPTH} deep"):
            json_object(nested(most + 2, aside))


def test_a_small_body_may_hold_anything() -> None:
    data = body(b"1e-300", bodies.MOST_EXPONENTS + 100, b"")
    assert len(data) < bodies._SMALL
    assert len(json_object(data)["b"]) == bodies.MOST_EXPONENTS + 100
