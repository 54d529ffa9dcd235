"""One upstream over HTTP: every way to fail has its words, and a request given up is given up."""

from __future__ import annotations

import asyncio
import base64
import gzip
import socket
import tempfile
from collections.abc import AsyncIterator
from pathlib import Path
from typing import Any, Protocol

import aiohttp
import pytest

from conftest import Start
from doubles.upstream import (
    DEADLINE,
    Double,
    Exchange,
    answers,
    breaks,
    closes,
    resets,
    streams,
)
from tropilla.config import TimeoutsConfig
from tropilla.ir import ProblemError
from tropilla.upstream import incoming as arriving
from tropilla.upstream.http import Link

pytestmark = pytest.mark.anyio


class Links(Protocol):
    """Makes a client of a server; it is closed with the test."""

    def __call__(self, url: str, **more: Any) -> Link: ...


@pytest.fixture(params=["lean", "aiohttp"])
async def links(request: pytest.FixtureRequest) -> AsyncIterator[Links]:
    made: list[Link] = []

    def link(url: str, **more: Any) -> Link:
        made.append(Link(url, plain=request.param == "lean", **more))
        return made[-1]

    yield link
    for one in made:
        await one.close()


@pytest.fixture
def link(double: Double, links: Links) -> Link:
    return links(double.url, headers={"Authorization": "Bearer upstreams"})


async def failure(link: Link, path: str = "/x") -> Any:
    with pytest.raises(ProblemError) as caught:
        async with link.send("POST", path, b"{}") as incoming:
            await incoming.whole()
    return caught.value.problem


async def test_an_answer_and_its_question(double: Double, link: Link) -> None:
    double.on("/x", answers(201, b'{"a":1}'))
    assert await link.ask("POST", "/x?y=%2F", {"b": 2}) == (201, b'{"a":1}')
    (asked,) = double.requests
    assert (asked.method, asked.target, asked.json) == ("POST", "/x?y=%2F", {"b": 2})
    assert asked.headers["authorization"] == "Bearer upstreams"
    assert asked.headers["accept-encoding"] == "identity"
    assert asked.headers["content-type"] == "application/json"
    assert asked.headers["user-agent"] == "tropilla"


async def test_nothing_is_unpacked_and_nothing_followed(double: Double, link: Link) -> None:
    packed = gzip.compress(b"x")
    double.on("/x", answers(200, packed, "text/plain", "Content-Encoding: gzip"))
    assert await link.ask("GET", "/x") == (200, packed)
    double.on("/x", answers(307, b"", "text/plain", f"Location: {double.url}/elsewhere"))
    assert (await link.ask("POST", "/x", {}))[0] == 307
    assert {exchange.path for exchange in double.requests} == {"/x"}


async def test_cookies_are_not_kept(double: Double, links: Links) -> None:
    link = links(f"http://localhost:{double.port}")  # of a bare number nobody keeps cookies
    double.on("/x", answers(200, b"", "text/plain", "Set-Cookie: a=b"))
    await link.ask("GET", "/x")
    await link.ask("GET", "/x")
    assert "cookie" not in double.requests[-1].headers


async def test_pieces_come_as_they_were_sent(double: Double, link: Link) -> None:
    async with asyncio.timeout(DEADLINE):
        sending = link.send("GET", "/x")
        asked = asyncio.create_task(sending.__aenter__())
        exchange = await double.arrives()
        await exchange.head()
        incoming = await asked
        assert (incoming.status, incoming.content_type) == (200, "text/event-stream")
        for piece in (b"one", b"two"):
            await exchange.send(piece)
            assert await incoming.read() == piece
        await exchange.end()
        assert await incoming.read() == b""
        await sending.__aexit__(None, None, None)


async def test_what_is_poured_is_taken_as_long_as_it_is_wanted(double: Double, link: Link) -> None:
    taken: list[bytes] = []
    came = asyncio.Event()

    def take(piece: bytes) -> bool:
        taken.append(piece)
        came.set()
        return piece != b"enough"

    async with asyncio.timeout(DEADLINE):
        sending = link.send("GET", "/x")
        asked = asyncio.create_task(sending.__aenter__())
        exchange = await double.arrives()
        await exchange.head()
        incoming = await asked
        pouring = asyncio.create_task(incoming.pour(take))
        for piece in (b"one", b"two", b"enough"):
            came.clear()
            await exchange.send(piece)
            await came.wait()
        assert await pouring
        await exchange.send(b"more")
        assert await incoming.read() == b"more"
        await exchange.send(b"last")
        await exchange.end()
        assert not await incoming.pour(take)
        await sending.__aexit__(None, None, None)
    assert b"".join(taken) == b"onetwoenoughlast"


