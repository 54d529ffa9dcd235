"""What a client of OpenAI's Responses asks, as it is read; and what is refused, and how."""

from __future__ import annotations

from typing import Any

import msgspec
import pytest

from tropilla.dialects import openai_chat, openai_responses
from tropilla.dialects._sealed import seal
from tropilla.ir import (
    Audio,
    Chat,
    Format,
    Image,
    Malformed,
    Message,
    Problem,
    Reasoning,
    Refusal,
    Request,
    Text,
    Tool,
    ToolCall,
    ToolChoice,
    Traits,
)

PNG = "data:image/png;base64,AAAA"
FUNCTION = {"type": "function", "name": "f", "parameters": {"type": "object"}, "strict": True}


def parse(**fields: Any) -> Request:
    return openai_responses.parse_request({"model": "m", "input": "Hello"} | fields, "/responses")


def chat_of(request: Request) -> Chat:
    assert isinstance(request.input, Chat)
    return request.input


def messages(*items: Any, earlier: Any = ()) -> tuple[Message, ...]:
    body = {"input": list(items)}
    return chat_of(openai_responses.parse_request(body, "/responses", earlier)).messages


def user(text: str) -> Message:
    return Message(role="user", parts=(Text(text=text),))


def test_a_text_is_what_the_user_says() -> None:
    request = parse(instructions="Be brief.", stream=True)

    assert chat_of(request).messages == (
        Message(role="system", parts=(Text(text="Be brief."),)),
        user("Hello"),
    )
    assert request.model == "m"
    assert request.stream
    assert request.extras == {"instructions": "Be brief."}


def test_messages_in_both_forms() -> None:
    told = messages(
        {"role": "developer", "content": "d"},
        {"type": "message", "role": "user", "status": "completed", "content": [
            {"type": "input_text", "text": "u"},
            {"type": "input_image", "image_url": PNG, "detail": "low"},
            {"type": "input_image", "image_url": PNG},
            {"type": "input_audio", "input_audio": {"data": "AAAA", "format": "wav"}},
        ]},
        {"role": "assistant", "content": "a"},
        {"role": "system", "content": "s"},
        {"type": "message", "id": "msg_1", "role": "assistant", "content": [
            {"type": "output_text", "text": "b", "annotations": [], "logprobs": []},
            {"type": "refusal", "refusal": "c"},
        ]},
    )  # fmt: skip

    assert told == (
        Message(role="developer", parts=(Text(text="d"),)),
        Message(
            role="user",
            parts=(
                Text(text="u"),
                Image(url=PNG, detail="low"),
                Image(url=PNG),
                Audio(data="AAAA", format="wav"),
            ),
        ),
        Message(role="assistant", parts=(Text(text="a"),)),
        Message(role="system", parts=(Text(text="s"),)),
        Message(role="assistant", parts=(Text(text="b"), Refusal(text="c"))),
    )


TURN = (
    {"type": "reasoning", "id": "rs_1", "summary": [], "content": [
        {"type": "reasoning_text", "text": "hm"}]},
    {"type": "message", "role": "assistant", "content": [{"type": "output_text", "text": "Wait."}]},
    {"type": "function_call", "id": "fc_1", "call_id": "c1", "name": "f", "arguments": "{}"},
    {"type": "custom_tool_call", "id": "ctc_1", "call_id": "c2", "name": "g", "input": "x"},
)  # fmt: skip
OUTPUTS = (
    {"type": "function_call_output", "call_id": "c1", "output": "one"},
    {"type": "custom_tool_call_output", "call_id": "c2", "output": [
        {"type": "input_text", "text": "two"}, {"type": "input_image", "image_url": PNG}]},
)  # fmt: skip
SAID = (
    Message(
        role="assistant",
        parts=(
            Reasoning(text="hm"),
            Text(text="Wait."),
            ToolCall(id="c1", name="f", arguments="{}"),
            ToolCall(id="c2", name="g", arguments="x", custom=True),
        ),
    ),
    Message(role="tool", tool_call_id="c1", parts=(Text(text="one"),)),
    Message(role="tool", tool_call_id="c2", parts=(Text(text="two"), Image(url=PNG))),
)


