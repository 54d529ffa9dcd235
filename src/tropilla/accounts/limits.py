"""How much may be taken, and how much is left: sums alone, with the time passed in.

A request takes from several tallies at once, its key's, its team's and its model's: from all of
them or from none. What it takes at first is what it may come to at most; once it is known what it
came to, that is what it has taken. So however many ask at once, and however they end, no more is
given than there is, and what was set aside and not used can be used by the next one.

What is so much per minute is so in *any* minute: a window that slides, in steps of a second. A
bucket that fills again would let twice as much through in the first minute.
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from typing import Literal, NamedTuple, Protocol, TypeAlias

from tropilla.accounts.prices import billionths
from tropilla.config import BudgetConfig, LimitsConfig

What: TypeAlias = Literal["requests", "tokens", "concurrent", "budget"]
"""What there is too little of."""

Period: TypeAlias = Literal["total", "month", "day"]

WINDOW = 60
"""Seconds of the window in which requests and tokens are counted."""


class Date(NamedTuple):
    """The numbers of a day and of a month, by the calendar in UTC."""

    day: int
    month: int


class Cap(NamedTuple):
    """A budget, as it is counted."""

    budget: BudgetConfig
    unit: Literal[0, 1]
    """Tokens, or billionths of money."""
    limit: int


class Scope(NamedTuple):
    """Somebody, or something, with limits; the name is the same wherever it is counted."""

    name: str
    limits: LimitsConfig
    caps: tuple[Cap, ...] = ()


def cap(budget: BudgetConfig) -> Cap:
    """A budget, as it is counted."""
    if budget.money is not None:
        return Cap(budget, 1, billionths(budget.money))
    return Cap(budget, 0, budget.tokens or 0)


class Amount(NamedTuple):
    """What a request takes."""

    requests: int
    tokens: int
    """As far as the limit of a minute goes."""
    spent: int
    """Tokens, as far as budgets go."""
    money: int
    """Billionths."""


NOTHING = Amount(0, 0, 0, 0)


class Hold:
    """What one request has been given, of all its scopes."""

    __slots__ = ("amount", "date", "now", "open", "scopes", "settled")

    def __init__(self, scopes: Sequence[Scope], amount: Amount, now: float, date: Date) -> None:
        self.scopes = scopes
        self.amount = amount
        self.now = now
        self.date = date
        self.settled = False
        """Whether it is known what it has taken."""
        self.open = True
        """Whether it counts among those that are served at once."""


class Refused(NamedTuple):
    """Why a request is given nothing."""

    scope: Scope
    what: What
    after: float | None
    """Seconds until it could be given that, if nobody else asks; `None` where that is never."""
    wanted: int
    used: int
    """Of what there is; by those that are still served, too."""
    budget: BudgetConfig | None = None
    spent: bool = False
    """Of a budget: whether it is spent, and not only set aside for those that are served."""


class Standing(NamedTuple):
    """How it stands with one limit of a minute: the scope that has least of it."""

    limit: int
    remaining: int
    reset: float
    """Seconds until there is all of it again, if nobody asks."""


Standings: TypeAlias = Mapping[Literal["requests", "tokens"], Standing]


class Spent(NamedTuple):
    """What a scope has used up before it is counted here."""

    name: str
    tokens: int
    money: int
    month: bool
    """Whether that was in this month."""
    day: bool


Spending: TypeAlias = Sequence[Spent]


class Meter(Protocol):
    """Where it is counted what was taken: in this process, or for many gateways at once.

    Whatever `reserve` has given is told to `settle` at most once, and to `release` exactly once.
    These two do not wait: what they tell others these learn soon.
    """

    async def reserve(self, scopes: Sequence[Scope], amount: Amount) -> Hold | Refused:
        """Give a request what it may come to at most, of every scope; or nothing, of none."""

    def settle(self, hold: Hold, used: Amount) -> None:
        """This is what it came to: the rest is there again, and what it had beyond is gone too."""

    def release(self, hold: Hold) -> None:
        """It is over. What was not settled was not used."""

    def look(self, scopes: Sequence[Scope]) -> Standings:
        """How it stands with the limits of a minute, as far as it is known here."""


# What is counted.


class Rate:
    """So much in any minute."""

    __slots__ = ("_cells", "_last", "taken")

    def __init__(self) -> None:
        self._cells: dict[int, int] = {}
        """By the second, the oldest first."""
        self._last = 0
        self.taken = 0
        """In the window, as it was last looked at."""

    def look(self, now: float) -> int:
        """How much is taken in the minute that ends now."""
        cells, over = self._cells, int(now) - WINDOW
        while cells and (first := next(iter(cells))) < over:
            self.taken -= cells.pop(first)
        return self.taken

    def wait(self, amount: int, wanted: int, now: float) -> float | None:
        """Seconds until so much more fits into so much; `None` if it never does."""
        over = self.look(now) + wanted - amount
        if over <= 0:
            return 0.0
        if wanted > amount:
            return None
        cells = iter(self._cells.items())
        while over > 0:
            cell, taken = next(cells)
            over -= taken
        return cell + 1 + WINDOW - now

    def take(self, amount: int, now: float) -> None:
        """Take so much now."""
        cell = int(now)
        if cell > self._last:
            self._last = cell
            self._cells[cell] = amount
        else:
            self._cells[self._last] = self._cells.get(self._last, 0) + amount
        self.taken += amount

    def settle(self, taken: int, used: int, then: float, now: float) -> None:
        """What was taken then came to this: less is given back, more is taken now."""
        if used > taken:
            self.take(used - taken, now)
        elif (cell := int(then)) in self._cells:
            self._cells[cell] -= taken - used
            self.taken -= taken - used

    def reset(self, now: float) -> float:
        """Seconds until nothing is taken."""
        return max(0.0, self._last + 1 + WINDOW - now) if self._cells else 0.0


class Tally:
    """All that is counted of one scope."""

    __slots__ = ("_before", "_date", "_held", "_spent", "open", "requests", "tokens")

    def __init__(self) -> None:
        self.requests = Rate()
        self.tokens = Rate()
        self.open = 0
        """How many of its requests are served."""
        self._held = [0, 0]
        """Tokens and money that are set aside for those."""
        self._spent = [0, 0]
        """Tokens and money, ever."""
        self._before = {"total": [0, 0], "month": [0, 0], "day": [0, 0]}
        """Of these, what was spent before the period."""
        self._date = Date(0, 0)

    def turn(self, date: Date) -> None:
        """A new day or month begins with nothing spent; an old one does not come again."""
        if date.month > self._date.month:
            self._before["month"] = self._spent.copy()
        if date.day > self._date.day:
            self._before["day"] = self._spent.copy()
            self._date = date

    def spent(self, period: Period) -> tuple[int, int]:
        """Tokens and money that were spent in a period."""
        before = self._before[period]
        return self._spent[0] - before[0], self._spent[1] - before[1]

    def add(self, tokens: int, money: int, *, month: bool = True, day: bool = True) -> None:
        """So much was spent, in this month and on this day or before."""
        for unit, amount in enumerate((tokens, money)):
            self._spent[unit] += amount
            if not month:
                self._before["month"][unit] += amount
            if not day:
                self._before["day"][unit] += amount

    def refuses(self, scope: Scope, amount: Amount, now: float) -> Refused | None:
        """Why this scope cannot give so much."""
        limits = scope.limits
        if limits.concurrent is not None and self.open >= limits.concurrent:
            after = None if not limits.concurrent else 1.0
            return Refused(scope, "concurrent", after, 1, self.open)
        if limits.requests is not None:
            wait = self.requests.wait(limits.requests, amount.requests, now)
            if wait != 0:
                return Refused(scope, "requests", wait, amount.requests, self.requests.taken)
        if limits.tokens is not None:
            wait = self.tokens.wait(limits.tokens, amount.tokens, now)
            if wait != 0:
                return Refused(scope, "tokens", wait, amount.tokens, self.tokens.taken)
        for budget, unit, limit in scope.caps:
            wanted = amount.money if unit else amount.spent
            spent = self._spent[unit] - self._before[budget.per][unit]
            held = self._held[unit]
            if wanted and spent + held + wanted > limit:
                over = spent + wanted > limit
                after = None if over else 1.0
                return Refused(scope, "budget", after, wanted, spent + held, budget, over)
        return None

    def take(self, scope: Scope, amount: Amount, now: float) -> None:
        """Give so much."""
        self.open += 1
        if scope.limits.requests is not None:
            self.requests.take(amount.requests, now)
        if scope.limits.tokens is not None:
            self.tokens.take(amount.tokens, now)
        self._held[0] += amount.spent
        self._held[1] += amount.money

    def settle(self, scope: Scope, hold: Hold, used: Amount, now: float) -> None:
        """What was given came to this; it was spent when it was given, whatever day it is now."""
        amount, date = hold.amount, hold.date
        if scope.limits.requests is not None and used.requests != amount.requests:
            self.requests.settle(amount.requests, used.requests, hold.now, now)
        if scope.limits.tokens is not None and used.tokens != amount.tokens:
            self.tokens.settle(amount.tokens, used.tokens, hold.now, now)
        self._held[0] -= amount.spent
        self._held[1] -= amount.money
        if date is self._date:
            self._spent[0] += used.spent
            self._spent[1] += used.money
        else:
            month, day = date.month == self._date.month, date.day == self._date.day
            self.add(used.spent, used.money, month=month, day=day)


def reserve(
    pairs: Sequence[tuple[Scope, Tally]], amount: Amount, now: float, date: Date
) -> Hold | Refused:
    """Give a request what it wants, of every tally or of none."""
    for scope, tally in pairs:
        tally.turn(date)
        if (refused := tally.refuses(scope, amount, now)) is not None:
            return refused
    for scope, tally in pairs:
        tally.take(scope, amount, now)
    return Hold([scope for scope, _ in pairs], amount, now, date)


def standings(pairs: Sequence[tuple[Scope, Tally]], now: float) -> Standings:
    """How it stands with the limits of a minute."""
    told: dict[Literal["requests", "tokens"], Standing] = {}
    for scope, tally in pairs:
        limits = scope.limits
        if limits.requests is not None:
            found = _standing(tally.requests, limits.requests, now)
            told["requests"] = scarcer(told.get("requests"), found)
        if limits.tokens is not None:
            found = _standing(tally.tokens, limits.tokens, now)
            told["tokens"] = scarcer(told.get("tokens"), found)
    return told


def _standing(rate: Rate, limit: int, now: float) -> Standing:
    return Standing(limit, max(0, limit - rate.look(now)), rate.reset(now))


def scarcer(one: Standing | None, other: Standing) -> Standing:
    """Of two limits the one that has less left."""
    return other if one is None or other.remaining < one.remaining else one
