"""What a dialect can be asked, and what can be answered, for Hypothesis.

A strategy makes only what the dialect at hand can say (`Carries`), in the form in which reading
it back gives it again; so the laws compare with `==` and no excuses.
"""

from __future__ import annotations

from base64 import b64encode
from importlib import import_module
from importlib.util import find_spec
from typing import Any, NamedTuple, TypeVar

import msgspec
from hypothesis import Phase, given, settings
from hypothesis import strategies as st

from dialects.afs.asked import requests as afs_requests
from dialects.openai_responses.asked import requests as response_requests
from tropilla import ir
from tropilla.dialects import names as dialect_names
from tropilla.dialects._media import DETAILS
from tropilla.ir import (
    Chat,
    ChoiceEnded,
    Completion,
    Event,
    Failed,
    Finished,
    FinishReason,
    Infill,
    Json,
    JsonObject,
    Message,
    Part,
    PartDelta,
    PartEnded,
    PartKind,
    PartStarted,
    Progress,
    Request,
    Started,
    TokenLogprob,
    Usage,
)

Made = TypeVar("Made")


def law(examples: int = 60) -> settings:
    """A law that fails, fails for everybody: conftest.py has the same examples made everywhere."""
    return settings(
        max_examples=examples,
        report_multiple_bugs=False,
        phases=(Phase.generate, Phase.shrink),
    )


def made(strategy: st.SearchStrategy[Made], examples: int = 100) -> list[Made]:
    """So many examples, outside of a test: for what is dear to make, and much the same."""
    found = list[Made]()

    @given(strategy)
    @law(examples)
    def make(one: Made) -> None:
        found.append(one)

    make()
    return found


class Carries(NamedTuple):
    """What a dialect can say; the laws hold within this."""

    inputs: tuple[type[Chat | Completion | Infill], ...]
    include_usage: bool
    """Whether a client asks for usage in its stream, or has it anyway."""
    most_logprobs: int
    least_logprobs: int = 0
    formats: bool = False
    kinds: tuple[PartKind, ...] = ("text",)
    reasons: tuple[FinishReason, ...] = ("stop", "length", "content_filter")
    ids: bool = True
    ends_with_numbers: bool = False
    """The end of a choice waits for the numbers of the answer, and is lost where it fails."""
    stop_word: bool = False
    tokens: bool = False
    progress: bool = False
    usage_details: bool = True
    """Native counts say how much was cached only among the timings."""
    timings: bool = True
    """Without, there is no place for how much was cached either."""
    only_text_chances: bool = False
    """Of what is not text, and of the end of a choice, no probabilities are told."""
    calls_are_reasons: bool = False
    """Whether a choice ended in calls is told by the calls that it made."""
    objects_are_called: bool = False
    """The arguments of a call are the object that they are."""
    calls_come_whole: bool = False
    """Of a call that breaks off, nothing is told."""


CARRIES = {
    "openai_chat": Carries(
        inputs=(Chat,),
        include_usage=True,
        most_logprobs=20,
        formats=True,
        kinds=("text", "reasoning", "refusal", "tool_call"),
        reasons=("stop", "length", "tool_calls", "content_filter", "function_call"),
        progress=True,
    ),
    "openai_completions": Carries(inputs=(Completion, Infill), include_usage=True, most_logprobs=5),
    "llamacpp": Carries(
        inputs=(Completion, Infill),
        include_usage=False,
        most_logprobs=20,
        least_logprobs=1,
        formats=True,
        reasons=("stop", "length"),
        ids=False,
        ends_with_numbers=True,
        stop_word=True,
        tokens=True,
        progress=True,
        usage_details=False,
    ),
    "openai_responses": Carries(
        inputs=(Chat,),
        include_usage=False,
        most_logprobs=20,
        formats=True,
        kinds=("text", "reasoning", "refusal", "tool_call"),
        reasons=("stop", "length", "tool_calls", "content_filter"),
        ids=False,
        ends_with_numbers=True,
        only_text_chances=True,
        calls_are_reasons=True,
    ),
    "afs": Carries(
        inputs=(Chat, Completion, Infill),
        include_usage=False,
        most_logprobs=0,
        least_logprobs=1,
        kinds=("text", "reasoning"),
        reasons=("stop", "length", "tool_calls", "content_filter"),
        ids=False,
        ends_with_numbers=True,
        usage_details=False,
        timings=False,
    ),
}


