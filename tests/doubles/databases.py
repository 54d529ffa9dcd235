"""Real servers for tests: PostgreSQL and Valkey (or Redis), where this machine has them.

Each is started in a folder of its own, on a socket in it, and ends with the tests. PostgreSQL does
not run as root: it is given to the user that its Debian package makes.
"""

from __future__ import annotations

import os
import shutil
import signal
import socket
import subprocess
import tempfile
import time
from collections.abc import AsyncIterator, Iterator
from contextlib import asynccontextmanager, contextmanager
from pathlib import Path

from tropilla.accounts.store import Store

_USER = "postgres"
_SECONDS = 20.0
"""How long a server may take to begin."""


def postgres_bin() -> Path | None:
    """The folder of its programs."""
    found = sorted(Path("/usr/lib/postgresql").glob("*/bin/initdb"))
    told = found[-1] if found else shutil.which("initdb")
    return Path(told).resolve().parent if told else None


def valkey_bin() -> str | None:
    """The program of Valkey, or of Redis, which speaks the same."""
    return shutil.which("valkey-server") or shutil.which("redis-server")


@contextmanager
def postgres() -> Iterator[Postgres]:
    """A server without a database."""
    programs = postgres_bin()
    assert programs is not None
    with tempfile.TemporaryDirectory(prefix="tropilla-pg-") as folder:
        as_root = os.getuid() == 0
        if as_root:
            shutil.chown(folder, _USER)
        server = Postgres(Path(folder), programs, ["runuser", "-u", _USER, "--"] if as_root else [])
        server.run(
            "initdb", "--pgdata", f"{folder}/data", "--auth=trust", "--username=tropilla",
            "--no-sync", "--encoding=UTF8", "--locale=C",
        )  # fmt: skip
        server.start()
        try:
            yield server
        finally:
            server.stop()


class Postgres:
    """A server of PostgreSQL."""

    def __init__(self, folder: Path, programs: Path, prefix: list[str]) -> None:
        self._folder = folder
        self._programs = programs
        self._prefix = prefix
        self._count = 0

    def run(self, program: str, *arguments: str) -> None:
        """Run one of its programs to its end."""
        subprocess.run(
            [*self._prefix, str(self._programs / program), *arguments],
            check=True, stdout=subprocess.DEVNULL, cwd=self._folder, timeout=60,
        )  # fmt: skip

    def start(self) -> None:
        """Start it, and wait until it answers."""
        options = f"-c listen_addresses= -c unix_socket_directories={self._folder} -c fsync=off"
        self.run(
            "pg_ctl", "start", "--wait", f"--pgdata={self._folder}/data",
            f"--log={self._folder}/log", f"--options={options}",
        )  # fmt: skip

    def stop(self, how: str = "immediate") -> None:
        """End it at once."""
        self.run("pg_ctl", "stop", "--wait", f"--pgdata={self._folder}/data", f"--mode={how}")

    def database(self) -> str:
        """The address of a new, empty database."""
        self._count += 1
        name = f"t{self._count}"
        self.run("createdb", f"--host={self._folder}", "--username=tropilla", name)
        return f"postgresql://tropilla@/{name}?host={self._folder}"


@asynccontextmanager
async def refusing(store: Store, what: str, table: str = "responses") -> AsyncIterator[None]:
    """While this lasts a store does no INSERT, or no DELETE, of a table; it can be read."""
    begin = f"CREATE TRIGGER refuses BEFORE {what} ON {table} FOR EACH ROW"
    if store.url.startswith("postgresql"):
        does = "BEGIN RAISE 'It is full.'; END"
        made = f"CREATE FUNCTION refused() RETURNS trigger LANGUAGE plpgsql AS $${does}$$"
        begin, ends = f"{begin} EXECUTE FUNCTION refused()", "DROP FUNCTION refused CASCADE"
        await store.write((made, [()]))
    else:
        begin, ends = (
            f"{begin} BEGIN SELECT RAISE(ABORT, 'It is full.'); END",
            "DROP TRIGGER refuses",
        )
    await store.write((begin, [()]))
    yield
    await store.write((ends, [()]))


@contextmanager
def valkey() -> Iterator[Valkey]:
    """A server that holds nothing."""
    program = valkey_bin()
    assert program is not None
    with tempfile.TemporaryDirectory(prefix="tropilla-vk-") as folder:
        server = Valkey(Path(folder), program)
        server.start()
        try:
            yield server
        finally:
            server.stop()


class Valkey:
    """A server of Valkey, or of Redis, which keeps nothing on a disk."""

    def __init__(self, folder: Path, program: str) -> None:
        self._folder = folder
        self._program = program
        self._process: subprocess.Popen[bytes] | None = None
        self._count = -1

    def start(self) -> None:
        """Start it, and wait until it answers."""
        path = self._folder / "socket"
        path.unlink(missing_ok=True)
        self._process = subprocess.Popen(
            [
                self._program, "--port", "0", "--unixsocket", str(path), "--save", "",
                "--appendonly", "no", "--databases", "512", "--dir", str(self._folder),
            ],
            stdout=subprocess.DEVNULL,
        )  # fmt: skip
        until = time.monotonic() + _SECONDS
        while not _answers(path):
            assert self._process.poll() is None, "it has ended"
            assert time.monotonic() < until, "it does not answer"
            time.sleep(0.01)

    def stop(self) -> None:
        """End it at once; what it held is gone."""
        assert self._process is not None
        self._process.kill()
        self._process.wait()

    def pause(self) -> None:
        """Have it do nothing, but keep its connections."""
        assert self._process is not None
        self._process.send_signal(signal.SIGSTOP)

    def go_on(self) -> None:
        """Have it go on where it was."""
        assert self._process is not None
        self._process.send_signal(signal.SIGCONT)

    def database(self) -> str:
        """The address of an empty database."""
        self._count += 1
        return f"unix://{self._folder}/socket?db={self._count}"


def _answers(path: Path) -> bool:
    with socket.socket(socket.AF_UNIX) as sock:
        sock.settimeout(1.0)
        try:
            sock.connect(str(path))
            sock.sendall(b"PING\r\n")
            return sock.recv(16).startswith(b"+PONG")
        except OSError:
            return False