def test_the_items_of_a_turn_are_one_message() -> None:
    assert messages({"role": "user", "content": "u"}, *TURN, *OUTPUTS) == (user("u"), *SAID)


def test_what_came_earlier_comes_first() -> None:
    own = {"role": "user", "content": "u"}
    assert messages(*OUTPUTS, own, earlier=TURN) == (*SAID, user("u"))


def test_a_sealed_thought_is_read_and_another_servers_is_not() -> None:
    def thought(**fields: Any) -> tuple[Message, ...]:
        item = {"type": "reasoning", "id": "rs_1", "summary": [], **fields}
        return messages(item, {"role": "assistant", "content": "a"})

    said = (Message(role="assistant", parts=(Reasoning(text="嗯"), Text(text="a"))),)
    assert thought(encrypted_content=seal("嗯")) == said
    assert thought(content=[{"type": "reasoning_text", "text": "嗯"}]) == said
    alone = (Message(role="assistant", parts=(Text(text="a"),)),)
    for sealed in ("gAAAAABo", "tropilla1.!", "tropilla1./w==", "", None):
        assert thought(encrypted_content=sealed) == alone
    assert thought(summary=[{"type": "summary_text", "text": "in short"}]) == alone


def test_items_of_tools_that_are_not_here_are_passed_over() -> None:
    told = messages(
        {"type": "web_search_call", "id": "ws_1", "status": "completed"},
        {"role": "user", "content": "u"},
        {"type": "mcp_list_tools", "id": "mcpl_1", "server_label": "x", "tools": []},
    )
    assert told == (user("u"),)


def test_tools_and_those_that_are_passed_over() -> None:
    custom = {"type": "custom", "name": "g", "description": "d", "format": {"type": "text"}}
    request = parse(
        tools=[FUNCTION, {"type": "web_search"}, {"type": "namespace", "name": "x"}, custom],
        parallel_tool_calls=False,
    )

    chat = chat_of(request)
    assert chat.tools == (
        Tool(name="f", parameters={"type": "object"}, strict=True),
        Tool(name="g", description="d", custom=True, form={"type": "text"}),
    )
    assert chat.parallel_tool_calls is False


@pytest.mark.parametrize(
    ("said", "choice"),
    [
        ("auto", ToolChoice(mode="auto")),
        ("none", ToolChoice(mode="none")),
        ("required", ToolChoice(mode="required")),
        ({"type": "function", "name": "f"}, ToolChoice(mode="required", only=("f",))),
        ({"type": "custom", "name": "g"}, ToolChoice(mode="required", only=("g",))),
        (
            {"type": "allowed_tools", "mode": "auto", "tools": [{"type": "function", "name": "f"}]},
            ToolChoice(mode="auto", only=("f",)),
        ),
        (None, None),
    ],
)
def test_the_choice_of_tools(said: Any, choice: ToolChoice | None) -> None:
    assert chat_of(parse(tools=[FUNCTION], tool_choice=said)).tool_choice == choice


def test_the_form_of_the_answer() -> None:
    form = {"type": "json_schema", "name": "n", "schema": {"type": "object"}, "strict": True}
    request = parse(text={"format": form, "verbosity": "low"})

    assert request.format == Format(
        kind="json_schema", name="n", schema={"type": "object"}, strict=True
    )
    assert request.extras == {"verbosity": "low"}
    assert parse(text={"format": {"type": "json_object"}}).format == Format(kind="json_object")
    assert parse(text={}).format is None


def test_knobs_limits_and_chances() -> None:
    request = parse(
        temperature=0.5, top_p=0.9, top_k=4, min_p=0.1, seed=7, stop=["x"],
        max_output_tokens=9, reasoning={"effort": "low", "summary": "auto"},
        top_logprobs=3, include=["message.output_text.logprobs", "reasoning.encrypted_content"],
        chat_template_kwargs={"a": 1},
    )  # fmt: skip

    knobs = request.knobs
    assert (knobs.temperature, knobs.top_p, knobs.top_k) == (0.5, 0.9, 4)
    assert (knobs.min_p, knobs.seed, request.stop, request.max_tokens) == (0.1, 7, ("x",), 9)
    assert chat_of(request).reasoning_effort == "low"
    assert request.logprobs == 3
    assert request.extras == {
        "include": ["reasoning.encrypted_content"],
        "reasoning": {"summary": "auto"},
        "chat_template_kwargs": {"a": 1},
    }
    assert parse(top_logprobs=3).logprobs is None
    assert parse(include=["message.output_text.logprobs"]).logprobs == 0


