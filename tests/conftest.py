"""The gateway as it really is, on a free port, with upstreams that do what a test says."""

from __future__ import annotations

import asyncio
import gc
import os
import random
import signal
import socket
import sys
from collections.abc import AsyncIterator, Awaitable, Callable, Iterator
from contextlib import AsyncExitStack, asynccontextmanager, contextmanager, suppress
from dataclasses import dataclass, field
from pathlib import Path
from typing import TYPE_CHECKING, Any, Protocol, TypeAlias

import aiohttp
import msgspec
import pytest
from hypothesis import HealthCheck, settings

from checked import Checked
from doubles import databases
from doubles.upstream import DEADLINE, Double
from tropilla.config import TINY_MODEL, Config, UpstreamConfig
from tropilla.server.accounts import Accounts
from tropilla.server.app import Gateway
from tropilla.server.http import Listener
from tropilla.server.sharing import Sharing
from tropilla.upstream import fleet as fleet_module
from tropilla.upstream.engine import Engine, EngineOptions
from tropilla.upstream.fleet import Fleet
from tropilla.upstream.member import Upstream

if TYPE_CHECKING:
    from tropilla.upstream.siblings import Siblings


# The same examples on every machine, and no matter how long they take on a busy one.
settings.register_profile(
    "tests",
    derandomize=True,
    deadline=None,
    database=None,
    suppress_health_check=(HealthCheck.too_slow, HealthCheck.data_too_large),
)
settings.load_profile("tests")


def pytest_collection_finish() -> None:
    """What stays to the end, the tests themselves, is not looked through for garbage each time."""
    gc.collect()
    gc.freeze()


