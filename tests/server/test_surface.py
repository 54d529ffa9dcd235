"""The HTTP surface: every path, every method, what is on every answer, who may ask."""

from __future__ import annotations

import re
from pathlib import Path

import pytest

from conftest import CHAT, Serve, Start
from doubles.upstream import Double, breaks, chunk, native_told, refuses, streams, told
from tropilla.config import read_keys

pytestmark = pytest.mark.anyio

KEYS = ("message", "type", "param", "code")
COMPLETION = {"model": "m", "prompt": "Once"}


@pytest.mark.parametrize("path", ["/v1/chat/completions", "/chat/completions"])
@pytest.mark.parametrize("slash", ["", "/"])
async def test_chat_completions(gateway: Serve, double: Double, path: str, slash: str) -> None:
    double.on("/v1/chat/completions", streams(*told("Good", " day")))
    tropilla = await gateway(double)
    answer = await tropilla.ask("POST", path + slash, CHAT)
    assert (answer.status, answer.headers["content-type"]) == (200, "application/json")
    assert answer.json["object"] == "chat.completion"
    assert answer.json["model"] == "m"
    assert answer.json["choices"][0]["message"]["content"] == "Good day"
    assert answer.json["choices"][0]["finish_reason"] == "stop"
    assert answer.json["usage"]["total_tokens"] == 5


@pytest.mark.parametrize("path", ["/v1/completions", "/completions"])
@pytest.mark.parametrize("slash", ["", "/"])
async def test_completions(gateway: Serve, double: Double, path: str, slash: str) -> None:
    double.on("/completion", streams(*native_told("upon", " a time")))
    tropilla = await gateway(double)
    answer = await tropilla.ask("POST", path + slash, COMPLETION)
    assert answer.status == 200
    assert answer.json["object"] == "text_completion"
    assert answer.json["choices"][0]["text"] == "upon a time"
    assert double.requests[0].json["prompt"] == "Once"


async def test_the_native_path_answers_as_llama_cpp_does(gateway: Serve, double: Double) -> None:
    double.on("/completion", streams(*native_told("upon", " a time")))
    tropilla = await gateway(double)
    answer = await tropilla.ask("POST", "/completion", {"prompt": "Once"})
    assert (answer.status, answer.json["content"]) == (200, "upon a time")


@pytest.mark.parametrize("path", ["/v1/models", "/models", "/v1/models/", "/models/"])
async def test_models(gateway: Serve, double: Double, path: str) -> None:
    tropilla = await gateway(double)
    answer = await tropilla.ask("GET", path)
    assert answer.status == 200
    assert answer.json["object"] == "list"
    (card,) = answer.json["data"]
    assert (card["id"], card["object"], card["owned_by"]) == ("m", "model", "llamacpp")
    assert card["context_length"] == 4096


@pytest.mark.parametrize(
    ("model", "path"),
    [
        ("m", "/v1/models/m"),
        ("m", "/models/m"),
        ("m", "/v1/models/m/"),
        ("org/m:q4", "/v1/models/org/m:q4"),
        ("org/m:q4", "/v1/models/org%2Fm%3Aq4"),
        ("org/m:q4", "/models/org%2fm:q4"),
        ("ein Löwe", "/v1/models/ein%20L%C3%B6we"),
    ],
)
async def test_one_model(gateway: Serve, doubles: Start, model: str, path: str) -> None:
    tropilla = await gateway(await doubles(model))
    answer = await tropilla.ask("GET", path)
    assert (answer.status, answer.json["id"]) == (200, model)


async def test_an_unknown_model_is_named_with_those_that_are_served(
    gateway: Serve, double: Double
) -> None:
    tropilla = await gateway(double)
    for answer in (
        await tropilla.ask("GET", "/v1/models/gpt-5"),
        await tropilla.chat(model="gpt-5"),
    ):
        assert answer.status == 404
        assert answer.error["code"] == "model_not_found"
        assert answer.error["param"] == "model"
        assert "'gpt-5'" in answer.error["message"]
        assert answer.error["message"].endswith("Served: m.")
    assert double.requests == []


# Health.


@pytest.mark.parametrize("path", ["/health", "/v1/health", "/health/"])
async def test_health(gateway: Serve, double: Double, path: str) -> None:
    tropilla = await gateway(double, api_keys=("secret",))
    answer = await tropilla.ask("GET", path)
    assert (answer.status, answer.json) == (200, {"status": "ok"})


