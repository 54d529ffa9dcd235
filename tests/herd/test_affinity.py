"""Whose cache holds the beginning of a prompt."""

from __future__ import annotations

from collections.abc import Callable

import pytest
from hypothesis import given
from hypothesis import strategies as st

from strategies import law
from tropilla.herd.affinity import BLOCK, MOST_BLOCKS, Affinity, blocks
from tropilla.ir import (
    Audio,
    Chat,
    Completion,
    Image,
    Infill,
    Message,
    Opaque,
    Part,
    Prompt,
    Reasoning,
    Request,
    Text,
    Tool,
)

STORY = "Once upon a time there was a fox. " * 20


def chat(*texts: str, model: str = "m", tools: tuple[Tool, ...] = ()) -> Request:
    messages = tuple(Message(role="user", parts=(Text(text=text),)) for text in texts)
    return Request(dialect="openai_chat", model=model, input=Chat(messages=messages, tools=tools))


def common(one: tuple[int, ...], other: tuple[int, ...]) -> int:
    pairs = zip(one, other, strict=False)
    return next((at for at, (a, b) in enumerate(pairs) if a != b), min(len(one), len(other)))


def test_conversations_share_as_many_blocks_as_they_begin_alike() -> None:
    first, grown = blocks(chat(STORY)), blocks(chat(STORY, "And then? " * 30))
    assert len(first) == len(STORY) // BLOCK
    assert common(first, grown) == len(first)
    assert common(first, blocks(chat(STORY[:300] + "Stop. " + STORY[300:]))) == 300 // BLOCK
    assert common(first, blocks(chat("!" + STORY))) == 0


def test_what_else_makes_a_prompt_another_one() -> None:
    told = blocks(chat(STORY))
    assert common(told, blocks(chat(STORY, model="other"))) == 0
    assert common(told, blocks(chat(STORY, tools=(Tool(name="look"),)))) == 0
    assistant = Message(role="assistant", parts=(Text(text=STORY),))
    assert common(told, blocks(Request(dialect="x", input=Chat(messages=(assistant,))))) == 0


MEDIA: dict[str, Callable[[str], Part]] = {
    "image": lambda data: Image(url=f"data:image/png;base64,{data}"),
    "sound": lambda data: Audio(data=data, format="wav"),
    "any other": lambda data: Opaque(dialect="x", body={"type": "file", "data": data}),
}


@pytest.mark.parametrize("part", MEDIA.values(), ids=MEDIA.keys())
def test_media_are_told_apart_without_being_read_whole(part: Callable[[str], Part]) -> None:
    def seen(data: str) -> tuple[int, ...]:
        parts = (part(data), Text(text=STORY))
        return blocks(
            Request(dialect="x", input=Chat(messages=(Message(role="user", parts=parts),)))
        )

    one = "AAAA" * 10_000 + "BBBB"
    assert seen(one) == seen(one)
    for other in ("AAAA" * 10_000 + "CCCC", "AAAA" * 10_001 + "BBBB",
                  "AAAA" * 5000 + "C" * 400 + "AAAA" * 4900 + "BBBB"):  # fmt: skip
        assert common(seen(one), seen(other)) < 3
    assert len(seen("AAAA" * 10**6)) < len(STORY) // BLOCK + 4


def test_thoughts_are_read_as_text_is() -> None:
    def thought(text: str) -> Request:
        message = Message(role="assistant", parts=(Reasoning(text=text),))
        return Request(dialect="x", input=Chat(messages=(message,)))

    assert common(blocks(thought(STORY)), blocks(thought(STORY * 2))) == len(blocks(thought(STORY)))


def test_prompts_of_every_kind() -> None:
    def text(prompt: Prompt) -> tuple[int, ...]:
        return blocks(Request(dialect="x", input=Completion(prompts=(prompt,))))

    assert common(text(STORY), text(STORY * 2)) == len(text(STORY))
    ids = list(range(1000))
    assert common(text(ids), text([*ids, 1])) >= len(text(ids)) - 1
    seen = {"prompt_string": STORY, "multimodal_data": ["AAAA"]}
    assert common(text(seen), text(seen | {"multimodal_data": ["BBBB"]})) >= len(STORY) // BLOCK
    hole = Infill(prefix=STORY, suffix="the end")
    assert len(blocks(Request(dialect="x", input=hole))) >= len(STORY) // BLOCK


def test_what_is_short_has_no_blocks_and_what_is_long_not_too_many() -> None:
    assert blocks(chat("Hi")) == ()
    assert len(blocks(chat("x" * BLOCK * MOST_BLOCKS * 2))) == MOST_BLOCKS


def test_a_lone_surrogate_is_no_defect() -> None:
    assert blocks(chat("\ud800" * 200))


# What is kept.


def test_each_upstream_is_expected_to_have_what_it_saw() -> None:
    affinity = Affinity()
    affinity.saw(1, [1, 2, 3])
    assert affinity.expect(1, [1, 2, 3, 4]) == 3
    assert affinity.expect(1, [1, 9, 3]) == 1
    assert affinity.expect(1, [9]) == affinity.expect(2, [1]) == affinity.expect(1, []) == 0
    affinity.forget(1)
    assert affinity.expect(1, [1]) == 0


def test_the_oldest_goes_first_and_what_is_used_is_not_old() -> None:
    affinity = Affinity(most=300)
    affinity.saw(1, range(200))
    affinity.saw(1, range(1000, 1100))
    affinity.saw(1, range(100))
    affinity.saw(1, range(2000, 2100))
    assert affinity.expect(1, range(100)) == 100
    assert affinity.expect(1, range(1000, 1100)) == 100
    assert affinity.expect(1, range(100, 200)) == 0


def test_a_cache_that_had_less_than_expected_is_smaller_than_believed() -> None:
    affinity = Affinity()
    affinity.saw(1, range(1000))
    affinity.learn(1, expected=0.9, cached=0.8)
    assert affinity.expect(1, range(1000)) == 1000
    affinity.learn(1, expected=0.9, cached=0.1)
    assert affinity.expect(1, range(250, 1000)) == 750
    assert affinity.expect(1, range(1000)) == 0, "its oldest blocks are believed to be gone"
    affinity.learn(1, expected=0.0, cached=0.0)
    affinity.learn(2, expected=1.0, cached=0.0)
    assert affinity.expect(1, range(250, 1000)) == 750


def test_it_grows_back_as_it_proves_true() -> None:
    affinity = Affinity()
    affinity.saw(1, range(1000))
    for _ in range(50):
        affinity.learn(1, expected=1.0, cached=0.0)
    affinity.saw(1, range(1000))
    small = affinity.expect(1, range(1000 - 256, 1000))
    assert small == 256
    assert affinity.expect(1, range(1000)) == 0
    for _ in range(200):
        affinity.learn(1, expected=1.0, cached=1.0)
    affinity.saw(1, range(1000))
    assert affinity.expect(1, range(1000)) == 1000


@law(100)
@given(
    st.lists(
        st.tuples(st.integers(0, 2), st.lists(st.integers(0, 5000), max_size=50), st.floats(0, 1)),
        max_size=80,
    )
)
def test_memory_is_bounded(seen: list[tuple[int, list[int], float]]) -> None:
    affinity = Affinity(most=300)
    for upstream, chain, cached in seen:
        affinity.saw(upstream, chain)
        affinity.learn(upstream, 1.0, cached)
        assert affinity.expect(upstream, chain) in range(len(chain) + 1)
        assert all(len(kept) <= 300 for kept in affinity._kept.values())
