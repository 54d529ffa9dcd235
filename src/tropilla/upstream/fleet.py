"""The upstreams, live: probed, watched, leased. It does what `herd` decides.

A lease is one request's hold on an upstream. A request for a model whose upstreams are all
starting waits a while, for one of them; a request that nobody can serve is told at once.
"""

from __future__ import annotations

import asyncio
import logging
from collections.abc import AsyncIterator, Callable
from contextlib import asynccontextmanager, suppress

from tropilla.config import Config, EngineConfig
from tropilla.herd.balance import Candidate, State, pick
from tropilla.ir import JsonObject, Problem, ProblemError, Traits
from tropilla.upstream.engine import Engine, EngineOptions, EngineProblem, EngineState
from tropilla.upstream.http import Link
from tropilla.upstream.probe import alive, probe

PATIENCE_SECONDS = 10.0
"""How long a request waits for an upstream that is starting."""

_CHECK_SECONDS = 5.0
_RETRY_SECONDS = (0.1, 0.2, 0.4, 0.8, 1.6, 2.0)
_HOPEFUL_TRIES = 4
"""Failed probes after which an upstream is no longer starting, but down."""

log = logging.getLogger("tropilla")


class Upstream:
    """One server: how to reach it, what it is, how it is."""

    def __init__(self, link: Link, name: str, *, ours: bool = False) -> None:
        self.link = link
        self.name = name
        self.ours = ours
        """Whether it is ours to start again: then it is never down, only starting."""
        self.traits = Traits()
        self.state: State = "starting"
        self.problem: Problem | None = None
        self.leases = 0
        self.served = 0
        self.recheck = asyncio.Event()

    def candidate(self) -> Candidate:
        """What the pick sees of it."""
        return Candidate(
            state=self.state,
            models=self.traits.models.keys(),
            slots=self.traits.slots or 1,
            leases=self.leases,
            served=self.served,
        )


