"""Tools through a gateway: what is required, what is forbidden, and tools of free text."""

from __future__ import annotations

import asyncio
from typing import Any

import msgspec
import pytest

from conftest import CHAT, Answer, Serve, Start
from doubles.upstream import DONE, Double, chunk, event, streams, told
from openapi_schema import check_chat, check_chat_chunk
from test_openai_upstreams import Servers, at, servers
from tropilla import dialects
from tropilla.ir import Traits

pytestmark = pytest.mark.anyio
__all__ = ["servers"]

FORMS = pytest.mark.parametrize("stream", [False, True], ids=["whole", "stream"])
PATH = "/v1/chat/completions"


def function(name: str, **more: Any) -> Any:
    return {"type": "function", "function": {"name": name, **more}}


WEATHER = function(
    "get_weather",
    parameters={
        "type": "object",
        "properties": {"city": {"type": "string", "maxLength": 8}},
        "required": ["city"],
        "additionalProperties": False,
    },
)
RAW = {"type": "custom", "custom": {"name": "run", "description": "Runs a program."}}
LIMIT: Any = {"max_tokens": 64, "temperature": 0, "seed": 1}


def called(number: int, name: str | None = None, arguments: str = "", choice: int = 0) -> bytes:
    """A chunk of a call, as llama.cpp streams it."""
    call: Any = {"index": number, "function": {"arguments": arguments}}
    if name is not None:
        call |= {"id": f"id{number}", "type": "function"}
        call["function"]["name"] = name
    delta = {"tool_calls": [call]}
    return event({"choices": [{"index": choice, "delta": delta, "finish_reason": None}]})


def made(answer: Answer, choice: int = 0) -> tuple[list[tuple[str, str, str, str]], str]:
    """The calls of an answer (id, type, name, text), and why it ended; all of it is valid."""
    assert answer.status == 200, answer.body
    if answer.headers["content-type"] == "application/json":
        check_chat(answer.json)
        one = answer.json["choices"][choice]
        calls = one["message"].get("tool_calls") or []
        return [_said(call) for call in calls], one["finish_reason"]
    reason, calls = "", []
    assert answer.events[-1] == "[DONE]"
    for chunk_ in answer.events[:-1]:
        check_chat_chunk(chunk_)
        for one in chunk_["choices"]:
            if one["index"] == choice:
                reason = one["finish_reason"] or reason
                for call in one["delta"].get("tool_calls", ()):
                    _add(calls, call)
    return [_said(call) for call in calls], reason


def _add(calls: list[Any], delta: Any) -> None:
    """Put a delta to the calls as clients do: id, type and name are there once."""
    if delta["index"] == len(calls):
        assert delta["id"]
        calls.append(delta)
        return
    kind = calls[delta["index"]]["type"]
    assert delta.keys() == {"index", kind}
    ((name, text),) = delta[kind].items()
    calls[delta["index"]][kind][name] += text


def _said(call: Any) -> tuple[str, str, str, str]:
    inner = call[call["type"]]
    text = inner["input" if call["type"] == "custom" else "arguments"]
    return call["id"], call["type"], inner["name"], text


# The real engine.


@FORMS
@pytest.mark.parametrize(
    "choice",
    [
        "required",
        function("get_weather"),
        {
            "type": "allowed_tools",
            "allowed_tools": {"mode": "required", "tools": [function("get_weather")]},
        },
    ],
    ids=["required", "named", "allowed"],
)
async def test_a_call_that_is_required_is_made(
    gateway: Serve, engine: str, choice: Any, *, stream: bool
) -> None:
    tropilla = await gateway(engine)
    tools = [WEATHER] if choice == "required" else [function("other"), WEATHER]
    answer = await tropilla.chat(stream=stream, tools=tools, tool_choice=choice, **LIMIT)
    ((id_, kind, name, arguments),), reason = made(answer)
    assert id_
    assert (kind, name, reason) == ("function", "get_weather", "tool_calls")
    assert arguments.startswith('{"city": "')


@FORMS
async def test_calls_of_several_choices_have_ids_of_their_own(
    gateway: Serve, engine: str, *, stream: bool
) -> None:
    tropilla = await gateway(engine)
    fields = LIMIT | {"temperature": 1.5, "n": 3}
    answer = await tropilla.chat(stream=stream, tools=[WEATHER], tool_choice="required", **fields)
    found = [made(answer, choice) for choice in range(3)]
    ids = [call[0] for calls, _ in found for call in calls]
    assert len(ids) == len(set(ids)) == 3


