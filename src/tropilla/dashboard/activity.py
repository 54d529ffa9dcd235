"""The pages of what is going on: the requests as they run and ran, and each by itself."""

from __future__ import annotations

import shlex
import time
from collections.abc import Mapping
from datetime import UTC, datetime
from typing import Any

import msgspec

from tropilla.accounts.keys import Account
from tropilla.accounts.keys.rights import authorize
from tropilla.dashboard.house import House, Pages, Told, Visit, named, number, seconds
from tropilla.herd.balance import Verdict
from tropilla.herd.pool import Weighed
from tropilla.ir import Problem, ProblemError
from tropilla.observing.activity import Count
from tropilla.record import Record

_SHOWN = 100
"""Rows of the list."""
_KEYS = 8
"""Keys that are told apart above it."""
_FLOOD = 0.5
"""The share of all that is asked, from which on a key is said to flood, if others ask too."""
_MANY = 30
"""Requests in a minute, below which nobody floods."""
_STATES = ("all", "running", "done", "failed", "limited", "left")
_WHY: Mapping[Verdict, str] = {
    "other_model": "serves other models",
    "draining": "was drained",
    "incapable": "cannot do what it asked for",
    "starting": "was starting",
    "loading": "was loading its model",
    "down": "was down",
    "full": "had no free slot",
    "quarantined": "was in quarantine",
    "free": "could take it",
}


def state_of(one: Record) -> str:
    """How it is with a request, or how it ended."""
    if one.took is None:
        if one.replays:
            return "writing"
        if not one.upstream:
            return "waiting"
        return "reading" if one.first is None else "writing"
    if one.problem is not None:
        return "limited" if one.problem.kind == "limited" else "failed"
    return "left" if one.cancelled else "done"


def _fits(one: Record, state: str, asked: Mapping[str, str], names: Mapping[str, str]) -> bool:
    kind = state_of(one)
    if kind in {"waiting", "reading", "writing"}:
        kind = "running"
    if state not in {"all", kind}:
        return False
    words = asked.get("q", "").lower().split()
    texts = (
        one.id, named(one.key, names), one.key, one.model or "", one.upstream, one.session,
        one.path, one.finish or "", one.replays, _end(one),
    )  # fmt: skip
    told = "\n".join(texts).lower()
    return all(word in told for word in words)


def _row(one: Record, names: Mapping[str, str], longest: float) -> dict[str, Any]:
    spent = one.took if one.took is not None else time.perf_counter() - one.began
    return {
        "id": one.id,
        "at": datetime.fromtimestamp(one.at, UTC).strftime("%H:%M:%S"),
        "key": named(one.key, names),
        "model": one.model or "",
        "upstream": one.upstream,
        "state": state_of(one),
        "parts": _parts(one, spent, longest),
        "total": spent,
        "queued": one.queued,
        "first": one.first,
        "prompt": one.prompt,
        "cached": one.cached,
        "written": one.written,
        "end": _end(one),
        "status": one.status,
    }


def _end(one: Record) -> str:
    if one.problem is not None:
        return one.problem.message
    if one.cancelled:
        return "its client left"
    if one.replays:
        return "replayed"
    return "" if one.took is None else one.finish or str(one.status)


def _parts(one: Record, spent: float, longest: float) -> list[dict[str, Any]]:
    """The bar of a request: how long it waited, until the first of its answer, and after it."""
    queued = min(one.queued, spent) if one.upstream else spent
    first = one.first if one.first is not None else spent
    marks = (("queue", 0.0, queued), ("first", queued, first), ("rest", first, spent))
    scale = 100 / longest if longest else 0.0
    return [
        {"what": what, "at": round(at * scale, 2), "wide": round(max(0.0, end - at) * scale, 2)}
        for what, at, end in marks
        if end > at
    ]


