"""The fold of a stream, and the stream of a whole answer."""

from __future__ import annotations

from typing import Any

import msgspec
import pytest
from hypothesis import given
from hypothesis import strategies as st

from grammar import check_grammar
from strategies import CARRIES, answers, json_objects, law, requests
from tropilla import dialects, ir
from tropilla.ir import (
    Answer,
    Choice,
    ChoiceEnded,
    Event,
    Extras,
    Failed,
    Finished,
    Malformed,
    PartDelta,
    PartEnded,
    PartStarted,
    Problem,
    ProblemError,
    Progress,
    Reasoning,
    Request,
    Started,
    Text,
    ToolCall,
    Usage,
    fold,
    unfold,
)

REQUEST = dialects.named("openai_completions").parse_request({"prompt": "a"}, "/completions")


def test_a_stream_folds_into_its_answer() -> None:
    entry = {"token": "a", "logprob": 0.0}
    first = Extras(top={"t": 1, "u": 1}, choice={"c": 1}, part={"s": "x", "l": [1], "n": 1})
    second = Extras(top={"t": 2}, choice={"c": 2}, part={"s": "y", "l": [2], "n": 2})
    told: list[Event] = [
        Started(id="i", model="m", created=5, fingerprint="f"),
        Progress(total=2, cached=0, processed=1, time_ms=1, extras=Extras(top={"gone": 1})),
        PartStarted(kind="reasoning"),
        PartDelta(text="r", extras=first),
        PartEnded(),
        PartStarted(kind="text"),
        PartDelta(text="a", logprobs=[entry], tokens=[1]),
        PartDelta(text="b", logprobs=[entry], tokens=[2], extras=second),
        PartEnded(),
        PartStarted(kind="tool_call", id="c", name="n"),
        PartDelta(text="{"),
        PartDelta(text="}"),
        PartEnded(),
        ChoiceEnded(reason="stop", stop_word="w", logprobs=[entry]),
        Finished(usage=Usage(prompt_tokens=1), timings={"x": 1}, extras=Extras(top={"v": 3})),
    ]

    answer = fold(told)

    assert answer == Answer(
        id="i",
        model="m",
        created=5,
        fingerprint="f",
        choices=(
            Choice(
                parts=(
                    Reasoning(text="r"),
                    Text(text="ab"),
                    ToolCall(id="c", name="n", arguments="{}"),
                ),
                reason="stop",
                stop_word="w",
                logprobs=[entry] * 3,
                tokens=[1, 2],
                extras={"c": 2},
                part_extras={"s": "xy", "l": [1, 2], "n": 2},
            ),
        ),
        usage=Usage(prompt_tokens=1),
        timings={"x": 1},
        extras={"t": 2, "u": 1, "v": 3},
    )


def test_choices_interleave_and_come_out_in_order() -> None:
    told: list[Event] = [Started()]
    told += [PartStarted(choice=index, kind="text") for index in (2, 0, 1)]
    told += [PartDelta(choice=index, text=str(index)) for index in (1, 2, 0, 1, 2)]
    for index in (1, 0, 2):
        told += [PartEnded(choice=index), ChoiceEnded(choice=index, reason="stop")]

    answer = fold([*told, Finished()])

    assert [choice.text() for choice in answer.choices] == ["0", "11", "22"]


def test_a_failed_stream_has_no_answer() -> None:
    problem = Problem(kind="timeout", message="m")
    with pytest.raises(ProblemError) as told:
        fold([Started(), Failed(problem=problem)])
    assert told.value.problem == problem


@pytest.mark.parametrize("told", [[], [Started()], [Started(), ChoiceEnded(reason="stop")]])
def test_a_stream_with_no_end_has_no_answer(told: list[Event]) -> None:
    with pytest.raises(ProblemError) as raised:
        fold(told)
    assert raised.value.problem.kind == "upstream_failed"


@pytest.mark.parametrize("name", sorted(CARRIES))
@given(data=st.data())
@law(60)
def test_unfolding_tells_what_the_fold_puts_together(name: str, data: st.DataObject) -> None:
    events = data.draw(answers(data.draw(requests(name)), CARRIES[name], fail=False))
    answer = msgspec.structs.replace(fold(events), extras=data.draw(json_objects))

    told = list(unfold(answer))

    check_grammar(told)
    assert fold(told) == answer


def test_what_comes_with_a_choice_of_no_parts_is_not_lost() -> None:
    choice = Choice(reason="stop", extras={"c": 1}, part_extras={"p": 2}, logprobs=[{"token": ""}])
    assert fold(unfold(Answer(choices=(choice,)))).choices == (choice,)


def test_a_refused_part_is_left_out_of_a_stream() -> None:
    parts = (ir.Image(url="data:,"), Text(text="a"))
    told = list(unfold(Answer(choices=(Choice(parts=parts),))))
    check_grammar(told)
    assert fold(told).choices[0].text() == "a"


def test_a_choice_without_a_reason_has_stopped() -> None:
    ended = [e for e in unfold(Answer(choices=(Choice(),))) if isinstance(e, ChoiceEnded)]
    assert [event.reason for event in ended] == ["stop"]


def test_the_number_of_choices() -> None:
    def wanted(input_: Any, n: int) -> int:
        return msgspec.structs.replace(REQUEST, input=input_, n=n).choices

    assert wanted(ir.Completion(prompts=("a", "b")), 3) == 6
    assert wanted(ir.Infill(prefix="", suffix=""), 3) == 3
    assert wanted(ir.Chat(messages=()), 2) == 2


def test_values_do_not_change_and_are_equal_by_content() -> None:
    usage = Usage(prompt_tokens=1, completion_tokens=2)
    assert usage == Usage(prompt_tokens=1, completion_tokens=2)
    assert usage.total_tokens == 3
    with pytest.raises(AttributeError):
        usage.prompt_tokens = 5  # type: ignore[misc]


def test_two_requests_share_no_extras() -> None:
    def fresh() -> Request:
        return Request(dialect="d", input=ir.Infill(prefix="", suffix=""))

    fresh().extras["x"] = 1
    assert fresh().extras == {}


def test_malformed_is_a_problem_on_its_way_up() -> None:
    error = Malformed("m", param="p", code="c")
    assert isinstance(error, ProblemError)
    assert error.problem == Problem(kind="malformed", message="m", param="p", code="c")
    assert str(error) == "m"


def test_unfolded_without_extras_nothing_of_its_dialect_is_left() -> None:
    choice = Choice(parts=(Text(text="hi"),), reason="stop", extras={"a": 1}, part_extras={"b": 2})
    answer = Answer(choices=(choice,), extras={"c": 3})
    events = list(unfold(answer, extras=False))
    assert all(getattr(event, "extras", None) is None for event in events)
    assert fold(events).choices[0].parts == choice.parts
