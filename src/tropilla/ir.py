"""The intermediate representation: what is asked, and what is answered, in no dialect at all.

A client's bytes become a `Request`; what an upstream says becomes a stream of events; and a
whole answer is nothing but the fold of that stream (`fold`), so that the streamed and the
unstreamed form of a reply cannot differ.

The order of events is the grammar that every dialect's parser promises and every renderer may
rely on. Per choice::

    Started  ( Progress | PartStarted PartDelta* PartEnded )*  ChoiceEnded  ...  Finished | Failed

One part of a choice is open at a time; choices may interleave; there is one terminal event and
nothing follows it. A stream that breaks off closes what is open and ends in `Failed`.

This module holds values only: it reads no bytes, no clock and no socket, and knows no dialect.
"""

from __future__ import annotations

from collections.abc import Iterable, Iterator, Mapping
from typing import Any, Literal, TypeAlias

import msgspec

Json: TypeAlias = Any
"""A decoded JSON value."""

JsonObject: TypeAlias = dict[str, Any]


class Value(msgspec.Struct, frozen=True, kw_only=True):
    """An immutable value, equal to every other with the same content."""


# What is asked.

Role: TypeAlias = Literal["system", "developer", "user", "assistant", "tool", "function"]


class Text(Value, frozen=True, kw_only=True):
    """Plain text of a message, or of an answer."""

    text: str
    extras: JsonObject = {}


class Reasoning(Value, frozen=True, kw_only=True):
    """What the model thought before it answered."""

    text: str


class Refusal(Value, frozen=True, kw_only=True):
    """Why the assistant would not answer."""

    text: str


class ToolCall(Value, frozen=True, kw_only=True):
    """A call that the assistant asks for; `arguments` is the JSON text exactly as written.

    A `custom` tool's are free text.
    """

    id: str
    name: str
    arguments: str
    custom: bool = False
    extras: JsonObject = {}


class Image(Value, frozen=True, kw_only=True):
    """An image, as a `data:` URL."""

    url: str
    detail: str | None = None
    extras: JsonObject = {}


class Audio(Value, frozen=True, kw_only=True):
    """Recorded sound, as base64."""

    data: str
    format: str
    extras: JsonObject = {}


class Opaque(Value, frozen=True, kw_only=True):
    """A part or a tool that only the dialect named in `dialect` can say; kept verbatim."""

    dialect: str
    body: JsonObject


Part: TypeAlias = Text | Reasoning | Refusal | ToolCall | Image | Audio | Opaque


class Message(Value, frozen=True, kw_only=True):
    """One message of a conversation. No parts at all is JSON's `null` content."""

    role: Role
    parts: tuple[Part, ...] = ()
    name: str | None = None
    tool_call_id: str | None = None
    extras: JsonObject = {}


class Tool(Value, frozen=True, kw_only=True):
    """A function that the model may call; `parameters` is a JSON Schema.

    A `custom` one takes free text instead, of a `form` if it has one (OpenAI's `format`).
    """

    name: str
    description: str | None = None
    parameters: JsonObject | None = None
    strict: bool | None = None
    custom: bool = False
    form: JsonObject | None = None
    extras: JsonObject = {}
    beside: JsonObject = {}
    """What stands beside the function, where a wire has place for that."""


class ToolChoice(Value, frozen=True, kw_only=True):
    """Whether tools may or must be called, and which (`only`; empty means any)."""

    mode: Literal["none", "auto", "required"]
    only: tuple[str, ...] = ()


class Format(Value, frozen=True, kw_only=True):
    """The form that the answer must have."""

    kind: Literal["text", "json_object", "json_schema"]
    schema: JsonObject | None = None
    name: str | None = None
    description: str | None = None
    strict: bool | None = None


class Chat(Value, frozen=True, kw_only=True):
    """A conversation to be continued by the assistant."""

    messages: tuple[Message, ...]
    tools: tuple[Tool | Opaque, ...] = ()
    tool_choice: ToolChoice | None = None
    parallel_tool_calls: bool | None = None
    reasoning_effort: str | None = None
    functions: bool = False
    """Whether the client spoke of functions, as before there were tools, and hears of them."""


