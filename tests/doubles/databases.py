"""Real servers for tests: PostgreSQL and Valkey (or Redis), where this machine has them.

Each is started in a folder of its own, on a socket in it, and ends with the tests. PostgreSQL does
not run as root: it is given to the user that its Debian package makes.
"""

from __future__ import annotations

import os
import shutil
import subprocess
import tempfile
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path

_USER = "postgres"


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
