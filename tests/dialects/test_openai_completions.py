"""OpenAI's legacy completions: text in, text out."""

from __future__ import annotations

from typing import Any

import msgspec
import pytest
from hypothesis import given
from hypothesis import strategies as st

from grammar import CUT, STAMP, TODAY, check_grammar, parsed, rendered
from openapi_schema import check_completion
from strategies import CARRIES, answers, law, requests
from tropilla import ir
from tropilla.dialects import named
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
    Traits,
    Usage,
)

TEXT = named("openai_completions")
STARTED = Started(id="cmpl-1", created=5, model="theirs", fingerprint="b1")
FINISHED = Finished(usage=Usage(prompt_tokens=3, completion_tokens=2), timings={"cache_n": 1})


def asked(**fields: Any) -> Request:
    return TEXT.parse_request({"prompt": "Hello", **fields}, "/completions")


STREAMED = asked(stream=True)
COUNTED = asked(stream=True, stream_options={"include_usage": True})


def said(*texts: str, choice: int = 0) -> list[Event]:
    deltas = [PartDelta(choice=choice, text=text) for text in texts]
    ended = ChoiceEnded(choice=choice, reason="stop")
    return [PartStarted(choice=choice, kind="text"), *deltas, PartEnded(choice=choice), ended]


def chunks(request: Request, *events: Event) -> list[Any]:
    stream = rendered(TEXT, request, events)
    assert stream.endswith(b"data: [DONE]\n\n")
    told = [msgspec.json.decode(frame.data) for frame in SseFramer().feed(stream)[:-1]]
    for chunk in told:
        check_completion(chunk)
    return told


def answer_of(request: Request, *events: Event) -> Any:
    body = msgspec.json.decode(TEXT.render_answer(ir.fold(events), request, STAMP))
    check_completion(body)
    return body


def texts_of(told: list[Any]) -> list[str]:
    return [choice["text"] for chunk in told for choice in chunk["choices"]]


# What a client hears.


def test_a_chunk_has_the_shape_of_an_answer() -> None:
    told = chunks(STREAMED, STARTED, *said("Hel", "lo"), FINISHED)

    head = {"id": "cmpl-1", "object": "text_completion", "created": 5, "model": "asked"}
    choice = {"index": 0, "text": "Hel", "logprobs": None, "finish_reason": None}
    assert told[0] == head | {"system_fingerprint": "b1", "choices": [choice]}
    assert texts_of(told) == ["Hel", "lo", ""]
    assert [chunk["choices"][0]["finish_reason"] for chunk in told] == [None, None, "stop"]
    assert told[-1]["timings"] == {"cache_n": 1}
    assert all("usage" not in chunk for chunk in told)


def test_usage_comes_last_and_alone() -> None:
    told = chunks(COUNTED, STARTED, *said("a"), FINISHED)

    assert all(chunk["usage"] is None for chunk in told[:-1])
    assert told[-1]["choices"] == []
    assert told[-1]["usage"]["total_tokens"] == 5


def test_probabilities_are_parallel_lists_and_their_offsets_go_on() -> None:
    def entry(token: str) -> JsonObject:
        tops = [
            {"token": top, "logprob": -1.0, "bytes": list(top.encode())}
            for top in (token, "x", "y")
        ]
        return tops[0] | {"top_logprobs": tops}

    events: list[Event] = [PartStarted(kind="text")]
    events += [PartDelta(text=text, logprobs=[entry(text)]) for text in ("ab", "c", "de")]
    events += [PartEnded(), ChoiceEnded(reason="stop")]

    told = chunks(asked(stream=True, logprobs=2), STARTED, *events, FINISHED)
    whole = answer_of(asked(logprobs=2), STARTED, *events, FINISHED)["choices"][0]["logprobs"]

    lists = [chunk["choices"][0]["logprobs"] for chunk in told[:-1]]
    assert [some["text_offset"] for some in lists] == [[0], [2], [3]]
    assert lists[0]["top_logprobs"] == [{"ab": -1.0, "x": -1.0}]
    assert lists == [
        {name: values[at : at + 1] for name, values in whole.items()} for at in range(3)
    ]
    assert whole["tokens"] == ["ab", "c", "de"]
    assert whole["text_offset"] == [0, 2, 3]
    assert whole["token_logprobs"] == [-1.0] * 3
    assert answer_of(asked(), STARTED, *events, FINISHED)["choices"][0]["logprobs"] is None


