"""`tropilla herd` and `tropilla route`: what a running herd does, and who would be taken."""

from __future__ import annotations

from pathlib import Path
from typing import TYPE_CHECKING, Any

import click

from tropilla.cli.asking import ask, asking
from tropilla.cli.options import SETTINGS

if TYPE_CHECKING:
    from rich.table import Table

_SECONDS = 1.0
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
        console.print(_table(told))
        return
    with Live(_table(told), console=console, screen=True) as live:
        while True:
            time.sleep(_SECONDS)
            live.update(_table(ask(url, api_key, "/api/herd")))


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

    table = Table(title=f"{told['model'] or 'any model'}, {told['blocks']} blocks of prompt")
    for name in ("", "upstream", "verdict"):
        table.add_column(name)
    for name in ("cached", "load", "score"):
        table.add_column(name, justify="right")
    for one in told["upstreams"]:
        mark = "->" if one["taken"] else ""
        numbers = [f"{one[name]:.3f}" for name in ("cached", "load", "score")]
        style = "bold" if one["taken"] else None
        table.add_row(mark, one["name"], _verdict(one), *numbers, style=style)
    return table


def _verdict(one: Any) -> str:
    return str(one["verdict"]).replace("_", " ")


def _table(told: Any) -> Table:
    from rich.table import Table  # noqa: PLC0415

    title = f"{len(told['upstreams'])} upstreams, {told['waiting']} waiting"
    table = Table(title=title, caption=_queues(told))
    for name in ("upstream", "state", "slots", "others", "served", "models", "what"):
        table.add_column(name, justify="right" if name in {"others", "served"} else "left")
    for one in told["upstreams"]:
        state = _state(one)
        colour = _COLOURS.get(state, "yellow")
        table.add_row(
            one["name"],
            f"[{colour}]{state}[/]",
            _slots(one),
            str(one["foreign"]),
            str(one["served"]),
            ", ".join(one["models"]),
            one["problem"] or one["kind"] or "",
        )
    return table


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
