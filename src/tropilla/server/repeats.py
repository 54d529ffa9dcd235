"""`Idempotency-Key`: a request that is said again is done once, and its answer is said again.

Whoever says a request under a key first has it done; others who say the same at that time wait for
it, here and on every gateway of the same store, and are told the same bytes. An answer is kept once
it is complete, before its client hears the end of it. What was refused, broke off, or was left by
its client is not kept: the next one who says it, or has waited, has it done anew. Where nobody can
tell whether a request was done it is refused, and not done twice.
"""

from __future__ import annotations

import asyncio
import re
import secrets
import time
from collections.abc import Awaitable, Callable, Mapping
from contextlib import suppress
from hashlib import sha256
from typing import Final

from tropilla import log
from tropilla.accounts.repeats import Found, Name, Result, Shelf
from tropilla.accounts.store import StoreError
from tropilla.config import Config
from tropilla.ir import Malformed, Problem, ProblemError
from tropilla.record import Record
from tropilla.server.http import MOST_HELD, Call
from tropilla.server.reply import Reply
from tropilla.server.routes import Action, Forward, Generate, Measure

HEADER: Final = "Idempotency-Key"
KEY: Final = HEADER.lower().encode()
_GOOD = re.compile(rb"[!-~]{1,255}")
_BOUNDARY = re.compile(rb'boundary="?([^";,\s]+)')
_LARGE = 1024 * 1024
"""Bytes that are digested in a thread."""
_BEAT_SECONDS = 2.0
_DEAD_SECONDS = 10.0
"""Without a beat for so long whoever had begun is not there any more."""
_LOOK_SECONDS = 0.1
"""How often it is asked whether another gateway has ended."""
_RETRY_SECONDS = 1.0
_SWEEP_SECONDS = 60.0
_LAST_SECONDS = 2.0
_SELDOM_SECONDS = 10.0
_OWN_TIMES = "-ms"
"""How the names of headers end that tell times: an answer that is said again has others."""
_AWAY = Problem(
    kind="unavailable",
    message="Nobody can tell now whether this was done already, under its Idempotency-Key: it is "
    "not done twice.",
    code="repeats_unavailable",
    retry_after=5,
)
_CROWDED = Problem(
    kind="unavailable",
    message="Too many large requests wait for others under the same Idempotency-Key.",
    retry_after=1,
)


def may_repeat(action: Action) -> bool:
    """Whether it makes an answer that is worth to be kept."""
    return isinstance(action, Generate | Measure) or (
        isinstance(action, Forward) and action.slots > 0
    )


