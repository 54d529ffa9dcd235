"""Limits and budgets, as clients meet them: exact however many ask, and however they end."""

from __future__ import annotations

import asyncio
from collections import Counter
from pathlib import Path
from typing import Any

import msgspec
import pytest

from conftest import CHAT, Answer, Serve, Served, Start
from doubles.databases import Valkey
from doubles.upstream import Double, answers, breaks, chunk, event, streams
from tropilla.accounts import valkey as valkey_module
from tropilla.accounts.admission import span
from tropilla.accounts.meters.valkey import Shared
from tropilla.config import (
    AccountsConfig,
    BudgetConfig,
    Config,
    EngineConfig,
    KeyConfig,
    LimitsConfig,
    ModelConfig,
    PriceConfig,
    TeamConfig,
    UpstreamConfig,
)
from tropilla.ir import JsonObject

pytestmark = pytest.mark.anyio

PATH = "/v1/chat/completions"
MINE = {"Authorization": "Bearer mine"}


COUNTED = {"in": "memory"}


@pytest.fixture(autouse=True, params=["memory", "valkey"])
def counted(request: pytest.FixtureRequest, monkeypatch: pytest.MonkeyPatch) -> None:
    """Every promise holds wherever it is counted."""
    if request.param == "valkey":
        server: Valkey = request.getfixturevalue("valkey")
        monkeypatch.setitem(COUNTED, "in", server.database())
        monkeypatch.setattr(valkey_module, "_PATIENCE_SECONDS", 60.0)  # busy machines are slow


async def spent_by_alice(tropilla: Served) -> int:
    meter: Any = tropilla.gateway._door.admission._meter
    if isinstance(meter, Shared):
        assert meter._valkey._wire is not None
        told = await meter._valkey._wire.send("HGET", "{tropilla}:b:key/config:alice", "s")
        assert isinstance(told, bytes)
        return int(told)
    spent: int = meter._tally("key/config:alice").spent("total")[0]
    return spent


def accounts(path: Path | None = None, **told: Any) -> AccountsConfig:
    """One key, `mine`, with these terms; and another that has none."""
    teams = told.pop("teams", {})
    keys = {"alice": KeyConfig(key="mine", **told), "bob": KeyConfig(key="other", team="red")}
    store = f"sqlite:///{path}/accounts.db" if path else "none"
    return AccountsConfig(store=store, keys=keys, teams=teams, shared=COUNTED["in"])


def limited(**limits: int) -> AccountsConfig:
    return accounts(limits=LimitsConfig(**limits))


def budgeted(path: Path | None = None, **budget: Any) -> AccountsConfig:
    return accounts(path, budgets=(BudgetConfig(**budget),))


def says(read: int, written: int, text: str = "yes") -> Any:
    """An upstream whose answer takes so much."""
    usage = {"prompt_tokens": read, "completion_tokens": written, "total_tokens": read + written}
    return streams(
        chunk(text), chunk(reason="stop"), event({"choices": [], "usage": usage}),
        b"data: [DONE]\n\n",
    )  # fmt: skip


async def chat(tropilla: Served, key: str = "mine", **fields: Any) -> Answer:
    headers = {"Authorization": f"Bearer {key}"}
    return await tropilla.ask("POST", PATH, CHAT | fields, headers)


def remaining(answer: Answer, what: str) -> int:
    return int(answer.headers[f"x-ratelimit-remaining-{what}"])


async def test_requests_of_a_minute(gateway: Serve, double: Double) -> None:
    double.on(PATH, says(5, 5))
    tropilla = await gateway(double, accounts=limited(requests=5))
    told = await asyncio.gather(*(chat(tropilla) for _ in range(20)))
    assert Counter(one.status for one in told) == {200: 5, 429: 15}
    refused = next(one for one in told if one.status == 429)
    assert refused.error["code"] == "rate_limit_exceeded"
    assert refused.error["type"] == "requests"
    assert "Limit 5, Used 5" in refused.error["message"]
    assert 0 < int(refused.headers["retry-after"]) <= 61
    assert refused.headers["x-ratelimit-limit-requests"] == "5"
    assert remaining(refused, "requests") == 0
    assert refused.headers["x-ratelimit-reset-requests"].endswith("s")
    # The other key asks on, and hears of no limits.
    other = await chat(tropilla, "other")
    assert other.status == 200
    assert not [name for name in other.headers if name.startswith("x-ratelimit")]


