"""AFS/FFM: one table per point of what its documentation and its clients tell."""

from __future__ import annotations

from collections.abc import AsyncIterator
from contextlib import suppress
from pathlib import Path
from typing import TYPE_CHECKING, Any

import aiohttp
import msgspec
import pytest
from hypothesis import given
from hypothesis import strategies as st

from dialects.afs.asked import requests
from doubles.afs import KEY, AfsDouble, Says
from grammar import CUT, STAMP, check_grammar, parsed, read, rendered
from strategies import law, mutated
from tropilla import dialects, ir
from tropilla.dialects import afs
from tropilla.dialects.afs.leaks import Leak, Leaks
from tropilla.framing import SseFramer, sse
from tropilla.ir import (
    Chat,
    ChoiceEnded,
    Completion,
    Event,
    Failed,
    Finished,
    Infill,
    Json,
    JsonObject,
    Knobs,
    Malformed,
    Message,
    PartDelta,
    PartEnded,
    PartStarted,
    Problem,
    Reasoning,
    Refusal,
    Request,
    Started,
    Text,
    Tool,
    ToolCall,
    ToolChoice,
    Traits,
    Usage,
)

if TYPE_CHECKING:
    from tropilla.dialects import Dialect

    _: Dialect = afs

FIXTURES = Path(__file__).parent / "afs"
CONVERSATION, GENERATE = "/models/conversation", "/models/generate"
INFILLING = "/models/text_infilling"
HUMAN = {"role": "human", "content": "Hello."}
ASK: JsonObject = {"model": "m", "messages": [HUMAN]}
WEATHER = {
    "name": "get_weather",
    "description": "The weather.",
    "parameters": {"type": "object", "properties": {"city": {"type": "string"}}},
}
NEW_TOOLS = [{"type": "function", "function": WEATHER}]
CALL = ToolCall(id="call_9", name="get_weather", arguments='{"city":"Taipei"}')
PLAIN_CHAT = Chat(messages=(Message(role="user", parts=(Text(text="Hello."),)),))


def asked(body: JsonObject, path: str = CONVERSATION) -> Request:
    return afs.parse_request(body, path)


def chat_of(request: Request) -> Chat:
    assert isinstance(request.input, Chat)
    return request.input


def with_parameters(**parameters: Json) -> JsonObject:
    return ASK | {"parameters": parameters}


def foreign(**fields: Any) -> Request:
    """A request of an OpenAI client."""
    plain: JsonObject = {"dialect": "openai_chat", "input": PLAIN_CHAT, "model": "m"}
    return Request(**plain | fields)


def said(request: Request) -> dialects.Wire:
    return afs.render_request(request, Traits())


def flat(text: str | None, **fields: Json) -> JsonObject:
    """The object of facts 4.5 and 4.6."""
    return {
        "generated_text": text,
        "function_call": None,
        "details": None,
        "total_time_taken": "0.05 sec",
        "prompt_tokens": 0,
        "generated_tokens": 0,
        "total_tokens": 0,
        "finish_reason": None,
    } | fields


def last(text: str = "", reason: str = "eos_token", **fields: Json) -> JsonObject:
    counts = {"prompt_tokens": 17, "generated_tokens": 3, "total_tokens": 20}
    return flat(text, total_time_taken="1.50 sec", finish_reason=reason, **counts) | fields


def stream(*objects: JsonObject | bytes) -> bytes:
    return b"".join(
        one if isinstance(one, bytes) else sse(msgspec.json.encode(one)) for one in objects
    )


def heard(*objects: JsonObject | bytes, request: Request | None = None) -> list[Event]:
    return parsed(afs, request or asked(ASK), [stream(*objects)])


def folded(*objects: JsonObject | bytes, request: Request | None = None) -> ir.Choice:
    return ir.fold(heard(*objects, request=request)).choices[0]


def failure(events: list[Event]) -> Problem:
    assert isinstance(events[-1], Failed)
    return events[-1].problem


# Where a client finds it.


def test_every_path_is_served_below_every_base() -> None:
    bases = ("", "/api", "/text-generation/api", "/text-generation/api/v4")
    assert {route.path for route in afs.ROUTES} == {
        base + path for base in bases for path in (CONVERSATION, GENERATE, INFILLING)
    }
    assert not any(route.v1 for route in afs.ROUTES)


@pytest.mark.parametrize("base", ["", "/api", "/text-generation/api", "/text-generation/api/v4"])
def test_the_path_below_a_base_says_what_is_asked(base: str) -> None:
    assert isinstance(asked(ASK, base + CONVERSATION).input, Chat)
    inputs = {"inputs": "a<FILL_ME>b"}
    assert asked(inputs, base + GENERATE).input == Completion(prompts=("a<FILL_ME>b",))
    assert asked(inputs, base + INFILLING).input == Infill(prefix="a", suffix="b")


# A client's request.


@pytest.mark.parametrize(
    ("parameters", "field", "value"),
    [
        ({"max_new_tokens": 350}, "max_tokens", 350),
        ({"max_new_tokens": -1}, "max_tokens", None),
        ({"max_new_tokens": None}, "max_tokens", None),
        ({"stop_sequences": ["a", "b"]}, "stop", ("a", "b")),
        ({"stop": []}, "stop", ()),
        ({"stop": ["x"]}, "stop", ("x",)),
        ({"stop": "END"}, "stop", ("END",)),
        ({"stop_sequences": ["a"], "stop": ["a", "b"]}, "stop", ("a", "b")),
        ({"temperature": 0.5}, "knobs", Knobs(temperature=0.5)),
        ({"temperature": None}, "knobs", Knobs()),
        ({"top_p": 1}, "knobs", Knobs(top_p=1)),
        ({"top_k": 50}, "knobs", Knobs(top_k=50)),
        ({"frequence_penalty": 1.2}, "knobs", Knobs(repeat_penalty=1.2)),
        ({"frequency_penalty": 1.2}, "knobs", Knobs()),
        ({"seed": 42}, "knobs", Knobs(seed=42)),
        ({"seed": None}, "knobs", Knobs(seed=-1)),
        ({"show_probabilities": True}, "logprobs", 0),
        ({"show_probabilities": False}, "logprobs", None),
        ({"stream": True}, "stream", True),
        ({"frequency_penalty": 1.2, "x": 1}, "extras",
         {"parameters": {"frequency_penalty": 1.2, "x": 1}}),
    ],
)  # fmt: skip
def test_parameters(parameters: JsonObject, field: str, value: Any) -> None:
    assert getattr(asked(with_parameters(**parameters)), field) == value


