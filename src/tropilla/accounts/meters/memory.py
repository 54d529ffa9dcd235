"""Counted in this process, for as long as it lives.

What was spent before is told to it when it begins. Of several processes of one gateway each gives
out its own part, so that all of them together give no more than there is.
"""

from __future__ import annotations

import time
from collections.abc import Callable, Sequence
from datetime import UTC, datetime

import msgspec

from tropilla.accounts.limits import (
    NOTHING,
    Amount,
    Date,
    Hold,
    Refused,
    Scope,
    Spending,
    Standings,
    Tally,
    reserve,
    standings,
)
from tropilla.config import LimitsConfig

_DAY = 86400


class Memory:
    """A meter. `clock` goes on, `wall` tells seconds since 1970.

    `part` is which process this is, and of how many.
    A wall that is set back brings no day back: what was spent in it was spent.
    """

    def __init__(
        self,
        clock: Callable[[], float] = time.monotonic,
        wall: Callable[[], float] = time.time,
        part: tuple[int, int] = (0, 1),
    ) -> None:
        self._clock = clock
        self._wall = wall
        self._part = part
        self._date = Date(-1, 0)
        self._tallies: dict[str, Tally] = {}

    def take(self, spending: Spending) -> None:
        """So much was spent before."""
        for name, tokens, money, month, day in spending:
            tally = self._tally(name)
            tally.turn(self._today())
            tally.add(self._own(tokens), self._own(money), month=month, day=day)

    async def reserve(self, scopes: Sequence[Scope], amount: Amount) -> Hold | Refused:
        """As `Meter` says."""
        return reserve(self._pairs(scopes), amount, self._clock(), self._today())

    def settle(self, hold: Hold, used: Amount) -> None:
        """As `Meter` says."""
        if not hold.settled:
            hold.settled = True
            now = self._clock()
            for scope in hold.scopes:
                self._tallies[scope.name].settle(scope, hold, used, now)

    def release(self, hold: Hold) -> None:
        """As `Meter` says."""
        self.settle(hold, NOTHING)
        if hold.open:
            hold.open = False
            for scope in hold.scopes:
                self._tallies[scope.name].open -= 1

    def look(self, scopes: Sequence[Scope]) -> Standings:
        """As `Meter` says."""
        return standings(self._pairs(scopes), self._clock())

    def _today(self) -> Date:
        day = int(self._wall()) // _DAY
        if day > self._date.day:
            date = datetime.fromtimestamp(day * _DAY, UTC)
            self._date = Date(day, date.year * 12 + date.month - 1)
        return self._date

    def _tally(self, name: str) -> Tally:
        tally = self._tallies.get(name)
        if tally is None:
            tally = self._tallies[name] = Tally()
        return tally

    def _pairs(self, scopes: Sequence[Scope]) -> list[tuple[Scope, Tally]]:
        if self._part[1] > 1:
            scopes = [self._parted(scope) for scope in scopes]
        return [(scope, self._tally(scope.name)) for scope in scopes]

    def _own(self, amount: int) -> int:
        """This process' part: the parts of all are the whole."""
        which, of = self._part
        return amount // of + (which < amount % of)

    def _parted(self, scope: Scope) -> Scope:
        limits = LimitsConfig(
            **{
                name: None if amount is None else self._own(amount)
                for name, amount in msgspec.structs.asdict(scope.limits).items()
            }
        )
        caps = tuple(one._replace(limit=self._own(one.limit)) for one in scope.caps)
        return Scope(scope.name, limits, caps)
