"""How the gateway is: whether it lives, whether it can serve, and why not."""

from __future__ import annotations

import asyncio
import time

from tropilla import __version__
from tropilla.accounts.store import StoreError
from tropilla.accounts.valkey import Valkey
from tropilla.ir import JsonObject
from tropilla.server.accounts import Accounts
from tropilla.upstream.fleet import Fleet

_STORE_SECONDS = 2.0


def why_not(fleet: Fleet, accounts: Accounts | None, *, draining: bool) -> list[str]:
    """Why nobody should send requests here, in words that name nobody; nothing if they should."""
    reasons = []
    if draining:
        reasons.append("draining")
    if (state := fleet.state()) != "ready":
        reasons.append("loading" if state in {"starting", "loading"} else "no_upstream")
    if accounts is not None:
        if accounts.ledger.full:
            reasons.append("spool_full")
        if accounts.stale:
            reasons.append("keys_stale")
    return reasons


async def told(
    fleet: Fleet, accounts: Accounts | None, valkey: Valkey | None, since: float, *, draining: bool
) -> JsonObject:
    """All of it, for those who run the gateway."""
    reasons = why_not(fleet, accounts, draining=draining)
    odd = [
        {
            "name": one.name,
            "state": one.state,
            "problem": None if one.problem is None else one.problem.message,
        }
        for one in fleet.upstreams
        if one.state != "ready"
    ]
    store = None if accounts is None else await _store(accounts)
    waits = 0 if accounts is None else accounts.ledger.waiting
    shared = None if valkey is None else _shared(valkey)
    whole = not odd and not waits and all(one is None or one["works"] for one in (store, shared))
    return {
        "object": "health",
        "status": "unavailable" if reasons else "ok" if whole else "degraded",
        "live": True,
        "ready": not reasons,
        "reasons": reasons,
        "version": __version__,
        "seconds": round(time.time() - since, 1),
        "upstreams": {
            "ready": len(fleet.upstreams) - len(odd),
            "all": len(fleet.upstreams),
            "not_ready": odd,
        },
        "waiting": fleet.pool.waiting,
        "store": store,
        "spool": None if accounts is None else {"rows": waits, "full": accounts.ledger.full},
        "valkey": shared,
    }


def _shared(valkey: Valkey) -> JsonObject:
    """Whether what gateways share can be used, for how long that is so, and how many they are."""
    return {
        "works": valkey.up,
        "problem": valkey.why or None,
        "seconds": round(time.time() - valkey.since, 1),
        "gateways": valkey.many,
    }


async def _store(accounts: Accounts) -> JsonObject:
    """Whether the store can be asked."""
    try:
        async with asyncio.timeout(_STORE_SECONDS):
            await accounts.ring.number()
    except StoreError as error:
        return {"works": False, "problem": str(error)}
    except TimeoutError:
        return {"works": False, "problem": f"It did not answer in {_STORE_SECONDS:g} s."}
    return {"works": True, "problem": None}
