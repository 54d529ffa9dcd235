"""The settings of a gateway: their types, their bounds, their defaults, and what they mean.

A setting is added here, and nowhere else: the file's reader, `config show` and the JSON Schema
follow from the types, and the text below a setting is what an editor shows.
"""

from __future__ import annotations

from pathlib import Path
from typing import Annotated, Literal, TypeAlias

import msgspec
from msgspec import Meta

from tropilla.templates import Template

TINY_MODEL = Path(__file__).parents[1] / "models" / "tiny.gguf"
TINY_NAME = "tropilla-tiny"


class ConfigError(ValueError):
    """A setting that cannot be; the message says which, and how to mend it."""


# `form` names what a text is besides a text: how it is read, and whether it may be shown.
Name: TypeAlias = Annotated[str, Meta(min_length=1)]
Url: TypeAlias = Annotated[str, Meta(min_length=1, extra={"form": "url"})]
# An address that may have a password in it, as that of an upstream.
StoreUrl: TypeAlias = Annotated[str, Meta(min_length=1, extra={"form": "store"})]
# The same, where it may be left to the accounts.
KeptUrl: TypeAlias = Annotated[str, Meta(min_length=1, extra={"form": "kept"})]
# That of a server that several gateways share.
SharedUrl: TypeAlias = Annotated[str, Meta(min_length=1, extra={"form": "shared"})]
Listen: TypeAlias = Annotated[str, Meta(min_length=1, extra={"form": "listen"})]
# What is sent in a header has no control characters: a line break would begin another one.
_PRINTABLE = r"^[^\x00-\x1f\x7f]+$"
Secret: TypeAlias = Annotated[str, Meta(min_length=1, pattern=_PRINTABLE, extra={"form": "secret"})]
File: TypeAlias = Annotated[Path, Meta(min_length=1, pattern=_PRINTABLE)]
HeaderName: TypeAlias = Annotated[str, Meta(min_length=1, pattern=r"^[!#$%&'*+.^_`|~0-9A-Za-z-]+$")]
Seconds: TypeAlias = Annotated[float, Meta(gt=0, le=86400)]
Moment: TypeAlias = Annotated[str, Meta(min_length=1, extra={"form": "moment"})]
Money: TypeAlias = Annotated[float, Meta(ge=0, le=1_000_000)]


class TimeoutsConfig(msgspec.Struct, frozen=True, kw_only=True):
    """How long an upstream is waited for, in seconds."""

    connect: Seconds = 5.0
    """How long it may take to reach it."""
    idle: Seconds = 600.0
    """The longest silence in an answer: a long prompt is read in silence."""


class FailuresConfig(msgspec.Struct, frozen=True, kw_only=True):
    """How the failures of an upstream are taken."""

    tolerated: Annotated[int, Meta(ge=1, le=1_000_000)] = 3
    """So many in a row, and it gets nothing for a while."""
    out: Seconds = 1.0
    """How long that is for the first time; each further time is twice as long."""
    most_out: Seconds = 60.0
    """The longest that it gets nothing."""
    slow_start: Annotated[float, Meta(ge=0, le=86400)] = 10.0
    """Once it is back it has one slot at first, and all of them after so many seconds."""
    retry: bool = True
    """Whether what it has failed may be tried on another one."""


class UpstreamConfig(msgspec.Struct, frozen=True, kw_only=True):
    """A running server to send requests to."""

    url: Url
    """Its address: http://HOST:PORT, with a path if it has one, or unix:///PATH."""
    dialect: Literal["auto", "llamacpp", "openai", "afs"] = "auto"
    """What it speaks; `auto` finds out."""
    model: Name | None = None
    """The model's name there, if it is another one than here."""
    api_key: Secret | None = None
    """The key that it wants."""
    headers: dict[HeaderName, Secret] = {}
    """More headers, sent with every request."""
    slots: Annotated[int, Meta(ge=1, le=65536)] | None = None
    """Requests that it is given at once, at most; without it, as many as it has slots."""
    weight: Annotated[float, Meta(gt=0, le=1_000_000)] = 1.0
    """Of two upstreams of the same model, one of weight 2 takes twice as many requests."""
    template: Template | None = None
    """Who turns chat messages into a prompt, for this server alone."""
    timeouts: TimeoutsConfig = TimeoutsConfig()
    """How long it is waited for."""
    client: Literal["auto", "aiohttp"] = "auto"
    """Who speaks HTTP with it; `auto` is a client of our own, and aiohttp where there is TLS."""
    failures: FailuresConfig = FailuresConfig()
    """How its failures are taken."""
    each_address: bool = False
    """Its name has several addresses: each is a server. They are looked up again and again."""


