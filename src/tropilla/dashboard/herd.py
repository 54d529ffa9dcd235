"""The page of the herd: every upstream as a row of slots, and what is wrong with whom."""

from __future__ import annotations

import asyncio
from collections.abc import Mapping
from typing import Any, NamedTuple
from weakref import WeakKeyDictionary

import msgspec

from tropilla.accounts.keys import Account
from tropilla.accounts.keys.rights import authorize
from tropilla.dashboard.house import Go, House, Pages, Told, Visit
from tropilla.ir import Json, JsonObject, Problem, ProblemError
from tropilla.observing.activity import Count
from tropilla.upstream.fleet import Fleet
from tropilla.upstream.member import Upstream
from tropilla.upstream.probe import kind_of

_FRESH_SECONDS = 0.9
_ASK_SECONDS = 0.8
_MOST_SLOTS = 64
"""That are drawn of one upstream."""
_BAD_SHARE = 0.2
"""Of the requests of five minutes, from which on an upstream is called unwell."""


class _Slot(NamedTuple):
    """One slot, as its server tells of it."""

    task: int
    written: int
    at: float
    rate: float | None


class _Watch:
    """What the slots of one upstream were doing when it was asked last."""

    def __init__(self) -> None:
        self.at = 0.0
        self.told: list[JsonObject] | None = None
        self.slots: dict[int, _Slot] = {}


_watches: WeakKeyDictionary[Upstream, _Watch] = WeakKeyDictionary()
"""However many people look, an upstream is asked once a second; if nobody does, never."""


async def look(fleet: Fleet, now: float) -> None:
    """Ask every upstream that tells what its slots do."""
    asked = [
        one
        for one in fleet.upstreams
        if one.state == "ready" and one.tells_busy
        and now - _watches.setdefault(one, _Watch()).at >= _FRESH_SECONDS
    ]  # fmt: skip
    for one in asked:
        _watches[one].at = now
    await asyncio.gather(*(_ask(one, _watches[one]) for one in asked))


async def _ask(upstream: Upstream, watch: _Watch) -> None:
    try:
        status, body = await upstream.link.ask("GET", "/slots", seconds=_ASK_SECONDS)
        told: Json = msgspec.json.decode(body) if status == 200 else None
    except (ProblemError, msgspec.DecodeError, UnicodeDecodeError, RecursionError):
        watch.told = None
        return
    if type(told) is list and all(type(one) is dict for one in told):
        watch.told = [one for one in told if isinstance(one, dict)]
        now = asyncio.get_running_loop().time()
        watch.slots = {
            at: _timed(one, watch.slots.get(at), now) for at, one in enumerate(watch.told)
        }
    else:
        watch.told = None


def _timed(told: JsonObject, before: _Slot | None, now: float) -> _Slot:
    """A slot, with the tokens that it has written in a second since it was seen last."""
    task, written = _whole(told.get("id_task")), _written(told)
    rate = None
    if before is not None and before.task == task and now > before.at:
        rate = max(0.0, (written - before.written) / (now - before.at))
    return _Slot(task, written, now, rate)


def _whole(value: Json) -> int:
    return value if type(value) is int else 0


def _written(told: JsonObject) -> int:
    """llama.cpp tells it in a list since it can draft, and told it in an object before."""
    token = told.get("next_token")
    if isinstance(token, list):
        token = token[0] if token else None
    return _whole(token.get("n_decoded")) if isinstance(token, dict) else 0


def _is_busy(told: JsonObject) -> bool:
    return told.get("is_processing") is True or told.get("state") == 1


def slots(house: House, one: Upstream) -> list[dict[str, Any]]:
    """Its slots, each with what it does and how full it is."""
    watch, seen = _watches.get(one), house.fleet.candidate(one)
    if one.state == "ready" and watch is not None and watch.told is not None:
        return [
            _slot(told, watch.slots[at], one.traits.n_ctx)
            for at, told in enumerate(watch.told[:_MOST_SLOTS])
        ]
    mine = [record for record in house.activity.open() if record.upstream == one.name]
    found = [
        {"state": "reading" if record.first is None else "writing", "text": "at work", "full": 0}
        for record in mine[:_MOST_SLOTS]
    ]
    found += [{"state": "foreign", "text": "others'", "full": 0}] * min(seen.foreign, _MOST_SLOTS)
    free = 0 if seen.slots is None else max(0, seen.slots - len(found))
    return [*found, *[{"state": "free", "text": "free", "full": 0}] * min(free, _MOST_SLOTS)]


