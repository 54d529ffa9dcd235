"""The accounts of a gateway: the store, the ledger in it, and what is told of them.

Where nobody has said that accounts are kept, a store that cannot be opened is told of, and the
gateway serves without; where somebody has, it does not start.
"""

from __future__ import annotations

import asyncio
import time
from collections.abc import Callable, Mapping, Sequence
from contextlib import suppress
from datetime import UTC, datetime
from pathlib import Path
from typing import cast
from urllib.parse import parse_qs

from tropilla import log
from tropilla.accounts import usage
from tropilla.accounts.keys import config_id
from tropilla.accounts.keys.ring import Ring, Stored, open_ring
from tropilla.accounts.ledger import Ledger
from tropilla.accounts.limits import Spending, Spent
from tropilla.accounts.prices import Prices, cost
from tropilla.accounts.spool import Spool
from tropilla.accounts.store import Store, StoreError, open_store
from tropilla.accounts.store.places import AUTO, place, state_folder
from tropilla.accounts.usage import BYS, WHERE, By
from tropilla.config import Config, ConfigError
from tropilla.ir import JsonObject, Malformed, Problem, ProblemError
from tropilla.record import Record

_PRUNE_SECONDS = 3600.0
_LOOK_SECONDS = 0.5
"""How often it is asked whether a key has changed."""
_LEAST_SECONDS = 1.0
"""How long one such question may take at least."""
_FRESH_SECONDS = 58.0
"""How long what was read of the keys is good while the store cannot be asked: with these, not more
than a minute."""
_DAY = 86400.0
_FULL = Problem(
    kind="unavailable",
    message="The accounts cannot be written, and there is no place left for what waits for them.",
    code="accounts_unavailable",
    retry_after=5,
)


class Accounts:
    """What is open of them."""

    def __init__(self, config: Config, store: Store, ledger: Ledger, ring: Ring) -> None:
        self.config = config
        self.store = store
        self.ledger = ledger
        self.ring = ring
        """The keys in the store."""
        self.keeps = config.accounts.store != AUTO
        """Whether what was said may be kept there, too: nobody has it on a disk without a word."""
        self.spent: Spending = ()
        """What was spent by keys and teams, as it was read last."""
        self.stored: Sequence[Stored] = ()
        """The keys, as they were read last."""
        self.stale = False
        """Whether that is too long ago to let anybody in by them."""
        self.changed: Callable[[], None] = _nobody
        """Is told whenever these two change."""
        self._number = -1
        self._watching: asyncio.Task[None] | None = None
        self._keep_seconds = config.accounts.keep_days * _DAY
        self._pruning = asyncio.create_task(self._prune())

    @classmethod
    async def open(cls, config: Config) -> Accounts | None:
        """Open what the settings say; `None` where no accounts are kept.

        Raises:
            ConfigError: it cannot be.
        """
        told = config.accounts
        where = place(told.store)
        if where is None:
            return None
        try:
            store = await open_store(where)
            try:
                ring = await open_ring(store, told.secret)
                spool = Spool(told.spool or _spool_of(where), told.max_spool)
            except (StoreError, OSError):
                await store.close()
                raise
        except (StoreError, OSError) as error:
            if told.store != AUTO:
                raise ConfigError(f"accounts: {error}") from None
            log.warning(
                "accounts.none", "No accounts are kept: {why} (accounts: name another store, or "
                "none.)", why=str(error),
            )  # fmt: skip
            return None
        prices = Prices(config)

        def costs(one: Record) -> int:
            return cost(prices.of(one.model), one.prompt, one.cached, one.written)

        ledger = Ledger(store, spool, cost=costs)
        try:
            await ledger.whole()
            it = cls(config, store, ledger, ring)
            await it.look()
            await it.spending()
        except StoreError as error:
            raise ConfigError(f"accounts: {error}") from None
        it._watching = asyncio.create_task(it._watch())
        return it

    async def spending(self) -> Spending:
        """What was spent by keys and by teams: today, in the month before today, and before that.

        While the ledger cannot be read, that is what was read last.
        """
        teams = {one.id: one.terms.team for one in self.stored}
        teams |= {config_id(name): key.team for name, key in self.config.accounts.keys.items()}
        found: list[Spent] = []
        try:
            for one in await _spent(self.store):
                if one.name in teams:
                    found.append(one._replace(name=f"key/{one.name}"))
                if (team := teams.get(one.name)) is not None:
                    found.append(one._replace(name=f"team/{team}"))
        except StoreError as error:
            log.error("ledger.failed", "The ledger cannot be read: {why}", why=str(error))
        else:
            self.spent = found
        return self.spent

    async def look(self) -> None:
        """Read the keys again, if they have changed.

        Raises:
            StoreError: they cannot be read.
        """
        number = await self.ring.number()
        if number != self._number or self.stale:
            self.stored = await self.ring.all()
            self._number, self.stale = number, False
            self.changed()

    async def _watch(self) -> None:
        """See to it that what is done to a key holds here within a second."""
        seen = time.monotonic()
        while True:
            await asyncio.sleep(_LOOK_SECONDS)
            began, why = time.monotonic(), "it does not answer"
            # A store that only hangs makes them no younger.
            left = max(_LEAST_SECONDS, seen + _FRESH_SECONDS - began)
            try:
                async with asyncio.timeout(None if self.stale else left):
                    await self.look()
                seen = began
                continue
            except StoreError as error:
                why = str(error)
            except TimeoutError:
                pass
            if time.monotonic() - seen > _FRESH_SECONDS and not self.stale:
                text = "Nobody knows which keys are good any more: {why}"
                log.error("keys.stale", text, why=why)
                self.stale = True
                self.changed()

    async def _prune(self) -> None:
        while True:
            with suppress(StoreError):
                gone = await self.ledger.prune(time.time() - self._keep_seconds)
                if gone:
                    text = "The rows of {rows} old requests are forgotten; their sums stay."
                    log.info("ledger.pruned", text, rows=gone)
            await asyncio.sleep(_PRUNE_SECONDS)

    def admit(self) -> None:
        """Let one more request take something.

        Raises:
            ProblemError: it could not be accounted for.
        """
        if self.ledger.full:
            raise ProblemError(_FULL)

    async def told(self, query: str, key: str) -> JsonObject:
        """The answer to a question for usage; a `key` hears of its own alone.

        Raises:
            ProblemError: the question is none, or nobody can answer it now.
        """
        asked = {name: values[-1] for name, values in parse_qs(query).items()}
        by = _by(asked.pop("by", "day"))
        since, until = (_when(name, asked.pop(name, None)) for name in ("since", "until"))
        for name in asked:
            if name not in WHERE:
                known = ", ".join(("by", "since", "until", *WHERE))
                raise Malformed(f"'{name}' is not known here: {known} are.", param=name)
        where: Mapping[str, str] = asked | ({"key": key} if key else {})
        try:
            rows = await usage.sums(self.store, by, since=since, until=until, where=where)
        except StoreError as error:
            log.error("ledger.failed", "The ledger cannot be read: {why}", why=str(error))
            message = "The accounts cannot be read now."
            problem = Problem(kind="unavailable", message=message, retry_after=5)
            raise ProblemError(problem) from None
        if "key" in by:
            stored = {one.id: one.name for one in self.stored}
            rows = usage.named(rows, usage.names((row["key"] for row in rows), stored))
        return {"object": "list", "by": by, "data": rows}

    async def close(self) -> None:
        """Have everything written, and let go of it."""
        for task in (self._pruning, self._watching):
            if task is not None:
                task.cancel()
                with suppress(asyncio.CancelledError):
                    await task
        await self.ledger.close()
        with suppress(StoreError):
            await self.store.close()


