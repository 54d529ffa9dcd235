"""Several processes that are one gateway: its slots are there once, who dies is replaced."""

from __future__ import annotations

import asyncio
import os
import re
import signal
import sys
import time
from collections.abc import AsyncIterator, Iterator
from pathlib import Path
from typing import Any

import msgspec
import pytest
from click.testing import CliRunner

from conftest import CHAT, Served, Start, served
from doubles.llama import llama
from doubles.upstream import Double, streams, told
from serving import DEADLINE, ask, children, serving
from tropilla.cli import main
from tropilla.config import Config, ModelConfig, UpstreamConfig
from tropilla.upstream.siblings import (
    MOST_UPSTREAMS,
    Shared,
    Siblings,
    TooManyUpstreamsError,
)

pytestmark = [
    pytest.mark.anyio,
    pytest.mark.skipif(sys.platform == "win32", reason="processes share no address there"),
]

MESSAGES = {"messages": CHAT["messages"]}
PATH = "/v1/chat/completions"


@pytest.fixture
def shared() -> Iterator[Shared]:
    """What two processes share."""
    it = Shared(2)
    yield it
    it.close()


@pytest.fixture
async def pair(shared: Shared, double: Double) -> AsyncIterator[tuple[Served, Served]]:
    """Two gateways that share an upstream of two slots, as two processes do."""
    config = Config(
        listen="127.0.0.1:0",
        models={"m": ModelConfig(upstreams=(UpstreamConfig(url=double.url, slots=2),))},
    )
    async with (
        served(config, Siblings(shared, 0)) as one,
        served(config, Siblings(shared, 1)) as other,
    ):
        for it in (one, other):
            await ready(it)
        yield one, other


async def ready(it: Served) -> None:
    await it.until(lambda: all(one.state == "ready" for one in it.fleet.upstreams))


async def test_a_slot_is_given_once(pair: tuple[Served, Served], double: Double) -> None:
    one, other = pair
    asked = [asyncio.create_task(it.chat(stream=True)) for it in (one, one, other, other)]
    exchanges = [await double.arrives() for _ in range(2)]
    await one.has(lambda: one.fleet.pool.waiting + other.fleet.pool.waiting == 2)
    # Whoever holds what, and whoever waits: a slot that one frees is the other's.
    for _ in range(2):
        await exchanges.pop(0).stream(*told("x"))
        exchanges.append(await double.arrives())
        assert len(double.requests) - sum(e.gone.is_set() for e in double.requests) <= 4
    for exchange in exchanges:
        await exchange.stream(*told("x"))
    assert [(await one).status for one in asked] == [200] * 4


async def test_a_slot_that_another_process_frees_wakes(
    pair: tuple[Served, Served], double: Double
) -> None:
    one, other = pair
    first = [asyncio.create_task(one.chat()) for _ in range(2)]
    exchanges = [await double.arrives() for _ in range(2)]
    later = asyncio.create_task(other.chat())
    await other.has(lambda: other.fleet.pool.waiting == 1)
    # No tick may be what wakes it.
    other.fleet._tasks[0].cancel()
    await exchanges[0].stream(*told("x"))
    third = await double.arrives()
    for exchange in (exchanges[1], third):
        await exchange.stream(*told("x"))
    assert (await later).status == 200
    assert [(await it).status for it in first] == [200, 200]


async def test_what_one_process_holds_back_all_do(
    pair: tuple[Served, Served], double: Double
) -> None:
    one, other = pair
    one.fleet.hold_back(one.fleet.upstreams[0], held=True)
    await other.has(lambda: other.fleet.upstreams[0].held_back)
    assert [(await it.chat()).status for it in pair] == [503, 503]
    other.fleet.hold_back(other.fleet.upstreams[0], held=False)
    await one.has(lambda: not one.fleet.upstreams[0].held_back)
    double.on(PATH, streams(*told("x")))
    assert [(await it.chat()).status for it in pair] == [200, 200]


async def test_what_others_hold_is_no_stranger(pair: tuple[Served, Served], double: Double) -> None:
    one, other = pair
    asked = asyncio.create_task(one.chat())
    exchange = await double.arrives()
    upstream = other.fleet.upstreams[0]
    upstream.tells_busy = True
    other.fleet.pool.on_look(upstream.number)
    other.fleet._set(upstream, "ready", None, 1)
    assert other.fleet.candidate(upstream).foreign == 1, "the sibling's, and no other"
    await exchange.stream(*told("x"))
    await asked
    other.fleet._tell_pool(other.fleet.pool.on_tick, other.fleet._now())
    assert other.fleet.candidate(upstream).foreign == 0


