"""What a client of OpenAI's Responses hears, against OpenAI's own schemas; and what servers say."""

from __future__ import annotations

from typing import Any

import msgspec
import pytest

from grammar import STAMP, check_grammar
from openapi_schema import check_response, check_response_event
from tropilla import ir
from tropilla.dialects import openai_responses
from tropilla.dialects._sealed import seal
from tropilla.framing import SseFramer
from tropilla.ir import (
    ChoiceEnded,
    Event,
    Failed,
    Finished,
    FinishReason,
    PartDelta,
    PartEnded,
    PartKind,
    PartStarted,
    Problem,
    Progress,
    Request,
    Started,
    Usage,
)

CHANCE = {
    "token": "Hi", "logprob": -0.1, "bytes": [72, 105],
    "top_logprobs": [
        {"token": "Hi", "logprob": -0.1, "bytes": [72, 105]},
        {"token": "Ho", "logprob": -3.0, "bytes": [72, 111]},
    ],
}  # fmt: skip
USAGE = Usage(prompt_tokens=7, completion_tokens=5, cached_tokens=4, reasoning_tokens=2)


def asked(**fields: Any) -> Request:
    body = {"model": "m", "input": "Hello"} | fields
    return openai_responses.parse_request(body, "/responses")


def part(kind: PartKind, *texts: str, **head: Any) -> list[Event]:
    deltas = [PartDelta(text=text) for text in texts]
    return [PartStarted(kind=kind, **head), *deltas, PartEnded()]


def answer(*parts: list[Event], reason: FinishReason = "stop") -> list[Event]:
    said = [event for one in parts for event in one]
    return [Started(model="m"), *said, ChoiceEnded(reason=reason), Finished(usage=USAGE)]


def stream(events: list[Event], request: Request | None = None) -> list[Any]:
    """The events that a client hears, each as OpenAI has it."""
    renderer = openai_responses.stream_renderer(request or asked(stream=True), STAMP)
    frames = SseFramer().feed(b"".join([renderer.feed(event) for event in events]))
    told = [msgspec.json.decode(frame.data) for frame in frames]
    assert [frame.event for frame in frames] == [one["type"] for one in told]
    assert [one["sequence_number"] for one in told] == list(range(len(told)))
    for one in told:
        check_response_event(one)
    return told


def whole(events: list[Event], request: Request | None = None) -> Any:
    body = openai_responses.render_answer(ir.fold(events), request or asked(), STAMP)
    told = msgspec.json.decode(body)
    check_response(told)
    return told


def kinds(told: list[Any]) -> list[str]:
    return [one["type"].removeprefix("response.") for one in told]


def test_a_text() -> None:
    told = stream(answer(part("text", "Hi", "", " there")))

    assert kinds(told) == [
        "created", "in_progress", "output_item.added", "content_part.added", "output_text.delta",
        "output_text.delta", "output_text.done", "content_part.done", "output_item.done",
        "completed",
    ]  # fmt: skip
    added, opened, first, second, text, closed, done, end = told[2:]
    assert added["item"] == {
        "id": "msg_u_0", "type": "message", "role": "assistant", "status": "in_progress",
        "content": [],
    }  # fmt: skip
    within = {"item_id": "msg_u_0", "output_index": 0, "content_index": 0}
    for one in (opened, first, second, text, closed):
        assert within.items() <= one.items()
    assert (first["delta"], first["logprobs"], second["delta"]) == ("Hi", [], " there")
    assert text["text"] == "Hi there"
    content = {"type": "output_text", "text": "Hi there", "annotations": [], "logprobs": []}
    assert closed["part"] == content
    item = added["item"] | {"status": "completed", "content": [content]}
    assert done["item"] == item
    assert end["response"]["output"] == [item]
    assert {one["response"]["id"] for one in (*told[:2], end)} == {"resp_u"}


