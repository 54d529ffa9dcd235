"""Server-sent events, as browsers read them and as servers have written them; lines of JSON."""

from __future__ import annotations

import pytest
from hypothesis import given
from hypothesis import strategies as st

from strategies import law
from tropilla.framing import COMMENT, SSE_DONE, SSE_PING, Frame, LineFramer, SseFramer, framer, sse
from tropilla.ir import Malformed


def frames_of(*pieces: bytes, limit: int = 1000) -> list[Frame]:
    framer = SseFramer(limit)
    frames = [frame for piece in pieces for frame in framer.feed(piece)]
    return frames + framer.end()


def bytewise(data: bytes) -> list[bytes]:
    return [data[i : i + 1] for i in range(len(data))]


@pytest.mark.parametrize(
    ("stream", "frames"),
    [
        (b"data: a\n\n", [Frame("", b"a")]),
        (b"data:a\n\n", [Frame("", b"a")]),
        (b"data:  a\n\n", [Frame("", b" a")]),
        (b"data: a\ndata: b\n\n", [Frame("", b"a\nb")]),
        (b"data\n\n", [Frame("", b"")]),
        (b"event: ping\ndata: a\n\n", [Frame("ping", b"a")]),
        (b"data: a\nevent: ping\n\n", [Frame("ping", b"a")]),
        (b"id: 5\nretry: 9\ndata: a\nnonsense\n\n", [Frame("", b"a")]),
        (b"event: ping\n\n", []),
        (b": ping\n\n", [Frame(COMMENT, b"")]),
        (b":\n\n", [Frame(COMMENT, b"")]),
        (b": ping\ndata: a\n\n", [Frame("", b"a")]),
        (b"\n\n\n\n", []),
        (b"data: a\n\n\n\ndata: b\n\n\n", [Frame("", b"a"), Frame("", b"b")]),
        (b"data: a\n\ndata: b\n\n", [Frame("", b"a"), Frame("", b"b")]),
        (b"data: a\n\ndata: b\ndata: c\n\n", [Frame("", b"a"), Frame("", b"b\nc")]),
        (b"data: a\n\nevent: ping\ndata: b\n\n", [Frame("", b"a"), Frame("ping", b"b")]),
        (b'error: {"content":"x"}\n\n', [Frame("error", b'{"content":"x"}')]),
        (b"\xef\xbb\xbfdata: a\n\n", [Frame("", b"a")]),
        (b"data: \xef\xbb\xbf\n\n", [Frame("", b"\xef\xbb\xbf")]),
        (b"data: a", [Frame("", b"a")]),
        (b"data: a\n", [Frame("", b"a")]),
        (b"\xef\xbb", []),
        (b"", []),
        (b"data: \xc3\xa9\xf0\x9f\xa6\x99\n\n", [Frame("", "é🦙".encode())]),
    ],
)
@pytest.mark.parametrize("line_end", [b"\n", b"\r\n", b"\r"])
def test_the_events_of_a_stream(stream: bytes, frames: list[Frame], line_end: bytes) -> None:
    stream = stream.replace(b"\n", line_end)
    assert frames_of(stream) == frames
    assert frames_of(*bytewise(stream)) == frames


@given(st.data())
@law(200)
def test_cut_anywhere_the_same_bytes_give_the_same_frames(data: st.DataObject) -> None:
    bits = [
        b"data: ",
        b"data",
        b":",
        b"event: e",
        b"error: x",
        b"\n",
        b"\r",
        b"\r\n",
        b"a",
        b"\xc3",
    ]
    stream = b"".join(data.draw(st.lists(st.sampled_from([*bits, b"\n\n", b"\xef\xbb\xbf"]))))
    cuts = data.draw(st.lists(st.integers(0, len(stream)), max_size=5).map(sorted))
    pieces = [stream[a:b] for a, b in zip([0, *cuts], [*cuts, len(stream)], strict=True)]

    whole = frames_of(stream)

    assert frames_of(*pieces) == whole
    assert frames_of(*bytewise(stream)) == whole


@pytest.mark.parametrize("line_end", [b"\n", b"\r\n"])
@pytest.mark.parametrize("extra", [0, 1, 2, 3, 50])
def test_the_limit_does_not_depend_on_the_cuts(line_end: bytes, extra: int) -> None:
    event = b"data: " + b"a" * (94 + extra)
    stream = b"data: b\n\n" + event + line_end * 2

    for pieces in ([stream], bytewise(stream), [stream[:20], stream[20:]]):
        if extra:
            with pytest.raises(Malformed, match="larger than 100 bytes"):
                frames_of(*pieces, limit=100)
        else:
            assert frames_of(*pieces, limit=100)[1].data == event[6:]


