"""A gateway that is killed, hangs or ends, and a store that is away: nothing is done twice."""

from __future__ import annotations

import asyncio
import signal
import time
from pathlib import Path
from types import SimpleNamespace
from typing import Any

import msgspec
import pytest

from conftest import CHAT, Raw, Serve, served
from doubles.upstream import DEADLINE, Double, chunk, streams, told
from repeats.asking import KEY, PATH, accounts, chat, open_keys, replayed
from serving import POSIX, serving
from tropilla.accounts.repeats import Found, Name, Shelf
from tropilla.accounts.store import StoreError
from tropilla.config import AccountsConfig, Config, RepeatsConfig, UpstreamConfig
from tropilla.server import repeats

pytestmark = pytest.mark.anyio


class Looks:
    """Time passes with each look at a shelf; before it is a beat, as long as somebody lives."""

    def __init__(self, monkeypatch: pytest.MonkeyPatch) -> None:
        self.lives = True
        self.count = 0
        claim, token, own = Shelf.claim, "", self

        async def look(shelf: Shelf, name: Name, mark: str, new: str, since: float) -> Found | None:
            nonlocal token
            if token and own.lives:
                await shelf.beat([(name, token)])
            found = await claim(shelf, name, mark, new, since)
            if found is not None:
                own.count, token = own.count + 1, found.token
            return found

        monkeypatch.setattr(Shelf, "claim", look)
        monkeypatch.setattr(repeats, "_LOOK_SECONDS", 0)
        monkeypatch.setattr(repeats, "_BEAT_SECONDS", 3600)
        now = SimpleNamespace(time=time.time, monotonic=lambda: self.count * 6.0)
        monkeypatch.setattr(repeats, "time", now)


async def test_what_lives_is_waited_for_and_what_is_dead_is_done_anew(
    gateway: Serve, double: Double, shared: AccountsConfig, monkeypatch: pytest.MonkeyPatch,
    caplog: Any,
) -> None:  # fmt: skip
    looks = Looks(monkeypatch)
    gateways = [await gateway(double, accounts=shared) for _ in range(2)]
    first = asyncio.create_task(chat(gateways[0]))
    exchange = await double.arrives()
    second = asyncio.create_task(chat(gateways[1]))
    await gateways[1].has(lambda: looks.count > 20)
    assert len(double.requests) == 1
    looks.lives = False  # as if that process hung
    anew = await double.arrives()
    await anew.stream(*told("anew"))
    assert b"anew" in (await second).body
    # What comes back has its own answer, and the others have the one that is kept.
    await exchange.stream(*told("late"))
    late = await first
    assert (late.status, b"late" in late.body) == (200, True)
    assert "done a second time" in caplog.text
    for one in gateways:
        again = await chat(one)
        assert replayed(again)
        assert b"anew" in again.body


