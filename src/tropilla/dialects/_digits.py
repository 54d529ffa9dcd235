"""Numbers within bounds, as text of a grammar (`_grammar`)."""

from __future__ import annotations

import math
from typing import NamedTuple

_MOST_DIGITS = 18
"""Of a whole part: they fit into 64 bits."""


class Bound(NamedTuple):
    """Where numbers begin or end; an open one is no more among them."""

    at: float
    open: bool = False


def nested(item: str, most: int) -> str:
    """Up to so many of an item. Nested, because a row of `item?` slows a server down (#4218)."""
    return f"({item} " * (most - 1) + f"({item})?" + ")?" * (most - 1)


DIGITS = {
    "number": 'integer ("." digits)? ([eE] [-+]? [0-9] [0-9]?)?',
    "integer": '"-"? ("0" | [1-9] ' + nested("[0-9]", 17) + ")",
    "digits": "[0-9] " + nested("[0-9]", 15),
    "decimals": "[0-9] " + nested("[0-9]", 8),
    "above-zero": nested('"0"', 8) + " [1-9] " + nested("[0-9]", 8),
    "zeros": '"0" ' + nested('"0"', 8),
}
"""The rules of numbers. They have an end: else a model that divides by three has none.

Beside bounds there are fewer digits, so that reading them does not round a number to its bound.
"""


def integers(low: Bound, high: Bound) -> str:
    """Whole numbers within bounds; empty where there are none."""
    low, high = _ended(low, high)
    least = math.floor(low.at) + 1 if low.open else math.ceil(low.at)
    most = math.ceil(high.at) - 1 if high.open else math.floor(high.at)
    if least > most:
        return ""
    texts = []
    if least < 0:
        texts.append(f'"-" ({_span(max(1, -most), -least)})')
    if most >= 0:
        texts.append(_span(max(0, least), most))
    return f"({' | '.join(texts)})"


def numbers(low: Bound, high: Bound) -> str:
    """Numbers within bounds, which are whole themselves; empty where there are none."""
    low, high = _ended(low, high)
    if low.at > high.at or (low.at == high.at and (low.open or high.open)):
        return ""
    texts = []
    if low.at < 0:
        near = Bound(max(0, -high.at), high.open and high.at <= 0)
        texts.append(f'"-" ({_decimals(near, low._replace(at=-low.at))})')
    if high.at > 0 or (high.at == 0 and not high.open):
        texts.append(_decimals(Bound(max(0, low.at), low.open and low.at >= 0), high))
    return f"({' | '.join(texts)})"


def _ended(low: Bound, high: Bound) -> tuple[Bound, Bound]:
    """The bounds, no further out than the digits of a whole part reach."""
    end = Bound(10**_MOST_DIGITS, open=True)
    return (
        low if low.at > -end.at else end._replace(at=-end.at),
        high if high.at < end.at else end,
    )


def _decimals(low: Bound, high: Bound) -> str:
    """Decimals within bounds, both of them zero or more."""
    first, last = int(low.at), int(high.at)
    texts = []
    if low.open:
        texts.append(f'"{first}." above-zero')
    if (after := first + low.open) < last:
        texts.append(f'({_span(after, last - 1)}) ("." decimals)?')
    if not high.open:
        texts.append(f'"{last}" ("." zeros)?')
    return " | ".join(texts)


def _span(least: int, most: int) -> str:
    """Whole numbers, zero or more: the shorter ones first."""
    texts = []
    while least <= most:
        digits = len(str(least))
        last = min(most, 10**digits - 1)
        if least == 10 ** (digits - 1) and (longest := len(str(most + 1)) - 1) > digits:
            # All that are no longer than this.
            last = 10**longest - 1
            texts.append(
                "[1-9]" + " [0-9]" * (digits - 1) + f" {nested('[0-9]', longest - digits)}"
            )
        else:
            texts.append(_alike(str(least), str(last)))
        least = last + 1
    return " | ".join(texts)


def _alike(least: str, most: str) -> str:
    """Whole numbers of one length."""
    rest = len(least) - 1
    first, last = int(least[0]), int(most[0])
    if not rest:
        return _digit(first, last)
    if first == last:
        return f"{_digit(first, last)} ({_alike(least[1:], most[1:])})"
    texts = []
    if least[1:].strip("0"):
        texts.append(f"{_digit(first, first)} ({_alike(least[1:], '9' * rest)})")
        first += 1
    ends = most[1:].strip("9")
    if ends:
        last -= 1
    if first <= last:
        texts.append(_digit(first, last) + " [0-9]" * rest)
    if ends:
        texts.append(f"{_digit(last + 1, last + 1)} ({_alike('0' * rest, most[1:])})")
    return " | ".join(texts)


def _digit(first: int, last: int) -> str:
    return f'"{first}"' if first == last else f"[{first}-{last}]"
