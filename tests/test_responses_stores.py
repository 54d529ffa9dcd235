"""Where responses are kept, and what is told where they cannot be."""

from __future__ import annotations

import asyncio
from pathlib import Path
from typing import Any

import openai
import pytest

from conftest import Serve, Served
from doubles.databases import refusing
from doubles.upstream import Double, streams, told
from test_responses import CHAT_PATH, PATH, ask, events_of, sdk, texts
from tropilla.config import AccountsConfig, KeyConfig, ResponsesConfig

pytestmark = pytest.mark.anyio


async def ended(tropilla: Served, *, stream: bool, **fields: Any) -> Any:
    """A response, as its end tells it."""
    answer = await ask(tropilla, stream=stream, **fields)
    return events_of(answer)[-1]["response"] if stream else answer.json


def said(double: Double) -> list[str]:
    messages: list[dict[str, str]] = double.requests[-1].json["messages"]
    return [one["content"] for one in messages]


async def test_a_file_keeps_them_over_a_restart(
    gateway: Serve, double: Double, tmp_path: Path
) -> None:
    config = ResponsesConfig(store=f"sqlite:///{tmp_path}/responses.db")
    double.on(CHAT_PATH, streams(*told("Hi")))
    first = await gateway(double, responses=config)
    made = (await ask(first)).json
    second = await gateway(double, responses=config)

    assert (await second.ask("GET", f"{PATH}/{made['id']}")).json == made


async def test_an_answer_is_worth_more_than_its_keeping(
    gateway: Serve, double: Double, tmp_path: Path
) -> None:
    (tmp_path / "none").write_text("no folder")
    config = ResponsesConfig(store=f"sqlite:///{tmp_path}/none/responses.db")
    double.on(CHAT_PATH, streams(*told("Hi")))
    tropilla = await gateway(double, responses=config)
    made = await ask(tropilla)
    streamed = events_of(await ask(tropilla, stream=True))
    asked = len(double.requests)
    for response in (made.json, streamed[-1]["response"]):
        assert (texts(response), response["store"]) == (["Hi"], False)
    assert (await ask(tropilla, store=False)).status == 200

    # Who says that it is to be kept hears so before anything is made.
    for answer in (
        await tropilla.ask("POST", PATH, {"input": "Hello!", "store": True}),
        await tropilla.ask("POST", PATH, {"input": "Hello!", "store": True, "stream": True}),
        await ask(tropilla, previous_response_id=made.json["id"]),
        await tropilla.ask("GET", f"{PATH}/{made.json['id']}"),
        await tropilla.ask("GET", f"{PATH}/{made.json['id']}/input_items"),
        await tropilla.ask("DELETE", f"{PATH}/{made.json['id']}"),
    ):
        assert (answer.status, answer.error["code"]) == (503, "store_unavailable")
        assert answer.headers["retry-after"] == "5"
    assert len(double.requests) == asked + 1


@pytest.mark.parametrize("stream", [False, True])
async def test_a_store_that_takes_nothing(
    gateway: Serve, double: Double, store_url: str, *, stream: bool
) -> None:
    tropilla = await gateway(double, responses=ResponsesConfig(store=store_url))
    store: Any = tropilla.gateway._responses._keeper._store
    double.on(CHAT_PATH, streams(*told("Hi")))
    first = await ended(tropilla, stream=stream, store=True)
    async with refusing(store, "INSERT"):
        refused = await tropilla.ask("POST", PATH, {"input": "x", "store": True, "stream": stream})
        assert (refused.status, refused.error["code"]) == (503, "store_unavailable")
        assert len(double.requests) == 1
        # Who has not said so has an answer, which says that there is no way back to it.
        unkept = await ended(tropilla, stream=stream)
        assert (texts(unkept), unkept["store"]) == (["Hi"], False)
        assert (await tropilla.ask("GET", f"{PATH}/{unkept['id']}")).status == 404
        assert (await tropilla.ask("GET", f"{PATH}/{first['id']}")).json == first
    again = await ended(tropilla, stream=stream, store=True)
    assert first["store"] is again["store"] is True
    assert (await tropilla.ask("GET", f"{PATH}/{again['id']}")).json == again


