"""Programs that were written for AFS, on llama.cpp: only the address is another one.

Each is written as AFS's public clients are: one request, and its stream read line by line. They run
over today's real engine, and over a server of 2023.
"""

from __future__ import annotations

import asyncio
import re
from collections.abc import Iterator
from http.client import HTTPConnection
from typing import Any
from urllib.parse import urlsplit

import msgspec
import pytest

from conftest import Serve
from doubles.llama_b1496 import llama
from tropilla.config import ModelConfig, UpstreamConfig

pytestmark = pytest.mark.anyio

MODEL = "ffm-llama2-7b-chat"
KEY = "00000000-0000-4000-8000-000000000000"
BASES = ("", "/api", "/text-generation/api", "/text-generation/api/v4")
every_base = pytest.mark.parametrize("base", BASES, ids=["none", "public", "private", "v4"])
FIELDS = {
    "generated_text", "function_call", "details", "total_time_taken", "prompt_tokens",
    "generated_tokens", "total_tokens", "finish_reason",
}  # fmt: skip
MESSAGES = [
    {"role": "system", "content": "You know llamas."},
    {"role": "human", "content": "Where do llamas live?"},
]
NO_COUNTS = {"prompt_tokens": 0, "generated_tokens": 0, "total_tokens": 0, "finish_reason": None}


class Program:
    """A program for AFS: what stands in its settings, and its two ways to ask."""

    def __init__(self, api_url: str, key: str = KEY) -> None:
        self.api_url = api_url
        self.headers = {
            "Content-Type": "application/json",
            "X-API-KEY": key,
            "X-API-HOST": "afs-inference",
        }

    def post(self, path: str, **body: Any) -> tuple[int, Any]:
        """`requests.post(API_URL + path, ...).json()`."""
        status, lines = self._ask(path, body | {"model": MODEL})
        return status, msgspec.json.decode(b"".join(lines))

    def stream(self, path: str, **body: Any) -> tuple[str, list[Any]]:
        """The text as it is shown to people, and every object of the stream."""
        status, lines = self._ask(path, body | {"model": MODEL, "stream": True})
        assert status == 200
        shown, objects = "", []
        for line in lines:
            text = line.decode().strip()
            if not text.startswith("data:"):
                continue
            try:
                told = msgspec.json.decode(text.removeprefix("data:").strip())
            except msgspec.DecodeError:
                continue
            assert "error" not in told, told
            shown += told["generated_text"] or ""
            objects.append(told)
            if told["finish_reason"]:
                break
        return shown, objects

    def _ask(self, path: str, body: Any) -> tuple[int, list[bytes]]:
        url = urlsplit(self.api_url)
        connection = HTTPConnection(url.hostname or "", url.port, timeout=30)
        try:
            connection.request("POST", url.path + path, msgspec.json.encode(body), self.headers)
            answer = connection.getresponse()
            return answer.status, list(answer)
        finally:
            connection.close()


def on(url: str) -> dict[str, Any]:
    """A gateway that knows AFS's name of a model, and its key."""
    model = ModelConfig(upstreams=(UpstreamConfig(url=url),))
    return {"models": {MODEL: model}, "api_keys": (KEY,)}


@pytest.fixture(scope="module")
def of_2023() -> Iterator[str]:
    """The address of a server of 2023, which writes until it is stopped."""
    with llama() as double:
        double.ends = "never"
        yield double.url


@pytest.fixture(params=["today", "2023"])
async def api_url(request: pytest.FixtureRequest, gateway: Serve, engine: str, of_2023: str) -> str:
    """The address of a gateway over either."""
    tropilla = await gateway(**on(engine if request.param == "today" else of_2023))
    return tropilla.url


def check_numbers(told: Any) -> None:
    """The last object of a stream and a whole answer tell the same fields."""
    assert told.keys() == FIELDS
    assert re.fullmatch(r"\d+\.\d\d sec", told["total_time_taken"])
    assert told["prompt_tokens"] > 0
    assert told["generated_tokens"] > 0
    assert told["total_tokens"] == told["prompt_tokens"] + told["generated_tokens"]
    assert (told["function_call"], told["details"]) == (None, None)


