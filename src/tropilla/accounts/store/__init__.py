"""Where accounts are kept: a file of SQLite, or PostgreSQL, by one small protocol.

The same SQL runs on both: parameters are `$1`, `$2`, ... in the order in which they first stand,
types are those that both take (TEXT, BIGINT, DOUBLE PRECISION, BYTEA), and an `INSERT` says what it
does `ON CONFLICT`. What `write` has returned from is there after a crash of the process. The tables
are made by numbered migrations, under a lock; a store that a newer Tropilla has changed is left
alone.
"""

from __future__ import annotations

import asyncio
from collections.abc import Sequence
from typing import Any, Protocol, TypeAlias

Cell: TypeAlias = str | int | float | bytes | None
Row: TypeAlias = tuple[Any, ...]
Statement: TypeAlias = tuple[str, Sequence[Sequence[Cell]]]
"""What is done, once for each of these rows of parameters."""


MEMORY = "sqlite:///:memory:"
"""A store that ends with its process."""


class StoreError(Exception):
    """The store cannot be used; the message says why, and what to do where that is known."""


class Store(Protocol):
    """A store that is open. Everything may raise `StoreError`."""

    @property
    def url(self) -> str:
        """Where it is, without what is secret in that."""

    async def read(self, sql: str, *args: Cell) -> list[Row]:
        """The rows that a query gives."""

    async def write(self, *statements: Statement) -> list[int]:
        """Do all of it or nothing; how many rows each statement has changed.

        Once this returns it stays. Where it raises, nobody knows: what is said again must not count
        twice.
        """

    async def close(self) -> None:
        """Let go of it, once what was begun is done."""


async def open_store(url: str, *, migrate: bool = True) -> Store:
    """Open a store; `migrate` brings its tables up to date first.

    Raises:
        StoreError: it cannot be opened, or a newer Tropilla has changed it.
    """
    scheme, _, rest = url.partition("://")
    match scheme:
        case "sqlite" if len(rest) > 1:
            from tropilla.accounts.store.sqlite import Sqlite  # noqa: PLC0415 - only who keeps accounts

            return await Sqlite.open(rest.removeprefix("/"), migrate=migrate)
        case "postgresql" | "postgres" if rest:
            try:
                from tropilla.accounts.store.postgres import Postgres  # noqa: PLC0415 - as above
            except ImportError:
                raise StoreError(
                    "PostgreSQL wants asyncpg: pip install 'tropilla[postgres]'."
                ) from None

            return await Postgres.open(url, migrate=migrate)
    raise StoreError(f"'{url}' is no store: sqlite:///PATH and postgresql://... are.")


class Later:
    """A store that is opened when it is needed, and again where that went wrong."""

    def __init__(self, url: str = MEMORY) -> None:
        self.url = url
        self._store: Store | None = None
        self._opening = asyncio.Lock()

    async def read(self, sql: str, *args: Cell) -> list[Row]:
        """As `Store` says."""
        return await (await self._opened()).read(sql, *args)

    async def write(self, *statements: Statement) -> list[int]:
        """As `Store` says."""
        return await (await self._opened()).write(*statements)

    async def _opened(self) -> Store:
        if self._store is None:
            async with self._opening:
                if self._store is None:
                    self._store = await open_store(self.url)
        return self._store

    async def close(self) -> None:
        """As `Store` says; what is in memory alone is lost."""
        store, self._store = self._store, None
        if store is not None:
            await store.close()
