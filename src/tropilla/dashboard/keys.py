"""The page of the keys: made, shown once, changed for new ones, taken back; and how they stand."""

from __future__ import annotations

import time
from collections.abc import Mapping
from datetime import UTC, datetime
from typing import Any

from tropilla.accounts import usage
from tropilla.accounts.keys import Account, of_config
from tropilla.accounts.keys.rights import authorize
from tropilla.accounts.keys.ring import Made, read_terms
from tropilla.config import TermsConfig
from tropilla.dashboard.house import House, Kept, Pages, Told, Visit
from tropilla.ir import JsonObject, Malformed, Problem, ProblemError

_NUMBERS = ("requests", "tokens", "concurrent")
_PERIODS = ("total", "month", "day")
_BILLION = 1e9


def _accounts(house: House) -> Kept:
    if house.accounts is None:
        message = "No accounts are kept here: 'accounts.store' says where they could be."
        raise ProblemError(Problem(kind="not_found", message=message))
    return house.accounts


def _date(at: float | None) -> str:
    return "" if at is None else datetime.fromtimestamp(at, UTC).strftime("%Y-%m-%d %H:%M")


async def _spent(kept: Kept, now: float) -> dict[str, dict[str, tuple[int, int]]]:
    """Tokens and money of each key, by the period."""
    day = datetime.fromtimestamp(now, UTC).replace(hour=0, minute=0, second=0, microsecond=0)
    found: dict[str, dict[str, tuple[int, int]]] = {}
    for period, since in (("total", None), ("month", day.replace(day=1)), ("day", day)):
        at = None if since is None else since.timestamp()
        for row in await usage.sums(kept.store, ["key"], since=at):
            tokens = row["prompt"] + row["written"]
            found.setdefault(row["key"], {})[period] = (tokens, row["cost"])
    return found


def _levels(
    house: House, who: Account, spent: Mapping[str, tuple[int, int]], running: int
) -> list[dict[str, Any]]:
    """Each limit of a key, and how much of it is taken."""
    limits, told = who.terms.limits, []
    standing = house.levels(who)
    for what, words in (("requests", "requests a minute"), ("tokens", "tokens a minute")):
        limit = getattr(limits, what)
        if limit is not None:
            now = standing.get(what)  # type: ignore[call-overload]
            used = 0 if now is None else now.limit - now.remaining
            told.append({"what": words, "used": used, "limit": limit})
    if limits.concurrent is not None:
        told.append({"what": "at once", "used": running, "limit": limits.concurrent})
    for budget in who.terms.budgets:
        per = "in all" if budget.per == "total" else f"this {budget.per}"
        tokens, money = spent.get(budget.per, (0, 0))
        if budget.money is not None:
            used, limit = money / _BILLION, budget.money
            told.append({"what": f"money {per}", "used": used, "limit": limit})
        elif budget.tokens is not None:
            told.append({"what": f"tokens {per}", "used": tokens, "limit": budget.tokens})
    return told


async def _fields(house: House, made: Made | None = None, wrong: str = "") -> dict[str, Any]:
    kept, now = _accounts(house), time.time()
    spent = await _spent(kept, now)
    running: dict[str, int] = {}
    for one in house.activity.open():
        running[one.key] = running.get(one.key, 0) + 1
    rows: list[dict[str, Any]] = []
    for name, told in house.config.accounts.keys.items():
        who = of_config(name, told)
        rows.append(_row(house, who, "active", spent, running))
    for stored in await kept.ring.all():
        row = _row(house, stored.account, stored.state(now), spent, running)
        rows.append(row | {
            "stored": stored.id, "tail": stored.tail, "created": _date(stored.created),
            "former": _date(stored.former_until),
        })  # fmt: skip
    rows.sort(key=lambda row: row["state"] != "active")
    return {
        "rows": rows,
        "made": None if made is None else {"name": made.stored.name, "key": made.key},
        "wrong": wrong,
        "periods": _PERIODS,
        "models": sorted(house.fleet.serving()),
        "teams": sorted(house.config.accounts.teams),
        "plain": len(house.config.api_keys),
        "may": bool(house.config.accounts.admin_key),
    }


def _row(
    house: House,
    who: Account,
    state: str,
    spent: Mapping[str, Mapping[str, tuple[int, int]]],
    running: Mapping[str, int],
) -> dict[str, Any]:
    used = spent.get(who.id, {})
    terms = who.terms
    return {
        "name": who.name,
        "state": state,
        "stored": "",
        "tail": "",
        "created": "",
        "former": "",
        "team": terms.team or "",
        "models": None if terms.models is None else ", ".join(terms.models),
        "tags": ", ".join(terms.tags),
        "priority": terms.priority,
        "expires": terms.expires or "",
        "levels": _levels(house, who, used, running.get(who.id, 0)),
        "tokens": used.get("month", (0, 0))[0],
        "running": running.get(who.id, 0),
    }


def _terms(form: Mapping[str, str]) -> tuple[str, TermsConfig]:
    """A name and terms, from the fields of the form; those that are empty say nothing."""
    body: JsonObject = {"name": form.get("name", "").strip()}
    limits: JsonObject = {}
    for name in _NUMBERS:
        if text := form.get(name, "").strip():
            limits[name] = _whole(name, text)
    body["limits"] = limits
    if text := form.get("budget", "").strip():
        budget: JsonObject = {"per": form.get("per", "total")}
        if form.get("unit") == "money":
            budget["money"] = _number("budget", text)
        else:
            budget["tokens"] = _whole("budget", text)
        body["budgets"] = [budget]
    for name in ("team", "expires"):
        if text := form.get(name, "").strip():
            body[name] = text
    for name in ("models", "tags"):
        if words := [one.strip() for one in form.get(name, "").split(",") if one.strip()]:
            body[name] = list(words)
    if text := form.get("priority", "").strip():
        body["priority"] = _whole("priority", text)
    return read_terms(body)


def _whole(name: str, text: str) -> int:
    try:
        return int(text)
    except ValueError:
        raise Malformed(f"'{name}' must be a whole number.", param=name) from None


def _number(name: str, text: str) -> float:
    try:
        return float(text)
    except ValueError:
        raise Malformed(f"'{name}' must be a number.", param=name) from None


async def _page(house: House, visit: Visit, actor: Account, rest: str) -> Told:
    del visit, rest
    authorize(actor, "operate")
    return Told("keys.html", await _fields(house))


async def _create(house: House, visit: Visit, actor: Account, rest: str) -> Told:
    del rest
    authorize(actor, "give")
    kept = _accounts(house)
    try:
        name, terms = _terms(visit.form)
        made = await kept.ring.create(actor, name, terms)
    except ProblemError as error:
        return Told("keys.html", await _fields(house, wrong=error.problem.message), 400)
    await kept.look()
    return Told("keys.html", await _fields(house, made))


async def _change(house: House, visit: Visit, actor: Account, rest: str) -> Told:
    authorize(actor, "give")
    kept, made, wrong = _accounts(house), None, ""
    try:
        match visit.form.get("what"):
            case "rotate":
                hours = _number("grace", visit.form.get("grace", "").strip() or "0")
                made = await kept.ring.rotate(actor, rest, hours * 3600)
            case "revoke":
                await kept.ring.revoke(actor, rest)
    except ProblemError as error:
        wrong = error.problem.message
    await kept.look()
    return Told("keys.html", await _fields(house, made, wrong), 400 if wrong else 200)


PAGES: Pages = {
    ("GET", "keys"): _page,
    ("POST", "keys"): _create,
    ("POST", "keys/*"): _change,
}