@pytest.fixture(scope="session", autouse=True)
def state(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """Where gateways keep what lasts, while tests run: nowhere of the user's own."""
    path = tmp_path_factory.mktemp("state")
    os.environ["XDG_STATE_HOME"] = str(path)
    return path / "tropilla"


@pytest.fixture(scope="session")
def anyio_backend() -> tuple[str, dict[str, bool]]:
    """The loop that `tropilla serve` runs on."""
    return "asyncio", {"use_uvloop": sys.platform != "win32"}


@dataclass
class Answer:
    """What a client was told."""

    status: int
    headers: dict[str, str]
    body: bytes

    @property
    def json(self) -> Any:
        """The body as JSON."""
        return msgspec.json.decode(self.body)

    @property
    def error(self) -> dict[str, Any]:
        """The inside of the error envelope."""
        error: dict[str, Any] = self.json["error"]
        return error

    @property
    def events(self) -> list[Any]:
        """The data of a stream: JSON decoded, `[DONE]` as it is, comments left out."""
        blocks = self.body.split(b"\n\n")
        assert blocks.pop() == b"", "the stream ends in the middle of an event"
        data = [block.removeprefix(b"data: ") for block in blocks if not block.startswith(b":")]
        return ["[DONE]" if one == b"[DONE]" else msgspec.json.decode(one) for one in data]

    @property
    def text(self) -> str:
        """All text of a stream of chat chunks."""
        return "".join(
            choice["delta"].get("content") or ""
            for one in self.events
            if isinstance(one, dict)
            for choice in one.get("choices", ())
        )


class Raw:
    """A client down to the bytes."""

    def __init__(self, reader: asyncio.StreamReader, writer: asyncio.StreamWriter) -> None:
        self.reader = reader
        self.writer = writer
        self._held = b""

    async def send(self, data: bytes) -> None:
        """Send bytes."""
        self.writer.write(data)
        await self.writer.drain()

    async def post(self, path: str, body: Any, *headers: str) -> None:
        """Send a request with a JSON body."""
        data = body if isinstance(body, bytes) else msgspec.json.encode(body)
        head = [f"POST {path} HTTP/1.1", "Host: t", f"Content-Length: {len(data)}", *headers]
        await self.send("\r\n".join(head).encode() + b"\r\n\r\n" + data)

    async def see(self, mark: bytes) -> None:
        """Wait for a mark, which must come, and leave everything to be read."""
        while mark not in self._held:
            piece = await asyncio.wait_for(self.reader.read(65536), DEADLINE)
            assert piece, f"the connection ended before {mark!r}: {self._held!r}"
            self._held += piece

    async def until(self, mark: bytes) -> bytes:
        """Everything up to a mark, which must come."""
        await self.see(mark)
        before, _, self._held = self._held.partition(mark)
        return before + mark

    async def head(self) -> tuple[int, dict[str, str]]:
        """The head of an answer."""
        lines = (await self.until(b"\r\n\r\n")).decode("latin-1").split("\r\n")
        pairs = (line.partition(":") for line in lines[1:] if line)
        return int(lines[0].split()[1]), {n.lower(): v.strip() for n, _, v in pairs}

    async def answer(self) -> Answer:
        """A whole answer, of known length or in chunks, which must end in order."""
        status, headers = await self.head()
        body = b""
        if headers.get("transfer-encoding") == "chunked":
            while size := int(await self.until(b"\r\n"), 16):
                while len(self._held) < size + 2:
                    piece = await asyncio.wait_for(self.reader.read(65536), DEADLINE)
                    assert piece, "the connection ended in the middle of a chunk"
                    self._held += piece
                body, self._held = body + self._held[:size], self._held[size + 2 :]
            await self.until(b"\r\n")
        elif status != 204:
            size = int(headers["content-length"])
            while len(self._held) < size:
                piece = await asyncio.wait_for(self.reader.read(65536), DEADLINE)
                assert piece, "the connection ended before the body did"
                self._held += piece
            body, self._held = self._held[:size], self._held[size:]
        return Answer(status, headers, body)

    async def rest(self) -> bytes:
        """Everything until the gateway closes."""
        held, self._held = self._held, b""
        return held + await asyncio.wait_for(self.reader.read(-1), DEADLINE)

    def leave(self) -> None:
        """Be gone."""
        self.writer.transport.abort()


@dataclass
class Served:
    """A gateway that runs."""

    port: int
    fleet: Fleet
    sock: socket.socket
    gateway: Gateway
    listener: Listener
    raws: list[Raw] = field(default_factory=list)
    session: aiohttp.ClientSession = field(init=False)

    @property
    def url(self) -> str:
        """Its address."""
        return f"http://127.0.0.1:{self.port}"

    def hold_little(self) -> None:
        """Let the system hold little for clients: else it takes megabytes that nobody reads."""
        self.sock.setsockopt(socket.SOL_SOCKET, socket.SO_SNDBUF, 32768)

    async def connect(self) -> Raw:
        """A connection of its own, down to the bytes."""
        sock = socket.socket()
        sock.setblocking(False)  # noqa: FBT003
        sock.setsockopt(socket.SOL_SOCKET, socket.SO_RCVBUF, 32768)
        await asyncio.get_running_loop().sock_connect(sock, ("127.0.0.1", self.port))
        raw = Raw(*await asyncio.open_connection(sock=sock))
        self.raws.append(raw)
        return raw

    async def ask(
        self,
        method: str,
        path: str,
        body: Any = None,
        headers: dict[str, str] | None = None,
    ) -> Answer:
        """Ask and take the whole answer. `body` is bytes, or becomes JSON."""
        import yarl

        data = body if body is None or isinstance(body, bytes) else msgspec.json.encode(body)
        async with (
            asyncio.timeout(DEADLINE),
            self.session.request(
                method, yarl.URL(self.url + path, encoded=True), data=data, headers=headers
            ) as answer,
        ):
            found = {name.lower(): value for name, value in answer.headers.items()}
            return Answer(answer.status, found, await answer.read())

    async def chat(self, *, path: str = "/v1/chat/completions", **fields: Any) -> Answer:
        """Ask for a chat completion."""
        return await self.ask("POST", path, CHAT | fields)

    async def until(self, holds: Callable[[], bool]) -> None:
        """Wait until something holds of the fleet, which must come."""
        async with asyncio.timeout(DEADLINE):
            while not holds():
                await self.fleet._changed.wait()

    async def has(self, holds: Callable[[], bool]) -> None:
        """Wait until something holds that no event tells of, which must come."""
        async with asyncio.timeout(DEADLINE):
            while not holds():  # noqa: ASYNC110 - no event tells of it
                await asyncio.sleep(0)


CHAT = {"model": "m", "messages": [{"role": "user", "content": "Hello!"}]}


class Serve(Protocol):
    """Starts a gateway; waits until it is ready, unless told not to."""

    def __call__(
        self, *upstreams: Double | str, ready: bool = True, **config: Any
    ) -> Awaitable[Served]: ...


def report(measured: str) -> None:
    """Show what was measured (`pytest -s`); to judge it is the bench's."""
    sys.stdout.write(f"{measured}\n")


Start: TypeAlias = Callable[..., Awaitable[Double]]
"""Starts an upstream that serves these models."""


@asynccontextmanager
async def served(
    config: Config, siblings: Siblings | None = None, *, opens: bool = False
) -> AsyncIterator[Served]:
    """The real thing: clients' connections, the gateway, its fleet.

    It has accounts where `config` names a store; with `opens`, also where it leaves that open.
    """
    sock = socket.create_server(("127.0.0.1", 0), backlog=128)
    kept = opens or config.accounts.store != "auto"
    accounts = await Accounts.open(config) if kept else None
    sharing = await Sharing.open(config, accounts)
    fleet = Fleet(config, siblings=siblings, others=sharing.others())
    gateway = Gateway(config, fleet, accounts, sharing.meter(), valkey=sharing.valkey)
    checked = Checked(gateway)
    listener = Listener(checked)
    await fleet.start()
    await listener.open(sock)
    it = Served(sock.getsockname()[1], fleet, sock, gateway, listener)
    try:
        async with aiohttp.ClientSession(auto_decompress=False) as it.session:
            yield it
    finally:
        # Everybody leaves at once, and no task may stay.
        for raw in it.raws:
            raw.leave()
        tasks = [one.task for one in listener.connections if one.task is not None]
        await listener.close()
        assert all(task.done() for task in tasks)
        sock.close()
        await fleet.stop()
        await gateway.close()
        await sharing.close()
    assert checked.wrong == []


@pytest.fixture
async def gateway(anyio_backend: Any) -> AsyncIterator[Serve]:  # noqa: ARG001
    """Start gateways; they end with the test."""
    async with AsyncExitStack() as stack:

        async def serve(*upstreams: Double | str, ready: bool = True, **config: Any) -> Served:
            urls = [one if isinstance(one, str) else one.url for one in upstreams]
            told = Config(
                listen="127.0.0.1:0", upstreams=tuple(UpstreamConfig(url=url) for url in urls)
            )
            it = await stack.enter_async_context(served(msgspec.structs.replace(told, **config)))
            if ready:
                await it.until(lambda: all(one.state == "ready" for one in it.fleet.upstreams))
            return it

        yield serve


@pytest.fixture
async def doubles(anyio_backend: Any) -> AsyncIterator[Start]:  # noqa: ARG001
    """Start upstreams; they end with the test."""
    started: list[Double] = []

    async def start(*models: str, **settings: Any) -> Double:
        double = Double(*models, **settings)
        started.append(double)
        await double.start()
        return double

    yield start
    for double in started:
        await double.stop()


@pytest.fixture
async def double(doubles: Start) -> Double:
    """One upstream, which serves the model `m`."""
    return await doubles()


@pytest.fixture(scope="session")
async def real_engine(anyio_backend: Any) -> AsyncIterator[Engine]:  # noqa: ARG001
    """The real llama.cpp, with a tiny model called `m`."""
    one = Engine(EngineOptions(model=TINY_MODEL, alias="m", slots=2))
    await one.start()
    yield one
    await one.stop()


@pytest.fixture(scope="session")
def engine(real_engine: Engine) -> str:
    """Its address."""
    return real_engine.address


@contextmanager
def stopped(engine: Engine) -> Iterator[None]:
    """Meanwhile an engine stands still: it ends nothing, however fast it is."""
    assert engine.pid is not None
    os.kill(engine.pid, signal.SIGSTOP)
    try:
        yield
    finally:
        os.kill(engine.pid, signal.SIGCONT)


def expect_signs(upstream: Upstream, seconds: float, monkeypatch: pytest.MonkeyPatch) -> None:
    """Give this upstream so long to answer a probe; on a busy machine the others may need more."""
    ask = upstream.link.ask

    async def impatient(method: str, path: str, body: Any = None, **_: object) -> tuple[int, bytes]:
        return await ask(method, path, body, seconds=seconds)

    monkeypatch.setattr(upstream.link, "ask", impatient)


@pytest.fixture
def closed_port() -> Iterator[int]:
    """A port on which nobody listens, nor will: it is taken."""
    with socket.socket() as sock:
        sock.bind(("127.0.0.1", 0))
        yield sock.getsockname()[1]


@pytest.fixture
def free_port() -> int:
    """A port to listen on: none of those that the system gives to whoever wants any."""
    for port in random.sample(range(10_000, 32_000), 100):
        with suppress(OSError), socket.create_server(("127.0.0.1", port)):
            return port
    raise AssertionError("a hundred ports are all taken")


@pytest.fixture
def hasty_probes(monkeypatch: pytest.MonkeyPatch) -> None:
    """An upstream that fails is asked again at once: it is soon known to be down."""
    monkeypatch.setattr(fleet_module, "_RETRY_SECONDS", (0.01,))


@pytest.fixture
def key_file(tmp_path: Path) -> Path:
    """A file of client keys."""
    path = tmp_path / "keys"
    path.write_text("# ours\n\n  one \r\ntwo\n", encoding="utf-8")
    return path


@pytest.fixture(scope="session")
def postgres() -> Iterator[databases.Postgres]:
    """A real PostgreSQL; a test that wants it is skipped where there is none."""
    if databases.postgres_bin() is None:
        pytest.skip("PostgreSQL is not on this machine (Debian: apt-get install postgresql)")
    with databases.postgres() as server:
        yield server


@pytest.fixture(scope="session")
def valkey() -> Iterator[databases.Valkey]:
    """A real Valkey or Redis; a test that wants it is skipped where there is none."""
    if databases.valkey_bin() is None:
        pytest.skip("neither Valkey nor Redis is on this machine (Debian: apt-get install valkey)")
    with databases.valkey() as server:
        yield server


@pytest.fixture(params=["sqlite", "postgresql"])
def store_url(request: pytest.FixtureRequest, tmp_path: Path) -> str:
    """The address of a new store, of every kind that there is."""
    if request.param == "sqlite":
        return f"sqlite:///{tmp_path}/accounts.db"
    server: databases.Postgres = request.getfixturevalue("postgres")
    return server.database()
