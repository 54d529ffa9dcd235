"""OpenAI's chat completions: what a client may ask, how it is asked on, and what is refused."""

from __future__ import annotations

from typing import Any

import msgspec
import pytest

from grammar import TODAY
from openapi_schema import check
from tropilla import ir
from tropilla.dialects import named
from tropilla.ir import JsonObject, Malformed, Problem, Request, Traits

CHAT = named("openai_chat")
SAY = [{"role": "user", "content": "Say hello."}]


def asked(**fields: Any) -> Request:
    return CHAT.parse_request({"messages": SAY, **fields}, "/chat/completions")


BAD: list[tuple[JsonObject, str | None, str | None]] = [
    ({"messages": None}, "messages", "missing_required_parameter"),
    ({"messages": []}, "messages", "empty_array"),
    ({"messages": "hi"}, "messages", "invalid_type"),
    ({"messages": {"role": "user"}}, "messages", "invalid_type"),
    ({"messages": ["hi"]}, "messages.0", "invalid_type"),
    ({"messages": [*SAY, {"content": "c"}]}, "messages.1.role", "missing_required_parameter"),
    ({"messages": [{"role": "king", "content": "c"}]}, "messages.0.role", "invalid_value"),
    ({"messages": [{"role": 5, "content": "c"}]}, "messages.0.role", "invalid_type"),
    ({"messages": [{"role": "user"}]}, "messages.0.content", "missing_required_parameter"),
    ({"messages": [{"role": "user", "content": []}]}, "messages.0.content", "empty_array"),
    ({"messages": [{"role": "user", "content": 5}]}, "messages.0.content", "invalid_type"),
    (
        {"messages": [{"role": "tool", "content": "c"}]},
        "messages.0.tool_call_id",
        "missing_required_parameter",
    ),
    (
        {"messages": [{"role": "assistant", "tool_calls": {}}]},
        "messages.0.tool_calls",
        "invalid_type",
    ),
    (
        {"messages": [{"role": "assistant", "tool_calls": [{"id": "1", "type": "x"}]}]},
        "messages.0.tool_calls.0.type",
        "invalid_value",
    ),
    (
        {"messages": [{"role": "assistant", "tool_calls": [{"id": "1", "type": "function"}]}]},
        "messages.0.tool_calls.0.function",
        "invalid_type",
    ),
    ({"model": 5}, "model", "invalid_type"),
    ({"stream": "yes"}, "stream", "invalid_type"),
    ({"stream_options": {"include_usage": True}}, "stream_options", "invalid_value"),
    ({"stream": True, "stream_options": []}, "stream_options", "invalid_type"),
    (
        {"stream": True, "stream_options": {"include_usage": 1}},
        "stream_options.include_usage",
        "invalid_type",
    ),
    ({"n": 0}, "n", "integer_below_min_value"),
    ({"n": 129}, "n", "integer_above_max_value"),
    ({"n": 1.5}, "n", "invalid_type"),
    ({"n": True}, "n", "invalid_type"),
    ({"n": "2"}, "n", "invalid_type"),
    ({"temperature": -0.1}, "temperature", "decimal_below_min_value"),
    ({"temperature": 2.1}, "temperature", "decimal_above_max_value"),
    ({"temperature": "hot"}, "temperature", "invalid_type"),
    ({"temperature": True}, "temperature", "invalid_type"),
    ({"top_p": 1.1}, "top_p", "decimal_above_max_value"),
    ({"presence_penalty": -2.5}, "presence_penalty", "decimal_below_min_value"),
    ({"frequency_penalty": 2.5}, "frequency_penalty", "decimal_above_max_value"),
    ({"max_tokens": 0}, "max_tokens", "integer_below_min_value"),
    ({"max_tokens": -2}, "max_tokens", "integer_below_min_value"),
    ({"max_tokens": 10**30}, "max_tokens", "integer_above_max_value"),
    ({"max_completion_tokens": "many"}, "max_completion_tokens", "invalid_type"),
    ({"seed": 10**30}, "seed", "integer_above_max_value"),
    ({"seed": -(10**30)}, "seed", "integer_below_min_value"),
    ({"top_k": 1e300}, "top_k", "integer_above_max_value"),
    ({"top_logprobs": 2}, "top_logprobs", "invalid_value"),
    ({"top_logprobs": 2, "logprobs": False}, "top_logprobs", "invalid_value"),
    ({"top_logprobs": 21, "logprobs": True}, "top_logprobs", "integer_above_max_value"),
    ({"logprobs": 2}, "logprobs", "invalid_type"),
    ({"stop": 5}, "stop", "invalid_type"),
    ({"stop": ["a", 5]}, "stop.1", "invalid_type"),
    ({"logit_bias": "a"}, "logit_bias", "invalid_type"),
    ({"logit_bias": {"5": 101}}, "logit_bias.0", "invalid_value"),
    ({"logit_bias": {"5": "x"}}, "logit_bias.0", "invalid_type"),
    ({"logit_bias": [[5]]}, "logit_bias.0", "invalid_type"),
    ({"logit_bias": [[5, 1], [True, 1]]}, "logit_bias.1", "invalid_type"),
    ({"response_format": {}}, "response_format.type", "missing_required_parameter"),
    ({"response_format": {"type": "xml"}}, "response_format.type", "invalid_value"),
    (
        {"response_format": {"type": "json_schema"}},
        "response_format.json_schema",
        "missing_required_parameter",
    ),
    (
        {"response_format": {"type": "json_schema", "json_schema": {"schema": 5}}},
        "response_format.json_schema.schema",
        "invalid_type",
    ),
    ({"tools": {}}, "tools", "invalid_type"),
    ({"tools": [5]}, "tools.0", "invalid_type"),
    (
        {"tools": [{"type": "function", "function": {}}]},
        "tools.0.function.name",
        "missing_required_parameter",
    ),
    ({"tool_choice": "some"}, "tool_choice", "invalid_value"),
    ({"tool_choice": 5}, "tool_choice", "invalid_type"),
    ({"tool_choice": {"name": "f"}}, "tool_choice.type", "missing_required_parameter"),
    ({"tool_choice": {"type": "x"}}, "tool_choice.type", "invalid_value"),
    (
        {"tool_choice": {"type": "function"}},
        "tool_choice.function",
        "missing_required_parameter",
    ),
    ({"tool_choice": "required"}, "tool_choice", "invalid_value"),
    ({"function_call": {"name": "f"}}, "function_call", "invalid_value"),
]