@FORMS
@pytest.mark.parametrize("n", [1, 2])
async def test_probabilities_beside_tools(
    gateway: Serve, engine: str, n: int, *, stream: bool
) -> None:
    # The engine refuses to stream both, so it is asked for whole answers, one for each choice.
    tropilla = await gateway(engine)
    fields: Any = LIMIT | {"logprobs": True, "top_logprobs": 2, "n": n, "tools": [WEATHER]}
    if stream:
        fields |= {"stream": True, "stream_options": {"include_usage": True}}
    answer = await tropilla.chat(tool_choice="required", **fields)
    for choice in range(n):
        ((_, _, name, _),), reason = made(answer, choice)
        assert (name, reason) == ("get_weather", "tool_calls")
    whole = [answer.json] if not stream else answer.events[:-1]
    choices = [choice for one in whole for choice in one["choices"]]
    entries = [one for choice in choices for one in (choice["logprobs"] or {}).get("content", ())]
    assert whole[-1]["usage"]["completion_tokens"] == len(entries)
    assert all(entry["logprob"] <= 0 and entry["top_logprobs"] for entry in entries)


@FORMS
async def test_a_custom_tool_on_the_real_engine(
    gateway: Serve, engine: str, *, stream: bool
) -> None:
    tropilla = await gateway(engine)
    choice = {"type": "custom", "custom": {"name": "run"}}
    answer = await tropilla.chat(stream=stream, tools=[WEATHER, RAW], tool_choice=choice, **LIMIT)
    ((id_, kind, name, text),), reason = made(answer)
    assert id_
    assert (kind, name) == ("custom", "run")
    assert reason in {"tool_calls", "length"}
    assert not text.lstrip().startswith("{"), "the JSON around it is gone"


async def test_a_conversation_goes_on_after_a_custom_call(gateway: Serve, engine: str) -> None:
    tropilla = await gateway(engine)
    call = {"id": "c1", "type": "custom", "custom": {"name": "run", "input": 'print("a")'}}
    messages = [
        {"role": "user", "content": "Hello!"},
        {"role": "assistant", "content": None, "tool_calls": [call]},
        {"role": "tool", "tool_call_id": "c1", "content": "a"},
    ]
    answer = await tropilla.chat(messages=messages, tools=[RAW], **LIMIT)
    assert answer.status == 200, answer.body


@FORMS
async def test_functions_of_before_tools(gateway: Serve, engine: str, *, stream: bool) -> None:
    tropilla = await gateway(engine)
    messages = [
        {"role": "user", "content": "Hello!"},
        {
            "role": "assistant",
            "content": None,
            "function_call": {"name": "get_weather", "arguments": '{"city":"Oslo"}'},
        },
        {"role": "function", "name": "get_weather", "content": "Rain."},
        {"role": "user", "content": "And in Rome?"},
    ]
    answer = await tropilla.chat(
        stream=stream,
        messages=messages,
        functions=[WEATHER["function"]],
        function_call={"name": "get_weather"},
        **LIMIT,
    )
    assert answer.status == 200, answer.body
    if stream:
        for one in answer.events[:-1]:
            check_chat_chunk(one)
        choices = [one["choices"][0] for one in answer.events[:-1]]
        deltas = [
            one["delta"]["function_call"] for one in choices if "function_call" in one["delta"]
        ]
        assert [one["name"] for one in deltas if "name" in one] == ["get_weather"]
        arguments = "".join(one["arguments"] for one in deltas)
        reason = choices[-1]["finish_reason"]
    else:
        check_chat(answer.json)
        (choice,) = answer.json["choices"]
        assert choice["message"]["function_call"]["name"] == "get_weather"
        assert "tool_calls" not in choice["message"]
        arguments, reason = (
            choice["message"]["function_call"]["arguments"],
            choice["finish_reason"],
        )
    assert arguments.startswith('{"city": "')
    assert reason == "function_call"


def test_an_old_conversation_is_told_as_tools() -> None:
    body = {
        "messages": [
            {"role": "assistant", "function_call": {"name": "f", "arguments": "{}"}},
            {"role": "function", "name": "f", "content": "5"},
            {"role": "function", "name": "g", "content": "6"},
        ],
        "functions": [{"name": "f"}, {"name": "g"}],
        "function_call": {"name": "f"},
    }
    chat = dialects.named("openai_chat")
    wire = chat.render_request(chat.parse_request(body, PATH), Traits(dialect="openai")).body
    call = {"id": "call_0", "type": "function", "function": {"name": "f", "arguments": "{}"}}
    assert wire["messages"][0]["tool_calls"] == [call]
    assert wire["messages"][1] == {
        "role": "tool", "name": "f", "tool_call_id": "call_0", "content": "5",
    }  # fmt: skip
    assert wire["messages"][2]["role"] == "function", "it answers nothing"
    assert wire["tools"] == [function("f"), function("g")]
    assert wire["tool_choice"] == function("f")
    assert wire["parallel_tool_calls"] is False


