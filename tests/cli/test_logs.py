"""`tropilla logs`: a file, a pipe, or a gateway that runs."""

from __future__ import annotations

import subprocess
import sys
from collections.abc import Iterator
from pathlib import Path
from queue import Queue
from threading import Thread

import msgspec
import pytest
from click.testing import CliRunner, Result

from conftest import Serve
from doubles.upstream import DEADLINE, Double
from tropilla.cli import main

AT = "2026-11-28T17:15:58.782Z"
LOST = {"time": AT, "level": "warning", "event": "upstream.lost",
        "message": "The upstream \x1b[31m is gone.\nNo.", "upstream": "u"}  # fmt: skip
ASKED = {"time": AT, "level": "info", "event": "request", "request": "req_1", "method": "POST",
         "path": "/v1/chat/completions", "status": 200, "model": "m", "key": "k",
         "prompt_tokens": 7, "completion_tokens": 3, "total_ms": 120.0}  # fmt: skip
BAD = ASKED | {"request": "req_2", "level": "error", "status": 502, "model": "\x1b]0;x\x07n",
               "key": "l"}  # fmt: skip


def written(*lines: object) -> str:
    return "".join(
        (line if isinstance(line, str) else msgspec.json.encode(line).decode()) + "\n"
        for line in lines
    )


@pytest.fixture
def file(tmp_path: Path) -> Path:
    path = tmp_path / "log"
    path.write_text(written(LOST, "what \x1b[2J else", ASKED, '{"time":', BAD), encoding="utf-8")
    return path


def shown(*args: str, given: str | None = None) -> Result:
    result = CliRunner().invoke(main, ["logs", *args], input=given)
    assert result.exit_code == 0, result.output
    return result


def test_a_file_is_shown(file: Path) -> None:
    lines = shown(str(file)).output.splitlines()
    assert lines[:2] == [
        f"{AT}  warning  upstream.lost  The upstream \\u001b[31m is gone.", "  No.",
    ]  # fmt: skip
    assert lines[2] == "what \\u001b[2J else"
    assert lines[3] == (
        f"{AT}  info     req_1  200  POST  /v1/chat/completions  m  k  7 + 3 tokens  0.12 s"
    )
    assert all(line.isprintable() for line in lines)


@pytest.mark.parametrize(
    ("args", "requests"),
    [
        (["--level", "error"], ["req_2"]),
        (["--event", "request"], ["req_1", "req_2"]),
        (["--event", "upstream"], [None]),
        (["--key", "k"], ["req_1"]),
        (["--model", "m"], ["req_1"]),
        (["-n", "1"], ["req_2"]),
        (["--event", "nothing"], []),
    ],
)
def test_filters(file: Path, args: list[str], requests: list[str | None]) -> None:
    output = shown(str(file), "--json", *args).output
    found = [msgspec.json.decode(line) for line in output.splitlines()]
    assert [line.get("request") for line in found] == requests


def test_a_pipe_may_have_more_before_its_lines() -> None:
    told = "gateway-1  | " + written(ASKED) + "Nov 28 host tropilla[7]: " + written(BAD)
    lines = shown("-", "--event", "request", given=told).output.splitlines()
    assert ["req_1" in lines[0], "req_2" in lines[1], len(lines)] == [True, True, 2]


@pytest.fixture
def following(file: Path) -> Iterator[Queue[str]]:
    """Lines of a command that follows a file."""
    process = subprocess.Popen(
        [sys.executable, "-m", "tropilla", "logs", "-f", "-n", "1", str(file)],
        stdout=subprocess.PIPE, text=True,
    )  # fmt: skip
    assert process.stdout is not None
    told: Queue[str] = Queue()
    stream = process.stdout

    def read() -> None:
        for line in stream:
            told.put(line)

    reader = Thread(target=read)
    reader.start()
    yield told
    process.terminate()
    process.wait(DEADLINE)
    reader.join(DEADLINE)
    stream.close()


def test_a_file_is_followed_into_the_next(file: Path, following: Queue[str]) -> None:
    assert "req_2" in following.get(timeout=DEADLINE)
    with file.open("a", encoding="utf-8") as more:
        more.write(written(ASKED | {"request": "req_3"}))
    assert "req_3" in following.get(timeout=DEADLINE)
    file.rename(file.with_suffix(".1"))
    file.write_text(written(ASKED | {"request": "req_4"}), encoding="utf-8")
    assert "req_4" in following.get(timeout=DEADLINE)


@pytest.mark.anyio
async def test_a_gateway_is_asked(gateway: Serve, double: Double) -> None:
    import asyncio

    tropilla = await gateway(double)
    await tropilla.ask("GET", "/nowhere")
    result = await asyncio.to_thread(shown, "--url", tropilla.url, "--event", "request")
    assert "404  GET  /nowhere" in result.output
