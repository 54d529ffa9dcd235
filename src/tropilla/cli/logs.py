"""`tropilla logs`: the log of a gateway, as people read it."""

from __future__ import annotations

import sys
from collections import deque
from collections.abc import Callable, Iterable, Iterator
from itertools import takewhile
from typing import IO, Any

import click

from tropilla.cli.asking import asking, lines
from tropilla.cli.options import SETTINGS

_LEVELS = ("info", "warning", "error")
_COLOURS = {"warning": "yellow", "error": "red"}
_LOOK_SECONDS = 0.25
_BEGIN = '{"time":'
"""How a line of the log begins; before it there may be what Docker or systemd say."""


@click.command("logs", context_settings=SETTINGS)
@asking
@click.argument("file", required=False, type=click.Path(exists=True, allow_dash=True))
@click.option("--follow", "-f", is_flag=True, help="Go on with what comes.")
@click.option(
    "--lines", "-n", "most", type=click.IntRange(0), default=100, show_default=True, metavar="N",
    help="The last so many at first; of a pipe, all.",
)  # fmt: skip
@click.option("--level", type=click.Choice(_LEVELS), help="At least as bad as that.")
@click.option(
    "--event", multiple=True, metavar="NAME",
    help="Only these events: `request`, `upstream.lost`; `upstream` is all that begin so.",
)  # fmt: skip
@click.option("--key", metavar="KEY", help="Only requests of this key, by the id that it has.")
@click.option("--model", metavar="MODEL", help="Only requests for this model.")
@click.option("--json", "as_json", is_flag=True, help="The lines as they are, for programs.")
def command(
    url: str,
    api_key: str | None,
    file: str | None,
    most: int,
    level: str | None,
    event: tuple[str, ...],
    key: str | None,
    model: str | None,
    *,
    follow: bool,
    as_json: bool,
) -> None:
    """Show what a gateway has logged.

    FILE is where its log went, and - is standard input, as in `docker logs CONTAINER 2>&1 |
    tropilla logs -`. Without it, a gateway that runs is asked for its last lines; it wants a key of
    those who run it.
    """
    wanted = _wanted(level, event, {"key": key, "model": model})

    def shown(found: Iterable[str]) -> Iterator[str]:
        for line in found:
            told = _read(line)
            if told is None:
                if not (level or event or key or model or as_json) and line.strip():
                    yield _plain(line)
            elif wanted(told):
                yield line[line.index(_BEGIN) :].rstrip("\n") if as_json else _pretty(told)

    try:
        if file is None:
            _ask(url, api_key, most, shown, follow=follow)
        elif file == "-":
            _print(shown(sys.stdin))
        else:
            with click.open_file(file, encoding="utf-8", errors="replace") as opened:
                _print(deque(shown(opened), most))
                if follow:
                    _print(shown(_coming(file, opened)))
    except KeyboardInterrupt:
        return


def _ask(
    url: str,
    api_key: str | None,
    most: int,
    shown: Callable[[Iterable[str]], Iterator[str]],
    *,
    follow: bool,
) -> None:
    """Show the last lines of a gateway that runs."""
    path = f"/api/logs?follow={'true' if follow else 'false'}"
    coming = (line.decode("utf-8", "replace") for line in lines(url, api_key, path))
    # What has been ends with an empty line, if more is to come.
    _print(deque(shown(takewhile(str.strip, coming)), most))
    _print(shown(coming))


def _print(shown: Iterable[str]) -> None:
    for line in shown:
        click.echo(line)


def _coming(name: str, file: IO[Any]) -> Iterator[str]:
    """What is still to be written there, in that file or in another one that takes its place."""
    import os  # noqa: PLC0415
    import time  # noqa: PLC0415
    from pathlib import Path  # noqa: PLC0415

    held, opened = "", file
    while True:
        while piece := opened.readline():
            held += piece
            if held.endswith("\n"):
                yield held
                held = ""
        time.sleep(_LOOK_SECONDS)
        try:
            now, here = Path(name).stat(), os.fstat(opened.fileno())
        except OSError:
            continue
        if now.st_ino != here.st_ino:
            opened = Path(name).open(encoding="utf-8", errors="replace")  # noqa: SIM115 - read on
        elif now.st_size < opened.tell():
            opened.seek(0)


def _read(line: str) -> dict[str, Any] | None:
    """A line of the log; `None` if it is none."""
    import msgspec  # noqa: PLC0415

    _, begin, rest = line.partition(_BEGIN)
    if not begin:
        return None
    try:
        told = msgspec.json.decode(begin + rest)
    except ValueError:
        return None
    named = type(told) is dict and type(told.get("event")) is str
    return told if named and told.get("level") in _LEVELS else None


def _wanted(
    level: str | None, events: tuple[str, ...], same: dict[str, str | None]
) -> Callable[[dict[str, Any]], bool]:
    """Whether somebody wants to see a line."""
    least = _LEVELS.index(level) if level else 0
    asked = {name: value for name, value in same.items() if value is not None}

    def wanted(told: dict[str, Any]) -> bool:
        event = told["event"]
        return (
            _LEVELS.index(told["level"]) >= least
            and (not events or any(event == one or event.startswith(f"{one}.") for one in events))
            and all(told.get(name) == value for name, value in asked.items())
        )

    return wanted


def _pretty(told: dict[str, Any]) -> str:
    """A line for people. What was escaped as JSON is escaped for them."""
    import msgspec  # noqa: PLC0415

    from tropilla.observing.journal import EVENT, Line, as_words  # noqa: PLC0415

    level, event = told["level"], told["event"]
    words: list[str] = []
    if event == EVENT:
        try:
            words = [as_words(msgspec.convert(told, Line))]
        except msgspec.ValidationError:
            words = []
    if not words:
        words = [_plain(one) for one in str(told.get("message", "")).split("\n")]
        traced = told.get("traceback")
        words += [_plain(str(one)) for one in traced] if type(traced) is list else []
        words[0] = f"{_plain(event)}  {words[0]}"
    at = _plain(str(told.get("time", "")))[:24]
    mark = click.style(f"{level:<7}", fg=_COLOURS.get(level), dim=level == "info")
    return f"{click.style(at, dim=True)}  {mark}  " + "\n  ".join(words)


def _plain(text: str) -> str:
    """A text that cannot move a terminal's cursor."""
    from tropilla.log import printable  # noqa: PLC0415

    return printable(text.rstrip("\r\n"))
