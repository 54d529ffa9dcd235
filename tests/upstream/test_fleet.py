"""Several upstreams: who is asked, who is waited for, and who comes back."""

from __future__ import annotations

import asyncio
from collections import Counter
from typing import Any

import pytest

from conftest import CHAT, Answer, Serve, Start
from doubles.upstream import (
    Double,
    answers,
    breaks,
    chunk,
    closes,
    native_told,
    refuses,
    streams,
    told,
)
from tropilla.config import Config, FailuresConfig, ModelConfig, QueueConfig, UpstreamConfig
from tropilla.herd.pool import Ask
from tropilla.ir import ProblemError
from tropilla.templates import Classic
from tropilla.upstream import fleet as module
from tropilla.upstream.fleet import Fleet

pytestmark = pytest.mark.anyio

PATH = "/v1/chat/completions"


async def test_requests_are_spread(gateway: Serve, doubles: Start) -> None:
    herd = [await doubles() for _ in range(3)]
    tropilla = await gateway(*herd)
    for double in herd:
        double.on(PATH, streams(*told("x")))
    for _ in range(6):
        assert (await tropilla.chat()).status == 200
    assert [len(double.requests) for double in herd] == [2, 2, 2]


async def test_who_has_more_slots_gets_more_and_the_rest_waits_here(
    gateway: Serve, doubles: Start
) -> None:
    small, large = await doubles(slots=1), await doubles(slots=3)
    tropilla = await gateway(small, large)
    asked = [asyncio.create_task(tropilla.chat()) for _ in range(8)]
    first = [await small.arrives(), *[await large.arrives() for _ in range(3)]]
    await tropilla.has(lambda: tropilla.fleet.pool.waiting == 4)
    assert [one.leases for one in tropilla.fleet.upstreams] == [1, 3]
    assert (len(small.requests), len(large.requests)) == (1, 3)
    for exchange in first:
        await exchange.stream(*told("x"))
    for exchange in [await small.arrives(), *[await large.arrives() for _ in range(3)]]:
        await exchange.stream(*told("x"))
    assert Counter([(await one).status for one in asked]) == {200: 8}


async def test_a_server_is_given_no_more_than_the_config_says(
    gateway: Serve, doubles: Start
) -> None:
    double = await doubles(slots=4)
    upstream = UpstreamConfig(url=double.url, slots=1)
    tropilla = await gateway(models={"m": ModelConfig(upstreams=(upstream,))})
    asked = [asyncio.create_task(tropilla.chat()) for _ in range(2)]
    exchange = await double.arrives()
    await tropilla.has(lambda: tropilla.fleet.pool.waiting == 1)
    assert len(double.requests) == 1
    double.on(PATH, streams(*told("x")))
    await exchange.stream(*told("x"))
    assert [(await one).status for one in asked] == [200, 200]


async def test_slots_that_others_have_taken_are_not_given(gateway: Serve, doubles: Start) -> None:
    one, two = await doubles(slots=4), await doubles(slots=4)
    for double in (one, two):
        double.on(PATH, streams(*told("x")))
    one.busy = 4
    tropilla = await gateway(one, two)
    for _ in range(4):
        assert (await tropilla.chat()).status == 200
    assert (len(one.requests), len(two.requests)) == (0, 4)


async def test_a_full_queue_is_told_at_once(gateway: Serve, doubles: Start) -> None:
    double = await doubles(slots=1)
    tropilla = await gateway(double, queue=QueueConfig(size=1, seconds=60))
    asked = [asyncio.create_task(tropilla.chat()) for _ in range(2)]
    exchange = await double.arrives()
    await tropilla.has(lambda: tropilla.fleet.pool.waiting == 1)
    for stream in (False, True):
        answer = await tropilla.chat(stream=stream)
        assert (answer.status, answer.error["code"]) == (503, "server_is_overloaded")
        assert (
            answer.error["message"] == "All slots are taken, and 1 requests wait for one already."
        )
        assert answer.headers["retry-after"] == "1"
    double.on(PATH, streams(*told("x")))
    await exchange.stream(*told("x"))
    assert [(await one).status for one in asked] == [200, 200]


