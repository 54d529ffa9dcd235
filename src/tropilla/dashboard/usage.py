"""The page of what was used: over time, by whom, of what; as a picture, a table and a CSV."""

from __future__ import annotations

import csv
import io
from typing import Any, Final, cast

import msgspec

from tropilla.accounts import usage
from tropilla.accounts.keys import Account
from tropilla.accounts.keys.rights import authorize
from tropilla.accounts.usage import By
from tropilla.dashboard.house import House, Page, Pages, Told, Visit, named
from tropilla.ir import Problem, ProblemError

_SPANS: Final = {"day": 86400, "week": 7 * 86400, "month": 30 * 86400, "quarter": 90 * 86400}
_HOURLY: Final = {"day", "week"}
_GROUPS: Final = ("model", "key", "team", "upstream", "dialect")
_SHOWS: Final = {
    "tokens": "Tokens",
    "cost": "Cost",
    "requests": "Requests",
    "errors": "Errors",
    "first": "Time to first token",
    "total": "Time in all",
}
_MOST_LINES = 8
_SUMMED = ("requests", "errors", "limited", "cancelled", "prompt", "cached", "written", "cost",
           "first_ms", "firsts", "total_ms")  # fmt: skip
_BILLION = 1e9


def _asked(visit: Visit) -> tuple[str, str, str]:
    asked = visit.asked
    span, by, show = (asked.get(name, "") for name in ("span", "by", "show"))
    return (
        span if span in _SPANS else "day",
        by if by in _GROUPS else "model",
        show if show in _SHOWS else "tokens",
    )


async def _sums(
    house: House, visit: Visit, actor: Account
) -> tuple[str, dict[tuple[int, str], dict[str, Any]]]:
    """The sums by time and name."""
    authorize(actor, "operate")
    if house.accounts is None:
        message = "No accounts are kept here: 'accounts.store' says where they could be."
        raise ProblemError(Problem(kind="not_found", message=message))
    span, by, _ = _asked(visit)
    time = "hour" if span in _HOURLY else "day"
    group = cast("By", "key" if by == "team" else by)
    since = visit.now - _SPANS[span]
    rows = await usage.sums(house.accounts.store, [cast("By", time), group], since=since)
    names, teams = house.names(), house.teams()
    found: dict[tuple[int, str], dict[str, Any]] = {}
    for row in rows:
        name = row[group]
        if by == "key":
            name = named(name, names)
        elif by == "team":
            name = teams.get(name, "no team")
        cell = found.setdefault((row[time], name or "none"), dict.fromkeys(_SUMMED, 0))
        for each in _SUMMED:
            cell[each] += row[each]
    return time, found


def _value(cell: dict[str, Any], show: str) -> float | None:
    match show:
        case "tokens":
            return float(cell["prompt"] + cell["written"])
        case "cost":
            return float(cell["cost"] / _BILLION)
        case "first":
            return float(cell["first_ms"] / cell["firsts"] / 1000) if cell["firsts"] else None
        case "total":
            return float(cell["total_ms"] / cell["requests"] / 1000) if cell["requests"] else None
    return float(cell[show])


def _totals(found: dict[tuple[int, str], dict[str, Any]]) -> list[dict[str, Any]]:
    whole: dict[str, dict[str, Any]] = {}
    for (_, name), cell in found.items():
        one = whole.setdefault(name, dict.fromkeys(_SUMMED, 0))
        for each in _SUMMED:
            one[each] += cell[each]
    told = [
        {
            **one,
            "name": name,
            "first": _value(one, "first"),
            "total": _value(one, "total"),
            "money": one["cost"] / _BILLION,
            "hits": one["cached"] / one["prompt"] if one["prompt"] else None,
        }
        for name, one in whole.items()
    ]
    return sorted(told, key=lambda one: -(one["prompt"] + one["written"]))


async def _page(house: House, visit: Visit, actor: Account, rest: str) -> Told:
    del rest
    _, found = await _sums(house, visit, actor)
    span, by, show = _asked(visit)
    fields = {
        "rows": _totals(found), "span": span, "spans": tuple(_SPANS), "by": by,
        "groups": _GROUPS, "show": show, "shows": _SHOWS,
    }  # fmt: skip
    return Told("usage.html", fields)


async def _data(house: House, visit: Visit, actor: Account, rest: str) -> Page:
    """What the picture shows: a row of times, and a row of values for each name."""
    del rest
    time, found = await _sums(house, visit, actor)
    span, _, show = _asked(visit)
    step = 3600 if time == "hour" else 86400
    since = int(visit.now - _SPANS[span]) // step * step
    times = list(range(since, int(visit.now) + 1, step))
    names = [one["name"] for one in _totals(found)][:_MOST_LINES]
    lines = []
    for name in names:
        cells = [found.get((at, name)) for at in times]
        empty = None if show in {"first", "total"} else 0.0
        lines.append([empty if cell is None else _value(cell, show) for cell in cells])
    told = {"names": names, "times": times, "lines": lines, "what": _SHOWS[show], "show": show}
    return Page(msgspec.json.encode(told), content_type="application/json")


async def _csv(house: House, visit: Visit, actor: Account, rest: str) -> Page:
    del rest
    time, found = await _sums(house, visit, actor)
    _, by, _ = _asked(visit)
    text = io.StringIO()
    writer = csv.writer(text)
    writer.writerow([time, by, *_SUMMED])
    for (at, name), cell in sorted(found.items()):
        writer.writerow([at, _plain(name), *(cell[each] for each in _SUMMED)])
    headers = {"content-disposition": 'attachment; filename="tropilla-usage.csv"'}
    return Page(text.getvalue().encode(), 200, "text/csv; charset=utf-8", headers)


def _plain(text: str) -> str:
    """A text that no program of spreadsheets takes for a formula."""
    return f"'{text}" if text[:1] in "=+-@\t\r" and text else text


PAGES: Pages = {
    ("GET", "usage"): _page,
    ("GET", "usage/data"): _data,
    ("GET", "usage/csv"): _csv,
}
