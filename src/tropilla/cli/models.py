"""`tropilla models` and `tropilla pull`: which models are on disk, and how more come there."""

from __future__ import annotations

from pathlib import Path
from typing import TYPE_CHECKING, Any

import click

from tropilla.cli.options import SETTINGS

if TYPE_CHECKING:
    from tropilla.models.gguf import Header
    from tropilla.models.sizing import Plan


@click.command("models", context_settings=SETTINGS)
@click.option("--json", "as_json", is_flag=True, help="For programs.")
def models(*, as_json: bool) -> None:
    """List the models on disk.

    They are those in the cache of the Hugging Face hub, and the one that comes along. What fits is
    what `tropilla serve` would choose for the memory that is free now.
    """
    from tropilla.config import TINY_MODEL, TINY_NAME  # noqa: PLC0415
    from tropilla.models import shelf, sizing  # noqa: PLC0415
    from tropilla.models.memory import free_memory  # noqa: PLC0415

    free = free_memory()
    rows = [
        _row(f"{one.repo}:{one.quant}", one.path, one.size, one.header, free)
        for one in shelf.on_disk()
    ]
    size = TINY_MODEL.stat().st_size
    rows.append(_row(TINY_NAME, TINY_MODEL, size, shelf.head(TINY_MODEL), free))
    if as_json:
        import msgspec  # noqa: PLC0415

        click.echo(msgspec.json.format(msgspec.json.encode(rows), indent=2))
        return
    from rich.console import Console  # noqa: PLC0415
    from rich.table import Table  # noqa: PLC0415

    table = Table(caption=f"In {shelf.cache()}, and with Tropilla")
    for name in ("model", "what", "size", "context", "fits"):
        right = name in {"size", "context"}
        table.add_column(name, justify="right" if right else "left", overflow="fold")
    for row in rows:
        plan = row["plan"]
        fits = "no GGUF file that can be read"
        if plan is not None:
            fits = f"{plan['slots']} x {plan['ctx_size']}" if plan["fits"] else "no"
        table.add_row(
            row["id"],
            row["architecture"] or "",
            sizing.bytes_said(row["bytes"]),
            str(row["context_length"] or ""),
            fits,
        )
    Console().print(table)


def _row(name: str, path: Path, size: int, header: Header | None, free: int | None) -> Any:
    from tropilla.models import sizing  # noqa: PLC0415

    plan: Any = None
    if header is not None:
        made = sizing.plan(header, size, free)
        plan = {
            "slots": made.slots, "ctx_size": made.ctx_size, "cache_bytes": made.cache,
            "fits": made.fits,
        }  # fmt: skip
    return {
        "id": name,
        "path": str(path),
        "bytes": size,
        "architecture": header and header.architecture,
        "context_length": header and header.context,
        "plan": plan,
    }


@click.command("pull", context_settings=SETTINGS)
@click.argument("model", metavar="OWNER/NAME[:QUANT]")
def pull(model: str) -> None:
    """Fetch a model from the Hugging Face hub.

    It comes as GGUF, into the cache that the hub's programs share. Without QUANT it is Q4_K_M, or
    else Q8_0, or else the first. What was broken off goes on where it was, and what is there
    already is not fetched again.

    HF_TOKEN opens what is gated or private, HF_ENDPOINT names another hub, HF_HUB_OFFLINE=1
    forbids to ask it, HF_HUB_CACHE or HF_HOME say where the cache is.
    """
    from tropilla.cli.fetching import TOO_LARGE, fetched, read_wanted, sized  # noqa: PLC0415
    from tropilla.config import EngineConfig  # noqa: PLC0415

    path = fetched(read_wanted(model), anew=True)
    click.echo(str(path))
    _, plan = sized(EngineConfig(model=path))
    if plan is None:
        raise click.ClickException("It is no GGUF file that can be read.")
    _tell(plan, TOO_LARGE)
    click.echo(f"Serve it: tropilla serve --hf {model}", err=True)


def _tell(plan: Plan, too_large: str) -> None:
    click.echo(f"It would be served in {plan.said()}.", err=True)
    if not plan.fits:
        click.echo(too_large, err=True)
