"""What the scenarios play on: four real engines, each in its process, and a real gateway.

The engines are at addresses that stay, so that one that was killed comes back where it was. They
have half of the cores, and the gateway and its clients the other half, as if the engines were on
machines of their own: what is slow then is not for want of a core.
"""

from __future__ import annotations

import asyncio
import os
import re
import signal
import sys
import tempfile
import time
from collections.abc import AsyncIterator, Callable, Iterable
from contextlib import asynccontextmanager, suppress
from pathlib import Path
from typing import Any, Protocol

import msgspec

from faults.load import Client
from tropilla.config import TINY_MODEL
from tropilla.upstream.engine import Engine, EngineOptions

ENGINES = 4
MODEL = "m"
_LAUNCH = Path(__file__).with_name("launch.py")
_START_SECONDS = 30.0
_CORES = sorted(os.sched_getaffinity(0))
_ENGINES_CORES = _CORES[: max(1, len(_CORES) // 2)]
_OUR_CORES = _CORES[len(_CORES) // 2 :]
_LOADING = b'{"error": {"code": 503, "message": "Loading model", "type": "unavailable_error"}}'


class Herd:
    """Four engines, and what befalls them."""

    def __init__(self, slots: int) -> None:
        options = EngineOptions(
            model=TINY_MODEL, alias=MODEL, slots=slots, threads=1, ctx_size=2048
        )
        self.engines = [Engine(options) for _ in range(ENGINES)]

    @property
    def addresses(self) -> list[str]:
        """Where they are, by number."""
        return [one.address for one in self.engines]

    async def start(self, number: int) -> None:
        """Start one, and return when it serves."""
        await self.engines[number].start()
        _keep_to(_ENGINES_CORES, self._pid(number))

    async def kill(self, number: int) -> float:
        """End one as the kernel would; the time when that was."""
        engine, now = self.engines[number], time.perf_counter()
        os.kill(self._pid(number), signal.SIGKILL)
        assert engine._child is not None
        await engine._child.death()
        engine._remove_files()
        return now

    def halt(self, number: int) -> None:
        """Let one stand still: its connections stay open."""
        os.kill(self._pid(number), signal.SIGSTOP)

    def go_on(self, number: int) -> None:
        """Let it go on."""
        os.kill(self._pid(number), signal.SIGCONT)

    @asynccontextmanager
    async def loading(self, number: int) -> AsyncIterator[None]:
        """Meanwhile its address answers as a llama-server that loads its model."""
        path = Path(self.addresses[number].removeprefix("unix://"))
        path.parent.mkdir(mode=0o700)
        server = await asyncio.start_unix_server(_loads, path)
        try:
            yield
        finally:
            server.close()
            path.unlink()  # noqa: ASYNC240 - as above
            path.parent.rmdir()

    def _pid(self, number: int) -> int:
        pid = self.engines[number].pid
        assert pid is not None, "it runs"
        return pid


class Addressed(Protocol):
    """Whatever upstreams there are."""

    @property
    def addresses(self) -> list[str]:
        """Where they are."""


def _keep_to(cores: list[int], pid: int) -> None:
    """Keep a process, with all of its threads, to some cores."""
    for thread in Path(f"/proc/{pid}/task").iterdir():
        with suppress(ProcessLookupError):
            os.sched_setaffinity(int(thread.name), cores)


async def _loads(reader: asyncio.StreamReader, writer: asyncio.StreamWriter) -> None:
    with suppress(ConnectionError, asyncio.IncompleteReadError):
        head = await reader.readuntil(b"\r\n\r\n")
        if length := re.search(rb"(?i)content-length: (\d+)", head):
            await reader.readexactly(int(length[1]))
        told = b"HTTP/1.1 503 Service Unavailable\r\nContent-Type: application/json\r\n"
        writer.write(told + b"Content-Length: %d\r\nConnection: close\r\n\r\n" % len(_LOADING))
        writer.write(_LOADING)
        await writer.drain()
    writer.close()


class Gateway:
    """A `tropilla serve` in a process of its own."""

    def __init__(self, pid: int, port: int, window: Path, key: str) -> None:
        self._window = window
        self._key = key
        self.port = port
        self.pid = pid

    def client(self, key: str = "") -> Client:
        """One who asks it."""
        return Client(self.port, key)

    async def herd(self) -> Any:
        """What it says of its upstreams."""
        return (await self.client(self._key).get("/api/herd")).json

    async def until(self, holds: Callable[[Any], bool], seconds: float = 60.0) -> float:
        """Seconds until something holds of what it says of its upstreams; `inf` if it does not."""
        began = time.perf_counter()
        while not holds(await self.herd()):
            if time.perf_counter() - began > seconds:
                return float("inf")
            await asyncio.sleep(0.02)
        return time.perf_counter() - began

    async def inside(self) -> dict[str, int]:
        """What it holds: tasks, and what the fleet and the pool have."""
        self._window.unlink(missing_ok=True)
        os.kill(self.pid, signal.SIGUSR1)
        async with asyncio.timeout(_START_SECONDS):
            while not self._window.exists():  # noqa: ASYNC110 - another process makes it
                await asyncio.sleep(0.01)
        told: dict[str, int] = msgspec.json.decode(self._window.read_bytes())
        return told | _of_process(self.pid)


def _of_process(pid: int) -> dict[str, int]:
    """What the system has given it."""
    process = Path(f"/proc/{pid}")
    pages = int((process / "statm").read_text().split()[1])
    return {
        "sockets": len(list((process / "fd").iterdir())),
        "memory": pages * os.sysconf("SC_PAGE_SIZE"),
    }


@asynccontextmanager
async def herd(slots: int) -> AsyncIterator[Herd]:
    """Four engines with so many slots each, until the end."""
    it = Herd(slots)
    _keep_to(_OUR_CORES, os.getpid())  # and so the gateway, which is started from here
    try:
        await asyncio.gather(*(it.start(number) for number in range(ENGINES)))
        yield it
    finally:
        for number, one in enumerate(it.engines):
            if one.pid is not None:
                it.go_on(number)
        await asyncio.gather(*(one.stop() for one in it.engines))


@asynccontextmanager
async def gateway(
    herd: Addressed, off: Iterable[str] = (), **config: Any
) -> AsyncIterator[Gateway]:
    """A gateway in front of them, with these settings, and with these mechanisms switched off."""
    with tempfile.TemporaryDirectory() as folder:
        file, window = Path(folder, "tropilla.yaml"), Path(folder, "window")
        told = {"listen": "127.0.0.1:0", "upstreams": herd.addresses} | config
        file.write_bytes(msgspec.json.encode(told))  # noqa: ASYNC240 - a moment; JSON is YAML
        process = await asyncio.create_subprocess_exec(
            sys.executable, str(_LAUNCH), *off, "--", "serve", "--config", str(file),
            stdout=asyncio.subprocess.PIPE,
            stderr=None if os.environ.get("FAULTS_LOG") else asyncio.subprocess.DEVNULL,
            env=os.environ | {"FAULTS_WINDOW": str(window)},
        )  # fmt: skip
        try:
            key = next(iter(config.get("api_keys", ())), "")
            it = Gateway(process.pid, await _port(process), window, key)
            await it.until(lambda now: all(one["state"] == "ready" for one in now["upstreams"]))
            yield it
            if process.returncode is not None:
                raise RuntimeError(f"The gateway ended by itself, with {process.returncode}.")
        finally:
            if process.returncode is None:
                process.kill()
            await process.wait()


async def _port(process: asyncio.subprocess.Process) -> int:
    assert process.stdout is not None
    async with asyncio.timeout(_START_SECONDS):
        async for line in process.stdout:
            if found := re.search(rb"listens on http://\S+?:(\d+)", line):
                return int(found[1])
    raise RuntimeError("`tropilla serve` printed no address.")
