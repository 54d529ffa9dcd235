"""Keys in the store: how they are made and kept, and how a gateway that runs takes note of them."""

from __future__ import annotations

import math
import stat
from pathlib import Path
from typing import Any

import msgspec
import pytest
from hypothesis import given
from hypothesis import strategies as st

from conftest import CHAT, Answer, Serve, Served
from doubles.upstream import Double, streams, told
from tropilla.accounts.keys import ANYBODY, Keys, made, mistyped
from tropilla.accounts.keys.rights import OPERATOR, authorize
from tropilla.accounts.keys.ring import Ring, known, open_ring, read_terms
from tropilla.accounts.store import Store, StoreError, open_store
from tropilla.config import AccountsConfig, BudgetConfig, LimitsConfig, TermsConfig
from tropilla.ir import Malformed, ProblemError
from tropilla.server import accounts as accounts_module

pytestmark = pytest.mark.anyio

PATH = "/v1/chat/completions"
SAMPLE = "trp_FZpAsgZ2B27gEob6WblaN8KXJu64ayjZO"
ADMIN = {"Authorization": "Bearer the-admin-key"}


# What a key is.


def test_a_key_has_a_mark_and_no_two_are_alike() -> None:
    keys = {made() for _ in range(500)}
    assert len(keys) == 500
    for key in keys:
        assert key.startswith("trp_")
        assert len(key) == 37
        assert key.removeprefix("trp_").isalnum()
        assert not mistyped(key)


@given(st.data())
def test_a_slip_of_the_pen_is_known_as_one(data: st.DataObject) -> None:
    key = SAMPLE
    at = data.draw(st.integers(4, len(key) - 1))
    other = data.draw(st.sampled_from("0aZ9-_ é").filter(lambda one: one != key[at]))
    wrong = data.draw(
        st.sampled_from((
            key[:at] + other + key[at + 1 :], key[:at], key + other, key[:at] + key[at + 1 :],
        ))
    )  # fmt: skip
    assert mistyped(wrong)


@pytest.mark.parametrize("key", ["", "sk-abc", "k", "Trp_x", "é"])
def test_what_was_never_meant_to_be_one_is_not_mistyped(key: str) -> None:
    assert not mistyped(key)


# How it is kept.


@pytest.fixture
async def store(tmp_path: Path) -> Any:
    one = await open_store(f"sqlite:///{tmp_path}/accounts.db")
    yield one
    await one.close()


@pytest.fixture
async def ring(store: Store) -> Ring:
    return await open_ring(store, None)


def everything(folder: Path) -> bytes:
    """All that is in the files of a folder."""
    return b"".join(file.read_bytes() for file in folder.iterdir())


def find(stored: list[Any], key: str, now: float = 0.0, secret: bytes | None = None) -> Any:
    keys = Keys((), secret=secret)
    keys.stored(known(stored), closed=bool(stored))
    return keys.find({b"authorization": f"Bearer {key}".encode()}, now)


async def test_a_key_is_told_once_and_kept_as_a_digest(ring: Ring, tmp_path: Path) -> None:
    one = await ring.create(OPERATOR, "alice", TermsConfig(team="red"))
    assert one.stored.tail == one.key[-4:]
    found = find(await ring.all(), one.key, secret=ring.secret)
    assert (found.id, found.name, found.terms.team) == (one.stored.id, "alice", "red")
    kept = everything(tmp_path)
    assert b"alice" in kept
    assert one.key.encode() not in kept
    assert one.key[4:20].encode() not in kept
    assert one.key not in repr(await ring.all()) + str(one.stored.shown(0))
    # Without the secret a digest tells nothing.
    assert find(await ring.all(), one.key, secret=b"another") is None


async def test_the_secret_is_a_file_that_only_its_owner_reads(ring: Ring, tmp_path: Path) -> None:
    file = tmp_path / "accounts.db-secret"
    assert stat.S_IMODE(file.stat().st_mode) == 0o600
    assert file.read_bytes() == ring.secret
    assert len(ring.secret) == 32


async def test_keys_under_another_secret_are_no_keys(
    ring: Ring, store: Store, tmp_path: Path
) -> None:
    await ring.create(OPERATOR, "a", TermsConfig())
    file = tmp_path / "accounts.db-secret"
    file.unlink()
    with pytest.raises(StoreError, match="another secret"):
        await open_ring(store, None)
    assert not file.exists(), "a new one would have hidden what is wrong"
    with pytest.raises(StoreError, match="another secret"):
        await open_ring(store, "told" * 8)


