"""Whether the gateway lives, whether it can serve, and why not."""

from __future__ import annotations

import asyncio
from pathlib import Path
from typing import Any

import pytest

from conftest import Serve, Served, Start
from doubles import databases
from doubles.upstream import DEADLINE, Double
from tropilla.accounts import valkey as valkey_module
from tropilla.accounts.store import StoreError
from tropilla.config import AccountsConfig, KeyConfig

pytestmark = pytest.mark.anyio


async def ready(tropilla: Served) -> tuple[int, Any]:
    answer = await tropilla.ask("GET", "/health/ready")
    return answer.status, answer.json["reasons"]


async def test_all_is_well(gateway: Serve, double: Double) -> None:
    tropilla = await gateway(double)
    assert await ready(tropilla) == (200, [])
    told = (await tropilla.ask("GET", "/api/health")).json
    assert (told["status"], told["live"], told["ready"]) == ("ok", True, True)
    assert told["upstreams"] == {"ready": 1, "all": 1, "not_ready": []}
    assert told["store"] is told["spool"] is told["valkey"] is None


@pytest.mark.usefixtures("hasty_probes")
async def test_nobody_is_there(gateway: Serve, double: Double) -> None:
    await double.stop()
    tropilla = await gateway(double, ready=False)
    (one,) = tropilla.fleet.upstreams
    await tropilla.until(lambda: one.state == "down")
    assert await ready(tropilla) == (503, ["no_upstream"])
    told = (await tropilla.ask("GET", "/api/health")).json
    (odd,) = told["upstreams"]["not_ready"]
    assert (told["status"], odd["name"], odd["state"]) == ("unavailable", double.url, "down")
    assert "cannot be reached" in odd["problem"]
    # It lives: to start it again would mend nothing.
    assert (await tropilla.ask("GET", "/health/live")).status == 200


@pytest.mark.usefixtures("hasty_probes")
async def test_one_of_two_is_there(gateway: Serve, doubles: Start) -> None:
    one, two = await doubles(), await doubles()
    await two.stop()
    tropilla = await gateway(one, two, ready=False)
    await tropilla.until(
        lambda: (
            {u.name: u.state for u in tropilla.fleet.upstreams}
            == {one.url: "ready", two.url: "down"}
        )
    )
    assert await ready(tropilla) == (200, [])
    assert (await tropilla.ask("GET", "/api/health")).json["status"] == "degraded"


async def test_a_gateway_that_ends_lives_and_takes_nothing(gateway: Serve, double: Double) -> None:
    tropilla = await gateway(double)
    tropilla.gateway.drain()
    assert await ready(tropilla) == (503, ["draining"])
    assert (await tropilla.ask("GET", "/health/live")).status == 200


async def test_the_store(
    gateway: Serve, double: Double, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    store = AccountsConfig(store=f"sqlite:///{tmp_path}/accounts.db")
    tropilla = await gateway(double, accounts=store)
    told = (await tropilla.ask("GET", "/api/health")).json
    assert told["store"] == {"works": True, "problem": None}
    assert told["spool"] == {"rows": 0, "full": False}
    accounts = tropilla.gateway._accounts
    assert accounts is not None

    async def fails() -> int:
        raise StoreError("It is on fire.")

    with monkeypatch.context() as patch:
        patch.setattr(accounts.ring, "number", fails)
        told = (await tropilla.ask("GET", "/api/health")).json
    assert (told["status"], told["store"]["problem"]) == ("degraded", "It is on fire.")
    accounts.stale = True
    assert await ready(tropilla) == (503, ["keys_stale"])
    accounts.stale = False
    monkeypatch.setattr(accounts.ledger._spool, "_failed", True)
    assert await ready(tropilla) == (503, ["spool_full"])


async def test_valkey_while_it_is_away_and_once_it_is_back(
    gateway: Serve, double: Double, valkey: databases.Valkey, monkeypatch: pytest.MonkeyPatch
) -> None:
    # A machine that is busy takes it not for gone; its connection tells that.
    monkeypatch.setattr(valkey_module, "_PATIENCE_SECONDS", DEADLINE)
    shared = AccountsConfig(store="none", shared=valkey.database())
    tropilla, _ = [await gateway(double, accounts=shared) for _ in range(2)]
    kept = tropilla.gateway._valkey
    assert kept is not None

    async def told(*, works: bool) -> Any:
        async with asyncio.timeout(DEADLINE):
            while True:
                report = (await tropilla.ask("GET", "/api/health")).json
                if report["valkey"]["works"] is works:
                    return report

    async with asyncio.timeout(DEADLINE):
        while (whole := await told(works=True))["valkey"]["gateways"] < 2:
            pass
    assert (whole["status"], whole["valkey"]["problem"]) == ("ok", None)
    began = [kept.since]
    valkey.stop()
    try:
        away = await told(works=False)
        assert (away["status"], away["ready"], away["reasons"]) == ("degraded", True, [])
        assert away["valkey"]["problem"]
        began.append(kept.since)
        assert await ready(tropilla) == (200, [])
    finally:
        valkey.start()
    back = await told(works=True)
    assert (back["status"], back["valkey"]["problem"]) == ("ok", None)
    began.append(kept.since)
    assert began == sorted(set(began))
    kept.since -= 100
    assert (await told(works=True))["valkey"]["seconds"] >= 100


async def test_details_are_for_those_who_run_it(gateway: Serve, double: Double) -> None:
    keys = {"ours": KeyConfig(key="a-key-of-ours")}
    tropilla = await gateway(double, accounts=AccountsConfig(keys=keys, admin_key="the-admin"))
    for path in ("/health/live", "/health/ready", "/docs"):
        assert (await tropilla.ask("GET", path)).status == 200
    for path in ("/api/health", "/api/logs"):
        for key, status in ((None, 401), ("a-key-of-ours", 403), ("the-admin", 200)):
            headers = None if key is None else {"Authorization": f"Bearer {key}"}
            assert (await tropilla.ask("GET", path, None, headers)).status == status
