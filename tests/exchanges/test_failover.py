"""A stream whose upstream breaks off in the middle goes on from another one."""

from __future__ import annotations

from typing import Any

import msgspec
import pytest

from conftest import CHAT, Answer, Serve, Served, Start
from doubles.upstream import (
    Double,
    Script,
    answers,
    breaks,
    chunk,
    event,
    native,
    refuses,
    streams,
)
from doubles.valve import valve as through
from tropilla.config import ModelConfig, UpstreamConfig

pytestmark = pytest.mark.anyio

PATH, TEXT, NATIVE, TEMPLATE = (
    "/v1/chat/completions", "/v1/completions", "/completion", "/apply-template",
)  # fmt: skip
USAGE: dict[str, Any] = {"stream": True, "stream_options": {"include_usage": True}}
REST = streams(
    native(" General"),
    native(" Kenobi."),
    native("", stop=True, stop_type="eos", tokens_evaluated=12, tokens_predicted=3),
)


async def pair(doubles: Start, first: Script, path: str = PATH) -> tuple[Double, Double]:
    """One that breaks off, and one that can go on."""
    one, two = await doubles(), await doubles()
    one.on(path, first)
    two.on(TEMPLATE, answers(200, b'{"prompt":"<user>Hello!<assistant>"}'))
    two.on(NATIVE, REST)
    return one, two


def heard(answer: Answer) -> tuple[str, str | None]:
    """The text, and why it ended; the rules of a stream hold for all of it."""
    assert answer.status == 200
    *chunks, end = answer.events
    assert end == "[DONE]"
    assert len({one["id"] for one in chunks if "id" in one}) == 1
    choices = [choice for one in chunks for choice in one.get("choices", ())]
    if "delta" in choices[0]:
        assert [choice["delta"].get("role") for choice in choices].count("assistant") == 1
    text = "".join(choice.get("text") or choice.get("delta", {}).get("content") or ""
                   for choice in choices)  # fmt: skip
    (reason,) = [choice["finish_reason"] for choice in choices if choice["finish_reason"]] or [None]
    return text, reason


FIRST = breaks(chunk("Hello"), chunk(" there."))


async def test_a_chat_goes_on(gateway: Serve, doubles: Start) -> None:
    one, two = await pair(doubles, FIRST)
    answer = await (await gateway(one, two)).chat(max_tokens=10, stop=["x"], **USAGE)
    assert heard(answer) == ("Hello there. General Kenobi.", "stop")
    usage = answer.events[-2]["usage"]
    assert (usage["prompt_tokens"], usage["completion_tokens"]) == (10, 5)
    assert usage["failover"] == {"after_tokens": 2}
    template, asked = two.requests
    assert template.json["messages"] == CHAT["messages"]
    assert asked.json["prompt"] == "<user>Hello!<assistant>Hello there."
    assert (asked.json["n_predict"], asked.json["stop"]) == (8, ["x"])


async def test_raw_text_goes_on(gateway: Serve, doubles: Start) -> None:
    first = breaks(native("Hello"), native(" there."))
    one, two = await pair(doubles, first, NATIVE)
    answer = await (await gateway(one, two)).ask(
        "POST", TEXT, {"model": "m", "prompt": "Say: ", **USAGE}
    )
    assert heard(answer) == ("Hello there. General Kenobi.", "stop")
    assert two.requests[0].json["prompt"] == "Say: Hello there."


async def test_an_error_in_the_middle_is_gone_on_from_too(gateway: Serve, doubles: Start) -> None:
    error = event({"error": {"code": 500, "message": "Oh no", "type": "server_error"}})
    one, two = await pair(doubles, streams(chunk("Hello there."), error))
    answer = await (await gateway(one, two)).chat(stream=True)
    assert heard(answer)[0] == "Hello there. General Kenobi."


async def test_responses_go_on_as_one_item(gateway: Serve, doubles: Start) -> None:
    one, two = await pair(doubles, FIRST)
    tropilla = await gateway(one, two)
    answer = await tropilla.ask(
        "POST", "/v1/responses", {"model": "m", "input": "Hello!", "stream": True}
    )
    events = [one.split(b"data: ", 1)[1] for one in answer.body.split(b"\n\n") if one]
    last = msgspec.json.decode(events[-1])
    assert last["type"] == "response.completed"
    (item,) = last["response"]["output"]
    assert item["content"][0]["text"] == "Hello there. General Kenobi."


@pytest.mark.parametrize(
    ("fields", "first"),
    [
        ({"n": 2}, breaks(chunk("Hello"))),
        ({"logprobs": True}, FIRST),
        ({"response_format": {"type": "json_object"}}, FIRST),
        ({"grammar": 'root ::= "x"'}, FIRST),
        ({"tools": [{"type": "function", "function": {"name": "look"}}]}, FIRST),
        ({}, breaks(chunk().replace(b'"delta":{}', b'"delta":{"reasoning":"Hm."}'), chunk("x"))),
    ],
    ids=["several", "probabilities", "a form", "a grammar", "tools", "thoughts"],
)
async def test_what_cannot_be_gone_on_with_is_told(
    gateway: Serve, doubles: Start, fields: dict[str, Any], first: Script
) -> None:
    one, two = await pair(doubles, first)
    answer = await (await gateway(one, two)).chat(stream=True, **fields)
    assert answer.status == 200
    assert "broke off" in answer.events[-2]["error"]["message"]
    assert answer.events[-1] == "[DONE]"
    assert two.requests == []