def _keys(house: House, names: Mapping[str, str]) -> list[dict[str, Any]]:
    """Who asks how much, the most first."""
    lately, _ = house.activity.lately(60)
    running: dict[str, int] = {}
    waiting: dict[str, int] = {}
    for one in house.activity.open():
        running[one.key] = running.get(one.key, 0) + 1
        waiting[one.key] = waiting.get(one.key, 0) + (not one.upstream)
    told: list[dict[str, Any]] = []
    for key in {*lately, *running}:
        count = lately.get(key, Count())
        asked = count.requests + running.get(key, 0)
        told.append({
            "key": named(key, names), "asked": asked, "tokens": count.prompt + count.written,
            "limited": count.limited, "running": running.get(key, 0) - waiting.get(key, 0),
            "waiting": waiting.get(key, 0), "errors": count.errors,
        })  # fmt: skip
    told.sort(key=lambda one: (-one["asked"], one["key"]))
    whole = sum(one["asked"] for one in told)
    for row in told:
        row["share"] = row["asked"] / whole if whole else 0.0
        many = row["asked"] >= _MANY and row["share"] >= _FLOOD and len(told) > 1
        row["floods"] = many or row["limited"] >= _MANY
    return told[:_KEYS]


def _fields(house: House, visit: Visit) -> dict[str, Any]:
    asked, names = visit.asked, house.names()
    state = asked.get("state", "all")
    state = state if state in _STATES else "all"
    found: list[Record] = []
    for one in (*house.activity.open(), *house.activity.over_()):
        if _fits(one, state, asked, names):
            found.append(one)
            if len(found) == _SHOWN:
                break
    longest = max((one.took or time.perf_counter() - one.began for one in found), default=0.0)
    keys = _keys(house, names)
    return {
        "rows": [_row(one, names, longest) for one in found],
        "keys": keys,
        "flood": next((one for one in keys if one["floods"]), None),
        "state": state,
        "states": _STATES,
        "q": asked.get("q", ""),
        "longest": longest,
    }


async def _page(house: House, visit: Visit, actor: Account, rest: str) -> Told:
    del rest
    authorize(actor, "operate")
    return Told("activity.html", _fields(house, visit))


async def _live(house: House, visit: Visit, actor: Account, rest: str) -> Told:
    del rest
    authorize(actor, "operate")
    return Told("activity_live.html", _fields(house, visit))


# One request.


def _why_slow(one: Record, spent: float) -> str:
    """What most of its time went to, in a sentence."""
    if one.problem is not None and not one.upstream:
        return f"It was refused after {seconds(spent)}, before an upstream was asked."
    if one.replays:
        return (
            f"It was told again what another request was answered, in {seconds(spent)}: no "
            "upstream was asked."
        )
    if not one.upstream:
        return f"It has waited {seconds(spent)} for a free slot so far."
    first = one.first if one.first is not None else spent
    read, wrote = max(0.0, first - one.queued), max(0.0, spent - first)
    most = max(one.queued, read, wrote)
    part = f"{seconds(most)} of {seconds(spent)}"
    if one.queued and most == one.queued:
        return f"Most of it, {part}, it waited for a free slot: all that could take it were taken."
    if one.earlier:
        failed = ", ".join(one.earlier)
        return (
            f"It was asked {one.attempts} times: {failed} failed it before {one.upstream} did it."
        )
    if most == wrote and one.first is not None:
        rate = f", {one.written / wrote:.0f} tokens/s" if wrote and one.written else ""
        return f"Most of it, {part}, went into writing {number(one.written)} tokens{rate}."
    unread = one.prompt - (one.cached or 0)
    cached = f"; {number(one.cached)} were cached" if one.cached else ""
    tokens = f" {number(unread)} tokens of its prompt{cached}" if one.prompt else " its prompt"
    return f"Most of it, {part}, {one.upstream} took until its first token, reading{tokens}."


def _reasons(house: House, one: Record) -> list[dict[str, Any]]:
    if not isinstance(one.weighed, Weighed):
        return []
    return [
        {
            "name": house.fleet.numbered(reason.upstream).name,
            "taken": reason.taken,
            "why": _WHY[reason.verdict],
            "score": f"{reason.score:+.2f}",
            "cached": reason.cached,
            "load": reason.load,
        }
        for reason in one.weighed.reasons()
    ]