Prompt: TypeAlias = str | list[Any] | JsonObject
"""Text, token ids, a mix of both, or llama.cpp's multimodal prompt object."""


class Completion(Value, frozen=True, kw_only=True):
    """Raw text to be continued. Several prompts give several answers, prompt-major."""

    prompts: tuple[Prompt, ...]
    listed: bool = False
    """Whether the client sent a list of prompts: a native answer is then a list too."""
    echo: bool = False
    best_of: int | None = None
    """How many continuations of each prompt the `n` likeliest are chosen from."""


class Infill(Value, frozen=True, kw_only=True):
    """A hole between two texts, to be filled."""

    prefix: str
    suffix: str
    prompt: str | None = None


class Knobs(Value, frozen=True, kw_only=True):
    """How tokens are chosen. `None` leaves the upstream's default."""

    temperature: float | None = None
    top_k: int | None = None
    top_p: float | None = None
    min_p: float | None = None
    typical_p: float | None = None
    presence_penalty: float | None = None
    frequency_penalty: float | None = None
    repeat_penalty: float | None = None
    mirostat: int | None = None
    mirostat_tau: float | None = None
    mirostat_eta: float | None = None
    seed: int | None = None


class Bias(Value, frozen=True, kw_only=True):
    """An amount added to a token's logit; `False` bans it. A text stands for its tokens."""

    token: int | str
    amount: float | Literal[False]


class Request(Value, frozen=True, kw_only=True):
    """What a client wants, in no dialect.

    `extras` are the fields that the IR does not model, verbatim. They belong to the dialect
    that read them; a dialect of another family leaves them out.
    """

    dialect: str
    input: Chat | Completion | Infill
    model: str | None = None
    stream: bool = False
    include_usage: bool = False
    n: int = 1
    max_tokens: int | None = None
    stop: tuple[str, ...] = ()
    tells_stop: bool = False
    """Whether the client hears which of them ended its answer."""
    knobs: Knobs = Knobs()
    logit_bias: tuple[Bias, ...] = ()
    logprobs: int | None = None
    """How many alternatives per token; 0 asks for the chosen token's alone."""
    format: Format | None = None
    tokenize: bool = False
    """Return the prompt's token ids too (`promptToken`, as api_like_OAI.py did)."""
    extras: JsonObject = {}

    @property
    def choices(self) -> int:
        """How many choices the answer will have."""
        prompts = len(self.input.prompts) if isinstance(self.input, Completion) else 1
        return self.n * prompts


# What is answered. What never refers to itself is no work for who looks for cycles (`gc=False`).

FinishReason: TypeAlias = Literal["stop", "length", "tool_calls", "content_filter", "function_call"]
PartKind: TypeAlias = Literal["text", "reasoning", "refusal", "tool_call"]

TokenLogprob: TypeAlias = JsonObject
"""`{token, logprob, bytes, top_logprobs: [{token, logprob, bytes}]}`, llama.cpp's `id` beside.

The shape is OpenAI's for chat and today's llama.cpp's: it passes through untouched.
"""


class Extras(Value, frozen=True, kw_only=True, gc=False):
    """What a chunk said that the IR does not model, at each level of the wire's object."""

    top: JsonObject = {}
    choice: JsonObject = {}
    part: JsonObject = {}


class Usage(Value, frozen=True, kw_only=True):
    """Tokens of one whole request, over all its choices."""

    prompt_tokens: int = 0
    completion_tokens: int = 0
    cached_tokens: int | None = None
    reasoning_tokens: int | None = None
    extras: JsonObject = {}

    @property
    def total_tokens(self) -> int:
        """Prompt and completion together."""
        return self.prompt_tokens + self.completion_tokens


class Started(Value, frozen=True, kw_only=True, gc=False):
    """The upstream has begun to answer."""

    id: str | None = None
    model: str | None = None
    created: int | None = None
    fingerprint: str | None = None
    extras: Extras | None = None


class Progress(Value, frozen=True, kw_only=True, gc=False):
    """How far the prompt has been read (llama.cpp's `prompt_progress`), in tokens and ms."""

    choice: int = 0
    total: int
    cached: int
    processed: int
    time_ms: float
    extras: Extras | None = None


