"""What an answer took: as the upstream told it, or counted by its tokenizer, or else estimated.

Streams of llama.cpp's chat tell no usage before b2600 or so, and many servers that speak OpenAI's
API tell none at all. Counting never makes a good answer fail, and waits two seconds at most; what
is estimated says so: `"estimated": true` beside the counts.

What is counted is what the server itself would have counted: a prompt with the mark of its
beginning, and an answer with the token that ended it. What an answer took that failed, or was
given up, is always an estimate.
"""

from __future__ import annotations

import asyncio
from contextlib import suppress
from types import TracebackType
from typing import Self

import msgspec

from tropilla import dialects
from tropilla.dialects import Wire, _tokenizers
from tropilla.dialects._openai import decode, encode
from tropilla.dialects._tokenizers import Form
from tropilla.exchanges.exchange import Exchange, Take
from tropilla.ir import (
    Audio,
    Chat,
    ChoiceEnded,
    Completion,
    Event,
    Failed,
    Finished,
    Image,
    Infill,
    JsonObject,
    Malformed,
    Opaque,
    PartDelta,
    PartEnded,
    PartStarted,
    ProblemError,
    Progress,
    Prompt,
    Reasoning,
    Refusal,
    Request,
    Text,
    Tool,
    ToolCall,
    Traits,
    Usage,
)
from tropilla.upstream.member import Upstream

SECONDS = 2.0
"""How long counting may take."""

_PROMPT_SECONDS = 30.0
"""How long it may take where it is all that is wanted."""

_BYTES = 4
"""Of a token, as a rule of thumb for English; other languages have fewer."""

_PER_MESSAGE = 4
"""Tokens around a message: its role, its beginning, its end."""

_TELLS = 4410
"""The build since which llama.cpp tells all usage, and no stream of it is cut here."""

_COUNTS_END = 1778
"""The build since which the token that ends an answer counts (#4798)."""

_MANY = 256


class Counted:
    """An exchange whose last event always tells a usage, and all of it."""

    __slots__ = (
        "_asked", "_end", "_left", "_request", "_said", "_take", "_upstream", "dropped", "told",
    )  # fmt: skip

    def __init__(self, asked: Exchange, upstream: Upstream, request: Request) -> None:
        self._asked = asked
        self._upstream = upstream
        self._request = request
        self._said = _Said(keeps=_may_be_counted(upstream.traits))
        self._end: Finished | None = None
        self._left = False
        self._take: Take | None = None
        """Who takes what is told."""
        self.told: Usage | None = None
        """What it took in all, once that is known."""
        self.dropped = asked.dropped

    @property
    def usage(self) -> Usage:
        """What the answer has taken until now."""
        return self.told or self._said.usage(self._request, self._upstream.traits)

    async def __aenter__(self) -> Self:
        await self._asked.__aenter__()
        return self

    async def __aexit__(
        self,
        kind: type[BaseException] | None,
        error: BaseException | None,
        trace: TracebackType | None,
    ) -> None:
        if not self._left:
            await self._asked.__aexit__(kind, error, trace)

    async def next(self, take: Take | None = None) -> list[Event]:
        """As the exchange's own."""
        if self._end is not None:
            return [await self._told(self._end)]
        self._take = take
        batch = await self._asked.next(None if take is None else self._taken)
        self._said.note(batch)
        match batch[-1:]:
            case [Failed() as end]:
                batch[-1] = msgspec.structs.replace(end, usage=self.usage)
            case [Finished() as end] if self._lacks(end.usage):
                # What was said reaches the client before it is counted; and a server that does
                # not know that its answer is over, because a stop word was found here, is left
                # at once.
                self._end = end
                self._left = True
                await self._asked.__aexit__(None, None, None)
                return batch[:-1]
            case [Finished(usage=usage)]:
                self.told = usage
        return batch

    def _taken(self, events: list[Event]) -> bool:
        """Note what is taken."""
        assert self._take is not None, "somebody takes it"  # noqa: S101
        self._said.note(events)
        return self._take(events)

    def _lacks(self, usage: Usage | None) -> bool:
        """Whether a usage does not tell all: no server tells how much of an answer was thought."""
        return _is_untold(usage) or (
            usage is not None and usage.reasoning_tokens is None and self._said.thinks
        )

    async def _told(self, end: Finished) -> Finished:
        usage = end.usage
        if usage is None or _is_untold(usage):
            usage = await _usage(self._upstream, self._request, self._said)
        if usage.reasoning_tokens is None and self._said.thinks:
            thought = await _thought(self._upstream, self._request, self._said, usage)
            usage = msgspec.structs.replace(usage, reasoning_tokens=thought)
        self.told = usage
        return msgspec.structs.replace(end, usage=usage)


def _is_untold(usage: Usage | None) -> bool:
    """Nothing asked and nothing answered is what servers say that do not count."""
    return usage is None or usage.total_tokens == 0


def _may_be_counted(traits: Traits) -> bool:
    """Whether there is a tokenizer, and perhaps a use for it."""
    sure = traits.llamacpp and traits.build >= _TELLS
    return _tokenizers.form_of(traits) is not None and not sure


