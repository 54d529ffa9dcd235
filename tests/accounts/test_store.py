"""The store: all or nothing, there after a crash, and made by numbered steps."""

from __future__ import annotations

import asyncio
import multiprocessing
import threading
from multiprocessing.queues import Queue
from multiprocessing.synchronize import Barrier
from pathlib import Path

import apsw
import pytest

from doubles.upstream import DEADLINE
from tropilla.accounts.store import StoreError, migrations, open_store
from tropilla.accounts.store.sqlite import Sqlite

pytestmark = pytest.mark.anyio


def at(path: Path) -> str:
    return f"sqlite:///{path}/accounts.db"


async def test_what_is_written_is_all_there_or_not_at_all(store_url: str) -> None:
    store = await open_store(store_url)
    await store.write(("CREATE TABLE t (a BIGINT PRIMARY KEY, b TEXT)", [()]))
    add = "INSERT INTO t (a, b) VALUES ($1, $2)"
    assert await store.write(
        (add, [(1, "x"), (2, "y")]), ("DELETE FROM t WHERE a = $1", [(1,)])
    ) == [2, 1]
    with pytest.raises(StoreError, match=r"(?i)unique"):
        await store.write((add, [(3, "z")]), (add, [(2, "again")]))
    assert await store.read("SELECT a, b FROM t WHERE a > $1 OR a < $1", 0) == [(2, "y")]
    await store.close()


async def test_what_was_left_before_it_was_begun_is_not_done(tmp_path: Path) -> None:
    store = await Sqlite.open(str(tmp_path / "accounts.db"), migrate=True)
    await store.write(("CREATE TABLE t (a BIGINT PRIMARY KEY)", [()]))
    add = "INSERT INTO t (a) VALUES ($1)"
    begun, goes_on = threading.Event(), threading.Event()

    def long() -> None:
        begun.set()
        assert goes_on.wait(DEADLINE)
        raise apsw.Error("nobody hears it")

    held = asyncio.create_task(store._in(store._writing, long))
    left = asyncio.create_task(store.write((add, [(1,)])))
    waits = asyncio.create_task(store.write((add, [(2,)])))
    await asyncio.to_thread(begun.wait, DEADLINE)
    held.cancel()
    left.cancel()
    await asyncio.wait((held, left))
    goes_on.set()
    assert await waits == [1]
    assert await store.read("SELECT a FROM t") == [(2,)]
    await store.close()


async def test_a_file_that_is_closed_at_once_has_what_was_written_before(tmp_path: Path) -> None:
    store = await open_store(at(tmp_path))
    await store.write(("CREATE TABLE t (a BIGINT)", [()]))
    add = ("INSERT INTO t (a) VALUES ($1)", [(1,)])
    writes = [asyncio.create_task(store.write(add)) for _ in range(20)]
    await asyncio.sleep(0)
    await store.close()
    assert await asyncio.gather(*writes) == [[1]] * 20
    again = await open_store(at(tmp_path))
    assert await again.read("SELECT count(*) FROM t") == [(20,)]
    await again.close()


async def test_two_processes_may_use_one_store(store_url: str) -> None:
    one, other = await open_store(store_url), await open_store(store_url)
    await one.write(("CREATE TABLE t (a BIGINT)", [()]))
    add = ("INSERT INTO t (a) VALUES ($1)", [(1,)])
    await asyncio.gather(*(store.write(add) for _ in range(50) for store in (one, other)))
    assert await other.read("SELECT count(*) FROM t") == [(100,)]
    await one.close()
    await other.close()


async def test_migrations_are_applied_once(store_url: str) -> None:
    for _ in range(2):
        store = await open_store(store_url)
        done = await store.read(migrations.DONE)
        assert done == [(one.number, one.name) for one in migrations.known()]
        await store.close()


async def test_many_that_start_together_apply_them_once(store_url: str) -> None:
    stores = await asyncio.gather(*(open_store(store_url) for _ in range(8)))
    assert len(await stores[0].read(migrations.DONE)) == len(migrations.known())
    for store in stores:
        await store.close()


def _open_all(urls: list[str], all_at_once: Barrier, failed: Queue[list[str]]) -> None:
    async def one(url: str) -> None:
        all_at_once.wait(DEADLINE)
        await (await open_store(url)).close()

    wrong = []
    for url in urls:
        try:
            asyncio.run(one(url))
        except StoreError as error:
            wrong.append(str(error))
    failed.put(wrong)


def test_processes_that_make_a_file_at_once_wait_for_each_other(tmp_path: Path) -> None:
    urls = [f"sqlite:///{tmp_path}/{number}.db" for number in range(60)]
    many = multiprocessing.get_context("spawn")
    all_at_once, failed = many.Barrier(4), many.Queue()
    processes = [many.Process(target=_open_all, args=(urls, all_at_once, failed)) for _ in range(4)]
    for one in processes:
        one.start()
    assert [failed.get(timeout=DEADLINE) for _ in processes] == [[]] * 4
    for one in processes:
        one.join()
    failed.close()


async def test_a_store_that_a_newer_one_has_changed_is_left_alone(store_url: str) -> None:
    store = await open_store(store_url)
    await store.write((migrations.NOTE, [(9999, "later", 0.0)]))
    await store.close()
    with pytest.raises(StoreError, match=r"newer Tropilla.*9999"):
        await open_store(store_url)


def test_migrations_are_numbered_without_a_gap() -> None:
    assert [one.number for one in migrations.known()] == [*range(1, len(migrations.known()) + 1)]


@pytest.mark.parametrize("url", ["", "sqlite://", "sqlite:///", "mysql://x", "accounts.db"])
async def test_what_is_no_store_is_told_so(url: str) -> None:
    with pytest.raises(StoreError, match="no store"):
        await open_store(url)


async def test_a_file_that_is_no_store_is_told_so(tmp_path: Path) -> None:
    (tmp_path / "accounts.db").write_text("Dear diary, " * 100)
    with pytest.raises(StoreError, match="not a database"):
        await open_store(at(tmp_path))
    with pytest.raises(StoreError, match=r"accounts\.db"):
        await open_store("sqlite:////proc/none/accounts.db")


async def test_a_file_is_its_users_alone(tmp_path: Path) -> None:
    store = await open_store(at(tmp_path / "new"))
    await store.write(("CREATE TABLE t (a BIGINT)", [()]))
    assert modes(tmp_path / "new") == [0o600] * 3
    await store.close()
    # One that is there stays as its user has it.
    (tmp_path / "new" / "accounts.db").chmod(0o640)
    await (await open_store(at(tmp_path / "new"))).close()
    assert modes(tmp_path / "new") == [0o640]


def modes(folder: Path) -> list[int]:
    return [one.stat().st_mode & 0o777 for one in folder.iterdir()]


async def test_a_store_that_is_closed_says_so(store_url: str) -> None:
    store = await open_store(store_url)
    await store.close()
    with pytest.raises(StoreError, match="closed"):
        await store.read("SELECT 1")


def test_the_sqlite_is_one_that_two_may_write() -> None:
    assert apsw.sqlite_lib_version() >= "3.51.3"