def test_the_response_has_every_key() -> None:
    request = asked(
        instructions="i", metadata={"a": "b"}, temperature=0.5, top_p=0.9, max_output_tokens=9,
        tools=[
            {"type": "function", "name": "f", "description": "d", "parameters": {}},
            {"type": "custom", "name": "g"},
        ],
        tool_choice={"type": "function", "name": "f"}, parallel_tool_calls=False,
        reasoning={"effort": "low", "summary": "auto"}, store=False, user="u",
        previous_response_id="resp_0", prompt_cache_key="k", safety_identifier="s",
        text={"format": {"type": "json_schema", "name": "n", "schema": {}}, "verbosity": "low"},
        max_tool_calls=3,
    )  # fmt: skip
    events = answer(part("text", "Hi"))
    events[-1] = Finished(usage=USAGE, timings={"prompt_ms": 1400, "predicted_ms": 900.0})

    told = whole(events, request)
    timings = told.pop("timings")
    assert timings == {"prompt_ms": 1400, "predicted_ms": 900.0}
    (item,) = told.pop("output")
    assert item["content"][0]["text"] == "Hi"
    assert told == {
        "id": "resp_u", "object": "response", "created_at": 1, "completed_at": 3,
        "status": "completed", "background": False, "error": None, "incomplete_details": None,
        "instructions": "i", "max_output_tokens": 9, "max_tool_calls": 3, "metadata": {"a": "b"},
        "model": "asked", "parallel_tool_calls": False, "previous_response_id": "resp_0",
        "reasoning": {"effort": "low", "summary": "auto"}, "service_tier": "default",
        "store": False, "temperature": 0.5, "top_p": 0.9, "top_logprobs": 0,
        "text": {
            "format": {"type": "json_schema", "name": "n", "schema": {}, "strict": None},
            "verbosity": "low",
        },
        "tool_choice": {"type": "function", "name": "f"},
        "tools": [
            {"type": "function", "name": "f", "description": "d", "parameters": {}, "strict": None},
            {"type": "custom", "name": "g"},
        ],
        "truncation": "disabled", "user": "u", "prompt_cache_key": "k", "safety_identifier": "s",
        "usage": {
            "input_tokens": 7,
            "input_tokens_details": {"cached_tokens": 4, "cache_write_tokens": 0},
            "output_tokens": 5, "output_tokens_details": {"reasoning_tokens": 2},
            "total_tokens": 12,
        },
    }  # fmt: skip


def test_what_was_not_asked_is_not_there() -> None:
    told = whole(answer(part("text", "Hi")))

    assert "user" not in told
    assert told["store"] is True
    assert told["text"] == {"format": {"type": "text"}}
    assert (told["tools"], told["tool_choice"], told["instructions"]) == ([], "auto", None)


EVERYTHING = (
    part("reasoning", "Hm", "."),
    part("text", "Wait."),
    part("tool_call", '{"a"', ":1}", id="call_1", name="f"),
    part("tool_call", "x = ", "1", name="g", custom=True),
    part("refusal", "No", "."),
)


