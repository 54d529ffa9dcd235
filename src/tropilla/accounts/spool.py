"""Rows that wait for a store that fails: a file each process has for itself, synced to the disk.

What `add` has returned from survives a crash of the machine. A process that starts takes the files
of those that ended with rows in theirs. A line that is cut, because its process ended while it
wrote it, was never answered for, and is left out.
"""

from __future__ import annotations

import asyncio
import fcntl
import os
from collections.abc import Iterable, Sequence
from pathlib import Path
from typing import IO
from uuid import uuid4

import msgspec

from tropilla.accounts.store import Cell

_ENDING = ".spool"


class Spool:
    """A folder of such files, of which one is this process's own; `most` is in bytes."""

    def __init__(self, folder: Path, most: int) -> None:
        self._folder = folder
        self._most = most
        self._file: IO[bytes] | None = None
        self._path = folder
        self._taken: list[IO[bytes]] = []
        """Files of processes that have ended."""
        self._turn = asyncio.Lock()
        self._failed = False
        self._size = 0
        self.rows: list[tuple[Cell, ...]] = []
        for path in sorted(folder.glob(f"*{_ENDING}")):
            self._take(path)

    @property
    def full(self) -> bool:
        """Whether no more rows can be kept."""
        return self._failed or self._size >= self._most

    def _take(self, path: Path) -> None:
        file = path.open("r+b")
        try:
            fcntl.flock(file, fcntl.LOCK_EX | fcntl.LOCK_NB)
        except OSError:
            file.close()  # its process lives
            return
        for line in file:
            try:
                self.rows.append(tuple(msgspec.json.decode(line)))
            except msgspec.DecodeError:
                break
        self._taken.append(file)
        self._size += path.stat().st_size

    async def add(self, rows: Sequence[tuple[Cell, ...]]) -> None:
        """Keep rows.

        Raises:
            OSError: they cannot be.
        """
        if not rows:
            return
        async with self._turn:
            try:
                await asyncio.to_thread(self._add, rows)
            except OSError:
                self._failed = True
                raise
            self.rows = [*self.rows, *rows]

    def _add(self, rows: Iterable[tuple[Cell, ...]]) -> None:
        if self._file is None:
            self._file = self._make()
        data = b"".join(msgspec.json.encode(row) + b"\n" for row in rows)
        self._file.write(data)
        self._file.flush()
        os.fsync(self._file.fileno())
        self._size += len(data)

    def _make(self) -> IO[bytes]:
        # It has its name once it is locked: nobody takes it for that of a process that has ended.
        self._folder.mkdir(parents=True, exist_ok=True)
        path = self._folder / uuid4().hex
        file = path.open("xb")
        fcntl.flock(file, fcntl.LOCK_EX)
        path.rename(path.with_suffix(_ENDING))
        self._path = path.with_suffix(_ENDING)
        return file

    async def drop(self, count: int) -> None:
        """Forget the oldest rows: the store has them."""
        async with self._turn:
            self.rows = self.rows[count:]
            if not self.rows:
                # Before that what is in a file twice counts once.
                await asyncio.to_thread(self._remove)

    def _remove(self) -> None:
        for path, file in self._files():
            path.unlink(missing_ok=True)
            file.close()
        self._file, self._taken, self._size, self._failed = None, [], 0, False

    def _files(self) -> list[tuple[Path, IO[bytes]]]:
        own = [] if self._file is None else [(self._path, self._file)]
        return [*((Path(file.name), file) for file in self._taken), *own]

    async def close(self) -> None:
        """Let go of the files; another process takes the rows that are in them."""
        async with self._turn:
            for _, file in self._files():
                file.close()
            self._file, self._taken = None, []
