"""`tropilla herd` and `tropilla route`, of a gateway that runs."""

from __future__ import annotations

import asyncio
from pathlib import Path

import msgspec
import pytest
from click.testing import CliRunner, Result

from conftest import CHAT, Serve, Start
from doubles.upstream import refuses
from doubles.upstream import told as said
from tropilla.cli import main
from tropilla.config import FailuresConfig, UpstreamConfig

pytestmark = pytest.mark.anyio


async def run(*arguments: str, columns: str = "160") -> Result:
    def invoke() -> Result:
        return CliRunner(env={"COLUMNS": columns}).invoke(main, arguments)

    return await asyncio.to_thread(invoke)


@pytest.mark.usefixtures("hasty_probes")
async def test_the_herd_as_a_table(gateway: Serve, doubles: Start, closed_port: int) -> None:
    double = await doubles(slots=2)
    tropilla = await gateway(double, f"http://127.0.0.1:{closed_port}", ready=False)
    await tropilla.until(
        lambda: [one.state for one in tropilla.fleet.upstreams] == ["ready", "down"]
    )
    asked = asyncio.create_task(tropilla.chat())
    exchange = await double.arrives()
    told = await run("herd", "--url", tropilla.url.removeprefix("http://"), "--once")
    assert told.exit_code == 0
    assert "2 upstreams, 0 waiting" in told.output
    row = next(line for line in told.output.splitlines() if double.url in line)
    assert "ready" in row
    assert "#. 1/2" in row
    assert "cannot be reached" in told.output
    await exchange.stream(*said("x"))
    assert (await asked).status == 200


@pytest.mark.parametrize("width", ["80", "120"])
async def test_what_others_have_said_is_shown_as_it_is(
    gateway: Serve, doubles: Start, width: str
) -> None:
    bad = await doubles("a-model-with-quite-a-long-name-for-a-narrow-terminal", slots=4)
    bad.on("/v1/chat/completions", refuses(500, "[/red] \x1b[2J [fe80::1]", "server_error"))
    rules = FailuresConfig(tolerated=1, out=1000, most_out=1000)
    tropilla = await gateway(upstreams=(UpstreamConfig(url=bad.url, failures=rules),))
    assert (await tropilla.chat(model=bad.models[0])).status == 502
    told = await run("herd", "--url", tropilla.url, "--once", columns=width)
    assert told.exit_code == 0, told.output
    assert bad.url in told.output
    assert "│ out " in told.output
    assert f"{bad.url}: [/red]  [2J [fe80::1]" in told.output
    assert max(len(line) for line in told.output.splitlines()) <= int(width)


async def test_the_herd_for_programs(gateway: Serve, doubles: Start) -> None:
    tropilla = await gateway(await doubles(), api_keys=("one",))
    told = await run("herd", "--url", tropilla.url, "--api-key", "one", "--json")
    assert msgspec.json.decode(told.output)["object"] == "herd"


async def test_where_a_request_would_go(gateway: Serve, doubles: Start, tmp_path: Path) -> None:
    one, two = await doubles(), await doubles("x")
    tropilla = await gateway(one, two)
    body = tmp_path / "request.json"
    body.write_bytes(msgspec.json.encode(CHAT))
    told = await run("route", "--url", tropilla.url, str(body))
    assert (told.exit_code, told.output) == (0, f"{one.url}\n")
    told = await run("route", "--url", tropilla.url, "--explain", str(body))
    assert told.exit_code == 0, told.output
    first, second = (line for line in told.output.splitlines() if "http://" in line)
    assert "->" in first
    assert one.url in first
    assert "other model" in second
    body.write_bytes(msgspec.json.encode(CHAT | {"model": "y"}))
    told = await run("route", "--url", tropilla.url, str(body))
    assert told.exit_code == 1
    assert f"Nobody would take it now.\n  {one.url}: other model\n" in told.output
    body.write_bytes(b'{"model": "m"}')
    told = await run("route", "--url", tropilla.url, str(body))
    assert told.exit_code == 1
    assert "Missing required parameter: 'messages'" in told.output


async def test_nobody_there_and_a_wrong_key(
    gateway: Serve, doubles: Start, closed_port: int
) -> None:
    told = await run("herd", "--url", f"127.0.0.1:{closed_port}")
    assert told.exit_code == 1
    assert f"No gateway answers at http://127.0.0.1:{closed_port}" in told.output
    tropilla = await gateway(await doubles(), api_keys=("one",))
    told = await run("herd", "--url", tropilla.url, "--api-key", "two")
    assert told.exit_code == 1
    assert "Incorrect API key" in told.output
