"""The herd as a state machine: what happens goes in, what is to be done comes out.

It has no clock (every event says when it is, in seconds that never go back), no lock, no chance
and no I/O, so every interleaving of events can be tried. What it promises, and by which rule, is
in `design.md` beside this; the numbers in the comments are the rules' there.

Whoever drives it does every effect, in order, before the next event.
"""

from __future__ import annotations

from collections import Counter, deque
from collections.abc import Iterable, Iterator, Mapping, Sequence
from math import ceil
from types import MappingProxyType
from typing import Literal, NamedTuple, TypeAlias

import msgspec

from tropilla.herd.affinity import Affinity
from tropilla.herd.balance import (
    Ability,
    Candidate,
    Pick,
    Refusal,
    State,
    Verdict,
    judge,
    pick,
    score,
)
from tropilla.herd.retries import Budget, Poison
from tropilla.ir import Value

# What happens to a request.

Why: TypeAlias = Refusal | Literal["loading", "queue_full", "late", "poison", "ending"]


class Ask(Value, frozen=True, kw_only=True):
    """One request, as far as the choice of its upstream goes."""

    model: str | None = None
    needs: tuple[Ability, ...] = ()
    key: str = ""
    """Whose it is: those who ask take turns."""
    chain: tuple[int, ...] = ()
    """The blocks of its prompt (`affinity`)."""
    session: int | None = None
    """What the client says belongs together."""
    slots: int = 1
    """How many slots it takes there, for as many choices: it is let in by one, and waits for none
    if it takes none."""
    body: int = 0
    """A fingerprint of what is asked; 0 is none."""
    avoid: frozenset[int] = frozenset()
    """Upstreams that have failed it."""
    hurries: bool = False
    """Whether it is in the middle of its answer: it comes first, and does not wait for long."""
    since: float | None = None
    """When it first came, if it comes again."""

    def seen(self) -> tuple[int, ...]:
        """What an upstream has in its cache that served it."""
        return self.chain if self.session is None else (self.session, *self.chain)


class Assign(Value, frozen=True, kw_only=True):
    """The request has a slot of an upstream."""

    request: int
    upstream: int
    waited: float
    """Seconds."""
    expected: float
    """The part of its prompt that is expected in the cache."""


class Queue(Value, frozen=True, kw_only=True):
    """The request waits; `place` is 1 for the next one."""

    request: int
    place: int


class Reject(Value, frozen=True, kw_only=True):
    """Nobody will serve the request."""

    request: int
    why: Why


class Probe(Value, frozen=True, kw_only=True):
    """The upstream is to be looked at now."""

    upstream: int


class Quarantine(Value, frozen=True, kw_only=True):
    """The upstream gets nothing for so many seconds."""

    upstream: int
    seconds: float


Effect: TypeAlias = Assign | Queue | Reject | Probe | Quarantine


# What is known of an upstream.

Blame: TypeAlias = Literal["gone", "died", "failed", "loading", "busy"]
"""What an upstream did to a request: it could not be reached; it broke off; it said that it had
failed; it loads its model; it has no slot after all."""


class FailureRules(Value, frozen=True, kw_only=True):
    """The numbers of rules 10 and 11, which each upstream may have its own of."""

    failures: int = 3
    """In a row, after which an upstream is quarantined."""
    quarantine_seconds: float = 1.0
    most_quarantine_seconds: float = 60.0
    slow_seconds: float = 10.0
    """How long an upstream that comes back takes to be given all its slots."""


class Seen(Value, frozen=True, kw_only=True):
    """What a probe has found."""

    state: State
    models: Mapping[str, float] = MappingProxyType({})
    """What it serves, each with the weight that the config gives it."""
    lacks: frozenset[Ability] = frozenset()
    slots: int | None = None
    busy: int | None = None
    """Slots that are at work, as it says itself; `None` if it does not."""
    rules: FailureRules = FailureRules()
    """How its failures are taken, as the config says."""


