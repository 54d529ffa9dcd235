"""The upstreams, live: probed, watched, leased. It does what `herd` decides.

A lease is one request's hold on an upstream, and says by which name the model is known there. A
request for a model whose upstreams are all starting waits a while, for one of them; a request
that nobody can serve is told at once.
"""

from __future__ import annotations

import asyncio
import logging
from collections.abc import AsyncIterator, Callable, Collection, Iterator
from contextlib import asynccontextmanager, suppress
from typing import NamedTuple

from tropilla.config import Config, EngineConfig, UpstreamConfig
from tropilla.dialects import afs
from tropilla.herd.balance import Ability, Candidate, State, pick
from tropilla.ir import Problem, ProblemError, Traits, UpstreamDialect
from tropilla.templates import Template
from tropilla.upstream.engine import Engine, EngineOptions, EngineProblem, EngineState
from tropilla.upstream.http import Link
from tropilla.upstream.probe import Asked, probe

PATIENCE_SECONDS = 10.0
"""How long a request waits for an upstream that is starting."""

# A llama-server is asked how it is as often as that costs nothing; others may be far away.
_CHECK_SECONDS: dict[UpstreamDialect, float] = {"llamacpp": 5.0, "openai": 30.0, "afs": 300.0}
_RETRY_SECONDS = (0.1, 0.2, 0.4, 0.8, 1.6, 2.0)
_HOPEFUL_TRIES = 4
"""Failed probes after which an upstream is no longer starting, but down."""

_ABILITIES: tuple[Ability, ...] = ("tools", "vision", "audio", "infill", "embeddings", "rerank")

log = logging.getLogger("tropilla")


class Offer(NamedTuple):
    """One model of one upstream, as the config has it."""

    there: str | None = None
    """Its name there; `None` if the config does not say."""
    template: Template | None = None
    weight: float = 1.0


class Upstream:
    """One server: how to reach it, what it is, how it is."""

    def __init__(
        self,
        link: Link,
        name: str,
        *,
        dialect: Asked = "auto",
        offer: Offer | None = None,
        ours: bool = False,
    ) -> None:
        self.link = link
        self.name = name
        self.dialect = dialect
        self.ours = ours
        """Whether it is ours to start again: then it is never down, only starting."""
        self.named: dict[str, Offer] = {}
        """What it serves by the config."""
        self.found = offer
        """How it serves what it says itself that it has; `None` where only the config counts."""
        self.offers = self.named
        """Every name by which a client can ask for a model of it."""
        self.lacks: frozenset[Ability] = frozenset()
        """What it certainly cannot do."""
        self.traits = Traits()
        self.state: State = "starting"
        self.problem: Problem | None = None
        self.leases = 0
        self.served = 0
        self.recheck = asyncio.Event()
        self.doubted = False

    def doubt(self) -> None:
        """It has not what it was believed to have: what it is now, a probe tells at once."""
        self.doubted = True
        self.recheck.set()

    def learn(self, traits: Traits) -> None:
        """Take what a probe has found."""
        self.traits = traits
        lacks: set[Ability] = {one for one in _ABILITIES if getattr(traits, one) is False}
        self.lacks = frozenset(lacks if traits.llamacpp else lacks | {"native"})
        if self.found is not None:
            found = {name: self.found._replace(there=name) for name in traits.models}
            self.offers = found | self.named

    def there(self, name: str) -> str | None:
        """What a model that is offered here is called there."""
        offer, models = self.offers[name], self.traits.models
        if offer.there is not None or name in models or self.traits.router:
            return offer.there or name
        # A llama-server has one model, whatever it is asked for.
        return next(iter(models), name) if self.traits.llamacpp else name

    def candidate(self, model: str | None) -> Candidate:
        """What the pick sees of it."""
        offers = self.offers
        offer = offers.get(model or next(iter(offers), "")) or Offer()
        return Candidate(
            state=self.state,
            models=offers.keys(),
            lacks=self.lacks,
            slots=self.traits.slots or 1,
            weight=offer.weight,
            leases=self.leases,
            served=self.served,
        )


class Lease(NamedTuple):
    """One request's hold on an upstream."""

    upstream: Upstream
    name: str
    """The model as it is called here, for a client that named none."""
    there: str | None
    """The model as it is called there."""
    template: Template | None
    """Who turns chat into a prompt; `None` leaves it to the server."""


def upstreams_of(config: Config) -> Iterator[Upstream]:
    """The servers of a config, each once, with what it serves."""
    made: dict[tuple[object, ...], Upstream] = {}
    for one in config.upstreams:
        upstream = _once(made, one)
        upstream.found = Offer(None, one.template or config.template, one.weight)
    for name, model in config.models.items():
        for one in model.upstreams:
            template = one.template or model.template or config.template
            upstream = _once(made, one)
            for known in (name, *model.aliases):
                upstream.named[known] = Offer(one.model, template, one.weight)
    yield from made.values()


