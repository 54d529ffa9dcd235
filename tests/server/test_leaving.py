"""A client that leaves, or does not read: what was done for it ends, and nobody else waits."""

from __future__ import annotations

import asyncio
import time
from typing import Any

import msgspec
import pytest

from conftest import CHAT, Raw, Serve, Start, report, stopped
from doubles.upstream import DEADLINE, Double, Exchange, chunk, streams, told
from tropilla.upstream.engine import Engine
from tropilla.upstream.http import Link
from tropilla.upstream.lean import Client

pytestmark = pytest.mark.anyio

PATH = "/v1/chat/completions"
FORMS = pytest.mark.parametrize("stream", [False, True], ids=["whole", "stream"])


async def leaves(raw: Raw, exchange: Exchange, phase: str) -> None:
    """The client goes; the upstream must see it. How fast is printed, and a matter of the bench."""
    began = time.perf_counter()
    raw.leave()
    gone_at = await exchange.left()
    report(f"cancelled {phase}: {(gone_at - began) * 1000:.2f} ms")
    assert gone_at > began


async def asks(tropilla: Any, path: str = PATH, **fields: Any) -> Raw:
    raw: Raw = await tropilla.connect()
    await raw.post(path, CHAT | fields)
    return raw


@FORMS
async def test_leaving_before_the_upstream_answers(
    gateway: Serve, double: Double, *, stream: bool
) -> None:
    tropilla = await gateway(double)
    raw = await asks(tropilla, stream=stream)
    exchange = await double.arrives()
    await leaves(raw, exchange, f"before the head, stream={stream}")
    assert tropilla.fleet.upstreams[0].leases == 0
    assert tropilla.fleet.state() == "ready"


@FORMS
async def test_leaving_before_the_first_token(
    gateway: Serve, double: Double, *, stream: bool
) -> None:
    tropilla = await gateway(double)
    raw = await asks(tropilla, stream=stream)
    exchange = await double.arrives()
    await exchange.head()
    await leaves(raw, exchange, f"before the first token, stream={stream}")
    assert tropilla.fleet.upstreams[0].leases == 0


@FORMS
async def test_leaving_in_the_middle(gateway: Serve, double: Double, *, stream: bool) -> None:
    tropilla = await gateway(double)
    raw = await asks(tropilla, stream=stream)
    exchange = await double.arrives()
    await exchange.head()
    await exchange.send(chunk("Hello"))
    if stream:
        await raw.see(b"Hello")
    await leaves(raw, exchange, f"in the middle, stream={stream}")
    assert tropilla.fleet.upstreams[0].leases == 0


async def test_leaving_in_order_is_leaving(gateway: Serve, double: Double) -> None:
    # close() instead of a reset: the client has read everything, and sends a FIN.
    tropilla = await gateway(double)
    raw = await asks(tropilla, stream=True)
    exchange = await double.arrives()
    await exchange.head()
    await exchange.send(chunk("Hello"))
    await raw.see(b"Hello")
    raw.writer.close()
    await exchange.left()


@pytest.mark.parametrize("path", ["/detokenize", "/v1/systemone"])
async def test_leaving_what_is_passed_on(gateway: Serve, double: Double, path: str) -> None:
    tropilla = await gateway(double)
    raw = await asks(tropilla, path)
    exchange = await double.arrives()
    await leaves(raw, exchange, f"{path}, before the head")
    raw = await asks(tropilla, path)
    exchange = await double.arrives()
    await exchange.head()
    await exchange.send(b"event: x\n\n")
    await raw.see(b"event: x")
    await leaves(raw, exchange, f"{path}, in the middle")


@FORMS
async def test_leaving_while_the_model_loads(
    gateway: Serve, double: Double, *, stream: bool
) -> None:
    double.health = 503, b'{"error":{"code":503,"message":"Loading model"}}'
    tropilla = await gateway(double, ready=False)
    await tropilla.until(lambda: tropilla.fleet.state() == "loading")
    raw = await asks(tropilla, stream=stream)
    # An answer on a second connection tells that the first request is being served.
    assert (await tropilla.ask("GET", "/health")).status == 503
    raw.leave()
    await tropilla.has(lambda: not tropilla.fleet.pool.waiting)
    double.on(PATH, streams(*told("x")))
    double.health = 200, b"{}"
    await tropilla.until(lambda: tropilla.fleet.state() == "ready")
    assert (await tropilla.chat()).status == 200
    assert len(double.requests) == 1


async def test_leaving_while_the_upstream_is_connected_to(
    gateway: Serve, double: Double, monkeypatch: pytest.MonkeyPatch
) -> None:
    tropilla = await gateway(double)
    connecting, given_up = asyncio.Event(), asyncio.Event()

    async def connects(*_: object) -> None:
        connecting.set()
        try:
            await asyncio.Event().wait()
        finally:
            given_up.set()

    monkeypatch.setattr(Client, "ask", connects)
    raw = await asks(tropilla, stream=True)
    await asyncio.wait_for(connecting.wait(), DEADLINE)
    raw.leave()
    await asyncio.wait_for(given_up.wait(), DEADLINE)


async def test_the_second_try_ends_too(gateway: Serve, doubles: Start) -> None:
    one, two = await doubles(), await doubles()
    one.keeps = False
    tropilla = await gateway(one, two)
    raw = await asks(tropilla)
    (await one.arrives()).reset()
    await leaves(raw, await two.arrives(), "in the second try")


