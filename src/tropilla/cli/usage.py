"""`tropilla usage`: what was used, by the ledger."""

from __future__ import annotations

from pathlib import Path
from typing import TYPE_CHECKING, Any

import click

from tropilla.cli import options
from tropilla.cli.options import SETTINGS

if TYPE_CHECKING:
    from collections.abc import Mapping, Sequence

    from rich.table import Table

    from tropilla.accounts.usage import By

_DAY = 86400
_COLUMNS = {
    "requests": "requests", "errors": "errors", "cancelled": "left", "limited": "limited",
    "prompt": "read", "cached": "cached", "written": "written", "cost": "cost",
    "first": "first token", "total": "whole answer",
}  # fmt: skip


@click.command("usage", context_settings=SETTINGS)
@options.config_file
@options.store
@click.option(
    "--by", default="day", show_default=True, metavar="NAMES",
    help="What to sum by: of key, model, upstream, dialect, hour and day, one or several with "
    "commas between them.",
)  # fmt: skip
@click.option(
    "--since", metavar="TIME", default="30d", show_default=True,
    help="From then on: a date, a date and a time (in UTC), or how long ago, as 12h, 7d or 4w.",
)  # fmt: skip
@click.option("--until", metavar="TIME", help="Until before then.")
@click.option("--key", metavar="KEY", help="Only what this key used, by its id or its name.")
@click.option("--model", metavar="MODEL", help="Only what this model did.")
@click.option("--upstream", metavar="URL", help="Only what this upstream did.")
@click.option("--csv", "as_csv", is_flag=True, help="For spreadsheets.")
@click.option("--json", "as_json", is_flag=True, help="For programs.")
def command(
    config_file: Path | None,
    store: str | None,
    by: str,
    since: str,
    until: str | None,
    as_csv: bool,  # noqa: FBT001
    as_json: bool,  # noqa: FBT001
    **where: str | None,
) -> None:
    """Tell how many requests and tokens were used, and what they cost."""
    import asyncio  # noqa: PLC0415
    import time  # noqa: PLC0415

    from tropilla.accounts.usage import BYS  # noqa: PLC0415

    groups: list[By] = []
    for name in by.split(",") if by else ():
        if name not in BYS:
            raise click.BadParameter(f"'{name}' is none of {', '.join(BYS)}.", param_hint="--by")
        groups.append(name)
    now = time.time()
    narrowed = {name: value for name, value in where.items() if value is not None}
    times = [_when(name, text, now) for name, text in (("since", since), ("until", until))]
    url = options.store_of(config_file, store)
    rows, labels = asyncio.run(_sums(url, groups, times, narrowed))
    if as_json:
        import msgspec  # noqa: PLC0415

        click.echo(msgspec.json.format(msgspec.json.encode(rows), indent=2))
    elif as_csv:
        _print_csv(rows, groups)
    elif not rows:
        click.echo("Nothing was used in this time.")
    else:
        from rich.console import Console  # noqa: PLC0415

        Console().print(_table(rows, groups, labels))


async def _sums(
    url: str, by: Sequence[By], times: Sequence[float | None], where: dict[str, str]
) -> tuple[list[dict[str, Any]], Mapping[str, str]]:
    """What the store says, and what the keys in it are called.

    Raises:
        ClickException: it does not.
    """
    from tropilla.accounts import usage  # noqa: PLC0415
    from tropilla.accounts.store import StoreError, open_store  # noqa: PLC0415

    try:
        store = await open_store(url)
        try:
            stored = await usage.stored_names(store)
            if "key" in where:
                ids = [row["key"] for row in await usage.sums(store, ["key"])]
                where["key"] = _key(where["key"], ids, usage.names(ids, stored))
            rows = await usage.sums(store, by, since=times[0], until=times[1], where=where)
            if "key" not in by:
                return rows, {}
            names = usage.names((row["key"] for row in rows), stored)
            return usage.named(rows, names), usage.labels(names)
        finally:
            await store.close()
    except StoreError as error:
        raise click.ClickException(str(error)) from None