async def test_who_waits_too_long_is_told(gateway: Serve, doubles: Start) -> None:
    double = await doubles(slots=1)
    tropilla = await gateway(double, queue=QueueConfig(size=1, seconds=0.3))
    first = asyncio.create_task(tropilla.chat())
    exchange = await double.arrives()
    answer = await tropilla.chat()
    assert (answer.status, answer.error["code"]) == (503, "server_is_overloaded")
    assert "none became free in 0.3 s" in answer.error["message"]
    await exchange.stream(*told("x"))
    assert (await first).status == 200


async def test_who_leaves_the_queue_is_forgotten(gateway: Serve, doubles: Start) -> None:
    double = await doubles(slots=1)
    tropilla = await gateway(double)
    first = asyncio.create_task(tropilla.chat())
    exchange = await double.arrives()
    raw = await tropilla.connect()
    await raw.post(PATH, CHAT)
    await tropilla.has(lambda: tropilla.fleet.pool.waiting == 1)
    raw.leave()
    await tropilla.has(lambda: tropilla.fleet.pool.waiting == 0)
    await exchange.stream(*told("x"))
    assert (await first).status == 200
    assert len(double.requests) == 1


async def test_a_conversation_stays_where_its_cache_is(gateway: Serve, doubles: Start) -> None:
    herd = [await doubles() for _ in range(3)]
    for double in herd:
        double.on(PATH, streams(*told("x")))
    tropilla = await gateway(*herd)
    talk = [{"role": "user", "content": "Tell me a story. " * 40}]
    await tropilla.chat()
    for _ in range(5):
        assert (await tropilla.chat(messages=talk)).status == 200
        talk += [
            {"role": "assistant", "content": "Once upon a time. " * 20},
            {"role": "user", "content": "And then? " * 20},
        ]
    assert sorted(len(double.requests) for double in herd) == [0, 1, 5]


async def test_a_request_goes_where_its_model_is(gateway: Serve, doubles: Start) -> None:
    one, two = await doubles("one"), await doubles("two", "both")
    tropilla = await gateway(one, two)
    for double in (one, two):
        double.on(PATH, streams(*told("x")))
    for model in ("one", "two", "both", "one"):
        answer = await tropilla.chat(model=model)
        assert answer.json["model"] == model
    assert [exchange.json["model"] for exchange in one.requests] == ["one", "one"]
    assert [exchange.json["model"] for exchange in two.requests] == ["two", "both"]
    listed = (await tropilla.ask("GET", "/v1/models")).json["data"]
    assert [card["id"] for card in listed] == ["both", "one", "two"]


async def test_no_model_is_any_model(gateway: Serve, double: Double) -> None:
    double.on(PATH, streams(*told("x")))
    tropilla = await gateway(double)
    answer = await tropilla.chat(model=None)
    assert (answer.status, answer.json["model"]) == (200, "m")
    assert double.requests[0].json["model"] == "m"


async def test_any_model_will_do_where_that_is_wanted(gateway: Serve, double: Double) -> None:
    double.on(PATH, streams(*told("x")))
    tropilla = await gateway(double, any_model=True)
    answer = await tropilla.chat(model="gpt-3.5-turbo")
    assert (answer.status, answer.json["model"]) == (200, "gpt-3.5-turbo")
    assert double.requests[0].json["model"] == "m"


# What a config names.


def model(*upstreams: UpstreamConfig, **more: Any) -> ModelConfig:
    return ModelConfig(upstreams=upstreams, **more)


async def test_a_named_model_has_its_aliases_and_its_name_there(
    gateway: Serve, double: Double
) -> None:
    double.models = ("x", "org/real")
    double.on(PATH, streams(*told("x")))
    here = UpstreamConfig(url=double.url, model="org/real")
    tropilla = await gateway(models={"chat": model(here, aliases=("gpt-4", "a/b"))})
    for name in ("chat", "gpt-4", "a/b"):
        answer = await tropilla.chat(model=name)
        assert (answer.status, answer.json["model"]) == (200, name)
        assert double.requests[-1].json["model"] == "org/real"
    assert (await tropilla.chat(model="org/real")).status == 404
    listed = (await tropilla.ask("GET", "/v1/models")).json["data"]
    assert [card["id"] for card in listed] == ["a/b", "chat", "gpt-4"]
    assert (await tropilla.ask("GET", "/v1/models/a%2Fb")).json["id"] == "a/b"