# Servers that do not do as they are told.


@FORMS
async def test_an_answer_without_the_call_is_a_failure(
    gateway: Serve, servers: Servers, *, stream: bool
) -> None:
    double = await servers(says=["No."])
    tropilla = await gateway(models=at(double.url))
    answer = await tropilla.chat(stream=stream, tools=[WEATHER], tool_choice="required")
    assert (answer.status, answer.error["code"]) == (502, "upstream_error")
    assert "without a call" in answer.error["message"]
    assert answer.headers["x-should-retry"] == "false"


async def test_a_stream_that_has_begun_ends_in_the_failure(gateway: Serve, double: Double) -> None:
    tropilla = await gateway(double)
    raw = await tropilla.connect()
    await raw.post(PATH, CHAT | {"stream": True, "tools": [WEATHER], "tool_choice": "required"})
    asked = await double.arrives()
    await asked.head()
    await asked.send(chunk("No."))
    await raw.see(b'"No."')
    await asked.send(chunk(reason="stop") + DONE)
    *chunks, failed, done = (await raw.answer()).events
    assert (failed["error"]["code"], done) == ("upstream_error", "[DONE]")
    reasons = [one["finish_reason"] for chunk_ in chunks for one in chunk_["choices"]]
    assert set(reasons) == {None}, "no end is made up"


@FORMS
async def test_a_call_that_was_not_allowed_never_reaches_the_client(
    gateway: Serve, servers: Servers, *, stream: bool
) -> None:
    double = await servers(calls=({"name": "other", "arguments": "{}"},))
    tropilla = await gateway(models=at(double.url))
    tools = [WEATHER, function("other")]
    choice = function("get_weather")
    answer = await tropilla.chat(stream=stream, tools=tools, tool_choice=choice)
    assert b"tool_calls" not in answer.body
    assert b"called 'other'" in answer.body


@FORMS
async def test_one_call_is_one_call(gateway: Serve, double: Double, *, stream: bool) -> None:
    tropilla = await gateway(double)
    asking: Any = {"stream": stream, "tools": [WEATHER], "parallel_tool_calls": False}
    task = asyncio.create_task(tropilla.chat(**asking))
    asked = await double.arrives()
    await asked.head()
    await asked.send(called(0, "get_weather", '{"city":'))
    await asked.send(called(0, None, '"Rome"}'))
    await asked.send(called(1, "get_weather"))
    await asked.left()
    answer = await task
    assert made(answer) == (
        [("id0", "function", "get_weather", '{"city":"Rome"}')],
        "tool_calls",
    )
    if not stream:
        usage = answer.json["usage"]
        assert usage["estimated"], "the server, which was left, told none"
        assert usage["completion_tokens"] > 0


async def test_two_calls_are_two_where_they_may_be(gateway: Serve, double: Double) -> None:
    tropilla = await gateway(double)
    both = (called(0, "get_weather", "{}"), called(1, "get_weather", "{}"))
    double.on(PATH, streams(*both, chunk(reason="tool_calls"), DONE))
    calls, _ = made(await tropilla.chat(stream=True, tools=[WEATHER]))
    assert [call[0] for call in calls] == ["id0", "id1"]


# Custom tools.


@FORMS
async def test_a_custom_tool_is_a_function_there_and_custom_here(
    gateway: Serve, double: Double, *, stream: bool
) -> None:
    tropilla = await gateway(double)
    pieces = ['{"inp', 'ut": "a\\', "n\\u00", 'e9"', "}"]
    told_ = (called(0, "run"), *(called(0, None, piece) for piece in pieces))
    double.on(PATH, streams(*told_, chunk(reason="tool_calls"), DONE))
    grammar = {"type": "grammar", "grammar": {"syntax": "regex", "definition": "a.*"}}
    tool = {"type": "custom", "custom": RAW["custom"] | {"format": grammar}}  # type: ignore[operator]
    answer = await tropilla.chat(stream=stream, tools=[tool, WEATHER])
    assert made(answer) == ([("id0", "custom", "run", "a\n\u00e9")], "tool_calls")
    assert answer.headers["x-tropilla-dropped"] == "format"
    run, weather = double.requests[-1].json["tools"]
    assert (run["type"], run["function"]["name"]) == ("function", "run")
    assert "a.*" in run["function"]["parameters"]["properties"]["input"]["description"]
    assert weather == WEATHER


