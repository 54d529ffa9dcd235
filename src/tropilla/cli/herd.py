"""`tropilla herd` and `tropilla route`: what a running herd does, and who would be taken."""

from __future__ import annotations

from pathlib import Path
from typing import TYPE_CHECKING, Any

import click

from tropilla.cli.asking import ask, asking
from tropilla.cli.options import SETTINGS

if TYPE_CHECKING:
    from rich.console import Group
    from rich.table import Table
    from rich.text import Text

_SECONDS = 1.0
_WIDE = 100
"""Columns of a terminal that has room for what kind of server each is."""
_COLOURS = {"ready": "green", "loading": "yellow", "starting": "yellow", "down": "red"}


@click.command("herd", context_settings=SETTINGS)
@asking
@click.option("--once", is_flag=True, help="Print it once, and end.")
@click.option("--json", "as_json", is_flag=True, help="Print it once, for programs.")
def herd(url: str, api_key: str | None, once: bool, as_json: bool) -> None:  # noqa: FBT001
    """Watch the upstreams of a running gateway: state, slots, queue."""
    import time  # noqa: PLC0415

    told = ask(url, api_key, "/api/herd")
    if as_json:
        import msgspec  # noqa: PLC0415

        click.echo(msgspec.json.format(msgspec.json.encode(told), indent=2))
        return
    from rich.console import Console  # noqa: PLC0415
    from rich.live import Live  # noqa: PLC0415

    console = Console()
    if once or not console.is_terminal:
        console.print(_shown(told, console.width))
        return
    news: str | None = None
    with Live(_shown(told, console.width), console=console, screen=True) as live:
        while True:
            time.sleep(_SECONDS)
            try:
                told, news = ask(url, api_key, "/api/herd"), None
            except click.ClickException as error:
                news = error.message  # it may come back
            live.update(_shown(told, console.width, news))


@click.command("route", context_settings=SETTINGS)
@asking
@click.option(
    "--path", metavar="PATH", default="/v1/chat/completions", show_default=True,
    help="Where the request would be sent.",
)  # fmt: skip
@click.option(
    "--explain", is_flag=True,
    help="Print what the filters say of each upstream, and its score.",
)  # fmt: skip
@click.argument("file", type=click.Path(path_type=Path, exists=True, dir_okay=False))
def route(url: str, api_key: str | None, path: str, explain: bool, file: Path) -> None:  # noqa: FBT001
    """Tell who would take a request now: the JSON of its body is in FILE. Nobody is asked it."""
    from urllib.parse import quote  # noqa: PLC0415

    told = ask(url, api_key, f"/api/route?path={quote(path)}", file.read_bytes())
    if explain:
        from rich.console import Console  # noqa: PLC0415

        Console().print(_reasons(told))
        return
    for one in told["upstreams"]:
        if one["taken"]:
            click.echo(one["name"])
            return
    why = [f"{one['name']}: {_verdict(one)}" for one in told["upstreams"]]
    raise click.ClickException("\n  ".join(["Nobody would take it now.", *why]))


def _reasons(told: Any) -> Table:
    from rich.table import Table  # noqa: PLC0415

    table = Table(title=_text(f"{told['model'] or 'any model'}, {told['blocks']} blocks of prompt"))
    for name in ("", "upstream", "verdict"):
        table.add_column(name, overflow="fold")
    for name in ("cached", "load", "score"):
        table.add_column(name, justify="right")
    for one in told["upstreams"]:
        mark = "->" if one["taken"] else ""
        numbers = [f"{one[name]:.3f}" for name in ("cached", "load", "score")]
        style = "bold" if one["taken"] else None
        table.add_row(mark, _text(one["name"]), _verdict(one), *numbers, style=style)
    return table


def _verdict(one: Any) -> str:
    return str(one["verdict"]).replace("_", " ")


def _shown(told: Any, width: int, news: str | None = None) -> Group:
    """The herd as a table, and below it what is wrong; `news` is why it is of some time ago."""
    from rich.console import Group  # noqa: PLC0415

    problems = [
        one["problem"] if one["name"] in one["problem"] else f"{one['name']}: {one['problem']}"
        for one in told["upstreams"]
        if one["problem"]
    ]
    lines = [one for one in (news, _queues(told), *problems) if one]
    return Group(_table(told, wide=width >= _WIDE), *map(_text, lines))


def _table(told: Any, *, wide: bool) -> Table:
    from rich.table import Table  # noqa: PLC0415

    table = Table(title=f"{len(told['upstreams'])} upstreams, {told['waiting']} waiting")
    table.add_column("upstream", overflow="fold", min_width=22)
    for name in ("state", "slots"):
        table.add_column(name, min_width=8)
    for name in ("others", "served"):
        table.add_column(name, justify="right")
    for name in ("models", "kind") if wide else ("models",):
        table.add_column(name, no_wrap=True, overflow="ellipsis", max_width=22 if wide else 11)
    for one in told["upstreams"]:
        state = _state(one)
        colour = _COLOURS.get(state, "yellow")
        more = [", ".join(one["models"]), one["kind"] or ""] if wide else [", ".join(one["models"])]
        table.add_row(
            _text(one["name"]),
            f"[{colour}]{state}[/]",
            _slots(one),
            str(one["foreign"]),
            str(one["served"]),
            *map(_text, more),
        )
    return table


def _text(told: str) -> Text:
    """What others have said: nothing in it colours anything, or moves the cursor."""
    from rich.text import Text  # noqa: PLC0415

    return Text("".join(one if one.isprintable() else " " for one in told))


def _state(one: Any) -> str:
    if one["draining"]:
        return "draining"
    if one["quarantine"] is not None:
        return f"out {one['quarantine']:.0f} s"
    return str(one["state"])


def _slots(one: Any) -> str:
    if one["slots"] is None:
        return f"{one['leases']}" if one["state"] == "ready" else ""
    taken = min(one["leases"], one["slots"])
    if one["slots"] > 16:
        return f"{taken}/{one['slots']}"
    return f"{'#' * taken}{'.' * (one['slots'] - taken)} {taken}/{one['slots']}"


def _queues(told: Any) -> str | None:
    waiting = [f"{name or 'any model'}: {count}" for name, count in told["queues"].items()]
    return f"waiting for {', '.join(waiting)}" if waiting else None