@pytest.mark.parametrize(
    ("there", "router", "asked"),
    [
        (("m",), False, "m"),  # a llama-server has one model, whatever it is called here
        (("other", "chat"), False, "chat"),
        (("other",), True, "chat"),  # a router may load what it does not list
    ],
)
async def test_a_model_without_a_name_there(
    gateway: Serve, double: Double, there: Any, router: Any, asked: str
) -> None:
    double.models = there
    double.props |= {"role": "router"} if router else {}
    double.on(PATH, streams(*told("x")))
    tropilla = await gateway(models={"chat": model(UpstreamConfig(url=double.url))})
    assert (await tropilla.chat(model="chat")).json["model"] == "chat"
    assert double.requests[-1].json["model"] == asked


async def test_a_server_of_several_models_is_one_server(gateway: Serve, double: Double) -> None:
    double.models = ("a", "b")
    double.on(PATH, streams(*told("x")))
    one = UpstreamConfig(url=double.url)
    tropilla = await gateway(models={"a": model(one), "b": model(one)}, upstreams=(one,))
    assert len(tropilla.fleet.upstreams) == 1
    for name in ("a", "b"):
        assert (await tropilla.chat(model=name)).status == 200
        assert double.requests[-1].json["model"] == name


async def test_a_weight_is_a_share(gateway: Serve, doubles: Start) -> None:
    light, heavy = await doubles(), await doubles()
    for double in (light, heavy):
        double.on(PATH, streams(*told("x")))
    herd = model(
        UpstreamConfig(url=light.url), UpstreamConfig(url=heavy.url, weight=3, model="elsewhere")
    )
    tropilla = await gateway(models={"m": herd})
    for _ in range(8):
        assert (await tropilla.chat()).status == 200
    assert [len(light.requests), len(heavy.requests)] == [2, 6]
    assert heavy.requests[-1].json["model"] == "elsewhere"


async def test_headers_and_key_go_with_every_request(gateway: Serve, double: Double) -> None:
    double.on(PATH, streams(*told("x")))
    one = UpstreamConfig(url=double.url, api_key="k", headers={"X-Team": "herd"})
    tropilla = await gateway(upstreams=(one,))
    assert (await tropilla.chat()).status == 200
    for exchange in (*double.requests, *double.probes):
        assert exchange.headers["authorization"] == "Bearer k"
        assert exchange.headers["x-team"] == "herd"


@pytest.mark.parametrize("level", ["upstream", "model", "config"])
async def test_a_template_may_stand_at_every_level(
    gateway: Serve, double: Double, level: str
) -> None:
    double.on("/completion", streams(*native_told("x")))
    mine, others = Classic(user_name="U:"), Classic(user_name="wrong")
    upstream = UpstreamConfig(url=double.url, template=mine if level == "upstream" else None)
    above = None if level == "config" else mine if level == "model" else others
    tropilla = await gateway(
        models={"m": model(upstream, template=above)},
        template=mine if level == "config" else others,
    )
    assert (await tropilla.chat()).status == 200
    assert "U:Hello!" in double.requests[-1].json["prompt"]


async def test_what_no_server_of_a_model_can_do_is_told(gateway: Serve, doubles: Start) -> None:
    blind, seeing = await doubles("a"), await doubles("b", "a")
    blind.props["modalities"] = {"vision": False, "audio": False}
    for double in (blind, seeing):
        double.on(PATH, streams(*told("x")))
    image = {"type": "image_url", "image_url": {"url": "data:image/png;base64,AA=="}}
    asked: Any = {"messages": [{"role": "user", "content": [image]}]}
    tropilla = await gateway(blind, seeing)
    for _ in range(3):
        assert (await tropilla.chat(model="a", **asked)).status == 200
    assert [len(blind.requests), len(seeing.requests)] == [0, 3]
    tropilla = await gateway(blind)
    answer = await tropilla.chat(model="a", **asked)
    assert (answer.status, answer.error["param"]) == (400, "messages")
    assert "--mmproj" in answer.error["message"]


