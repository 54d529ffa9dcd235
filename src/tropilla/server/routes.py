"""Which path means what. Every path, with and without `/v1`, is in one table.

Paths are matched as they were sent, before any unescaping: a `%2F` in a model's name is a
character of the name, never a new path.
"""

from __future__ import annotations

from typing import Literal, TypeAlias
from urllib.parse import unquote

from tropilla import dialects, measures
from tropilla.ir import Value


class Generate(Value, frozen=True, kw_only=True):
    """Text is wanted, in a dialect; `path` is the one that the dialect named."""

    dialect: str
    path: str


class Measure(Value, frozen=True, kw_only=True):
    """Numbers are wanted: a measure by its name; `dialect` is whose envelope a refusal has."""

    name: str
    path: str
    dialect: str


class Forward(Value, frozen=True, kw_only=True):
    """Passed on to an upstream as it is; with `admin` only where the operator allows it.

    `dialect` is whose envelope a refusal of Tropilla's own has.
    """

    path: str
    admin: bool = False
    dialect: str = "llamacpp"


class Own(Value, frozen=True, kw_only=True):
    """Answered by Tropilla itself."""

    name: Literal["health", "models", "model"]
    argument: str = ""


Action: TypeAlias = Generate | Measure | Forward | Own
Methods: TypeAlias = dict[str, Action]

# The read and inference routes of a llama-server that Tropilla has no dialect for (yet).
_POSTED = (
    "/tokenize",
    "/detokenize",
    "/apply-template",
    "/embedding",
    "/v1/messages",
    "/v1/messages/count_tokens",
    "/v1/responses",
    "/responses",
    "/v1/responses/input_tokens",
    "/responses/input_tokens",
    "/v1/chat/completions/input_tokens",
    "/chat/completions/input_tokens",
    "/v1/chat/completions/control",
    "/v1/audio/transcriptions",
    "/audio/transcriptions",
    "/v1/systemone",
)
_READ = ("/props", "/slots", "/metrics", "/lora-adapters")
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
_SLOT = "/slots/"
_MODELS = ("/v1/models/", "/models/")


def table() -> dict[str, Methods]:
    """Every fixed path, and what each method does there."""
    routes: dict[str, Methods] = {}

    def add(method: str, path: str, action: Action) -> None:
        routes.setdefault(path, {})[method] = action

    for path in _POSTED:
        openai = path.startswith("/v1/") or f"/v1{path}" in _POSTED
        dialect = "openai_chat" if openai else "llamacpp"
        add("POST", path, Forward(path=path, dialect=dialect))
    for path in _READ:
        add("GET", path, Forward(path=path))
    for method, path in _ADMIN:
        add(method, path, Forward(path=path, admin=True))
    for prefix in ("", "/v1"):
        add("GET", f"{prefix}/health", Own(name="health"))
        add("GET", f"{prefix}/models", Own(name="models"))
    for name in dialects.names():
        for route in dialects.named(name).ROUTES:
            action = Generate(dialect=name, path=route.path)
            for prefix in ("", "/v1") if route.v1 else ("",):
                add("POST", prefix + route.path, action)
    for name in measures.names():
        for place in measures.named(name).PLACES:
            add("POST", place.path, Measure(name=name, path=place.path, dialect=place.dialect))
    return routes


class Router:
    """Finds what a path means."""

    def __init__(self) -> None:
        self._table = table()

    def find(self, raw_path: str) -> Methods | None:
        """The methods of a path; `None` where there is nothing."""
        path = raw_path if len(raw_path) == 1 else raw_path.rstrip("/")
        methods = self._table.get(path)
        if methods is not None:
            return methods
        for prefix in _MODELS:
            if path.startswith(prefix):
                return {"GET": Own(name="model", argument=unquote(path.removeprefix(prefix)))}
        if path.startswith(_SLOT) and path.removeprefix(_SLOT).isdecimal():
            return {"POST": Forward(path=path, admin=True)}
        return None