# Those who do not read.


async def test_a_client_that_does_not_read_holds_the_upstream_back(
    gateway: Serve, double: Double
) -> None:
    async def endless(exchange: Exchange) -> None:
        await exchange.head()
        exchanges.append(exchange)
        while True:
            await exchange.send(piece)

    exchanges: list[Exchange] = []
    piece = chunk("x" * 4000)
    double.on(PATH, endless)
    tropilla = await gateway(double)
    tropilla.hold_little()
    lazy = await asks(tropilla, stream=True)
    lazy.reader._transport.pause_reading()  # type: ignore[attr-defined]
    # Until nothing has moved for many turns of the loop, while another client is served.
    double.on("/detokenize", lambda exchange: exchange.whole(200, b"{}"))
    written, still = -1, 0
    while still < 50:
        assert (await tropilla.ask("POST", "/detokenize", {})).status == 200
        now = exchanges[0].written if exchanges else -1
        written, still = now, still + 1 if now == written >= 0 else 0
        assert written < 4 * 1024 * 1024, "nothing holds the upstream back"
    report(f"an upstream could write {written / 1024:.0f} KiB to a client that does not read")
    await leaves(lazy, exchanges[0], "while it did not read")


async def test_a_slow_client_gets_everything(gateway: Serve, double: Double) -> None:
    words = [f"{n} " + "x" * 4000 for n in range(300)]
    double.on(PATH, streams(*told(*words)))
    tropilla = await gateway(double)
    tropilla.hold_little()
    raw = await asks(tropilla, stream=True)
    raw.reader._transport.pause_reading()  # type: ignore[attr-defined]
    for _ in range(20):
        await tropilla.ask("GET", "/health")
    raw.reader._transport.resume_reading()  # type: ignore[attr-defined]
    answer = await raw.answer()
    assert answer.text == "".join(words)


async def test_many_leave_and_nothing_is_left(gateway: Serve, doubles: Start) -> None:
    double = await doubles(slots=40)
    tropilla = await gateway(double)
    raws = [await asks(tropilla, stream=n % 2 == 0) for n in range(40)]
    exchanges = [await double.arrives() for _ in raws]
    for number, exchange in enumerate(exchanges):
        if number % 3:
            await exchange.head()
        if number % 3 == 2:
            await exchange.send(chunk("Hello"))
    for raw in raws:
        raw.leave()
    for exchange in exchanges:
        await exchange.left()
    assert tropilla.fleet.upstreams[0].leases == 0
    double.on(PATH, streams(*told("x")))
    assert (await tropilla.chat()).status == 200


# The real llama.cpp.


async def slots(engine: Link) -> list[dict[str, Any]]:
    """What the engine says of its slots."""
    _, body = await engine.ask("GET", "/slots")
    told: list[dict[str, Any]] = msgspec.json.decode(body)
    return told


async def busy(engine: Link) -> bool:
    """Whether the engine is at work."""
    return any(slot["is_processing"] for slot in await slots(engine))


@FORMS
@pytest.mark.parametrize("path", [PATH, "/v1/completions"])
async def test_the_real_engine_stops(
    gateway: Serve, real_engine: Engine, *, stream: bool, path: str
) -> None:
    tropilla = await gateway(real_engine.address)
    link = Link(real_engine.address)
    fields = {"prompt": "Once"} if path != PATH else {}
    raw = await asks(tropilla, path, stream=stream, max_tokens=1_000_000, ignore_eos=True, **fields)
    async with asyncio.timeout(DEADLINE):
        while not await busy(link):
            assert not raw.reader.at_eof()
        with stopped(real_engine):
            raw.leave()
            await tropilla.has(lambda: tropilla.fleet.upstreams[0].leases == 0)
        began = time.perf_counter()
        while await busy(link):
            pass
    report(f"the engine is free: {(time.perf_counter() - began) * 1000:.1f} ms, {path}, {stream=}")
    for slot in await slots(link):
        assert slot.get("n_prompt_tokens", 0) < slot["n_ctx"] - 1, "it came to its own end"
    await link.close()


@FORMS
async def test_the_real_engine_answers(gateway: Serve, engine: str, *, stream: bool) -> None:
    tropilla = await gateway(engine)
    answer = await tropilla.chat(stream=stream, max_tokens=8)
    assert answer.status == 200
    if stream:
        assert answer.events[-1] == "[DONE]"
    else:
        assert answer.json["usage"]["completion_tokens"] <= 8


async def test_the_openai_client(gateway: Serve, engine: str) -> None:
    import openai

    tropilla = await gateway(engine, api_keys=("k",))
    async with openai.AsyncOpenAI(base_url=f"{tropilla.url}/v1", api_key="k") as client:
        assert [model.id async for model in client.models.list()] == ["m"]
        stream = await client.chat.completions.create(
            model="m", messages=[{"role": "user", "content": "Hi"}], max_tokens=4, stream=True
        )
        assert [one async for one in stream][-1].choices[0].finish_reason == "length"
        with pytest.raises(openai.NotFoundError) as caught:
            await client.chat.completions.create(
                model="none", messages=[{"role": "user", "content": "Hi"}]
            )
        assert caught.value.code == "model_not_found"
        assert (caught.value.request_id or "").startswith("req_")
        with pytest.raises(openai.AuthenticationError):
            await client.with_options(api_key="x").models.list()
