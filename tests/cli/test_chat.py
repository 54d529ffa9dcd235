"""`tropilla chat`: in a terminal as people see it, and in a pipe as programs do."""

from __future__ import annotations

import asyncio
import os
import re
import subprocess
import sys
from collections.abc import AsyncIterator, Callable
from contextlib import suppress
from pathlib import Path
from typing import Any

import msgspec
import pytest

from conftest import Serve, Start
from doubles.upstream import DEADLINE, Double, chunk, refuses
from doubles.upstream import told as said
from tropilla.config import TINY_MODEL

if sys.platform == "win32":
    pytest.skip("pseudo-terminals are POSIX's", allow_module_level=True)

import pty

pytestmark = pytest.mark.anyio
COMMAND = [sys.executable, "-m", "tropilla", "chat"]

# Makes it the terminal whose Ctrl-C is heard, also where the tests run in a shell's background (it
# has them ignore SIGINT, which is inherited), and becomes the chat.
TAKE = (
    "import fcntl, os, signal, sys, termios; fcntl.ioctl(0, termios.TIOCSCTTY, 0);"
    "signal.signal(signal.SIGINT, signal.SIG_DFL);"
    "os.execv(sys.argv[1], sys.argv[1:])"
)


def environment() -> dict[str, str]:
    there = {name: it for name, it in os.environ.items() if not name.startswith("TROPILLA")}
    return there | {"TERM": "dumb", "COLUMNS": "200"}


class Terminal:
    """A person at a terminal, and the chat in it."""

    def __init__(self, *arguments: str, cwd: Path | None = None) -> None:
        self._master, slave = pty.openpty()
        self.process = subprocess.Popen(
            [sys.executable, "-c", TAKE, *COMMAND, *arguments], stdin=slave, stdout=slave,
            stderr=slave, env=environment(), cwd=cwd, start_new_session=True,
        )  # fmt: skip
        os.close(slave)
        self.seen = ""
        self._more = asyncio.Event()
        asyncio.get_running_loop().add_reader(self._master, self._read)

    def _read(self) -> None:
        data = b""
        with suppress(OSError):  # nobody has the other end any more
            data = os.read(self._master, 65536)
        if not data:
            asyncio.get_running_loop().remove_reader(self._master)
        self.seen += data.decode()
        self._more.set()

    def types(self, text: str) -> None:
        os.write(self._master, text.encode())

    async def sees(self, words: str) -> str:
        """Everything up to these words, which must come."""
        async with asyncio.timeout(DEADLINE):
            while words not in self.seen:
                self._more.clear()
                await self._more.wait()
        before, _, self.seen = self.seen.partition(words)
        return before

    async def ends(self) -> int:
        return await asyncio.to_thread(self.process.wait, DEADLINE)

    def close(self) -> None:
        self.process.kill()
        self.process.wait()
        asyncio.get_running_loop().remove_reader(self._master)
        os.close(self._master)


@pytest.fixture
async def terminal(anyio_backend: Any) -> AsyncIterator[Callable[..., Terminal]]:  # noqa: ARG001
    started: list[Terminal] = []

    def start(*arguments: str, cwd: Path | None = None) -> Terminal:
        started.append(Terminal(*arguments, cwd=cwd))
        return started[-1]

    yield start
    for one in started:
        one.close()


async def test_a_conversation(
    gateway: Serve, double: Double, terminal: Callable[..., Terminal], tmp_path: Path
) -> None:
    tropilla = await gateway(double)
    person = terminal("--url", tropilla.url, "--system", "Be kind.", cwd=tmp_path)
    await person.sees(">>> ")
    person.types("Hi\n")
    exchange = await double.arrives()
    assert exchange.json["messages"] == [
        {"role": "system", "content": "Be kind."}, {"role": "user", "content": "Hi"},
    ]  # fmt: skip
    await exchange.head()
    await exchange.send(chunk("Hel\x1b[2Jlo"))
    await person.sees("Hel[2Jlo")  # it is seen before the answer is whole, and rules no terminal
    for piece in said("!"):
        await exchange.send(piece)
    await exchange.end()
    status = await person.sees("]\r\n>>> ")
    assert re.search(r"\[\d+ tokens?", status)
    person.types('"""one\ntwo"""\n')
    exchange = await double.arrives()
    assert exchange.json["messages"][2:] == [
        {"role": "assistant", "content": "Hel\x1b[2Jlo!"}, {"role": "user", "content": "one\ntwo"},
    ]  # fmt: skip
    await exchange.stream(*said("Yes."))
    await person.sees("Yes.")
    await person.sees(">>> ")
    person.types("/save talk.json\n")
    await person.sees("Saved in talk.json")
    assert len(msgspec.json.decode((tmp_path / "talk.json").read_bytes())["messages"]) == 5
    person.types("/save talk.json\n")
    await person.sees("File exists")
    person.types("/save talk.md\n")
    await person.sees("Saved in talk.md")
    assert "## user\n\none\ntwo\n" in (tmp_path / "talk.md").read_text()
    person.types("/clear\n/system -\n//x\n")
    exchange = await double.arrives()
    assert exchange.json["messages"] == [{"role": "user", "content": "/x"}]
    await exchange.stream(*said("z"))
    await person.sees("]\r\n>>> ")  # Ctrl-D is no text, that could come too early
    person.types("\x04")
    assert await person.ends() == 0


