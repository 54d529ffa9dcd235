"""AFS: what a client hears, the laws for what it can say, and the double."""

from __future__ import annotations

from collections.abc import AsyncIterator
from contextlib import suppress
from pathlib import Path
from typing import TYPE_CHECKING, Any

import aiohttp
import msgspec
import pytest
from hypothesis import given
from hypothesis import strategies as st

from dialects.afs.asked import requests
from dialects.afs.told import (
    ASK,
    CALL,
    CALL_JSON,
    CONVERSATION,
    FIXTURES,
    GENERATE,
    INFILLING,
    OLD_CALL,
    PING,
    WEATHER,
    WITH_TOOLS,
    asked,
    failure,
    flat,
    foreign,
    heard,
    joined,
    last,
    said,
    with_parameters,
)
from doubles.afs import KEY, AfsDouble, Says
from grammar import CUT, STAMP, check_grammar, parsed, read, rendered
from strategies import law, mutated
from tropilla import dialects, ir
from tropilla.dialects import afs
from tropilla.dialects.afs.leaks import Leak, Leaks
from tropilla.framing import SseFramer, sse
from tropilla.ir import (
    Chat,
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
    Problem,
    Request,
    Started,
    ToolCall,
    Traits,
    Usage,
)

if TYPE_CHECKING:
    from tropilla.dialects import Dialect

    _: Dialect = afs

# What a client hears.


def spoken(*parts: tuple[Event, ...], end: ChoiceEnded, **numbers: Any) -> list[Event]:
    middle = [event for part in parts for event in part]
    return [Started(), *middle, end, Finished(**numbers)]


def text_part(*deltas: str) -> tuple[Event, ...]:
    told = [PartDelta(text=delta) for delta in deltas]
    return (PartStarted(kind="text"), *told, PartEnded())


def call_part(call: ToolCall = CALL) -> tuple[Event, ...]:
    begin = PartStarted(kind="tool_call", id=call.id, name=call.name)
    half = len(call.arguments) // 2
    told = [PartDelta(text=call.arguments[:half]), PartDelta(text=call.arguments[half:])]
    return (begin, *told, PartEnded())


def objects(request: Request, events: list[Event]) -> list[JsonObject]:
    frames = SseFramer().feed(rendered(afs, request, events))
    return [msgspec.json.decode(frame.data) for frame in frames]


def whole(request: Request, events: list[Event]) -> JsonObject:
    answer: JsonObject = msgspec.json.decode(
        afs.render_answer(ir.fold(events), request, STAMP)
    )  # fmt: skip
    return answer


NUMBERS: dict[str, Any] = {
    "usage": Usage(prompt_tokens=17, completion_tokens=200),
    "timings": {"prompt_ms": 880.4, "predicted_ms": 18_000, "predicted_n": 200},
}
NULLS = flat("", total_time_taken="0.00 sec")
LAST = {
    "total_time_taken": "18.88 sec",
    "prompt_tokens": 17,
    "generated_tokens": 200,
    "total_tokens": 217,
}


def test_a_stream_tells_deltas_and_then_the_numbers() -> None:
    events = spoken(text_part("你", "好"), end=ChoiceEnded(reason="length"), **NUMBERS)
    end = NULLS | LAST | {"finish_reason": "length"}
    assert objects(asked(ASK), events) == [
        NULLS | {"generated_text": "你"},
        NULLS | {"generated_text": "好"},
        end,
    ]
    assert whole(asked(ASK), events) == end | {"generated_text": "你好"}
    assert rendered(afs, asked(ASK), events).count(b"\n\n") == 3


@pytest.mark.parametrize(
    ("timings", "told"),
    [
        (None, "0.00 sec"),
        ({}, "0.00 sec"),
        ({"prompt_ms": None, "predicted_ms": 1234}, "1.23 sec"),
        ({"prompt_ms": "x", "predicted_ms": True}, "0.00 sec"),
    ],
)
def test_the_time_is_the_engines_own(timings: JsonObject | None, told: str) -> None:
    events = spoken(text_part("a"), end=ChoiceEnded(reason="stop"), timings=timings)
    assert objects(asked(ASK), events)[-1]["total_time_taken"] == told
    assert whole(asked(ASK), events)["total_time_taken"] == told


