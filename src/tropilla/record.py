"""What is told of one request: the row of a ledger, the points of a metric, the line of a log.

A record is filled in along the way of its request, by whoever knows a thing first. A book takes
note of it: once the answer is complete, before its client hears the end of it (`enter`), and once
the request is over, however it ended (`over`). No token passes a book, and nothing here is what
was said: neither prompts nor answers.
"""

from __future__ import annotations

import time
from collections.abc import Sequence
from typing import Literal, NamedTuple, Protocol, TypeAlias

from tropilla.ir import ChoiceEnded, Event, Failed, Finished, FinishReason, Problem, Usage
from tropilla.observing.trace import Trace

Operation: TypeAlias = Literal["", "chat", "text_completion", "embeddings", "rerank"]
"""What is wanted of a model, where that is known."""

_LOOKED_AT = frozenset({
    "/health", "/v1/health", "/health/live", "/health/ready", "/api/health", "/metrics",
    "/ui/herd/live", "/ui/activity/live",
})  # fmt: skip
"""Paths that machines ask all day long."""


class Attempt(NamedTuple):
    """An upstream that was asked; seconds as in the record."""

    upstream: str
    speaks: str
    at: float
    waited: float
    """How long it was waited for a slot there."""
    span: str
    """What it was told as the span that asks it."""


class Record:
    """One request. Seconds are `perf_counter`'s, and spans count from `began`."""

    __slots__ = (
        "_books", "admitted", "asked", "at", "attempts", "began", "cached", "cancelled", "choices",
        "dialect", "entered", "estimated", "expected", "failed_over", "finish", "first", "headers",
        "id", "key", "metered", "method", "model", "operation", "path", "problem", "prompt",
        "queued", "reasoning", "replays", "session", "status", "stream", "took", "trace",
        "upstream", "weighed", "written",
    )  # fmt: skip

    def __init__(  # noqa: PLR0915 - a field each
        self, id_: str, method: str, path: str, began: float, books: Sequence[Book] = ()
    ) -> None:
        self._books = books
        self.id = id_
        self.at = time.time()
        """When it came, in seconds since 1970, UTC."""
        self.began = began
        self.method = method
        self.path = path
        self.trace: Trace | None = None
        """The trace that it belongs to, if its client or a book says so."""
        self.dialect = ""
        self.key = ""
        """Whose it is: a name for the key, which does not show it."""
        self.session = ""
        self.model: str | None = None
        """As the client named it, or as it is called here."""
        self.operation: Operation = ""
        self.stream = False
        self.choices = 0
        self.admitted: float | None = None
        """Seconds until it might take what it needs."""
        self.asked: list[Attempt] = []
        """Who was asked, one after the other."""
        self.upstream = ""
        """Who answered, or was asked last."""
        self.weighed: object = None
        """What the pick saw when it chose, for whoever tells why (`herd.pool.Weighed`)."""
        self.attempts = 0
        """How many upstreams, or how often one, were asked."""
        self.failed_over = False
        """Whether another upstream went on with a stream that had begun."""
        self.queued = 0.0
        """Seconds that it waited for a slot."""
        self.expected = 0.0
        """The part of its prompt that was expected in the upstream's cache."""
        self.first: float | None = None
        """Seconds until the first of the answer was there."""
        self.took: float | None = None
        """Seconds until it was over; `None` while it is not."""
        self.status = 0
        """The status of the answer; 0 if the client left before there was one."""
        self.headers: Sequence[tuple[str, str]] = ()
        """Those of the answer that are not on every one."""
        self.problem: Problem | None = None
        """Why it was refused, or broke off."""
        self.finish: FinishReason | None = None
        """Why the last choice ended."""
        self.cancelled = False
        """Whether the client left."""
        self.prompt = 0
        """Tokens that were read; of those `cached` were in the upstream's cache, where it tells."""
        self.written = 0
        """Tokens that were written; of those `reasoning` were thoughts, where that is known."""
        self.cached: int | None = None
        self.reasoning: int | None = None
        self.estimated = False
        """Whether nobody has counted these."""
        self.replays = ""
        """The id of the request whose answer was said again to this one."""
        self.metered = False
        """Whether it may take something of an upstream: such a one has a row in the ledger."""
        self.entered = False

    @property
    def asks_a_model(self) -> bool:
        """Whether it wants something of a model, be it only an answer that there is already."""
        return self.metered or self.replays != ""

    @property
    def worth_a_line(self) -> bool:
        """Whether anybody wants to read of it: not of a look at the health that found it good."""
        return self.path not in _LOOKED_AT or not 0 < self.status < 400

    def asks(self, upstream: str, speaks: str, waited: float, expected: float) -> None:
        """Take that an upstream is asked, and have it hear of the trace."""
        self.upstream, self.queued, self.expected = upstream, waited, expected
        self.attempts += 1
        span = "" if self.trace is None else self.trace.asks()
        now = time.perf_counter() - self.began
        self.asked.append(Attempt(upstream, speaks, now, waited, span))

    @property
    def earlier(self) -> list[str]:
        """Who was asked before, and failed it."""
        return [one.upstream for one in self.asked[:-1]]

    def used(self, usage: Usage) -> None:
        """Take what the answer took."""
        self.prompt, self.written = usage.prompt_tokens, usage.completion_tokens
        self.cached, self.reasoning = usage.cached_tokens, usage.reasoning_tokens
        self.estimated = usage.extras.get("estimated") is True

    def take(self, events: Sequence[Event]) -> None:
        """Take what these events tell of how the answer ended, and of what it took."""
        for event in events:
            match event:
                case ChoiceEnded(reason=reason):
                    self.finish = reason
                case Finished(usage=Usage() as usage):
                    self.used(usage)
                case Failed(problem=problem, usage=usage):
                    self.problem = problem
                    if usage is not None:
                        self.used(usage)

    def begin(self) -> None:
        """Have the books know of it."""
        for book in self._books:
            book.begun(self)

    async def enter(self) -> None:
        """Have it in the books before its client hears the end; only the first time counts."""
        if not self.entered:
            self.entered = True
            for book in self._books:
                await book.enter(self)

    def end(self) -> None:
        """It is over."""
        self.took = time.perf_counter() - self.began
        for book in self._books:
            book.over(self)


class Book(Protocol):
    """Whoever takes note of requests. It raises nothing: that it cannot is its own affair."""

    def begun(self, record: Record) -> None:
        """A request has come; nothing is known of it but its head."""

    async def enter(self, record: Record) -> None:
        """The answer is complete, or refused, and its client waits for the end of it."""

    def over(self, record: Record) -> None:
        """The request is over; told exactly once, and without `enter` if its client left."""