def entry_of(token: str, logprob: float | None, *tops: tuple[str, float]) -> JsonObject:
    told = [{"token": text, "logprob": chance, "bytes": None} for text, chance in tops]
    return {"token": token, "logprob": logprob, "bytes": None, "top_logprobs": told}


def lists_of(*entries: JsonObject, logprobs: int = 2) -> Any:
    events: list[Event] = [PartStarted(kind="text"), PartDelta(text="?", logprobs=list(entries))]
    events += [PartEnded(), ChoiceEnded(reason="stop")]
    return answer_of(asked(logprobs=logprobs), STARTED, *events, FINISHED)["choices"][0]["logprobs"]


def test_the_chosen_token_is_always_among_the_likeliest() -> None:
    told = lists_of(entry_of("c", -9.0, ("a", -1.0), ("b", -2.0), ("x", -3.0)))
    assert told["top_logprobs"] == [{"a": -1.0, "b": -2.0, "c": -9.0}]


def test_of_two_tokens_with_one_text_the_likelier_is_told() -> None:
    told = lists_of(entry_of("a", -2.0, ("a", -1.0), ("a", -2.0)))
    assert told["top_logprobs"] == [{"a": -1.0}]
    assert told["token_logprobs"] == [-2.0]


def test_without_alternatives_there_is_no_list_of_them() -> None:
    told = lists_of(entry_of("a", -2.0, ("a", -1.0)), logprobs=0)
    assert (told["token_logprobs"], told["top_logprobs"]) == ([-2.0], None)


def test_the_first_token_of_a_prompt_has_no_likelihood() -> None:
    told = lists_of(entry_of("a", None), entry_of("b", -1.0, ("b", -1.0)))
    assert told["token_logprobs"] == [None, -1.0]
    assert told["top_logprobs"] == [None, {"b": -1.0}]


def test_a_token_too_unlikely_to_be_told_of_has_openais_number() -> None:
    told = lists_of(entry_of("a", -3.4028234663852886e38, ("b", -0.5)))
    assert told["token_logprobs"] == [-9999.0]
    assert told["top_logprobs"] == [{"b": -0.5, "a": -9999.0}]


def test_a_token_within_a_character_is_told_by_its_bytes() -> None:
    pieces = [b"a", b"\xf0\x9f", b"\x98\x80", b"b", b""]
    entries = [
        {"token": "\N{REPLACEMENT CHARACTER}", "logprob": -1.0, "bytes": list(piece)}
        for piece in pieces
    ]
    entries[0]["token"], entries[3]["token"], entries[4]["token"] = "a", "b", "</s>"

    told = lists_of(*entries, logprobs=0)

    assert told["tokens"] == ["a", "bytes:\\xf0\\x9f", "bytes:\\x98\\x80", "b", "</s>"]
    assert told["text_offset"] == [0, 1, 1, 2, 3]
    back = TEXT.parse_answer(
        {"choices": [{"text": "?", "finish_reason": "stop", "logprobs": told}]}
    ).choices[0]
    assert back.logprobs is not None
    assert [bytes(one["bytes"]) for one in back.logprobs[:4]] == pieces[:4]


def test_an_error_in_the_middle_has_four_keys_and_then_done() -> None:
    told = chunks(STREAMED, STARTED, PartStarted(kind="text"), PartEnded(), Failed(problem=CUT))
    assert set(told[-1]["error"]) == {"message", "type", "param", "code"}


@given(data=st.data())
@law(40)
def test_whatever_is_told_is_openais(data: st.DataObject) -> None:
    request = data.draw(requests("openai_completions"))
    events = data.draw(answers(request, CARRIES["openai_completions"]))

    chunks(request, *events)
    if isinstance(events[-1], Finished):
        answer_of(request, *events)


def test_nothing_unknown_is_lost() -> None:
    head = {"id": "c", "object": "text_completion", "created": 5, "model": "theirs"}
    choice = {"index": 0, "text": "a", "finish_reason": None, "x_choice": 1}
    end = {"index": 0, "text": "", "finish_reason": "stop"}
    lines = [head | {"choices": [choice], "x_top": 2}, head | {"choices": [end], "timings": {}}]
    stream = b"".join(b"data: %b\n\n" % msgspec.json.encode(line) for line in lines)

    told = chunks(STREAMED, *parsed(TEXT, STREAMED, [stream], extras=True))

    assert told[0]["choices"][0]["x_choice"] == 1
    assert told[0]["x_top"] == 2
    assert told[-1]["timings"] == {}


