"""Who says the same at once waits for one, and whoever leaves takes nothing from the others."""

from __future__ import annotations

import asyncio
from pathlib import Path
from typing import Any

import msgspec
import pytest

from conftest import CHAT, Raw, Serve, Served
from doubles.upstream import DEADLINE, Double, chunk, streams, told
from repeats.asking import ADMIN, KEY, PATH, accounts, chat, replayed, rows, waits
from serving import POSIX, serving
from tropilla.accounts.repeats import Name, Shelf
from tropilla.config import AccountsConfig
from tropilla.server import repeats
from tropilla.telling import Telling

pytestmark = pytest.mark.anyio


async def test_another_request_while_the_first_is_done(
    gateway: Serve, double: Double, shared: AccountsConfig
) -> None:
    gateways = [await gateway(double, accounts=shared) for _ in range(2)]
    first = asyncio.create_task(chat(gateways[0]))
    exchange = await double.arrives()
    for one in gateways:
        assert (await chat(one, seed=1)).status == 409
    await exchange.stream(*told("Hi"))
    assert (await first).status == 200


async def test_whose_key_is_revoked_while_it_waits_is_told_nothing(
    gateway: Serve, double: Double, managed: AccountsConfig
) -> None:
    tropilla = await gateway(double, accounts=managed)
    made = (await tropilla.ask("POST", "/api/keys", {"name": "a"}, ADMIN)).json
    mine = {"Authorization": f"Bearer {made['key']}"} | KEY
    both = [asyncio.create_task(chat(tropilla, mine)) for _ in range(2)]
    exchange = await double.arrives()
    await waits(tropilla, 2)
    await tropilla.ask("DELETE", f"/api/keys/{made['id']}", None, ADMIN)
    await tropilla.has(lambda: accounts(tropilla).stored[0].revoked is not None)
    await exchange.stream(*told("Hi"))
    # Who was let in hears the end of its own.
    assert sorted(one.status for one in await asyncio.gather(*both)) == [200, 401]


@pytest.mark.parametrize("stream", [False, True])
async def test_all_who_say_it_at_once_wait_for_one(
    gateway: Serve, double: Double, kept: AccountsConfig, *, stream: bool
) -> None:
    tropilla = await gateway(double, accounts=kept)
    many = [asyncio.create_task(chat(tropilla, stream=stream)) for _ in range(8)]
    exchange = await double.arrives()
    await waits(tropilla, 8)
    await exchange.stream(*told("Hel", "lo"))
    heard = await asyncio.gather(*many)
    assert {(one.status, one.body) for one in heard} == {(200, heard[0].body)}
    assert sorted(map(replayed, heard)) == [False] + [True] * 7
    assert len(double.requests) == 1
    if kept.store != "none":
        assert await rows(tropilla) == 1


async def test_all_gateways_wait_for_one(
    gateway: Serve, double: Double, shared: AccountsConfig
) -> None:
    gateways = [await gateway(double, accounts=shared) for _ in range(2)]
    many = [asyncio.create_task(chat(gateways[n % 2], stream=True)) for n in range(8)]
    exchange = await double.arrives()
    for one in gateways:
        await waits(one, 4)
    await exchange.stream(*told("Hel", "lo"))
    heard = await asyncio.gather(*many)
    assert {(one.status, one.body) for one in heard} == {(200, heard[0].body)}
    assert sorted(map(replayed, heard)) == [False] + [True] * 7
    assert len(double.requests) == 1
    assert await rows(gateways[0]) == 1


async def test_where_the_first_fails_one_of_those_who_wait_does_it(
    gateway: Serve, double: Double, kept: AccountsConfig
) -> None:
    tropilla = await gateway(double, accounts=kept)
    many = [asyncio.create_task(chat(tropilla)) for _ in range(4)]
    exchange = await double.arrives()
    await waits(tropilla, 4)
    body = msgspec.json.encode({"error": {"message": "No.", "type": "server_error"}})
    await exchange.whole(400, body)
    await (await double.arrives()).stream(*told("Hi"))
    heard = await asyncio.gather(*many)
    assert sorted(one.status for one in heard) == [200, 200, 200, 400]
    assert sum(map(replayed, heard)) == 2
    assert len(double.requests) == 2


