"""Counted in Valkey, for all gateways together: by its clock, in one round trip each.

While the server cannot be used each gateway gives out its own part of every limit, as many parts as
there were gateways; what was spent of budgets then is told once it can be used again. How it stands
with the limits of a minute is what was heard last.
"""

from __future__ import annotations

import asyncio
import time
from collections.abc import Awaitable, Callable, Sequence
from functools import partial
from typing import Any

from tropilla import log
from tropilla.accounts.limits import (
    NOTHING,
    Amount,
    Date,
    Hold,
    Refused,
    Scope,
    Spending,
    Standing,
    Standings,
    scarcer,
)
from tropilla.accounts.meters.memory import Memory
from tropilla.accounts.valkey import Answer, Valkey, ValkeyError, heard
from tropilla.config import LimitsConfig

_AGAIN_SECONDS = 2.0
"""When one that is refused for what its part is too small for may ask again."""
_MOST_KNOWN = 10_000
_TODAY = Date(-1, -1)
"""Whatever day it is there."""


class Shared:
    """A meter. `spent` tells what was spent before, as the ledger has it."""

    def __init__(self, valkey: Valkey, spent: Callable[[], Awaitable[Spending]]) -> None:
        self._valkey = valkey
        self._spent = spent
        self._own: asyncio.Task[Memory] | None = None
        """What is counted here while nothing can be counted there."""
        self._owned: dict[Hold, Memory] = {}
        """What was given here."""
        self._open: dict[Hold, Amount] = {}
        """What was given there, and is not over."""
        self._owed: dict[tuple[str, Date], list[int]] = {}
        self._owed_in = ""
        """In which epoch."""
        self._known: dict[str, tuple[float, list[float]]] = {}
        """By scope: when it was heard, and what."""
        valkey.joined.append(self._joined)

    async def reserve(self, scopes: Sequence[Scope], amount: Amount) -> Hold | Refused:
        """As `Meter` says."""
        if not any(map(_is_limited, scopes)):
            # Nobody has to be asked; what it comes to is told all the same.
            hold = Hold(scopes, amount, 0.0, _TODAY)
            self._open[hold] = amount
            return hold
        answer = self._valkey.do("reserve", scopes=_wire(scopes), amount=amount)
        try:
            told = heard(await asyncio.shield(answer))
        except ValkeyError:
            return await self._reserve_here(scopes, amount)
        except asyncio.CancelledError:
            answer.add_done_callback(partial(self._give_back, scopes, amount))
            raise
        return self._given(scopes, amount, told) or await self._reserve_here(scopes, amount)

    def _given(
        self, scopes: Sequence[Scope], amount: Amount, told: Sequence[Any]
    ) -> Hold | Refused | None:
        """What was answered; `None` where the server has begun anew."""
        match told:
            case ["given", then, day, month, standings]:
                self._learn(scopes, standings)
                hold = Hold(scopes, amount, then, Date(day, month))
                self._open[hold] = amount
                return hold
            case ["refused", at, [what, after, wanted, used, cap, spent], standings]:
                self._learn(scopes, standings)
                scope = scopes[at]
                budget = scope.caps[cap].budget if cap >= 0 else None
                after = None if after < 0 else after
                return Refused(scope, what, after, int(wanted), int(used), budget, spent)
        return None

    def _give_back(
        self, scopes: Sequence[Scope], amount: Amount, answer: asyncio.Future[Answer]
    ) -> None:
        """Whoever asked has left meanwhile."""
        if not answer.cancelled() and answer.exception() is None:
            hold = self._given(scopes, amount, heard(answer.result()))
            if isinstance(hold, Hold):
                self.release(hold)

    async def _reserve_here(self, scopes: Sequence[Scope], amount: Amount) -> Hold | Refused:
        if self._own is None:
            self._own = asyncio.create_task(self._memory())
        memory = await asyncio.shield(self._own)
        told = await memory.reserve(scopes, amount)
        if isinstance(told, Hold):
            self._owned[told] = memory
        elif told.after is None and not told.spent:
            told = told._replace(after=_AGAIN_SECONDS)
        return told

    async def _memory(self) -> Memory:
        """A meter of this gateway's part."""
        memory = Memory(part=(self._valkey.rank, self._valkey.many))
        memory.take(await self._spent())
        return memory

    def settle(self, hold: Hold, used: Amount) -> None:
        """As `Meter` says."""
        if hold.settled:
            return
        if (memory := self._owned.get(hold)) is not None:
            memory.settle(hold, used)
            if used.spent or used.money:
                self._owe(hold, used)
                self._pay()
            return
        hold.settled = True
        self._foresee(hold, used)
        answer = self._valkey.do(
            "settle", scopes=_wire(hold.scopes), amount=hold.amount, used=used, then=hold.now,
            day=hold.date.day, month=hold.date.month,
        )  # fmt: skip

        def told(answer: asyncio.Future[Answer]) -> None:
            if answer.cancelled() or answer.exception() is not None:
                self._owe(hold, used)
            else:
                self._learn(hold.scopes, heard(answer.result())[1])

        answer.add_done_callback(told)

    def release(self, hold: Hold) -> None:
        """As `Meter` says."""
        if (memory := self._owned.pop(hold, None)) is not None:
            memory.settle(hold, NOTHING)
            memory.release(hold)
            return
        self.settle(hold, NOTHING)
        if hold.open:
            hold.open = False
            self._open.pop(hold, None)
            self._valkey.do("release", scopes=_wire(hold.scopes)).add_done_callback(_let_be)

    def look(self, scopes: Sequence[Scope]) -> Standings:
        """As `Meter` says."""
        if not self._valkey.up and self._own is not None and self._own.done():
            return self._own.result().look(scopes)
        now, told = time.monotonic(), dict[Any, Standing]()
        for scope in scopes:
            at, known = self._known.get(scope.name, (now, [0.0] * 4))
            for place, name in enumerate(("requests", "tokens")):
                limit = getattr(scope.limits, name)
                if limit is not None:
                    taken, reset = known[place * 2 : place * 2 + 2]
                    rest = max(0.0, reset - (now - at))
                    left = max(0, limit - int(taken)) if rest else limit
                    told[name] = scarcer(told.get(name), Standing(limit, left, rest))
        return told

    def _learn(self, scopes: Sequence[Scope], told: Sequence[list[float]]) -> None:
        if len(self._known) > _MOST_KNOWN:
            self._known.clear()
        now = time.monotonic()
        for scope, one in zip(scopes, told, strict=True):
            self._known[scope.name] = now, one

    def _foresee(self, hold: Hold, used: Amount) -> None:
        """Know already what the server will say: whoever asks next may come before that."""
        for scope in hold.scopes:
            if (known := self._known.get(scope.name)) is not None:
                known[1][0] += used.requests - hold.amount.requests
                known[1][2] += used.tokens - hold.amount.tokens

    # When the server was away.

    def _owe(self, hold: Hold, used: Amount) -> None:
        if self._owed_in != self._valkey.epoch:
            self._owed, self._owed_in = {}, self._valkey.epoch
        for scope in hold.scopes:
            owed = self._owed.setdefault((scope.name, hold.date), [0, 0])
            owed[0] += used.spent
            owed[1] += used.money

    async def _joined(self) -> None:
        """The server can be used again: what is held is held there, and what was spent is told."""
        self._own = None
        for hold, amount in self._open.items():
            self._valkey.do(
                "adopt", scopes=_wire(hold.scopes), amount=amount, settled=hold.settled
            ).add_done_callback(_let_be)
        if self._owed_in == self._valkey.epoch:
            self._pay()
        self._owed = {}

    def _pay(self) -> None:
        if self._valkey.up and self._owed:
            owed, self._owed = self._owed, {}
            spent = [(name, *told, date.day, date.month) for (name, date), told in owed.items()]
            self._valkey.do("owe", spent=spent).add_done_callback(_let_be)


def _is_limited(scope: Scope) -> bool:
    return bool(scope.caps) or scope.limits != LimitsConfig()


def _wire(scopes: Sequence[Scope]) -> list[tuple[Any, ...]]:
    """Scopes as the script reads them: -1 is no limit."""
    return [
        (
            scope.name,
            *(-1 if one is None else one for one in (
                scope.limits.requests, scope.limits.tokens, scope.limits.concurrent
            )),
            [(one.unit, one.budget.per, one.limit) for one in scope.caps],
        )
        for scope in scopes
    ]  # fmt: skip


def _let_be(answer: asyncio.Future[Answer]) -> None:
    """What came of it is not asked for; that it was not done is told."""
    if not answer.cancelled() and (error := answer.exception()) is not None:
        log.info("valkey.missed", "Valkey was not told something: {why}", why=str(error))
