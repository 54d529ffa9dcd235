"""The upstreams, live: probed, watched, leased. It does what `herd.pool` decides.

Everything that happens becomes an event of the pool, with the loop's time; what the pool answers
is done here at once. A lease is one request's hold on a slot of an upstream, and says by which
name the model is known there.
"""

from __future__ import annotations

import asyncio
import random
from collections.abc import AsyncIterator, Awaitable, Callable, Sequence
from contextlib import asynccontextmanager, suppress
from time import monotonic
from typing import TYPE_CHECKING, TypeVarTuple

import msgspec

from tropilla import log
from tropilla.config import Config, EngineConfig
from tropilla.herd.balance import Candidate, State
from tropilla.herd.pool import (
    Ask,
    Assign,
    Effect,
    Pool,
    Probe,
    Quarantine,
    Queue,
    Reason,
    Reject,
    Rules,
    Why,
)
from tropilla.ir import Problem, ProblemError, Traits, UpstreamDialect
from tropilla.models.sizing import SLOTS
from tropilla.upstream import addresses, refusals
from tropilla.upstream.addresses import Known, look_up, names_of
from tropilla.upstream.engine import Engine, EngineOptions, EngineProblem, EngineState
from tropilla.upstream.http import Link
from tropilla.upstream.lease import Asked, Lease, Ticket, blame_of, may_be_another
from tropilla.upstream.member import Offer, Upstream, upstreams_of
from tropilla.upstream.others import Others, name_of
from tropilla.upstream.probe import NO_LIFE, busy_slots, probe

if TYPE_CHECKING:
    from tropilla.upstream.siblings import Siblings

Told = TypeVarTuple("Told")

PATIENCE_SECONDS = 10.0
"""How long a request waits for an upstream that is starting."""

# A llama-server is asked how it is as often as that costs nothing; others may be far away.
_CHECK_SECONDS: dict[UpstreamDialect, float] = {"llamacpp": 2.0, "openai": 30.0, "afs": 300.0}
_RETRY_SECONDS = (0.1, 0.2, 0.4, 0.8, 1.6, 2.0)
_HOPEFUL_TRIES = 4
"""Failed probes after which an upstream is no longer starting, but down."""

_DEAD_PROBES = 3
"""Probes in a row without a sign of life after which nothing more is expected."""

_LOOK_SECONDS, _WAIT_SECONDS = 0.5, 0.02
"""How often it is asked what other gateways hold; while somebody waits for a slot, too."""

_TICK_SECONDS = 0.2
"""How often the pool is told that time goes by."""