def _nobody() -> None:
    """Nobody wants to hear of it."""


async def _spent(store: Store) -> list[Spent]:
    """What every key used in these times, by its id."""
    now = datetime.now(UTC)
    day = now.replace(hour=0, minute=0, second=0, microsecond=0)
    month = day.replace(day=1)
    found: list[Spent] = []
    for since, until in ((None, month), (month, day), (day, None)):
        times = [None if one is None else one.timestamp() for one in (since, until)]
        if times[0] is not None and times[0] == times[1]:
            continue
        for row in await usage.sums(store, ["key"], since=times[0], until=times[1]):
            tokens = row["prompt"] + row["written"]
            month_too, day_too = since is not None, since is day
            found.append(Spent(row["key"], tokens, row["cost"], month_too, day_too))
    return found


def _spool_of(where: str) -> Path:
    path = where.removeprefix("sqlite:///")
    return state_folder() / "spool" if path == where else Path(f"{path}-spool")


def _by(text: str) -> list[By]:
    names = list(dict.fromkeys(text.split(","))) if text else []
    for name in names:
        if name not in BYS:
            raise Malformed(f"'{name}' is nothing to sum by: {', '.join(BYS)} are.", param="by")
    return cast("list[By]", names)


def _when(name: str, text: str | None) -> float | None:
    """A time: seconds since 1970, or a date, or a date and a time, in UTC if it says nothing."""
    if text is None:
        return None
    with suppress(ValueError):
        if 0 <= (seconds := float(text)) < 1e12:
            return seconds
    try:
        told = datetime.fromisoformat(text)
    except ValueError:
        message = f"'{text}' is no time: 2026-11-28, 2026-11-28T15:00:00Z and 1795881600 are."
        raise Malformed(message, param=name) from None
    return (told if told.tzinfo else told.replace(tzinfo=UTC)).timestamp()
