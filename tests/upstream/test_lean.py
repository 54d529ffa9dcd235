"""The lean client: its connections, and what of them may be used again."""

from __future__ import annotations

import asyncio
import math
import os
import socket
from collections.abc import AsyncIterator, Callable
from typing import Any

import pytest

from doubles.talk import Server, Talk
from doubles.upstream import DEADLINE, SSE, Double, Exchange, answers, closes, resets, streams
from tropilla.config import TimeoutsConfig
from tropilla.ir import ProblemError
from tropilla.upstream import incoming as arriving
from tropilla.upstream import lean
from tropilla.upstream.http import Link

pytestmark = pytest.mark.anyio

EVIL = b"HTTP/1.1 200 OK\r\nContent-Length: 4\r\n\r\nevil"


@pytest.fixture
async def link(double: Double) -> AsyncIterator[Link]:
    one = Link(double.url)
    yield one
    await one.close()


def client(link: Link) -> lean.Client:
    assert isinstance(link._client, lean.Client)
    return link._client


async def until(holds: Callable[[], bool]) -> None:
    """Wait until something holds that no event tells of, which must come."""
    async with asyncio.timeout(DEADLINE):
        while not holds():  # noqa: ASYNC110 - no event tells of it
            await asyncio.sleep(0)


async def test_a_connection_is_used_again_and_again(double: Double, link: Link) -> None:
    double.on("/x", answers(200, b"one"), streams(b"a", b"b"), answers(404, b""))
    for _ in range(3):
        await link.ask("GET", "/x")
    assert [asked.number for asked in double.requests] == [0, 1, 2]


async def test_what_comes_unasked_and_unread_is_not_the_next_answer(
    double: Double, link: Link
) -> None:
    double.on("/x", answers(200, b"good"))
    await link.ask("GET", "/x")
    # Sent, and not yet seen here: nothing is awaited before the next question.
    (connection,) = double.connections
    sock = connection.transport.get_extra_info("socket")
    with socket.socket(fileno=os.dup(sock.fileno())) as theirs:
        assert theirs.send(EVIL) == len(EVIL)
    assert await link.ask("GET", "/x") == (200, b"good")
    assert double.accepted == 2


async def test_what_comes_unasked_closes_the_connection(double: Double, link: Link) -> None:
    double.on("/x", answers(200, b"good"))
    await link.ask("GET", "/x")
    (connection,) = double.connections
    connection.transport.write(EVIL)
    await double.requests[0].left()
    assert not client(link).open
    assert await link.ask("GET", "/x") == (200, b"good")


async def test_a_server_that_speaks_first(server: Server) -> None:
    async def speaks(talk: Talk) -> None:
        await talk.say(EVIL)
        await talk.left()

    server.scripts = [speaks]
    link = Link(server.url)
    loop = asyncio.get_running_loop()
    connection = await client(link)._connect(loop, loop.time() + DEADLINE)
    await until(lambda: connection._unasked)
    answer = lean._Answer(connection, link.url, bodiless=False, silence=DEADLINE, until=math.inf)
    connection.put(b"GET / HTTP/1.1\r\n\r\n", None, answer)
    with pytest.raises(ProblemError, match="speaks before it is asked"):
        await answer.head()
    answer.leave()
    await link.close()


async def test_a_connection_that_the_server_has_closed_is_not_used(
    double: Double, link: Link
) -> None:
    double.on("/x", answers(200, b"good"))
    await link.ask("GET", "/x")
    (connection,) = double.connections
    connection.transport.abort()
    assert await link.ask("GET", "/x") == (200, b"good")
    assert [asked.number for asked in double.requests] == [0, 0]


async def test_only_one_more_try(double: Double, link: Link) -> None:
    double.on("/x", answers(200, b"good"), closes, resets, answers(200, b"third"))
    await link.ask("GET", "/x")
    with pytest.raises(ProblemError, match="closed the connection before it answered"):
        await link.ask("GET", "/x")
    assert [asked.number for asked in double.requests] == [0, 1, 0]


async def test_no_other_try_once_a_byte_has_come(double: Double, link: Link) -> None:
    async def begins(asked: Exchange) -> None:
        await asked.raw(b"HTTP/1.1 2")
        asked.reset()

    double.on("/x", answers(200, b"good"), begins)
    await link.ask("GET", "/x")
    with pytest.raises(ProblemError, match="closed the connection before it answered"):
        await link.ask("GET", "/x")
    assert len(double.requests) == 2


