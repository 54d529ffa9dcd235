"""What is said again under one key is done once, and told word for word; failures are not kept."""

from __future__ import annotations

import time
from types import SimpleNamespace
from typing import Any

import msgspec
import pytest

from accounts.test_admission import says
from conftest import CHAT, Serve
from doubles.upstream import Double, answers, breaks, chunk, streams, told
from repeats.asking import ADMIN, KEY, PATH, YES, accounts, chat, open_keys, replayed
from tropilla.accounts import usage
from tropilla.config import (
    AccountsConfig,
    FailuresConfig,
    KeyConfig,
    LimitsConfig,
    RepeatsConfig,
    UpstreamConfig,
)
from tropilla.server import repeats

pytestmark = pytest.mark.anyio


@pytest.mark.parametrize("stream", [False, True])
async def test_what_is_said_again_is_done_once(
    gateway: Serve, double: Double, kept: AccountsConfig, *, stream: bool
) -> None:
    double.on(PATH, streams(*told("Hel", "lo")))
    tropilla = await gateway(double, accounts=kept)
    first = await chat(tropilla, stream=stream)
    again = [await chat(tropilla, stream=stream) for _ in range(3)]
    assert first.status == 200
    assert not replayed(first)
    for one in again:
        assert (one.status, one.body) == (first.status, first.body)
        assert replayed(one)
        for name in ("content-type", "x-tropilla-upstream", "cache-control"):
            assert one.headers.get(name) == first.headers.get(name)
        assert "x-tropilla-queue-ms" not in one.headers
        assert one.headers["x-request-id"] != first.headers["x-request-id"]
        assert YES in one.headers["access-control-expose-headers"]
    assert len(double.requests) == 1
    other = await chat(tropilla, {"Idempotency-Key": "another"}, stream=stream)
    assert not replayed(other)
    assert len(double.requests) == 2
    for _ in range(2):
        assert not replayed(await chat(tropilla, {}, stream=stream))
    assert len(double.requests) == 4


async def test_who_is_told_again_is_seen_and_does_not_count(
    gateway: Serve, double: Double, managed: AccountsConfig
) -> None:
    double.on(PATH, says(5, 7))
    double.on("/metrics", answers(404, b""))
    tropilla = await gateway(double, accounts=managed)
    key = (await tropilla.ask("POST", "/api/keys", {"name": "a"}, ADMIN)).json["key"]
    mine = {"Authorization": f"Bearer {key}"} | KEY
    first, again = await chat(tropilla, mine), await chat(tropilla, mine)
    assert replayed(again)
    (row,) = await usage.sums(accounts(tropilla).store, ["key"], where={"model": "m"})
    assert (row["requests"], row["prompt"], row["written"]) == (1, 5, 7)
    tropilla.gateway.journal.write()
    lines = [msgspec.json.decode(line) for _, line in tropilla.gateway.journal.last.since()]
    (line,) = (one for one in lines if one.get("request") == again.headers["x-request-id"])
    assert line["replays"] == first.headers["x-request-id"]
    assert (line["model"], line["status"], "upstream" in line) == ("m", 200, False)
    assert not line.get("prompt_tokens")
    metrics = (await tropilla.ask("GET", "/metrics", headers=ADMIN)).body
    assert b"tropilla_replays_total 1.0" in metrics
    seen = b'tropilla_requests_total{dialect="openai_chat",model="m",status="200"} 2.0'
    assert seen in metrics


async def test_a_replay_is_not_limited(
    gateway: Serve, double: Double, kept: AccountsConfig
) -> None:
    double.on(PATH, says(5, 5))
    keys = {"alice": KeyConfig(key="mine", limits=LimitsConfig(requests=1))}
    tropilla = await gateway(double, accounts=msgspec.structs.replace(kept, keys=keys))
    mine = {"Authorization": "Bearer mine"}
    assert (await chat(tropilla, mine | KEY)).status == 200
    assert (await chat(tropilla, mine)).status == 429
    assert replayed(await chat(tropilla, mine | KEY))
    assert (await chat(tropilla, mine | {"Idempotency-Key": "new"})).status == 429


@pytest.mark.parametrize(
    ("method", "path", "body"),
    [
        ("POST", PATH, CHAT | {"seed": 1}),
        ("POST", "/chat/completions", CHAT),
        ("POST", f"{PATH}?a=1", CHAT),
        ("POST", PATH, CHAT | {"stream": True}),
        ("POST", "/v1/embeddings", {"model": "m", "input": "a"}),
    ],
)
async def test_another_request_under_the_same_key(
    gateway: Serve, double: Double, kept: AccountsConfig, method: str, path: str, body: Any
) -> None:
    double.on(PATH, streams(*told("Hi")))
    tropilla = await gateway(double, accounts=kept)
    assert (await chat(tropilla)).status == 200
    refused = await tropilla.ask(method, path, body, KEY)
    assert refused.status == 409
    assert refused.error["code"] == "idempotency_key_reused"
    assert refused.error["param"] == "Idempotency-Key"
    assert refused.headers["x-should-retry"] == "false"  # SDKs ask again after a 409
    assert len(double.requests) == 1
    assert replayed(await chat(tropilla))


