"""The herd as an operator sees it: who is there, how it is, what it is doing, and who waits."""

from __future__ import annotations

from tropilla.herd.pool import Ask
from tropilla.ir import JsonObject
from tropilla.upstream.fleet import Fleet
from tropilla.upstream.member import Upstream
from tropilla.upstream.probe import kind_of


def told(fleet: Fleet) -> JsonObject:
    """All of it, as JSON; times are in seconds."""
    return {
        "object": "herd",
        "state": fleet.state(),
        "upstreams": [_upstream(fleet, one) for one in fleet.upstreams],
        "waiting": fleet.pool.waiting,
        "queues": fleet.pool.queues(),
    }


def _upstream(fleet: Fleet, one: Upstream) -> JsonObject:
    seen, quarantine = fleet.candidate(one), fleet.quarantine(one)
    problem = one.problem if one.problem is not None or quarantine is None else one.failure
    return {
        "name": one.name,
        "kind": kind_of(one.traits) if one.state == "ready" else None,
        "state": one.state,
        "problem": None if problem is None else problem.message,
        "models": list(one.offers),
        "context_length": one.traits.n_ctx,
        "slots": seen.slots,
        "leases": seen.leases,
        "foreign": seen.foreign,
        "served": seen.served,
        "weights": {name: offer.weight for name, offer in one.offers.items()},
        "draining": seen.draining,
        "quarantine": quarantine,
    }


def route(fleet: Fleet, ask: Ask) -> JsonObject:
    """Where a request would go now, and what speaks for each upstream and against it."""
    return {
        "object": "route",
        "model": ask.model,
        "needs": list(ask.needs),
        "blocks": len(ask.chain),
        "upstreams": [
            {
                "name": fleet.numbered(one.upstream).name,
                "verdict": one.verdict,
                "taken": one.taken,
                "score": round(one.score, 3),
                "cached": round(one.cached, 3),
                "load": round(one.load, 3),
            }
            for one in fleet.explain(ask)
        ],
    }
