"""What Ollama's clients hear: calls whole, honest numbers, one end, and errors in a line."""

from __future__ import annotations

from collections.abc import Iterable
from typing import Any

import msgspec
import pytest

from grammar import STAMP
from tropilla import ir
from tropilla.dialects import ollama
from tropilla.ir import (
    ChoiceEnded,
    Event,
    Failed,
    Finished,
    FinishReason,
    PartDelta,
    PartEnded,
    PartStarted,
    Problem,
    ProblemError,
    Request,
    Started,
    Usage,
)

CHAT = ollama.parse_request({"messages": [{"role": "user", "content": "?"}]}, "/api/chat")
GENERATE = ollama.parse_request({"prompt": "?"}, "/api/generate")
RAW = ollama.parse_request({"prompt": "?", "raw": True}, "/api/generate")
USAGE = Usage(prompt_tokens=3, completion_tokens=2)
TIMINGS = {"prompt_ms": 1.5, "predicted_ms": 2.25}


def said(*texts: str, kind: Any = "text") -> list[Event]:
    return [PartStarted(kind=kind), *(PartDelta(text=text) for text in texts), PartEnded()]


def called(*pieces: str, name: str = "f") -> list[Event]:
    head = PartStarted(kind="tool_call", id="c1", name=name)
    return [head, *(PartDelta(text=piece) for piece in pieces), PartEnded()]


def ended(reason: FinishReason = "stop", timings: Any = None) -> list[Event]:
    return [ChoiceEnded(reason=reason), Finished(usage=USAGE, timings=timings)]


def told(events: Iterable[Event], request: Request = CHAT, stamp: Any = STAMP) -> list[Any]:
    renderer = ollama.stream_renderer(request, stamp)
    data = b"".join(renderer.feed(event) for event in [Started(), *events])
    return [msgspec.json.decode(line) for line in data.splitlines()]


def whole(events: Iterable[Event], request: Request = CHAT, stamp: Any = STAMP) -> Any:
    answer = ir.fold([Started(), *events])
    return msgspec.json.decode(ollama.render_answer(answer, request, stamp))


def test_a_line_for_each_text_and_one_that_is_done() -> None:
    first, second, last = told([*said("Good", " day"), *ended()])
    head = {"model": "asked", "created_at": "1970-01-01T00:00:01Z"}
    assert first == head | {"message": {"role": "assistant", "content": "Good"}, "done": False}
    assert second["message"]["content"] == " day"
    assert last == head | {
        "message": {"role": "assistant", "content": ""},
        "done": True,
        "done_reason": "stop",
        "prompt_eval_count": 3,
        "eval_count": 2,
    }


def test_what_is_thought_is_told_apart() -> None:
    events = [*said("Hm.", kind="reasoning"), *said("Yes."), *ended()]
    assert told(events)[0]["message"] == {"role": "assistant", "content": "", "thinking": "Hm."}
    assert whole(events)["message"] == {
        "role": "assistant", "content": "Yes.", "thinking": "Hm.",
    }  # fmt: skip
    assert told(events, GENERATE)[0]["thinking"] == "Hm."
    assert whole(events, GENERATE)["thinking"] == "Hm."


def test_a_refusal_is_text() -> None:
    assert whole([*said("No.", kind="refusal"), *ended()])["message"]["content"] == "No."


def test_durations_are_measured_or_not_told() -> None:
    last = told([*said("x"), *ended(timings=TIMINGS)])[-1]
    assert (last["prompt_eval_duration"], last["eval_duration"]) == (1_500_000, 2_250_000)
    assert "total_duration" not in last
    assert "load_duration" not in last
    stamp = msgspec.structs.replace(STAMP, spent=lambda: 0.25)
    assert told([*said("x"), *ended()], stamp=stamp)[-1]["total_duration"] == 250_000_000
    assert whole([*said("x"), *ended()], stamp=stamp)["total_duration"] == 250_000_000
    odd = whole([*said("x"), *ended(timings={"prompt_ms": "much"})])
    assert "prompt_eval_duration" not in odd


