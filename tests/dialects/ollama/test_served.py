"""Ollama's paths on a real gateway: what is served, loaded, shown, refused; and generation."""

from __future__ import annotations

import asyncio
from typing import Any

import msgspec
import pytest

from conftest import Answer, Serve, Served, Start
from doubles.upstream import DEADLINE, Double, breaks, chunk, refuses, streams, told
from tropilla import telling
from tropilla.config import TINY_MODEL, ModelConfig, UpstreamConfig
from tropilla.upstream.engine import Engine, EngineOptions

pytestmark = pytest.mark.anyio

HELLO = [{"role": "user", "content": "Hello!"}]
SHORT = {"num_predict": 8, "temperature": 0, "seed": 1}
CALL = (
    b'data: {"choices":[{"index":0,"delta":{"tool_calls":[{"index":0,"id":"c","function":'
    b'{"name":"f","arguments":"{\\"a\\":1}"}}]},"finish_reason":null}]}\n\n'
)
END = b'data: {"choices":[{"index":0,"delta":{},"finish_reason":"tool_calls"}]}\n\n'
TOOL = {"type": "function", "function": {"name": "f", "parameters": {"type": "object"}}}


async def chat(tropilla: Served, **fields: Any) -> Answer:
    return await tropilla.ask("POST", "/api/chat", {"model": "m", "messages": HELLO} | fields)


def lines(answer: Answer) -> list[Any]:
    assert answer.status == 200, answer.body
    assert answer.headers["content-type"] == "application/x-ndjson"
    assert answer.headers["cache-control"] == "no-cache"
    assert answer.body.endswith(b"\n")
    return [msgspec.json.decode(line) for line in answer.body.splitlines()]


async def test_a_chat_with_the_real_engine(gateway: Serve, engine: str) -> None:
    tropilla = await gateway(engine)
    whole = (await chat(tropilla, stream=False, options=SHORT)).json
    assert whole["done"] is True
    assert whole["total_duration"] >= whole["eval_duration"] > 0
    streamed = lines(await chat(tropilla, options=SHORT))
    text = "".join(line["message"]["content"] for line in streamed)
    assert text == whole["message"]["content"] != ""
    assert streamed[-1]["eval_count"] == whole["eval_count"] <= 8


async def test_a_schema_holds_with_the_real_engine(gateway: Serve, engine: str) -> None:
    schema = {
        "type": "object", "properties": {"n": {"type": "integer"}}, "required": ["n"],
        "additionalProperties": False,
    }  # fmt: skip
    tropilla = await gateway(engine)
    answer = (await chat(tropilla, stream=False, format=schema, options={"seed": 1})).json
    assert msgspec.json.decode(answer["message"]["content"]).keys() == {"n"}
    asked = {"model": "m", "prompt": "?", "format": schema, "stream": False}
    answer = (await tropilla.ask("POST", "/api/generate", asked)).json
    assert msgspec.json.decode(answer["response"]).keys() == {"n"}


async def test_raw_text_and_a_hole_with_the_real_engine(gateway: Serve, engine: str) -> None:
    tropilla = await gateway(engine)
    for more in ({"raw": True}, {"suffix": " end"}):
        asked = {"model": "m", "prompt": "Once", "stream": False, "options": SHORT} | more
        answer = (await tropilla.ask("POST", "/api/generate", asked)).json
        assert answer["eval_count"] > 0, more
        assert "context" not in answer


async def test_a_call_of_the_upstream_is_told_whole(gateway: Serve, double: Double) -> None:
    double.on("/v1/chat/completions", streams(CALL, END))
    tropilla = await gateway(double)
    first, last = lines(await chat(tropilla, tools=[TOOL]))
    call = {"id": "c", "function": {"index": 0, "name": "f", "arguments": {"a": 1}}}
    assert first["message"]["tool_calls"] == [call]
    assert last["done_reason"] == "stop"
    assert double.requests[-1].json["tools"][0]["function"]["name"] == "f"


