"""Accounts in PostgreSQL, for gateways on several machines.

A connection that breaks off, or a server that restarts, costs what was asked just then and nothing
else: each question takes a connection of the pool, which makes new ones as it needs them. Nobody
waits longer than a few seconds for a server that does not answer.
"""

from __future__ import annotations

import asyncio
import time
from collections.abc import AsyncIterator, Awaitable, Callable
from contextlib import asynccontextmanager
from typing import Any, TypeVar
from urllib.parse import urlsplit

import asyncpg

from tropilla.accounts.store import Cell, Row, Statement, StoreError, migrations

_T = TypeVar("_T")
_SECONDS = 5.0
"""How long one question, or one connection, may take."""
_MOST_CONNECTIONS = 4
_LOCK = 0x74726F70
"""The number of the advisory lock for migrations: `trop`."""
_FAILURES = (asyncpg.PostgresError, asyncpg.InterfaceError, OSError, TimeoutError)


class Postgres:
    """A database that is open."""

    def __init__(self, url: str) -> None:
        self._address = url
        self.url = shown(url)
        self._pool: asyncpg.Pool[Any]

    @classmethod
    async def open(cls, url: str, *, migrate: bool) -> Postgres:
        """Connect.

        Raises:
            StoreError: that cannot be, or a newer Tropilla has changed it.
        """
        it = cls(url)
        await it._try(it._connect)
        if migrate:
            try:
                await it._try(it._migrate)
            except StoreError:
                await it.close()
                raise
        return it

    async def _connect(self) -> None:
        self._pool = await asyncpg.create_pool(
            self._address, min_size=1, max_size=_MOST_CONNECTIONS,
            timeout=_SECONDS, command_timeout=_SECONDS,
        )  # fmt: skip

    async def _migrate(self) -> None:
        async with self._transaction() as connection:
            await connection.execute("SELECT pg_advisory_xact_lock($1)", _LOCK)
            await connection.execute(migrations.TABLE)
            done = [tuple(row) for row in await connection.fetch(migrations.DONE)]
            try:
                wanting = migrations.wanting(done)
            except ValueError as error:
                raise StoreError(f"{self.url}: {error}") from None
            for one in wanting:
                for statement in one.statements:
                    await connection.execute(statement)
                await connection.execute(migrations.NOTE, one.number, one.name, time.time())

    @asynccontextmanager
    async def _transaction(self) -> AsyncIterator[Any]:
        async with self._pool.acquire(timeout=_SECONDS) as connection, connection.transaction():
            yield connection

    async def read(self, sql: str, *args: Cell) -> list[Row]:
        """As `Store` says."""

        async def work() -> list[Row]:
            async with self._pool.acquire(timeout=_SECONDS) as connection:
                return [tuple(row) for row in await connection.fetch(sql, *args)]

        return await self._try(work)

    async def write(self, *statements: Statement) -> list[int]:
        """As `Store` says."""

        async def work() -> list[int]:
            async with self._transaction() as connection:
                return [await _changes(connection, sql, rows) for sql, rows in statements]

        return await self._try(work)

    async def _try(self, work: Callable[[], Awaitable[_T]]) -> _T:
        try:
            return await work()
        except _FAILURES as error:
            why = str(error) or type(error).__name__
            raise StoreError(f"{self.url}: {why}") from error

    async def close(self) -> None:
        """As `Store` says."""
        try:
            async with asyncio.timeout(_SECONDS):
                await self._pool.close()
        except TimeoutError:
            self._pool.terminate()


async def _changes(connection: Any, sql: str, rows: Any) -> int:
    """Run a statement for each row; how many rows of the table that has changed."""
    if len(rows) > 1 and sql.startswith("INSERT") and "DO NOTHING" not in sql:
        # One round trip for all of them: each row is put in, or changes the one that is there.
        await connection.executemany(sql, rows)
        return len(rows)
    changed = 0
    for row in rows:
        told = await connection.execute(sql, *row)
        changed += int(told.rpartition(" ")[2]) if told[-1:].isdecimal() else 0
    return changed


def shown(url: str) -> str:
    """An address without what is secret in it."""
    parts = urlsplit(url)
    host = parts.netloc.rpartition("@")[2]
    user = parts.username
    return f"postgresql://{f'{user}@' if user else ''}{host}{parts.path}"
