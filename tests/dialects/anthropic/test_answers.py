"""Anthropic's Messages: what a client hears, and what an upstream may say."""

from __future__ import annotations

from collections.abc import Iterable
from typing import Any

import msgspec
import pytest

from grammar import STAMP, parsed, rendered
from tropilla import ir
from tropilla.dialects import anthropic
from tropilla.dialects._sealed import seal
from tropilla.framing import SseFramer
from tropilla.ir import (
    ChoiceEnded,
    Event,
    Failed,
    Finished,
    FinishReason,
    JsonObject,
    PartDelta,
    PartEnded,
    PartStarted,
    Problem,
    Request,
    Started,
    Usage,
)

PLAIN: JsonObject = {"max_tokens": 9, "messages": [{"role": "user", "content": "Hi"}]}
START, END = Started(id="up1"), Finished(usage=Usage(prompt_tokens=7, completion_tokens=2))


def asking(**fields: Any) -> Request:
    return anthropic.parse_request(PLAIN | {"stream": True} | fields, "/messages")


def part(kind: Any, text: str, **more: Any) -> list[Event]:
    return [PartStarted(kind=kind, **more), PartDelta(text=text), PartEnded()]


CALL = part("tool_call", '{"on":true}', id="t1", name="light")
ANSWER = [
    START, *part("reasoning", "Hm."), *part("text", "Wait."), *CALL,
    ChoiceEnded(reason="tool_calls"), END,
]  # fmt: skip


def heard(events: Iterable[Event], request: Request | None = None) -> list[tuple[str, Any]]:
    """The events of a stream by their names; the name is in the data too."""
    frames = SseFramer().feed(rendered(anthropic, request or asking(), events))
    told = [(frame.event, msgspec.json.decode(frame.data)) for frame in frames]
    assert all(name == data.pop("type") for name, data in told)
    return told


def whole(events: Iterable[Event], request: Request | None = None) -> JsonObject:
    body = anthropic.render_answer(ir.fold(events), request or asking(stream=False), STAMP)
    told: JsonObject = msgspec.json.decode(body)
    return told


def test_the_order_of_events() -> None:
    told = heard(ANSWER)
    blocks = ["content_block_start", "content_block_delta", "content_block_stop"]
    signed = [*blocks[:2], "content_block_delta", blocks[2]]
    assert [name for name, _ in told] == [
        "message_start", *signed, *blocks, *blocks, "message_delta", "message_stop",
    ]  # fmt: skip
    message = told[0][1]["message"]
    assert message["type"] == "message"
    assert (message["role"], message["model"], message["content"]) == ("assistant", "asked", [])
    assert (message["id"], message["stop_reason"]) == ("up1", None)
    assert message["usage"]["output_tokens"] == 0
    starts = [data["content_block"] for name, data in told if name == "content_block_start"]
    assert starts == [
        {"type": "thinking", "thinking": "", "signature": ""},
        {"type": "text", "text": ""},
        {"type": "tool_use", "id": "t1", "name": "light", "input": {}},
    ]
    deltas = [data["delta"] for name, data in told if name == "content_block_delta"]
    assert [delta["type"] for delta in deltas] == [
        "thinking_delta", "signature_delta", "text_delta", "input_json_delta",
    ]  # fmt: skip
    assert deltas[1]["signature"]
    assert deltas[3]["partial_json"] == '{"on":true}'
    assert [data["index"] for name, data in told if name == "content_block_stop"] == [0, 1, 2]
    assert told[-2][1] == {
        "delta": {"stop_reason": "tool_use", "stop_sequence": None},
        "usage": {
            "input_tokens": 7, "cache_creation_input_tokens": 0, "cache_read_input_tokens": 0,
            "output_tokens": 2,
        },
    }  # fmt: skip
    assert told[-1][1] == {}


def test_a_whole_message() -> None:
    body = whole(ANSWER)
    signature = body["content"][0].pop("signature")
    assert signature
    assert body == {
        "id": "up1",
        "type": "message",
        "role": "assistant",
        "model": "asked",
        "content": [
            {"type": "thinking", "thinking": "Hm."},
            {"type": "text", "text": "Wait."},
            {"type": "tool_use", "id": "t1", "name": "light", "input": {"on": True}},
        ],
        "stop_reason": "tool_use",
        "stop_sequence": None,
        "usage": {
            "input_tokens": 7, "cache_creation_input_tokens": 0, "cache_read_input_tokens": 0,
            "output_tokens": 2,
        },
    }  # fmt: skip


def test_ids_are_made_where_none_were_told() -> None:
    body = whole([Started(), *part("tool_call", "{}"), ChoiceEnded(reason="tool_calls"), END])
    assert body["id"] == "msg_u"
    assert body["content"][0]["id"] == "toolu_u_0"


