"""The command line: what it says, what it refuses, and the process it runs."""

from __future__ import annotations

import http.client
import os
import re
import signal
import socket
import subprocess
import sys
import tempfile
import time
from collections.abc import Callable, Iterator
from contextlib import contextmanager, suppress
from pathlib import Path
from typing import Any

import msgspec
import pytest
from click.testing import CliRunner, Result

from tropilla import __version__
from tropilla.cli import main
from tropilla.config import TINY_MODEL, Config
from tropilla.server import run
from tropilla.templates import Classic

DEADLINE = 20
POSIX = pytest.mark.skipif(sys.platform == "win32", reason="signals are POSIX's")


def cli(*arguments: str) -> Result:
    return CliRunner().invoke(main, arguments)


def told(
    monkeypatch: pytest.MonkeyPatch, *arguments: str, env: dict[str, str] | None = None
) -> Config:
    """What the gateway would be told."""
    found: list[Config] = []

    def serves(config: Config, sock: socket.socket, _: object) -> None:
        found.append(config)
        sock.close()

    monkeypatch.setattr(run, "run", serves)
    monkeypatch.setattr(sys, "argv", ["tropilla", "serve", *arguments])
    result = CliRunner().invoke(main, ["serve", "--port", "0", *arguments], env=env)
    assert result.exit_code == 0, result.output
    return found[0]


def test_version_and_help() -> None:
    assert __version__ in cli("--version").output
    for arguments in (("--help",), ("-h",), ("serve", "--help"), ("serve", "-h")):
        result = cli(*arguments)
        assert result.exit_code == 0
        assert "Usage:" in result.output
    shown = cli("serve", "--help").output
    for option in ("--upstream", "--llama-api", "--api-key-file", "--any-model", "--chat-prompt"):
        assert option in shown


def test_the_version_loads_nothing_that_serves() -> None:
    code = (
        "import sys; sys.argv = ['tropilla', '--version']\n"
        "from tropilla.cli import main\n"
        "try: main()\n"
        "except SystemExit: pass\n"
        "print([m for m in ('aiohttp', 'uvicorn', 'asyncio', 'msgspec') if m in sys.modules])"
    )
    done = subprocess.run(
        [sys.executable, "-c", code], capture_output=True, text=True, timeout=DEADLINE, check=True
    )
    assert done.stdout.splitlines()[-1] == "[]"


@pytest.mark.parametrize(
    ("arguments", "words"),
    [
        (("--port", "70000"), "--port"),
        (("--port", "http"), "--port"),
        (("--upstream", "ftp://h"), "not by 'ftp'"),
        (("--upstream", "http://"), "names no server"),
        (("--upstream", "http://[::1"), "no address"),
        (("--upstream", "h:1", "--model", "x.gguf"), "exclude each other"),
        (("--template", "auto", "--user-name", "U"), "--user-name belongs to the classic"),
        (("--template", "other"), "--template"),
        (("--slots", "0"), "--slots"),
        (("--api-key-file", "/no/such/file"), "/no/such/file"),
        (("--no-such-option",), "--no-such-option"),
        (("--host", "203.0.113.1"), "203.0.113.1"),
    ],
)
def test_what_cannot_be_is_refused_at_once(arguments: tuple[str, ...], words: str) -> None:
    result = cli("serve", *arguments)
    assert result.exit_code == 2
    assert words in result.output
    assert "Traceback" not in result.output


def test_a_port_in_use() -> None:
    with socket.create_server(("127.0.0.1", 0)) as sock:
        port = sock.getsockname()[1]
        result = cli("serve", "--port", str(port))
    assert result.exit_code == 2
    assert f"127.0.0.1:{port}" in result.output
    assert "in use" in result.output
    assert "--port" in result.output


