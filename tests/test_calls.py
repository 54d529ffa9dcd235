"""What is promised about tool calls: custom tools as functions, and answers held to the choice."""

from __future__ import annotations

import json  # noqa: TID251 - it writes ASCII alone, and reads half a pair of surrogates
from itertools import pairwise
from typing import Any

import msgspec
import pytest
from hypothesis import given
from hypothesis import strategies as st

from grammar import check_grammar
from strategies import law
from tropilla import calls, ir
from tropilla.calls.customs import Unwrapped
from tropilla.ir import (
    Chat,
    ChoiceEnded,
    Event,
    Failed,
    Finished,
    Message,
    PartDelta,
    PartEnded,
    PartStarted,
    Progress,
    Request,
    Started,
    Text,
    Tool,
    ToolCall,
    ToolChoice,
)

SAID = (Message(role="user", parts=(Text(text="Hi"),)),)
ONE, TWO = Tool(name="one"), Tool(name="two")
RAW = Tool(name="raw", description="Runs it.", custom=True)


def asked(*tools: Tool, n: int = 1, **chat: Any) -> Request:
    return Request(dialect="openai_chat", input=Chat(messages=SAID, tools=tools, **chat), n=n)


def called(name: str, *pieces: str, choice: int = 0) -> list[Event]:
    deltas = [PartDelta(choice=choice, text=piece) for piece in pieces]
    start = PartStarted(choice=choice, kind="tool_call", id="c", name=name)
    return [start, *deltas, PartEnded(choice=choice)]


def text(said: str, choice: int = 0) -> list[Event]:
    start = PartStarted(choice=choice, kind="text")
    return [start, PartDelta(choice=choice, text=said), PartEnded(choice=choice)]


def ended(reason: Any = "tool_calls", choice: int = 0) -> list[Event]:
    return [ChoiceEnded(choice=choice, reason=reason)]


DONE = Finished(usage=ir.Usage(prompt_tokens=1, completion_tokens=2))


def heard(request: Request, *parts: list[Event]) -> list[Event]:
    """What is left of an answer; the same, however it comes."""
    whole: list[Event] = [Started(), *(event for part in parts for event in part), DONE]
    at_once, singly = calls.held(request), calls.held(request)
    assert at_once is not None
    assert singly is not None
    told = at_once.feed(whole)
    assert [one for event in whole for one in singly.feed([event])] == told
    assert at_once.hit == singly.hit
    check_grammar(told)
    return told


def why(told: list[Event]) -> str:
    last = told[-1]
    assert isinstance(last, Failed)
    assert last.problem.kind == "upstream_failed"
    assert not last.problem.retryable
    return last.problem.message


# The choice.


def test_nothing_is_held_that_was_not_promised() -> None:
    for request in (
        asked(),
        asked(ONE),
        asked(ONE, tool_choice=ToolChoice(mode="auto"), parallel_tool_calls=True),
        asked(tool_choice=ToolChoice(mode="none")),
        Request(dialect="llamacpp", input=ir.Completion(prompts=("a",))),
    ):
        assert calls.held(request) is None


def test_an_answer_without_a_call_that_was_required_fails() -> None:
    request = asked(ONE, tool_choice=ToolChoice(mode="required"))
    told = heard(request, text("No."), ended("stop"))
    assert "without a call" in why(told)
    assert told[1:-1] == text("No."), "text that came before stands"


@pytest.mark.parametrize("reason", ["length", "content_filter"])
def test_one_that_was_cut_short_may_have_been_on_its_way(reason: Any) -> None:
    request = asked(ONE, tool_choice=ToolChoice(mode="required"))
    answer = [*text("I th"), *ended(reason)]
    assert heard(request, answer) == [Started(), *answer, DONE]


def test_a_call_that_was_required_comes_through() -> None:
    request = asked(ONE, TWO, tool_choice=ToolChoice(mode="required", only=("two",)))
    answer = [*called("two", "{}"), *ended()]
    assert heard(request, answer) == [Started(), *answer, DONE]


