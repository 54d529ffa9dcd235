"""The pick, as a table: who could, and who takes it."""

from __future__ import annotations

from typing import Any

import pytest
from hypothesis import given
from hypothesis import strategies as st

from tropilla.herd.balance import Candidate, Pick, pick


def one(state: Any = "ready", *models: str, **more: Any) -> Candidate:
    return Candidate(state=state, models=models or ("m",), **more)


WAIT, UNKNOWN = Pick(otherwise="wait"), Pick(otherwise="unknown_model")
QUEUE = Pick(otherwise="queue")
UNAVAILABLE = Pick(otherwise="unavailable")


@pytest.mark.parametrize(
    ("candidates", "model", "avoid", "expected"),
    [
        ([], "m", (), UNAVAILABLE),
        ([one()], "m", (), Pick(index=0)),
        ([one()], None, (), Pick(index=0)),
        ([one()], "x", (), UNKNOWN),
        ([one("ready", "a"), one("ready", "b")], "b", (), Pick(index=1)),
        # The load is counted per slot, and of two equals the one that served less is next.
        ([one(leases=1), one()], "m", (), Pick(index=1)),
        ([one(leases=2, slots=4), one(leases=1, slots=1)], "m", (), Pick(index=0)),
        ([one(served=5), one(served=4)], "m", (), Pick(index=1)),
        ([one(served=5, weight=3), one(served=2)], "m", (), Pick(index=0)),
        ([one(leases=3, weight=2), one(leases=1)], "m", (), Pick(index=1)),
        # One that has failed is the last resort, but a resort.
        ([one(), one(leases=9)], "m", (0,), Pick(index=1)),
        ([one()], "m", (0,), Pick(index=0)),
        ([one(), one(leases=2, slots=2)], "m", (0,), QUEUE),
        ([one(), one("down")], "m", (0,), Pick(index=0)),
        # Who has no free slot.
        ([one(leases=2, slots=2), one(leases=3, slots=4)], "m", (), Pick(index=1)),
        ([one(leases=2, slots=2)], "m", (), QUEUE),
        ([one(leases=1, foreign=1, slots=2)], "m", (), QUEUE),
        ([one(leases=2, slots=2), one("loading")], "m", (), QUEUE),
        # Who is to get nothing.
        ([one(quarantined=True), one(leases=9)], "m", (), Pick(index=1)),
        ([one(quarantined=True), one(leases=2, slots=2)], "m", (), QUEUE),
        ([one(quarantined=True), one("loading")], "m", (), Pick(index=0)),
        ([one(quarantined=True)], "m", (), Pick(index=0)),
        ([one(draining=True), one(leases=9)], "m", (), Pick(index=1)),
        ([one(draining=True)], "m", (), UNAVAILABLE),
        # Who is not ready.
        ([one("loading"), one(leases=9)], "m", (), Pick(index=1)),
        ([one("loading")], "m", (), WAIT),
        ([one("starting")], None, (), WAIT),
        ([one("down")], "m", (), UNAVAILABLE),
        ([one("down")], "x", (), UNKNOWN),
        ([one("down"), one("starting")], "m", (), WAIT),
        # Nobody knows yet what an upstream will serve that has never answered.
        ([one("ready", "a"), Candidate(state="starting", models=())], "b", (), WAIT),
        ([one("ready", "a"), Candidate(state="down", models=())], "b", (), UNKNOWN),
        ([one("ready", "a"), one("starting", "c")], "b", (), UNKNOWN),
        ([Candidate(state="down", models=())], "b", (), UNAVAILABLE),
    ],
)
def test_pick(
    candidates: list[Candidate], model: str | None, avoid: tuple[int, ...], expected: Pick
) -> None:
    assert pick(candidates, model, avoid) == expected


@pytest.mark.parametrize(
    ("candidates", "expected"),
    [
        ([one(lacks={"tools"}), one(leases=9)], Pick(index=1)),
        ([one(lacks={"vision"})], Pick(index=0)),
        ([one(lacks={"tools"}), one("loading")], WAIT),
        ([one(lacks={"tools"}), one("down")], UNAVAILABLE),
        ([one(lacks={"tools"}), one("ready", "x")], Pick(otherwise="incapable")),
    ],
)
def test_who_lacks_what_is_needed_is_passed_over(
    candidates: list[Candidate], expected: Pick
) -> None:
    assert pick(candidates, "m", needs=["tools"]) == expected


def test_who_serves_nothing_is_not_asked_for_anything() -> None:
    nothing = Candidate(state="ready", models=())
    assert pick([nothing, one()], None) == Pick(index=1)
    assert pick([nothing], None) == UNAVAILABLE


candidates_ = st.lists(
    st.builds(
        Candidate,
        state=st.sampled_from(["starting", "loading", "ready", "down"]),
        models=st.sets(st.sampled_from("ab")),
        slots=st.none() | st.integers(1, 8),
        leases=st.integers(0, 20),
        served=st.integers(0, 99),
    ),
    max_size=6,
)


@given(candidates_, st.sampled_from([None, "a", "b", "c"]), st.sets(st.integers(0, 5)))
def test_who_is_picked_can_serve_and_nobody_fit_is_passed_over(
    candidates: list[Candidate], model: str | None, avoid: set[int]
) -> None:
    fit = [
        index
        for index, one in enumerate(candidates)
        if one.state == "ready" and (one.models if model is None else model in one.models)
    ]
    # Another one is worth waiting for.
    fit = [index for index in fit if index not in avoid] or fit
    fit = [index for index in fit if (slots := candidates[index].slots) is None
           or candidates[index].leases < slots]  # fmt: skip
    index = pick(candidates, model, avoid).index
    assert (index in fit) if fit else (index is None)


@pytest.mark.parametrize(
    ("cached", "leases", "size", "expected"),
    [
        # What is in the cache is worth a busier server, up to a point; for a short prompt less.
        ((0.0, 0.9), (0, 2), 100, 1),
        ((0.0, 0.9), (0, 2), 2, 0),
        ((0.0, 0.3), (0, 2), 100, 0),
        ((0.5, 0.5), (1, 0), 100, 1),
        ((0.0, 1.0), (0, 4), 100, 0),
    ],
)
def test_what_is_cached_against_the_load(
    cached: tuple[float, float], leases: tuple[int, int], size: int, expected: int
) -> None:
    candidates = [
        one(cached=share, leases=busy, slots=4) for share, busy in zip(cached, leases, strict=True)
    ]
    assert pick(candidates, "m", size=size) == Pick(index=expected)
