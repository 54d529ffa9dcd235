"""One server: how to reach it, what it is, how it is, and what of it the config offers."""

from __future__ import annotations

import asyncio
from collections.abc import Iterator
from types import MappingProxyType
from typing import NamedTuple, Protocol

from tropilla.config import Config, FailuresConfig, UpstreamConfig
from tropilla.dialects import afs
from tropilla.herd.balance import Ability, State
from tropilla.herd.pool import FailureRules, Seen
from tropilla.ir import Problem, Traits
from tropilla.templates import Template
from tropilla.upstream.addresses import Known, at_address
from tropilla.upstream.http import Link
from tropilla.upstream.probe import Asked

_ENGINE_PING_SECONDS = 5.0
_LEAST_PING_SECONDS = 1.0
_MISSED = 3
"""Signs of life that do not come, until a server is taken for dead."""

_ABILITIES: tuple[Ability, ...] = ("tools", "vision", "audio", "infill", "embeddings", "rerank")


class Offer(NamedTuple):
    """One model of one upstream, as the config has it."""

    there: str | None = None
    """Its name there; `None` if the config does not say."""
    name: str | None = None
    """Its first name here, of which an alias is another."""
    template: Template | None = None
    weight: float = 1.0


class Listener(Protocol):
    """Who hears an answer."""

    @property
    def since(self) -> float:
        """When the last sign of life came, or the next one was first waited for (`monotonic`)."""

    def give_up(self) -> None:
        """The upstream is dead, though its connection is not."""


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
        slots: int | None = None,
        failures: FailuresConfig | None = None,
    ) -> None:
        self.number = 0
        """What the pool calls it."""
        self.column = 0
        """Where the processes of the gateway tell each other of it."""
        self.shared = ""
        """By which name gateways tell each other of it."""
        self.key: tuple[object, ...] = ()
        """What makes it another server than the next, in the config."""
        self.leaves = False
        """Whether the config names it no more."""
        self.held_back = False
        """Whether somebody has said that it gets nothing new."""
        self.link = link
        self.name = name
        self.dialect = dialect
        self.ours = ours
        """Whether it is ours to start again: then it is never down, only starting."""
        self.slots = slots
        """The most that it may be given at once, where the config says so."""
        self.failures = failures or FailuresConfig()
        """How its failures are taken."""
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
        self.failure: Problem | None = None
        """The last one that a request had with it."""
        self.leases = 0
        self.left = asyncio.Event()
        """Set once the last of them is over."""
        self.max_scored_tokens = 0
        """How long a prompt may be whose probabilities it is asked for."""
        self.heard: set[Listener] = set()
        """Who listens for an answer just now."""
        self.ping = _ENGINE_PING_SECONDS if ours else None
        """The longest that it is silent, in seconds, once it has shown that it says so."""
        self.tells_busy = True
        """Whether it says how many of its slots are at work (llama.cpp's `/slots`)."""
        self.recheck = asyncio.Event()
        self.doubted = False

    def pinged(self, silent: float) -> None:
        """There was a sign of life that says nothing else, after so many seconds of silence."""
        if silent >= _LEAST_PING_SECONDS:
            self.ping = silent if self.ping is None else min(self.ping, silent)

    def silent(self, now: float) -> list[Listener]:
        """Answers of which three signs of life are missing."""
        if self.ping is None:
            return []
        limit = _MISSED * self.ping
        return [one for one in self.heard if now - one.since > limit]

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
        offer, models = self.offers.get(name, Offer()), self.traits.models
        name = offer.name or name
        if offer.there is not None or name in models or self.traits.router:
            return offer.there or name
        # A llama-server has one model, whatever it is asked for.
        return next(iter(models), name) if self.traits.llamacpp else name

    def take(self, other: Upstream) -> None:
        """Offer what another config says of the same server."""
        self.named, self.found, self.slots = other.named, other.found, other.slots
        self.failures = other.failures
        self.offers = self.named
        self.learn(self.traits)

    def seen(self, busy: int | None) -> Seen:
        """What the pool is told of it."""
        told, own, failures = self.traits.slots, self.slots, self.failures
        return Seen(
            state=self.state,
            models={name: offer.weight for name, offer in self.offers.items()},
            lacks=self.lacks,
            slots=told if own is None else own if told is None else min(own, told),
            busy=busy,
            rules=FailureRules(
                failures=failures.tolerated,
                quarantine_seconds=failures.out,
                most_quarantine_seconds=failures.most_out,
                slow_seconds=failures.slow_start,
            ),
        )


def upstreams_of(config: Config, known: Known = MappingProxyType({})) -> Iterator[Upstream]:
    """The servers of a config, each once, with what it serves.

    `known` are the addresses behind the names of those of which each address is a server.
    """
    made: dict[tuple[object, ...], Upstream] = {}
    for one in config.upstreams:
        for upstream in _once(made, one, known):
            upstream.found = Offer(template=one.template or config.template, weight=one.weight)
    for name, model in config.models.items():
        for one in model.upstreams:
            template = one.template or model.template or config.template
            for upstream in _once(made, one, known):
                for each in (name, *model.aliases):
                    upstream.named[each] = Offer(one.model, name, template, one.weight)
    yield from made.values()


def _once(
    made: dict[tuple[object, ...], Upstream], one: UpstreamConfig, known: Known
) -> Iterator[Upstream]:
    # As long as a name has no address, it is asked for by itself: that tells what is wrong.
    for address in known.get(one.url, ("",)) if one.each_address else ("",):
        yield _made(made, one, address)


def _made(made: dict[tuple[object, ...], Upstream], one: UpstreamConfig, address: str) -> Upstream:
    more = tuple(sorted(one.headers.items()))
    key = (one.url, address, one.dialect, one.api_key, one.timeouts, one.client, *more)
    if key not in made:
        dialect = afs.dialect_at(one.url) or one.dialect if one.dialect == "auto" else one.dialect
        shown: dict[str, str] = {}
        if dialect == "afs":
            shown = afs.credentials(one.url, one.api_key)
        elif one.api_key:
            shown = {"Authorization": f"Bearer {one.api_key}"}
        url, host = at_address(one.url, address) if address else (one.url, {})
        link = Link(
            url,
            headers=host | shown | one.headers,
            timeouts=one.timeouts,
            plain=one.client == "auto",
        )
        name = f"{Link(one.url).url} ({address})" if address else link.url
        made[key] = Upstream(link, name, dialect=dialect, slots=one.slots, failures=one.failures)
        made[key].key = key
    return made[key]
