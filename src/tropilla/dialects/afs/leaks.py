"""Calls that a model wrote into its text: `<function=NAME>{...}</function>`.

The tools of an AFS deployment are a template and a parser, and the parser misses some: then the
call arrives as text, with the word `tool` before it or without, cut into deltas anywhere, and
sometimes never closed. Here such a call is taken out of the text.

Nothing is told before it is decided: a text that may still become a call is held, and so is the
white space around one. Cut anywhere, the same text gives the same pieces.
"""

from __future__ import annotations

import re
from typing import NamedTuple

_MARK = "<function="
_WORD = "tool"
_OPENING = re.compile(r"(?:tool)?<function=([\w.:-]{1,64})>")
_HALF_OPENED = re.compile(r"<function=[\w.:-]{0,64}")
_CLOSING = "</function>"
_ESCAPED = re.compile(r"\\.", re.DOTALL)

_MOST = 64 * 1024
"""Characters of one call's arguments: what is longer is text."""


class Leak(NamedTuple):
    """A call that was found in a text; `arguments` exactly as written."""

    name: str
    arguments: str


class Leaks:
    """Splits a text, fed in any pieces, into what is text and what is a call."""

    def __init__(self) -> None:
        self._held = ""
        self._space = ""
        self._opening = ""
        self._name = ""
        self._body = ""
        self._found = False

    def feed(self, text: str) -> list[str | Leak]:
        """Take more text; return what is decided."""
        told: list[str | Leak] = []
        rest: str | None = text
        while rest is not None:
            rest = self._in_call(rest, told) if self._opening else self._in_text(rest, told)
        return told

    @property
    def holds(self) -> bool:
        """Whether there is text that is not decided yet."""
        return bool(self._held or self._space or self._opening)

    def end(self) -> list[str | Leak]:
        """The text is over: a call that was never closed is one all the same."""
        told: list[str | Leak] = []
        rest = self._held
        if self._opening:
            arguments, closing, rest = self._body.partition(_CLOSING)
            if not closing:
                arguments = _without_half_closing(arguments)
            self._call(arguments.strip(), told)
        self._held = ""
        self._text(rest, told)
        if self._space and not self._found:
            told.append(self._space)
        return told

    def _in_text(self, more: str, told: list[str | Leak]) -> str | None:
        text = self._held + more
        match = _OPENING.search(text)
        if match is None:
            decided = _decided(text)
            self._text(text[:decided], told)
            self._held = text[decided:]
            return None
        self._text(text[: match.start()], told)
        self._held, self._opening, self._name = "", match[0], match[1]
        return text[match.end() :]

    def _in_call(self, more: str, told: list[str | Leak]) -> str | None:
        body = self._body + more
        begin = body.lstrip()
        if begin.startswith(_CLOSING):
            self._call("{}", told)
            return begin.removeprefix(_CLOSING)
        if begin.startswith("{"):
            end = _closed(body, max(0, len(self._body) - len(_CLOSING)))
            if end is not None and end <= _MOST:
                self._call(body[:end].strip(), told)
                return body[end + len(_CLOSING) :]
            undecided = end is None and len(body) < _MOST + len(_CLOSING)
        else:
            undecided = _CLOSING.startswith(begin)
        if undecided:
            self._body = body
            return None
        # Somebody writes about calls: it is text, and another call may be in it.
        self._text(self._opening, told)
        self._opening = self._body = ""
        return body

    def _call(self, arguments: str, told: list[str | Leak]) -> None:
        told.append(Leak(self._name, arguments))
        self._opening = self._body = self._space = ""
        self._found = True

    def _text(self, text: str, told: list[str | Leak]) -> None:
        text = self._space + text
        end = len(text.rstrip())
        if end:
            told.append(text[:end])
        self._space = text[end:]


def _decided(text: str) -> int:
    """Where the end of a text begins that may become an opening; its length if there is none."""
    at = text.rfind("<")
    if at >= 0 and (_MARK.startswith(text[at:]) or _HALF_OPENED.fullmatch(text, at)):
        return at - len(_WORD) if text.endswith(_WORD, 0, at) else at
    for length in range(len(_WORD), 0, -1):
        if text.endswith(_WORD[:length]):
            return len(text) - length
    return len(text)


def _closed(body: str, start: int) -> int | None:
    """Where the arguments are closed; a closing inside one of their strings does not count."""
    end = body.find(_CLOSING, start)
    while end >= 0:
        if not _in_string(body[:end]):
            return end
        end = body.find(_CLOSING, end + 1)
    return None


def _without_half_closing(body: str) -> str:
    at = body.rfind("<")
    if at >= 0 and _CLOSING.startswith(body[at:]) and not _in_string(body[:at]):
        return body[:at]
    return body


def _in_string(json: str) -> bool:
    """Whether JSON breaks off inside one of its strings."""
    return _ESCAPED.sub("", json).count('"') % 2 == 1