async def test_rotating_keeps_the_account_and_the_old_key_for_a_while(ring: Ring) -> None:
    one = await ring.create(OPERATOR, "a", TermsConfig(priority=3))
    other = await ring.rotate(OPERATOR, "a", grace=100)
    now = other.stored.rotated
    assert now is not None
    stored = await ring.all()
    for key, at, lets_in in (
        (other.key, now + 1000, True), (one.key, now + 99, True), (one.key, now + 100, False),
    ):  # fmt: skip
        found = find(stored, key, at, ring.secret)
        assert (found is not None) == lets_in
        assert found is None or (found.id, found.terms.priority) == (one.stored.id, 3)
    third = await ring.rotate(OPERATOR, one.stored.id)
    stored = await ring.all()
    assert find(stored, other.key, now, ring.secret) is None
    assert find(stored, third.key, now, ring.secret) is not None


async def test_who_is_revoked_stays_so_and_leaves_the_name(ring: Ring) -> None:
    one = await ring.create(OPERATOR, "a", TermsConfig())
    await ring.rotate(OPERATOR, "a", grace=1000)
    gone = await ring.revoke(OPERATOR, "a")
    assert gone.state(0) == "revoked"
    assert find(await ring.all(), one.key, secret=ring.secret) is None
    for again in (ring.rotate(OPERATOR, gone.id), ring.change(OPERATOR, gone.id, {"tags": []})):
        with pytest.raises(Malformed, match="is revoked"):
            await again
    assert (await ring.revoke(OPERATOR, gone.id)).revoked == gone.revoked
    other = await ring.create(OPERATOR, "a", TermsConfig())
    assert other.stored.id != gone.id
    assert [one.name for one in await ring.all()] == ["a", "a"]


async def test_a_key_that_is_over_lets_nobody_in(ring: Ring) -> None:
    terms = read_terms({"expires": "1970-01-01T00:16:40"})[1]
    one = await ring.create(OPERATOR, "a", terms)
    assert one.stored.terms.expires == "1970-01-01T00:16:40Z"
    assert find([one.stored], one.key, 999.0, ring.secret) is not None
    assert find([one.stored], one.key, 1000.0, ring.secret) is None
    assert (one.stored.state(999), one.stored.state(1000)) == ("active", "expired")


async def test_one_name_is_one_key(ring: Ring) -> None:
    await ring.create(OPERATOR, "a", TermsConfig())
    await ring.create(OPERATOR, "b", TermsConfig())
    with pytest.raises(Malformed, match="already"):
        await ring.create(OPERATOR, "a", TermsConfig())
    with pytest.raises(Malformed, match="already"):
        await ring.change(OPERATOR, "b", {"name": "a"})
    for name in ("", " a", "a\n", "\x1b[1m", "x" * 300, "key_0123456789abcdef"):
        with pytest.raises(Malformed, match="name"):
            await ring.create(OPERATOR, name, TermsConfig())


async def test_what_is_changed_is_what_was_said(ring: Ring) -> None:
    terms = read_terms({"team": "red", "limits": {"requests": 5}, "tags": ["x"]})[1]
    await ring.create(OPERATOR, "a", terms)
    one = await ring.change(OPERATOR, "a", {"limits": {"tokens": 7}, "name": "b", "team": None})
    assert (one.name, one.terms.team, one.terms.tags) == ("b", None, ("x",))
    assert one.terms.limits == LimitsConfig(tokens=7)


