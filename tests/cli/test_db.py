"""`tropilla db`: a store is moved without losing a row, and never by halves without a word."""

from __future__ import annotations

import asyncio
from pathlib import Path
from typing import Any

import pytest
from click.testing import CliRunner, Result

from accounts.test_ledger import record
from doubles import databases
from tropilla.accounts import usage
from tropilla.accounts.ledger import Ledger
from tropilla.accounts.spool import Spool
from tropilla.accounts.store import migrations, moving, open_store
from tropilla.accounts.stored import Keeper, Kept
from tropilla.cli import main
from tropilla.config import ResponsesConfig


def db(*arguments: str) -> Result:
    return CliRunner().invoke(main, ["db", *arguments])


def fill(url: str, folder: Path, count: int) -> None:
    async def work() -> None:
        store = await open_store(url)
        ledger = Ledger(store, Spool(folder / "spool", 10**6))
        many = (record(f"r{number}", at=3600.0 * number) for number in range(count))
        await asyncio.gather(*(ledger.enter(one) for one in many))
        await ledger.close()
        keeper = Keeper(ResponsesConfig(), store, lambda: 1000.0)
        for number in range(count):
            previous = f"resp_{number - 1}" if number else None
            await keeper.keep(
                Kept(id=f"resp_{number}", owner="o", previous=previous, response={"n": "né\0"})
            )
        await store.close()

    asyncio.run(work())


def told(url: str) -> tuple[Any, Any]:
    async def work() -> tuple[Any, Any]:
        store = await open_store(url)
        by: list[usage.By] = ["hour", "key", "model"]
        rows = await usage.rows(store, most=10_000), await usage.sums(store, by)
        keeper = Keeper(ResponsesConfig(), store, lambda: 1000.0)
        chain = await keeper.chain("resp_49", "o")
        await store.close()
        return rows, chain

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
    assert "50 responses" in done.output
    assert told(other) == told(one)
    _, (led, missing) = told(other)
    assert (len(led), missing) == (50, None)
    again = db("import", "--store", other, file)
    assert again.exit_code == 1
    assert "is not empty" in again.output


def test_what_is_large_is_moved_in_small_parts(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(moving, "_MUCH", 1000)
    one, other = (f"sqlite:///{tmp_path}/{name}" for name in ("a.db", "b.db"))
    fill(one, tmp_path, 150)
    moved: dict[str, list[int]] = {"out": [], "in": []}

    async def work() -> None:
        store = await open_store(one)
        lines = [part async for part in moving.exported(store, moved["out"].append)]
        await store.close()
        store = await open_store(other)
        whole = b"".join(lines).splitlines(keepends=True)
        await moving.imported(store, whole, moved["in"].append)
        await store.close()

    asyncio.run(work())
    assert told(other) == told(one)
    for parts in moved.values():
        assert sum(parts) == 450
        assert len(parts) > 20
        assert max(parts) <= 50


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
