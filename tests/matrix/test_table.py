"""docs/matrix.md says what these tests have seen: no more, and no less.

`make matrix` writes it anew.
"""

from __future__ import annotations

import os
from collections.abc import Iterable
from pathlib import Path

import pytest

from matrix.backs import BACKS
from matrix.conftest import REFUSED, SEEN
from matrix.fronts import FRONTS
from matrix.test_features import FEATURES

PAGE = Path(__file__).parents[2] / "docs" / "matrix.md"
MARK = "<!-- made by `make matrix`: all that follows -->\n"

SHOWN = (
    "test_stream_and_whole",
    "test_stop",
    "test_usage",
    "test_error_before_the_first_word",
    "test_error_in_the_middle",
    "test_cancel",
)


def rows(named: Iterable[tuple[str, Iterable[str]]]) -> list[str]:
    """A table with a column for each kind of server."""
    head = "| | " + " | ".join(back.name for back in BACKS) + " |"
    body = [f"| {name} | " + " | ".join(cells) + " |" for name, cells in named]
    return [head, "|---" * (len(BACKS) + 1) + "|", *body]


def told(passed: list[bool]) -> str:
    """A cell: how many of the tests passed, in green if all did."""
    return f"{'✅' if all(passed) else '❌'} {sum(passed)}/{len(passed)}"


def tables() -> str:
    """All that was seen."""
    reasons = list(dict.fromkeys(why for why in REFUSED.values() if why))
    fronts = [
        (
            front.name,
            [told([SEEN[front.name, back.name, name] for name in SHOWN]) for back in BACKS],
        )
        for front in FRONTS
    ]
    features = [
        (feature.name, [cell(REFUSED[feature.name, back.name], reasons) for back in BACKS])
        for feature in FEATURES
    ]
    lines = [
        "",
        *rows(fronts),
        "",
        "## Beyond plain text",
        "",
        "What an OpenAI client may ask for: it works, or it is refused with a 400 that says why.",
        "",
        *rows(features),
        "",
        *(f"{number}. {why}" for number, why in enumerate(reasons, 1)),
        "",
    ]
    return "\n".join(lines)


def cell(why: str, reasons: list[str]) -> str:
    """A cell: that it works, or the number of the reason why not."""
    return f"400 ({reasons.index(why) + 1})" if why else "✅"


def test_the_page_says_what_was_seen() -> None:
    seen = len(FRONTS) * len(BACKS) * len(SHOWN), len(FEATURES) * len(BACKS)
    if (len(SEEN), len(REFUSED)) != seen:
        pytest.skip("only a part of the matrix was run, or a part has failed")
    page = PAGE.read_text(encoding="utf-8")
    head, mark, _ = page.partition(MARK)
    assert mark, f"{PAGE.name} has lost its mark"
    made = head + mark + tables()
    if os.environ.get("TROPILLA_WRITE_MATRIX"):
        PAGE.write_text(made, encoding="utf-8")
    assert made == PAGE.read_text(encoding="utf-8"), "docs/matrix.md is old: make matrix"
