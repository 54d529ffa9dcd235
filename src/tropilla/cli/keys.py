"""`tropilla keys`: give keys, show them, change what they may do, and take them back.

It works on the store itself, whether a gateway runs or not; one that runs notices within a second.
"""

from __future__ import annotations

from pathlib import Path
from typing import TYPE_CHECKING, Any, TypeVar

import click

from tropilla.cli import options
from tropilla.cli.options import SETTINGS

if TYPE_CHECKING:
    from collections.abc import Awaitable, Callable, Sequence

    from rich.table import Table

    from tropilla.accounts.keys.ring import Made, Ring, Stored

_T = TypeVar("_T")
_STATES = {"active": "green", "expired": "yellow", "revoked": "red"}
_PERIODS = ("day", "month", "total")

_json = click.option("--json", "as_json", is_flag=True, help="For programs.")
_which = click.argument("which", metavar="KEY")


def _terms(command: Callable[..., None]) -> Callable[..., None]:
    """Add the options by which it is said what a key may do."""
    for option in reversed((
        click.option("--team", metavar="NAME", help="Whose it is."),
        click.option(
            "--model", "models", multiple=True, metavar="NAME",
            help="A model that it may ask for; without any, all of them. May be given several "
            "times.",
        ),
        click.option(
            "--requests", type=int, metavar="N", help="Requests in any minute."
        ),
        click.option("--tokens", type=int, metavar="N", help="Tokens in any minute."),
        click.option(
            "--concurrent", type=int, metavar="N", help="Requests that are served at once."
        ),
        click.option(
            "--budget", "budgets", multiple=True, metavar="AMOUNT/PERIOD",
            help="What it may use up: tokens=1000000/day or money=12.50/month, or total. May be "
            "given several times.",
        ),
        click.option(
            "--priority", type=int, metavar="N",
            help="Who has more of it comes first where requests wait for a slot; -100 to 100.",
        ),
        click.option(
            "--expires", metavar="TIME", help="When it ends: 2027-01-31, or 2027-01-31T12:00:00Z."
        ),
        click.option("--tag", "tags", multiple=True, metavar="WORD", help="A word of your own."),
    )):  # fmt: skip
        command = option(command)
    return command


@click.group("keys", context_settings=SETTINGS)
@options.config_file
@options.store
@click.pass_context
def command(context: click.Context, config_file: Path | None, store: str | None) -> None:
    """Give keys to clients, and take them back."""
    context.obj = (config_file, store)


@command.command(context_settings=SETTINGS)
@click.argument("name")
@_terms
@_json
@click.pass_obj
def create(place: Any, /, name: str, as_json: bool, **told: Any) -> None:  # noqa: FBT001
    """Make a key, by a NAME of its own. It is shown here, and never again."""
    from tropilla.accounts.keys.rights import OPERATOR  # noqa: PLC0415
    from tropilla.accounts.keys.ring import read_terms  # noqa: PLC0415

    async def work(ring: Ring) -> Made:
        name_, terms = read_terms({"name": name, **_body(told)})
        return await ring.create(OPERATOR, name_, terms)

    _print_made(_on(place, work), as_json=as_json)


@command.command("list", context_settings=SETTINGS)
@click.option("--all", "everything", is_flag=True, help="Those that are revoked, too.")
@_json
@click.pass_obj
def list_(place: Any, everything: bool, as_json: bool) -> None:  # noqa: FBT001
    """List the keys, and what they may do."""

    async def work(ring: Ring) -> list[Stored]:
        return await ring.all()

    found = [one for one in _on(place, work) if everything or one.revoked is None]
    if as_json:
        _print_json([_shown(one) for one in found])
    elif not found:
        click.echo("There are no keys.")
    else:
        from rich.console import Console  # noqa: PLC0415

        Console().print(_table(found))


@command.command(context_settings=SETTINGS)
@_which
@_json
@click.pass_obj
def show(place: Any, which: str, as_json: bool) -> None:  # noqa: FBT001
    """Show one key, by its name or its id."""
    _print_one(_on(place, lambda ring: ring.find(which)), as_json=as_json)


@command.command(context_settings=SETTINGS)
@_which
@_terms
@click.option("--name", metavar="NAME", help="Another name.")
@click.option(
    "--clear", multiple=True, metavar="TERM", type=click.Choice(
        ["team", "models", "limits", "budgets", "priority", "expires", "tags"]
    ),
    help="A term to be taken away, as if it had never been said. May be given several times.",
)  # fmt: skip
@_json
@click.pass_obj
def change(
    place: Any,
    /,
    which: str,
    name: str | None,
    clear: tuple[str, ...],
    as_json: bool,  # noqa: FBT001
    **told: Any,
) -> None:
    """Give a key other terms: those that are said, limits and budgets as a whole."""
    import msgspec  # noqa: PLC0415

    from tropilla.accounts.keys.rights import OPERATOR  # noqa: PLC0415
    from tropilla.config import TermsConfig  # noqa: PLC0415

    none = msgspec.to_builtins(TermsConfig())
    body = {one: none[one] for one in clear} | _body(told)
    if name is not None:
        body["name"] = name
    _print_one(_on(place, lambda ring: ring.change(OPERATOR, which, body)), as_json=as_json)


