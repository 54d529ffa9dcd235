"""How many slots, and how much context for each: what fits into the memory that is free.

The model's file and the cache for its context take almost all of an engine's memory, and both are
known before: the cache takes so many bytes for each token (`gguf.Header.token_bytes`). For models
that look back a little way only in some of their layers that is more than they take.
"""

from __future__ import annotations

import msgspec

from tropilla.models.gguf import Header

SLOTS = 4
"""As many as are made, where there is room."""
ROOM = 8192
"""Tokens that a slot should see before another one is made: a chat, a program's file."""
MOST_TOKENS = 65536
"""Tokens of all slots that are taken unasked: they are cleared before the first answer."""
_STEP = 256
_LEAST = 2048
_WORKING = 512 * 1024 * 1024
"""What an engine takes beside its model and its cache, or less."""
_SHARE = 0.9
"""Of the free memory; the rest is for everything else."""


class Plan(msgspec.Struct, frozen=True, kw_only=True):
    """What an engine is to be told, and why."""

    slots: int
    ctx_size: int
    """Tokens of each slot; zero leaves it to the engine."""
    model: int
    """Bytes of its file."""
    cache: int
    """Bytes of its cache."""
    free: int | None
    """Bytes that are free, where that is known."""

    @property
    def fits(self) -> bool:
        """Whether it can be expected to run without the disk's help."""
        return self.free is None or self.model + self.cache <= self.free * _SHARE

    def said(self) -> str:
        """In words."""
        if not self.ctx_size:
            return f"{_count(self.slots, 'slot')}, each with the context that the model has"
        free = "" if self.free is None else f" of {bytes_said(self.free)} free"
        return (
            f"{_count(self.slots, 'slot')} of {self.ctx_size} tokens: {bytes_said(self.model)} "
            f"model and {bytes_said(self.cache)} cache{free}"
        )


def plan(header: Header, size: int, free: int | None, *, slots: int = 0, ctx_size: int = 0) -> Plan:
    """Choose what is not chosen; zeros are not.

    Slots share what fits evenly. Fewer are made before one has less than `ROOM`.
    """
    each = header.token_bytes

    def made(slots: int, ctx_size: int) -> Plan:
        cache = slots * ctx_size * each
        return Plan(slots=slots, ctx_size=ctx_size, model=size, cache=cache, free=free)

    if not each or not header.context:
        return made(slots or SLOTS, ctx_size)
    room = MOST_TOKENS
    if free is not None:
        room = max(0, int(free * _SHARE) - size - _WORKING) // each
    if ctx_size:
        return made(slots or min(SLOTS, max(1, room // ctx_size)), ctx_size)
    room = min(room, MOST_TOKENS)
    enough = min(header.context, ROOM)
    for count in [slots] if slots else range(SLOTS, 0, -1):
        tokens = min(header.context, room // count // _STEP * _STEP)
        if tokens >= enough:
            return made(count, tokens)
    return made(slots or 1, max(min(header.context, _LEAST), room // (slots or 1) // _STEP * _STEP))


def bytes_said(count: int) -> str:
    """A number of bytes, for people."""
    if count < 1000:
        return f"{count} B"
    value = float(count)
    for unit in ("kB", "MB", "GB"):
        value /= 1000
        if value < 999.5:
            return f"{value:.1f} {unit}" if value < 10 else f"{value:.0f} {unit}"
    return f"{value / 1000:.1f} TB"


def _count(number: int, what: str) -> str:
    return f"{number} {what}" if number == 1 else f"{number} {what}s"
