"""Why nobody serves a request, in words that say how to mend it."""

from __future__ import annotations

from collections.abc import Sequence

from tropilla.herd.balance import Ability, State
from tropilla.herd.pool import Ask, Rules, Why
from tropilla.ir import Problem
from tropilla.upstream.member import Upstream

STOPS_SERVERS = "request_stops_servers"
"""The code of a request that upstreams have died of."""

_LONGEST_NAME = 200
"""Of a model that is not there: more of it tells nobody more."""


def refusal(
    ask: Ask, why: Why, upstreams: Sequence[Upstream], state: State, rules: Rules
) -> Problem:
    """What is said to somebody whom nobody will serve."""
    match why:
        case "unknown_model":
            return unknown(ask.model, upstreams)
        case "incapable":
            return _incapable(ask, upstreams)
        case "queue_full" | "late":
            return _busy(why, rules)
        case "poison":
            return Problem(kind="malformed", message=_POISON, code=STOPS_SERVERS)
        case "ending":
            return Problem(kind="unavailable", message="Tropilla ends.", retry_after=2)
        case "unavailable" | "loading":
            return _unavailable(upstreams, state)


def unknown(model: str | None, upstreams: Sequence[Upstream]) -> Problem:
    """That nobody here serves this model, and what is served."""
    name = str(model)
    if len(name) > _LONGEST_NAME:
        name = name[:_LONGEST_NAME] + "..."
    served = sorted({one for upstream in upstreams for one in upstream.offers})
    return Problem(
        kind="unknown_model",
        message=f"The model '{name}' does not exist here. Served: "
        f"{', '.join(served) or 'nothing yet'}.",
        param="model",
    )


def _busy(why: Why, rules: Rules) -> Problem:
    full = f"All slots are taken, and {rules.queue} requests wait for one already."
    late = f"All slots are taken, and none became free in {rules.queue_seconds:g} s."
    return Problem(
        kind="unavailable",
        message=full if why == "queue_full" else late,
        code="server_is_overloaded",
        retry_after=1 if why == "queue_full" else 5,
    )


def _incapable(ask: Ask, upstreams: Sequence[Upstream]) -> Problem:
    """That this model is served, but by nobody who can do what is asked."""
    model, needs = ask.model, ask.needs
    serving = [one for one in upstreams if model is None or model in one.offers]
    lacking = (need for need in needs if all(need in one.lacks for one in serving))
    need = next(lacking, next(iter(needs)))
    of_model = "here " if model is None else f"of the model '{model}' "
    return Problem(
        kind="unsupported",
        message=f"No server {of_model}{_CANNOT[need]}",
        param=_PARAMS.get(need),
    )


def _unavailable(upstreams: Sequence[Upstream], state: State) -> Problem:
    if state in {"starting", "loading"}:
        return Problem(kind="loading", message="Loading model", retryable=True, retry_after=1)
    told = [one.problem.message for one in upstreams if one.problem is not None]
    return Problem(
        kind="unavailable",
        message=" ".join(["No upstream can serve this now.", *dict.fromkeys(told)]),
        retryable=True,
        retry_after=2,
    )


_POISON = (
    "Two servers have ended while they worked at this very request: it is not given to another "
    "one for ten minutes. If it should be, change it."
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