async def test_what_is_llama_cpps_own_goes_to_llama_cpp(gateway: Serve, doubles: Start) -> None:
    other, llama = await doubles("m"), await doubles("m")
    tropilla = await gateway(
        models={
            "m": model(
                UpstreamConfig(url=other.url, dialect="openai"), UpstreamConfig(url=llama.url)
            ),
            "alone": model(UpstreamConfig(url=other.url, dialect="openai")),
        }
    )
    llama.on("/tokenize", answers(200, b"{}"))
    for _ in range(2):
        assert (await tropilla.ask("POST", "/tokenize", {"model": "m"})).status == 200
    assert other.requests == []
    answer = await tropilla.ask("POST", "/tokenize", {"model": "alone"})
    assert answer.status == 400
    assert "llama.cpp's own" in answer.error["message"]


async def test_a_model_is_passed_on_by_its_name_there(gateway: Serve, double: Double) -> None:
    here = UpstreamConfig(url=double.url, model="real")
    tropilla = await gateway(models={"chat": model(here)})
    double.on("/tokenize", answers(200, b"{}"))
    double.on("/props", answers(200, b"{}"))
    body = {"content": "x", "model": "chat"}
    assert (await tropilla.ask("POST", "/tokenize", body)).status == 200
    assert double.requests[-1].json == body | {"model": "real"}
    assert (await tropilla.ask("GET", "/props?model=chat&x=1")).status == 200
    assert double.requests[-1].target == "/props?model=real&x=1"


# Who is there, and who comes back.


async def test_a_model_that_loads_is_waited_for(gateway: Serve, doubles: Start) -> None:
    one, two = await doubles("one"), await doubles("two")
    two.health = 503, b'{"error":{"code":503,"message":"Loading model"}}'
    two.on(PATH, streams(*told("x")))
    tropilla = await gateway(one, two, ready=False)
    await tropilla.until(
        lambda: [u.state for u in tropilla.fleet.upstreams] == ["ready", "loading"]
    )
    asked = asyncio.create_task(tropilla.chat(model="two"))
    # It is not known yet what the other one serves.
    assert (await tropilla.ask("GET", "/health")).status == 200
    assert not asked.done()
    two.health = 200, b"{}"
    assert (await asked).status == 200


@pytest.mark.usefixtures("hasty_probes")
async def test_nobody_there_is_told_with_the_address(gateway: Serve, closed_port: int) -> None:
    address = f"http://127.0.0.1:{closed_port}"
    tropilla = await gateway(address, ready=False)
    for stream in (False, True):
        answer = await tropilla.chat(stream=stream)
        assert (answer.status, answer.error["code"]) == (503, "no_upstream")
        assert address in answer.error["message"]
        assert "cannot be reached" in answer.error["message"]
        assert answer.headers["retry-after"] == "2"


@pytest.mark.usefixtures("hasty_probes")
async def test_what_is_no_llama_server_is_told(gateway: Serve, double: Double) -> None:
    for path in ("/health", "/v1/models", "/models", "/props", "/model.json"):
        double.on(path, answers(404, b"<html>", "text/html"))
    tropilla = await gateway(double, ready=False)
    answer = await tropilla.chat()
    assert answer.status == 503
    assert "not as a llama.cpp server does" in answer.error["message"]


@pytest.mark.usefixtures("hasty_probes")
async def test_a_key_that_is_wanted_is_told(gateway: Serve, double: Double) -> None:
    double.on("/v1/models", answers(401, b"{}"))
    tropilla = await gateway(double, ready=False)
    answer = await tropilla.chat()
    assert answer.status == 503
    assert "--upstream-api-key" in answer.error["message"]


@pytest.mark.usefixtures("hasty_probes")
async def test_a_server_that_goes_is_done_without_and_one_that_returns_is_used(
    gateway: Serve, doubles: Start
) -> None:
    one, two = await doubles(), await doubles()
    for double in (one, two):
        double.on(PATH, streams(*told("x")))
    tropilla = await gateway(one, two)
    await one.stop()
    for _ in range(4):
        assert (await tropilla.chat()).status == 200
    assert [len(one.requests), len(two.requests)] == [0, 4]
    await tropilla.until(lambda: tropilla.fleet.upstreams[0].state == "down")
    await one.start()
    await tropilla.until(lambda: tropilla.fleet.upstreams[0].state == "ready")
    for _ in range(4):
        assert (await tropilla.chat()).status == 200
    assert len(one.requests) >= 3


