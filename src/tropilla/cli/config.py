"""`tropilla config`: look at the settings without serving."""

from __future__ import annotations

from pathlib import Path
from typing import TYPE_CHECKING

import click

from tropilla.cli.options import SETTINGS, loaded

if TYPE_CHECKING:
    from tropilla.config import Config

_file = click.argument(
    "file", required=False, type=click.Path(path_type=Path), envvar="TROPILLA_CONFIG"
)


@click.group("config", context_settings=SETTINGS)
def command() -> None:
    """Check and show the settings. FILE is tropilla.yaml in the working directory if left out."""


@command.command(context_settings=SETTINGS)
@_file
def check(file: Path | None) -> None:
    """Say that a config file is fine, or all that is wrong with it."""
    told = loaded(file)
    if told.file is None:
        raise click.UsageError("There is no tropilla.yaml here: name a file.")
    click.echo(f"{told.file} is fine: {_content(told.config)}.")


@command.command(context_settings=SETTINGS)
@_file
def show(file: Path | None) -> None:
    """Print all settings that are in force as YAML, secrets as ***.

    They are those of the file and of the environment, and the defaults of the rest.
    """
    from tropilla.config import show as shown  # noqa: PLC0415

    click.echo(shown.show(loaded(file)), nl=False)


@command.command(context_settings=SETTINGS)
def schema() -> None:
    """Print the JSON Schema of the config file, for editors.

    Write it to tropilla.schema.json beside the config file, and begin that with the line
    `# yaml-language-server: $schema=tropilla.schema.json`.
    """
    import msgspec  # noqa: PLC0415

    from tropilla.config.schema import schema as made  # noqa: PLC0415

    click.echo(msgspec.json.format(msgspec.json.encode(made()), indent=2))


def _content(config: Config) -> str:
    named = [one for model in config.models.values() for one in model.upstreams]
    servers = {one.url for one in (*named, *config.upstreams)}
    if not servers:
        return f"the engine serves {config.engine.name}"
    return f"{_count(len(config.models), 'model')}, {_count(len(servers), 'upstream')}"


def _count(number: int, what: str) -> str:
    return f"{number} {what}" if number == 1 else f"{number} {what}s"
