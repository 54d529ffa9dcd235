"""The book of what is going on: what it remembers, what it forgets, what it sums."""

from __future__ import annotations

from tropilla.ir import Problem
from tropilla.observing.activity import CELL, CELLS, MOST, Activity
from tropilla.record import Record


class Clock:
    now = 1000.0

    def __call__(self) -> float:
        return self.now


def record(id_: str, **told: object) -> Record:
    one = Record(id_, "POST", "/v1/chat/completions", 0.0)
    one.metered, one.status = True, 200
    for name, value in told.items():
        setattr(one, name, value)
    return one


def over(book: Activity, one: Record) -> None:
    book.begun(one)
    book.over(one)


def test_open_requests_are_there_until_they_are_over() -> None:
    book, one, other = Activity(), record("a"), record("b")
    book.begun(one)
    book.begun(other)
    assert book.open() == [other, one]
    book.over(one)
    assert (book.open(), list(book.over_())) == ([other], [one])
    assert (book.find("a"), book.find("b"), book.find("c")) == (one, other, None)


def test_what_asks_for_nothing_is_not_shown() -> None:
    book, page = Activity(), record("page", metered=False)
    book.begun(page)
    assert book.open() == []
    book.over(page)
    assert list(book.over_()) == []


def test_what_is_said_again_is_shown_and_not_counted() -> None:
    book, one = Activity(), record("again", metered=False, replays="first", key="k", upstream="")
    book.begun(one)
    assert book.open() == [one]
    book.over(one)
    assert list(book.over_()) == [one]
    assert book.lately() == ({}, {})


def test_it_remembers_so_many() -> None:
    book = Activity()
    for number in range(MOST + 5):
        over(book, record(str(number)))
    assert len(list(book.over_())) == MOST
    assert book.find("4") is None
    assert book.find("5") is not None


def test_sums_are_those_of_the_last_seconds() -> None:
    clock = Clock()
    book = Activity(clock)
    limited = Problem(kind="limited", message="")
    failed = Problem(kind="upstream_failed", message="")
    over(book, record("a", key="k", upstream="u", prompt=10, cached=4, written=5, first=0.5))
    over(book, record("b", key="k", status=429, problem=limited))
    over(book, record("c", key="l", upstream="u", status=502, problem=failed, prompt=10))
    last = record("d", key="l", cancelled=True)
    for name in ("v", "u"):
        last.asks(name, "llamacpp", 0.0, 0.0)
    over(book, last)
    keys, upstreams = book.lately(60)
    assert (keys["k"].requests, keys["k"].limited, keys["k"].errors) == (2, 1, 0)
    assert (keys["l"].requests, keys["l"].errors, keys["l"].cancelled) == (2, 1, 1)
    count = upstreams["u"]
    assert (count.requests, count.known, count.cached, count.first) == (3, 10, 4, 0.5)
    assert (upstreams["v"].requests, upstreams["v"].errors) == (1, 1), "who failed it before"
    clock.now += 60
    assert book.lately(60) == ({}, {})
    assert book.lately()[0].keys() == {"k", "l"}
    clock.now += CELL * CELLS
    assert book.lately() == ({}, {})


def test_its_course_has_a_sum_for_each_time() -> None:
    clock = Clock()
    book = Activity(clock)
    over(book, record("a"))
    clock.now += 2 * CELL
    over(book, record("b"))
    assert [one.requests for one in book.course()][-3:] == [1, 0, 1]
    assert len(book.course()) == CELLS


def test_however_many_names_there_are_it_keeps_few() -> None:
    book = Activity()
    for number in range(3000):
        over(book, record(str(number), key=f"key {number}"))
    assert len(book.lately()[0]) <= 1001
    assert sum(one.requests for one in book.lately()[0].values()) == 3000