class LimitsConfig(msgspec.Struct, frozen=True, kw_only=True, forbid_unknown_fields=True):
    """How much may be asked for; what is left out has no limit."""

    requests: Annotated[int, Meta(ge=0, le=10**9)] | None = None
    """Requests in any minute."""
    tokens: Annotated[int, Meta(ge=0, le=10**12)] | None = None
    """Tokens in any minute, read and written."""
    concurrent: Annotated[int, Meta(ge=0, le=10**6)] | None = None
    """Requests that are served at once."""


class BudgetConfig(msgspec.Struct, frozen=True, kw_only=True, forbid_unknown_fields=True):
    """How much may be used up in a period: of tokens or of money."""

    tokens: Annotated[int, Meta(ge=0, le=2**52)] | None = None
    """So many tokens, read and written."""
    money: Money | None = None
    """So much money, by the prices of the models."""
    per: Literal["day", "month", "total"] = "total"
    """The period, by the calendar in UTC; `total` has no end."""


class TermsConfig(msgspec.Struct, frozen=True, kw_only=True, forbid_unknown_fields=True):
    """What a key may do."""

    team: Name | None = None
    """Whose it is: the limits of a team hold for all its keys together."""
    models: tuple[Name, ...] | None = None
    """The models that it may ask for; all of them, if it is left out."""
    limits: LimitsConfig = LimitsConfig()
    """How much it may ask for."""
    budgets: tuple[BudgetConfig, ...] = ()
    """How much it may use up."""
    priority: Annotated[int, Meta(ge=-100, le=100)] = 0
    """Who has more of it comes first where requests wait for a slot."""
    expires: Moment | None = None
    """When it ends: a day, or a time, in UTC if it does not say otherwise."""
    tags: tuple[Name, ...] = ()
    """Words of your own."""


class KeyConfig(TermsConfig, frozen=True, kw_only=True, forbid_unknown_fields=True):
    """A key by a name of its own, and what it may do."""

    key: Secret
    """What its client shows."""


class TeamConfig(msgspec.Struct, frozen=True, kw_only=True):
    """What all keys of a team may do together."""

    limits: LimitsConfig = LimitsConfig()
    """How much they may ask for."""
    budgets: tuple[BudgetConfig, ...] = ()
    """How much they may use up."""


class PriceConfig(msgspec.Struct, frozen=True, kw_only=True):
    """What a million tokens cost, in whatever money."""

    input: Money = 0.0
    """Of those that are read."""
    cached: Money | None = None
    """Of those that are read and were in the upstream's cache; as the others, if it is left out."""
    output: Money = 0.0
    """Of those that are written."""


class ModelConfig(msgspec.Struct, frozen=True, kw_only=True):
    """A model by the name that clients use, and who serves it."""

    upstreams: Annotated[tuple[UpstreamConfig, ...], Meta(min_length=1)]
    """The servers that have it."""
    aliases: tuple[Name, ...] = ()
    """Other names by which clients may ask for it."""
    template: Template | None = None
    """Who turns chat messages into a prompt; `auto` leaves it to the server."""
    price: PriceConfig = PriceConfig()
    """What its tokens cost; nothing, if it is left out."""
    limits: LimitsConfig = LimitsConfig()
    """How much all clients together may ask of it."""


