"""What was answered to requests that may be said again: kept by the key that their client chose.

A name is claimed, by one at a time; then its answer is kept, or it is released and the next one may
claim it. Whoever has claimed it gives signs of life, a beat: by these, and not by anybody's clock,
others know that it is still being done, however far apart their clocks are. This holds for all
gateways that share a store. What is too old, and what is too much, the oldest first, is forgotten.
"""

from __future__ import annotations

import time
from collections.abc import Callable, Sequence
from contextlib import suppress
from typing import NamedTuple

import msgspec

from tropilla.accounts.store import Row, Store, StoreError
from tropilla.config import RepeatsConfig
from tropilla.ir import Value

_DEAD_SECONDS = 3600.0
"""After so long without a beat, what was being done is swept away: nobody has asked for it."""
_AROUND = 512
"""Bytes that are counted for what is not the body of an answer."""
_PARTS = 64
"""It is looked what has to go after such a part of all bytes was kept."""


class Name(NamedTuple):
    """By what an answer is found."""

    owner: str
    key: str


class Result(Value, frozen=True, kw_only=True):
    """An answer, as it is said again."""

    status: int
    content_type: str
    headers: dict[str, str]
    body: bytes
    streamed: bool
    """Whether it was told in pieces, of a length that nobody knew."""
    request: str
    """The id of the request that it was the answer to."""
    model: str | None
    """Whose answer it is: only who may ask that one hears it."""

    @property
    def size(self) -> int:
        """Bytes, about."""
        return len(self.body) + _AROUND


class Found(NamedTuple):
    """What there is under a name already."""

    mark: str
    """A fingerprint of the request."""
    token: str
    beat: int
    result: Result | None
    """Its answer; `None` while it is being done."""


class _Head(Value, frozen=True, kw_only=True):
    """What is kept of an answer but for its status and its body."""

    content_type: str
    headers: dict[str, str]
    streamed: bool
    request: str
    model: str | None


_CLAIM = """
    INSERT INTO repeats (owner, key, mark, token, beat, at, status, head, size, body)
    VALUES ($1, $2, $3, $4, 0, $5, 0, '', 0, NULL)
    ON CONFLICT (owner, key) DO UPDATE SET
        mark = excluded.mark, token = excluded.token, beat = 0, at = excluded.at, status = 0,
        head = '', size = 0, body = NULL
    WHERE repeats.status <> 0 AND repeats.at <= $6
"""
_LOOK = """
    SELECT mark, token, beat, status, head, body FROM repeats
    WHERE owner = $1 AND key = $2 AND (status = 0 OR at > $3)
"""
_TAKE_OVER = """
    UPDATE repeats SET token = $1, beat = 0, at = $2
    WHERE owner = $3 AND key = $4 AND token = $5 AND beat = $6 AND status = 0
"""
_BEAT = """
    UPDATE repeats SET beat = beat + 1, at = $1
    WHERE owner = $2 AND key = $3 AND token = $4 AND status = 0
"""
_KEEP = """
    UPDATE repeats SET status = $1, head = $2, size = $3, body = $4, at = $5
    WHERE owner = $6 AND key = $7 AND token = $8
"""
_RELEASE = "DELETE FROM repeats WHERE owner = $1 AND key = $2 AND token = $3 AND status = 0"
_OLD = "DELETE FROM repeats WHERE at <= $1 AND status <> 0"
_DEAD = "DELETE FROM repeats WHERE at <= $1 AND status = 0"
# The first, from the newest on, for which there is no place: so two gateways that look at the same
# time do not make room twice.
_BEYOND = """
    SELECT at, owner, key FROM (
        SELECT at, owner, key,
            SUM(size) OVER (ORDER BY at DESC, owner DESC, key DESC) AS upto FROM repeats
    ) AS r WHERE upto > CAST($1 AS BIGINT) ORDER BY at DESC, owner DESC, key DESC LIMIT 1
"""
_UP_TO = "DELETE FROM repeats WHERE (at, owner, key) <= ($1, $2, $3) AND status <> 0"


class Shelf:
    """Where answers are kept, in a store; `clock` tells seconds since 1970.

    Everything may raise `StoreError`.
    """

    def __init__(
        self, store: Store, config: RepeatsConfig, clock: Callable[[], float] = time.time
    ) -> None:
        self.config = config
        self._store = store
        self._clock = clock
        self._fresh = 0
        """Bytes that were kept since it was looked what has to go."""

    async def claim(self, name: Name, mark: str, token: str, since: float) -> Found | None:
        """Claim a name, and give back nothing; or what there is, but for what is that old."""
        row = (*name, mark, token, self._clock(), since)
        while True:
            for told in await self._store.read(_LOOK, *name, since):
                return _found(told)
            if (await self._store.write((_CLAIM, [row])))[0]:
                return None
            # Somebody was faster.

    async def take_over(self, name: Name, token: str, dead: Found) -> bool:
        """Claim what somebody else has begun and never ended; whether it was still like that."""
        row = (token, self._clock(), *name, dead.token, dead.beat)
        return bool((await self._store.write((_TAKE_OVER, [row])))[0])

    async def beat(self, claims: Sequence[tuple[Name, str]]) -> None:
        """Say of names that they are still being done, by these tokens."""
        now = self._clock()
        await self._store.write((_BEAT, [(now, *name, token) for name, token in claims]))

    async def keep(self, name: Name, token: str, result: Result) -> bool:
        """Keep an answer; whether the name was still claimed by this token."""
        head = msgspec.json.encode(msgspec.convert(result, _Head, from_attributes=True)).decode()
        row = (result.status, head, result.size, result.body, self._clock(), *name, token)
        kept = bool((await self._store.write((_KEEP, [row])))[0])
        self._fresh += result.size
        if self._fresh > self.config.max_bytes // _PARTS:
            with suppress(StoreError):
                await self.sweep()
        return kept

    async def release(self, name: Name, token: str) -> None:
        """Let others do it."""
        await self._store.write((_RELEASE, [(*name, token)]))

    async def sweep(self) -> int:
        """Forget what is too old, and the oldest where there is too much; how many that were."""
        self._fresh, now = 0, self._clock()
        gone = await self._store.write(
            (_OLD, [(now - self.config.ttl,)]), (_DEAD, [(now - _DEAD_SECONDS,)])
        )
        count = gone[0]
        for last in await self._store.read(_BEYOND, self.config.max_bytes):
            count += (await self._store.write((_UP_TO, [last])))[0]
        return count


def _found(row: Row) -> Found:
    mark, token, beat, status, told, body = row
    result = None
    if status:
        head = msgspec.json.decode(told, type=_Head)
        result = Result(status=status, body=bytes(body), **msgspec.structs.asdict(head))
    return Found(mark, token, beat, result)
