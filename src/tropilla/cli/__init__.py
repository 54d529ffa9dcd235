"""The command line. Imports are lazy: `--version` and `--help` load nothing that serves.

A command is in a module here, and has a line below `main`.
"""

from __future__ import annotations

import os

import click

from tropilla import __version__
from tropilla.cli import (
    chat,
    config,
    connect,
    db,
    doctor,
    herd,
    keys,
    logs,
    models,
    serve,
    usage,
)
from tropilla.cli.options import SETTINGS


@click.group(context_settings=SETTINGS)
@click.version_option(__version__, "--version", prog_name="tropilla")
@click.pass_context
def main(context: click.Context) -> None:
    """One OpenAI-compatible endpoint for a herd of llama.cpp servers."""
    if os.environ.get("NO_COLOR") or os.environ.get("TERM") == "dumb":
        context.color = False


main.add_command(serve.command)
main.add_command(chat.command)
main.add_command(config.command)
main.add_command(doctor.command)
main.add_command(connect.command)
main.add_command(herd.herd)
main.add_command(herd.route)
main.add_command(keys.command)
main.add_command(models.models)
main.add_command(models.pull)
main.add_command(usage.command)
main.add_command(logs.command)
main.add_command(db.command)
