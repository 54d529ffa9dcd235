"""`tropilla connect`: the settings of other programs, printed, written, and taken back."""

from __future__ import annotations

import os
from pathlib import Path
from typing import TYPE_CHECKING

import click

from tropilla.cli.asking import asking
from tropilla.cli.options import SETTINGS

if TYPE_CHECKING:
    from tropilla.clients import Client, Connection, Place, Settings


@click.command("connect", context_settings=SETTINGS)
@asking
@click.option("--model", metavar="NAME", help="The model to ask for; else the gateway's first.")
@click.option(
    "--context", type=click.IntRange(1), metavar="TOKENS",
    help="What the model can see; else what the gateway says of it.",
)  # fmt: skip
@click.option("--write", "how", flag_value="write", help="Write them, showing what changes.")
@click.option("--restore", "how", flag_value="restore", help="Undo what --write wrote last.")
@click.option("--yes", is_flag=True, help="Do not ask before a file is changed.")
@click.argument("client", required=False)
def command(
    client: str | None,
    url: str,
    api_key: str | None,
    model: str | None,
    context: int | None,
    how: str | None,
    yes: bool,  # noqa: FBT001 - click's way
) -> None:
    """Print the settings that connect CLIENT to a gateway. Without one, list who can be connected.

    The gateway is asked for its models, unless --model names one.
    """
    from tropilla.clients import CLIENTS  # noqa: PLC0415

    if client is None:
        if how is not None:
            raise click.UsageError(f"--{how} wants a CLIENT.")
        _list(CLIENTS)
        return
    if client not in CLIENTS:
        from difflib import get_close_matches  # noqa: PLC0415

        near = get_close_matches(client, CLIENTS, 1)
        hint = f"Did you mean {near[0]}?" if near else f"There are: {', '.join(CLIENTS)}."
        raise click.UsageError(f"No client is called {client}. {hint}")
    one = CLIENTS[client]
    if how == "restore":
        _restore(one, yes=yes)
        return
    place = _place(url, api_key, model, context)
    connection = one.connection(place)
    if how == "write":
        _write(one, connection, yes=yes)
    else:
        _print(one, connection)


def _list(clients: dict[str, Client]) -> None:
    width = max(len(name) for name in clients)
    for name, one in clients.items():
        click.echo(f"{name:{width}}  {one.title}")
    click.echo("\ntropilla connect NAME prints how.")


def _place(url: str, api_key: str | None, model: str | None, context: int | None) -> Place:
    from tropilla.cli.asking import ask, root_of  # noqa: PLC0415
    from tropilla.clients import Place  # noqa: PLC0415

    root = root_of(url)
    if model is not None:
        return Place(root=root, key=api_key, model=model, context=context)
    cards = ask(url, api_key, "/v1/models")["data"]
    if not cards:
        raise click.ClickException(f"{root} serves nothing yet: name a model with --model.")
    able = [one for one in cards if one["status"]["value"] == "loaded"]
    card = (able or cards)[0]
    if context is None:
        context = card.get("context_length")
    return Place(root=root, key=api_key, model=card["id"], context=context)


def _print(client: Client, connection: Connection) -> None:
    from tropilla.clients import edits  # noqa: PLC0415

    if (settings := connection.settings) is not None:
        click.echo(f"In {_shown(_path(settings))}:\n\n{edits.alone(settings)}")
    for step in connection.steps:
        title = f"{step.title}\n\n" if step.title else ""
        click.echo(title + step.text)
    if connection.settings is not None:
        click.echo(f"tropilla connect {client.name} --write writes the file.", err=True)
    click.echo(f"Its documentation: {client.documentation}", err=True)


def _path(settings: Settings) -> Path:
    if settings.variable and (told := os.environ.get(settings.variable)):
        folder = told
    elif settings.folder.startswith("app:"):
        folder = click.get_app_dir(settings.folder.removeprefix("app:"))
    else:
        folder = settings.folder
    return Path(folder).expanduser() / settings.file


def _shown(path: Path) -> str:
    home = Path.home()
    return f"~/{path.relative_to(home).as_posix()}" if path.is_relative_to(home) else str(path)