async def test_ctrl_c_stops_an_answer(
    gateway: Serve, double: Double, terminal: Callable[..., Terminal]
) -> None:
    tropilla = await gateway(double)
    person = terminal("--url", tropilla.url)
    await person.sees(">>> ")
    person.types("Hi\n")
    exchange = await double.arrives()
    await exchange.head()
    await exchange.send(chunk("Once upon"))
    await person.sees("Once upon")
    person.types("\x03")
    # Python sees a signal that comes just before it begins to wait when the wait is over.
    async with asyncio.timeout(DEADLINE):
        while not exchange.gone.is_set():
            with suppress(TimeoutError, ConnectionError):
                await exchange.send(chunk("."))
                await asyncio.wait_for(exchange.gone.wait(), 0.1)
    await person.sees("(stopped)")
    await person.sees(">>> ")
    person.types("\x03\n")
    await person.sees("Ctrl-D ends.")
    person.types("Go on\n")
    exchange = await double.arrives()
    hi, upon, go = (one["content"] for one in exchange.json["messages"])
    assert (hi, upon.rstrip("."), go) == ("Hi", "Once upon", "Go on")
    await exchange.stream(*said("x"))
    await person.sees("]")
    person.types("/exit\n")
    assert await person.ends() == 0


async def test_models_and_mistakes(
    gateway: Serve, doubles: Start, terminal: Callable[..., Terminal]
) -> None:
    one, two = await doubles("a"), await doubles("b")
    tropilla = await gateway(one, two)
    person = terminal("b", "--url", tropilla.url)
    person.types("/model\n/model c\n/model a\n/save\n/what\n/help\n")
    assert "  a, 4096 tokens" in await person.sees("* b, 4096 tokens")
    await person.sees("There is no c")
    await person.sees("* a, 4096 tokens")
    await person.sees("/save FILE: where to?")
    await person.sees("There is no /what")
    await person.sees("Ctrl-C         stops an answer")
    person.types("Hi\n")
    exchange = await one.arrives()
    await exchange.whole(400, b'{"error": {"message": "Too long.", "code": 400}}')
    await person.sees("Too long.")
    person.types("Ho\n")
    exchange = await one.arrives()
    assert [message["content"] for message in exchange.json["messages"]] == ["Ho"]
    await exchange.stream(*said("x"))
    await person.sees("]")


async def piped(text: str, *arguments: str) -> subprocess.CompletedProcess[str]:
    return await asyncio.to_thread(
        subprocess.run, [*COMMAND, *arguments], input=text, capture_output=True, text=True,
        env=environment(), timeout=60, check=False,
    )  # fmt: skip


async def test_a_pipe(gateway: Serve, double: Double) -> None:
    tropilla = await gateway(double, api_keys=("one",))
    waiting = asyncio.create_task(
        piped("a\nb\n", "m", "--url", tropilla.url, "--api-key", "one", "-p", "Sum up:")
    )
    exchange = await double.arrives()
    assert exchange.json["messages"] == [{"role": "user", "content": "Sum up:\n\na\nb"}]
    await exchange.stream(*said("It", " is."))
    done = await waiting
    assert (done.returncode, done.stdout, done.stderr) == (0, "It is.\n", "")


async def test_what_cannot_be_in_a_pipe(gateway: Serve, double: Double, closed_port: int) -> None:
    tropilla = await gateway(double)
    closed = await gateway(double, api_keys=("one",))
    empty = await gateway(f"http://127.0.0.1:{closed_port}", ready=False)
    nowhere = f"http://127.0.0.1:{closed_port}"
    for text, arguments, words in (
        ("", ("--url", tropilla.url), "Nothing was piped in"),
        ("x", ("zz", "--url", tropilla.url), "serves no zz; it serves m"),
        ("x", ("--url", nowhere), "No gateway answers"),
        ("x", ("--url", closed.url), "refuses: "),
        ("x", ("--url", empty.url), "serves nothing yet"),
    ):
        done = await piped(text, *arguments)
        assert done.returncode
        assert words in done.stderr
        assert "Traceback" not in done.stderr
    double.on("/v1/chat/completions", refuses(400, "No.", "invalid_request_error"))
    done = await piped("x", "--url", tropilla.url)
    assert (done.returncode, done.stdout) == (1, "")
    assert "No." in done.stderr


@pytest.mark.parametrize("how", ["exit", "killed"])
async def test_an_engine_of_its_own(terminal: Callable[..., Terminal], how: str) -> None:
    person = terminal(str(TINY_MODEL))
    await person.sees("tiny: 1 slot of 8192 tokens")
    await person.sees(">>> ")
    (child,) = children(person.process.pid)
    engines = children(child)
    assert engines
    person.types("Hello!\n")
    assert re.search(r"of 8192 \(\d+ %\)$", await person.sees("]\r\n>>> "))
    if how == "exit":
        person.types("/exit\n")
        assert await person.ends() == 0
    else:
        person.process.kill()
    async with asyncio.timeout(DEADLINE):
        while any(map(lives, (child, *engines))):  # noqa: ASYNC110 - no event tells of it
            await asyncio.sleep(0)


def lives(pid: int) -> bool:
    """Whether it is more than a process whose end nobody has asked for."""
    try:
        return " Z " not in Path(f"/proc/{pid}/stat").read_text(encoding="ascii")
    except OSError:
        return False


def children(pid: int) -> list[int]:
    told = Path(f"/proc/{pid}/task/{pid}/children").read_text(encoding="ascii")
    return [int(one) for one in told.split()]


async def test_an_engine_that_cannot_start(tmp_path: Path) -> None:
    broken = tmp_path / "x.gguf"
    broken.write_bytes(b"GGUF nothing")
    done = await piped("x", str(broken))
    assert done.returncode == 1
    assert "cannot load" in done.stderr