@pytest.mark.parametrize(
    ("reason", "word", "parts", "expected"),
    [
        ("stop", None, [], ("end_turn", None)),
        ("stop", "x", [], ("stop_sequence", "x")),
        ("length", None, [], ("max_tokens", None)),
        ("content_filter", None, [], ("refusal", None)),
        ("tool_calls", None, CALL, ("tool_use", None)),
        # OpenAI says "stop" where a call was named; agents go on for nothing but this.
        ("stop", None, CALL, ("tool_use", None)),
        ("function_call", None, CALL, ("tool_use", None)),
        ("length", None, CALL, ("max_tokens", None)),
    ],
)
def test_why_it_ended(
    reason: FinishReason,
    word: str | None,
    parts: list[Event],
    expected: tuple[str, str | None],
) -> None:
    events: list[Event] = [START, *parts, ChoiceEnded(reason=reason, stop_word=word), END]
    delta = dict(heard(events))["message_delta"]["delta"]
    assert (delta["stop_reason"], delta["stop_sequence"]) == expected
    body = whole(events)
    assert (body["stop_reason"], body["stop_sequence"]) == expected


def test_what_was_in_the_cache_is_told_apart() -> None:
    usage = Usage(prompt_tokens=9, completion_tokens=4, cached_tokens=6, reasoning_tokens=3)
    events: list[Event] = [
        START,
        ChoiceEnded(reason="stop"),
        Finished(usage=usage, timings={"prompt_ms": 1}),
    ]
    told = dict(heard(events))["message_delta"]
    assert told["usage"] == whole(events)["usage"]
    assert told["usage"] == {
        "input_tokens": 3, "cache_creation_input_tokens": 0, "cache_read_input_tokens": 6,
        "output_tokens": 4, "output_tokens_details": {"thinking_tokens": 3},
    }  # fmt: skip
    assert told["timings"] == whole(events)["timings"] == {"prompt_ms": 1}


def test_thoughts_that_are_not_shown_can_be_sent_back() -> None:
    request = asking(thinking={"type": "adaptive", "display": "omitted"})
    events: list[Event] = [
        START, PartStarted(kind="reasoning"), PartDelta(text="Hm"), PartDelta(text="."),
        PartEnded(), ChoiceEnded(reason="stop"), END,
    ]  # fmt: skip
    told = heard(events, request)
    deltas = [data["delta"] for name, data in told if name == "content_block_delta"]
    assert deltas == [{"type": "signature_delta", "signature": seal("Hm.")}]
    (block,) = whole(events, request)["content"]
    assert block == {"type": "thinking", "thinking": "", "signature": seal("Hm.")}


@pytest.mark.parametrize(
    ("arguments", "expected"),
    [("", {}), (" ", {}), ("{", {"INVALID_JSON": "{"}), ("[1]", {"INVALID_JSON": "[1]"})],
)
def test_arguments_are_an_object_whatever_a_model_wrote(
    arguments: str, expected: JsonObject
) -> None:
    events: list[Event] = [
        START,
        *part("tool_call", arguments, id="t"),
        ChoiceEnded(reason="length"),
        END,
    ]
    assert whole(events)["content"][0]["input"] == expected


def test_a_failure_in_the_middle() -> None:
    problem = Problem(kind="upstream_failed", message="It broke.")
    told = heard(
        [START, PartStarted(kind="text"), PartDelta(text="W"), PartEnded(), Failed(problem=problem)]
    )
    assert [name for name, _ in told][-2:] == ["content_block_stop", "error"]
    assert told[-1][1]["error"]["type"] == "api_error"
    assert told[-1][1]["error"]["message"] == "It broke."


def test_a_ping_is_an_event() -> None:
    (frame,) = SseFramer().feed(anthropic.PING)
    assert (frame.event, msgspec.json.decode(frame.data)) == ("ping", {"type": "ping"})


# Problems.


def envelope(problem: Problem) -> JsonObject:
    body: JsonObject = msgspec.json.decode(anthropic.render_problem(problem, 400))
    assert body.keys() == {"type", "error"}
    assert body["type"] == "error"
    error: JsonObject = body["error"]
    return error


@pytest.mark.parametrize(
    ("kind", "expected"),
    [
        ("malformed", "invalid_request_error"),
        ("unsupported", "invalid_request_error"),
        ("method_not_allowed", "invalid_request_error"),
        ("unauthenticated", "authentication_error"),
        ("forbidden", "permission_error"),
        ("not_found", "not_found_error"),
        ("unknown_model", "not_found_error"),
        ("too_large", "request_too_large"),
        ("limited", "rate_limit_error"),
        ("loading", "overloaded_error"),
        ("unavailable", "overloaded_error"),
        ("upstream_failed", "api_error"),
        ("internal", "api_error"),
        ("timeout", "timeout_error"),
    ],
)
def test_the_types_of_errors(kind: ir.ProblemKind, expected: str) -> None:
    error = envelope(Problem(kind=kind, message="Why.", param="p"))
    assert (error["type"], error["message"]) == (expected, "Why.")
    assert error["details"]["param"] == "p"


