"""A stream that goes on from another upstream, where its own broke off in the middle.

Only plain text can go on: one choice, no tools, no form, no probabilities, no thoughts. What was
told stands; another llama.cpp server is given the same prompt with the text so far behind it, once,
and the client hears one answer. With the same model at temperature 0 that is the answer that it
would have heard. Its usage says that it happened, and where.
"""

from __future__ import annotations

import msgspec

from tropilla.ir import (
    Chat,
    ChoiceEnded,
    Completion,
    Event,
    Failed,
    Finished,
    PartDelta,
    PartEnded,
    PartStarted,
    Problem,
    Request,
    Started,
    Traits,
    Usage,
)

APPLIES_TEMPLATES = 4589
"""The build since which a server tells the prompt that it makes of a chat."""

_FRONTS = frozenset({"openai_chat", "openai_completions", "openai_responses"})
"""Whose answers say nothing that another server would say otherwise, as ids of slots."""
_BINDING = ("grammar", "json_schema")


class Joint:
    """What a stream has told, as far as another upstream could go on with it."""

    __slots__ = ("_able", "_goes_on", "_limit", "_more", "_open", "_texts", "problem")

    def __init__(self, request: Request, *, wanted: bool) -> None:
        self._able = wanted and _is_plain(request)
        self._limit = request.max_tokens
        self._texts: list[str] = []
        self._open = False
        self._goes_on = False
        self._more = 0
        """Tokens beyond one for each text."""
        self.problem: Problem | None = None
        """Why it broke off, if it has, and it is to go on."""

    @property
    def waits(self) -> bool:
        """Whether it has broken off, and nobody goes on yet."""
        return self.problem is not None and not self._goes_on

    @property
    def pieces(self) -> int:
        """Tokens that were told: a llama.cpp server sends each alone."""
        return sum(text != "" for text in self._texts) + self._more

    @property
    def text(self) -> str:
        """What was told."""
        return "".join(self._texts)

    def breaks(self, events: list[Event]) -> list[Event]:
        """The events of the first upstream, without the end of one that broke off and can go on."""
        if not self._able:
            return events
        for event in events:
            if type(event) is PartDelta:  # nearly all of them
                self._texts.append(event.text)
                if event.tokens:
                    self._more += len(event.tokens) - (event.text != "")
                continue
            match event:
                case PartStarted(kind="text"):
                    self._open = True
                case PartStarted() | ChoiceEnded():
                    self._able = False
                case Failed(problem=problem) if problem.retryable and self._able:
                    self.problem = problem
                    return [event for event in events[:-1] if not isinstance(event, PartEnded)]
        return events

    def may_go_on(self, traits: Traits, request: Request) -> bool:
        """Whether an upstream can be given what was told; `request` is as it would be asked."""
        match request.input:
            case Completion(prompts=(str(),)):
                return traits.llamacpp
            case Chat():
                return traits.llamacpp and traits.build >= APPLIES_TEMPLATES
        return False

    def go_on(self, request: Request, prompt: str) -> Request:
        """The rest of the answer, to be asked of another upstream."""
        self._goes_on = True
        left = None if self._limit is None else max(self._limit - self.pieces, 1)
        rest = Completion(prompts=(prompt + self.text,))
        return msgspec.structs.replace(request, input=rest, max_tokens=left)

    def joined(self, events: list[Event]) -> list[Event]:
        """The events of the second upstream, as the first one's would have gone on."""
        if not self._goes_on:
            return self.breaks(events)
        told: list[Event] = []
        for event in events:
            match event:
                case Started():
                    continue
                case PartStarted() if self._open:
                    self._open = False
                    continue
                case ChoiceEnded() | Failed() if self._open:
                    self._open = False
                    told += (PartEnded(), event)
                case Finished(usage=usage):
                    told.append(msgspec.structs.replace(event, usage=self._sum(usage)))
                case _:
                    told.append(event)
        return told

    def failed(self) -> list[Event]:
        """The end of an answer that could not go on."""
        ended: list[Event] = [PartEnded()] if self._open else []
        assert self.problem is not None, "it broke off"  # noqa: S101
        return [*ended, Failed(problem=self.problem)]

    def _sum(self, usage: Usage | None) -> Usage:
        """What both took: the text so far was written by one, and read by the other."""
        usage = usage or Usage()
        return msgspec.structs.replace(
            usage,
            prompt_tokens=max(usage.prompt_tokens - self.pieces, 0),
            completion_tokens=usage.completion_tokens + self.pieces,
            extras=usage.extras | {"failover": {"after_tokens": self.pieces}},
        )


def _is_plain(request: Request) -> bool:
    if not request.stream or request.dialect not in _FRONTS or request.choices != 1:
        return False
    if request.logprobs is not None or any(request.extras.get(name) for name in _BINDING):
        return False
    if request.format is not None and request.format.kind != "text":
        return False
    match request.input:
        case Chat(tools=tools):
            return not tools
        case Completion(prompts=(str(),), echo=False, best_of=None):
            return True
    return False
