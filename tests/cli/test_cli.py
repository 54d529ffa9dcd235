"""The command line: what it says, what it refuses, and the process it runs."""

from __future__ import annotations

import http.client
import os
import signal
import socket
import subprocess
import sys
import tempfile
import time
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import Any

import msgspec
import pytest
from click.testing import CliRunner, Result

from doubles.llama import llama
from doubles.llama.control import Llama
from serving import DEADLINE, POSIX, ask, children, serving
from tropilla import __version__
from tropilla.cli import main
from tropilla.config import TINY_MODEL, TINY_NAME, Config
from tropilla.server import run
from tropilla.templates import Classic


def cli(*arguments: str) -> Result:
    return CliRunner().invoke(main, arguments)


def told(
    monkeypatch: pytest.MonkeyPatch, *arguments: str, env: dict[str, str] | None = None
) -> Config:
    """What the gateway would be told."""
    found: list[Config] = []

    def serves(config: Config, sockets: list[socket.socket], *_: object) -> None:
        found.append(config)
        for sock in sockets:
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
        "heavy = ('aiohttp', 'uvloop', 'asyncio', 'msgspec', 'yaml')\n"
        "print([m for m in heavy if m in sys.modules])"
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
        (("--slots", "257"), "--slots"),
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


# The config file.

SETTINGS = """\
listen: localhost:1
api_keys: [of-the-file]
models: {m: {upstreams: "http://u:hunter2@h:1", aliases: [a]}}
template: {stop: E, user_name: U}
any_model: true
allow_admin: true
max_body: 9
"""


@pytest.fixture
def file(tmp_path: Path) -> Path:
    path = tmp_path / "t.yaml"
    path.write_text(SETTINGS)
    return path


