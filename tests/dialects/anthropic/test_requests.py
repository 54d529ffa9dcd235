"""Anthropic's Messages: what a client may ask, and what is refused."""

from __future__ import annotations

from typing import Any

import msgspec
import pytest

from grammar import TODAY
from tropilla import dialects
from tropilla.dialects import anthropic
from tropilla.dialects._sealed import seal
from tropilla.ir import (
    Chat,
    Format,
    Image,
    JsonObject,
    Malformed,
    Message,
    Problem,
    Reasoning,
    Request,
    Text,
    Tool,
    ToolCall,
    ToolChoice,
    Traits,
)

USER = {"role": "user", "content": "Hi"}
PICTURE = {"type": "base64", "media_type": "image/png", "data": "AAAA"}
LIGHT: JsonObject = {"name": "light", "input_schema": {"type": "object"}}
SEARCH = {"type": "web_search_20250305", "name": "web_search", "max_uses": 8}


def read(path: str = "/messages", **fields: Any) -> Request:
    body = {"model": "m", "max_tokens": 9, "messages": [USER]} | fields
    return anthropic.parse_request(
        {name: value for name, value in body.items() if value is not ...}, path
    )


def chat_of(request: Request) -> Chat:
    assert isinstance(request.input, Chat)
    return request.input


def messages(*told: JsonObject, **fields: Any) -> tuple[Message, ...]:
    return chat_of(read(messages=list(told), **fields)).messages


def refused(**fields: Any) -> Problem:
    with pytest.raises(Malformed) as told:
        read(**fields)
    return told.value.problem


def blocks(role: str, *content: JsonObject) -> JsonObject:
    return {"role": role, "content": list(content)}


def text(said: str, **more: Any) -> JsonObject:
    return {"type": "text", "text": said, **more}


def test_a_plain_request() -> None:
    request = read(temperature=0.5, top_k=20, top_p=0.9, stop_sequences=["a", "b"], stream=True)
    assert request.model == "m"
    assert request.stream
    assert request.max_tokens == 9
    assert request.stop == ("a", "b")
    assert (request.knobs.temperature, request.knobs.top_k, request.knobs.top_p) == (0.5, 20, 0.9)
    assert chat_of(request).messages == (Message(role="user", parts=(Text(text="Hi"),)),)


def test_a_count_needs_no_limit() -> None:
    assert read("/messages/count_tokens", max_tokens=...).max_tokens is None
    assert refused(max_tokens=...).param == "max_tokens"
    assert read(max_tokens=0).max_tokens == 0
    assert refused(max_tokens=-1).param == "max_tokens"


@pytest.mark.parametrize(
    ("system", "expected"),
    [
        ("Be kind.", ("Be kind.",)),
        ([text("Be"), text("kind.", cache_control={"type": "ephemeral"})], ("Be", "kind.")),
        # What is for Anthropic alone, and another one each time.
        ([text("x-anthropic-billing-header: cch=1;"), text("Be kind.")], ("Be kind.",)),
        ([text("x-anthropic-billing-header: cch=1;")], None),
        ("", None),
        ([], None),
    ],
)
def test_system(system: Any, expected: tuple[str, ...] | None) -> None:
    first, *rest = messages(USER, system=system)
    if expected is None:
        assert (first.role, rest) == ("user", [])
        return
    assert first == Message(role="system", parts=tuple(Text(text=one) for one in expected))


def test_what_the_system_says_later_stays_where_it_is() -> None:
    system = {"role": "system", "content": "S"}
    told = messages(system, USER, system, USER, system="S")
    assert [(message.role, len(message.parts)) for message in told] == [
        ("system", 2), ("user", 1), ("system", 1), ("user", 1),
    ]  # fmt: skip
    result = blocks("user", {"type": "tool_result", "tool_use_id": "t", "content": "r"})
    assert [message.role for message in messages(result, result, system)] == [
        "tool", "tool", "system",
    ]  # fmt: skip


def test_messages_of_one_role_in_a_row_are_one_turn() -> None:
    call = {"type": "tool_use", "id": "t", "name": "n", "input": {}}
    said = {"role": "assistant", "content": "A"}
    told = messages(USER, said, blocks("assistant", call), USER)
    assert told[1].parts == (Text(text="A"), ToolCall(id="t", name="n", arguments="{}"))
    assert len(told) == 3


