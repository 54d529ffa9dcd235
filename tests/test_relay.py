"""The path of a request: what an upstream does wrong, what is tried again, what is heard of it."""

from __future__ import annotations

import asyncio
from typing import Any

import msgspec
import pytest

from conftest import CHAT, Answer, Serve, Served, Start
from doubles.upstream import (
    DEADLINE,
    DONE,
    JSON,
    LOADING,
    SSE,
    USAGE,
    Double,
    Exchange,
    Script,
    answers,
    breaks,
    chunk,
    closes,
    event,
    native_told,
    refuses,
    resets,
    streams,
    told,
)
from tropilla.config import TimeoutsConfig, UpstreamConfig
from tropilla.upstream import fleet

pytestmark = pytest.mark.anyio

PATH = "/v1/chat/completions"
FORMS = pytest.mark.parametrize("stream", [False, True], ids=["whole", "stream"])


async def GOOD(exchange: Exchange) -> None:  # noqa: N802 - a script like the others
    """Answer well, on a connection that is not used again: each try has one of its own."""
    await exchange.head(200, SSE, "Connection: close")
    await exchange.send(b"".join(told("Hello", " there")))
    await exchange.end()
    exchange._connection.transport.close()


def said(answer: Answer) -> str:
    """What a chat answer says, streamed or whole."""
    if answer.headers["content-type"].startswith(SSE):
        assert answer.events[-1] == "[DONE]"
        return answer.text
    text: str = answer.json["choices"][0]["message"]["content"]
    return text


# What an upstream does wrong before it says anything.


async def hangs_up_in_its_head(exchange: Exchange) -> None:
    await exchange.raw(b"HTTP/1.1 200 OK\r\nContent-Ty")
    exchange.reset()


async def speaks_no_http(exchange: Exchange) -> None:
    await exchange.raw(b"SSH-2.0-OpenSSH_9.6\r\n\r\n")
    exchange._connection.transport.close()


async def breaks_off_its_json(exchange: Exchange) -> None:
    await exchange.head(200, "application/json", "Content-Length: 1000", chunked=False)
    await exchange.raw(b'{"choices": [')
    exchange.reset()


async def says_nothing(exchange: Exchange) -> None:
    await exchange.head()
    await exchange.end()


FAULTS: dict[str, tuple[Script, int, str]] = {
    "reset": (resets, 503, "closed the connection before it answered"),
    "closed": (closes, 503, "closed the connection before it answered"),
    "half a head": (hangs_up_in_its_head, 503, "closed the connection before it answered"),
    "no HTTP": (speaks_no_http, 503, "something that is not HTTP"),
    "500": (refuses(500, "Failed to parse", "server_error"), 502, "Failed to parse"),
    "500 of nobody": (answers(500, b""), 502, "no reason that can be shown"),
    "html": (answers(200, b"<html>Hello</html>", "text/html"), 502, "not JSON"),
    "html 502": (answers(502, b"<html>Hello</html>", "text/html"), 502, "502"),
    "truncated": (answers(200, b'{"choices": ['), 502, "not JSON"),
    "broken off": (breaks_off_its_json, 502, "broke off"),
    "other JSON": (answers(200, b'{"hello": "world"}'), 502, "'choices'"),
    "a redirect": (answers(302, b"", "text/html", "Location: http://x/"), 502, "302"),
    "error with 200": (answers(200, b'{"error":{"message":"Oh no"}}'), 502, "Oh no"),
    "empty stream": (says_nothing, 502, "before the answer was complete"),
    "reset stream": (breaks(), 502, "broke off"),
    "garbage stream": (streams(b"data: nonsense\n\n"), 502, "not JSON"),
    "error first": (
        streams(event({"error": {"code": 500, "message": "Oh no", "type": "server_error"}})),
        502,
        "Oh no",
    ),
    "old error first": (streams(b'error: {"code": 500, "message": "Oh no"}\n\n'), 502, "Oh no"),
    "wants a key": (refuses(401, "Invalid API Key", "authentication_error"), 502, "own key"),
}


