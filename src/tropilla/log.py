"""What the log tells: one line for each event, in words for people, or as JSON for programs.

What others have said is bounded, and printable: no text of a client or of an upstream begins a
line of its own, or moves a terminal's cursor. A traceback, or the lines of a list, are indented
below their line. Nothing here knows what is secret: whoever tells an event leaves it out.
"""

from __future__ import annotations

import atexit
import logging
import os
import select
import time
from collections.abc import Sequence
from contextlib import suppress
from threading import Lock
from typing import Any, Literal, TextIO, TypeAlias

import msgspec

Form: TypeAlias = Literal["human", "json"]
Field: TypeAlias = str | float | Sequence[str] | None

MOST_TEXT = 500
"""Characters of one text."""
MOST_LINES = 100
"""Texts of one list, and lines of a traceback: of that, the last ones."""

_PIECE = 4096
"""Bytes for which a pipe has place if it has any (PIPE_BUF)."""
_MOST_HELD = 1024 * 1024
"""Bytes that wait for who reads the log."""
_LAST_MILLISECONDS = 1000

_log = logging.getLogger("tropilla")


def info(event: str, text: str, /, **fields: Field) -> None:
    """Tell that something has happened: `text` has the names of fields in braces."""
    _tell(logging.INFO, event, text, fields)


def warning(event: str, text: str, /, **fields: Field) -> None:
    """Tell of something that somebody may have to mend."""
    _tell(logging.WARNING, event, text, fields)


def error(event: str, text: str, /, **fields: Field) -> None:
    """Tell of something that did not work, and is not tried again."""
    _tell(logging.ERROR, event, text, fields)


def defect(event: str, text: str, /, **fields: Field) -> None:
    """Tell of a mistake in Tropilla itself, with the traceback of what is being handled."""
    _tell(logging.ERROR, event, text, fields, traced=True)


def _tell(
    level: int, event: str, text: str, fields: dict[str, Field], *, traced: bool = False
) -> None:
    if not _log.isEnabledFor(level):
        return
    kept = {name: _cut(value) for name, value in fields.items()}
    words = text.format_map({name: _words(value) for name, value in kept.items()})
    _log.log(level, words, exc_info=traced, extra={"event": event, "fields": kept})


class Human(logging.Formatter):
    """A line of words; what belongs to it is indented."""

    def format(self, record: logging.LogRecord) -> str:
        """One event."""
        return "\n  ".join(_lines(record) + _traceback(self, record))


class Json(logging.Formatter):
    """One object on one line: `time`, `level`, `event`, the words, and the fields of the event."""

    def format(self, record: logging.LogRecord) -> str:
        """One event."""
        told: dict[str, Any] = {
            "time": moment(record.created),
            "level": record.levelname.lower(),
            "event": getattr(record, "event", record.name),
            "message": "\n".join(_lines(record)),
        }
        told |= getattr(record, "fields", {})
        if lines := _traceback(self, record):
            told["traceback"] = lines
        return printable(msgspec.json.encode(told).decode())


def moment(at: float) -> str:
    """A time as the log tells it, in UTC."""
    seconds, part = divmod(int(at * 1000), 1000)
    return f"{time.strftime('%Y-%m-%dT%H:%M:%S', time.gmtime(seconds))}.{part:03d}Z"


class Out:
    """Where the log goes, and how. Who does not read it holds nobody up: it waits, or is lost."""

    def __init__(self, stream: TextIO, form: Form) -> None:
        self.form = form
        self._stream = stream
        self._file = _file_of(stream)
        self._held = bytearray()
        self._lost = 0
        self._turn = Lock()

    def write(self, lines: Sequence[str]) -> None:
        """Write lines that are complete, as far as there is place for them."""
        text = "\n".join([*lines, ""])
        if self._file is None:
            with suppress(OSError, ValueError):
                self._stream.write(text)
                self._stream.flush()
            return
        with self._turn:
            if len(self._held) > _MOST_HELD:
                self._lost += len(lines)
            else:
                self._held += text.encode("utf-8", "backslashreplace")
            self._pour(self._file, 0)
            if self._lost and not self._held:
                lost, self._lost = self._lost, 0
                self._held += f"{lost} lines of the log are lost: nobody read it.\n".encode()
                self._pour(self._file, 0)

    def finish(self) -> None:
        """Write what waits, if somebody reads it soon."""
        if self._file is not None:
            with self._turn:
                self._pour(self._file, _LAST_MILLISECONDS)

    def _pour(self, file: int, patience: int) -> None:
        held = self._held
        while held:
            # So much is written at once, or not at all, and where possible whole lines.
            end = held.rfind(b"\n", 0, _PIECE) + 1 or _PIECE
            try:
                if not _has_place(file, patience):
                    return
                del held[: os.write(file, held[:end])]
            except BlockingIOError:
                return
            except OSError:
                held.clear()  # nobody is there any more