class PartStarted(Value, frozen=True, kw_only=True, gc=False):
    """A part of a choice begins; `id`, `name` and `custom` are a tool call's."""

    choice: int = 0
    kind: PartKind
    id: str | None = None
    name: str | None = None
    custom: bool = False


class PartDelta(Value, frozen=True, kw_only=True, gc=False):
    """More of the open part: text, or a piece of a tool call's arguments."""

    choice: int = 0
    text: str
    logprobs: list[TokenLogprob] | None = None
    tokens: list[int] | None = None
    extras: Extras | None = None


class PartEnded(Value, frozen=True, kw_only=True, gc=False):
    """The open part of a choice is complete."""

    choice: int = 0


class ChoiceEnded(Value, frozen=True, kw_only=True, gc=False):
    """A choice is complete; `stop_word` is the stop text that ended it, where one did."""

    choice: int = 0
    reason: FinishReason
    stop_word: str | None = None
    logprobs: list[TokenLogprob] | None = None
    extras: Extras | None = None


class Finished(Value, frozen=True, kw_only=True, gc=False):
    """The answer is complete. `timings` are llama.cpp's (`prompt_ms`, `predicted_n`, ...)."""

    usage: Usage | None = None
    timings: JsonObject | None = None
    extras: Extras | None = None


ProblemKind: TypeAlias = Literal[
    "malformed",
    "too_large",
    "too_slow",
    "unsupported_media",
    "context_exceeded",
    "unsupported",
    "unauthenticated",
    "forbidden",
    "not_found",
    "method_not_allowed",
    "conflict",
    "not_implemented",
    "unknown_model",
    "limited",
    "loading",
    "unavailable",
    "upstream_failed",
    "timeout",
    "internal",
]


class Problem(Value, frozen=True, kw_only=True):
    """What went wrong, as a value; each dialect has its own envelope for it.

    `retryable` says that the same request may succeed on another upstream: it is decided where
    the failure is seen, and is meaningless once a byte has reached the client.
    """

    kind: ProblemKind
    message: str
    param: str | None = None
    code: str | None = None
    retryable: bool = False
    retry_after: float | None = None
    """Seconds after which asking again makes sense."""
    died: bool = False
    """The upstream broke off while it was at work, as one does that ends."""
    extras: JsonObject = {}


class Failed(Value, frozen=True, kw_only=True, gc=False):
    """The answer broke off, or never came; `usage` is what it took until then, where known."""

    problem: Problem
    usage: Usage | None = None


Event: TypeAlias = (
    Started | Progress | PartStarted | PartDelta | PartEnded | ChoiceEnded | Finished | Failed
)


class ProblemError(Exception):
    """A problem on its way up to whoever can tell the client."""

    def __init__(self, problem: Problem) -> None:
        super().__init__(problem.message)
        self.problem = problem


class Malformed(ProblemError):  # noqa: N818 - a name for what was read, not for a failure of ours
    """Bytes that are not what their dialect says; the only thing a parser ever raises."""

    def __init__(
        self,
        message: str,
        *,
        param: str | None = None,
        code: str | None = None,
        kind: ProblemKind = "malformed",
    ) -> None:
        super().__init__(Problem(kind=kind, message=message, param=param, code=code))


UpstreamDialect: TypeAlias = Literal["llamacpp", "openai", "afs"]
"""What an upstream speaks: llama.cpp's API with OpenAI's beside it, OpenAI's alone, or AFS's."""

Tokenizer: TypeAlias = Literal["vllm", "llama-cpp-python"]
"""Whose way to count tokens a server has, where that is not llama.cpp's."""