async def test_what_failed_is_given_back(gateway: Serve, double: Double) -> None:
    double.on(PATH, answers(500, b'{"error":{"message":"no","code":500}}'))
    tropilla = await gateway(double, accounts=limited(requests=3, tokens=10_000, concurrent=1))
    for _ in range(5):
        answer = await chat(tropilla, max_tokens=1000)
        assert answer.status == 502
    double.on(PATH, says(5, 5))
    answer = await chat(tropilla, max_tokens=1000)
    assert answer.status == 200
    assert remaining(answer, "requests") == 2
    models = await tropilla.ask("GET", "/v1/models", headers=MINE)
    assert remaining(models, "tokens") == 9990
    assert models.headers["x-ratelimit-limit-tokens"] == "10000"


async def test_what_is_the_requests_fault_counts(gateway: Serve, double: Double) -> None:
    double.on(PATH, answers(400, b'{"error":{"message":"no","code":400}}'))
    tropilla = await gateway(double, accounts=limited(requests=2))
    assert [(await chat(tropilla)).status for _ in range(3)] == [400, 400, 429]


async def test_tokens_of_a_minute(gateway: Serve, double: Double) -> None:
    double.on(PATH, says(100, 50))
    tropilla = await gateway(double, accounts=limited(tokens=1000))
    assert (await chat(tropilla, max_tokens=800)).status == 200
    models = await tropilla.ask("GET", "/v1/models", headers=MINE)
    assert remaining(models, "tokens") == 850
    refused = await chat(tropilla, max_tokens=900)
    assert (refused.status, refused.error["code"]) == (429, "rate_limit_exceeded")
    assert refused.error["type"] == "tokens"
    never = await chat(tropilla, max_tokens=1001)
    assert never.status == 429
    assert "It never fits" in never.error["message"]
    assert "retry-after" not in never.headers


async def test_requests_at_once(gateway: Serve, double: Double) -> None:
    tropilla = await gateway(double, accounts=limited(concurrent=2))
    first = [asyncio.create_task(chat(tropilla)) for _ in range(2)]
    for _ in range(2):
        await double.arrives()
    refused = await chat(tropilla)
    assert (refused.status, refused.error["type"]) == (429, "concurrent")
    for task in first:
        task.cancel()
    # Who has left makes room.
    double.on(PATH, says(1, 1))
    await tropilla.has(tropilla.gateway.idle.is_set)
    assert (await chat(tropilla)).status == 200


async def test_who_leaves_gives_back_what_was_not_used(gateway: Serve, double: Double) -> None:
    tropilla = await gateway(double, accounts=limited(tokens=5000))
    raw = await tropilla.connect()
    await raw.post(PATH, CHAT | {"max_tokens": 4000}, "Authorization: Bearer mine")
    await double.arrives()
    assert (await chat(tropilla, max_tokens=4000)).status == 429
    raw.leave()
    await tropilla.has(tropilla.gateway.idle.is_set)
    double.on(PATH, says(1, 1))
    assert (await chat(tropilla, max_tokens=4000)).status == 200


async def test_a_team_has_limits_for_all_its_keys(gateway: Serve, double: Double) -> None:
    double.on(PATH, says(5, 5))
    teams = {"red": TeamConfig(limits=LimitsConfig(requests=4))}
    tropilla = await gateway(double, accounts=accounts(team="red", teams=teams))
    told = [(await chat(tropilla, key)).status for key in ("mine", "other") * 3]
    assert Counter(told) == {200: 4, 429: 2}
    refused = await chat(tropilla, "other")
    assert "the team 'red'" in refused.error["message"]
    assert remaining(refused, "requests") == 0


