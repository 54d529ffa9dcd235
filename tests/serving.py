"""A real `tropilla serve` in a process of its own, and how it is asked from outside."""

from __future__ import annotations

import http.client
import re
import subprocess
import sys
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import Any

import msgspec
import pytest

DEADLINE = 20
POSIX = pytest.mark.skipif(sys.platform == "win32", reason="signals are POSIX's")


@contextmanager
def serving(
    *arguments: str, cwd: Path | None = None
) -> Iterator[tuple[subprocess.Popen[str], str, str]]:
    """A real `tropilla serve`, its address and its banner."""
    command = [sys.executable, "-m", "tropilla", "serve", "--port", "0", *arguments]
    with subprocess.Popen(
        command, stdout=subprocess.PIPE, stderr=subprocess.PIPE, text=True, cwd=cwd
    ) as process:
        try:
            banner = ""
            assert process.stdout is not None
            while "Ctrl-C" not in banner:
                line = process.stdout.readline()
                assert line, banner
                banner += line
            found = re.search(r"http://([\d.:\[\]]+)/v1", banner)
            assert found
            yield process, found[1], banner
        finally:
            process.kill()


def ask(
    address: str, method: str, path: str, body: Any = None, headers: dict[str, str] | None = None
) -> tuple[int, bytes]:
    connection = http.client.HTTPConnection(address, timeout=DEADLINE)
    try:
        data = None if body is None else msgspec.json.encode(body)
        connection.request(method, path, data, {"Authorization": "Bearer k", **(headers or {})})
        answer = connection.getresponse()
        return answer.status, answer.read()
    finally:
        connection.close()


def children(pid: int) -> list[int]:
    path = Path(f"/proc/{pid}/task/{pid}/children")
    return [int(child) for child in path.read_text().split()] if path.exists() else []