def test_a_turn_with_tools() -> None:
    told = messages(
        USER,
        blocks(
            "assistant",
            {"type": "thinking", "thinking": "Hm.", "signature": "s"},
            text("Wait."),
            {"type": "tool_use", "id": "t1", "name": "light", "input": {"on": True}},
            {"type": "tool_use", "id": "t2", "name": "time", "input": {}},
        ),
        blocks(
            "user",
            {"type": "tool_result", "tool_use_id": "t1", "content": "done", "is_error": False},
            {
                "type": "tool_result",
                "tool_use_id": "t2",
                "content": [text("noon"), {"type": "image", "source": PICTURE}],
                "cache_control": {"type": "ephemeral"},
            },
            {"type": "tool_result", "tool_use_id": "t3"},
            text("And now?"),
        ),
    )
    picture = Image(url="data:image/png;base64,AAAA")
    assert told[1:] == (
        Message(
            role="assistant",
            parts=(
                Reasoning(text="Hm."),
                Text(text="Wait."),
                ToolCall(id="t1", name="light", arguments='{"on":true}'),
                ToolCall(id="t2", name="time", arguments="{}"),
            ),
        ),
        Message(role="tool", tool_call_id="t1", parts=(Text(text="done"),)),
        Message(role="tool", tool_call_id="t2", parts=(Text(text="noon"), picture)),
        Message(role="tool", tool_call_id="t3", parts=(Text(text=""),)),
        Message(role="user", parts=(Text(text="And now?"),)),
    )


def test_what_anthropics_servers_left_behind_says_nothing() -> None:
    told = messages(
        USER,
        blocks(
            "assistant",
            {"type": "redacted_thinking", "data": "x"},
            {"type": "thinking", "thinking": "", "signature": "theirs"},
            {"type": "server_tool_use", "id": "s", "name": "web_search", "input": {"query": "q"}},
            {"type": "web_search_tool_result", "tool_use_id": "s", "content": []},
            text("Found."),
        ),
    )
    assert told[1].parts == (Text(text="Found."),)


def test_a_thought_that_was_not_shown_comes_back() -> None:
    thought = {"type": "thinking", "thinking": "", "signature": seal("Hm é.")}
    assert messages(USER, blocks("assistant", thought))[1].parts == (Reasoning(text="Hm é."),)


def test_documents_of_text_and_search_results_are_texts() -> None:
    told = messages(
        blocks(
            "user",
            {
                "type": "document",
                "source": {"type": "text", "media_type": "text/plain", "data": "d"},
            },
            {"type": "document", "source": {"type": "content", "content": [text("c")]}},
            {"type": "document", "source": {"type": "content", "content": "s"}},
            {"type": "search_result", "title": "T", "source": "u", "content": [text("r")]},
        )
    )
    assert [part.text for part in told[0].parts if isinstance(part, Text)] == [
        "d", "c", "s", "T\nu", "r",
    ]  # fmt: skip


def source(**fields: Any) -> JsonObject:
    return blocks("user", {"type": "image", "source": fields})


@pytest.mark.parametrize(
    ("told", "param", "kind"),
    [
        (source(type="url", url="http://169.254.169.254/"), "source", "unsupported"),
        (source(type="file", file_id="f"), "source", "unsupported"),
        (source(**PICTURE | {"data": "§"}), "source.data", "malformed"),
        (source(**PICTURE | {"media_type": "text/html"}), "source.media_type", "malformed"),
        (
            blocks("user", {"type": "document", "source": {"type": "base64", "data": "AAAA"}}),
            "source",
            "unsupported",
        ),
        (blocks("user", {"type": "input_text", "text": "x"}), "type", "malformed"),
        (blocks("user", {"type": "tool_use", "id": "t"}), "type", "malformed"),
        (blocks("assistant", {"type": "tool_result", "tool_use_id": "t"}), "type", "malformed"),
        (blocks("assistant", {"type": "tool_use", "id": "t", "name": "n"}), "input", "malformed"),
        (blocks("user", {"type": "tool_result"}), "tool_use_id", "malformed"),
        (blocks("user", {"text": "x"}), "type", "malformed"),
        (blocks("user"), "", "malformed"),
    ],
)
def test_blocks_that_are_refused(told: JsonObject, param: str, kind: str) -> None:
    problem = refused(messages=[told])
    assert problem.kind == kind
    where = "messages.0.content.0." if param else "messages.0.content"
    assert problem.param == where + param


def test_an_unknown_block_names_those_that_can_be() -> None:
    problem = refused(messages=[blocks("user", {"type": "reasoning"})])
    assert "'reasoning'" in problem.message
    assert "'tool_result'" in problem.message