@pytest.fixture
def here(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    """A working directory of the test's own."""
    path = tmp_path / "here"
    path.mkdir()
    monkeypatch.chdir(path)
    return path


def test_a_config_file(monkeypatch: pytest.MonkeyPatch, file: Path) -> None:
    config = told(monkeypatch, "--config", str(file))
    assert (config.listen, config.api_keys) == ("localhost:0", ("of-the-file",))
    assert list(config.models) == ["m"]
    assert config.template == Classic(stop="E", user_name="U")
    assert (config.any_model, config.allow_admin, config.max_body) == (True, True, 9)
    assert told(monkeypatch, env={"TROPILLA_CONFIG": str(file)}) == config


def test_the_file_of_the_working_directory(monkeypatch: pytest.MonkeyPatch, here: Path) -> None:
    assert told(monkeypatch).models == {}
    (here / "tropilla.yaml").write_text(SETTINGS)
    assert list(told(monkeypatch).models) == ["m"]
    assert told(monkeypatch, "--config", os.devnull).models == {}


def test_flags_win_over_the_environment_and_that_over_the_file(
    monkeypatch: pytest.MonkeyPatch, file: Path
) -> None:
    env = {
        "TROPILLA_CONFIG": str(file), "TROPILLA_API_KEY": "of-the-environment",
        "TROPILLA_LISTEN": "127.0.0.1:2", "TROPILLA_ALLOW_ADMIN": "false",
        "TROPILLA_TEMPLATE": "auto",
    }  # fmt: skip
    config = told(monkeypatch, env=env)
    assert (config.listen, config.api_keys) == ("127.0.0.1:0", ("of-the-environment",))
    assert (config.template, config.allow_admin, config.any_model) == (None, False, True)
    config = told(
        monkeypatch, "--host", "localhost", "--api-key", "of-a-flag", "--allow-admin",
        "--no-any-model", "--template", "classic", env=env,
    )  # fmt: skip
    assert (config.listen, config.api_keys) == ("localhost:0", ("of-a-flag",))
    assert (config.template, config.allow_admin, config.any_model) == (Classic(), True, False)
    assert list(config.models) == ["m"]


def test_what_flags_leave_alone(monkeypatch: pytest.MonkeyPatch, file: Path) -> None:
    path = str(file)
    assert told(monkeypatch, "--config", path, "--api-key", "").api_keys == ()
    config = told(monkeypatch, "--config", path, "--user-name", "V")
    assert config.template == Classic(stop="E", user_name="V")
    config = told(monkeypatch, "--config", path, "--user-name", "V", "--template", "classic")
    assert config.template == Classic(user_name="V")
    assert told(monkeypatch, "--config", path, "--template", "auto").template is None


def test_flags_that_say_what_is_served_take_the_place_of_the_file(
    monkeypatch: pytest.MonkeyPatch, file: Path
) -> None:
    config = told(monkeypatch, "--config", str(file), "--upstream", "g", "--upstream-api-key", "u")
    assert [(one.url, one.api_key) for one in config.upstreams] == [("http://g", "u")]
    assert (config.models, config.max_body) == ({}, 9)
    config = told(monkeypatch, "--config", str(file), "--model", "/x/a-7b.gguf")
    assert (config.models, config.upstreams, config.engine.name) == ({}, (), "a-7b")


def test_the_engine_of_the_file_and_flags(monkeypatch: pytest.MonkeyPatch, file: Path) -> None:
    file.write_text("engine: {name: mine, slots: 2, ctx_size: 512, threads: 3}")
    engine = told(monkeypatch, "--config", str(file), "--threads", "0", "--slots", "7").engine
    assert (engine.name, engine.slots, engine.ctx_size, engine.threads) == ("mine", 7, 512, 0)
    assert engine.model == TINY_MODEL


def test_the_key_of_the_upstreams_wants_upstreams(file: Path, monkeypatch: Any) -> None:
    arguments = ["serve", "--config", str(file), "--upstream-api-key", "hunter2"]
    monkeypatch.setattr(sys, "argv", ["tropilla", *arguments])
    result = cli(*arguments)
    assert result.exit_code == 2
    assert "--upstream-api-key goes with --upstream" in result.output
    assert "hunter2" not in result.output


def test_serve_tells_all_that_is_wrong_with_a_file(file: Path) -> None:
    file.write_text("modles: {}\nlisten: 1\n")
    result = cli("serve", "--config", str(file))
    assert result.exit_code == 1
    assert result.output.splitlines() == [
        f"{file}:1:1: modles: there is no such setting (did you mean models?).",
        f"{file}:2:9: listen: must be HOST:PORT, as 127.0.0.1:8081, not a whole number.",
    ]
    result = cli("serve", "--config", str(file.parent / "none.yaml"))
    assert (result.exit_code, "No such file" in result.output) == (1, True)


def test_config_check(file: Path, here: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    result = cli("config", "check", str(file))
    assert (result.exit_code, result.output) == (0, f"{file} is fine: 1 model, 1 upstream.\n")
    result = cli("config", "check")
    assert (result.exit_code, "no tropilla.yaml here" in result.output) == (2, True)
    (here / "tropilla.yaml").write_text("engine: {slots: 1}\n")
    result = cli("config", "check")
    assert result.output == f"tropilla.yaml is fine: the engine serves {TINY_NAME}.\n"
    monkeypatch.setenv("TROPILLA_CONFIG", str(file))
    assert cli("config", "check").output.startswith(str(file))
    file.write_text("models: {a: [h, g], b: [h]}\nupstreams: [h, i]\n")
    assert cli("config", "check").output == f"{file} is fine: 2 models, 3 upstreams.\n"
    file.write_text("any_model: 1\nmax_body: x\n")
    result = cli("config", "check")
    assert (result.exit_code, len(result.output.splitlines())) == (1, 2)


def test_config_show(file: Path) -> None:
    result = cli("config", "show", str(file))
    assert result.exit_code == 0
    assert f"# From {file}" in result.output
    assert "max_body: 9" in result.output
    assert "hunter2" not in result.output
    assert "of-the-file" not in result.output


def test_config_schema() -> None:
    result = cli("config", "schema")
    assert result.exit_code == 0
    assert msgspec.json.decode(result.output)["properties"]["listen"]["type"] == "string"


# The real thing.


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


@contextmanager
def in_the_middle(address: str, double: Llama) -> Iterator[http.client.HTTPResponse]:
    """A stream whose first words have come, and the next do not."""
    double.hold(after=1)
    connection = http.client.HTTPConnection(address, timeout=DEADLINE)
    body = msgspec.json.encode(CHAT | {"model": None, "stream": True})
    connection.request("POST", "/v1/chat/completions", body)
    answer = connection.getresponse()
    answer.fp.peek(1)
    yield answer
    connection.close()


@POSIX
def test_an_open_stream_ends_before_the_gateway_does() -> None:
    with (
        llama(4300) as double,
        serving("--upstream", double.url) as (process, address, _),
        in_the_middle(address, double) as stream,
    ):
        process.send_signal(signal.SIGTERM)
        until = time.monotonic() + DEADLINE
        while (told := ask(address, "GET", "/health"))[0] == 200:
            assert time.monotonic() < until
        assert (told[0], msgspec.json.decode(told[1])["status"]) == (503, "draining")
        status, body = ask(address, "POST", "/v1/chat/completions", CHAT | {"model": None})
        assert (status, msgspec.json.decode(body)["error"]["message"]) == (503, "Tropilla ends.")
        double.free()
        assert stream.read().endswith(b"data: [DONE]\n\n")
        _, errors = process.communicate(timeout=DEADLINE)
    assert process.returncode in {0, 130}
    assert "Traceback" not in errors, errors


@POSIX
@pytest.mark.parametrize("signals", [1, 2])
def test_a_stream_that_does_not_end_is_ended_and_told(signals: int) -> None:
    """By the time that `--drain` gives, or by the second signal."""
    drain = ("--drain", "0.1") if signals == 1 else ()
    with (
        llama(4300) as double,
        serving("--upstream", double.url, *drain) as (process, address, _),
        in_the_middle(address, double) as stream,
    ):
        for _ in range(signals):
            process.send_signal(signal.SIGINT)
            if signals == 2:
                until = time.monotonic() + DEADLINE
                while ask(address, "GET", "/health")[0] == 200:
                    assert time.monotonic() < until
                signals = 1
        told = stream.read()
        _, errors = process.communicate(timeout=DEADLINE)
        double.free()
    assert b"Tropilla was ended." in told
    assert told.endswith(b"data: [DONE]\n\n")
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


def test_an_upstream_that_is_not_there_is_told(closed_port: int) -> None:
    with serving("--llama-api", f"127.0.0.1:{closed_port}") as (process, address, banner):
        assert f"http://127.0.0.1:{closed_port}" in banner
        assert ask(address, "GET", "/health")[0] == 503
        status, body = ask(address, "POST", "/v1/chat/completions", CHAT)
        assert status == 503
        assert f"http://127.0.0.1:{closed_port} cannot be reached" in body.decode()
        process.terminate()
        _, errors = process.communicate(timeout=DEADLINE)
    assert "cannot be reached" in errors
    assert "Traceback" not in errors


def test_models_of_a_file_are_served_by_their_names(tmp_path: Path, closed_port: int) -> None:
    (tmp_path / "tropilla.yaml").write_text(f"""\
models:
  mine:
    aliases: [gpt-4o]
    upstreams: {{url: "http://u:hunter2@127.0.0.1:{closed_port}", weight: 2, api_key: hunter2}}
upstreams: 127.0.0.1:{closed_port}
api_keys: k
""")
    with serving(cwd=tmp_path) as (process, address, banner):
        assert f"\n  mine (also gpt-4o): http://***@127.0.0.1:{closed_port} (weight 2)\n" in banner
        assert f"\n  http://127.0.0.1:{closed_port}\n" in banner
        assert "Its settings are from tropilla.yaml." in banner
        assert "hunter2" not in banner
        assert ask(address, "POST", "/v1/chat/completions", CHAT | {"model": "gpt-4o"})[0] == 503
        assert ask(address, "POST", "/v1/chat/completions", CHAT | {"model": "x"})[0] == 404
        process.terminate()
        _, errors = process.communicate(timeout=DEADLINE)
    assert "hunter2" not in errors


def test_the_engine_of_a_file_is_served_by_its_name(tmp_path: Path) -> None:
    (tmp_path / "t.yaml").write_text("engine: {name: mine}")
    with serving("--config", "t.yaml", cwd=tmp_path) as (process, address, banner):
        assert "  mine: the embedded llama.cpp engine, 4 slots" in banner
        status, body = ask(address, "POST", "/v1/chat/completions", CHAT | {"model": "mine"})
        assert (status, msgspec.json.decode(body)["model"]) == (200, "mine")
        process.terminate()
        process.communicate(timeout=DEADLINE)


def test_everything_is_served_on_ollamas_port_too(free_port: int) -> None:
    with (
        llama(4300) as double,
        serving("--upstream", double.url, "--ollama-port", str(free_port)) as (_, address, _),
    ):
        for each in (address, f"127.0.0.1:{free_port}"):
            assert ask(each, "GET", "/health")[0] in {200, 503}
    with socket.create_server(("127.0.0.1", 0)) as taken:
        port = taken.getsockname()[1]
        result = cli("serve", "--port", "0", "--ollama-port", str(port))
    assert result.exit_code == 2
    assert f"127.0.0.1:{port}" in result.output
    assert "--ollama-port." in result.output
