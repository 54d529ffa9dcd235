"""`tropilla doctor`: one line for each upstream, which says what is wrong and what to do."""

from __future__ import annotations

import asyncio
import subprocess
import sys
from collections.abc import AsyncIterator, Callable
from contextlib import asynccontextmanager
from typing import Any

import msgspec
import pytest
from click.testing import CliRunner

from conftest import Start
from doubles.afs import AfsDouble
from doubles.llama import llama
from doubles.openai import OpenAiDouble
from doubles.upstream import Double, answers
from tropilla import doctor
from tropilla.cli import main
from tropilla.config import Config, ModelConfig, UpstreamConfig
from tropilla.doctor import Finding, examine, table

pytestmark = pytest.mark.anyio

HTML = b"<!doctype html><title>Welcome to nginx!</title>"


async def look(*upstreams: UpstreamConfig | str, **models: Any) -> list[Finding]:
    told = tuple(UpstreamConfig(url=one) if isinstance(one, str) else one for one in upstreams)
    return await examine(Config(upstreams=told, models=models))


async def the(upstream: UpstreamConfig | str) -> Finding:
    (finding,) = await look(upstream)
    assert table([finding]).startswith("no  " if finding.wrong else "ok  ")
    return finding


@asynccontextmanager
async def speaks(say: Callable[[asyncio.StreamWriter], None]) -> AsyncIterator[str]:
    """A server of something else."""

    async def serve(reader: asyncio.StreamReader, writer: asyncio.StreamWriter) -> None:
        say(writer)
        await reader.read()
        writer.close()

    server = await asyncio.start_server(serve, "127.0.0.1", 0)
    async with server:
        yield f"http://127.0.0.1:{server.sockets[0].getsockname()[1]}"
        server.close()


# What is wrong.


async def test_a_dead_port(closed_port: int) -> None:
    found = await the(f"http://127.0.0.1:{closed_port}")
    assert "Connection refused" in found.wrong
    assert "Does it run, and are host, port" in found.wrong


async def test_a_name_that_nobody_has() -> None:
    assert "host name is unknown" in (await the("http://no-such-host.invalid:1")).wrong


@pytest.mark.parametrize("status", [200, 404])
async def test_a_web_page(double: Double, status: int) -> None:
    page = answers(status, HTML, "text/html")
    for path in ("/health", "/v1/models", "/models", "/props", "/model.json", "/no-such-path"):
        double.on(path, page)
    assert "is the address right?" in (await the(double.url)).wrong


async def test_a_page_that_moves_on(double: Double) -> None:
    double.on("/health", answers(302, b""))
    assert "give the address that it redirects to" in (await the(double.url)).wrong


async def test_a_server_that_loads(double: Double) -> None:
    double.health = 503, b'{"error":{"code":503,"message":"Loading model"}}'
    assert (await the(double.url)).wrong == "It loads its model. Wait, and look again."