@FORMS
@pytest.mark.parametrize(("script", "status", "words"), FAULTS.values(), ids=FAULTS.keys())
async def test_a_fault_before_the_first_byte_is_told(
    gateway: Serve, double: Double, script: Script, status: int, words: str, *, stream: bool
) -> None:
    double.keeps = False
    tropilla = await gateway(double)
    double.on(PATH, script)
    answer = await tropilla.chat(stream=stream)
    assert (answer.status, answer.headers["content-type"]) == (status, "application/json")
    assert tuple(answer.error) == ("message", "type", "param", "code")
    assert words in answer.error["message"]
    assert "<html>" not in answer.error["message"]
    assert answer.error["type"] == "server_error"
    # Who was not there may be there again; who has said something would say it again.
    gone = status == 503 or words == "broke off"
    assert len(double.requests) == (2 if gone else 1)


@FORMS
@pytest.mark.parametrize("script", [resets, closes, breaks()], ids=["reset", "closed", "broken"])
async def test_a_lone_upstream_that_comes_back_is_asked_again(
    gateway: Serve, double: Double, script: Script, *, stream: bool
) -> None:
    double.keeps = False
    tropilla = await gateway(double)
    double.on(PATH, script, GOOD)
    assert said(await tropilla.chat(stream=stream)) == "Hello there"
    assert len(double.requests) == 2


@FORMS
@pytest.mark.parametrize(("script", "status", "words"), FAULTS.values(), ids=FAULTS.keys())
async def test_the_second_try_is_another_upstreams(
    gateway: Serve, doubles: Start, script: Script, status: int, words: str, *, stream: bool
) -> None:
    del status, words
    one, two = await doubles(), await doubles()
    one.keeps = False
    tropilla = await gateway(one, two)
    one.on(PATH, script)
    two.on(PATH, GOOD)
    assert said(await tropilla.chat(stream=stream)) == "Hello there"
    assert (len(one.requests), len(two.requests)) == (1, 1)


async def test_the_second_try_is_another_upstreams_however_busy(
    gateway: Serve, doubles: Start
) -> None:
    one, two = await doubles(), await doubles()
    two.busy = 3
    tropilla = await gateway(one, two)
    one.on(PATH, refuses(500, "no", "server_error"))
    two.on(PATH, GOOD)
    assert said(await tropilla.chat()) == "Hello there"
    assert (len(one.requests), len(two.requests)) == (1, 1)


@FORMS
async def test_loading_is_waited_for(gateway: Serve, double: Double, *, stream: bool) -> None:
    tropilla = await gateway(double)
    double.on(PATH, LOADING, GOOD)
    double.health = 503, b'{"error":{"code":503,"message":"Loading model"}}'
    asked = asyncio.create_task(tropilla.chat(stream=stream))
    await tropilla.until(lambda: tropilla.fleet.state() == "loading")
    double.health = 200, b"{}"
    assert said(await asked) == "Hello there"
    assert len(double.requests) == 2


@FORMS
async def test_that_all_of_them_load_is_no_failure(
    gateway: Serve, doubles: Start, *, stream: bool
) -> None:
    herd = [await doubles() for _ in range(3)]
    tropilla = await gateway(*herd)
    for double in herd:
        double.on(PATH, LOADING, GOOD)
        double.health = 503, b'{"error":{"code":503,"message":"Loading model"}}'
    asked = asyncio.create_task(tropilla.chat(stream=stream))
    await tropilla.until(lambda: tropilla.fleet.state() == "loading")
    herd[2].health = 200, b"{}"
    assert said(await asked) == "Hello there"
    assert [len(double.requests) for double in herd] == [1, 1, 2]


async def test_who_says_again_and_again_that_it_loads_fails(gateway: Serve, double: Double) -> None:
    tropilla = await gateway(double)
    double.on(PATH, LOADING)
    answer = await tropilla.chat()
    assert (answer.status, answer.error["code"]) == (503, "model_loading")
    assert len(double.requests) == 3