async def test_it_can_be_switched_off(gateway: Serve, doubles: Start) -> None:
    one, two = await pair(doubles, FIRST)
    answer = await (await gateway(one, two, failover=False)).chat(stream=True)
    assert "broke off" in answer.events[-2]["error"]["message"]
    assert two.requests == []


async def test_once_is_enough(gateway: Serve, doubles: Start) -> None:
    one, two = await pair(doubles, FIRST)
    three = await doubles()
    three.busy = 3
    two.on(NATIVE, breaks(native(" General")))
    answer = await (await gateway(one, two, three)).chat(stream=True)
    text = "".join(
        c["delta"].get("content") or "" for e in answer.events[:-2] for c in e["choices"]
    )
    assert text == "Hello there. General"
    errors = [one for one in answer.events if isinstance(one, dict) and "error" in one]
    assert len(errors) == 1
    assert "broke off" in errors[0]["error"]["message"]
    assert answer.events[-1] == "[DONE]"
    assert three.requests == []


async def test_nobody_waits_for_who_could_go_on(gateway: Serve, doubles: Start) -> None:
    one, two = await pair(doubles, FIRST)
    two.busy = 4
    for upstreams in ((one,), (one, two)):
        answer = await (await gateway(*upstreams)).chat(stream=True)
        assert "broke off" in answer.events[-2]["error"]["message"]
    assert two.requests == []


@pytest.mark.parametrize(
    ("path", "script"),
    [
        (TEMPLATE, refuses(500, "No.", "server_error")),
        (TEMPLATE, answers(200, b"{}")),
        (NATIVE, refuses(400, "No.", "invalid_request_error")),
    ],
    ids=["no template", "a strange template", "no completion"],
)
async def test_who_cannot_go_on_either_leaves_the_first_reason(
    gateway: Serve, doubles: Start, path: str, script: Script
) -> None:
    one, two = await pair(doubles, FIRST)
    two.on(path, script)
    answer = await (await gateway(one, two)).chat(stream=True)
    errors = [one for one in answer.events if isinstance(one, dict) and "error" in one]
    assert len(errors) == 1
    assert "broke off" in errors[0]["error"]["message"]
    assert answer.events[-1] == "[DONE]"


async def test_a_server_that_is_no_llama_cpp_cannot_go_on(gateway: Serve, doubles: Start) -> None:
    one, two = await doubles(), await doubles()
    one.on(PATH, FIRST)
    upstreams = (
        UpstreamConfig(url=one.url),
        UpstreamConfig(url=two.url, dialect="openai"),
    )
    tropilla = await gateway(models={"m": ModelConfig(upstreams=upstreams)})
    answer = await tropilla.chat(stream=True)
    assert "broke off" in answer.events[-2]["error"]["message"]
    assert two.requests == []


async def test_what_was_all_told_but_its_end(gateway: Serve, doubles: Start) -> None:
    one, two = await pair(doubles, FIRST)
    two.on(NATIVE, streams(native("", stop=True, stop_type="eos", tokens_evaluated=12)))
    answer = await (await gateway(one, two)).chat(stream=True)
    assert heard(answer) == ("Hello there.", "stop")


# The real engine.


@pytest.mark.parametrize("passing", [1, 2, 6])
@pytest.mark.parametrize("path", [PATH, TEXT])
async def test_the_joined_text_is_the_one_that_would_have_been(
    gateway: Serve, engine: str, path: str, passing: int
) -> None:
    asks: dict[str, Any] = {"model": "m", "temperature": 0, "seed": 1, "max_tokens": 40, **USAGE}
    talk = [{"role": "user", "content": "Tell me a long story about the llamas and the rain."}]
    asks |= {"messages": talk} if path == PATH else {"prompt": "The old llama"}
    plain = await gateway(engine)
    whole = await plain.ask("POST", path, asks)
    async with through(engine) as valve:
        valve.after_first, valve.passing = "cut", passing
        tropilla: Served = await gateway(valve.url, engine)
        for _ in range(2):
            answer = await tropilla.ask("POST", path, asks)
            if answer.events[-2]["usage"].get("failover"):
                break
        else:
            pytest.fail("no answer was cut")
    assert heard(answer) == heard(whole)
    counts = ("prompt_tokens", "completion_tokens")
    ours, theirs = answer.events[-2]["usage"], whole.events[-2]["usage"]
    assert [ours[name] for name in counts] == [theirs[name] for name in counts]
