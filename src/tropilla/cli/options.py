"""What several commands take, and how they refuse a config."""

from __future__ import annotations

import os
from pathlib import Path
from typing import IO, TYPE_CHECKING, Any

import click

if TYPE_CHECKING:
    from tropilla.config import UpstreamConfig
    from tropilla.config.load import Loaded

SETTINGS = {"help_option_names": ["-h", "--help"], "max_content_width": 100}

config_file = click.option(
    "--config", "config_file", type=click.Path(path_type=Path), envvar="TROPILLA_CONFIG",
    metavar="FILE",
    help="The settings; without it, tropilla.yaml in the working directory, if there is one. "
    "Flags win over it.  [env: TROPILLA_CONFIG]",
)  # fmt: skip
upstreams = click.option(
    "--upstream", "--llama-api", "upstreams", multiple=True, metavar="URL",
    help="A running llama.cpp server to serve, as http://HOST:PORT. May be given several times. "
    "Without any, Tropilla serves what its config file names, or an engine of its own.",
)  # fmt: skip
upstream_api_key = click.option(
    "--upstream-api-key", metavar="KEY", envvar="TROPILLA_UPSTREAM_API_KEY",
    help="The key that these upstreams want. Whoever lists the processes of this machine sees it "
    "here, as a password in an URL: the variable keeps it.  [env: TROPILLA_UPSTREAM_API_KEY]",
)  # fmt: skip
store = click.option(
    "--store", metavar="URL", envvar="TROPILLA_STORE",
    help="Where accounts are kept: sqlite:///PATH; none keeps nothing. Without it, what the "
    "settings say, or else a file of this user's.  [env: TROPILLA_STORE]",
)  # fmt: skip


class ConfigRefused(click.ClickException):
    """All that is wrong with a config file, as editors and terminals can jump to it."""

    def show(self, file: IO[Any] | None = None) -> None:
        """A line for each complaint, and nothing else."""
        click.echo(self.message, file=file, err=file is None)


def loaded(file: Path | None) -> Loaded:
    """What the config file and the environment say.

    Without a file, it is the one in the working directory, or none.

    Raises:
        ConfigRefused: something in them cannot be.
    """
    from tropilla.config.load import found, load  # noqa: PLC0415
    from tropilla.config.nodes import Refused  # noqa: PLC0415

    try:
        return load(found(file), os.environ)
    except Refused as error:
        raise ConfigRefused(str(error)) from None


def named_upstreams(urls: tuple[str, ...], api_key: str | None) -> tuple[UpstreamConfig, ...]:
    """The upstreams of the command line, each once.

    Raises:
        ConfigError: one has no address.
    """
    from tropilla.config import UpstreamConfig, read_url  # noqa: PLC0415

    return tuple(UpstreamConfig(url=read_url(url), api_key=api_key) for url in dict.fromkeys(urls))


def store_of(file: Path | None, given: str | None) -> str:
    """The address of the store that is meant.

    Raises:
        ClickException: none is kept.
    """
    from tropilla.accounts.store.places import place  # noqa: PLC0415

    url = place(given or loaded(file).config.accounts.store)
    if url is None:
        raise click.ClickException("No accounts are kept here: name their store with --store.")
    return url
