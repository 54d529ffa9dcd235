"""The tables of docs/openai.md: every parameter of OpenAI's SDK, and what it really does."""

from __future__ import annotations

import re
from collections.abc import Mapping
from pathlib import Path
from types import MappingProxyType
from typing import Any, NamedTuple

import msgspec
import pytest
from openai.types.chat import completion_create_params as chat_params
from openai.types.completion_create_params import (
    CompletionCreateParamsNonStreaming,
    CompletionCreateParamsStreaming,
)
from openai.types.embedding_create_params import EmbeddingCreateParams
from openai.types.responses import response_create_params

from conftest import Serve, Start
from doubles.upstream import DONE, USAGE, Double, Exchange, answers, event, native
from test_openai_upstreams import Servers, at, servers

pytestmark = pytest.mark.anyio
__all__ = ["servers"]

PAGE = (Path(__file__).parent.parent / "docs" / "openai.md").read_text(encoding="utf-8")
WORDS = {"honoured", "emulated", "ignored", "refused"}
FUNCTION: Any = {"name": "f", "parameters": {"type": "object", "properties": {}}}
TOOL: Any = {"type": "function", "function": FUNCTION}
FLAT_TOOL: Any = {"type": "function", **FUNCTION}


class Api(NamedTuple):
    """One method of the SDK: its types, where it asks, and an example of each parameter."""

    types: tuple[Any, ...]
    path: str
    base: dict[str, Any]
    """What every request needs."""
    examples: dict[str, Any]
    """A value, or all the fields that belong to it."""
    said: Mapping[str, str] = MappingProxyType({})
    """The name by which a llama-server hears of it, where it has another one."""


class Fields(dict[str, Any]):
    """A parameter together with those that it needs."""


COMMON: dict[str, Any] = {
    "model": "m", "frequency_penalty": 0.5, "logit_bias": {"5": 1}, "max_tokens": 5, "n": 2,
    "presence_penalty": 0.5, "seed": 5, "stop": ["a", "b", "c", "d"], "stream": True,
    "stream_options": Fields(
        stream=True, stream_options={"include_usage": True, "include_obfuscation": False}
    ),
    "temperature": 0.5, "top_p": 0.5, "user": "u",
}  # fmt: skip

