"""The pick: which upstream, of those that could, takes a request.

Filter, then compare: nothing is read but the snapshots that are given, so that every choice can
be told again with its reasons. The rules have numbers, in `design.md` beside this.
"""

from __future__ import annotations

from collections.abc import Collection, Sequence
from typing import Literal, TypeAlias

from tropilla.ir import Value

State: TypeAlias = Literal["starting", "loading", "ready", "down"]
"""`starting` and `loading` are expected to become `ready` by themselves, and soon."""

Ability: TypeAlias = Literal[
    "native", "chat", "tools", "vision", "audio", "infill", "embeddings", "rerank"
]
"""What a request may need of an upstream; `native` is llama.cpp's own API."""

Verdict: TypeAlias = Literal[
    "other_model", "draining", "incapable", "starting", "loading", "down", "full", "quarantined",
    "free",
]  # fmt: skip

Refusal: TypeAlias = Literal["unavailable", "unknown_model", "incapable"]
Otherwise: TypeAlias = Literal["queue", "wait"] | Refusal
"""What a request does without an upstream: it waits for a slot, or for an upstream to be ready; or
it is refused."""


class Candidate(Value, frozen=True, kw_only=True):
    """One upstream, as the pick sees it."""

    state: State
    models: Collection[str]
    lacks: Collection[Ability] = ()
    """What it certainly cannot do."""
    slots: int | None = None
    """How many requests it may have at once now; `None` is no limit that anybody knows."""
    weight: float = 1.0
    leases: int = 0
    foreign: int = 0
    """Slots that are taken by clients of its own."""
    served: int = 0
    """Requests ever given to it: of two equals, the one that has served less is next."""
    draining: bool = False
    quarantined: bool = False
    cached: float = 0.0
    """The part of the prompt that is expected in its cache, from 0 to 1."""

    @property
    def load(self) -> float:
        """How busy it is, from 0 to 1; without known slots, in steps that never reach 1."""
        busy = self.leases + self.foreign
        slots = busy + _UNKNOWN_ROOM if self.slots is None else self.slots
        return busy / (slots * self.weight)


class Pick(Value, frozen=True, kw_only=True):
    """The index of the upstream to take; or, without one, what the request should do."""

    index: int | None = None
    otherwise: Otherwise = "unavailable"
    among: Sequence[tuple[int, Candidate]] = ()
    """Who was weighed, by their numbers, where somebody was taken."""


_UNKNOWN_ROOM = 4


_READY: frozenset[Verdict] = frozenset({"free", "quarantined", "full"})


def judge(one: Candidate, model: str | None, needs: Collection[Ability] = ()) -> Verdict:
    """Why an upstream can take a request now, or not (rules 1 to 6)."""
    serves = model in one.models if model is not None else one.models or one.state != "ready"
    if not serves:
        return "other_model"
    if one.draining:
        return "draining"
    if any(need in one.lacks for need in needs):
        return "incapable"
    if one.state != "ready":
        return one.state
    if one.slots is not None and one.leases + one.foreign >= one.slots:
        return "full"
    return "quarantined" if one.quarantined else "free"


def score(one: Candidate, size: int) -> float:
    """How well an upstream suits a prompt of so many blocks: the higher the better (rule 7).

    What is cached counts as much as there is to read, for a short prompt is soon read anywhere;
    against it counts how busy the upstream is, so that a beginning that many prompts share
    spreads over as many upstreams as it takes.
    """
    return one.cached * size / (size + _SHORT) - one.load


_SHORT = 8
"""Blocks, at which what is cached counts half."""


def pick(
    candidates: Sequence[Candidate],
    model: str | None,
    avoid: Collection[int] = (),
    needs: Collection[Ability] = (),
    size: int = 0,
) -> Pick:
    """Choose an upstream for a model; any model is right where none is named.

    An upstream to `avoid` (it has just failed this request) is taken only where no other is
    ready, and so is one in quarantine. An upstream that is still starting may turn out to serve
    any model, and to be able to do anything.
    """
    verdicts = [judge(one, model, needs) for one in candidates]
    ready = [index for index, told in enumerate(verdicts) if told in _READY]
    if len(ready) > 1:
        for shunned in (
            {index for index, one in enumerate(candidates) if one.quarantined},
            set(avoid),
        ):
            if left := [index for index in ready if index not in shunned]:
                ready = left
    free = [index for index in ready if verdicts[index] != "full"]
    if len(free) == 1:
        return Pick(index=free[0])
    if free:
        index = max(
            free,
            key=lambda at: (
                score(candidates[at], size),
                -candidates[at].served / candidates[at].weight,
                -at,
            ),
        )
        return Pick(index=index)
    if ready:
        return Pick(otherwise="queue")
    told = set(verdicts)
    if told & {"starting", "loading"}:
        return Pick(otherwise="wait")
    if told & {"down", "draining"}:
        return Pick(otherwise="unavailable")
    if "incapable" in told:
        return Pick(otherwise="incapable")
    if any(one.state in {"starting", "loading"} and not one.models for one in candidates):
        return Pick(otherwise="wait")
    if any(one.models for one in candidates):
        return Pick(otherwise="unknown_model")
    return Pick(otherwise="unavailable")
