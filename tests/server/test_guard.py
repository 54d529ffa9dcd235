"""Clients that keep everybody waiting, or send what is no request: each is let go, in order.

What takes time is not waited for: the one look that the listener takes each second is taken here
with a later time.
"""

from __future__ import annotations

import asyncio
import socket
import tracemalloc
from typing import Any

import msgspec
import pytest

from conftest import CHAT, Raw, Serve, Served
from doubles.upstream import Double, chunk, streams, told
from tropilla.server import http
from tropilla.server.run import listen
from tropilla.server.wire import MOST_HEAD

pytestmark = pytest.mark.anyio

PATH = "/v1/chat/completions"
GET = b"GET /health HTTP/1.1\r\nHost: t\r\n\r\n"


@pytest.fixture
async def tropilla(gateway: Serve, double: Double) -> Served:
    double.on(PATH, streams(*told("x")))
    return await gateway(double)


def later(tropilla: Served, seconds: float) -> None:
    """Look at the connections as if so much time had passed."""
    tropilla.listener.look(tropilla.listener.loop.time() + seconds)


async def held(tropilla: Served) -> http.Connection:
    """The one connection that there is, once it has got something."""
    await tropilla.has(lambda: len(tropilla.listener.connections) == 1)
    (connection,) = tropilla.listener.connections
    return connection


async def alone(tropilla: Served) -> Raw:
    """The only connection, on which something was answered."""
    await tropilla.has(lambda: not tropilla.listener.connections)
    raw = await tropilla.connect()
    await raw.send(GET)
    assert (await raw.answer()).status == 200
    return raw


# What is no request.

REFUSED: dict[str, tuple[bytes, int, str]] = {
    "no Host": (b"GET / HTTP/1.1\r\n\r\n", 400, "Host"),
    "a length and chunks": (
        b"POST / HTTP/1.1\r\nHost: t\r\nContent-Length: 1\r\nTransfer-Encoding: chunked\r\n\r\n",
        400,
        "Content-Length and Transfer-Encoding",
    ),
    "another coding": (
        b"POST / HTTP/1.1\r\nHost: t\r\nTransfer-Encoding: gzip\r\n\r\n", 501, "chunked",
    ),
    "an absolute target": (b"GET http://t/ HTTP/1.1\r\nHost: t\r\n\r\n", 400, "path"),
    "bare line feeds": (b"GET / HTTP/1.1\nHost: t\n\n", 400, "CR LF"),
    "HTTP/2": (b"PRI * HTTP/2.0\r\n\r\nSM\r\n\r\n", 400, "HTTP/1.1"),
    "TLS": (b"\x16\x03\x01\x02\x00\x01\x00\x01\xfc\x03\x03", 400, "http://"),
    "empty lines": (b"\r\n" * 3, 400, "HTTP"),
    "two empty lines, and silence": (b"\r\n" * 2, 400, "HTTP"),
    "a megabyte of empty lines": (b"\r\n" * 2**19, 400, "HTTP"),
    "garbage": (b"\x00\xff", 400, "HTTP"),
    "101 headers": (b"GET / HTTP/1.1\r\nHost: t\r\n" + b"X: 1\r\n" * 100 + b"\r\n", 431, "100"),
    "a head that is too large": (
        b"GET / HTTP/1.1\r\nHost: t\r\nX: " + b"a" * 32768 + b"\r\n\r\n", 431, "32768",
    ),
    "a head that never ends": (b"GET / HTTP/1.1\r\nHost: t\r\nX: " + b"a" * 40000, 431, "32768"),
}  # fmt: skip


@pytest.mark.parametrize(("data", "status", "word"), REFUSED.values(), ids=REFUSED.keys())
async def test_what_is_no_request_is_told_so(
    tropilla: Served, data: bytes, status: int, word: str
) -> None:
    raw = await tropilla.connect()
    await raw.send(data)
    code, headers = await raw.head()
    assert (code, headers["connection"]) == (status, "close")
    assert headers["content-type"] == "application/json"
    assert headers["x-request-id"].startswith("req_")
    error = msgspec.json.decode(await raw.rest())["error"]
    assert word in error["message"]
    assert error["type"] == "invalid_request_error"


