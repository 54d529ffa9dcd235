"""The nine laws that every dialect keeps, of DESIGN.md; dialects are found, not named.

What a dialect cannot say is declared once, in `strategies.CARRIES`.
"""

from __future__ import annotations

import re
from collections.abc import Iterator
from contextlib import suppress
from pathlib import Path
from typing import Any

import msgspec
import pytest
from hypothesis import given
from hypothesis import strategies as st

from grammar import (
    CUT,
    STAMP,
    TODAY,
    check_grammar,
    framed,
    parsed,
    read,
    rendered,
    told,
    told_answer,
    usage_of,
)
from strategies import CARRIES, OWN, Carries, answers, json_values, law, made, mutated, requests
from tropilla import dialects, ir
from tropilla.dialects import Dialect
from tropilla.framing import Frame
from tropilla.ir import (
    Chat,
    ChoiceEnded,
    Completion,
    Event,
    Failed,
    Finished,
    Json,
    JsonObject,
    Malformed,
    PartEnded,
    Request,
    Traits,
)
from tropilla.templates import Classic, flatten

# A dialect that has not said what it carries fails the first test, and is not guessed at.
NAMES = tuple(name for name in dialects.names() if name in CARRIES)
FIXTURES = Path(__file__).parent / "dialects"
every_dialect = pytest.mark.parametrize("name", NAMES)
ENGINE, OTHERS = TODAY, Traits(dialect="openai", chat=True)


def test_every_dialect_says_what_it_carries() -> None:
    assert set(CARRIES) == set(dialects.names()), "strategies.CARRIES is where it is said"


def replace(request: Request, **changes: Any) -> Request:
    return msgspec.structs.replace(request, **changes)


def through_json(value: Json) -> Json:
    return msgspec.json.decode(msgspec.json.encode(value))


# 1. A request that is said is the request that was read.


@every_dialect
@given(data=st.data())
@law(40)
def test_law_1_a_request_comes_back_as_it_was(name: str, data: st.DataObject) -> None:
    dialect, request = dialects.named(name), sayable_to_others(data.draw(requests(name)))

    wire = dialect.render_request(request, OTHERS)
    assert dialect.parse_request(through_json(wire.body), wire.path) == request


def sayable_to_others(request: Request) -> Request:
    """What a server that is no llama.cpp can be told: the rest is dropped, or refused."""
    if request.dialect == "afs":
        return request
    if request.dialect == "llamacpp":
        request = sayable_to_engine(request)  # which it is said to whatever it is
    knobs = request.knobs
    known = msgspec.structs.replace(
        knobs, typical_p=None, repeat_penalty=None, mirostat=None, mirostat_tau=None,
        mirostat_eta=None,
    )  # fmt: skip
    ids = tuple(bias for bias in request.logit_bias if type(bias.token) is int)
    return replace(request, knobs=known, logit_bias=ids)


def sayable_to_engine(request: Request) -> Request:
    """What llama.cpp can be told: no field that it does not read, and no tool by its name.

    The other tools are kept from it instead.
    """
    if request.dialect != "afs":
        request = replace(request, extras={"n_keep": 3, "return_progress": True})
    if isinstance(request.input, Chat) and request.dialect not in OWN:
        return replace(request, input=msgspec.structs.replace(request.input, tool_choice=None))
    return request


@every_dialect
@given(data=st.data())
@law(40)
def test_law_1_in_llamacpps_own_forms(name: str, data: st.DataObject) -> None:
    dialect, request = dialects.named(name), sayable_to_engine(data.draw(requests(name)))

    wire = dialect.render_request(request, ENGINE)
    if request.logprobs is not None:
        # 0 alternatives would mean no probabilities at all.
        request = replace(request, logprobs=max(request.logprobs, 1))
    if not can_stream(request):
        request = replace(request, stream=False, include_usage=False)
    assert dialect.parse_request(through_json(wire.body), wire.path) == request


