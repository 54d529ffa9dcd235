"""What a legacy completion asks for and no upstream does alike: `echo`, `best_of`, no token at all.

Each is an exchange around an exchange, so that a streamed and an unstreamed answer are the same
here too. An echoed prompt is the beginning of every choice's text, its probabilities with it.
"""

from __future__ import annotations

from types import TracebackType
from typing import Protocol, Self

import msgspec

from tropilla import ir
from tropilla.dialects import Dialect
from tropilla.exchanges import scoring
from tropilla.exchanges.counting import Counted
from tropilla.exchanges.exchange import Exchange, Take, exchange
from tropilla.exchanges.scoring import Scored, Scoring
from tropilla.ir import (
    Choice,
    ChoiceEnded,
    Completion,
    Event,
    Failed,
    Finished,
    PartDelta,
    PartEnded,
    PartStarted,
    Problem,
    ProblemError,
    Prompt,
    Request,
    Started,
    TokenLogprob,
    Traits,
    Usage,
)
from tropilla.upstream.member import Upstream


class Asked(Exchange, Protocol):
    """An answer on its way, of which is known what it took."""

    @property
    def told(self) -> Usage | None:
        """What it has taken, once that is known."""

    @property
    def usage(self) -> Usage:
        """What it has taken until now."""


def asked(upstream: Upstream, back: Dialect, request: Request, *, extras: bool) -> Asked:
    """A request to be put to an upstream, with all that the upstream does not do itself.

    Raises:
        ProblemError: of kind `unsupported`, when it cannot be had here.
    """
    traits, one = upstream.traits, request.input
    answer: Asked
    if not isinstance(one, Completion):
        reads = request.max_tokens == 0 and request.dialect != back.NAME
        if reads:
            request = msgspec.structs.replace(request, max_tokens=1)
        answer = Counted(exchange(upstream, back, request, extras=extras), upstream, request)
        return _Read(answer) if reads else answer
    best_of = one.best_of
    passed = one.echo and _echoes(request, one, traits)
    if best_of is not None:
        _check_best_of(traits, passed=passed)
    plain = msgspec.structs.replace(
        request,
        input=msgspec.structs.replace(one, echo=passed, best_of=None),
        n=best_of or request.n,
        logprobs=request.logprobs if best_of is None else request.logprobs or 0,
    )
    # What 0 means in the client's own dialect is the upstream's to say, where it speaks that.
    silent = request.max_tokens == 0 and request.dialect != back.NAME
    inner = _Nothing(plain) if silent else exchange(upstream, back, plain, extras=extras)
    answer = Counted(inner, upstream, plain)
    if best_of is not None:
        answer = _Best(answer, request, best_of, extras=extras)
    if passed:
        return _Passed(answer, request, one)
    return _Echo(answer, request, one, upstream) if one.echo else answer


def _echoes(request: Request, one: Completion, traits: Traits) -> bool:
    """Whether the upstream has to echo itself: it alone knows the tokens of the prompt."""
    if traits.dialect == "openai":
        texts = all(type(prompt) is str for prompt in one.prompts)
        return request.logprobs is not None or not (texts or traits.tokenizer == "vllm")
    if request.logprobs is not None and traits.dialect != "llamacpp":
        raise _unsupported("logprobs", "This server tells no probabilities of a prompt.")
    return False


def _check_best_of(traits: Traits, *, passed: bool) -> None:
    if passed:
        raise _unsupported(
            "best_of", "'best_of' cannot be had together with 'echo' and 'logprobs' here."
        )
    if traits.dialect == "afs" or (traits.llamacpp and traits.build < scoring.EXACT):
        raise _unsupported(
            "best_of",
            "This server does not tell how likely its answers are (llama.cpp b4364 does).",
        )


def _unsupported(param: str, why: str) -> ProblemError:
    """What this upstream cannot do; another one of the same model may."""
    return ProblemError(Problem(kind="unsupported", message=why, param=param, retryable=True))


class _Nothing:
    """The answer to a request for no token: an upstream would write one all the same."""

    dropped: tuple[str, ...] = ()

    def __init__(self, request: Request) -> None:
        self._choices = request.choices

    async def __aenter__(self) -> Self:
        return self

    async def __aexit__(
        self,
        kind: type[BaseException] | None,
        error: BaseException | None,
        trace: TracebackType | None,
    ) -> None:
        pass

    async def next(self, take: Take | None = None) -> list[Event]:
        """All of it."""
        del take
        ends = [ChoiceEnded(choice=choice, reason="length") for choice in range(self._choices)]
        return [Started(), *ends, Finished()]


