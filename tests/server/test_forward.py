"""What is passed on as it is."""

from __future__ import annotations

import pytest

from conftest import CHAT, Serve, Start
from doubles.upstream import Double, Exchange, answers, closes, refuses, resets

pytestmark = pytest.mark.anyio

POSTS = (
    "/tokenize", "/detokenize", "/apply-template", "/embedding", "/v1/systemone",
)  # fmt: skip
GETS = ("/props", "/slots", "/lora-adapters")
ADMIN = (
    ("POST", "/props"),
    ("POST", "/slots/0"),
    ("POST", "/lora-adapters"),
    ("GET", "/tools"),
    ("POST", "/tools"),
    ("GET", "/cors-proxy"),
    ("POST", "/models/load"),
    ("POST", "/models/unload"),
    ("DELETE", "/models"),
)
# Not JSON that anybody would write: nothing may read it and write it again.
BODY = b'{"z":1 ,\t"a":[1.10,1e2,"\\u00e9"],"a":2}\n'


@pytest.mark.parametrize("path", POSTS)
@pytest.mark.parametrize("status", [200, 400, 404, 501])
async def test_a_post_is_passed_on_to_the_byte(
    gateway: Serve, double: Double, path: str, status: int
) -> None:
    double.on(path, answers(status, BODY[::-1], "application/x-odd; charset=utf-8"))
    tropilla = await gateway(double)
    answer = await tropilla.ask("POST", path, BODY, {"content-type": "text/odd"})
    assert (answer.status, answer.body) == (status, BODY[::-1])
    assert answer.headers["content-type"] == "application/x-odd; charset=utf-8"
    assert answer.headers["access-control-allow-origin"] == "*"
    assert answer.headers["x-tropilla-upstream"] == double.url
    (asked,) = double.requests
    assert (asked.method, asked.target, asked.body) == ("POST", path, BODY)
    assert asked.headers["content-type"] == "text/odd"


@pytest.mark.parametrize("path", GETS)
async def test_a_get_is_passed_on_with_its_query(gateway: Serve, double: Double, path: str) -> None:
    tropilla = await gateway(double)
    double.on(path, answers(200, BODY, "text/plain"))
    query = "?fail_on_no_slot=1&x=a%20b%2Fc&y=+&z"
    answer = await tropilla.ask("GET", f"{path}/{query}")
    assert (answer.status, answer.body) == (200, BODY)
    assert double.requests[-1].target == path + query
    assert double.requests[-1].body == b""


async def test_a_stream_is_passed_on_piece_by_piece(gateway: Serve, double: Double) -> None:
    tropilla = await gateway(double)
    raw = await tropilla.connect()
    await raw.post("/v1/systemone", CHAT | {"stream": True}, "accept: text/event-stream")
    exchange = await double.arrives()
    assert exchange.headers["accept"] == "text/event-stream"
    await exchange.head()
    for piece in (b"event: one\n\n", b"event: two\n\n"):
        await exchange.send(piece)
        await raw.see(piece)
    await exchange.end()
    answer = await raw.answer()
    assert answer.body == b"event: one\n\nevent: two\n\n"


async def test_what_breaks_off_is_cut_off_for_the_client_too(
    gateway: Serve, double: Double
) -> None:
    tropilla = await gateway(double)
    raw = await tropilla.connect()
    await raw.post("/v1/systemone", CHAT)
    exchange = await double.arrives()
    await exchange.head()
    await exchange.send(b"half")
    await raw.see(b"half")
    exchange.reset()
    assert not (await raw.rest()).endswith(b"0\r\n\r\n")


@pytest.mark.parametrize(("method", "path"), ADMIN)
async def test_an_admins_path_needs_leave(
    gateway: Serve, double: Double, method: str, path: str
) -> None:
    closed = await gateway(double)
    answer = await closed.ask(method, path, BODY)
    assert answer.status == 403
    assert "--allow-admin" in answer.error["message"]
    assert answer.error["code"] == 403
    assert double.requests == []
    opened = await gateway(double, allow_admin=True)
    double.on(path, answers(200, b"done"))
    answer = await opened.ask(method, f"{path}?action=erase", BODY)
    assert (answer.status, answer.body) == (200, b"done")
    asked = double.requests[-1]
    assert (asked.method, asked.target, asked.body) == (method, f"{path}?action=erase", BODY)


