"""AFS: what an upstream answers, in every shape, and calls leaked into its text."""

from __future__ import annotations

import msgspec
import pytest

from dialects.afs.told import (
    ASK,
    CALL,
    CALL_JSON,
    NEW_TOOLS,
    OLD_CALL,
    PING,
    WITH_TOOLS,
    asked,
    failure,
    flat,
    folded,
    heard,
    joined,
    last,
    stream,
)
from grammar import parsed, rendered
from tropilla import ir
from tropilla.dialects import afs
from tropilla.dialects.afs.leaks import Leak, Leaks
from tropilla.ir import (
    ChoiceEnded,
    Finished,
    Json,
    JsonObject,
    Malformed,
    PartDelta,
    PartEnded,
    PartStarted,
    Reasoning,
    Request,
    Started,
    Text,
    Usage,
)

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


KEY_REFUSED = (
    "AFS refused this gateway's own key (401): its api_key in the config has to be the key of "
    "this service."
)


@pytest.mark.parametrize(
    ("status", "body", "kind", "message", "param"),
    [
        (422, {"detail": [{"loc": ["body", "parameters", "temperature"], "msg": "too low",
                           "type": "value_error"}]},
         "malformed", "parameters.temperature: too low", "parameters.temperature"),
        (400, {"detail": "Input is too long."}, "malformed", "Input is too long.", None),
        (429, {"message": "Rate limit."}, "limited", "Rate limit.", None),
        # Who shows the key, is not quoted.
        (401, {"error": "Bad key: k-123."}, "upstream_failed",
         KEY_REFUSED, None),
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
    assert "api_key in the config" in afs.parse_problem(403, body).message


def test_what_is_over_a_limit_may_be_asked_elsewhere() -> None:
    problem = afs.parse_problem(429, b'{"detail":"Slow down."}')
    assert (problem.kind, problem.retryable) == ("limited", True)
    told = failure(heard({"error": {"code": 429, "message": "Slow down."}}))
    assert (told.kind, told.retryable) == ("limited", True)


def test_a_key_that_a_stream_shows_is_not_passed_on() -> None:
    told = failure(heard(flat("a"), {"error": {"code": 401, "message": "Bad key: k-123."}}))
    assert "k-123" not in told.message
    assert "api_key in the config" in told.message


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