class _Around:
    """An answer that is told otherwise than the upstream tells it."""

    def __init__(self, answer: Asked) -> None:
        self._answer = answer
        self._entered = False
        self.dropped: tuple[str, ...] = answer.dropped

    @property
    def told(self) -> Usage | None:
        """As the answer's own."""
        return self._answer.told

    @property
    def usage(self) -> Usage:
        """As the answer's own."""
        return self._answer.usage

    async def __aenter__(self) -> Self:
        await self._enter()
        return self

    async def _enter(self) -> None:
        await self._answer.__aenter__()
        self._entered = True

    async def __aexit__(
        self,
        kind: type[BaseException] | None,
        error: BaseException | None,
        trace: TracebackType | None,
    ) -> None:
        if self._entered:
            await self._answer.__aexit__(kind, error, trace)

    async def next(self, take: Take | None = None) -> list[Event]:
        """As the exchange's own."""
        del take  # what is told otherwise may end where the upstream's own does not
        return self._told(await self._answer.next())

    def _told(self, events: list[Event]) -> list[Event]:
        raise NotImplementedError


class _Read(_Around):
    """The answer to a chat of which nothing but the prompt is wanted in the cache.

    Of the one token that a server writes at least, nothing is told.
    """

    def _told(self, events: list[Event]) -> list[Event]:
        told: list[Event] = []
        for event in events:
            match event:
                case PartStarted() | PartDelta() | PartEnded():
                    continue
                case ChoiceEnded():
                    told.append(ChoiceEnded(choice=event.choice, reason="length"))
                case Finished(usage=Usage() as usage):
                    none = msgspec.structs.replace(
                        usage, completion_tokens=0, reasoning_tokens=None
                    )
                    told.append(msgspec.structs.replace(event, usage=none))
                case _:
                    told.append(event)
        return told


class _Best(_Around):
    """The `n` likeliest of several answers, by the mean log-probability of their tokens."""

    def __init__(self, answer: Asked, request: Request, best_of: int, *, extras: bool) -> None:
        super().__init__(answer)
        self._request = request
        self._best_of = best_of
        self._extras = extras
        self._events: list[Event] = []

    def _told(self, events: list[Event]) -> list[Event]:
        self._events += events
        match self._events[-1:]:
            case [Failed() as failed]:
                return [failed]
            case [Finished()]:
                return self._chosen()
        return []

    def _chosen(self) -> list[Event]:
        answer = ir.fold(self._events)
        if any(choice.parts and not choice.logprobs for choice in answer.choices):
            why = "The upstream did not tell how likely its answers are."
            problem = Problem(kind="unsupported", message=why, param="best_of")
            return [Failed(problem=problem, usage=answer.usage)]
        kept: list[Choice] = []
        for first in range(0, len(answer.choices), self._best_of):
            of_prompt = answer.choices[first : first + self._best_of]
            kept += sorted(of_prompt, key=_mean, reverse=True)[: self._request.n]
        choices = [msgspec.structs.replace(one, index=i) for i, one in enumerate(kept)]
        answer = msgspec.structs.replace(answer, choices=tuple(choices))
        return list(ir.unfold(answer, extras=self._extras))


def _mean(choice: Choice) -> float:
    entries = choice.logprobs or ()
    told = [one["logprob"] for one in entries if type(one.get("logprob")) in {int, float}]
    return sum(told) / len(told) if told else float("-inf")


class _Passed(_Around):
    """An answer that the upstream itself begins with the prompt: that it does is looked at."""

    def __init__(self, answer: Asked, request: Request, one: Completion) -> None:
        super().__init__(answer)
        self._request = request
        texts = [text if type(text) is str else "" for text in one.prompts]
        self._texts = dict(enumerate(text for text in texts for _ in range(request.n)))
        """What each choice has yet to begin with, where that is known."""
        self._likely: set[int] = set()
        self._open: set[int] = set()

    def _told(self, events: list[Event]) -> list[Event]:
        told: list[Event] = []
        for event in events:
            match event:
                case PartStarted():
                    self._open.add(event.choice)
                case PartEnded():
                    self._open.discard(event.choice)
                case PartDelta() | ChoiceEnded() if not self._begins(event):
                    told += [PartEnded(choice=choice) for choice in sorted(self._open)]
                    return [*told, Failed(problem=_NO_ECHO)]
            told.append(event)
        return told

    def _begins(self, event: PartDelta | ChoiceEnded) -> bool:
        """Whether a choice begins with the prompt, and its probabilities with an unknown one."""
        choice, wants = event.choice, self._request.logprobs is not None
        if wants and event.logprobs and choice not in self._likely:
            self._likely.add(choice)
            if event.logprobs[0].get("logprob") is not None:
                return False
        if isinstance(event, ChoiceEnded):
            return not self._texts.get(choice) and (not wants or choice in self._likely)
        left = self._texts.get(choice, "")
        size = min(len(left), len(event.text))
        self._texts[choice] = left[size:]
        return left[:size] == event.text[:size]


