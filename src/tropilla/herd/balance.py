"""The pick: which upstream, of those that could, takes a request.

Filter, then compare: no scorer reads anything but the snapshots it is given.
"""

from __future__ import annotations

from collections.abc import Collection, Sequence
from typing import Literal, TypeAlias

from tropilla.ir import Value

State: TypeAlias = Literal["starting", "loading", "ready", "down"]
"""`starting` and `loading` are expected to become `ready` by themselves, and soon."""


class Candidate(Value, frozen=True, kw_only=True):
    """One upstream, as the pick sees it."""

    state: State
    models: Collection[str]
    slots: int = 1
    leases: int = 0
    served: int = 0
    """Requests ever given to it: of two equals, the one that has served less is next."""


class Pick(Value, frozen=True, kw_only=True):
    """The index of the upstream to take; or, without one, what the request should do."""

    index: int | None = None
    otherwise: Literal["wait", "unavailable", "unknown_model"] = "unavailable"


def pick(candidates: Sequence[Candidate], model: str | None, avoid: Collection[int] = ()) -> Pick:
    """Choose an upstream for a model; any model is right where none is named.

    An upstream to `avoid` (it has just failed this request) is taken only when there is no
    other. An upstream that is still starting may turn out to serve any model.
    """
    fitting = [
        (index, one) for index, one in enumerate(candidates) if model is None or model in one.models
    ]
    ready = [(index, one) for index, one in fitting if one.state == "ready"]
    if ready:
        index, _ = min(
            ready,
            key=lambda item: (
                item[0] in avoid,
                item[1].leases / item[1].slots,
                item[1].served,
                item[0],
            ),
        )
        return Pick(index=index)
    if any(one.state in {"starting", "loading"} for _, one in fitting):
        return Pick(otherwise="wait")
    if fitting:
        return Pick(otherwise="unavailable")
    if any(one.state in {"starting", "loading"} and not one.models for one in candidates):
        return Pick(otherwise="wait")
    if any(one.models for one in candidates):
        return Pick(otherwise="unknown_model")
    return Pick(otherwise="unavailable")
