"""What gateways share, in Valkey (or Redis): who of them lives, and a script that does the rest.

Each gateway says twice a second that it lives, and hears how many do. One that was silent for three
seconds has left: what it held is free again. While the server cannot be reached this knows so at
once, or within a second where it only hangs, and looks for it twice a second.

What is spent of budgets is there as the ledger has it: the first gateway of all tells that, before
which the server is of no use to anybody. An `epoch` is one such beginning.
"""

from __future__ import annotations

import asyncio
import hashlib
import secrets
import time
from collections.abc import Awaitable, Callable
from contextlib import suppress
from importlib.resources import files
from typing import Any

import msgspec

from tropilla import log
from tropilla.accounts.limits import Spending
from tropilla.accounts.valkey.wire import Answer, RefusedError, ValkeyError, Wire, shown

__all__ = ["Answer", "RefusedError", "Valkey", "ValkeyError", "heard", "shown"]

_BEAT_SECONDS = 0.5
_PATIENCE_SECONDS = 1.0
"""How long an answer may take: then the server is taken for gone."""
_LAST_SECONDS = 0.05
_PREFIX = "{tropilla}:"


class Valkey:
    """A gateway's place among the others.

    `spent` tells what was spent before, as the ledger has it; without it, whatever is known of that
    is kept.
    """

    def __init__(self, url: str, spent: Callable[[], Awaitable[Spending]] | None = None) -> None:
        self._url = url
        self._spent = spent
        self._wire: Wire | None = None
        self._script = files(__name__).joinpath("script.lua").read_text(encoding="utf-8")
        self._sha = hashlib.sha1(self._script.encode(), usedforsecurity=False).hexdigest()
        self._life: asyncio.Task[None] | None = None
        self._me = ""
        self.epoch = ""
        self.up = False
        """Whether the server can be used now."""
        self.since, self.why = time.time(), ""
        """Since when that is so, in seconds since 1970; and why it cannot, as was heard last."""
        self.rank, self.many = 0, 1
        """Which gateway this is, and of how many, as it was heard last."""
        self.joined: list[Callable[[], Awaitable[None]]] = []
        """Who is told, each time, that the server can be used (again)."""

    @classmethod
    async def open(cls, url: str, spent: Callable[[], Awaitable[Spending]] | None = None) -> Valkey:
        """Take a place.

        Raises:
            ValkeyError: the server cannot be used.
        """
        it = cls(url, spent)
        try:
            await it._join()
        except ValkeyError:
            await it.close()
            raise
        it._life = asyncio.create_task(it._live())
        return it

    @property
    def place(self) -> str:
        """Where the server is, without what is secret in that."""
        return shown(self._url)

    def do(self, what: str, **told: Any) -> asyncio.Future[Answer]:
        """Have the script do something, in its turn; the answer is JSON, for `heard`."""
        if self._wire is None or not self.up:
            answer: asyncio.Future[Answer] = asyncio.get_running_loop().create_future()
            answer.set_exception(ValkeyError("Valkey cannot be reached."))
            answer.exception()
            return answer
        return self._send(self._wire, what, told)

    def _send(self, wire: Wire, what: str, told: dict[str, Any]) -> asyncio.Future[Answer]:
        data = msgspec.json.encode(told | {"g": self._me, "e": self.epoch})
        return wire.send("EVALSHA", self._sha, "1", _PREFIX, what, data)

    async def ask(self, what: str, **told: Any) -> list[Any]:
        """Have the script do something, and hear what came of it.

        Raises:
            ValkeyError: nobody knows.
        """
        return heard(await self.do(what, **told))

    async def _join(self) -> None:
        wire = await Wire.open(self._url)
        was, self._me = self._me, secrets.token_hex(8)
        try:
            async with asyncio.timeout(_PATIENCE_SECONDS * 10):
                await wire.send("SCRIPT", "LOAD", self._script)
                told = await self._enter(wire, was)
                self.epoch = told[1]
                self._wire = wire
                await self._beat(wire)
        except (TimeoutError, ValkeyError) as error:
            wire.close()
            raise ValkeyError(f"{self.place}: {str(error) or 'it does not answer'}") from error
        except BaseException:
            wire.close()  # the gateway ends just now
            raise
        self.up, self.since, self.why = True, time.time(), ""
        for one in self.joined:
            await one()

    async def _enter(self, wire: Wire, was: str) -> list[Any]:
        """Have a place; where nothing is known there yet, tell what was spent."""
        ledger = self._spent is not None
        while True:
            told = heard(await self._send(wire, "join", {"was": was, "ledger": ledger}))
            if told[0] == "seed":
                spent = await self._spent() if self._spent is not None else []
                told = heard(await self._send(wire, "seed", {"spent": spent}))
            if told[0] == "joined":
                return told
            await asyncio.sleep(_BEAT_SECONDS / 10)

    async def _beat(self, wire: Wire) -> None:
        """Say that this one lives.

        Raises:
            ValkeyError: it is no more, or nobody knows.
        """
        answer = self._send(wire, "beat", {})
        await asyncio.wait({answer}, timeout=_PATIENCE_SECONDS)
        if not answer.done():
            # It may be this process that was late: then the answer is there already.
            await asyncio.wait({answer}, timeout=_LAST_SECONDS)
        if not answer.done():
            raise ValkeyError("it does not answer")
        told = heard(answer.result())
        if told[0] != "lives":
            raise ValkeyError("it has begun anew, or has not heard of this gateway for too long")
        self.rank, self.many = told[1:]

    async def _live(self) -> None:
        while True:
            wire = self._wire
            assert wire is not None, "it has joined"  # noqa: S101
            why = await self._until_lost(wire)
            self.up, self.since, self.why = False, time.time(), why
            wire.close()
            log.warning(
                "valkey.lost", "{valkey} cannot be used: {why}. Limits are kept here meanwhile, as "
                "the {many}th part of them each.",
                valkey=self.place, why=why, many=self.many,
            )  # fmt: skip
            await self._come_again()
            log.info("valkey.back", "{valkey} is used again.", valkey=self.place)

    async def _until_lost(self, wire: Wire) -> str:
        while True:
            with suppress(TimeoutError):
                async with asyncio.timeout(_BEAT_SECONDS):
                    await asyncio.shield(wire.lost)
            if wire.lost.done():
                return "the connection is lost"
            try:
                await self._beat(wire)
            except ValkeyError as error:
                return str(error)

    async def _come_again(self) -> None:
        while True:
            try:
                await self._join()
            except ValkeyError as error:
                self.why = str(error)
                await asyncio.sleep(_BEAT_SECONDS)
            else:
                return

    async def close(self) -> None:
        """Give up the place."""
        if self._life is not None:
            self._life.cancel()
            with suppress(asyncio.CancelledError):
                await self._life
        if self._wire is not None:
            with suppress(ValkeyError, TimeoutError):
                async with asyncio.timeout(_PATIENCE_SECONDS):
                    await self.do("leave")
            self._wire.close()
        self.up = False


def heard(answer: Answer) -> list[Any]:
    """What the script has answered."""
    if not isinstance(answer, bytes):
        raise ValkeyError(f"That is no answer: {answer!r}.")
    told: list[Any] = msgspec.json.decode(answer, type=list[Any])
    return told
