"""The gateway's life: listen at once, look for upstreams, serve, end in order."""

from __future__ import annotations

import asyncio
import gc
import signal
import socket
import sys
from collections.abc import Callable, Sequence
from contextlib import suppress
from pathlib import Path
from typing import TYPE_CHECKING, TypeAlias

from tropilla import log
from tropilla.accounts.store import MEMORY
from tropilla.config import Config, ConfigError
from tropilla.server import tracing
from tropilla.server.accounts import Accounts
from tropilla.server.app import Gateway
from tropilla.server.http import Listener
from tropilla.server.sharing import Sharing
from tropilla.upstream.fleet import Fleet

if TYPE_CHECKING:
    from tropilla.upstream.siblings import Siblings

Again: TypeAlias = Callable[[], tuple[Config, str]]
"""Reads the settings again, and says what is new in them; raises `ConfigError`."""

Serve: TypeAlias = Callable[
    [Config, Sequence[socket.socket], Callable[[str], None], Again | None, Path | None], str | None
]
"""`run`, or what does the same with several processes."""

_BACKLOG = 2048
_KEEP_ALIVE = {
    "TCP_KEEPIDLE": 15,
    "TCP_KEEPINTVL": 5,
    "TCP_KEEPCNT": 3,
    "TCP_USER_TIMEOUT": 30_000,
}
_ANY_PORT = {"--port": " (0 takes any that is free)"}
_WATCH_SECONDS = 1.0
"""How often it is looked whether the file of settings has changed."""
_YOUNG = 10_000
"""New objects after which Python looks for cycles among them; 700 is what it does by itself."""
_TURN_SECONDS = 100e-6
"""After which a thread that wants the interpreter is given it; 5 ms is what Python does by itself.

A loop that is always busy lets go of it many times within that, each time for too short to be woken
in: the threads that write the ledger and the log would then wait for seconds.
"""
_LAST_SECONDS = 2
"""How long answers may take to say that they are cut short."""


def tune() -> None:
    """Have Python work for one busy loop, and a few threads that write now and then."""
    # What is there now stays: looking through it again and again would find nothing. A request
    # leaves no cycles behind, so those of failures may wait a little longer too.
    gc.collect()
    gc.freeze()
    gc.set_threshold(_YOUNG)
    sys.setswitchinterval(_TURN_SECONDS)


def listen(config: Config, *, shared: bool = False) -> list[socket.socket]:
    """Take the addresses before anything else is started; the first one is told to people.

    Other processes may take them, too, if they are `shared`.

    Raises:
        ConfigError: one cannot be had.
    """
    found = [_listen(config.host, config.port, "--port", shared=shared)]
    if config.ollama_port:
        try:
            found.append(_listen(config.host, config.ollama_port, "--ollama-port", shared=shared))
        except ConfigError:
            found[0].close()
            raise
    return found


def _listen(host: str, port: int, flag: str, *, shared: bool) -> socket.socket:
    family = socket.AF_INET6 if ":" in host else socket.AF_INET
    try:
        sock = socket.create_server(
            (host, port), family=family, backlog=_BACKLOG, reuse_port=shared
        )
    except OSError as error:
        raise ConfigError(
            f"Cannot listen on {host}:{port}: {error.strerror or error}. "
            f"Is it in use? Choose another with {flag}{_ANY_PORT.get(flag, '')}."
        ) from None
    # What is accepted inherits these. uvloop sees to the first too; asyncio does not, for such a
    # socket. By the others a client is missed that vanished without a word.
    sock.setsockopt(socket.IPPROTO_TCP, socket.TCP_NODELAY, 1)
    sock.setsockopt(socket.SOL_SOCKET, socket.SO_KEEPALIVE, 1)
    for name, value in _KEEP_ALIVE.items():
        if hasattr(socket, name):
            sock.setsockopt(socket.IPPROTO_TCP, getattr(socket, name), value)
    return sock