def test_every_kind_of_item() -> None:
    told = stream(answer(*EVERYTHING, reason="tool_calls"))

    assert kinds(told)[2:-1] == [
        "output_item.added", "content_part.added", "reasoning_text.delta", "reasoning_text.delta",
        "reasoning_text.done", "content_part.done", "output_item.done",
        "output_item.added", "content_part.added", "output_text.delta", "output_text.done",
        "content_part.done", "output_item.done",
        "output_item.added", "function_call_arguments.delta", "function_call_arguments.delta",
        "function_call_arguments.done", "output_item.done",
        "output_item.added", "custom_tool_call_input.delta", "custom_tool_call_input.delta",
        "custom_tool_call_input.done", "output_item.done",
        "output_item.added", "content_part.added", "refusal.delta", "refusal.delta",
        "refusal.done", "content_part.done", "output_item.done",
    ]  # fmt: skip
    output = told[-1]["response"]["output"]
    assert output == [
        {"id": "rs_u_0", "type": "reasoning", "status": "completed", "summary": [],
         "content": [{"type": "reasoning_text", "text": "Hm."}]},
        {"id": "msg_u_1", "type": "message", "status": "completed", "role": "assistant",
         "content": [
             {"type": "output_text", "text": "Wait.", "annotations": [], "logprobs": []}]},
        {"id": "fc_u_2", "type": "function_call", "status": "completed", "call_id": "call_1",
         "name": "f", "arguments": '{"a":1}'},
        {"id": "ctc_u_3", "type": "custom_tool_call", "status": "completed",
         "call_id": "call_u_3", "name": "g", "input": "x = 1"},
        {"id": "msg_u_4", "type": "message", "status": "completed", "role": "assistant",
         "content": [{"type": "refusal", "refusal": "No."}]},
    ]  # fmt: skip
    assert [one["item"] for one in told if one["type"] == "response.output_item.done"] == output
    of_items = [one for one in told if "item_id" in one]
    assert all(one["item_id"] == output[one["output_index"]]["id"] for one in of_items)
    named = [one for one in told if one["type"] == "response.function_call_arguments.done"]
    assert [(one["name"], one["arguments"]) for one in named] == [("f", '{"a":1}')]
    assert whole(answer(*EVERYTHING, reason="tool_calls"))["output"] == output


@pytest.mark.parametrize(
    ("reason", "why"), [("length", "max_output_tokens"), ("content_filter", "content_filter")]
)
def test_an_answer_that_is_not_complete(reason: FinishReason, why: str) -> None:
    events = answer(part("reasoning", "Hm."), part("text", "Hi"), reason=reason)
    told = stream(events)

    end = told[-1]
    assert end["type"] == "response.incomplete"
    for response in (end["response"], whole(events)):
        assert response["status"] == "incomplete"
        assert response["incomplete_details"] == {"reason": why}
        assert response["completed_at"] is None
        assert [item["status"] for item in response["output"]] == ["completed", "incomplete"]
    assert told[-2]["item"]["status"] == "incomplete"


def test_an_answer_of_nothing() -> None:
    told = stream(answer())
    assert kinds(told) == ["created", "in_progress", "completed"]
    assert told[-1]["response"]["output"] == whole(answer())["output"] == []


def test_what_breaks_off_is_told_twice() -> None:
    problem = Problem(kind="upstream_failed", message="It broke.")
    said = [*answer(part("text", "Hi"))[:4], Failed(problem=problem, usage=USAGE)]
    told = stream(said)

    assert kinds(told)[-4:] == ["content_part.done", "output_item.done", "error", "failed"]
    assert told[-2] == {
        "type": "error", "code": "upstream_error", "message": "It broke.", "param": None,
        "sequence_number": told[-1]["sequence_number"] - 1,
    }  # fmt: skip
    response = told[-1]["response"]
    assert response["status"] == "failed"
    assert response["error"] == {"code": "server_error", "message": "It broke."}
    assert [item["status"] for item in response["output"]] == ["incomplete"]
    assert response["usage"]["input_tokens"] == 7


def test_a_failure_before_anything_was_said() -> None:
    # Where a client heard signs of life while it waited, there is no other status any more.
    told = stream([Failed(problem=Problem(kind="limited", message="Later."))])

    assert kinds(told) == ["created", "in_progress", "error", "failed"]
    assert told[-1]["response"]["error"]["code"] == "rate_limit_exceeded"