BAD = [
    ({"limits": {"requests": -1}}, "limits.requests"),
    ({"limits": {"tokens": 1.5}}, "limits.tokens"),
    ({"limits": {"concurrent": True}}, "limits.concurrent"),
    ({"limits": {"requests": "5"}}, "limits.requests"),
    ({"limits": {"requests": 10**30}}, "limits.requests"),
    ({"limits": {"speed": 1}}, "limits"),
    ({"limits": None}, "limits"),
    ({"budgets": [{"tokens": -1}]}, "budgets.0.tokens"),
    ({"budgets": [{"money": -0.01}]}, "budgets.0.money"),
    ({"budgets": [{"money": float("nan")}]}, "budgets.0.money"),
    ({"budgets": [{"money": float("inf")}]}, "budgets.0.money"),
    ({"budgets": [{"tokens": float("nan")}]}, "budgets.0.tokens"),
    ({"budgets": [{"money": 1, "tokens": 1}]}, "budgets.0"),
    ({"budgets": [{}]}, "budgets.0"),
    ({"budgets": [{"money": 1, "per": "week"}]}, "budgets.0.per"),
    ({"budgets": {"money": 1}}, "budgets"),
    ({"priority": 101}, "priority"),
    ({"priority": float("nan")}, "priority"),
    ({"models": "m"}, "models"),
    ({"models": [""]}, "models.0"),
    ({"models": [5]}, "models.0"),
    ({"models": ["a\nb"]}, "models"),
    ({"team": ""}, "team"),
    ({"team": " red"}, "team"),
    ({"expires": "tomorrow"}, "expires"),
    ({"expires": 5}, "expires"),
    ({"tags": ["x" * 300]}, "tags"),
    ({"tags": ["x"] * 1001}, "tags"),
    ({"id": "key_1"}, "id"),
    ({"role": "admin"}, "role"),
    ({"digest": "00"}, "digest"),
    ({"revoked": None}, "revoked"),
    ({"allowed_routes": ["*"]}, "allowed_routes"),
    ({"temp_budget_increase": 5}, "temp_budget_increase"),
]


@pytest.mark.parametrize(("body", "param"), BAD, ids=lambda one: str(one)[:50])
async def test_terms_that_cannot_be(ring: Ring, body: dict[str, Any], param: str) -> None:
    for work in (
        lambda: ring.create(OPERATOR, "b", read_terms(body)[1]),
        lambda: ring.change(OPERATOR, "a", body),
    ):
        await ring.create(OPERATOR, "a", TermsConfig()) if not await ring.all() else None
        before = await ring.all()
        with pytest.raises(Malformed) as refused:
            await work()
        assert refused.value.problem.param == param
        assert await ring.all() == before


@pytest.mark.parametrize("number", [math.nan, math.inf, -math.inf, -1.0])
async def test_no_door_lets_in_a_number_that_is_none(ring: Ring, number: float) -> None:
    for terms in (
        TermsConfig(budgets=(BudgetConfig(money=number),)),
        TermsConfig(limits=LimitsConfig(requests=number)),  # type: ignore[arg-type]
    ):
        with pytest.raises(Malformed, match="finite"):
            await ring.create(OPERATOR, "b", terms)
    assert await ring.all() == []


@pytest.mark.parametrize("role", ["anybody", "static", "account"])
async def test_nobody_but_the_admin_gives(ring: Ring, role: Any) -> None:
    await ring.create(OPERATOR, "a", TermsConfig())
    actor = msgspec.structs.replace(ANYBODY, role=role)
    before = await ring.all()
    for work in (
        ring.create(actor, "b", TermsConfig()), ring.change(actor, "a", {"priority": 1}),
        ring.rotate(actor, "a"), ring.revoke(actor, "a"),
    ):  # fmt: skip
        with pytest.raises(ProblemError) as refused:
            await work
        assert refused.value.problem.kind == "forbidden"
    assert await ring.all() == before
    with pytest.raises(ProblemError):
        authorize(OPERATOR, "ask")


# A gateway that runs.


async def keeping(gateway: Serve, path: Path, double: Double, **more: Any) -> Served:
    double.on(PATH, streams(*told("yes")))
    store = f"sqlite:///{path}/accounts.db"
    return await gateway(
        double, accounts=AccountsConfig(store=store, admin_key="the-admin-key", **more)
    )


async def give(tropilla: Served, name: str, **terms: Any) -> tuple[str, str]:
    answer = await tropilla.ask("POST", "/api/keys", {"name": name, **terms}, ADMIN)
    assert answer.status == 200, answer.body
    return answer.json["id"], answer.json["key"]


async def chat(tropilla: Served, key: str, **fields: Any) -> Answer:
    headers = {"Authorization": f"Bearer {key}"}
    return await tropilla.ask("POST", PATH, CHAT | fields, headers)