def _key(told: str, ids: Sequence[str], names: Mapping[str, str]) -> str:
    """The id of the key that is meant.

    Raises:
        BadParameter: it may be one of several.
    """
    found = [id_ for id_, name in names.items() if name == told]
    if told in ids or not found:
        return told
    if len(found) > 1:
        raise click.BadParameter(
            f"several keys are called '{told}': {', '.join(sorted(found))}.", param_hint="--key"
        )
    return found[0]


def _when(name: str, text: str | None, now: float) -> float | None:
    """A time as people write it, as seconds since 1970.

    Raises:
        BadParameter: it is none.
    """
    from datetime import UTC, datetime  # noqa: PLC0415

    if not text:
        return None
    spans = {"m": 60, "h": 3600, "d": _DAY, "w": 7 * _DAY}
    if text[:-1].isdecimal() and len(text) < 8 and text[-1] in spans:
        return now - int(text[:-1]) * spans[text[-1]]
    try:
        told = datetime.fromisoformat(text)
    except ValueError:
        raise click.BadParameter(
            f"'{text}' is no time: 2026-11-28, 2026-11-28T15:00 and 7d are.", param_hint=f"--{name}"
        ) from None
    return (told if told.tzinfo else told.replace(tzinfo=UTC)).timestamp()


def _print_csv(rows: Sequence[Mapping[str, Any]], by: Sequence[By]) -> None:
    import csv  # noqa: PLC0415
    import sys  # noqa: PLC0415

    from tropilla.accounts.ledger import SUMS  # noqa: PLC0415
    from tropilla.accounts.prices import MONEY  # noqa: PLC0415

    writer = csv.writer(sys.stdout)
    more = ["key_name"] if "key" in by else []
    writer.writerow([*by, *SUMS, *more])
    for row in rows:
        told = {**row, "cost": f"{row['cost'] / MONEY:.9f}"}
        about = [_plain(_named(one, row[one])) for one in by]
        names = [_plain(row[one] or "") for one in more]
        writer.writerow([*about, *(told[one] for one in SUMS), *names])


def _plain(text: str) -> str:
    """A text of a client's as a spreadsheet shows it: nothing that it would work out."""
    return f"'{text}" if text[:1] in tuple("=+-@\t\r") else text


def _table(rows: Sequence[Mapping[str, Any]], by: Sequence[By], labels: Mapping[str, str]) -> Table:
    from rich.table import Table  # noqa: PLC0415
    from rich.text import Text  # noqa: PLC0415

    from tropilla.accounts.ledger import SUMS  # noqa: PLC0415

    table = Table(show_footer=len(rows) > 1)
    cells = [_cells(row) for row in rows]
    total = _cells({name: sum(row[name] for row in rows) for name in SUMS})
    for number, one in enumerate(by):
        table.add_column(one, footer="" if number else "all", overflow="fold")
    for name, title in _COLUMNS.items():
        if any(cell[name] for cell in cells):
            table.add_column(title, total[name], justify="right")
    for row, cell in zip(rows, cells, strict=True):
        shown = [value for name, value in cell.items() if any(other[name] for other in cells)]
        about = ((one, labels.get(row[one]) if one == "key" else None) for one in by)
        table.add_row(*(Text(label or _named(one, row[one])) for one, label in about), *shown)
    return table


def _cells(row: Mapping[str, Any]) -> dict[str, str]:
    """What a row shows; empty where there is nothing."""
    from tropilla.accounts.prices import MONEY  # noqa: PLC0415

    told = {name: f"{row[name]:,}" if row.get(name) else "" for name in _COLUMNS}
    told["requests"] = f"{row['requests']:,}"
    if row["cached"]:
        told["cached"] = f"{row['cached'] / max(row['prompt'], 1):.0%}"
    if row["cost"]:
        told["cost"] = f"{row['cost'] / MONEY:,.4f}"
    for name, count in (("first", row["firsts"]), ("total", row["requests"])):
        told[name] = f"{row[f'{name}_ms'] / count / 1000:.2f} s" if count else ""
    return told


def _named(by: By, value: Any) -> str:
    """What a row is about, as people read it."""
    from datetime import UTC, datetime  # noqa: PLC0415

    match by:
        case "day":
            return datetime.fromtimestamp(value, UTC).strftime("%Y-%m-%d")
        case "hour":
            return datetime.fromtimestamp(value, UTC).strftime("%Y-%m-%d %H:00")
    return str(value) or "(none)"