@pytest.mark.parametrize("stream", [False, True])
async def test_a_store_that_takes_nothing_at_the_end(
    gateway: Serve, double: Double, tmp_path: Path, caplog: Any, *, stream: bool
) -> None:
    where = f"sqlite:///{tmp_path}/accounts.db"
    tropilla = await gateway(double, accounts=AccountsConfig(store=where))
    store: Any = tropilla.gateway._responses._keeper._store
    body = {"model": "m", "input": "Hello!", "store": True, "stream": stream}
    key = {"Idempotency-Key": "k"}
    task = asyncio.create_task(tropilla.ask("POST", PATH, body, key))
    asked = await double.arrives()
    async with refusing(store, "INSERT"):
        await asked.stream(*told("Hi"))
        answer = await task
        assert f"{answer.headers['x-request-id'].replace('req', 'resp')} could not be kept" in (
            caplog.text
        )
    response = events_of(answer)[-1]["response"] if stream else answer.json
    assert (response["status"], texts(response), response["store"]) == ("completed", ["Hi"], False)
    if stream:
        told_events = events_of(answer)
        assert [one["type"] for one in told_events].count("response.completed") == 1
        assert [one["sequence_number"] for one in told_events] == list(range(len(told_events)))
        assert told_events[0]["response"]["store"] is True  # as it was meant then
    # It is said again as it was told, whatever the store takes now.
    again = await tropilla.ask("POST", PATH, body, key)
    assert (again.headers["idempotency-replayed"], again.body) == ("true", answer.body)


@pytest.mark.parametrize("stream", [False, True])
async def test_what_is_too_large_to_be_kept_says_so(
    gateway: Serve, double: Double, *, stream: bool
) -> None:
    tropilla = await gateway(double, responses=ResponsesConfig(max_bytes=500))
    double.on(CHAT_PATH, streams(*told("Hi")))
    response = await ended(tropilla, stream=stream, store=True)
    assert (response["status"], response["store"]) == ("completed", False)
    assert (await tropilla.ask("GET", f"{PATH}/{response['id']}")).status == 404


async def test_gateways_that_share_their_accounts_share_responses(
    gateway: Serve, double: Double, store_url: str
) -> None:
    keys = {"a": KeyConfig(key="one"), "b": KeyConfig(key="two")}
    told_so = AccountsConfig(store=store_url, keys=keys)
    one, other = [await gateway(double, accounts=told_so) for _ in range(2)]
    double.on(CHAT_PATH, streams(*told("Hi")))
    async with sdk(one, "one") as here, sdk(other, "one") as there, sdk(other, "two") as stranger:
        first = await here.responses.create(model="m", input="Hello!")
        second = await there.responses.create(
            model="m", input="And?", previous_response_id=first.id
        )
        assert said(double)[-3:] == ["Hello!", "Hi", "And?"]
        assert (await there.responses.retrieve(first.id)).output_text == "Hi"
        assert (await here.responses.retrieve(second.id)).previous_response_id == first.id
        listed = await there.responses.input_items.list(first.id)
        assert [one.type for one in listed.data] == ["message"]
        with pytest.raises(openai.NotFoundError):
            await stranger.responses.retrieve(first.id)

        await there.responses.delete(first.id)
        with pytest.raises(openai.NotFoundError):
            await here.responses.retrieve(first.id)
        with pytest.raises(openai.BadRequestError, match="not found"):
            await here.responses.create(model="m", input="x", previous_response_id=second.id)


@pytest.mark.parametrize("store", ["memory", "own"])
async def test_responses_may_be_kept_elsewhere_than_accounts(
    gateway: Serve, double: Double, tmp_path: Path, store: str
) -> None:
    own = "memory" if store == "memory" else f"sqlite:///{tmp_path}/responses.db"
    both: Any = {
        "accounts": AccountsConfig(store=f"sqlite:///{tmp_path}/accounts.db"),
        "responses": ResponsesConfig(store=own),
    }
    double.on(CHAT_PATH, streams(*told("Hi")))
    tropilla, other = [await gateway(double, **both) for _ in range(2)]
    made = (await ask(tropilla)).json
    accounts = tropilla.gateway._accounts
    assert accounts is not None
    assert await accounts.store.read("SELECT count(*) FROM responses") == [(0,)]
    assert (await tropilla.ask("GET", f"{PATH}/{made['id']}")).json == made
    elsewhere = await other.ask("GET", f"{PATH}/{made['id']}")
    assert elsewhere.status == (404 if store == "memory" else 200)