def can_stream(request: Request) -> bool:
    """The one thing that a llama-server gives whole or not at all: chances beside tools."""
    match request.input:
        case Chat(messages=[*_, ir.Message(role="assistant")]):
            pass  # it would begin with the client's own words
        case Chat(tools=[_, *_], tool_choice=choice) if request.dialect == "openai_chat":
            return request.logprobs is None or (choice is not None and choice.mode == "none")
    return True


@every_dialect
@given(data=st.data())
@law(25)
def test_an_upstream_is_always_asked_to_stream(name: str, data: st.DataObject) -> None:
    asked = replace(sayable_to_engine(data.draw(requests(name))), stream=False, include_usage=False)

    wire = dialects.named(name).render_request(asked, ENGINE)

    assert wire.body["stream"] is can_stream(asked)
    if CARRIES[name].include_usage and can_stream(asked):
        assert wire.body["stream_options"] == {"include_usage": True}


# 2. A stream that is told is the stream that was read.


ASKED: dict[str, list[Request]] = {}


@pytest.fixture(scope="module", autouse=True)
def asked() -> None:
    """Requests of every dialect, made once: to a stream they only give its shape."""
    for name in NAMES:
        ASKED[name] = made(requests(name))


def asking(name: str, data: st.DataObject) -> Request:
    """A request that wants whatever an answer can hold."""
    request = data.draw(st.sampled_from(ASKED[name]))
    wants = {"return_progress": True, "return_tokens": True}
    return replace(request, extras=request.extras | wants)


def same_ids(name: str) -> dict[str, bool]:
    return {"ids": CARRIES[name].ids, "details": CARRIES[name].usage_details}


@every_dialect
@given(data=st.data())
@law(40)
def test_law_2_a_stream_comes_back_as_it_was(name: str, data: st.DataObject) -> None:
    dialect, request = dialects.named(name), asking(name, data)
    events = data.draw(answers(request, CARRIES[name]))
    check_grammar(events)
    if isinstance(events[-1], Failed):
        # AFS may write a call into its text: what may still become one is lost in a failure.
        request = without_tools(request)

    again = parsed(dialect, request, [rendered(dialect, request, events)])

    assert comparable(again, CARRIES[name]) == comparable(events, CARRIES[name])


def without_tools(request: Request) -> Request:
    if not isinstance(request.input, Chat):
        return request
    return replace(request, input=msgspec.structs.replace(request.input, tools=()))


def comparable(events: list[Event], can: Carries) -> Any:
    return told(events, ids=can.ids, details=can.usage_details, late=can.ends_with_numbers)


# 3. Cut anywhere, the same bytes tell the same.


@every_dialect
@given(data=st.data())
@law(25)
def test_law_3_the_cuts_between_pieces_say_nothing(name: str, data: st.DataObject) -> None:
    dialect, request = dialects.named(name), asking(name, data)
    stream = rendered(dialect, request, data.draw(answers(request, CARRIES[name])))
    whole = parsed(dialect, request, [stream], extras=True)

    assert parsed(dialect, request, bytewise(stream), extras=True) == whole
    cuts = data.draw(st.lists(st.integers(0, len(stream)), max_size=6).map(sorted))
    ends = zip([0, *cuts], [*cuts, len(stream)], strict=True)
    assert parsed(dialect, request, [stream[a:b] for a, b in ends], extras=True) == whole
    for line_end in (b"\r\n", b"\r")[: 1 + (event_end(dialect) == b"\n\n")]:
        other = bytewise(stream.replace(b"\n", line_end))
        assert parsed(dialect, request, other, extras=True) == whole


def event_end(dialect: Dialect) -> bytes:
    return b"\n\n" if dialect.CONTENT_TYPE.startswith("text/event-stream") else b"\n"


def bytewise(data: bytes) -> Iterator[bytes]:
    return (data[i : i + 1] for i in range(len(data)))


# 4. A stream that breaks off ends in Failed, and nothing is made up.


