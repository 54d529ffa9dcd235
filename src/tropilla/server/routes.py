"""Which path means what. Every path, with and without `/v1`, is in one table.

Paths are matched as they were sent, before any unescaping: a `%2F` in a model's name is a
character of the name, never a new path.
"""

from __future__ import annotations

from collections.abc import Container, Iterator, Mapping
from typing import Literal, TypeAlias
from urllib.parse import unquote

import msgspec

from tropilla import dialects, measures
from tropilla.accounts.keys.rights import Right
from tropilla.dialects import Route
from tropilla.dialects._beside import Counter, Face, Page
from tropilla.ir import Value


class Generate(Value, frozen=True, kw_only=True):
    """Text is wanted, in a dialect, on a path that it named."""

    dialect: str
    route: Route

    @property
    def path(self) -> str:
        """The path, as the dialect named it."""
        return self.route.path


class Measure(Value, frozen=True, kw_only=True):
    """Numbers are wanted: a measure by its name; `dialect` is whose envelope a refusal has."""

    name: str
    path: str
    dialect: str
    face: Face | None = None
    """The form in which it is wanted, where it is not the measure's own."""


class Forward(Value, frozen=True, kw_only=True):
    """Passed on to an upstream as it is; with `admin` only where the operator allows it.

    `dialect` is whose envelope a refusal of Tropilla's own has.
    """

    path: str
    admin: bool = False
    dialect: str = "llamacpp"
    slots: int = 0
    """How many of the upstream's slots it takes."""


class Count(Value, frozen=True, kw_only=True):
    """The tokens of a prompt are wanted, of a request in a dialect."""

    dialect: str
    counter: Counter


class View(Value, frozen=True, kw_only=True):
    """A page of a dialect is wanted; `rest` is what stands for the part of its path in braces."""

    dialect: str
    page: Page
    rest: str = ""


class Kept(Value, frozen=True, kw_only=True):
    """What is kept of a response is wanted, or to be deleted."""

    what: Literal["get", "delete", "items", "cancel"]
    id: str = ""
    dialect: str = "openai_responses"


class Own(Value, frozen=True, kw_only=True):
    """Answered by Tropilla itself."""

    name: Literal[
        "health", "live", "ready", "report", "models", "model", "openapi", "docs", "herd", "route",
        "usage", "metrics", "logs",
    ]  # fmt: skip
    argument: str = ""


class Manage(Value, frozen=True, kw_only=True):
    """Something is to be done with the keys in the store; `which` is a key's id or name."""

    what: Literal["list", "create", "show", "change", "rotate", "revoke"]
    which: str = ""


class Look(Value, frozen=True, kw_only=True):
    """A page of the dashboard is wanted, or something that it does: it lets people in itself."""

    place: str
    """What follows `/ui` in the path, as it was sent."""


Action: TypeAlias = Generate | Measure | Forward | Count | Kept | View | Own | Manage | Look
Methods: TypeAlias = dict[str, Action]

# The read and inference routes of a llama-server that Tropilla has no dialect for (yet).
_POSTED = (
    "/tokenize",
    "/detokenize",
    "/apply-template",
    "/embedding",
    "/v1/chat/completions/control",
    "/v1/audio/transcriptions",
    "/audio/transcriptions",
    "/v1/systemone",
)
_GENERATING = frozenset({
    "/embedding", "/v1/audio/transcriptions",
    "/audio/transcriptions", "/v1/systemone",
})  # fmt: skip
"""Those of them that take a slot there."""
_READ = ("/props", "/slots", "/lora-adapters")
# What changes a server, or shows more of it than its models: tools, a proxy, its settings.
_ADMIN = (
    ("GET", "/tools"),
    ("POST", "/tools"),
    ("GET", "/cors-proxy"),
    ("POST", "/cors-proxy"),
    ("POST", "/props"),
    ("POST", "/lora-adapters"),
    ("POST", "/models"),
    ("DELETE", "/models"),
    ("POST", "/models/load"),
    ("POST", "/models/unload"),
    ("GET", "/models/sse"),
)
_VECTORS, _ASKED = "embeddings", "/v1/embeddings"
"""The measure of vectors, and the path on which it is asked as OpenAI does."""
_SLOT = "/slots/"
_MODELS = ("/v1/models/", "/models/")
_RESPONSES = ("/v1/responses/", "/responses/")
_KEYS = "/api/keys"
_PUBLIC = frozenset({"health", "live", "ready", "docs"})
"""What Tropilla tells anybody of itself: whether it works, and what every one of its kind does."""
_UI = "/ui"
"""Its pages are for people: the document does not tell of them."""


