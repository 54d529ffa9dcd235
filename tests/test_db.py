"""`tropilla db`: a store is moved without losing a row, and never by halves without a word."""

from __future__ import annotations

import asyncio
from pathlib import Path
from typing import Any

import pytest
from click.testing import CliRunner, Result

from doubles import databases
from test_ledger import record
from tropilla.accounts import usage
from tropilla.accounts.ledger import Ledger
from tropilla.accounts.spool import Spool
from tropilla.accounts.store import migrations, moving, open_store
from tropilla.cli import main


def db(*arguments: str) -> Result:
    return CliRunner().invoke(main, ["db", *arguments])


def fill(url: str, folder: Path, count: int) -> None:
    async def work() -> None:
        store = await open_store(url)
        ledger = Ledger(store, Spool(folder / "spool", 10**6))
        many = (record(f"r{number}", at=3600.0 * number) for number in range(count))
        await asyncio.gather(*(ledger.enter(one) for one in many))
        await ledger.close()
        await store.close()

    asyncio.run(work())


def told(url: str) -> tuple[Any, Any]:
    async def work() -> tuple[Any, Any]:
        store = await open_store(url)
        by: list[usage.By] = ["hour", "key", "model"]
        found = await usage.rows(store, most=10_000), await usage.sums(store, by)
        await store.close()
        return found

    return asyncio.run(work())


def test_an_account_moves_from_sqlite_to_postgresql(
    tmp_path: Path, postgres: databases.Postgres, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(moving, "_PAGE", 7)
    one, other, file = f"sqlite:///{tmp_path}/a.db", postgres.database(), str(tmp_path / "all")
    fill(one, tmp_path, 50)
    assert db("export", "--store", one, file).exit_code == 0
    done = db("import", "--store", other, file)
    assert done.exit_code == 0, done.output
    assert "50 requests" in done.output
    assert told(other) == told(one)
    again = db("import", "--store", other, file)
    assert again.exit_code == 1
    assert "is not empty" in again.output


@pytest.mark.parametrize("cut", ["end", "middle", "start", "line"])
def test_half_an_export_is_no_export(tmp_path: Path, cut: str) -> None:
    one, file = f"sqlite:///{tmp_path}/a.db", tmp_path / "all"
    fill(one, tmp_path, 5)
    db("export", "--store", one, str(file))
    lines = file.read_bytes().splitlines(keepends=True)
    kept = {
        "end": lines[:-1], "middle": lines[:3] + lines[4:], "start": lines[1:],
        "line": [*lines[:-2], lines[-2][:9]],
    }[cut]  # fmt: skip
    file.write_bytes(b"".join(kept))
    done = db("import", "--store", f"sqlite:///{tmp_path}/b.db", str(file))
    assert done.exit_code == 1
    assert isinstance(done.exception, SystemExit)


def test_the_tables_are_known_from_their_migrations(tmp_path: Path) -> None:
    async def work() -> None:
        store = await open_store(f"sqlite:///{tmp_path}/a.db")
        for table in migrations.tables():
            found = await store.read("SELECT name, pk FROM pragma_table_info($1)", table.name)
            assert tuple(name for name, _ in found) == table.columns
            assert {name for name, place in found if place} == set(table.key)
        names = await store.read("SELECT name FROM sqlite_master WHERE type = 'table'")
        known = {table.name for table in migrations.tables()}
        assert {name for (name,) in names} == known | {"migrations"}
        await store.close()

    asyncio.run(work())


def test_status_says_what_is_to_be_done(tmp_path: Path) -> None:
    url = f"sqlite:///{tmp_path}/a.db"
    assert "still to be made" in db("status", "--store", url).output
    assert "up to date" in db("migrate", "--store", url).output
    shown = db("status", "--store", url).output
    assert "still to be made" not in shown
    assert "requests: 0 rows" in shown


def test_a_password_is_not_shown() -> None:
    done = db("status", "--store", "postgresql://me:hunter2@127.0.0.1:1/x")
    assert done.exit_code == 1
    assert "hunter2" not in done.output
    assert "postgresql://me@127.0.0.1:1/x" in done.output
