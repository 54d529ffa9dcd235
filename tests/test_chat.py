"""Chat completions on the real engine: every parameter that changes what is written."""

from __future__ import annotations

import math
from typing import Any

import msgspec
import pytest

from conftest import CHAT, Answer, Serve
from doubles.upstream import DONE, Double, chunk, event, streams, told
from openapi_schema import check_chat, check_chat_chunk

pytestmark = pytest.mark.anyio

FORMS = pytest.mark.parametrize("stream", [False, True], ids=["whole", "stream"])
PATH = "/v1/chat/completions"
LIMIT: Any = {"max_tokens": 24, "temperature": 0}


def texts(answer: Answer) -> list[str]:
    """The texts of an answer's choices, whole or streamed; all of it is valid."""
    assert answer.status == 200, answer.body
    if answer.headers["content-type"] == "application/json":
        check_chat(answer.json)
        return [choice["message"]["content"] or "" for choice in answer.json["choices"]]
    found: dict[int, str] = {}
    for one in answer.events[:-1]:
        check_chat_chunk(one)
        for choice in one["choices"]:
            said = choice["delta"].get("content") or ""
            found[choice["index"]] = found.get(choice["index"], "") + said
    assert list(found) == sorted(found), "the first chunks come in the order of the choices"
    return list(found.values())


def schema(said: Any, **more: Any) -> Any:
    return {
        "response_format": {
            "type": "json_schema",
            "json_schema": {"name": "it", "schema": said, **more},
        }
    }


# What is written.


@FORMS
async def test_a_seed_gives_the_same_text_again(
    gateway: Serve, engine: str, *, stream: bool
) -> None:
    tropilla = await gateway(engine)
    hot: Any = {"temperature": 2, "max_tokens": 24, "stream": stream, "cache_prompt": False}
    first, again, other = [
        texts(await tropilla.chat(seed=seed, **hot)) for seed in (2**40 + 7, 2**40 + 7, 8)
    ]
    assert first == again
    assert first != other


async def test_the_newer_limit_counts(gateway: Serve, engine: str) -> None:
    tropilla = await gateway(engine)
    answer = await tropilla.chat(max_completion_tokens=2, max_tokens=9, ignore_eos=True)
    assert answer.json["usage"]["completion_tokens"] == 2
    assert answer.json["choices"][0]["finish_reason"] == "length"


@FORMS
async def test_several_choices(gateway: Serve, engine: str, *, stream: bool) -> None:
    # The engine has two slots: three choices are asked for one by one.
    tropilla = await gateway(engine)
    fields: Any = {"n": 3, "temperature": 1.5, "seed": 3, "max_tokens": 8, "ignore_eos": True}
    if stream:
        fields |= {"stream": True, "stream_options": {"include_usage": True}}
    answer = await tropilla.chat(**fields)
    said = texts(answer)
    assert len(said) == 3
    assert len(set(said)) > 1, "each has a seed of its own"
    usage = answer.events[-2]["usage"] if stream else answer.json["usage"]
    assert usage["completion_tokens"] == 24
    alone = await tropilla.chat(max_tokens=1)
    assert usage["prompt_tokens"] == alone.json["usage"]["prompt_tokens"]


@FORMS
async def test_an_answer_goes_on_where_the_client_began(
    gateway: Serve, engine: str, *, stream: bool
) -> None:
    tropilla = await gateway(engine)
    start = {"role": "assistant", "content": "Good"}
    said = texts(await tropilla.chat(stream=stream, messages=[*CHAT["messages"], start], **LIMIT))
    assert said != texts(await tropilla.chat(stream=stream, **LIMIT))


# Probabilities.