@pytest.mark.parametrize(
    ("body", "param"),
    [
        (with_parameters(temperature="hot"), "parameters.temperature"),
        (with_parameters(temperature=-1), "parameters.temperature"),
        (with_parameters(max_new_tokens=0), "parameters.max_new_tokens"),
        (with_parameters(max_new_tokens=1.5), "parameters.max_new_tokens"),
        (with_parameters(top_p=1.1), "parameters.top_p"),
        (with_parameters(top_k=0), "parameters.top_k"),
        (with_parameters(frequence_penalty=0), "parameters.frequence_penalty"),
        (with_parameters(frequence_penalty=-1), "parameters.frequence_penalty"),
        (with_parameters(stop_sequences=[1]), "parameters.stop_sequences.0"),
        (with_parameters(stop=5), "parameters.stop"),
        (with_parameters(seed=-1), "parameters.seed"),
        (with_parameters(show_probabilities=1), "parameters.show_probabilities"),
        (ASK | {"parameters": []}, "parameters"),
        (ASK | {"stream": "yes"}, "stream"),
        ({"model": "m"}, "messages"),
        ({"messages": []}, "messages"),
        ({"messages": [{"content": "a"}]}, "messages.0.role"),
        ({"messages": [{"role": "robot", "content": "a"}]}, "messages.0.role"),
        ({"messages": [{"role": "human"}]}, "messages.0.content"),
        ({"messages": [{"role": "human", "content": 5}]}, "messages.0.content"),
        ({"messages": [{"role": "human", "content": [{"type": "image_url"}]}]},
         "messages.0.content.0"),
        (ASK | {"tools": NEW_TOOLS, "functions": [WEATHER]}, "functions"),
        (ASK | {"functions": [{}]}, "functions.0.name"),
        (ASK | {"tools": [{"type": "function"}]}, "tools.0.function"),
        (ASK | {"tools": NEW_TOOLS, "tool_choice": "maybe"}, "tool_choice"),
    ],
)  # fmt: skip
def test_what_is_wrong_is_named(body: JsonObject, param: str) -> None:
    with pytest.raises(Malformed) as refused:
        asked(body)
    assert refused.value.problem.param == param
    assert refused.value.problem.kind == "malformed"


@pytest.mark.parametrize("inputs", [None, 5, ["a"]])
@pytest.mark.parametrize("path", [GENERATE, INFILLING])
def test_inputs_are_one_text(inputs: Json, path: str) -> None:
    with pytest.raises(Malformed, match="inputs") as refused:
        asked({"inputs": inputs}, path)
    assert refused.value.problem.param == "inputs"


@pytest.mark.parametrize("inputs", ["", "no hole", "<FILL_ME><FILL_ME>", "<fill_me>"])
def test_there_is_exactly_one_hole(inputs: str) -> None:
    with pytest.raises(Malformed, match="exactly one '<FILL_ME>'") as refused:
        asked({"inputs": inputs}, INFILLING)
    assert refused.value.problem.param == "inputs"


@pytest.mark.parametrize(
    ("role", "read_as", "said_as"),
    [
        ("human", "user", "human"),
        ("user", "user", "human"),
        ("assistant", "assistant", "assistant"),
        ("system", "system", "system"),
        ("tool", "tool", "tool"),
    ],
)
def test_roles(role: str, read_as: str, said_as: str) -> None:
    request = asked({"messages": [{"role": role, "content": "a"}]})
    assert chat_of(request).messages == (Message(role=read_as, parts=(Text(text="a"),)),)  # type: ignore[arg-type]
    assert said(request).body["messages"] == [{"role": said_as, "content": "a"}]


def test_parts_of_text_are_one_text() -> None:
    parts = [{"type": "text", "text": "a"}, {"type": "text", "text": "b"}]
    request = asked({"messages": [{"role": "user", "content": parts}]})
    assert chat_of(request).messages[0].parts == (Text(text="ab"),)


# Tools, old and new.

TOOL = Tool(
    name="get_weather", description="The weather.", parameters=WEATHER["parameters"]  # type: ignore[arg-type]
)  # fmt: skip


@pytest.mark.parametrize(
    ("fields", "choice"),
    [
        ({"tools": NEW_TOOLS}, None),
        ({"tools": NEW_TOOLS, "tool_choice": "none"}, ToolChoice(mode="none")),
        ({"tools": NEW_TOOLS, "tool_choice": "required"}, ToolChoice(mode="required")),
        (
            {
                "tools": NEW_TOOLS,
                "tool_choice": {"type": "function", "function": {"name": "get_weather"}},
            },
            ToolChoice(mode="required", only=("get_weather",)),
        ),
        ({"functions": [WEATHER]}, None),
        ({"functions": [WEATHER], "function_call": "auto"}, ToolChoice(mode="auto")),
        (
            {"functions": [WEATHER], "function_call": {"name": "get_weather"}},
            ToolChoice(mode="required", only=("get_weather",)),
        ),
    ],
)
def test_tools_are_read_and_said_in_the_clients_form(
    fields: JsonObject, choice: ToolChoice | None
) -> None:
    request = asked(ASK | fields)
    assert chat_of(request).tools == (TOOL,)
    assert chat_of(request).tool_choice == choice
    body = said(request).body
    assert {name: body[name] for name in fields} == fields
    assert asked(body) == msgspec.structs.replace(request, stream=True)


def test_functions_ask_for_one_call_at_a_time() -> None:
    assert chat_of(asked(ASK | {"functions": [WEATHER]})).parallel_tool_calls is False
    assert chat_of(asked(ASK | {"tools": NEW_TOOLS})).parallel_tool_calls is None


def test_a_conversation_with_calls_in_the_new_form() -> None:
    call = {
        "id": "call_9",
        "type": "function",
        "function": {"name": "get_weather", "arguments": CALL.arguments},
    }
    messages = [
        HUMAN,
        {"role": "assistant", "content": None, "tool_calls": [call]},
        {"role": "tool", "tool_call_id": "call_9", "name": "get_weather", "content": "Rain."},
    ]
    request = asked({"messages": messages, "tools": NEW_TOOLS})
    result = Message(
        role="tool", parts=(Text(text="Rain."),), name="get_weather", tool_call_id="call_9"
    )
    assert chat_of(request).messages[1:] == (Message(role="assistant", parts=(CALL,)), result)
    assert said(request).body["messages"] == messages


def test_a_conversation_with_calls_in_the_old_form() -> None:
    call = {"name": "get_weather", "arguments": CALL.arguments}
    messages = [
        HUMAN,
        {"role": "assistant", "content": None, "function_call": call},
        {"role": "function", "name": "get_weather", "content": "Rain."},
    ]
    request = asked({"messages": messages, "functions": [WEATHER]})
    # To any other dialect it is a call and its result, which belong together by an id.
    _, calling, result = chat_of(request).messages
    assert calling.parts == (
        ToolCall(id="call_1", name="get_weather", arguments=CALL.arguments),
    )  # fmt: skip
    assert (result.role, result.tool_call_id) == ("tool", "call_1")
    chat = dialects.named("openai_chat").render_request(request, Traits(chat=True))
    assert chat.body["messages"][2]["tool_call_id"] == "call_1"
    assert said(request).body["messages"] == messages


