"""A stream that is cut at a stop word, wherever it was cut into pieces before."""

from __future__ import annotations

import pytest
from hypothesis import given
from hypothesis import strategies as st

from grammar import check_grammar
from strategies import law
from tropilla import ir
from tropilla.exchanges.stops import Stops
from tropilla.ir import ChoiceEnded, Event, Finished, PartDelta, PartEnded, PartStarted, Started


def answer(*texts: str) -> list[Event]:
    return [
        Started(),
        PartStarted(kind="text"),
        *(PartDelta(text=text) for text in texts),
        PartEnded(),
        ChoiceEnded(reason="length"),
        Finished(),
    ]


def heard(events: list[Event], *words: str) -> list[Event]:
    stops, told = Stops(words), list[Event]()
    for event in events:
        told += stops.feed([event])
        if stops.hit:
            break
    check_grammar(told)
    return told


@law(200)
@given(
    st.lists(st.text(alphabet="ab", max_size=3), max_size=8),
    st.lists(st.text(alphabet="ab", min_size=1, max_size=4), min_size=1, max_size=3),
)
def test_the_text_ends_before_the_first_stop_word(pieces: list[str], words: list[str]) -> None:
    choice = ir.fold(heard(answer(*pieces), *words)).choices[0]
    text = "".join(pieces)
    found = [text.index(word) for word in words if word in text]
    assert (choice.text() or "") == (text[: min(found)] if found else text)
    assert choice.reason == ("stop" if found else "length")
    assert (choice.stop_word in words) == bool(found)


def test_nothing_is_kept_back_that_can_be_no_stop_word() -> None:
    stops = Stops(("stop",))
    (delta,) = stops.feed([PartDelta(text="hello st")])
    assert isinstance(delta, PartDelta)
    assert delta.text == "hello "
    assert stops.feed([PartDelta(text="art")]) == [PartDelta(text="start")]


@pytest.mark.parametrize(
    "last", [PartEnded(), ir.Failed(problem=ir.Problem(kind="internal", message=""))]
)
def test_what_is_held_is_told_at_the_end(last: Event) -> None:
    stops = Stops(("stop",))
    stops.feed([PartDelta(text="st")])
    assert stops.feed([last]) == [PartDelta(text="st"), last]


def test_what_comes_with_the_text_stays_with_it() -> None:
    stops = Stops(("stop",))
    chances = [{"token": "a"}]
    assert stops.feed([PartDelta(text="a", logprobs=chances)]) == [
        PartDelta(text="a", logprobs=chances)
    ]
