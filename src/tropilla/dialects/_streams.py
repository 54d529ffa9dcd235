"""What every parser of a stream does alike: it ends once, and closes what is open before it fails.

A dialect's own parser says what a frame tells (`_frame`), when the answer is whole (`_finish`),
and what is open (`_close_open`). It may raise `Malformed` anywhere in these: what was told before
stands, and the stream ends in `Failed`.
"""

from __future__ import annotations

from collections.abc import Sequence

from tropilla.dialects import _problems
from tropilla.framing import COMMENT, Frame
from tropilla.ir import Event, Failed, Json, Malformed, Problem

CUT_SHORT = Problem(
    kind="upstream_failed",
    message="The upstream ended the stream before the answer was complete.",
    retryable=True,
)


class Parser:
    """Frames to events, up to the terminal one."""

    def __init__(self) -> None:
        self._over = False

    def feed(self, frames: Sequence[Frame]) -> list[Event]:
        """The events that these frames tell."""
        events: list[Event] = []
        try:
            for frame in frames:
                if self._over:
                    break
                if frame.event != COMMENT:
                    self._frame(frame, events)
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
