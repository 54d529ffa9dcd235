"""What the processes of one gateway know of each other: who holds how many slots of which upstream.

Each process has the whole herd, and a row in memory that all of them share: what it holds of each
upstream. One more row is everybody's: which upstreams get nothing new, because somebody said so. A
process decides with that memory locked, so that a slot is never given twice; one that dies lets go
of the lock, and whoever starts it again of its row. Who frees a slot wakes those who wait
elsewhere, and who gives an upstream a prompt tells the others what it has read.

Nothing here waits for another process, but for the lock, which is held for microseconds.
"""

from __future__ import annotations

import fcntl
import hashlib
import mmap
import socket
import struct
import tempfile
from array import array
from collections.abc import Callable, Iterator, Sequence
from contextlib import contextmanager, suppress

MOST_UPSTREAMS = 1024
_DIGEST = 16
_CELL = struct.Struct("=i")
_COLUMN = struct.Struct("=H")


class TooManyUpstreamsError(Exception):
    """There is no place for one more."""


class Shared:
    """What is made once, before there is more than one process."""

    def __init__(self, processes: int) -> None:
        self.processes = processes
        columns = MOST_UPSTREAMS * _DIGEST
        rows = (processes + 1) * (MOST_UPSTREAMS + 1) * _CELL.size
        self.memory = mmap.mmap(-1, columns + rows)
        self.lock = tempfile.TemporaryFile()  # noqa: SIM115 - for as long as the process lives
        self.ways = [socket.socketpair(socket.AF_UNIX, socket.SOCK_DGRAM) for _ in range(processes)]
        for way in self.ways:
            for end in way:
                end.setblocking(False)  # noqa: FBT003

    def close(self) -> None:
        """Let go of it, in this process."""
        self.lock.close()
        for way in self.ways:
            for end in way:
                end.close()
        self.memory.close()

    def forget(self, process: int) -> None:
        """A process is over: it holds nothing."""
        with self.locked():
            start = MOST_UPSTREAMS * _DIGEST + process * (MOST_UPSTREAMS + 1) * _CELL.size
            self.memory[start : start + (MOST_UPSTREAMS + 1) * _CELL.size] = bytes(
                (MOST_UPSTREAMS + 1) * _CELL.size
            )

    @contextmanager
    def locked(self) -> Iterator[None]:
        """While this lasts, no other process looks or writes."""
        fcntl.lockf(self.lock, fcntl.LOCK_EX)
        try:
            yield
        finally:
            fcntl.lockf(self.lock, fcntl.LOCK_UN)


class Siblings:
    """The other processes, as one of them sees them."""

    def __init__(self, shared: Shared, process: int) -> None:
        self._shared = shared
        self._memory = shared.memory
        self.process, self.processes = process, shared.processes
        self.locked = shared.locked
        self._told: dict[int, int] = {}

    def column(self, key: object) -> int:
        """The column of an upstream, which is the same in all processes; call it while locked.

        Raises:
            TooManyUpstreamsError: there is none left.
        """
        digest = hashlib.sha256(repr(key).encode()).digest()[:_DIGEST]
        for column in range(MOST_UPSTREAMS):
            place = slice(column * _DIGEST, (column + 1) * _DIGEST)
            if self._memory[place] == digest:
                return column
            if self._memory[place] == bytes(_DIGEST):
                self._memory[place] = digest
                return column
        raise TooManyUpstreamsError

    def _cell(self, process: int, column: int) -> int:
        row = process * (MOST_UPSTREAMS + 1) + column
        return MOST_UPSTREAMS * _DIGEST + row * _CELL.size

    def taken(self, column: int) -> int:
        """How many slots of an upstream the others hold."""
        found = 0
        for process in range(self._shared.processes):
            if process != self.process:
                found += _CELL.unpack_from(self._memory, self._cell(process, column))[0]
        return found

    def hold(self, column: int, slots: int) -> bool:
        """Say how many are held here; whether that is fewer than before."""
        before = self._told.get(column, 0)
        if slots != before:
            self._told[column] = slots
            _CELL.pack_into(self._memory, self._cell(self.process, column), slots)
        return slots < before

    def hold_back(self, column: int, *, held: bool) -> None:
        """Say to all whether an upstream gets nothing new; call it while locked."""
        _CELL.pack_into(self._memory, self._cell(self._shared.processes, column), held)

    def held_back(self, column: int) -> bool:
        """Whether somebody has said that an upstream gets nothing new."""
        cell = self._cell(self._shared.processes, column)
        return bool(_CELL.unpack_from(self._memory, cell)[0])

    def wait(self, waiting: int) -> None:
        """Say how many wait here."""
        if waiting != self._told.get(MOST_UPSTREAMS, 0):
            self._told[MOST_UPSTREAMS] = waiting
            _CELL.pack_into(self._memory, self._cell(self.process, MOST_UPSTREAMS), waiting)

    def wake(self) -> None:
        """A slot is free: those who wait elsewhere look again."""
        for process in range(self._shared.processes):
            cell = self._cell(process, MOST_UPSTREAMS)
            if process != self.process and _CELL.unpack_from(self._memory, cell)[0]:
                self._send(process, b"")

    def tell(self, column: int, chain: Sequence[int]) -> None:
        """An upstream reads this prompt now."""
        told = _COLUMN.pack(column) + array("q", chain).tobytes()
        for process in range(self._shared.processes):
            if process != self.process:
                self._send(process, told)

    def _send(self, process: int, data: bytes) -> None:
        # Who has so much to read that there is no room wakes anyway; a hint more or less is none.
        with suppress(OSError):
            self._shared.ways[process][1].send(data)

    def hear(self, woken: Callable[[], None], told: Callable[[int, Sequence[int]], None]) -> None:
        """Take what the others have sent; call it when `fileno` can be read."""
        wakes = False
        with suppress(BlockingIOError):
            while True:
                data = self._shared.ways[self.process][0].recv(65536)
                if not data:
                    wakes = True
                    continue
                chain = array("q")
                chain.frombytes(data[_COLUMN.size :])
                told(_COLUMN.unpack_from(data)[0], chain)
        if wakes:
            woken()

    def fileno(self) -> int:
        """What can be read once another process has sent something."""
        return self._shared.ways[self.process][0].fileno()
