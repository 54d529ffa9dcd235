"""Anthropic's Messages on a real gateway: what agents send, hear, and rely on."""

from __future__ import annotations

from itertools import pairwise
from pathlib import Path
from typing import Any

import msgspec
import pytest

from conftest import Answer, Serve, Served
from doubles.upstream import (
    LOADING,
    Double,
    breaks,
    chunk,
    event,
    refuses,
    streams,
)
from doubles.upstream import told as said
from tropilla.config import ModelConfig, UpstreamConfig
from tropilla.framing import SseFramer
from tropilla.record import Record

pytestmark = pytest.mark.anyio

PATH = "/v1/messages"
CHAT_PATH = "/v1/chat/completions"
FORMS = pytest.mark.parametrize("stream", [False, True], ids=["whole", "stream"])
ASKED: dict[str, Any] = {
    "model": "m", "max_tokens": 24, "messages": [{"role": "user", "content": "Say hello."}],
}  # fmt: skip
AGENT = Path(__file__).parent / "agent"


async def ask(tropilla: Served, path: str = PATH, **fields: Any) -> Answer:
    return await tropilla.ask("POST", path, ASKED | fields)


def events(answer: Answer) -> list[tuple[str, Any]]:
    """The events of a stream, and what each says; each has its name in both places."""
    assert answer.status == 200, answer.body
    assert answer.headers["content-type"].startswith("text/event-stream")
    told = [(one.event, msgspec.json.decode(one.data)) for one in SseFramer().feed(answer.body)]
    assert all(data["type"] == name for name, data in told)
    return told


def message(answer: Answer) -> Any:
    """The message that a whole answer or a stream tells, put together as SDKs do it."""
    if not answer.headers["content-type"].startswith("text/event-stream"):
        assert answer.status == 200, answer.body
        return answer.json
    body: Any = None
    for name, data in events(answer):
        match name:
            case "message_start":
                body = data["message"]
            case "content_block_start":
                assert data["index"] == len(body["content"])
                body["content"].append(data["content_block"] | {"json": ""})
            case "content_block_delta":
                grow(body["content"][data["index"]], data["delta"])
            case "content_block_stop":
                block = body["content"][data["index"]]
                if (text := block.pop("json")) or block["type"] == "tool_use":
                    block["input"] = msgspec.json.decode(text or "{}")
            case "message_delta":
                body |= data["delta"]
                body["usage"] |= data["usage"]
    assert events(answer)[-1][0] == "message_stop"
    return body


def grow(block: Any, delta: Any) -> None:
    match delta:
        case {"type": "text_delta", "text": text}:
            block["text"] += text
        case {"type": "thinking_delta", "thinking": text}:
            block["thinking"] += text
        case {"type": "signature_delta", "signature": text}:
            block["signature"] = text
        case {"type": "input_json_delta", "partial_json": text}:
            block["json"] += text
        case _:
            raise AssertionError(delta)


def error(answer: Answer, status: int) -> Any:
    assert answer.status == status, answer.body
    assert answer.json["type"] == "error"
    return answer.json["error"]


# The real engine.


@FORMS
async def test_the_real_engine_answers(gateway: Serve, engine: str, *, stream: bool) -> None:
    tropilla = await gateway(engine)
    answer = await ask(tropilla, f"{PATH}?beta=true", stream=stream, temperature=0)
    body = message(answer)
    assert body["content"] == [{"type": "text", "text": "Good day to you."}]
    assert (body["stop_reason"], body["stop_sequence"]) == ("end_turn", None)
    assert body["model"] == "m"
    usage = body["usage"]
    assert usage["input_tokens"] + usage["cache_read_input_tokens"] > 5
    assert usage["output_tokens"] > 3
    assert answer.headers["request-id"] == answer.headers["x-request-id"]