def test_options(monkeypatch: pytest.MonkeyPatch, key_file: Path) -> None:
    config = told(
        monkeypatch, "--upstream", "10.78.26.241:40081", "--upstream", "https://h/llama/",
        "--upstream-api-key", "u", "--api-key", "a", "--api-key", "", "--api-key-file",
        str(key_file), "--allow-admin",
    )  # fmt: skip
    assert [one.url for one in config.upstreams] == ["http://10.78.26.241:40081", "https://h/llama"]
    assert {one.api_key for one in config.upstreams} == {"u"}
    assert config.api_keys == ("a", "one", "two")
    assert (config.allow_admin, config.any_model, config.template) == (True, False, None)


def test_nothing_runs_the_tiny_model(monkeypatch: pytest.MonkeyPatch) -> None:
    config = told(monkeypatch)
    assert (config.upstreams, config.engine.model, config.api_keys) == ((), TINY_MODEL, ())
    config = told(monkeypatch, "--model", "/x/a-7b.gguf", "--slots", "2")
    assert (config.engine.model, config.engine.name) == (Path("/x/a-7b.gguf"), "a-7b")
    assert config.engine.slots == 2


def test_keys_of_the_environment(monkeypatch: pytest.MonkeyPatch) -> None:
    assert told(monkeypatch, env={"TROPILLA_API_KEY": "one"}).api_keys == ("one",)
    assert told(monkeypatch, env={"TROPILLA_API_KEY": ""}).api_keys == ()
    config = told(monkeypatch, "--upstream", "h", env={"TROPILLA_UPSTREAM_API_KEY": "u"})
    assert config.upstreams[0].api_key == "u"


@pytest.mark.parametrize("spelled", [["--llama-api", "http://h:1"], ["--llama-api=http://h:1"]])
def test_started_as_the_script_was(monkeypatch: pytest.MonkeyPatch, spelled: list[str]) -> None:
    config = told(monkeypatch, *spelled)
    assert [one.url for one in config.upstreams] == ["http://h:1"]
    assert config.any_model is True
    assert told(monkeypatch, *spelled, "--no-any-model").any_model is False
    assert told(monkeypatch, "--upstream", "h").any_model is False
    assert told(monkeypatch, "--user-name", "U: ").template == Classic(user_name="U: ")


# The real thing.


