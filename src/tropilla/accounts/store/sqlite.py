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
import threading
import time
from collections.abc import Callable, Sequence
from contextlib import suppress
from pathlib import Path
from queue import SimpleQueue
from typing import Any, TypeVar

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
        self._writing = _Thread("tropilla-writes")
        self._reading = self._writing if path == _MEMORY else _Thread("tropilla-reads")
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

    async def _in(self, thread: _Thread, work: Callable[[], _T]) -> _T:
        if thread.ended:
            raise StoreError(f"{self.url} is closed.")
        try:
            return await thread.do(work)
        except (apsw.Error, OSError) as error:
            raise StoreError(f"{self.url}: {error}") from error

    async def close(self) -> None:
        """As `Store` says."""
        for thread, name in ((self._reading, "_reader"), (self._writing, "_writer")):
            await self._in(thread, getattr(self, name).close)
        self._end()

    def _end(self) -> None:
        self._writing.end()
        self._reading.end()


class _Thread:
    """A thread that does one thing after the other.

    It is handed each by one queue, and hands back by one call: an executor does the same with two
    futures, a semaphore and a condition, which cost a row that is written alone a tenth of its CPU.
    """

    def __init__(self, name: str) -> None:
        self._given: SimpleQueue[tuple[asyncio.Future[Any], Callable[[], Any]] | None]
        self._given = SimpleQueue()
        self.ended = False
        # A process that ends without closing waits for nothing: what was committed stays.
        threading.Thread(target=self._run, name=name, daemon=True).start()

    async def do(self, work: Callable[[], _T]) -> _T:
        """What it gives, or raises. What its asker has left before it was begun is not done."""
        done: asyncio.Future[_T] = asyncio.get_running_loop().create_future()
        self._given.put((done, work))
        return await done

    def end(self) -> None:
        """Take nothing more; what was given is done."""
        self.ended = True
        self._given.put(None)

    def _run(self) -> None:
        while given := self._given.get():
            _do(*given)
            del given  # what is held of it is its asker's alone


def _do(done: asyncio.Future[_T], work: Callable[[], _T]) -> None:
    if done.cancelled():
        return
    tell: Callable[[Any], None]
    what: Any
    try:
        tell, what = done.set_result, work()
    except BaseException as error:  # noqa: BLE001 - it is its asker's
        tell, what = done.set_exception, error
    with suppress(RuntimeError):  # the loop has ended, and nobody waits
        done.get_loop().call_soon_threadsafe(_tell, done, tell, what)


def _tell(done: asyncio.Future[Any], tell: Callable[[Any], None], what: Any) -> None:
    if not done.cancelled():
        tell(what)


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