async def test_health_while_a_model_loads(gateway: Serve, double: Double) -> None:
    double.on("/health", refuses(503, "Loading model", "unavailable_error"))
    tropilla = await gateway(double, ready=False)
    await tropilla.until(lambda: tropilla.fleet.state() == "loading")
    answer = await tropilla.ask("GET", "/health")
    assert (answer.status, answer.json["status"]) == (503, "loading")
    assert answer.error == {"code": 503, "message": "Loading model", "type": "unavailable_error"}
    assert answer.headers["retry-after"] == "1"


@pytest.mark.usefixtures("hasty_probes")
async def test_health_with_nobody_there(gateway: Serve, closed_port: int) -> None:
    tropilla = await gateway(f"http://127.0.0.1:{closed_port}", ready=False)
    assert (await tropilla.ask("GET", "/health")).json["status"] == "loading"
    await tropilla.until(lambda: tropilla.fleet.state() == "down")
    answer = await tropilla.ask("GET", "/health")
    assert (answer.status, answer.json["status"]) == (503, "unavailable")


# Methods and paths that are none.


async def test_a_path_that_is_none(gateway: Serve, double: Double) -> None:
    tropilla = await gateway(double)
    for path in ("/v1", "/v2/models", "/v1/chat", "/v1//models", "/slots/one", "/%2e%2e/x"):
        answer = await tropilla.ask("GET", path)
        assert (answer.status, answer.headers["content-type"]) == (404, "application/json"), path
        assert tuple(answer.error) == KEYS
        assert answer.error["message"] == f"Invalid URL (GET {path}): File Not Found"
        told = answer.error["type"], answer.error["code"]
        assert told == ("invalid_request_error", "unknown_url")


@pytest.mark.parametrize(
    ("method", "path", "allowed"),
    [
        ("DELETE", "/v1/models", "GET, HEAD, OPTIONS"),
        ("GET", "/v1/chat/completions", "POST, OPTIONS"),
        ("HEAD", "/v1/chat/completions", "POST, OPTIONS"),
        ("PUT", "/health", "GET, HEAD, OPTIONS"),
        ("PATCH", "/props", "GET, HEAD, POST, OPTIONS"),
        ("TRACE", "/v1/models/m", "GET, HEAD, OPTIONS"),
    ],
)
async def test_a_method_that_is_not_allowed(
    gateway: Serve, double: Double, method: str, path: str, allowed: str
) -> None:
    tropilla = await gateway(double)
    answer = await tropilla.ask(method, path)
    assert (answer.status, answer.headers["allow"]) == (405, allowed)
    if method != "HEAD":
        assert tuple(answer.error) == KEYS
        assert answer.error["code"] == "method_not_allowed"


@pytest.mark.parametrize("path", ["/health", "/v1/models", "/v1/models/m"])
async def test_head_is_get_without_its_body(gateway: Serve, double: Double, path: str) -> None:
    tropilla = await gateway(double)
    got, headed = await tropilla.ask("GET", path), await tropilla.ask("HEAD", path)
    assert (headed.status, headed.body) == (200, b"")
    assert headed.headers["content-length"] == got.headers["content-length"]


# On every answer.

NOT_HTTP = [
    b"\x16\x03\x01\x02\x00\x01\x00\x01\xfc\x03\x03",
    b"hello\r\n\r\n",
    b"GET / HTTP/9.9\r\n\r\n",
]


async def test_every_answer_has_an_id_and_its_time_and_may_be_read_by_a_browser(
    gateway: Serve, double: Double
) -> None:
    double.on("/v1/chat/completions", streams(*told("x")), breaks(), refuses(500, "no", "e"))
    double.on("/tokenize", streams(b"x"))
    tropilla = await gateway(double, api_keys=("k",))
    key = {"authorization": "Bearer k"}
    answers = [
        await tropilla.ask("POST", "/v1/chat/completions", CHAT | {"stream": True}, key),
        await tropilla.ask("POST", "/v1/chat/completions", CHAT, key),
        await tropilla.ask("POST", "/v1/chat/completions", b"{", key),
        await tropilla.ask("POST", "/tokenize", b"{}", key),
        await tropilla.ask("GET", "/v1/models", None, key),
        await tropilla.ask("GET", "/v1/models"),
        await tropilla.ask("GET", "/nothing", None, key),
        await tropilla.ask("DELETE", "/v1/models", None, key),
        await tropilla.ask("GET", "/health"),
        await tropilla.ask("OPTIONS", "/v1/chat/completions"),
        await tropilla.ask("POST", "/tools", b"{}", key),
    ]
    statuses = [answer.status for answer in answers]
    assert statuses == [200, 502, 400, 200, 200, 401, 404, 405, 200, 204, 403]
    for garbage in NOT_HTTP:
        raw = await tropilla.connect()
        await raw.send(garbage)
        answers.append(await raw.answer())
        assert answers[-1].status == 400
        assert tuple(answers[-1].error) == KEYS
        assert await raw.rest() == b""
    for answer in answers:
        assert answer.headers["x-request-id"].startswith("req_")
        assert answer.headers["openai-processing-ms"].isdecimal()
        assert answer.headers["access-control-allow-origin"] == "*"
        assert "access-control-allow-credentials" not in answer.headers
        assert "set-cookie" not in answer.headers
        assert "llama" not in answer.headers.get("server", "")
    ids = [answer.headers["x-request-id"] for answer in answers]
    assert len(set(ids)) == len(ids)


