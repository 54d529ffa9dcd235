"""What was answered to requests that may be said again: kept by the key that their client chose.

A name is claimed, by one at a time; then its answer is kept, or it is released and the next one may
claim it. Whoever has claimed it gives signs of life, a beat: by these, and not by anybody's clock,
others know that it is still being done, however far apart their clocks are. On the shelf of a store
this holds for all gateways that share it; the shelf in memory is one process's own, and what it
holds is bounded at once.
"""

from __future__ import annotations

import time
from collections.abc import Callable, Sequence
from typing import NamedTuple, Protocol

import msgspec

from tropilla.accounts.store import Row, Store
from tropilla.config import RepeatsConfig
from tropilla.ir import Value

_DEAD_SECONDS = 3600.0
"""After so long without a beat, what was being done is swept away: nobody has asked for it."""
_AROUND = 512
"""Bytes that are counted for what is not the body of an answer."""
_PAGE = 1000


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


class Shelf(Protocol):
    """Where answers are kept. Everything may raise `StoreError`."""

    async def claim(self, name: Name, mark: str, token: str, since: float) -> Found | None:
        """Claim a name, and give back nothing; or what there is, but for what is that old."""

    async def take_over(self, name: Name, token: str, dead: Found) -> bool:
        """Claim what somebody else has begun and never ended; whether it was still like that."""

    async def beat(self, claims: Sequence[tuple[Name, str]]) -> None:
        """Say of names that they are still being done, by these tokens."""

    async def keep(self, name: Name, token: str, result: Result) -> bool:
        """Keep an answer; whether the name was still claimed by this token."""

    async def release(self, name: Name, token: str) -> None:
        """Let others do it."""


class Memory:
    """A shelf of one process, where claims are its own affair."""

    def __init__(self, config: RepeatsConfig, clock: Callable[[], float] = time.time) -> None:
        self.config = config
        self._clock = clock
        self._marks: dict[Name, str] = {}
        """Of what is being done."""
        self._kept: dict[Name, tuple[float, Found]] = {}
        """The oldest first, and when that was."""
        self._size = 0

    async def claim(self, name: Name, mark: str, token: str, since: float) -> Found | None:  # noqa: ARG002 - as a shelf is asked
        """As `Shelf` says."""
        self._sweep(since)
        if name in self._kept:
            return self._kept[name][1]
        self._marks[name] = mark
        return None

    async def take_over(self, name: Name, token: str, dead: Found) -> bool:  # noqa: ARG002 - as above
        """Nobody in this process ends without a word."""
        return False

    async def beat(self, claims: Sequence[tuple[Name, str]]) -> None:
        """Nobody else waits for it."""

    async def keep(self, name: Name, token: str, result: Result) -> bool:
        """As `Shelf` says; the oldest go where there is too much."""
        found = Found(self._marks.pop(name), token, 0, result)
        self._kept[name] = (self._clock(), found)
        self._size += result.size
        self._sweep(self._clock() - self.config.ttl)
        return True

    async def release(self, name: Name, token: str) -> None:  # noqa: ARG002 - as above
        """As `Shelf` says."""
        self._marks.pop(name, None)

    def _sweep(self, since: float) -> None:
        while self._kept:
            name, (at, found) = next(iter(self._kept.items()))
            if at > since and self._size <= self.config.max_bytes:
                return
            del self._kept[name]
            assert found.result is not None, "only answers are kept"  # noqa: S101
            self._size -= found.result.size


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
_OLDEST = "SELECT owner, key, at, size FROM repeats WHERE status <> 0 ORDER BY at LIMIT $1"
_DROP = "DELETE FROM repeats WHERE owner = $1 AND key = $2 AND at = $3 AND status <> 0"


class Kept:
    """A shelf in a store, for all gateways that share it; `clock` tells seconds since 1970."""

    def __init__(self, store: Store, clock: Callable[[], float] = time.time) -> None:
        self._store = store
        self._clock = clock

    async def claim(self, name: Name, mark: str, token: str, since: float) -> Found | None:
        """As `Shelf` says."""
        row = (*name, mark, token, self._clock(), since)
        while True:
            for told in await self._store.read(_LOOK, *name, since):
                return _found(told)
            if (await self._store.write((_CLAIM, [row])))[0]:
                return None
            # Somebody was faster.

    async def take_over(self, name: Name, token: str, dead: Found) -> bool:
        """As `Shelf` says."""
        row = (token, self._clock(), *name, dead.token, dead.beat)
        return bool((await self._store.write((_TAKE_OVER, [row])))[0])

    async def beat(self, claims: Sequence[tuple[Name, str]]) -> None:
        """As `Shelf` says."""
        now = self._clock()
        await self._store.write((_BEAT, [(now, *name, token) for name, token in claims]))

    async def keep(self, name: Name, token: str, result: Result) -> bool:
        """As `Shelf` says."""
        head = msgspec.json.encode(msgspec.convert(result, _Head, from_attributes=True)).decode()
        row = (result.status, head, result.size, result.body, self._clock(), *name, token)
        return bool((await self._store.write((_KEEP, [row])))[0])

    async def release(self, name: Name, token: str) -> None:
        """As `Shelf` says."""
        await self._store.write((_RELEASE, [(*name, token)]))

    async def sweep(self, config: RepeatsConfig) -> int:
        """Forget what is too old, and the oldest where there is too much; how many that were."""
        before = self._clock() - config.ttl
        gone = await self._store.write(
            (_OLD, [(before,)]), (_DEAD, [(self._clock() - _DEAD_SECONDS,)])
        )
        count = gone[0]
        told = await self._store.read("SELECT sum(size) FROM repeats")
        over = int(told[0][0] or 0) - config.max_bytes
        while over > 0 and (oldest := await self._store.read(_OLDEST, _PAGE)):
            drop = []
            for owner, key, at, size in oldest:
                if over <= 0:
                    break
                drop.append((owner, key, at))
                over -= size
            count += (await self._store.write((_DROP, drop)))[0]
        return count


def _found(row: Row) -> Found:
    mark, token, beat, status, told, body = row
    result = None
    if status:
        head = msgspec.json.decode(told, type=_Head)
        result = Result(status=status, body=bytes(body), **msgspec.structs.asdict(head))
    return Found(mark, token, beat, result)
