"""OpenAI's chat completions: what a client may rely on, and what a server may do to us."""

from __future__ import annotations

from typing import Any

import msgspec
import pytest
from hypothesis import given
from hypothesis import strategies as st

from grammar import CUT, STAMP, check_grammar, parsed, rendered
from openapi_schema import check_chat, check_chat_chunk
from strategies import CARRIES, answers, law, requests
from tropilla import ir
from tropilla.dialects import named
from tropilla.framing import SseFramer
from tropilla.ir import (
    ChoiceEnded,
    Event,
    Extras,
    Failed,
    Finished,
    JsonObject,
    PartDelta,
    PartEnded,
    PartKind,
    PartStarted,
    Progress,
    Request,
    Started,
    Usage,
)

CHAT = named("openai_chat")
SAY = [{"role": "user", "content": "Say hello."}]


def asked(**fields: Any) -> Request:
    return CHAT.parse_request({"messages": SAY, **fields}, "/chat/completions")


STREAMED = asked(stream=True)
COUNTED = asked(stream=True, stream_options={"include_usage": True})
STARTED = Started(id="chatcmpl-1", created=5, model="theirs", fingerprint="b1")
FINISHED = Finished(usage=Usage(prompt_tokens=3, completion_tokens=2))


def part(kind: PartKind, *texts: str, choice: int = 0, **call: Any) -> list[Event]:
    deltas = [PartDelta(choice=choice, text=text) for text in texts]
    return [PartStarted(choice=choice, kind=kind, **call), *deltas, PartEnded(choice=choice)]


def chunks(request: Request, *events: Event) -> list[Any]:
    """The JSON of every chunk, checked against OpenAI's schema; the end is `[DONE]`."""
    stream = rendered(CHAT, request, events)
    assert stream.endswith(b"data: [DONE]\n\n")
    frames = SseFramer().feed(stream)
    assert all(frame.event == "" for frame in frames), "OpenAI names no events"
    told = [msgspec.json.decode(frame.data) for frame in frames[:-1]]
    for chunk in told:
        check_chat_chunk(chunk)
    return told


def choice_of(chunk: JsonObject) -> Any:
    (choice,) = chunk["choices"]
    return choice


# What a client hears.


def test_role_then_content_then_an_empty_delta_with_the_reason() -> None:
    told = chunks(
        STREAMED, STARTED, *part("text", "Hel", "lo"), ChoiceEnded(reason="stop"), FINISHED
    )

    choices = [choice_of(chunk) for chunk in told]
    assert [choice["delta"] for choice in choices] == [
        {"role": "assistant", "content": "", "refusal": None},
        {"content": "Hel"},
        {"content": "lo"},
        {},
    ]
    assert [choice["finish_reason"] for choice in choices] == [None, None, None, "stop"]


def test_every_role_comes_once_and_in_order_whatever_choice_speaks_first() -> None:
    # openai-python fails with an IndexError where the first chunk is not choice 0's.
    events = [*part("text", "b", choice=1), *part("text", "a"), *part("text", "c", choice=2)]
    ends = [ChoiceEnded(choice=index, reason="stop") for index in (2, 0, 1)]

    told = chunks(asked(stream=True, n=3), STARTED, *events, *ends, FINISHED)

    roles = [choice_of(chunk)["index"] for chunk in told if "role" in choice_of(chunk)["delta"]]
    assert roles == [0, 1, 2]
    assert [choice_of(chunk)["index"] for chunk in told[:3]] == [0, 1, 2]


def test_usage_is_null_until_the_last_chunk_which_has_no_choices() -> None:
    told = chunks(COUNTED, STARTED, *part("text", "a"), ChoiceEnded(reason="stop"), FINISHED)

    assert all(chunk["usage"] is None for chunk in told[:-1])
    assert told[-1]["choices"] == []
    assert told[-1]["usage"] == {
        "prompt_tokens": 3,
        "completion_tokens": 2,
        "total_tokens": 5,
        "prompt_tokens_details": {"cached_tokens": 0, "audio_tokens": 0},
        "completion_tokens_details": {
            "reasoning_tokens": 0,
            "audio_tokens": 0,
            "accepted_prediction_tokens": 0,
            "rejected_prediction_tokens": 0,
        },
    }