async def test_an_old_connection_is_closed(
    double: Double, link: Link, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(arriving, "KEEP_SECONDS", 0.02)
    double.on("/x", answers(200, b"good"))
    await link.ask("GET", "/x")
    await double.requests[0].left()
    assert not client(link)._idle


async def test_an_old_connection_is_not_used(
    double: Double, link: Link, monkeypatch: pytest.MonkeyPatch
) -> None:
    double.on("/x", answers(200, b"good"))
    await link.ask("GET", "/x")
    monkeypatch.setattr(arriving, "KEEP_SECONDS", -1.0)
    await link.ask("GET", "/x")
    assert [asked.number for asked in double.requests] == [0, 0]


async def test_so_many_idle_connections(
    double: Double, link: Link, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(lean, "_MOST_IDLE", 2)
    asked = [asyncio.create_task(link.ask("GET", "/x")) for _ in range(4)]
    arrived = [await double.arrives() for _ in range(4)]
    for one in arrived:
        await one.whole(200, b"")
    await asyncio.gather(*asked)
    assert len(client(link)._idle) == 2
    await until(lambda: len(double.connections) == 2)


async def test_an_answer_before_all_was_sent(server: Server) -> None:
    async def refuses(talk: Talk) -> None:
        await talk.reader.readuntil(b"\r\n\r\n")
        await talk.say(b"HTTP/1.1 413 Large\r\nContent-Length: 3\r\n\r\nbig")
        await asyncio.Event().wait()  # and read no more

    server.scripts = [refuses]
    link = Link(server.url)
    async with asyncio.timeout(DEADLINE), link.send("POST", "/x", b"x" * 8_000_000) as answer:
        assert (answer.status, await answer.whole()) == (413, b"big")
    assert not client(link)._idle
    await link.close()


@pytest.mark.parametrize("size", [0, 1, 65_536, 65_537, 3_000_000])
async def test_a_body_arrives(double: Double, link: Link, size: int) -> None:
    double.on("/x", answers(200, b""))
    body = bytes(range(256)) * (size // 256 + 1)
    async with link.send("POST", "/x", body[:size]) as answer:
        await answer.whole()
    assert double.requests[0].body == body[:size]
    assert double.requests[0].headers["content-length"] == str(size)


async def test_what_nobody_reads_stays_with_the_server(double: Double, link: Link) -> None:
    async def floods(asked: Exchange) -> None:
        await asked.head()
        for _ in range(500):
            await asked.send(b"x" * 100_000)
        await asked.end()

    double.on("/x", floods)
    async with asyncio.timeout(DEADLINE), link.send("GET", "/x") as answer:
        (asked,) = double.requests
        assert isinstance(answer, lean._Answer)
        connection = answer._connection
        assert connection is not None
        await until(lambda: connection._resting)
        for _ in range(1000):
            await asyncio.sleep(0)
        # What a socket gives at once, after the last of what may wait here.
        assert answer._held < lean._MOST_AHEAD + 300_000
        assert asked.written < 10_000_000
        assert len(await answer.whole()) == 50_000_000
    assert (await link.ask("GET", "/health"))[0] == 200
    assert double.accepted == 1


async def test_leaving_is_the_end_of_it(double: Double, link: Link) -> None:
    double.on("/x", answers(200, b"one"), answers(200, b"two"))
    async with link.send("GET", "/x") as first:
        pass
    async with link.send("GET", "/x") as second:
        first.leave()  # too late: the connection is another's
        first.give_up()
        assert not client(link)._idle
        assert await second.whole() == b"two"
    assert [asked.number for asked in double.requests] == [0, 1]


async def test_a_question_may_be_given_up_at_any_turn(double: Double, link: Link) -> None:
    double.on("/x", answers(200, b"here"))
    for turns in range(20):
        asked = asyncio.create_task(link.ask("GET", "/x"))
        for _ in range(turns):
            await asyncio.sleep(0)
        asked.cancel()
        await asyncio.gather(asked, return_exceptions=True)
        await asyncio.wait_for(link.close(), DEADLINE)
        assert not client(link).open
        await until(lambda: not double.connections)
    assert await link.ask("GET", "/x") == (200, b"here")


async def test_a_question_may_be_given_up_while_it_is_connected(
    double: Double, link: Link, monkeypatch: pytest.MonkeyPatch
) -> None:
    made = lean._Connection.connection_made

    def given_up(self: lean._Connection, transport: asyncio.BaseTransport) -> None:
        made(self, transport)
        asked.cancel()

    monkeypatch.setattr(lean._Connection, "connection_made", given_up)
    asked = asyncio.create_task(link.ask("GET", "/x"))
    with pytest.raises(asyncio.CancelledError):
        await asked
    await asyncio.wait_for(link.close(), DEADLINE)
    await until(lambda: not double.connections)


async def test_whoever_waits_hears_of_the_close(double: Double, link: Link) -> None:
    asked = asyncio.create_task(link.ask("GET", "/x"))
    await double.arrives()
    await link.close()
    with pytest.raises(ProblemError, match="closed the connection"):
        await asked
    assert not client(link).open


async def test_a_head_alone(double: Double, link: Link) -> None:
    async def heads(asked: Exchange) -> None:
        await asked.head(200, SSE, "Content-Length: 5", chunked=False)

    double.on("/x", heads)
    for _ in range(2):
        async with link.send("HEAD", "/x") as answer:
            assert (answer.status, await answer.whole()) == (200, b"")
    assert [asked.number for asked in double.requests] == [0, 0]


async def test_no_line_of_a_head_becomes_two(double: Double, link: Link) -> None:
    double.on("/a%0D%0AB:%20c%C3%A9", answers(200, b""))
    assert (await link.ask("GET", "/a\r\nB: cé"))[0] == 200
    with pytest.raises(ProblemError, match="'X' cannot be sent"):
        async with link.send("GET", "/x", headers={"X": "a\r\nB: c"}):
            pass


async def test_a_header_of_the_request_replaces_that_of_the_link(double: Double) -> None:
    link = Link(double.url, headers={"X-One": "a", "Host": "other.example"})
    double.on("/x", answers(200, b""))
    async with link.send("POST", "/x", b"", {"x-one": "b"}):
        pass
    assert double.requests[0].headers["x-one"] == "b"
    assert double.requests[0].headers["host"] == "other.example"
    await link.close()


# Addresses.


def resolves(monkeypatch: pytest.MonkeyPatch, *places: tuple[str, int]) -> None:
    """`two.example` has these addresses."""
    loop = asyncio.get_running_loop()
    asks = loop.getaddrinfo

    async def lookup(host: Any, port: Any, **more: Any) -> list[Any]:
        if host != "two.example":
            return await asks(host, port, **more)
        return [(socket.AF_INET, socket.SOCK_STREAM, 6, "", place) for place in places]

    monkeypatch.setattr(loop, "getaddrinfo", lookup)


async def test_every_address_is_tried(
    double: Double, closed_port: int, monkeypatch: pytest.MonkeyPatch
) -> None:
    resolves(monkeypatch, ("127.0.0.1", closed_port), ("127.0.0.1", double.port))
    double.on("/x", answers(200, b"here"))
    link = Link("http://two.example")
    assert await link.ask("GET", "/x") == (200, b"here")
    assert double.requests[0].headers["host"] == "two.example"
    await link.close()


async def test_a_name_and_a_path_beyond_ascii(
    double: Double, monkeypatch: pytest.MonkeyPatch
) -> None:
    link = Link("http://b\xfccher.example/a b")
    assert client(link)._host == "xn--bcher-kva.example"
    monkeypatch.setattr(client(link), "_addresses", lean._numeric("127.0.0.1", double.port))
    double.on("/a%20b/x", answers(200, b"here"))
    assert await link.ask("GET", "/x") == (200, b"here")
    assert double.requests[0].headers["host"] == "xn--bcher-kva.example"
    await link.close()


@pytest.mark.parametrize("host", ["." * 3, "x" * 300])
async def test_a_name_that_cannot_be(host: str) -> None:
    link = Link(f"http://{host}:1")
    with pytest.raises(ProblemError, match="has no address"):
        await link.ask("GET", "/x")
    await link.close()


async def test_an_address_that_is_silent_keeps_nobody(
    double: Double, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(lean, "_NEXT_ADDRESS_SECONDS", 0.01)
    double.on("/x", answers(200, b"here"))
    with socket.create_server(("127.0.0.1", 0), backlog=0) as full:
        stuffed = [socket.socket() for _ in range(4)]
        for sock in stuffed:
            sock.setblocking(False)  # noqa: FBT003
            sock.connect_ex(full.getsockname())
        resolves(monkeypatch, full.getsockname(), ("127.0.0.1", double.port))
        link = Link("http://two.example", timeouts=TimeoutsConfig(connect=DEADLINE))
        async with asyncio.timeout(DEADLINE / 2), link.send("GET", "/x") as answer:
            assert await answer.whole() == b"here"
        for sock in stuffed:
            sock.close()
    await link.close()


async def test_ipv6(server: Server) -> None:
    async def tells(talk: Talk) -> None:
        head = await talk.reader.readuntil(b"\r\n\r\n")
        host = head.split(b"Host: ")[1].split(b"\r\n")[0]
        await talk.say(b"HTTP/1.1 200 OK\r\nContent-Length: %d\r\n\r\n%b" % (len(host), host))
        await talk.left()

    if not socket.has_ipv6:
        pytest.skip("this machine has no IPv6")
    await server.stop()
    await server.start("::1")
    server.scripts = [tells]
    link = Link(server.url)
    assert await link.ask("GET", "/x") == (200, server.url.removeprefix("http://").encode())
    await link.close()


async def test_it_is_not_asked_where_there_is_tls_or_another_is_wanted() -> None:
    assert isinstance(Link("http://h")._client, lean.Client)
    assert isinstance(Link("unix:///s")._client, lean.Client)
    assert not isinstance(Link("https://h")._client, lean.Client)
    assert not isinstance(Link("http://h", plain=False)._client, lean.Client)
