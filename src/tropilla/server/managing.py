"""The keys of the store over HTTP: given, shown, changed, rotated and revoked.

Only the admin key reaches this (`keys.rights`), and no key is told but one that was made just now.
"""

from __future__ import annotations

import time

from tropilla import log
from tropilla.accounts.keys import Account
from tropilla.accounts.keys.ring import Made, Stored, read_terms
from tropilla.accounts.store import StoreError
from tropilla.ir import JsonObject, Malformed, Problem, ProblemError
from tropilla.server.accounts import Accounts
from tropilla.server.routes import Manage

_BROKEN = Problem(
    kind="unavailable",
    message="The store of the keys does not work; the log of Tropilla tells why.",
    code="store_unavailable",
    retry_after=5,
)


async def manage(
    accounts: Accounts, actor: Account, action: Manage, body: JsonObject
) -> JsonObject:
    """Do it, and tell what it is now.

    Raises:
        ProblemError: it is not for this one, or cannot be.
    """
    try:
        told = await _do(accounts, actor, action, body)
        if action.what not in {"list", "show"}:
            await accounts.look()
    except StoreError as error:
        log.error("store.failed", "The keys cannot be read or written: {why}", why=str(error))
        raise ProblemError(_BROKEN) from error
    return told


async def _do(accounts: Accounts, actor: Account, action: Manage, body: JsonObject) -> JsonObject:
    ring, which = accounts.ring, action.which
    match action.what:
        case "list":
            now = time.time()
            return {"object": "list", "data": [one.shown(now) for one in await ring.all()]}
        case "show":
            return _shown(await ring.find(which))
        case "create":
            name, terms = read_terms(body)
            return _made(await ring.create(actor, name, terms))
        case "change":
            return _shown(await ring.change(actor, which, body))
        case "rotate":
            return _made(await ring.rotate(actor, which, _grace(body)))
        case "revoke":
            return _shown(await ring.revoke(actor, which))


def _grace(body: JsonObject) -> float:
    for name in body:
        if name != "grace":
            raise Malformed(f"'{name}' is not known here: grace is.", param=name)
    grace = body.get("grace", 0)
    if type(grace) not in {int, float}:
        raise Malformed("'grace' must be a number of seconds.", param="grace")
    return float(grace)


def _shown(stored: Stored) -> JsonObject:
    return stored.shown(time.time())


def _made(made: Made) -> JsonObject:
    return {**_shown(made.stored), "key": made.key}