async def test_200_megabytes_of_headers_are_not_kept(tropilla: Served) -> None:
    raw = await tropilla.connect()
    await raw.send(b"GET / HTTP/1.1\r\nHost: t\r\n")
    connection = await held(tropilla)
    for number in range(200):
        await raw.send(b"X-%d: " % number + b"a" * 10**6 + b"\r\n")
    assert (await raw.head())[0] == 431
    assert len(connection._held) <= MOST_HEAD


async def test_a_refusal_is_read_though_its_client_sends_on(tropilla: Served) -> None:
    raw = await tropilla.connect()
    await raw.send(b"GET / HTTP/1.1\r\n\r\n")
    for _ in range(100):
        await raw.send(b"a" * 100_000)
    assert (await raw.head())[0] == 400


async def test_one_empty_line_before_a_request_is_passed_over(tropilla: Served) -> None:
    raw = await tropilla.connect()
    for _ in range(2):
        await raw.send(b"\r\n")
        await raw.send(GET)
        assert (await raw.answer()).status == 200


async def test_chunks_of_a_byte_cost_no_more_than_others(tropilla: Served) -> None:
    raw = await tropilla.connect()
    await raw.send(b"POST %b HTTP/1.1\r\nHost: t\r\n" % PATH.encode())
    await raw.send(b"Transfer-Encoding: chunked\r\n\r\n")
    connection = await held(tropilla)
    tracemalloc.start()
    try:
        for _ in range(4):
            await raw.send(b"1\r\n \r\n" * 50_000)
        await tropilla.has(lambda: tropilla.listener.held == 200_000)
        _, most = tracemalloc.get_traced_memory()
    finally:
        tracemalloc.stop()
    assert most < 8 * 200_000
    assert connection._body is not None
    assert connection._body.take() == b" " * 200_000


async def test_a_bad_chunk_is_told_in_the_clients_dialect(tropilla: Served) -> None:
    raw = await tropilla.connect()
    await raw.send(b"POST /completion HTTP/1.1\r\nHost: t\r\nTransfer-Encoding: chunked\r\n\r\n")
    await raw.send(b"zz\r\n")
    code, headers = await raw.head()
    assert (code, headers["connection"]) == (400, "close")
    error = msgspec.json.decode(await raw.rest())["error"]
    assert (error["code"], "chunk" in error["message"]) == (400, True)


# Time.


async def test_an_idle_connection_is_closed(tropilla: Served) -> None:
    raw = await alone(tropilla)
    later(tropilla, http.IDLE_SECONDS - 1)
    await raw.send(GET)
    assert (await raw.answer()).status == 200
    later(tropilla, http.IDLE_SECONDS + 1)
    assert await raw.rest() == b""


async def test_a_connection_that_never_says_anything_is_closed(tropilla: Served) -> None:
    raw = await tropilla.connect()
    await held(tropilla)
    later(tropilla, http.IDLE_SECONDS + 1)
    assert await raw.rest() == b""


async def test_half_a_head_is_waited_for_ten_seconds(tropilla: Served) -> None:
    raw = await alone(tropilla)
    (connection,) = tropilla.listener.connections
    await raw.send(GET[:-2])
    await tropilla.has(lambda: bool(connection._held))
    later(tropilla, http.HEAD_SECONDS - 1)
    # Another byte does not prolong that.
    since = connection._since = connection._since - 1  # the loop's clock has few digits
    await raw.send(GET[-2:-1])
    await tropilla.has(lambda: connection._held == GET[:-1])
    assert connection._since == since
    later(tropilla, http.HEAD_SECONDS + 1)
    assert (await raw.head())[0] == 408


async def half_a_body(raw: Raw) -> None:
    await raw.send(f"POST {PATH} HTTP/1.1\r\nHost: t\r\nContent-Length: 2000000\r\n\r\n{{".encode())


async def test_a_body_that_drips_is_refused(tropilla: Served) -> None:
    raw = await tropilla.connect()
    await half_a_body(raw)
    connection = await held(tropilla)
    await tropilla.has(lambda: connection._wanted is not None)
    later(tropilla, http.BODY_SECONDS - 1)
    await raw.send(b" " * 1_000_000)
    await tropilla.has(lambda: connection._body is not None and connection._body.size > 1_000_000)
    # A megabyte has as much longer as it takes at the slowest speed that is allowed.
    later(tropilla, http.BODY_SECONDS + 1_000_000 / http.BODY_RATE - 1)
    assert not connection._lingers
    later(tropilla, http.BODY_SECONDS + 1_000_000 / http.BODY_RATE + 1)
    code, headers = await raw.head()
    assert (code, headers["connection"]) == (408, "close")
    error = msgspec.json.decode(await raw.rest())["error"]
    assert error["code"] == "request_timeout"
    assert tropilla.listener.held == 0