class Reason(Value, frozen=True, kw_only=True):
    """What the pick thinks of an upstream for a request."""

    upstream: int
    verdict: Verdict
    score: float
    cached: float
    load: float
    taken: bool


class Weighed(NamedTuple):
    """What the pick saw when it chose: snapshots, which can be judged again at any time."""

    model: str | None
    needs: tuple[Ability, ...]
    size: int
    """Of the prompt, in blocks."""
    taken: int | None
    among: Sequence[tuple[int, Candidate]]

    def reasons(self) -> list[Reason]:
        """What speaks for each upstream, and what against it."""
        return [
            Reason(
                upstream=upstream,
                verdict=judge(one, self.model, self.needs),
                score=score(one, self.size),
                cached=one.cached,
                load=one.load,
                taken=upstream == self.taken,
            )
            for upstream, one in self.among
        ]


class Rules(Value, frozen=True, kw_only=True):
    """The numbers of the rules."""

    queue: int = 64
    """Requests that wait for the same upstreams."""
    queue_seconds: float = 60.0
    """How long a request waits for a slot."""
    hurry_seconds: float = 0.5
    """How long one does that hurries."""
    patience_seconds: float = 10.0
    """How long a request waits while no upstream is ready that could serve it."""
    retries_per_second: float = 3.0
    retry_share: float = 0.1
    poison_deaths: int = 2
    poison_seconds: float = 600.0


class _Member:
    """One upstream."""

    __slots__ = (
        "back_at", "deaths", "draining", "failures", "foreign", "held", "out_until", "peak",
        "quarantines", "seen", "served", "siblings", "siblings_peak", "wide",
    )  # fmt: skip

    def __init__(self) -> None:
        self.seen = Seen(state="starting")
        self.held = 0
        self.wide = 0
        """Slots that what it holds may take."""
        self.peak = 0
        """Of these, all that were taken since a probe began to look."""
        self.served = 0
        self.foreign = 0
        self.siblings = 0
        """Slots that other processes of this gateway hold."""
        self.siblings_peak = 0
        self.failures = 0
        self.quarantines = 0
        self.out_until: float | None = None
        self.back_at: float | None = None
        self.draining = False
        self.deaths = 0
        """Its incarnation: how often it has died."""


class _Waiting(msgspec.Struct):
    ask: Ask
    group: frozenset[int]
    order: tuple[float, int]
    since: float
    until: float


class _Held(msgspec.Struct, frozen=True):
    ask: Ask
    upstream: int
    member: _Member
    expected: float
    life: int
    among: Sequence[tuple[int, Candidate]]