# JSON.

words = st.text(st.characters(codec="utf-8"), max_size=8)
some = st.text(st.characters(codec="utf-8"), min_size=1, max_size=8)
names = st.from_regex(r"\A[a-z][a-z_]{0,6}\Z")
scalars = (
    st.none()
    | st.booleans()
    | st.integers(-(2**70), 2**70)
    | st.floats(allow_nan=False, allow_infinity=False)
    | words
)
json_values: st.SearchStrategy[Json] = st.recursive(
    scalars,
    lambda inner: st.lists(inner, max_size=3) | st.dictionaries(words, inner, max_size=3),
    max_leaves=8,
)
json_objects: st.SearchStrategy[JsonObject] = st.dictionaries(names, json_values, max_size=3)
# Unknown fields: with this beginning they are no dialect's own.
unknown: st.SearchStrategy[JsonObject] = st.dictionaries(
    # `null` is absent, so it is not among them.
    names.map("x_".__add__),
    json_values.filter(lambda value: value is not None),
    max_size=2,
)


def maybe(strategy: st.SearchStrategy[Any]) -> st.SearchStrategy[Any]:
    """A value, or none."""
    return st.none() | strategy


# Requests.

_amounts = st.floats(-100, 100) | st.integers(-100, 100)
_bias_tokens = st.integers(0, 2**20) | some.filter(lambda text: not text.isdecimal())
_token_ids = st.lists(st.integers(0, 2**31 - 1), min_size=1, max_size=4)
_call_parts = st.builds(
    ir.ToolCall, id=some, name=some, arguments=words, custom=st.booleans(), extras=unknown
)
_encoded = st.binary(min_size=1, max_size=6).map(lambda data: b64encode(data).decode())
_data_url = "data:image/png;base64,{}".format
_details = st.sampled_from(DETAILS)
_content = st.one_of(
    st.builds(ir.Text, text=words, extras=unknown),
    st.builds(ir.Image, url=_encoded.map(_data_url), detail=maybe(_details), extras=unknown),
    st.builds(ir.Audio, data=_encoded, format=some, extras=unknown),
    st.builds(
        ir.Opaque,
        dialect=st.just("openai_chat"),
        body=unknown.map(lambda body: {"type": "input_video"} | body),
    ),
)


@st.composite
def messages(draw: st.DrawFn) -> Message:
    """A message in the order in which JSON's members are read."""
    roles = ("system", "developer", "user", "assistant", "tool", "function")
    role: Any = draw(st.sampled_from(roles))
    assistant = role == "assistant"
    parts: list[Part] = []
    if assistant and draw(st.booleans()):
        parts.append(ir.Reasoning(text=draw(some)))
    parts += draw(st.lists(_content, min_size=0 if assistant else 1, max_size=3))
    if assistant and draw(st.booleans()):
        parts.append(ir.Refusal(text=draw(some)))
    if assistant:
        parts += draw(st.lists(_call_parts, max_size=2))
    return Message(
        role=role,
        parts=tuple(parts),
        name=draw(maybe(words)),
        tool_call_id=draw(some) if role == "tool" else None,
        extras=draw(unknown),
    )


_called = st.from_regex(r"\A[a-zA-Z0-9_-]{1,8}\Z")
# What a schema may say in any words: its own are checked.
_explained: st.SearchStrategy[JsonObject] = st.fixed_dictionaries(
    {"type": st.just("object")},
    optional={
        "description": words,
        "properties": st.dictionaries(
            words, st.fixed_dictionaries({"default": scalars.filter(lambda one: one is not None)})
        ),
    },
)
_functions = st.builds(
    ir.Tool,
    name=_called,
    description=maybe(words),
    parameters=maybe(_explained),
    strict=maybe(st.booleans()),
    extras=unknown,
)
_grammars = st.fixed_dictionaries({"definition": words, "syntax": st.just("lark")})
_customs = st.builds(
    ir.Tool,
    name=_called,
    description=maybe(words),
    custom=st.sampled_from([True]),
    form=maybe(
        st.just({"type": "text"})
        | st.fixed_dictionaries({"type": st.just("grammar"), "grammar": _grammars})
    ),
    extras=unknown,
)