async def test_a_gateway_gives_signs_of_life(
    gateway: Serve, double: Double, shared: AccountsConfig, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(repeats, "_BEAT_SECONDS", 0.01)
    tropilla = await gateway(double, accounts=shared)
    first = asyncio.create_task(chat(tropilla))
    exchange = await double.arrives()
    beats = 0
    async with asyncio.timeout(DEADLINE):
        while beats < 3:
            ((beats,),) = await accounts(tropilla).store.read("SELECT beat FROM repeats")
    await exchange.stream(*told("Hi"))
    assert (await first).status == 200
    assert tropilla.gateway._repeats._beating is not None
    await asyncio.wait_for(tropilla.gateway._repeats._beating, DEADLINE)
    assert replayed(await chat(tropilla))


@POSIX
@pytest.mark.parametrize("where", ["before the first byte", "in the middle", "after the end"])
async def test_a_gateway_is_killed(
    gateway: Serve, double: Double, shared: AccountsConfig, monkeypatch: pytest.MonkeyPatch,
    where: str,
) -> None:  # fmt: skip
    body = CHAT | {"stream": True}
    with serving("--store", str(shared.store), "--upstream", double.url) as (process, address, _):
        host, _, port = address.rpartition(":")
        raw = Raw(*await asyncio.open_connection(host, int(port)))
        await raw.post(PATH, body, f"Idempotency-Key: {KEY['Idempotency-Key']}")
        exchange = await double.arrives()
        heard = b""
        if where != "before the first byte":
            await exchange.head()
            await exchange.send(chunk("Once"))
            await raw.see(b"Once")
        if where == "after the end":
            for piece in told(" upon")[:-1]:
                await exchange.send(piece)
            await exchange.send(b"data: [DONE]\n\n")
            await raw.see(b"[DONE]")
            heard = (await raw.answer()).body
        process.send_signal(signal.SIGKILL)
        await asyncio.to_thread(process.wait, DEADLINE)
        raw.leave()
    monkeypatch.setattr(repeats, "_DEAD_SECONDS", 0.0)
    tropilla = await gateway(double, accounts=shared)
    if where == "after the end":
        again = await tropilla.ask("POST", PATH, body, KEY)
        assert (replayed(again), again.body) == (True, heard)
        assert len(double.requests) == 1
        return
    double.on(PATH, streams(*told("anew")))
    done = await tropilla.ask("POST", PATH, body, KEY)
    assert (done.status, replayed(done), done.text) == (200, False, "anew")
    assert replayed(await tropilla.ask("POST", PATH, body, KEY))
    assert len(double.requests) == 2


class Away:
    """A store that is away while it is told to be."""

    def __init__(self, monkeypatch: pytest.MonkeyPatch) -> None:
        self.away = False
        monkeypatch.setattr(repeats, "_RETRY_SECONDS", 0.01)
        for name in ("claim", "keep", "release", "beat"):
            self._break(monkeypatch, name)

    def _break(self, monkeypatch: pytest.MonkeyPatch, name: str) -> None:
        real = getattr(Shelf, name)

        async def call(*arguments: Any) -> Any:
            if self.away:
                raise StoreError("It is away.")
            return await real(*arguments)

        monkeypatch.setattr(Shelf, name, call)


async def test_where_nobody_can_tell_nothing_is_done_twice(
    gateway: Serve, double: Double, shared: AccountsConfig, monkeypatch: pytest.MonkeyPatch
) -> None:
    away = Away(monkeypatch)
    double.on(PATH, streams(*told("Hi")))
    tropilla = await gateway(double, accounts=shared)
    assert not replayed(await chat(tropilla))
    away.away = True
    for key in (KEY, {"Idempotency-Key": "new"}):
        one = await chat(tropilla, key)
        assert (one.status, one.error["code"]) == (503, "repeats_unavailable")
        assert one.headers["retry-after"] == "5"
    assert len(double.requests) == 1
    assert (await chat(tropilla, {})).status == 200
    away.away = False
    assert replayed(await chat(tropilla))
    assert not replayed(await chat(tropilla, {"Idempotency-Key": "new"}))


async def test_an_answer_waits_for_a_store_that_fails_at_its_end(
    gateway: Serve, double: Double, shared: AccountsConfig, monkeypatch: pytest.MonkeyPatch
) -> None:
    away = Away(monkeypatch)
    gateways = [await gateway(double, accounts=shared) for _ in range(2)]
    first = asyncio.create_task(chat(gateways[0]))
    exchange = await double.arrives()
    away.away = True
    await exchange.stream(*told("Hi"))
    answer = await first
    assert answer.status == 200
    # Who has it tells it meanwhile; who has not does not do it again.
    assert replayed(await chat(gateways[0]))
    assert (await chat(gateways[1])).status == 503
    away.away = False
    await open_keys(gateways[0], 0)
    again = await chat(gateways[1])
    assert (replayed(again), again.body) == (True, answer.body)
    assert len(double.requests) == 1


async def test_not_more_waits_for_a_store_than_may_be_kept(
    gateway: Serve, double: Double, shared: AccountsConfig, monkeypatch: pytest.MonkeyPatch,
    caplog: Any,
) -> None:  # fmt: skip
    away = Away(monkeypatch)
    tropilla = await gateway(double, accounts=shared, repeats=RepeatsConfig(max_bytes=10))
    first = asyncio.create_task(chat(tropilla))
    exchange = await double.arrives()
    away.away = True
    await exchange.stream(*told("Hi"))
    assert (await first).status == 200
    await open_keys(tropilla, 0)
    assert "too many answers wait" in caplog.text


async def test_a_gateway_that_ends_leaves_nothing_behind(
    gateway: Serve, double: Double, shared: AccountsConfig
) -> None:
    ends, stays = [await gateway(double, accounts=shared) for _ in range(2)]
    task = asyncio.create_task(chat(ends))
    await double.arrives()
    ends.listener.give_up()
    assert (await task).status == 503
    await ends.gateway._repeats.close()
    assert await accounts(stays).store.read("SELECT * FROM repeats") == []
    double.on(PATH, streams(*told("Hi")))
    assert (await chat(stays)).status == 200


@pytest.mark.parametrize("left", [False, True])
async def test_what_is_too_old_does_not_stay(
    gateway: Serve, double: Double, kept: AccountsConfig, monkeypatch: pytest.MonkeyPatch,
    *, left: bool,
) -> None:  # fmt: skip
    monkeypatch.setattr(repeats, "_SWEEP_SECONDS", 0.01)
    double.on(PATH, streams(*told("Hi")))
    tropilla = await gateway(double, accounts=kept)
    await chat(tropilla)
    store = tropilla.gateway._repeats._shelf._store
    assert len(await store.read("SELECT * FROM repeats")) == 1
    off = msgspec.structs.replace(tropilla.gateway._config, repeats=RepeatsConfig(ttl=0))
    if left and kept.store != "none":
        # By a gateway that is not there any more: nobody says anything under a key here.
        await tropilla.gateway._repeats.close()
        await gateway(double, accounts=kept, repeats=off.repeats)
    else:
        tropilla.gateway.reload(off)
    async with asyncio.timeout(DEADLINE):
        while await store.read("SELECT * FROM repeats"):
            pass


@pytest.mark.parametrize("named", ["auto", "none", "sqlite"])
async def test_it_is_swept_only_where_something_may_be(
    double: Double, tmp_path: Path, monkeypatch: pytest.MonkeyPatch, named: str
) -> None:
    swept = asyncio.Event()

    async def sweep(_: Shelf) -> int:
        swept.set()
        return 0

    monkeypatch.setattr(Shelf, "sweep", sweep)
    monkeypatch.setenv("XDG_STATE_HOME", str(tmp_path))
    store = f"sqlite:///{tmp_path}/accounts.db" if named == "sqlite" else named
    config = Config(
        listen="127.0.0.1:0", upstreams=(UpstreamConfig(url=double.url),),
        accounts=AccountsConfig(store=store),
    )  # fmt: skip
    double.on(PATH, streams(*told("Hi")))
    async with served(config, opens=True) as tropilla:
        await tropilla.until(lambda: tropilla.fleet.upstreams[0].state == "ready")
        assert (await chat(tropilla, {})).status == 200
        assert swept.is_set() == (named == "sqlite")
        assert (await chat(tropilla)).status == 200
        await asyncio.wait_for(swept.wait(), DEADLINE)


async def test_what_is_in_memory_ends_with_its_gateway(double: Double) -> None:
    double.on(PATH, streams(*told("Hi")))
    config = Config(
        listen="127.0.0.1:0", upstreams=(UpstreamConfig(url=double.url),),
        accounts=AccountsConfig(store="none"),
    )  # fmt: skip
    async with served(config) as tropilla:
        memory = tropilla.gateway._memory
        await tropilla.until(lambda: tropilla.fleet.upstreams[0].state == "ready")
        assert memory._store is None  # nobody has needed it
        assert (await chat(tropilla)).status == 200
        assert memory._store is not None
    assert memory._store is None