@pytest.mark.parametrize("named", [{"model": "big"}, {"model": "alias"}, {}])
async def test_a_model_has_limits_for_all_who_ask(
    gateway: Serve, double: Double, named: JsonObject
) -> None:
    double.on(PATH, says(5, 5))
    upstream = (UpstreamConfig(url=double.url, model="m"),)
    big = ModelConfig(upstreams=upstream, aliases=("alias",), limits=LimitsConfig(requests=3))
    models = {"big": big}
    tropilla = await gateway(upstreams=(), models=models)
    body = {name: value for name, value in CHAT.items() if name != "model"} | named
    told = [(await tropilla.ask("POST", PATH, body)).status for _ in range(5)]
    assert Counter(told) == {200: 3, 429: 2}


async def test_a_budget_for_twenty_and_two_hundred_who_ask(
    gateway: Serve, doubles: Start, tmp_path: Path
) -> None:
    # Each takes 60 tokens, and may come to 60 at most: what it is, is counted.
    one = await doubles(slots=64)
    one.on(PATH, says(10, 50))
    one.on("/v1/chat/completions/input_tokens", answers(200, b'{"input_tokens":10}'))
    told = budgeted(tmp_path, tokens=20 * 60, per="day")
    tropilla = await gateway(one, accounts=told)
    served = 0
    while True:
        round_ = await asyncio.gather(*(chat(tropilla, max_tokens=50) for _ in range(200)))
        done = sum(answer.status == 200 for answer in round_)
        served += done
        codes = {answer.error["code"] for answer in round_ if answer.status != 200}
        assert codes <= {"insufficient_quota", "rate_limit_exceeded"}
        if not done:
            break
    assert served == 20
    assert {answer.error["code"] for answer in round_} == {"insufficient_quota"}
    assert {answer.headers["x-should-retry"] for answer in round_} == {"false"}
    ledger = await tropilla.gateway._accounts.told("by=key", "")  # type: ignore[union-attr]
    (row,) = ledger["data"]
    assert row["prompt"] + row["written"] == 20 * 60
    # A gateway that begins again has not forgotten.
    again = await gateway(one, accounts=told)
    refused = await chat(again, max_tokens=50)
    assert (refused.status, refused.error["code"]) == (429, "insufficient_quota")
    assert (await chat(again, "other", max_tokens=50)).status == 200


async def test_money_is_counted_to_the_billionth(
    gateway: Serve, double: Double, tmp_path: Path
) -> None:
    double.on(PATH, says(1000, 100))
    double.on("/v1/chat/completions/input_tokens", answers(200, b'{"input_tokens":1000}'))
    price = PriceConfig(input=1.5, output=6)
    upstream = (UpstreamConfig(url=double.url, model="m"),)
    models = {"m": ModelConfig(upstreams=upstream, price=price)}
    # 1000 x 1.5 + 100 x 6 = 0.0021 for each.
    told = budgeted(tmp_path, money=0.0063, per="month")
    tropilla = await gateway(upstreams=(), models=models, accounts=told)
    statuses = [(await chat(tropilla, max_tokens=100)).status for _ in range(5)]
    assert statuses == [200, 200, 200, 429, 429]
    ledger = await tropilla.gateway._accounts.told("by=key", "")  # type: ignore[union-attr]
    assert ledger["data"][0]["cost"] == 6_300_000


async def test_an_answer_without_a_limit_is_as_long_as_the_budget_allows(
    gateway: Serve, double: Double
) -> None:
    double.on(PATH, says(10, 20))
    double.on("/v1/chat/completions/input_tokens", answers(200, b'{"input_tokens":10}'))
    tropilla = await gateway(double, accounts=budgeted(tokens=100, per="total"))
    for most in (90, 60, 30):
        double.requests.clear()
        assert (await chat(tropilla)).status == 200
        asked = next(one for one in double.requests if one.path == PATH)
        assert asked.json["max_tokens"] == most
    refused = await chat(tropilla)
    assert (refused.status, refused.error["code"]) == (429, "insufficient_quota")


async def test_a_stream_that_breaks_off_costs_what_it_took(gateway: Serve, double: Double) -> None:
    double.on(PATH, breaks(chunk("some "), chunk("words ")))
    tropilla = await gateway(double, accounts=limited(tokens=20_000), failover=False)
    await chat(tropilla, stream=True, max_tokens=10_000)
    models = await tropilla.ask("GET", "/v1/models", headers=MINE)
    assert 19_900 < remaining(models, "tokens") < 20_000