# What servers really send.


def events_of(*lines: Any, request: Request = STREAMED) -> list[Event]:
    stream = b"".join(b"data: %b\n\n" % msgspec.json.encode(line) for line in lines)
    return parsed(TEXT, request, [stream + b"data: [DONE]\n\n"])


def test_openais_lists_of_probabilities() -> None:
    lists = {
        "tokens": ["a", "b"],
        "token_logprobs": [None, -2.0],
        "top_logprobs": [None, {"b": -2.0, "c": -3.0}],
        "text_offset": [0, 1],
    }
    body = {"choices": [{"text": "ab", "index": 0, "finish_reason": "stop", "logprobs": lists}]}

    entries = TEXT.parse_answer(body).choices[0].logprobs

    assert entries is not None
    assert [entry["logprob"] for entry in entries] == [None, -2.0]
    assert entries[0]["top_logprobs"] == []
    assert entries[1]["top_logprobs"] == [
        {"token": "b", "logprob": -2.0, "bytes": [98]},
        {"token": "c", "logprob": -3.0, "bytes": [99]},
    ]


def test_each_choice_of_a_llama_server_has_a_usage_of_its_own() -> None:
    request = asked(prompt=["a", "b"], n=2, stream=True)
    usage = {"prompt_tokens": 5, "completion_tokens": 2}
    lines = [
        {"choices": [{"index": index, "text": "", "finish_reason": "length"}], "usage": usage}
        for index in (3, 0, 1, 2)
    ]

    end = events_of(*lines, request=request)[-1]
    assert isinstance(end, Finished)
    assert end.usage == Usage(prompt_tokens=10, completion_tokens=8)

    total = {"choices": [], "usage": {"prompt_tokens": 9, "completion_tokens": 7}}
    end = events_of(*lines, total, request=request)[-1]
    assert isinstance(end, Finished)
    assert end.usage == Usage(prompt_tokens=9, completion_tokens=7)


LISTS = {"tokens": ["a"], "token_logprobs": [0]}


@pytest.mark.parametrize(
    "line",
    [
        [],
        {},
        {"choices": 5, "usage": {}},
        {"choices": {"a": 1}, "usage": {}},
        {"choices": [5]},
        {"choices": [{"index": 0}]},
        {"choices": [{"index": 1, "text": "a"}]},
        {"choices": [{"text": "a", "logprobs": {"content": [5]}}]},
        {"choices": [{"text": "a", "logprobs": LISTS | {"top_logprobs": 5}}]},
    ],
    ids=repr,
)  # fmt: skip
def test_what_is_no_chunk_fails(line: Any) -> None:
    events = events_of({"choices": [{"text": "a"}]}, line)
    check_grammar(events)
    assert PartDelta(text="a") in events
    assert isinstance(events[-1], Failed)


def test_two_choices_cannot_be_the_same() -> None:
    choice = {"text": "a", "index": 0, "finish_reason": "stop"}
    with pytest.raises(Malformed):
        TEXT.parse_answer({"choices": [choice, choice]})


# What a client may ask.


@pytest.mark.parametrize(
    ("prompt", "prompts", "listed"),
    [
        ("a", ("a",), False),
        ("", ("",), False),
        (None, ("",), False),
        (["a", "b"], ("a", "b"), True),
        (["a"], ("a",), True),
        ([1, 2], ([1, 2],), False),
        ([[1], [2, 3]], ([1], [2, 3]), True),
        (["a", [1]], ("a", [1]), True),
    ],
)
def test_the_forms_of_a_prompt(prompt: Any, prompts: tuple[Any, ...], *, listed: bool) -> None:
    read = asked(prompt=prompt).input
    assert read == Completion(prompts=prompts, listed=listed)
    assert TEXT.render_request(asked(prompt=prompt), TODAY).body["prompt"] == (prompt or "")