@every_dialect
@given(data=st.data())
@law(40)
def test_law_4_what_breaks_off_has_failed(name: str, data: st.DataObject) -> None:
    dialect, request = dialects.named(name), asking(name, data)
    events = data.draw(answers(request, CARRIES[name], fail=False))
    stream = rendered(dialect, request, events)
    cuts = {match.end() for match in re.finditer(event_end(dialect), stream)}
    cuts.add(data.draw(st.integers(0, len(stream) - 1)))

    whole = parsed(dialect, request, [stream], extras=True)
    for cut in sorted(cuts):
        for broken in (CUT, None):
            parser = dialect.stream_parser(request, extras=True)
            some = read(parser, [stream[:cut]], broken, cut_by=framed(dialect))
            check_truncated(some, whole, request)
            if broken is CUT and not isinstance(some[-1], Finished):
                assert some[-1] == Failed(problem=CUT)


def check_truncated(some: list[Event], whole: list[Event], request: Request) -> None:
    """What was told is the beginning of the whole; the rest closes it, and no more."""
    if some == whole:
        return
    same = next(i for i, pair in enumerate(zip(some, whole, strict=False)) if pair[0] != pair[1])
    *closed, end = some[same:]
    assert all(isinstance(event, PartEnded) for event in closed)
    if isinstance(end, Finished):
        # Servers before b3754 close with no [DONE]: it is whole when all choices have said so.
        told_ends = sum(isinstance(event, ChoiceEnded) for event in some)
        assert told_ends == request.choices
    else:
        assert isinstance(end, Failed)


# 5. The whole answer is the fold of the streamed one.


@every_dialect
@given(data=st.data())
@law(40)
def test_law_5_a_whole_answer_is_the_fold_of_its_stream(name: str, data: st.DataObject) -> None:
    dialect, request = dialects.named(name), asking(name, data)
    events = data.draw(answers(request, CARRIES[name], fail=False))

    body = msgspec.json.decode(dialect.render_answer(ir.fold(events), request, STAMP))
    streamed = ir.fold(parsed(dialect, request, [rendered(dialect, request, events)]))

    assert told_answer(dialect.parse_answer(body), details=CARRIES[name].usage_details) == (
        told_answer(streamed, details=CARRIES[name].usage_details)
    )


TWINS = sorted(
    path for path in FIXTURES.glob("*/*") if path.suffix in {".sse", ".ndjson"}
    and path.parent.name in NAMES
)  # fmt: skip
every_twin = pytest.mark.parametrize(
    "sse", TWINS, ids=lambda path: f"{path.parent.name}-{path.stem}"
)

# Twins were asked one after the other: their ids and clocks differ, and what is counted by them.
CHANCE = {"timings", "id_slot", "tokens_cached"}
# Said of the streaming itself, or of its last chunk alone, which repeats no text.
STREAMED = {"generation_settings", "__verbose"}


def recorded(sse: Path) -> tuple[Dialect, Request, bytes, Json]:
    asked = msgspec.json.decode(sse.with_suffix(".request.json").read_bytes())
    dialect = dialects.named(sse.parent.name)
    request = dialect.parse_request(asked["body"], asked["path"])
    return (
        dialect,
        request,
        sse.read_bytes(),
        msgspec.json.decode(sse.with_suffix(".json").read_bytes()),
    )


@every_twin
def test_law_5_on_a_real_servers_twins(sse: Path) -> None:
    dialect, request, stream, body = recorded(sse)

    streamed = ir.fold(parsed(dialect, request, [stream], extras=True))
    whole = dialect.parse_answer(body)

    objects = CARRIES[dialect.NAME].objects_are_called
    assert twin(streamed, request, objects=objects) == twin(whole, request, objects=objects)


def twin(answer: ir.Answer, request: Request, *, objects: bool) -> Any:
    usage = usage_of(answer.usage)[:2]
    if request.choices > 1:
        # Unstreamed, a llama-server counts the first choice only (llama.cpp PR #27318).
        usage = ()
    wanted = bool(request.extras.get("return_tokens"))
    choices = [
        msgspec.structs.replace(
            choice,
            parts=tuple(nameless(part, objects=objects) for part in choice.parts),
            tokens=choice.tokens if wanted else [],
            extras=known(choice.extras),
        )
        for choice in answer.choices
    ]
    return choices, known(answer.extras), usage