async def _one(house: House, visit: Visit, actor: Account, rest: str) -> Told:
    authorize(actor, "operate")
    one = house.activity.find(rest)
    if one is None or not one.asks_a_model:
        message = "This request is not remembered here: only the last ones are, until a restart."
        raise ProblemError(Problem(kind="not_found", message=message))
    names = house.names()
    spent = one.took if one.took is not None else time.perf_counter() - one.began
    first = one.first
    return Told(
        "request.html",
        {
            "one": _row(one, names, spent),
            "replays": one.replays,
            "why_slow": _why_slow(one, spent),
            "reasons": _reasons(house, one),
            "facts": _facts(one, names),
            "headers": [*one.headers, ("x-request-id", one.id)],
            "marks": [
                ("queue", "Waited for a slot", one.queued),
                ("first", "Until its first token", None if first is None else first - one.queued),
                ("rest", "Wrote the rest", None if first is None else spent - first),
            ],
            "rate": one.written / (spent - first) if first and spent > first else None,
            "over": one.took is not None,
            **_captured(house, visit, one),
        },
    )


def _captured(house: House, visit: Visit, one: Record) -> dict[str, Any]:
    """What was said, where it is kept."""
    found = house.capture.find(one.id)
    if found is None:
        return {"captured": False, "captures": house.config.capture.enabled}
    key = "" if house.is_open() else ' -H "Authorization: Bearer $TROPILLA_KEY"'
    curl = (
        f"curl -N {shlex.quote(visit.root + one.path)}{key} -H 'Content-Type: application/json' "
        f"\\\n  -d {shlex.quote(found.body.text)}\n"
    )
    return {
        "captured": True,
        "captures": True,
        "sent": list(found.headers.items()),
        "text": found.body.text,
        "whole": found.body.whole,
        "body": _spread(found.body.text),
        "asked": [
            {
                "place": each.place, "method": each.method, "path": each.path,
                "body": _spread(each.body.text), "whole": each.body.whole,
            }
            for each in found.asked
        ],
        "curl": curl,
        "path": one.path,
        "keyless": house.is_open(),
    }  # fmt: skip


def _spread(text: str) -> str:
    """JSON as people read it."""
    try:
        msgspec.json.decode(text)
    except (msgspec.DecodeError, RecursionError):
        return text
    return msgspec.json.format(text, indent=2)


def _facts(one: Record, names: Mapping[str, str]) -> list[tuple[str, str]]:
    at = datetime.fromtimestamp(one.at, UTC).strftime("%Y-%m-%d %H:%M:%S UTC")
    told = [
        ("Came", at),
        ("Asked", f"{one.method} {one.path}"),
        ("Dialect", one.dialect),
        ("Key", named(one.key, names)),
        ("Model", one.model or "none named"),
        ("Status", str(one.status or "not told yet")),
    ]
    if not one.replays:  # of an answer that is said again, its first request has the rest
        told += _taken(one)
    return [(name, value) for name, value in told if value]


def _taken(one: Record) -> list[tuple[str, str]]:
    cached = "not told" if one.cached is None else number(one.cached)
    return [
        ("Upstream", one.upstream or "none"),
        ("Failed it before", ", ".join(one.earlier)),
        ("Session", one.session),
        ("Streamed", "yes" if one.stream else "no"),
        ("Choices", str(one.choices) if one.choices > 1 else ""),
        ("Tokens read", number(one.prompt) + (" (estimated)" if one.estimated else "")),
        ("of them cached", f"{cached} (expected: {one.expected * 100:.0f} %)"),
        ("Tokens written", number(one.written)),
        ("of them thoughts", "" if one.reasoning is None else number(one.reasoning)),
        ("Ended because", one.finish or ""),
        ("Went on elsewhere", "yes" if one.failed_over else ""),
    ]


PAGES: Pages = {
    ("GET", "activity"): _page,
    ("GET", "activity/live"): _live,
    ("GET", "activity/*"): _one,
}