def test_arguments_may_be_an_object() -> None:
    call = {"name": "get_weather", "arguments": {"city": "Taipei"}}
    request = asked({"messages": [{"role": "assistant", "function_call": call}]})
    (part,) = chat_of(request).messages[0].parts
    assert isinstance(part, ToolCall)
    assert part.arguments == CALL.arguments


def test_depth_is_no_weapon() -> None:
    # A value that could still be read where the stack was shallower.
    deep: Json = {}
    for _ in range(2000):
        deep = {"a": deep}
    call = {"name": "f", "arguments": deep}
    with pytest.raises(Malformed, match="arguments"):
        asked({"messages": [{"role": "assistant", "function_call": call}]})
    with pytest.raises(Malformed, match="arguments"):
        afs.parse_answer({"generated_text": "", "function_call": call})


def test_nobody_else_sets_our_mark() -> None:
    request = asked(ASK | {"afs": {"functions": True}})
    assert request.extras == {}


# A request to an upstream.


@pytest.mark.parametrize(
    ("fields", "parameters", "dropped"),
    [
        ({}, None, ()),
        ({"max_tokens": 5}, {"max_new_tokens": 5}, ()),
        ({"stop": ("a", "b", "c", "d")}, {"stop_sequences": ["a", "b", "c", "d"]}, ()),
        ({"knobs": Knobs(temperature=0)}, {"temperature": 0.01}, ()),
        ({"knobs": Knobs(temperature=0.7)}, {"temperature": 0.7}, ()),
        ({"knobs": Knobs(top_p=0)}, {"top_p": 0.01}, ()),
        ({"knobs": Knobs(top_p=0.9)}, {"top_p": 0.9}, ()),
        ({"knobs": Knobs(top_k=100)}, {"top_k": 100}, ()),
        ({"knobs": Knobs(top_k=101)}, None, ("top_k",)),
        ({"knobs": Knobs(top_k=0)}, None, ("top_k",)),
        ({"knobs": Knobs(repeat_penalty=1.1)}, {"frequence_penalty": 1.1}, ()),
        ({"knobs": Knobs(repeat_penalty=0)}, None, ("repeat_penalty",)),
        ({"knobs": Knobs(frequency_penalty=0.5)}, None, ("frequency_penalty",)),
        ({"knobs": Knobs(frequency_penalty=0)}, None, ()),
        ({"knobs": Knobs(presence_penalty=0.5)}, None, ("presence_penalty",)),
        ({"knobs": Knobs(min_p=0.1, typical_p=0.9)}, None, ("min_p", "typical_p")),
        ({"knobs": Knobs(mirostat=2)}, None, ("mirostat",)),
        ({"knobs": Knobs(seed=7)}, {"seed": 7}, ()),
        ({"knobs": Knobs(seed=-1)}, {"seed": None}, ()),
        ({"logit_bias": (ir.Bias(token=1, amount=2),)}, None, ("logit_bias",)),
        ({"format": ir.Format(kind="text")}, None, ()),
        ({"extras": {"user": "u", "cache_prompt": True}}, None, ("user", "cache_prompt")),
        ({"extras": {"parameters": {"x": 1}, "afs": 1}}, None, ("parameters", "afs")),
        # A name that no header can hold is not told.
        ({"extras": {"a\r\nb: c": 1, "ø": 2, "x" * 65: 3}}, None, ()),
    ],
)
def test_what_of_a_request_reaches_afs(
    fields: JsonObject, parameters: JsonObject | None, dropped: tuple[str, ...]
) -> None:
    wire = said(foreign(**fields))
    assert wire.path == CONVERSATION
    body: JsonObject = {"model": "m", "messages": [HUMAN], "stream": True}
    assert wire.body == (body if parameters is None else body | {"parameters": parameters})
    assert wire.dropped == dropped


IMAGE = ir.Image(url="data:image/png;base64,AA==")
SOUND = ir.Audio(data="AA==", format="wav")
A_FILE = ir.Opaque(dialect="openai_chat", body={"type": "file"})


@pytest.mark.parametrize(
    ("fields", "param"),
    [
        ({"stop": ("a", "b", "c", "d", "e")}, "stop"),
        ({"n": 2}, "n"),
        ({"logprobs": 0}, "logprobs"),
        ({"format": ir.Format(kind="json_object")}, "response_format"),
        ({"format": ir.Format(kind="json_schema")}, "response_format"),
        ({"extras": {"grammar": "root ::= x"}}, "grammar"),
        ({"input": Chat(messages=(Message(role="user", parts=(IMAGE,)),))}, "messages.0.content"),
        ({"input": Chat(messages=(Message(role="user", parts=(SOUND,)),))}, "messages.0.content"),
        ({"input": Chat(messages=(Message(role="user", parts=(A_FILE,)),))}, "messages.0.content"),
        ({"input": Chat(messages=(), tools=(ir.Opaque(dialect="x", body={"type": "y"}),))},
         "tools"),
        ({"input": Completion(prompts=("a", "b"))}, "prompt"),
        ({"input": Completion(prompts=([1, 2],))}, "prompt"),
        ({"input": Completion(prompts=({"prompt_string": "a"},))}, "prompt"),
        ({"input": Infill(prefix="a", suffix="b", prompt="c")}, "prompt"),
        ({"input": Infill(prefix="<FILL_ME>", suffix="b")}, "inputs"),
    ],
)  # fmt: skip
def test_what_would_change_the_answer_is_refused(fields: JsonObject, param: str) -> None:
    with pytest.raises(Malformed) as refused:
        said(foreign(**fields))
    assert (refused.value.problem.kind, refused.value.problem.param) == ("unsupported", param)


def test_a_client_of_afs_hears_afs_itself_about_its_limits() -> None:
    body = with_parameters(stop_sequences=list("abcde"), top_k=200, show_probabilities=True)
    assert said(asked(body)).body["parameters"] == body["parameters"]


@pytest.mark.parametrize(
    ("message", "expected", "dropped"),
    [
        (Message(role="developer", parts=(Text(text="a"),)),
         {"role": "system", "content": "a"}, ()),
        (Message(role="user", parts=(Text(text="a"), Text(text="b"))),
         {"role": "human", "content": "ab"}, ()),
        (Message(role="user", name="x", parts=(Text(text="a"),), extras={"y": 1}),
         {"role": "human", "content": "a"}, ("name",)),
        (Message(role="assistant", parts=(Reasoning(text="hm"), Text(text="a"))),
         {"role": "assistant", "content": "a"}, ("reasoning_content",)),
        (Message(role="assistant", parts=(Refusal(text="no"),)),
         {"role": "assistant", "content": "no"}, ()),
        (Message(role="assistant"), {"role": "assistant", "content": ""}, ()),
        (Message(role="tool", tool_call_id="call_9", parts=(Text(text="a"),)),
         {"role": "tool", "content": "a", "tool_call_id": "call_9"}, ()),
    ],
)  # fmt: skip
def test_messages_of_others(
    message: Message, expected: JsonObject, dropped: tuple[str, ...]
) -> None:
    wire = said(foreign(input=Chat(messages=(message,))))
    assert wire.body["messages"] == [expected]
    assert wire.dropped == dropped


