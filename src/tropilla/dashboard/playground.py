"""The page to try models: the browser asks the gateway itself, with a client's key."""

from __future__ import annotations

import secrets
from datetime import UTC, datetime

import msgspec

from tropilla.accounts.keys import Account
from tropilla.accounts.keys.rights import authorize
from tropilla.config import TermsConfig
from tropilla.dashboard.house import House, Page, Pages, Told, Visit
from tropilla.ir import Problem, ProblemError

_KEY_SECONDS = 12 * 3600


async def _page(house: House, visit: Visit, actor: Account, rest: str) -> Told:
    del rest
    authorize(actor, "look")
    fields = {
        "models": sorted(house.fleet.serving()),
        "keyless": house.is_open(),
        "gives": actor.role == "admin" and house.accounts is not None,
        "root": visit.root,
    }
    return Told("playground.html", fields)


async def _key(house: House, visit: Visit, actor: Account, rest: str) -> Page:
    """A key for one evening: the admin key itself asks no model."""
    del rest
    authorize(actor, "give")
    if house.accounts is None:
        raise ProblemError(Problem(kind="not_found", message="No accounts are kept here."))
    ends = datetime.fromtimestamp(visit.now + _KEY_SECONDS, UTC).isoformat(timespec="seconds")
    name = f"playground {secrets.token_hex(3)}"
    made = await house.accounts.ring.create(actor, name, TermsConfig(expires=ends))
    await house.accounts.look()
    told = msgspec.json.encode({"name": name, "key": made.key})
    return Page(told, content_type="application/json")


PAGES: Pages = {
    ("GET", "playground"): _page,
    ("POST", "playground/key"): _key,
}
