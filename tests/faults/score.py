"""What a scenario comes to: lines, each with what was demanded and what was measured.

A line names its control: the mechanism (of `launch.SWITCHES`) without which it must fail.
"""

from __future__ import annotations

from collections.abc import Awaitable, Callable, Sequence
from dataclasses import dataclass, field
from typing import TypeAlias

Scenario: TypeAlias = Callable[["Run"], Awaitable[list["Line"]]]


@dataclass(frozen=True)
class Run:
    """How a scenario is to be played."""

    scale: float = 1.0
    """1 is all of it; a part of that has fewer rounds, and shorter ones."""
    off: tuple[str, ...] = ()
    """The mechanisms that are switched off."""

    def some(self, number: int, least: int = 1) -> int:
        """So many, or as many as the scale leaves of them."""
        return max(least, round(number * self.scale))

    def seconds(self, number: float, least: float) -> float:
        """So long, or as long as the scale leaves of it."""
        return max(least, number * self.scale)


@dataclass(frozen=True)
class Line:
    """One promise."""

    what: str
    demanded: str
    measured: float
    passed: bool
    control: str
    unit: str = ""
    more: dict[str, float] = field(default_factory=dict)
    """What belongs to it, and is not demanded."""


def at_most(
    what: str, limit: float, measured: float, control: str, unit: str = "", **more: float
) -> Line:
    """A line that wants little."""
    demanded = f"at most {limit:g} {unit}".rstrip() if limit else f"no {unit}".rstrip()
    return Line(what, demanded, measured, measured <= limit, control, unit, more)


def at_least(
    what: str, limit: float, measured: float, control: str, unit: str = "", **more: float
) -> Line:
    """A line that wants much."""
    demanded = f"at least {limit:g} {unit}".rstrip()
    return Line(what, demanded, measured, measured >= limit, control, unit, more)


def percentile(values: Sequence[float], part: float) -> float:
    """The value that so large a part does not exceed; `inf` where there is none."""
    ordered = sorted(values)
    return ordered[min(len(ordered) - 1, int(len(ordered) * part))] if ordered else float("inf")
