"""A line of the log for every request, and the last lines over HTTP."""

from __future__ import annotations

import asyncio
import io
from typing import Any

import msgspec
import pytest

from conftest import CHAT, Serve, Served
from doubles.upstream import DEADLINE, DONE, Double, chunk, event, streams, told
from tropilla import log
from tropilla.config import AccountsConfig, KeyConfig
from tropilla.observing.journal import Last

pytestmark = pytest.mark.anyio

PATH = "/v1/chat/completions"
TRACE = "0af7651916cd43dd8448eb211c80319c"
USAGE = event({"choices": [], "usage": {
    "prompt_tokens": 7, "completion_tokens": 3, "total_tokens": 10,
    "prompt_tokens_details": {"cached_tokens": 4},
}})  # fmt: skip


@pytest.fixture
def out(monkeypatch: pytest.MonkeyPatch) -> io.StringIO:
    stream = io.StringIO()
    monkeypatch.setattr(log, "out", log.Out(stream, "json"))
    return stream


def lines(tropilla: Served, out: io.StringIO) -> list[dict[str, Any]]:
    """What was written, a line each."""
    tropilla.gateway.journal.write()
    return [msgspec.json.decode(line) for line in out.getvalue().splitlines()]


async def test_a_request_is_a_line(gateway: Serve, double: Double, out: io.StringIO) -> None:
    double.on(PATH, streams(chunk("a"), chunk(None, "stop"), USAGE, DONE))
    keys = {"ours": KeyConfig(key="a-key-that-nobody-may-see")}
    tropilla = await gateway(double, accounts=AccountsConfig(keys=keys))
    answer = await tropilla.ask(
        "POST", PATH, CHAT | {"stream": True},
        {"Authorization": "Bearer a-key-that-nobody-may-see",
         "traceparent": f"00-{TRACE}-b7ad6b7169203331-01"},
    )  # fmt: skip
    assert answer.status == 200
    (line,) = lines(tropilla, out)
    assert {
        "level": "info", "event": "request", "request": answer.headers["x-request-id"],
        "trace": TRACE, "method": "POST", "path": PATH, "status": 200, "dialect": "openai_chat",
        "key": "config:ours", "model": "m", "upstream": double.url, "attempts": 1, "stream": True,
        "finish": "stop", "prompt_tokens": 7, "cached_tokens": 4, "completion_tokens": 3,
    }.items() <= line.items()  # fmt: skip
    assert 0 <= line["first_ms"] <= line["total_ms"]
    assert "nobody-may-see" not in out.getvalue()
    assert "Hello" not in out.getvalue()


async def test_what_a_client_says_forges_no_line(
    gateway: Serve, double: Double, out: io.StringIO, monkeypatch: pytest.MonkeyPatch
) -> None:
    name = 'x"\n{"time":"now"}\x1b[31m\u202e\u2028'
    tropilla = await gateway(double)
    await tropilla.chat(model=name)
    (line,) = lines(tropilla, out)
    assert (line["model"], line["status"], line["level"]) == (name, 404, "warning")
    assert out.getvalue().removesuffix("\n").isprintable()
    words = io.StringIO()
    monkeypatch.setattr(log, "out", log.Out(words, "human"))
    await tropilla.chat(model=name)
    tropilla.gateway.journal.write()
    assert words.getvalue().removesuffix("\n").isprintable()


async def test_looks_at_the_health_are_told_when_they_fail(
    gateway: Serve, double: Double, out: io.StringIO
) -> None:
    tropilla = await gateway(double)
    paths = ("/health", "/health/live", "/health/ready", "/api/health", "/metrics")
    for path in paths:
        assert (await tropilla.ask("GET", path)).status == 200
    assert lines(tropilla, out) == []
    tropilla.gateway.drain()
    assert (await tropilla.ask("GET", "/health")).status == 503
    (line,) = lines(tropilla, out)
    assert (line["path"], line["status"], line["level"]) == ("/health", 503, "error")


async def test_lines_can_be_switched_off_and_on(
    gateway: Serve, double: Double, out: io.StringIO
) -> None:
    tropilla = await gateway(double, log_requests=False)
    double.on(PATH, streams(*told("a")))
    await tropilla.chat()
    assert lines(tropilla, out) == []
    config = msgspec.structs.replace(tropilla.gateway._config, log_requests=True)
    tropilla.gateway.reload(config)
    await tropilla.chat()
    assert len(lines(tropilla, out)) == 1


async def test_a_client_that_left_has_a_line(
    gateway: Serve, double: Double, out: io.StringIO
) -> None:
    tropilla = await gateway(double)
    raw = await tropilla.connect()
    await raw.post(PATH, CHAT | {"stream": True})
    exchange = await double.arrives()
    raw.leave()
    await exchange.left()
    await tropilla.has(tropilla.gateway.idle.is_set)
    (line,) = lines(tropilla, out)
    assert (line["left"], line["level"], line["upstream"]) == (True, "warning", double.url)


async def test_lines_are_written_by_themselves(
    gateway: Serve, double: Double, out: io.StringIO
) -> None:
    tropilla = await gateway(double)
    await tropilla.ask("GET", "/v1/models")
    await tropilla.has(lambda: '"/v1/models"' in out.getvalue())


async def test_the_last_lines_are_told(gateway: Serve, double: Double) -> None:
    tropilla = await gateway(double)
    for path in ("/one", "/two", "/three"):
        await tropilla.ask("GET", path)
    answer = await tropilla.ask("GET", "/api/logs?lines=2")
    assert answer.headers["content-type"] == "application/x-ndjson"
    found = [msgspec.json.decode(line) for line in answer.body.splitlines()]
    assert [line["path"] for line in found] == ["/two", "/three"]
    for query in ("lines=x", "lines=99999999", "follow=maybe", "level=error"):
        refused = await tropilla.ask("GET", f"/api/logs?{query}")
        assert (refused.status, refused.error["param"]) == (400, query.partition("=")[0])


async def test_what_comes_is_followed_until_the_gateway_drains(
    gateway: Serve, double: Double
) -> None:
    tropilla = await gateway(double)
    raw = await tropilla.connect()
    await raw.send(b"GET /api/logs?follow=true&lines=0 HTTP/1.1\r\nHost: t\r\n\r\n")
    await raw.until(b"\r\n\r\n")
    await tropilla.ask("GET", "/after")
    log.warning("upstream.lost", "{why}", why="gone\n")
    await raw.see(b'"/after"')
    await raw.see(b'"why":"gone\\n"')
    tropilla.gateway.drain()
    await asyncio.wait_for(raw.until(b"0\r\n\r\n"), DEADLINE)


def test_only_the_last_lines_are_kept() -> None:
    last = Last(2)
    for line in ("a", "b", "c"):
        last.add(line)
    assert list(last.since()) == [(2, "b"), (3, "c")]
    assert list(last.since(2)) == [(3, "c")]