def nameless(part: ir.Part, *, objects: bool) -> ir.Part:
    """The same part without an id; where arguments are objects, spaces in them say nothing."""
    if not isinstance(part, ir.ToolCall):
        return part
    if objects:
        said = msgspec.json.encode(msgspec.json.decode(part.arguments)).decode()
        part = msgspec.structs.replace(part, arguments=said)
    return msgspec.structs.replace(part, id="")


def known(extras: JsonObject) -> JsonObject:
    return {
        key: value if key not in STREAMED else sorted(value)
        for key, value in extras.items()
        if key not in CHANCE
    }


@every_twin
def test_nothing_is_lost_on_the_same_dialect(sse: Path) -> None:
    dialect, request, stream, body = recorded(sse)
    if dialect.NAME == "openai_completions":
        stream = without_ids(stream)
        body = msgspec.json.decode(without_ids(msgspec.json.encode(body)))
    events = parsed(dialect, request, [stream], extras=True)

    again = parsed(dialect, request, [rendered(dialect, request, events)], extras=True)

    ours = {"model": STAMP.model}
    assert everything(again, ours) == everything(events, ours)
    whole = dialect.parse_answer(body)
    body = msgspec.json.decode(dialect.render_answer(whole, replace(request, stream=False), STAMP))
    rebuilt = dialect.parse_answer(body)
    assert everything(list(ir.unfold(rebuilt)), ours) == everything(list(ir.unfold(whole)), ours)


def without_ids(told_by_server: bytes) -> bytes:
    """OpenAI's lists of token probabilities have no place for llama.cpp's token ids."""
    return re.sub(rb'"id":\d+,(?="token":)', b"", told_by_server)


def everything(events: list[Event], ours: JsonObject) -> Any:
    """All that a stream says, extras included, but for what Tropilla owns."""
    answer = ir.fold(
        msgspec.structs.replace(event, model=None) if isinstance(event, ir.Started) else event
        for event in events
    )
    choices = [
        msgspec.structs.replace(choice, extras=without_old_names(choice.extras) | ours)
        for choice in answer.choices
    ]
    return told(events), msgspec.structs.replace(answer, choices=tuple(choices), usage=None)


def without_old_names(extras: JsonObject) -> JsonObject:
    """Today's server does not say these any more; Tropilla does, for clients of 2023."""
    old = {"slot_id", "multimodal", "stopped_eos", "stopped_word", "stopped_limit"}
    kept = {name: value for name, value in extras.items() if name not in old}
    if "generation_settings" in kept:
        settings, old = (
            kept["generation_settings"],
            {"model", "tfs_z", "penalize_nl", "temp", "n_ctx"},
        )
        kept["generation_settings"] = {k: v for k, v in settings.items() if k not in old}
    return kept


@every_twin
def test_laws_3_and_4_on_a_real_servers_stream(sse: Path) -> None:
    dialect, request, stream, _ = recorded(sse)

    whole = parsed(dialect, request, [stream], extras=True)
    assert parsed(dialect, request, bytewise(stream), extras=True) == whole
    # After every event, in the middle of one, and inside a character.
    end = event_end(dialect)
    cuts = {i for i in range(len(stream)) if stream.startswith(end, i) or stream[i] > 0x7F}
    cuts |= set(range(0, len(stream), 501))
    for cut in sorted(cuts):
        for broken in (CUT, None):
            parser = dialect.stream_parser(request, extras=True)
            some = read(parser, [stream[:cut]], broken, cut_by=framed(dialect))
            check_truncated(some, whole, request)


# 6. Any front over any back tells the same.

PAIRS = [(front, back) for front in NAMES for back in NAMES]


