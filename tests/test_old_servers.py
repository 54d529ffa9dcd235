"""What a server of 2023 cannot do is refused, and nothing is asked of it."""

from __future__ import annotations

from collections.abc import Iterator
from typing import Any

import msgspec
import pytest

from doubles.llama_b1496 import NAME, Llama, llama
from dropin.test_api_like_oai import CHAT, CLASSIC, Client, gateway

Pair = tuple[Client, Llama]


@pytest.fixture(scope="module")
def pair() -> Iterator[Pair]:
    with llama() as double, gateway(double.url, template=CLASSIC) as client:
        yield client, double


@pytest.mark.parametrize(
    ("path", "body", "param"),
    [
        ("/v1/completions", {"prompt": "x", "system_prompt": {"prompt": "evil"}}, "system_prompt"),
        ("/completion", {"prompt": "x", "system_prompt": {"prompt": "evil"}}, "system_prompt"),
    ],
)
def test_what_it_would_misread_is_refused(
    pair: Pair, path: str, body: dict[str, Any], param: str
) -> None:
    client, double = pair
    double.clear()
    answer = client.post(path, body)
    assert (answer.status, answer.json["error"]["param"]) == (400, param)
    assert double.paths == []


@pytest.mark.parametrize(
    ("path", "body"),
    [
        ("/completion", {"prompt": "x"}),
        ("/infill", {"input_prefix": "x", "input_suffix": ""}),
    ],
)
def test_a_native_request_is_the_clients_own(pair: Pair, path: str, body: dict[str, Any]) -> None:
    client, double = pair
    double.clear()
    assert client.post(path, body).status == 200
    # Without a prompt it would fill no hole.
    more = {"prompt": " "} if path == "/infill" else {}
    assert double.last(path) == body | more | {"stream": True, "model": NAME}


def test_a_long_body_goes_on_as_json_though_curl_calls_it_a_form(pair: Pair) -> None:
    client, double = pair
    double.clear()
    body = msgspec.json.encode({"content": "x" * 9000})
    form = "application/x-www-form-urlencoded"
    answer = client.ask("POST", "/tokenize", body, Content_Type=form)
    assert (answer.status, len(answer.json["tokens"])) == (200, 9000)


# One server that gives one answer, and a client that wants several.

SEVERAL = {"prompt": ["one", "two"], "n": 2, "seed": 7, "max_tokens": 9}


def test_several_answers_are_asked_for_one_by_one(pair: Pair) -> None:
    client, double = pair
    double.clear()
    answer = client.post("/v1/completions", SEVERAL)
    choices = answer.json["choices"]
    assert [choice["index"] for choice in choices] == [0, 1, 2, 3]
    assert {choice["text"] for choice in choices} == {" I'm fine."}
    asked = [one.body for one in double.asked if one.path == "/completion"]
    assert [one["prompt"] for one in asked] == ["one", "one", "two", "two"]
    # Equal seeds would give equal answers.
    assert [one["seed"] for one in asked] == [7, 8, 7, 8]
    # A prompt counts once, however many answers it has.
    usage = answer.json["usage"]
    assert (usage["prompt_tokens"], usage["completion_tokens"]) == (8, 16)


def test_several_answers_are_streamed_one_by_one(pair: Pair) -> None:
    client, double = pair
    double.clear()
    asked = CHAT | {"n": 3, "stream": True, "stream_options": {"include_usage": True}}
    *chunks, last = client.post("/v1/chat/completions", asked).chunks
    assert len({chunk["id"] for chunk in (*chunks, last)}) == 1
    told = dict.fromkeys(range(3), "")
    for chunk in chunks:
        (choice,) = chunk["choices"]
        told[choice["index"]] += choice["delta"].get("content") or ""
    assert told == dict.fromkeys(range(3), " I'm fine.")
    ends = [chunk["choices"][0]["finish_reason"] for chunk in chunks]
    assert [end for end in ends if end] == ["stop"] * 3
    assert last["usage"]["completion_tokens"] == 12


def test_a_native_client_hears_a_list(pair: Pair) -> None:
    client, double = pair
    double.clear()
    told = client.post("/completion", {"prompt": ["one", "two"]}).json
    assert [(one["index"], one["content"]) for one in told] == [
        (0, " I'm fine."),
        (1, " I'm fine."),
    ]


# The newest SDK, and the oldest server.


def test_the_openai_sdk_of_today_on_a_server_of_2023(pair: Pair) -> None:
    import openai

    client, double = pair
    double.clear()
    with openai.OpenAI(base_url=f"http://127.0.0.1:{client.port}/v1", api_key="none") as sdk:
        chat = sdk.chat.completions
        said = chat.create(model=NAME, messages=[USER], n=2, logprobs=True, top_logprobs=1, seed=3)
        assert [choice.message.content for choice in said.choices] == [" I'm fine."] * 2
        assert all(choice.logprobs and choice.logprobs.content for choice in said.choices)
        assert said.usage is not None
        assert said.usage.completion_tokens == 8
        with chat.stream(model=NAME, messages=[USER], stop=["fine"]) as stream:
            final = stream.get_final_completion()
        assert (final.choices[0].message.content, final.choices[0].finish_reason) == (
            " I'm ",
            "stop",
        )
        text = sdk.completions.create(model=NAME, prompt=["a", "b"], max_tokens=3)
        assert [choice.text for choice in text.choices] == [" I'm fine"] * 2
        double.says = ['{"ok": ', "true}"]
        form: Any = {"type": "json_schema", "json_schema": {"name": "x", "schema": SCHEMA}}
        held = chat.create(model=NAME, messages=[USER], response_format=form)
        assert held.choices[0].message.content == '{"ok": true}'
        assert "root ::= " in double.last()["grammar"]
        with pytest.raises(openai.BadRequestError) as caught:
            chat.create(model=NAME, messages=[USER], tools=[TOOL])
        assert caught.value.param == "tools"
        assert [model.id for model in sdk.models.list()] == [NAME]


USER: Any = {"role": "user", "content": "How are you?"}
TOOL: Any = {"type": "function", "function": {"name": "f"}}
SCHEMA = {"type": "object", "properties": {"ok": {"type": "boolean"}}, "required": ["ok"]}