class Traits(Value, frozen=True, kw_only=True):
    """What a probe learned of an upstream; the defaults are the oldest llama.cpp server's.

    `None` is what nobody knows: it may be tried.
    """

    dialect: UpstreamDialect = "llamacpp"
    models: dict[str, JsonObject] = {}
    """What it serves: the name, and what it says of it in its list of models."""
    chat: bool = False
    """It serves chat: `/v1/chat/completions`, or AFS's `/models/conversation`."""
    v1: bool = True
    """Its OpenAI paths are below `/v1`; if not, they are right below its address."""
    build: int = 0
    """The oldest llama.cpp build that it can be, as far as it has shown; 0 is before b1561."""
    build_info: str | None = None
    """What it says of its build (since b4383)."""
    router: bool = False
    """It starts servers of its own, one for each model (llama.cpp's router mode)."""
    n_ctx: int | None = None
    slots: int | None = None
    template: str | None = None
    """The chat template that it tells (Jinja; since b3328)."""
    eos: str | None = None
    tokenizes: bool = True
    """It has llama.cpp's `/tokenize`."""
    tokenizer: Tokenizer | None = None
    strict: bool = False
    """It is OpenAI's own, or Azure's: it refuses fields that it does not know, and the limit of a
    chat is `max_completion_tokens`."""
    tells_usage: bool = True
    """Its streams can be asked for usage (`stream_options`)."""
    tools: bool | None = None
    vision: bool | None = None
    audio: bool | None = None
    embeddings: bool | None = None
    rerank: bool | None = None
    infill: bool | None = None

    @property
    def llamacpp(self) -> bool:
        """Whether it takes llama.cpp's forms of a field where there are two."""
        return self.dialect == "llamacpp"


# The fold.


class Choice(Value, frozen=True, kw_only=True):
    """One finished choice of an answer."""

    index: int = 0
    parts: tuple[Part, ...] = ()
    reason: FinishReason | None = None
    stop_word: str | None = None
    logprobs: list[TokenLogprob] | None = None
    tokens: list[int] = []
    extras: JsonObject = {}
    part_extras: JsonObject = {}

    def text(self, kind: type[Text | Reasoning | Refusal] = Text) -> str | None:
        """All text of one kind of part, joined; `None` where there is no such part."""
        texts = [part.text for part in self.parts if isinstance(part, kind)]
        return "".join(texts) if texts else None

    @property
    def tool_calls(self) -> list[ToolCall]:
        """The calls that the assistant asks for, in order."""
        return [part for part in self.parts if isinstance(part, ToolCall)]


class Answer(Value, frozen=True, kw_only=True):
    """A whole answer: what an unstreamed reply is rendered from."""

    id: str | None = None
    model: str | None = None
    created: int | None = None
    fingerprint: str | None = None
    choices: tuple[Choice, ...] = ()
    usage: Usage | None = None
    timings: JsonObject | None = None
    extras: JsonObject = {}


class _OpenChoice:
    """The choice that a fold is putting together."""

    __slots__ = (
        "ended", "extras", "head", "logprobs", "part_extras", "parts", "texts", "tokens",
    )  # fmt: skip

    def __init__(self) -> None:
        self.parts: list[Part] = []
        self.head: PartStarted | None = None
        self.texts: list[str] = []
        self.logprobs: list[TokenLogprob] | None = None
        self.tokens: list[int] = []
        self.extras: JsonObject = {}
        self.part_extras: JsonObject = {}
        self.ended: ChoiceEnded | None = None

    def note(self, logprobs: list[TokenLogprob] | None, extras: Extras | None) -> None:
        if logprobs is not None:
            if self.logprobs is None:
                self.logprobs = []
            self.logprobs += logprobs
        if extras is not None:
            self.extras |= extras.choice
            _accumulate(self.part_extras, extras.part)

    def close(self) -> None:
        head, text = self.head, "".join(self.texts)
        self.head, self.texts = None, []
        match head:
            case None:
                pass
            case PartStarted(kind="text"):
                self.parts.append(Text(text=text))
            case PartStarted(kind="reasoning"):
                self.parts.append(Reasoning(text=text))
            case PartStarted(kind="refusal"):
                self.parts.append(Refusal(text=text))
            case _:
                call = ToolCall(
                    id=head.id or "", name=head.name or "", arguments=text, custom=head.custom
                )
                self.parts.append(call)

    def choice(self, index: int) -> Choice:
        return Choice(
            index=index,
            parts=tuple(self.parts),
            reason=self.ended.reason if self.ended else None,
            stop_word=self.ended.stop_word if self.ended else None,
            logprobs=self.logprobs,
            tokens=self.tokens,
            extras=self.extras,
            part_extras=self.part_extras,
        )


