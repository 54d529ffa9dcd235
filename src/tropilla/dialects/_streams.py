"""What every parser of a stream does alike: it ends once, and closes what is open before it fails.

A dialect's own parser says what a frame tells (`_frame`), when the answer is whole (`_finish`),
and what is open (`_close_open`). It may raise `Malformed` anywhere in these: what was told before
stands, and the stream ends in `Failed`.

Most chunks of an answer differ from the one before in nothing but their text. Such a chunk is not
read again: it tells what the last one told, with its own text (`Like`).
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


class Like:
    """Bytes that told one text and nothing else: what is around that text, and what it told."""

    __slots__ = ("_after", "_before", "_begin", "_choice", "_end", "_extras", "_least")

    def __init__(self, before: bytes, after: bytes, choice: int, extras: Extras | None) -> None:
        self._before = before
        self._after = after
        self._begin, self._end = len(before), -len(after)
        """Where the text is."""
        self._least = len(before) + len(after) + 3
        """Bytes with a text: its quotes, and what is in them."""
        self._choice = choice
        self._extras = extras

    def told(self, data: bytes) -> PartDelta | None:
        """What bytes tell that are the same but for their text; `None` if they are others."""
        if not (
            data.startswith(self._before)
            and data.endswith(self._after)
            and len(data) >= self._least
        ):
            return None
        try:
            # What is one string of JSON in the place of another changes nothing around it.
            text = _text(data[self._begin : self._end])
        except (msgspec.DecodeError, UnicodeDecodeError):
            return None
        if not text:
            return None
        return PartDelta(choice=self._choice, text=text, extras=self._extras)

    def within(self, before: bytes, after: bytes) -> Like:
        """The same, with more around it."""
        return Like(before + self._before, self._after + after, self._choice, self._extras)


def _like(frame: Frame, told: Sequence[Event]) -> Like | None:
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
                after = data[at + len(quoted) :]
                return Like(data[:at], after, delta.choice, delta.extras)
    return None


class Parser:
    """Frames to events, up to the terminal one."""

    REPEATS = False
    """Whether a chunk that differs from the last in its text differs in nothing that it tells."""

    def __init__(self) -> None:
        self._over = False
        self.like: Like | None = None
        """What the next frame is probably like; who is told by that need not have it fed."""

    def feed(self, frames: Sequence[Frame]) -> list[Event]:
        """The events that these frames tell."""
        events: list[Event] = []
        try:
            for frame in frames:
                if self._over:
                    break
                like = None if frame.event else self.like
                if like is not None and (told := like.told(frame.data)):
                    events.append(told)
                elif frame.event != COMMENT:
                    self.like = None
                    before = len(events)
                    self._frame(frame, events)
                    if self.REPEATS and not frame.event:
                        self.like = _like(frame, events[before:])
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
