"""A name of several addresses: each is a server, and they come and go."""

from __future__ import annotations

import socket

import pytest

from conftest import Serve
from doubles.upstream import Double, streams, told
from tropilla.config import ModelConfig, UpstreamConfig
from tropilla.upstream import addresses
from tropilla.upstream.addresses import at_address, look_up

pytestmark = pytest.mark.anyio

PATH = "/v1/chat/completions"
ONE, TWO = "127.0.0.1", "127.0.0.2"


def another_loopback() -> bool:
    try:
        socket.create_server((TWO, 0)).close()
    except OSError:
        return False
    return True


@pytest.fixture
def book(monkeypatch: pytest.MonkeyPatch) -> dict[str, tuple[str, ...]]:
    """What names mean; looked up again at every chance."""
    known: dict[str, tuple[str, ...]] = {}

    async def look(url: str) -> tuple[str, ...]:
        return known[url]

    monkeypatch.setattr(addresses, "_look_up", look)
    monkeypatch.setattr(addresses, "SECONDS", 0.01)
    return known


@pytest.mark.skipif(not another_loopback(), reason="this system has one loopback address")
async def test_each_address_is_a_server(
    gateway: Serve, double: Double, book: dict[str, tuple[str, ...]]
) -> None:
    other = Double()
    other.port = double.port
    await other.start(host=TWO)
    url = f"http://herd.test:{double.port}"
    for one in (double, other):
        one.on(PATH, streams(*told("x")))
    book[url] = (ONE,)
    config = UpstreamConfig(url=url, each_address=True, api_key="k")
    tropilla = await gateway(models={"m": ModelConfig(upstreams=(config,))})
    assert [one.name for one in tropilla.fleet.upstreams] == [f"{url} ({ONE})"]
    book[url] = (ONE, TWO)
    await tropilla.until(lambda: [one.state for one in tropilla.fleet.upstreams] == ["ready"] * 2)
    for _ in range(4):
        assert (await tropilla.chat()).status == 200
    assert (len(double.requests), len(other.requests)) == (2, 2)
    asked = other.requests[0].headers
    assert (asked["host"], asked["authorization"]) == (f"herd.test:{double.port}", "Bearer k")

    book[url] = ()  # nobody knows now: who was there stays
    looks = tropilla.fleet.looks
    await tropilla.has(lambda: tropilla.fleet.looks > looks)
    assert len(tropilla.fleet.upstreams) == 2
    book[url] = (TWO,)
    await tropilla.has(lambda: [u.name for u in tropilla.fleet.upstreams] == [f"{url} ({TWO})"])
    assert (await tropilla.chat()).headers["x-tropilla-upstream"] == f"{url} ({TWO})"
    await tropilla.has(lambda: not double.connections)
    await other.stop()


async def test_a_name_without_an_address_is_down_until_it_has_one(
    gateway: Serve, double: Double, book: dict[str, tuple[str, ...]]
) -> None:
    url = f"http://herd.invalid:{double.port}"
    double.on(PATH, streams(*told("x")))
    book[url] = ()
    upstreams = (UpstreamConfig(url=url, each_address=True),)
    tropilla = await gateway(models={"m": ModelConfig(upstreams=upstreams)}, ready=False)
    assert [one.name for one in tropilla.fleet.upstreams] == [url]
    assert tropilla.fleet.state() != "ready"
    book[url] = (ONE,)
    await tropilla.has(lambda: [u.name for u in tropilla.fleet.upstreams] == [f"{url} ({ONE})"])
    await tropilla.until(lambda: tropilla.fleet.state() == "ready")
    assert (await tropilla.chat()).status == 200


async def test_names_are_looked_up() -> None:
    local, none = "http://localhost:1", "http://no..name:1"
    found = await look_up({local, none}, {none: ("::2",)})
    assert ONE in found[local]
    assert found[none] == ("::2",)


@pytest.mark.parametrize(
    ("url", "address", "told"),
    [
        ("http://h:80/p", "192.0.2.1", ("http://192.0.2.1:80/p", "h:80")),
        ("http://h/p", "::1", ("http://[::1]/p", "h")),
        ("http://u:p@h:1", "192.0.2.1", ("http://u:p@192.0.2.1:1", "h:1")),
    ],
)
def test_the_url_of_an_address(url: str, address: str, told: tuple[str, str]) -> None:
    assert at_address(url, address) == (told[0], {"Host": told[1]})