@FORMS
@pytest.mark.parametrize("after", [False, True], ids=["before", "after sampling"])
async def test_probabilities_have_openais_shape(
    gateway: Serve, engine: str, *, after: bool, stream: bool
) -> None:
    tropilla = await gateway(engine)
    answer = await tropilla.chat(
        stream=stream, logprobs=True, top_logprobs=2, max_tokens=3, seed=1,
        post_sampling_probs=after,
    )  # fmt: skip
    (text,) = texts(answer)
    if stream:
        choices = [choice for one in answer.events[:-1] for choice in one["choices"]]
        found = [one for choice in choices for one in (choice["logprobs"] or {}).get("content", ())]
    else:
        found = answer.json["choices"][0]["logprobs"]["content"]
    assert b"".join(bytes(one["bytes"]) for one in found) == text.encode()
    for one in found:
        assert 1 <= len(one["top_logprobs"]) <= 2
        for token in (one, *one["top_logprobs"]):
            assert bytes(token["bytes"]) == token["token"].encode()
            assert token["logprob"] <= 0
            assert "prob" not in token


@FORMS
@pytest.mark.parametrize(
    "said",
    [
        {"content": [{"token": "é", "prob": 0.5, "top_probs": [{"token": "é", "prob": 0.5}]}]},
        {"content": [{"token": "é", "logprob": math.log(0.5), "top_logprobs": None}]},
        {"tokens": ["é"], "token_logprobs": [math.log(0.5)], "top_logprobs": None},
    ],
    ids=["probabilities", "no bytes", "lists"],
)
async def test_probabilities_of_other_servers(
    gateway: Serve, double: Double, said: Any, *, stream: bool
) -> None:
    tropilla = await gateway(double)
    choice = {"index": 0, "delta": {"content": "é"}, "finish_reason": None, "logprobs": said}
    double.on(PATH, streams(event({"choices": [choice]}), chunk(reason="stop"), DONE))
    answer = await tropilla.chat(stream=stream, logprobs=True, top_logprobs=1)
    assert texts(answer) == ["é"]
    choices = (
        [one["choices"][0] for one in answer.events[:-1]] if stream else answer.json["choices"]
    )
    ((entry,),) = [one["logprobs"]["content"] for one in choices if one["logprobs"]]
    assert (entry["token"], entry["bytes"]) == ("é", [0xC3, 0xA9])
    assert entry["logprob"] == pytest.approx(math.log(0.5))
    assert isinstance(entry["top_logprobs"], list)


# The form of an answer.


@FORMS
async def test_an_answer_keeps_to_its_schema(gateway: Serve, engine: str, *, stream: bool) -> None:
    tropilla = await gateway(engine)
    said = {
        "type": "object",
        "properties": {
            "code": {"type": "string", "pattern": r"^\d{3}$"},
            "kind": {"enum": ["a", "b"]},
            "any": True,
        },
        "required": ["code", "kind"],
        "additionalProperties": False,
    }
    (text,) = texts(await tropilla.chat(stream=stream, **schema(said, strict=True), **LIMIT))
    made = msgspec.json.decode(text)
    assert made["code"].isdecimal()
    assert len(made["code"]) == 3
    assert made["kind"] in {"a", "b"}


async def test_a_schema_that_holds_itself(gateway: Serve, engine: str) -> None:
    # Of itself llama.cpp follows no reference to the whole.
    tropilla = await gateway(engine)
    said = {
        "type": "object",
        "properties": {"next": {"anyOf": [{"type": "null"}, {"$ref": "#"}]}},
        "required": ["next"],
        "additionalProperties": False,
    }
    (text,) = texts(await tropilla.chat(**schema(said, strict=True), **LIMIT))
    assert text.startswith('{"next":')


async def test_what_a_grammar_cannot_say_is_told(gateway: Serve, engine: str) -> None:
    tropilla = await gateway(engine)
    answer = await tropilla.chat(**schema({"type": "number", "minimum": 5000}), **LIMIT)
    assert answer.headers["x-tropilla-dropped"] == "schema.minimum"
    assert texts(answer)


