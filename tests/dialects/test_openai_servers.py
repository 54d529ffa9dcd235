"""OpenAI's dialects with servers that are no llama.cpp: what they are told, and what they say."""

from __future__ import annotations

from typing import Any

import msgspec
import pytest

from grammar import TODAY, parsed, read
from tropilla import ir
from tropilla.dialects import Dialect, named
from tropilla.ir import Failed, JsonObject, Malformed, Request, Traits, Usage

CHAT, TEXT, NATIVE = named("openai_chat"), named("openai_completions"), named("llamacpp")
VLLM = Traits(dialect="openai", chat=True)
OPENAI = Traits(dialect="openai", chat=True, strict=True)
DIALECTS = pytest.mark.parametrize("dialect", [CHAT, TEXT], ids=["chat", "completions"])


def asked(dialect: Dialect, **fields: Any) -> Request:
    if dialect is CHAT:
        fields = {"messages": [{"role": "user", "content": "Hello!"}]} | fields
    else:
        fields = {"prompt": "Hello!"} | fields
    return dialect.parse_request(fields, "/completion")


def sent(dialect: Dialect, traits: Traits, **fields: Any) -> tuple[JsonObject, tuple[str, ...]]:
    """What reaches the server beside what always does, and what is dropped."""
    wire = dialect.render_request(asked(dialect, **fields), traits)
    always = {"messages", "prompt", "stream", "stream_options"}
    body = {name: value for name, value in wire.body.items() if name not in always}
    return body, wire.dropped


# What a server is told.

OPENAIS = {"temperature": 0.5, "top_p": 0.9, "presence_penalty": 1, "frequency_penalty": -1}


@DIALECTS
@pytest.mark.parametrize("traits", [VLLM, OPENAI], ids=["other", "strict"])
def test_what_openai_has_reaches_every_server(dialect: Dialect, traits: Traits) -> None:
    seed = {"seed": 2**40}
    assert sent(dialect, traits, **OPENAIS, **seed) == (OPENAIS | seed, ())


@DIALECTS
def test_what_many_servers_have_reaches_them(dialect: Dialect) -> None:
    body, dropped = sent(dialect, VLLM, top_k=40, min_p=0.1, repeat_penalty=1.1)
    # vLLM's name and llama-cpp-python's.
    penalties = {"repetition_penalty": 1.1, "repeat_penalty": 1.1}
    assert (body, dropped) == ({"top_k": 40, "min_p": 0.1} | penalties, ())


@DIALECTS
def test_a_servers_own_name_counts(dialect: Dialect) -> None:
    body, _ = sent(dialect, VLLM, repeat_penalty=1.1, repetition_penalty=1.3)
    assert body["repetition_penalty"] == 1.3


@DIALECTS
def test_openai_is_told_of_nothing_that_it_refuses(dialect: Dialect) -> None:
    assert sent(dialect, OPENAI, top_k=40, min_p=0.1, repeat_penalty=1.1) == (
        {},
        ("top_k", "min_p", "repeat_penalty"),
    )


@DIALECTS
@pytest.mark.parametrize("traits", [VLLM, OPENAI], ids=["other", "strict"])
def test_what_nobody_else_has_is_dropped_and_named(dialect: Dialect, traits: Traits) -> None:
    mirostat = {"mirostat": 2, "mirostat_tau": 5.0, "mirostat_eta": 0.1}
    extras = {"cache_prompt": True, "n_keep": 4, "dry_multiplier": 0.8, "samplers": ["top_k"]}
    body, dropped = sent(dialect, traits, typical_p=0.5, **mirostat, **extras)
    assert (body, set(dropped)) == ({}, {"typical_p", *mirostat, *extras})
    kept, none = sent(dialect, TODAY, typical_p=0.5, **mirostat, **extras)
    assert (kept, none) == ({"typical_p": 0.5, **mirostat, **extras}, ())


@DIALECTS
def test_what_does_nothing_is_not_missed(dialect: Dialect) -> None:
    idle = {"top_k": 0, "min_p": 0, "typical_p": 1.0, "repeat_penalty": 1.0, "mirostat": 0}
    assert sent(dialect, OPENAI, **idle, mirostat_tau=5.0, cache_prompt=None) == ({}, ())


@DIALECTS
def test_what_nobody_knows_is_the_clients_own(dialect: Dialect) -> None:
    own = {"guided_regex": "a+", "metadata": {"a": "b"}, "chat_template_kwargs": {"think": False}}
    assert sent(dialect, VLLM, **own) == (own, ())
    assert sent(dialect, OPENAI, **own) == (own, ())


