"""llama.cpp's own API, from the server of November 2023 to today's."""

from __future__ import annotations

import math
from typing import Any

import msgspec
import pytest

from grammar import CUT, STAMP, TODAY, check_grammar, parsed, rendered
from tropilla import ir
from tropilla.dialects import Stamp, named
from tropilla.framing import SseFramer
from tropilla.ir import (
    ChoiceEnded,
    Completion,
    Event,
    Failed,
    Finished,
    Infill,
    JsonObject,
    Malformed,
    PartDelta,
    PartEnded,
    PartStarted,
    Request,
    Started,
    Usage,
)

NATIVE = named("llamacpp")


def asked(path: str = "/completion", **fields: Any) -> Request:
    return NATIVE.parse_request({"prompt": "Hello", **fields}, path)


def events_of(
    stream: bytes, request: Request | None = None, *, extras: bool = False
) -> list[Event]:
    return parsed(NATIVE, request or asked(), [stream], extras=extras)


def lines(*bodies: Any) -> bytes:
    return b"".join(b"data: %b\n\n" % msgspec.json.encode(body) for body in bodies)


def told_by(request: Request, *events: Event) -> list[Any]:
    frames = SseFramer().feed(rendered(NATIVE, request, events))
    return [msgspec.json.decode(frame.data) for frame in frames]


# Old servers (b1496, November 2023).

_OLD_FINAL: JsonObject = {
    "content": "",
    "slot_id": 0,
    "stop": True,
    "model": "llama.gguf",
    "tokens_predicted": 5,
    "tokens_evaluated": 8,
    "generation_settings": {"temp": 0.8, "n_ctx": 512, "stream": True},
    "prompt": "Hello",
    "truncated": False,
    "stopped_eos": False,
    "stopped_word": False,
    "stopped_limit": True,
    "stopping_word": "",
    "tokens_cached": 12,
    "timings": {"prompt_n": 8, "predicted_n": 5, "prompt_per_second": None},
}
_OLD_PIECE = {"content": " hi", "multimodal": False, "slot_id": 0, "stop": False}


def test_the_first_servers_stream() -> None:
    events = events_of(lines(_OLD_PIECE, _OLD_PIECE | {"content": ""}, _OLD_FINAL))

    answer = ir.fold(events)
    assert answer.choices[0].text() == " hi"
    assert answer.choices[0].reason == "length"
    assert answer.usage == Usage(prompt_tokens=8, completion_tokens=5)
    assert answer.timings == _OLD_FINAL["timings"]


@pytest.mark.parametrize(
    ("flags", "reason", "word"),
    [
        ({"stopped_eos": True}, "stop", None),
        ({"stopped_word": True, "stopping_word": "END"}, "stop", "END"),
        ({"stopped_limit": True}, "length", None),
        ({}, "length", None),
        ({"stop_type": "eos"}, "stop", None),
        ({"stop_type": "word", "stopping_word": "END"}, "stop", "END"),
        ({"stop_type": "limit"}, "length", None),
        ({"stop_type": "none"}, "length", None),
    ],
    ids=repr,
)
def test_why_it_stopped_in_three_booleans_and_in_one_word(
    flags: JsonObject, reason: str, word: str | None
) -> None:
    body = {"content": "a", "stop": True} | flags

    choice = NATIVE.parse_answer(body).choices[0]
    ended = next(e for e in events_of(lines(body)) if isinstance(e, ChoiceEnded))

    assert (choice.reason, choice.stop_word) == (ended.reason, ended.stop_word) == (reason, word)


@pytest.mark.parametrize(
    "line",
    [
        b'error: {"content":"slot unavailable"}\n\n',  # b1542
        b'error: {"code":500,"message":"slot unavailable","type":"server_error"}\n\n',  # b2400
        b'data: {"error":{"code":500,"message":"slot unavailable"}}\n\n',  # b6523
        b'data: {"error":"slot unavailable"}\n\n',
    ],
)
def test_an_error_of_any_generation_ends_the_stream(line: bytes) -> None:
    events = events_of(lines(_OLD_PIECE) + line + lines(_OLD_FINAL))

    assert events[-2] == PartEnded()
    assert isinstance(events[-1], Failed)
    assert events[-1].problem.message == "slot unavailable"