async def test_an_id_is_later_than_those_before_and_nobody_can_guess_it(
    gateway: Serve, double: Double
) -> None:
    tropilla = await gateway(double)
    ids = [(await tropilla.ask("GET", "/health")).headers["x-request-id"] for _ in range(300)]
    assert all(re.fullmatch(r"req_[0-9a-f]{32}", one) for one in ids)
    assert ids == sorted(ids)
    assert len({one[-20:] for one in ids}) == len(ids)


@pytest.mark.parametrize("path", ["/v1/chat/completions", "/v1/models", "/health", "/nothing", "*"])
async def test_a_preflight_needs_no_key(gateway: Serve, double: Double, path: str) -> None:
    tropilla = await gateway(double, api_keys=("secret",))
    raw = await tropilla.connect()
    await raw.send(
        f"OPTIONS {path} HTTP/1.1\r\nHost: t\r\nOrigin: https://app.example\r\n"
        "Access-Control-Request-Method: POST\r\n"
        "Access-Control-Request-Headers: authorization,x-stainless-lang\r\n\r\n".encode()
    )
    answer = await raw.answer()
    assert (answer.status, answer.body) == (204, b"")
    assert answer.headers["access-control-allow-origin"] == "*"
    assert answer.headers["access-control-allow-headers"] == "authorization,x-stainless-lang"
    assert "POST" in answer.headers["access-control-allow-methods"]
    assert "access-control-max-age" in answer.headers


async def test_a_browser_may_read_the_headers_that_count(gateway: Serve, double: Double) -> None:
    tropilla = await gateway(double)
    answer = await tropilla.ask("GET", "/v1/models", None, {"origin": "https://app.example"})
    exposed = answer.headers["access-control-expose-headers"].split(", ")
    assert {"x-request-id", "openai-processing-ms", "retry-after"} <= set(exposed)


async def test_a_stream_may_not_be_held_back_on_its_way(gateway: Serve, double: Double) -> None:
    double.on("/v1/chat/completions", streams(*told("x")))
    answer = await (await gateway(double)).chat(stream=True)
    assert answer.headers["content-type"] == "text/event-stream; charset=utf-8"
    assert answer.headers["cache-control"] == "no-cache"
    assert answer.headers["x-accel-buffering"] == "no"


async def test_garbage_behind_a_request_does_not_land_in_its_answer(
    gateway: Serve, double: Double
) -> None:
    tropilla = await gateway(double)
    raw = await tropilla.connect()
    await raw.post("/v1/chat/completions", CHAT | {"stream": True})
    exchange = await double.arrives()
    await exchange.head()
    await exchange.send(chunk("Hello"))
    await raw.until(b"Hello")
    await raw.send(b"\x00garbage\r\n\r\n")
    for piece in told(" there"):
        await exchange.send(piece)
    await exchange.end()
    told_, _, refusal = (await raw.rest()).partition(b"0\r\n\r\n")
    assert b"[DONE]" in told_
    assert b"HTTP/1.1" not in told_
    assert refusal.startswith(b"HTTP/1.1 400 Bad Request\r\n")


@pytest.mark.parametrize("upgrade", ["websocket", "h2c"])
async def test_an_upgrade_is_not_taken_up(gateway: Serve, double: Double, upgrade: str) -> None:
    # Java's HTTP client asks for h2c on every plain request.
    double.on("/v1/chat/completions", streams(*told("x")))
    tropilla = await gateway(double)
    raw = await tropilla.connect()
    for _ in range(2):
        await raw.post(
            "/v1/chat/completions", CHAT, "Connection: Upgrade, HTTP2-Settings",
            f"Upgrade: {upgrade}", "HTTP2-Settings: AAEAAEAAAAIAAAABAAMAAABkAAQBAAAAAAUAAEAA",
        )  # fmt: skip
        answer = await raw.answer()
        assert (answer.status, answer.json["object"]) == (200, "chat.completion")