def _slot(told: JsonObject, slot: _Slot, n_ctx: int | None) -> dict[str, Any]:
    held = _whole(told.get("n_prompt_tokens"))
    room = _whole(told.get("n_ctx")) or n_ctx or 0
    full = min(100, round(100 * held / room)) if room else 0
    if not _is_busy(told):
        return {"state": "free", "text": "free", "full": 0}
    if not slot.written:
        text = f"reading, {held:,} tokens" if held else "reading"
        return {"state": "reading", "text": text, "full": full}
    text = "writing" if slot.rate is None else f"{slot.rate:.0f} tokens/s"
    return {"state": "writing", "text": text, "full": full}


def rows(house: House) -> list[dict[str, Any]]:
    """Every upstream, as it is shown."""
    _, lately = house.activity.lately()
    return [_row(house, one, lately.get(one.name, Count())) for one in house.fleet.upstreams]


def _row(house: House, one: Upstream, count: Count) -> dict[str, Any]:
    fleet = house.fleet
    seen, out = fleet.candidate(one), fleet.quarantine(one)
    state, why = _state(one, out, count)
    return {
        "number": one.number,
        "name": one.name,
        "kind": kind_of(one.traits) if one.state == "ready" else "",
        "models": list(one.offers),
        "state": state,
        "well": state in {"ready", "held back", "leaving"},
        "why": why,
        "context": one.traits.n_ctx,
        "slots": slots(house, one),
        "taken": seen.leases,
        "of": seen.slots,
        "foreign": seen.foreign,
        "served": seen.served,
        "hits": count.cached / count.known if count.known else None,
        "requests": count.requests,
        "errors": count.errors,
        "first": count.first / count.firsts if count.firsts else None,
        "held_back": one.held_back,
        "leaves": one.leaves,
    }


def _state(one: Upstream, out: float | None, count: Count) -> tuple[str, str]:
    """How it is in a word, and why in a sentence."""
    said = one.problem or one.failure
    why = "" if said is None else said.message
    if one.leaves:
        return "leaving", "The settings name it no more; what it has goes on."
    if one.state != "ready":
        return one.state, why
    if out is not None:
        last = "" if one.failure is None else f" The last time: {one.failure.message}"
        return "quarantined", (
            f"It failed several requests in a row, and gets nothing for {out:.0f} s more.{last}"
        )
    if one.held_back:
        return "held back", "Somebody drained it by hand: it gets nothing new until it is resumed."
    if count.requests >= 3 and count.errors >= _BAD_SHARE * count.requests:
        last = "" if one.failure is None else f" The last time: {one.failure.message}"
        text = f"{count.errors} of its {count.requests} requests of the last 5 minutes failed."
        return "failing", text + last
    return "ready", ""


def queues(house: House) -> list[tuple[str, int]]:
    """How many wait, by model."""
    return [(name or "any model", count) for name, count in house.fleet.pool.queues().items()]


async def _fields(house: House) -> dict[str, Any]:
    await look(house.fleet, asyncio.get_running_loop().time())
    found = rows(house)
    course = house.activity.course()
    return {
        "rows": found,
        "sick": [row for row in found if not row["well"]],
        "queues": queues(house),
        "waiting": house.fleet.pool.waiting,
        "open": len(house.activity.open()),
        "line": line([count.requests for count in course]),
        "tokens": line([count.written for count in course]),
        "minute": _sum(course[-12:]),
    }


def _sum(counts: list[Count]) -> Mapping[str, Any]:
    whole = Count()
    for count in counts:
        whole.add(count)
    return {
        "requests": whole.requests,
        "written": whole.written,
        "errors": whole.errors,
        "hits": whole.cached / whole.known if whole.known else None,
    }


def line(values: list[int]) -> str:
    """The points of a line in a box of 100 by 24."""
    most = max([*values, 1])
    step = 100 / max(1, len(values) - 1)
    return " ".join(f"{at * step:.1f},{23 - 22 * one / most:.1f}" for at, one in enumerate(values))


async def _page(house: House, visit: Visit, actor: Account, rest: str) -> Told:
    del visit, rest
    authorize(actor, "operate")
    return Told("herd.html", await _fields(house))


async def _live(house: House, visit: Visit, actor: Account, rest: str) -> Told:
    del visit, rest
    authorize(actor, "operate")
    return Told("herd_live.html", await _fields(house))


async def _hold(house: House, visit: Visit, actor: Account, rest: str) -> Go:
    authorize(actor, "operate")
    found = next((one for one in house.fleet.upstreams if str(one.number) == rest), None)
    if found is None:
        raise ProblemError(Problem(kind="not_found", message="There is no such upstream."))
    house.fleet.hold_back(found, held=visit.form.get("what") == "drain")
    return Go("herd")


PAGES: Pages = {
    ("GET", "herd"): _page,
    ("GET", "herd/live"): _live,
    ("POST", "herd/*"): _hold,
}
