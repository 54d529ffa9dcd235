"""What every parser of a stream does alike: it ends once, and closes what is open before it fails.

A dialect's own parser says what a frame tells (`_frame`), when the answer is whole (`_finish`),
and what is open (`_close_open`). It may raise `Malformed` anywhere in these: what was told before
stands, and the stream ends in `Failed`.

Most chunks of an answer differ from the one before in nothing but their text. Such a chunk is not
read again: it tells what the last one told, with its own text (`_Like`).
"""

from __future__ import annotations

from collections.abc import Sequence

import msgspec

from tropilla.dialects import _problems
from tropilla.framing import COMMENT, Frame
from tropilla.ir import Event, Extras, Failed, Json, Malformed, PartDelta, PartStarted, Problem

CUT_SHORT = Problem(
    kind="upstream_failed",
    message="The upstream ended the stream before the answer was complete.",
    retryable=True,
)


_text = msgspec.json.Decoder(str).decode


class _Like:
    """A frame that told one text and nothing else: what is around that text, and what it told."""

    __slots__ = ("after", "before", "begin", "choice", "end", "extras", "least")

    def __init__(self, before: bytes, after: bytes, told: PartDelta) -> None:
        self.before = before
        self.after = after
        self.begin, self.end = len(before), -len(after)
        """Where the text is."""
        self.least = len(before) + len(after) + 3
        """Bytes of a frame with a text: its quotes, and what is in them."""
        self.choice: int = told.choice
        self.extras: Extras | None = told.extras

    def text(self, data: bytes) -> str:
        """The text of a frame that is the same but for that; empty if it is another."""
        if not (
            data.startswith(self.before) and data.endswith(self.after) and len(data) >= self.least
        ):
            return ""
        try:
            # What is one string of JSON in the place of another changes nothing around it.
            return _text(data[self.begin : self.end])
        except (msgspec.DecodeError, UnicodeDecodeError):
            return ""


def _like(frame: Frame, told: Sequence[Event]) -> _Like | None:
    """What the next frame may be like, if it is certain where the text of this one is."""
    match told:
        case [PartDelta() as delta] | [PartStarted(kind="text"), PartDelta() as delta] if (
            delta.text
        ):
            if delta.logprobs is not None or delta.tokens is not None:
                return None
            data, quoted = frame.data, b'"%b"' % delta.text.encode("utf-8", "replace")
            at = data.find(quoted)
            # Without a backslash no string is written in two ways, nor has a quote in it.
            if 0 <= at == data.rfind(quoted) and b"\\" not in data:
                return _Like(data[:at], data[at + len(quoted) :], delta)
    return None


class Parser:
    """Frames to events, up to the terminal one."""

    REPEATS = False
    """Whether a chunk that differs from the last in its text differs in nothing that it tells."""

    def __init__(self) -> None:
        self._over = False
        self._last_like: _Like | None = None

    def feed(self, frames: Sequence[Frame]) -> list[Event]:
        """The events that these frames tell."""
        events: list[Event] = []
        try:
            for frame in frames:
                if self._over:
                    break
                like = None if frame.event else self._last_like
                if like is not None and (text := like.text(frame.data)):
                    events.append(PartDelta(choice=like.choice, text=text, extras=like.extras))
                elif frame.event != COMMENT:
                    self._last_like = None
                    before = len(events)
                    self._frame(frame, events)
                    if self.REPEATS and not frame.event:
                        self._last_like = _like(frame, events[before:])
        except Malformed as error:
            self._fail(_problems.of_malformed(error), events)
        return events

    def end(self) -> list[Event]:
        """The bytes are over: the terminal event, if it was not told yet."""
        events: list[Event] = []
        if not self._over:
            self._finish(events)
        return events

    def abort(self, problem: Problem) -> list[Event]:
        """The bytes broke off: what is open closes, then `Failed`."""
        events: list[Event] = []
        if not self._over:
            self._fail(problem, events)
        return events

    def _fail(self, problem: Problem, events: list[Event]) -> None:
        self._close_open(events)
        self._over = True
        events.append(Failed(problem=problem))

    def _fail_with(self, error: Json, events: list[Event]) -> None:
        """End with an error that the upstream tells of, in an object or in a word."""
        told = error if type(error) is dict else {"message": error}
        self._fail(_problems.of_error(told), events)

    def _frame(self, frame: Frame, events: list[Event]) -> None:
        raise NotImplementedError

    def _finish(self, events: list[Event]) -> None:
        raise NotImplementedError

    def _close_open(self, events: list[Event]) -> None:
        raise NotImplementedError
