"""The list of models, as tools read it."""

from __future__ import annotations

from typing import Any

import msgspec
import pytest

from conftest import Serve, Start
from doubles.upstream import JSON, Exchange, Script, streams
from doubles.upstream import told as said
from openapi_schema import check
from tropilla.config import ModelConfig, UpstreamConfig

pytestmark = pytest.mark.anyio


def lists(*cards: dict[str, Any]) -> Script:
    """Tell this list of models."""
    body = msgspec.json.encode({"object": "list", "data": cards})

    async def script(exchange: Exchange) -> None:
        await exchange.whole(200, body, JSON)

    return script


async def cards(gateway: Any, path: str = "/v1/models") -> dict[str, Any]:
    answer = await gateway.ask("GET", path)
    assert answer.status == 200
    check("ListModelsResponse", answer.json)
    return {card["id"]: card for card in answer.json["data"]}


async def test_the_real_engine(gateway: Serve, engine: str) -> None:
    told = (await cards(await gateway(engine)))["m"]
    assert told["status"] == {"value": "loaded"}
    assert told["context_length"] == told["meta"]["n_ctx"] > 0
    assert told["meta"]["n_params"] > 0, "what it says of the model is there too"
    assert {"completion", "chat", "tools"} <= set(told["capabilities"])
    assert "vision" not in told["capabilities"]


@pytest.mark.parametrize("path", ["/v1/models?limit=2&after=m", "/models?reload=1", "/v1/models?"])
async def test_a_query_changes_nothing(gateway: Serve, doubles: Start, path: str) -> None:
    assert list(await cards(await gateway(await doubles("a", "b")), path)) == ["a", "b"]


async def test_aliases(gateway: Serve, doubles: Start) -> None:
    double, other = await doubles("there"), await doubles("there")
    here = UpstreamConfig(url=double.url, model="there")
    there = UpstreamConfig(url=other.url, model="there")
    told = await cards(
        await gateway(
            models={
                "m": ModelConfig(upstreams=(here,), aliases=("gpt-4", "org/m")),
                "both": ModelConfig(upstreams=(here, there)),
            }
        )
    )
    assert told["m"]["aliases"] == ["gpt-4", "org/m"]
    assert told["gpt-4"]["aliases"] == ["m", "org/m"]
    assert told["both"]["aliases"] == []


async def test_an_alias_is_no_name_that_the_server_knows(gateway: Serve, doubles: Start) -> None:
    double = await doubles("m")
    double.on("/v1/chat/completions", streams(*said("x")))
    upstream = UpstreamConfig(url=double.url, dialect="openai")
    tropilla = await gateway(models={"m": ModelConfig(upstreams=(upstream,), aliases=("gpt-4",))})
    assert (await cards(tropilla))["m"]["aliases"] == ["gpt-4"]
    answer = await tropilla.chat(model="gpt-4")
    assert answer.json["model"] == "gpt-4"
    assert double.requests[-1].json["model"] == "m"


async def test_the_context_that_holds_wherever_a_request_goes(
    gateway: Serve, doubles: Start
) -> None:
    large, small = await doubles(n_ctx=8192), await doubles(n_ctx=2048)
    large.on("/v1/models", lists({"id": "m", "meta": {"n_ctx": 8192, "n_vocab": 7}}))
    told = (await cards(await gateway(large, small)))["m"]
    assert told["context_length"] == 2048
    assert told["meta"] == {"n_ctx": 2048, "n_vocab": 7}


@pytest.mark.parametrize("field", ["max_model_len", "context_length", "context_window"])
async def test_the_context_of_a_server_that_is_no_llama_cpp(
    gateway: Serve, doubles: Start, field: str
) -> None:
    double = await doubles()
    double.on("/v1/models", lists({"id": "m", "owned_by": "vllm", field: 32768}))
    upstream = UpstreamConfig(url=double.url, dialect="openai")
    told = (await cards(await gateway(models={"m": ModelConfig(upstreams=(upstream,))})))["m"]
    assert (told["context_length"], told["meta"]) == (32768, {"n_ctx": 32768})
    assert told["owned_by"] == "vllm"


async def test_a_context_that_nobody_tells_is_not_made_up(gateway: Serve, doubles: Start) -> None:
    double = await doubles()
    double.on("/v1/models", lists({"id": "m", "owned_by": "x"}))
    upstream = UpstreamConfig(url=double.url, dialect="openai")
    told = (await cards(await gateway(models={"m": ModelConfig(upstreams=(upstream,))})))["m"]
    assert "context_length" not in told
    assert "meta" not in told


async def test_what_a_router_says_of_a_model_that_it_has_not_loaded(
    gateway: Serve, doubles: Start
) -> None:
    double = await doubles()
    double.props = {"role": "router"}
    status = {"value": "unloaded", "args": ["/srv/llama-server", "--api-key", "x"], "preset": "p"}
    double.on("/v1/models", lists({"id": "m", "status": status, "path": "/srv/m.gguf"}))
    told = (await cards(await gateway(double)))["m"]
    assert told["status"] == {"value": "unloaded"}
    assert "/srv" not in str(told), "how it is started, and where its files are, is nobody's"


async def test_what_one_of_its_servers_can_do(gateway: Serve, doubles: Start) -> None:
    seeing, other = await doubles(), await doubles()
    seeing.props["modalities"] = {"vision": True, "audio": False}
    told = (await cards(await gateway(seeing, other)))["m"]
    assert "vision" in told["capabilities"]
    assert "audio" not in told["capabilities"]


async def test_the_state_of_a_model(gateway: Serve, doubles: Start) -> None:
    double = await doubles()
    tropilla = await gateway(double)
    double.health = (503, b'{"error":{"code":503,"message":"Loading model"}}')
    tropilla.fleet.upstreams[0].recheck.set()
    await tropilla.until(lambda: tropilla.fleet.state() == "loading")
    assert (await cards(tropilla))["m"]["status"] == {"value": "loading"}
    await double.stop()
    tropilla.fleet.upstreams[0].recheck.set()
    await tropilla.until(lambda: tropilla.fleet.state() == "down")
    assert (await cards(tropilla))["m"]["status"] == {"value": "unloaded", "failed": True}
