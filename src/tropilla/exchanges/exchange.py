"""One request put to one upstream, and its answer as events, whatever it looks like.

What an upstream does badly it does badly here, and nowhere else: a server that answers whole
though it was asked to stream, one that has no free slot and does not let requests wait, one that
gives one answer where several are wanted. An answer always ends in a terminal event. Leaving an
exchange before its end closes the upstream's connection.
"""

from __future__ import annotations

import asyncio
from collections.abc import Callable
from time import monotonic
from types import TracebackType
from typing import Protocol, Self, TypeAlias

import msgspec

from tropilla import calls, ir
from tropilla.dialects import Dialect
from tropilla.dialects._ages import chat_streams
from tropilla.dialects._openai import decode, sum_usages
from tropilla.dialects._streams import Like
from tropilla.exchanges.stops import Stops
from tropilla.framing import COMMENT, Frame, Framer, framer
from tropilla.ir import (
    Completion,
    Event,
    Failed,
    Finished,
    Json,
    JsonObject,
    Malformed,
    Problem,
    ProblemError,
    Request,
    Started,
    Traits,
    Usage,
)
from tropilla.upstream import incoming
from tropilla.upstream.incoming import Incoming
from tropilla.upstream.lease import BUSY_CODE
from tropilla.upstream.member import Upstream

_JSON = {"Content-Type": "application/json"}

QUEUES = 1915
"""The build since which a request waits for a free slot in the server (#5018)."""

_STOPS_WELL = 4410
"""The build since which nothing is lost around a stop word (#9867, #10997)."""

BUSY = Problem(
    kind="unavailable",
    message="The server had no free slot, and does not let requests wait.",
    code=BUSY_CODE,
    retry_after=1,
)
"""What old servers say in many ways when all their slots are taken."""
BUSY_SECONDS = (0.02, 0.05, 0.1, 0.2, 0.4, *[0.5] * 58)
"""How long to wait before each further try, half a minute in all: a newer server queues."""


Take: TypeAlias = Callable[[list[Event]], bool]
"""Takes the events of a piece; whether it takes those of the next one, too."""


class Exchange(Protocol):
    """An answer on its way."""

    dropped: tuple[str, ...]
    """The knobs that the upstream cannot honour."""

    async def __aenter__(self) -> Self:
        """Ask; the upstream has begun to answer when this is entered.

        Raises:
            ProblemError: it refused, or gave no answer.
        """

    async def __aexit__(
        self,
        kind: type[BaseException] | None,
        error: BaseException | None,
        trace: TracebackType | None,
    ) -> None:
        """Give up what is not complete."""

    async def next(self, take: Take | None = None) -> list[Event]:
        """The events of the next piece: often none.

        As long as `take` takes them, pieces go there as soon as they come, without a word to who
        waits here; all but the last of the answer, and those of an exchange that cannot do so.
        """


def exchange(upstream: Upstream, back: Dialect, request: Request, *, extras: bool) -> Exchange:
    """A request to be put to an upstream.

    Raises:
        Malformed: of kind `unsupported`, when the upstream cannot be asked this.
    """

    def ask(part: Request) -> _Single:
        return _Single(upstream, back, part, extras=extras)

    parts = _split(request, upstream.traits)
    if len(parts) == 1:
        return ask(parts[0])
    for part in parts:
        # Any text can be asked; what cannot is known before the first is.
        if isinstance(part.input, Completion) and not isinstance(part.input.prompts[0], str):
            ask(part)
    return _Several(ask, parts, request.n)


def _split(request: Request, traits: Traits) -> list[Request]:
    """The request, or one for each of its choices where the upstream gives but one answer.

    llama.cpp has `n` since b7308, up to the number of its slots, and has read every list of
    prompts right since b4402 (`/v1/completions`, #10974).
    """
    match request.input:
        case Completion(prompts=prompts, echo=echo) if len(prompts) > 1:
            several = True
        case _:
            several, prompts, echo = False, (), False
    match traits.dialect:
        case "llamacpp":
            n_fits = traits.build >= 7308 and request.n <= (traits.slots or request.n)
            # The usage of a whole answer is that of its first choice alone (#27318).
            n_fits = n_fits and chat_streams(request, traits)
            fits = (n_fits or request.n == 1) and (traits.build >= 4402 or not several)
        case "afs":
            fits = request.choices == 1
        case _:
            # Many read `n`; a list of prompts only a few.
            fits = not several
    if fits:
        return [request]
    asked = [
        msgspec.structs.replace(request, input=Completion(prompts=(prompt,), echo=echo), n=1)
        for prompt in prompts
    ] or [msgspec.structs.replace(request, n=1)]
    return [_seeded(one, number) for one in asked for number in range(request.n)]


def _seeded(request: Request, number: int) -> Request:
    """The same request with a seed of its own: equal ones would give equal answers."""
    seed = request.knobs.seed
    if seed is None or seed < 0 or number == 0:
        return request
    knobs = msgspec.structs.replace(request.knobs, seed=seed + number)
    return msgspec.structs.replace(request, knobs=knobs)