@pytest.mark.parametrize("mode", ["auto", "required"])
def test_a_call_of_another_tool_than_allowed_fails(mode: Any) -> None:
    request = asked(ONE, TWO, tool_choice=ToolChoice(mode=mode, only=("two",)))
    told = heard(request, text("Hm."), called("one", "{}"), ended())
    assert "called 'one'" in why(told)
    assert told[1:-1] == text("Hm."), "nothing of the call is told"


def test_a_call_where_there_may_be_none_fails() -> None:
    told = heard(asked(ONE, tool_choice=ToolChoice(mode="none")), called("one", "{}"), ended())
    assert "was not to call" in why(told)


def test_what_is_open_in_another_choice_is_closed() -> None:
    request = asked(ONE, n=2, tool_choice=ToolChoice(mode="none"))
    told = heard(
        request, [PartStarted(choice=1, kind="text"), PartDelta(choice=1, text="a")], called("one")
    )
    assert told[-2] == PartEnded(choice=1)
    assert why(told)


def test_a_tool_that_was_not_offered_is_the_clients_to_judge() -> None:
    request = asked(ONE, tool_choice=ToolChoice(mode="required"))
    answer = [*called("other", "{}"), *ended()]
    assert heard(request, answer) == [Started(), *answer, DONE]


# One call alone.


def test_the_second_call_is_cut_and_the_upstream_left() -> None:
    request = asked(ONE, parallel_tool_calls=False)
    told = heard(request, text("So"), called("one", "{", "}"), called("one", "{}"), ended())
    assert told == [Started(), *text("So"), *called("one", "{", "}"), *ended(), Finished()]


def test_what_is_whole_is_not_cut() -> None:
    request = asked(ONE, parallel_tool_calls=False)
    answer = [*called("one", "{}"), *text("Done."), *ended()]
    assert heard(request, answer) == [Started(), *answer, DONE]


def test_one_choice_is_cut_and_the_other_goes_on() -> None:
    request = asked(ONE, parallel_tool_calls=False, n=2)
    late = Progress(total=1, cached=0, processed=1, time_ms=1)
    first = [*called("one"), *called("one"), late]
    told = heard(request, first, text("a", 1), ended(), ended("stop", 1))
    expected = [*called("one"), *ended(), *text("a", 1), *ended("stop", 1)]
    assert told == [Started(), *expected, DONE]


# Custom tools.


def test_a_custom_tool_is_a_function_of_one_text() -> None:
    call = ToolCall(id="c", name="raw", arguments='a "b"\n', custom=True)
    request = asked(ONE, RAW)
    chat = request.input
    assert isinstance(chat, Chat)
    said = (*SAID, Message(role="assistant", parts=(call,)))
    request = msgspec.structs.replace(request, input=msgspec.structs.replace(chat, messages=said))
    told, lost = calls.fitted(request)
    assert lost == ()
    assert isinstance(told.input, Chat)
    one, raw = told.input.tools
    assert one == ONE
    assert isinstance(raw, Tool)
    assert (raw.name, raw.description, raw.custom) == ("raw", "Runs it.", False)
    assert raw.parameters is not None
    assert (raw.parameters["required"], list(raw.parameters["properties"])) == (
        ["input"],
        ["input"],
    )
    (part,) = told.input.messages[1].parts
    assert part == ToolCall(id="c", name="raw", arguments='{"input":"a \\"b\\"\\n"}')
    assert calls.fitted(told) == (told, ()), "what is fitted is fitted"


@pytest.mark.parametrize(
    "form",
    [
        {"type": "grammar", "grammar": {"syntax": "lark", "definition": "start: X"}},
        {"type": "grammar", "syntax": "lark", "definition": "start: X"},
    ],
    ids=["chat", "responses"],
)
def test_a_grammar_is_told_to_the_model_and_its_loss_to_the_client(form: Any) -> None:
    told, lost = calls.fitted(asked(msgspec.structs.replace(RAW, form=form)))
    assert lost == ("format",)
    assert isinstance(told.input, Chat)
    assert "start: X" in str(told.input.tools[0].parameters)  # type: ignore[union-attr]


def test_nothing_else_is_touched() -> None:
    request = asked(ONE, TWO)
    assert calls.fitted(request)[0] is request
    text_ = Request(dialect="llamacpp", input=ir.Completion(prompts=("a",)))
    assert calls.fitted(text_)[0] is text_


