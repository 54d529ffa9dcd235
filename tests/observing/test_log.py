"""One line for each event, whatever the texts in it are."""

from __future__ import annotations

import io
import logging
import os
import re
import subprocess
import sys
from collections.abc import Iterator
from contextlib import contextmanager

import msgspec
import pytest
from hypothesis import given
from hypothesis import strategies as st

from strategies import law
from tropilla import log
from tropilla.log import MOST_LINES, MOST_TEXT, Form, Human, Json, Seldom

FORMS: list[Form] = ["human", "json"]
EVIL = [
    "one\ntwo", "one\r\ntwo", "\x1b[2J\x1b[1;1Hall is well", "\x9b2J", "a\u2028b\u2029c\x85d\x0be",
    "\u202egnp.exe", "\x00", "\x7f", "\ud800", "{event}%s%(x)s", '"}\n{"event": "forged"}',
    "\U000e0041",
]  # fmt: skip

BEGIN = "import sys; from tropilla import log;"


@contextmanager
def listening(form: Form) -> Iterator[io.StringIO]:
    """What is written of the events that happen meanwhile."""
    stream = io.StringIO()
    handler = logging.StreamHandler(stream)
    handler.setFormatter(Human() if form == "human" else Json())
    logger = logging.getLogger("tropilla")
    level = logger.level
    logger.addHandler(handler)
    logger.setLevel(logging.INFO)
    try:
        yield stream
    finally:
        logger.removeHandler(handler)
        logger.setLevel(level)


@pytest.mark.parametrize("form", FORMS)
@pytest.mark.parametrize("text", EVIL)
def test_no_text_makes_a_line_of_its_own(form: Form, text: str) -> None:
    with listening(form) as written:
        log.warning("upstream.down", "{upstream} is down: {why}", upstream=text, why=text)
    (line,) = written.getvalue().splitlines()
    assert line.isprintable()
    if form == "json":
        told = msgspec.json.decode(line)
        assert told["event"] == "upstream.down"
        assert told["why"] == text.replace("\ud800", "\\ud800")


@law()
@given(st.text())
def test_nor_does_any_other(text: str) -> None:
    for form in FORMS:
        with listening(form) as written:
            log.info("x", "{it}", it=text)
        assert written.getvalue()[:-1].isprintable()


@pytest.mark.parametrize("form", FORMS)
def test_the_lines_of_a_list_are_indented(form: Form) -> None:
    with listening(form) as written:
        log.info("settings.read", "What is new:{news}", news=["-a", "+b\nforged"])
    if form == "human":
        assert written.getvalue() == "What is new:\n  -a\n  +b\\u000aforged\n"
    else:
        (line,) = written.getvalue().splitlines()
        assert msgspec.json.decode(line)["news"] == ["-a", "+b\nforged"]


def test_the_fields_of_a_json_line() -> None:
    with listening("json") as written:
        log.error("gateway.failed", "{a} {b} {c} {d}", a=1, b=0.5, c=None, d=True)
    told = msgspec.json.decode(written.getvalue())
    assert re.fullmatch(r"\d{4}-\d\d-\d\dT\d\d:\d\d:\d\d\.\d{3}Z", told.pop("time"))
    assert told == {
        "level": "error", "event": "gateway.failed", "message": "1 0.5 None True",
        "a": 1, "b": 0.5, "c": None, "d": True,
    }  # fmt: skip


@pytest.mark.parametrize("form", FORMS)
def test_what_is_long_is_cut(form: Form) -> None:
    with listening(form) as written:
        log.info("x", "{text}{lines}", text="\n" * 10**6, lines=["l" * 10**6] * 10**4)
    escaped = 7  # characters, at most, of one that cannot be seen
    assert len(written.getvalue()) < 2 * MOST_TEXT * escaped + 3 * MOST_LINES * (MOST_TEXT + 10)


@pytest.mark.parametrize("form", FORMS)
def test_a_traceback_belongs_to_its_line(form: Form) -> None:
    with listening(form) as written:
        try:
            raise RuntimeError("one\nforged: \x1b[2J")
        except RuntimeError:
            log.defect("request.defect", "A defect, in {request}", request="req_1")
    first, *rest = written.getvalue().splitlines()
    assert "A defect, in req_1" in first
    assert "RuntimeError: one" in written.getvalue()
    assert all(line.startswith("  ") and line.isprintable() for line in rest)
    assert bool(rest) == (form == "human")


@pytest.mark.parametrize("form", FORMS)
def test_what_other_libraries_say_is_bounded_too(form: Form) -> None:
    with listening(form) as written:
        logging.getLogger("tropilla.other").warning("one\n%s", "x" * 10**6)
    (line,) = written.getvalue().splitlines()
    assert len(line) < 2 * MOST_TEXT
    if form == "json":
        assert msgspec.json.decode(line)["event"] == "tropilla.other"


def test_nobody_formats_what_nobody_reads() -> None:
    class Costly(str):
        __slots__ = ()

        def __format__(self, spec: str) -> str:
            raise AssertionError

    logger = logging.getLogger("tropilla")
    level = logger.level
    logger.setLevel(logging.CRITICAL)
    try:
        log.error("x", "{it}", it=Costly())
    finally:
        logger.setLevel(level)


def test_what_happens_often_is_told_seldom() -> None:
    seldom = Seldom(10)
    assert seldom.due(0) == 0
    told = []
    for second in range(25):
        seldom.add()
        told.append(seldom.due(second))
    assert [one for one in told if one] == [1, 10, 10]
    assert seldom.due(29) == 0
    assert seldom.due(30) == 4


@pytest.mark.parametrize(("form", "first"), [(None, "{"), ("json", "{"), ("human", "It")])
def test_who_reads_no_terminal_gets_json(form: Form | None, first: str) -> None:
    code = f"{BEGIN} log.begin(sys.stderr, {form!r}); log.info('x', 'It')"
    done = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, check=True)
    assert done.stderr.startswith(first)
    assert done.stderr.count("\n") == 1


@pytest.mark.skipif(sys.platform == "win32", reason="there are no pseudo-terminals")
def test_a_terminal_gets_words() -> None:
    import pty

    ours, theirs = pty.openpty()
    with open(theirs, "w") as terminal, open(ours, "rb", buffering=0) as shown:  # noqa: PTH123
        code = f"{BEGIN} log.begin(sys.stderr); log.info('x', 'It')"
        subprocess.run([sys.executable, "-c", code], stderr=terminal, check=True)
        assert shown.read(100) == b"It\r\n"


def test_a_log_that_nobody_reads_holds_nobody_up() -> None:
    reading, writing = os.pipe()
    with os.fdopen(writing, "w") as stream:
        out = log.Out(stream, "json")
        for number in range(20_000):
            out.write([f"{number:0100}"])
        found = b""
        while len(found) < 900_000:  # what waits comes with what is written next
            found += os.read(reading, 1 << 20)
            out.write([])
        os.set_blocking(reading, False)
        while True:
            try:
                found += os.read(reading, 1 << 20)
            except BlockingIOError:
                break
            out.write([])
    os.close(reading)
    *lines, last = [line for line in found.decode().splitlines() if line]
    assert lines == [f"{number:0100}" for number in range(len(lines))]
    assert last == f"{20_000 - len(lines)} lines of the log are lost: nobody read it."
