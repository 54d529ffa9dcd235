"""What is imported: no more than a command needs, which is most of the time to start."""

from __future__ import annotations

import os
import re
import signal
import subprocess
import sys

import pytest

from doubles.llama import llama
from serving import DEADLINE, POSIX, ask

COUNT = """
import atexit, sys
before = set(sys.modules)
atexit.register(lambda: print("\\n", *sorted(sys.modules.keys() - before), file=sys.stderr))
from tropilla.cli import main
main()
"""
CHAT = {"messages": [{"role": "user", "content": "Hi"}]}
HEAVY = {
    "aiohttp", "hypothesis", "minijinja", "multidict", "pygments", "pytest", "rich", "sqlite3",
    "xllamacpp", "yaml", "yarl",
}  # fmt: skip
"""What has its use, but not for everybody."""
COMMANDS = (
    "asking",
    "chat",
    "config",
    "connect",
    "db",
    "doctor",
    "herd",
    "keys",
    "logs",
    "models",
    "options",
    "serve",
    "usage",
)
SERVING = {"asyncio", "httptools", "msgspec", "socket", "ssl", "uvloop"}


def packages(modules: set[str]) -> set[str]:
    return {one.partition(".")[0] for one in modules}


@pytest.mark.parametrize("arguments", [("--version",), ("--help",), ("serve", "--help")])
def test_who_only_asks_loads_nothing_that_serves(arguments: tuple[str, ...]) -> None:
    command = [sys.executable, "-c", COUNT, *arguments]
    done = subprocess.run(command, capture_output=True, text=True, check=True)
    modules = set(done.stderr.split())
    assert "tropilla.cli.serve" in modules
    assert packages(modules) & (HEAVY | SERVING) == set()
    assert {one for one in modules if one.startswith("tropilla.")} <= {
        "tropilla.cli",
        *(f"tropilla.cli.{one}" for one in COMMANDS),
    }
    assert len(modules) < 130


@POSIX
def test_a_gateway_that_has_answered_has_loaded_what_it_needed() -> None:
    with llama(4300) as double:
        command = [sys.executable, "-c", COUNT, "serve", "--port", "0", "--upstream", double.url]
        environment = {name: it for name, it in os.environ.items() if "TROPILLA" not in name}
        with subprocess.Popen(
            command, stdout=subprocess.PIPE, stderr=subprocess.PIPE, text=True, env=environment
        ) as process:
            try:
                assert process.stdout is not None
                found = re.search(r"listens on http://([\d.:]+)/v1", process.stdout.readline())
                assert found
                assert ask(found[1], "POST", "/v1/chat/completions", CHAT)[0] == 200
                process.send_signal(signal.SIGTERM)
                _, errors = process.communicate(timeout=DEADLINE)
            finally:
                process.kill()
    modules = set(errors.splitlines()[-1].split())
    assert "tropilla.server.http" in modules
    assert packages(modules) & HEAVY == set()
    assert not [one for one in modules if one.startswith("tropilla.dashboard")]
    assert len(modules) < 450