class Repeats:
    """What is being done under a key, and what was, which is on a shelf.

    The shelf is swept as long as there may be something on it: from the first request with a key
    on, or at once where it is `lasting` and others may have left something there.
    """

    def __init__(self, config: Config, shelf: Shelf, *, lasting: bool = False) -> None:
        self._shelf = shelf
        self._open: dict[Name, _Open] = {}
        """What this process does, or waits for."""
        self._tasks: set[asyncio.Task[None]] = set()
        self._beating: asyncio.Task[None] | None = None
        self._sweeping = asyncio.create_task(self._sweep()) if lasting else None
        self._waiting = 0
        """Bytes of answers that wait for the store to take them."""
        self._held = 0
        """Bytes of the bodies of those that wait."""
        self._failed = log.Seldom(_SELDOM_SECONDS)
        self._ending = False
        self.reload(config)

    def reload(self, config: Config) -> None:
        """Keep as another config says."""
        self._config = self._shelf.config = config.repeats
        self.on = config.repeats.ttl > 0
        """Whether the header says anything."""

    async def begin(self, call: Call, most: int) -> Result | Tape:
        """The answer to a request, if there is one; else what has its answer kept, until `end`.

        Raises:
            ProblemError: the key is none, or was used for another request; or nobody knows.
        """
        name = Name(call.owner, _key(call.headers))
        body = await call.body(most, again=True)
        mark = await _mark(call, body)
        if self._held + len(body) > MOST_HELD:
            raise ProblemError(_CROWDED)
        self._held += len(body)
        try:
            one, found = await self._found(name, mark)
        finally:
            self._held -= len(body)
        if found is not None:
            return found
        if self._beating is None or self._beating.done():
            self._beating = asyncio.create_task(self._beat())
        if self._sweeping is None:
            self._sweeping = asyncio.create_task(self._sweep())

        async def keep(result: Result) -> None:
            await self._keep(one, result)

        return Tape(call.reply, call.record, self._config.max_answer, one, keep)

    async def _found(self, name: Name, mark: str) -> tuple[_Open, Result | None]:
        """Wait while somebody does it: what is done then, and its answer, if there is one.

        Raises:
            ProblemError: the key was used for another request; or nobody knows.
        """
        while (other := self._open.get(name)) is not None:
            if other.mark != mark and not other.vain:
                raise ProblemError(_other(name))
            if other.result is not None:
                return other, other.result
            await other.over.wait()
        one = self._open[name] = _Open(name, mark)
        try:
            found = await self._claimed(one)
        except StoreError as error:
            self._end(one)
            self._failed.add()
            if times := self._failed.due(time.monotonic()):
                text = "No answer can be looked up ({times} times since it was told last): {why}"
                log.error("repeats.failed", text, times=times, why=str(error))
            raise ProblemError(_AWAY) from None
        except BaseException:
            self._end(one)
            raise
        if found is not None:
            one.result, one.settled = found, True
            self._end(one)
        return one, found

    async def _claimed(self, one: _Open) -> Result | None:
        """Claim a name, and give back nothing; or the answer that there is, or that was waited for.

        Raises:
            ProblemError: it was used for another request.
            StoreError: the shelf fails.
        """
        pulse: tuple[str, int] | None = None
        seen = 0.0
        while True:
            since = time.time() - self._config.ttl
            found = await self._shelf.claim(one.name, one.mark, one.token, since)
            if found is None:
                return None
            if found.mark != one.mark:
                one.settled = True
                raise ProblemError(_other(one.name))
            if found.result is not None:
                return found.result
            now = time.monotonic()
            if pulse != (found.token, found.beat):
                pulse, seen = (found.token, found.beat), now
            elif now - seen > _DEAD_SECONDS and await self._taken_over(one, found):
                return None
            await asyncio.sleep(_LOOK_SECONDS)

    async def _taken_over(self, one: _Open, dead: Found) -> bool:
        taken = await self._shelf.take_over(one.name, one.token, dead)
        if taken:
            log.warning(
                "repeats.taken_over",
                "Whoever did a request under an Idempotency-Key is gone: it is done anew.",
            )
        return taken

    async def _beat(self) -> None:
        """Say that it is still being done, as long as anything is."""
        while self._open:
            await asyncio.sleep(_BEAT_SECONDS)
            claims = [(one.name, one.token) for one in self._open.values() if not one.settled]
            if claims:
                with suppress(StoreError):
                    await self._shelf.beat(claims)

    async def _sweep(self) -> None:
        """Forget the answers that are too old, or too many."""
        while True:
            with suppress(StoreError):
                gone = await self._shelf.sweep()
                if gone:
                    text = "{answers} answers that might have been said again are forgotten."
                    log.info("repeats.swept", text, answers=gone)
            await asyncio.sleep(_SWEEP_SECONDS)

    async def _keep(self, one: _Open, result: Result) -> None:
        """Keep an answer. One that no store takes now is kept here until it does."""
        one.answer = result
        try:
            kept = await self._shelf.keep(one.name, one.token, result)
        except StoreError as error:
            text = "An answer that is to be kept waits for the store: {why}"
            log.error("repeats.waiting", text, why=str(error))
        else:
            one.settled = True
            if not kept:
                log.warning(
                    "repeats.twice",
                    "{request} was done a second time: nobody had heard for {seconds} s that it is "
                    "being done here.",
                    request=result.request,
                    seconds=_DEAD_SECONDS,
                )
                return
        one.result = result
        one.over.set()

    async def end(self, one: _Open, *, wait: bool) -> None:
        """It is over: others have its answer, or may do it.

        With `wait` they may before this returns: whoever hears of a failure then may mend it at
        once, on any gateway.
        """
        settling = self._end(one)
        if wait and settling is not None and one.answer is None:
            await asyncio.shield(settling)

    def _end(self, one: _Open) -> asyncio.Task[None] | None:
        """Have the shelf know that it is over."""
        one.ended = True
        if one.settled:
            self._forget(one)
            return None
        task = asyncio.create_task(self._settle(one))
        self._tasks.add(task)
        task.add_done_callback(self._tasks.discard)
        return task

    async def _settle(self, one: _Open) -> None:
        """Have the shelf know how it ended. What it cannot be told of is found dead by others."""
        answer = one.answer
        size = 0 if answer is None else answer.size
        self._waiting += size
        try:
            while True:
                with suppress(StoreError):
                    if answer is None:
                        await self._shelf.release(one.name, one.token)
                    else:
                        await self._shelf.keep(one.name, one.token, answer)
                    return
                if answer is None or self._ending:
                    return
                if self._waiting > self._config.max_bytes:
                    text = "{request} is not kept: too many answers wait for the store."
                    log.error("repeats.lost", text, request=answer.request)
                    return
                await asyncio.sleep(_RETRY_SECONDS)
        finally:
            self._waiting -= size
            self._forget(one)

    def _forget(self, one: _Open) -> None:
        del self._open[one.name]
        one.over.set()

    async def close(self) -> None:
        """Have the shelf know of what has ended, if it takes it soon."""
        self._ending = True
        if self._tasks:
            await asyncio.wait(self._tasks, timeout=_LAST_SECONDS)
        for task in (*self._tasks, self._beating, self._sweeping):
            if task is not None:
                task.cancel()
                with suppress(asyncio.CancelledError):
                    await task


