"""What an operator sees of the herd."""

from __future__ import annotations

import asyncio
from typing import Any

import pytest

from conftest import CHAT, Serve, Start
from doubles.upstream import streams, told

pytestmark = pytest.mark.anyio

PATH = "/v1/chat/completions"


@pytest.mark.usefixtures("hasty_probes")
async def test_who_is_there_and_what_they_do(
    gateway: Serve, doubles: Start, closed_port: int
) -> None:
    busy, other = await doubles(slots=1), await doubles("x", slots=4)
    other.busy = 3
    tropilla = await gateway(busy, other, f"http://127.0.0.1:{closed_port}", ready=False)
    await tropilla.until(
        lambda: [one.state for one in tropilla.fleet.upstreams] == ["ready", "ready", "down"]
    )
    asked = [asyncio.create_task(tropilla.chat()) for _ in range(3)]
    exchange = await busy.arrives()
    await tropilla.has(lambda: tropilla.fleet.pool.waiting == 2)
    answer = await tropilla.ask("GET", "/api/herd")
    assert answer.status == 200
    herd = answer.json
    assert (herd["object"], herd["state"]) == ("herd", "ready")
    assert (herd["waiting"], herd["queues"]) == (2, {"m": 2})
    one, two, three = herd["upstreams"]
    assert one == {
        "name": busy.url,
        "kind": "llama.cpp b11549-double",
        "state": "ready",
        "problem": None,
        "models": ["m"],
        "context_length": 4096,
        "slots": 1,
        "leases": 1,
        "foreign": 0,
        "served": 1,
        "weights": {"m": 1.0},
        "draining": False,
        "quarantine": None,
    }
    assert (two["models"], two["slots"], two["foreign"]) == (["x"], 4, 3)
    assert (three["state"], three["kind"]) == ("down", None)
    assert "cannot be reached" in three["problem"]
    busy.on(PATH, streams(*told("x")))
    await exchange.stream(*told("x"))
    assert [(await one).status for one in asked] == [200] * 3
    assert (await tropilla.ask("GET", "/api/herd")).json["waiting"] == 0


async def test_the_herd_is_shown_to_who_has_a_key(gateway: Serve, doubles: Start) -> None:
    tropilla = await gateway(await doubles(), api_keys=("one",))
    assert (await tropilla.ask("GET", "/api/herd")).status == 401
    key = {"authorization": "Bearer one"}
    assert (await tropilla.ask("GET", "/api/herd", headers=key)).status == 200


async def test_where_a_request_would_go(gateway: Serve, doubles: Start) -> None:
    one, two, other = await doubles(), await doubles(), await doubles("x")
    for double in (one, two, other):
        double.on(PATH, streams(*told("x")))
    tropilla = await gateway(one, two, other)
    talk = [{"role": "user", "content": "Tell me a story. " * 40}]
    await tropilla.chat()
    assert (await tropilla.chat(messages=talk)).status == 200
    body = {"model": "m", "messages": talk}
    answer = await tropilla.ask("POST", "/api/route", body)
    assert answer.status == 200
    first, second, third = answer.json["upstreams"]
    assert [first["verdict"], second["verdict"], third["verdict"]] == [
        "free", "free", "other_model",
    ]  # fmt: skip
    assert [first["taken"], second["taken"], third["taken"]] == [False, True, False]
    assert (first["cached"], second["cached"]) == (0, 1)
    assert second["score"] > first["score"]
    assert len(two.requests) == 1, "nothing was asked"
    raw = await tropilla.ask(
        "POST", "/api/route?path=/v1/completions", {"model": "x", "prompt": "x"}
    )
    assert [one["taken"] for one in raw.json["upstreams"]] == [False, False, True]


@pytest.mark.parametrize(
    ("path", "body", "param"),
    [
        ("/api/route?path=/v1/models", {}, "path"),
        ("/api/route", {"model": "m"}, "messages"),
        ("/api/route", [], None),
    ],
)
async def test_what_has_no_route(
    gateway: Serve, doubles: Start, path: str, body: Any, param: str | None
) -> None:
    answer = await (await gateway(await doubles())).ask("POST", path, body)
    assert (answer.status, answer.error["param"]) == (400, param)


async def test_a_session_is_its_keys_own(gateway: Serve, doubles: Start) -> None:
    one, two = await doubles(), await doubles()
    for double in (one, two):
        double.on(PATH, streams(*told("x")))
    tropilla = await gateway(one, two, api_keys=("a", "b"))

    async def cached(key: str, session: str) -> list[float]:
        headers = {"authorization": f"Bearer {key}", "x-session-id": session}
        answer = await tropilla.ask("POST", "/api/route", CHAT, headers)
        return [one["cached"] for one in answer.json["upstreams"]]

    headers = {"authorization": "Bearer a", "x-session-id": "s"}
    assert (await tropilla.ask("POST", PATH, CHAT, headers)).status == 200
    assert await cached("a", "s") == [0.5, 0]
    assert await cached("a", "t") == await cached("b", "s") == [0, 0]


async def test_without_keys_a_session_is_its_addresses_own(gateway: Serve, doubles: Start) -> None:
    one, two = await doubles(), await doubles()
    for double in (one, two):
        double.on(PATH, streams(*told("x")))
    tropilla = await gateway(one, two)
    headers = {"x-session-id": "s"}
    assert (await tropilla.ask("POST", PATH, CHAT, headers)).status == 200
    answer = await tropilla.ask("POST", "/api/route", CHAT, headers)
    assert [one["cached"] for one in answer.json["upstreams"]] == [0.5, 0]