@FORMS
async def test_the_stop_word_is_named(gateway: Serve, engine: str, *, stream: bool) -> None:
    tropilla = await gateway(engine)
    told = message(
        await ask(tropilla, stream=stream, temperature=0, stop_sequences=["never", " to "])
    )
    assert told["content"] == [{"type": "text", "text": "Good day"}]
    assert (told["stop_reason"], told["stop_sequence"]) == ("stop_sequence", " to ")
    told = message(await ask(tropilla, stream=stream, max_tokens=2, stop_sequences=["never"]))
    assert (told["stop_reason"], told["stop_sequence"]) == ("max_tokens", None)


LIGHT = {
    "name": "light",
    "input_schema": {
        "type": "object", "properties": {"on": {"type": "boolean"}}, "required": ["on"],
    },
}  # fmt: skip


@FORMS
@pytest.mark.parametrize("choice", [{"type": "any"}, {"type": "tool", "name": "light"}])
async def test_a_call_and_its_result(
    gateway: Serve, engine: str, choice: dict[str, str], *, stream: bool
) -> None:
    tropilla = await gateway(engine)
    tools = [LIGHT, {"type": "web_search_20250305", "name": "web_search"}]
    told = message(
        await ask(tropilla, stream=stream, tools=tools, tool_choice=choice, max_tokens=200)
    )
    assert told["stop_reason"] == "tool_use"
    (call,) = [block for block in told["content"] if block["type"] == "tool_use"]
    assert call["name"] == "light"
    assert type(call["input"]["on"]) is bool
    result = {"type": "tool_result", "tool_use_id": call["id"], "content": "It is on."}
    turns = [
        *ASKED["messages"],
        {"role": "assistant", "content": told["content"]},
        {"role": "user", "content": [result, {"type": "text", "text": "And?"}]},
    ]
    none = {"type": "none"}
    after = message(
        await ask(tropilla, stream=stream, tools=tools, tool_choice=none, messages=turns)
    )
    assert [block["type"] for block in after["content"]] == ["text"]


async def test_a_form_is_kept_to(gateway: Serve, engine: str) -> None:
    tropilla = await gateway(engine)
    form = {"type": "json_schema", "schema": LIGHT["input_schema"]}
    told = message(await ask(tropilla, output_config={"format": form}, max_tokens=100))
    assert type(msgspec.json.decode(told["content"][0]["text"])["on"]) is bool


async def test_no_token_at_all_fills_the_cache(gateway: Serve, engine: str) -> None:
    tropilla = await gateway(engine)
    turns = [{"role": "user", "content": "A herd of llamas goes up the hill. " * 8}]
    for stream in (False, True):
        told = message(await ask(tropilla, messages=turns, max_tokens=0, stream=stream))
        assert (told["content"], told["stop_reason"]) == ([], "max_tokens")
        assert told["usage"]["output_tokens"] == 0
    assert told["usage"]["cache_read_input_tokens"] > 20


async def test_tokens_are_counted_exactly(gateway: Serve, engine: str) -> None:
    tropilla = await gateway(engine)
    fields: dict[str, Any] = {
        "system": [{"type": "text", "text": "Be kind."}],
        "messages": [
            {"role": "user", "content": [{"type": "text", "text": "What is ¿é 象?"}]},
            {"role": "assistant", "content": "Hm."},
            {"role": "user", "content": "Well?"},
        ],
        "tools": [LIGHT],
    }
    counted = await tropilla.ask("POST", f"{PATH}/count_tokens", {"model": "m", **fields})
    usage = message(await ask(tropilla, **fields))["usage"]
    assert counted.json == {
        "input_tokens": usage["input_tokens"] + usage["cache_read_input_tokens"]
    }


async def test_a_prompt_that_is_too_long(gateway: Serve, engine: str) -> None:
    tropilla = await gateway(engine)
    for stream in (False, True):
        turns = [{"role": "user", "content": "Hello! " * 9000}]
        told = error(await ask(tropilla, messages=turns, stream=stream), 400)
        assert told["type"] == "invalid_request_error"
        assert told["message"].startswith("prompt is too long: ")
        assert told["message"].endswith(" maximum")