async def test_a_server_that_is_away_for_a_moment_is_waited_for(
    gateway: Serve, double: Double
) -> None:
    double.on(PATH, streams(*told("x")))
    tropilla = await gateway(double)
    await double.stop()
    asked = asyncio.create_task(tropilla.chat())
    await tropilla.until(lambda: tropilla.fleet.state() == "starting")
    await double.start()
    assert (await asked).status == 200


async def test_a_server_that_returns_with_another_model(gateway: Serve, double: Double) -> None:
    double.on(PATH, streams(*told("x")))
    tropilla = await gateway(double)
    await double.stop()
    asked = asyncio.create_task(tropilla.chat())
    await tropilla.until(lambda: tropilla.fleet.state() == "starting")
    double.models = ("other",)
    await double.start()
    assert (await asked).status == 404
    assert (await tropilla.chat(model="other")).status == 200


async def test_a_server_that_changes_its_model_while_nobody_looks(
    gateway: Serve, double: Double
) -> None:
    double.on(PATH, streams(*told("x")))
    tropilla = await gateway(double)
    double.models = ("other",)
    tropilla.fleet.upstreams[0].recheck.set()
    await tropilla.until(lambda: "other" in tropilla.fleet.serving())
    assert (await tropilla.chat()).status == 404
    assert (await tropilla.chat(model="other")).status == 200


async def test_a_lease_is_given_back_whatever_happens(double: Double) -> None:
    fleet = Fleet(Config(upstreams=(UpstreamConfig(url=double.url),)))
    await fleet.start()
    try:
        async with fleet.lease(Ask(model="m")) as lease:
            upstream = lease.upstream
            assert (upstream.leases, lease.name, lease.there) == (1, "m", "m")
            with pytest.raises(ProblemError) as caught:
                async with fleet.lease(Ask(model="none")):
                    pass
        assert caught.value.problem.kind == "unknown_model"
        with pytest.raises(ZeroDivisionError):
            async with fleet.lease(Ask()):
                raise ZeroDivisionError
        assert (upstream.leases, fleet.pool.held(0)) == (0, 0)
    finally:
        await fleet.stop()