@FORMS
async def test_loading_for_ever_is_told(
    gateway: Serve, double: Double, *, stream: bool, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(fleet, "PATIENCE_SECONDS", 0.05)
    double.health = 503, b'{"error":{"code":503,"message":"Loading model"}}'
    tropilla = await gateway(double, ready=False)
    await tropilla.until(lambda: tropilla.fleet.state() == "loading")
    answer = await tropilla.chat(stream=stream)
    assert (answer.status, answer.error["message"]) == (503, "Loading model")
    assert answer.error["code"] == "model_loading"
    assert answer.headers["retry-after"] == "1"
    assert double.requests == []


REFUSALS: dict[str, tuple[Script, int, dict[str, Any]]] = {
    "context": (
        refuses(400, "Too long", "exceed_context_size_error", n_prompt_tokens=9, n_ctx=8),
        400,
        {"code": "context_length_exceeded", "message": "Too long", "n_prompt_tokens": 9},
    ),
    "bad": (
        refuses(400, "Bad grammar", "invalid_request_error"),
        400,
        {"type": "invalid_request_error", "message": "Bad grammar", "code": None},
    ),
    "text": (
        answers(400, b"[json.exception.type_error.302] oh", "text/plain"),
        400,
        {"message": "The upstream answered 400: [json.exception.type_error.302] oh"},
    ),
    "limited": (refuses(429, "Slow", "x"), 429, {"code": "rate_limit_exceeded"}),
    "unsupported": (refuses(501, "No", "not_supported_error"), 400, {"message": "No"}),
    "context, as the first event": (
        streams(
            event({"error": {"code": 400, "message": "L", "type": "exceed_context_size_error"}})
        ),
        400,
        {"code": "context_length_exceeded"},
    ),
}


@FORMS
@pytest.mark.parametrize(("script", "status", "fields"), REFUSALS.values(), ids=REFUSALS.keys())
async def test_a_refusal_is_told_and_not_tried_again(
    gateway: Serve,
    doubles: Start,
    script: Script,
    status: int,
    fields: dict[str, Any],
    *,
    stream: bool,
) -> None:
    one, two = await doubles(), await doubles()
    tropilla = await gateway(one, two)
    one.on(PATH, script)
    two.on(PATH, script)
    answer = await tropilla.chat(stream=stream)
    assert answer.status == status
    assert fields.items() <= answer.error.items()
    assert {"message", "type", "param", "code"} <= answer.error.keys()
    assert len(one.requests) + len(two.requests) == 1


async def test_on_a_native_path_an_error_is_llama_cpps(gateway: Serve, double: Double) -> None:
    tropilla = await gateway(double)
    double.on("/completion", refuses(400, "L", "exceed_context_size_error", n_ctx=8))
    answer = await tropilla.ask("POST", "/completion", {"prompt": "x"})
    assert answer.status == 400
    told_so = {"code": 400, "message": "L", "type": "exceed_context_size_error", "n_ctx": 8}
    assert told_so.items() <= answer.error.items()
    double.on("/completion", resets)
    answer = await tropilla.ask("POST", "/completion", {"prompt": "x"})
    assert (answer.status, answer.error["code"]) == (503, 503)
    answer = await tropilla.ask("POST", "/completion", b"{")
    assert (answer.status, answer.error["code"]) == (400, 400)


# What breaks off in the middle.


async def in_the_middle(tropilla: Served, double: Double) -> tuple[Any, Exchange]:
    """A stream whose first word has reached the client."""
    raw = await tropilla.connect()
    await raw.post(PATH, CHAT | {"stream": True})
    exchange = await double.arrives()
    await exchange.head()
    await exchange.send(chunk("Hello"))
    await raw.see(b'"Hello"')
    return raw, exchange


MIDDLES = {
    "reset": None,
    "garbage": b"data: {nonsense\n\n",
    "error": event({"error": {"code": 500, "message": "Oh no", "type": "server_error"}}),
    "old error": b'error: {"code": 500, "message": "Oh no"}\n\n',
    "loading": event({"error": {"code": 503, "message": "Loading model"}}),
    "done too soon": DONE,
    "no object": b"data: 1\n\n",
    "end": b"",
}


@pytest.mark.parametrize("end", MIDDLES.values(), ids=MIDDLES.keys())
async def test_a_failure_in_the_middle_is_told_in_the_stream(
    gateway: Serve, doubles: Start, end: bytes | None
) -> None:
    one, two = await doubles(), await doubles()
    tropilla = await gateway(one, two)
    raw, exchange = await in_the_middle(tropilla, one)
    if end is None:
        exchange.reset()
    else:
        if end:
            await exchange.send(end)
        await exchange.end()
    answer = await raw.answer()
    assert answer.status == 200
    assert answer.text == "Hello"
    assert answer.events[-1] == "[DONE]"
    assert tuple(answer.events[-2]["error"]) == ("message", "type", "param", "code")
    reasons = [c["finish_reason"] for e in answer.events[:-2] for c in e["choices"]]
    assert set(reasons) == {None}
    # The connection is as good as before, and nothing was tried again.
    await raw.send(b"GET /health HTTP/1.1\r\nHost: t\r\n\r\n")
    assert (await raw.answer()).status == 200
    assert (len(one.requests), len(two.requests)) == (1, 0)


async def test_an_answer_that_is_wanted_whole_is_tried_again_when_it_breaks_off(
    gateway: Serve, doubles: Start
) -> None:
    one, two = await doubles(), await doubles()
    tropilla = await gateway(one, two)
    one.on(PATH, breaks(chunk("Hel")))
    two.on(PATH, GOOD)
    assert said(await tropilla.chat()) == "Hello there"


async def test_silence_ends_a_stream(gateway: Serve, double: Double) -> None:
    quick = UpstreamConfig(url=double.url, timeouts=TimeoutsConfig(idle=0.05))
    tropilla = await gateway(upstreams=(quick,))
    raw, exchange = await in_the_middle(tropilla, double)
    answer = await raw.answer()
    assert answer.events[-2]["error"]["code"] == "upstream_timeout"
    await exchange.left()


async def test_the_end_of_the_gateway_is_told(gateway: Serve, double: Double) -> None:
    tropilla = await gateway(double)
    streaming, exchange = await in_the_middle(tropilla, double)
    waiting = await tropilla.connect()
    await waiting.post(PATH, CHAT)
    other = await double.arrives()
    # What is done once it was waited long enough.
    tropilla.listener.give_up()
    answer = await streaming.answer()
    assert answer.text == "Hello"
    assert answer.events[-2]["error"]["message"] == "Tropilla was ended."
    assert answer.events[-1] == "[DONE]"
    answer = await waiting.answer()
    assert (answer.status, answer.headers["retry-after"]) == (503, "1")
    await exchange.left()
    await other.left()


# Old pooled connections.


@FORMS
async def test_dead_connections_of_the_pool_are_nobodys_business(
    gateway: Serve, double: Double, *, stream: bool
) -> None:
    async def dies_if_it_was_used_before(exchange: Exchange) -> None:
        if exchange.number:
            exchange.reset()
        else:
            await gate.wait()
            await exchange.stream(*told("Hello", " there"))

    gate = asyncio.Event()
    tropilla = await gateway(double)
    double.on(PATH, dies_if_it_was_used_before)
    asked = [asyncio.create_task(tropilla.chat(stream=stream)) for _ in range(4)]
    async with asyncio.timeout(DEADLINE):
        while len(double.requests) < 4:  # noqa: ASYNC110 - a few turns of the loop away
            await asyncio.sleep(0)
    gate.set()
    await asyncio.gather(*asked)
    changes = tropilla.fleet._changed
    # Four connections lie in the pool, each of which ends when it is used again.
    assert said(await tropilla.chat(stream=stream)) == "Hello there"
    assert tropilla.fleet._changed is changes, "the upstream was thought to be lost"


@FORMS
async def test_the_connection_of_a_finished_answer_is_used_again(
    gateway: Serve, double: Double, *, stream: bool
) -> None:
    tropilla = await gateway(double)
    for number in range(3):
        asked = asyncio.create_task(tropilla.chat(stream=stream))
        exchange = await double.arrives()
        await exchange.head()
        await exchange.send(b"".join(told("Hello")))
        # The client has its answer before the body ends, as it does with a llama-server.
        assert said(await asked) == "Hello"
        await exchange.end()
        assert exchange.number >= number
    assert double.accepted <= 2


# The stream as it comes.


async def test_each_piece_is_sent_on_as_it_comes(gateway: Serve, double: Double) -> None:
    tropilla = await gateway(double)
    raw, exchange = await in_the_middle(tropilla, double)
    for word in ("one", "two", "three"):
        # The next word is not said before this one has arrived.
        await exchange.send(chunk(word))
        await raw.see(f'"{word}"'.encode())
    for piece in (chunk(reason="stop"), DONE):
        await exchange.send(piece)
    await raw.until(b"data: [DONE]\n\n")
    # The client hears the end at once, whether or not the upstream ends its body.
    await raw.until(b"0\r\n\r\n")


@FORMS
async def test_an_upstreams_pings_are_not_the_clients(
    gateway: Serve, double: Double, *, stream: bool
) -> None:
    """Programs of 2023 read every line as data; whoever has to wait long hears of it here."""
    double.on(PATH, streams(b":\n\n", b": waiting\n\n", *told("Hello")))
    answer = await (await gateway(double)).chat(stream=stream)
    assert said(answer) == "Hello"
    assert b"\n:" not in b"\n" + answer.body


async def test_an_upstreams_ping_spends_no_status(gateway: Serve, double: Double) -> None:
    double.on(PATH, streams(b":\n\n", event({"error": {"code": 400, "message": "No."}})))
    answer = await (await gateway(double)).chat(stream=True)
    assert (answer.status, answer.error["message"]) == (400, "No.")


@FORMS
async def test_cut_anywhere_the_answer_is_the_same(
    gateway: Serve, double: Double, *, stream: bool
) -> None:
    whole = b"".join(told("Grüße", " \N{GRINNING FACE}"))
    double.on(PATH, streams(*(whole[i : i + 1] for i in range(len(whole)))))
    assert said(await (await gateway(double)).chat(stream=stream)) == "Grüße \N{GRINNING FACE}"


@FORMS
@pytest.mark.parametrize("end", [b"\r\n", b"\r"], ids=["CRLF", "CR"])
async def test_other_line_ends(gateway: Serve, double: Double, *, stream: bool, end: bytes) -> None:
    double.on(PATH, streams(*(one.replace(b"\n", end) for one in told("Hello", " there"))))
    assert said(await (await gateway(double)).chat(stream=stream)) == "Hello there"


@FORMS
async def test_no_done(gateway: Serve, double: Double, *, stream: bool) -> None:
    double.on(PATH, streams(chunk("Hello"), chunk(reason="stop"), USAGE))
    assert said(await (await gateway(double)).chat(stream=stream)) == "Hello"


@FORMS
async def test_an_upstream_that_answers_whole_although_asked_to_stream(
    gateway: Serve, double: Double, *, stream: bool
) -> None:
    body = {
        "id": "x", "object": "chat.completion", "created": 1, "model": "m",
        "choices": [
            {"index": 0, "finish_reason": "stop", "message": {"role": "assistant", "content": "Hi"}}
        ],
        "usage": {"prompt_tokens": 3, "completion_tokens": 2, "total_tokens": 5},
    }  # fmt: skip
    double.on(PATH, answers(200, msgspec.json.encode(body)))
    answer = await (await gateway(double)).chat(stream=stream)
    assert said(answer) == "Hi"
    if stream:
        assert [c["finish_reason"] for c in answer.events[-2]["choices"]] == ["stop"]
    else:
        assert answer.json["usage"]["total_tokens"] == 5


@FORMS
async def test_no_depth_of_an_upstreams_json_is_a_defect(
    gateway: Serve, double: Double, *, stream: bool
) -> None:
    tropilla = await gateway(double)
    for depth in range(900, 1000):
        nested: bytes = b'{"a":' * depth + b"1" + b"}" * depth
        deep = chunk("x", more=msgspec.Raw(nested))
        double.on(PATH, streams(chunk("Hello"), deep, chunk(reason="stop"), DONE))
        answer = await tropilla.chat(stream=stream)
        assert b"Tropilla failed" not in answer.body
        if stream:
            assert answer.events[-1] == "[DONE]"


# What is asked.


@FORMS
async def test_an_upstream_is_always_asked_to_stream_and_never_sees_the_clients_secrets(
    gateway: Serve, double: Double, *, stream: bool
) -> None:
    double.on(PATH, GOOD)
    double.on("/tokenize", answers(200, b"{}"))
    from tropilla.config import UpstreamConfig

    tropilla = await gateway(
        upstreams=(UpstreamConfig(url=double.url, api_key="upstreams"),), api_keys=("clients",)
    )
    headers = {
        "authorization": "Bearer clients",
        "api-key": "clients",
        "cookie": "session=clients",
        "x-conversation-id": "clients",
        "x-forwarded-for": "clients",
        "origin": "https://clients",
    }
    for path in (PATH, "/tokenize"):
        answer = await tropilla.ask("POST", path, CHAT | {"stream": stream}, headers)
        assert answer.status == 200
    for exchange in double.requests:
        assert exchange.headers["authorization"] == "Bearer upstreams"
        assert "clients" not in str(exchange.headers)
        assert "x-conversation-id" not in exchange.headers
    assert double.requests[0].json["stream"] is True


@pytest.mark.parametrize(
    ("path", "body", "asked"),
    [
        ("/v1/chat/completions", CHAT, "/v1/chat/completions"),
        ("/v1/completions", {"prompt": "x"}, "/completion"),
        ("/completion", {"prompt": "x"}, "/completion"),
        ("/infill", {"input_prefix": "x", "input_suffix": "y"}, "/infill"),
    ],
)
async def test_where_an_upstream_is_asked(
    gateway: Serve, double: Double, path: str, body: dict[str, Any], asked: str
) -> None:
    double.on("/v1/chat/completions", streams(*told("x")))
    double.on("/completion", streams(*native_told("x")))
    double.on("/infill", streams(*native_told("x")))
    answer = await (await gateway(double)).ask("POST", path, body)
    assert (answer.status, double.requests[0].target) == (200, asked)


async def test_a_base_path_of_an_upstream_is_kept(gateway: Serve, double: Double) -> None:
    for path, script in (
        ("/llama/health", answers(200, b"{}")),
        ("/llama/props", answers(200, b"{}")),
        ("/llama/v1/models", answers(200, b'{"data":[{"id":"m"}]}')),
        ("/llama/v1/chat/completions", GOOD),
    ):
        double.on(path, script)
    tropilla = await gateway(f"{double.url}/llama/")
    assert said(await tropilla.chat()) == "Hello there"


# What SDKs are told of trying again.


async def test_when_to_ask_again_is_told_in_seconds_and_in_milliseconds(
    gateway: Serve, double: Double
) -> None:
    double.on(PATH, answers(429, b'{"error":{"message":"Slow down."}}', JSON, "Retry-After: 7"))
    answer = await (await gateway(double)).chat()
    assert answer.status == 429
    assert (answer.headers["retry-after"], answer.headers["retry-after-ms"]) == ("7", "7000")
    assert "x-should-retry" not in answer.headers


@pytest.mark.parametrize(
    ("script", "status", "told"),
    [
        (refuses(500, "Compute error.", "server_error"), 502, {"x-should-retry": "false"}),
        (breaks(chunk("Hello")), 502, {"x-should-retry": "false"}),
        (closes, 503, {"retry-after": "1", "retry-after-ms": "1000"}),
    ],
    ids=["refused", "broken off", "not begun"],
)
async def test_what_two_upstreams_have_worked_at_is_not_asked_for_again(
    gateway: Serve, doubles: Start, script: Script, status: int, told: dict[str, str]
) -> None:
    one, two = await doubles(), await doubles()
    for double in (one, two):
        double.on(PATH, script)
    answer = await (await gateway(one, two)).chat()
    names = ("x-should-retry", "retry-after", "retry-after-ms")
    assert answer.status == status
    assert {name: answer.headers[name] for name in names if name in answer.headers} == told
    assert one.requests
    assert two.requests
