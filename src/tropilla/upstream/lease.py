"""One request's hold on a slot: what it waits for, what it has, and what an upstream did to it."""

from __future__ import annotations

import asyncio

from tropilla.herd.pool import Ask, Assign, Blame, Weighed
from tropilla.ir import Problem, ProblemError, ProblemKind
from tropilla.record import Record
from tropilla.upstream.member import Offer, Upstream

BUSY_CODE = "no_free_slot"
"""Of an upstream that has no slot after all."""


class Lease:
    """One request's hold on a slot of an upstream."""

    __slots__ = (
        "blame", "cached", "expected", "name", "problem", "served", "template", "there",
        "upstream", "waited", "weighed",
    )  # fmt: skip

    def __init__(
        self, upstream: Upstream, model: str | None, assigned: Assign, weighed: Weighed
    ) -> None:
        offers = upstream.offers
        self.upstream = upstream
        self.name = next(iter(offers), "") if model is None else model
        """The model as it is called here, for a client that named none."""
        self.there = upstream.there(self.name)
        """The model as it is called there."""
        self.template = offers.get(self.name, Offer()).template
        """Who turns chat into a prompt; `None` leaves it to the server."""
        self.waited = assigned.waited
        """Seconds in the queue."""
        self.expected = assigned.expected
        """The part of the prompt that is expected in its cache."""
        self.weighed = weighed
        """What the pick saw."""
        self.problem: Problem | None = None
        """Why the answer broke off, after some of it was told."""
        self.blame: Blame | None = None
        """What the upstream has done wrong."""
        self.served = False
        """Whether the request was answered."""
        self.cached: float | None = None
        """The part of the prompt that was in its cache, where it has told."""

    def tell(self, record: Record) -> None:
        """Have it told who was asked, and how that came about."""
        upstream = self.upstream
        record.weighed = self.weighed
        record.model = record.model or self.name
        record.asks(upstream.name, upstream.traits.dialect, self.waited, self.expected)

    def headers(self) -> dict[str, str]:
        """What a client is told of it."""
        return {
            "x-tropilla-upstream": self.upstream.name,
            "x-tropilla-queue-ms": f"{self.waited * 1000:.0f}",
        }


class Ticket:
    """By which one who waits asks for its place."""

    request = 0


class Asked:
    """A request that the pool knows: it has a slot, or waits for one."""

    __slots__ = ("_later", "_why", "ask", "given")

    def __init__(self, ask: Ask) -> None:
        self.ask = ask
        self.given: Assign | None = None
        self._why: ProblemError | None = None
        self._later: asyncio.Future[None] | None = None

    def take(self, given: Assign) -> None:
        """It has a slot."""
        self.given = given
        self._wake()

    def again(self) -> None:
        """What it had is not to be had after all."""
        self.given = None

    def refuse(self, why: ProblemError) -> None:
        """It gets none."""
        self._why = why
        self._wake()

    def _wake(self) -> None:
        if self._later is not None and not self._later.done():
            self._later.set_result(None)

    async def wait(self) -> Assign:
        """The slot, once there is one.

        Raises:
            ProblemError: there will be none.
        """
        if self._why is None:
            self._later = asyncio.get_running_loop().create_future()
            await self._later
        if self._why is not None:
            raise self._why
        assert self.given is not None, "it was woken for a reason"  # noqa: S101
        return self.given


def blame_of(problem: Problem) -> Blame | None:
    """What a failure says of the upstream; `None` if it may well be the request's."""
    if problem.code == BUSY_CODE:
        return "busy"
    if problem.died:
        return "died"
    # A model that does not do what it has to is not its server's fault: another would say the same.
    its_own = problem.kind == "upstream_failed" and not problem.retryable
    return None if its_own else _BLAMES.get(problem.kind)


def may_be_another(error: ProblemError) -> bool:
    """Whether an upstream that has failed so may be another one by now: it was not there."""
    return error.problem.died or error.problem.kind in {"unavailable", "loading"}


_BLAMES: dict[ProblemKind, Blame] = {
    "unavailable": "gone",
    "loading": "loading",
    "upstream_failed": "failed",
    "timeout": "failed",
}