@every_base
async def test_a_conversation(api_url: str, base: str) -> None:
    program = Program(api_url + base)
    parameters = {"max_new_tokens": 24, "temperature": 0.01, "top_k": 50, "top_p": 1, "seed": 42,
                  "frequence_penalty": 1.03}  # fmt: skip

    def run() -> tuple[Any, str, list[Any]]:
        asked = {"messages": MESSAGES, "parameters": parameters}
        status, whole = program.post("/models/conversation", **asked)
        assert status == 200, whole
        return whole, *program.stream("/models/conversation", **asked)

    whole, shown, objects = await asyncio.to_thread(run)
    check_numbers(whole)
    assert whole["generated_text"] == shown
    assert shown
    *deltas, last = objects
    check_numbers(last)
    assert all(one.keys() == FIELDS and one.items() >= NO_COUNTS.items() for one in deltas)
    assert {last["finish_reason"], whole["finish_reason"]} <= {"eos_token", "length"}


@every_base
async def test_generate(api_url: str, base: str) -> None:
    program = Program(api_url + base)
    asked: dict[str, Any] = {
        "inputs": "The llamas live in",
        "parameters": {"max_new_tokens": 5, "temperature": 0.01, "seed": 42},
    }

    def run() -> tuple[Any, str, list[Any]]:
        status, whole = program.post("/models/generate", **asked)
        assert status == 200, whole
        return whole, *program.stream("/models/generate", **asked)

    whole, shown, objects = await asyncio.to_thread(run)
    check_numbers(whole)
    check_numbers(objects[-1])
    assert whole["generated_text"] == shown
    assert whole["finish_reason"] == objects[-1]["finish_reason"]


async def test_a_limit_and_a_stop_sequence_end_the_answer(api_url: str) -> None:
    program = Program(f"{api_url}/api")

    def run(**parameters: Any) -> Any:
        chosen = {"temperature": 0.01, "seed": 1} | parameters
        asked: dict[str, Any] = {"inputs": "The llamas", "parameters": chosen}
        _, whole = program.post("/models/generate", **asked)
        shown, objects = program.stream("/models/generate", **asked)
        assert (whole["generated_text"], whole["finish_reason"]) == (
            shown,
            objects[-1]["finish_reason"],
        )
        return whole

    limited = await asyncio.to_thread(run, max_new_tokens=1)
    free = await asyncio.to_thread(run, max_new_tokens=40)
    assert limited["finish_reason"] == "length"
    assert limited["generated_tokens"] < free["generated_tokens"]
    word = free["generated_text"].split()[-1]
    stopped = await asyncio.to_thread(run, max_new_tokens=40, stop_sequences=[word])
    assert stopped["finish_reason"] == "stop_sequence"
    # A server of 2023 loses the space that it held back with the stop.
    before = free["generated_text"].partition(word)[0]
    assert stopped["generated_text"].rstrip() == before.rstrip()


async def test_a_refusal_has_afss_shape(api_url: str) -> None:
    def run() -> list[tuple[int, Any]]:
        wrong = Program(f"{api_url}/api", key="wrong")
        program = Program(f"{api_url}/api")
        other = {"messages": [{"role": "human", "content": "x"}]}
        return [
            wrong.post("/models/conversation", **other),
            program.post("/models/conversation", messages=[]),
            program.post("/models/generate", inputs="x", parameters={"top_k": 0}),
            program.post("/models/text_infilling", inputs="no hole"),
        ]

    answers = await asyncio.to_thread(run)
    assert [status for status, _ in answers] == [401, 400, 400, 400]
    for _, body in answers:
        assert body["detail"] == body["error"]["message"]
    assert answers[2][1]["error"]["param"] == "parameters.top_k"


async def test_a_model_that_is_not_here(gateway: Serve, of_2023: str) -> None:
    tropilla = await gateway(**on(of_2023) | {"api_keys": ()})
    body = {"model": "ffm-other", "messages": MESSAGES}
    answer = await tropilla.ask("POST", "/api/models/conversation", body)
    assert answer.status == 404
    assert answer.json["detail"].startswith("The model 'ffm-other' does not exist here.")


async def test_either_header_shows_the_key(gateway: Serve, of_2023: str) -> None:
    tropilla = await gateway(**on(of_2023))
    body = {"model": MODEL, "messages": MESSAGES, "parameters": {"max_new_tokens": 5}}
    for headers, status in (
        ({"X-API-KEY": KEY}, 200),
        ({"X-API-KEY": KEY, "X-API-HOST": "afs-inference"}, 200),
        ({"Authorization": f"Bearer {KEY}"}, 200),
        ({"X-API-HOST": "afs-inference"}, 401),
        ({}, 401),
    ):
        answer = await tropilla.ask("POST", "/api/models/conversation", body, headers)
        assert answer.status == status


