"""The algebra of limits: whatever is asked, in whatever order, and however it ends."""

from __future__ import annotations

from dataclasses import dataclass, field
from typing import Any

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st
from hypothesis.stateful import RuleBasedStateMachine, invariant, precondition, rule

from tropilla.accounts.limits import (
    NOTHING,
    WINDOW,
    Amount,
    Date,
    Hold,
    Rate,
    Refused,
    Scope,
    Spent,
    Tally,
    cap,
    reserve,
    standings,
)
from tropilla.accounts.meters.memory import Memory
from tropilla.config import BudgetConfig, LimitsConfig

ONE = Amount(1, 0, 0, 0)
TODAY = Date(1, 1)


def scope(name: str = "key/a", *budgets: BudgetConfig, **limits: int) -> Scope:
    return Scope(name, LimitsConfig(**limits), tuple(cap(one) for one in budgets))


@given(
    st.integers(1, 20),
    st.lists(st.tuples(st.floats(0, 40), st.integers(1, 5)), max_size=60),
)
def test_no_minute_has_more_than_its_limit(limit: int, asked: list[tuple[float, int]]) -> None:
    rate, now = Rate(), 0.0
    given_: list[tuple[float, int]] = []
    for pause, wanted in asked:
        now += pause
        wait = rate.wait(limit, wanted, now)
        assert (wait is None) == (wanted > limit)
        if wait == 0:
            rate.take(wanted, now)
            given_.append((now, wanted))
        elif wait is not None:
            # It is told exactly when it fits: not before, and then it does.
            assert 0 < wait <= WINDOW + 1
            assert rate.wait(limit, wanted, now + wait) == 0
            now += wait
    for at, _ in given_:
        assert sum(many for then, many in given_ if at - WINDOW < then <= at) <= limit


