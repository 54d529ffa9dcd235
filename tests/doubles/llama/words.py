"""The model and the tokenizer of a double: what is said is said a piece for a token."""

from __future__ import annotations

import itertools
import re
from collections.abc import Callable, Iterator, Sequence
from typing import Any

SEED_PROMPT = "Nice to meet you!\n\nHuman: hi\nAssistant:"
SEED_IDS = [20103, 304, 5870, 366, 29991, 13, 13, 29950, 7889, 29901, 7251, 13, 7900, 22137, 29901]
# Recorded in the seed, with Llama 2's vocabulary.
_RECORDED = {SEED_PROMPT: SEED_IDS, "Hello!": [15043, 29991], "Hello": [15043]}

BOS, EOS = 1, 2
_FIRST_PIECE = 40000
_BYTES = range(3, 259)
_known: list[str] = []
"""Every piece that a double has said, in order: its place is its id."""


def tokens_of(text: str, says: Sequence[str] = ()) -> list[int]:
    """The ids of a text: a piece of what the model says is a token, anything else is bytes."""
    if text in _RECORDED:
        return _RECORDED[text]
    pieces = sorted({piece for piece in says if len(piece) > 1}, key=len, reverse=True)
    _known.extend(piece for piece in pieces if piece not in _known)
    parts = re.split("(" + "|".join(map(re.escape, pieces)) + ")", text) if pieces else [text]
    ids: list[int] = []
    for part in parts:
        if part in pieces:
            ids.append(_FIRST_PIECE + _known.index(part))
        else:
            ids += [byte + _BYTES.start for byte in part.encode()]
    return ids


def text_of(ids: Sequence[int]) -> str:
    """What `/detokenize` makes of ids."""
    recorded = next((text for text, known in _RECORDED.items() if known == list(ids)), None)
    if recorded is not None:
        return recorded
    told = b""
    for one in ids:
        if one in _BYTES:
            told += bytes([one - _BYTES.start])
        elif 0 <= one - _FIRST_PIECE < len(_known):
            told += _known[one - _FIRST_PIECE].encode()
        elif one == BOS:
            told += b"<s>"
    return told.decode("utf-8", "replace")


def tokens_of_prompt(prompt: Any, says: Sequence[str]) -> list[int]:
    """The ids of one prompt: a text, or a list that may mix texts and ids. BOS before texts."""
    items = prompt if isinstance(prompt, list) else [prompt]
    ids: list[int] = []
    for number, item in enumerate(items):
        if isinstance(item, str):
            ids += [BOS] * (number == 0) + tokens_of(item, says)
        else:
            ids.append(item)
    return ids


class Generation:
    """One answer in the making: what is sampled, what of it may be sent, and why it ends."""

    def __init__(self, build: int, says: Sequence[str], ends: str, params: dict[str, Any]) -> None:
        self._build = build
        self._says = says
        self._ends = ends
        self._words: list[str] = params["stop"]
        self._limit: int = params["n_predict"]
        self._sent = 0
        self._sampled = 0
        self.text = ""
        """All of it, as an answer in one piece has it."""
        self.pieces: list[str] = []
        """The tokens, EOS too."""
        self.stopped = ""
        """`eos`, `word` or `limit`, once it is over."""
        self.word = ""

    def run(self, turn: Callable[[], None] = lambda: None) -> Iterator[str]:
        """Generate to the end: for every token, the text that an event would send."""
        for piece in self._source():
            turn()
            self._sampled += 1
            self.pieces.append(piece or "")
            self.text += piece or ""
            sending = self._sending(piece or "")
            self._sent += len(sending)
            if not self.stopped and self._is_at_limit():
                self.stopped = "limit"
            if piece is None:
                self.stopped = "eos"
            yield sending
            if self.stopped:
                return

    @property
    def predicted(self) -> int:
        """How many tokens the server counts."""
        # Until b1778 (#4798) a token counts when the next one is sampled, so the last one never
        # does; since, EOS counts too.
        return max(0, self._sampled - (self._build < 1778))

    def _source(self) -> Iterator[str | None]:
        yield from self._says
        if self._ends == "word" and self._words:
            yield self._words[0]
        while self._ends == "never" and self._says:
            yield from self._says
        yield from itertools.repeat(None)

    def _is_at_limit(self) -> bool:
        left = self._limit - self.predicted
        if self._limit == -1:
            return False
        if self._build < 1778:
            # Looked at from the fourth token on, and -1 left is taken for no limit: of
            # n_predict 5 come six, of 1 four, of 2 five.
            return self.predicted > 2 and left <= 0 and left != -1
        return left <= 0  # so that of 0 comes one

    def _sending(self, piece: str) -> str:
        unsent = self.text[self._sent :]
        # An empty word is none that is skipped: it is found at once, in all builds.
        found = [
            (unsent.index(word, 0 if word else max(0, len(unsent) - len(piece))), -number, word)
            for number, word in enumerate(self._words)
            if word in unsent
        ]
        if found:
            at, _, self.word = min(found, key=lambda one: (one[0], -one[1]))
            self.text = self.text[: self._sent + at]
            self.stopped = "word"
            # What stood before the word and was not sent yet is lost to streams until b3930
            # (#9867, 2024-10-16).
            return self.text[self._sent :] if self._build >= 3930 else ""
        # While a word may be coming everything is held, and at the end it stays held.
        return "" if any(_may_come(unsent, word) for word in self._words) else unsent


def _may_come(text: str, word: str) -> bool:
    return any(text.endswith(word[:size]) for size in range(1, len(word)))
