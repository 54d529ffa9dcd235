"""What an outage of PostgreSQL does to gateways that share it: the rows of docs/scale.md."""

from __future__ import annotations

import asyncio
from typing import Any

import pytest

from accounts.test_admission import says
from conftest import CHAT, Answer, Serve, Served
from doubles.databases import Postgres
from doubles.upstream import Double
from serving import DEADLINE
from tropilla.accounts import usage
from tropilla.config import AccountsConfig
from tropilla.server import accounts as accounts_module
from tropilla.server.accounts import Accounts

pytestmark = pytest.mark.anyio

PATH = "/v1/chat/completions"
RESPONSES = "/v1/responses"
ADMIN = {"Authorization": "Bearer the-admin-key"}


@pytest.fixture
def told(postgres: Postgres, tmp_path: Any, double: Double) -> AccountsConfig:
    double.on(PATH, says(5, 5))
    return AccountsConfig(
        store=postgres.database(), spool=tmp_path / "spool", admin_key="the-admin-key",
        secret="a secret of 32 letters and digits",
    )  # fmt: skip


async def give(tropilla: Served) -> tuple[str, str]:
    answer = await tropilla.ask("POST", "/api/keys", {"name": "alice"}, ADMIN)
    return answer.json["id"], answer.json["key"]


async def chat(tropilla: Served, key: str) -> Answer:
    return await tropilla.ask("POST", PATH, CHAT, {"Authorization": f"Bearer {key}"})


def kept(tropilla: Served) -> Accounts:
    found = tropilla.gateway._accounts
    assert found is not None
    return found


async def becomes(tropilla: Served, key: str, status: int) -> None:
    """Ask until it is so, which must come."""
    async with asyncio.timeout(DEADLINE):
        while (await chat(tropilla, key)).status != status:  # noqa: ASYNC110 - another process does it
            await asyncio.sleep(0.05)


async def ids(tropilla: Served) -> list[str]:
    return [row["id"] for row in await usage.rows(kept(tropilla).store, most=1000)]


async def test_a_key_that_is_revoked_is_dead_everywhere(
    gateway: Serve, double: Double, told: AccountsConfig
) -> None:
    one, other = [await gateway(double, accounts=told) for _ in range(2)]
    id_, key = await give(one)
    await becomes(other, key, 200)
    assert (await one.ask("DELETE", f"/api/keys/{id_}", None, ADMIN)).status == 200
    await becomes(other, key, 401)
    assert (await chat(one, key)).status == 401


async def test_rows_wait_for_the_store_and_are_there_once(
    gateway: Serve, double: Double, told: AccountsConfig, postgres: Postgres
) -> None:
    gateways = [await gateway(double, accounts=told) for _ in range(2)]
    _, key = await give(gateways[0])
    await becomes(gateways[1], key, 200)
    heard = []
    postgres.stop()
    try:
        for number in range(10):
            answer = await chat(gateways[number % 2], key)
            assert answer.status == 200
            heard.append(answer.headers["x-request-id"])
        assert all(kept(one).ledger.waiting for one in gateways)
    finally:
        postgres.start()
    for one in gateways:
        await one.has(lambda one=one: not kept(one).ledger.waiting)  # type: ignore[misc]
    # It goes on where it was, without a restart.
    heard.append((await chat(gateways[0], key)).headers["x-request-id"])
    found = await ids(gateways[1])
    assert set(heard) <= set(found)
    assert len(set(found)) == len(found)
    (sums,) = await usage.sums(kept(gateways[0]).store, [])
    assert sums["requests"] == len(found)
    assert (sums["prompt"], sums["written"]) == (5 * len(found), 5 * len(found))


async def test_responses_cannot_be_had_meanwhile_and_then_they_can(
    gateway: Serve, double: Double, told: AccountsConfig, postgres: Postgres
) -> None:
    one, other = [await gateway(double, accounts=told) for _ in range(2)]
    _, key = await give(one)
    await becomes(other, key, 200)
    mine = {"Authorization": f"Bearer {key}"}

    async def respond(tropilla: Served, **fields: Any) -> Answer:
        return await tropilla.ask("POST", RESPONSES, {"input": "Hello!"} | fields, mine)

    first = (await respond(one)).json
    postgres.stop()
    try:
        unkept = await respond(other)
        assert unkept.status == 200
        asked = len(double.requests)
        for refused in (
            await respond(other, previous_response_id=first["id"]),
            await respond(other, store=True),
            await other.ask("GET", f"{RESPONSES}/{first['id']}", None, mine),
            await other.ask("DELETE", f"{RESPONSES}/{first['id']}", None, mine),
        ):
            assert (refused.status, refused.error["code"]) == (503, "store_unavailable")
        assert len(double.requests) == asked
    finally:
        postgres.start()
    assert (await respond(other, previous_response_id=first["id"])).status == 200
    assert (await other.ask("GET", f"{RESPONSES}/{unkept.json['id']}", None, mine)).status == 404


async def test_once_the_spool_is_full_nothing_is_served(
    gateway: Serve, double: Double, told: AccountsConfig, postgres: Postgres
) -> None:
    import msgspec

    tropilla = await gateway(double, accounts=msgspec.structs.replace(told, max_spool=600))
    _, key = await give(tropilla)
    postgres.stop()
    try:
        refused = 0
        for _ in range(8):
            answer = await chat(tropilla, key)
            if answer.status != 200:
                assert (answer.status, answer.error["code"]) == (503, "accounts_unavailable")
                assert answer.headers["retry-after"] == "5"
                refused += 1
        assert 0 < refused < 8
    finally:
        postgres.start()
    await becomes(tropilla, key, 200)
    assert len(await ids(tropilla)) >= 8 - refused


async def test_keys_are_good_for_a_minute_and_then_for_nobody(
    gateway: Serve,
    double: Double,
    told: AccountsConfig,
    postgres: Postgres,
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    tropilla = await gateway(double, accounts=told)
    _, key = await give(tropilla)
    postgres.stop()
    try:
        assert (await chat(tropilla, key)).status == 200
        monkeypatch.setattr(accounts_module, "_FRESH_SECONDS", 0.0)
        await tropilla.has(lambda: kept(tropilla).stale)
        refused = await chat(tropilla, key)
        assert (refused.status, refused.error["code"]) == (503, "keys_unavailable")
        assert (await tropilla.ask("GET", "/health")).status == 200
        monkeypatch.undo()
    finally:
        postgres.start()
    await becomes(tropilla, key, 200)


async def test_a_store_that_hangs_makes_keys_no_younger(
    gateway: Serve, double: Double, told: AccountsConfig, monkeypatch: pytest.MonkeyPatch
) -> None:
    tropilla = await gateway(double, accounts=told)
    _, key = await give(tropilla)

    async def hangs() -> int:
        await asyncio.get_running_loop().create_future()
        return 0

    monkeypatch.setattr(accounts_module, "_LEAST_SECONDS", 0.01)
    monkeypatch.setattr(accounts_module, "_FRESH_SECONDS", 0.0)
    monkeypatch.setattr(kept(tropilla).ring, "number", hangs)
    await tropilla.has(lambda: kept(tropilla).stale)
    assert (await chat(tropilla, key)).status == 503