def table() -> dict[str, Methods]:
    """Every fixed path, and what each method does there."""
    routes: dict[str, Methods] = {}

    def add(method: str, path: str, action: Action) -> None:
        routes.setdefault(path, {})[method] = action

    for path in _POSTED:
        openai = path.startswith("/v1/") or f"/v1{path}" in _POSTED
        dialect = "openai_chat" if openai else "llamacpp"
        add("POST", path, Forward(path=path, dialect=dialect, slots=int(path in _GENERATING)))
    for path in _READ:
        add("GET", path, Forward(path=path))
    for method, path in _ADMIN:
        add(method, path, Forward(path=path, admin=True))
    for prefix in ("", "/v1"):
        add("GET", f"{prefix}/health", Own(name="health"))
        add("GET", f"{prefix}/models", Own(name="models"))
    add("GET", "/openapi.json", Own(name="openapi"))
    add("GET", "/docs", Own(name="docs"))
    add("GET", "/health/live", Own(name="live"))
    add("GET", "/health/ready", Own(name="ready"))
    add("GET", "/api/health", Own(name="report"))
    add("GET", "/api/logs", Own(name="logs"))
    add("GET", "/api/herd", Own(name="herd"))
    add("POST", "/api/route", Own(name="route"))
    add("GET", "/api/usage", Own(name="usage"))
    add("GET", "/metrics", Own(name="metrics"))
    add("GET", _KEYS, Manage(what="list"))
    add("POST", _KEYS, Manage(what="create"))
    for name in dialects.names():
        for path, action in _asked_in(name):
            add("POST", path, action)
    for name in measures.names():
        for place in measures.named(name).PLACES:
            add("POST", place.path, Measure(name=name, path=place.path, dialect=place.dialect))
    for path, methods in _pages(None).items():
        if not path.endswith("}"):
            routes.setdefault(path, {}).update(methods)
    return routes


def _asked_in(dialect: str) -> Iterator[tuple[str, Action]]:
    """Where a dialect is asked for what an upstream does."""
    for route in dialects.named(dialect).ROUTES:
        for prefix in ("", "/v1") if route.v1 else ("",):
            yield prefix + route.path, Generate(dialect=dialect, route=route)
    for face in dialects.faces(dialect):
        yield face.path, Measure(name=_VECTORS, path=_ASKED, dialect=dialect, face=face)
    for counter in dialects.counters(dialect):
        for prefix in ("", "/v1") if counter.v1 else ("",):
            yield prefix + counter.path, Count(dialect=dialect, counter=counter)


def marked() -> dict[str, dict[str, Methods]]:
    """By a header, what a request that has it means on some paths, and no other request."""
    headers = {page.header for name in dialects.names() for page in dialects.pages(name)}
    return {header: _pages(header) for header in headers if header is not None}


def _pages(header: str | None) -> dict[str, Methods]:
    """The pages of all dialects that are told by this header, or by none."""
    found: dict[str, Methods] = {}
    for name in dialects.names():
        for page in dialects.pages(name):
            if page.header == header:
                found.setdefault(page.path, {})[page.method] = View(dialect=name, page=page)
    return found


