"""What the gateways know of each other's slots and sessions, by Valkey.

The pool decides by what is known here of the others; then Valkey is asked whether the slot is free
indeed, and where another gateway was faster the pool decides again. While Valkey is away nothing is
known of the others: how many slots are at work the upstreams tell their probes.
"""

from __future__ import annotations

import asyncio
import hashlib
import secrets
from collections import Counter
from collections.abc import Iterable
from contextlib import suppress

from tropilla.accounts.valkey import Answer, Valkey, ValkeyError, heard

_DIGEST = 16


def name_of(key: tuple[object, ...]) -> str:
    """The name of an upstream, which is the same in all gateways, and shows nothing.

    An engine is its gateway's own.
    """
    if not key:
        key = (secrets.token_hex(_DIGEST),)
    return hashlib.sha256(repr(key).encode()).hexdigest()[: _DIGEST * 2]


class Others:
    """The other gateways, as this one sees them."""

    def __init__(self, valkey: Valkey) -> None:
        self._valkey = valkey
        self._held: Counter[str] = Counter()
        """Slots that this gateway holds."""
        self._taken: dict[str, int] = {}
        """Slots that the others hold, as it was heard last."""
        valkey.joined.append(self._joined)

    def taken(self, name: str) -> int:
        """How many slots of an upstream the others hold."""
        return self._taken.get(name, 0)

    async def take(self, name: str, wide: int, slots: int | None) -> bool:
        """Take as many slots of an upstream that has so many; whether there is a free one."""
        self._held[name] += wide
        answer = self._valkey.do(
            "take", u=name, n=self._held[name], wide=wide, slots=-1 if slots is None else slots
        )
        try:
            told = heard(await asyncio.shield(answer))
        except ValkeyError:
            return True
        except asyncio.CancelledError:
            self.free(name, wide)
            raise
        match told:
            case ["full", others]:
                self._taken[name] = others
                self.free(name, wide)
                return False
            case ["taken", others]:
                self._taken[name] = others
        return True

    def free(self, name: str, wide: int) -> None:
        """Give back as many."""
        self._held[name] -= wide
        self._tell(name)
        if not self._held[name]:
            del self._held[name]

    def _tell(self, name: str) -> None:
        self._valkey.do("hold", u=name, n=self._held[name]).add_done_callback(_let_be)

    async def look(self, names: Iterable[str]) -> bool:
        """Hear what the others hold; whether that is less of anything."""
        asked, before = list(names), self._taken
        try:
            told = await self._valkey.ask("others", us=asked) if asked else []
        except ValkeyError:
            told = [0] * len(asked)
        self._taken = dict(zip(asked, told, strict=True))
        return any(self._taken.get(name, 0) < many for name, many in before.items())

    async def recall(self, session: int) -> str | None:
        """The upstream that has served a session last, for whichever gateway."""
        with suppress(ValkeyError):
            told = await self._valkey.ask("recall", s=str(session))
            return str(told[0]) or None
        return None

    def remember(self, session: int, name: str) -> None:
        """An upstream serves a session now."""
        self._valkey.do("remember", s=str(session), u=name).add_done_callback(_let_be)

    async def _joined(self) -> None:
        for name in self._held:
            self._tell(name)


def _let_be(answer: asyncio.Future[Answer]) -> None:
    """What came of it is nobody's concern: it is told anew once Valkey is back."""
    if not answer.cancelled():
        answer.exception()