def test_an_upstream_is_told_nothing_of_this_api_alone() -> None:
    request = parse(
        instructions="i", previous_response_id="resp_1", store=False, truncation="auto",
        include=["reasoning.encrypted_content"], reasoning={"summary": "auto"},
        metadata={"a": "b"}, max_tool_calls=3, client_metadata={"x": "y"},
        chat_template_kwargs={"a": 1}, max_output_tokens=9,
    )  # fmt: skip

    body = openai_chat.render_request(request, Traits(chat=True, build=11549)).body
    assert body == {
        "model": "m",
        "messages": [{"role": "system", "content": "i"}, {"role": "user", "content": "Hello"}],
        "stream": True,
        "stream_options": {"include_usage": True},
        "max_tokens": 9,
        "chat_template_kwargs": {"a": 1},
    }


def test_every_field_of_the_sdk_is_taken() -> None:
    ignored = {
        "background": False,
        "context_management": [{"type": "compaction"}],
        "max_tool_calls": 2,
        "metadata": {},
        "moderation": {"model": "m"},
        "prompt_cache_key": "k",
        "prompt_cache_options": {},
        "prompt_cache_retention": "24h",
        "safety_identifier": "s",
        "service_tier": "flex",
        "store": True,
        "stream_options": {"include_obfuscation": False},
        "truncation": "disabled",
        "user": "u",
        "conversation": None,
        "prompt": None,
    }
    assert chat_of(parse(stream=True, **ignored)).messages == (user("Hello"),)