def test_no_usage_where_none_was_asked_for() -> None:
    told = chunks(STREAMED, STARTED, *part("text", "a"), ChoiceEnded(reason="stop"), FINISHED)

    assert all("usage" not in chunk for chunk in told)
    assert all(chunk["choices"] for chunk in told)


def test_the_ids_are_in_every_chunk_and_the_model_is_the_one_asked_for() -> None:
    request = asked(stream=True, stream_options={"include_usage": True}, logprobs=True)
    entry = {"token": "a", "logprob": -1.0, "bytes": [97], "top_logprobs": []}
    delta = PartDelta(text="a", logprobs=[entry])
    events: list[Event] = [PartStarted(kind="text"), delta, PartEnded()]

    for started, id_, created in ((STARTED, "chatcmpl-1", 5), (Started(), "chatcmpl-u", 1)):
        told = chunks(request, started, *events, ChoiceEnded(reason="stop"), FINISHED)
        heads = {(chunk["id"], chunk["created"], chunk["model"]) for chunk in told}
        assert heads == {(id_, created, "asked")}


def test_a_tool_call_is_named_in_its_first_fragment_only() -> None:
    # openai-python joins what is repeated: "get_wget_w".
    calls = [
        *part("tool_call", '{"a"', ":1}", id="call_1", name="one"),
        *part("tool_call", "{}", id="call_2", name="two"),
    ]

    told = chunks(STREAMED, STARTED, *calls, ChoiceEnded(reason="tool_calls"), FINISHED)

    fragments = [choice_of(chunk)["delta"]["tool_calls"] for chunk in told[1:-1]]
    head = {"type": "function", "function": {"name": "one", "arguments": ""}}
    assert fragments == [
        [{"index": 0, "id": "call_1"} | head],
        [{"index": 0, "function": {"arguments": '{"a"'}}],
        [{"index": 0, "function": {"arguments": ":1}"}}],
        [{"index": 1, "id": "call_2"} | head | {"function": {"name": "two", "arguments": ""}}],
        [{"index": 1, "function": {"arguments": "{}"}}],
    ]


def test_a_tool_call_without_an_id_is_given_one_of_its_own() -> None:
    calls = part("tool_call", "{}", name="one") + part("tool_call", "{}", name="two")
    events: list[Event] = [STARTED, *calls, ChoiceEnded(reason="tool_calls"), FINISHED]

    told = chunks(STREAMED, *events)
    whole = answer_of(STREAMED, *events)

    heads = [choice_of(chunk)["delta"]["tool_calls"][0] for chunk in told[1:-1]]
    ids = [head["id"] for head in heads if "id" in head]
    assert len(set(ids)) == 2
    assert ids == [call["id"] for call in whole["choices"][0]["message"]["tool_calls"]]


def answer_of(request: Request, *events: Event) -> Any:
    body = msgspec.json.decode(CHAT.render_answer(ir.fold(events), request, STAMP))
    check_chat(body)
    return body


def test_reasoning_has_both_of_its_names() -> None:
    events: list[Event] = [STARTED, *part("reasoning", "Hm", "."), *part("text", "a")]
    events += [ChoiceEnded(reason="stop"), FINISHED]

    told = chunks(STREAMED, *events)
    assert choice_of(told[1])["delta"] == {"reasoning_content": "Hm", "reasoning": "Hm"}
    message = answer_of(STREAMED, *events)["choices"][0]["message"]
    assert (message["reasoning_content"], message["reasoning"]) == ("Hm.", "Hm.")
    assert message["content"] == "a"


def test_a_refusal_is_told_as_one() -> None:
    events: list[Event] = [
        STARTED,
        *part("refusal", "No", "."),
        ChoiceEnded(reason="stop"),
        FINISHED,
    ]

    told = chunks(STREAMED, *events)
    assert [choice_of(chunk)["delta"] for chunk in told[1:-1]] == [
        {"refusal": "No"},
        {"refusal": "."},
    ]
    assert answer_of(STREAMED, *events)["choices"][0]["message"]["refusal"] == "No."