@st.composite
def chats(draw: st.DrawFn) -> Chat:
    """A conversation, with tools or without, and a choice of them."""
    tools = draw(
        st.lists(_functions | _customs, max_size=2, unique_by=lambda tool: tool.name).map(tuple)
    )
    choices = [ir.ToolChoice(mode="none"), ir.ToolChoice(mode="auto")]
    if tools:
        names = tuple(tool.name for tool in tools)
        choices += [ir.ToolChoice(mode="required"), ir.ToolChoice(mode="required", only=names[:1])]
        choices += [
            ir.ToolChoice(mode="auto", only=names),
            ir.ToolChoice(mode="auto", only=names[:1]),
        ]
    return Chat(
        messages=draw(st.lists(messages(), min_size=1, max_size=3).map(tuple)),
        tools=tools,
        tool_choice=draw(maybe(st.sampled_from(choices))),
        parallel_tool_calls=draw(maybe(st.booleans())),
        reasoning_effort=draw(maybe(st.sampled_from(["none", "minimal", "low", "high", "max"]))),
    )


@st.composite
def completions(draw: st.DrawFn, dialect: str) -> Completion:
    """Prompts, in a list or alone."""
    prompts: st.SearchStrategy[Any] = words | _token_ids
    if dialect == "llamacpp":
        mixed = st.builds(lambda ids, text: [*ids, text], _token_ids, words)
        prompts |= mixed | st.fixed_dictionaries({"prompt_string": words})
    if draw(st.booleans()):
        several = draw(st.lists(prompts, min_size=1, max_size=3))
        return Completion(prompts=tuple(several), listed=True)
    echo = dialect == "openai_completions" and draw(st.booleans())
    return Completion(prompts=(draw(words if echo else prompts),), echo=echo)


@st.composite
def infills(draw: st.DrawFn, dialect: str) -> Infill:
    """A hole; OpenAI's completions know it as a suffix that is not empty."""
    if dialect == "llamacpp":
        return Infill(prefix=draw(words), suffix=draw(words), prompt=draw(maybe(words)))
    return Infill(prefix=draw(words), suffix=draw(some))


_seeds = st.integers(-1, 2**32 - 1)
knobs = st.builds(
    ir.Knobs,
    temperature=maybe(st.floats(0, 2)),
    top_k=maybe(st.integers(-1, 100)),
    top_p=maybe(st.floats(0, 1)),
    min_p=maybe(st.floats(0, 1)),
    typical_p=maybe(st.floats(0, 1)),
    presence_penalty=maybe(st.floats(-2, 2)),
    frequency_penalty=maybe(st.floats(-2, 2)),
    repeat_penalty=maybe(st.floats(0, 2)),
    mirostat=maybe(st.integers(0, 2)),
    mirostat_tau=maybe(st.floats(0, 9)),
    mirostat_eta=maybe(st.floats(0, 1)),
    seed=maybe(_seeds),
)
schemas = st.builds(
    ir.Format,
    kind=st.just("json_schema"),
    schema=maybe(_explained),
    name=maybe(_called),
    description=maybe(words),
    strict=maybe(st.booleans()),
)
_formats = {
    "openai_chat": schemas
    | st.builds(ir.Format, kind=st.sampled_from(["text", "json_object"]), schema=maybe(_explained)),
    "llamacpp": st.builds(ir.Format, kind=st.just("json_schema"), schema=json_objects),
}


