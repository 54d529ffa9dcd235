"""`tropilla doctor`: what the upstreams are, and what is wrong with them."""

from __future__ import annotations

from pathlib import Path

import click

from tropilla.cli.options import (
    SETTINGS,
    config_file,
    loaded,
    named_upstreams,
    upstream_api_key,
    upstreams,
)


@click.command("doctor", context_settings=SETTINGS)
@upstreams
@upstream_api_key
@config_file
@click.option("--json", "as_json", is_flag=True, help="For programs.")
@click.pass_context
def command(
    context: click.Context,
    /,
    upstreams: tuple[str, ...],
    upstream_api_key: str | None,
    config_file: Path | None,
    as_json: bool,  # noqa: FBT001 - click's way
) -> None:
    """Look at every upstream: what it is, what it can, what is wrong, and what to do.

    Nothing is generated. Ends with 1 if an upstream cannot serve.
    """
    import asyncio  # noqa: PLC0415

    import msgspec  # noqa: PLC0415

    from tropilla import doctor  # noqa: PLC0415
    from tropilla.config import Config, ConfigError  # noqa: PLC0415

    try:
        config = (
            Config(upstreams=named_upstreams(upstreams, upstream_api_key))
            if upstreams
            else loaded(config_file).config
        )
    except ConfigError as error:
        raise click.UsageError(str(error), context) from None
    findings = asyncio.run(doctor.examine(config))
    if as_json:
        click.echo(msgspec.json.format(msgspec.json.encode(findings), indent=2))
    elif findings:
        click.echo(doctor.table(findings))
    else:
        click.echo("No upstream is named: give --upstream, or a config file.")
    context.exit(1 if any(one.wrong for one in findings) else 0)