async def test_a_server_that_says_nothing(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(doctor, "_SECONDS", 0.05)
    async with speaks(lambda _: None) as url:
        found = await the(url)
    assert "says nothing" in found.wrong
    assert "Wait" in found.wrong


async def test_what_is_no_http() -> None:
    async with speaks(lambda writer: writer.write(b"SSH-2.0-OpenSSH_9.2\r\n")) as url:
        found = await the(url)
    assert "not HTTP" in found.wrong or "closed the connection" in found.wrong


async def test_https_where_http_is_spoken(double: Double) -> None:
    found = await the(double.url.replace("http:", "https:"))
    assert "http or https" in found.wrong


async def test_a_wanted_key_and_a_wrong_one(double: Double) -> None:
    double.on("/props", answers(401, b'{"error":{"code":401}}'))
    assert "wants an API key" in (await the(double.url)).wrong
    found = await the(UpstreamConfig(url=double.url, api_key="s3cret"))
    assert "refuses the API key" in found.wrong
    assert "s3cret" not in table([found])


async def test_a_key_that_only_generation_wants() -> None:
    # b1643 to b3897.
    with llama(1915, key="k") as old:
        assert "wants an API key" in (await the(old.url)).wrong
        assert (await the(UpstreamConfig(url=old.url, api_key="k"))).wrong == ""
        assert old.generated == 0


async def test_afs_with_a_wrong_key_and_with_the_right_one() -> None:
    afs = AfsDouble()
    await afs.start()
    wrong = UpstreamConfig(url=afs.url, dialect="afs", api_key="not-it")
    right = UpstreamConfig(url=afs.url, dialect="afs", api_key=afs.key)
    herd = {
        name: ModelConfig(upstreams=(one,)) for name, one in (("wrong", wrong), ("right", right))
    }
    no, yes = await look(**herd)
    await afs.stop()
    assert "refused the key" in no.wrong
    assert "api_key" in no.wrong
    assert "not-it" not in table([no])
    assert (yes.wrong, yes.what, yes.models) == ("", "AFS", ("right",))


async def test_a_model_that_is_not_there() -> None:
    other = OpenAiDouble(models=("a", "b"))
    await other.start()
    here = UpstreamConfig(url=other.url, model="c")
    (found,) = await look(m=ModelConfig(upstreams=(here,)))
    await other.stop()
    assert "no model c" in found.wrong
    assert "It has: a, b." in found.wrong


# What is right.


async def test_servers_of_every_age() -> None:
    with llama(1496) as first, llama(2400) as middle, llama(4300) as late:
        found = await look(first.url, middle.url, late.url)
        assert [one.wrong for one in found] == ["", "", ""]
        assert found[0].what == "llama.cpp before b1561 (2023)"
        assert "classic template" in found[0].hints[0]
        assert "too old for tools" in found[1].hints[0]
        assert "chat" in found[2].can
        assert [one.generated for one in (first, middle, late)] == [0, 0, 0]


async def test_todays_engine_and_one_that_is_no_llama_cpp(engine: str, double: Double) -> None:
    other = OpenAiDouble()
    await other.start()
    mine, theirs, small = await look(engine, other.url, double.url)
    await other.stop()
    assert mine.models == ("m",)
    assert {"chat", "tools", "infill"} <= set(mine.can)
    assert theirs.what == "OpenAI-compatible"
    assert small.what == "llama.cpp b11549-double"
    lines = table([mine, theirs, small]).splitlines()
    assert len({line.index("  m  ") for line in lines}) == 1, "the columns line up"


async def test_a_small_context_is_hinted_at(doubles: Start) -> None:
    double = await doubles(n_ctx=512)
    assert "512 tokens only" in (await the(double.url)).hints[0]


# The command.


def test_the_command_ends_with_one_if_something_is_wrong(closed_port: int) -> None:
    url = f"http://127.0.0.1:{closed_port}"
    run = CliRunner().invoke(main, ["doctor", "--upstream", url])
    assert run.exit_code == 1
    assert run.output.startswith(f"no  {url}  ")
    assert run.output.count("\n") == 1
    run = CliRunner().invoke(main, ["doctor", "--upstream", url, "--json"])
    (finding,) = msgspec.json.decode(run.output)
    assert finding["address"] == url


def test_the_command_looks_at_a_config(tmp_path: Any) -> None:
    file = tmp_path / "tropilla.yaml"
    with llama(4300) as server:
        file.write_text(f"models: {{m: {server.url}}}")
        run = CliRunner().invoke(main, ["doctor", "--config", str(file)])
    assert run.exit_code == 0, run.output
    assert "  m  " in run.output


def test_nothing_to_look_at(tmp_path: Any) -> None:
    done = subprocess.run(
        [sys.executable, "-m", "tropilla", "doctor"],
        cwd=tmp_path,
        capture_output=True,
        text=True,
        check=False,
    )
    assert (done.returncode, "No upstream is named" in done.stdout) == (0, True)