@pytest.mark.parametrize(
    ("choice", "expected", "names"),
    [
        (None, None, ["get_weather", "other"]),
        (ToolChoice(mode="auto"), "auto", ["get_weather", "other"]),
        (ToolChoice(mode="required", only=("other",)),
         {"type": "function", "function": {"name": "other"}}, ["get_weather", "other"]),
        (ToolChoice(mode="auto", only=("other",)), "auto", ["other"]),
    ],
)  # fmt: skip
def test_tools_of_others_take_the_new_form(
    choice: ToolChoice | None, expected: Json, names: list[str]
) -> None:
    tools = (TOOL, Tool(name="other", strict=True, extras={"x": 1}))
    chat = msgspec.structs.replace(
        PLAIN_CHAT, tools=tools, tool_choice=choice, parallel_tool_calls=False
    )
    wire = said(foreign(input=chat))
    assert [tool["function"]["name"] for tool in wire.body["tools"]] == names
    assert wire.body["tools"][-1] == {"type": "function", "function": {"name": "other"}}
    assert wire.body.get("tool_choice") == expected
    assert "functions" not in wire.body
    assert wire.dropped == ("strict", "parallel_tool_calls")


def test_raw_text_and_holes_have_their_own_paths() -> None:
    raw = said(foreign(input=Completion(prompts=("a",))))
    assert (raw.path, raw.body["inputs"]) == (GENERATE, "a")
    hole = said(foreign(input=Infill(prefix="a", suffix="b")))
    assert (hole.path, hole.body["inputs"]) == (INFILLING, "a<FILL_ME>b")


# What an upstream answers.


def test_the_stream_of_the_facts() -> None:
    assert heard(flat("你"), flat("好"), last("。", "length")) == [
        Started(),
        PartStarted(kind="text"),
        PartDelta(text="你"),
        PartDelta(text="好"),
        PartDelta(text="。"),
        PartEnded(),
        ChoiceEnded(reason="length"),
        Finished(usage=Usage(prompt_tokens=17, completion_tokens=3)),
    ]


@pytest.mark.parametrize(
    ("raw", "reason"),
    [
        ("eos_token", "stop"),
        ("stop_sequence", "stop"),
        ("stop", "stop"),
        ("length", "length"),
        ("max_tokens", "length"),
        ("length_limit", "length"),
        ("function_call", "tool_calls"),
        ("tool_calls", "tool_calls"),
        ("content_filter", "content_filter"),
        ("something_new", "stop"),
    ],
)
def test_every_finish_reason(raw: str, reason: str) -> None:
    events = parsed(afs, asked(ASK), [stream(flat("a"), last(reason=raw))], extras=True)
    (ended,) = [event for event in events if isinstance(event, ChoiceEnded)]
    assert ended.reason == reason
    assert ended.stop_word == ("" if raw == "stop_sequence" else None)
    assert ended.extras is not None
    assert ended.extras.top["finish_reason"] == raw
    whole = afs.parse_answer(last("a", raw)).choices[0]
    assert (whole.reason, whole.stop_word) == (reason, ended.stop_word)
    # To a client of the same dialect it is said in the upstream's own words.
    assert f'"finish_reason":"{raw}"'.encode() in rendered(afs, asked(ASK), events)


CALL_JSON = {
    "id": "call_9",
    "type": "function",
    "function": {"name": "get_weather", "arguments": CALL.arguments},
}
OLD_CALL = {"name": "get_weather", "arguments": CALL.arguments}
USAGE = {"prompt_tokens": 17, "completion_tokens": 3, "total_tokens": 20}


@pytest.mark.parametrize(
    "body",
    [
        last("", "tool_calls", tool_calls=[CALL_JSON]),
        last("", "function_call", function_call=OLD_CALL),
        last("", "function_call", function_call=OLD_CALL | {"arguments": {"city": "Taipei"}}),
        last("", "eos_token", function_call=OLD_CALL),
        flat(None, finish_reason="tool_calls", tool_calls=[CALL_JSON], usage=USAGE),
        {"choices": [{"message": {"content": None, "tool_calls": [CALL_JSON]},
                      "finish_reason": "tool_calls"}], "usage": USAGE},
    ],
)  # fmt: skip
def test_calls_in_every_shape(body: JsonObject) -> None:
    answer = afs.parse_answer(body)
    (call,) = answer.choices[0].tool_calls
    assert (call.name, call.arguments) == (CALL.name, CALL.arguments)
    assert answer.choices[0].text() is None
    assert answer.choices[0].reason == "tool_calls"
    assert answer.usage == Usage(prompt_tokens=17, completion_tokens=3)
    assert folded(body) == msgspec.structs.replace(answer.choices[0], extras={})


def fragment(arguments: str, **fields: Json) -> JsonObject:
    return {"function": {"arguments": arguments}} | fields


FIRST = {"index": 0, "id": "call_9", "function": {"name": "get_weather", "arguments": ""}}
AGAIN = {"name": "get_weather", "arguments": '"Taipei"}'}


@pytest.mark.parametrize(
    "chunks",
    [
        [[FIRST], [fragment('{"city":', index=0)], [fragment('"Taipei"}', index=0)]],
        [[FIRST], [fragment('{"city":')], [fragment('"Taipei"}')]],
        [[FIRST], [fragment('{"city":', index=0, id="call_9")],
         [{"index": 0, "id": "call_9", "function": AGAIN}]],
        [[CALL_JSON], [CALL_JSON]],
        [[CALL_JSON | {"index": 0}], [CALL_JSON | {"index": 0}]],
    ],
)  # fmt: skip
@pytest.mark.parametrize("openai", [False, True])
def test_calls_in_fragments_and_told_twice(chunks: list[list[JsonObject]], *, openai: bool) -> None:
    def chunk(calls: list[JsonObject]) -> JsonObject:
        if openai:
            return {"choices": [{"delta": {"tool_calls": calls}, "finish_reason": None}]}
        return flat("", tool_calls=calls)

    choice = folded(*map(chunk, chunks), last(reason="tool_calls"))
    assert choice.tool_calls == [CALL]