async def test_a_key_over_http(gateway: Serve, double: Double, tmp_path: Path) -> None:
    tropilla = await keeping(gateway, tmp_path, double)
    assert (await chat(tropilla, "trp_x")).status == 401
    id_, key = await give(tropilla, "alice", team="red", limits={"requests": 100})
    answer = await chat(tropilla, key)
    assert answer.status == 200
    assert answer.headers["x-ratelimit-remaining-requests"] == "99"
    told = (await tropilla.ask("GET", "/api/keys/alice", headers=ADMIN)).json
    assert (told["id"], told["state"], told["tail"]) == (id_, "active", key[-4:])
    assert "key" not in told
    assert "digest" not in told
    usage = await tropilla.ask("GET", "/api/usage?by=key", headers=ADMIN)
    assert [row["key"] for row in usage.json["data"]] == [id_]
    changed = await tropilla.ask("POST", "/api/keys/alice", {"limits": {"requests": 1}}, ADMIN)
    assert changed.json["limits"]["requests"] == 1
    assert (await chat(tropilla, key)).status == 429
    other = (await tropilla.ask("POST", f"/api/keys/{id_}/rotate", {"grace": 0}, ADMIN)).json
    assert (await chat(tropilla, key)).status == 401
    assert (await chat(tropilla, other["key"])).status == 429, "it is the same account"
    gone = await tropilla.ask("DELETE", f"/api/keys/{id_}", headers=ADMIN)
    assert gone.json["state"] == "revoked"
    assert (await chat(tropilla, other["key"])).status == 401
    listed = (await tropilla.ask("GET", "/api/keys", headers=ADMIN)).json["data"]
    assert [one["state"] for one in listed] == ["revoked"]
    assert (await tropilla.ask("GET", "/api/keys/nobody", headers=ADMIN)).status == 404


async def test_what_is_done_elsewhere_is_noticed(
    gateway: Serve, double: Double, tmp_path: Path
) -> None:
    tropilla = await keeping(gateway, tmp_path, double)
    other = await open_store(f"sqlite:///{tmp_path}/accounts.db")
    ring = await open_ring(other, None)
    one = await ring.create(OPERATOR, "a", TermsConfig())
    kept = tropilla.gateway._accounts
    assert kept is not None
    await tropilla.has(lambda: len(kept.stored) == 1)
    assert (await chat(tropilla, one.key)).status == 200
    await ring.revoke(OPERATOR, "a")
    await tropilla.has(lambda: kept.stored[0].revoked is not None)
    assert (await chat(tropilla, one.key)).status == 401
    await other.close()
    assert accounts_module._LOOK_SECONDS <= 0.5, "within a second"


async def test_a_gateway_that_had_keys_wants_one(
    gateway: Serve, double: Double, tmp_path: Path
) -> None:
    double.on(PATH, streams(*told("yes")))
    config = AccountsConfig(store=f"sqlite:///{tmp_path}/accounts.db")
    store = await open_store(config.store)
    ring = await open_ring(store, None)
    tropilla = await gateway(double, accounts=config)
    assert (await tropilla.chat()).status == 200
    await ring.create(OPERATOR, "a", TermsConfig())
    await ring.revoke(OPERATOR, "a")
    kept = tropilla.gateway._accounts
    assert kept is not None
    await tropilla.has(lambda: bool(kept.stored))
    assert (await tropilla.chat()).status == 401, "the last key is gone, not the lock"
    assert (await (await gateway(double, accounts=config)).chat()).status == 401
    await store.close()


async def test_keys_that_nobody_can_look_up_are_good_for_a_minute(
    gateway: Serve, double: Double, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    tropilla = await keeping(gateway, tmp_path, double)
    _, key = await give(tropilla, "a")
    kept = tropilla.gateway._accounts
    assert kept is not None
    number = kept.ring.number

    async def fails() -> int:
        raise StoreError("gone")

    monkeypatch.setattr(kept.ring, "number", fails)
    assert (await chat(tropilla, key)).status == 200
    monkeypatch.setattr(accounts_module, "_FRESH_SECONDS", 0.0)
    await tropilla.has(lambda: kept.stale)
    refused = await chat(tropilla, key)
    assert (refused.status, refused.error["code"]) == (503, "keys_unavailable")
    monkeypatch.setattr(kept.ring, "number", number)
    await tropilla.has(lambda: not kept.stale)
    assert (await chat(tropilla, key)).status == 200


async def test_a_mistyped_key_is_told_so(gateway: Serve, double: Double, tmp_path: Path) -> None:
    tropilla = await keeping(gateway, tmp_path, double)
    _, key = await give(tropilla, "a")
    assert "mistyped" in (await chat(tropilla, key[:-1])).error["message"]
    assert "mistyped" not in (await chat(tropilla, made())).error["message"]


async def test_without_a_store_there_are_no_keys_to_give(gateway: Serve, double: Double) -> None:
    config = AccountsConfig(store="none", admin_key="the-admin-key")
    tropilla = await gateway(double, accounts=config)
    answer = await tropilla.ask("GET", "/api/keys", headers=ADMIN)
    assert (answer.status, "accounts.store" in answer.error["message"]) == (404, True)