@pytest.mark.parametrize(("front", "back"), PAIRS)
@given(data=st.data())
@law(25)
def test_law_6_any_front_over_any_back(front: str, back: str, data: st.DataObject) -> None:
    client, server = dialects.named(front), dialects.named(back)
    request = sayable_to_others(asking(front, data))
    asked = for_back(request, back)
    if asked is None:
        with pytest.raises(Malformed) as refused:
            server.render_request(request, OTHERS)
        assert refused.value.problem.kind == "unsupported"
        return
    # How far a prompt is, only a llama.cpp server tells.
    can = common(CARRIES[front], CARRIES[back])._replace(progress=False)
    events = data.draw(answers(asked, can))

    wire = server.render_request(asked, OTHERS)
    heard = server.parse_request(through_json(wire.body), wire.path)
    upstream = parsed(server, asked, [rendered(server, heard, events)])
    downstream = parsed(client, request, [rendered(client, request, upstream)])

    assert comparable(downstream, can) == comparable(events, can)


def for_back(request: Request, back: str) -> Request | None:
    """The request as the relay asks such an upstream; none where it cannot be asked."""
    inputs = CARRIES[back].inputs
    if back in OWN:
        return None if OWN[back].unsayable(request) else request
    if back == "afs":
        return None if unsayable_in_afs(request) else request
    if back == "openai_responses":
        return None if unsayable_in_responses(request) else request
    if isinstance(request.input, inputs) and not unsayable(request, back):
        return request
    if isinstance(request.input, Chat) and Completion in inputs:
        said = ir.Message(role="user", parts=(ir.Text(text="Hello."),))
        plain = replace(request, input=Chat(messages=(said,)), format=None)
        return flatten(plain, Classic()).request
    return None


def unsayable_in_afs(request: Request) -> bool:
    """It says text, and functions, one answer at a time, in no form and with no chances."""
    own = request.dialect == "afs"
    if request.n != 1 or (request.logprobs is not None and not own):
        return True
    if request.format is not None and request.format.kind != "text":
        return True
    match request.input:
        case ir.Infill(prompt=prompt):
            return bool(prompt)
        case Completion(prompts=prompts):
            return len(prompts) != 1 or not isinstance(prompts[0], str)
        case Chat(messages=messages):
            parts = [part for message in messages for part in message.parts]
            return any(isinstance(part, ir.Image | ir.Audio | ir.Opaque) for part in parts)


def unsayable_in_responses(request: Request) -> bool:
    """It is a conversation with one answer, in which an assistant says texts and calls."""
    if not isinstance(request.input, Chat) or request.n != 1:
        return True
    said = (ir.Text, ir.Refusal, ir.Reasoning, ir.ToolCall)
    messages = request.input.messages
    return (
        any(message.role == "function" for message in messages)
        or any(isinstance(part, ir.Opaque) for message in messages for part in message.parts)
        or not any(message.parts for message in messages)
        or not all(
            isinstance(part, said)
            for message in messages
            if message.role == "assistant"
            for part in message.parts
        )
    )


def unsayable(request: Request, back: str) -> bool:
    """A native request can hold what OpenAI's completions cannot."""
    if back != "openai_completions":
        return False
    if request.format is not None:
        return True
    match request.input:
        case ir.Infill(prompt=prompt):
            return prompt is not None
        case Completion(prompts=prompts):
            return any(isinstance(prompt, dict) or is_mixed(prompt) for prompt in prompts)
    return False


def is_mixed(prompt: ir.Prompt) -> bool:
    return isinstance(prompt, list) and any(isinstance(item, str) for item in prompt)


def common(one: Carries, other: Carries) -> Carries:
    return Carries(
        inputs=(),
        include_usage=True,
        most_logprobs=min(one.most_logprobs, other.most_logprobs),
        kinds=tuple(kind for kind in one.kinds if kind in other.kinds),
        reasons=tuple(reason for reason in one.reasons if reason in other.reasons),
        ids=one.ids and other.ids,
        ends_with_numbers=one.ends_with_numbers or other.ends_with_numbers,
        stop_word=one.stop_word and other.stop_word,
        tokens=one.tokens and other.tokens,
        progress=one.progress and other.progress,
        usage_details=one.usage_details and other.usage_details,
        timings=one.timings and other.timings,
        only_text_chances=one.only_text_chances or other.only_text_chances,
        calls_are_reasons=one.calls_are_reasons or other.calls_are_reasons,
        objects_are_called=one.objects_are_called or other.objects_are_called,
        calls_come_whole=one.calls_come_whole or other.calls_come_whole,
    )