@st.composite
def requests(draw: st.DrawFn, dialect: str) -> Request:
    """What a client of this dialect can ask, streamed."""
    if dialect == "afs":
        return draw(afs_requests())
    if dialect == "openai_responses":
        return draw(response_requests(knobs, unknown))
    if dialect in OWN:
        own: Request = draw(OWN[dialect].requests())
        return own
    can = CARRIES[dialect]
    asked: st.SearchStrategy[Any] = st.nothing()
    for kind, strategy in (
        (Chat, chats()),
        (Completion, completions(dialect)),
        (Infill, infills(dialect)),
    ):
        if kind in can.inputs:
            asked |= strategy
    wanted = draw(asked)
    chances = st.integers(can.least_logprobs, can.most_logprobs)
    return Request(
        dialect=dialect,
        input=wanted,
        model=draw(maybe(words)),
        stream=True,
        include_usage=can.include_usage,
        n=draw(st.integers(1, 3)),
        # More than any answer here has tokens: a native one is cut at the limit.
        max_tokens=draw(maybe(st.integers(100, 2**40))),
        stop=tuple(draw(st.lists(some, max_size=2))),
        knobs=draw(knobs),
        logit_bias=tuple(
            draw(
                st.lists(
                    st.builds(ir.Bias, token=_bias_tokens, amount=_amounts),
                    max_size=2,
                    unique_by=lambda bias: str(bias.token),
                )
            )
        ),
        logprobs=draw(maybe(chances)),
        format=draw(maybe(_formats[dialect])) if can.formats else None,
        extras=draw(unknown),
    )


# Answers.


@st.composite
def logprobs(draw: st.DrawFn, tops: int) -> list[TokenLogprob]:
    """Token probabilities in the shape that every dialect can say."""
    chance = st.floats(-100, 0)

    def entry(token: str) -> TokenLogprob:
        return {"token": token, "logprob": draw(chance), "bytes": list(token.encode())}

    def told(token: str) -> TokenLogprob:
        chosen = entry(token)
        rest = words.filter(lambda other: other != token)
        others = draw(st.lists(rest, max_size=min(max(tops - 1, 0), 2), unique=True))
        # OpenAI's completions have the one that was chosen there in any case.
        likely = [chosen, *map(entry, others)] if tops else []
        return chosen | {"top_logprobs": likely}

    return [told(token) for token in draw(st.lists(words, min_size=1, max_size=2))]


class Asked(NamedTuple):
    """A request of one client, as one upstream was asked, and what it answered."""

    request: Request
    events: list[Event]


@st.composite
def _texts(draw: st.DrawFn, kind: PartKind, can: Carries) -> list[str]:
    """What the deltas of a part say."""
    if kind == "tool_call" and can.objects_are_called:
        said = msgspec.json.encode(draw(json_objects)).decode()
        cut = draw(st.integers(1, len(said)))
        return [said[:cut], said[cut:]]
    first = words if kind == "tool_call" else some
    return [draw(first), *draw(st.lists(words, max_size=3))]


@st.composite
def _choice(draw: st.DrawFn, request: Request, index: int, can: Carries) -> list[Event]:
    told: list[Event] = []
    last: PartKind | None = None

    def extra() -> dict[str, Any]:
        wanted = request.logprobs
        told_of = last == "text" or not can.only_text_chances
        noted = wanted is not None and told_of and draw(st.booleans())
        tokens = can.tokens and draw(st.booleans())
        return {
            "logprobs": draw(logprobs(wanted or 0)) if noted else None,
            "tokens": draw(_token_ids) if tokens else None,
        }

    for kind in draw(st.lists(st.sampled_from(can.kinds), max_size=3)):
        if kind == last and kind != "tool_call":
            continue
        last = kind
        call: Any = {"id": draw(some), "name": draw(some)} if kind == "tool_call" else {}
        told.append(PartStarted(choice=index, kind=kind, **call))
        told += [PartDelta(choice=index, text=text, **extra()) for text in draw(_texts(kind, can))]
        told.append(PartEnded(choice=index))
    reason = draw(st.sampled_from(can.reasons))
    if can.calls_are_reasons and reason in {"stop", "tool_calls"}:
        called = any(isinstance(one, PartStarted) and one.kind == "tool_call" for one in told)
        reason = "tool_calls" if called else "stop"
    word = draw(maybe(some)) if can.stop_word and reason == "stop" else None
    noted = request.logprobs is not None and not can.only_text_chances and draw(st.booleans())
    told.append(
        ChoiceEnded(
            choice=index,
            reason=reason,
            stop_word=word,
            logprobs=draw(logprobs(request.logprobs or 0)) if noted else None,
        )
    )
    if can.progress and request.extras.get("return_progress"):
        count = st.integers(0, 2**20)
        step = Progress(
            choice=index,
            total=draw(count),
            cached=draw(count),
            processed=draw(count),
            time_ms=draw(count),
        )
        told.insert(draw(st.integers(0, len(told) - 1)), step)
    return told


