"""The accounts of a gateway: the store, the ledger in it, and what is told of them.

Where nobody has said that accounts are kept, a store that cannot be opened is told of, and the
gateway serves without; where somebody has, it does not start.
"""

from __future__ import annotations

import asyncio
import time
from collections.abc import Mapping
from contextlib import suppress
from datetime import UTC, datetime
from pathlib import Path
from typing import cast
from urllib.parse import parse_qs

from tropilla import log, usage
from tropilla.config import Config, ConfigError
from tropilla.ir import JsonObject, Malformed, Problem, ProblemError
from tropilla.ledger import Ledger
from tropilla.prices import Prices, cost
from tropilla.record import Record
from tropilla.spool import Spool
from tropilla.store import Store, StoreError, open_store
from tropilla.store.places import AUTO, place, state_folder
from tropilla.usage import BYS, WHERE, By

_PRUNE_SECONDS = 3600.0
_DAY = 86400.0
_FULL = Problem(
    kind="unavailable",
    message="The accounts cannot be written, and there is no place left for what waits for them.",
    code="accounts_unavailable",
    retry_after=5,
)


class Accounts:
    """What is open of them."""

    def __init__(self, store: Store, ledger: Ledger, keep_seconds: float) -> None:
        self.store = store
        self.ledger = ledger
        self._keep_seconds = keep_seconds
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
            spool = Spool(told.spool or _spool_of(where), told.max_spool)
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

        return cls(store, Ledger(store, spool, cost=costs), told.keep_days * _DAY)

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
        return {"object": "list", "by": by, "data": rows}

    async def close(self) -> None:
        """Have everything written, and let go of it."""
        self._pruning.cancel()
        with suppress(asyncio.CancelledError):
            await self._pruning
        await self.ledger.close()
        with suppress(StoreError):
            await self.store.close()


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