class Fleet:
    """All upstreams of a gateway.

    Args:
        config: the upstreams, or the engine to run in their place.
        on_fatal: called with a message when it is no use to go on.
        on_first: called once, with the name of the first model that can be asked.
        siblings: the other processes of the gateway, if it has more than one.
        others: other gateways that share the upstreams, if they tell each other.
    """

    def __init__(
        self,
        config: Config,
        on_fatal: Callable[[str], None] | None = None,
        on_first: Callable[[str], None] | None = None,
        siblings: Siblings | None = None,
        others: Others | None = None,
    ) -> None:
        self._config = config
        self._siblings = siblings
        self._others = others
        self._on_fatal = on_fatal or _fatal
        self._on_first = on_first
        self._tasks: list[asyncio.Task[None]] = []
        self._watches: dict[int, asyncio.Task[None]] = {}
        self._numbered: dict[int, Upstream] = {}
        self._changed = asyncio.Event()
        self._engine: Engine | None = None
        self._asked: dict[int, Asked] = {}
        self._next = 0
        self._addresses: Known = {}
        # Two gateways in front of the same servers do not come back to them at the same moment.
        self.pool = Pool(_rules(config), seed=random.getrandbits(32))
        self.upstreams: list[Upstream] = []
        self.looks = 0
        """How often it was looked who is silent."""
        self.failover = config.failover
        """Whether a stream may go on from another upstream."""

    async def start(self) -> None:
        """Begin to look for the upstreams; returns at once, or once names are looked up."""
        self._tasks.append(asyncio.create_task(self._tick()))
        if self._siblings is not None:
            asyncio.get_running_loop().add_reader(self._siblings.fileno(), self._hear)
        if self._others is not None:
            self._tasks.append(asyncio.create_task(self._look_at_others(self._others)))
        if names := names_of(self._config):
            self._addresses = await look_up(names, {})
        for upstream in upstreams_of(self._config, self._addresses):
            self._join(upstream)
        self._tasks.append(asyncio.create_task(self._look_up()))
        if not self.upstreams:
            self._tasks.append(asyncio.create_task(self._run_engine(self._config.engine)))

    def reload(self, config: Config) -> None:
        """Serve what another config says: what is new joins, what is gone drains, the rest goes on.

        Whether there is an engine, and which, does not change.
        """
        self._config, self.failover = config, config.failover
        self.pool.rules = _rules(config)
        known = {one.key: one for one in self.upstreams if one.key and not one.leaves}
        wanted = {one.key: one for one in upstreams_of(config, self._addresses)}
        for key, one in wanted.items():
            if key in known:
                known[key].take(one)
                self._tell_pool(
                    self.pool.on_probe, known[key].number, known[key].seen(None), self._now()
                )
            else:
                self._join(one)
        for key, one in known.items():
            if key not in wanted:
                one.leaves = True
                one.offers = one.named = {}
                one.found = None
                self._tell_pool(self.pool.on_drain, one.number, self._now())
                self._tasks.append(asyncio.create_task(self._leave(one)))
        self._tell()

    def drain(self) -> None:
        """Take nobody new, and let nobody wait."""
        self._tell_pool(self.pool.on_end)

    @property
    def part(self) -> tuple[int, int]:
        """Which process of the gateway this one is, and of how many."""
        siblings = self._siblings
        return (0, 1) if siblings is None else (siblings.process, siblings.processes)

    def hold_back(self, upstream: Upstream, *, held: bool) -> None:
        """Give an upstream nothing new until it is let on again; what it has goes on.

        All processes of the gateway do so, within the time of a tick.
        """
        if self._siblings is not None:
            with self._siblings.locked():
                self._siblings.hold_back(upstream.column, held=held)
        self._hold_back(upstream, held=held)

    def _hold_back(self, upstream: Upstream, *, held: bool) -> None:
        if held == upstream.held_back or upstream.leaves:
            return
        upstream.held_back = held
        event = self.pool.on_drain if held else self.pool.on_resume
        self._tell_pool(event, upstream.number, self._now())
        text = "{upstream} gets nothing new: somebody holds it back."
        if not held:
            text = "{upstream} gets requests again: nobody holds it back."
        name = "upstream.held_back" if held else "upstream.let_on"
        log.info(name, text, upstream=upstream.name)

    async def stop(self) -> None:
        """End everything that was started."""
        self._tell_pool(self.pool.on_end)
        if self._siblings is not None:
            asyncio.get_running_loop().remove_reader(self._siblings.fileno())
        tasks = [*self._tasks, *self._watches.values()]
        for task in tasks:
            task.cancel()
        for task in tasks:
            with suppress(asyncio.CancelledError):
                await task
        for upstream in self.upstreams:
            await upstream.link.close()
        if self._engine is not None:
            await self._engine.stop()

    def _hear(self) -> None:
        """Other processes have freed slots, or say what an upstream reads."""

        def told(column: int, chain: Sequence[int]) -> None:
            for one in self.upstreams:
                if one.column == column:
                    self.pool.on_sibling_assigned(one.number, chain)

        if self._siblings is not None:
            self._siblings.hear(lambda: self._tell_pool(self.pool.on_tick, self._now()), told)

    # Watching.

    def _join(self, upstream: Upstream) -> None:
        upstream.number = len(self._numbered)  # nobody gets the number of one that has left
        self._numbered[upstream.number] = upstream
        if self._siblings is not None:
            with self._siblings.locked():
                upstream.column = self._siblings.column(upstream.key)
        upstream.shared = name_of(upstream.key)
        upstream.max_scored_tokens = self._config.max_scored_tokens
        self.upstreams.append(upstream)
        # The probe that this asks for is the first thing that watching does.
        self.pool.on_join(upstream.number)
        self._watches[upstream.number] = asyncio.create_task(self._watch(upstream))

    async def _leave(self, upstream: Upstream) -> None:
        """Let what an upstream has been given come to its end."""
        if upstream.leases:
            await upstream.left.wait()
        watch = self._watches.pop(upstream.number)
        watch.cancel()
        with suppress(asyncio.CancelledError):
            await watch
        self.upstreams.remove(upstream)
        self._tell_pool(self.pool.on_leave, upstream.number, self._now())
        await upstream.link.close()
        log.info("upstream.left", "{upstream} is served no more.", upstream=upstream.name)

    async def _look_up(self) -> None:
        """Keep the servers behind names true."""
        while True:
            await asyncio.sleep(addresses.SECONDS)
            found = await look_up(names_of(self._config), self._addresses)
            if found != self._addresses:
                self._addresses = found
                log.info("upstream.addresses", "The addresses of upstreams have changed.")
                self.reload(self._config)

    async def _tick(self) -> None:
        while True:
            await asyncio.sleep(_TICK_SECONDS)
            self._tell_pool(self.pool.on_tick, self._now())
            for upstream in self.upstreams:
                if self._siblings is not None:
                    self._hold_back(upstream, held=self._siblings.held_back(upstream.column))
                for one in upstream.silent(monotonic()):
                    text = "{upstream} is dead: three signs of life did not come."
                    log.warning("upstream.dead", text, upstream=upstream.name)
                    upstream.heard.discard(one)
                    one.give_up()
            self.looks += 1

    # Not the loop's time: in Python 3.11 asking for the loop is a system call.
    _now = staticmethod(monotonic)

    async def _run_engine(self, config: EngineConfig) -> None:
        engine = self._engine = Engine(
            EngineOptions(
                model=config.model,
                alias=config.name,
                slots=config.slots or SLOTS,
                ctx_size=config.ctx_size,
                threads=config.threads,
            ),
            on_change=lambda state: self._engine_changed(upstream, state),
        )
        shown = {"Authorization": f"Bearer {engine.api_key}"} if engine.api_key else {}
        link = Link(engine.address, headers=shown)
        offer = Offer(template=self._config.template)
        upstream = Upstream(link, "embedded engine", dialect="llamacpp", offer=offer, ours=True)
        self._join(upstream)
        try:
            await engine.run()
        except EngineProblem as problem:
            self._on_fatal(str(problem))

    @staticmethod
    def _engine_changed(upstream: Upstream, state: EngineState) -> None:
        if state.problem is not None and not state.problem.fatal:
            why = str(state.problem)
            log.warning("engine.ended", "{why} Starting it again.", why=why)
        upstream.recheck.set()

    async def _watch(self, upstream: Upstream) -> None:
        """Keep an upstream's state true, for ever."""
        failures = 0
        while True:
            self.pool.on_look(upstream.number)
            busy: int | None = None
            try:
                known = upstream.traits if upstream.state == "ready" else None
                if upstream.doubted:
                    known, upstream.doubted = None, False
                self._learn(upstream, await probe(upstream.link, upstream.dialect, known))
                busy = await self._busy(upstream)
                failures = 0
                self._set(upstream, "ready", None, busy)
            except ProblemError as error:
                failures += 1
                self._failed(upstream, error.problem, failures)
                if _is_dead(error.problem, failures):
                    # Whoever waits for it still would wait for long.
                    await upstream.link.close()
            pause = (
                _CHECK_SECONDS[upstream.traits.dialect]
                if upstream.state == "ready"
                else _RETRY_SECONDS[min(failures, len(_RETRY_SECONDS)) - 1]
            )
            # Not `wait_for`: in Python 3.11 it loses a cancellation that comes with the event.
            with suppress(TimeoutError):
                async with asyncio.timeout(pause):
                    await upstream.recheck.wait()
            upstream.recheck.clear()

    def _learn(self, upstream: Upstream, traits: Traits) -> None:
        """Take what a probe has found; who was served before may be another one now."""
        was = upstream.traits.models
        upstream.learn(traits)
        if upstream.doubted or not was:
            upstream.tells_busy = traits.llamacpp
        if was and list(was) != list(traits.models):
            log.info(
                "upstream.models",
                "{upstream} serves now: {models}",
                upstream=upstream.name,
                models=", ".join(traits.models) or "nothing",
            )
            self._tell()

    @staticmethod
    async def _busy(upstream: Upstream) -> int | None:
        """How many of its slots are at work, for whomever."""
        if not upstream.tells_busy:
            return None
        try:
            busy = await busy_slots(upstream.link)
        except ProblemError:
            return None  # it has no time to say so
        upstream.tells_busy = busy is not None
        return busy

    def _failed(self, upstream: Upstream, problem: Problem, failures: int) -> None:
        hopeful = failures <= _HOPEFUL_TRIES and not _is_dead(problem, failures)
        if problem.kind == "loading":
            self._set(upstream, "loading", problem)
        elif upstream.ours or (hopeful and upstream.state != "down"):
            self._set(upstream, "starting", problem)
        else:
            self._set(upstream, "down", problem)

    def _set(
        self, upstream: Upstream, state: State, problem: Problem | None, busy: int | None = None
    ) -> None:
        news, out = state != upstream.state, self.quarantine(upstream) is not None
        upstream.state, upstream.problem = state, problem
        self._tell_pool(self.pool.on_probe, upstream.number, upstream.seen(busy), self._now())
        if out and self.quarantine(upstream) is None:
            text = "{upstream} gets requests again, few at first."
            log.info("upstream.back", text, upstream=upstream.name)
        if not news:
            return
        self._log_state(upstream)
        if state == "ready" and self._on_first is not None and upstream.offers:
            self._on_first(next(iter(upstream.offers)))
            self._on_first = None
        self._tell()

    @staticmethod
    def _log_state(upstream: Upstream) -> None:
        why = "" if upstream.problem is None else upstream.problem.message
        match upstream.state:
            case "ready":
                models = ", ".join(upstream.offers) or "no model"
                text = "{upstream} is ready: {models}"
                log.info("upstream.ready", text, upstream=upstream.name, models=models)
            case "loading":
                text = "{upstream} is loading its model."
                log.info("upstream.loading", text, upstream=upstream.name)
            case "starting":
                text = "{why} It is looked for."
                log.warning("upstream.lost", text, upstream=upstream.name, why=why)
            case "down":
                text = "{why} It is down, and looked for every {seconds} s."
                log.warning(
                    "upstream.down", text,
                    upstream=upstream.name, why=why, seconds=_RETRY_SECONDS[-1],
                )  # fmt: skip

    def _tell(self) -> None:
        # Whoever waits looks again; the next change has a new event.
        self._changed.set()
        self._changed = asyncio.Event()

    # Leasing.

    async def serve(
        self,
        ask: Ask,
        work: Callable[[Lease], Awaitable[float | None]],
        *,
        told: Callable[[], bool],
        hurries: Callable[[], bool] = lambda: False,
        ticket: Ticket | None = None,
    ) -> None:
        """Have an upstream do a piece of work, and another one if it fails.

        It is tried once more, and only before the client was `told` anything; where it `hurries`,
        only on another upstream that soon has a free slot. That an upstream still loads its model
        is no failure, the first time that it says so. `work` gives the part of the prompt that
        was in the upstream's cache, if it knows.

        Raises:
            ProblemError: nobody serves this model, or nobody can now; or the work has failed.
        """
        first: ProblemError | None = None
        since, loading = self._now(), set[int]()
        while True:
            async with self.lease(ask, ticket) as lease:
                again = first is not None and lease.upstream.number in ask.avoid
                if first is not None and again and (ask.hurries or not may_be_another(first)):
                    raise first  # it would say the same again
                try:
                    lease.cached = await work(lease)
                    if lease.problem is not None:
                        self._failed_at(lease, lease.problem)
                    else:
                        lease.served = True
                except ProblemError as error:
                    self._failed_at(lease, error.problem)
                    number = lease.upstream.number
                    if error.problem.kind == "loading" and number not in loading and not told():
                        loading.add(number)
                        ask = msgspec.structs.replace(ask, since=since)
                        continue
                    may = error.problem.retryable and lease.upstream.failures.retry
                    again = may and first is None and not told()
                    if not again or not self.pool.may_retry(self._now()):
                        raise
                    first = error
                    self._log_again(lease, error.problem, going_on=hurries())
                else:
                    return
            avoid = frozenset({lease.upstream.number})
            ask = msgspec.structs.replace(ask, avoid=avoid, since=since, hurries=hurries())

    @asynccontextmanager
    async def lease(self, ask: Ask, ticket: Ticket | None = None) -> AsyncIterator[Lease]:
        """A slot of an upstream for one request, which may have to wait for it.

        `ticket` is for asking how long (`place`).

        Raises:
            ProblemError: nobody serves this model, or nobody can now.
        """
        if self._config.any_model and not any(ask.model in one.offers for one in self.upstreams):
            ask = msgspec.structs.replace(ask, model=None)
        self._next = request = self._next + 1
        asked = self._asked[request] = Asked(ask)
        if ticket is not None:
            ticket.request = request
        lease: Lease | None = None
        try:
            if self._others is not None and ask.session is not None:
                await self._recall(self._others, ask.session)
            self._tell_pool(self.pool.on_request, request, ask, self._now())
            assigned = asked.given or await asked.wait()
            if self._others is not None and ask.slots:
                assigned = await self._take(self._others, request, asked, assigned)
            upstream = self._numbered[assigned.upstream]
            upstream.leases += 1
            upstream.left.clear()
            lease = Lease(upstream, ask.model, assigned, self.pool.weighed(request))
            yield lease
        finally:
            del self._asked[request]
            if lease is not None:
                lease.upstream.leases -= 1
                if not lease.upstream.leases:
                    lease.upstream.left.set()
                if self._others is not None and ask.slots:
                    self._others.free(lease.upstream.shared, ask.slots)
            self._tell_pool(self._end, request, lease)

    async def _take(self, others: Others, request: int, asked: Asked, assigned: Assign) -> Assign:
        """A slot that no other gateway has: what the pool gives, or gives instead of that."""
        since = self._now() - assigned.waited
        ask = msgspec.structs.replace(asked.ask, since=since)
        while True:
            upstream = self._numbered[assigned.upstream]
            name = upstream.shared
            if await others.take(name, ask.slots, self.candidate(upstream).slots):
                if ask.session is not None:
                    others.remember(ask.session, name)
                return assigned
            asked.again()
            self._tell_pool(self.pool.on_cancel, request, self._now())
            self._tell_pool(self.pool.on_request, request, ask, self._now())
            assigned = asked.given or await asked.wait()

    async def _recall(self, others: Others, session: int) -> None:
        """Know which upstream has served a session for another gateway."""
        name = await others.recall(session)
        for one in self.upstreams:
            if name == one.shared:
                self.pool.on_sibling_assigned(one.number, (session,))

    async def _look_at_others(self, others: Others) -> None:
        """Keep what is known of other gateways true: at once, while somebody waits."""
        while True:
            await asyncio.sleep(_WAIT_SECONDS if self.pool.waiting else _LOOK_SECONDS)
            if await others.look([one.shared for one in self.upstreams]):
                self._tell_pool(self.pool.on_tick, self._now())

    @staticmethod
    def _log_again(lease: Lease, problem: Problem, *, going_on: bool) -> None:
        name, text = "request.retried", "{upstream} has failed a request, which is tried again: "
        if going_on:
            name, text = "request.failed_over", "{upstream} broke off an answer, which goes on: "
        log.warning(name, text + "{why}", upstream=lease.upstream.name, why=problem.message)

    def place(self, ticket: Ticket) -> int:
        """The place of a request in the queue; 0 if it does not wait."""
        return self.pool.place(ticket.request)

    def _end(self, request: int, lease: Lease | None) -> list[Effect]:
        now = self._now()
        if lease is None or (lease.blame is None and not lease.served):
            return self.pool.on_cancel(request, now)
        if lease.blame is not None:
            return self.pool.on_failure(request, lease.blame, now)
        return self.pool.on_done(request, now, lease.cached)

    def _tell_pool(self, event: Callable[[*Told], Sequence[Effect]], *args: *Told) -> None:
        """Tell the pool what happens, and do what it decides."""
        siblings, others = self._siblings, self._others
        if siblings is None:
            if others is not None:
                for one in self.upstreams:
                    self.pool.on_siblings(one.number, others.taken(one.shared))
            self._do(event(*args))
            return
        with siblings.locked():
            for one in self.upstreams:
                taken = siblings.taken(one.column)
                if others is not None:  # these know of the siblings too, and later
                    taken = max(taken, others.taken(one.shared))
                self.pool.on_siblings(one.number, taken)
            effects = event(*args)
            fewer = [
                siblings.hold(one.column, self.pool.wide(one.number)) for one in self.upstreams
            ]
            siblings.wait(self.pool.waiting)
        self._do(effects)
        if any(fewer):
            siblings.wake()

    def _do(self, effects: Sequence[Effect]) -> None:
        for effect in effects:
            match effect:
                case Assign(request=request):
                    asked = self._asked[request]
                    asked.take(effect)
                    if self._siblings is not None and (seen := asked.ask.seen()):
                        self._siblings.tell(self._numbered[effect.upstream].column, seen)
                case Reject(request=request, why=why):
                    asked = self._asked[request]
                    asked.refuse(ProblemError(self._refusal(asked.ask, why)))
                case Queue(request=request):
                    pass  # its place is asked for when there is somebody to hear it
                case Probe(upstream=number):
                    self._numbered[number].recheck.set()
                case Quarantine(upstream=number, seconds=seconds):
                    upstream = self._numbered[number]
                    failure = "" if upstream.failure is None else upstream.failure.message
                    text = (
                        "{upstream} has failed again and again, and gets nothing for {seconds} s: "
                    )
                    log.warning(
                        "upstream.quarantined", text + "{why}",
                        upstream=upstream.name, seconds=round(seconds, 1), why=failure,
                    )  # fmt: skip

    def _failed_at(self, lease: Lease, problem: Problem) -> None:
        """Take note of a failure: one that is gone, or loading, is so until a probe says more."""
        upstream, blame = lease.upstream, blame_of(problem)
        lease.blame = blame
        if blame is not None:
            upstream.failure = problem
        if blame in {"gone", "died", "loading"} and upstream.state == "ready":
            upstream.state = "loading" if blame == "loading" else "starting"
            upstream.problem = problem
            self._log_state(upstream)
            self._tell()

    def serving(self) -> dict[str, list[Upstream]]:
        """Who serves what, by every name that a client can ask for."""
        serving: dict[str, list[Upstream]] = {}
        for upstream in self.upstreams:
            for name in upstream.offers:
                serving.setdefault(name, []).append(upstream)
        return serving

    def candidate(self, upstream: Upstream) -> Candidate:
        """An upstream as the pick sees it."""
        return self.pool.candidate(upstream.number, self._now())

    def explain(self, ask: Ask) -> list[Reason]:
        """What speaks for each upstream to take a request now, and what against it."""
        return self.pool.explain(ask, self._now())

    def numbered(self, number: int) -> Upstream:
        """The upstream that the pool calls so."""
        return self._numbered[number]

    def quarantine(self, upstream: Upstream) -> float | None:
        """How many seconds an upstream still gets nothing; `None` if it is not in quarantine."""
        return self.pool.quarantine(upstream.number, self._now())

    def state(self) -> State:
        """How the gateway is: as well as its best upstream."""
        states: set[State] = {upstream.state for upstream in self.upstreams}
        order: tuple[State, ...] = ("ready", "loading", "starting", "down")
        return next((state for state in order if state in states), "starting")

    def unknown(self, model: str | None) -> Problem:
        """That nobody here serves this model, and what is served."""
        return refusals.unknown(model, self.upstreams)

    def _refusal(self, ask: Ask, why: Why) -> Problem:
        return refusals.refusal(ask, why, self.upstreams, self.state(), self.pool.rules)


def _rules(config: Config) -> Rules:
    queue = config.queue
    return Rules(queue=queue.size, queue_seconds=queue.seconds, patience_seconds=PATIENCE_SECONDS)


def _fatal(problem: str) -> None:
    log.error("gateway.failed", "{problem}", problem=problem)


def _is_dead(problem: Problem, failures: int) -> bool:
    """Whether nothing more is expected of an upstream that was asked so often."""
    return problem.code == NO_LIFE and failures >= _DEAD_PROBES