class Fleet:
    """All upstreams of a gateway.

    Args:
        config: the upstreams, or the engine to run in their place.
        on_fatal: called with a message when it is no use to go on.
        on_first: called once, with the name of the first model that can be asked.
    """

    def __init__(
        self,
        config: Config,
        on_fatal: Callable[[str], None] | None = None,
        on_first: Callable[[str], None] | None = None,
    ) -> None:
        self._config = config
        self._on_fatal = on_fatal or log.error
        self._on_first = on_first
        self._tasks: list[asyncio.Task[None]] = []
        self._changed = asyncio.Event()
        self._engine: Engine | None = None
        self.upstreams: list[Upstream] = []

    async def start(self) -> None:
        """Begin to look for the upstreams; returns at once."""
        if self._config.upstreams:
            for one in self._config.upstreams:
                link = Link(one.url, api_key=one.api_key)
                upstream = Upstream(link, link.url)
                self.upstreams.append(upstream)
                self._tasks.append(asyncio.create_task(self._watch(upstream)))
        else:
            self._tasks.append(asyncio.create_task(self._run_engine(self._config.engine)))

    async def stop(self) -> None:
        """End everything that was started."""
        for task in self._tasks:
            task.cancel()
        for task in self._tasks:
            with suppress(asyncio.CancelledError):
                await task
        for upstream in self.upstreams:
            await upstream.link.close()
        if self._engine is not None:
            await self._engine.stop()

    # Watching.

    async def _run_engine(self, config: EngineConfig) -> None:
        engine = self._engine = Engine(
            EngineOptions(
                model=config.model,
                alias=config.name,
                slots=config.slots,
                ctx_size=config.ctx_size,
                threads=config.threads,
            ),
            on_change=lambda state: self._engine_changed(upstream, state),
        )
        upstream = Upstream(
            Link(engine.address, api_key=engine.api_key), "embedded engine", ours=True
        )
        self.upstreams.append(upstream)
        self._tasks.append(asyncio.create_task(self._watch(upstream)))
        try:
            await engine.run()
        except EngineProblem as problem:
            self._on_fatal(str(problem))

    @staticmethod
    def _engine_changed(upstream: Upstream, state: EngineState) -> None:
        if state.problem is not None and not state.problem.fatal:
            log.warning("%s Starting it again.", state.problem)
        upstream.recheck.set()

    async def _watch(self, upstream: Upstream) -> None:
        """Keep an upstream's state true, for ever."""
        failures = 0
        while True:
            try:
                if upstream.state == "ready":
                    await alive(upstream.link)
                else:
                    upstream.traits = await probe(upstream.link)
                failures = 0
                self._set(upstream, "ready", None)
            except ProblemError as error:
                failures += 1
                self._failed(upstream, error.problem, failures)
            pause = (
                _CHECK_SECONDS
                if upstream.state == "ready"
                else _RETRY_SECONDS[min(failures, len(_RETRY_SECONDS)) - 1]
            )
            with suppress(TimeoutError):
                await asyncio.wait_for(upstream.recheck.wait(), pause)
            upstream.recheck.clear()

    def _failed(self, upstream: Upstream, problem: Problem, failures: int) -> None:
        if problem.kind == "loading":
            self._set(upstream, "loading", problem)
        elif upstream.ours or (failures <= _HOPEFUL_TRIES and upstream.state != "down"):
            self._set(upstream, "starting", problem)
        else:
            self._set(upstream, "down", problem)

    def _set(self, upstream: Upstream, state: State, problem: Problem | None) -> None:
        news = state != upstream.state
        upstream.state, upstream.problem = state, problem
        if not news:
            return
        if state == "ready":
            log.info("%s is ready: %s", upstream.name, ", ".join(upstream.traits.models))
        elif state == "down" and problem is not None:
            log.warning("%s Trying again every %g s.", problem.message, _RETRY_SECONDS[-1])
        elif state == "loading":
            log.info("%s is loading its model.", upstream.name)
        if state == "ready" and self._on_first is not None:
            self._on_first(next(iter(upstream.traits.models)))
            self._on_first = None
        # Whoever waits looks again; the next change has a new event.
        self._changed.set()
        self._changed = asyncio.Event()

    # Leasing.

    @asynccontextmanager
    async def lease(
        self, model: str | None, avoid: Upstream | None = None
    ) -> AsyncIterator[Upstream]:
        """An upstream for one request.

        Raises:
            ProblemError: nobody serves this model, or nobody can now.
        """
        upstream = await self._pick(model, avoid)
        upstream.leases += 1
        upstream.served += 1
        try:
            yield upstream
        finally:
            upstream.leases -= 1

    async def _pick(self, model: str | None, avoid: Upstream | None) -> Upstream:
        deadline = asyncio.get_running_loop().time() + PATIENCE_SECONDS
        while True:
            if self._config.any_model and model not in self.models():
                model = None
            avoided = {self.upstreams.index(avoid)} if avoid is not None else set()
            choice = pick([one.candidate() for one in self.upstreams], model, avoided)
            if choice.index is not None:
                return self.upstreams[choice.index]
            if choice.otherwise == "unknown_model":
                raise ProblemError(self.unknown(model))
            left = deadline - asyncio.get_running_loop().time()
            waits = choice.otherwise == "wait" or not self.upstreams
            if not waits or left <= 0:
                raise ProblemError(self._unavailable())
            with suppress(TimeoutError):
                await asyncio.wait_for(self._changed.wait(), left)

    def lost(self, upstream: Upstream, problem: Problem) -> None:
        """A request found this upstream gone: look at once whether it is."""
        if upstream.state == "ready":
            self._set(upstream, "starting", problem)
        upstream.recheck.set()

    def models(self) -> dict[str, tuple[JsonObject, Traits]]:
        """What is served, by name: what an upstream says of it, and of itself."""
        return {
            name: (card, upstream.traits)
            for upstream in reversed(self.upstreams)
            for name, card in upstream.traits.models.items()
        }

    def state(self) -> State:
        """How the gateway is: as well as its best upstream."""
        states: set[State] = {upstream.state for upstream in self.upstreams}
        order: tuple[State, ...] = ("ready", "loading", "starting", "down")
        return next((state for state in order if state in states), "starting")

    def unknown(self, model: str | None) -> Problem:
        """That nobody here serves this model, and what is served."""
        return Problem(
            kind="unknown_model",
            message=f"The model '{model}' does not exist here. Served: "
            f"{', '.join(sorted(self.models())) or 'nothing yet'}.",
            param="model",
        )

    def _unavailable(self) -> Problem:
        if self.state() in {"starting", "loading"}:
            return Problem(kind="loading", message="Loading model", retryable=True, retry_after=1)
        told = [one.problem.message for one in self.upstreams if one.problem is not None]
        return Problem(
            kind="unavailable",
            message=" ".join(["No upstream can serve this now.", *dict.fromkeys(told)]),
            retryable=True,
            retry_after=2,
        )