def patterns() -> dict[str, Methods]:
    """The paths that have a part of their own, as OpenAPI writes them; `Router` finds them."""
    return {
        **{f"{prefix}{{model}}": {"GET": Own(name="model")} for prefix in _MODELS},
        **{
            f"{prefix}{{response_id}}{rest}": methods
            for prefix in _RESPONSES
            for rest, methods in _kept("").items()
        },
        **{f"{_KEYS}/{{key}}{rest}": methods for rest, methods in _managed("").items()},
        f"{_SLOT}{{slot}}": {"POST": Forward(path=f"{_SLOT}{{slot}}", admin=True)},
        **{path: methods for path, methods in _pages(None).items() if path.endswith("}")},
    }


def _kept(id_: str) -> dict[str, Methods]:
    """What can be done with a response that is kept, by what follows its id in the path."""
    return {
        "": {"GET": Kept(what="get", id=id_), "DELETE": Kept(what="delete", id=id_)},
        "/input_items": {"GET": Kept(what="items", id=id_)},
        "/cancel": {"POST": Kept(what="cancel", id=id_)},
    }


def _managed(which: str) -> dict[str, Methods]:
    """What can be done with a key, by what follows it in the path."""
    return {
        "": {
            "GET": Manage(what="show", which=which),
            "POST": Manage(what="change", which=which),
            "DELETE": Manage(what="revoke", which=which),
        },
        "/rotate": {"POST": Manage(what="rotate", which=which)},
    }


def right_of(action: Action) -> Right:
    """What somebody has to be allowed for this."""
    match action:
        case Manage():
            return "give"
        case Forward(admin=True) | Look():
            return "operate"
        case Own(name="herd" | "route" | "metrics" | "logs" | "report"):
            return "operate"
        case Own() | View():
            return "look"
        case Generate() | Measure() | Forward() | Count() | Kept():
            return "ask"


def is_public(action: Action | None) -> bool:
    """Whether it is answered without a key."""
    if isinstance(action, View):
        return action.page.public
    return isinstance(action, Look) or (isinstance(action, Own) and action.name in _PUBLIC)


class Router:
    """Finds what a path means."""

    def __init__(self) -> None:
        self._table = table()
        self._pages = _pages(None)
        self._marked = {header.encode(): pages for header, pages in marked().items()}

    def find(self, raw_path: str, headers: Container[bytes] = ()) -> Methods | None:
        """The methods of a path, for a request with these headers; `None` if there is nothing."""
        path = raw_path if len(raw_path) == 1 else raw_path.rstrip("/")
        methods = self._table.get(path)
        if methods is None:
            methods = self._patterned(path)
        for header, pages in self._marked.items():
            if header in headers and (own := _page(pages, path)) is not None:
                methods = own if methods is None else methods | own
        return methods

    def _patterned(self, path: str) -> Methods | None:
        for prefix in _MODELS:
            if path.startswith(prefix):
                return {"GET": Own(name="model", argument=unquote(path.removeprefix(prefix)))}
        for prefix in _RESPONSES:
            if path.startswith(prefix):
                id_, slash, rest = path.removeprefix(prefix).partition("/")
                return _kept(unquote(id_)).get(slash + rest)
        if path.startswith(f"{_KEYS}/"):
            which, slash, rest = path.removeprefix(f"{_KEYS}/").partition("/")
            return _managed(unquote(which)).get(slash + rest)
        if path == _UI or path.startswith(f"{_UI}/"):
            looked = Look(place=path.removeprefix(_UI))
            return {"GET": looked, "POST": looked}
        if path.startswith(_SLOT) and path.removeprefix(_SLOT).isdecimal():
            return {"POST": Forward(path=path, admin=True)}
        return _page(self._pages, path)


def _page(pages: Mapping[str, Methods], path: str) -> Methods | None:
    """The pages of a path, those first that have it as it is."""
    if path in pages:
        return pages[path]
    for pattern, methods in pages.items():
        prefix, brace, _ = pattern.partition("{")
        if brace and path.startswith(prefix) and path != prefix:
            rest = unquote(path.removeprefix(prefix))
            return {
                method: msgspec.structs.replace(action, rest=rest)
                for method, action in methods.items()
                if isinstance(action, View)
            }
    return None