# 7. Garbage is malformed, and nothing worse.


@every_dialect
@given(data=st.data())
@law(80)
def test_law_7_garbage_for_a_request(name: str, data: st.DataObject) -> None:
    dialect, wire = dialects.named(name), said(name, data)
    body = data.draw(mutated(wire.body) if data.draw(st.booleans()) else json_values)

    try:
        request = dialect.parse_request(body, data.draw(paths(dialect)))
    except Malformed:
        return
    # What was read can be said: to this kind of upstream, or it is refused.
    for traits in (ENGINE, OTHERS):
        with suppress(Malformed):
            msgspec.json.encode(dialect.render_request(request, traits).body)


def said(name: str, data: st.DataObject) -> dialects.Wire:
    return dialects.named(name).render_request(sayable_to_others(data.draw(requests(name))), OTHERS)


def paths(dialect: Dialect) -> st.SearchStrategy[str]:
    return st.sampled_from([route.path for route in dialect.ROUTES])


@every_dialect
@given(data=st.data())
@law(80)
def test_law_7_garbage_for_a_stream(name: str, data: st.DataObject) -> None:
    dialect, request = dialects.named(name), asking(name, data)
    stream = rendered(dialect, request, data.draw(answers(request, CARRIES[name])))
    frames = framed(dialect).feed(stream)
    at = data.draw(st.integers(0, len(frames) - 1))
    frames[at] = data.draw(worse(frames[at]))

    parser = dialect.stream_parser(request, extras=data.draw(st.booleans()))
    events = parser.feed(frames) + parser.end()

    check_grammar(events)
    # What was read can be told, streamed and whole.
    rendered(dialect, request, events)
    if isinstance(events[-1], Finished):
        dialect.render_answer(ir.fold(events), request, STAMP)


def worse(frame: Frame) -> st.SearchStrategy[Frame]:
    """A frame of bytes that are no JSON, of JSON that is no chunk, or of a chunk gone wrong."""
    made: st.SearchStrategy[bytes] = st.binary(max_size=20) | json_values.map(msgspec.json.encode)
    try:
        chunk = msgspec.json.decode(frame.data)
    except msgspec.DecodeError:
        pass
    else:
        made |= mutated(chunk).map(msgspec.json.encode)
    return st.builds(Frame, st.sampled_from(["", "", "error", "ping"]), made)


@every_dialect
@given(data=st.data())
@law(80)
def test_law_7_garbage_for_an_answer(name: str, data: st.DataObject) -> None:
    dialect, request = dialects.named(name), asking(name, data)
    answer = ir.fold(data.draw(answers(request, CARRIES[name], fail=False)))
    valid = msgspec.json.decode(dialect.render_answer(answer, request, STAMP))
    body = data.draw(mutated(valid) if data.draw(st.booleans()) else json_values)

    try:
        parsed_answer = dialect.parse_answer(through_json(body))
    except Malformed:
        return
    check_grammar(list(ir.unfold(parsed_answer)))
    dialect.render_answer(parsed_answer, request, STAMP)


