"""What is served, as tools read it: OpenAI's list of models, with what llama.cpp's list adds.

A card tells what holds wherever a request for that name may go: the smallest context, and what
one of the upstreams can do. Of what an upstream says of itself, nothing goes on that shows where
its files are or how it was started.
"""

from __future__ import annotations

from collections.abc import Mapping
from typing import TypeAlias

from tropilla.herd.balance import State
from tropilla.ir import Json, JsonObject
from tropilla.upstream.member import Upstream

_STATUS: dict[State, JsonObject] = {
    "ready": {"value": "loaded"},
    "loading": {"value": "loading"},
    "starting": {"value": "loading"},
    "down": {"value": "unloaded", "failed": True},
}
"""In the words of llama.cpp's router; the best upstream counts."""

_TOLD_STATUS = ("value", "failed", "exit_code")
_PRIVATE = ("path", "preset", "args", "in_cache")
_CONTEXTS = ("n_ctx", "max_model_len", "context_length", "context_window", "max_context_length")
"""What llama.cpp, vLLM and others call the context of a model."""

_ABLE = ("tools", "vision", "audio", "infill", "embeddings", "rerank")


Serving: TypeAlias = Mapping[str, list[Upstream]]
"""Who serves what, by every name."""


def cards(serving: Serving, since: int) -> list[JsonObject]:
    """Every model that is served; `since` is for those whose age nobody tells, in seconds."""
    names = _aliases(serving)
    return [_card(name, serving[name], names[name], since) for name in sorted(serving)]


def card(serving: Serving, name: str, since: int) -> JsonObject | None:
    """One model; `None` where nobody serves it."""
    if name not in serving:
        return None
    return _card(name, serving[name], _aliases(serving)[name], since)


def context(serving: Serving, model: str | None) -> int | None:
    """The tokens of context that a model has at most, wherever it is; `None` if nobody knows."""
    upstreams = [one for name, served in serving.items() if model in {None, name} for one in served]
    sizes = [one.traits.n_ctx for one in upstreams]
    told = [size for size in sizes if size is not None]
    return max(told) if told and len(told) == len(sizes) else None


def _aliases(serving: Serving) -> dict[str, list[str]]:
    """The other names of each model: those that reach the same models of the same upstreams."""
    same: dict[tuple[tuple[int, str | None], ...], list[str]] = {}
    reaches = {
        name: tuple((id(one), one.there(name)) for one in upstreams)
        for name, upstreams in serving.items()
    }
    for name in sorted(serving):
        same.setdefault(reaches[name], []).append(name)
    return {name: [one for one in same[reaches[name]] if one != name] for name in serving}


def _card(name: str, upstreams: list[Upstream], aliases: list[str], since: int) -> JsonObject:
    best = min(upstreams, key=lambda one: list(_STATUS).index(one.state))
    told = [one.traits.models.get(one.there(name) or "", {}) for one in upstreams]
    card = {key: value for key, value in told[upstreams.index(best)].items() if key not in _PRIVATE}
    created, owner, status = card.get("created"), card.get("owned_by"), card.get("status")
    contexts = [
        size
        for one, said in zip(upstreams, told, strict=True)
        if (size := one.traits.n_ctx or _context(said)) is not None
    ]
    meta = card.get("meta")
    own: JsonObject = {
        "id": name,
        "object": "model",
        "created": created if type(created) is int else since,
        "owned_by": owner if type(owner) is str else "llamacpp",
        "aliases": aliases,
        "status": _status(status) or _STATUS[best.state],
        "capabilities": ["completion", "chat", *_abilities(upstreams)],
    }
    if contexts:
        own["context_length"] = min(contexts)
        own["meta"] = (meta if type(meta) is dict else {}) | {"n_ctx": min(contexts)}
    return card | own


def _abilities(upstreams: list[Upstream]) -> list[str]:
    return [name for name in _ABLE if any(getattr(one.traits, name) is True for one in upstreams)]


def _status(told: Json) -> JsonObject | None:
    """A router's own, of a model that it may not have loaded, without how it would."""
    if type(told) is not dict:
        return None
    return {name: told[name] for name in _TOLD_STATUS if name in told} or None


def _context(said: JsonObject) -> int | None:
    meta = said.get("meta")
    for group in (meta if type(meta) is dict else {}, said):
        for name in _CONTEXTS:
            if type(size := group.get(name)) is int and size > 0:
                return size
    return None