async def test_who_cannot_take_what_is_poured_says_so_there(double: Double, link: Link) -> None:
    double.on("/x", streams(b"a", b"b"))
    async with link.send("GET", "/x") as incoming:
        with pytest.raises(ZeroDivisionError):
            await incoming.pour(lambda piece: len(piece) < 1 / 0)


async def test_what_is_poured_may_break_off(double: Double, link: Link) -> None:
    double.on("/x", breaks(b"one"))
    taken: list[bytes] = []

    def take(piece: bytes) -> bool:
        taken.append(piece)
        return True

    async with link.send("GET", "/x") as incoming:
        with pytest.raises(ProblemError) as caught:
            await incoming.pour(take)
    assert caught.value.problem.died
    assert taken == [b"one"]


async def test_leaving_an_answer_closes_its_connection(double: Double, link: Link) -> None:
    async def asks() -> None:
        async with link.send("GET", "/x") as incoming:
            await incoming.read()
            raise ZeroDivisionError

    asked = asyncio.create_task(asks())
    exchange = await double.arrives()
    await exchange.head()
    await exchange.send(b"one")
    with pytest.raises(ZeroDivisionError):
        await asked
    await exchange.left()


async def test_cancelling_a_question_closes_its_connection(double: Double, link: Link) -> None:
    asked = asyncio.create_task(link.ask("GET", "/x"))
    exchange = await double.arrives()
    asked.cancel()
    await exchange.left()
    with pytest.raises(asyncio.CancelledError):
        await asked


async def test_nobody_there(closed_port: int, links: Links) -> None:
    url = f"http://127.0.0.1:{closed_port}"
    link = links(url)
    problem = await failure(link)
    assert (problem.kind, problem.retryable, problem.retry_after) == ("unavailable", True, 1)
    assert f"{url} cannot be reached: Connection refused" in problem.message


async def test_a_host_without_an_address(monkeypatch: pytest.MonkeyPatch, links: Links) -> None:
    async def resolves(*_: object, **__: object) -> None:
        raise socket.gaierror(-2, "Name or service not known")

    monkeypatch.setattr(aiohttp.ThreadedResolver, "resolve", resolves)
    monkeypatch.setattr(asyncio.get_running_loop(), "getaddrinfo", resolves)
    link = links("http://no-such-host.invalid:1")
    problem = await failure(link)
    assert problem.kind == "unavailable"
    assert "http://no-such-host.invalid:1 has no address" in problem.message


async def test_tls_where_there_is_none(double: Double, links: Links) -> None:
    link = links(double.url.replace("http:", "https:"))
    problem = await failure(link)
    assert problem.kind == "unavailable"


async def test_a_host_that_does_not_accept(links: Links) -> None:
    with socket.create_server(("127.0.0.1", 0), backlog=0) as full:
        # A queue of connections that is full takes no other.
        stuffed = []
        for _ in range(4):
            stuffed.append(sock := socket.socket())
            sock.setblocking(False)  # noqa: FBT003
            sock.connect_ex(full.getsockname())
        url = f"http://127.0.0.1:{full.getsockname()[1]}"
        link = links(url, timeouts=TimeoutsConfig(connect=0.05))
        problem = await failure(link)
        for sock in stuffed:
            sock.close()
    assert (problem.kind, problem.retryable) == ("unavailable", True)
    assert "cannot be reached" in problem.message


async def test_a_question_has_its_time(double: Double, link: Link) -> None:
    with pytest.raises(ProblemError) as caught:
        await link.ask("GET", "/x", seconds=0.02)
    assert (caught.value.problem.kind, caught.value.problem.retryable) == ("timeout", False)
    await (await double.arrives()).left()