async def test_requests_on_one_connection_are_answered_in_order(
    gateway: Serve, double: Double
) -> None:
    double.on("/v1/chat/completions", streams(*told("x")))
    tropilla = await gateway(double)
    raw = await tropilla.connect()
    await raw.send(
        b"GET /health HTTP/1.1\r\nHost: t\r\n\r\nGET /v1/models HTTP/1.1\r\nHost: t\r\n\r\n"
    )
    await raw.post("/v1/chat/completions", CHAT)
    assert (await raw.answer()).json == {"status": "ok"}
    assert (await raw.answer()).json["object"] == "list"
    assert (await raw.answer()).json["object"] == "chat.completion"


# Who may ask.


@pytest.mark.parametrize(
    ("header", "value", "admitted"),
    [
        ("authorization", "Bearer one", True),
        ("authorization", "bearer two", True),
        ("Authorization", "Bearer   one ", True),
        ("x-api-key", "one", True),
        ("api-key", "two", True),
        ("authorization", "Bearer wrong", False),
        ("authorization", "Bearer", False),
        ("authorization", "Bearer ", False),
        ("authorization", "one", False),
        ("authorization", "Basic one", False),
        ("authorization", "Bearer one two", False),
        ("authorization", "Bearer on\xeb", False),
        ("x-api-key", "", False),
        ("api-key", "wrong", False),
        ("cookie", "api-key=one", False),
    ],
)
async def test_keys(
    gateway: Serve,
    double: Double,
    header: str,
    value: str,
    admitted: bool,  # noqa: FBT001
) -> None:
    tropilla = await gateway(double, api_keys=("one", "two"))
    raw = await tropilla.connect()
    await raw.send(
        f"GET /v1/models HTTP/1.1\r\nHost: t\r\n{header}: {value}\r\n\r\n".encode("latin-1")
    )
    answer = await raw.answer()
    assert answer.status == (200 if admitted else 401)
    if not admitted:
        assert answer.headers["www-authenticate"] == "Bearer"
        assert tuple(answer.error) == KEYS
        assert answer.error["type"] == "invalid_request_error"
        assert answer.error["code"] == "invalid_api_key"
        assert "one" not in answer.error["message"]


async def test_a_missing_key_is_told_apart_from_a_wrong_one(gateway: Serve, double: Double) -> None:
    tropilla = await gateway(double, api_keys=("one",))
    missing = await tropilla.chat()
    wrong = await tropilla.ask("POST", "/v1/chat/completions", CHAT, {"api-key": "two"})
    assert (missing.status, wrong.status) == (401, 401)
    assert "didn't provide an API key" in missing.error["message"]
    assert "Incorrect API key" in wrong.error["message"]
    assert double.requests == []


async def test_any_one_of_several_headers_may_hold_the_key(gateway: Serve, double: Double) -> None:
    tropilla = await gateway(double, api_keys=("one",))
    headers = {"authorization": "Bearer other", "x-api-key": "one"}
    assert (await tropilla.ask("GET", "/v1/models", None, headers)).status == 200


@pytest.mark.parametrize("path", ["/v1/models", "/props", "/nothing", "/v1/models/x"])
async def test_nothing_but_health_is_open(gateway: Serve, double: Double, path: str) -> None:
    tropilla = await gateway(double, api_keys=("one",))
    assert (await tropilla.ask("GET", path)).status == 401


async def test_no_keys_and_empty_keys_let_everybody_in(gateway: Serve, double: Double) -> None:
    assert (await (await gateway(double)).ask("GET", "/v1/models")).status == 200
    open_too = await gateway(double, api_keys=("",))
    assert (await open_too.ask("GET", "/v1/models")).status == 200
    assert (await open_too.ask("GET", "/v1/models", None, {"api-key": "x"})).status == 200


async def test_the_keys_of_a_file(gateway: Serve, double: Double, key_file: Path) -> None:
    tropilla = await gateway(double, api_keys=read_keys((), key_file))
    for key, status in (("one", 200), ("two", 200), ("# ours", 401), ("", 401)):
        answer = await tropilla.ask("GET", "/v1/models", None, {"x-api-key": key})
        assert answer.status == status


async def test_a_native_path_refuses_in_llama_cpps_envelope(gateway: Serve, double: Double) -> None:
    tropilla = await gateway(double, api_keys=("one",))
    native = await tropilla.ask("POST", "/tokenize", b"{}")
    assert (native.status, native.error["code"]) == (401, 401)
    openai = await tropilla.ask("POST", "/v1/embeddings", b"{}")
    assert (openai.status, openai.error["code"]) == (401, "invalid_api_key")