async def test_a_picture_is_refused_where_nobody_sees(gateway: Serve, engine: str) -> None:
    tropilla = await gateway(engine)
    source = {"type": "base64", "media_type": "image/png", "data": "AAAA"}
    turns = [{"role": "user", "content": [{"type": "image", "source": source}]}]
    told = error(await ask(tropilla, messages=turns), 400)
    assert "can see images" in told["message"]
    turns[0]["content"] = [{"type": "image", "source": {"type": "url", "url": "http://x/"}}]
    told = error(await ask(tropilla, messages=turns), 400)
    assert "fetched" in told["message"]
    assert told["details"]["param"] == "messages.0.content.0.source"


# What agents send: bodies in the form of Claude Code 2.1, with texts of our own.

BODIES = {path.stem: msgspec.json.decode(path.read_bytes()) for path in AGENT.glob("*.json")}


def test_there_are_bodies_of_agents() -> None:
    assert len(BODIES) >= 3


@pytest.mark.parametrize("name", sorted(BODIES))
async def test_an_agents_turn(gateway: Serve, double: Double, name: str) -> None:
    tropilla = await gateway(double)
    call = {"index": 0, "id": "c1", "type": "function"}
    double.on(
        CHAT_PATH,
        streams(
            event(chunk_of({"role": "assistant", "reasoning_content": "Look first."})),
            event(chunk_of({"content": "I look."})),
            event(
                chunk_of({"tool_calls": [call | {"function": {"name": "Read", "arguments": ""}}]})
            ),
            event(
                chunk_of({"tool_calls": [{"index": 0, "function": {"arguments": '{"file":"a"}'}}]})
            ),
            *said()[:-2],
            event({"choices": [], "usage": USED}),
        ),
    )
    asked = BODIES[name]
    headers = {
        "Authorization": "Bearer any", "anthropic-version": "2023-06-01", "x-app": "cli",
        "anthropic-beta": "claude-code-20250219,context-management-2025-06-27",
        "X-Claude-Code-Session-Id": "s",
    }  # fmt: skip
    answer = await tropilla.ask("POST", f"{PATH}?beta=true", asked, headers)
    told = message(answer)
    assert [block["type"] for block in told["content"]] == ["thinking", "text", "tool_use"]
    assert told["content"][2]["input"] == {"file": "a"}
    assert told["stop_reason"] == "tool_use"
    assert told["usage"]["input_tokens"] == 30
    assert told["usage"]["cache_read_input_tokens"] == 60
    sent = double.requests[-1].json
    roles = [one["role"] for one in sent["messages"]]
    assert roles.count("system") == 1
    assert not any(a == b != "tool" for a, b in pairwise(roles))
    # Nothing of what only Anthropic's servers read, on any level.
    text = msgspec.json.encode(sent).decode()
    for word in ("cache_control", "context_management", "billing", "user_id", "signature"):
        assert word not in text, word
    assert [tool["function"]["name"] for tool in sent.get("tools", [])] == [
        tool["name"] for tool in asked.get("tools", []) if "type" not in tool
    ]


async def test_the_real_engine_reads_what_agents_send(gateway: Serve, engine: str) -> None:
    tropilla = await gateway(engine)
    for name, asked in BODIES.items():
        counted = await tropilla.ask("POST", f"{PATH}/count_tokens", asked)
        told = message(await tropilla.ask("POST", f"{PATH}?beta=true", asked | {"max_tokens": 1}))
        usage = told["usage"]
        read = usage["input_tokens"] + usage["cache_read_input_tokens"]
        assert counted.json == {"input_tokens": read}, name
        assert told["stop_reason"] in {"max_tokens", "end_turn"}


USED = {
    "prompt_tokens": 90, "completion_tokens": 9, "total_tokens": 99,
    "prompt_tokens_details": {"cached_tokens": 60},
}  # fmt: skip


def chunk_of(delta: Any) -> Any:
    choice = {"index": 0, "delta": delta, "finish_reason": None}
    return {"id": "c", "object": "chat.completion.chunk", "created": 1, "choices": [choice]}