def test_chances_are_of_text_and_as_many_as_were_asked_for() -> None:
    def said(top: int) -> list[Any]:
        request = asked(stream=True, include=["message.output_text.logprobs"], top_logprobs=top)
        events = answer(part("reasoning", "Hm"), part("text", "Hi"))
        events = [
            msgspec.structs.replace(one, logprobs=[CHANCE]) if isinstance(one, PartDelta) else one
            for one in events
        ]
        return stream(events, request)

    told = said(1)
    deltas = [one for one in told if one["type"].endswith(".delta")]
    cut = CHANCE | {"top_logprobs": [{"token": "Hi", "logprob": -0.1, "bytes": [72, 105]}]}
    assert ["logprobs" in one for one in deltas] == [False, True]
    assert deltas[1]["logprobs"] == [cut]
    content = told[-1]["response"]["output"][1]["content"]
    assert content[0]["logprobs"] == [cut]
    assert said(0)[-1]["response"]["output"][1]["content"][0]["logprobs"] == [
        CHANCE | {"top_logprobs": []}
    ]


def test_a_thought_is_sealed_where_that_is_asked_for() -> None:
    request = asked(stream=True, include=["reasoning.encrypted_content"])
    events = answer(part("reasoning", "嗯"))
    told = stream(events, request)

    item = told[-1]["response"]["output"][0]
    assert item["encrypted_content"] == seal("嗯")
    assert "encrypted_content" not in told[2]["item"]
    assert whole(events, request)["output"] == [item]
    again = openai_responses.parse_request({"input": [item]}, "/responses").input
    assert isinstance(again, ir.Chat)
    assert again.messages[0].parts == (ir.Reasoning(text="嗯"),)


def test_how_far_a_prompt_is_has_no_event() -> None:
    step = Progress(total=9, cached=0, processed=3, time_ms=1)
    events: list[Event] = [Started(), step, *answer(part("text", "Hi"))[1:]]
    assert stream(events)[-1]["response"]["output"][0]["content"][0]["text"] == "Hi"


# What servers say.


def heard(*told: Any) -> list[Event]:
    parser = openai_responses.stream_parser(asked(), extras=True)
    data = b"".join(b"data: %b\n\n" % msgspec.json.encode(one) for one in told)
    events = parser.feed(SseFramer().feed(data)) + parser.end()
    check_grammar(events)
    return events


def test_a_llama_servers_stream() -> None:
    # As b11549 has it: no 'output_index', no 'content_index', no numbers.
    usage = {"input_tokens": 16, "output_tokens": 4, "total_tokens": 20,
             "input_tokens_details": {"cached_tokens": 5}}  # fmt: skip
    events = heard(
        {"type": "response.created", "response": {"id": "resp_5", "status": "in_progress"}},
        {"type": "response.in_progress", "response": {"id": "resp_5"}},
        {"type": "response.output_item.added", "item": {"content": [], "type": "message"}},
        {"type": "response.content_part.added", "part": {"type": "output_text", "text": ""}},
        {"type": "response.output_text.delta", "item_id": "msg_1", "delta": "Hi"},
        {"type": "response.output_item.done", "item": {"type": "message"}},
        {"type": "response.output_item.added", "item": {
            "type": "function_call", "call_id": "c", "name": "f", "arguments": ""}},
        {"type": "response.function_call_arguments.delta", "delta": "{}"},
        {"type": "response.completed", "response": {
            "status": "completed", "output": [], "usage": usage, "timings": {"cache_n": 5}}},
    )  # fmt: skip

    assert events == [
        Started(id="resp_5"),
        *part("text", "Hi"),
        *part("tool_call", "{}", id="c", name="f"),
        ChoiceEnded(reason="tool_calls"),
        Finished(
            usage=Usage(prompt_tokens=16, completion_tokens=4, cached_tokens=5),
            timings={"cache_n": 5},
        ),
    ]


@pytest.mark.parametrize(
    "last",
    [
        {"type": "error", "code": "server_error", "message": "It broke.", "param": None},
        {"type": "response.failed", "response": {"error": {"message": "It broke."}}},
        {"error": {"code": 500, "message": "It broke.", "type": "server_error"}},
    ],
)
def test_every_way_to_fail(last: Any) -> None:
    *events, end = heard({"type": "response.output_text.delta", "delta": "Hi"}, last)

    assert events == part("text", "Hi")
    assert isinstance(end, Failed)
    assert end.problem.message == "It broke."