@pytest.mark.parametrize("stream", [False, True])
async def test_what_a_client_has_left_is_done_anew(
    gateway: Serve, double: Double, kept: AccountsConfig, *, stream: bool
) -> None:
    tropilla = await gateway(double, accounts=kept)
    raw = await tropilla.connect()
    body = CHAT | {"stream": stream}
    await raw.post(PATH, body, "Idempotency-Key: k")
    exchange = await double.arrives()
    if stream:
        await exchange.head()
        await exchange.send(chunk("Hel"))
        await raw.until(b"Hel")
    key = {"Idempotency-Key": "k"}
    other = asyncio.create_task(tropilla.ask("POST", PATH, body, key))
    await waits(tropilla, 2)
    raw.leave()
    await exchange.left()  # the work ends, as it does without a key
    await (await double.arrives()).stream(*told("anew"))
    answer = await other
    assert answer.status == 200
    assert not replayed(answer)
    assert b"anew" in answer.body
    assert b"Hel" not in answer.body
    assert replayed(await tropilla.ask("POST", PATH, body, key))


async def test_who_waits_and_leaves_disturbs_nobody(
    gateway: Serve, double: Double, kept: AccountsConfig
) -> None:
    tropilla = await gateway(double, accounts=kept)
    first = asyncio.create_task(chat(tropilla))
    exchange = await double.arrives()
    raw = await tropilla.connect()
    await raw.post(PATH, CHAT, f"Idempotency-Key: {KEY['Idempotency-Key']}")
    await waits(tropilla, 2)
    raw.leave()
    await waits(tropilla, 1)
    await exchange.stream(*told("Hi"))
    assert (await first).status == 200
    assert replayed(await chat(tropilla))
    assert len(double.requests) == 1


async def test_who_leaves_at_the_very_end_is_told_the_same_again(
    gateway: Serve, double: Double, shared: AccountsConfig, monkeypatch: pytest.MonkeyPatch
) -> None:
    tropilla = await gateway(double, accounts=shared)
    keeps, keep = asyncio.Event(), Shelf.keep

    async def slowly(*arguments: Any) -> bool:
        if not keeps.is_set():
            keeps.set()
            await asyncio.get_running_loop().create_future()
        return await keep(*arguments)

    monkeypatch.setattr(Shelf, "keep", slowly)
    double.on(PATH, streams(*told("Hi")))
    raw = await tropilla.connect()
    await raw.post(PATH, CHAT, f"Idempotency-Key: {KEY['Idempotency-Key']}")
    await asyncio.wait_for(keeps.wait(), DEADLINE)
    raw.leave()
    assert replayed(await chat(tropilla))
    assert len(double.requests) == 1


async def test_a_sign_of_life_does_not_overtake_the_head(
    gateway: Serve, double: Double, shared: AccountsConfig, monkeypatch: pytest.MonkeyPatch
) -> None:
    # An answer that comes at once is kept before its head is sent.
    tropilla = await gateway(double, accounts=shared)
    keeps, go_on, keep = asyncio.Event(), asyncio.Event(), Shelf.keep
    telling: list[Telling] = []
    enter = Telling.__enter__

    def noted(one: Telling) -> Telling:
        telling.append(one)
        return enter(one)

    async def slowly(*arguments: Any) -> bool:
        keeps.set()
        await go_on.wait()
        return await keep(*arguments)

    monkeypatch.setattr(Telling, "__enter__", noted)
    monkeypatch.setattr(Shelf, "keep", slowly)
    double.on(PATH, streams(b"".join(told("Hi"))))
    task = asyncio.create_task(chat(tropilla, stream=True))
    await asyncio.wait_for(keeps.wait(), DEADLINE)
    sign = asyncio.create_task(telling[0]._give_sign())
    await asyncio.sleep(0)
    go_on.set()
    answer = await task
    await sign
    assert answer.text == "Hi"
    assert replayed(await chat(tropilla, stream=True))