async def test_patience_has_an_end(double: Double, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(module, "PATIENCE_SECONDS", 0.01)
    double.health = 503, b'{"error":{"code":503,"message":"Loading model"}}'
    fleet = Fleet(Config(upstreams=(UpstreamConfig(url=double.url),)))
    await fleet.start()
    try:
        with pytest.raises(ProblemError) as caught:
            async with fleet.lease(Ask(model="m")):
                pass
        assert caught.value.problem.kind == "loading"
    finally:
        await fleet.stop()


# What a request finds out about its upstream.


async def test_an_upstream_that_dies_in_the_middle_is_looked_at_at_once(
    gateway: Serve, doubles: Start
) -> None:
    one, two = await doubles(), await doubles()
    one.on(PATH, breaks(chunk("Hello")))
    two.on(PATH, streams(*told("x")))
    tropilla = await gateway(one, two)
    one.health = 503, b'{"error":{"code":503,"message":"Loading model"}}'
    assert (await tropilla.chat(stream=True)).events[-1] == "[DONE]"
    await tropilla.until(lambda: tropilla.fleet.upstreams[0].state == "loading")
    assert (await tropilla.chat()).status == 200
    assert tropilla.fleet.pool._members[0].deaths == 1


@pytest.mark.parametrize("stream", [False, True], ids=["whole", "stream"])
async def test_errors_in_a_row_take_an_upstream_out(
    gateway: Serve, doubles: Start, caplog: pytest.LogCaptureFixture, *, stream: bool
) -> None:
    bad, good = await doubles(), await doubles()
    bad.on(PATH, refuses(500, "Out of order.", "server_error"))
    good.on(PATH, streams(*told("x")))
    out = FailuresConfig(out=1000, most_out=1000)
    upstreams = tuple(UpstreamConfig(url=one.url, failures=out) for one in (bad, good))
    tropilla = await gateway(upstreams=upstreams)
    for _ in range(12):
        assert (await tropilla.chat(stream=stream)).status == 200
    assert len(bad.requests) == 3
    assert len(good.requests) == 12
    lines = [one.getMessage() for one in caplog.records if "again and again" in one.getMessage()]
    assert [one.partition(": ")[2].endswith("Out of order.") for one in lines] == [True]
    herd = (await tropilla.ask("GET", "/api/herd")).json["upstreams"]
    assert [one["quarantine"] is not None for one in herd] == [True, False]
    assert [one["problem"] for one in herd] == ["Out of order.", None]


@pytest.mark.parametrize(
    ("path", "body"),
    [
        (PATH, CHAT),
        ("/v1/embeddings", {"model": "m", "input": "x"}),
        ("/embedding", {"model": "m", "content": "x"}),
    ],
)
async def test_what_two_upstreams_died_of_is_given_to_no_third_one(
    gateway: Serve,
    doubles: Start,
    caplog: pytest.LogCaptureFixture,
    path: str,
    body: dict[str, Any],
) -> None:
    herd = [await doubles() for _ in range(3)]
    for double in herd:
        double.on(path, closes)
    tropilla = await gateway(*herd)
    assert (await tropilla.ask("POST", path, body)).status == 503
    asked = [len(one.requests) for one in herd]
    assert [number > 0 for number in asked].count(True) == 2
    answer = await tropilla.ask("POST", path, body)
    assert answer.status == 400
    assert "Two servers have ended" in answer.error["message"]
    assert "Two servers have ended" in caplog.text
    assert [len(one.requests) for one in herd] == asked
    other = body | {"model": "m", "user": "another"}
    assert (await tropilla.ask("POST", path, other)).status == 503


@pytest.mark.parametrize(
    ("path", "body"),
    [
        ("/v1/embeddings", {"model": "m", "input": "x"}),
        ("/embedding", {"model": "m", "content": "x"}),
    ],
)
async def test_whatever_is_asked_keys_take_turns(
    gateway: Serve, doubles: Start, path: str, body: dict[str, Any]
) -> None:
    double = await doubles(slots=1)
    tropilla = await gateway(double, api_keys=("one", "two"))

    async def asks(key: str, number: int) -> asyncio.Task[Answer]:
        told, before = body | {"user": key}, tropilla.fleet.pool.waiting
        shown = {"authorization": f"Bearer {key}"}
        asked = asyncio.create_task(tropilla.ask("POST", path, told, shown))
        if number:
            await tropilla.has(lambda: tropilla.fleet.pool.waiting == before + 1)
        return asked

    asked = [await asks("one", 0)]
    exchange = await double.arrives()
    asked += [await asks("one", 1), await asks("one", 2), await asks("two", 3)]
    turns = []
    for _ in range(3):
        await exchange.whole(400, b'{"error":{"message":"x"}}')
        exchange = await double.arrives()
        turns.append(exchange.json["user"])
    await exchange.whole(400, b'{"error":{"message":"x"}}')
    assert turns == ["two", "one", "one"]
    assert [(await one).status for one in asked] == [400] * 4


async def test_a_model_that_does_not_do_what_it_has_to_is_no_fault_of_its_server(
    gateway: Serve, double: Double
) -> None:
    double.on(PATH, streams(*told("No.")))
    tropilla = await gateway(double)
    tool = {"type": "function", "function": {"name": "look"}}
    for _ in range(5):
        answer = await tropilla.chat(tools=[tool], tool_choice="required")
        assert (answer.status, answer.error["code"]) == (502, "upstream_error")
    assert (await tropilla.ask("GET", "/api/herd")).json["upstreams"][0]["quarantine"] is None
    assert len(double.requests) == 5


async def test_what_an_upstream_fails_may_be_its_own_affair(gateway: Serve, doubles: Start) -> None:
    bad, good = await doubles(), await doubles()
    bad.on(PATH, refuses(500, "Out of order.", "server_error"))
    good.on(PATH, streams(*told("x")))
    upstreams = (
        UpstreamConfig(url=bad.url, failures=FailuresConfig(retry=False)),
        UpstreamConfig(url=good.url),
    )
    tropilla = await gateway(upstreams=upstreams)
    answer = await tropilla.chat()
    assert (answer.status, answer.error["message"]) == (502, "Out of order.")
    assert good.requests == []