class _Open:
    """A request that is being done under a key, or waited for."""

    __slots__ = ("answer", "ended", "mark", "name", "over", "result", "settled", "token")

    def __init__(self, name: Name, mark: str) -> None:
        self.name = name
        self.mark = mark
        self.token = secrets.token_hex(8)
        self.answer: Result | None = None
        """What was answered, whether anybody may be told it yet or not."""
        self.result: Result | None = None
        """What others are told."""
        self.ended = False
        self.settled = False
        """Whether the shelf knows how it ended, or that it is somebody else's."""
        self.over = asyncio.Event()
        """Set once others have an answer, or may do it themselves."""

    @property
    def vain(self) -> bool:
        """Whether it has ended without an answer: its name will be free."""
        return self.ended and self.answer is None


class Tape:
    """A reply whose answer is kept before its client hears the end of it.

    That is the piece that follows once the answer is in the books, or, where there is no such
    piece, the end itself.
    """

    def __init__(
        self,
        reply: Reply,
        record: Record,
        most: int,
        done: _Open,
        keep: Callable[[Result], Awaitable[None]],
    ) -> None:
        self.done = done
        """What is done: for `Repeats.end`."""
        self._to = reply
        self._record = record
        self._most = most
        self._keep = keep
        self._head: tuple[int, str, dict[str, str], bool] | None = None
        self._pieces: list[bytes] = []
        self._size = 0
        self._over = False
        self._turn = asyncio.Lock()
        """Of what is sent: signs of life come from another task, while an answer is kept."""

    @property
    def started(self) -> bool:
        """Whether there is a head already."""
        return self._head is not None

    @property
    def ended(self) -> bool:
        """Whether all has been sent."""
        return self._to.ended

    async def start(
        self, status: int, content_type: str, headers: Mapping[str, str], first: bytes = b""
    ) -> None:
        """Send the head, and the first piece of the body with it."""
        self._head = (status, content_type, dict(headers), True)
        async with self._turn:
            await self._heard(first)
            await self._to.start(status, content_type, headers, first)

    async def write(self, data: bytes) -> None:
        """Send a piece of the body."""
        async with self._turn:
            await self._heard(data)
            await self._to.write(data)

    def push(self, data: bytes) -> bool:
        """Send a piece that is not the last; whether the client reads as fast as that."""
        self._add(data)
        return self._to.push(data)

    async def sent(self) -> None:
        """Wait while the client does not read."""
        await self._to.sent()

    async def end(self) -> None:
        """Send the end of the body."""
        async with self._turn:
            await self._complete()
            await self._to.end()

    async def whole(
        self,
        status: int,
        body: bytes,
        headers: Mapping[str, str] | None = None,
        content_type: str = "application/json",
    ) -> None:
        """Send an answer of known length."""
        self._head = (status, content_type, dict(headers or {}), False)
        self._add(body)
        await self._complete()
        await self._to.whole(status, body, headers, content_type)

    async def _heard(self, data: bytes) -> None:
        self._add(data)
        if self._record.entered:
            await self._complete()

    def _add(self, data: bytes) -> None:
        self._size += len(data)
        if self._size > self._most:
            self._pieces.clear()
        else:
            self._pieces.append(data)

    async def _complete(self) -> None:
        """Have the answer kept, if it is one."""
        if self._over or self._head is None:
            return
        self._over = True
        status, content_type, headers, streamed = self._head
        if not 200 <= status < 300 or self._record.problem is not None:
            return
        if self._size > self._most:
            log.warning(
                "repeats.too_large",
                "{request} has an answer of more than {most} bytes: it is not kept, and would be "
                "done again.",
                request=self._record.id,
                most=self._most,
            )
            return
        result = Result(
            status=status,
            content_type=content_type,
            headers={n: value for n, value in headers.items() if not n.endswith(_OWN_TIMES)},
            body=b"".join(self._pieces),
            streamed=streamed,
            request=self._record.id,
            model=self._record.model,
        )
        await self._keep(result)


