"""Starts the real `tropilla`, with mechanisms of it switched off: `launch.py NAME... -- serve ...`.

That is for controls: a measure that is passed without the mechanism that it is about measures
nothing. Besides, SIGUSR1 has the process write down what it holds.
"""

from __future__ import annotations

import asyncio
import gc
import os
import signal
import sys
from collections.abc import Callable, Iterator
from pathlib import Path

import msgspec

from tropilla.accounts.ledger import Ledger
from tropilla.accounts.repeats import Name, Result, Shelf
from tropilla.accounts.store import Statement
from tropilla.accounts.store.sqlite import Sqlite
from tropilla.cli import main
from tropilla.exchanges.failover import Joint
from tropilla.herd.pool import Pool, Rules
from tropilla.ir import Event, Failed
from tropilla.record import Record
from tropilla.server import repeats
from tropilla.server.http import Connection
from tropilla.upstream import fleet
from tropilla.upstream.fleet import Fleet
from tropilla.upstream.member import Upstream


def put(owner: object, name: str, other: object) -> None:
    """Put something else in the place of a part."""
    setattr(owner, name, other)


def retries() -> None:
    """A request that fails has failed."""
    put(Pool, "may_retry", lambda *_: False)


def notice() -> None:
    """What happens to requests says nothing of their upstream."""
    put(Fleet, "_failed_at", lambda *_: None)


def look() -> None:
    """An upstream that is down is looked for once in a minute."""
    put(fleet, "_RETRY_SECONDS", (60.0,))


def ends() -> None:
    """A stream that breaks off does not go on, and does not say so."""

    def joined(_: Joint, events: list[Event]) -> list[Event]:
        return [event for event in events if not isinstance(event, Failed)]

    put(Joint, "joined", joined)


def pings() -> None:
    """Nobody looks who is silent."""
    put(Upstream, "silent", lambda *_: [])
    put(fleet, "_DEAD_PROBES", 10**9)


def giving_up() -> None:
    """An upstream that cannot be reached is always about to start."""
    put(fleet, "_HOPEFUL_TRIES", 10**9)


def failover() -> None:
    """A stream that breaks off does not go on."""
    put(Joint, "breaks", lambda _, events: events)


def bound() -> None:
    """Anybody may wait, for ever."""
    put(fleet, "_rules", lambda _: Rules(queue=10**9, queue_seconds=10**9))


def turns() -> None:
    """Who comes first is served first."""

    def in_turn(pool: Pool) -> Iterator[int]:
        return iter(sorted(pool._waiting, key=lambda request: pool._waiting[request].order))

    put(Pool, "_in_turn", in_turn)


def room() -> None:
    """A queue that is full is full for everybody."""
    put(Pool, "_last_of_most", lambda *_: None)


def release() -> None:
    """Who leaves keeps what it has."""
    put(Pool, "on_cancel", lambda *_: [])


def forgetting() -> None:
    """Whoever has left is remembered, with all that was done for it."""
    kept: list[object] = []
    lost = Connection.connection_lost

    def connection_lost(connection: Connection, exc: Exception | None) -> None:
        kept.append((connection, connection.task, connection._call))
        lost(connection, exc)

    put(Connection, "connection_lost", connection_lost)


def hangup() -> None:
    """Nobody sees a client leave."""
    lost = Connection.connection_lost

    def connection_lost(self: Connection, exc: Exception | None) -> None:
        self.task = None
        lost(self, exc)

    put(Connection, "connection_lost", connection_lost)


def commit() -> None:
    """Nobody waits until a row is written."""

    async def enter(self: Ledger, record: Record) -> None:
        if record.metered and record.problem is None:
            self._rows.append(self._row(record))
            asyncio.get_running_loop().call_later(0.05, self._write_soon)

    put(Ledger, "enter", enter)


def sums() -> None:
    """The sums are written by themselves, after the rows."""
    write = Sqlite.write

    async def apart(self: Sqlite, *statements: Statement) -> list[int]:
        changed = await write(self, *statements[:1])
        await asyncio.sleep(0.01)
        return changed + await write(self, *statements[1:])

    put(Sqlite, "write", apart)


def keeping() -> None:
    """Nobody waits until an answer that may be said again is kept."""
    keep = Shelf.keep

    async def later(self: Shelf, name: Name, token: str, result: Result) -> bool:
        asyncio.get_running_loop().call_later(
            0.05, lambda: asyncio.ensure_future(keep(self, name, token, result))
        )
        return True

    put(Shelf, "keep", later)


def patience() -> None:
    """Who gives no sign of life for a second is gone."""
    put(repeats, "_BEAT_SECONDS", 0.2)
    put(repeats, "_DEAD_SECONDS", 1.0)


SWITCHES: dict[str, Callable[[], None]] = {
    one.__name__: one
    for one in (
        retries,
        notice,
        look,
        ends,
        pings,
        giving_up,
        failover,
        bound,
        turns,
        room,
        release,
        forgetting,
        hangup,
        commit,
        sums,
        keeping,
        patience,
    )
}


def tell_on_signal() -> None:
    """SIGUSR1 has the process write what it holds into the file that the environment names."""
    start = Fleet.start

    async def watched(self: Fleet) -> None:
        loop = asyncio.get_running_loop()

        def tell() -> None:
            gc.collect()
            told = {
                "tasks": len(asyncio.all_tasks(loop)),
                "leases": sum(one.leases for one in self.upstreams) + len(self.pool._held),
                "requests": len(self._asked) + self.pool.waiting + len(self.pool._running),
            }
            window = Path(os.environ["FAULTS_WINDOW"])
            part = window.with_suffix(".part")
            part.write_bytes(msgspec.json.encode(told))
            part.rename(window)

        loop.add_signal_handler(signal.SIGUSR1, tell)
        await start(self)

    put(Fleet, "start", watched)


if __name__ == "__main__":
    at = sys.argv.index("--")
    for name in sys.argv[1:at]:
        SWITCHES[name]()
    tell_on_signal()
    main(sys.argv[at + 1 :])
