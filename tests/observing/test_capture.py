"""What is kept of what was asked: only where it is wanted, for its time, and no secret."""

from __future__ import annotations

import asyncio
from typing import Any

import msgspec
import pytest

from conftest import Serve, Served
from doubles.upstream import DEADLINE, Double, streams, told
from tropilla.capture import MOST, Capture, Captured, kept
from tropilla.config import CaptureConfig, UpstreamConfig

pytestmark = pytest.mark.anyio

PATH = "/v1/chat/completions"
BODY = {"model": "m", "messages": [{"role": "user", "content": "Where are the llamas?"}]}


def capture(tropilla: Served) -> Capture:
    return tropilla.gateway._ui.capture


async def asked(tropilla: Served, **headers: str) -> Captured | None:
    answer = await tropilla.ask("POST", PATH, BODY, headers)
    assert answer.status == 200
    return capture(tropilla).find(answer.headers["x-request-id"])


async def test_nothing_is_kept_unless_it_is_said(gateway: Serve, double: Double) -> None:
    double.on(PATH, streams(*told("Hello")))
    tropilla = await gateway(double)
    assert await asked(tropilla) is None


async def test_both_sides_are_kept_without_secrets(gateway: Serve, double: Double) -> None:
    double.on(PATH, streams(*told("Hello")))
    upstream = UpstreamConfig(url=double.url, api_key="of-the-upstream")
    tropilla = await gateway(
        upstreams=(upstream,), capture=CaptureConfig(enabled=True), api_keys=("sesame-key",)
    )
    found = await asked(tropilla, Authorization="Bearer sesame-key", Cookie="c=sesame")
    assert found is not None
    assert msgspec.json.decode(found.body.text) == BODY
    assert found.body.whole
    (one,) = found.asked
    assert (one.place, one.method, one.path) == (double.url, "POST", PATH)
    sent = msgspec.json.decode(one.body.text)
    assert (sent["messages"], sent["stream"]) == (BODY["messages"], True)
    shown = repr((found.headers, found.body, found.asked))
    assert "sesame" not in shown
    assert "of-the-upstream" not in shown


async def test_what_one_asks_is_not_anothers(gateway: Serve, double: Double) -> None:
    double.on(PATH, streams(*told("Hello")))
    tropilla = await gateway(double, capture=CaptureConfig(enabled=True))
    found = await asyncio.gather(*(asked(tropilla) for _ in range(4)))
    assert [len(one.asked) for one in found if one is not None] == [1] * 4


async def test_it_is_gone_after_its_time(gateway: Serve, double: Double) -> None:
    double.on(PATH, streams(*told("Hello")))
    tropilla = await gateway(double, capture=CaptureConfig(enabled=True, seconds=0.05))
    await asked(tropilla)
    async with asyncio.timeout(DEADLINE):
        while capture(tropilla)._kept:  # noqa: ASYNC110 - nobody looks: it goes by itself
            await asyncio.sleep(0.01)
    assert capture(tropilla)._timer is None


async def test_other_settings_end_it_at_once(gateway: Serve, double: Double) -> None:
    double.on(PATH, streams(*told("Hello")))
    tropilla = await gateway(double, capture=CaptureConfig(enabled=True))
    await asked(tropilla)
    config = msgspec.structs.replace(tropilla.gateway._config, capture=CaptureConfig())
    tropilla.gateway.reload(config)
    assert not capture(tropilla)._kept
    assert await asked(tropilla) is None


async def test_it_is_bounded() -> None:
    it = Capture(CaptureConfig(enabled=True, max_bytes=10))
    for number in range(MOST + 3):
        it.begin(str(number), {}, b"x" * 100)
    assert it.find("2") is None
    one = it.find("3")
    assert one is not None
    assert one.body == ("x" * 10, False)
    for _ in range(100):
        one.asks("u", "POST", "/", b"y")
    assert len(one.asked) < 100
    it.close()


@pytest.mark.parametrize(
    ("text", "shown"),
    [
        ("hello", "hello"),
        ("my key is sk-abcdefgh12345678", "my key is sk-***"),
        ("trp_0123456789abcdefghij", "trp_***"),
        ('{"api_key": "a\\"b", "max_tokens": 5}', '{"api_key": "***", "max_tokens": 5}'),
        ('{"Password":"x"}', '{"Password":"***"}'),
        ("data:image/png;base64," + "A" * 600, "data:image/png;base64,*** 600 characters ***"),
        ("a long text " * 100, "a long text " * 100),
    ],
)
def test_what_looks_like_a_secret_is_not_shown(text: str, shown: str) -> None:
    told: Any = kept(text.encode(), 10_000)
    assert told == (shown, text == shown)