def test_several_calls_stay_apart() -> None:
    second = {"function": {"name": "get_weather", "arguments": '{"city":"Tainan"}'}}
    for more in ({}, {"id": "call_10"}, {"index": 1}):
        choice = folded(flat("", tool_calls=[CALL_JSON, second | more]), last())
        assert [call.arguments for call in choice.tool_calls] == [
            CALL.arguments,
            '{"city":"Tainan"}',
        ]
    choice = folded(flat("", function_call=OLD_CALL), last(function_call=OLD_CALL))
    assert len(choice.tool_calls) == 1


def test_openai_chunks() -> None:
    def chunk(reason: str | None = None, **delta: Json) -> JsonObject:
        return {"id": "x", "created": 5, "choices": [{"delta": delta, "finish_reason": reason}]}

    counts = {"prompt_tokens": 17, "generated_tokens": 3}
    events = heard(
        chunk(role="assistant", content=""),
        chunk(reasoning_content="hm"),
        chunk(content="a"),
        chunk("stop"),
        {"choices": [], "usage": counts},
        b"data: [DONE]\n\n",
    )
    answer = ir.fold(events)
    assert (answer.id, answer.created) == ("x", 5)
    assert answer.choices[0].parts == (Reasoning(text="hm"), Text(text="a"))
    assert answer.usage == Usage(prompt_tokens=17, completion_tokens=3)


PING = b"event: ping\ndata: 2023-11-08 12:34:56.123456\n\n"


@pytest.mark.parametrize(
    "noise",
    [
        PING,
        PING.replace(b"\n", b"\r\n"),
        b"data: 2023-11-08 12:34:56.123456\n\n",
        b": ping - 2023-11-08 12:34:56.123456\n\n",
        b"\n\n",
        b"data: \n\n",
        b"data: null\n\n",
        b'data: {"generated_text":"cut\n\n',
        b"data: 5\n\ndata: []\n\n",
        b"data: \xff\n\n",
        b'data: {"unknown":true}\n\n',
    ],
)
def test_what_is_no_answer_is_skipped(noise: bytes) -> None:
    assert heard(noise, flat("a"), noise, last("b"), noise) == heard(flat("a"), last("b"))


def test_a_long_wait_is_not_garbage() -> None:
    clock = b"data: 2023-11-08 12:34:56.123456\n\n"
    other = b"event: ping\ndata: alive\n\n"
    assert folded(*[clock, PING, other] * 100, last("a")).text() == "a"


@pytest.mark.parametrize("count", [1, 16, 17, 100])
def test_nothing_but_garbage_fails(count: int) -> None:
    events = heard(*[b'data: {"generated_text":"cut\n\n'] * count)
    assert failure(events).kind == "upstream_failed"
    events = heard(*[b"data: {\n\n"] * count, b"data: [DONE]\n\n")
    assert failure(events).kind == "upstream_failed"


def test_tolerance_is_counted_in_a_row() -> None:
    bad = [b"data: {\n\n"] * 16
    assert folded(*bad, flat("a"), *bad, last("b")).text() == "ab"
    assert failure(heard(*bad, *bad, last("b"))).message.startswith("The upstream's stream is no")


@pytest.mark.parametrize(
    ("event", "message"),
    [
        (b'data: {"error":{"message":"Too long."}}\n\n', "Too long."),
        (b'data: {"error":"Too long."}\n\n', "Too long."),
        (b'data: {"detail":"Too long."}\n\n', "Too long."),
        (b'data: {"message":"Too long."}\n\n', "Too long."),
        (b'event: error\ndata: {"message":"Too long."}\n\n', "Too long."),
        (b'event: error\ndata: {"error":{"message":"Too long."}}\n\n', "Too long."),
        (b"event: error\ndata: Too long.\n\n", "Too long."),
        (b'event: error\ndata: "Too long."\n\n', "Too long."),
    ],
)
def test_errors_in_a_stream(event: bytes, message: str) -> None:
    events = heard(flat("a"), event, last("b"))
    assert failure(events).message == message
    assert events[-2] == PartEnded()


@pytest.mark.parametrize(
    ("body", "message"),
    [
        ({"detail": "Model not found."}, "Model not found."),
        ({"detail": "No.", "generated_text": "a"}, "No."),
        ({"detail": [{"loc": ["body", "inputs"], "msg": "field required", "type": "x"}]},
         "inputs: field required"),
        ({"error": {"message": "No."}}, "No."),
        ({"error": "No."}, "No."),
        ({"message": "No."}, "No."),
        ({}, "The upstream's answer has no 'generated_text'."),
        ({"generated_text": None}, "The upstream's answer has no 'generated_text'."),
        ({"finish_reason": "stop"}, "The upstream's answer has no 'generated_text'."),
        ([], "The upstream's answer is not an object."),
        ({"generated_text": 5}, "A text of the upstream is not a string."),
        ({"choices": [5]}, "'choices' of the upstream is not an array of objects."),
    ],
)  # fmt: skip
def test_an_answer_of_status_200_can_be_a_failure(body: Json, message: str) -> None:
    with pytest.raises(Malformed) as refused:
        afs.parse_answer(body)
    assert refused.value.problem.message == message


@pytest.mark.parametrize(
    ("status", "body", "kind", "message", "param"),
    [
        (422, {"detail": [{"loc": ["body", "parameters", "temperature"], "msg": "too low",
                           "type": "value_error"}]},
         "malformed", "parameters.temperature: too low", "parameters.temperature"),
        (400, {"detail": "Input is too long."}, "malformed", "Input is too long.", None),
        (429, {"message": "Rate limit."}, "limited", "Rate limit.", None),
        (401, {"error": "Bad key."}, "upstream_failed",
         "The upstream refused this gateway's own key (401): Bad key.", None),
        (500, {"error": {"message": "Boom."}}, "upstream_failed", "Boom.", None),
        (503, {"detail": "Busy."}, "unavailable", "Busy.", None),
    ],
)  # fmt: skip
def test_refusals(status: int, body: Json, kind: str, message: str, param: str | None) -> None:
    problem = afs.parse_problem(status, msgspec.json.encode(body))
    assert (problem.kind, problem.message, problem.param) == (kind, message, param)


@pytest.mark.parametrize("body", [b"", b"<html>", b"[]", b"{", b'{"detail":[]}', b"\xff"])
def test_a_refusal_may_be_anything(body: bytes) -> None:
    assert afs.parse_problem(502, body).kind == "upstream_failed"


def test_the_deployments_of_2023() -> None:
    end = {"generated_text": ".", "total_time_taken": "2.46 sec", "generated_tokens": 18}
    events = heard({"generated_text": "Hello"}, end)
    assert events[-2:] == [
        ChoiceEnded(reason="stop"),
        Finished(usage=Usage(completion_tokens=18)),
    ]
    assert afs.parse_answer(end).usage == Usage(completion_tokens=18)
    assert afs.parse_answer({"generated_text": "Hello"}).usage is None
    assert isinstance(heard({"generated_text": "a"}, b"data: [DONE]\n\n")[-1], Finished)
    # Without its counts the end has not come.
    assert failure(heard({"generated_text": "Hello"})).retryable


