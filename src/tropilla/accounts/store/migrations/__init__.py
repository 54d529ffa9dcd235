"""The numbered changes that make the tables: `NNNN_name.sql`, applied in order, each once.

A file that was released never changes: what is wrong in it, a later one mends. Statements end with
a semicolon at the end of a line.
"""

from __future__ import annotations

import re
from functools import cache
from importlib.resources import files
from typing import NamedTuple

TABLE = """
CREATE TABLE IF NOT EXISTS migrations (
    number BIGINT PRIMARY KEY,
    name TEXT NOT NULL,
    at DOUBLE PRECISION NOT NULL
)
"""
DONE = "SELECT number, name FROM migrations ORDER BY number"
NOTE = "INSERT INTO migrations (number, name, at) VALUES ($1, $2, $3)"

_NAME = re.compile(r"(\d{4})_(\w+)\.sql")


class Migration(NamedTuple):
    """One change."""

    number: int
    name: str
    statements: tuple[str, ...]


@cache
def known() -> tuple[Migration, ...]:
    """All that this Tropilla knows, in their order."""
    found = []
    for file in files(__name__).iterdir():
        if name := _NAME.fullmatch(file.name):
            parts = re.split(r";[ \t]*\n", file.read_text(encoding="utf-8") + "\n")
            statements = tuple(part.strip() for part in parts if part.strip())
            found.append(Migration(int(name[1]), name[2], statements))
    return tuple(sorted(found))


def wanting(done: list[tuple[int, str]]) -> list[Migration]:
    """Those that are still to be applied.

    Raises:
        ValueError: the store has some that are not known here.
    """
    numbers = {number for number, _ in done}
    newer = sorted(numbers - {one.number for one in known()})
    if newer:
        last = known()[-1].number
        raise ValueError(
            f"A newer Tropilla has changed this store (to {newer[-1]}; this one knows {last}): "
            "use that one, or an older copy of the store."
        )
    return [one for one in known() if one.number not in numbers]


class Table(NamedTuple):
    """A table as all migrations leave it."""

    name: str
    columns: tuple[str, ...]
    key: tuple[str, ...]
    """The columns of its primary key."""


_CREATE = re.compile(r"CREATE TABLE (\w+) \((.*)\)", re.DOTALL)
_ADD = re.compile(r"ALTER TABLE (\w+) ADD COLUMN (\w+) ")
_COLUMN = re.compile(r"\s*(\w+) (?:TEXT|BIGINT|DOUBLE PRECISION|BYTEA)\b([^,\n]*)")
_KEY = re.compile(r"\s*PRIMARY KEY \(([^)]*)\)")


@cache
def tables() -> tuple[Table, ...]:
    """All tables, in the order in which they were made."""
    found: dict[str, Table] = {}
    for statement in (one for migration in known() for one in migration.statements):
        if made := _CREATE.search(statement):
            columns, key = [], []
            for line in made[2].splitlines():
                if column := _COLUMN.match(line):
                    columns.append(column[1])
                    key += [column[1]] * ("PRIMARY KEY" in column[2])
                elif told := _KEY.match(line):
                    key = [name.strip() for name in told[1].split(",")]
            found[made[1]] = Table(made[1], tuple(columns), tuple(key))
        elif added := _ADD.search(statement):
            table = found[added[1]]
            found[added[1]] = table._replace(columns=(*table.columns, added[2]))
    return tuple(found.values())
