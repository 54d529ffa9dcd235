"""What a test tells a double to do, and what the double has seen."""

from __future__ import annotations

import select
import socket
import time
from collections.abc import Callable
from contextlib import suppress
from dataclasses import dataclass, field
from threading import Lock
from typing import Any

import msgspec

DEADLINE = 10.0
"""Seconds after which what should have happened has not."""


@dataclass
class Asked:
    """One request that has arrived."""

    method: str
    path: str
    headers: dict[str, str]
    raw: bytes

    @property
    def body(self) -> Any:
        """The body as JSON."""
        return msgspec.json.decode(self.raw)


class Left(Exception):  # noqa: N818
    """The client is gone, or the server ends: nothing more has to be said."""


@dataclass
class Llama:
    """What the server does next, and what it was asked."""

    build: int = 1496
    base: str = ""
    """What stands before every path, as behind a reverse proxy."""
    key: str = ""
    """The API key that it wants (since b1643)."""
    slots: int = 4
    """How many requests it serves at a time."""
    template: str = (
        "{% for message in messages %}{{ '<|im_start|>' + message['role'] + '\\n' "
        "+ message['content'] + '<|im_end|>' + '\\n' }}{% endfor %}"
    )
    """The chat template that it reports (since b3328): ChatML's."""
    embeddings: bool = False
    """Whether it was started with `--embeddings`."""
    reranks: bool = False
    """Whether it was started with `--reranking`."""
    fills: bool = True
    """Whether its model has the tokens for infill (looked at in b4027, not yet in b3648)."""
    says: list[str] = field(default_factory=lambda: [" I", "'m", " fine", "."])
    ends: str = "eos"
    """What it does once everything is said: `eos`; `word`, the first stop word of the request;
    or `never`, which only a limit or a client that leaves ends."""
    busy: int = 0
    """How many of the next requests find no free slot. Since b1915 such requests wait: any number
    keeps them waiting, until it is 0."""
    gone: set[str] = field(default_factory=set)
    """Paths that this server does not have, after all."""
    loading: bool = False
    """Whether it still loads its model."""
    error_midstream: str = ""
    """What goes wrong in an answer, after `error_after` tokens."""
    error_after: int = 1
    dead: bool = False
    """Whether it has crashed: every connection is reset."""
    stalled: bool = False
    """Whether its slots hang for ever, as token ids made them from b1591 to b2075."""
    turns: int | None = None
    """How many more tokens may be generated; `None` is any number."""
    asked: list[Asked] = field(default_factory=list)
    working: int = 0
    """How many slots are taken."""
    generated: int = 0
    """How many tokens were generated."""
    gone_away: int = 0
    """How many clients left before their answer was over, as far as the server noticed: while it
    streams, at once; else not before the answer is ready."""
    port: int = 0
    ending: bool = False
    lock: Lock = field(default_factory=Lock)
    _bells: set[socket.socket] = field(default_factory=set)

    def __setattr__(self, name: str, value: Any) -> None:
        # Whatever changes, those who wait look whether it is what they wait for.
        super().__setattr__(name, value)
        self._ring()

    def _ring(self) -> None:
        for bell in list(self.__dict__.get("_bells", ())):
            with suppress(OSError):
                bell.send(b"!")

    @property
    def url(self) -> str:
        """Its address, base path and all."""
        return f"http://127.0.0.1:{self.port}{self.base}"

    @property
    def paths(self) -> list[str]:
        """The paths that were posted to: everything but the probes."""
        return [one.path for one in self.asked if one.method == "POST" and one.raw != b"{"]

    def last(self, path: str = "/completion") -> Any:
        """The body of the last request for a path."""
        return next(one.body for one in reversed(self.asked) if one.path == path)

    def clear(self) -> None:
        """Be as new, but on the same port, and alive again if it was dead."""
        fresh = Llama()
        for name in (
            "says", "ends", "busy", "gone", "loading", "error_midstream", "error_after", "dead",
            "stalled", "turns", "asked", "generated", "gone_away",
        ):  # fmt: skip
            setattr(self, name, getattr(fresh, name))

    def hold(self, after: int = 0) -> None:
        """Generate so many more tokens, over all requests, and then wait for `let` or `free`."""
        self.turns = after

    def let(self, count: int = 1) -> None:
        """Generate so many tokens more."""
        with self.lock:
            self.turns = (self.turns or 0) + count

    def free(self) -> None:
        """Hold nothing any more."""
        self.turns = None

    def until(self, holds: Callable[[], bool]) -> None:
        """Wait until something holds of this server, which must come."""
        assert self.wait(holds, seconds=DEADLINE), "it has not come"

    # For those who serve.

    def note(self, asked: Asked) -> None:
        """A request has arrived."""
        self.asked.append(asked)
        self._ring()

    def add(self, name: str, count: int) -> None:
        """Change a counter."""
        with self.lock:
            setattr(self, name, getattr(self, name) + count)

    def turn(self, client: socket.socket | None) -> None:
        """Wait until one more token may be generated.

        Raises:
            Left: the client left before; only noticed with a `client`.
        """
        while True:
            if self.turns is not None or self.ending or self.dead:
                self.must_wait(lambda: self.turns is None or self.turns > 0, client)
            with self.lock:
                if self.turns is None or self.turns > 0:
                    self.turns = None if self.turns is None else self.turns - 1
                    self.generated += 1
                    return

    def must_wait(self, holds: Callable[[], bool], client: socket.socket | None) -> None:
        """Wait until something holds.

        Raises:
            Left: the client left before; only noticed with a `client`.
        """
        if not self.wait(holds, client):
            raise Left

    def wait(
        self,
        holds: Callable[[], bool],
        client: socket.socket | None = None,
        seconds: float | None = None,
    ) -> bool:
        """Wait until something holds; false if the client leaves or the server ends before."""
        end = None if seconds is None else time.monotonic() + seconds
        ours, bell = socket.socketpair()
        bell.setblocking(False)  # noqa: FBT003
        watched = [ours] if client is None else [ours, client]
        self._bells.add(bell)
        try:
            while seconds is not None or not (self.ending or self.dead):
                if holds():
                    return True
                left = None if end is None else max(0.0, end - time.monotonic())
                ready, _, _ = select.select(watched, [], [], left)
                if not ready:
                    return False
                if ours in ready:
                    ours.recv(65536)
                if client in ready:
                    if is_gone(client):
                        return False
                    watched = [ours]  # it has asked something more
            return False
        finally:
            self._bells.discard(bell)
            ours.close()
            bell.close()


def is_gone(client: socket.socket | None) -> bool:
    """Whether a client has closed its connection."""
    if client is None:
        return False
    try:
        ready, _, _ = select.select([client], [], [], 0)
        return bool(ready) and not client.recv(1, socket.MSG_PEEK)
    except OSError:
        return True