@DIALECTS
@pytest.mark.parametrize("name", ["grammar", "json_schema", "image_data", "system_prompt"])
def test_what_must_not_be_lost_is_refused(dialect: Dialect, name: str) -> None:
    value = [{"data": "AA==", "id": 1}] if name == "image_data" else {"type": "object"}
    with pytest.raises(Malformed) as told:
        sent(dialect, VLLM, **{name: value})
    assert (told.value.problem.kind, told.value.problem.param) == ("unsupported", name)
    assert sent(dialect, VLLM, **{name: None}) == ({}, ())


@DIALECTS
def test_a_bias_needs_the_id_of_its_token(dialect: Dialect) -> None:
    with pytest.raises(Malformed) as told:
        sent(dialect, VLLM, logit_bias=[["Hello", -5]])
    assert (told.value.problem.kind, told.value.problem.param) == ("unsupported", "logit_bias")
    body, _ = sent(dialect, VLLM, logit_bias=[[5, -5], [7, False]])
    assert body == {"logit_bias": {"5": -5, "7": -100}}


def test_the_limit_has_the_name_that_a_server_knows() -> None:
    for name in ("max_tokens", "max_completion_tokens"):
        assert sent(CHAT, VLLM, **{name: 9})[0] == {"max_tokens": 9}
        assert sent(CHAT, OPENAI, **{name: 9})[0] == {"max_completion_tokens": 9}
    # Its old endpoint has only the old name.
    assert sent(TEXT, OPENAI, max_tokens=9)[0] == {"max_tokens": 9}


@DIALECTS
def test_usage_is_not_asked_for_where_that_is_refused(dialect: Dialect) -> None:
    old = Traits(dialect="openai", chat=True, tells_usage=False)
    request = asked(dialect, stream=True, stream_options={"include_usage": True})
    assert "stream_options" not in dialect.render_request(request, old).body
    wanted = dialect.render_request(request, VLLM).body["stream_options"]
    assert wanted == {"include_usage": True}


def test_a_native_client_asks_for_chance_without_a_seed() -> None:
    request = NATIVE.parse_request({"prompt": "a", "seed": -1, "n_probs": 2}, "/completion")
    body = TEXT.render_request(request, VLLM).body
    assert "seed" not in body
    assert body["logprobs"] == 2


def test_what_is_done_here_is_not_named_as_lost() -> None:
    request = NATIVE.parse_request({"prompt": "a", "response_fields": ["content"]}, "/completion")
    wire = TEXT.render_request(request, VLLM)
    assert ("response_fields" in wire.body, wire.dropped) == (False, ())


# What a server says.


def event(body: Any) -> bytes:
    return b"data: " + msgspec.json.encode(body) + b"\n\n"


def chunk(delta: JsonObject | None, reason: str | None = None, **top: Any) -> bytes:
    choice = {"index": 0, "delta": delta or {}, "finish_reason": reason}
    return event({"id": "c", "choices": [choice], **top})


def piece(text: str, reason: str | None = None, **top: Any) -> bytes:
    choice = {"index": 0, "text": text, "finish_reason": reason}
    return event({"id": "c", "choices": [choice], **top})


def heard(*pieces: bytes, dialect: Dialect = CHAT, **fields: Any) -> ir.Answer:
    return ir.fold(parsed(dialect, asked(dialect, **fields), pieces, extras=True))


def usage(prompt: int, completion: int) -> JsonObject:
    return {"usage": {"prompt_tokens": prompt, "completion_tokens": completion}}


DONE = b"data: [DONE]\n\n"
END = chunk({}, "stop")


@pytest.mark.parametrize("name", ["reasoning", "reasoning_content"])
def test_reasoning_under_either_name(name: str) -> None:
    told = heard(
        chunk({name: "Hm", "content": None}), chunk({name: "."}), chunk({"content": "A"}), END
    )
    assert told.choices[0].parts == (ir.Reasoning(text="Hm."), ir.Text(text="A"))
    whole = {"message": {"content": "A", name: "Hm."}, "finish_reason": "stop"}
    assert CHAT.parse_answer({"choices": [whole]}).choices[0].parts == told.choices[0].parts


def test_reasoning_under_both_names_is_said_once() -> None:
    told = heard(chunk({"reasoning": "Hm", "reasoning_content": "Hm"}), END)
    assert told.choices[0].parts == (ir.Reasoning(text="Hm"),)