async def test_who_lingers_is_closed(tropilla: Served) -> None:
    raw = await tropilla.connect()
    await raw.send(b"GET / HTTP/1.1\r\n\r\n")
    assert (await raw.head())[0] == 400
    (connection,) = tropilla.listener.connections
    later(tropilla, http.LINGER_SECONDS - 1)
    assert not connection._transport.is_closing()
    later(tropilla, http.LINGER_SECONDS + 1)
    await tropilla.has(lambda: not tropilla.listener.connections)


async def test_who_does_not_read_is_let_go(gateway: Serve, double: Double) -> None:
    tropilla = await gateway(double)
    tropilla.hold_little()
    raw = await tropilla.connect()
    await raw.post(PATH, CHAT | {"stream": True})
    exchange = await double.arrives()
    await exchange.head()
    connection = await held(tropilla)

    async def tells() -> None:
        while True:
            await exchange.send(chunk("x" * 20_000))

    telling = asyncio.create_task(tells())
    await tropilla.has(lambda: connection._drained is not None)
    later(tropilla, http.UNREAD_SECONDS - 1)
    assert not connection._transport.is_closing()
    # Who reads something has as much time again.
    connection._unsent += 1
    later(tropilla, http.UNREAD_SECONDS + 1)
    assert not connection._transport.is_closing()
    later(tropilla, 2 * http.UNREAD_SECONDS + 2)
    await exchange.left()
    await tropilla.has(lambda: tropilla.fleet.upstreams[0].leases == 0)
    telling.cancel()
    await asyncio.wait([telling])


async def test_a_long_answer_is_no_idle_connection(gateway: Serve, double: Double) -> None:
    tropilla = await gateway(double)
    raw = await tropilla.connect()
    await raw.post(PATH, CHAT)
    exchange = await double.arrives()
    later(tropilla, 10_000)
    await exchange.stream(*told("x"))
    assert (await raw.answer()).status == 200


# How much.


async def test_too_many_connections_are_told_so(tropilla: Served) -> None:
    await alone(tropilla)
    tropilla.listener.most = 1
    raw = await tropilla.connect()
    code, headers = await raw.head()
    assert (code, headers["connection"]) == (503, "close")
    assert "too many connections" in (await raw.rest()).decode()


def test_connections_leave_files_for_upstreams(monkeypatch: pytest.MonkeyPatch) -> None:
    resource = pytest.importorskip("resource", reason="there are no such limits on Windows")
    for files, most in ((20_000, 9744), (1024, 256), (256, 64)):
        monkeypatch.setattr(resource, "getrlimit", lambda _, files=files: (files, files))
        assert http._most_connections() == most


