"""Other settings, while requests are served."""

from __future__ import annotations

import asyncio
import signal
import time
from pathlib import Path
from typing import Any

import msgspec
import pytest

from conftest import Serve, Served, Start
from doubles.llama import llama
from doubles.upstream import Double, streams, told
from serving import DEADLINE, POSIX, ask, serving
from tropilla.config import Config, ModelConfig, QueueConfig, UpstreamConfig
from tropilla.server import run

pytestmark = pytest.mark.anyio

PATH = "/v1/chat/completions"


def config(*doubles: Double, **more: Any) -> Config:
    upstreams = tuple(UpstreamConfig(url=one.url) for one in doubles)
    return Config(listen="127.0.0.1:0", models={"m": ModelConfig(upstreams=upstreams)}, **more)


def reload(tropilla: Served, to: Config) -> None:
    tropilla.gateway.reload(to)


async def test_a_new_upstream_joins(gateway: Serve, doubles: Start) -> None:
    one, two = await doubles(), await doubles()
    for double in (one, two):
        double.on(PATH, streams(*told("x")))
    tropilla = await gateway(models=config(one).models)
    first = tropilla.fleet.upstreams[0]
    reload(tropilla, config(one, two))
    assert tropilla.fleet.upstreams[0] is first, "what goes on goes on"
    await tropilla.until(lambda: all(one.state == "ready" for one in tropilla.fleet.upstreams))
    for _ in range(4):
        assert (await tropilla.chat()).status == 200
    assert (len(one.requests), len(two.requests)) == (2, 2)


async def test_one_that_is_gone_ends_what_it_has(gateway: Serve, doubles: Start) -> None:
    one, two = await doubles(), await doubles()
    two.on(PATH, streams(*told("from two")))
    tropilla = await gateway(models=config(one).models)
    asked = asyncio.create_task(tropilla.chat(stream=True))
    exchange = await one.arrives()
    reload(tropilla, config(two))
    await tropilla.until(lambda: tropilla.fleet.upstreams[-1].state == "ready")
    assert (await tropilla.chat(stream=True)).text == "from two"
    assert tropilla.fleet.upstreams[0].name == one.url, "it is still at work"
    await exchange.stream(*told("from one"))
    assert (await asked).text == "from one"
    await tropilla.has(lambda: [u.name for u in tropilla.fleet.upstreams] == [two.url])
    await tropilla.has(lambda: not one.connections)
    assert (await tropilla.ask("GET", "/api/herd")).json["upstreams"][0]["name"] == two.url


async def test_one_that_comes_back_while_it_leaves_is_a_new_one(
    gateway: Serve, doubles: Start
) -> None:
    one = await doubles()
    tropilla = await gateway(models=config(one).models)
    asked = asyncio.create_task(tropilla.chat())
    exchange = await one.arrives()
    other = await doubles("other")
    reload(tropilla, config(other))
    reload(tropilla, config(one))
    await tropilla.has(lambda: [u.name for u in tropilla.fleet.upstreams] == [one.url, one.url])
    await exchange.stream(*told("x"))
    assert (await asked).status == 200
    await tropilla.has(lambda: [u.name for u in tropilla.fleet.upstreams] == [one.url])
    one.on(PATH, streams(*told("x")))
    assert (await tropilla.chat()).status == 200


async def test_names_keys_slots_and_the_queue(gateway: Serve, doubles: Start) -> None:
    one = await doubles()
    one.on(PATH, streams(*told("x")))
    tropilla = await gateway(models=config(one).models)
    upstreams = (UpstreamConfig(url=one.url, slots=1, weight=2),)
    other = config(one, api_keys=("k",), queue=QueueConfig(size=3, seconds=7))
    reload(
        tropilla,
        msgspec.structs.replace(
            other, models={"new": ModelConfig(upstreams=upstreams, aliases=("a",))}
        ),
    )
    assert (await tropilla.chat()).status == 401
    key = {"authorization": "Bearer k"}
    herd = (await tropilla.ask("GET", "/api/herd", headers=key)).json
    assert herd["upstreams"][0]["models"] == ["new", "a"]
    assert herd["upstreams"][0]["slots"] == 1
    assert herd["upstreams"][0]["weights"] == {"new": 2, "a": 2}
    assert (tropilla.fleet.pool.rules.queue, tropilla.fleet.pool.rules.queue_seconds) == (3, 7)
    messages = [{"role": "user", "content": "Hello!"}]
    for model, status in (("a", 200), ("m", 404)):
        answer = await tropilla.ask("POST", PATH, {"model": model, "messages": messages}, key)
        assert answer.status == status


async def test_what_was_read_by_a_signal_is_not_read_again(
    gateway: Serve, double: Double, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    tropilla = await gateway(models=config(double).models)
    file, looks, read = tmp_path / "tropilla.yaml", 0, list[str]()
    file.write_text("one", encoding="utf-8")

    def state(path: Path, own: Any = run._state) -> Any:
        nonlocal looks
        looks += 1
        return own(path)

    def again() -> tuple[Config, str]:
        read.append(file.read_text(encoding="utf-8"))
        return config(double), ""

    monkeypatch.setattr(run, "_WATCH_SECONDS", 0)
    monkeypatch.setattr(run, "_state", state)
    running = run._Run(tropilla.gateway, config(double), again)
    watch = asyncio.create_task(running.watch(file))
    await tropilla.has(lambda: looks > 1)
    file.write_text("two, by a signal", encoding="utf-8")
    running.reload()
    before = looks
    await tropilla.has(lambda: looks > before + 2)
    file.write_text("three, by itself", encoding="utf-8")
    await tropilla.has(lambda: len(read) == 2)
    watch.cancel()
    assert read == ["two, by a signal", "three, by itself"]


# As a user does it.


@POSIX
def test_a_file_that_changes_is_read_again(tmp_path: Path) -> None:
    """A good one is served, a bad one refused; by itself, or at once by SIGHUP."""
    file = tmp_path / "tropilla.yaml"

    def models(address: str) -> list[str]:
        return [
            card["id"] for card in msgspec.json.decode(ask(address, "GET", "/v1/models")[1])["data"]
        ]

    def until(address: str, names: list[str]) -> None:
        end = time.monotonic() + DEADLINE
        while models(address) != names:
            assert time.monotonic() < end

    with llama(4300) as double:
        file.write_text(f"models: {{one: '{double.url}'}}\n", encoding="utf-8")
        with serving("--config", str(file)) as (process, address, _):
            until(address, ["one"])
            file.write_text(f"models: {{two: '{double.url}'}}\napi_keys: []\n", encoding="utf-8")
            until(address, ["two"])
            file.write_text("models: {three: [}\n", encoding="utf-8")
            process.send_signal(signal.SIGHUP)
            file.write_text("models: {three: ''}\nlisten: 127.0.0.1:1\n", encoding="utf-8")
            process.send_signal(signal.SIGHUP)
            assert models(address) == ["two"]
            file.write_text(f"models: {{four: '{double.url}'}}\n", encoding="utf-8")
            process.send_signal(signal.SIGHUP)
            until(address, ["four"])
            process.send_signal(signal.SIGTERM)
            _, errors = process.communicate(timeout=DEADLINE)
    assert "-  one:" in errors
    assert "+  two:" in errors
    assert "The new settings are refused, the old ones stay:" in errors
    assert "tropilla.yaml:1:" in errors
    assert "Traceback" not in errors