def test_missing_counts_are_counted_where_they_can_be() -> None:
    body = {"generated_text": "a", "generated_tokens": 3, "total_tokens": 20}
    assert afs.parse_answer(body).usage == Usage(prompt_tokens=17, completion_tokens=3)


def test_counts_so_far_are_no_end() -> None:
    # A deployment that knows finish reasons is not over before it has told one.
    assert failure(heard(flat("a", generated_tokens=1))).retryable


@pytest.mark.parametrize("cut", [1, 2])
def test_a_stream_without_its_end_has_failed(cut: int) -> None:
    events = heard(*[flat("a"), flat("b")][:cut])
    assert failure(events).message.startswith("The upstream ended the stream")


def test_what_was_told_before_it_failed_is_not_lost() -> None:
    events = heard(flat("a", tool_calls=[{}]))
    assert events[1:4] == [PartStarted(kind="text"), PartDelta(text="a"), PartEnded()]
    assert failure(events).message == "A tool call of the upstream begins without a name."


def test_text_after_the_end_is_malformed() -> None:
    assert "goes on after" in failure(heard(last("a"), flat("b"))).message


# Calls in the text.

LEAKED = '<function=get_weather>{"city":"Taipei"}</function>'
FOUND = Leak("get_weather", '{"city":"Taipei"}')


@pytest.mark.parametrize(
    ("text", "pieces"),
    [
        (LEAKED, [FOUND]),
        ("tool" + LEAKED, [FOUND]),
        (f"Let me see.\n\n{LEAKED}\n", ["Let me see.", FOUND]),
        (f"a {LEAKED} b", ["a", FOUND, " b"]),
        (LEAKED + "\n" + LEAKED, [FOUND, FOUND]),
        (LEAKED.removesuffix("</function>"), [FOUND]),
        (LEAKED.removesuffix(">"), [FOUND]),
        ('<function=f>{"a', [Leak("f", '{"a')]),
        ("<function=f>", [Leak("f", "")]),
        ("<function=f></function>", [Leak("f", "{}")]),
        ("<function=f> { } </function>", [Leak("f", "{ }")]),
        ('<function=f>{"a":"</function>"}</function>', [Leak("f", '{"a":"</function>"}')]),
        (r'<function=f>{"a":"\""}</function>', [Leak("f", r'{"a":"\""}')]),
        ("<function=f>{bad}</function>", [Leak("f", "{bad}")]),
        # What only looks like one.
        ("a < b, a <", ["a < b, a <"]),
        ("the tool", ["the tool"]),
        ("tool<func", ["tool<func"]),
        ("<function=", ["<function="]),
        ("<function=a b>{}", ["<function=a b>{}"]),
        (f"<function={'x' * 65}>{{}}", [f"<function={'x' * 65}>{{}}"]),
        ("Write <function=f> and so on", ["Write <function=f> and so on"]),
        (f"Write <function=f> or {LEAKED}", ["Write <function=f> or", FOUND]),
        (" \n ", [" \n "]),
        ("", []),
    ],
)
def test_leaked_calls(text: str, pieces: list[str | Leak]) -> None:
    for size in (1, 2, 3, 7, len(text) + 1):
        leaks = Leaks()
        told: list[str | Leak] = []
        for start in range(0, len(text), size):
            told += leaks.feed(text[start : start + size])
        assert joined(told + leaks.end()) == pieces, size


def joined(pieces: list[str | Leak]) -> list[str | Leak]:
    told: list[str | Leak] = []
    for piece in pieces:
        before = told[-1] if told else None
        if isinstance(before, str) and isinstance(piece, str):
            told[-1] = before + piece
        else:
            told.append(piece)
    return told


def test_text_is_told_as_soon_as_it_is_decided() -> None:
    leaks = Leaks()
    assert leaks.feed("Hello") == ["Hello"]
    assert leaks.feed(" wai") == [" wai"]
    assert leaks.feed("t") == []
    assert leaks.feed("!") == ["t!"]


def test_arguments_without_an_end_are_text() -> None:
    text = "<function=f>{" + "x" * 70_000 + "</function>"
    for size in (4096, len(text)):
        leaks = Leaks()
        told: list[str | Leak] = []
        for start in range(0, len(text), size):
            told += leaks.feed(text[start : start + size])
        assert joined(told + leaks.end()) == [text]


WITH_TOOLS = asked(ASK | {"tools": NEW_TOOLS})


def test_a_leaked_call_is_a_call_and_no_text() -> None:
    pieces = [flat(LEAKED[i : i + 4]) for i in range(0, len(LEAKED), 4)]
    events = heard(flat("Wait. "), *pieces, last("\n"), request=WITH_TOOLS)
    assert events == [
        Started(),
        PartStarted(kind="text"),
        PartDelta(text="Wait."),
        PartEnded(),
        PartStarted(kind="tool_call", name="get_weather"),
        PartDelta(text='{"city":"Taipei"}'),
        PartEnded(),
        ChoiceEnded(reason="tool_calls"),
        Finished(usage=Usage(prompt_tokens=17, completion_tokens=3)),
    ]
    cut_off = folded(flat(LEAKED[:-20]), last(reason="length"), request=WITH_TOOLS)
    assert (cut_off.text(), cut_off.reason) == (None, "length")


@pytest.mark.parametrize(
    "request_", [asked(ASK), asked(ASK | {"tools": NEW_TOOLS, "tool_choice": "none"})]
)
def test_where_no_call_is_expected_it_is_text(request_: Request) -> None:
    assert folded(flat(LEAKED), last(), request=request_).parts == (Text(text=LEAKED),)


def test_what_is_held_back_is_not_lost() -> None:
    events = heard(flat("I start"), last(" to"), request=WITH_TOOLS)
    assert ir.fold(events).choices[0].text() == "I start to"


def test_the_reason_of_a_leaked_call_is_ours() -> None:
    events = parsed(afs, WITH_TOOLS, [stream(flat(LEAKED), last())], extras=True)
    assert b'"finish_reason":"tool_calls"' in rendered(afs, WITH_TOOLS, events)


# What a client hears.


def spoken(*parts: tuple[Event, ...], end: ChoiceEnded, **numbers: Any) -> list[Event]:
    middle = [event for part in parts for event in part]
    return [Started(), *middle, end, Finished(**numbers)]


def text_part(*deltas: str) -> tuple[Event, ...]:
    told = [PartDelta(text=delta) for delta in deltas]
    return (PartStarted(kind="text"), *told, PartEnded())


def call_part(call: ToolCall = CALL) -> tuple[Event, ...]:
    begin = PartStarted(kind="tool_call", id=call.id, name=call.name)
    half = len(call.arguments) // 2
    told = [PartDelta(text=call.arguments[:half]), PartDelta(text=call.arguments[half:])]
    return (begin, *told, PartEnded())


