"""Every client dialect over every kind of server; what is seen here is the table of the docs."""

from __future__ import annotations

import asyncio
from typing import Any

import pytest

from conftest import Answer, Serve, Served
from doubles.upstream import DEADLINE
from matrix.backs import BACKS, Back, Stage
from matrix.fronts import FRONTS, Front, Told, Want
from tropilla.config import ModelConfig

pytestmark = [
    pytest.mark.anyio,
    pytest.mark.parametrize("front", FRONTS, ids=lambda front: front.name),
    pytest.mark.parametrize("back", BACKS, ids=lambda back: back.name),
]
FORMS = pytest.mark.parametrize("stream", [False, True], ids=["whole", "stream"])


async def ask(tropilla: Served, front: Front, want: Want) -> Answer:
    return await tropilla.ask("POST", front.path, front.ask(want))


async def hear(tropilla: Served, front: Front, want: Want) -> Told:
    return front.told(await ask(tropilla, front, want))


def config(stage: Stage) -> Any:
    return {"models": {"m": ModelConfig(upstreams=(stage.config,))}}


async def test_stream_and_whole(gateway: Serve, engine: str, front: Front, back: Back) -> None:
    async with back.stage(engine) as stage:
        tropilla = await gateway(**config(stage))
        whole = await hear(tropilla, front, Want())
        assert await hear(tropilla, front, Want(stream=True)) == whole
    if stage.text is None:
        assert whole.text.strip()
        assert whole.reason in {"stop", "length"}
    else:
        assert (whole.text, whole.reason) == (stage.text, "stop")


@FORMS
async def test_stop(gateway: Serve, engine: str, front: Front, back: Back, *, stream: bool) -> None:
    async with back.stage(engine) as stage:
        tropilla = await gateway(**config(stage))
        text = (await hear(tropilla, front, Want())).text
        half = len(text) // 2
        word = stage.word or text[half : half + 3]
        told = await hear(tropilla, front, Want(stream=stream, stop=(word,)))
    assert told.text == text[: text.index(word)]
    assert told.reason == "stop"


@FORMS
async def test_usage(
    gateway: Serve, engine: str, front: Front, back: Back, *, stream: bool
) -> None:
    async with back.stage(engine) as stage:
        tropilla = await gateway(**config(stage))
        told = await hear(tropilla, front, Want(stream=stream))
        if stage.text is None:
            short = await hear(tropilla, front, Want(stream=stream, limit=3))
            assert (short.completion_tokens, short.reason) == (3, "length")
    assert told.prompt_tokens > 0
    assert told.completion_tokens > 0


@FORMS
async def test_error_before_the_first_word(
    gateway: Serve, engine: str, front: Front, back: Back, *, stream: bool
) -> None:
    async with back.stage(engine) as stage:
        tropilla = await gateway(**config(stage))
        words = stage.refuse()
        long = "Hello! " * 9000 if stage.text is None else "Hello!"
        answer = await ask(tropilla, front, Want(stream=stream, text=long))
    assert answer.status in {400, 502, 503}
    assert words in front.fault(answer)


@FORMS
async def test_error_in_the_middle(
    gateway: Serve, engine: str, front: Front, back: Back, *, stream: bool
) -> None:
    async with back.stage(engine) as stage:
        tropilla = await gateway(**config(stage))
        stage.valve.after_first = "cut"
        answer = await ask(tropilla, front, Want(stream=stream))
    # The first event of a chat tells only the role: not every client hears of that.
    assert answer.status in ({200, 502} if stream else {502})
    assert "broke off" in front.fault(answer) or "ended the stream" in front.fault(answer)


async def test_cancel(gateway: Serve, engine: str, front: Front, back: Back) -> None:
    async with back.stage(engine) as stage:
        tropilla = await gateway(**config(stage))
        stage.valve.after_first = "hold"
        raw = await tropilla.connect()
        await raw.post(front.path, front.ask(Want(stream=True)))
        await asyncio.wait_for(stage.valve.holds.wait(), DEADLINE)
        raw.leave()
        await asyncio.wait_for(stage.valve.left.wait(), DEADLINE)