class _Run:
    """One run of the gateway, ended by the first signal in order, by the second soon.

    In order: it goes on to listen, and says that it ends, until no request is open or the time for
    that is over. Answers that are not complete then tell so themselves. A third signal does not
    wait for them.
    """

    def __init__(self, gateway: Gateway, config: Config, again: Again | None) -> None:
        self._gateway = gateway
        self._listener = Listener(gateway)
        self._settings = config
        self._again = again
        self._file: Path | None = None
        self._seen: tuple[int, int] | None = None
        """The file as it was when it was read last."""
        self._patience = [config.drain, 0.0]
        self._draining: asyncio.Task[None] | None = None
        self._over = asyncio.Event()

    async def serve(self, sockets: Sequence[socket.socket]) -> None:
        """Serve until the end."""
        self._hear_signals()
        for sock in sockets:
            await self._listener.open(sock)
        await self._over.wait()
        await self._listener.close()

    def stop(self) -> None:
        """End at once."""
        self._over.set()

    def reload(self) -> None:
        """Read the settings again; those that cannot be are refused, and the old ones stay."""
        if self._again is None or self._draining is not None:
            return
        if self._file is not None:
            self._seen = _state(self._file)
        try:
            config, told = self._again()
            _check(self._settings, config)
        except ConfigError as error:
            text = "The new settings are refused, the old ones stay:{why}"
            log.error("settings.refused", text, why=str(error).splitlines())
            return
        self._settings = config
        self._patience[0] = config.drain
        self._gateway.reload(config)
        log.info("settings.read", "The settings were read again.{news}", news=told.splitlines())

    async def watch(self, file: Path) -> None:
        """Read the settings again whenever their file changes, if nobody else has it done."""
        self._file, self._seen = file, _state(file)
        while True:
            await asyncio.sleep(_WATCH_SECONDS)
            if _state(file) != self._seen:
                self.reload()

    def end_with(self, life: int) -> None:
        """Whoever has started this process is no more."""
        asyncio.get_running_loop().remove_reader(life)
        self._end()

    def _end(self) -> None:
        """Asked to end, each time with less patience."""
        if self._draining is not None:
            self._draining.cancel()
        if not self._patience:
            self.stop()
            return
        log.info(
            "gateway.draining",
            "Ending: open answers have {seconds} s; asked again it ends at once.",
            seconds=self._patience[0],
        )
        self._listener.ending = True
        self._gateway.drain()
        drain = self._drain(self._patience.pop(0))
        self._draining = asyncio.get_running_loop().create_task(drain)

    async def _drain(self, seconds: float) -> None:
        await self._idle(seconds)
        self._listener.give_up()
        await self._idle(_LAST_SECONDS)
        self.stop()

    async def _idle(self, seconds: float) -> None:
        with suppress(TimeoutError):
            async with asyncio.timeout(seconds):
                await self._gateway.idle.wait()

    def _hear_signals(self) -> None:
        loop = asyncio.get_running_loop()
        with suppress(NotImplementedError, AttributeError):  # Windows
            loop.add_signal_handler(signal.SIGHUP, self.reload)
        for number in (signal.SIGINT, signal.SIGTERM):
            try:
                loop.add_signal_handler(number, self._end)
            except NotImplementedError:  # Windows
                signal.signal(number, lambda *_: loop.call_soon_threadsafe(self._end))


def _state(file: Path) -> tuple[int, int] | None:
    try:
        told = file.stat()
    except OSError:
        return None
    return told.st_mtime_ns, told.st_size


def _check(old: Config, new: Config) -> None:
    """Nothing has changed that only changes with a restart.

    Raises:
        ConfigError: something has.
    """
    for name in ("listen", "ollama_port", "engine", "responses", "workers", "traces"):
        if getattr(old, name) != getattr(new, name):
            raise ConfigError(f"{name} changes only with a restart.")
    for name in ("store", "spool", "max_spool", "keep_days", "secret", "shared"):
        if getattr(old.accounts, name) != getattr(new.accounts, name):
            raise ConfigError(f"accounts.{name} changes only with a restart.")
    if bool(old.models or old.upstreams) != bool(new.models or new.upstreams):
        raise ConfigError("Whether the embedded engine runs changes only with a restart.")


async def _serve(
    config: Config,
    sockets: Sequence[socket.socket],
    on_first: Callable[[str], None],
    again: Again | None,
    file: Path | None,
    siblings: Siblings | None,
    life: int | None,
    memory: str,
) -> str | None:
    fatal: list[str] = []

    def give_up(message: str) -> None:
        fatal.append(message)
        running.stop()

    try:
        spans = tracing.spans(config.traces)
        accounts = await Accounts.open(config)
    except ConfigError as error:
        return str(error)
    try:
        sharing = await Sharing.open(config, accounts)
    except ConfigError as error:
        if accounts is not None:
            await accounts.close()
        return str(error)
    fleet = Fleet(config, give_up, on_first, siblings, sharing.others())
    part = (0, 1) if siblings is None else (siblings.process, config.workers)
    meter = sharing.meter(part)
    gateway = Gateway(config, fleet, accounts, meter, spans, memory, sharing.valkey)
    running = _Run(gateway, config, again)
    await fleet.start()
    tune()
    if life is not None:
        asyncio.get_running_loop().add_reader(life, running.end_with, life)
    watch = asyncio.create_task(running.watch(file)) if file is not None else None
    try:
        await running.serve(sockets)
    finally:
        if watch is not None:
            watch.cancel()
        await fleet.stop()
        await gateway.close()
        await sharing.close()
    return fatal[0] if fatal else None


def run(
    config: Config,
    sockets: Sequence[socket.socket],
    on_first: Callable[[str], None],
    again: Again | None = None,
    file: Path | None = None,
    siblings: Siblings | None = None,
    life: int | None = None,
    memory: str = MEMORY,
) -> str | None:
    """Serve until a signal ends it, or until it is no use to go on: then, why.

    `on_first` hears the name of a model once there is one that can be asked. `again` reads the
    settings anew, and says what is new in them: it is called on `SIGHUP`, and when `file` changes.
    `siblings` are the other processes of this gateway, and `life` is a pipe that ends with the one
    that has started them; `memory` is the address of the store of what ends with all of them.
    """
    factory: Callable[[], asyncio.AbstractEventLoop] | None = None
    if sys.platform != "win32":
        import uvloop  # noqa: PLC0415 - not there on Windows

        factory = uvloop.new_event_loop
    with asyncio.Runner(loop_factory=factory) as runner:
        return runner.run(_serve(config, sockets, on_first, again, file, siblings, life, memory))