@pytest.mark.parametrize(
    ("end", "told"),
    [
        (ChoiceEnded(reason="stop"), "eos_token"),
        (ChoiceEnded(reason="stop", stop_word="END"), "stop_sequence"),
        (ChoiceEnded(reason="stop", stop_word=""), "stop_sequence"),
        (ChoiceEnded(reason="length"), "length"),
        (ChoiceEnded(reason="content_filter"), "content_filter"),
    ],
)
def test_reasons_are_in_afss_words(end: ChoiceEnded, told: str) -> None:
    events = spoken(text_part("a"), end=end)
    assert objects(asked(ASK), events)[-1]["finish_reason"] == told
    assert whole(asked(ASK), events)["finish_reason"] == told


def test_calls_in_the_form_that_the_client_used() -> None:
    events = spoken(text_part("Wait."), call_part(), end=ChoiceEnded(reason="tool_calls"))

    first, end = objects(WITH_TOOLS, events)
    assert (first["generated_text"], end["generated_text"]) == ("Wait.", "")
    assert end["tool_calls"] == [CALL_JSON | {"index": 0}]
    assert (end["function_call"], end["finish_reason"]) == (None, "tool_calls")
    assert whole(WITH_TOOLS, events) == end | {"generated_text": "Wait."}

    old = asked(ASK | {"functions": [WEATHER]})
    first, end = objects(old, events)
    assert (end["function_call"], end["finish_reason"]) == (OLD_CALL, "function_call")
    assert "tool_calls" not in end
    assert whole(old, events) == end | {"generated_text": "Wait."}


def test_no_call_is_lost_to_the_old_form() -> None:
    other = ToolCall(id="", name="get_weather", arguments="{}")
    events = spoken(call_part(), call_part(other), end=ChoiceEnded(reason="tool_calls"))
    (end,) = objects(asked(ASK | {"functions": [WEATHER]}), events)
    assert end["function_call"] == OLD_CALL
    assert [call["id"] for call in end["tool_calls"]] == ["call_9", "call_u_1"]


def test_reasoning_is_beside_the_text_and_refusal_is_text() -> None:
    def part(kind: Any, text: str) -> tuple[Event, ...]:
        return (PartStarted(kind=kind), PartDelta(text=text), PartEnded())

    end = ChoiceEnded(reason="stop")
    events = spoken(part("reasoning", "hm"), text_part("a"), part("refusal", " no"), end=end)
    thought, *texts, _ = objects(asked(ASK), events)
    assert (thought["reasoning_content"], thought["generated_text"]) == ("hm", "")
    assert [one["generated_text"] for one in texts] == ["a", " no"]
    answer = whole(asked(ASK), events)
    assert (answer["reasoning_content"], answer["generated_text"]) == ("hm", "a no")


def test_probabilities_only_where_they_were_asked_for() -> None:
    entry = {"id": 5, "token": "a", "logprob": -0.5, "bytes": [97], "top_logprobs": []}
    part = (PartStarted(kind="text"), PartDelta(text="a", logprobs=[entry]), PartEnded())
    events = spoken(part, end=ChoiceEnded(reason="stop"))
    shown = asked(with_parameters(show_probabilities=True))
    details = {"tokens": [{"id": 5, "text": "a", "logprob": -0.5}]}
    assert objects(shown, events)[0]["details"] == details
    assert whole(shown, events)["details"] == details
    assert objects(asked(ASK), events)[0]["details"] is None


