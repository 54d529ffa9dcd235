"""Who is dead, and who only takes long."""

from __future__ import annotations

import asyncio

import pytest

from conftest import CHAT, Serve, Start, expect_signs
from doubles.upstream import Double, answers, chunk, native, streams, told
from tropilla.upstream import fleet, member
from tropilla.upstream.http import Link

pytestmark = pytest.mark.anyio

PATH = "/v1/chat/completions"
FORMS = pytest.mark.parametrize("stream", [False, True], ids=["whole", "stream"])


@FORMS
async def test_three_signs_of_life_that_do_not_come_are_a_death(
    gateway: Serve, doubles: Start, caplog: pytest.LogCaptureFixture, *, stream: bool
) -> None:
    one, two = await doubles(), await doubles()
    two.on(PATH, streams(*told("Hello")))
    tropilla = await gateway(one, two)
    tropilla.fleet.upstreams[0].ping = 0.05
    asked = asyncio.create_task(tropilla.chat(stream=stream))
    exchange = await one.arrives()
    await exchange.head()
    answer = await asked
    assert (answer.text if stream else answer.json["choices"][0]["message"]["content"]) == "Hello"
    assert "three signs of life did not come" in caplog.text
    assert not tropilla.fleet.upstreams[0].heard


class Hears:
    since = 0.0

    def give_up(self) -> None:
        raise NotImplementedError


def test_who_gives_signs_of_life_may_take_as_long_as_it_takes() -> None:
    upstream, one = member.Upstream(Link("http://h:1"), "h"), Hears()
    upstream.heard.add(one)
    assert upstream.silent(1e9) == [], "nobody knows how often it would give a sign"
    for _ in range(100):
        upstream.pinged(30.0)
        one.since += 30.0
        assert upstream.silent(one.since + 90.0) == []
    assert upstream.ping == 30.0
    assert [*upstream.silent(one.since + 90.1)] == [one]
    upstream.pinged(40.0)
    assert upstream.ping == 30.0, "once it was late"
    upstream.heard.discard(one)
    assert upstream.silent(1e9) == [], "nobody listens"


async def test_how_often_there_is_a_sign_is_learned(
    gateway: Serve, double: Double, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(member, "_LEAST_PING_SECONDS", 0.0)
    tropilla = await gateway(double)
    upstream = tropilla.fleet.upstreams[0]
    assert upstream.ping is None, "a server that has never shown one is waited for"
    asked = asyncio.create_task(tropilla.chat())
    exchange = await double.arrives()
    await exchange.head()
    await tropilla.has(lambda: bool(upstream.heard))
    await exchange.send(b":\n\n")
    await tropilla.has(lambda: upstream.ping is not None)
    upstream.ping = 1000.0
    await exchange.send(b"".join(told("Hello")))
    await exchange.end()
    assert (await asked).status == 200
    assert upstream.ping == 1000.0, "words are no sign of how often there is one"


async def test_a_client_that_does_not_read_is_no_dead_upstream(
    gateway: Serve, double: Double, caplog: pytest.LogCaptureFixture
) -> None:
    words = [f"{n} " + "x" * 4000 for n in range(300)]
    tropilla = await gateway(double)
    upstream = tropilla.fleet.upstreams[0]
    tropilla.hold_little()
    raw = await tropilla.connect()
    raw.reader._transport.pause_reading()  # type: ignore[attr-defined]
    await raw.post(PATH, CHAT | {"stream": True})
    exchange = await double.arrives()
    sent = asyncio.create_task(exchange.stream(*told(*words)))
    turns = 0

    def nobody_listens() -> bool:
        nonlocal turns
        turns = 0 if upstream.heard or not exchange.written else turns + 1
        return turns > 50

    await tropilla.has(nobody_listens)
    # The fleet looks again and again, while nobody takes what there is.
    upstream.ping = 0.01
    looked = tropilla.fleet.looks
    await tropilla.has(lambda: tropilla.fleet.looks > looked + 2)
    upstream.ping = None
    raw.reader._transport.resume_reading()  # type: ignore[attr-defined]
    assert (await raw.answer()).text == "".join(words)
    await sent
    assert "signs of life" not in caplog.text


async def test_a_server_without_any_sign_of_life_lets_nobody_wait(
    gateway: Serve, doubles: Start, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(fleet, "_CHECK_SECONDS", {"llamacpp": 0.1, "openai": 0.1, "afs": 0.1})
    one, two = await doubles(), await doubles()
    two.on(PATH, streams(*told("Hello")))
    tropilla = await gateway(one, two)
    asked = asyncio.create_task(tropilla.chat())
    await one.arrives()
    expect_signs(tropilla.fleet.upstreams[0], 0.1, monkeypatch)

    async def says_nothing(_: object) -> None:
        await asyncio.Event().wait()

    one.on("/health", says_nothing)
    answer = await asked
    assert answer.json["choices"][0]["message"]["content"] == "Hello"
    assert tropilla.fleet.upstreams[0].state in {"starting", "down"}


async def test_a_server_that_stands_still_in_its_answer_lets_nobody_wait(
    gateway: Serve, doubles: Start, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(fleet, "_CHECK_SECONDS", {"llamacpp": 0.1, "openai": 0.1, "afs": 0.1})
    one, two = await doubles(), await doubles()
    two.on("/apply-template", answers(200, b'{"prompt":"?"}'))
    two.on("/completion", streams(native(" upon"), native("", stop=True, stop_type="eos")))
    tropilla = await gateway(one, two)
    asked = asyncio.create_task(tropilla.chat(stream=True))
    exchange = await one.arrives()
    await exchange.head()
    await exchange.send(chunk("Once"))
    await tropilla.has(lambda: bool(tropilla.fleet.upstreams[0].heard))
    expect_signs(tropilla.fleet.upstreams[0], 0.1, monkeypatch)

    async def says_nothing(_: object) -> None:
        await asyncio.Event().wait()

    one.on("/health", says_nothing)
    assert (await asked).text == "Once upon"
    assert tropilla.fleet.upstreams[0].state == "down"
