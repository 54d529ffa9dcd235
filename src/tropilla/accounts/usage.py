"""What was used, asked of the ledger: sums of its hours, and its rows one by one.

Days and months are those of UTC. Money is in whatever the prices are in.
"""

from __future__ import annotations

from collections import Counter
from collections.abc import Iterable, Mapping, Sequence
from typing import Any, Final, Literal, TypeAlias, get_args

from tropilla.accounts.keys import config_name
from tropilla.accounts.ledger import COLUMNS, SUMS
from tropilla.accounts.store import Cell, Store

By: TypeAlias = Literal["key", "model", "upstream", "dialect", "hour", "day"]
BYS: Final[tuple[By, ...]] = get_args(By)
WHERE: Final = ("key", "model", "upstream", "dialect")
"""What a question may be narrowed to."""

_SECONDS: Mapping[By, int] = {"hour": 3600, "day": 86400}


async def sums(
    store: Store,
    by: Sequence[By],
    *,
    since: float | None = None,
    until: float | None = None,
    where: Mapping[str, str] | None = None,
) -> list[dict[str, Any]]:
    """The sums of all requests from `since` until before `until`, in seconds since 1970.

    Both count as of the hour in which they are. Each row has what it is grouped by (an hour or a
    day as the second with which it begins) and the sums; without `by` there is one row.
    """
    groups = [f"hour / {_SECONDS[one]} * {_SECONDS[one]}" if one in _SECONDS else one for one in by]
    clause, args = _clause("hour", since, until, where)
    told = ", ".join([*groups, *(f"COALESCE(SUM({name}), 0)" for name in SUMS)])
    asked = f"SELECT {told} FROM hours{clause}"  # noqa: S608 - names of our own
    if groups:
        asked += f" GROUP BY {', '.join(groups)} ORDER BY {', '.join(groups)}"
    names = (*by, *SUMS)
    rows = await store.read(asked, *args)
    # PostgreSQL tells a sum of whole numbers as a number of its own kind.
    return [{name: _plain(value) for name, value in zip(names, row, strict=True)} for row in rows]


async def stored_names(store: Store) -> dict[str, str]:
    """What the keys of a store are called, by their ids; those that were revoked too."""
    return dict(await store.read("SELECT id, name FROM keys"))


def names(ids: Iterable[str], stored: Mapping[str, str]) -> dict[str, str]:
    """What keys are called: those of the store, and those of these ids that the config names."""
    told = {id_: config_name(id_) for id_ in ids}
    return {**stored, **{id_: name for id_, name in told.items() if name is not None}}


def named(rows: Iterable[Mapping[str, Any]], called: Mapping[str, str]) -> list[dict[str, Any]]:
    """These sums by key, with the name of each where it has one."""
    return [{**row, "key_name": called.get(row["key"])} for row in rows]


def labels(called: Mapping[str, str]) -> dict[str, str]:
    """What keys are called where their ids are not told: with it, if several have one name."""
    times = Counter(called.values())
    return {id_: name if times[name] == 1 else f"{name} ({id_})" for id_, name in called.items()}


def _plain(value: Any) -> Any:
    if type(value) in {int, float, str, type(None)}:
        return value
    return int(value)


async def rows(
    store: Store,
    *,
    most: int,
    since: float | None = None,
    until: float | None = None,
    where: Mapping[str, str] | None = None,
) -> list[dict[str, Any]]:
    """The newest requests first, `most` of them at most."""
    clause, args = _clause("at", since, until, where)
    asked = f"SELECT {', '.join(COLUMNS)} FROM requests{clause}"  # noqa: S608 - names of our own
    asked += f" ORDER BY at DESC LIMIT ${len(args) + 1}"
    told = await store.read(asked, *args, most)
    return [dict(zip(COLUMNS, row, strict=True)) for row in told]


def _clause(
    time: str, since: float | None, until: float | None, where: Mapping[str, str] | None
) -> tuple[str, list[Cell]]:
    """The condition, and its parameters in the order in which they stand."""
    hourly = time == "hour"
    parts: list[str] = []
    args: list[Cell] = []
    for value, sign in ((since, ">="), (until, "<")):
        if value is not None:
            args.append(_hour(value, up=sign == "<") if hourly else value)
            parts.append(f"{time} {sign} ${len(args)}")
    for name, wanted in (where or {}).items():
        if name not in WHERE:
            raise ValueError(f"'{name}' is nothing that is asked for by name.")
        args.append(wanted)
        parts.append(f"{name} = ${len(args)}")
    return (f" WHERE {' AND '.join(parts)}" if parts else ""), args


def _hour(at: float, *, up: bool) -> int:
    """The beginning of an hour: of the one that is going on, or the next."""
    whole = int(at) // 3600 * 3600
    return whole + 3600 if up and at > whole else whole