def test_a_call_of_it_is_told_as_text() -> None:
    request, _ = calls.fitted(asked(ONE, RAW))
    told = heard(
        request, called("raw", '{"in', 'put": "pri', "nt(\\", 'n)"}'), called("one", "{}"), ended()
    )
    start = PartStarted(kind="tool_call", id="c", name="raw", custom=True)
    deltas = [PartDelta(text="pri"), PartDelta(text="nt("), PartDelta(text="\n)")]
    assert told[1:-2] == [start, *deltas, PartEnded(), *called("one", "{}")]


def test_what_comes_beside_the_text_is_kept() -> None:
    request, _ = calls.fitted(asked(RAW))
    chances = PartDelta(text="{", logprobs=[{"token": "{", "logprob": -1.0}])
    start = PartStarted(kind="tool_call", id="c", name="raw")
    told = heard(request, [start, chances, PartDelta(text="x"), PartEnded()], ended())
    assert told[2] == msgspec.structs.replace(chances, text="")
    assert told[3] == PartDelta(text="{x")


def unwrapped(*pieces: str) -> str:
    one = Unwrapped()
    return "".join([*(one.feed(piece) for piece in pieces), one.end()])


def cut(written: str, data: st.DataObject) -> list[str]:
    places = data.draw(st.lists(st.integers(0, len(written)), max_size=6).map(sorted))
    edges = [0, *places, len(written)]
    return [written[a:b] for a, b in pairwise(edges)]


@given(
    said=st.text(), ascii_=st.booleans(), space=st.sampled_from(["", " ", "\n\t"]), data=st.data()
)
@law(300)
def test_json_is_unwrapped_however_it_is_cut(
    said: str, *, ascii_: bool, space: str, data: st.DataObject
) -> None:
    inner = json.dumps(said, ensure_ascii=ascii_)
    written = f'{space}{{{space}"input"{space}:{space}{inner}{space}}}{space}'
    told = said.encode("utf-16", "surrogatepass").decode("utf-16", "replace")
    assert unwrapped(*cut(written, data)) == told
    assert unwrapped(*written) == told


_escapes = [r"\n", r"\/", r"\b", r"\f", r"\r", r"\t", r"\"", r"\\"]
_halves = [r"\ud83d", r"\ude00", r"\uD83D\uDE00"]
_units = st.integers(0, 0xFFFF).map("\\u{:04x}".format) | st.sampled_from(
    [*_escapes, *_halves, "a", "\U0001f600"]
)


@given(units=st.lists(_units, max_size=8), data=st.data())
@law(300)
def test_every_escape_is_read_as_json_reads_it(units: list[str], data: st.DataObject) -> None:
    inner = "".join(units)
    expected = json.loads(f'"{inner}"').encode("utf-16", "surrogatepass")
    told = unwrapped(*cut(f'{{"input":"{inner}"}}', data))
    assert told == expected.decode("utf-16", "replace")


@given(written=st.text('{}"input:\\u0d a', max_size=20), data=st.data())
@law(300)
def test_what_is_not_of_the_form_is_the_text(written: str, data: st.DataObject) -> None:
    told = unwrapped(*cut(written, data))
    assert told == unwrapped(written), "it does not matter how it comes"
    if not "".join(written.split(" ")).startswith('{"input":"'):
        assert told == written


@pytest.mark.parametrize(
    ("written", "told"),
    [
        ('{"code":"x"}', '{"code":"x"}'),
        ("print(1)", "print(1)"),
        ("", ""),
        ('{"inp', '{"inp'),
        ('{"input":5}', '{"input":5}'),
        ('{"input":"a', "a"),
        ('{"input":"a\\', "a"),
        ('{"input":"a\\u00', "a"),
        ('{"input":"a\\q\\uzzzz"}', "a\\q\\uzzzz"),
        ('{"input":"a\\ud83d', "a\ufffd"),
        ('{"input":"a","more":"b"}', "a"),
    ],
)
def test_odd_ones(written: str, told: str) -> None:
    assert unwrapped(written) == unwrapped(*written) == told
