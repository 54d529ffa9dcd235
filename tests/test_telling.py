"""What a client hears of its stream before there is anything to tell."""

from __future__ import annotations

import asyncio

import pytest

from conftest import CHAT, Serve, Start
from doubles.upstream import DONE, Double, chunk, refuses, streams, told
from tropilla import telling
from tropilla.config import QueueConfig

pytestmark = pytest.mark.anyio

PATH = "/v1/chat/completions"
ASKS = CHAT | {"stream": True}


@pytest.fixture(autouse=True)
def impatient(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(telling, "SILENCE_SECONDS", 0.05)


async def test_who_waits_in_the_queue_hears_its_place(gateway: Serve, doubles: Start) -> None:
    double = await doubles(slots=1)
    tropilla = await gateway(double)
    first = asyncio.create_task(tropilla.chat())
    exchange = await double.arrives()
    second, third = await tropilla.connect(), await tropilla.connect()
    await second.post(PATH, ASKS)
    await second.see(b": queue 1\n\n")
    await third.post(PATH, ASKS)
    await third.see(b": queue 2\n\n")
    double.on(PATH, streams(*told("Hello")))
    await exchange.stream(*told("x"))
    for raw in (second, third):
        answer = await raw.answer()
        assert answer.status == 200
        assert answer.headers["content-type"].startswith("text/event-stream")
        assert answer.text == "Hello"
        assert answer.events[-1] == "[DONE]"
    assert (await first).status == 200


async def test_a_long_prompt_is_read_while_the_client_hears_that_it_lives(
    gateway: Serve, double: Double
) -> None:
    tropilla = await gateway(double)
    raw = await tropilla.connect()
    await raw.post(PATH, ASKS)
    exchange = await double.arrives()
    # An old server says nothing at all while it reads.
    await raw.see(b": ping\n\n")
    await exchange.stream(*told("Hello"))
    assert (await raw.answer()).text == "Hello"


async def test_a_pause_in_an_answer_is_not_silent(gateway: Serve, double: Double) -> None:
    tropilla = await gateway(double)
    raw = await tropilla.connect()
    await raw.post(PATH, ASKS)
    exchange = await double.arrives()
    await exchange.head()
    await exchange.send(chunk("Hello"))
    await raw.see(b'"Hello"')
    await raw.see(b": ping\n\n")
    await exchange.send(chunk(reason="stop") + DONE)
    await exchange.end()
    answer = await raw.answer()
    assert (answer.text, answer.events[-1]) == ("Hello", "[DONE]")


async def test_a_sign_of_life_is_nothing_of_the_answer(gateway: Serve, doubles: Start) -> None:
    one, two = await doubles(), await doubles()
    one.keeps = False
    two.on(PATH, streams(*told("Hello")))
    tropilla = await gateway(one, two)
    raw = await tropilla.connect()
    await raw.post(PATH, ASKS)
    exchange = await one.arrives()
    await raw.see(b": ping\n\n")
    exchange.reset()
    assert (await raw.answer()).text == "Hello", "another one could still answer"


async def test_what_goes_wrong_then_is_told_in_the_stream(gateway: Serve, doubles: Start) -> None:
    double = await doubles(slots=1)
    tropilla = await gateway(double)
    raw = await tropilla.connect()
    await raw.post(PATH, ASKS)
    exchange = await double.arrives()
    await raw.see(b": ping\n\n")
    double.on(PATH, refuses(400, "No.", "invalid_request_error"))
    await refuses(400, "No.", "invalid_request_error")(exchange)
    answer = await raw.answer()
    assert answer.status == 200
    error, end = answer.events
    assert (error["error"]["message"], end) == ("No.", "[DONE]")


async def test_who_waits_in_vain_hears_that_in_the_stream(gateway: Serve, doubles: Start) -> None:
    double = await doubles(slots=1)
    tropilla = await gateway(double, queue=QueueConfig(seconds=0.3))
    first = asyncio.create_task(tropilla.chat())
    exchange = await double.arrives()
    answer = await tropilla.chat(stream=True)
    assert answer.status == 200
    assert b": queue 1\n\n" in answer.body
    assert answer.events[0]["error"]["code"] == "server_is_overloaded"
    await exchange.stream(*told("x"))
    assert (await first).status == 200


async def test_the_end_of_the_gateway_is_told_to_who_waits(gateway: Serve, doubles: Start) -> None:
    double = await doubles(slots=1)
    tropilla = await gateway(double)
    first = asyncio.create_task(tropilla.chat())
    exchange = await double.arrives()
    raw = await tropilla.connect()
    await raw.post(PATH, ASKS)
    await raw.see(b": queue 1\n\n")
    tropilla.listener.give_up()
    answer = await raw.answer()
    assert answer.events[-2]["error"]["message"] == "Tropilla was ended."
    assert answer.events[-1] == "[DONE]"
    await exchange.left()
    assert (await first).status == 503


# How an answer came about.


async def test_how_an_answer_came_about(gateway: Serve, doubles: Start) -> None:
    double = await doubles()
    used = {"prompt_tokens": 9, "completion_tokens": 1, "total_tokens": 10}
    used["prompt_tokens_details"] = {"cached_tokens": 7}  # type: ignore[assignment]
    usage = chunk(usage=used).replace(
        b'"choices":[{"index":0,"delta":{},"finish_reason":null}]', b'"choices":[]'
    )
    double.on(PATH, streams(chunk("x"), chunk(reason="stop"), usage, DONE))
    tropilla = await gateway(double)
    for stream in (False, True):
        answer = await tropilla.chat(stream=stream)
        assert answer.headers["x-tropilla-upstream"] == double.url
        assert answer.headers["x-tropilla-queue-ms"] == "0"
        assert 0 <= float(answer.headers["x-tropilla-overhead-ms"]) < 10_000
        assert answer.headers.get("x-tropilla-cache-tokens") == (None if stream else "7")