def fold(events: Iterable[Event]) -> Answer:
    """Put a stream together into the answer that it tells.

    Raises:
        ProblemError: the stream ended in `Failed`, or without a terminal event.
    """
    started = Started()
    choices: dict[int, _OpenChoice] = {}
    top: JsonObject = {}
    for event in events:
        if type(event) is PartDelta:  # nearly all of them
            choice = choices[event.choice]
            choice.texts.append(event.text)
            if event.tokens is not None:
                choice.tokens.extend(event.tokens)
            if event.logprobs is not None or event.extras is not None:
                choice.note(event.logprobs, event.extras)
                _merge_top(top, event)
            continue
        match event:
            case Started():
                started = event
            case PartStarted():
                choice = choices.setdefault(event.choice, _OpenChoice())
                choice.head = event
            case PartEnded():
                choices[event.choice].close()
            case ChoiceEnded():
                choice = choices.setdefault(event.choice, _OpenChoice())
                choice.ended = event
                choice.note(event.logprobs, event.extras)
            case Finished():
                _merge_top(top, event)
                return Answer(
                    id=started.id,
                    model=started.model,
                    created=started.created,
                    fingerprint=started.fingerprint,
                    choices=tuple(choices[i].choice(i) for i in sorted(choices)),
                    usage=event.usage,
                    timings=event.timings,
                    extras=top,
                )
            case Failed():
                raise ProblemError(event.problem)
            case Progress():
                continue
        _merge_top(top, event)
    raise ProblemError(Problem(kind="upstream_failed", message="The answer has no end."))


def unfold(answer: Answer, *, extras: bool = True) -> Iterator[Event]:
    """Tell a whole answer as the stream whose fold it is; without `extras`, only what is modelled.

    Extras are in the words of the dialect that read them: another could not say them.
    """
    if not extras:
        bare = (msgspec.structs.replace(one, extras={}, part_extras={}) for one in answer.choices)
        answer = msgspec.structs.replace(answer, extras={}, choices=tuple(bare))
    yield Started(
        id=answer.id,
        model=answer.model,
        created=answer.created,
        fingerprint=answer.fingerprint,
    )
    for choice in answer.choices:
        yield from _unfold_choice(choice)
    last = Extras(top=answer.extras) if answer.extras else None
    yield Finished(usage=answer.usage, timings=answer.timings, extras=last)


def _unfold_choice(choice: Choice) -> Iterator[Event]:
    index, logprobs, tokens = choice.index, choice.logprobs, choice.tokens or None
    extras = Extras(part=choice.part_extras) if choice.part_extras else None
    for part in choice.parts:
        match part:
            case Text():
                yield PartStarted(choice=index, kind="text")
                text = part.text
            case Reasoning():
                yield PartStarted(choice=index, kind="reasoning")
                text = part.text
            case Refusal():
                yield PartStarted(choice=index, kind="refusal")
                text = part.text
            case ToolCall():
                yield PartStarted(
                    choice=index,
                    kind="tool_call",
                    id=part.id,
                    name=part.name,
                    custom=part.custom,
                )
                text = part.arguments
            case Image() | Audio() | Opaque():
                continue
        yield PartDelta(choice=index, text=text, logprobs=logprobs, tokens=tokens, extras=extras)
        logprobs = tokens = extras = None
        yield PartEnded(choice=index)
    left = extras.part if extras else {}
    yield ChoiceEnded(
        choice=index,
        reason=choice.reason or "stop",
        stop_word=choice.stop_word,
        logprobs=logprobs,
        extras=Extras(choice=choice.extras, part=left) if choice.extras or left else None,
    )


def _merge_top(top: JsonObject, event: Event) -> None:
    extras: Extras | None = getattr(event, "extras", None)
    if extras is not None:
        top |= extras.top


def _accumulate(into: JsonObject, more: Mapping[str, Json]) -> None:
    """Join unknown delta fields as clients do: texts and lists grow, the rest is replaced."""
    for key, value in more.items():
        held = into.get(key)
        joins = type(held) is type(value) and isinstance(value, str | list)
        into[key] = held + value if joins else value
