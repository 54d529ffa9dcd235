"""Whether something grows: the slope through what was counted, and what is flat."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from itertools import combinations
from statistics import median
from typing import NamedTuple

WARMING = 0.25
"""The part of a soak in which what is made once may still be made."""
LIMITS: dict[str, float] = {
    "files": 2, "tasks": 2, "leases": 0, "requests": 0, "memory": 8 * 2**20,
}  # fmt: skip
"""By how much each may grow from the end of the warming to the end, as its slope says."""


class Slope(NamedTuple):
    """How one thing that was counted went."""

    what: str
    first: float
    last: float
    an_hour: float
    grown: float
    """The slope, over all the time that counts."""
    limit: float

    @property
    def flat(self) -> bool:
        """Whether it does not grow."""
        return self.grown <= self.limit


class Sample(NamedTuple):
    """What was counted in a moment of rest."""

    seconds: float
    counts: Mapping[str, float]


def slope(points: Sequence[tuple[float, float]]) -> float:
    """The median of the slopes between any two points (Theil and Sen): no outlier bends it."""
    steep = [(y2 - y1) / (x2 - x1) for (x1, y1), (x2, y2) in combinations(points, 2) if x2 > x1]
    return median(steep) if steep else 0.0


def slopes(samples: Sequence[Sample]) -> list[Slope]:
    """How everything went that there is a limit of, once it was warm."""
    warm = samples[int(len(samples) * WARMING) :]
    span = warm[-1].seconds - warm[0].seconds
    found = []
    for what, limit in LIMITS.items():
        points = [(one.seconds, one.counts[what]) for one in warm]
        steep = slope(points)
        found.append(Slope(what, points[0][1], points[-1][1], steep * 3600, steep * span, limit))
    return found