@pytest.mark.parametrize(("fields", "param", "code"), BAD, ids=repr)
def test_a_bad_request_is_told_what_is_wrong(
    fields: JsonObject, param: str | None, code: str | None
) -> None:
    with pytest.raises(Malformed) as told:
        asked(**fields)
    problem = told.value.problem
    assert (problem.param, problem.code) == (param, code)
    assert str(param) in problem.message
    assert not problem.retryable


@pytest.mark.parametrize(
    ("part_", "at", "code"),
    [
        ("text", "", "invalid_type"),
        ({}, ".type", "missing_required_parameter"),
        ({"type": 5}, ".type", "invalid_type"),
        ({"type": "smell"}, ".type", "invalid_value"),
        ({"type": "text"}, ".text", "missing_required_parameter"),
        ({"type": "text", "text": 5}, ".text", "invalid_type"),
        ({"type": "image_url"}, ".image_url", "missing_required_parameter"),
        ({"type": "image_url", "image_url": "http://x"}, ".image_url", "invalid_type"),
        ({"type": "image_url", "image_url": {}}, ".image_url.url", "missing_required_parameter"),
        ({"type": "input_audio"}, ".input_audio", "missing_required_parameter"),
        (
            {"type": "input_audio", "input_audio": {"data": "x"}},
            ".input_audio.format",
            "missing_required_parameter",
        ),
    ],
    ids=repr,
)
def test_a_bad_part_is_found_by_its_path(part_: Any, at: str, code: str) -> None:
    content = [{"type": "text", "text": "fine"}, part_]
    with pytest.raises(Malformed) as told:
        asked(messages=[{"role": "user", "content": content}])
    assert told.value.problem.param == f"messages.0.content.1{at}"
    assert told.value.problem.code == code


@pytest.mark.parametrize(
    ("more", "told"),
    [
        ({}, ir.Message(role="user", parts=(ir.Text(text="Hi"),))),
        ({"name": "Ana"}, ir.Message(role="user", parts=(ir.Text(text="Hi"),), name="Ana")),
        ({"mark": 1}, ir.Message(role="user", parts=(ir.Text(text="Hi"),), extras={"mark": 1})),
    ],
)
def test_what_a_message_says_beside_its_text_is_kept(more: JsonObject, told: ir.Message) -> None:
    request = asked(messages=[{"role": "user", "content": "Hi", **more}])
    assert isinstance(request.input, ir.Chat)
    assert request.input.messages == (told,)


def test_a_string_is_one_stop_word() -> None:
    # api_like_OAI.py took it for a list of letters.
    assert asked(stop="END").stop == ("END",)
    assert asked(stop=["a", "", "bc"]).stop == ("a", "bc")
    assert asked(stop=None).stop == asked(stop="").stop == asked(stop=[]).stop == ()