@pytest.mark.parametrize("path", ["/slots/../props", "/slots/0%2f..", "/slots/0/../1", "/slots/²"])
async def test_no_path_leads_elsewhere(gateway: Serve, double: Double, path: str) -> None:
    tropilla = await gateway(double, allow_admin=True)
    raw = await tropilla.connect()
    await raw.post(path.encode().decode("latin-1"), b"{}")
    assert (await raw.answer()).status in {400, 404}
    assert double.requests == []


@pytest.mark.parametrize("fault", [resets, closes])
async def test_a_fault_is_tried_again_elsewhere(
    gateway: Serve, doubles: Start, fault: object
) -> None:
    one, two = await doubles(), await doubles()
    one.keeps = False
    tropilla = await gateway(one, two)
    one.on("/tokenize", fault)  # type: ignore[arg-type]
    two.on("/tokenize", answers(200, b"ok"))
    assert (await tropilla.ask("POST", "/tokenize", b"{}")).body == b"ok"
    assert (len(one.requests), len(two.requests)) == (1, 1)


async def test_an_upstreams_own_refusal_is_not_tried_again(gateway: Serve, doubles: Start) -> None:
    one, two = await doubles(), await doubles()
    tropilla = await gateway(one, two)
    for double in (one, two):
        double.on("/tokenize", refuses(500, "no", "server_error"))
    assert (await tropilla.ask("POST", "/tokenize", b"{}")).error["message"] == "no"
    assert len(one.requests) + len(two.requests) == 1


async def test_it_goes_where_its_model_is(gateway: Serve, doubles: Start) -> None:
    one, two = await doubles("one"), await doubles("two")
    tropilla = await gateway(one, two)
    for double in (one, two):
        double.on("/tokenize", answers(200, double.models[0].encode()))
        double.on("/slots", answers(200, double.models[0].encode()))
    for model in ("two", "one", "two", "two"):
        answer = await tropilla.ask("POST", "/tokenize", {"model": model})
        assert answer.body == model.encode()
        answer = await tropilla.ask("GET", f"/slots?model={model}")
        assert answer.body == model.encode()
    answer = await tropilla.ask("POST", "/tokenize", {"model": "three"})
    assert (answer.status, answer.error["code"]) == (404, 404)
    assert "one, two" in answer.error["message"]


async def test_head_has_no_body(gateway: Serve, double: Double) -> None:
    async def headed(exchange: Exchange) -> None:
        await exchange.head(200, "text/plain", "Content-Length: 5", chunked=False)
        if exchange.method != "HEAD":
            await exchange.raw(b"12345")

    tropilla = await gateway(double)
    double.on("/props", headed)
    raw = await tropilla.connect()
    await raw.send(b"HEAD /props HTTP/1.1\r\nHost: t\r\n\r\nGET /props HTTP/1.1\r\nHost: t\r\n\r\n")
    assert (await raw.head())[0] == 200
    assert (await raw.answer()).body == b"12345"


@pytest.mark.parametrize("path", ["/props", "/slots"])
async def test_the_real_engine_reads(gateway: Serve, engine: str, path: str) -> None:
    answer = await (await gateway(engine)).ask("GET", path)
    assert answer.status in {200, 501}
    assert answer.body


async def test_the_real_engine_tokenizes(gateway: Serve, engine: str) -> None:
    tropilla = await gateway(engine)
    tokens = (await tropilla.ask("POST", "/tokenize", {"content": "Hello!"})).json["tokens"]
    assert tokens
    text = await tropilla.ask("POST", "/detokenize", {"tokens": tokens})
    assert text.json["content"].strip() == "Hello!"
    prompt = await tropilla.ask("POST", "/apply-template", CHAT)
    assert "Hello!" in prompt.json["prompt"]