def _once(made: dict[tuple[object, ...], Upstream], one: UpstreamConfig) -> Upstream:
    key = (one.url, one.dialect, one.api_key, *sorted(one.headers.items()))
    if key not in made:
        dialect = afs.dialect_at(one.url) or one.dialect if one.dialect == "auto" else one.dialect
        shown: dict[str, str] = {}
        if dialect == "afs":
            shown = afs.credentials(one.url, one.api_key)
        elif one.api_key:
            shown = {"Authorization": f"Bearer {one.api_key}"}
        link = Link(one.url, headers=shown | one.headers, timeouts=one.timeouts)
        made[key] = Upstream(link, link.url, dialect=dialect)
    return made[key]


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
        self.upstreams += upstreams_of(self._config)
        for upstream in self.upstreams:
            self._tasks.append(asyncio.create_task(self._watch(upstream)))
        if not self.upstreams:
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
        shown = {"Authorization": f"Bearer {engine.api_key}"} if engine.api_key else {}
        link = Link(engine.address, headers=shown)
        offer = Offer(template=self._config.template)
        upstream = Upstream(link, "embedded engine", dialect="llamacpp", offer=offer, ours=True)
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
                known = upstream.traits if upstream.state == "ready" else None
                if upstream.doubted:
                    known, upstream.doubted = None, False
                self._learn(upstream, await probe(upstream.link, upstream.dialect, known))
                failures = 0
                self._set(upstream, "ready", None)
            except ProblemError as error:
                failures += 1
                self._failed(upstream, error.problem, failures)
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
        if was and list(was) != list(traits.models):
            log.info("%s serves now: %s", upstream.name, ", ".join(traits.models) or "nothing")
            self._tell()

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
            log.info("%s is ready: %s", upstream.name, ", ".join(upstream.offers) or "no model")
        elif state == "down" and problem is not None:
            log.warning("%s Trying again every %g s.", problem.message, _RETRY_SECONDS[-1])
        elif state == "loading":
            log.info("%s is loading its model.", upstream.name)
        if state == "ready" and self._on_first is not None and upstream.offers:
            self._on_first(next(iter(upstream.offers)))
            self._on_first = None
        self._tell()

    def _tell(self) -> None:
        # Whoever waits looks again; the next change has a new event.
        self._changed.set()
        self._changed = asyncio.Event()

    # Leasing.

    @asynccontextmanager
    async def lease(
        self,
        model: str | None,
        avoid: Upstream | None = None,
        needs: Collection[Ability] = (),
    ) -> AsyncIterator[Lease]:
        """An upstream for one request, which is able to do what that needs.

        Raises:
            ProblemError: nobody serves this model, or nobody can now.
        """
        upstream, model = await self._pick(model, avoid, needs)
        upstream.leases += 1
        upstream.served += 1
        try:
            offers = upstream.offers
            name = next(iter(offers)) if model is None else model
            yield Lease(upstream, name, upstream.there(name), offers[name].template)
        finally:
            upstream.leases -= 1

    async def _pick(
        self, model: str | None, avoid: Upstream | None, needs: Collection[Ability]
    ) -> tuple[Upstream, str | None]:
        deadline = asyncio.get_running_loop().time() + PATIENCE_SECONDS
        while True:
            if self._config.any_model and not any(model in one.offers for one in self.upstreams):
                model = None
            avoided = {self.upstreams.index(avoid)} if avoid is not None else set()
            candidates = [one.candidate(model) for one in self.upstreams]
            choice = pick(candidates, model, avoided, needs)
            if choice.index is not None:
                return self.upstreams[choice.index], model
            if choice.otherwise == "unknown_model":
                raise ProblemError(self.unknown(model))
            if choice.otherwise == "incapable":
                raise ProblemError(self._incapable(model, needs))
            left = deadline - asyncio.get_running_loop().time()
            waits = choice.otherwise == "wait" or not self.upstreams
            if not waits or left <= 0:
                raise ProblemError(self._unavailable())
            with suppress(TimeoutError):
                async with asyncio.timeout(left):
                    await self._changed.wait()

    def lost(self, upstream: Upstream, problem: Problem) -> None:
        """A request found this upstream gone: look at once whether it is."""
        if upstream.state == "ready":
            self._set(upstream, "starting", problem)
        upstream.recheck.set()

    def serving(self) -> dict[str, list[Upstream]]:
        """Who serves what, by every name that a client can ask for."""
        serving: dict[str, list[Upstream]] = {}
        for upstream in self.upstreams:
            for name in upstream.offers:
                serving.setdefault(name, []).append(upstream)
        return serving

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
            f"{', '.join(sorted(self.serving())) or 'nothing yet'}.",
            param="model",
        )

    def _incapable(self, model: str | None, needs: Collection[Ability]) -> Problem:
        """That this model is served, but by nobody who can do what is asked."""
        serving = [one for one in self.upstreams if model is None or model in one.offers]
        lacking = (need for need in needs if all(need in one.lacks for one in serving))
        need = next(lacking, next(iter(needs)))
        return Problem(
            kind="unsupported",
            message=f"No server of the model '{model or 'asked for'}' {_CANNOT[need]}",
            param=_PARAMS.get(need),
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


_CANNOT: dict[Ability, str] = {
    "native": "is a llama.cpp server: this path is llama.cpp's own.",
    "chat": "can chat.",
    "tools": "can call tools: llama.cpp has them since b4599.",
    "vision": "can see images: a llama-server needs a multimodal model, with --mmproj.",
    "audio": "can hear sound: a llama-server needs a multimodal model, with --mmproj.",
    "infill": "can fill a hole: its model has no tokens for that.",
    "embeddings": "makes embeddings: a llama-server is started for them with --embeddings.",
    "rerank": "ranks texts: a llama-server is started for that with --reranking.",
}
_PARAMS: dict[Ability, str] = {
    "tools": "tools", "vision": "messages", "audio": "messages", "infill": "suffix",
}  # fmt: skip
