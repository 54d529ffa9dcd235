"""What clients send: any bytes at all get a clear answer, and nothing is a defect of ours."""

from __future__ import annotations

import asyncio

import msgspec
import pytest

from conftest import CHAT, Serve, Start
from doubles.upstream import Double, answers, streams, told
from tropilla.server.bodies import MOST_DEPTH

pytestmark = pytest.mark.anyio

CHAT_PATH = "/v1/chat/completions"
MESSAGES = b'"messages":[{"role":"user","content":"Hello!"}]'


@pytest.mark.parametrize(
    "content_type", [None, "application/x-www-form-urlencoded", "text/plain", "nonsense", ""]
)
async def test_json_is_json_whatever_its_content_type(
    gateway: Serve, double: Double, content_type: str | None
) -> None:
    double.on(CHAT_PATH, streams(*told("x")))
    raw = await (await gateway(double)).connect()
    headers = [] if content_type is None else [f"Content-Type: {content_type}"]
    await raw.post(CHAT_PATH, CHAT, *headers)
    assert (await raw.answer()).status == 200
    assert double.requests[0].headers["content-type"] == "application/json"


BAD = {
    "empty": b"",
    "blank": b" \r\n ",
    "not JSON": b"prompt=Hello",
    "half": b'{"messages": [',
    "two values": b"{}{}",
    "null": b"null",
    "list": b"[]",
    "text": b'"x"',
    "number": b"1",
    "NaN": b'{"temperature": NaN, %b}' % MESSAGES,
    "infinity": b'{"temperature": -Infinity, %b}' % MESSAGES,
    "out of range": b'{"temperature": 1e999, %b}' % MESSAGES,
    "lone surrogate": b'{"messages":[{"role":"user","content":"\\ud800"}]}',
    "lone surrogate in a key": b'{"\\udc00": 1, %b}' % MESSAGES,
    "not UTF-8": b'{"messages":[{"role":"user","content":"\xff\xfe"}]}',
    "UTF-16": '{"messages": []}'.encode("utf-16"),
    "single quotes": b"{'messages': []}",
    "comment": b'{/**/"messages":[]}',
    "NUL": b'{"messages":[]}\x00',
    "deep list": b"[" * 100_000,
    "deep list, closed": b'{"x":' + b"[" * 100_000 + b"]" * 100_000 + b"}",
    "deep object": b'{"x":' * 100_000,
    "20 digits": b'{"max_tokens": 12345678901234567890, %b}' % MESSAGES,
    "5000 digits": b'{"max_tokens": %b, %b}' % (b"9" * 5000, MESSAGES),
    "no messages": b"{}",
    "messages null": b'{"messages": null}',
    "messages text": b'{"messages": "Hello"}',
    "messages empty": b'{"messages": []}',
    "message null": b'{"messages": [null]}',
    "duplicate key, last is bad": b'{%b, "messages": 1}' % MESSAGES,
}


@pytest.mark.parametrize("body", BAD.values(), ids=BAD.keys())
@pytest.mark.parametrize("path", [CHAT_PATH, "/v1/completions", "/completion"])
async def test_a_bad_body_is_the_clients_fault(
    gateway: Serve, double: Double, body: bytes, path: str
) -> None:
    double.on("/completion", answers(200, b"{}"))
    tropilla = await gateway(double)
    raw = await tropilla.connect()
    await raw.post(path, body)
    answer = await raw.answer()
    if path == CHAT_PATH:
        assert answer.status == 400, answer.body
        assert tuple(answer.error) == ("message", "type", "param", "code")
        assert answer.error["type"] == "invalid_request_error"
        assert answer.error["message"]
    else:
        assert answer.status in {200, 400, 502}, answer.body
        assert b"Tropilla failed" not in answer.body
    if path == CHAT_PATH:
        assert double.requests == []