def test_an_event_that_never_ends_is_not_held_for_ever() -> None:
    framer = SseFramer(1000)
    with pytest.raises(Malformed):
        all(framer.feed(b"data: aaaa\n") == [] for _ in range(1000))


@pytest.mark.parametrize("piece", [b"a" * 7, b"a\r", b"a\r\n", b"a\n", b"\xc3", b": \r\n"])
def test_what_is_held_is_read_once(piece: bytes, monkeypatch: pytest.MonkeyPatch) -> None:
    framer, taken = SseFramer(), []
    take = SseFramer._take

    def counts(framer: SseFramer, data: bytes) -> list[Frame]:
        taken.append(len(data))
        return take(framer, data)

    monkeypatch.setattr(SseFramer, "_take", counts)
    framer.feed(b"data: b\n\ndata: ")
    for _ in range(10_000):
        assert framer.feed(piece) == []
    (frame,) = framer.feed(b"x\ndata: c\n\n")
    assert frame.data.endswith(b"\nc")
    # The first piece, and then all that was held: once, not again with every piece.
    assert len(taken) == 2
    assert sum(taken) < 10_000 * len(piece) + 50


@pytest.mark.parametrize("line", [b"a\r\n", b"\xc3", b"data: a\n", b": \r"])
def test_the_limit_is_reached_in_few_steps(line: bytes, monkeypatch: pytest.MonkeyPatch) -> None:
    framer, taken = SseFramer(10_000), []
    take = SseFramer._take

    def counts(framer: SseFramer, data: bytes) -> list[Frame]:
        taken.append(data)
        return take(framer, data)

    monkeypatch.setattr(SseFramer, "_take", counts)
    with pytest.raises(Malformed):
        all(framer.feed(line) == [] for _ in range(20_000))
    assert len(taken) < 30


def test_a_frame_is_told_as_soon_as_it_is_whole() -> None:
    framer = SseFramer()
    assert framer.feed(b"data: a\n") == []
    assert framer.feed(b"\ndata: b") == [Frame("", b"a")]
    assert framer.feed(b"\r\n\r") == []
    assert framer.feed(b"\n") == [Frame("", b"b")]
    assert framer.end() == []


@given(st.binary(max_size=30).filter(lambda data: not set(data) & {10, 13}))
@law(100)
def test_what_is_said_is_what_is_read(data: bytes) -> None:
    assert frames_of(sse(data)) == [Frame("", data)]
    assert frames_of(sse(data, "ping")) == [Frame("ping", data)]


def test_the_end_and_the_sign_of_life() -> None:
    assert frames_of(SSE_PING, SSE_DONE) == [Frame(COMMENT, b""), Frame("", b"[DONE]")]


# Lines of JSON.


def lines_of(*pieces: bytes, limit: int = 100) -> list[bytes]:
    cut = LineFramer(limit)
    frames = [frame for piece in pieces for frame in cut.feed(piece)]
    return [frame.data for frame in frames + cut.end()]


@pytest.mark.parametrize(
    ("stream", "lines"),
    [
        (b'{"a":1}\n{"b":2}\n', [b'{"a":1}', b'{"b":2}']),
        (b'{"a":1}\r\n{"b":2}', [b'{"a":1}', b'{"b":2}']),
        (b' \t{"a":1}\n\n \n', [b'{"a":1}']),
        ('{"a":"ä\u2028"}\n'.encode(), ['{"a":"ä\u2028"}'.encode()]),
        (b"", []),
    ],
)
def test_lines_are_the_same_however_they_are_cut(stream: bytes, lines: list[bytes]) -> None:
    assert lines_of(stream) == lines_of(*bytewise(stream)) == lines


@pytest.mark.parametrize("size", [1, 7, 200])
def test_a_line_has_a_bound(size: int) -> None:
    line = b"x" * 101
    with pytest.raises(Malformed):
        lines_of(*(line[at : at + size] for at in range(0, 101, size)))
    with pytest.raises(Malformed):
        lines_of(b"x\n" + line + b"\nx")
    assert lines_of(b"x" * 100 + b"\n") == [b"x" * 100]


def test_a_stream_is_known_by_its_type() -> None:
    assert isinstance(framer("text/event-stream; charset=utf-8"), SseFramer)
    assert isinstance(framer("Application/X-NDJSON"), LineFramer)
    assert framer("application/json") is None
    assert framer("") is None
