"""A gateway of a command's own: there for as long as the command is, however that ends."""

from __future__ import annotations

import os
import sys
import time
from collections.abc import Iterator
from contextlib import contextmanager, suppress
from typing import IO, TYPE_CHECKING, NoReturn

import click

if TYPE_CHECKING:
    import socket

    from tropilla.config import Config

_LOOK_SECONDS = 0.05
_LAST_WORDS = 2000


@contextmanager
def gateway(config: Config) -> Iterator[str]:
    """The address of a gateway that serves its model.

    Raises:
        ClickException: it cannot, and why.
    """
    import tempfile  # noqa: PLC0415

    if not hasattr(os, "fork"):
        raise click.ClickException("No gateway runs: start one with `tropilla serve`.")
    from tropilla.cli.banner import base_of  # noqa: PLC0415
    from tropilla.server.run import listen  # noqa: PLC0415

    sockets = listen(config)
    root = base_of(sockets[0]).removesuffix("/v1")
    # Its end is this one's end, even if that has no time to say so.
    life, lifeline = os.pipe()
    with tempfile.TemporaryFile() as log:
        pid = os.fork()
        if not pid:
            os.close(lifeline)
            _be(config, sockets, life, log)
        os.close(life)
        for sock in sockets:
            sock.close()
        try:
            _wait(pid, root, config, log)
            yield root
        finally:
            os.close(lifeline)
            with suppress(ChildProcessError):
                os.waitpid(pid, 0)


def _be(config: Config, sockets: list[socket.socket], life: int, log: IO[bytes]) -> NoReturn:
    """Be the gateway; whatever it says goes to `log`."""
    from tropilla import log as events  # noqa: PLC0415
    from tropilla.server.run import run  # noqa: PLC0415

    status = 1
    try:
        os.setpgid(0, 0)  # the terminal's Ctrl-C is for an answer
        with open(os.devnull, "rb") as nothing:  # noqa: PTH123 - its number is what is wanted
            os.dup2(nothing.fileno(), 0)
        for number in (1, 2):
            os.dup2(log.fileno(), number)
        events.begin(sys.stderr, "human")
        problem = run(config, sockets, lambda _: None, life=life)
        if problem is not None:
            sys.stderr.write(f"{problem}\n")
        status = problem is not None
    finally:
        sys.stderr.flush()
        os._exit(status)


def _wait(pid: int, root: str, config: Config, log: IO[bytes]) -> None:
    from tropilla.cli.asking import NoGateway, ask  # noqa: PLC0415

    while True:
        if os.waitpid(pid, os.WNOHANG)[0]:
            log.seek(max(0, log.seek(0, os.SEEK_END) - _LAST_WORDS))
            raise click.ClickException(log.read().decode("utf-8", "replace").strip())
        with suppress(NoGateway):  # it is ending, and is asked for why in the next round
            cards = ask(root, next(iter(config.api_keys), None), "/v1/models")["data"]
            if any(one["status"]["value"] == "loaded" for one in cards):
                return
        time.sleep(_LOOK_SECONDS)