async def test_what_an_upstream_has_read_is_told(shared: Shared, doubles: Start) -> None:
    upstreams = tuple([UpstreamConfig(url=(await doubles()).url) for _ in range(2)])
    config = Config(listen="127.0.0.1:0", models={"m": ModelConfig(upstreams=upstreams)})
    message = {"role": "user", "content": "Once upon a time. " * 100}
    async with (
        served(config, Siblings(shared, 0)) as one,
        served(config, Siblings(shared, 1)) as other,
    ):
        for it in (one, other):
            await ready(it)
        task = asyncio.create_task(one.chat(messages=[message]))
        await one.has(lambda: any(u.leases for u in one.fleet.upstreams))
        taken = next(u for u in one.fleet.upstreams if u.leases)
        body = CHAT | {"messages": [message]}

        async def expected() -> list[float]:
            answer = await other.ask("POST", "/api/route", body)
            return [u["cached"] for u in answer.json["upstreams"] if u["name"] == taken.name]

        async with asyncio.timeout(DEADLINE):
            while not (await expected())[0]:
                pass
        assert (await expected())[0] > 0.9
        task.cancel()
        await asyncio.wait([task])


def test_a_column_is_the_same_for_all(shared: Shared) -> None:
    one, other = Siblings(shared, 0), Siblings(shared, 1)
    assert [one.column("a"), one.column("b")] == [0, 1]
    assert [other.column("b"), other.column("c"), other.column("a")] == [1, 2, 0]
    assert one.column("c") == 2
    assert not one.hold(1, 3)
    assert (other.taken(1), one.taken(1), other.taken(0)) == (3, 0, 0)
    assert one.hold(1, 2)
    shared.forget(0)
    assert other.taken(1) == 0
    for number in range(MOST_UPSTREAMS - 3):
        one.column(number)
    with pytest.raises(TooManyUpstreamsError):
        one.column("one more")


# As a user does it.


LINUX = pytest.mark.skipif(sys.platform != "linux", reason="who the children are is read in /proc")


def counts(address: str, count: int) -> None:
    """Wait until so many requests are counted, which must come: that is after they are answered."""
    counted = rf'tropilla_requests_total{{dialect="openai_chat",[^}}]*status="200"}} {count}\.0'
    until = time.monotonic() + DEADLINE
    while not re.search(counted, told := ask(address, "GET", "/metrics")[1].decode()):
        assert time.monotonic() < until, told


@LINUX
def test_whoever_dies_is_replaced_and_all_end_in_order() -> None:
    with (
        llama(4300) as double,
        serving("--upstream", double.url, "--workers", "3") as (process, address, _),
    ):
        assert ask(address, "POST", PATH, MESSAGES)[0] == 200
        counts(address, 1)
        before = children(process.pid)
        assert len(before) == 3
        os.kill(before[0], signal.SIGKILL)
        while len(now := children(process.pid)) < 3 or before[0] in now:
            pass
        for _ in range(6):
            assert ask(address, "POST", PATH, MESSAGES)[0] == 200
        # Whoever is asked tells what all have done, also those that are gone.
        counts(address, 7)
        process.send_signal(signal.SIGTERM)
        assert process.wait(DEADLINE) == 0
        for pid in now:
            with pytest.raises(ProcessLookupError):
                os.kill(pid, 0)


@LINUX
def test_none_stays_behind(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("TMPDIR", str(tmp_path))
    with (
        llama(4300) as double,
        serving("--upstream", double.url, "--workers", "2") as (process, address, _),
    ):
        assert ask(address, "GET", "/v1/models")[0] == 200
        left = children(process.pid)
        process.kill()
        process.wait(DEADLINE)
        for pid in left:
            while Path(f"/proc/{pid}").exists():
                pass


@LINUX
@pytest.mark.parametrize("store", ["none", "sqlite"])
def test_a_response_is_that_of_all_processes(tmp_path: Path, store: str) -> None:
    url = f"sqlite:///{tmp_path}/accounts.db" if store == "sqlite" else store
    with (
        llama(4300) as double,
        serving("--upstream", double.url, "--workers", "2", "--store", url) as (_, address, _),
    ):
        made = response(address)
        for _ in range(12):  # whoever is asked
            assert ask(address, "GET", f"/v1/responses/{made['id']}")[0] == 200
        assert ask(address, "DELETE", f"/v1/responses/{made['id']}")[0] == 200
        for _ in range(12):
            assert ask(address, "GET", f"/v1/responses/{made['id']}")[0] == 404


def response(address: str) -> Any:
    status, body = ask(address, "POST", "/v1/responses", {"input": "Hi", "max_output_tokens": 16})
    assert status == 200, body
    return msgspec.json.decode(body)


@LINUX
@pytest.mark.parametrize("workers", ["1", "2"])
def test_a_response_is_there_after_a_crash(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, workers: str
) -> None:
    monkeypatch.setenv("TMPDIR", str(tmp_path))
    with llama(4300) as double:
        command = [
            "--upstream", double.url, "--workers", workers, "--store",
            f"sqlite:///{tmp_path}/accounts.db",
        ]  # fmt: skip
        with serving(*command) as (process, address, _):
            made = response(address)
            for pid in (process.pid, *children(process.pid)):
                os.kill(pid, signal.SIGKILL)
        with serving(*command) as (_, address, _):
            shown = ask(address, "GET", f"/v1/responses/{made['id']}")
            assert shown[0] == 200
            assert msgspec.json.decode(shown[1]) == made


def test_the_embedded_engine_serves_one() -> None:
    result = CliRunner().invoke(main, ["serve", "--port", "0", "--workers", "2"])
    assert result.exit_code == 2
    assert "the embedded engine serves one process" in result.output