APIS = {
    "Chat completions": Api(
        types=(
            chat_params.CompletionCreateParamsNonStreaming,
            chat_params.CompletionCreateParamsStreaming,
        ),
        path="/v1/chat/completions",
        base={"model": "m", "messages": [{"role": "user", "content": "Hi."}]},
        examples=COMMON
        | {
            "messages": [{"role": "user", "content": "Hello."}],
            "audio": {"voice": "alloy", "format": "wav"},
            "function_call": Fields(functions=[FUNCTION], function_call="auto"),
            "functions": [FUNCTION],
            "logprobs": True,
            "max_completion_tokens": 5,
            "metadata": {"a": "b"},
            "modalities": ["text"],
            "moderation": {"model": "omni-moderation-latest"},
            "parallel_tool_calls": Fields(tools=[TOOL], parallel_tool_calls=True),
            "prediction": {"type": "content", "content": "Hello."},
            "prompt_cache_key": "k",
            "prompt_cache_options": {},
            "prompt_cache_retention": "24h",
            "reasoning_effort": "low",
            "response_format": {
                "type": "json_schema",
                "json_schema": {"name": "it", "schema": {"type": "object"}, "strict": True},
            },
            "safety_identifier": "s",
            "service_tier": "auto",
            "store": True,
            "tool_choice": Fields(tools=[TOOL], tool_choice="auto"),
            "tools": [TOOL],
            "top_logprobs": Fields(logprobs=True, top_logprobs=2),
            "verbosity": "low",
            "web_search_options": {},
        },
        said={"max_completion_tokens": "max_tokens"},
    ),
    "Completions": Api(
        types=(CompletionCreateParamsNonStreaming, CompletionCreateParamsStreaming),
        path="/v1/completions",
        base={"model": "m", "prompt": "Hi"},
        examples=COMMON
        | {
            "prompt": "Hello",
            "best_of": Fields(n=1, best_of=1),
            "echo": True,
            "logprobs": 2,
            "suffix": "end",
        },
        said={
            "logprobs": "n_probs", "max_tokens": "n_predict", "n": "n_cmpl",
            "stream_options": "stream", "suffix": "input_suffix",
        },
    ),
    "Responses": Api(
        types=(
            response_create_params.ResponseCreateParamsNonStreaming,
            response_create_params.ResponseCreateParamsStreaming,
        ),
        path="/v1/responses",
        base={"model": "m", "input": "Hi.", "store": False},
        examples={
            name: COMMON[name] for name in ("model", "stream", "temperature", "top_p", "user")
        }
        | {
            "input": "Hello.",
            "access_programs": {},
            "background": True,
            "background_options": {},
            "context_management": [],
            "conversation": "conv_1",
            "image": {},
            "include": ["message.output_text.logprobs"],
            "instructions": "Be kind.",
            "max_output_tokens": 16,
            "max_tool_calls": 2,
            "metadata": {"a": "b"},
            "moderation": {"model": "omni-moderation-latest"},
            "parallel_tool_calls": Fields(tools=[FLAT_TOOL], parallel_tool_calls=True),
            "previous_response_id": None,
            "prompt": {"id": "pmpt_1"},
            "prompt_cache_key": "k",
            "prompt_cache_options": {},
            "prompt_cache_retention": "24h",
            "reasoning": {"effort": "low"},
            "safety_identifier": "s",
            "service_tier": "auto",
            "store": True,
            "stream_options": Fields(stream=True, stream_options={"include_obfuscation": False}),
            "text": {"format": {"type": "json_object"}},
            "tool_choice": Fields(tools=[FLAT_TOOL], tool_choice="auto"),
            "tools": [FLAT_TOOL],
            "top_logprobs": Fields(include=["message.output_text.logprobs"], top_logprobs=2),
            "truncation": "auto",
        },
        said={
            "include": "logprobs", "input": "messages", "instructions": "messages",
            "max_output_tokens": "max_tokens", "reasoning": "reasoning_effort",
            "text": "response_format",
        },
    ),
    "Embeddings": Api(
        types=(EmbeddingCreateParams,),
        path="/v1/embeddings",
        base={"model": "m", "input": "Hi"},
        examples={
            "input": "Hello", "model": "m", "dimensions": 1, "encoding_format": "base64",
            "user": "u",
        },
    ),
}  # fmt: skip


def table(name: str) -> dict[str, str]:
    """The rows of one table: the parameter, and the word for it."""
    section = PAGE.split(f"## {name}\n", 1)[1].split("\n## ", 1)[0]
    rows = re.findall(r"^\| `(\w+)` \| (\w+) \|", section, re.MULTILINE)
    assert len(rows) == len(dict(rows)), "a parameter is named twice"
    return dict(rows)


@pytest.mark.parametrize("name", APIS)
def test_the_tables_name_what_the_sdk_knows(name: str) -> None:
    known: set[str] = set()
    for one in APIS[name].types:
        known |= one.__annotations__.keys()
    rows = table(name)
    assert rows.keys() == known
    assert set(rows.values()) <= WORDS
    assert APIS[name].examples.keys() == known, "each is tried"


CASES = [(name, parameter, word) for name in APIS for parameter, word in table(name).items()]


def body_of(api: Api, parameter: str) -> dict[str, Any]:
    value = api.examples[parameter]
    return api.base | (value if isinstance(value, Fields) else {parameter: value})


VECTORS = msgspec.json.encode(
    {
        "object": "list",
        "model": "m",
        "data": [{"object": "embedding", "index": 0, "embedding": [0.5]}],
        "usage": {"prompt_tokens": 1, "total_tokens": 1},
    }
)


async def chats(exchange: Exchange) -> None:
    """As many answers as are wanted."""
    choices = [
        {"index": index, "delta": {"content": "Hi."}, "finish_reason": "stop"}
        for index in range(exchange.json.get("n", 1))
    ]
    await exchange.stream(*(event({"choices": [choice]}) for choice in choices), USAGE, DONE)