@pytest.mark.parametrize("key", ["anything", "chat_template_kwargs", "tools", "messages"])
async def test_no_depth_is_a_defect(gateway: Serve, doubles: Start, key: str) -> None:
    # What is read must also be looked through and written again, from deeper in the program.
    upstreams = [await doubles(), await doubles()]  # of one alone no cache is weighed
    for one in upstreams:
        one.on(CHAT_PATH, streams(*told("x")))
    raw = await (await gateway(*upstreams)).connect()
    tool = b'{"type":"function","function":{"name":"f","parameters":{"type":"object","x":%b}}}'
    for depth in (*range(MOST_DEPTH - 8, MOST_DEPTH + 4), *range(850, 1000)):
        nested = b'{"a":' * depth + b"1" + b"}" * depth
        value = b"[%b]" % (tool % nested) if key == "tools" else nested
        await raw.post(CHAT_PATH, b'{%b, "%b": %b}' % (MESSAGES, key.encode(), value))
        answer = await raw.answer()
        if depth < MOST_DEPTH:
            assert answer.status in {200, 400}, (depth, answer.body)
        else:
            assert answer.status == 400, (depth, answer.body)
            assert "nested" in answer.error["message"]


async def test_what_is_unusual_but_right_is_taken(gateway: Serve, double: Double) -> None:
    double.on(CHAT_PATH, streams(*told("x")))
    tropilla = await gateway(double)
    for body in (
        b'{"messages": 1, %b}' % MESSAGES,  # of two equal keys the last one counts
        b" \n {%b} \n" % MESSAGES,
        b'{"n_keep": 5.0, "a_field_nobody_knows": 12345678901234567890123, %b}' % MESSAGES,
        b'{"model": null, "stream": null, "stop": null, %b}' % MESSAGES,
        b'{"messages":[{"role":"user","content":"\\ud83d\\ude00 \\u0000"}]}',
    ):
        answer = await tropilla.ask("POST", CHAT_PATH, body)
        assert answer.status == 200, answer.body
    sent = [exchange.json for exchange in double.requests]
    assert sent[0]["messages"] == CHAT["messages"]
    assert (sent[2]["n_keep"], "a_field_nobody_knows" in sent[2]) == (5, False)
    assert sent[4]["messages"][0]["content"] == "\N{GRINNING FACE} \0"


async def test_a_body_too_large_is_refused_before_it_is_read(
    gateway: Serve, double: Double
) -> None:
    tropilla = await gateway(double, max_body=1000)
    raw = await tropilla.connect()
    await raw.send(
        b"POST %b HTTP/1.1\r\nHost: t\r\nContent-Length: 1001\r\n\r\n" % CHAT_PATH.encode()
    )
    answer = await raw.answer()
    assert (answer.status, answer.error["code"]) == (413, "request_too_large")
    assert "1000 bytes" in answer.error["message"]
    assert answer.headers["connection"] == "close"


async def test_a_body_of_unknown_length_is_refused_once_it_is_too_large(
    gateway: Serve, double: Double
) -> None:
    tropilla = await gateway(double, max_body=1000)
    raw = await tropilla.connect()
    await raw.send(
        b"POST %b HTTP/1.1\r\nHost: t\r\nTransfer-Encoding: chunked\r\n\r\n" % CHAT_PATH.encode()
    )
    await raw.send(b"1f4\r\n" + b" " * 500 + b"\r\n")
    (connection,) = tropilla.listener.connections
    await tropilla.has(lambda: connection._wanted is not None)
    await raw.send(b"1f5\r\n" + b" " * 501 + b"\r\n")
    assert (await raw.answer()).status == 413