async def test_not_too_much_is_held_for_those_who_wait(
    gateway: Serve, double: Double, kept: AccountsConfig, monkeypatch: pytest.MonkeyPatch
) -> None:
    size = len(msgspec.json.encode(CHAT))
    monkeypatch.setattr(repeats, "MOST_HELD", size * 3)
    tropilla = await gateway(double, accounts=kept)
    held = tropilla.gateway._repeats
    first = asyncio.create_task(chat(tropilla))
    exchange = await double.arrives()
    others = [asyncio.create_task(chat(tropilla)) for _ in range(3)]
    await tropilla.has(lambda: held._held == size * 3)
    one_more = await chat(tropilla)
    assert (one_more.status, one_more.headers["retry-after"]) == (503, "1")
    await exchange.stream(*told("Hi"))
    assert [one.status for one in await asyncio.gather(first, *others)] == [200] * 4
    assert held._held == 0
    assert replayed(await chat(tropilla))


@POSIX
@pytest.mark.parametrize("store", ["none", "sqlite"])
async def test_all_processes_wait_for_one(double: Double, tmp_path: Path, store: str) -> None:
    url = f"sqlite:///{tmp_path}/accounts.db" if store == "sqlite" else store
    command = ["--upstream", double.url, "--workers", "2", "--store", url]
    with serving(*command) as (_, address, _):
        async with asyncio.timeout(DEADLINE):
            # Both have looked at the upstream: both listen.
            while sum(one.path == "/props" for one in double.probes) < 2:  # noqa: ASYNC110 - others do it
                await asyncio.sleep(0.01)
        host, _, port = address.rpartition(":")
        clients = []
        for _ in range(12):  # whoever is asked
            clients.append(Raw(*await asyncio.open_connection(host, int(port))))
            await clients[-1].post(PATH, CHAT, "Idempotency-Key: k")
        await (await double.arrives()).stream(*told("Hi"))
        heard = [await one.answer() for one in clients]
        for one in clients:
            one.leave()
    assert {one.body for one in heard} == {heard[0].body}
    assert sorted(map(replayed, heard)) == [False] + [True] * 11
    assert len(double.requests) == 1


class Releasing:
    """Releases names when it is told to; how many requests were open when it was to."""

    def __init__(self, tropilla: Served, monkeypatch: pytest.MonkeyPatch) -> None:
        self.begun, self.go_on = asyncio.Event(), asyncio.Event()
        self.open = 0
        release, own = Shelf.release, self

        async def slowly(shelf: Shelf, name: Name, token: str) -> None:
            own.open = tropilla.gateway._open
            own.begun.set()
            await own.go_on.wait()
            await release(shelf, name, token)

        monkeypatch.setattr(Shelf, "release", slowly)


async def test_a_key_is_free_before_its_client_hears_why(
    gateway: Serve, double: Double, monkeypatch: pytest.MonkeyPatch
) -> None:
    tropilla = await gateway(double, accounts=AccountsConfig(store="none"))
    releasing = Releasing(tropilla, monkeypatch)
    refused = asyncio.create_task(chat(tropilla, temperature=9))
    await asyncio.wait_for(releasing.begun.wait(), DEADLINE)
    assert releasing.open == 1
    # Whoever is faster than that, and says something else, waits for it.
    double.on(PATH, streams(*told("Hi")))
    other = asyncio.create_task(chat(tropilla))
    await tropilla.has(lambda: other.done() or tropilla.gateway._repeats._held > 0)
    releasing.go_on.set()
    assert (await refused).status == 400
    assert (await other).status == 200
