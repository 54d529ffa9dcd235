"""The wire APIs, one module each, with both faces: what a client sends us, what we send upstream.

A dialect is a module of this package whose name has no underscore in front, and which has the
members of `Dialect`; it may have those of `_beside` too. It is found by its name: adding one is
adding its file. Dialects are pure (bytes and values in, bytes and values out) and do not know each
other; what several need lives in the modules with an underscore.
"""

from __future__ import annotations

import importlib
import pkgutil
import re
from collections.abc import Callable, Collection, Iterable, Mapping, Sequence
from functools import cache
from typing import TYPE_CHECKING, Protocol, cast

import msgspec

from tropilla.dialects._beside import Counter, Face, Instead, Page, Shape, Versions
from tropilla.framing import Frame
from tropilla.ir import (
    Answer,
    Event,
    Json,
    JsonObject,
    Problem,
    ProblemKind,
    Request,
    Traits,
    Value,
)

if TYPE_CHECKING:
    from tropilla.dialects._streams import Like


class Route(Value, frozen=True, kw_only=True):
    """A path on which a dialect serves generation, without the `/v1` that may precede it."""

    path: str
    v1: bool = True
    """Whether the path is served below `/v1` too."""
    instead: Instead | None = None
    """Answers what asks for no text there."""
    shape: Shape | None = None
    """For the OpenAPI document, where that does not know this dialect."""


class Wire(Value, frozen=True, kw_only=True):
    """A request as an upstream reads it. `dropped` names the knobs that it cannot honour."""

    path: str
    body: JsonObject
    dropped: tuple[str, ...] = ()


# A client may call a field anything: a header holds little of that, and not much in all.
_NAMEABLE = re.compile(r"[A-Za-z0-9_.-]{1,64}")
_MOST_NAMED = 32


def dropped_header(names: Iterable[str]) -> dict[str, str]:
    """The header that names what an upstream could not be told, where there was anything."""
    told = [name for name in names if _NAMEABLE.fullmatch(name)][:_MOST_NAMED]
    return {"x-tropilla-dropped": ", ".join(told)} if told else {}


class Stamp(msgspec.Struct, frozen=True):
    """What a reply needs that no pure function may make up.

    `unique` becomes part of the ids; `created` is in seconds since 1970, UTC; `model` is the
    name by which the client asked; `n_ctx` is the context of a slot, in tokens, where it is known;
    `spent` tells how many seconds ago the request came.
    """

    unique: str
    created: int
    model: str
    n_ctx: int | None = None
    spent: Callable[[], float] | None = None


class StreamParser(Protocol):
    """Frames of one streamed answer to events; keeps the promises of `ir`'s grammar."""

    @property
    def like(self) -> Like | None:
        """What the next frame is probably like; who is told by that need not have it fed."""

    def feed(self, frames: Sequence[Frame]) -> list[Event]:
        """The events that these frames tell.

        Frames that are not this dialect end in `Failed`: an exception would lose what the frames
        before them told.
        """

    def end(self) -> list[Event]:
        """The bytes are over: the terminal event, if it was not told yet."""

    def abort(self, problem: Problem) -> list[Event]:
        """The bytes broke off: what is open closes, then `Failed`."""


class StreamRenderer(Protocol):
    """Events of one answer to the bytes of its stream."""

    def feed(self, event: Event) -> bytes:
        """The bytes that tell this event; often none."""


class Dialect(Protocol):
    """What a module of this package offers."""

    @property
    def NAME(self) -> str:  # noqa: N802 - a module's constant
        """The module's own name."""

    @property
    def ROUTES(self) -> tuple[Route, ...]:  # noqa: N802
        """Where a client finds this dialect; none for a dialect that only upstreams speak."""

    @property
    def CONTENT_TYPE(self) -> str:  # noqa: N802
        """Of the streamed answer."""

    @property
    def PING(self) -> bytes:  # noqa: N802
        """What tells a waiting client that its stream lives."""

    def parse_request(self, body: JsonObject, path: str) -> Request:
        """Read a client's JSON.

        Raises:
            Malformed: with the parameter at fault.
        """

    def render_request(self, request: Request, traits: Traits) -> Wire:
        """Say a request to an upstream, always asking it to stream.

        Raises:
            Malformed: of kind `unsupported`, when this dialect cannot say it.
        """

    def stream_parser(self, request: Request, *, extras: bool) -> StreamParser:
        """A parser of the streamed answer; without `extras`, unmodelled fields are let go."""

    def stream_renderer(self, request: Request, stamp: Stamp) -> StreamRenderer:
        """A renderer of the streamed answer."""

    def parse_answer(self, body: Json, request: Request | None = None) -> Answer:
        """Read an unstreamed answer; more of it where it is known what was asked.

        Raises:
            Malformed: it is not this dialect.
        """

    def render_answer(self, answer: Answer, request: Request, stamp: Stamp) -> bytes:
        """The unstreamed answer, whole."""

    def parse_problem(self, status: int, body: bytes) -> Problem:
        """Read an upstream's refusal. Never raises: any bytes are some problem."""

    def render_problem(self, problem: Problem, status: int) -> bytes:
        """The envelope of an error, as a whole body."""


@cache
def named(name: str) -> Dialect:
    """The dialect of this name, imported when first asked for."""
    return cast("Dialect", importlib.import_module(f"{__name__}.{name}"))


@cache
def names() -> tuple[str, ...]:
    """The names of all dialects."""
    return tuple(
        sorted(
            module.name
            for module in pkgutil.iter_modules(__path__)
            if not module.name.startswith("_")
        )
    )


def pages(name: str) -> tuple[Page, ...]:
    """What a dialect answers itself."""
    told: tuple[Page, ...] = getattr(named(name), "PAGES", ())
    return told


def counters(name: str) -> tuple[Counter, ...]:
    """Where a dialect counts tokens."""
    told: tuple[Counter, ...] = getattr(named(name), "COUNTERS", ())
    return told


def faces(name: str) -> tuple[Face, ...]:
    """Where a dialect answers with numbers."""
    told: tuple[Face, ...] = getattr(named(name), "FACES", ())
    return told


def schemas(name: str) -> JsonObject:
    """What the OpenAPI document has to be told of a dialect."""
    told: JsonObject = getattr(named(name), "SCHEMAS", {})
    return told


def served_as(dialect: Dialect) -> Callable[[str, Collection[str]], str] | None:
    """How a dialect finds which of the models that are served a client means, if it does."""
    told: Callable[[str, Collection[str]], str] | None = getattr(dialect, "served_as", None)
    return told


def statuses(dialect: Dialect) -> Mapping[ProblemKind, int]:
    """The status of a problem, where a dialect has one of its own."""
    told: Mapping[ProblemKind, int] = getattr(dialect, "STATUSES", {})
    return told


def versions(dialect: Dialect) -> Versions | None:
    """How the clients of a dialect say which version of it they speak, if they do."""
    told: Versions | None = getattr(dialect, "VERSIONS", None)
    return told