def test_a_prompt_that_is_too_long_is_told_in_the_words_that_agents_look_for() -> None:
    sizes = {"n_prompt_tokens": 9000, "n_ctx": 8192}
    error = envelope(Problem(kind="context_exceeded", message="Too long.", extras=sizes))
    assert error["message"] == "prompt is too long: 9000 tokens > 8192 maximum"
    error = envelope(Problem(kind="context_exceeded", message="Too long."))
    assert error["message"] == "prompt is too long: Too long."


@pytest.mark.parametrize(
    ("param", "expected"),
    [
        ("response_format", "output_config.format"),
        ("schema.properties.a", "output_config.format.schema.properties.a"),
        ("parameters.properties.a", "tools.input_schema.properties.a"),
        ("max_completion_tokens", "max_tokens"),
        ("stop", "stop_sequences"),
        ("tools", "tools"),
    ],
)
def test_fields_have_the_names_that_the_client_gave_them(param: str, expected: str) -> None:
    error = envelope(Problem(kind="malformed", message=f"Invalid '{param}': no.", param=param))
    assert error["details"]["param"] == expected
    assert f"'{expected}'" in error["message"]


def test_only_messages_that_the_client_has_sent_have_numbers() -> None:
    param, own = "messages.3.content", {"code": "invalid_type"}
    for kind, more, expected in (
        ("malformed", own, param),
        ("unsupported", {"code": "unsupported_value"}, param),
        ("unsupported", {}, "messages"),
    ):
        error = envelope(Problem(kind=kind, message=f"'{param}'", param=param, **more))  # type: ignore[arg-type]
        assert error["details"]["param"] == expected
        assert error["message"] == f"'{expected}'"


def test_an_upstreams_refusals() -> None:
    body = b'{"type":"error","error":{"type":"overloaded_error","message":"Overloaded"}}'
    problem = anthropic.parse_problem(529, body)
    assert (problem.kind, problem.message) == ("unavailable", "Overloaded")
    assert problem.retryable


# Of an upstream.


def told(*events: JsonObject) -> list[Event]:
    stream = b"".join(
        b"event: %b\ndata: %b\n\n" % (event["type"].encode(), msgspec.json.encode(event))
        for event in events
    )
    return parsed(anthropic, asking(), [stream])


MESSAGE_START = {"type": "message_start", "message": {"id": "m1", "usage": {"input_tokens": 5}}}
MESSAGE_DELTA = {
    "type": "message_delta", "delta": {"stop_reason": "end_turn"}, "usage": {"output_tokens": 3},
}  # fmt: skip
MESSAGE_STOP = {"type": "message_stop"}


def start(**block: Any) -> JsonObject:
    return {"type": "content_block_start", "index": 0, "content_block": block}


STOP = {"type": "content_block_stop", "index": 0}


def test_usage_is_put_together_from_both_ends() -> None:
    events = told(MESSAGE_START, {"type": "ping"}, MESSAGE_DELTA, MESSAGE_STOP)
    assert events[-1] == Finished(usage=Usage(prompt_tokens=5, completion_tokens=3))
    later = MESSAGE_DELTA | {
        "usage": {"input_tokens": 2, "cache_read_input_tokens": 6, "output_tokens": 3}
    }
    events = told(MESSAGE_START, later, MESSAGE_STOP)
    usage = Usage(prompt_tokens=8, completion_tokens=3, cached_tokens=6)
    assert events[-1] == Finished(usage=usage)


def test_what_anthropics_servers_do_is_passed_over() -> None:
    events = told(
        MESSAGE_START,
        start(type="server_tool_use", id="s", name="web_search", input={}),
        {
            "type": "content_block_delta",
            "index": 0,
            "delta": {"type": "input_json_delta", "partial_json": '{"q'},
        },
        STOP,
        start(type="redacted_thinking", data="x"),
        STOP,
        start(type="text", text="Found"),
        STOP,
        {"type": "what_comes_later"},
        MESSAGE_DELTA,
        MESSAGE_STOP,
    )
    assert [event for event in events if isinstance(event, PartDelta)] == [PartDelta(text="Found")]


def test_a_call_without_arguments_is_one_of_an_empty_object() -> None:
    call = start(type="tool_use", id="t", name="time", input={})
    events = told(MESSAGE_START, call, STOP, MESSAGE_DELTA, MESSAGE_STOP)
    assert PartDelta(text="{}") in events
    assert ChoiceEnded(reason="tool_calls") in events


@pytest.mark.parametrize(
    ("error", "kind"),
    [
        ({"type": "overloaded_error", "message": "M"}, "unavailable"),
        ({"type": "rate_limit_error", "message": "M"}, "limited"),
        ({"type": "api_error", "message": "M"}, "upstream_failed"),
        ({"type": "server_error", "message": "M", "code": 500}, "upstream_failed"),
    ],
)
def test_an_error_in_the_middle_of_an_upstreams_stream(error: JsonObject, kind: str) -> None:
    *_, end = told(MESSAGE_START, start(type="text", text="W"), {"type": "error", "error": error})
    assert isinstance(end, Failed)
    assert (end.problem.kind, end.problem.message) == (kind, "M")