@contextmanager
def serving(*arguments: str) -> Iterator[tuple[subprocess.Popen[str], str, str]]:
    """A real `tropilla serve`, its address and its banner."""
    command = [sys.executable, "-m", "tropilla", "serve", "--port", "0", *arguments]
    with subprocess.Popen(
        command, stdout=subprocess.PIPE, stderr=subprocess.PIPE, text=True
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


def ask(address: str, method: str, path: str, body: Any = None) -> tuple[int, bytes]:
    connection = http.client.HTTPConnection(address, timeout=DEADLINE)
    try:
        data = None if body is None else msgspec.json.encode(body)
        connection.request(method, path, data, {"Authorization": "Bearer k"})
        answer = connection.getresponse()
        return answer.status, answer.read()
    finally:
        connection.close()


def children(pid: int) -> list[int]:
    path = Path(f"/proc/{pid}/task/{pid}/children")
    return [int(child) for child in path.read_text().split()] if path.exists() else []


@pytest.fixture(autouse=True)
def temporary(monkeypatch: pytest.MonkeyPatch) -> Iterator[None]:
    """A temporary folder of the test's own, in which nothing may be left."""
    # Short enough for a socket's path; pytest's own is not.
    with tempfile.TemporaryDirectory(dir="/tmp" if os.name == "posix" else None) as path:
        monkeypatch.setenv("TMPDIR", path)
        yield
        assert list(Path(path).iterdir()) == []


CHAT = {"model": "tropilla-tiny", "messages": [{"role": "user", "content": "Hi"}], "max_tokens": 4}


@POSIX
@pytest.mark.parametrize("number", [signal.SIGINT, signal.SIGTERM])
def test_serve_and_end(number: signal.Signals) -> None:
    with serving("--api-key", "k") as (process, address, banner):
        assert "tropilla-tiny" in banner
        assert "YOUR_KEY" in banner
        # The first request is answered once the model is loaded; nobody has to wait for it.
        status, body = ask(address, "POST", "/v1/chat/completions", CHAT)
        assert (status, msgspec.json.decode(body)["object"]) == (200, "chat.completion")
        assert ask(address, "GET", "/health")[0] == 200
        offspring = children(process.pid)
        assert offspring or not Path("/proc").exists()
        process.send_signal(number)
        _, errors = process.communicate(timeout=DEADLINE)
    assert process.returncode in {0, 130}
    assert "Traceback" not in errors
    for child in offspring:
        with pytest.raises(ProcessLookupError):
            os.kill(child, 0)


@POSIX
@pytest.mark.skipif(not Path("/proc").exists(), reason="the engine is found in /proc")
def test_an_engine_that_is_killed_while_idle_is_not_missed() -> None:
    with serving() as (process, address, _):
        assert ask(address, "POST", "/v1/chat/completions", CHAT)[0] == 200
        (before,) = children(process.pid)
        os.kill(before, signal.SIGKILL)
        for _ in range(3):
            assert ask(address, "POST", "/v1/chat/completions", CHAT)[0] == 200
        (after,) = children(process.pid)
        assert after != before
        process.send_signal(signal.SIGTERM)
        process.communicate(timeout=DEADLINE)


@POSIX
def test_the_end_does_not_wait_long_for_a_stream(free_port: int) -> None:
    """The second signal ends what the first one lets run out."""
    with (
        socket.create_server(("127.0.0.1", free_port)) as silent,
        serving("--upstream", f"127.0.0.1:{free_port}") as (process, address, _),
        socket.create_connection(("127.0.0.1", int(address.rpartition(":")[2]))) as client,
    ):
        # The server never says what it is, so a request waits for it.
        silent.accept()[0].close()
        client.sendall(b"GET /v1/models/x HTTP/1.1\r\nHost: t\r\n\r\n")
        assert b"404" in client.recv(65536)
        body = msgspec.json.encode(CHAT)
        head = f"POST /v1/chat/completions HTTP/1.1\r\nContent-Length: {len(body)}\r\n\r\n"
        client.sendall(head.encode() + body)
        process.send_signal(signal.SIGINT)
        # It has heard that once it takes no more connections: those that it has not taken yet are
        # reset, and new ones refused.
        until = time.monotonic() + DEADLINE
        with suppress(ConnectionError):
            while time.monotonic() < until:
                ask(address, "GET", "/health")
        process.send_signal(signal.SIGINT)
        _, errors = process.communicate(timeout=DEADLINE)
    assert process.returncode in {0, 130}
    assert "Traceback" not in errors, errors


@pytest.mark.parametrize(
    ("write", "words"),
    [
        (None, "There is no model file"),
        (lambda path: path.write_bytes(b"not a model"), "not a GGUF file"),
        (lambda path: path.write_bytes(b"GGUF" + b"\0" * 100), "cannot load"),
    ],
    ids=["missing", "no GGUF", "damaged"],
)
def test_a_model_that_cannot_be_served(
    tmp_path: Path, write: Callable[[Path], object] | None, words: str
) -> None:
    path = tmp_path / "x.gguf"
    if write:
        write(path)
    done = subprocess.run(
        [sys.executable, "-m", "tropilla", "serve", "--port", "0", "--model", str(path)],
        capture_output=True, text=True, timeout=DEADLINE, check=False,
    )  # fmt: skip
    assert done.returncode == 1
    assert words in done.stderr
    assert "Traceback" not in done.stderr


def test_an_upstream_that_is_not_there_is_told(free_port: int) -> None:
    with serving("--llama-api", f"127.0.0.1:{free_port}") as (process, address, banner):
        assert f"http://127.0.0.1:{free_port}" in banner
        assert ask(address, "GET", "/health")[0] == 503
        status, body = ask(address, "POST", "/v1/chat/completions", CHAT)
        assert status == 503
        assert f"http://127.0.0.1:{free_port} cannot be reached" in body.decode()
        process.terminate()
        _, errors = process.communicate(timeout=DEADLINE)
    assert "cannot be reached" in errors
    assert "Traceback" not in errors
