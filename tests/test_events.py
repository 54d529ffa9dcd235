"""What happens is told, each thing once; `docs/log.md` has all of it."""

from __future__ import annotations

import logging
import re
from pathlib import Path
from typing import Any

import pytest

from conftest import Serve, Start
from doubles.upstream import Double, breaks, chunk, closes, refuses, streams, told
from tropilla.config import Config, FailuresConfig, ModelConfig, QueueConfig, UpstreamConfig

pytestmark = pytest.mark.anyio

ROOT = Path(__file__).parents[1]
PATH = "/v1/chat/completions"
FAILS = refuses(500, "Out\nof order.", "server_error")


class Told:
    """The events that were told."""

    def __init__(self, caplog: pytest.LogCaptureFixture) -> None:
        self._caplog = caplog

    def fields(self, event: str) -> list[dict[str, Any]]:
        """Those of every event of this name."""
        return [
            one.__dict__["fields"]
            for one in self._caplog.records
            if one.__dict__.get("event") == event
        ]


@pytest.fixture
def events(caplog: pytest.LogCaptureFixture) -> Told:
    caplog.set_level(logging.INFO)
    return Told(caplog)


def model(*doubles: Double, **more: Any) -> dict[str, ModelConfig]:
    upstreams = tuple(UpstreamConfig(url=one.url, **more) for one in doubles)
    return {"m": ModelConfig(upstreams=upstreams)}


@pytest.mark.usefixtures("hasty_probes")
async def test_an_upstream_that_goes_and_comes(
    gateway: Serve, double: Double, events: Told
) -> None:
    tropilla = await gateway(double)
    (one,) = tropilla.fleet.upstreams
    assert events.fields("upstream.ready") == [{"upstream": double.url, "models": "m"}]
    await double.stop()
    one.recheck.set()
    await tropilla.until(lambda: one.state == "down")
    (lost,), (down,) = events.fields("upstream.lost"), events.fields("upstream.down")
    assert lost["upstream"] == down["upstream"] == double.url
    assert "cannot be reached" in lost["why"]
    await double.start()
    await tropilla.until(lambda: one.state == "ready")
    assert len(events.fields("upstream.ready")) == 2


async def test_a_quarantine_and_its_end(gateway: Serve, doubles: Start, events: Told) -> None:
    bad, good = await doubles(), await doubles()
    bad.on(PATH, FAILS)
    good.on(PATH, streams(*told("x")))
    failures = FailuresConfig(tolerated=1, out=0.001, most_out=0.001)
    tropilla = await gateway(models=model(bad, good, failures=failures))
    while not bad.requests:
        assert (await tropilla.chat()).status == 200
    (out,) = events.fields("upstream.quarantined")
    assert out["upstream"] == bad.url
    (again,) = events.fields("request.retried")
    assert again == {"upstream": bad.url, "why": "Out\nof order."}
    await tropilla.has(lambda: bool(events.fields("upstream.back")))
    assert events.fields("upstream.back") == [{"upstream": bad.url}]


async def test_a_stream_that_goes_on(gateway: Serve, doubles: Start, events: Told) -> None:
    one, two = await doubles(), await doubles()
    for double in (one, two):
        double.on(PATH, breaks(chunk("Once")))
        double.on("/apply-template", closes)
    tropilla = await gateway(models=model(one, two))
    assert (await tropilla.chat(stream=True)).status == 200
    (over,) = events.fields("request.failed_over")
    assert "broke off" in over["why"]


async def test_refusals_of_many_are_one_line(gateway: Serve, double: Double, events: Told) -> None:
    upstreams = (UpstreamConfig(url=double.url, slots=1),)
    tropilla = await gateway(
        models={"m": ModelConfig(upstreams=upstreams)}, queue=QueueConfig(size=0)
    )
    raw = await tropilla.connect()
    await raw.post(PATH, {"model": "m", "messages": [{"role": "user", "content": "x"}]})
    await double.arrives()
    for _ in range(20):
        assert (await tropilla.chat()).status == 503
    (refused,) = events.fields("request.refused")
    assert (refused["status"], refused["times"]) == (503, 1)
    assert "All slots are taken" in refused["why"]


async def test_new_settings(gateway: Serve, doubles: Start, events: Told) -> None:
    one, two = await doubles(), await doubles()
    tropilla = await gateway(models=model(one))
    tropilla.gateway.reload(Config(models=model(two)))
    await tropilla.has(lambda: bool(events.fields("upstream.left")))
    assert events.fields("upstream.left") == [{"upstream": one.url}]


def test_the_page_has_every_event() -> None:
    source = "".join(path.read_text(encoding="utf-8") for path in (ROOT / "src").rglob("*.py"))
    page = (ROOT / "docs" / "log.md").read_text(encoding="utf-8")
    listed = set(re.findall(r"^\| `([a-z_.]+)` \|", page, re.MULTILINE))
    called = re.findall(r'\blog\.(?:info|warning|error|defect)\(\s*"([a-z_.]+)"', source)
    assert len(called) > 15
    assert set(called) <= listed
    assert {one for one in listed if f'"{one}"' not in source} == set()