def test_azures_first_chunk_has_no_choices() -> None:
    filters = [{"prompt_index": 0, "content_filter_results": {}}]
    first = {"id": "", "model": "", "created": 0, "choices": [], "prompt_filter_results": filters}
    told = heard(
        event(first), chunk({"role": "assistant", "content": ""}), chunk({"content": "A"}), END
    )
    assert told.choices[0].text() == "A"
    assert told.extras["prompt_filter_results"] == filters
    assert told.id is None


def test_usage_in_every_chunk_is_that_of_the_last() -> None:
    pieces = [chunk({"content": text}, **usage(3, n)) for n, text in enumerate("abc")]
    end = chunk({}, "stop", **usage(3, 4))
    counted = Usage(prompt_tokens=3, completion_tokens=4)
    assert heard(*pieces, end, DONE).usage == counted
    assert heard(*pieces, end, event({"choices": [], **usage(3, 4)}), DONE).usage == counted
    texts = [piece(text, **usage(3, n)) for n, text in enumerate("abc")]
    last = piece("", "stop", **usage(3, 4))
    assert heard(*texts, last, DONE, dialect=TEXT).usage == counted
    alone = event({"choices": [], **usage(3, 4)})
    assert heard(*texts, piece("", "stop"), alone, DONE, dialect=TEXT).usage == counted
    assert heard(*texts, piece("", "stop"), DONE, dialect=TEXT).usage == Usage(
        prompt_tokens=3, completion_tokens=2
    )


def test_an_end_without_done_and_a_reason_of_its_own() -> None:
    told = heard(chunk({"content": "A"}), chunk({"content": ""}, "length"))
    assert (told.choices[0].text(), told.choices[0].reason) == ("A", "length")


def test_vllm_says_which_stop_word_it_was() -> None:
    def said(stop_reason: Any, reason: str = "stop") -> JsonObject:
        return {"index": 0, "finish_reason": reason, "stop_reason": stop_reason}

    for word, told in (("END", "END"), (128009, None), (None, None)):
        pieces = [chunk({"content": "A"}), event({"choices": [{"delta": {}, **said(word)}]})]
        assert heard(*pieces).choices[0].stop_word == told
        answer = {"choices": [{"message": {"content": "A"}, **said(word)}]}
        assert CHAT.parse_answer(answer).choices[0].stop_word == told
        pieces = [event({"choices": [{"text": "A", **said(word)}]})]
        assert heard(*pieces, dialect=TEXT).choices[0].stop_word == told
        assert (
            TEXT.parse_answer({"choices": [{"text": "A", **said(word)}]}).choices[0].stop_word
            == told
        )
    pieces = [event({"choices": [{"delta": {}, **said("x", "length")}]})]
    assert heard(*pieces).choices[0].stop_word is None


# Calls.


def call(number: int | None, id_: str | None, name: str | None, arguments: str) -> JsonObject:
    function = {"arguments": arguments} | ({} if name is None else {"name": name})
    told: JsonObject = {"function": function} | ({} if number is None else {"index": number})
    return told if id_ is None else told | {"id": id_, "type": "function"}


def calls_of(*deltas: list[JsonObject]) -> list[tuple[str, str, str]]:
    told = heard(*(chunk({"tool_calls": calls}) for calls in deltas), chunk({}, "tool_calls"))
    assert told.choices[0].reason == "tool_calls"
    return [(one.id, one.name, one.arguments) for one in told.choices[0].tool_calls]


TWO = [("1", "f", '{"a":1}'), ("2", "g", "{}")]


@pytest.mark.parametrize("numbers", [(0, 1), (0, 0), (None, None)], ids=repr)
def test_whole_calls_in_one_chunk(numbers: tuple[int | None, int | None]) -> None:
    calls = [call(number, *one) for number, one in zip(numbers, TWO, strict=True)]
    assert calls_of(calls) == TWO
    assert calls_of(calls[:1], calls[1:]) == TWO


def test_a_call_that_repeats_its_id_is_one_call() -> None:
    parts = [call(0, "1", "f", ""), call(0, "1", "f", '{"a"'), call(0, "1", None, ":1}")]
    assert calls_of(*([part] for part in parts)) == TWO[:1]