def _write(client: Client, connection: Connection, *, yes: bool) -> None:
    from tropilla.clients import edits  # noqa: PLC0415

    settings = connection.settings
    if settings is None:
        raise click.ClickException(
            f"{client.title} has no file of settings that could be written: run "
            f"`tropilla connect {client.name}`, and do what it prints."
        )
    path = _path(settings)
    before = _read(path)
    try:
        after = edits.edited(settings, before)
    except edits.EditError as error:
        raise click.ClickException(
            f"{_shown(path)} is left as it is: {error}. `tropilla connect {client.name}` prints "
            "what has to be in it."
        ) from None
    if after == before:
        click.echo(f"{_shown(path)} says so already.")
        return
    _show(path, before, after)
    if not yes:
        click.confirm("Write it?", abort=True)
    if (kept := _kept(client)) is not None and kept["after"] == before:
        before = kept["before"]
    _keep(client, {"path": str(path), "before": before, "after": after})
    _put(path, after)
    click.echo(f"Written. tropilla connect {client.name} --restore undoes it.")
    for step in connection.steps:
        if step.needed:
            click.echo(f"\n{step.title}\n\n{step.text}", nl=False)


def _restore(client: Client, *, yes: bool) -> None:
    kept = _kept(client)
    if kept is None:
        raise click.ClickException(f"Nothing was written for {client.title}, or it is undone.")
    path = Path(kept["path"] or "")
    now, before = _read(path), kept["before"]
    if now == before:
        _record(client).unlink()
        click.echo(f"{_shown(path)} is as it was.")
        return
    _show(path, now, before)
    if now != kept["after"]:
        raise click.ClickException(
            f"{_shown(path)} was changed since it was written, and is left as it is: take out by "
            "hand what is above."
        )
    if not yes:
        click.confirm("Write it?", abort=True)
    if before is None:
        path.unlink()
    else:
        _put(path, before)
    _record(client).unlink()
    click.echo("Undone.")


def _show(path: Path, old: str | None, new: str | None) -> None:
    """What changes, as a diff."""
    from difflib import unified_diff  # noqa: PLC0415

    name = _shown(path)
    lines = unified_diff(
        (old or "").splitlines(),
        (new or "").splitlines(),
        name if old is not None else "/dev/null",
        name if new is not None else "/dev/null",
        lineterm="",
    )
    colours = {"+": "green", "-": "red", "@": "cyan"}
    for line in lines:
        click.secho(line, fg=colours.get(line[:1]))


def _read(path: Path) -> str | None:
    try:
        return path.read_text(encoding="utf-8")
    except FileNotFoundError:
        return None
    except (OSError, UnicodeDecodeError) as error:
        raise click.ClickException(f"{_shown(path)} cannot be read: {error}") from None


def _put(path: Path, text: str) -> None:
    """Write it whole or not at all; who may read it stays, and a new one is its owner's own."""
    import tempfile  # noqa: PLC0415

    path = path.resolve()  # what a link leads to is written, and the link stays
    try:
        path.parent.mkdir(parents=True, exist_ok=True)
        with tempfile.NamedTemporaryFile(
            "w", encoding="utf-8", newline="", dir=path.parent, delete=False
        ) as file:
            file.write(text)
        new = Path(file.name)
        if path.exists():
            new.chmod(path.stat().st_mode & 0o777)
        new.replace(path)
    except OSError as error:
        raise click.ClickException(f"{_shown(path)} cannot be written: {error}") from None


def _record(client: Client) -> Path:
    state = os.environ.get("XDG_STATE_HOME") or "~/.local/state"
    return Path(state).expanduser() / "tropilla" / "connect" / f"{client.name}.json"


def _kept(client: Client) -> dict[str, str | None] | None:
    import msgspec  # noqa: PLC0415

    told = _read(_record(client))
    return None if told is None else msgspec.json.decode(told, type=dict[str, str | None])


def _keep(client: Client, told: dict[str, str | None]) -> None:
    import msgspec  # noqa: PLC0415

    _put(_record(client), msgspec.json.encode(told).decode())