_NO_ECHO = Problem(
    kind="unsupported",
    message="The upstream does not echo the prompt and its probabilities.",
    param="echo",
    retryable=True,
)


class _Echo(_Around):
    """An answer whose choices begin with their prompts, scored where that is asked for."""

    def __init__(
        self, answer: Asked, request: Request, one: Completion, upstream: Upstream
    ) -> None:
        super().__init__(answer)
        self._request = request
        self._prompts = one.prompts
        self._upstream = upstream
        self._scoring: Scoring | None = None
        self._scored: list[Scored] = []
        self._texts: list[str] = []
        self._open: set[int] = set()
        self._begun = False

    @property
    def told(self) -> Usage | None:
        """As the answer's own."""
        told = super().told
        return None if told is None else self._true(told)

    @property
    def usage(self) -> Usage:
        """As the answer's own."""
        return self._true(super().usage)

    async def __aenter__(self) -> Self:
        request, upstream = self._request, self._upstream
        if request.logprobs is None:
            self._texts = [await self._text(prompt) for prompt in self._prompts]
            await self._enter()
            return self
        self._scored = await scoring.read_prompts(request, self._prompts, upstream)
        scoring.check_size(self._scored, upstream)
        self._texts = [one.text for one in self._scored]
        self._scoring = Scoring(request, self._scored, upstream)
        return self

    async def _text(self, prompt: Prompt) -> str:
        if isinstance(prompt, list):
            return await scoring.text_of(prompt, self._request, self._upstream)
        return str(prompt)

    async def __aexit__(
        self,
        kind: type[BaseException] | None,
        error: BaseException | None,
        trace: TracebackType | None,
    ) -> None:
        try:
            if self._scoring is not None:
                await self._scoring.stop()
        finally:
            await super().__aexit__(kind, error, trace)

    async def next(self, take: Take | None = None) -> list[Event]:
        """As the exchange's own."""
        if self._scoring is not None:
            try:
                if await self._scoring.step():
                    self._scoring = None
                    await self._enter()
            except ProblemError as error:
                return [Failed(problem=error.problem)]
            return []
        return await super().next(take)

    def _told(self, events: list[Event]) -> list[Event]:
        told: list[Event] = []
        for event in events:
            match event:
                case Started():
                    told += [event, *self._begin()]
                case PartStarted() if event.choice in self._open:
                    pass
                case PartEnded():
                    self._open.discard(event.choice)
                    told.append(event)
                case ChoiceEnded():
                    told += [*self._close([event.choice]), event]
                case Finished(usage=Usage() as usage):
                    told.append(msgspec.structs.replace(event, usage=self._true(usage)))
                case Failed():
                    told += [*self._close(sorted(self._open)), event]
                case _:
                    told.append(event)
        return told

    def _begin(self) -> list[Event]:
        """Every choice, with its prompt told."""
        if self._begun:
            return []
        self._begun = True
        told: list[Event] = []
        for choice in range(self._request.choices):
            prompt = choice // self._request.n
            likely: list[TokenLogprob] | None = None
            if self._scored:
                likely = self._scored[prompt].entries
            if likely or self._texts[prompt]:
                self._open.add(choice)
                told.append(PartStarted(choice=choice, kind="text"))
                told.append(PartDelta(choice=choice, text=self._texts[prompt], logprobs=likely))
        return told

    def _close(self, choices: list[int]) -> list[Event]:
        ended = [PartEnded(choice=choice) for choice in choices if choice in self._open]
        self._open.difference_update(choices)
        return list(ended)

    def _true(self, usage: Usage) -> Usage:
        """Nothing of a scored prompt was in the cache: all of it was read to score it."""
        return msgspec.structs.replace(usage, cached_tokens=None) if self._scored else usage