def test_a_call_of_before_tools_is_a_tool_call() -> None:
    pieces = [
        chunk({"function_call": {"name": "f", "arguments": ""}}),
        chunk({"function_call": {"arguments": '{"a"'}}),
        chunk({"function_call": {"arguments": ":1}"}}),
        chunk({}, "function_call"),
    ]
    (choice,) = heard(*pieces).choices
    assert choice.parts == (ir.ToolCall(id="", name="f", arguments='{"a":1}'),)
    assert choice.reason == "tool_calls"
    message = {"content": None, "function_call": {"name": "f", "arguments": '{"a":1}'}}
    (whole,) = CHAT.parse_answer(
        {"choices": [{"message": message, "finish_reason": "function_call"}]}
    ).choices
    assert (whole.parts, whole.reason) == (choice.parts, choice.reason)


def test_no_call_in_the_old_form_is_none() -> None:
    # llama-cpp-python has it beside every text.
    (choice,) = heard(chunk({"content": "A", "function_call": None}), END).choices
    assert (choice.parts, choice.part_extras) == ((ir.Text(text="A"),), {})


# Errors.


def failure(*pieces: bytes, dialect: Dialect) -> ir.Problem:
    end = read(dialect.stream_parser(asked(dialect), extras=False), pieces)[-1]
    assert isinstance(end, Failed)
    return end.problem


@DIALECTS
@pytest.mark.parametrize(
    "error",
    [
        {"error": {"message": "Oh no", "type": "x", "code": None}},
        {"error": "Oh no"},
        {"object": "error", "message": "Oh no", "type": "BadRequestError", "code": 400},
    ],
    ids=["nested", "a word", "flat"],
)
def test_an_error_in_a_stream(dialect: Dialect, error: JsonObject) -> None:
    first = chunk({"content": "A"}) if dialect is CHAT else piece("A")
    assert "Oh no" in failure(first, event(error), DONE, dialect=dialect).message


@DIALECTS
def test_an_error_in_place_of_an_answer(dialect: Dialect) -> None:
    with pytest.raises(Malformed, match="Oh no"):
        dialect.parse_answer({"object": "error", "message": "Oh no", "code": 400})


REFUSALS: list[tuple[int, Any, JsonObject]] = [
    (
        400,
        {"error": {"message": "Bad", "param": "top_p", "code": "invalid_value"}},
        {"kind": "malformed", "message": "Bad", "param": "top_p", "code": "invalid_value"},
    ),
    (
        400,
        {"object": "error", "message": "Bad", "type": "x", "param": "top_p", "code": 400},
        {"kind": "malformed", "message": "Bad", "param": "top_p", "code": None},
    ),
    (
        422,
        {"detail": [{"type": "missing", "loc": ["body", "messages", 0], "msg": "Field required"}]},
        {"kind": "malformed", "message": "messages.0: Field required", "param": "messages.0"},
    ),
    (422, {"detail": "Bad"}, {"kind": "malformed", "message": "Bad", "param": None}),
    (
        400,
        {"error": {"message": "This model's maximum context length is 9 tokens.", "code": 400}},
        {"kind": "context_exceeded", "code": None},
    ),
    (
        400,
        {"error": {"message": "You passed 9 tokens, but the model's context length is only 8."}},
        {"kind": "context_exceeded"},
    ),
    (
        429,
        {"error": {"message": "Pay", "type": "insufficient_quota", "code": "insufficient_quota"}},
        {"kind": "limited", "message": "Pay", "code": "insufficient_quota"},
    ),
    (429, {"error": {"message": "Slow", "code": 429}}, {"kind": "limited", "code": None}),
    (
        404,
        {"error": {"message": "The model `x` does not exist.", "code": "model_not_found"}},
        {"kind": "upstream_failed", "message": "The model `x` does not exist."},
    ),
    (503, {"error": {"message": "Overloaded"}}, {"kind": "unavailable", "retryable": True}),
    (500, {"error": {"message": "Oh no"}}, {"kind": "upstream_failed", "retryable": True}),
]


@DIALECTS
@pytest.mark.parametrize(("status", "body", "fields"), REFUSALS, ids=repr)
def test_what_a_refusal_means(dialect: Dialect, status: int, body: Any, fields: JsonObject) -> None:
    problem = dialect.parse_problem(status, msgspec.json.encode(body))
    assert {name: getattr(problem, name) for name in fields} == fields


@DIALECTS
def test_no_client_sees_a_part_of_the_key(dialect: Dialect) -> None:
    body = {"error": {"message": "Incorrect API key: sk-abc", "code": "invalid_api_key"}}
    problem = dialect.parse_problem(401, msgspec.json.encode(body))
    assert "own key" in problem.message
    assert "sk-" not in problem.message + str(problem.code)