@pytest.mark.parametrize("flags", [{}, {"stopped_limit": False, "stopped_eos": True}])
@pytest.mark.parametrize("limit", [1, 3, 4, 9])
def test_the_token_too_many_of_an_old_server_is_left_out(limit: int, flags: JsonObject) -> None:
    pieces = [_OLD_PIECE | {"content": letter} for letter in "abcde"]
    request = asked(n_predict=limit)
    answer = ir.fold(events_of(lines(*pieces, _OLD_FINAL | flags), request))
    choice = answer.choices[0]
    assert choice.text() == "abcde"[:limit]
    assert choice.reason == ("stop" if flags and limit == 9 else "length")


def test_no_limit_is_none_and_todays_token_ids_are_what_counts() -> None:
    pieces = [_OLD_PIECE | {"content": letter} for letter in "abcde"]
    for limit in (-1, 0):
        answer = ir.fold(events_of(lines(*pieces, _OLD_FINAL), asked(n_predict=limit)))
        assert answer.choices[0].text() == "abcde"
    held = _OLD_PIECE | {"content": "", "tokens": []}
    today = [_OLD_PIECE | {"content": "a", "tokens": [1]}, held, held, held]
    answer = ir.fold(events_of(lines(*today, *today, _OLD_FINAL), asked(n_predict=2)))
    assert answer.choices[0].text() == "aa"


def test_an_empty_stream_is_a_busy_server() -> None:
    (failed,) = events_of(b"")
    assert isinstance(failed, Failed)
    assert failed.problem.retryable


def test_old_probabilities_are_read_in_todays_shape() -> None:
    probs = [{"tok_str": " hi", "prob": 0.5}, {"tok_str": " ho", "prob": 0.25}]
    said = {"content": " hi", "probs": probs}
    unlikely = {"content": "x", "probs": [{"tok_str": " hi", "prob": 0}]}
    piece = _OLD_PIECE | {"completion_probabilities": [said, unlikely]}

    delta = next(e for e in events_of(lines(piece, _OLD_FINAL)) if isinstance(e, PartDelta))

    assert delta.logprobs is not None
    first, second = delta.logprobs
    assert (first["token"], first["logprob"]) == (" hi", math.log(0.5))
    assert [top["token"] for top in first["top_logprobs"]] == [" hi", " ho"]
    assert second == {
        "token": "x",
        "logprob": -9999.0,
        "bytes": [120],
        "top_logprobs": [{"token": " hi", "logprob": -9999.0, "bytes": [32, 104, 105]}],
    }


def test_everything_old_is_passed_on_to_who_speaks_the_same() -> None:
    request = asked(stream=True)
    told = told_by(request, *events_of(lines(_OLD_PIECE, _OLD_FINAL), request, extras=True))

    assert told[0].items() >= _OLD_PIECE.items()
    last = told[-1]
    assert last["model"] == STAMP.model
    settings = last.pop("generation_settings")
    assert settings | _OLD_FINAL["generation_settings"] == settings
    final = {key: _OLD_FINAL[key] for key in _OLD_FINAL.keys() - {"model", "generation_settings"}}
    assert last | final == last


# What servers may do to us.


@pytest.mark.parametrize(
    "line",
    [
        [],
        5,
        {},
        {"content": 5},
        {"content": None},
        {"content": "a", "index": 1},
        {"content": "a", "index": -1},
        {"content": "a", "index": None},
        {"content": "a", "completion_probabilities": [5]},
        {"content": "a", "completion_probabilities": [{"top_logprobs": 5}]},
    ],
    ids=repr,
)
def test_what_is_no_chunk_fails_and_what_came_before_stands(line: Any) -> None:
    events = events_of(lines({"content": "a", "stop": False}, line))
    check_grammar(events)
    assert PartDelta(text="a") in events
    assert isinstance(events[-1], Failed)