@pytest.mark.parametrize("key", ["", "a b", "x" * 256, "tr\u00e4ume", "a, b", "\t"])
async def test_what_is_no_key(gateway: Serve, double: Double, key: str) -> None:
    tropilla = await gateway(double)
    raw = await tropilla.connect()
    body = msgspec.json.encode(CHAT)
    head = f"POST {PATH} HTTP/1.1\r\nHost: t\r\nContent-Length: {len(body)}\r\n"
    await raw.send(f"{head}Idempotency-Key: {key}\r\n\r\n".encode() + body)
    refused = await raw.answer()
    assert (refused.status, refused.error["param"]) == (400, "Idempotency-Key")
    assert double.requests == []


async def test_two_keys_are_none(gateway: Serve, double: Double) -> None:
    tropilla = await gateway(double)
    raw = await tropilla.connect()
    await raw.post(PATH, CHAT, "Idempotency-Key: a", "Idempotency-Key: b")
    assert (await raw.answer()).status == 400


async def test_every_sign_of_ascii_may_be_in_a_key(gateway: Serve, double: Double) -> None:
    double.on(PATH, streams(*told("Hi")))
    tropilla = await gateway(double)
    key = {"Idempotency-Key": "".join(map(chr, range(0x21, 0x7F)))}
    assert (await chat(tropilla, key)).status == 200
    assert replayed(await chat(tropilla, key))
    assert replayed(await chat(tropilla, key))
    assert (await chat(tropilla, {"Idempotency-Key": "k" * 255})).status == 200


async def test_keys_of_others_are_others(
    gateway: Serve, double: Double, kept: AccountsConfig
) -> None:
    double.on(PATH, streams(*told("Hi")))
    tropilla = await gateway(double, accounts=kept, api_keys=("one", "two"))
    for key in ("one", "two"):
        assert not replayed(await chat(tropilla, KEY | {"Authorization": f"Bearer {key}"}))
    assert len(double.requests) == 2
    # Nor do their parameters meet.
    other = {"Authorization": "Bearer two", "Idempotency-Key": "x"}
    assert (await chat(tropilla, other, seed=3)).status == 200
    assert (await chat(tropilla, other | {"Authorization": "Bearer one"})).status == 200


async def test_who_may_not_ask_any_more_is_told_nothing(
    gateway: Serve, double: Double, managed: AccountsConfig
) -> None:
    double.on(PATH, says(5, 5))
    tropilla = await gateway(double, accounts=managed)
    made = (await tropilla.ask("POST", "/api/keys", {"name": "a"}, ADMIN)).json
    mine = {"Authorization": f"Bearer {made['key']}"} | KEY
    assert (await chat(tropilla, mine)).status == 200
    assert replayed(await chat(tropilla, mine))
    # Another model is not what was answered.
    changes = f"/api/keys/{made['id']}"
    await tropilla.ask("POST", changes, {"models": ["other"]}, ADMIN)
    await tropilla.has(lambda: accounts(tropilla).stored[0].terms.models == ("other",))
    assert (await chat(tropilla, mine)).status == 404
    await tropilla.ask("POST", changes, {"models": None}, ADMIN)
    await tropilla.has(lambda: accounts(tropilla).stored[0].terms.models is None)
    assert replayed(await chat(tropilla, mine))
    await tropilla.ask("DELETE", changes, None, ADMIN)
    await tropilla.has(lambda: accounts(tropilla).stored[0].revoked is not None)
    assert (await chat(tropilla, mine)).status == 401


async def test_what_is_too_old_is_done_anew(
    gateway: Serve, double: Double, kept: AccountsConfig, monkeypatch: pytest.MonkeyPatch
) -> None:
    double.on(PATH, streams(*told("Hi")))
    tropilla = await gateway(double, accounts=kept)
    assert not replayed(await chat(tropilla))
    late = SimpleNamespace(time=lambda: time.time() + 86390, monotonic=time.monotonic)
    monkeypatch.setattr(repeats, "time", late)
    assert replayed(await chat(tropilla))
    late.time = lambda: time.time() + 86401
    assert not replayed(await chat(tropilla, seed=5))
    assert len(double.requests) == 2