class _Single:
    """One request, one answer."""

    __slots__ = (
        "_answer", "_back", "_body", "_bounded", "_extras", "_first", "_framed", "_framer", "_held",
        "_like", "_over", "_parser", "_request", "_size", "_stops", "_take", "_told", "_upstream",
        "_wire", "dropped",
    )  # fmt: skip

    def __init__(
        self, upstream: Upstream, back: Dialect, request: Request, *, extras: bool
    ) -> None:
        self._upstream = upstream
        self._back = back
        self._request = request
        self._extras = extras
        self._stops: Stops | None = None
        self._held = calls.held(request)
        traits = upstream.traits
        if request.stop and traits.llamacpp and traits.build < _STOPS_WELL:
            self._stops = Stops(request.stop)
            request = msgspec.structs.replace(request, stop=())
        self._wire = back.render_request(request, traits)
        self._body = _encoded(self._wire.body)
        self._parser = back.stream_parser(request, extras=extras)
        self._framer: Framer | None = None
        """Of the answer, if that is a stream."""
        self._answer: Incoming | None = None
        self._first = b""
        self._bounded = not request.stream
        """Whether a stream is kept until all of it has come; then it has so many bytes:"""
        self._size = 0
        self._take: Take | None = None
        """Who takes what is told."""
        self._like: Like | None = None
        """What the parser said that the next frame is probably like."""
        self._framed: Like | None = None
        """The same for a piece that is one frame, once such ones have come."""
        self._told: list[Event] = []
        """What nobody has taken."""
        self._over = False
        self.dropped = self._wire.dropped

    async def __aenter__(self) -> Self:
        for pause in (*BUSY_SECONDS, None):
            try:
                await self._open()
            except ProblemError as error:
                self._leave()
                if error.problem != BUSY or pause is None:
                    raise
                await asyncio.sleep(pause)
            except BaseException:
                self._leave()
                raise
            else:
                break
        return self

    def _leave(self) -> None:
        answer, self._answer = self._answer, None
        if answer is not None:
            answer.leave()

    async def _open(self) -> None:
        traits = self._upstream.traits
        path = self._wire.path if traits.v1 else self._wire.path.removeprefix("/v1")
        self._answer = answer = await self._upstream.link.begin("POST", path, self._body, _JSON)
        self._framer = framer(answer.content_type)
        old = traits.llamacpp and traits.build < QUEUES
        if answer.status != 200:
            raise ProblemError(await self._refusal(answer, path, old=old))
        if old and self._framer is not None:
            self._first = await answer.read()
            # Without a free slot: an empty stream before b1542, an `error:` line since then.
            if not self._first or b'"slot unavailable"' in self._first:
                raise ProblemError(BUSY)

    async def _refusal(self, answer: Incoming, path: str, *, old: bool) -> Problem:
        problem = self._back.parse_problem(answer.status, await answer.whole())
        if answer.retry_after is not None:
            problem = msgspec.structs.replace(problem, retry_after=answer.retry_after)
        if answer.status in {404, 501}:
            # b1496 has one answer for "no free slot" and for "no such path": but where there is
            # no path, there is nobody to mind JSON that is broken.
            if old:
                async with self._upstream.link.send("POST", path, b"{", _JSON, 60) as other:
                    if other.status != 404:
                        return BUSY
            self._upstream.doubt()
        return problem

    async def __aexit__(
        self,
        kind: type[BaseException] | None,
        error: BaseException | None,
        trace: TracebackType | None,
    ) -> None:
        self._upstream.heard.discard(self)
        stops, held = self._stops, self._held
        cut = (stops is not None and stops.hit) or (held is not None and held.hit)
        if self._over and not cut and kind is None and self._answer is not None:
            await self._answer.finish()
        self._leave()

    def give_up(self) -> None:
        """The upstream is dead, though its connection is not."""
        if self._answer is not None:
            self._answer.give_up()

    async def next(self, take: Take | None = None) -> list[Event]:
        answer = self._answer
        assert answer is not None, "an exchange is entered before it is read"  # noqa: S101
        self._told = []
        try:
            if self._framer is None:
                # It was asked to stream, and answered all the same.
                body = decode(await answer.whole())
                _check(body, self._back)
                whole = self._back.parse_answer(body, self._request)
                self._tell(list(ir.unfold(whole, extras=self._extras)), None)
            elif await self._pour(answer, take):
                self._tell(self._parser.feed(self._framer.end()) + self._parser.end(), None)
        except Malformed as error:
            problem = Problem(kind="upstream_failed", message=error.problem.message, retryable=True)
            self._tell(self._parser.abort(problem), None)
        except ProblemError as error:
            self._tell(self._parser.abort(error.problem), None)
        return self._told

    @property
    def since(self) -> float:
        """When the last sign of life came, or the next one was first waited for (`monotonic`)."""
        return monotonic() if self._answer is None else self._answer.since

    async def _pour(self, answer: Incoming, take: Take | None) -> bool:
        """Read on, as long as what is read is taken; whether that was all of it."""
        self._take = take
        # Silence counts only while it is listened to: a slow client is not a dead upstream.
        answer.since = monotonic()
        self._upstream.heard.add(self)
        try:
            first, self._first = self._first, b""
            if first and not self._read(first):
                return False
            return not await answer.pour(self._read)
        finally:
            self._upstream.heard.discard(self)

    def _read(self, piece: bytes) -> bool:
        """Take a piece of the stream; whether the next one may come."""
        if self._bounded:
            self._size += len(piece)
            if self._size > incoming.MAX_WHOLE:
                raise ProblemError(incoming.too_much(self._upstream.link.url))
        if self._framed is not None and (told := self._framed.told(piece)) is not None:
            return self._tell([told], self._take)
        assert self._framer is not None, "it is a stream"  # noqa: S101
        frames = self._framer.feed(piece)
        if _is_ping(frames):
            self._upstream.pinged(monotonic() - self.since)
        events = self._parser.feed(frames)
        like, around = self._parser.like, self._framer.around()
        if like is None or like is not self._like or around is None:
            self._like, self._framed = like, None
        elif self._framed is None:
            self._framed = like.within(*around)
        return self._tell(events, self._take)

    def _tell(self, events: list[Event], take: Take | None) -> bool:
        """Have events taken, if they are not the last; whether the next ones may come."""
        if self._stops is not None:
            events = self._stops.feed(events)
        if self._held is not None:
            events = self._held.feed(events)
        last = events[-1] if events else None
        if take is not None and not isinstance(last, _ENDS):
            return take(events)
        if isinstance(last, Failed):
            message = self._upstream.link.hide(last.problem.message.encode()).decode()
            problem = msgspec.structs.replace(last.problem, message=message)
            events[-1] = msgspec.structs.replace(last, problem=problem)
        self._over = isinstance(last, _ENDS)
        self._told = events
        return False