async def test_a_session_is_told_by_the_agents_own_header(gateway: Serve, double: Double) -> None:
    tropilla = await gateway(double)
    double.on(CHAT_PATH, streams(*said("x")))
    seen: list[str] = []

    class Book:
        def begun(self, record: Record) -> None:
            pass

        async def enter(self, record: Record) -> None:
            pass

        def over(self, record: Record) -> None:
            seen.append(record.session)

    tropilla.gateway.books = (Book(),)
    await tropilla.ask("POST", PATH, ASKED, {"X-Claude-Code-Session-Id": "s1"})
    assert seen == ["s1"]


# What goes wrong.


async def test_an_error_in_the_middle(gateway: Serve, double: Double) -> None:
    tropilla = await gateway(double)
    double.on(CHAT_PATH, breaks(chunk("Once"), chunk(" upon")))
    told = events(await ask(tropilla, stream=True))
    assert [name for name, _ in told] == [
        "message_start", "content_block_start", "content_block_delta", "content_block_delta",
        "content_block_stop", "error",
    ]  # fmt: skip
    assert told[-1][1]["error"]["type"] == "api_error"


@FORMS
@pytest.mark.usefixtures("hasty_probes")
async def test_nobody_is_there_is_overloaded(
    gateway: Serve, double: Double, *, stream: bool
) -> None:
    double.health = (503, b"{}")
    double.on(CHAT_PATH, LOADING)
    tropilla = await gateway(double, ready=False, failover=False)
    await double.stop()
    told = await ask(tropilla, stream=stream)
    assert error(told, 529)["type"] == "overloaded_error"
    # Whoever speaks OpenAI's API hears the status of that.
    assert (await tropilla.chat()).status == 503


async def test_too_many_is_a_limit(gateway: Serve, double: Double) -> None:
    tropilla = await gateway(double)
    double.on(CHAT_PATH, refuses(429, "Slow down.", "rate_limit_error"))
    assert error(await ask(tropilla), 429)["type"] == "rate_limit_error"


@pytest.mark.parametrize(
    ("body", "param"),
    [
        (b"", None),
        (b"[1]", None),
        (b"{", None),
        (msgspec.json.encode(ASKED | {"max_tokens": None}), "max_tokens"),
        (msgspec.json.encode(ASKED | {"stream": "yes"}), "stream"),
        (b'{"max_tokens":1,"messages":' + b"[" * 150 + b"]" * 150 + b"}", "messages.0"),
        (b"[" * 2000 + b"]" * 2000, None),
    ],
)
async def test_a_bad_body(gateway: Serve, double: Double, body: bytes, param: str | None) -> None:
    tropilla = await gateway(double)
    for path in (PATH, "/messages"):
        told = error(await tropilla.ask("POST", path, body), 400)
        assert told["type"] == "invalid_request_error"
        assert told.get("details", {}).get("param") == param


async def test_an_unknown_model(gateway: Serve, engine: str) -> None:
    told = error(await ask(await gateway(engine), model="claude-none"), 404)
    assert told["type"] == "not_found_error"
    assert "claude-none" in told["message"]


async def test_keys(gateway: Serve, double: Double) -> None:
    tropilla = await gateway(double, api_keys=("k",))
    double.on(CHAT_PATH, streams(*said("x")))
    for headers in ({"x-api-key": "k"}, {"Authorization": "Bearer k"}):
        assert (await tropilla.ask("POST", PATH, ASKED, headers)).status == 200
    for headers in ({}, {"x-api-key": "other"}):
        told = error(await tropilla.ask("POST", PATH, ASKED, headers), 401)
        assert told["type"] == "authentication_error"
    # Agents look whether somebody is there before they show their key.
    answer = await tropilla.ask("HEAD", "/")
    assert (answer.status, answer.body) == (200, b"")


# Versions, and the list of models.

VERSIONS = ("2023-06-01", "2026-10-21")