def test_errors_are_where_every_client_of_afs_looks() -> None:
    problem = Problem(kind="malformed", message="No.", param="parameters.top_k")
    for body in (
        afs.render_problem(problem, 400),
        rendered(afs, asked(ASK), [Failed(problem=problem)])[len(b"data: ") :],
    ):
        told = msgspec.json.decode(body)
        assert told["detail"] == "No."
        assert told["error"]["message"] == "No."
        assert told["error"]["param"] == "parameters.top_k"


def test_a_ping_is_one_that_clients_of_afs_know() -> None:
    assert heard(afs.PING, last("a")) == heard(last("a"))
    assert PING.startswith(afs.PING.partition(b" 1970")[0])


# The laws, for what AFS can say.


@given(asked_for=requests(), shown=st.booleans())
@law(200)
def test_law_1_a_request_comes_back_as_it_was(asked_for: Request, *, shown: bool) -> None:
    request = msgspec.structs.replace(asked_for, logprobs=0 if shown else None)
    path = {Chat: CONVERSATION, Completion: GENERATE, Infill: INFILLING}[type(request.input)]
    wire = afs.render_request(request, Traits())
    assert (wire.path, wire.dropped) == (path, ())
    assert wire.body["stream"] is True
    body = msgspec.json.decode(msgspec.json.encode(wire.body))
    assert afs.parse_request(body, "/text-generation/api/v4" + path) == request


FILES = sorted(FIXTURES.rglob("*.sse"))
every_file = pytest.mark.parametrize("path", FILES, ids=lambda path: path.stem)


def recorded(path: Path) -> tuple[Request, bytes, JsonObject]:
    told = msgspec.json.decode(path.with_suffix(".request.json").read_bytes())
    body = msgspec.json.decode(path.with_suffix(".json").read_bytes())
    return afs.parse_request(told["body"], told["path"]), path.read_bytes(), body


def test_there_are_fixtures() -> None:
    assert len(FILES) == 6


@every_file
def test_laws_of_the_fixtures(path: Path) -> None:
    request, data, body = recorded(path)
    events = parsed(afs, request, [data], extras=True)
    bytewise = [data[i : i + 1] for i in range(len(data))]

    assert parsed(afs, request, bytewise, extras=True) == events
    assert afs.parse_answer(body) == ir.fold(events)
    # Whatever is missing of it, it has failed, but for what comes after its reason.
    for cut in range(len(data)):
        part = read(afs.stream_parser(request, extras=True), [data[:cut]], CUT)
        check_grammar(part)
        assert part == events or part[-1] == Failed(problem=CUT)
        part = read(afs.stream_parser(request, extras=True), [data[:cut]])
        assert isinstance(part[-1], Failed) or b'"finish_reason":"' in data[:cut]


@every_file
def test_nothing_is_lost_between_afs_and_afs(path: Path) -> None:
    request, data, body = recorded(path)
    events = parsed(afs, request, [data], extras=True)
    again = parsed(afs, request, [rendered(afs, request, events)], extras=True)
    assert ir.fold(again) == ir.fold(events)
    told = msgspec.json.decode(afs.render_answer(ir.fold(events), request, STAMP))
    for call in told.get("tool_calls", ()):
        del call["index"]
    assert told == body


@every_file
@given(data=st.data())
@law(60)
def test_garbage_is_malformed_and_nothing_worse(path: Path, data: st.DataObject) -> None:
    request, bytes_, body = recorded(path)
    frames = [frame for frame in SseFramer().feed(bytes_) if frame.data.startswith(b"{")]
    broken = []
    for frame in frames:
        try:
            chunk = msgspec.json.decode(frame.data)
        except msgspec.DecodeError:
            continue
        broken.append(sse(msgspec.json.encode(data.draw(mutated(chunk)))))
    parsed(afs, request, broken, extras=data.draw(st.booleans()))
    try:
        answer = afs.parse_answer(data.draw(mutated(body)))
    except Malformed:
        pass
    else:
        afs.render_answer(answer, request, STAMP)
    told = msgspec.json.decode(path.with_suffix(".request.json").read_bytes())
    mutant = data.draw(mutated(told["body"]))
    if isinstance(mutant, dict):
        with suppress(Malformed):
            afs.render_request(afs.parse_request(mutant, told["path"]), Traits())
    afs.parse_problem(500, msgspec.json.encode(mutant))


