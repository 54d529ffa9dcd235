"""What the log tells: one line for each event, in words for people, or as JSON for programs.

What others have said is bounded, and printable: no text of a client or of an upstream begins a
line of its own, or moves a terminal's cursor. A traceback, or the lines of a list, are indented
below their line. Nothing here knows what is secret: whoever tells an event leaves it out.
"""

from __future__ import annotations

import logging
import time
from collections.abc import Sequence
from contextlib import suppress
from typing import Any, Literal, NamedTuple, TextIO, TypeAlias

import msgspec

Form: TypeAlias = Literal["human", "json"]
Field: TypeAlias = str | float | Sequence[str] | None

MOST_TEXT = 500
"""Characters of one text."""
MOST_LINES = 100
"""Texts of one list, and lines of a traceback: of that, the last ones."""

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


class Out(NamedTuple):
    """Where the log goes, and how."""

    stream: TextIO
    form: Form

    def write(self, lines: Sequence[str]) -> None:
        """Write lines that are complete, in one piece; nobody may be there any more to read them.

        It is for who has many of them: an event has a line of its own.
        """
        with suppress(OSError, ValueError):
            self.stream.write("\n".join([*lines, ""]))
            self.stream.flush()


out: Out | None = None
"""Where the log goes, once it has begun."""


def begin(stream: TextIO, form: Form | None = None) -> None:
    """Write the log there from now on; without a form, a terminal shows words."""
    global out  # noqa: PLW0603 - as there is one root of all loggers
    form = form or ("human" if stream.isatty() else "json")
    out = Out(stream, form)
    handler = logging.StreamHandler(stream)
    handler.setFormatter(Human() if form == "human" else Json())
    logging.basicConfig(handlers=[handler], level=logging.INFO)
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