class _Said:
    """What an answer has said: its size, and if it `keeps` them its texts, by choice."""

    __slots__ = ("_keeps", "_pieces", "_prompt", "_texts", "_thinking", "_thoughts", "ends", "size")

    def __init__(self, *, keeps: bool) -> None:
        self._keeps = keeps
        self._texts: dict[int, list[str]] = {}
        self._thinking: set[int] = set()
        self._thoughts: list[str] = []
        self._prompt: int | None = None
        self._pieces = 0
        self.size = 0
        """In bytes of UTF-8."""
        self.ends: list[ChoiceEnded] = []

    def note(self, events: list[Event]) -> None:
        """Take what these events say."""
        for event in events:
            if type(event) is PartDelta:  # nearly all of them
                self._pieces += 1
                self._add(event.choice, event.text)
                if self._thinking and event.choice in self._thinking:
                    _keep(self._thoughts, event.text)
                continue
            match event:
                case PartStarted(kind="reasoning"):
                    self._thinking.add(event.choice)
                case PartEnded():
                    self._thinking.discard(event.choice)
                case PartStarted(name=str(name)):
                    self._add(event.choice, name)
                case ChoiceEnded():
                    self.ends.append(event)
                case Progress(total=total):
                    self._prompt = total

    def _add(self, choice: int, text: str) -> None:
        self.size += len(text) if text.isascii() else _size(text)
        if self._keeps:
            _keep(self._texts.setdefault(choice, []), text)

    def texts(self) -> list[str]:
        """The texts of all choices that said something."""
        return ["".join(texts) for texts in self._texts.values()]

    @property
    def thinks(self) -> bool:
        """Whether some of it was reasoning."""
        return bool(self._thoughts)

    @property
    def thoughts(self) -> str:
        """The reasoning of all choices."""
        return "".join(self._thoughts)

    def usage(self, request: Request, traits: Traits) -> Usage:
        """An estimate of what was used until now: a llama.cpp server sends each token alone."""
        return Usage(
            prompt_tokens=_guess(request) if self._prompt is None else self._prompt,
            completion_tokens=self._pieces if traits.llamacpp else _tokens_in(self.size),
            extras={"estimated": True},
        )


def _keep(texts: list[str], text: str) -> None:
    texts.append(text)
    if len(texts) == _MANY:
        # A text of one token takes ten times its size.
        texts[:] = ["".join(texts)]


# Counting.


async def _usage(upstream: Upstream, request: Request, said: _Said) -> Usage:
    form = _tokenizers.form_of(upstream.traits)
    prompt = completion = None
    if form is not None:
        counter = _Counter(upstream, form, request.model)
        try:
            async with asyncio.timeout(SECONDS):
                completion = await counter.answer(said)
                prompt = await counter.prompt(request)
        except (ProblemError, TimeoutError):
            pass
    told = Usage(
        prompt_tokens=_guess(request) if prompt is None else prompt,
        completion_tokens=_tokens_in(said.size) if completion is None else completion,
    )
    exact = prompt is not None and completion is not None
    return told if exact else msgspec.structs.replace(told, extras={"estimated": True})


async def prompt_tokens(upstream: Upstream, request: Request) -> Usage:
    """The tokens of a prompt alone: as the server tells, or counted, or estimated.

    Raises:
        ProblemError: the server refuses such a prompt.
    """
    form = _tokenizers.form_of(upstream.traits)
    count = None
    with suppress(TimeoutError):
        async with asyncio.timeout(_PROMPT_SECONDS):
            count = await _told_prompt(upstream, request)
            if count is None and form is not None:
                with suppress(ProblemError):
                    count = await _Counter(upstream, form, request.model).prompt(request)
    if count is None:
        return Usage(prompt_tokens=_guess(request), extras={"estimated": True})
    return Usage(prompt_tokens=count)


async def _told_prompt(upstream: Upstream, request: Request) -> int | None:
    """What a llama.cpp server of today makes of a chat, images and all."""
    if not upstream.traits.llamacpp or not isinstance(request.input, Chat):
        return None
    chat = dialects.named("openai_chat")
    body = chat.render_request(request, upstream.traits).body
    path = "/v1/chat/completions/input_tokens"
    status, answer = await upstream.link.ask("POST", path, body, seconds=None)
    if status == 400:
        raise ProblemError(chat.parse_problem(status, answer))
    told = decode(answer) if status == 200 else None
    count = told.get("input_tokens") if type(told) is dict else None
    return count if type(count) is int else None


async def _thought(upstream: Upstream, request: Request, said: _Said, usage: Usage) -> int:
    """How many tokens of an answer were reasoning, without the marks around it.

    Where nobody can count them it is their part of the text.
    """
    form = _tokenizers.form_of(upstream.traits)
    if form is not None:
        counter = _Counter(upstream, form, request.model)
        with suppress(ProblemError, TimeoutError):
            async with asyncio.timeout(SECONDS):
                return min(await counter.text(said.thoughts), usage.completion_tokens)
    return round(usage.completion_tokens * _size(said.thoughts) / max(said.size, 1))


