"""The responses that are kept, so that a client can go on from one by its id.

They are in SQLite, in memory or in a file. A response belongs to the key that made it: for anybody
else it is not there. One that was not used for the time to live is forgotten, and when there are
too many bytes, those that were not used for longest go first; going on from a response uses all
that led to it. What has gone is not there: a conversation never goes on without its beginning.

SQLite works in a thread: nothing here makes others wait.
"""

from __future__ import annotations

import asyncio
import time
from collections.abc import Callable
from contextlib import closing
from threading import Lock
from typing import TYPE_CHECKING, TypeVar

import msgspec

from tropilla import log
from tropilla.config import ResponsesConfig
from tropilla.ir import JsonObject, Problem, ProblemError, Value

if TYPE_CHECKING:
    import sqlite3

_T = TypeVar("_T")
_BROKEN = Problem(
    kind="unavailable",
    message="The store of responses does not work; the log of Tropilla tells why.",
    code="store_unavailable",
)
_SCHEMA = """
    CREATE TABLE IF NOT EXISTS responses (
        id TEXT PRIMARY KEY,
        owner TEXT NOT NULL,
        previous TEXT,
        used REAL NOT NULL,
        size INTEGER NOT NULL,
        items BLOB NOT NULL,
        response BLOB NOT NULL
    ) WITHOUT ROWID;
    CREATE INDEX IF NOT EXISTS by_use ON responses (used, size);
"""
_CHAIN = """
    WITH RECURSIVE chain (id, previous, depth) AS (
        SELECT id, previous, 0 FROM responses WHERE id = ?1 AND owner = ?2 AND used > ?3
        UNION ALL
        SELECT r.id, r.previous, depth + 1 FROM responses r
        JOIN chain ON r.id = chain.previous AND r.owner = ?2 AND r.used > ?3
    )
"""


class Kept(Value, frozen=True, kw_only=True):
    """One response: what it said, and the items that were its own input."""

    id: str
    owner: str
    previous: str | None = None
    items: tuple[JsonObject, ...] = ()
    response: JsonObject


class Store:
    """Keeps responses; `clock` tells seconds since 1970."""

    def __init__(self, config: ResponsesConfig, clock: Callable[[], float] = time.time) -> None:
        self._config = config
        self._clock = clock
        self._lock = Lock()
        self._database: sqlite3.Connection | None = None

    async def keep(self, kept: Kept) -> None:
        """Keep a response; one that is larger than all that may be kept is not.

        Raises:
            ProblemError: it cannot be written; so it is with all that follows.
        """
        await self._do(lambda database: self._keep(database, kept))

    async def find(self, id_: str, owner: str) -> Kept | None:
        """A response of this owner."""
        return await self._do(lambda database: self._find(database, id_, owner))

    async def forget(self, id_: str, owner: str) -> bool:
        """Forget a response; whether it was there."""
        return await self._do(lambda database: self._forget(database, id_, owner))

    async def chain(self, id_: str, owner: str) -> tuple[list[Kept], str | None]:
        """A response and all that led to it, the first one first; and what of that is missing."""
        return await self._do(lambda database: self._lead(database, id_, owner))

    def close(self) -> None:
        """Let go of the file; what is in memory alone is lost."""
        with self._lock:
            database, self._database = self._database, None
            if database is not None:
                database.close()

    async def _do(self, work: Callable[[sqlite3.Connection], _T]) -> _T:
        import sqlite3  # noqa: PLC0415 - most gateways keep nothing

        def alone() -> _T:
            with self._lock:
                if self._database is None:
                    self._database = self._open()
                with self._database:
                    return work(self._database)

        try:
            return await asyncio.to_thread(alone)
        except sqlite3.Error as error:
            why = "The store of responses does not work: {error}"
            log.error("store.failed", why, error=str(error))
            raise ProblemError(_BROKEN) from error

    def _open(self) -> sqlite3.Connection:
        import sqlite3  # noqa: PLC0415 - as above

        path = ":memory:" if self._config.store == "memory" else self._config.store
        database = sqlite3.connect(path, check_same_thread=False)
        try:
            # Readers and the writer of another gateway do not wait for each other.
            database.execute("PRAGMA journal_mode = WAL").close()
            database.execute("PRAGMA synchronous = NORMAL").close()
            database.executescript(_SCHEMA).close()
        except sqlite3.Error:
            database.close()
            raise
        return database

    def _alive(self) -> float:
        """What was last used until then is forgotten."""
        return self._clock() - self._config.ttl

    def _keep(self, database: sqlite3.Connection, kept: Kept) -> None:
        items, response = msgspec.json.encode(kept.items), msgspec.json.encode(kept.response)
        size = len(items) + len(response)
        database.execute("DELETE FROM responses WHERE used <= ?", (self._alive(),)).close()
        if size > self._config.max_bytes:
            return
        row = (kept.id, kept.owner, kept.previous, self._clock(), size, items, response)
        database.execute("INSERT OR REPLACE INTO responses VALUES (?,?,?,?,?,?,?)", row).close()
        with closing(database.execute("SELECT sum(size) FROM responses")) as told:
            over = told.fetchone()[0] - self._config.max_bytes
        if over <= 0:
            return
        with closing(database.execute("SELECT id, size FROM responses ORDER BY used, id")) as rows:
            gone = []
            for id_, freed in rows:
                if over <= 0:
                    break
                gone.append((id_,))
                over -= freed
        database.executemany("DELETE FROM responses WHERE id = ?", gone).close()

    def _find(self, database: sqlite3.Connection, id_: str, owner: str) -> Kept | None:
        found = self._rows(database, "id = ?1 AND owner = ?2 AND used > ?3", id_, owner)
        return found[0] if found else None

    def _rows(
        self, database: sqlite3.Connection, which: str, id_: str, owner: str, head: str = ""
    ) -> list[Kept]:
        asked = f"{head} SELECT id, owner, previous, items, response FROM responses WHERE {which}"  # noqa: S608 - constants
        with closing(database.execute(asked, (id_, owner, self._alive()))) as rows:
            return [
                Kept(
                    id=row[0],
                    owner=row[1],
                    previous=row[2],
                    items=tuple(msgspec.json.decode(row[3])),
                    response=msgspec.json.decode(row[4]),
                )
                for row in rows
            ]

    def _forget(self, database: sqlite3.Connection, id_: str, owner: str) -> bool:
        row = (id_, owner, self._alive())
        asked = "DELETE FROM responses WHERE id = ? AND owner = ? AND used > ?"
        with closing(database.execute(asked, row)) as done:
            return done.rowcount > 0

    def _lead(
        self, database: sqlite3.Connection, id_: str, owner: str
    ) -> tuple[list[Kept], str | None]:
        found = {
            kept.id: kept
            for kept in self._rows(database, "id IN (SELECT id FROM chain)", id_, owner, _CHAIN)
        }
        led: list[Kept] = []
        at: str | None = id_
        while at is not None and at in found:
            led.append(found.pop(at))
            at = led[-1].previous
        if at is None:
            now = self._clock()
            used = [(now, kept.id) for kept in led]
            database.executemany("UPDATE responses SET used = ? WHERE id = ?", used).close()
        return led[::-1], at