async def test_without_a_time_to_live_the_header_says_nothing(
    gateway: Serve, double: Double, kept: AccountsConfig
) -> None:
    double.on(PATH, streams(*told("Hi")))
    tropilla = await gateway(double, accounts=kept)
    await chat(tropilla)
    before = tropilla.gateway._config
    off = msgspec.structs.replace(before, repeats=RepeatsConfig(ttl=0))
    tropilla.gateway.reload(off)
    assert not replayed(await chat(tropilla, seed=1))
    assert (await chat(tropilla, {"Idempotency-Key": ""})).status == 200
    tropilla.gateway.reload(before)
    assert replayed(await chat(tropilla))


@pytest.mark.parametrize("stream", [False, True])
async def test_an_answer_that_is_too_long_is_not_kept(
    gateway: Serve, double: Double, kept: AccountsConfig, caplog: Any, *, stream: bool
) -> None:
    double.on(PATH, streams(*told(*["word "] * 200)))
    tropilla = await gateway(double, accounts=kept, repeats=RepeatsConfig(max_answer=600))
    for _ in range(2):
        answer = await chat(tropilla, stream=stream)
        assert answer.status == 200
        assert not replayed(answer)
    assert len(double.requests) == 2
    assert "of more than 600 bytes" in caplog.text
    await open_keys(tropilla, 0)


def refused(status: int) -> Any:
    error = {"code": status, "message": "No.", "type": "server_error"}
    return answers(status, msgspec.json.encode({"error": error}))


@pytest.mark.parametrize("stream", [False, True])
@pytest.mark.parametrize(
    ("script", "status"),
    [
        (refused(500), 502), (refused(429), 429), (refused(400), 400),
        (breaks(chunk("Hel")), None), (answers(200, b"<html>", "text/html"), 502),
    ],
)  # fmt: skip
async def test_a_failure_is_not_said_again(
    gateway: Serve, double: Double, kept: AccountsConfig, script: Any, status: int | None,
    *, stream: bool,
) -> None:  # fmt: skip
    once = (UpstreamConfig(url=double.url, failures=FailuresConfig(retry=False)),)
    tropilla = await gateway(upstreams=once, accounts=kept, failover=False)
    double.on(PATH, script)
    first = await chat(tropilla, stream=stream)
    assert first.status == (status or (200 if stream else 502))
    asked = len(double.requests)
    double.on(PATH, streams(*told("Hi")))
    again = await chat(tropilla, stream=stream)
    assert again.status == 200
    assert not replayed(again)
    assert b"error" not in again.body
    assert len(double.requests) == asked + 1
    assert replayed(await chat(tropilla, stream=stream))


async def test_what_was_wrong_may_be_mended_under_its_key(
    gateway: Serve, double: Double, shared: AccountsConfig
) -> None:
    double.on(PATH, streams(*told("Hi")))
    gateways = [await gateway(double, accounts=shared) for _ in range(2)]
    for number in range(10):
        # At once, and wherever it is said.
        assert (await chat(gateways[number % 2], temperature=9 + number)).status == 400
    assert (await chat(gateways[0], model="nobody")).status == 404
    assert (await gateways[1].ask("POST", PATH, b"{", KEY)).status == 400
    assert (await chat(gateways[0])).status == 200
    assert (await chat(gateways[1], temperature=9)).status == 409


async def test_what_broke_off_may_be_mended_under_its_key(
    gateway: Serve, double: Double, kept: AccountsConfig
) -> None:
    double.on(PATH, breaks(chunk("Hel")))
    tropilla = await gateway(double, accounts=kept, failover=False)
    assert b"error" in (await chat(tropilla, stream=True)).body
    double.on(PATH, streams(*told("Hi")))
    assert (await chat(tropilla, seed=1)).status == 200


@pytest.mark.parametrize("stream", [False, True])
async def test_an_answer_is_kept_before_its_client_hears_the_end(
    gateway: Serve, double: Double, kept: AccountsConfig, *, stream: bool
) -> None:
    double.on(PATH, streams(*told("Hel", "lo")))
    tropilla = await gateway(double, accounts=kept)
    shelf: Any = tropilla.gateway._repeats._shelf
    keep, heard = shelf.keep, []

    async def noted(*arguments: Any) -> bool:
        (call,) = (one._call for one in tropilla.listener.connections if one._call is not None)
        reply: Any = call.reply
        heard.append((bytes(reply.heard), reply.ended))
        done: bool = await keep(*arguments)
        return done

    shelf.keep = noted
    answer = await chat(tropilla, stream=stream)
    ((before, ended),) = heard
    assert (ended, len(before) < len(answer.body), b"[DONE]" in before) == (False, True, False)
    assert stream or not before