class EngineConfig(msgspec.Struct, frozen=True, kw_only=True):
    """The embedded engine. Zeros leave the choice to it."""

    model: File = TINY_MODEL
    """The GGUF file; without one, a tiny model that comes with Tropilla."""
    name: Name = TINY_NAME
    """The model's name for clients; without one, the file's name."""
    slots: Annotated[int, Meta(ge=0, le=256)] = 0
    """Requests that it serves at once; 0 is up to 4, as the free memory allows."""
    ctx_size: Annotated[int, Meta(ge=0)] = 0
    """Tokens of context per slot; 0 is what the model has, as far as the free memory allows."""
    threads: Annotated[int, Meta(ge=0)] = 0
    """Threads that compute."""


class QueueConfig(msgspec.Struct, frozen=True, kw_only=True):
    """Requests that wait for a free slot."""

    size: Annotated[int, Meta(ge=0, le=1_000_000)] = 64
    """How many wait for the same upstreams; one more is refused at once."""
    seconds: Seconds = 60.0
    """How long one waits."""


class ResponsesConfig(msgspec.Struct, frozen=True, kw_only=True):
    """What is kept of the Responses API, so that a conversation can go on by an id."""

    store: KeptUrl = "auto"
    """`auto` is the store that `accounts.store` names, and where it names none `memory`, which ends
    with the gateway; or a store of its own: sqlite:///PATH, postgresql://USER@HOST/NAME."""
    ttl: Annotated[float, Meta(gt=0, le=315_360_000)] = 2_592_000.0
    """Seconds after its last use when a response is forgotten; 30 days."""
    max_bytes: Annotated[int, Meta(ge=0, le=2**50)] = 64 * 1024 * 1024
    """Bytes of all that is kept; beyond, what was not used for longest goes first."""


class RepeatsConfig(msgspec.Struct, frozen=True, kw_only=True):
    """What is kept of answers to requests with an Idempotency-Key, to be said again."""

    ttl: Annotated[float, Meta(ge=0, le=31_536_000)] = 86400.0
    """Seconds for which an answer is kept; 0 passes over the header."""
    max_answer: Annotated[int, Meta(ge=0, le=2**30)] = 16 * 1024 * 1024
    """Bytes of one answer; a longer one is not kept."""
    max_bytes: Annotated[int, Meta(ge=0, le=2**50)] = 128 * 1024 * 1024
    """Bytes of all that is kept; beyond, the oldest go first."""


class CaptureConfig(msgspec.Struct, frozen=True, kw_only=True):
    """What is kept in memory of what was asked, word for word, for the dashboard."""

    enabled: bool = False
    """Keep it: whoever has the admin key can read what clients have said."""
    seconds: Seconds = 600.0
    """After so many it is gone."""
    max_bytes: Annotated[int, Meta(ge=0, le=2**24)] = 65536
    """Bytes of each text; of a longer one the beginning is kept."""


class AccountsConfig(msgspec.Struct, frozen=True, kw_only=True):
    """What is kept of who used what."""

    store: StoreUrl = "auto"
    """sqlite:///PATH or postgresql://USER@HOST/NAME; `auto` is a file of this user's, and `none`
    keeps nothing."""
    spool: File | None = None
    """A folder for rows that wait for a store that fails; without one, it is beside the file."""
    max_spool: Annotated[int, Meta(ge=0, le=2**40)] = 256 * 1024 * 1024
    """Bytes of it; beyond, nothing new is served until the store works again."""
    keep_days: Annotated[float, Meta(gt=0, le=36500)] = 90.0
    """How long the row of a request is kept; the sums of its hour stay."""
    admin_key: Secret | None = None
    """The key by which keys are given and taken over HTTP; it asks for nothing else."""
    secret: Secret | None = None
    """Under which the digests of the keys in the store are made; else a file beside the store."""
    shared: SharedUrl = "memory"
    """Where limits, slots and sessions are counted: valkey://HOST:PORT, for all gateways together;
    `memory` is each one's own."""
    keys: dict[Name, KeyConfig] = {}
    """More keys, each by a name of its own and with what it may do."""
    teams: dict[Name, TeamConfig] = {}
    """What all keys of a team may do together."""