def test_nothing_follows_the_end_of_a_choice() -> None:
    request = asked(n_cmpl=2)
    end = {"content": "", "stop": True, "stop_type": "eos"}
    events = events_of(lines(end, {"content": "a", "stop": False}), request)
    assert isinstance(events[-1], Failed)


def test_probabilities_of_any_old_shape_do_no_harm() -> None:
    shapes: list[Any] = [5, None, [5], [{}], [{"tok_str": 5, "prob": "x"}], {"a": 1}]
    for probs in shapes:
        entry = {"content": "a", "probs": probs}
        events_of(lines({"content": "a", "completion_probabilities": [entry]}))


# Several choices.


def final(index: int, **fields: Any) -> JsonObject:
    return {"index": index, "content": "", "stop": True, "stop_type": "eos"} | fields


def test_a_prompt_counts_once_however_many_choices_continue_it() -> None:
    request = asked(prompt=["a", "b"], n_cmpl=2)
    numbers = {"tokens_evaluated": 4, "tokens_predicted": 3, "timings": {"cache_n": 1}}

    end = events_of(lines(*(final(index, **numbers) for index in (2, 0, 3, 1))), request)[-1]

    assert isinstance(end, Finished)
    assert end.usage == Usage(prompt_tokens=8, completion_tokens=12, cached_tokens=2)


def test_a_clients_sum_over_the_choices_is_right() -> None:
    request = asked(n_cmpl=2)
    events: list[Event] = [Started()]
    events += [ChoiceEnded(choice=index, reason="stop") for index in (1, 0)]
    end = Finished(usage=Usage(prompt_tokens=4, completion_tokens=7), timings={"cache_n": 1})

    told = told_by(request, *events, end)
    whole = msgspec.json.decode(NATIVE.render_answer(ir.fold([*events, end]), request, STAMP))

    for finals in (told, whole):
        assert sum(one.get("tokens_evaluated", 0) for one in finals) == 4
        assert sum(one.get("tokens_predicted", 0) for one in finals) == 7
        assert [one["index"] for one in finals if "timings" in one] == [0]


def test_several_answers_are_a_list_and_one_is_not() -> None:
    def answer(request: Request) -> Any:
        events: list[Event] = [Started()]
        events += [ChoiceEnded(choice=index, reason="stop") for index in range(request.choices)]
        told = ir.fold([*events, Finished()])
        return msgspec.json.decode(NATIVE.render_answer(told, request, STAMP))

    assert isinstance(answer(asked()), dict)
    assert isinstance(answer(asked(prompt=["a"])), dict)
    assert len(answer(asked(prompt=["a", "b"]))) == 2
    assert len(answer(asked(n_cmpl=2))) == 2


def test_two_answers_cannot_be_the_same() -> None:
    with pytest.raises(Malformed):
        NATIVE.parse_answer([final(0), final(0)])
    bodies: list[Any] = [[], [5], 5, {}, [final(-1)]]
    for body in bodies:
        with pytest.raises(Malformed):
            NATIVE.parse_answer(body)


# What a client hears.


def test_the_stream_has_no_done_and_an_error_is_one_line() -> None:
    stream = rendered(NATIVE, asked(stream=True), [Started(), Failed(problem=CUT)])
    body = msgspec.json.decode(SseFramer().feed(stream)[0].data)
    assert b"[DONE]" not in stream
    assert body["error"]["message"] == "The connection broke."
    assert body["error"]["code"] == 500


