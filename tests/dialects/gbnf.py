"""llama.cpp's grammars as its first parser read them: whether a text fits, and texts that do.

Strict where old servers crash or hang: a rule that begins with itself, a repetition of nothing.
"""

from __future__ import annotations

from collections.abc import Callable, Iterator
from dataclasses import dataclass
from functools import cached_property

_HEX = {"x": 2, "u": 4, "U": 8}
_ESCAPES = {"t": "\t", "r": "\r", "n": "\n", "\\": "\\", '"': '"', "[": "[", "]": "]"}
_SAMPLES = 'aZ09 _-/.:é漢😀\x7f\u2028{}[],"\\\n\t\x00\x1f'


@dataclass(frozen=True, eq=False)
class Letters:
    """One letter within ranges, or within none of them."""

    ranges: tuple[tuple[str, str], ...]
    negated: bool = False

    def holds(self, letter: str) -> bool:
        return any(low <= letter <= high for low, high in self.ranges) is not self.negated

    @cached_property
    def samples(self) -> list[str]:
        ends = "" if self.negated else "".join(low + high for low, high in self.ranges)
        return sorted({one for one in _SAMPLES + ends if self.holds(one)})


@dataclass(frozen=True, eq=False)
class Named:
    name: str


@dataclass(frozen=True, eq=False)
class Row:
    items: tuple[Node, ...]


@dataclass(frozen=True, eq=False)
class OneOf:
    options: tuple[Node, ...]


@dataclass(frozen=True, eq=False)
class Repeated:
    item: Node
    least: int
    once: bool


Node = Letters | Named | Row | OneOf | Repeated
_NOTHING = Row(())


class _Reader:
    """Reads one rule."""

    def __init__(self, text: str) -> None:
        self.text, self.at = text, 0

    def peek(self) -> str:
        return self.text[self.at : self.at + 1]

    def take(self, expected: str = "") -> str:
        letter = self.peek()
        assert letter, f"the rule ends early: {self.text}"
        assert expected in ("", letter), f"no {expected!r} at {self.text[self.at :]}"
        self.at += 1
        return letter

    def blanks(self) -> None:
        while self.peek() == " ":
            self.at += 1

    def letter(self) -> str:
        if self.peek() != "\\":
            return self.take()
        self.take()
        kind = self.take()
        if kind in _HEX:
            code = "".join(self.take() for _ in range(_HEX[kind]))
            return chr(int(code, 16))
        assert kind in _ESCAPES, f"an unknown escape: \\{kind}"
        return _ESCAPES[kind]

    def name(self) -> str:
        start = self.at
        while self.peek().isascii() and (self.peek().isalnum() or self.peek() == "-"):
            self.at += 1
        assert self.at > start, f"no name at {self.text[start:]}"
        return self.text[start : self.at]

    def options(self) -> Node:
        options = [self.row()]
        while self.peek() == "|":
            self.take()
            self.blanks()
            options.append(self.row())
        return options[0] if len(options) == 1 else OneOf(tuple(options))

    def row(self) -> Node:
        items: list[Node] = []
        while self.peek() and self.peek() not in "|)":
            if self.peek() in "*+?":
                assert items, "nothing is repeated"
                sign = self.take()
                items[-1] = Repeated(items[-1], int(sign == "+"), sign == "?")
            else:
                items.append(self.item())
            self.blanks()
        return Row(tuple(items))

    def item(self) -> Node:
        match self.peek():
            case '"':
                self.take()
                letters = []
                while self.peek() != '"':
                    one = self.letter()
                    letters.append(Letters(((one, one),)))
                self.take()
                assert letters, "an empty text"
                return Row(tuple(letters))
            case "[":
                return self.range()
            case "(":
                self.take()
                self.blanks()
                inside = self.options()
                self.take(")")
                return inside
            case _:
                return Named(self.name())

    def range(self) -> Node:
        self.take("[")
        negated = self.peek() == "^"
        if negated:
            self.take()
        ranges = []
        while self.peek() != "]":
            low = high = self.letter()
            if self.peek() == "-" and self.text[self.at + 1] != "]":
                self.take()
                high = self.letter()
            assert low <= high
            ranges.append((low, high))
        self.take("]")
        assert ranges
        return Letters(tuple(ranges), negated)


class Grammar:
    """A grammar, read."""

    def __init__(self, text: str) -> None:
        self.rules: dict[str, Node] = {}
        for line in text.split("\n"):
            reader = _Reader(line)
            name = reader.name()
            assert name not in self.rules, f"{name} is there twice"
            reader.blanks()
            for sign in "::=":
                reader.take(sign)
            reader.blanks()
            self.rules[name] = reader.options()
            assert not reader.peek(), f"something is left of {name}: {line[reader.at :]}"
        assert "root" in self.rules
        self._least = self._shortest()

    def _shortest(self) -> dict[str, float]:
        """The fewest letters of each rule, and a check that each leads somewhere."""
        least = dict.fromkeys(self.rules, float("inf"))
        while True:
            found = {name: self.least(node, least) for name, node in self.rules.items()}
            if found == least:
                break
            least = found
        return least

    def least(self, node: Node, known: dict[str, float] | None = None) -> float:
        known = self._least if known is None else known
        match node:
            case Letters():
                return 1
            case Named(name):
                return known[name]
            case Row(items):
                return sum(self.least(item, known) for item in items)
            case OneOf(options):
                return min(self.least(option, known) for option in options)
            case Repeated(item, least, _):
                return self.least(item, known) * least if least else 0

    def accepts(self, text: str) -> bool:
        """Whether a text fits as a whole."""
        known: dict[tuple[Node, int], frozenset[int]] = {}
        open_: set[tuple[Node, int]] = set()

        def ends(node: Node, at: int) -> frozenset[int]:
            place = (node, at)
            if place not in known:
                assert place not in open_, "a rule begins with itself"
                open_.add(place)
                known[place] = frozenset(found(node, at))
                open_.remove(place)
            return known[place]

        def found(node: Node, at: int) -> Iterator[int]:
            match node:
                case Letters():
                    if at < len(text) and node.holds(text[at]):
                        yield at + 1
                case Named(name):
                    yield from ends(self.rules[name], at)
                case Row(items):
                    places = {at}
                    for item in items:
                        places = {end for place in places for end in ends(item, place)}
                    yield from places
                case OneOf(options):
                    for option in options:
                        yield from ends(option, at)
                case Repeated(item, least, once):
                    assert once or self.least(item) > 0, "nothing is repeated for ever"
                    if not least:
                        yield at
                    fresh, seen = {at}, {at}
                    while fresh:
                        fresh = {end for place in fresh for end in ends(item, place)} - seen
                        yield from fresh
                        seen |= fresh
                        if once:
                            break

        return len(text) in ends(self.rules["root"], 0)

    def text(self, choose: Callable[[int], int], letters: int = 60) -> str:
        """A text that fits; `choose(n)` chooses one of n ways, while few letters are written."""
        written: list[str] = []

        def write(node: Node) -> None:
            free = len(written) < letters
            match node:
                case Letters():
                    written.append(node.samples[choose(len(node.samples)) if free else 0])
                case Named(name):
                    write(self.rules[name])
                case Row(items):
                    for item in items:
                        write(item)
                case OneOf(options):
                    if free:
                        ways = [one for one in options if self.least(one) < float("inf")]
                        write(ways[choose(len(ways))])
                    else:
                        write(min(options, key=self.least))
                case Repeated(item, least, once):
                    most = 1 if once else least + 3
                    for _ in range(least + choose(most - least + 1) if free else least):
                        write(item)

        write(self.rules["root"])
        return "".join(written)
