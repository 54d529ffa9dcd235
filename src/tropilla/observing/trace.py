"""The trace a request belongs to, as W3C Trace Context tells it, and what upstreams hear of it.

A client says it in two headers. Where nobody here makes spans they go on to the upstream as they
came; where somebody does, an upstream hears of the span that asks it.
"""

from __future__ import annotations

import re
import secrets
from collections.abc import Mapping
from contextvars import ContextVar

PARENT = "traceparent"
STATE = "tracestate"
SAMPLED = 1
_SPOKEN = re.compile(r"(?!ff)([0-9a-f]{2})-([0-9a-f]{32})-([0-9a-f]{16})-([0-9a-f]{2})(-.*)?")
_MEMBER = re.compile(r"[a-z0-9][a-z0-9_\-*/@]{0,255}=[\x20-\x2b\x2d-\x3c\x3e-\x7e]{1,256}")
_MOST_STATE = 512
_MOST_MEMBERS = 32
_NOTHING = frozenset({"0" * 32, "0" * 16})


class Trace:
    """The trace of one request; ids are hexadecimal."""

    __slots__ = ("flags", "id", "ours", "parent", "span", "state")

    def __init__(self, id_: str, parent: str, flags: int, state: str) -> None:
        self.id = id_
        self.parent = parent
        """The span of the client's that has asked."""
        self.flags = flags
        self.state = state
        """What others have noted in it."""
        self.span = parent
        """By whom an upstream is asked: the client itself, unless there are spans here."""
        self.ours = False
        """Whether spans are made of it here."""

    @property
    def sampled(self) -> bool:
        """Whether somebody wants to keep it."""
        return bool(self.flags & SAMPLED)

    def asks(self) -> str:
        """Have the upstream that is asked next hear of a span of its own."""
        if not self.ours:
            return ""
        self.span = secrets.token_hex(8)
        self.tell()
        return self.span

    def tell(self) -> None:
        """Have every upstream hear of it that is asked in this context."""
        told = {PARENT: f"00-{self.id}-{self.span}-{self.flags:02x}"}
        TOLD.set(told | {STATE: self.state} if self.state else told)


TOLD: ContextVar[Mapping[str, str] | None] = ContextVar("trace", default=None)
"""The headers by which an upstream hears of the trace, while a request that has one is served."""


def read(parent: str, state: str) -> Trace | None:
    """The trace that a client tells of; `None` if it tells of none, or not as the standard does."""
    told = _SPOKEN.fullmatch(parent)
    if told is None:
        return None
    version, id_, span, flags, more = told.groups()
    if (version == "00" and more) or {id_, span} & _NOTHING:
        return None
    return Trace(id_, span, int(flags, 16), state if _is_state(state) else "")


def _is_state(state: str) -> bool:
    members = [one.strip(" \t") for one in state.split(",")]
    kept = [one for one in members if one]
    names = {one.partition("=")[0] for one in kept}
    return (
        len(state) <= _MOST_STATE
        and len(names) == len(kept) <= _MOST_MEMBERS
        and all(map(_MEMBER.fullmatch, kept))
    )