def test_an_answer_of_tool_calls_alone_has_null_content() -> None:
    events: list[Event] = [STARTED, *part("tool_call", "{}", id="1", name="f")]
    message = answer_of(STREAMED, *events, ChoiceEnded(reason="tool_calls"), FINISHED)["choices"][0]
    assert message["message"]["content"] is None
    empty = answer_of(STREAMED, STARTED, ChoiceEnded(reason="stop"), FINISHED)["choices"][0]
    assert empty["message"]["content"] == ""


@pytest.mark.parametrize(("wanted", "left"), [(0, 0), (1, 1), (2, 2), (5, 3)])
def test_only_as_many_alternatives_as_were_asked_for(wanted: int, left: int) -> None:
    # llama.cpp is asked for one at least: 0 would mean none at all.
    top = {"token": "a", "logprob": -1.0, "bytes": [97], "id": 7}
    entry = top | {"top_logprobs": [top] * 3}
    delta = PartDelta(text="a", logprobs=[entry])
    events: list[Event] = [STARTED, PartStarted(kind="text"), delta, PartEnded()]
    events += [ChoiceEnded(reason="stop"), FINISHED]
    request = asked(stream=True, logprobs=True, top_logprobs=wanted)

    told = choice_of(chunks(request, *events)[1])["logprobs"]
    whole = answer_of(request, *events)["choices"][0]["logprobs"]

    assert told == whole == {"content": [top | {"top_logprobs": [top] * left}], "refusal": None}
    for choice in (
        choice_of(chunks(STREAMED, *events)[1]),
        answer_of(STREAMED, *events)["choices"][0],
    ):
        assert choice["logprobs"] is None


def test_an_error_in_the_middle_has_four_keys_and_no_reason_is_made_up() -> None:
    events: list[Event] = [STARTED, *part("text", "a"), Failed(problem=CUT)]

    *said, error = chunks(COUNTED, *events)

    assert error == {
        "error": {
            "message": "The connection broke.",
            "type": "server_error",
            "param": None,
            "code": "upstream_error",
        }
    }
    assert all(choice_of(chunk)["finish_reason"] is None for chunk in said)


def test_what_a_choice_told_of_its_end_is_not_lost_with_the_answer() -> None:
    ended = ChoiceEnded(reason="length")
    told = chunks(asked(stream=True, n=2), STARTED, *part("text", "a"), ended, Failed(problem=CUT))

    assert choice_of(told[-2])["finish_reason"] == "length"
    assert "error" in told[-1]


@given(data=st.data())
@law(40)
def test_whatever_is_told_is_openais(data: st.DataObject) -> None:
    request = data.draw(requests("openai_chat"))
    request = msgspec.structs.replace(request, include_usage=data.draw(st.booleans()))
    events = data.draw(answers(request, CARRIES["openai_chat"]))

    told = chunks(request, *events)

    if isinstance(events[-1], Finished):
        assert ("usage" in told[-1]) is request.include_usage
        answer_of(request, *events)
        reasons = [c["finish_reason"] for chunk in told for c in chunk["choices"]]
        assert len([reason for reason in reasons if reason]) == request.choices


# On the same dialect, nothing that the upstream said is lost.


def passed_on(request: Request, *lines: Any) -> list[Any]:
    """What a client hears of an upstream that speaks the same dialect."""
    stream = b"".join(b"data: %b\n\n" % msgspec.json.encode(line) for line in lines)
    events = parsed(CHAT, request, [stream + b"data: [DONE]\n\n"], extras=True)
    return chunks(request, *events)


def upstream_chunk(
    delta: JsonObject | None = None, reason: str | None = None, **top: Any
) -> JsonObject:
    choices = [{"index": 0, "delta": delta or {}, "finish_reason": reason}]
    head = {"id": "c", "object": "chat.completion.chunk", "created": 5, "model": "theirs"}
    return head | {"choices": choices} | top