@every_twin
def test_law_7_any_member_of_a_real_servers_words_may_be_wrong(sse: Path) -> None:
    dialect, request, stream, body = recorded(sse)
    frames = framed(dialect).feed(stream)
    # The first events, one in the middle, and those that end it.
    for at in sorted({0, 1, len(frames) // 2, *range(max(len(frames) - 3, 0), len(frames))}):
        if frames[at].data == b"[DONE]":
            continue
        for wrong in every_wrong(msgspec.json.decode(frames[at].data)):
            told_wrong = [*frames[:at], Frame("", msgspec.json.encode(wrong)), *frames[at + 1 :]]
            parser = dialect.stream_parser(request, extras=True)
            events = parser.feed(told_wrong) + parser.end()
            check_grammar(events)
            rendered(dialect, request, events)
    for wrong in every_wrong(body):
        with suppress(Malformed):
            answer = dialect.parse_answer(wrong)
            check_grammar(list(ir.unfold(answer)))
            dialect.render_answer(answer, request, STAMP)


_WRONG: tuple[Json, ...] = (None, True, 5, -1, 1.5, "", "x", [], {}, [5], {"x": 5})
# What the engine tells of its settings is passed on unread.
_UNREAD = {"generation_settings", "__verbose", "timings"}


def every_wrong(value: Json) -> Iterator[Json]:
    """The same JSON with one member dropped, or replaced by something else."""
    yield from _WRONG
    if isinstance(value, dict):
        for key in value:
            yield {name: value[name] for name in value if name != key}
            inner = _WRONG if key in _UNREAD else every_wrong(value[key])
            yield from (value | {key: wrong} for wrong in inner)
    elif isinstance(value, list):
        yield []
        yield value + value
        for at in range(min(len(value), 2)):
            yield from ([*value[:at], wrong, *value[at + 1 :]] for wrong in every_wrong(value[at]))


@every_dialect
@given(data=st.data())
@law(80)
def test_law_7_any_refusal_is_some_problem(name: str, data: st.DataObject) -> None:
    dialect = dialects.named(name)
    valid = {"error": {"message": "m", "type": "t", "code": 400, "param": None, "n_ctx": 1}}
    body = data.draw(
        st.binary(max_size=30)
        | json_values.map(msgspec.json.encode)
        | mutated(valid).map(msgspec.json.encode)
    )

    problem = dialect.parse_problem(data.draw(st.integers(300, 599)), body)

    assert isinstance(problem.message, str)
    assert problem.message
    error = msgspec.json.decode(dialect.render_problem(problem, 502))["error"]
    if type(error) is not str:
        assert set(error) >= {"message", "type"}


@every_dialect
def test_law_7_depth_is_no_weapon(name: str) -> None:
    dialect = dialects.named(name)
    asked = {"prompt": "p", "messages": [{"role": "user", "content": "c"}]}
    if name == "openai_responses":
        asked = {"input": "i"}
    elif name in OWN:
        asked = OWN[name].SMALLEST
    request = dialect.parse_request(asked, dialect.ROUTES[0].path)
    for depth in (100, 500, 900, 100_000):
        for deep in (b"[" * depth + b"]" * depth, b'{"a":' * depth + b"1" + b"}" * depth):
            assert dialect.parse_problem(400, deep).message
            assert dialect.parse_problem(400, b'{"error":{"message":%b}}' % deep).message
            parser = dialect.stream_parser(request, extras=True)
            start = b"data: " if event_end(dialect) == b"\n\n" else b""
            piece = start + deep + event_end(dialect)
            assert isinstance(read(parser, [piece], cut_by=framed(dialect))[-1], Failed)


# 8. Events nest: `check_grammar` is part of every law above; here it is shown to bite.


@every_dialect
@given(data=st.data())
@law(40)
def test_law_8_the_check_finds_any_event_out_of_place(name: str, data: st.DataObject) -> None:
    request = asking(name, data)
    events = data.draw(answers(request, CARRIES[name]))
    check_grammar(events)

    kept = [event for event in events if not isinstance(event, ir.Progress | ir.PartDelta)]
    at = data.draw(st.integers(0, len(kept) - 1))
    twice = kept[: at + 1] + kept[at:]
    with pytest.raises(AssertionError):
        check_grammar(twice)
    with pytest.raises(AssertionError):
        check_grammar(events[:-1])


# 9. Usage is told alike everywhere.


@every_dialect
@given(data=st.data())
@law(40)
def test_law_9_usage_is_one_number(name: str, data: st.DataObject) -> None:
    dialect, request = dialects.named(name), asking(name, data)
    events = data.draw(answers(request, CARRIES[name], fail=False))
    details = CARRIES[name].usage_details
    end = events[-1]
    assert isinstance(end, Finished)
    expected = usage_of(end.usage, details=details)

    streamed = ir.fold(parsed(dialect, request, [rendered(dialect, request, events)]))
    body = msgspec.json.decode(dialect.render_answer(ir.fold(events), request, STAMP))

    assert usage_of(streamed.usage, details=details) == expected
    assert usage_of(dialect.parse_answer(body).usage, details=details) == expected
