"""A piece that is like the last one goes past framer and parser, and tells what they would tell."""

from __future__ import annotations

import asyncio
from collections.abc import Callable
from typing import Any

import msgspec
import pytest
from hypothesis import given
from hypothesis import strategies as st

from strategies import law
from tropilla.dialects import _streams, named
from tropilla.exchanges.exchange import exchange
from tropilla.framing import SseFramer
from tropilla.ir import Event, PartDelta, Traits
from tropilla.upstream.http import Link
from tropilla.upstream.incoming import Incoming
from tropilla.upstream.member import Upstream

CHAT = {"model": "m", "messages": [{"role": "user", "content": "Hello!"}]}


class Pieces(Incoming):
    """An answer that comes in these pieces."""

    def __init__(self, pieces: list[bytes], content_type: str) -> None:
        super().__init__("http://h")
        self.status, self.content_type = 200, content_type
        self._pieces = iter(pieces)

    async def read(self) -> bytes:
        return next(self._pieces, b"")

    def leave(self) -> None:
        pass

    async def finish(self) -> None:
        pass


async def told(
    pieces: list[bytes], *, stream: bool = True, content_type: str = "text/event-stream"
) -> list[Event]:
    """What an exchange tells of them."""
    request = named("openai_chat").parse_request(CHAT | {"stream": stream}, "/chat/completions")
    upstream = Upstream(Link("http://h"), "h")
    upstream.traits = Traits()

    async def begin(*_: Any) -> Incoming:
        return Pieces(pieces, content_type)

    upstream.link.begin = begin  # type: ignore[method-assign,assignment]
    events: list[Event] = []

    def take(batch: list[Event]) -> bool:
        events.extend(batch)
        return True

    async with exchange(upstream, named("openai_chat"), request, extras=True) as answer:
        for _ in range(len(pieces) + 2):
            events += await answer.next(take)
            if events and type(events[-1]).__name__ in {"Finished", "Failed"}:
                return events
    raise AssertionError("it did not end")


def chunk(text: str, **more: Any) -> bytes:
    choices = [{"index": 0, "delta": {"content": text}, "finish_reason": None}]
    return b"data: %b\n\n" % msgspec.json.encode({"id": "x", **more, "choices": choices})


END = b'data: {"id":"x","choices":[{"index":0,"delta":{},"finish_reason":"stop"}]}\n\n'
END += b"data: [DONE]\n\n"
TEXTS = st.one_of(
    st.sampled_from(["a", "b", "", "\n\n", "data: ", '"', "\\", "é", "}]}"]), st.text(max_size=4)
)
PARTS = st.one_of(
    TEXTS.map(chunk),
    TEXTS.map(chunk),
    TEXTS.map(chunk),
    TEXTS.map(lambda text: chunk(text, created=1)),
    TEXTS.map(lambda text: chunk(text).replace(b"\n", b"\r\n")),
    st.sampled_from([
        b":\n\n", b"event: x\n", b"data: ", b"\n", b"id: 1\n\n", b'data: {"error":{}}\n\n',
        b"event: error\n" + chunk("a"), chunk("a")[:-1], chunk("a")[:-3] + b"x}\n\n",
    ]),
)  # fmt: skip


@st.composite
def pieces(draw: st.DrawFn) -> list[bytes]:
    """A stream in pieces: mostly an event each, some cut anywhere."""
    told: list[bytes] = []
    for part in (*draw(st.lists(PARTS, max_size=10)), END):
        at = draw(st.one_of(st.just(0), st.just(0), st.integers(0, len(part))))
        told += [one for one in (part[:at], part[at:]) if one]
    return told


@given(pieces=pieces(), stream=st.booleans())
@law(300)
def test_it_tells_what_they_would_tell(*, pieces: list[bytes], stream: bool) -> None:
    short = asyncio.run(told(pieces, stream=stream))
    with pytest.MonkeyPatch.context() as patched:
        patched.setattr(_streams, "_like", lambda *_: None)
        assert short == asyncio.run(told(pieces, stream=stream))


@pytest.fixture
def fed(monkeypatch: pytest.MonkeyPatch) -> list[bytes]:
    """What framers are fed."""
    pieces: list[bytes] = []
    feed: Callable[..., Any] = SseFramer.feed

    def feeds(framer: SseFramer, piece: bytes) -> Any:
        pieces.append(piece)
        return feed(framer, piece)

    monkeypatch.setattr(SseFramer, "feed", feeds)
    return pieces


@pytest.mark.anyio
async def test_only_what_is_new_is_framed(fed: list[bytes]) -> None:
    words = [chunk(text) for text in ("a", "b", "c", "d", '"')]
    odd, half, rest = chunk("e", created=1), chunk("f")[:5], chunk("f")[5:]
    events = await told([*words, odd, chunk("g"), half, rest, chunk("h"), chunk("i"), END])
    assert [one.text for one in events if type(one) is PartDelta] == [*"abcd", '"', *"egfhi"]
    # The first of all begins the text; then two are alike, before the next is believed to be.
    assert fed == [*words[:3], odd, chunk("g"), half, rest, END]


@pytest.mark.anyio
async def test_a_piece_after_half_of_an_event_is_no_event_of_its_own(fed: list[bytes]) -> None:
    words = [chunk(text) for text in "abcd"]
    events = await told([*words, b"data: ", chunk("e"), END])
    assert [one.text for one in events if type(one) is PartDelta] == [*"abcd"]
    assert type(events[-1]).__name__ == "Failed", "data: data: {...} is no JSON"
    assert fed == [*words[:3], b"data: ", chunk("e")]