WRONG: list[tuple[dict[str, Any], str, str | None]] = [
    ({"input": None}, "input", "missing_required_parameter"),
    ({"input": 5}, "input", "invalid_type"),
    ({"input": []}, "input", "empty_array"),
    ({"input": ["x"]}, "input.0", "invalid_type"),
    ({"input": [{}]}, "input.0.type", "missing_required_parameter"),
    ({"input": [{"type": "magic"}]}, "input.0.type", "invalid_value"),
    ({"input": [{"type": "message"}]}, "input.0.role", "missing_required_parameter"),
    ({"input": [{"role": "tool", "content": "x"}]}, "input.0.role", "invalid_value"),
    ({"input": [{"role": "user"}]}, "input.0.content", "missing_required_parameter"),
    ({"input": [{"role": "user", "content": []}]}, "input.0.content", "empty_array"),
    ({"input": [{"role": "user", "content": [{"type": "input_file", "file_id": "f"}]}]},
     "input.0.content.0", "unsupported_value"),
    ({"input": [{"role": "user", "content": [{"type": "x"}]}]},
     "input.0.content.0.type", "invalid_value"),
    ({"input": [{"role": "user", "content": [{"type": "refusal", "refusal": "x"}]}]},
     "input.0.content.0", "invalid_value"),
    ({"input": [{"role": "assistant", "content": [{"type": "input_image", "image_url": PNG}]}]},
     "input.0.content.0", "invalid_value"),
    ({"input": [{"role": "user", "content": [
        {"type": "input_image", "image_url": "http://x/y.png"}]}]},
     "input.0.content.0.image_url", "invalid_value"),
    ({"input": [{"role": "user", "content": [{"type": "input_image", "file_id": "f"}]}]},
     "input.0.content.0.file_id", "unsupported_value"),
    ({"input": [{"type": "function_call", "name": "f", "arguments": "{}"}]},
     "input.0.call_id", "missing_required_parameter"),
    ({"input": [{"type": "function_call_output", "call_id": "c"}]},
     "input.0.output", "missing_required_parameter"),
    ({"input": [{"type": "custom_tool_call", "call_id": "c", "name": "f"}]},
     "input.0.input", "missing_required_parameter"),
    ({"input": [{"type": "item_reference", "id": "msg_1"}]}, "input.0.id", "item_not_found"),
    ({"background": True}, "background", "unsupported_parameter"),
    ({"conversation": "conv_1"}, "conversation", "unsupported_parameter"),
    ({"prompt": {"id": "pmpt_1"}}, "prompt", "unsupported_parameter"),
    ({"n": 2}, "n", "invalid_value"),
    ({"instructions": 5}, "instructions", "invalid_type"),
    ({"max_output_tokens": 0}, "max_output_tokens", "integer_below_min_value"),
    ({"max_tool_calls": 0}, "max_tool_calls", "integer_below_min_value"),
    ({"temperature": 3}, "temperature", "decimal_above_max_value"),
    ({"top_logprobs": 21}, "top_logprobs", "integer_above_max_value"),
    ({"include": [5]}, "include.0", "invalid_type"),
    ({"store": "yes"}, "store", "invalid_type"),
    ({"metadata": {"a": 1}}, "metadata.a", "invalid_type"),
    ({"previous_response_id": 5}, "previous_response_id", "invalid_type"),
    ({"truncation": "some"}, "truncation", "invalid_value"),
    ({"reasoning": {"effort": "huge"}}, "reasoning.effort", "invalid_value"),
    ({"reasoning": {"summary": "long"}}, "reasoning.summary", "invalid_value"),
    ({"text": "x"}, "text", "invalid_type"),
    ({"text": {"verbosity": "loud"}}, "text.verbosity", "invalid_value"),
    ({"text": {"format": {}}}, "text.format.type", "missing_required_parameter"),
    ({"text": {"format": {"type": "json_schema", "name": "a b"}}},
     "text.format.name", "invalid_value"),
    ({"text": {"format": {"type": "json_schema", "schema": {"type": "x"}}}},
     "text.format.schema.type", "invalid_json_schema"),
    ({"tools": [{"name": "f"}]}, "tools.0.type", "missing_required_parameter"),
    ({"tools": [{"type": "function", "function": {"name": "f"}}]},
     "tools.0.name", "missing_required_parameter"),
    ({"tools": [{"type": "function", "name": "f", "parameters": {"type": 5}}]},
     "tools.0.parameters.type", "invalid_function_parameters"),
    ({"tools": [FUNCTION, FUNCTION]}, "tools.1.name", "invalid_value"),
    ({"tool_choice": "some"}, "tool_choice", "invalid_value"),
    ({"tool_choice": "required"}, "tool_choice", "invalid_value"),
    ({"tools": [{"type": "web_search"}], "tool_choice": "required"}, "tool_choice",
     "invalid_value"),
    ({"tools": [{"type": "web_search"}], "tool_choice": {"type": "web_search"}}, "tool_choice",
     "unsupported_value"),
    ({"tools": [FUNCTION], "tool_choice": {
        "type": "allowed_tools", "mode": "auto", "tools": [{"type": "mcp"}]}},
     "tool_choice.tools.0", "unsupported_value"),
    ({"stream_options": {}}, "stream_options", "invalid_value"),
]  # fmt: skip


@pytest.mark.parametrize(("fields", "param", "code"), WRONG, ids=lambda one: str(one)[:60])
def test_what_is_wrong_is_named(fields: dict[str, Any], param: str, code: str | None) -> None:
    with pytest.raises(Malformed) as refused:
        parse(**fields)

    problem = refused.value.problem
    assert (problem.param, problem.code) == (param, code)
    assert param.split(".", maxsplit=1)[0] in problem.message


@pytest.mark.parametrize(
    ("theirs", "ours"),
    [
        ("response_format.json_schema.schema.not", "text.format.schema.not"),
        ("response_format", "text.format"),
        ("schema.properties.a.not", "text.format.schema.properties.a.not"),
        ("tools.3.function.parameters.not", "tools.3.parameters.not"),
        ("max_tokens", "max_output_tokens"),
        ("reasoning_effort", "reasoning.effort"),
        ("messages", "input"),
        ("temperature", "temperature"),
    ],
)
def test_what_an_upstream_says_of_a_field_names_the_clients(theirs: str, ours: str) -> None:
    problem = Problem(kind="malformed", message=f"'{theirs}' is bad.", param=theirs)

    error = msgspec.json.decode(openai_responses.render_problem(problem, 400))["error"]
    assert (error["param"], error["message"]) == (ours, f"'{ours}' is bad.")