class _Counter:
    """An upstream's tokenizer. Whatever fails here is a `ProblemError`."""

    def __init__(self, upstream: Upstream, form: Form, model: str | None) -> None:
        self._upstream = upstream
        self._traits = upstream.traits
        self._form: Form = form
        self._model = model

    async def answer(self, said: _Said) -> int | None:
        """The tokens of an answer; `None` where its texts were not kept."""
        if said.size and not said.texts():
            return None
        counts = [await self.text(text) for text in said.texts()]
        return sum(counts) + sum([await self._ending(end) for end in said.ends])

    async def _ending(self, end: ChoiceEnded) -> int:
        """What ended a choice was a token too, or the tokens of a stop word."""
        old = self._traits.llamacpp and self._traits.build < _COUNTS_END
        if end.reason == "length" or old or self._form == "llama-cpp-python":
            return 0
        return 1 if end.stop_word is None else await self.text(end.stop_word)

    async def prompt(self, request: Request) -> int | None:
        """The tokens of a prompt; `None` where only the server knows what it made of it."""
        match request.input:
            case Completion(prompts=prompts):
                return sum([await self._beginning(prompt) for prompt in prompts])
            case Chat() as chat if _is_of_text(chat):
                return await self._chat(request)
        return None

    async def _chat(self, request: Request) -> int | None:
        if self._form == "vllm":
            wire = dialects.named("openai_chat").render_request(request, self._traits)
            return await self._count(_tokenizers.ask_chat(wire.body))
        if self._form == "llamacpp" and self._traits.build >= 4589:
            wire = dialects.named("openai_chat").render_request(request, self._traits)
            told = await self._ask(Wire(path="/apply-template", body=wire.body))
            prompt = told.get("prompt")
            return await self._beginning(prompt) if type(prompt) is str else None
        return None

    async def _beginning(self, prompt: Prompt) -> int:
        match prompt:
            case str() | [str(), *_]:
                begins = True
            case list() if all(type(item) is int for item in prompt):
                return len(prompt)
            case list():
                begins = False
            case _:
                raise Malformed("A prompt of this kind cannot be counted.")
        # Not every server reads `add_special` that may (b2815): the mark is added here.
        old = self._form == "llamacpp" and self._traits.build < 2815
        asked = _tokenizers.ask_text(self._form, prompt, self._model, begins=begins and not old)
        return await self._count(asked) + (begins and old)

    async def text(self, text: str) -> int:
        """The tokens of a text in the middle of an answer."""
        if not text:
            return 0
        asked = _tokenizers.ask_text(self._form, text, self._model, begins=False)
        count = await self._count(asked)
        if self._form == "llama-cpp-python":
            nothing = _tokenizers.ask_text(self._form, "", self._model, begins=False)
            count -= await self._count(nothing)
        return count

    async def _count(self, asked: Wire) -> int:
        count = _tokenizers.read(await self._ask(asked))
        if count is None:
            raise Malformed("The upstream's tokenizer gave no count.")
        return count

    async def _ask(self, asked: Wire) -> JsonObject:
        link = self._upstream.link
        status, answer = await link.ask("POST", asked.path, asked.body, seconds=None)
        told = decode(answer) if status == 200 else None
        if type(told) is not dict:
            raise Malformed("The upstream's tokenizer gave no answer.")
        return told


def _is_of_text(chat: Chat) -> bool:
    parts = (part for message in chat.messages for part in message.parts)
    return not any(isinstance(part, Image | Audio | Opaque) for part in parts)


# Estimating.


def _tokens_in(size: int) -> int:
    return -(-size // _BYTES)


def _guess(request: Request) -> int:
    """The tokens of a prompt by its size; what an image or a sound takes is not among them."""
    match request.input:
        case Chat(messages=messages, tools=tools):
            parts = [part for message in messages for part in message.parts]
            size = sum(_size(text) for part in parts for text in _texts_of(part))
            size += sum(_size(text) for tool in tools for text in _texts_of(tool))
            return _tokens_in(size) + _PER_MESSAGE * len(messages)
        case Completion(prompts=prompts):
            return sum(_guess_of(prompt) for prompt in prompts)
        case Infill(prefix=prefix, suffix=suffix):
            return _tokens_in(_size(prefix) + _size(suffix))


def _texts_of(one: object) -> list[str]:
    match one:
        case Text(text=text) | Reasoning(text=text) | Refusal(text=text):
            return [text]
        case ToolCall(name=name, arguments=arguments):
            return [name, arguments]
        case Tool(name=name, description=description, parameters=parameters):
            return [name, description or "", _json(parameters)]
    return []


def _json(value: JsonObject | None) -> str:
    try:
        return encode(value or {}).decode()
    except RecursionError:
        return ""


def _guess_of(prompt: Prompt) -> int:
    items = prompt if isinstance(prompt, list) else [prompt]
    texts = [item for item in items if isinstance(item, str)]
    ids = sum(type(item) is int for item in items)
    return ids + _tokens_in(sum(_size(text) for text in texts))


def _size(text: str) -> int:
    return len(text.encode("utf-8", "replace"))