def test_a_flood_gets_sixty_a_minute() -> None:
    rate = Rate()
    let_in = [0] * 5
    for tick in range(5 * 61 * 20):
        now = tick / 20
        if rate.wait(60, 1, now) == 0:
            rate.take(1, now)
            let_in[int(now // 61)] += 1
    assert let_in == [60] * 5


@given(st.integers(0, 100), st.integers(0, 200), st.floats(0, 200))
def test_what_was_not_used_is_there_again_and_what_was_beyond_is_gone(
    taken: int, used: int, later: float
) -> None:
    rate = Rate()
    rate.take(taken, 0.0)
    rate.look(later)
    rate.settle(taken, used, 0.0, later)
    in_window = later < WINDOW + 1
    expected = used if in_window else max(0, used - taken)
    assert rate.look(later) == expected
    assert rate.look(later + WINDOW + 2) == 0
    assert rate.taken == 0


@dataclass
class Open:
    hold: Hold
    settled: bool = False


@dataclass
class Known:
    """What a model of the machine knows of one scope."""

    open: int = 0
    spent: dict[str, int] = field(default_factory=lambda: {"total": 0, "month": 0, "day": 0})


SCOPES = (
    scope("key/a", BudgetConfig(tokens=300, per="day"), requests=8, tokens=200, concurrent=3),
    scope("key/b", BudgetConfig(money=0.0000005, per="total")),
    scope("team/t", BudgetConfig(tokens=900, per="month"), tokens=260, concurrent=4),
    scope("model/m"),
)


class Machine(RuleBasedStateMachine):
    """Requests come, are settled, fail, are left, over days: nothing is given that is not there."""

    def __init__(self) -> None:
        super().__init__()
        self.now = 0.0
        self.wall = 86400.0 * 30
        self.meter = Memory(clock=lambda: self.now, wall=lambda: self.wall)
        self.open: list[Open] = []
        self.known = {one.name: Known() for one in SCOPES}
        self.day = self.date()

    def date(self) -> tuple[int, int]:
        date = self.meter._today()
        return date.day, date.month

    def run(self, work: Any) -> Any:
        with pytest.raises(StopIteration) as end:
            work.send(None)
        return end.value.value

    @rule(
        which=st.sets(st.sampled_from(SCOPES), min_size=1, max_size=3),
        tokens=st.integers(0, 150), more=st.integers(0, 60), money=st.integers(0, 300),
    )  # fmt: skip
    def ask(self, which: set[Scope], tokens: int, more: int, money: int) -> None:
        self.turn()
        scopes = sorted(which)
        before = {one.name: self.view(one.name) for one in SCOPES}
        told = self.run(self.meter.reserve(scopes, Amount(1, tokens, tokens + more, money)))
        if isinstance(told, Refused):
            assert told.scope in scopes
            assert before == {one.name: self.view(one.name) for one in SCOPES}, "all or none"
            return
        self.open.append(Open(told))
        for one in scopes:
            self.known[one.name].open += 1

    @precondition(lambda self: self.open)
    @rule(data=st.data(), part=st.floats(0, 1), counts=st.booleans())
    def settle(self, data: st.DataObject, part: float, counts: bool) -> None:  # noqa: FBT001
        self.turn()
        one = data.draw(st.sampled_from(self.open))
        amount = one.hold.amount
        used = Amount(
            int(counts), int(amount.tokens * part), int(amount.spent * part),
            int(amount.money * part),
        )  # fmt: skip
        self.meter.settle(one.hold, used)
        if not one.settled:
            one.settled = True
            for mine in one.hold.scopes:
                known = self.known[mine.name]
                unit = used.money if mine.name == "key/b" else used.spent
                known.spent["total"] += unit
                known.spent["month"] += unit * (one.hold.date.month == self.day[1])
                known.spent["day"] += unit * (one.hold.date.day == self.day[0])

    @precondition(lambda self: self.open)
    @rule(data=st.data())
    def over(self, data: st.DataObject) -> None:
        one = data.draw(st.sampled_from(self.open))
        self.open.remove(one)
        self.meter.release(one.hold)
        self.meter.release(one.hold)
        for mine in one.hold.scopes:
            self.known[mine.name].open -= 1

    @rule(seconds=st.floats(0, 100))
    def wait(self, seconds: float) -> None:
        self.now += seconds

    @rule(days=st.sampled_from((-2, -1, 1, 1, 2, 40)))
    def step(self, days: int) -> None:
        self.wall += days * 86400

    def turn(self) -> None:
        """The day that it is, as the machine sees it, too."""
        day, month = self.date()
        for name, known in self.known.items():
            if month > self.day[1]:
                known.spent["month"] = 0
            if day > self.day[0]:
                known.spent["day"] = 0
            self.meter._tally(name).turn(self.meter._today())
        self.day = (day, month)

    def view(self, name: str) -> Any:
        tally = self.meter._tally(name)
        rates = tally.requests.look(self.now), tally.tokens.look(self.now)
        return tally.open, rates, [*tally._held]

    @invariant()
    def nothing_is_given_that_is_not_there(self) -> None:
        for one in SCOPES:
            tally, known = self.meter._tally(one.name), self.known[one.name]
            assert tally.open == known.open >= 0
            assert min(tally.requests.taken, tally.tokens.taken, *tally._held) >= 0
            for budget, unit, limit in one.caps:
                spent = tally.spent(budget.per)[unit]
                assert 0 <= spent <= limit
                assert spent == known.spent[budget.per]
            limits = one.limits
            if limits.concurrent is not None:
                assert tally.open <= limits.concurrent
            if limits.tokens is not None:
                assert tally.tokens.look(self.now) <= limits.tokens

    def teardown(self) -> None:
        for one in self.open:
            self.meter.release(one.hold)
        for mine in SCOPES:
            tally = self.meter._tally(mine.name)
            assert tally.open == 0
            assert tally._held == [0, 0]


Machine.TestCase.settings = settings(max_examples=60, stateful_step_count=30)
TestMachine = Machine.TestCase


def test_a_budget_for_twenty_is_used_by_twenty_and_no_more() -> None:
    mine = scope("key/a", BudgetConfig(tokens=20 * 100))
    tally, served = Tally(), 0
    waiting = 200
    while waiting:
        held = []
        for _ in range(waiting):
            told = reserve([(mine, tally)], Amount(1, 0, 250, 0), 0.0, TODAY)
            if isinstance(told, Refused):
                break
            held.append(told)
        if not held:
            # What it may come to at most does not fit any more: the true amount does.
            told = reserve([(mine, tally)], Amount(1, 0, 100, 0), 0.0, TODAY)
            if isinstance(told, Refused):
                break
            held.append(told)
        for hold in held:
            tally.settle(mine, hold, Amount(1, 0, 100, 0), 0.0)
            served += 1
            waiting -= 1
    assert served == 20
    assert tally.spent("total") == (2000, 0)


@pytest.mark.parametrize(
    ("mine", "amount", "what", "after"),
    [
        (scope(requests=0), ONE, "requests", None),
        (scope(tokens=10), Amount(1, 11, 0, 0), "tokens", None),
        (scope(concurrent=0), ONE, "concurrent", None),
        (scope("k", BudgetConfig(tokens=5)), Amount(1, 0, 6, 0), "budget", None),
        (scope("k", BudgetConfig(money=1)), Amount(1, 0, 0, 1_000_000_001), "budget", None),
    ],
)
def test_what_never_fits_says_so(mine: Scope, amount: Amount, what: str, after: Any) -> None:
    told = reserve([(mine, Tally())], amount, 5.0, TODAY)
    assert isinstance(told, Refused)
    assert (told.what, told.after) == (what, after)


def test_what_is_only_set_aside_may_come_back_and_what_is_spent_does_not() -> None:
    mine, tally = scope("k", BudgetConfig(tokens=10)), Tally()
    hold = reserve([(mine, tally)], Amount(1, 0, 10, 0), 0.0, TODAY)
    assert isinstance(hold, Hold)
    told = reserve([(mine, tally)], Amount(1, 0, 1, 0), 0.0, TODAY)
    assert isinstance(told, Refused)
    assert (told.spent, told.after) == (False, 1.0)
    tally.settle(mine, hold, Amount(1, 0, 10, 0), 0.0)
    told = reserve([(mine, tally)], Amount(1, 0, 1, 0), 0.0, TODAY)
    assert isinstance(told, Refused)
    assert (told.spent, told.after) == (True, None)
    assert isinstance(reserve([(mine, tally)], NOTHING, 0.0, TODAY), Hold)


def test_the_scarcest_is_told() -> None:
    one, other = scope("a", requests=10), scope("b", requests=5, tokens=100)
    pairs = [(one, Tally()), (other, Tally())]
    assert isinstance(reserve(pairs, Amount(1, 30, 0, 0), 100.0, TODAY), Hold)
    told = standings(pairs, 100.0)
    assert told["requests"] == (5, 4, WINDOW + 1)
    assert told["tokens"] == (100, 70, WINDOW + 1)
    assert standings(pairs, 161.5)["tokens"] == (100, 100, 0.0)


@pytest.mark.anyio
@pytest.mark.parametrize("of", [1, 2, 3, 7])
async def test_the_parts_of_several_processes_are_the_whole(of: int) -> None:
    mine = scope("k", BudgetConfig(tokens=20), requests=10)
    small = Amount(1, 0, 2, 0)
    given_ = 0
    for part in range(of):
        meter = Memory(part=(part, of))
        meter.take([Spent("k", 5, 0, month=True, day=True)])
        while isinstance(await meter.reserve([mine], small), Hold):
            given_ += 1
    assert given_ * 2 <= 15
    if of == 1:
        assert given_ == 7


@pytest.mark.anyio
async def test_what_was_spent_before_counts_in_its_period() -> None:
    meter = Memory(wall=lambda: 86400.0 * 40)
    meter.take(
        [
            Spent("k", 10, 0, month=False, day=False),
            Spent("k", 20, 0, month=True, day=False),
            Spent("k", 40, 0, month=True, day=True),
        ]
    )
    tally = meter._tally("k")
    assert [tally.spent(one)[0] for one in ("total", "month", "day")] == [70, 60, 40]