@pytest.mark.parametrize(
    ("said", "param"),
    [
        # These hang the engine (b11549) or fail in it.
        ({"type": "string", "minLength": 10, "maxLength": 1}, ".minLength"),
        ({"properties": {str(number): {} for number in range(5000)}}, ""),
        ({"enum": [str(number) for number in range(50_000)]}, ""),
        ({"type": "string", "minLength": 2001}, ".minLength"),
        ({"$ref": "https://example.com/x.json"}, ".$ref"),
        ({"$ref": "#/$defs/a", "$defs": {"a": {"$ref": "#/$defs/a"}}}, ".$ref"),
        ({"type": "banana"}, ".type"),
    ],
    ids=lambda one: repr(one)[:40],
)
async def test_a_bad_schema_reaches_nobody(
    gateway: Serve, double: Double, said: Any, param: str
) -> None:
    tropilla = await gateway(double)
    answer = await tropilla.chat(**schema(said))
    assert (answer.status, answer.error["code"]) == (400, "invalid_json_schema")
    assert answer.error["param"] == f"response_format.json_schema.schema{param}"
    assert double.requests == []


async def test_a_pattern_that_hangs_the_engine_is_left_out(gateway: Serve, engine: str) -> None:
    tropilla = await gateway(engine)
    said = {"type": "string", "pattern": "^x{2,1}$", "maxLength": 8}
    answer = await tropilla.chat(**schema(said), **LIMIT)
    assert texts(answer)
    assert answer.headers["x-tropilla-dropped"] == "schema.pattern"


@pytest.mark.parametrize(
    ("name", "code"),
    [("a b", "invalid_value"), ("", "invalid_value"), ("a" * 65, "string_above_max_length")],
)
async def test_the_name_of_a_schema(gateway: Serve, double: Double, name: str, code: str) -> None:
    tropilla = await gateway(double)
    answer = await tropilla.chat(**schema({}, name=name))
    assert (answer.status, answer.error["code"]) == (400, code)
    assert answer.error["param"] == "response_format.json_schema.name"


async def test_a_grammar_only_where_the_config_allows_it(gateway: Serve, double: Double) -> None:
    double.on(PATH, streams(*told("Hi.")))
    tropilla = await gateway(double)
    assert (await tropilla.chat(grammar='root ::= "a"')).status == 200
    assert double.requests[-1].json["grammar"] == 'root ::= "a"'
    tropilla = await gateway(double, allow_grammar=False)
    for path, body in (
        (PATH, CHAT),
        ("/v1/completions", {"model": "m", "prompt": "a"}),
        ("/completion", {"prompt": "a"}),
    ):
        answer = await tropilla.ask("POST", path, body | {"grammar": 'root ::= "a"'})
        assert (answer.status, answer.error["param"]) == (400, "grammar")
    assert len(double.requests) == 1
    assert (await tropilla.chat()).status == 200


# What every answer has.


@FORMS
async def test_reasoning_under_both_names_and_every_key(
    gateway: Serve, double: Double, *, stream: bool
) -> None:
    tropilla = await gateway(double)
    thought = {"index": 0, "delta": {"reasoning_content": "Hm."}, "finish_reason": None}
    double.on(PATH, streams(event({"choices": [thought]}), *told("Hi.")))
    answer = await tropilla.chat(stream=stream)
    assert texts(answer) == ["Hi."]
    if stream:
        deltas = [one["choices"][0]["delta"] for one in answer.events[:-1]]
        (delta,) = [one for one in deltas if "reasoning" in one]
        assert delta == {"reasoning_content": "Hm.", "reasoning": "Hm."}
        return
    message = answer.json["choices"][0]["message"]
    assert message == {
        "role": "assistant", "content": "Hi.", "refusal": None, "annotations": [],
        "reasoning_content": "Hm.", "reasoning": "Hm.",
    }  # fmt: skip
    details = answer.json["usage"]["completion_tokens_details"]
    assert details.keys() >= {
        "reasoning_tokens", "audio_tokens", "accepted_prediction_tokens",
        "rejected_prediction_tokens",
    }  # fmt: skip
