"""The responses that are kept, so that a client can go on from one by its id.

They are in the store of the accounts, or in one of their own: all gateways of a store have the
same. A response belongs to the key that made it: for anybody else it is not there. One that was not
used for the time to live is forgotten, and when there are too many bytes, those that were not used
for longest go first; going on from a response uses all that led to it. What has gone is not there:
a conversation never goes on without its beginning.

What was kept is there after a crash of the process. How many bytes there are is looked after each
time that a part of them was kept: until then there may be so much more.
"""

from __future__ import annotations

import asyncio
import time
from collections.abc import Callable
from contextlib import suppress
from typing import Final

import msgspec

from tropilla import log
from tropilla.accounts.store import MEMORY, Later, Row, Statement, Store, StoreError
from tropilla.config import ResponsesConfig
from tropilla.ir import JsonObject, Problem, ProblemError, Value

_BROKEN = Problem(
    kind="unavailable",
    message="The store of responses does not work; the log of Tropilla tells why.",
    code="store_unavailable",
    retry_after=5,
)
_PARTS = 64
_LOOK_SECONDS = 60.0
"""It is looked what has to go after such a part of all bytes was kept, or after so long."""
_MUCH = 256 * 1024
"""Characters to decode, after which others have their turn."""

_NAMES: Final = "id, owner, previous, items, response"
_ALIVE: Final = "id = $1 AND owner = $2 AND used > $3"
_KEEP = (
    "INSERT INTO responses (id, owner, previous, used, size, items, response) "
    "VALUES ($1, $2, $3, $4, $5, $6, $7)"
)
_FIND = f"SELECT {_NAMES} FROM responses WHERE {_ALIVE}"  # noqa: S608 - constants
_REMOVE = "DELETE FROM responses WHERE id = $1"
_FORGET = f"DELETE FROM responses WHERE {_ALIVE}"  # noqa: S608 - constants
_CHAIN = f"""
    WITH RECURSIVE chain (id, previous) AS (
        SELECT id, previous FROM responses WHERE {_ALIVE}
        UNION
        SELECT r.id, r.previous FROM responses r
        JOIN chain ON r.id = chain.previous AND r.owner = $2 AND r.used > $3
    )
"""  # noqa: S608 - constants
_LEAD = f"{_CHAIN} SELECT {_NAMES} FROM responses WHERE id IN (SELECT id FROM chain)"  # noqa: S608 - constants
_USE = f"{_CHAIN} UPDATE responses SET used = $4 WHERE id IN (SELECT id FROM chain)"  # noqa: S608 - constants
_EXPIRED = "DELETE FROM responses WHERE used <= $1"
# The first of those that were not used for so long that there is no place for them: counted from
# the others, so that two gateways that look at the same time do not make room twice.
_BEYOND = """
    SELECT used, id FROM (
        SELECT used, id, SUM(size) OVER (ORDER BY used DESC, id DESC) AS upto FROM responses
    ) AS r WHERE upto > CAST($1 AS BIGINT) ORDER BY used DESC, id DESC LIMIT 1
"""
_UP_TO = "DELETE FROM responses WHERE (used, id) <= ($1, $2)"


class Kept(Value, frozen=True, kw_only=True):
    """One response: what it said, and the items that were its own input."""

    id: str
    owner: str
    previous: str | None = None
    items: tuple[JsonObject, ...] = ()
    response: JsonObject