@pytest.mark.parametrize(
    ("fields", "param", "code"),
    [
        ({"prompt": []}, "prompt", "empty_array"),
        ({"prompt": 5}, "prompt", "invalid_type"),
        ({"prompt": {"a": 1}}, "prompt", "invalid_type"),
        ({"prompt": [1, "a"]}, "prompt.1", "invalid_type"),
        ({"prompt": ["a", 1]}, "prompt.1", "invalid_type"),
        ({"prompt": [True]}, "prompt.0", "invalid_type"),
        ({"prompt": [-1]}, "prompt.0", "invalid_type"),
        ({"prompt": [2**31]}, "prompt.0", "invalid_type"),
        ({"prompt": ["a", [1, "b"]]}, "prompt.1.1", "invalid_type"),
        ({"prompt": [[]]}, "prompt.0", "invalid_type"),
        ({"logprobs": 6}, "logprobs", "integer_above_max_value"),
        ({"logprobs": True}, "logprobs", "invalid_type"),
        ({"best_of": 2, "stream": True}, "best_of", "unsupported_value"),
        ({"best_of": 2, "suffix": "b"}, "best_of", "unsupported_value"),
        ({"best_of": 2, "n": 3}, "best_of", "invalid_value"),
        ({"best_of": 21, "n": 21}, "best_of", "integer_above_max_value"),
        ({"echo": "yes"}, "echo", "invalid_type"),
        ({"suffix": "b", "prompt": ["a", "b"]}, "suffix", "unsupported_value"),
        ({"suffix": "b", "echo": True}, "suffix", "unsupported_value"),
        ({"n": 0}, "n", "integer_below_min_value"),
        ({"stream_options": {}}, "stream_options", "invalid_value"),
        ({"max_tokens": -2}, "max_tokens", "integer_below_min_value"),
        ({"max_tokens": 0, "suffix": "b"}, "max_tokens", "integer_below_min_value"),
        ({"stop": [None]}, "stop.0", "invalid_type"),
    ],
    ids=repr,
)
def test_a_bad_request_is_told_what_is_wrong(fields: JsonObject, param: str, code: str) -> None:
    with pytest.raises(Malformed) as told:
        asked(**fields)
    assert (told.value.problem.param, told.value.problem.code) == (param, code)


def test_a_prompt_must_be_there_though_it_may_be_null() -> None:
    with pytest.raises(Malformed) as told:
        TEXT.parse_request({"model": "m"}, "/completions")
    assert told.value.problem.code == "missing_required_parameter"


def test_what_is_best_is_chosen_here() -> None:
    assert asked(best_of=3, n=2).input == Completion(prompts=("Hello",), best_of=3)
    assert asked(best_of=2, n=2).input == asked(n=2).input
    assert "best_of" not in TEXT.render_request(asked(best_of=3), TODAY).body


def test_a_prompt_alone_may_be_asked_for() -> None:
    request = asked(max_tokens=0, echo=True, logprobs=0)
    assert (request.max_tokens, request.logprobs) == (0, 0)
    body = TEXT.render_request(request, Traits(dialect="openai")).body
    assert (body["max_tokens"], body["logprobs"], body["echo"]) == (0, 0, True)


def test_a_suffix_makes_a_hole() -> None:
    assert asked(suffix="b").input == Infill(prefix="Hello", suffix="b")
    assert asked(suffix="").input == asked().input


def test_a_stop_word_is_sent_as_a_list() -> None:
    # A llama-server ignores a string here.
    assert TEXT.render_request(asked(stop="END"), TODAY).body["stop"] == ["END"]


def test_what_only_llamacpp_can_read_is_refused_elsewhere() -> None:
    native = named("llamacpp")
    for prompt in (["a", 1], {"prompt_string": "a"}, [{"prompt_string": "a"}]):
        request = native.parse_request({"prompt": prompt}, "/completion")
        assert TEXT.render_request(request, TODAY).body["prompt"] == prompt
        with pytest.raises(Malformed) as told:
            TEXT.render_request(request, Traits(dialect="openai"))
        assert told.value.problem.kind == "unsupported"


def test_more_alternatives_than_openai_gives_are_reported() -> None:
    request = named("llamacpp").parse_request({"prompt": "a", "n_probs": 9}, "/completion")
    wire = TEXT.render_request(request, Traits(dialect="openai"))
    assert (wire.body["logprobs"], wire.dropped) == (5, ("logprobs",))
    wire = TEXT.render_request(request, TODAY)
    assert (wire.body["logprobs"], wire.dropped) == (9, ())
