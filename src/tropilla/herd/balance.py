"""The pick: which upstream, of those that could, takes a request.

Filter, then compare: no scorer reads anything but the snapshots it is given.
"""

from __future__ import annotations

from collections.abc import Collection, Sequence
from typing import Literal, TypeAlias

from tropilla.ir import Value

State: TypeAlias = Literal["starting", "loading", "ready", "down"]
"""`starting` and `loading` are expected to become `ready` by themselves, and soon."""

Ability: TypeAlias = Literal[
    "native", "chat", "tools", "vision", "audio", "infill", "embeddings", "rerank"
]
"""What a request may need of an upstream; `native` is llama.cpp's own API."""


class Candidate(Value, frozen=True, kw_only=True):
    """One upstream, as the pick sees it."""

    state: State
    models: Collection[str]
    lacks: Collection[Ability] = ()
    """What it certainly cannot do."""
    slots: int = 1
    weight: float = 1.0
    leases: int = 0
    served: int = 0
    """Requests ever given to it: of two equals, the one that has served less is next."""


class Pick(Value, frozen=True, kw_only=True):
    """The index of the upstream to take; or, without one, what the request should do."""

    index: int | None = None
    otherwise: Literal["wait", "unavailable", "unknown_model", "incapable"] = "unavailable"


def pick(
    candidates: Sequence[Candidate],
    model: str | None,
    avoid: Collection[int] = (),
    needs: Collection[Ability] = (),
) -> Pick:
    """Choose an upstream for a model; any model is right where none is named.

    An upstream to `avoid` (it has just failed this request) is taken only when there is no
    other. An upstream that is still starting may turn out to serve any model, and to be able to
    do anything.
    """
    serving = [
        (index, one)
        for index, one in enumerate(candidates)
        if (model in one.models if model is not None else one.models or one.state != "ready")
    ]
    fitting = [item for item in serving if not any(need in item[1].lacks for need in needs)]
    ready = [item for item in fitting if item[1].state == "ready"]
    if ready:
        index, _ = min(
            ready,
            key=lambda item: (
                item[0] in avoid,
                item[1].leases / (item[1].slots * item[1].weight),
                item[1].served / item[1].weight,
                item[0],
            ),
        )
        return Pick(index=index)
    if any(one.state in {"starting", "loading"} for _, one in fitting):
        return Pick(otherwise="wait")
    if fitting:
        return Pick(otherwise="unavailable")
    if serving:
        return Pick(otherwise="incapable")
    if any(one.state in {"starting", "loading"} and not one.models for one in candidates):
        return Pick(otherwise="wait")
    if any(one.models for one in candidates):
        return Pick(otherwise="unknown_model")
    return Pick(otherwise="unavailable")