class Pool:
    """All upstreams, all leases, all who wait.

    `seed` makes its quarantines end at other moments than those of another pool.
    """

    def __init__(self, rules: Rules | None = None, seed: int = 0) -> None:
        self.rules = rules or Rules()
        self._seed = seed
        self.affinity = Affinity()
        self.priorities: Mapping[str, int] = {}
        """Of the keys that come before others, or after them (rule 9); 0 is everybody's."""
        self._members: dict[int, _Member] = {}
        self._held: dict[int, _Held] = {}
        self._waiting: dict[int, _Waiting] = {}
        self._running: dict[str, int] = {}
        self._turns: dict[str, int] = {}
        self._turn = 0
        self._order = 0
        self._budget = Budget()
        self._poison = Poison()
        self._ending = False

    # Upstreams.

    def on_join(self, upstream: int) -> list[Effect]:
        """There is one more upstream."""
        self._members[upstream] = _Member()
        return [Probe(upstream=upstream)]

    def on_drain(self, upstream: int, now: float) -> list[Effect]:
        """An upstream gets nothing new from now on (rule 2)."""
        self._members[upstream].draining = True
        return self._settle(now)

    def on_resume(self, upstream: int, now: float) -> list[Effect]:
        """An upstream that was drained gets something again."""
        self._members[upstream].draining = False
        return self._settle(now)

    def on_leave(self, upstream: int, now: float) -> list[Effect]:
        """An upstream is there no more; what it was given is its own affair."""
        del self._members[upstream]
        self.affinity.forget(upstream)
        return self._settle(now)

    def on_look(self, upstream: int) -> None:
        """A probe begins: whatever is ours from now on may be among what it finds busy."""
        if (member := self._members.get(upstream)) is not None:
            member.peak = member.wide
            member.siblings_peak = member.siblings

    def on_siblings(self, upstream: int, taken: int) -> None:
        """Other processes of this gateway hold so many slots of an upstream (rule 16)."""
        if (member := self._members.get(upstream)) is not None:
            member.siblings = taken
            member.siblings_peak = max(member.siblings_peak, taken)

    def on_sibling_assigned(self, upstream: int, chain: Iterable[int]) -> None:
        """An upstream reads a prompt that another process of this gateway gave it."""
        if upstream in self._members:
            self.affinity.saw(upstream, chain)

    def on_probe(self, upstream: int, seen: Seen, now: float) -> list[Effect]:
        """A probe has come back."""
        member = self._members.get(upstream)
        if member is None:
            return []
        was, member.seen = member.seen, seen
        member.foreign = max(0, (seen.busy or 0) - member.peak - member.siblings_peak)
        if seen.state == "ready":
            if member.out_until is not None and member.out_until <= now:
                member.out_until = None  # rule 11: a real probe brings it back
                member.back_at = now
            elif was.state == "down":
                member.back_at = now
        if was.models and seen.models and was.models.keys() != seen.models.keys():
            self.affinity.forget(upstream)
        return self._settle(now)

    # Requests.

    def on_request(self, request: int, ask: Ask, now: float) -> list[Effect]:
        """Somebody asks; or asks again, which `avoid` shows."""
        if self._ending:
            return [Reject(request=request, why="ending")]
        rules = self.rules
        if self._poison.has(ask.body, now, rules.poison_deaths, rules.poison_seconds):
            return [Reject(request=request, why="poison")]  # rule 13
        self._budget.note(now, retry=bool(ask.avoid))
        # A slot that has come with time alone is for those who wait already (rule 11).
        comes = any(member.back_at is not None for member in self._members.values())
        effects = self._settle(now) if comes else []
        return [*effects, *self._ask(request, ask, now)]

    def _ask(self, request: int, ask: Ask, now: float) -> list[Effect]:
        choice = self._pick(ask, now)
        if choice.index is not None:
            return [self._assign(request, ask, choice, choice.index, now, now)]
        why = choice.otherwise
        if why == "queue" or why == "wait":  # noqa: PLR1714 - mypy narrows by these
            if ask.hurries and why == "wait":
                return [Reject(request=request, why="unavailable")]  # rule 17
            return self._queue(request, ask, now, full=why == "queue")
        return [Reject(request=request, why=why)]

    def may_retry(self, now: float) -> bool:
        """Whether a request that has failed may be tried on another upstream (rule 12)."""
        return self._budget.allows(now, self.rules.retries_per_second, self.rules.retry_share)

    def on_cancel(self, request: int, now: float) -> list[Effect]:
        """The client has left, wherever its request was."""
        if self._waiting.pop(request, None) is not None:
            return []
        return self._release(request, now)

    def on_done(self, request: int, now: float, cached: float | None = None) -> list[Effect]:
        """A request was served; `cached` is the part of its prompt that was not read again."""
        held = self._held.get(request)
        if held is None:
            return []
        held.member.failures = held.member.quarantines = 0
        if cached is not None:
            self.affinity.learn(held.upstream, held.expected, cached)
        self._poison.forgive(held.ask.body)
        return self._release(request, now)

    def on_failure(self, request: int, blame: Blame, now: float) -> list[Effect]:
        """An upstream has failed a request, which holds nothing any more."""
        held = self._held.get(request)
        if held is None:
            return []
        effects: list[Effect] = []
        if self._members.get(held.upstream) is held.member:
            effects = self._blame(held, blame, now)
        return effects + self._release(request, now)

    def _blame(self, held: _Held, blame: Blame, now: float) -> list[Effect]:
        upstream, member = held.upstream, held.member
        match blame:
            case "busy":
                # Somebody else has the slot: until the next probe it is not ours.
                member.foreign += 1
                return []
            case "loading":
                member.seen = msgspec.structs.replace(member.seen, state="loading")
                self.affinity.forget(upstream)
                return [Probe(upstream=upstream)]
            case "gone" | "died":
                if blame == "died" and held.life == member.deaths:
                    member.deaths += 1
                if blame == "died":
                    self._poison.note(held.ask.body, (upstream, held.life), now)
                if member.seen.state == "ready":
                    member.seen = msgspec.structs.replace(member.seen, state="starting")
                    member.back_at = None
                self.affinity.forget(upstream)
                return [Probe(upstream=upstream)]
            case "failed":
                member.failures += 1
                if member.failures < member.seen.rules.failures:
                    return []
                return self._quarantine(upstream, member, now)

    def _quarantine(self, upstream: int, member: _Member, now: float) -> list[Effect]:
        """Rule 10: each time twice as long, and never at the same moment as the others."""
        rules = member.seen.rules
        seconds = rules.quarantine_seconds * 2.0**member.quarantines
        jitter = 1 + (hash((self._seed, upstream, member.quarantines)) % 201 - 100) / 1000
        seconds = min(seconds, rules.most_quarantine_seconds) * jitter
        member.failures = 0
        member.quarantines = min(member.quarantines + 1, 16)
        member.out_until = now + seconds
        return [Quarantine(upstream=upstream, seconds=seconds)]

    def on_tick(self, now: float) -> list[Effect]:
        """Time goes by: call it once in a second or more often, and when `next_tick` says."""
        effects: list[Effect] = [
            Probe(upstream=upstream)
            for upstream, member in self._members.items()
            if member.out_until is not None and member.out_until <= now
        ]
        return effects + self._settle(now)

    def on_end(self) -> list[Effect]:
        """The gateway ends: nobody waits any more, and nobody is taken (rule 14)."""
        self._ending = True
        waiting, self._waiting = self._waiting, {}
        return [Reject(request=request, why="ending") for request in waiting]

    # Looking.

    @property
    def waiting(self) -> int:
        """How many wait."""
        return len(self._waiting)

    def held(self, upstream: int) -> int:
        """How many slots of an upstream are leased."""
        return self._members[upstream].held

    def wide(self, upstream: int) -> int:
        """How many slots of an upstream what is leased may take."""
        return self._members[upstream].wide

    def place(self, request: int) -> int:
        """Where in the queue a request is, as the turns are now; 0 if it does not wait."""
        entry = self._waiting.get(request)
        if entry is None:
            return 0
        held = Counter(self._running)
        ranks: dict[int, tuple[int, tuple[int, ...], tuple[float, int]]] = {}
        for other, one in sorted(self._waiting.items(), key=lambda item: item[1].order):
            if one.group != entry.group:
                continue
            key = one.ask.key
            if one.ask.hurries:
                ranks[other] = 0, (), one.order
            else:
                ranks[other] = 1, self._rank(key, held), one.order
                held[key] += 1
        return sum(rank <= ranks[request] for rank in ranks.values())

    def explain(self, ask: Ask, now: float) -> list[Reason]:
        """What the pick thinks of each upstream, and whom it would take."""
        taken, among = self._pick(ask, now).index, list(self._candidates(ask, now))
        return Weighed(ask.model, ask.needs, len(ask.chain), taken, among).reasons()

    def weighed(self, request: int) -> Weighed:
        """What the pick saw when it gave a request the slot that it has."""
        held = self._held[request]
        ask = held.ask
        return Weighed(ask.model, ask.needs, len(ask.chain), held.upstream, held.among)

    def candidate(self, upstream: int, now: float) -> Candidate:
        """An upstream as the pick sees it, for any model."""
        return self._candidate(upstream, self._members[upstream], Ask(), now)

    def quarantine(self, upstream: int, now: float) -> float | None:
        """How many seconds an upstream is still out; 0 once it only waits for a probe."""
        until = self._members[upstream].out_until
        return None if until is None else max(0.0, until - now)

    def queues(self) -> dict[str, int]:
        """How many wait for each model; for any model, under an empty name."""
        return dict(Counter(entry.ask.model or "" for entry in self._waiting.values()))

    # How it is done.

    def _candidates(self, ask: Ask, now: float) -> Iterator[tuple[int, Candidate]]:
        for upstream, member in self._members.items():
            yield upstream, self._candidate(upstream, member, ask, now)

    def _candidate(self, upstream: int, member: _Member, ask: Ask, now: float) -> Candidate:
        seen = member.seen
        name = ask.model if ask.model is not None else next(iter(seen.models), "")
        return Candidate(
            state=seen.state,
            models=seen.models.keys(),
            lacks=seen.lacks,
            slots=self._slots(member, now) if ask.slots else None,
            weight=seen.models.get(name, 1.0),
            leases=member.held,
            foreign=member.foreign + member.siblings,
            served=member.served,
            draining=member.draining,
            quarantined=member.out_until is not None,
            cached=self._expect(upstream, ask),
        )

    def _slots(self, member: _Member, now: float) -> int | None:
        """Rule 11: who comes back is given one slot at first, and all of them in the end."""
        slots = member.seen.slots
        if slots is None or member.back_at is None:
            return slots
        slow = member.seen.rules.slow_seconds
        part = (now - member.back_at) / slow if slow else 1.0
        if part >= 1:
            member.back_at = None
            return slots
        return max(1, ceil(slots * part))

    def _expect(self, upstream: int, ask: Ask) -> float:
        """The part of a prompt that is expected in a cache; a session is as good as half of it."""
        found = 0.0
        if ask.chain:
            found = self.affinity.expect(upstream, ask.chain) / len(ask.chain)
        if ask.session is not None and self.affinity.expect(upstream, (ask.session,)):
            found = max(found, _OF_A_SESSION)
        return found

    def _pick(self, ask: Ask, now: float) -> Pick:
        """The pick, with the upstream's own number for its index."""
        found = list(self._candidates(ask, now))
        avoid = [at for at, (upstream, _) in enumerate(found) if upstream in ask.avoid]
        candidates = [one for _, one in found]
        choice = pick(candidates, ask.model, avoid, ask.needs, len(ask.chain))
        if choice.index is None:
            return choice
        return Pick(index=found[choice.index][0], among=found)

    def _assign(
        self, request: int, ask: Ask, choice: Pick, upstream: int, since: float, now: float
    ) -> Assign:
        member = self._members[upstream]
        member.held += ask.slots > 0
        member.wide += ask.slots
        member.peak += ask.slots
        member.served += 1
        self._running[ask.key] = self._running.get(ask.key, 0) + 1
        self._turn += 1
        self._turns[ask.key] = self._turn
        expected = self._expect(upstream, ask)
        self._held[request] = _Held(ask, upstream, member, expected, member.deaths, choice.among)
        self.affinity.saw(upstream, ask.seen())
        return Assign(request=request, upstream=upstream, waited=now - since, expected=expected)

    def _release(self, request: int, now: float) -> list[Effect]:
        held = self._held.pop(request, None)
        if held is None:
            return []
        held.member.held -= held.ask.slots > 0
        held.member.wide -= held.ask.slots
        left = self._running[held.ask.key] - 1
        if left:
            self._running[held.ask.key] = left
        else:
            del self._running[held.ask.key]
        return self._settle(now, all_of_them=False)

    def _queue(self, request: int, ask: Ask, now: float, *, full: bool) -> list[Effect]:
        group = self._group(ask)
        effects: list[Effect] = []
        waiting = [one for one, entry in self._waiting.items() if entry.group == group]
        if len(waiting) >= self.rules.queue and not ask.hurries:  # rule 8
            last = self._last_of_most(waiting, ask.key)
            effects.append(Reject(request=request if last is None else last, why="queue_full"))
            if last is None:
                return effects
            del self._waiting[last]
        self._order += 1
        since = now if ask.since is None else ask.since
        until = since + self.rules.queue_seconds
        if ask.hurries:
            until = now + self.rules.hurry_seconds
        elif not full:
            until = min(until, now + self.rules.patience_seconds)
        self._waiting[request] = _Waiting(ask, group, (since, self._order), since, until)
        return [*effects, Queue(request=request, place=self.place(request))]

    def _last_of_most(self, waiting: Iterable[int], newcomer: str) -> int | None:
        """The youngest request of the key that has the most of these, if a newcomer's has less."""
        of: dict[str, list[int]] = {}
        for request in waiting:
            of.setdefault(self._waiting[request].ask.key, []).append(request)
        most = max(of.values(), key=len, default=[])
        if len(most) <= len(of.get(newcomer, ())) + 1:
            return None
        return max(most, key=lambda request: self._waiting[request].order)

    def _group(self, ask: Ask) -> frozenset[int]:
        """The upstreams that could serve a request: who waits for the same ones is in its group."""
        return frozenset(
            upstream
            for upstream, one in self._candidates(ask, 0.0)
            if judge(one, ask.model, ask.needs) not in {"other_model", "incapable", "draining"}
        )

    def _settle(self, now: float, *, all_of_them: bool = True) -> list[Effect]:
        """Give free slots to those who wait (rules 3 and 9).

        With `all_of_them`, each is looked at, and who waits in vain is sent away (rule 8); without,
        only as many as there are free slots for.
        """
        if not self._waiting:
            self._forget_turns()
            return []
        effects: list[Effect] = []
        full: set[tuple[object, ...]] = set()
        for request in self._in_turn():
            entry = self._waiting[request]
            kind = (entry.ask.model, entry.ask.needs, entry.ask.avoid, entry.ask.slots > 0)
            # A slot does not become free while free slots are given away.
            choice = _QUEUE if kind in full else self._pick(entry.ask, now)
            if choice == _QUEUE:
                full.add(kind)
                if not all_of_them and not self._has_free(now):
                    break
            if effect := self._settle_one(request, entry, choice, now):
                del self._waiting[request]
                effects.append(effect)
        return effects

    def _settle_one(
        self, request: int, entry: _Waiting, choice: Pick, now: float
    ) -> Assign | Reject | None:
        if choice.index is not None:
            return self._assign(request, entry.ask, choice, choice.index, entry.since, now)
        why = choice.otherwise
        if why == "queue":
            if not entry.ask.hurries:
                entry.until = entry.since + self.rules.queue_seconds
            return Reject(request=request, why="late") if entry.until <= now else None
        if why == "wait":
            return Reject(request=request, why="loading") if entry.until <= now else None
        return Reject(request=request, why=why)

    def _has_free(self, now: float) -> bool:
        for member in self._members.values():
            slots = self._slots(member, now)
            if slots is None or member.held + member.foreign + member.siblings < slots:
                return True
        return False

    def _in_turn(self) -> Iterator[int]:
        """Those who wait: the key that has the least is next, and its oldest request (rule 9).

        Keys of a higher priority come before; and before all of them those that hurry (rule 17).
        """
        queues: dict[str, deque[int]] = {}
        for request, entry in sorted(self._waiting.items(), key=lambda item: item[1].order):
            if entry.ask.hurries:
                yield request
            else:
                queues.setdefault(entry.ask.key, deque()).append(request)
        while queues:
            key = min(queues, key=lambda key: self._rank(key, self._running))
            yield queues[key].popleft()
            if not queues[key]:
                del queues[key]

    def _rank(self, key: str, held: Mapping[str, int]) -> tuple[int, int, int]:
        """Whose turn is sooner has less of it; `held` is how much each key has."""
        return -self.priorities.get(key, 0), held.get(key, 0), self._turns.get(key, 0)

    def _forget_turns(self) -> None:
        if len(self._turns) > _MOST_TURNS:
            self._turns = {key: self._turns[key] for key in self._running}


_OF_A_SESSION = 0.5
_MOST_TURNS = 4096


_QUEUE = Pick(otherwise="queue")