_ENDS = (Finished, Failed)


def _is_ping(frames: list[Frame]) -> bool:
    return len(frames) == 1 and frames[0].event == COMMENT


def _encoded(body: JsonObject) -> bytes:
    try:
        return msgspec.json.encode(body)
    except RecursionError:
        # What could just be read cannot be written from here, deeper in the program.
        raise Malformed("The JSON of the body is nested too deeply.") from None


def _check(body: Json, back: Dialect) -> None:
    """Some servers tell of an error with the status 200.

    Raises:
        ProblemError: this is one.
    """
    error = body.get("error") if type(body) is dict else None
    if error:
        code = error.get("code") if type(error) is dict else None
        status = code if type(code) is int and 400 <= code < 600 else 500
        raise ProblemError(back.parse_problem(status, msgspec.json.encode(body)))


class _Several:
    """Several answers of an upstream that gives one at a time: asked for one after the other."""

    def __init__(self, ask: Callable[[Request], _Single], parts: list[Request], n: int) -> None:
        self._ask = ask
        self._parts = parts
        self._n = n
        self._now = 0
        self._asked = ask(parts[0])
        """The one that is on its way: there may be thousands, and none is made before its turn."""
        self._usages: list[Usage] = []
        self.dropped = self._asked.dropped

    async def __aenter__(self) -> Self:
        await self._asked.__aenter__()
        return self

    async def __aexit__(
        self,
        kind: type[BaseException] | None,
        error: BaseException | None,
        trace: TracebackType | None,
    ) -> None:
        await self._asked.__aexit__(kind, error, trace)

    async def next(self, take: Take | None = None) -> list[Event]:
        through = None if take is None else lambda batch: take(self._renumbered(batch))
        batch = await self._asked.next(through)
        events = self._renumbered(batch)
        if batch and isinstance(end := batch[-1], Finished):
            if end.usage is not None:
                self._usages.append(end.usage)
            if self._now + 1 < len(self._parts):
                events.pop()
                return events + await self._go_on()
            whole = len(self._usages) == len(self._parts)
            usage = sum_usages(self._usages, self._n) if whole else None
            events[-1] = msgspec.structs.replace(end, usage=usage)
        return events

    def _renumbered(self, batch: list[Event]) -> list[Event]:
        events = [_renumbered(event, self._now) for event in batch]
        if self._now:
            return [event for event in events if not isinstance(event, Started)]
        return events

    async def _go_on(self) -> list[Event]:
        await self._asked.__aexit__(None, None, None)
        self._now += 1
        try:
            self._asked = self._ask(self._parts[self._now])
            await self._asked.__aenter__()
        except ProblemError as error:
            return [Failed(problem=error.problem)]
        return []


def _renumbered(event: Event, choice: int) -> Event:
    if isinstance(event, Started | Finished | Failed):
        return event
    return msgspec.structs.replace(event, choice=choice)