def test_openai_itself_is_told_of_custom_tools_as_they_are() -> None:
    chat = dialects.named("openai_chat")
    call = {"id": "c", "type": "custom", "custom": {"name": "run", "input": "a"}}
    flat = {"type": "grammar", "syntax": "lark", "definition": "start: X"}
    body: Any = {
        "messages": [{"role": "assistant", "content": None, "tool_calls": [call]}],
        "tools": [RAW, WEATHER],
        "tool_choice": {"type": "custom", "custom": {"name": "run"}},
    }
    request = chat.parse_request(body, PATH)
    wire = chat.render_request(request, Traits(dialect="openai", strict=True)).body
    assert {name: wire[name] for name in body} == body
    # Responses has a grammar's parts one level higher.
    tool = msgspec.structs.replace(request.input.tools[0], form=flat)  # type: ignore[union-attr]
    inner = msgspec.structs.replace(request.input, tools=(tool,))
    wire = chat.render_request(
        msgspec.structs.replace(request, input=inner), Traits(dialect="openai", strict=True)
    ).body
    assert wire["tools"][0]["custom"]["format"] == {
        "type": "grammar", "grammar": {"definition": "start: X", "syntax": "lark"},
    }  # fmt: skip


# What is refused before anybody is asked.


BAD: list[tuple[Any, str, str]] = [
    ({"tools": [{"type": "web"}]}, "tools.0.type", "invalid_value"),
    ({"tools": [{}]}, "tools.0.type", "missing_required_parameter"),
    ({"tools": [{"type": "function"}]}, "tools.0.function", "missing_required_parameter"),
    ({"tools": [function("a b")]}, "tools.0.function.name", "invalid_value"),
    ({"tools": [function("")]}, "tools.0.function.name", "invalid_value"),
    ({"tools": [function("a" * 65)]}, "tools.0.function.name", "string_above_max_length"),
    ({"tools": [function("a"), function("a")]}, "tools.1.function.name", "invalid_value"),
    ({"tools": [function("run"), RAW]}, "tools.1.custom.name", "invalid_value"),
    ({"tools": [function(f"f{i}") for i in range(129)]}, "tools", "array_above_max_length"),
    (
        {"tools": [function("a", parameters={"type": "banana"})]},
        "tools.0.function.parameters.type",
        "invalid_function_parameters",
    ),
    (
        {"tools": [function("a", parameters={"not": {"type": "null"}}, strict=True)]},
        "tools.0.function.parameters.not",
        "invalid_function_parameters",
    ),
    (
        {"functions": [{"name": "a", "parameters": {"items": False}}]},
        "functions.0.parameters.items",
        "invalid_function_parameters",
    ),
    (
        {"tools": [{"type": "custom", "custom": {"name": "a", "format": {"type": "xml"}}}]},
        "tools.0.custom.format.type",
        "invalid_value",
    ),
    (
        {"tools": [{"type": "custom", "custom": {"name": "a", "format": {"type": "grammar"}}}]},
        "tools.0.custom.format.grammar",
        "missing_required_parameter",
    ),
    ({"tools": [WEATHER], "tool_choice": function("b")}, "tool_choice", "invalid_value"),
    (
        {
            "tools": [WEATHER],
            "tool_choice": {
                "type": "allowed_tools",
                "allowed_tools": {"mode": "auto", "tools": [function("b")]},
            },
        },
        "tool_choice",
        "invalid_value",
    ),
    (
        {
            "tools": [WEATHER],
            "tool_choice": {
                "type": "allowed_tools",
                "allowed_tools": {"mode": "auto", "tools": [5]},
            },
        },
        "tool_choice.allowed_tools.tools.0",
        "invalid_type",
    ),
    ({"tools": [WEATHER], "functions": [{"name": "a"}]}, "functions", "invalid_value"),
    ({"functions": [{"name": "a"}], "function_call": "must"}, "function_call", "invalid_value"),
]


@pytest.mark.parametrize(("fields", "param", "code"), BAD, ids=lambda one: repr(one)[:60])
async def test_what_is_wrong_with_tools_is_told_before_anybody_is_asked(
    gateway: Serve, doubles: Start, fields: Any, param: str, code: str
) -> None:
    double = await doubles()
    double.on(PATH, streams(*told("Hi.")))
    tropilla = await gateway(double)
    answer = await tropilla.chat(**fields)
    assert (answer.status, answer.error["param"], answer.error["code"]) == (400, param, code)
    assert answer.error["type"] == "invalid_request_error"
    assert double.requests == []
