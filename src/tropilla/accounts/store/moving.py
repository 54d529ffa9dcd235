"""A whole store as lines of JSON, and back: from SQLite to PostgreSQL, say, without losing a row.

The first line says what it is; each table has a line with its columns, then one for each row; the
last line counts them. A file that was cut is refused before the last of it is taken for the end.
"""

from __future__ import annotations

import base64
from collections.abc import AsyncIterator, Callable, Iterable
from typing import Any, Final

import msgspec

from tropilla import __version__
from tropilla.accounts.store import Cell, Store, StoreError, migrations
from tropilla.accounts.store.migrations import Table

_FORMAT: Final = 1
_PAGE = 5000
_FIRST = 50
_MUCH = 4 * 1024 * 1024
"""Rows that are moved at once, in the beginning and at most; and bytes, after which they are fewer:
a row may have all that somebody said."""


def _nothing(_: int) -> None:
    """Nobody watches."""


async def exported(store: Store, on_rows: Callable[[int], None] = _nothing) -> AsyncIterator[bytes]:
    """The lines; `on_rows` hears how many rows were told more."""
    last = migrations.known()[-1].number
    yield _line({"tropilla": __version__, "format": _FORMAT, "migrations": last})
    counts: dict[str, int] = {}
    for table in migrations.tables():
        yield _line({"table": table.name, "columns": table.columns})
        counts[table.name] = 0
        async for rows, lines in _pages(store, table):
            yield lines
            counts[table.name] += rows
            on_rows(rows)
    yield _line({"rows": counts})


async def _pages(store: Store, table: Table) -> AsyncIterator[tuple[int, bytes]]:
    """All rows by their primary key, some at a time: how many, and their lines."""
    names, key = ", ".join(table.columns), ", ".join(table.key)
    places = [table.columns.index(name) for name in table.key]
    after: list[Cell] = []
    most = min(_FIRST, _PAGE)
    while True:
        marks = ", ".join(f"${number}" for number in range(1, len(after) + 1))
        where = f" WHERE ({key}) > ({marks})" if after else ""
        asked = f"SELECT {names} FROM {table.name}{where} ORDER BY {key} LIMIT {most}"  # noqa: S608 - names of our own
        rows = await store.read(asked, *after)
        lines = b"".join(_line([_said(cell) for cell in row]) for row in rows)
        if rows:
            yield len(rows), lines
        if len(rows) < most:
            return
        most = min(most * 2, _PAGE) if len(lines) < _MUCH else max(most // 4, 1)
        after = [rows[-1][place] for place in places]


async def imported(
    store: Store, lines: Iterable[bytes], on_rows: Callable[[int], None] = _nothing
) -> dict[str, int]:
    """Take all rows into an empty store; how many there were, by table.

    Raises:
        StoreError: the store is not empty, or these are no such lines, or not all of them. What was
            taken until then is in the store: begin again with an empty one.
    """
    for table in migrations.tables():
        asked = f"SELECT count(*) FROM {table.name}"  # noqa: S608 - a name of our own
        if (await store.read(asked))[0][0]:
            raise StoreError(f"{store.url} is not empty: {table.name} has rows.")
    taking = _Taking(store, on_rows)
    for number, line in enumerate(lines, 1):
        await taking.take(line, number)
    await taking.end()
    return taking.counts


class _Taking:
    """An import that is going on."""

    def __init__(self, store: Store, on_rows: Callable[[int], None]) -> None:
        self._store = store
        self._on_rows = on_rows
        self._known = {table.name: table for table in migrations.tables()}
        self._insert = ""
        self._table = ""
        self._page: list[tuple[Cell, ...]] = []
        self._size = 0
        self._told: dict[str, int] | None = None
        self.counts: dict[str, int] = {}

    async def take(self, line: bytes, number: int) -> None:
        """Take one line."""
        self._size += len(line)
        match _read(line, number):
            case {"format": format_, "migrations": int(last)} if number == 1:
                if format_ != _FORMAT or last > migrations.known()[-1].number:
                    raise StoreError("A newer Tropilla has written this: use that one.")
            case _ if number == 1:
                raise StoreError("This is no export of Tropilla: its first line says nothing.")
            case {"table": str(name), "columns": [*columns]}:
                await self._put()
                self._begin(name, columns, number)
            case [*cells] if self._insert:
                self._page.append(tuple(_heard(cell) for cell in cells))
                self.counts[self._table] += 1
                if len(self._page) == _PAGE or self._size > _MUCH:
                    await self._put()
            case {"rows": dict(told)}:
                await self._put()
                self._told = told
            case _:
                raise StoreError(f"Line {number} is nothing that an export has.")

    def _begin(self, name: str, columns: list[str], number: int) -> None:
        if name not in self._known or not set(columns) <= set(self._known[name].columns):
            raise StoreError(f"Line {number}: this Tropilla has no such table.")
        marks = ", ".join(f"${place}" for place in range(1, len(columns) + 1))
        self._insert = f"INSERT INTO {name} ({', '.join(columns)}) VALUES ({marks})"  # noqa: S608 - checked
        self._table, self.counts[name] = name, 0

    async def _put(self) -> None:
        if self._page:
            await self._store.write((self._insert, self._page))
            self._on_rows(len(self._page))
        self._page, self._size = [], 0

    async def end(self) -> None:
        """See that all is there."""
        if self._told is None:
            raise StoreError("This export was cut: its last line is missing.")
        if self._told != self.counts:
            raise StoreError(f"There should be {self._told} rows, and there are {self.counts}.")
        for name, count in self.counts.items():
            asked = f"SELECT count(*) FROM {name}"  # noqa: S608 - checked when it began
            if (await self._store.read(asked))[0][0] != count:
                raise StoreError(f"{name} should have {count} rows, and has not.")


def _line(value: Any) -> bytes:
    return msgspec.json.encode(value) + b"\n"


def _read(line: bytes, number: int) -> Any:
    try:
        return msgspec.json.decode(line)
    except msgspec.DecodeError:
        raise StoreError(f"Line {number} is no JSON: the export was cut, or changed.") from None


def _said(cell: Cell) -> Any:
    return {"base64": base64.b64encode(cell).decode()} if isinstance(cell, bytes) else cell


def _heard(cell: Any) -> Cell:
    match cell:
        case {"base64": str(text)}:
            return base64.b64decode(text)
        case None | str() | int() | float():
            return cell
    raise StoreError("A cell of this export is nothing that a store has.")