@given(text=st.text('tol<function=f>{}"/ \n', max_size=80), sizes=st.lists(st.integers(1, 9)))
@law(200)
def test_leaks_are_the_same_however_they_are_cut(text: str, sizes: list[int]) -> None:
    one, other = Leaks(), Leaks()
    told: list[str | Leak] = []
    rest = text
    for size in sizes:
        told += other.feed(rest[:size])
        rest = rest[size:]
    told += other.feed(rest)
    assert joined(told + other.end()) == joined(one.feed(text) + one.end())


# The double that later tests ask is AFS as this dialect knows it.


@pytest.fixture
async def deployment(anyio_backend: Any) -> AsyncIterator[AfsDouble]:  # noqa: ARG001
    double = AfsDouble()
    await double.start()
    yield double
    await double.stop()


async def posted(double: AfsDouble, wire: dialects.Wire, key: str = KEY) -> tuple[int, str, bytes]:
    headers = {"X-API-KEY": key, "X-API-HOST": "afs-inference"}
    async with (
        aiohttp.ClientSession() as session,
        session.post(double.url + wire.path, json=wire.body, headers=headers) as answer,
    ):
        return answer.status, answer.content_type, await answer.read()


CALLS = ({"name": "get_weather", "arguments": CALL.arguments},)


@pytest.mark.anyio
@pytest.mark.parametrize(
    "says",
    [
        Says(),
        Says(pings=True, done=True),
        Says(old=True),
        Says(extra=b'data: {"generated_text":"br\n\n'),
        Says(finish_reason="length"),
        Says(calls=CALLS, finish_reason="tool_calls"),
    ],
)
@pytest.mark.parametrize(
    "request_",
    [
        foreign(),
        WITH_TOOLS,
        asked(ASK | {"functions": [WEATHER]}),
        foreign(input=Completion(prompts=("a",))),
        foreign(input=Infill(prefix="a", suffix="b")),
    ],
    ids=["chat", "tools", "functions", "raw", "hole"],
)
async def test_over_http(deployment: AfsDouble, says: Says, request_: Request) -> None:
    deployment.says = [says]
    wire = said(request_)
    status, kind, data = await posted(deployment, wire)
    assert (status, kind) == (200, "text/event-stream")
    streamed = ir.fold(parsed(afs, request_, [data], extras=True))

    unstreamed = msgspec.structs.replace(wire, body=wire.body | {"stream": False})
    status, kind, data = await posted(deployment, unstreamed)
    assert (status, kind) == (200, "application/json")
    assert afs.parse_answer(msgspec.json.decode(data)) == streamed
    assert streamed.choices[0].text() == "你好。"
    assert len(streamed.choices[0].tool_calls) == (0 if says.old else len(says.calls))


@pytest.mark.anyio
async def test_refusals_over_http(deployment: AfsDouble) -> None:
    status, _, data = await posted(deployment, said(foreign()), key="other")
    assert (status, afs.parse_problem(status, data).kind) == (401, "upstream_failed")

    cold = msgspec.structs.replace(said(foreign()), body=with_parameters(temperature=0))
    status, _, data = await posted(deployment, cold)
    problem = afs.parse_problem(status, data)
    assert (status, problem.kind, problem.param) == (422, "malformed", "parameters.temperature")

    deployment.says = [Says(status=429, body={"detail": "Slow down."}), Says(cut=True)]
    status, _, data = await posted(deployment, said(foreign()))
    assert afs.parse_problem(status, data).kind == "limited"

    _, _, data = await posted(deployment, said(foreign()))
    assert failure(parsed(afs, foreign(), [data])).retryable
    assert len(deployment.asked) == 4
    assert deployment.asked[-1].headers["x-api-host"] == "afs-inference"
