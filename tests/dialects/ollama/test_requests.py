"""What Ollama's clients ask: read, refused by the name of a field, and said to a server."""

from __future__ import annotations

from typing import Any

import pytest

from grammar import TODAY
from tropilla.dialects import ollama, openai_chat
from tropilla.ir import (
    Chat,
    Completion,
    Format,
    Image,
    Infill,
    Malformed,
    Message,
    Reasoning,
    Request,
    Text,
    ToolCall,
)

ASKED: dict[str, Any] = {"model": "m", "messages": [{"role": "user", "content": "Hello!"}]}
PNG = "iVBORw0KGgo="
CALLED = {"function": {"name": "weather", "arguments": {"city": "Rome"}}}


def chat(**fields: Any) -> Request:
    return ollama.parse_request(ASKED | fields, "/api/chat")


def generate(**fields: Any) -> Request:
    return ollama.parse_request({"model": "m", "prompt": "Hello!"} | fields, "/api/generate")


def messages(*said: dict[str, Any]) -> tuple[Message, ...]:
    request = chat(messages=list(said))
    assert isinstance(request.input, Chat)
    return request.input.messages


def test_what_says_nothing_of_it_is_streamed() -> None:
    assert chat().stream
    assert chat(stream=True).stream
    assert not chat(stream=False).stream


def test_options_are_knobs_and_limits() -> None:
    asked = chat(
        options={
            "num_predict": 7, "stop": ["a", "b"], "seed": 3, "temperature": 0.5, "top_k": 4,
            "repeat_penalty": 1.1, "num_ctx": 4096,
        }
    )  # fmt: skip
    assert (asked.max_tokens, asked.stop) == (7, ("a", "b"))
    knobs = asked.knobs
    assert (knobs.seed, knobs.temperature, knobs.top_k, knobs.repeat_penalty) == (3, 0.5, 4, 1.1)
    assert asked.extras == {"options": {"num_ctx": 4096}}


@pytest.mark.parametrize("limit", [0, -1, -2])
def test_a_limit_that_is_none(limit: int) -> None:
    assert chat(options={"num_predict": limit}).max_tokens is None


@pytest.mark.parametrize(
    ("told", "effort"),
    [(None, None), (False, "none"), (True, "medium"), ("low", "low"), ("max", "max")],
)
def test_how_much_is_thought(told: Any, effort: str | None) -> None:
    asked = chat(think=told)
    assert isinstance(asked.input, Chat)
    assert asked.input.reasoning_effort == effort


def test_formats() -> None:
    assert chat(format="").format is None
    assert chat(format="json").format == Format(kind="json_object")
    schema = {"type": "object", "properties": {"a": {"type": "integer"}}}
    asked = chat(format=schema)
    assert asked.format == Format(kind="json_schema", schema=schema, name="format")
    body = openai_chat.render_request(asked, TODAY).body
    assert body["response_format"]["json_schema"]["schema"]["properties"] == schema["properties"]


def test_pictures_become_what_they_are() -> None:
    (message,) = messages({"role": "user", "content": "?", "images": [PNG, "/9j/4AA="]})
    assert message.parts == (
        Text(text="?"),
        Image(url=f"data:image/png;base64,{PNG}"),
        Image(url="data:image/jpeg;base64,/9j/4AA="),
    )
    (message,) = messages({"role": "user", "images": [f"data:image/webp;base64,{PNG}"]})
    assert message.parts == (Image(url=f"data:image/webp;base64,{PNG}"),)


def test_a_result_finds_its_call_by_name_by_place_or_by_id() -> None:
    other = {"function": {"name": "time", "arguments": {}}}
    told = messages(
        {"role": "user", "content": "?"},
        {"role": "assistant", "thinking": "Hm.", "tool_calls": [CALLED, other]},
        {"role": "tool", "content": "noon", "tool_name": "time"},
        {"role": "tool", "content": "sunny"},
        {"role": "assistant", "tool_calls": [{"id": "own", **CALLED}]},
        {"role": "tool", "content": "rain", "tool_call_id": "own"},
    )
    thought, *calls = told[1].parts
    assert thought == Reasoning(text="Hm.")
    assert calls == [
        ToolCall(id="call_1_0", name="weather", arguments='{"city":"Rome"}'),
        ToolCall(id="call_1_1", name="time", arguments="{}"),
    ]
    assert [one.tool_call_id for one in told] == [
        None, None, "call_1_1", "call_1_0", None, "own",
    ]  # fmt: skip


