"""What a llama.cpp server is sent, by its age: what it would misread is said otherwise, or not."""

from __future__ import annotations

from typing import Any

import pytest

from tropilla.dialects import _grammar, named
from tropilla.ir import JsonObject, Malformed, Traits

CHAT, NATIVE, TEXT = named("openai_chat"), named("llamacpp"), named("openai_completions")
PICTURE = {"type": "image_url", "image_url": {"url": "data:image/png;base64,AA=="}}
CALL = {"id": "1", "type": "function", "function": {"name": "f", "arguments": "{}"}}
SCHEMA: JsonObject = {"type": "object", "properties": {"a": {"type": "integer"}}}
OBJECT = {"type": "json_object"}
STRICT = {"type": "json_schema", "json_schema": {"name": "x", "schema": SCHEMA}}


def chat(build: int, **fields: Any) -> tuple[JsonObject, tuple[str, ...]]:
    asked = {"messages": [{"role": "user", "content": "Hi"}], **fields}
    wire = CHAT.render_request(CHAT.parse_request(asked, ""), Traits(build=build, chat=True))
    return wire.body, wire.dropped


def native(build: int, **fields: Any) -> tuple[JsonObject, tuple[str, ...]]:
    request = NATIVE.parse_request({"prompt": "Hi", **fields}, "/completion")
    wire = NATIVE.render_request(request, Traits(build=build, chat=build >= 1561))
    return wire.body, wire.dropped


@pytest.mark.parametrize(
    ("build", "form", "told"),
    [
        (1561, OBJECT, "grammar"),
        (2489, OBJECT, "grammar"),
        (2490, OBJECT, "response_format"),
        (2490, STRICT, "grammar"),
        (3777, STRICT, "grammar"),
        (3778, STRICT, "response_format"),
        (11549, STRICT, "response_format"),
        (1561, {"type": "text"}, "response_format"),
    ],
)
def test_a_form_of_json_in_chat(build: int, form: JsonObject, told: str) -> None:
    body, _ = chat(build, response_format=form)
    assert [name for name in ("grammar", "response_format") if name in body] == [told]
    if told == "grammar":
        schema = form.get("json_schema", {}).get("schema")
        assert body["grammar"] == (_grammar.of_schema(schema) if schema else _grammar.of_json())


@pytest.mark.parametrize(
    ("build", "told"), [(0, "grammar"), (2489, "grammar"), (2490, "json_schema")]
)
def test_a_schema_natively(build: int, told: str) -> None:
    body, _ = native(build, json_schema=SCHEMA)
    assert [name for name in ("grammar", "json_schema") if name in body] == [told]


@pytest.mark.parametrize("build", [1561, 3499, 4598])
def test_parts_become_one_text_and_a_developer_the_system(build: int) -> None:
    parts = [{"type": "text", "text": "one"}, {"type": "text", "text": "two"}]
    messages = [{"role": "developer", "content": "Be."}, {"role": "user", "content": parts}]
    body, _ = chat(build, messages=messages)
    assert body["messages"] == [
        {"role": "system", "content": "Be."},
        {"role": "user", "content": "one\ntwo"},
    ]
    body, _ = chat(4599, messages=messages)
    assert body["messages"] == messages


@pytest.mark.parametrize(
    ("build", "fields", "param"),
    [
        (4363, {"logprobs": True}, "logprobs"),
        (2122, {"logit_bias": [["a", 1]]}, "logit_bias"),
        (4598, {"messages": [{"role": "user", "content": [PICTURE]}]}, "messages.0.content"),
        (
            4598,
            {"messages": [{"role": "assistant", "tool_calls": [CALL]}]},
            "messages.0.tool_calls",
        ),
    ],
)
def test_what_an_old_chat_cannot_be_told_is_refused(
    build: int, fields: JsonObject, param: str
) -> None:
    with pytest.raises(Malformed) as caught:
        chat(build, **fields)
    problem = caught.value.problem
    assert (problem.kind, problem.param) == ("unsupported", param)
    chat(5331, **fields)  # it is the age that is in the way


def test_what_an_old_chat_ignores_is_named() -> None:
    knobs = {"repeat_penalty": 1.1, "min_p": 0.1}
    fields = {**knobs, "reasoning_effort": "low", "parallel_tool_calls": False}
    assert set(chat(2489, **fields)[1]) == set(fields)
    assert set(chat(2490, **fields)[1]) == {"reasoning_effort", "parallel_tool_calls"}
    assert chat(11549, **fields)[1] == ()
    assert native(0, min_p=0.1)[1] == ("min_p",)
    assert native(1561, min_p=0.1)[1] == ()


def test_tools_that_may_not_be_called_are_not_told_of() -> None:
    body, _ = chat(4598, tools=[], tool_choice="none")
    assert "tool_choice" not in body


@pytest.mark.parametrize(
    ("build", "fields", "param"),
    [
        (0, {"logit_bias": [["a", 1]]}, "logit_bias"),
        (1561, {"prompt": [1, 2]}, "prompt"),
        (2371, {"prompt": [1, "x"]}, "prompt"),
        (4401, {"prompt": {"prompt_string": "x"}}, "prompt"),
    ],
)
def test_what_would_end_an_old_server_is_refused(
    build: int, fields: JsonObject, param: str
) -> None:
    with pytest.raises(Malformed) as caught:
        native(build, **fields)
    assert caught.value.problem.param == param
    body, _ = native(11549, **fields)
    assert param in body


def test_what_an_old_server_reads_is_sent() -> None:
    fields: JsonObject = {
        "n_keep": 1,
        "tfs_z": 1,
        "cache_prompt": True,
        "grammar": "x",
        "n_probs": 2,
    }
    assert native(0, **fields)[0] | fields == native(0, **fields)[0]
    for build in (0, 2372, 4401):
        assert native(build, prompt=[1, 2])[0]["prompt"] == [1, 2]
    # A list in a list of one ends a server, until b3655.
    assert native(2400, prompt=[[1, 2]])[0]["prompt"] == [1, 2]