async def completes(exchange: Exchange) -> None:
    """As many, in llama.cpp's own form."""
    more = {"tokens_predicted": 2, "tokens_evaluated": 3, "stop_type": "eos"}
    wanted = range(exchange.json.get("n_cmpl", 1))
    await exchange.stream(*(native("Hi.", stop=True, index=index, **more) for index in wanted))


def answer_all(double: Double) -> None:
    double.on("/v1/chat/completions", chats)
    double.on("/completion", completes)
    double.on("/infill", completes)
    double.on("/v1/embeddings", answers(200, VECTORS))


@pytest.mark.parametrize(("name", "parameter", "word"), CASES)
async def test_the_word_is_true(
    gateway: Serve, doubles: Start, name: str, parameter: str, word: str
) -> None:
    api, double = APIS[name], await doubles()
    answer_all(double)
    tropilla = await gateway(double)
    answer = await tropilla.ask("POST", api.path, body_of(api, parameter))
    if word == "refused":
        assert (answer.status, answer.error["param"]) == (400, parameter)
        assert answer.error["code"] in {"unsupported_parameter", "unsupported_value"}
        assert double.requests == []
        return
    assert answer.status == 200, answer.body
    heard = double.requests[-1].json
    said = api.said.get(parameter, parameter)
    if word == "honoured":
        assert said in heard
    elif word == "ignored":
        assert heard.get(parameter) != body_of(api, parameter)[parameter]


OWN = [
    case
    for case in CASES
    if case[2] in {"ignored", "refused"} and case[1] != "audio" and case[0] != "Responses"
]


@pytest.mark.parametrize(("name", "parameter", "word"), OWN)
async def test_servers_of_openais_kind_are_told_all(
    gateway: Serve, servers: Servers, name: str, parameter: str, word: str
) -> None:
    api, double = APIS[name], await servers()
    tropilla = await gateway(models=at(double.url))
    body = body_of(api, parameter)
    answer = await tropilla.ask("POST", api.path, body)
    assert answer.status == 200, (word, answer.body)
    assert double.last()[parameter] == body[parameter]


# The types of what changes nothing are checked all the same.


BAD = [
    ("user", 5, "user"),
    ("safety_identifier", {}, "safety_identifier"),
    ("prompt_cache_key", 5, "prompt_cache_key"),
    ("prompt_cache_retention", "week", "prompt_cache_retention"),
    ("prompt_cache_options", [], "prompt_cache_options"),
    ("store", "yes", "store"),
    ("service_tier", "gold", "service_tier"),
    ("verbosity", "loud", "verbosity"),
    ("moderation", "x", "moderation"),
    ("web_search_options", [], "web_search_options"),
    ("metadata", {"a": 5}, "metadata.a"),
    ("metadata", {str(number): "x" for number in range(17)}, "metadata"),
    ("prediction", {"content": "x"}, "prediction.type"),
    ("prediction", {"type": "x"}, "prediction.type"),
    ("prediction", {"type": "content"}, "prediction.content"),
    ("prediction", {"type": "content", "content": 5}, "prediction.content"),
    ("modalities", "text", "modalities"),
    ("modalities", [5], "modalities.0"),
    ("modalities", ["text", "smell"], "modalities.1"),
    ("modalities", ["text", "audio"], "modalities"),
    ("reasoning_effort", "huge", "reasoning_effort"),
    ("stop", ["a"] * 5, "stop"),
    ("stream_options", {"include_obfuscation": 1}, "stream_options.include_obfuscation"),
]


@pytest.mark.parametrize(("parameter", "value", "param"), BAD, ids=lambda one: repr(one)[:40])
async def test_wrong_ones_are_refused(
    gateway: Serve, double: Double, parameter: str, value: Any, param: str
) -> None:
    tropilla = await gateway(double)
    stream = parameter == "stream_options"
    answer = await tropilla.chat(stream=stream, **{parameter: value})
    assert (answer.status, answer.error["param"]) == (400, param)
    assert param in answer.error["message"] or answer.error["code"] == "unsupported_value"
    assert double.requests == []