def test_tokens_are_told_whole_to_who_asked_for_them() -> None:
    events: list[Event] = [Started(), PartStarted(kind="text")]
    events += [PartDelta(text="a", tokens=[5]), PartDelta(text="b", tokens=[6, 7])]
    events += [PartEnded(), ChoiceEnded(reason="stop"), Finished()]

    def tokens(request: Request) -> Any:
        return msgspec.json.decode(NATIVE.render_answer(ir.fold(events), request, STAMP))["tokens"]

    assert tokens(asked(return_tokens=True)) == [5, 6, 7]
    assert tokens(asked()) == []
    assert [chunk["tokens"] for chunk in told_by(asked(stream=True), *events)[:2]] == [[5], [6, 7]]


def test_only_the_response_fields_that_were_asked_for() -> None:
    fields = ["content", "generation_settings/seed", "timings/none", "nothing"]
    request = asked(response_fields=fields)
    body = _OLD_FINAL | {"content": "a", "generation_settings": {"seed": 7}}

    told = NATIVE.render_answer(NATIVE.parse_answer(body), request, STAMP)

    assert msgspec.json.decode(told) == {"content": "a", "generation_settings/seed": 7}
    assert "response_fields" not in NATIVE.render_request(request, TODAY).body


def test_the_settings_say_what_the_client_asked_not_what_the_engine_was_asked() -> None:
    answer = NATIVE.parse_answer(_OLD_FINAL)
    told = msgspec.json.decode(NATIVE.render_answer(answer, asked(), STAMP))
    settings = _OLD_FINAL["generation_settings"] | {"stream": False}
    assert told["generation_settings"] | settings == told["generation_settings"]


def test_todays_answer_has_the_names_that_programs_of_2023_read() -> None:
    settings = {"temperature": 0.5, "stream": True}
    today = final(0, id_slot=3, stop_type="word", stopping_word="x", generation_settings=settings)
    stamp = Stamp("u", 1, "asked", n_ctx=512)
    told = msgspec.json.decode(NATIVE.render_answer(NATIVE.parse_answer(today), asked(), stamp))
    assert (told["slot_id"], told["multimodal"]) == (3, False)
    assert (told["stopped_eos"], told["stopped_word"], told["stopped_limit"]) == (
        False,
        True,
        False,
    )
    assert told["generation_settings"] == {
        "temperature": 0.5, "temp": 0.5, "stream": False, "model": "asked", "n_ctx": 512,
        "tfs_z": 1.0, "penalize_nl": True,
    }  # fmt: skip


def test_progress_is_told_to_who_asked_for_it() -> None:
    progress = {"total": 9, "cache": 2, "processed": 5, "time_ms": 1}
    step = {"content": "", "tokens": [0], "stop": False, "prompt_progress": progress}
    stream = lines(step, _OLD_PIECE, _OLD_FINAL)

    asking = asked(stream=True, return_progress=True)
    told = told_by(asking, *events_of(stream, asking, extras=True))
    assert [chunk.get("prompt_progress") for chunk in told] == [progress, None, None]
    told = told_by(asked(stream=True), *events_of(stream, extras=True))
    assert [chunk["content"] for chunk in told] == [" hi", ""]


# What a client may ask.


def test_a_request_for_a_hole() -> None:
    request = NATIVE.parse_request({"input_prefix": "a", "input_suffix": "b"}, "/infill")
    assert request.input == Infill(prefix="a", suffix="b")
    wire = NATIVE.render_request(request, TODAY)
    assert (wire.path, wire.body["input_prefix"], wire.body["input_suffix"]) == (
        "/infill",
        "a",
        "b",
    )


@pytest.mark.parametrize(
    ("prompt", "prompts", "listed"),
    [
        ("a", ("a",), False),
        ([1, "a", 2], ([1, "a", 2],), False),
        (["a", 1], (["a", 1],), False),
        (["a", "b"], ("a", "b"), True),
        ([[1], "a"], ([1], "a"), True),
        ({"prompt_string": "a"}, ({"prompt_string": "a"},), False),
    ],
)
def test_the_forms_of_a_prompt(prompt: Any, prompts: tuple[Any, ...], *, listed: bool) -> None:
    assert asked(prompt=prompt).input == Completion(prompts=prompts, listed=listed)