def objects(request: Request, events: list[Event]) -> list[JsonObject]:
    frames = SseFramer().feed(rendered(afs, request, events))
    return [msgspec.json.decode(frame.data) for frame in frames]


def whole(request: Request, events: list[Event]) -> JsonObject:
    answer: JsonObject = msgspec.json.decode(
        afs.render_answer(ir.fold(events), request, STAMP)
    )  # fmt: skip
    return answer


NUMBERS: dict[str, Any] = {
    "usage": Usage(prompt_tokens=17, completion_tokens=200),
    "timings": {"prompt_ms": 880.4, "predicted_ms": 18_000, "predicted_n": 200},
}
NULLS = flat("", total_time_taken="0.00 sec")
LAST = {
    "total_time_taken": "18.88 sec",
    "prompt_tokens": 17,
    "generated_tokens": 200,
    "total_tokens": 217,
}


def test_a_stream_tells_deltas_and_then_the_numbers() -> None:
    events = spoken(text_part("你", "好"), end=ChoiceEnded(reason="length"), **NUMBERS)
    end = NULLS | LAST | {"finish_reason": "length"}
    assert objects(asked(ASK), events) == [
        NULLS | {"generated_text": "你"},
        NULLS | {"generated_text": "好"},
        end,
    ]
    assert whole(asked(ASK), events) == end | {"generated_text": "你好"}
    assert rendered(afs, asked(ASK), events).count(b"\n\n") == 3


@pytest.mark.parametrize(
    ("timings", "told"),
    [
        (None, "0.00 sec"),
        ({}, "0.00 sec"),
        ({"prompt_ms": None, "predicted_ms": 1234}, "1.23 sec"),
        ({"prompt_ms": "x", "predicted_ms": True}, "0.00 sec"),
    ],
)
def test_the_time_is_the_engines_own(timings: JsonObject | None, told: str) -> None:
    events = spoken(text_part("a"), end=ChoiceEnded(reason="stop"), timings=timings)
    assert objects(asked(ASK), events)[-1]["total_time_taken"] == told
    assert whole(asked(ASK), events)["total_time_taken"] == told


@pytest.mark.parametrize(
    ("end", "told"),
    [
        (ChoiceEnded(reason="stop"), "eos_token"),
        (ChoiceEnded(reason="stop", stop_word="END"), "stop_sequence"),
        (ChoiceEnded(reason="stop", stop_word=""), "stop_sequence"),
        (ChoiceEnded(reason="length"), "length"),
        (ChoiceEnded(reason="content_filter"), "content_filter"),
    ],
)
def test_reasons_are_in_afss_words(end: ChoiceEnded, told: str) -> None:
    events = spoken(text_part("a"), end=end)
    assert objects(asked(ASK), events)[-1]["finish_reason"] == told
    assert whole(asked(ASK), events)["finish_reason"] == told


def test_calls_in_the_form_that_the_client_used() -> None:
    events = spoken(text_part("Wait."), call_part(), end=ChoiceEnded(reason="tool_calls"))

    first, end = objects(WITH_TOOLS, events)
    assert (first["generated_text"], end["generated_text"]) == ("Wait.", "")
    assert end["tool_calls"] == [CALL_JSON | {"index": 0}]
    assert (end["function_call"], end["finish_reason"]) == (None, "tool_calls")
    assert whole(WITH_TOOLS, events) == end | {"generated_text": "Wait."}

    old = asked(ASK | {"functions": [WEATHER]})
    first, end = objects(old, events)
    assert (end["function_call"], end["finish_reason"]) == (OLD_CALL, "function_call")
    assert "tool_calls" not in end
    assert whole(old, events) == end | {"generated_text": "Wait."}


def test_no_call_is_lost_to_the_old_form() -> None:
    other = ToolCall(id="", name="get_weather", arguments="{}")
    events = spoken(call_part(), call_part(other), end=ChoiceEnded(reason="tool_calls"))
    (end,) = objects(asked(ASK | {"functions": [WEATHER]}), events)
    assert end["function_call"] == OLD_CALL
    assert [call["id"] for call in end["tool_calls"]] == ["call_9", "call_u_1"]


def test_reasoning_is_beside_the_text_and_refusal_is_text() -> None:
    def part(kind: Any, text: str) -> tuple[Event, ...]:
        return (PartStarted(kind=kind), PartDelta(text=text), PartEnded())

    end = ChoiceEnded(reason="stop")
    events = spoken(part("reasoning", "hm"), text_part("a"), part("refusal", " no"), end=end)
    thought, *texts, _ = objects(asked(ASK), events)
    assert (thought["reasoning_content"], thought["generated_text"]) == ("hm", "")
    assert [one["generated_text"] for one in texts] == ["a", " no"]
    answer = whole(asked(ASK), events)
    assert (answer["reasoning_content"], answer["generated_text"]) == ("hm", "a no")


def test_probabilities_only_where_they_were_asked_for() -> None:
    entry = {"id": 5, "token": "a", "logprob": -0.5, "bytes": [97], "top_logprobs": []}
    part = (PartStarted(kind="text"), PartDelta(text="a", logprobs=[entry]), PartEnded())
    events = spoken(part, end=ChoiceEnded(reason="stop"))
    shown = asked(with_parameters(show_probabilities=True))
    details = {"tokens": [{"id": 5, "text": "a", "logprob": -0.5}]}
    assert objects(shown, events)[0]["details"] == details
    assert whole(shown, events)["details"] == details
    assert objects(asked(ASK), events)[0]["details"] is None


def test_errors_are_where_every_client_of_afs_looks() -> None:
    problem = Problem(kind="malformed", message="No.", param="parameters.top_k")
    for body in (
        afs.render_problem(problem, 400),
        rendered(afs, asked(ASK), [Failed(problem=problem)])[len(b"data: ") :],
    ):
        told = msgspec.json.decode(body)
        assert told["detail"] == "No."
        assert told["error"]["message"] == "No."
        assert told["error"]["param"] == "parameters.top_k"


def test_a_ping_is_one_that_clients_of_afs_know() -> None:
    assert heard(afs.PING, last("a")) == heard(last("a"))
    assert PING.startswith(afs.PING.partition(b" 1970")[0])


# The laws, for what AFS can say.


@given(asked_for=requests(), shown=st.booleans())
@law(200)
def test_law_1_a_request_comes_back_as_it_was(asked_for: Request, *, shown: bool) -> None:
    request = msgspec.structs.replace(asked_for, logprobs=0 if shown else None)
    path = {Chat: CONVERSATION, Completion: GENERATE, Infill: INFILLING}[type(request.input)]
    wire = afs.render_request(request, Traits())
    assert (wire.path, wire.dropped) == (path, ())
    assert wire.body["stream"] is True
    body = msgspec.json.decode(msgspec.json.encode(wire.body))
    assert afs.parse_request(body, "/text-generation/api/v4" + path) == request