async def test_what_goes_wrong_is_one_text(gateway: Serve, doubles: Start) -> None:
    double = await doubles("m", "cut")
    double.on("/v1/chat/completions", refuses(500, "Out of order.", "server_error"))
    tropilla = await gateway(double)
    answer = await chat(tropilla)
    assert (answer.status, answer.json) == (502, {"error": "Out of order."})
    double.on("/v1/chat/completions", breaks(chunk("Once")))
    first, last = lines(await chat(tropilla))
    assert first["message"]["content"] == "Once"
    assert last.keys() == {"error"}
    for body, status, says in (
        (b"{", 400, "JSON"),
        ({"model": "m", "messages": "x"}, 400, "messages"),
        ({"model": "x", "messages": HELLO}, 404, "'x'"),
        ({"model": "x"}, 404, "'x' not found"),
        ({"messages": []}, 400, "model"),
        ({"model": 5, "messages": []}, 400, "model"),
    ):
        answer = await tropilla.ask("POST", "/api/chat", body)
        assert answer.status == status, body
        assert says in answer.json["error"]


async def test_a_key_is_wanted_everywhere_but_at_the_door(gateway: Serve, double: Double) -> None:
    tropilla = await gateway(double, api_keys=("k",))
    assert (await tropilla.ask("GET", "/")).body == b"Ollama is running"
    assert (await tropilla.ask("HEAD", "/")).status == 200
    answer = await tropilla.ask("GET", "/api/tags")
    assert answer.status == 401
    assert "API key" in answer.json["error"]
    headers = {"Authorization": "Bearer k"}
    assert (await tropilla.ask("GET", "/api/tags", headers=headers)).status == 200


async def test_models_are_listed_and_found_by_their_tags(gateway: Serve, doubles: Start) -> None:
    double = await doubles("m", "org/n:q4", "o:latest")
    double.on("/v1/chat/completions", streams(*told("Good", " day")))
    tropilla = await gateway(double)
    models = (await tropilla.ask("GET", "/api/tags")).json["models"]
    assert [one["name"] for one in models] == ["m:latest", "o:latest", "org/n:q4"]
    assert all(one["model"] == one["name"] for one in models)
    assert len({one["digest"] for one in models}) == 3
    for name in ("m", "m:latest", "o", "o:latest", "org/n:q4"):
        answer = await chat(tropilla, model=name, stream=False)
        assert answer.json["model"] == name, "it hears what it said"
    assert [one.json["model"] for one in double.requests if "messages" in one.json] == [
        "m", "m", "o:latest", "o:latest", "org/n:q4",
    ]  # fmt: skip
    assert (await chat(tropilla, model="org/n:latest")).status == 404
    assert (await tropilla.chat(model="m:latest")).status == 404, "elsewhere a name is a name"


async def test_a_model_is_shown_by_either_field(gateway: Serve, engine: str) -> None:
    tropilla = await gateway(engine)
    for field in ("model", "name"):
        shown = (await tropilla.ask("POST", "/api/show", {field: "m:latest"})).json
        assert {"completion", "tools", "insert"} <= set(shown["capabilities"])
        info = shown["model_info"]
        assert info[f"{info['general.architecture']}.context_length"] > 0
        assert info["general.parameter_count"] > 0
        assert shown["details"]["quantization_level"] == "F16"
        assert shown["details"]["parameter_size"] == "1.7M"
    for body, status in (({}, 400), ({"model": 5}, 400), ({"model": "x"}, 404)):
        assert (await tropilla.ask("POST", "/api/show", body)).status == status


