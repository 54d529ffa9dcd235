"""AFS: where a client finds it, what it may ask, and what an upstream is asked."""

from __future__ import annotations

from typing import Any

import msgspec
import pytest

from dialects.afs.told import (
    ASK,
    CALL,
    CONVERSATION,
    GENERATE,
    HUMAN,
    INFILLING,
    NEW_TOOLS,
    PLAIN_CHAT,
    WEATHER,
    asked,
    chat_of,
    foreign,
    said,
    with_parameters,
)
from grammar import TODAY
from tropilla import dialects, ir
from tropilla.dialects import afs
from tropilla.ir import (
    Chat,
    Completion,
    Infill,
    Json,
    JsonObject,
    Knobs,
    Malformed,
    Message,
    Reasoning,
    Refusal,
    Text,
    Tool,
    ToolCall,
    ToolChoice,
)

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
    chat = dialects.named("openai_chat").render_request(request, TODAY)
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
