"""Stop words, looked for here: for servers whose streams lose text around them.

A llama-server before b3930 or so does not stream what a token says before a stop word (#9867),
and before b4410 or so may keep what looked like the beginning of one at the end of an answer
(#10997). Such a server is not told of the stop words; its stream is cut here instead.
"""

from __future__ import annotations

import msgspec

from tropilla.ir import (
    ChoiceEnded,
    Event,
    Failed,
    Finished,
    PartDelta,
    PartEnded,
)


class Stops:
    """Events of an answer of one choice, up to the first stop word in its text."""

    def __init__(self, words: tuple[str, ...]) -> None:
        self._words = words
        self._held = ""
        self.hit = False
        """Whether a stop word came: what was returned last is the end of the answer."""

    def feed(self, events: list[Event]) -> list[Event]:
        """The events that are certain, in which no stop word begins."""
        told: list[Event] = []
        for event in events:
            match event:
                case PartDelta():
                    self._delta(event, told)
                    if self.hit:
                        break
                case PartEnded() | ChoiceEnded() | Finished() | Failed():
                    # What looked like the beginning of a stop word was none.
                    held, self._held = self._held, ""
                    if self._found(held):
                        self._hit(PartDelta(text=held), told)
                        break
                    if held:
                        told.append(PartDelta(text=held))
                    told.append(event)
                case _:
                    told.append(event)
        return told

    def _delta(self, event: PartDelta, told: list[Event]) -> None:
        text = self._held + event.text
        sure = len(text) - max(_overlap(text, word) for word in self._words)
        found = self._found(text)
        # Where a longer word may have begun before the one that was found, it is waited for.
        if found and found[0] <= sure:
            self._hit(msgspec.structs.replace(event, text=text), told)
            return
        self._held = text[sure:]
        told.append(msgspec.structs.replace(event, text=text[:sure]))

    def _found(self, text: str) -> tuple[int, str] | None:
        """The first stop word of a text, and where it begins."""
        found = [(at, word) for word in self._words if (at := text.find(word)) >= 0]
        return min(found, default=None)

    def _hit(self, event: PartDelta, told: list[Event]) -> None:
        """End the answer before the stop word in this text."""
        at, word = self._found(event.text) or (0, "")
        self.hit = True
        if at:
            told.append(msgspec.structs.replace(event, text=event.text[:at]))
        told += (PartEnded(), ChoiceEnded(reason="stop", stop_word=word), Finished())


def _overlap(text: str, word: str) -> int:
    """How much of the end of a text may be the beginning of a word."""
    most = min(len(text), len(word) - 1)
    return next((size for size in range(most, 0, -1) if text.endswith(word[:size])), 0)