_REPLAYED = {"idempotency-replayed": "true"}


async def replay(result: Result, record: Record, reply: Reply) -> None:
    """Say an answer again. It takes nothing: who asked first has paid for it."""
    record.metered, record.replays, record.model = False, result.request, result.model
    headers = result.headers | _REPLAYED
    if result.streamed:
        await reply.start(result.status, result.content_type, headers, result.body)
        await reply.end()
    else:
        await reply.whole(result.status, result.body, headers, result.content_type)


def _key(headers: Mapping[bytes, bytes]) -> str:
    key = headers[KEY]
    if _GOOD.fullmatch(key) is None:
        raise Malformed(
            f"{HEADER} has 1 to 255 letters, digits and signs of ASCII, without a space.",
            param=HEADER,
            code="invalid_value",
        )
    return key.decode("ascii")


async def _mark(call: Call, body: bytes) -> str:
    """A fingerprint of a request: of its method, its path and its body."""
    form = _BOUNDARY.search(call.headers.get(b"content-type", b""))
    if form is not None:
        # Who sends a form again chooses another boundary.
        body = body.replace(form[1], b"")
    told = f"{call.method} {call.path}?{call.head.query}\n".encode()

    def digest() -> str:
        found = sha256(told)
        found.update(body)
        return found.hexdigest()

    return digest() if len(body) < _LARGE else await asyncio.to_thread(digest)


def _other(name: Name) -> Problem:
    return Problem(
        kind="conflict",
        message=f"The {HEADER} '{name.key}' was used for another request: one is for one path and "
        "one body. Take a new one.",
        param=HEADER,
    )