class Keeper:
    """Keeps responses in a store, or in one of its own by its address.

    `clock` tells seconds since 1970. What cannot be done raises `ProblemError`.
    """

    def __init__(
        self,
        config: ResponsesConfig,
        where: Store | str = MEMORY,
        clock: Callable[[], float] = time.time,
    ) -> None:
        self._config = config
        self._clock = clock
        self._own = isinstance(where, str)
        self._store: Store = Later(where) if isinstance(where, str) else where
        self._fresh = 0
        """Bytes that were kept since it was looked what has to go."""
        self._looked = 0.0

    async def works(self, id_: str) -> None:
        """See whether a response of this id can be kept now.

        One is kept, and gone before anybody sees it: a store that can be read does not take
        everything, and may be full.
        """
        row = (id_, "", None, self._clock(), 0, "[]", "{}")
        await self._write((_KEEP, [row]), (_REMOVE, [(id_,)]))

    async def keep(self, kept: Kept) -> bool:
        """Keep a response; whether it is: not one that is larger than all that may be kept."""
        items = msgspec.json.encode(kept.items)
        response = msgspec.json.encode(kept.response)
        now, size = self._clock(), len(items) + len(response)
        if size > self._config.max_bytes:
            return False
        row = (kept.id, kept.owner, kept.previous, now, size, items.decode(), response.decode())
        await self._write((_KEEP, [row]))
        self._fresh += size
        part = self._config.max_bytes // _PARTS
        if self._fresh > part or not 0 <= now - self._looked < _LOOK_SECONDS:
            self._fresh, self._looked = 0, now
            with suppress(ProblemError):  # it is kept, whatever has to go
                await self._look()
        return True

    async def _look(self) -> None:
        """Let go of what has to go."""
        await self._write((_EXPIRED, [(self._alive(),)]))
        for first in await self._read(_BEYOND, self._config.max_bytes):
            await self._write((_UP_TO, [first]))

    async def find(self, id_: str, owner: str) -> Kept | None:
        """A response of this owner."""
        if not _is_id(id_):
            return None
        found = await _told(await self._read(_FIND, id_, owner, self._alive()))
        return found[0] if found else None

    async def forget(self, id_: str, owner: str) -> bool:
        """Forget a response; whether it was there."""
        return _is_id(id_) and await self._write((_FORGET, [(id_, owner, self._alive())])) > 0

    async def chain(self, id_: str, owner: str) -> tuple[list[Kept], str | None]:
        """A response and all that led to it, the first one first; and what of that is missing."""
        if not _is_id(id_):
            return [], id_
        asked = (id_, owner, self._alive())
        found = {kept.id: kept for kept in await _told(await self._read(_LEAD, *asked))}
        led: list[Kept] = []
        at: str | None = id_
        while at is not None and at in found:
            led.append(found.pop(at))
            at = led[-1].previous
        if at is None:
            await self._write((_USE, [(*asked, self._clock())]))
        return led[::-1], at

    def _alive(self) -> float:
        """What was last used until then is forgotten."""
        return self._clock() - self._config.ttl

    async def _read(self, sql: str, *args: str | float) -> list[Row]:
        try:
            return await self._store.read(sql, *args)
        except StoreError as error:
            raise _broken(error) from error

    async def _write(self, *statements: Statement) -> int:
        try:
            return (await self._store.write(*statements))[0]
        except StoreError as error:
            raise _broken(error) from error

    async def close(self) -> None:
        """Let go of its own store; what is in memory alone is lost."""
        if self._own:
            await self._store.close()


def _broken(error: StoreError) -> ProblemError:
    log.error("store.failed", "The store of responses does not work: {error}", error=str(error))
    return ProblemError(_BROKEN)


def _is_id(text: str) -> bool:
    """Whether this can be the id of something: no store is asked for what it could not hold."""
    return text.isascii() and text.isprintable()


async def _told(rows: list[Row]) -> list[Kept]:
    """What rows say; while there is much of it others have their turn."""
    found: list[Kept] = []
    read = 0
    for id_, owner, previous, items, response in rows:
        if read > _MUCH:
            read = 0
            await asyncio.sleep(0)
        read += len(items) + len(response)
        found.append(
            Kept(
                id=id_,
                owner=owner,
                previous=previous,
                items=tuple(msgspec.json.decode(items)),
                response=msgspec.json.decode(response),
            )
        )
    return found