def _file_of(stream: TextIO) -> int | None:
    """The number of a file that can be asked whether it has place."""
    try:
        return stream.fileno() if hasattr(select, "poll") else None
    except (OSError, ValueError, AttributeError):
        return None


def _has_place(file: int, milliseconds: int) -> bool:
    poll = select.poll()
    poll.register(file, select.POLLOUT)
    return bool(poll.poll(milliseconds))


class _Handler(logging.Handler):
    """Writes each event."""

    def __init__(self, to: Out) -> None:
        super().__init__()
        self._to = to
        self.setFormatter(Human() if to.form == "human" else Json())

    def emit(self, record: logging.LogRecord) -> None:
        """Write one."""
        with suppress(Exception):  # who tells of something does not fail by it
            self._to.write([self.format(record)])


out: Out | None = None
"""Where the log goes, once it has begun."""


def begin(stream: TextIO, form: Form | None = None) -> None:
    """Write the log there from now on; without a form, a terminal shows words."""
    global out  # noqa: PLW0603 - as there is one root of all loggers
    form = form or ("human" if stream.isatty() else "json")
    out = Out(stream, form)
    atexit.register(out.finish)
    logging.basicConfig(handlers=[_Handler(out)], level=logging.INFO)
    logging.getLogger("asyncio").setLevel(logging.WARNING)


class Seldom:
    """Counts what happens often, to be told once in so many seconds."""

    def __init__(self, seconds: float) -> None:
        self._seconds = seconds
        self._next = float("-inf")
        self._count = 0

    def add(self) -> None:
        """It has happened."""
        self._count += 1

    def due(self, now: float) -> int:
        """How often it has happened since it was told last, if it is to be told now; else 0."""
        if not self._count or now < self._next:
            return 0
        count, self._count, self._next = self._count, 0, now + self._seconds
        return count


def _lines(record: logging.LogRecord) -> list[str]:
    """The words of an event: our own lines stay apart, what another library says is one."""
    if hasattr(record, "fields"):
        return record.getMessage().split("\n")
    return [printable(short(record.getMessage()))]


def _traceback(formatter: logging.Formatter, record: logging.LogRecord) -> list[str]:
    if not record.exc_info:
        return []
    lines = formatter.formatException(record.exc_info).splitlines()
    return [printable(short(line)) for line in lines[-MOST_LINES:]]


def _cut(value: Field) -> Field:
    match value:
        case str():
            return short(value)
        case None | bool() | int() | float():
            return value
    kept = [short(one) for one in value[:MOST_LINES]]
    return kept if len(value) <= MOST_LINES else [*kept, "..."]


def short(text: str) -> str:
    """Not more of a text than anybody reads, and nothing that is no text: half of a pair."""
    text = text if len(text) <= MOST_TEXT else text[:MOST_TEXT] + "..."
    return text if text.isprintable() else text.encode("utf-8", "backslashreplace").decode()


def _words(value: Field) -> str:
    """A field as it stands among words; a list has a line for each."""
    match value:
        case str():
            return printable(value)
        case None | bool() | int():
            return str(value)
        case float():
            return f"{value:g}"
    return "".join(f"\n{printable(one)}" for one in value)


def printable(text: str) -> str:
    """A text with everything escaped, as in JSON, that is no letter or sign to be seen."""
    if text.isprintable():
        return text
    return "".join(one if one.isprintable() else _escaped(one) for one in text)


def _escaped(one: str) -> str:
    units = one.encode("utf-16-be").hex()
    return "".join(rf"\u{units[at : at + 4]}" for at in range(0, len(units), 4))