@command.command(context_settings=SETTINGS)
@_which
@click.option(
    "--grace", type=float, default=0.0, metavar="SECONDS",
    help="How long the old one goes on; it ends at once if this is left out.",
)  # fmt: skip
@_json
@click.pass_obj
def rotate(place: Any, which: str, grace: float, as_json: bool) -> None:  # noqa: FBT001
    """Make another key in the place of one: same name, same terms, same account."""
    from tropilla.accounts.keys.rights import OPERATOR  # noqa: PLC0415

    _print_made(_on(place, lambda ring: ring.rotate(OPERATOR, which, grace)), as_json=as_json)


@command.command(context_settings=SETTINGS)
@_which
@_json
@click.pass_obj
def revoke(place: Any, which: str, as_json: bool) -> None:  # noqa: FBT001
    """Let nobody in by a key any more. What it has used stays in the ledger."""
    from tropilla.accounts.keys.rights import OPERATOR  # noqa: PLC0415

    _print_one(_on(place, lambda ring: ring.revoke(OPERATOR, which)), as_json=as_json)


def _on(place: Any, work: Callable[[Ring], Awaitable[_T]]) -> _T:
    """Do something with the keys of a store.

    Raises:
        ClickException: it cannot be done.
    """
    import asyncio  # noqa: PLC0415

    from tropilla.accounts.keys.ring import open_ring  # noqa: PLC0415
    from tropilla.accounts.store import StoreError, open_store  # noqa: PLC0415
    from tropilla.ir import ProblemError  # noqa: PLC0415

    file, given = place
    url = options.store_of(file, given)
    secret = options.loaded(file).config.accounts.secret

    async def done() -> _T:
        store = await open_store(url)
        try:
            return await work(await open_ring(store, secret))
        finally:
            await store.close()

    try:
        return asyncio.run(done())
    except (StoreError, ProblemError) as error:
        raise click.ClickException(str(error)) from None


def _body(told: dict[str, Any]) -> dict[str, Any]:
    """What was said of a key's terms, as JSON says it."""
    body: dict[str, Any] = {
        name: told[name] for name in ("team", "priority", "expires") if told[name] is not None
    }
    body |= {name: list(told[name]) for name in ("models", "tags") if told[name]}
    limits = {name: told[name] for name in ("requests", "tokens", "concurrent")}
    if any(limit is not None for limit in limits.values()):
        body["limits"] = {name: limit for name, limit in limits.items() if limit is not None}
    if told["budgets"]:
        body["budgets"] = [_budget(text) for text in told["budgets"]]
    return body


def _budget(text: str) -> dict[str, Any]:
    """A budget as people write it.

    Raises:
        BadParameter: it is none.
    """
    amount, _, period = text.partition("/")
    what, _, number = amount.partition("=")
    try:
        value = {"tokens": int, "money": float}[what](number)
    except (KeyError, ValueError):
        value = None
    if value is None or period not in _PERIODS:
        raise click.BadParameter(
            f"'{text}' is no budget: tokens=1000000/day, money=12.50/month and tokens=5/total are.",
            param_hint="--budget",
        )
    return {what: value, "per": period}


# What is shown.


def _shown(stored: Stored) -> dict[str, Any]:
    import time  # noqa: PLC0415

    return stored.shown(time.time())


def _print_json(told: Any) -> None:
    import msgspec  # noqa: PLC0415

    click.echo(msgspec.json.format(msgspec.json.encode(told), indent=2))


def _print_made(made: Made, *, as_json: bool) -> None:
    if as_json:
        _print_json({**_shown(made.stored), "key": made.key})
        return
    _print_one(made.stored, as_json=False, err=True)
    # Alone on its line, and on stdout alone: it can be copied, and piped.
    click.echo("\nThe key. It is not shown again:\n", err=True)
    click.echo(made.key)


def _print_one(stored: Stored, *, as_json: bool, err: bool = False) -> None:
    if as_json:
        _print_json(_shown(stored))
        return
    from rich.console import Console  # noqa: PLC0415
    from rich.table import Table  # noqa: PLC0415
    from rich.text import Text  # noqa: PLC0415

    told = _shown(stored)
    table = Table(show_header=False, box=None)
    for name, value in _words(told).items():
        table.add_row(name, Text(value))
    Console(stderr=err).print(table)


def _table(found: Sequence[Stored]) -> Table:
    from rich.table import Table  # noqa: PLC0415
    from rich.text import Text  # noqa: PLC0415

    rows = [_words(_shown(one)) for one in found]
    names = [name for name in rows[0] if name != "id" and any(row[name] for row in rows)]
    table = Table()
    for name in names:
        table.add_column(name, overflow="fold")
    for row in rows:
        styles = {"state": _STATES[row["state"]]}
        table.add_row(*(Text(row[name], style=styles.get(name, "")) for name in names))
    return table


def _words(told: dict[str, Any]) -> dict[str, str]:
    """What is told of a key, in words; empty where there is nothing."""
    models = told["models"]
    limits = (f"{amount:,} {name}" for name, amount in told["limits"].items() if amount is not None)
    return {
        "name": told["name"],
        "id": told["id"],
        "ends in": told["tail"],
        "state": told["state"],
        "team": told["team"] or "",
        "models": "" if models is None else ", ".join(models) or "none",
        "limits": ", ".join(limits),
        "budgets": ", ".join(_budget_words(one) for one in told["budgets"]),
        "priority": str(told["priority"] or ""),
        "expires": (told["expires"] or "").removesuffix("T00:00:00Z"),
        "tags": ", ".join(told["tags"]),
    }


def _budget_words(budget: dict[str, Any]) -> str:
    amount = f"{budget['money']:g}" if budget["tokens"] is None else f"{budget['tokens']:,} tokens"
    return f"{amount} in all" if budget["per"] == "total" else f"{amount} a {budget['per']}"
