"""What a dialect answers beside generation, as it declares it; a gateway finds it, and names none.

A dialect may have these members, or any of them:

- `PAGES`, a tuple of `Page`: paths that are answered from what a gateway knows, or refused;
- `FACES`, a tuple of `Face`: paths on which a measure is asked in a form of the dialect's own;
- `COUNTERS`, a tuple of `Counter`: paths on which the tokens of a prompt are counted;
- `SCHEMAS`: what its `Shape`s name, for the OpenAPI document; the dialect's name, as a title, and
  `Error` is the schema of its refusals;
- `served_as(name, served)`: the served model that a client means by a name;
- `STATUSES`: the status of a problem, by its kind, where that is another than everywhere else;
- `VERSIONS`: the header in which its clients say which version of it they speak.
"""

from __future__ import annotations

from array import array
from collections.abc import Callable, Mapping, Sequence
from typing import Literal, TypeAlias

import msgspec

from tropilla.ir import JsonObject, Usage, Value


class Shape(Value, frozen=True):
    """What an operation takes and answers, by the names of the schemas, and how it may refuse."""

    summary: str
    asks: str | None = None
    answers: str | None = None
    streams: str | None = None
    refuses: tuple[str, ...] = (
        "400", "401", "403", "404", "408", "413", "415", "429", "500", "502", "503", "504",
    )  # fmt: skip
    asked: tuple[str, ...] = ()
    """What the query may say."""


class Known(Value, frozen=True, kw_only=True):
    """What a gateway knows of itself."""

    version: str
    models: tuple[JsonObject, ...]
    """A card for each model that is served, by name, as the list of models has it."""
    now: int
    """In seconds since 1970, UTC."""


class Visit(Value, frozen=True, kw_only=True):
    """What is asked of a page; `rest` is what stands in its path for the part in braces."""

    known: Known
    rest: str = ""
    query: str = ""
    headers: Mapping[str, str] = msgspec.field(default_factory=dict)
    body: JsonObject = msgspec.field(default_factory=dict)


class Shown(Value, frozen=True, kw_only=True):
    """What a page answers."""

    body: bytes
    status: int = 200
    content_type: str = "application/json"
    headers: Mapping[str, str] = msgspec.field(default_factory=dict)


class Page(Value, frozen=True, kw_only=True):
    """A path, as a whole, that a dialect answers without any upstream. A GET answers HEAD too."""

    method: Literal["GET", "HEAD", "POST", "PUT", "DELETE"]
    path: str
    """It may end in a part in braces, which stands for all the rest of it."""
    answer: Callable[[Visit], Shown] | str
    """A pure function, which may raise a `ProblemError`; or why this is not done here (501)."""
    shape: Shape
    header: str | None = None
    """Only a request with this header, in small letters, means this; any other means what else
    there is on the path."""
    public: bool = False
    """Whether it needs no key: it tells nothing."""


Instead: TypeAlias = Callable[[Visit], Shown | None]
"""Answers at once what asks an upstream for nothing."""


class Face(Value, frozen=True, kw_only=True):
    """A path on which vectors are wanted in a form of the dialect's own.

    `parse` says the request as OpenAI has it, and raises `Malformed`; `render` is given the
    vectors, the usage and the name by which the client knows the model.
    """

    path: str
    parse: Callable[[JsonObject], JsonObject]
    render: Callable[[Sequence[array[float]], Usage | None, str], bytes]
    shape: Shape
    instead: Instead | None = None


class Versions(Value, frozen=True, kw_only=True):
    """How the clients of a dialect are known, and what they may say.

    A request that has this header is refused in the words of the dialect, on whatever path.
    """

    header: str
    """In small letters."""
    known: tuple[str, ...]
    """What else it holds is refused; it need not be there."""


def openai_count(usage: Usage) -> bytes:
    """How many tokens a prompt is, as OpenAI tells it."""
    told = {"object": "response.input_tokens", "input_tokens": usage.prompt_tokens}
    return msgspec.json.encode(told | usage.extras)


class Counter(Value, frozen=True, kw_only=True):
    """A path on which the tokens of a request for generation are counted."""

    path: str
    of: str
    """The path on which the same request would be answered."""
    shape: Shape
    v1: bool = True
    """Whether it is served below `/v1` too."""
    render: Callable[[Usage], bytes] = openai_count
