"""A chunk that comes alone goes past the parser: what is poured is the same, however it was cut."""

from __future__ import annotations

import asyncio
import math
from typing import Any, cast

import pytest
from hypothesis import given
from hypothesis import strategies as st

from strategies import law
from tropilla.ir import ProblemError
from tropilla.upstream import lean

HEAD = b"HTTP/1.1 200 OK\r\nContent-Type: text/event-stream\r\nTransfer-Encoding: chunked\r\n\r\n"
SIZED = b"HTTP/1.1 200 OK\r\nContent-Length: %d\r\n\r\n"


class Wire:
    """What an answer needs of its connection."""

    def __init__(self) -> None:
        self.loop = asyncio.get_running_loop()
        self.aborted = False
        self.kept: bool | None = None

    def abort(self) -> None:
        self.aborted = True

    def leave(self, *, used_again: bool) -> None:
        self.kept = used_again

    def rest(self) -> None:
        raise AssertionError

    read_on = rest


class Poured:
    """An answer that is poured while its bytes come, cut as they are; and what became of it."""

    def __init__(self) -> None:
        self.wire = Wire()
        self.pieces: list[bytes] = []
        self.failed = False
        self.answer = lean._Answer(
            cast("Any", self.wire), "http://h", bodiless=False, silence=600.0, until=math.inf
        )

    def _take(self, piece: bytes) -> bool:
        self.pieces.append(piece)
        return True

    async def of(self, *cut: bytes) -> Poured:
        task = asyncio.create_task(self._pour())
        for data in cut:
            await asyncio.sleep(0)
            await asyncio.sleep(0)
            if data:
                self.answer.feed(data)
        self.answer.end(None)
        await task
        self.answer.leave()
        return self

    async def _pour(self) -> None:
        try:
            await self.answer.head()
            await self.answer.pour(self._take)
        except ProblemError:
            self.failed = True

    @property
    def told(self) -> tuple[bytes, bool, bool | None]:
        return b"".join(self.pieces), self.failed, self.wire.kept


def poured(*cut: bytes) -> Poured:
    async def pour() -> Poured:
        return await Poured().of(*cut)

    return asyncio.run(pour())


def chunk(data: bytes) -> bytes:
    return b"%x\r\n%b\r\n" % (len(data), data)


TEXTS = st.one_of(
    st.sampled_from([b"a", b"\r\n", b"5\r\n", b"0\r\n\r\n", b"data: x\n\n", b"a\r", b"1\r\na\r\n"]),
    st.binary(min_size=1, max_size=20),
    st.integers(1, 300).map(lambda size: b"x" * size),
)
ODD = st.sampled_from([
    b"%X\r\n%b\r\n", b"%x;a=b\r\n%b\r\n", b"0%x\r\n%b\r\n", b"%x \r\n%b\r\n", b"%x\n%b\n",
])  # fmt: skip
CHUNKS = st.one_of(
    TEXTS.map(chunk),
    TEXTS.map(chunk),
    st.builds(lambda form, data: form % (len(data), data), ODD, TEXTS),
)
ENDS = st.sampled_from([
    b"0\r\n\r\n", b"0\r\n\r\n", b"0\r\nx: y\r\n\r\n", b"", b"3\r\nab", b"z\r\n", b"0\r\n\r\nmore",
])  # fmt: skip


@st.composite
def cuts(draw: st.DrawFn) -> list[bytes]:
    """The bytes of an answer, cut at chunks and anywhere."""
    parts = [HEAD, *draw(st.lists(CHUNKS, max_size=8)), draw(ENDS)]
    cut = [b""]
    for part in parts:
        if draw(st.booleans()):
            cut.append(b"")
        at = draw(st.integers(0, len(part)))
        cut[-1] += part[:at]
        if draw(st.integers(0, 3)) == 0:
            cut.append(b"")
        cut[-1] += part[at:]
    return cut


@given(cut=cuts())
@law(300)
def test_it_is_poured_as_the_parser_would_have_told_it(cut: list[bytes]) -> None:
    with pytest.MonkeyPatch.context() as patched:
        patched.setattr(lean, "_size_line", lambda _: b"")
        parsed = poured(*cut)
    assert poured(*cut).told == parsed.told


@pytest.mark.parametrize(
    ("cut", "told"),
    [
        ((b"1", b"5\r\nhello\r\n", b"x" * 14 + b"\r\n0\r\n\r\n"), b"hello\r\n" + b"x" * 14),
        ((b"a\r\n", b"5\r\nhello\r\n", b"\r\n0\r\n\r\n"), b"5\r\nhello\r\n"),
    ],
    ids=["the end of a size", "what is in a chunk"],
)
def test_what_looks_like_a_chunk_and_is_none(cut: tuple[bytes, ...], told: bytes) -> None:
    assert poured(HEAD, *cut).told == (told, False, True)


def test_a_chunk_that_does_not_end_is_none() -> None:
    assert poured(HEAD, chunk(b"a"), b"1\r\nbxx", b"0\r\n\r\n").told == (b"ab", True, False)


class Counts:
    """A parser that counts what it is fed."""

    def __init__(self, parser: Any) -> None:
        self.parser = parser
        self.fed: list[bytes] = []

    def feed_data(self, data: bytes) -> None:
        self.fed.append(data)
        self.parser.feed_data(data)

    def __getattr__(self, name: str) -> Any:
        return getattr(self.parser, name)


async def fed(*cut: bytes) -> list[bytes]:
    """What of an answer its parser was given, after the head."""
    one = Poured()
    counts = Counts(one.answer._parser)
    one.answer._parser = cast("Any", counts)
    await one.of(*cut)
    assert not one.failed
    return counts.fed[1:]


@pytest.mark.anyio
async def test_whole_chunks_are_not_parsed() -> None:
    sizes = (1, 15, 16, 255, 256, 3000)
    one = [chunk(b"x" * size) for size in sizes]
    assert await fed(HEAD, *one, b"0\r\n\r\n") == [b"0\r\n\r\n"]


@pytest.mark.anyio
async def test_what_is_no_whole_chunk_is_parsed_and_the_next_is_not() -> None:
    two = chunk(b"a") + chunk(b"b")
    half, rest = b"3\r\nab", b"c\r\n"
    last = b"0\r\n\r\n"
    assert await fed(HEAD, two, chunk(b"c"), half, rest, chunk(b"d"), last) == [
        two, half, rest, last,
    ]  # fmt: skip


@pytest.mark.anyio
async def test_a_body_of_known_length_may_look_like_chunks() -> None:
    body = chunk(b"a" * 10) * 2
    one = await Poured().of(SIZED % len(body), body[: len(body) // 2], body[len(body) // 2 :])
    assert one.told == (body, False, True)