ROLE = upstream_chunk({"role": "assistant", "content": None})
END = upstream_chunk(reason="stop")
TOTAL = upstream_chunk() | {"choices": [], "usage": {"prompt_tokens": 3, "completion_tokens": 2}}


@pytest.mark.parametrize("request_", [STREAMED, COUNTED], ids=["uncounted", "counted"])
def test_timings_come_with_the_last_chunk(request_: Request) -> None:
    timings = {"prompt_ms": 1.5, "cache_n": 2}

    for ends in ([END, TOTAL | {"timings": timings}], [END | {"timings": timings}]):
        told = passed_on(request_, ROLE, upstream_chunk({"content": "a"}), *ends)
        assert told[-1]["timings"] == timings
        assert all("timings" not in chunk for chunk in told[:-1])


def test_timings_per_token_stay_with_their_token() -> None:
    first, second = {"predicted_n": 1}, {"predicted_n": 2}

    told = passed_on(
        STREAMED,
        ROLE,
        upstream_chunk({"content": "a"}, timings=first),
        upstream_chunk({"content": "b"}, timings=second),
        END,
    )

    said = [(choice_of(c)["delta"].get("content"), c.get("timings")) for c in told[1:3]]
    assert said == [("a", first), ("b", second)]


def test_unknown_fields_stay_where_they_were() -> None:
    rich = upstream_chunk({"content": "a", "x_delta": 1}, x_top=[2])
    rich["choices"][0]["x_choice"] = {"y": 3}
    end = END | {"__verbose": {"prompt": "p"}}

    told = passed_on(STREAMED, ROLE, rich, end)

    assert told[1]["x_top"] == [2]
    assert choice_of(told[1])["x_choice"] == {"y": 3}
    assert choice_of(told[1])["delta"] == {"content": "a", "x_delta": 1}
    assert told[-1]["__verbose"] == {"prompt": "p"}


def test_unknown_fields_of_a_whole_answer_stay_where_they_were() -> None:
    message = {"role": "assistant", "content": "a", "x_message": 1}
    choice = {"index": 0, "message": message, "finish_reason": "stop", "x_choice": 2}
    body = {"choices": [choice], "x_top": 3, "timings": {"cache_n": 4}, "__verbose": {"p": 5}}

    answer = CHAT.parse_answer(body)
    told = msgspec.json.decode(CHAT.render_answer(answer, STREAMED, STAMP))
    streamed = chunks(STREAMED, *ir.unfold(answer))

    check_chat(told)
    assert told["choices"][0]["message"]["x_message"] == 1
    assert told["choices"][0]["x_choice"] == 2
    assert (told["x_top"], told["timings"], told["__verbose"]) == (3, {"cache_n": 4}, {"p": 5})
    assert choice_of(streamed[1])["delta"]["x_message"] == 1
    assert choice_of(streamed[-1])["x_choice"] == 2
    assert streamed[-1]["x_top"] == 3


def test_ids_of_tokens_stay_in_their_probabilities() -> None:
    top = {"id": 7, "token": "a", "logprob": -1.0, "bytes": [97]}
    rich = upstream_chunk({"content": "a"})
    rich["choices"][0]["logprobs"] = {"content": [top | {"top_logprobs": [top]}]}

    told = passed_on(asked(stream=True, logprobs=True, top_logprobs=1), ROLE, rich, END)

    assert choice_of(told[1])["logprobs"]["content"] == [top | {"top_logprobs": [top]}]


PROGRESS = {"total": 9, "cache": 2, "processed": 5, "time_ms": 1}