def test_both_forms_of_logit_bias() -> None:
    assert asked(logit_bias={"5": -1, "x": 2}).logit_bias == (
        ir.Bias(token=5, amount=-1),
        ir.Bias(token="x", amount=2),
    )
    assert asked(logit_bias=[[5, -1], ["x", False]]).logit_bias == (
        ir.Bias(token=5, amount=-1),
        ir.Bias(token="x", amount=False),
    )


def test_a_token_longer_than_any_id_is_a_text() -> None:
    # int() refuses more than 4300 digits with an error of its own.
    long = "9" * 5000
    assert asked(logit_bias={long: 1}).logit_bias == (ir.Bias(token=long, amount=1),)


def test_logit_bias_is_pairs_for_llamacpp_and_an_object_for_others() -> None:
    pairs: list[Any] = [[5, -1], [6, False]]
    body = CHAT.render_request(asked(logit_bias=[*pairs, ["x", 1]]), TODAY).body
    assert body["logit_bias"] == [*pairs, ["x", 1]]
    body = CHAT.render_request(asked(logit_bias=pairs), Traits(dialect="openai")).body
    assert body["logit_bias"] == {"5": -1, "6": -100}


@pytest.mark.parametrize(
    ("fields", "limit"),
    [
        ({"max_completion_tokens": 1, "max_tokens": 2, "n_predict": 3}, 1),
        ({"max_tokens": 2, "n_predict": 3}, 2),
        ({"n_predict": 3}, 3),
        ({"max_completion_tokens": None, "max_tokens": 2}, 2),
        ({"max_tokens": -1}, None),
        ({"max_tokens": 4.0}, 4),
        ({}, None),
    ],
    ids=repr,
)
def test_the_newest_name_of_the_limit_counts(fields: JsonObject, limit: int | None) -> None:
    assert asked(**fields).max_tokens == limit


def test_null_is_absent() -> None:
    names = ("model", "stream", "n", "temperature", "tools", "tool_choice", "response_format")
    assert asked(**dict.fromkeys(names)) == asked()


def test_a_long_seed_is_folded_into_llamacpps() -> None:
    seeds = [
        CHAT.render_request(asked(seed=seed), TODAY).body["seed"]
        for seed in (2**62, 2**62, 2**62 + 1, -5, 7, -1)
    ]
    assert seeds[0] == seeds[1] != seeds[2]
    assert all(-1 <= seed < 2**32 for seed in seeds)
    assert seeds[4:] == [7, -1]


def test_llamacpp_is_told_of_the_named_tool_alone() -> None:
    # It reads the object form of tool_choice as "auto" (llama.cpp #26535).
    tools = [{"type": "function", "function": {"name": name}} for name in ("one", "two")]
    chosen = {"type": "function", "function": {"name": "two"}}

    body = CHAT.render_request(asked(tools=tools, tool_choice=chosen), TODAY).body
    assert (body["tools"], body["tool_choice"]) == (tools[1:], "required")
    body = CHAT.render_request(
        asked(tools=tools, tool_choice=chosen), Traits(dialect="openai")
    ).body
    assert (body["tools"], body["tool_choice"]) == (tools, chosen)

    other = {"type": "function", "function": {"name": "three"}}
    with pytest.raises(Malformed) as told:
        CHAT.render_request(asked(tools=tools, tool_choice=other), TODAY)
    assert told.value.problem.param == "tool_choice"


PIXEL = "data:image/png;base64,AA=="


def test_marks_on_any_part_are_kept() -> None:
    mark = {"prompt_cache_breakpoint": {"mode": "explicit"}}
    content = [
        {"type": "text", "text": "a"} | mark,
        {"type": "image_url", "image_url": {"url": PIXEL, "detail": "low"} | mark} | mark,
        {"type": "image_url", "image_url": {"url": PIXEL}} | mark,
        {"type": "input_audio", "input_audio": {"data": "AA==", "format": "wav"} | mark} | mark,
        {"type": "video_url", "video_url": {"url": "data:video/mp4;base64,AA=="}} | mark,
    ]
    file = {"type": "file", "file": {"file_id": "f"}} | mark
    request = asked(messages=[{"role": "user", "content": content}])
    assert CHAT.render_request(request, TODAY).body["messages"][0]["content"] == content

    request = asked(messages=[{"role": "user", "content": [*content, file]}])
    told = CHAT.render_request(request, Traits(dialect="openai")).body["messages"][0]["content"]
    assert told == [*content, file]
    with pytest.raises(Malformed) as refused:
        CHAT.render_request(request, TODAY)
    assert refused.value.problem.param == "messages.0.content.5.type"


def test_marks_on_a_tool_are_kept_where_they_were() -> None:
    mark = {"cache_control": {"type": "ephemeral"}}
    tool = {"type": "function", "function": {"name": "one", "x_mark": 1}} | mark
    assert CHAT.render_request(asked(tools=[tool]), TODAY).body["tools"] == [tool]


