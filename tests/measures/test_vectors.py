"""Vectors, to the bit."""

from __future__ import annotations

import base64
import math
import struct
import sys
from array import array

import msgspec
import pytest
from hypothesis import given
from hypothesis import strategies as st

from tropilla.ir import Malformed
from tropilla.measures import _vectors

SINGLES = st.lists(st.floats(width=32, allow_nan=False, allow_infinity=False), min_size=1)


def wire(numbers: list[float]) -> str:
    return base64.b64encode(struct.pack(f"<{len(numbers)}f", *numbers)).decode()


@given(SINGLES)
def test_base64_is_little_endian_float32(numbers: list[float]) -> None:
    vector = _vectors.read(numbers)
    assert msgspec.json.encode(_vectors.little_endian(vector)).decode() == f'"{wire(numbers)}"'


@given(SINGLES.filter(lambda numbers: math.isfinite(sum(numbers))))
def test_base64_and_numbers_are_the_same_vector(numbers: list[float]) -> None:
    assert _vectors.read(wire(numbers)).tolist() == _vectors.read(numbers).tolist() == numbers


def test_another_machines_bytes_are_turned_round(monkeypatch: pytest.MonkeyPatch) -> None:
    other = "big" if sys.byteorder == "little" else "little"
    expected = array("f", [1.5, -2.0])
    expected.byteswap()
    monkeypatch.setattr(sys, "byteorder", other)
    swapped = _vectors.little_endian(array("d", [1.5, -2.0]))
    assert (swapped == expected.tobytes()) is (other == "big")


def test_numbers_keep_every_digit() -> None:
    # Ollama writes float32 in the fewest digits, others double precision: neither is rounded.
    said = [0.1, 0.012345678, 1e-300, 3]
    assert _vectors.read(said).tolist() == said


@pytest.mark.parametrize(
    "said",
    [
        None, {}, [], "", "!", "AAA=", "AAAAAAA=", [[1.0]], [None], ["1"], [1.0, {}], 5,
        [10**400], base64.b64encode(struct.pack("<f", math.nan)).decode(),
        base64.b64encode(struct.pack("<2f", math.inf, -math.inf)).decode(),
    ],
)  # fmt: skip
def test_what_is_no_vector_is_malformed(said: object) -> None:
    with pytest.raises(Malformed):
        _vectors.read(said)


def test_holes_are_zeros_where_they_are_known() -> None:
    assert _vectors.read([1.0, None, 2.0], holes=True).tolist() == [1.0, 0.0, 2.0]


def test_a_shortened_vector_has_length_one() -> None:
    short = _vectors.shortened(array("d", [3.0, 4.0, 12.0]), 2)
    assert short.tolist() == [0.6, 0.8]
    assert _vectors.shortened(array("d", [0.0, 0.0, 1.0]), 2).tolist() == [0.0, 0.0]