async def test_a_hole_is_filled(gateway: Serve, of_2023: str) -> None:
    tropilla = await gateway(**on(of_2023))
    program = Program(f"{tropilla.url}/text-generation/api")

    def run() -> tuple[Any, str]:
        asked: dict[str, Any] = {
            "inputs": "def hello():\n    <FILL_ME>\n    return",
            "parameters": {"max_new_tokens": 5},
        }
        _, whole = program.post("/models/text_infilling", **asked)
        return whole, program.stream("/models/text_infilling", **asked)[0]

    whole, shown = await asyncio.to_thread(run)
    assert whole.keys() == FIELDS
    assert whole["generated_text"] == shown
    assert shown.startswith(" I'm fine.")


# What only today's llama.cpp can.

WEATHER = {
    "name": "get_weather",
    "description": "The weather of a city.",
    "parameters": {
        "type": "object",
        "properties": {"city": {"type": "string"}, "days": {"type": "integer"}},
        "required": ["city", "days"],
    },
}


@pytest.mark.parametrize("old", [False, True], ids=["tools", "functions"])
async def test_a_call_in_the_form_that_was_asked(gateway: Serve, engine: str, *, old: bool) -> None:
    tropilla = await gateway(**on(engine))
    program = Program(f"{tropilla.url}/api")
    asked: dict[str, Any] = {
        "messages": [{"role": "human", "content": "How is the weather in Lima?"}],
        "parameters": {"seed": 1, "max_new_tokens": 200},
    }
    if old:
        asked |= {"functions": [WEATHER], "function_call": {"name": "get_weather"}}
    else:
        asked |= {"tools": [{"type": "function", "function": WEATHER}], "tool_choice": "required"}

    def run() -> list[Any]:
        _, whole = program.post("/models/conversation", **asked)
        return [whole, program.stream("/models/conversation", **asked)[1][-1]]

    for told in await asyncio.to_thread(run):
        assert told.keys() >= FIELDS, told
        if old:
            call = told["function_call"]
            assert told["finish_reason"] == "function_call"
        else:
            call = told["tool_calls"][0]["function"]
            assert (told["function_call"], told["finish_reason"]) == (None, "tool_calls")
        assert call["name"] == "get_weather"
        assert msgspec.json.decode(call["arguments"]).keys() == {"city", "days"}


async def test_details_are_there_where_they_are_asked_for(gateway: Serve, engine: str) -> None:
    tropilla = await gateway(**on(engine))
    program = Program(f"{tropilla.url}/api")
    parameters = {"show_probabilities": True, "max_new_tokens": 4}
    _, told = await asyncio.to_thread(
        lambda: program.post("/models/generate", inputs="The llamas", parameters=parameters)
    )
    tokens = told["details"]["tokens"]
    assert "".join(token["text"] for token in tokens) == told["generated_text"]
    assert all(token["logprob"] <= 0 for token in tokens)


# OpenAI's SDK, as AFS's documentation has it: base_url = API_URL + "/models".


@every_base
async def test_openais_sdk(api_url: str, base: str) -> None:
    from openai import OpenAI

    def run() -> None:
        with OpenAI(base_url=f"{api_url}{base}/models", api_key=KEY, max_retries=0) as client:
            chat = client.chat.completions.create(
                model=MODEL, messages=[{"role": "user", "content": "Hello!"}], max_tokens=8
            )
            assert chat.choices[0].message.content
            assert chat.model == MODEL
            assert chat.usage is not None
            chunks = list(
                client.chat.completions.create(
                    model=MODEL,
                    messages=[{"role": "user", "content": "Hello!"}],
                    max_tokens=8,
                    stream=True,
                )
            )
            assert "".join(one.choices[0].delta.content or "" for one in chunks)
            assert chunks[-1].choices[0].finish_reason in {"stop", "length"}
            text = client.completions.create(model=MODEL, prompt="Hello!", max_tokens=8)
            assert text.choices[0].text
            pieces = list(
                client.completions.create(model=MODEL, prompt="Hello!", max_tokens=8, stream=True)
            )
            assert "".join(one.choices[0].text for one in pieces)

    await asyncio.to_thread(run)


async def test_openais_sdk_hears_of_a_wrong_key(gateway: Serve, of_2023: str) -> None:
    from openai import AsyncOpenAI, AuthenticationError

    tropilla = await gateway(**on(of_2023))
    base_url = f"{tropilla.url}/text-generation/api/v4/models"
    async with AsyncOpenAI(base_url=base_url, api_key="wrong", max_retries=0) as client:
        with pytest.raises(AuthenticationError):
            await client.completions.create(model=MODEL, prompt="Hello!")