FILES = sorted(FIXTURES.rglob("*.sse"))
every_file = pytest.mark.parametrize("path", FILES, ids=lambda path: path.stem)


def recorded(path: Path) -> tuple[Request, bytes, JsonObject]:
    told = msgspec.json.decode(path.with_suffix(".request.json").read_bytes())
    body = msgspec.json.decode(path.with_suffix(".json").read_bytes())
    return afs.parse_request(told["body"], told["path"]), path.read_bytes(), body


def test_there_are_fixtures() -> None:
    assert len(FILES) == 6


@every_file
def test_laws_of_the_fixtures(path: Path) -> None:
    request, data, body = recorded(path)
    events = parsed(afs, request, [data], extras=True)
    bytewise = [data[i : i + 1] for i in range(len(data))]

    assert parsed(afs, request, bytewise, extras=True) == events
    assert afs.parse_answer(body) == ir.fold(events)
    # Whatever is missing of it, it has failed, but for what comes after its reason.
    for cut in range(len(data)):
        part = read(afs.stream_parser(request, extras=True), [data[:cut]], CUT)
        check_grammar(part)
        assert part == events or part[-1] == Failed(problem=CUT)
        part = read(afs.stream_parser(request, extras=True), [data[:cut]])
        assert isinstance(part[-1], Failed) or b'"finish_reason":"' in data[:cut]


@every_file
def test_nothing_is_lost_between_afs_and_afs(path: Path) -> None:
    request, data, body = recorded(path)
    events = parsed(afs, request, [data], extras=True)
    again = parsed(afs, request, [rendered(afs, request, events)], extras=True)
    assert ir.fold(again) == ir.fold(events)
    told = msgspec.json.decode(afs.render_answer(ir.fold(events), request, STAMP))
    for call in told.get("tool_calls", ()):
        del call["index"]
    assert told == body


@every_file
@given(data=st.data())
@law(60)
def test_garbage_is_malformed_and_nothing_worse(path: Path, data: st.DataObject) -> None:
    request, bytes_, body = recorded(path)
    frames = [frame for frame in SseFramer().feed(bytes_) if frame.data.startswith(b"{")]
    broken = []
    for frame in frames:
        try:
            chunk = msgspec.json.decode(frame.data)
        except msgspec.DecodeError:
            continue
        broken.append(sse(msgspec.json.encode(data.draw(mutated(chunk)))))
    parsed(afs, request, broken, extras=data.draw(st.booleans()))
    try:
        answer = afs.parse_answer(data.draw(mutated(body)))
    except Malformed:
        pass
    else:
        afs.render_answer(answer, request, STAMP)
    told = msgspec.json.decode(path.with_suffix(".request.json").read_bytes())
    mutant = data.draw(mutated(told["body"]))
    if isinstance(mutant, dict):
        with suppress(Malformed):
            afs.render_request(afs.parse_request(mutant, told["path"]), Traits())
    afs.parse_problem(500, msgspec.json.encode(mutant))


@given(text=st.text('tol<function=f>{}"/ \n', max_size=80), sizes=st.lists(st.integers(1, 9)))
@law(200)
def test_leaks_are_the_same_however_they_are_cut(text: str, sizes: list[int]) -> None:
    one, other = Leaks(), Leaks()
    told: list[str | Leak] = []
    rest = text
    for size in sizes:
        told += other.feed(rest[:size])
        rest = rest[size:]
    told += other.feed(rest)
    assert joined(told + other.end()) == joined(one.feed(text) + one.end())


# The double that later tests ask is AFS as this dialect knows it.


@pytest.fixture
async def deployment(anyio_backend: Any) -> AsyncIterator[AfsDouble]:  # noqa: ARG001
    double = AfsDouble()
    await double.start()
    yield double
    await double.stop()


async def posted(double: AfsDouble, wire: dialects.Wire, key: str = KEY) -> tuple[int, str, bytes]:
    headers = {"X-API-KEY": key, "X-API-HOST": "afs-inference"}
    async with (
        aiohttp.ClientSession() as session,
        session.post(double.url + wire.path, json=wire.body, headers=headers) as answer,
    ):
        return answer.status, answer.content_type, await answer.read()


CALLS = ({"name": "get_weather", "arguments": CALL.arguments},)


@pytest.mark.anyio
@pytest.mark.parametrize(
    "says",
    [
        Says(),
        Says(pings=True, done=True),
        Says(old=True),
        Says(extra=b'data: {"generated_text":"br\n\n'),
        Says(finish_reason="length"),
        Says(calls=CALLS, finish_reason="tool_calls"),
    ],
)
@pytest.mark.parametrize(
    "request_",
    [
        foreign(),
        WITH_TOOLS,
        asked(ASK | {"functions": [WEATHER]}),
        foreign(input=Completion(prompts=("a",))),
        foreign(input=Infill(prefix="a", suffix="b")),
    ],
    ids=["chat", "tools", "functions", "raw", "hole"],
)
async def test_over_http(deployment: AfsDouble, says: Says, request_: Request) -> None:
    deployment.says = [says]
    wire = said(request_)
    status, kind, data = await posted(deployment, wire)
    assert (status, kind) == (200, "text/event-stream")
    streamed = ir.fold(parsed(afs, request_, [data], extras=True))

    unstreamed = msgspec.structs.replace(wire, body=wire.body | {"stream": False})
    status, kind, data = await posted(deployment, unstreamed)
    assert (status, kind) == (200, "application/json")
    assert afs.parse_answer(msgspec.json.decode(data)) == streamed
    assert streamed.choices[0].text() == "你好。"
    assert len(streamed.choices[0].tool_calls) == (0 if says.old else len(says.calls))


@pytest.mark.anyio
async def test_refusals_over_http(deployment: AfsDouble) -> None:
    status, _, data = await posted(deployment, said(foreign()), key="other")
    assert (status, afs.parse_problem(status, data).kind) == (401, "upstream_failed")

    cold = msgspec.structs.replace(said(foreign()), body=with_parameters(temperature=0))
    status, _, data = await posted(deployment, cold)
    problem = afs.parse_problem(status, data)
    assert (status, problem.kind, problem.param) == (422, "malformed", "parameters.temperature")

    deployment.says = [Says(status=429, body={"detail": "Slow down."}), Says(cut=True)]
    status, _, data = await posted(deployment, said(foreign()))
    assert afs.parse_problem(status, data).kind == "limited"

    _, _, data = await posted(deployment, said(foreign()))
    assert failure(parsed(afs, foreign(), [data])).retryable
    assert len(deployment.asked) == 4
    assert deployment.asked[-1].headers["x-api-host"] == "afs-inference"