@pytest.mark.parametrize(
    ("fields", "param"),
    [
        ({"messages": []}, "messages"),
        ({"messages": ...}, "messages"),
        ({"messages": [{"content": "x"}]}, "messages.0.role"),
        ({"messages": [{"role": "tool", "content": "x"}]}, "messages.0.role"),
        ({"messages": [{"role": "user"}]}, "messages.0.content"),
        ({"messages": [{"role": "user", "content": 5}]}, "messages.0.content"),
        ({"system": 5}, "system"),
        ({"system": [{"type": "image"}]}, "system.0.type"),
        ({"stop_sequences": "x"}, "stop_sequences"),
        ({"stop_sequences": [5]}, "stop_sequences.0"),
        ({"temperature": 3}, "temperature"),
        ({"metadata": {"user_id": 5}}, "metadata.user_id"),
        ({"thinking": {}}, "thinking.type"),
        ({"thinking": {"type": "enabled"}}, "thinking.budget_tokens"),
        ({"thinking": {"type": "enabled", "budget_tokens": 5}}, "thinking.budget_tokens"),
        ({"thinking": {"type": "on"}}, "thinking.type"),
        ({"output_config": {"effort": "most"}}, "output_config.effort"),
        ({"output_config": {"format": {"type": "json"}}}, "output_config.format.type"),
        ({"output_format": {"type": "json_schema"}}, "output_format.schema"),
        ({"tools": [{"name": "a b", "input_schema": {}}]}, "tools.0.name"),
        ({"tools": [{"name": "a"}]}, "tools.0.input_schema"),
        ({"tools": [{"type": "function", "function": {}}]}, "tools.0.type"),
        ({"tools": [LIGHT, LIGHT]}, "tools.1.name"),
        ({"tools": [LIGHT], "tool_choice": {"type": "required"}}, "tool_choice.type"),
        ({"tools": [LIGHT], "tool_choice": {"type": "tool"}}, "tool_choice.name"),
        ({"tools": [LIGHT], "tool_choice": {"type": "tool", "name": "x"}}, "tool_choice.name"),
        ({"tools": [SEARCH], "tool_choice": {"type": "any"}}, "tool_choice"),
        ({"tool_choice": {"type": "any"}}, "tool_choice"),
    ],
)
def test_what_is_refused_names_its_parameter(fields: JsonObject, param: str) -> None:
    assert refused(**fields).param == param


@pytest.mark.parametrize(
    ("choice", "expected", "parallel"),
    [
        ({"type": "auto"}, ToolChoice(mode="auto"), None),
        ({"type": "any"}, ToolChoice(mode="required"), None),
        ({"type": "none"}, ToolChoice(mode="none"), None),
        ({"type": "tool", "name": "light"}, ToolChoice(mode="required", only=("light",)), None),
        ({"type": "auto", "disable_parallel_tool_use": True}, ToolChoice(mode="auto"), False),
        ({"type": "any", "disable_parallel_tool_use": False}, ToolChoice(mode="required"), True),
    ],
)
def test_choices(choice: JsonObject, expected: ToolChoice, parallel: bool | None) -> None:  # noqa: FBT001
    chat = chat_of(read(tools=[LIGHT], tool_choice=choice))
    assert (chat.tool_choice, chat.parallel_tool_calls) == (expected, parallel)


def test_tools() -> None:
    offered: list[JsonObject] = [
        LIGHT | {"type": "custom", "description": "d", "strict": True, "defer_loading": True},
        SEARCH,
        {"type": "mcp_toolset", "mcp_server_name": "s"},
        {"type": "bash_20250124", "name": "bash"},
        {"type": "text_editor_20250728", "name": "str_replace_based_edit_tool"},
        {"type": "computer_20250124", "name": "computer", "display_width_px": 1},
    ]
    tools = chat_of(read(tools=offered)).tools
    assert tools[0] == Tool(
        name="light", description="d", parameters={"type": "object"}, strict=True
    )
    names = [tool.name for tool in tools if isinstance(tool, Tool)]
    assert names == ["light", "bash", "str_replace_based_edit_tool"]
    bash = tools[1]
    assert isinstance(bash, Tool)
    assert bash.parameters is not None
    assert "command" in bash.parameters["properties"]


def test_how_much_to_think_and_in_which_form_to_answer() -> None:
    schema = {"type": "object", "properties": {"a": {"type": "string"}}}
    form = {"type": "json_schema", "schema": schema}
    request = read(output_config={"effort": "xhigh", "format": form}, thinking={"type": "adaptive"})
    assert chat_of(request).reasoning_effort == "xhigh"
    expected = Format(kind="json_schema", schema=schema, name="output", strict=True)
    assert request.format == read(output_format=form).format == expected
    assert chat_of(read(thinking={"type": "disabled"})).reasoning_effort == "none"