def test_a_call_is_told_once_it_is_whole_and_its_arguments_are_an_object() -> None:
    events = [*called('{"ci', 'ty":"Rome"}'), *called(name="g"), *ended("tool_calls")]
    first, second, last = told(events)
    function = {"index": 0, "name": "f", "arguments": {"city": "Rome"}}
    assert first["message"]["tool_calls"] == [{"id": "c1", "function": function}]
    assert second["message"]["tool_calls"][0]["function"] == {
        "index": 1, "name": "g", "arguments": {},
    }  # fmt: skip
    assert last["done_reason"] == "stop"
    calls = first["message"]["tool_calls"] + second["message"]["tool_calls"]
    assert whole(events)["message"]["tool_calls"] == calls


def test_a_call_without_an_id_gets_one() -> None:
    nameless = PartStarted(kind="tool_call", name="f")
    events: list[Event] = [nameless, PartDelta(text="{}"), PartEnded(), *ended("tool_calls")]
    assert told(events)[0]["message"]["tool_calls"][0]["id"] == "call_u_0"
    assert whole(events)["message"]["tool_calls"][0]["id"] == "call_u_0"


def test_a_call_that_the_limit_has_cut_off_is_not_told() -> None:
    events = [*said("I call."), *called('{"city":"Ro'), *ended("length")]
    lines = told(events)
    assert [line["message"].get("tool_calls") for line in lines] == [None, None]
    assert lines[-1]["done_reason"] == "length"
    assert "tool_calls" not in whole(events)["message"]


@pytest.mark.parametrize("arguments", ["[1]", "{oops", '"x"', "1"])
def test_a_call_that_is_none_is_an_error(arguments: str) -> None:
    events = [*said("I call."), *called(arguments), *ended("tool_calls")]
    lines = told(events)
    assert len(lines) == 2, "nothing follows an error"
    assert "'f'" in lines[-1]["error"]
    with pytest.raises(ProblemError) as failed:
        whole(events)
    assert failed.value.problem.kind == "upstream_failed"


def test_a_failure_is_a_line_and_the_last_one() -> None:
    lines = told([*said("x"), Failed(problem=Problem(kind="timeout", message="Too slow."))])
    assert lines[-1] == {"error": "Too slow."}


def test_generate_remembers_what_was_said_and_raw_text_does_not() -> None:
    events = [*said("Good", " day"), *said("Hm.", kind="reasoning"), *ended()]
    streamed, answered = told(events, GENERATE)[-1], whole(events, GENERATE)
    assert streamed["context"] == answered["context"]
    again = ollama.parse_request({"prompt": "!", "context": answered["context"]}, "/api/generate")
    assert isinstance(again.input, ir.Chat)
    assert again.input.messages[1].parts == (ir.Text(text="Good day"),)
    assert "context" not in whole(events, RAW)
    assert "context" not in told(events, RAW)[-1]
    assert "context" not in whole(events, CHAT)


def test_probabilities_are_told_where_they_are_wanted() -> None:
    chance = {"token": "x", "logprob": -0.5, "bytes": [120], "id": 7}
    entry = chance | {"top_logprobs": [chance, chance]}
    events: list[Event] = [
        PartStarted(kind="text"), PartDelta(text="x", logprobs=[entry]), PartEnded(), *ended(),
    ]  # fmt: skip
    asked = msgspec.structs.replace(CHAT, logprobs=1)
    plain = {"token": "x", "logprob": -0.5, "bytes": [120]}
    expected = [plain | {"top_logprobs": [plain]}]
    assert told(events, asked)[0]["logprobs"] == whole(events, asked)["logprobs"] == expected
    assert "logprobs" not in told(events)[0]
    assert "logprobs" not in whole(events)


def test_a_space_before_a_line_says_nothing() -> None:
    request = CHAT
    parser = ollama.stream_parser(request, extras=False)
    from tropilla.framing import LineFramer

    line = b'{"message":{"content":"x"},"done":false}\n'
    frames = LineFramer().feed(ollama.PING + ollama.PING + line)
    assert [type(event) for event in parser.feed(frames)] == [Started, PartStarted, PartDelta]


def test_a_refusal_of_a_server_is_some_text() -> None:
    problem = ollama.parse_problem(404, b'{"error":"model \'x\' not found"}')
    assert problem.message == "model 'x' not found"
    assert msgspec.json.decode(ollama.render_problem(problem, 404)) == {"error": problem.message}