def test_very_many_calls_find_their_results() -> None:
    def call(name: str, **more: Any) -> dict[str, Any]:
        return {"function": {"name": name}, **more}

    many = [call("a"), call("b"), *[call("c")] * 20_000]
    results = [{"role": "tool", "content": "x", "tool_name": name} for name in ("c", "x", "b", "a")]
    asked = {"role": "assistant", "tool_calls": many}
    told = [one.tool_call_id for one in messages(asked, *results)[1:]]
    assert told == ["call_0_2", "call_0_0", "call_0_1", "call_0_3"]
    # Of an id that comes again the last call is meant.
    twice = {"role": "assistant", "tool_calls": [call("a", id="1"), call("b", id="1")]}
    told = [one.tool_call_id for one in messages(twice, *results)[1:]]
    assert told == ["1", "call", "call", "call"]


def test_pictures_are_counted_in_all_messages() -> None:
    most = ollama.messages.MOST_PICTURES
    assert len(messages({"role": "user", "images": ["AAAA"] * most})[0].parts) == most
    many = {"role": "user", "images": ["AAAA"] * (most // 2)}
    one, more = ({"role": "user", "images": ["AAAA"] * count} for count in (1, most + 1))
    for values in ([many, many, one], [{"role": "user"}, {"role": "user"}, more]):
        with pytest.raises(Malformed) as caught:
            messages(*values)
        assert caught.value.problem.param == "messages.2.images"
    with pytest.raises(Malformed) as caught:
        generate(images=["AAAA"] * (most + 1))
    assert caught.value.problem.param == "images"


def test_a_result_of_nothing_is_no_crash() -> None:
    assert messages({"role": "tool", "content": "x"})[0].tool_call_id == "call"


def test_generate_is_a_conversation_raw_text_or_a_hole() -> None:
    said = generate(system="Be kind.", images=[PNG])
    assert isinstance(said.input, Chat)
    assert [one.role for one in said.input.messages] == ["system", "user"]
    assert len(said.input.messages[1].parts) == 2
    assert generate(raw=True).input == Completion(prompts=("Hello!",))
    assert generate(suffix=" end").input == Infill(prefix="Hello!", suffix=" end")
    empty = {"system": "", "suffix": "", "template": "", "context": []}
    assert isinstance(generate(**empty).input, Chat), "the packages say much that is nothing"


def test_what_could_not_be_sent_back_is_not_remembered() -> None:
    assert ollama.request.context_of(generate(), "x" * 1_000_000) == {}


def test_what_was_said_is_remembered_by_numbers() -> None:
    first = generate(system="Be kind.")
    context = ollama.request.context_of(first, "Good day.")["context"]
    assert all(type(number) is int for number in context)
    again = generate(prompt="And?", context=context)
    assert isinstance(again.input, Chat)
    told = [(one.role, one.parts[0]) for one in again.input.messages]
    assert told == [
        ("system", Text(text="Be kind.")),
        ("user", Text(text="Hello!")),
        ("assistant", Text(text="Good day.")),
        ("user", Text(text="And?")),
    ]
    other = generate(prompt="And?", context=context, system="Be short.")
    assert isinstance(other.input, Chat)
    assert [one.role for one in other.input.messages].count("system") == 1
    assert other.input.messages[0].parts == (Text(text="Be short."),)


@pytest.mark.parametrize("path", ["/api/chat", "/api/generate"])
@pytest.mark.parametrize(
    ("fields", "param"),
    [
        ({"options": "x"}, "options"),
        ({"options": {"num_predict": "x"}}, "options.num_predict"),
        ({"options": {"seed": 1.5}}, "options.seed"),
        ({"options": {"stop": 5}}, "options.stop"),
        ({"stream": "yes"}, "stream"),
        ({"think": "very"}, "think"),
        ({"format": "yaml"}, "format"),
        ({"format": {"type": "nonsense"}}, "format"),
        ({"keep_alive": "soon"}, "keep_alive"),
        ({"keep_alive": True}, "keep_alive"),
        ({"logprobs": True, "top_logprobs": 21}, "top_logprobs"),
        ({"model": 5}, "model"),
    ],
)
def test_a_wrong_field_is_named(path: str, fields: dict[str, Any], param: str) -> None:
    with pytest.raises(Malformed) as refused:
        ollama.parse_request(ASKED | {"prompt": "p"} | fields, path)
    assert str(refused.value.problem.param).startswith(param)


@pytest.mark.parametrize(
    ("value", "param"),
    [
        ({"content": "x"}, "messages.0.role"),
        ({"role": "king", "content": "x"}, "messages.0.role"),
        ({"role": "user", "content": ["x"]}, "messages.0.content"),
        ({"role": "user", "images": ["no base64"]}, "messages.0.images.0"),
        ({"role": "user", "images": [5]}, "messages.0.images.0"),
        ({"role": "user", "images": ["data:text/html,x"]}, "messages.0.images.0"),
        ({"role": "assistant", "tool_calls": [{}]}, "messages.0.tool_calls.0.function"),
        (
            {"role": "assistant", "tool_calls": [{"function": {"name": "f", "arguments": "{}"}}]},
            "messages.0.tool_calls.0.function.arguments",
        ),
    ],
)
def test_a_wrong_message_is_named(value: dict[str, Any], param: str) -> None:
    with pytest.raises(Malformed) as refused:
        chat(messages=[value])
    assert refused.value.problem.param == param


@pytest.mark.parametrize(
    ("tools", "param"),
    [
        ([5], "tools.0"),
        ([{"type": "magic"}], "tools.0.type"),
        ([{"function": {}}], "tools.0.function.name"),
        ([{"function": {"name": "a"}}, {"function": {"name": "a"}}], "tools.1.function.name"),
        ([{"function": {"name": "a", "parameters": []}}], "tools.0.function.parameters"),
    ],
)
def test_a_wrong_tool_is_named(tools: Any, param: str) -> None:
    with pytest.raises(Malformed) as refused:
        chat(tools=tools)
    assert refused.value.problem.param == param


@pytest.mark.parametrize(
    ("fields", "param"),
    [
        ({"template": "{{ .Prompt }}"}, "template"),
        ({"raw": True, "system": "s"}, "raw"),
        ({"raw": True, "images": [PNG]}, "images"),
        ({"context": [1, 2, 3]}, "context"),
        ({"context": [2**70]}, "context"),
        ({"context": ["x"]}, "context"),
        ({"context": list(b'[["king","x"]]')}, "context"),
        ({"context": list(b"[" + b'["user","x"],' * 4096 + b'["user","x"]]')}, "context"),
    ],
)
def test_what_generate_cannot_do_is_named(fields: dict[str, Any], param: str) -> None:
    with pytest.raises(Malformed) as refused:
        generate(**fields)
    assert refused.value.problem.param == param


def test_what_only_ollama_has_goes_to_no_other_server() -> None:
    asked = chat(keep_alive="5m", options={"num_ctx": 1}, think=False)
    body = openai_chat.render_request(asked, TODAY).body
    assert body.keys().isdisjoint({"keep_alive", "options", "num_ctx", "think"})
    own = ollama.render_request(asked, TODAY).body
    assert own == ASKED | {
        "keep_alive": "5m", "options": {"num_ctx": 1}, "think": False, "stream": True,
    }  # fmt: skip
    own = ollama.render_request(generate(), TODAY).body
    assert own.keys() == {"model", "messages", "stream"}, "how the answer is told is nobody else's"


def test_a_choice_of_tools_is_said_as_far_as_it_can_be() -> None:
    function = {"name": "f", "parameters": {"type": "object", "properties": {}}}
    tools = [
        {"type": "function", "function": function},
        {"type": "function", "function": function | {"name": "g"}},
    ]
    asked = {"messages": ASKED["messages"], "tools": tools, "tool_choice": "none"}
    none = ollama.render_request(openai_chat.parse_request(asked, ""), TODAY)
    assert "tools" not in none.body
    chosen = {"type": "function", "function": {"name": "g"}}
    one = ollama.render_request(
        openai_chat.parse_request(asked | {"tool_choice": chosen}, ""), TODAY
    )
    assert [tool["function"]["name"] for tool in one.body["tools"]] == ["g"]
    assert one.dropped == ("tool_choice",)