@st.composite
def answers(draw: st.DrawFn, request: Request, can: Carries, *, fail: bool = True) -> list[Event]:
    """A stream of events that answers a request, within what `can` be said."""
    count = st.integers(0, 2**40)
    # An upstream's ids are kept; where it gives none, the renderer's stamp makes them.
    made = st.builds(Started, id=some, created=st.integers(1, 2**40), fingerprint=maybe(words))
    started = draw(made) if can.ids else Started()
    told: list[Event] = [started]
    left = [draw(_choice(request, index, can)) for index in range(request.choices)]
    while any(left):
        queue = draw(st.sampled_from([queue for queue in left if queue]))
        told.append(queue.pop(0))
    if fail and draw(st.booleans()):
        some_told = told[: draw(st.integers(1, len(told)))]
        if can.objects_are_called and isinstance(some_told[-1], PartStarted):
            some_told.pop()  # a call that ends without a word is one of no arguments
        if can.calls_come_whole:
            some_told = without_open_call(some_told)
        return broken(some_told, draw(some))
    prompt = draw(count)
    cached = draw(maybe(st.integers(0, prompt))) if can.timings else None
    timings: JsonObject | None = None
    if can.timings and (cached is not None or draw(st.booleans())):
        timings = {"prompt_ms": draw(st.floats(0, 9))}
        timings |= {} if cached is None else {"cache_n": cached}
    usage = Usage(
        prompt_tokens=prompt,
        completion_tokens=draw(count),
        cached_tokens=cached,
        reasoning_tokens=draw(maybe(count)) if can.usage_details else None,
    )
    return [*told, Finished(usage=usage, timings=timings)]


def without_open_call(told: list[Event]) -> list[Event]:
    """The same stream up to a call that has not ended."""
    for place in range(len(told) - 1, -1, -1):
        match told[place]:
            case PartStarted(kind="tool_call"):
                return told[:place]
            case PartDelta():
                continue
        break
    return told


def broken(told: list[Event], why: str) -> list[Event]:
    """The same stream, cut off here: what is open closes, then it fails."""
    opened: dict[int, Event] = {}
    for event in told:
        if isinstance(event, PartStarted):
            opened[event.choice] = event
        elif isinstance(event, PartEnded):
            del opened[event.choice]
    closed = [PartEnded(choice=index) for index in opened]
    return [*told, *closed, Failed(problem=ir.Problem(kind="upstream_failed", message=why))]


# Garbage.


@st.composite
def mutated(draw: st.DrawFn, value: Json) -> Json:
    """The same JSON with a few members dropped, replaced or said twice."""
    for _ in range(draw(st.integers(1, 3))):
        value = draw(_mutated_once(value))
    return value


@st.composite
def _mutated_once(draw: st.DrawFn, value: Json) -> Json:
    if not isinstance(value, dict | list) or not value or draw(st.integers(0, 3)) == 0:
        return draw(json_values)
    if isinstance(value, dict):
        key = draw(st.sampled_from(sorted(value)))
        match draw(st.sampled_from(["into", "into", "into", "drop", "twice"])):
            case "into":
                return value | {key: draw(_mutated_once(value[key]))}
            case "drop":
                return {name: value[name] for name in value if name != key}
            case _:
                return value | {draw(st.sampled_from(sorted(value))): value[key]}
    at = draw(st.integers(0, len(value) - 1))
    match draw(st.sampled_from(["into", "into", "into", "drop", "twice"])):
        case "into":
            return [*value[:at], draw(_mutated_once(value[at])), *value[at + 1 :]]
        case "drop":
            return value[:at] + value[at + 1 :]
        case _:
            return [*value[:at], value[at], *value[at:]]


# Dialects that say all of this themselves, in `dialects/NAME/asked.py`: `CARRIES`, `requests()`,
# whether a request is `unsayable`, and the `SMALLEST` one.

OWN: dict[str, Any] = {
    name: import_module(f"dialects.{name}.asked")
    for name in dialect_names()
    if name not in CARRIES and find_spec(f"dialects.{name}") and find_spec(f"dialects.{name}.asked")
}
CARRIES |= {name: asked.CARRIES for name, asked in OWN.items()}