@pytest.mark.parametrize(
    ("fields", "param", "code"),
    [
        ({"prompt": None}, "prompt", "missing_required_parameter"),
        ({"prompt": 5}, "prompt", "invalid_type"),
        ({"prompt": []}, "prompt", "invalid_type"),
        ({"prompt": ["a", None]}, "prompt.1", "invalid_type"),
        ({"prompt": ["a", True]}, "prompt.1", "invalid_type"),
        ({"n_predict": -2}, "n_predict", "integer_below_min_value"),
        ({"n_predict": "5"}, "n_predict", "invalid_type"),
        ({"n_predict": 10**30}, "n_predict", "integer_above_max_value"),
        ({"n_cmpl": 0}, "n_cmpl", "integer_below_min_value"),
        ({"n_probs": -1}, "n_probs", "integer_below_min_value"),
        ({"temperature": "x"}, "temperature", "invalid_type"),
        ({"stop": 5}, "stop", "invalid_type"),
        ({"json_schema": "x"}, "json_schema", "invalid_type"),
        ({"stream": 1}, "stream", "invalid_type"),
    ],
    ids=repr,
)
def test_a_bad_request_is_told_what_is_wrong(fields: JsonObject, param: str, code: str) -> None:
    with pytest.raises(Malformed) as told:
        asked(**fields)
    assert (told.value.problem.param, told.value.problem.code) == (param, code)


def test_the_engine_decides_what_knobs_it_can_turn() -> None:
    request = asked(temperature=5, top_p=3, presence_penalty=9, logit_bias=[[5, -1000.5]])
    body = NATIVE.render_request(request, TODAY).body
    assert (body["temperature"], body["top_p"], body["presence_penalty"]) == (5, 3, 9)
    assert body["logit_bias"] == [[5, -1000.5]]


@pytest.mark.parametrize(
    ("fields", "limit"),
    [
        ({"n_predict": 1, "max_completion_tokens": 2, "max_tokens": 3}, 1),
        ({"max_completion_tokens": 2, "max_tokens": 3}, 2),
        ({"n_predict": -1, "max_tokens": 3}, None),
        ({"n_predict": 0}, 0),
    ],
    ids=repr,
)
def test_the_names_of_the_limit_in_the_servers_order(fields: JsonObject, limit: int | None) -> None:
    assert asked(**fields).max_tokens == limit


def test_a_string_is_one_stop_word_sent_as_a_list() -> None:
    assert NATIVE.render_request(asked(stop="END"), TODAY).body["stop"] == ["END"]


def test_the_clients_request_is_sent_as_the_client_meant_it() -> None:
    fields: JsonObject = {"grammar": "g", "samplers": ["top_k"], "id_slot": 2, "repeat_last_n": 5}
    body = NATIVE.render_request(asked(**fields), TODAY).body
    assert body == {"prompt": "Hello", "stream": True} | fields


def test_another_dialects_request_is_asked_as_the_script_asked_it() -> None:
    text = named("openai_completions").parse_request(
        {"prompt": "a", "max_tokens": 5}, "/completions"
    )
    body = NATIVE.render_request(text, TODAY).body
    assert body == {
        "prompt": "a",
        "n_predict": 5,
        "n_keep": -1,
        "cache_prompt": True,
        "stream": True,
    }


def test_an_error_carries_the_status_and_llamacpps_type() -> None:
    problem = ir.Problem(kind="context_exceeded", message="m", extras={"n_ctx": 9})
    error = msgspec.json.decode(NATIVE.render_problem(problem, 400))["error"]
    assert error.items() >= {
        "code": 400, "type": "exceed_context_size_error", "message": "m", "n_ctx": 9
    }.items()  # fmt: skip