@pytest.mark.parametrize("expects", [True, False])
async def test_a_client_that_sends_on_still_reads_why_its_body_is_refused(
    gateway: Serve,
    double: Double,
    expects: bool,  # noqa: FBT001
) -> None:
    # Closing at once would reset the connection, and the answer would be lost with it.
    tropilla = await gateway(double, max_body=1000)
    raw = await tropilla.connect()
    size = 20_000_000
    head = f"POST {CHAT_PATH} HTTP/1.1\r\nHost: t\r\nContent-Length: {size}\r\n"
    if expects:
        await raw.send(f"{head}Expect: 100-continue\r\n\r\n".encode())
        assert (await raw.answer()).status == 413
        return
    await raw.send(head.encode() + b"\r\n")
    for _ in range(size // 100_000):
        await raw.send(b" " * 100_000)
        await asyncio.sleep(0)
    assert (await raw.answer()).status == 413
    assert await raw.rest() == b""


async def test_a_body_of_the_largest_size_is_taken(gateway: Serve, double: Double) -> None:
    double.on(CHAT_PATH, streams(*told("x")))
    body = msgspec.json.encode(CHAT)
    tropilla = await gateway(double, max_body=len(body))
    assert (await tropilla.ask("POST", CHAT_PATH, body)).status == 200
    assert (await tropilla.ask("POST", CHAT_PATH, body + b" ")).status == 413


async def test_more_text_than_can_be_read_at_once_is_refused(
    gateway: Serve, double: Double
) -> None:
    double.on(CHAT_PATH, streams(*told("x")))
    tropilla = await gateway(double, max_text=10_000)

    async def ask(content: object) -> tuple[int, str]:
        body = CHAT | {"messages": [{"role": "user", "content": content}]}
        answer = await tropilla.ask("POST", CHAT_PATH, body)
        return answer.status, answer.error["message"] if answer.status != 200 else ""

    assert await ask("a " * 4900) == (200, "")
    status, message = await ask("a " * 5000)
    assert (status, "10000 bytes" in message) == (413, True)
    # A picture takes no time to be read.
    picture = {"url": f"data:image/png;base64,{'A' * 40_000}"}
    status, message = await ask([{"type": "image_url", "image_url": picture}])
    assert status != 413
    assert "bytes" not in message


@pytest.mark.parametrize("path", [CHAT_PATH, "/v1/responses", "/models/conversation"])
async def test_more_messages_than_can_be_read_at_once_are_refused(
    gateway: Serve, double: Double, path: str
) -> None:
    double.on(CHAT_PATH, streams(*told("x")))
    tropilla = await gateway(double)
    name = "input" if path == "/v1/responses" else "messages"
    for count, status in ((4096, 200), (4097, 400)):
        said = [{"role": "user", "content": "Hello!"}] * count
        answer = await tropilla.ask("POST", path, {name: said})
        assert answer.status == status, answer.body[:300]
    assert (answer.error["param"], answer.error["code"]) == (name, "array_above_max_length")


@pytest.mark.parametrize("encoding", ["gzip", "br", "deflate, gzip"])
async def test_a_compressed_body_is_refused(gateway: Serve, double: Double, encoding: str) -> None:
    tropilla = await gateway(double)
    answer = await tropilla.ask("POST", CHAT_PATH, b"\x1f\x8b", {"content-encoding": encoding})
    assert (answer.status, answer.error["code"]) == (415, "unsupported_media_type")
    assert "plain" in answer.error["message"]


async def test_an_encoding_that_changes_nothing_is_none(gateway: Serve, double: Double) -> None:
    double.on(CHAT_PATH, streams(*told("x")))
    tropilla = await gateway(double)
    answer = await tropilla.ask("POST", CHAT_PATH, CHAT, {"content-encoding": "Identity"})
    assert answer.status == 200


async def test_a_body_in_pieces(gateway: Serve, double: Double) -> None:
    double.on(CHAT_PATH, streams(*told("x")))
    raw = await (await gateway(double)).connect()
    body = msgspec.json.encode(CHAT)
    await raw.send(
        b"POST %b HTTP/1.1\r\nHost: t\r\nTransfer-Encoding: chunked\r\n"
        b"Upgrade: h2c\r\nConnection: upgrade\r\n\r\n" % CHAT_PATH.encode()
    )
    for byte in body:
        await raw.send(b"1\r\n%c\r\n" % byte)
        await asyncio.sleep(0)
    await raw.send(b"0\r\n\r\n")
    assert (await raw.answer()).status == 200
    assert double.requests[0].json["messages"] == CHAT["messages"]


async def test_a_client_that_leaves_in_its_body_is_no_defect(
    gateway: Serve, double: Double, caplog: pytest.LogCaptureFixture
) -> None:
    tropilla = await gateway(double)
    raw = await tropilla.connect()
    await raw.send(
        b"POST %b HTTP/1.1\r\nHost: t\r\nContent-Length: 100\r\n\r\n{" % CHAT_PATH.encode()
    )
    raw.leave()
    assert (await tropilla.ask("GET", "/health")).status == 200
    assert [record for record in caplog.records if record.levelname == "ERROR"] == []
    assert double.requests == []
