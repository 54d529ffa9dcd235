"""Accounts in a file of SQLite.

A thread writes and another one reads, so that a long question does not hold up the ledger. The
file is in WAL mode: what was committed is there after a crash of the process; a crash of the whole
machine may take the last moments, and nothing else. Several processes may use one file: the
SQLite that comes with apsw has not the fault by which two writers could spoil it (fixed in 3.51.3).
A file that is made here is its user's alone: what clients said may be in it.

What is in memory has one connection, and one thread.
"""

from __future__ import annotations

import asyncio
import time
from collections.abc import Callable, Sequence
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path
from typing import TypeVar

import apsw

from tropilla.accounts.store import Cell, Row, Statement, StoreError, migrations

_T = TypeVar("_T")

_SOUND = (3, 51, 3)
_MEMORY = ":memory:"
_BUSY_MS = 10_000
"""How long another process may write."""
_PAUSE_SECONDS = 0.005


class Sqlite:
    """A file that is open."""

    def __init__(self, path: str) -> None:
        self.url = f"sqlite:///{path}"
        self._path = path
        self._writing = ThreadPoolExecutor(1, "tropilla-writes")
        self._reading = (
            self._writing if path == _MEMORY else ThreadPoolExecutor(1, "tropilla-reads")
        )
        self._writer: apsw.Connection
        self._reader: apsw.Connection

    @classmethod
    async def open(cls, path: str, *, migrate: bool) -> Sqlite:
        """Open a file, or make it.

        Raises:
            StoreError: it cannot be.
        """
        if tuple(map(int, apsw.sqlite_lib_version().split("."))) < _SOUND:
            raise StoreError(
                f"This SQLite ({apsw.sqlite_lib_version()}) can spoil a file that two processes "
                "write. Install apsw from its wheel: it brings a newer one."
            )
        it = cls(path)
        try:
            await it._in(it._writing, lambda: it._open(migrate=migrate))
        except StoreError:
            it._end()
            raise
        return it

    def _open(self, *, migrate: bool) -> None:
        if self._path != _MEMORY:
            _make(Path(self._path))
        self._writer = _connected(self._path)
        if migrate:
            self._migrate()
        self._reader = self._writer if self._path == _MEMORY else _connected(self._path)

    def _migrate(self) -> None:
        self._writer.execute("BEGIN IMMEDIATE")
        with _Transaction(self._writer):
            self._writer.execute(migrations.TABLE)
            try:
                wanting = migrations.wanting(list(self._writer.execute(migrations.DONE)))
            except ValueError as error:
                raise StoreError(f"{self.url}: {error}") from None
            for one in wanting:
                for statement in one.statements:
                    self._writer.execute(statement)
                self._writer.execute(migrations.NOTE, (one.number, one.name, time.time()))

    async def read(self, sql: str, *args: Cell) -> list[Row]:
        """As `Store` says."""
        return await self._in(self._reading, lambda: list(self._reader.execute(sql, args)))

    async def write(self, *statements: Statement) -> list[int]:
        """As `Store` says."""
        return await self._in(self._writing, lambda: self._write(statements))

    def _write(self, statements: Sequence[Statement]) -> list[int]:
        changed = []
        self._writer.execute("BEGIN IMMEDIATE")
        with _Transaction(self._writer):
            for sql, rows in statements:
                before = self._writer.total_changes()
                self._writer.executemany(sql, rows)
                changed.append(self._writer.total_changes() - before)
        return changed

    async def _in(self, thread: ThreadPoolExecutor, work: Callable[[], _T]) -> _T:
        def told() -> _T:
            try:
                return work()
            except (apsw.Error, OSError) as error:
                raise StoreError(f"{self.url}: {error}") from error

        try:
            return await asyncio.get_running_loop().run_in_executor(thread, told)
        except RuntimeError as error:
            raise StoreError(f"{self.url} is closed.") from error

    async def close(self) -> None:
        """As `Store` says."""
        for thread, name in ((self._reading, "_reader"), (self._writing, "_writer")):
            await self._in(thread, getattr(self, name).close)
        self._end()

    def _end(self) -> None:
        self._writing.shutdown(wait=False)
        self._reading.shutdown(wait=False)


class _Transaction:
    """What was begun is committed, or undone where something goes wrong."""

    def __init__(self, connection: apsw.Connection) -> None:
        self._connection = connection

    def __enter__(self) -> None:
        pass

    def __exit__(self, kind: type[BaseException] | None, *_: object) -> None:
        if kind is None:
            try:
                self._connection.execute("COMMIT")
            except apsw.Error:
                self._undo()
                raise
        else:
            self._undo()

    def _undo(self) -> None:
        if self._connection.in_transaction:
            self._connection.execute("ROLLBACK")


def _make(path: Path) -> None:
    path.parent.mkdir(parents=True, exist_ok=True)
    if not path.exists():
        path.touch(mode=0o600)


def _connected(path: str) -> apsw.Connection:
    connection = apsw.Connection(path)
    connection.set_busy_timeout(_BUSY_MS)
    until = time.monotonic() + _BUSY_MS / 1000
    while True:
        try:
            connection.execute("PRAGMA journal_mode = WAL")
            break
        except apsw.BusyError:
            # Several who open a new file at once: here SQLite lets nobody wait for the others.
            if time.monotonic() > until:
                raise
            time.sleep(_PAUSE_SECONDS)
    connection.execute("PRAGMA synchronous = NORMAL")
    return connection