class TracesConfig(msgspec.Struct, frozen=True, kw_only=True):
    """Spans of every request, for OpenTelemetry. What is not said here the variables OTEL_* say."""

    endpoint: Url | None = None
    """Where they are sent as OTLP over HTTP, as http://HOST:4318/v1/traces. Without it, where
    OTEL_EXPORTER_OTLP_ENDPOINT says; if that says nothing either, there are none."""
    headers: dict[HeaderName, Secret] = {}
    """Headers that are sent there."""
    sample: Annotated[float, Meta(ge=0, le=1)] | None = None
    """The part of the requests of which there are spans, where their clients do not say it."""


class Config(msgspec.Struct, frozen=True, kw_only=True):
    """Everything that `tropilla serve` needs to know."""

    listen: Listen = "127.0.0.1:8081"
    """HOST:PORT; port 0 takes any that is free."""
    ollama_port: Annotated[int, Meta(ge=0, le=65535)] = 0
    """A second port, for programs that look for Ollama on 11434 and nowhere else; 0 for none."""
    api_keys: tuple[Secret, ...] = ()
    """The keys that clients must show; none at all lets anybody ask."""
    insecure: bool = False
    """No warning where other machines can reach it, and need no key."""
    models: Annotated[dict[Name, ModelConfig], Meta(min_length=1)] = {}
    """The models by the names that clients use."""
    upstreams: tuple[UpstreamConfig, ...] = ()
    """Servers whose models are found by asking them. Neither these nor models: the engine runs."""
    engine: EngineConfig = EngineConfig()
    """The embedded engine, which runs where there are neither models nor upstreams."""
    queue: QueueConfig = QueueConfig()
    """Requests that wait for a free slot."""
    responses: ResponsesConfig = ResponsesConfig()
    """What is kept of the Responses API."""
    repeats: RepeatsConfig = RepeatsConfig()
    """What is kept of answers to requests with an Idempotency-Key."""
    capture: CaptureConfig = CaptureConfig()
    """What is kept of what was asked, word for word; nothing, if it is not told to."""
    accounts: AccountsConfig = AccountsConfig()
    """What is kept of who used what."""
    traces: TracesConfig = TracesConfig()
    """Spans of every request, for OpenTelemetry."""
    log_requests: bool = True
    """A line of the log for every request."""
    workers: Annotated[int, Meta(ge=1, le=256)] = 1
    """Processes that serve; one per core is enough, and one for some thousands of streams."""
    template: Template | None = None
    """For every model that has none of its own; `auto` leaves it to the server."""
    any_model: bool = False
    """A name that nobody serves is answered by whatever is served, as api_like_OAI.py did."""
    allow_admin: bool = False
    """Relay the routes that change or expose a server."""
    allow_grammar: bool = True
    """Pass on a client's own grammar; without, JSON Schemas alone: those are checked here."""
    failover: bool = True
    """A stream whose server breaks off goes on from another one, where it is plain text."""
    drain: Annotated[float, Meta(ge=0, le=86400)] = 30.0
    """How long open answers may go on, in seconds, once the gateway is asked to end."""
    max_body: Annotated[int, Meta(ge=1, le=2**40)] = 32 * 1024 * 1024
    """Bytes of one request."""
    max_text: Annotated[int, Meta(ge=1, le=2**40)] = 8 * 1024 * 1024
    """Bytes of one request, but for pictures and sounds: text takes its time to be read."""
    max_scored_tokens: Annotated[int, Meta(ge=0, le=1_000_000)] = 4096
    """Tokens of the prompts of one request that wants their probabilities of a llama.cpp server."""

    @property
    def wants_key(self) -> bool:
        """Whether clients need a key, by what is said here: the store may have some too."""
        accounts = self.accounts
        return any(self.api_keys) or bool(accounts.keys) or accounts.admin_key is not None

    @property
    def host(self) -> str:
        """The address to listen on."""
        return self.listen.rpartition(":")[0].strip("[]")

    @property
    def port(self) -> int:
        """The port to listen on."""
        return int(self.listen.rpartition(":")[2])