def test_progress_is_told_to_who_asked_for_it() -> None:
    step = ROLE | {"prompt_progress": PROGRESS, "timings": {"prompt_n": 5}, "x_top": 1}

    told = passed_on(
        asked(stream=True, return_progress=True), step, upstream_chunk({"content": "a"}), END
    )
    assert [chunk.get("prompt_progress") for chunk in told] == [None, PROGRESS, None, None]
    assert (told[1]["timings"], told[1]["x_top"]) == ({"prompt_n": 5}, 1)
    assert choice_of(told[1])["delta"] == {}

    told = passed_on(STREAMED, step, upstream_chunk({"content": "a"}), END)
    assert [choice_of(chunk)["delta"].get("content") for chunk in told] == ["", "a", None]
    assert all("prompt_progress" not in chunk for chunk in told)


def test_details_of_usage_stay() -> None:
    details = {"cached_tokens": 1, "audio_tokens": 0, "cache_write_tokens": 4}
    usage = {"prompt_tokens": 3, "completion_tokens": 2, "prompt_tokens_details": details, "x": 6}

    told = passed_on(COUNTED, ROLE, END, TOTAL | {"usage": usage})

    assert told[-1]["usage"]["prompt_tokens_details"] == details
    assert told[-1]["usage"]["x"] == 6
    assert told[-1]["usage"]["completion_tokens_details"]["reasoning_tokens"] == 0


def test_extras_of_a_token_are_told_with_it() -> None:
    extras = Extras(top={"x": 1}, choice={"y": 2}, part={"z": 3})
    events: list[Event] = [PartStarted(kind="tool_call", id="i", name="f")]
    events += [PartDelta(text="{", extras=extras), PartEnded()]

    told = chunks(STREAMED, STARTED, *events, ChoiceEnded(reason="tool_calls"), FINISHED)

    assert told[2]["x"] == 1
    assert choice_of(told[2])["y"] == 2
    assert choice_of(told[2])["delta"]["z"] == 3


# What servers really send.


def events_of(*lines: Any, done: bool = True, n: int = 1) -> list[Event]:
    stream = b"".join(b"data: %b\n\n" % msgspec.json.encode(line) for line in lines)
    return parsed(CHAT, asked(n=n, stream=True), [stream + b"data: [DONE]\n\n" * done])


def test_no_role_and_no_done_is_how_old_servers_speak() -> None:
    events = events_of(upstream_chunk({"content": "a"}), END, done=False)
    assert ir.fold(events).choices[0].text() == "a"


def test_null_between_the_chunks_says_nothing() -> None:
    events = events_of(None, upstream_chunk({"content": "a"}), None, END)
    assert ir.fold(events).choices[0].text() == "a"


def test_an_empty_reason_is_none_yet() -> None:
    events = events_of(
        upstream_chunk({"content": "a"}, ""), upstream_chunk({"content": "b"}, ""), END
    )
    assert ir.fold(events).choices[0].text() == "ab"


def test_reasoning_is_read_under_either_name_and_once_under_both() -> None:
    for delta in (
        {"reasoning": "r"},
        {"reasoning_content": "r"},
        {"reasoning": "r", "reasoning_content": "r"},
    ):
        events = events_of(upstream_chunk(delta), END)
        assert ir.fold(events).choices[0].text(ir.Reasoning) == "r"


def test_probabilities_of_a_refusal_are_told_as_such() -> None:
    entry = {"token": "No", "logprob": -0.5, "bytes": [78, 111], "top_logprobs": []}
    line = upstream_chunk({"refusal": "No"})
    line["choices"][0]["logprobs"] = {"content": None, "refusal": [entry]}
    request = asked(stream=True, logprobs=True)
    answer = ir.fold(events_of(line, END))
    expected = {"content": None, "refusal": [entry]}

    whole = msgspec.json.decode(CHAT.render_answer(answer, request, STAMP))
    assert choice_of(whole)["logprobs"] == expected
    told = [choice_of(one)["logprobs"] for one in chunks(request, *ir.unfold(answer, extras=True))]
    assert expected in told


def test_a_server_that_answers_half_of_what_was_asked_has_failed() -> None:
    events = events_of(upstream_chunk({"content": "a"}), END, n=2)
    assert isinstance(events[-1], Failed)
    assert events[-1].problem.retryable