async def test_silence_has_its_time(double: Double, links: Links) -> None:
    link = links(double.url, timeouts=TimeoutsConfig(idle=0.02))
    double.on("/x", Exchange.head)
    problem = await failure(link)
    assert (problem.kind, problem.retryable) == ("timeout", False)
    assert "fell silent" in problem.message


async def test_more_than_anybody_wants(
    double: Double, link: Link, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(arriving, "MAX_WHOLE", 1000)
    double.on("/x", streams(b"x" * 600, b"x" * 600))
    problem = await failure(link)
    assert (problem.kind, problem.retryable) == ("upstream_failed", False)


async def test_a_dead_connection_of_the_pool_is_not_noticed(double: Double, link: Link) -> None:
    double.on("/x", answers(200, b"one"), resets, answers(200, b"two"))
    assert await link.ask("POST", "/x", {}) == (200, b"one")
    assert await link.ask("POST", "/x", {}) == (200, b"two")
    assert [exchange.number for exchange in double.requests] == [0, 1, 0]


async def test_a_dead_connection_of_a_dead_server_is_a_failure(double: Double, link: Link) -> None:
    async def dies(exchange: Exchange) -> None:
        double._server.close()  # type: ignore[union-attr]
        exchange.reset()

    double.on("/x", answers(200, b"one"), dies)
    assert await link.ask("POST", "/x", {}) == (200, b"one")
    async with asyncio.timeout(DEADLINE):
        problem = await failure(link)
    assert "cannot be reached" in problem.message
    assert problem.died, "it may have died of this very request"


async def test_a_used_connection_that_is_lost_later_was_not_dead_before(
    double: Double, link: Link, monkeypatch: pytest.MonkeyPatch
) -> None:
    double.on("/x", answers(200, b"one"), closes, answers(200, b"two"))
    assert await link.ask("POST", "/x", {}) == (200, b"one")
    monkeypatch.setattr(arriving, "STALE_SECONDS", -1)
    problem = await failure(link)
    assert "closed the connection before it answered" in problem.message
    assert problem.died
    assert [exchange.number for exchange in double.requests] == [0, 1]


async def test_a_new_connection_that_dies_is_a_failure(double: Double, link: Link) -> None:
    double.on("/x", resets)
    problem = await failure(link)
    assert "closed the connection before it answered" in problem.message
    assert len(double.requests) == 1


async def test_finish_waits_for_the_end_but_not_for_ever(
    double: Double, link: Link, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(arriving, "END_SECONDS", 0.02)
    double.on("/x", Exchange.head)
    async with link.send("GET", "/x") as incoming:
        await incoming.finish()
    await double.requests[0].left()


async def test_a_password_is_sent_and_never_shown(
    double: Double, closed_port: int, links: Links
) -> None:
    link = links(double.url.replace("http://", "http://me:s%40cret@") + "/base")
    assert link.url == f"{double.url}/base"
    double.on("/base/x", answers(200, b""))
    await link.ask("GET", "/x")
    sent = double.requests[0].headers["authorization"]
    assert base64.b64decode(sent.removeprefix("Basic ")) == b"me:s@cret"
    link = links(f"http://me:secret@127.0.0.1:{closed_port}")
    assert "secret" not in (await failure(link)).message


async def test_a_unix_socket(doubles: Start, links: Links) -> None:
    del doubles
    with tempfile.TemporaryDirectory(dir="/tmp", prefix="t") as folder:
        path = Path(folder, "s")
        link = links(f"unix://{path}")
        problem = await failure(link)
        assert (problem.kind, problem.retryable) == ("unavailable", True)
        assert str(path) in problem.message
        double = Double()
        await double.start(path)
        double.on("/x", answers(200, b"here"))
        assert await link.ask("GET", "/x") == (200, b"here")
        await double.stop()


async def test_who_reads_hears_that_all_is_closed(double: Double, link: Link) -> None:
    async def begins(exchange: Exchange) -> None:
        await exchange.head()
        await exchange.send(b"one")
        await exchange.gone.wait()

    double.on("/x", begins)
    async with link.send("POST", "/x", b"{}") as incoming:
        assert await incoming.read() == b"one"
        reading = asyncio.create_task(incoming.read())
        await asyncio.sleep(0)
        await link.close()
        with pytest.raises(ProblemError) as caught:
            await asyncio.wait_for(reading, DEADLINE)
    assert caught.value.problem.died
