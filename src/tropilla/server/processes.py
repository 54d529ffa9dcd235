"""One gateway of several processes: each serves, on the same address, from the same herd.

The first process serves nobody. It starts the others and starts again whichever dies; the signals
that it gets it passes on. It holds a pipe that ends with it: whoever reads its end drains, so that
none stays behind. The processes share the slots of the herd (`upstream.siblings`); the queue, the
turns of the keys and the retry budget are each one's own.
"""

from __future__ import annotations

import os
import signal
import socket
import sys
import tempfile
import time
from collections.abc import Callable, Sequence
from pathlib import Path
from types import FrameType
from typing import NoReturn

import msgspec

from tropilla import log
from tropilla.config import Config, ConfigError
from tropilla.server.run import Again, listen, run
from tropilla.upstream.siblings import Shared, Siblings

_SHORT_LIFE_SECONDS = 5.0
_SHARED_METRICS = "PROMETHEUS_MULTIPROC_DIR"
"""The name of prometheus_client's for the folder in which several processes count."""
_SHORT_LIVES = 3
"""So many in a row, and it is no use to start another."""


def claim(config: Config) -> list[socket.socket]:
    """Take the addresses, on which each process will have sockets of its own.

    Raises:
        ConfigError: it cannot be had, or processes cannot share one here.
    """
    if not (config.upstreams or config.models):
        raise ConfigError("workers: the embedded engine serves one process; name an upstream.")
    if not hasattr(socket, "SO_REUSEPORT") or not hasattr(os, "fork"):
        raise ConfigError("workers: this system has no address for several processes; take 1.")
    for sock in listen(config):  # is it in use? Nobody else may listen there too.
        sock.close()
    return listen(config, shared=True)


def run_several(
    config: Config,
    sockets: Sequence[socket.socket],
    on_first: Callable[[str], None],
    again: Again | None = None,
    file: Path | None = None,
) -> str | None:
    """Serve with as many processes as the config says, as `run` does with one."""
    host, port = sockets[0].getsockname()[:2]
    with tempfile.TemporaryDirectory(prefix="tropilla-") as folder:
        own, told = f"[{host}]:{port}" if ":" in host else f"{host}:{port}", config.listen

        def with_own(other: Config) -> Config:
            return msgspec.structs.replace(other, listen=own) if other.listen == told else other

        def again_with_own() -> tuple[Config, str]:
            other, news = again() if again is not None else (config, "")
            return with_own(other), news

        each = again_with_own if again is not None else None
        config = with_own(config)
        # Loaded before, it would count for one process alone.
        os.environ[_SHARED_METRICS] = str(Path(folder, "metrics"))
        Path(folder, "metrics").mkdir()
        more = [listen(config, shared=True) for _ in range(1, config.workers)]
        return _Processes(config, [sockets, *more], on_first, each, file, folder).serve()


class _Processes:
    """Those that serve, as the first one sees them."""

    def __init__(
        self,
        config: Config,
        sockets: Sequence[Sequence[socket.socket]],
        on_first: Callable[[str], None],
        again: Again | None,
        file: Path | None,
        folder: str,
    ) -> None:
        self._config = config
        self._sockets = sockets
        """Those of each: who comes while it is started again waits in them."""
        self._on_first = on_first
        self._again = again
        self._file = file
        # What one process keeps, another is asked for.
        self._memory = f"sqlite:///{folder}/memory"
        self._shared = Shared(config.workers)
        self._life, self._lifeline = os.pipe()
        self._running: dict[int, tuple[int, float]] = {}
        """By their ids: which one it is, and since when."""
        self._short_lives = 0
        self._ending = False

    def serve(self) -> str | None:
        """Serve until a signal ends it, or until it is no use to go on: then, why."""
        # It looks at the variable when it is loaded.
        from prometheus_client.multiprocess import mark_process_dead  # noqa: PLC0415

        for number in (signal.SIGINT, signal.SIGTERM, signal.SIGHUP):
            signal.signal(number, self._pass_on)
        for process in range(self._config.workers):
            self._start(process, first=not process)
        problem: str | None = None
        while self._running:
            pid, status = os.wait()
            process, since = self._running.pop(pid)
            self._shared.forget(process)
            mark_process_dead(pid)  # type: ignore[no-untyped-call]
            if self._ending:
                continue
            short = time.monotonic() - since < _SHORT_LIFE_SECONDS
            self._short_lives = self._short_lives + 1 if short else 0
            if self._short_lives >= _SHORT_LIVES:
                problem = "Its processes end as soon as they are started; their messages tell why."
                self._pass_on(signal.SIGTERM)
                continue
            log.warning(
                "process.ended",
                "Process {process} has ended ({status}): it is started again.",
                process=process,
                status=status,
            )
            self._start(process)
        self._shared.close()
        return problem

    def _pass_on(self, number: int, _: FrameType | None = None) -> None:
        self._ending = self._ending or number != signal.SIGHUP
        for pid in self._running:
            os.kill(pid, number)

    def _start(self, process: int, *, first: bool = False) -> None:
        sys.stdout.flush()
        sys.stderr.flush()
        pid = os.fork()
        if not pid:
            self._be(process, first=first)
        self._running[pid] = (process, time.monotonic())
        if self._ending:  # it was not there yet when it was said
            os.kill(pid, signal.SIGTERM)

    def _be(self, process: int, *, first: bool) -> NoReturn:
        """Serve as one of them."""
        status = 1
        try:
            os.setpgid(0, 0)  # the terminal's Ctrl-C is for the first process
            os.close(self._lifeline)
            for number in (signal.SIGINT, signal.SIGTERM, signal.SIGHUP):
                signal.signal(number, signal.SIG_DFL)
            problem = run(
                self._config,
                self._sockets[process],
                self._on_first if first else _nobody,
                self._again,
                self._file,
                siblings=Siblings(self._shared, process),
                life=self._life,
                memory=self._memory,
            )
            if problem is not None:
                log.error("gateway.failed", "{problem}", problem=problem)
            status = problem is not None
        except BaseException:  # noqa: BLE001 - it is told, and the process ends
            log.defect("process.defect", "Process {process} failed", process=process)
        finally:
            sys.stdout.flush()
            sys.stderr.flush()
            os._exit(status)


def _nobody(_: str) -> None:
    """The first model that can be asked is told once."""