# What a client names is fetched by nobody.


def problem_of(part: JsonObject) -> Problem:
    with pytest.raises(Malformed) as told:
        asked(messages=[{"role": "user", "content": [{"type": "text", "text": "a"}, part]}])
    return told.value.problem


@pytest.mark.parametrize(
    "url",
    [
        "http://127.0.0.1:9/metadata",
        "https://example.com/cat.png",
        "file:///etc/passwd",
        "//example.com/cat.png",
        "cat.png",
        " data:image/png;base64,AA==",
        "DATA:image/png;base64,AA==",
        "",
    ],
)
@pytest.mark.parametrize("kind", ["image_url", "video_url"])
def test_an_address_is_refused(kind: str, url: str) -> None:
    problem = problem_of({"type": kind, kind: {"url": url}})
    assert problem.param == f"messages.0.content.1.{kind}.url"
    assert "fetches nothing that a client names" in problem.message
    assert (problem.kind, problem.code) == ("malformed", "invalid_value")


@pytest.mark.parametrize(
    "url",
    [
        "data:",
        "data:,Hello",
        "data:image/png,AA==",
        "data:image/png;base64",
        "data:;base64,AA==",
        "data:image/png;base64,",
        "data:image/png;base64,http://127.0.0.1",
        "data:image/png;base64,AA",
        "data:image/png;base64,AA==AA==",
        "data:image/png;base64,\u00e9\u00e9==",
    ],
)
def test_a_malformed_data_url_is_refused(url: str) -> None:
    problem = problem_of({"type": "image_url", "image_url": {"url": url}})
    assert problem.param == "messages.0.content.1.image_url.url"
    assert problem.code == "invalid_value"


@pytest.mark.parametrize("data", ["https://example.com/a.wav", "AA", "", "A A="])
def test_sound_is_base64(data: str) -> None:
    problem = problem_of({"type": "input_audio", "input_audio": {"data": data, "format": "wav"}})
    assert problem.param == "messages.0.content.1.input_audio.data"
    assert "not base64" in problem.message


def test_a_long_data_url_is_read_as_any_other() -> None:
    url = "data:image/svg+xml;charset=utf-8;base64," + "AAAA" * 100_000
    part_ = {"type": "image_url", "image_url": {"url": url}}
    request = asked(messages=[{"role": "user", "content": [part_]}])
    assert CHAT.render_request(request, TODAY).body["messages"][0]["content"] == [part_]


# Refusals.


@pytest.mark.parametrize(
    ("status", "body", "kind", "retryable"),
    [
        (
            503,
            b'{"error":{"code":503,"message":"Loading model","type":"unavailable_error"}}',
            "loading",
            True,
        ),
        (
            400,
            b'{"error":{"code":400,"message":"m","type":"exceed_context_size_error","n_ctx":9,"n_prompt_tokens":10}}',
            "context_exceeded",
            False,
        ),
        (
            400,
            b'{"error":{"message":"m","code":"context_length_exceeded"}}',
            "context_exceeded",
            False,
        ),
        (400, b'{"error":{"message":"m"}}', "malformed", False),
        (429, b"", "limited", False),
        (500, b"500 Internal Server Error\n[json.exception]", "upstream_failed", True),
        (502, b"<html>nginx</html>", "upstream_failed", True),
        (404, b"File Not Found", "upstream_failed", True),
        (501, b'{"error":{"message":"m"}}', "unsupported", False),
        (401, b'{"error":{"message":"Invalid API Key"}}', "upstream_failed", True),
    ],
)
def test_what_a_refusal_means(status: int, body: bytes, kind: str, *, retryable: bool) -> None:
    problem = CHAT.parse_problem(status, body)
    assert (problem.kind, problem.retryable) == (kind, retryable)
    assert "<html>" not in problem.message


def test_an_error_has_openais_four_keys() -> None:
    problem = Problem(kind="malformed", message="m", param="p", code="c")
    body = msgspec.json.decode(CHAT.render_problem(problem, 400))
    check("ErrorResponse", body)
    assert body == {
        "error": {"message": "m", "type": "invalid_request_error", "param": "p", "code": "c"}
    }


def test_llamacpp_is_told_of_no_tools_that_may_not_be_called() -> None:
    # Told of them all the same, its model writes calls into its text (b11549).
    tools = [{"type": "function", "function": {"name": "one"}}]
    asked_ = asked(tools=tools, tool_choice="none")
    body = CHAT.render_request(asked_, TODAY).body
    assert "tools" not in body
    assert body["tool_choice"] == "none"
    assert CHAT.render_request(asked_, Traits(dialect="openai")).body["tools"] == tools