async def test_the_engine_itself(gateway: Serve, tmp_path: Path) -> None:
    """What it counts is what is spent, to the token, in every form of answer."""
    told = budgeted(tmp_path, tokens=100_000, per="total")
    tropilla = await gateway(engine=EngineConfig(slots=2, name="m"), accounts=told)
    spent = 0
    for body in ({}, {"stream": True, "stream_options": {"include_usage": True}}, {"n": 2}):
        answer = await chat(tropilla, max_tokens=5, **body)
        assert answer.status == 200
        usage = answer.events[-2]["usage"] if "stream" in body else answer.json["usage"]
        spent += usage["total_tokens"]
    assert await spent_by_alice(tropilla) == spent


@pytest.mark.parametrize(
    ("path", "shape"),
    [
        (PATH, lambda told: told["error"]["code"] == "rate_limit_exceeded"),
        ("/completion", lambda told: told["error"]["code"] == 429),
        ("/models/conversation", lambda told: "detail" in told),
    ],
)
async def test_a_refusal_is_in_the_words_of_the_client(
    gateway: Serve, double: Double, path: str, shape: Any
) -> None:
    tropilla = await gateway(double, accounts=limited(requests=0))
    body = {"prompt": "x", "messages": CHAT["messages"], "model": "m"}
    if path.startswith("/models"):
        body = {"messages": [{"role": "human", "content": "x"}], "model": "m"}
    if path == "/completion":
        body = {"prompt": "x"}
    answer = await tropilla.ask("POST", path, body, MINE)
    assert answer.status == 429, answer.body
    assert shape(answer.json)


async def test_what_nobody_counts_is_not_for_who_is_counted(gateway: Serve, double: Double) -> None:
    tropilla = await gateway(double, accounts=budgeted(tokens=1000))
    refused = await tropilla.ask("POST", "/embedding", {"content": "x"}, MINE)
    assert (refused.status, refused.error["code"]) == (403, 403)
    assert double.requests == []
    double.on("/embedding", answers(200, b"[]"))
    other = await tropilla.ask("POST", "/embedding", {"content": "x"}, {"x-api-key": "other"})
    assert other.status == 200


async def test_a_query_counts_as_often_as_it_is_read(gateway: Serve, double: Double) -> None:
    tropilla = await gateway(double, accounts=budgeted(tokens=2000, per="total"))
    body = {"query": "q" * 300, "documents": ["d"] * 10, "model": "m"}
    refused = await tropilla.ask("POST", "/v1/rerank", body, MINE)
    assert (refused.status, refused.error["code"]) == (429, "insufficient_quota")
    assert double.requests == []
    double.on("/v1/rerank", answers(
        200, b'{"results":[{"index":0,"relevance_score":1}],"usage":{"prompt_tokens":90}}'
    ))  # fmt: skip
    body = body | {"documents": ["d"]}
    assert (await tropilla.ask("POST", "/v1/rerank", body, MINE)).status == 200
    assert await spent_by_alice(tropilla) == 90


async def test_a_changed_limit_holds_from_the_next_request_on(
    gateway: Serve, double: Double
) -> None:
    double.on(PATH, says(5, 5))
    tropilla = await gateway(double, accounts=limited(requests=1))
    assert [(await chat(tropilla)).status for _ in range(2)] == [200, 429]
    config: Config = tropilla.gateway._config
    tropilla.gateway.reload(msgspec.structs.replace(config, accounts=limited(requests=3)))
    assert [(await chat(tropilla)).status for _ in range(3)] == [200, 200, 429]


@pytest.mark.parametrize(
    ("seconds", "told"),
    [
        (0, "0s"), (0.017, "17ms"), (0.9991, "1s"), (1, "1s"), (8.64, "8.64s"), (59.9996, "1m0s"),
        (60, "1m0s"), (360, "6m0s"), (3603.5, "1h0m3.5s"),
    ],
)  # fmt: skip
def test_a_time_as_openai_tells_it(seconds: float, told: str) -> None:
    assert span(seconds) == told