def test_what_asks_for_nothing_here_is_taken() -> None:
    own: JsonObject = {
        "metadata": {"user_id": "u"}, "service_tier": "auto",
        "cache_control": {"type": "ephemeral"}, "context_management": {"edits": []},
        "inference_geo": None, "speed": "standard",
    }  # fmt: skip
    request = read(**own)
    assert request.extras == {name: value for name, value in own.items() if value is not None}
    # Nobody who speaks another API is told of it.
    for traits in (TODAY, Traits(dialect="openai", chat=True)):
        wire = dialects.named("openai_chat").render_request(request, traits)
        assert wire.body.keys().isdisjoint(own)


def test_to_a_chat_of_openai() -> None:
    request = read(
        system="Be kind.",
        stop_sequences=["x"],
        tools=[LIGHT],
        tool_choice={"type": "any", "disable_parallel_tool_use": True},
        messages=[
            USER,
            blocks(
                "assistant", {"type": "tool_use", "id": "t", "name": "light", "input": {"a": 1}}
            ),
            blocks("user", {"type": "tool_result", "tool_use_id": "t", "content": "ok"}),
        ],
    )
    body = dialects.named("openai_chat").render_request(request, TODAY).body
    assert body["messages"] == [
        {"role": "system", "content": "Be kind."},
        {"role": "user", "content": "Hi"},
        {
            "role": "assistant",
            "content": None,
            "tool_calls": [
                {
                    "id": "t",
                    "type": "function",
                    "function": {"name": "light", "arguments": '{"a":1}'},
                }
            ],
        },
        {"role": "tool", "tool_call_id": "t", "content": "ok"},
    ]
    assert (body["tool_choice"], body["parallel_tool_calls"]) == ("required", False)
    assert (body["stop"], body["max_tokens"], body["verbose"]) == (["x"], 9, True)


def test_only_who_wants_to_hear_the_stop_word_makes_a_server_tell_all() -> None:
    chat = dialects.named("openai_chat")
    asked = {"messages": [USER], "stop": ["x"]}
    for request in (read(), chat.parse_request(asked, "/chat/completions")):
        assert "verbose" not in chat.render_request(request, TODAY).body
    other = Traits(dialect="openai", chat=True)
    assert "verbose" not in chat.render_request(read(stop_sequences=["x"]), other).body


# To an upstream that speaks it.


def said(request: Request) -> JsonObject:
    return anthropic.render_request(request, Traits(dialect="openai", chat=True)).body


def test_from_a_chat_of_openai() -> None:
    asked: JsonObject = {
        "messages": [
            {"role": "developer", "content": "Be kind."},
            {"role": "user", "content": "Hi"},
            {
                "role": "assistant",
                "content": None,
                "tool_calls": [
                    {"id": "t", "type": "function", "function": {"name": "light", "arguments": "{"}}
                ],
            },
            {"role": "tool", "tool_call_id": "t", "content": "ok"},
        ],
        "tools": [
            {"type": "function", "function": {"name": name}} for name in ("light", "time", "other")
        ],
        "tool_choice": {
            "type": "allowed_tools",
            "allowed_tools": {
                "mode": "auto",
                "tools": [
                    {"type": "function", "function": {"name": name}} for name in ("light", "time")
                ],
            },
        },
        "reasoning_effort": "minimal",
        "seed": 7,
        "logit_bias": {"5": 1},
    }
    request = dialects.named("openai_chat").parse_request(asked, "/chat/completions")
    wire = anthropic.render_request(request, Traits(dialect="openai", chat=True))
    assert wire.path == "/v1/messages"
    assert set(wire.dropped) == {"seed", "logit_bias"}
    body = wire.body
    assert body["system"] == "Be kind."
    # What a model wrote and is no JSON is sent as Anthropic says it should be.
    assert body["messages"][1]["content"] == [
        {"type": "tool_use", "id": "t", "name": "light", "input": {"INVALID_JSON": "{"}}
    ]
    assert [tool["name"] for tool in body["tools"]] == ["light", "time"]
    assert body["tool_choice"] == {"type": "auto"}
    assert body["output_config"] == {"effort": "low"}
    assert body["max_tokens"] > 0


def test_forms_are_said_as_schemas() -> None:
    request = read()
    for form, schema in (
        (Format(kind="json_object"), {"type": "object"}),
        (Format(kind="json_schema", schema={"type": "array"}), {"type": "array"}),
    ):
        body = said(msgspec.structs.replace(request, format=form))
        assert body["output_config"]["format"] == {"type": "json_schema", "schema": schema}
    assert "output_config" not in said(msgspec.structs.replace(request, format=Format(kind="text")))
