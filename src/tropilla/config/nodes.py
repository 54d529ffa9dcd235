"""Values that know where they stand, and complaints about them."""

from __future__ import annotations

import math
import re
from typing import NamedTuple, TypeAlias

from tropilla.config.tree import ConfigError

CORE = (
    ("null", re.compile(r"(?:~|null|Null|NULL|)\Z"), ["~", "n", "N", ""]),
    ("bool", re.compile(r"(?:true|True|TRUE|false|False|FALSE)\Z"), list("tTfF")),
    ("int", re.compile(r"(?:[-+]?[0-9]+|0o[0-7]+|0x[0-9a-fA-F]+)\Z"), list("-+0123456789")),
    (
        "float",
        re.compile(
            r"(?:[-+]?(?:\.[0-9]+|[0-9]+(?:\.[0-9]*)?)(?:[eE][-+]?[0-9]+)?"
            r"|[-+]?\.(?:inf|Inf|INF)|\.(?:nan|NaN|NAN))\Z"
        ),
        list("-+.0123456789"),
    ),
)
"""What a plain scalar is, unless it is a text: the tag, the form, how that may begin."""

# No setting has as many; Python reads neither thousands of them, nor hundreds as a float.
_MOST_DIGITS = 100


class Place(NamedTuple):
    """Where something was said: a line and a column of a file, or the name of a variable."""

    source: str
    line: int = 0
    column: int = 0

    def __str__(self) -> str:
        return f"{self.source}:{self.line}:{self.column}" if self.line else self.source


class Items(NamedTuple):
    """A mapping, with its keys as often as they were written."""

    pairs: tuple[tuple[Node, Node], ...]


class Odd(NamedTuple):
    """What is no value here, and why."""

    why: str


Scalar: TypeAlias = bool | int | float | str | None


class Node(NamedTuple):
    """A value, and where it stands."""

    place: Place
    value: Scalar | list[Node] | Items | Odd


class Complaint(NamedTuple):
    """What is wrong with a setting, where that stands, and how to mend it."""

    place: Place
    path: str
    message: str

    def __str__(self) -> str:
        return ": ".join(filter(None, (str(self.place), self.path, self.message)))


class Refused(ConfigError):  # noqa: N818 - all that is wrong, not one error
    """All that is wrong with a config, a line each."""

    def __init__(self, *complaints: Complaint) -> None:
        super().__init__("\n".join(map(str, complaints)))
        self.complaints = complaints


def scalar(text: str) -> Scalar:
    """A plain scalar by YAML 1.2's core schema."""
    for tag, form, _ in CORE:
        if form.match(text):
            return plain(tag, text)
    return text


def _integer(text: str) -> int | float:
    if len(text) > _MOST_DIGITS:
        return math.inf
    return int(text, 0) if text.startswith(("0o", "0x")) else int(text)


def _float(text: str) -> float:
    return float(text.lower().replace(".inf", "inf").replace(".nan", "nan"))


FORMS = {tag: form for tag, form, _ in CORE}


def plain(tag: str, text: str) -> Scalar:
    """What a text is by its tag, whose form it has."""
    match tag:
        case "null":
            return None
        case "bool":
            return text.lower() == "true"
        case "int":
            return _integer(text)
        case "float":
            return _float(text)
        case _:
            return text