@pytest.mark.usefixtures("hasty_probes")
async def test_what_is_loaded(gateway: Serve, double: Double, closed_port: int) -> None:
    down = UpstreamConfig(url=f"http://127.0.0.1:{closed_port}")
    models = {
        "m": ModelConfig(upstreams=(UpstreamConfig(url=double.url),)),
        "down": ModelConfig(upstreams=(down,)),
    }
    tropilla = await gateway(models=models, ready=False)
    await tropilla.until(lambda: [one.state for one in tropilla.fleet.upstreams].count("ready") > 0)
    loaded = (await tropilla.ask("GET", "/api/ps")).json["models"]
    assert [one["name"] for one in loaded] == ["m:latest"]
    assert loaded[0]["context_length"] == 4096
    assert loaded[0]["expires_at"] > "2100"
    answer = await tropilla.ask("POST", "/api/generate", {"model": "m"})
    assert (answer.json["done_reason"], answer.json["response"]) == ("load", "")
    wrong: tuple[Any, ...] = ([], {}, True, "x")
    for alive in wrong:
        asked = {"model": "m", "keep_alive": alive}
        answer = await tropilla.ask("POST", "/api/chat", asked)
        assert (answer.status, "keep_alive" in answer.json["error"]) == (400, True)
    answer = await tropilla.ask("POST", "/api/chat", {"model": "m", "keep_alive": 0})
    assert (answer.json["done_reason"], answer.json["done"]) == ("unload", True)
    await tropilla.until(lambda: any(one.state == "down" for one in tropilla.fleet.upstreams))
    answer = await tropilla.ask("POST", "/api/generate", {"model": "down"})
    assert (answer.status, "down" in answer.json["error"]) == (503, True)


@pytest.mark.parametrize(
    ("method", "path"),
    [
        ("POST", "/api/pull"), ("POST", "/api/push"), ("POST", "/api/create"),
        ("POST", "/api/copy"), ("DELETE", "/api/delete"), ("POST", "/api/blobs/sha256:00"),
    ],
)  # fmt: skip
async def test_files_are_not_its_business(
    gateway: Serve, double: Double, method: str, path: str
) -> None:
    tropilla = await gateway(double)
    answer = await tropilla.ask(method, path, {"model": "m"})
    assert answer.status == 501
    assert answer.json["error"].startswith("Tropilla ")
    assert (await tropilla.ask("HEAD", "/api/blobs/sha256:00")).status == 501


async def test_vectors_of_the_real_engine(gateway: Serve) -> None:
    one = Engine(EngineOptions(model=TINY_MODEL, alias="e", embedding=True))
    await one.start()
    try:
        tropilla = await gateway(one.address)
        asked = {"model": "e:latest", "input": ["Hello!", "Good day"], "truncate": True}
        told_ = (await tropilla.ask("POST", "/api/embed", asked)).json
        assert told_["model"] == "e:latest"
        assert told_["prompt_eval_count"] > 0
        first, second = told_["embeddings"]
        assert first != second
        openai = {"model": "e", "input": ["Hello!"]}
        (plain,) = (await tropilla.ask("POST", "/v1/embeddings", openai)).json["data"]
        assert first == pytest.approx(plain["embedding"], abs=1e-3)
        old = {"model": "e", "prompt": "Hello!"}
        vector = (await tropilla.ask("POST", "/api/embeddings", old)).json["embedding"]
        assert vector == pytest.approx(first, abs=1e-3)
        nothing: tuple[tuple[str, Any, Any], ...] = (
            ("/api/embed", {"model": "e", "input": []}, {"model": "e", "embeddings": []}),
            ("/api/embeddings", {"model": "e"}, {"embedding": []}),
        )
        for path, body, expected in nothing:
            assert (await tropilla.ask("POST", path, body)).json == expected
            unknown = await tropilla.ask("POST", path, body | {"model": "x"})
            assert (unknown.status, "'x'" in unknown.json["error"]) == (404, True)
        for given in ({}, {"input": [5]}, {"input": [""]}):
            body = {"model": "e"} | given
            answer = await tropilla.ask("POST", "/api/embed", body)
            assert (answer.status, "input" in answer.json["error"]) == (400, True)
    finally:
        await one.stop()


async def test_a_client_that_waits_hears_what_is_no_line(
    gateway: Serve, double: Double, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(telling, "SILENCE_SECONDS", 0.01)
    goes_on = asyncio.Event()

    async def script(exchange: Any) -> None:
        await asyncio.wait_for(goes_on.wait(), DEADLINE)
        await exchange.stream(*told("Good", " day"))

    double.on("/v1/chat/completions", script)
    tropilla = await gateway(double)
    raw = await tropilla.connect()
    await raw.post("/api/chat", {"model": "m", "messages": HELLO})
    await raw.see(b"\r\n1\r\n \r\n")
    goes_on.set()
    heard = [msgspec.json.decode(line) for line in (await raw.answer()).body.splitlines()]
    assert "".join(line["message"]["content"] for line in heard) == "Good day"