async def test_all_bodies_together_are_bounded(
    tropilla: Served, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(http, "MOST_HELD", 100_000)
    first, second = await tropilla.connect(), await tropilla.connect()
    for raw in (first, second):
        await half_a_body(raw)
    await first.send(b" " * 60_000)
    await tropilla.has(lambda: tropilla.listener.held == 60_002)
    await second.send(b" " * 60_000)
    code, headers = await second.head()
    assert (code, headers["retry-after"]) == (503, "1")
    await tropilla.has(lambda: tropilla.listener.held == 60_001)
    first.leave()
    await tropilla.has(lambda: tropilla.listener.held == 0)


async def test_requests_ahead_are_answered_in_order_and_bounded(
    gateway: Serve, double: Double
) -> None:
    tropilla = await gateway(double)
    raw = await tropilla.connect()
    await raw.post(PATH, CHAT)
    exchange = await double.arrives()
    connection = await held(tropilla)
    ahead = b"GET /health HTTP/1.1\r\nHost: t\r\nX: %b\r\n\r\n" % (b"a" * 1000)

    async def sends() -> None:
        for _ in range(3000):
            await raw.send(ahead)

    sending = asyncio.create_task(sends())
    await tropilla.has(lambda: connection._resting)
    assert len(connection._held) <= http._MOST_AHEAD + 2**18  # one read more than the bound
    await exchange.stream(*told("x"))
    assert (await raw.answer()).json["choices"][0]["message"]["content"] == "x"
    for _ in range(3000):
        assert (await raw.answer()).status == 200
    await sending


async def test_a_body_that_nobody_wants_is_passed_over(gateway: Serve, double: Double) -> None:
    tropilla = await gateway(double, api_keys=("secret",))
    raw = await tropilla.connect()
    # A small one, and the connection stays.
    await raw.send(b"POST %b HTTP/1.1\r\nHost: t\r\nContent-Length: 9\r\n\r\n{" % PATH.encode())
    assert (await raw.answer()).status == 401
    await raw.send(b"12345678" + GET)
    assert (await raw.answer()).status == 200
    # A large one, and it does not.
    await half_a_body(raw)
    answer = await raw.answer()
    assert (answer.status, answer.headers["connection"]) == (401, "close")
    assert await raw.rest() == b""
    assert tropilla.listener.held == 0


# Answers.


async def test_http_1_0_gets_no_chunks(tropilla: Served) -> None:
    body = msgspec.json.encode(CHAT | {"stream": True})
    raw = await tropilla.connect()
    await raw.send(f"POST {PATH} HTTP/1.0\r\nContent-Length: {len(body)}\r\n\r\n".encode() + body)
    status, headers = await raw.head()
    assert (status, headers["connection"]) == (200, "close")
    assert "transfer-encoding" not in headers
    assert (await raw.rest()).endswith(b"data: [DONE]\n\n")
    raw = await tropilla.connect()
    for _ in range(2):
        await raw.send(b"GET /health HTTP/1.0\r\nConnection: keep-alive\r\n\r\n")
        answer = await raw.answer()
        assert (answer.status, answer.headers["connection"]) == (200, "keep-alive")


async def test_the_head_of_a_stream_comes_with_its_first_event(
    tropilla: Served, monkeypatch: pytest.MonkeyPatch
) -> None:
    sent: list[bytes] = []
    send = http.Connection.send

    def sends(connection: http.Connection, data: bytes) -> None:
        sent.append(data)
        send(connection, data)

    monkeypatch.setattr(http.Connection, "send", sends)
    await tropilla.chat(stream=True)
    assert sent[0].startswith(b"HTTP/1.1 200 OK\r\n")
    assert b"\r\n\r\n" in sent[0]
    assert b"data: " in sent[0]


async def test_no_value_is_a_header_of_its_own(tropilla: Served) -> None:
    upstream = tropilla.fleet.upstreams[0]
    upstream.name = "x\r\nx-evil: 1\r\n\r\n<script>\u20ac"
    answer = await tropilla.chat()
    assert "x-evil" not in answer.headers
    assert answer.headers["x-tropilla-upstream"] == "x  x-evil: 1    <script>?"
    assert answer.status == 200


async def test_what_is_cut_short_has_no_end(gateway: Serve, double: Double) -> None:
    tropilla = await gateway(double)
    raw = await tropilla.connect()
    await raw.post("/detokenize", {})
    exchange = await double.arrives()
    await exchange.head()
    await exchange.send(b"{")
    await raw.see(b"{")
    exchange.reset()
    assert not (await raw.rest()).endswith(b"0\r\n\r\n")


def test_a_listener_finds_clients_that_vanished() -> None:
    config: Any = type("Config", (), {"host": "127.0.0.1", "port": 0, "ollama_port": 0})
    (first,) = listen(config)
    with first as sock:
        assert sock.getsockopt(socket.SOL_SOCKET, socket.SO_KEEPALIVE)
        assert sock.getsockopt(socket.IPPROTO_TCP, socket.TCP_NODELAY)
        if hasattr(socket, "TCP_USER_TIMEOUT"):
            with socket.create_connection(sock.getsockname()):
                accepted, _ = sock.accept()
                with accepted:
                    assert accepted.getsockopt(socket.IPPROTO_TCP, socket.TCP_USER_TIMEOUT) == 30000
                    assert accepted.getsockopt(socket.IPPROTO_TCP, socket.TCP_KEEPIDLE) == 15
