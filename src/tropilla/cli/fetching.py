"""How commands come by a model of the hub, and what they say of its size."""

from __future__ import annotations

from pathlib import Path
from typing import TYPE_CHECKING

import click

if TYPE_CHECKING:
    from tropilla.config import EngineConfig
    from tropilla.models.shelf import Wanted
    from tropilla.models.sizing import Plan

TOO_LARGE = (
    "That is more than is free: expect it to be slow, or to be ended by the system. A smaller "
    "quantisation, fewer --slots or a smaller --ctx-size take less."
)


def read_wanted(text: str) -> Wanted:
    """What OWNER/NAME[:QUANT] names.

    Raises:
        UsageError: nothing.
    """
    from tropilla.models import shelf  # noqa: PLC0415

    try:
        return shelf.read_wanted(text)
    except ValueError as error:
        raise click.UsageError(f"{error}.") from None


def fetched(wanted: Wanted, *, anew: bool = False) -> Path:
    """The model's file: that on disk, unless it is to be looked for `anew`, or the hub's.

    Raises:
        ClickException: it cannot be had.
    """
    from tropilla.models import hub, shelf  # noqa: PLC0415

    path = None if anew else shelf.find(wanted)
    if path is not None:
        return path
    from rich.console import Console  # noqa: PLC0415
    from rich.progress import (  # noqa: PLC0415
        BarColumn,
        DownloadColumn,
        Progress,
        TextColumn,
        TimeRemainingColumn,
        TransferSpeedColumn,
    )

    columns = (
        TextColumn("{task.description}"), BarColumn(), DownloadColumn(), TransferSpeedColumn(),
        TimeRemainingColumn(),
    )  # fmt: skip
    try:
        with Progress(*columns, console=Console(stderr=True)) as bar:
            tasks = {}

            def heard(name: str, done: int, size: int) -> None:
                if name not in tasks:
                    # What was there before says nothing of the speed.
                    tasks[name] = bar.add_task(name, completed=done, total=size)
                bar.update(tasks[name], completed=done)

            return hub.pull(wanted, heard)
    except hub.HubError as error:
        raise click.ClickException(str(error)) from None
    except KeyboardInterrupt:
        click.echo("What has come is kept: the same command goes on with it.", err=True)
        raise


def sized(engine: EngineConfig) -> tuple[EngineConfig, Plan | None]:
    """The engine with the slots and the context that fit, and why these; `None` if nobody knows."""
    import msgspec  # noqa: PLC0415

    from tropilla.models import shelf, sizing  # noqa: PLC0415
    from tropilla.models.memory import free_memory  # noqa: PLC0415

    if (head := shelf.head(engine.model)) is None:
        return engine, None
    plan = sizing.plan(
        head, shelf.size(engine.model), free_memory(), slots=engine.slots, ctx_size=engine.ctx_size
    )
    return msgspec.structs.replace(engine, slots=plan.slots, ctx_size=plan.ctx_size), plan
