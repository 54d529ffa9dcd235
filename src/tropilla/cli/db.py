"""`tropilla db`: the store of the accounts itself: its tables, and its rows as a file."""

from __future__ import annotations

from contextlib import asynccontextmanager
from pathlib import Path
from typing import TYPE_CHECKING, Any

import click

from tropilla.cli import options
from tropilla.cli.options import SETTINGS

if TYPE_CHECKING:
    from collections.abc import AsyncIterator, Callable, Coroutine

    from tropilla.accounts.store import Store


@click.group("db", context_settings=SETTINGS)
def command() -> None:
    """Look after the store of the accounts, and move it."""


def _on_a_store(work: Callable[..., Coroutine[Any, Any, None]]) -> Callable[..., None]:
    """Make a command of what is done with the address of a store."""
    import functools  # noqa: PLC0415

    @options.config_file
    @options.store
    @functools.wraps(work)
    def run(config_file: Path | None, store: str | None, **arguments: Any) -> None:
        import asyncio  # noqa: PLC0415

        from tropilla.accounts.store import StoreError  # noqa: PLC0415

        try:
            asyncio.run(work(options.store_of(config_file, store), **arguments))
        except StoreError as error:
            raise click.ClickException(str(error)) from None

    return run


@asynccontextmanager
async def _opened(url: str, *, migrate: bool = False) -> AsyncIterator[Store]:
    from tropilla.accounts.store import open_store  # noqa: PLC0415

    store = await open_store(url, migrate=migrate)
    try:
        yield store
    finally:
        await store.close()


@command.command("status", context_settings=SETTINGS)
@_on_a_store
async def status(url: str) -> None:
    """Say where the store is, which changes its tables have, and how many rows."""
    from tropilla.accounts.store import StoreError, migrations  # noqa: PLC0415

    async with _opened(url) as store:
        click.echo(store.url)
        try:
            done = {number for number, _ in await store.read(migrations.DONE)}
        except StoreError:
            done = set()
        for one in migrations.known():
            state = "done" if one.number in done else "still to be made: tropilla db migrate"
            click.echo(f"  {one.number:04} {one.name}: {state}")
        if newer := done - {one.number for one in migrations.known()}:
            click.echo(f"  {max(newer):04}: made by a newer Tropilla; this one leaves it alone")
        if done >= {one.number for one in migrations.known()}:
            for table in migrations.tables():
                asked = f"SELECT count(*) FROM {table.name}"  # noqa: S608 - a name of our own
                click.echo(f"  {table.name}: {(await store.read(asked))[0][0]:,} rows")


@command.command("migrate", context_settings=SETTINGS)
@_on_a_store
async def migrate(url: str) -> None:
    """Bring the tables up to date, as a gateway does when it starts."""
    async with _opened(url, migrate=True) as store:
        click.echo(f"{store.url} is up to date.")


@command.command("export", context_settings=SETTINGS)
@click.argument("file", type=click.File("wb"))
@_on_a_store
async def export(url: str, file: Any) -> None:
    """Write the whole store to FILE as lines of JSON (`-` is the standard output).

    What is served meanwhile may be in it by halves: end the gateways first.
    """
    from tropilla.accounts.store.moving import exported  # noqa: PLC0415

    async with _opened(url, migrate=True) as store:
        with _progress("exported") as told:
            async for lines in exported(store, told):
                file.write(lines)


@command.command("import", context_settings=SETTINGS)
@click.argument("file", type=click.File("rb"))
@_on_a_store
async def import_(url: str, file: Any) -> None:
    """Fill an empty store with what was exported to FILE."""
    from tropilla.accounts.store.moving import imported  # noqa: PLC0415

    async with _opened(url, migrate=True) as store:
        with _progress("imported") as told:
            counts = await imported(store, file, told)
        click.echo(f"{store.url} has them: " + ", ".join(f"{n:,} {t}" for t, n in counts.items()))


class _progress:  # noqa: N801 - used as a verb
    """A count of rows that is seen on a terminal, and nowhere else."""

    def __init__(self, what: str) -> None:
        from rich.console import Console  # noqa: PLC0415
        from rich.progress import Progress, TextColumn, TimeElapsedColumn  # noqa: PLC0415

        console = Console(stderr=True)
        text = TextColumn(f"{{task.completed:,.0f}} rows {what}")
        self._bar = Progress(
            text, TimeElapsedColumn(), console=console, disable=not console.is_terminal
        )
        self._task = self._bar.add_task(what, total=None)

    def __enter__(self) -> Callable[[int], None]:
        self._bar.start()
        return lambda rows: self._bar.update(self._task, advance=rows)

    def __exit__(self, *_: object) -> None:
        self._bar.stop()