@pytest.mark.parametrize("version", VERSIONS)
async def test_every_version_may_choose_how_tokens_are_chosen(
    gateway: Serve, double: Double, version: str
) -> None:
    tropilla = await gateway(double)
    double.on(CHAT_PATH, streams(*said("x")))
    asked = ASKED | {"temperature": 0.5, "top_k": 5, "top_p": 0.5}
    answer = await tropilla.ask("POST", PATH, asked, {"anthropic-version": version})
    assert answer.status == 200
    sent = double.requests[-1].json
    assert (sent["temperature"], sent["top_k"], sent["top_p"]) == (0.5, 5, 0.5)


async def test_a_version_that_there_is_not(gateway: Serve, double: Double) -> None:
    tropilla = await gateway(double)
    headers = {"anthropic-version": "2024-01-01"}
    for method, path in (("POST", PATH), ("POST", f"{PATH}/count_tokens"), ("GET", "/v1/models")):
        body = ASKED if method == "POST" else None
        told = error(await tropilla.ask(method, path, body, headers), 400)
        assert told["message"] == 'anthropic-version: "2024-01-01" is not a valid version'
    # Whoever speaks another API may say what they like.
    double.on(CHAT_PATH, streams(*said("x")))
    assert (await tropilla.ask("POST", CHAT_PATH, ASKED, headers)).status == 200


async def models(tropilla: Served, query: str = "", path: str = "/v1/models") -> Answer:
    return await tropilla.ask("GET", path + query, headers={"anthropic-version": VERSIONS[1]})


async def test_models(gateway: Serve, engine: str) -> None:
    tropilla = await gateway(engine)
    for path in ("/v1/models", "/models"):
        (told,) = (await models(tropilla, path=path)).json["data"]
        assert (told["type"], told["id"], told["display_name"]) == ("model", "m", "m")
        assert told["max_input_tokens"] > 0
        assert told["created_at"].endswith("Z")
        assert told["capabilities"]["image_input"] == {"supported": False}
        one = await models(tropilla, path=f"{path}/m")
        assert one.json == told
    assert error(await models(tropilla, path="/v1/models/other"), 404)["type"] == "not_found_error"
    # Without the header it is OpenAI's list.
    assert (await tropilla.ask("GET", "/v1/models")).json["object"] == "list"


async def test_pages_of_models(gateway: Serve, double: Double) -> None:
    upstream = UpstreamConfig(url=double.url, model="m")
    names = ["a", "b/c", "d"]
    tropilla = await gateway(models={name: ModelConfig(upstreams=(upstream,)) for name in names})

    async def page(query: str) -> tuple[list[str], bool, str | None, str | None]:
        told = (await models(tropilla, query)).json
        ids = [one["id"] for one in told["data"]]
        return ids, told["has_more"], told["first_id"], told["last_id"]

    assert await page("") == (names, False, "a", "d")
    assert await page("?limit=2") == (["a", "b/c"], True, "a", "b/c")
    assert await page("?limit=2&after_id=b%2Fc") == (["d"], False, "d", "d")
    assert await page("?limit=1&before_id=d") == (["b/c"], True, "b/c", "b/c")
    assert await page("?after_id=d") == ([], False, None, None)
    assert (await models(tropilla, path="/v1/models/b%2Fc")).json["id"] == "b/c"
    for query, param in (
        ("?limit=0", "limit"), ("?limit=x", "limit"), ("?limit=1001", "limit"),
        ("?after_id=z", "after_id"), ("?before_id=z", "before_id"),
    ):  # fmt: skip
        assert error(await models(tropilla, query), 400)["details"]["param"] == param


@pytest.mark.parametrize(
    ("method", "path", "status"),
    [
        ("GET", "/v1/files", 404),
        ("POST", "/v1/messages/batches", 404),
        ("DELETE", "/v1/models", 405),
    ],
)
async def test_what_is_not_there_is_told_in_the_clients_words(
    gateway: Serve, double: Double, method: str, path: str, status: int
) -> None:
    tropilla = await gateway(double)
    told = await tropilla.ask(method, path, headers={"anthropic-version": VERSIONS[0]})
    assert error(told, status)["message"]
    other = await tropilla.ask(method, path)
    assert "param" in other.error
