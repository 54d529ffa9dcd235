"""The wire APIs that answer with numbers: vectors of texts, and rankings of them.

A measure is a module of this package whose name has no underscore in front, and which has the
members of `Measure`. It has both faces, as a dialect has: what clients send us and what we send
upstream, in every form that the same question has. An answer comes whole; there is no stream of
it. What one server cannot be asked at once is split into several requests, whose answers are
joined again. Measures are pure, and do not know each other.
"""

from __future__ import annotations

import importlib
import pkgutil
from array import array
from functools import cache
from typing import Any, Literal, Protocol, TypeAlias, TypeVar, cast

import msgspec

from tropilla.dialects import Wire
from tropilla.ir import Json, JsonObject, Traits, Usage, Value

Input: TypeAlias = str | list[int]
"""A text, or its token ids."""

Vector: TypeAlias = "array[float]"
"""The numbers of a vector, in the precision in which the upstream said them."""


class Embed(Value, frozen=True, kw_only=True):
    """The vectors of some inputs are wanted, in their order."""

    inputs: tuple[Input, ...]
    model: str | None = None
    dimensions: int | None = None
    encoding: Literal["float", "base64"] = "float"
    form: Literal["openai", "afs"] = "openai"
    extras: JsonObject = msgspec.field(default_factory=dict)


class Vectors(Value, frozen=True, kw_only=True):
    """A vector for each input, in their order."""

    vectors: tuple[Vector, ...]
    usage: Usage | None = None
    extras: JsonObject = msgspec.field(default_factory=dict)


class Rank(Value, frozen=True, kw_only=True):
    """How well each document answers a query is wanted."""

    query: str
    documents: tuple[str, ...]
    model: str | None = None
    top_n: int | None = None
    shown: tuple[JsonObject, ...] | None = None
    """The documents as an answer shows them; `None` if it shows none."""
    form: Literal["jina", "tei"] = "jina"
    extras: JsonObject = msgspec.field(default_factory=dict)


class Ranked(Value, frozen=True, kw_only=True):
    """One document's score, as the upstream gave it."""

    index: int
    score: float


class Ranking(Value, frozen=True, kw_only=True):
    """The documents by their scores, the best one first."""

    ranked: tuple[Ranked, ...]
    usage: Usage | None = None
    extras: JsonObject = msgspec.field(default_factory=dict)


class Place(Value, frozen=True, kw_only=True):
    """A path on which a measure is served."""

    path: str
    dialect: str = "openai_chat"
    """Whose envelope a refusal has there."""


class Counted(Value, frozen=True, kw_only=True):
    """What the usage of a request counts: an input, and how often it is read."""

    input: Input
    times: int = 1


Question = TypeVar("Question", Embed, Rank)
Told = TypeVar("Told", Vectors, Ranking)


class Measure(Protocol[Question, Told]):
    """What a module of this package offers."""

    @property
    def ABILITY(self) -> Literal["embeddings", "rerank"]:  # noqa: N802 - a module's constant
        """What an upstream must be able to do."""

    @property
    def PLACES(self) -> tuple[Place, ...]:  # noqa: N802
        """Where a client finds this measure."""

    def parse_request(self, body: JsonObject, path: str) -> Question:
        """Read a client's JSON.

        Raises:
            Malformed: with the parameter at fault.
        """

    def split(self, request: Question, traits: Traits) -> tuple[Question, ...]:
        """The requests, one after the other, in which an upstream can be asked all of this."""

    def render_request(self, request: Question, traits: Traits) -> Wire:
        """Say a request to an upstream.

        Raises:
            Malformed: of kind `unsupported`, when the upstream cannot be asked this.
        """

    def parse_answer(self, body: Json, request: Question, traits: Traits) -> Told:
        """Read an upstream's answer.

        Raises:
            Malformed: it is none; of another kind than `malformed` if it says why.
        """

    def join(self, parts: list[Told], request: Question, *, matryoshka: bool) -> Told:
        """Put the answers to the parts of a request together, as it was wanted.

        With `matryoshka` the model is known to mean the same by the beginning of a vector.

        Raises:
            Malformed: it cannot be had as it was wanted.
        """

    def counted(self, request: Question) -> list[Counted]:
        """What is to be counted where an upstream does not tell the usage."""

    def render_answer(self, answer: Told, request: Question, model: str) -> bytes:
        """The answer, whole; `model` is the name by which the client knows it."""


@cache
def named(name: str) -> Measure[Any, Any]:
    """The measure of this name, imported when first asked for."""
    return cast("Measure[Any, Any]", importlib.import_module(f"{__name__}.{name}"))


@cache
def names() -> tuple[str, ...]:
    """The names of all measures."""
    return tuple(
        sorted(
            module.name
            for module in pkgutil.iter_modules(__path__)
            if not module.name.startswith("_")
        )
    )