def test_a_llama_server_counts_each_choice_alone() -> None:
    def own(completion: int, cached: int) -> JsonObject:
        details = {"cached_tokens": cached}
        usage = {
            "prompt_tokens": 5,
            "completion_tokens": completion,
            "prompt_tokens_details": details,
        }
        return TOTAL | {"usage": usage}

    other = upstream_chunk(reason="length")
    other["choices"][0]["index"] = 1
    events = events_of(END, own(2, 4), other, own(3, 4), n=2)

    assert isinstance(events[-1], Finished)
    assert events[-1].usage == Usage(prompt_tokens=5, completion_tokens=5, cached_tokens=4)


@pytest.mark.parametrize(
    "line",
    [
        {"error": {"code": 500, "message": "boom", "type": "server_error"}},
        {"error": "boom"},
        {"message": "boom", "code": 500},
    ],
)
def test_an_error_in_the_stream_ends_it(line: JsonObject) -> None:
    events = events_of(upstream_chunk({"content": "a"}), line)
    assert isinstance(events[-1], Failed)
    assert events[-1].problem.message == "boom"
    assert events[-2] == PartEnded()


def test_probabilities_that_come_with_the_end_open_no_part() -> None:
    entry = {"token": "", "logprob": 0.0, "bytes": [], "top_logprobs": []}
    end = upstream_chunk(reason="stop")
    end["choices"][0]["logprobs"] = {"content": [entry]}

    events = events_of(end)

    assert events[1] == ChoiceEnded(reason="stop", logprobs=[entry])


@pytest.mark.parametrize(
    "lines",
    [
        [[]],
        [5],
        [{}],
        [{"choices": {}, "usage": 5}],
        [{"choices": 5}],
        [{"choices": [5]}],
        [{"choices": [{"index": -1, "delta": {}}]}],
        [{"choices": [{"index": 1, "delta": {}}]}],
        [{"choices": [{"index": True, "delta": {}}]}],
        [upstream_chunk({"content": 5})],
        [upstream_chunk({"content": ["a"]})],
        [upstream_chunk({"tool_calls": {"a": 1}})],
        [upstream_chunk({"tool_calls": [{"index": 0, "function": {"arguments": "{}"}}]})],
        [upstream_chunk({"tool_calls": [{"function": {"name": "f", "arguments": {}}}]})],
        [END, upstream_chunk({"content": "a"})],
        [upstream_chunk() | {"choices": [{"delta": {}, "logprobs": {"content": [5]}}]}],
        [upstream_chunk() | {"choices": [{"logprobs": {"content": [{"top_logprobs": 5}]}}]}],
    ],
    ids=repr,
)
def test_what_is_no_chunk_fails_and_what_came_before_stands(lines: list[Any]) -> None:
    parser = CHAT.stream_parser(STREAMED, extras=False)
    said = [upstream_chunk({"content": "a"}), *lines]
    data = b"".join(b"data: %b\n\n" % msgspec.json.encode(line) for line in said)

    events = parser.feed(SseFramer().feed(data)) + parser.end()

    check_grammar(events)
    assert PartDelta(text="a") in events
    assert isinstance(events[-1], Failed)
    assert (events[-1].problem.kind, events[-1].problem.retryable) == ("upstream_failed", True)


def test_progress_of_a_choice_stays_its_own() -> None:
    step = {"choices": [{"index": 1, "delta": {}}], "prompt_progress": PROGRESS}
    events = events_of(step, n=2)
    assert events[1] == Progress(choice=1, total=9, cached=2, processed=5, time_ms=1)


@pytest.mark.parametrize("name", ["openai_chat", "openai_completions"])
def test_an_error_line_of_an_old_llama_cpp_is_told(name: str) -> None:
    # b1542 to b6522 told of an error in a field of its own.
    request = named(name).parse_request(
        {"messages": [{"role": "user", "content": "q"}], "prompt": "q"}, ""
    )
    frames = SseFramer().feed(b'error: {"content":"slot unavailable"}\n\n')
    (told,) = named(name).stream_parser(request, extras=False).feed(frames)
    assert isinstance(told, Failed)
    assert told.problem.message == "slot unavailable"
