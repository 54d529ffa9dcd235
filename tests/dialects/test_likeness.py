"""A chunk that is like the last one is not read again: it tells what it would have told."""

from __future__ import annotations

from collections.abc import Iterator
from typing import Any

import msgspec
import pytest
from hypothesis import given
from hypothesis import strategies as st

from tropilla.dialects import _streams, named
from tropilla.framing import Frame
from tropilla.ir import Event, Request

CHAT = {"model": "m", "messages": [{"role": "user", "content": "Hello!"}]}
TEXTS = st.one_of(
    st.sampled_from(["a", "b", ":", ",", "m", "", '"', "\\", "stop", "\u00e9", "index", "}]}"]),
    st.text(max_size=4),
)
KINDS = ("content", "reasoning_content", "refusal")


def asked() -> Request:
    return named("openai_chat").parse_request(CHAT, "/chat/completions")


def frame(choice: dict[str, Any], **more: Any) -> Frame:
    return Frame("", msgspec.json.encode({"id": "x", "model": "m:", **more, "choices": [choice]}))


chunks = st.builds(
    lambda kind, text, more: frame(
        {"index": 0, "delta": {kind: text}, "finish_reason": None}, **more
    ),
    st.sampled_from(KINDS[:2] + KINDS[:1] * 4),
    TEXTS,
    st.sampled_from([{}, {}, {}, {"created": 2}, {"more": "a"}, {"more": "b"}]),
)


def events(back: str, frames: list[Frame], *, extras: bool) -> list[Event]:
    parser = named(back).stream_parser(asked(), extras=extras)
    return [event for one in frames for event in parser.feed([one])] + parser.end()


@given(frames=st.lists(chunks, max_size=12), extras=st.booleans())
def test_it_tells_what_it_would_have_told(*, frames: list[Frame], extras: bool) -> None:
    told = events("openai_chat", frames, extras=extras)
    with pytest.MonkeyPatch.context() as patched:
        patched.setattr(_streams, "_like", lambda *_: None)
        assert told == events("openai_chat", frames, extras=extras)


def reads(monkeypatch: pytest.MonkeyPatch, back: str, frames: list[Frame]) -> int:
    """How many of these chunks were read to their end."""
    parser = named(back).stream_parser(asked(), extras=True)
    read: list[Frame] = []
    inner = parser._frame  # type: ignore[attr-defined]

    def counts(one: Frame, told: list[Event]) -> None:
        read.append(one)
        inner(one, told)

    monkeypatch.setattr(parser, "_frame", counts)
    parser.feed(frames)
    return len(read)


def said(back: str, *texts: str) -> Iterator[Frame]:
    for text in texts:
        match back:
            case "openai_chat":
                yield frame({"index": 0, "delta": {"content": text}})
            case _:
                yield frame({"index": 0, "text": text})


@pytest.mark.parametrize("back", ["openai_chat", "openai_completions"])
def test_only_the_first_chunks_of_a_kind_are_read(
    monkeypatch: pytest.MonkeyPatch, back: str
) -> None:
    frames = list(said(back, "", "The", " cat", ' said "no"', "\n", " twice"))
    assert reads(monkeypatch, back, frames) == 2


@pytest.mark.parametrize("text", ["m:", 'a "b"'])
def test_a_text_whose_place_is_not_certain_is_no_example(
    monkeypatch: pytest.MonkeyPatch, text: str
) -> None:
    frames = list(said("openai_chat", "", text, " cat", " sat"))
    assert reads(monkeypatch, "openai_chat", frames) == 3
