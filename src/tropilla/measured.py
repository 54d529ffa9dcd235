"""The path of one request for numbers, top to bottom.

::

    request -> lease -> split -> measure renders -> upstream
    client  <- measure renders <- join <- measure parses <-

The answer is sent whole, so that as long as anything can go wrong nothing has been said: a request
that one upstream fails is tried once more on another one, where there is one. Giving up in any
phase (the task is cancelled) closes the upstream's connection.
"""

from __future__ import annotations

import asyncio
from collections.abc import Callable, Mapping
from typing import Any, Protocol

import msgspec

from tropilla import dialects
from tropilla.dialects import Wire
from tropilla.dialects._openai import decode, encode
from tropilla.exchanges.exchange import BUSY, BUSY_SECONDS, QUEUES
from tropilla.herd.pool import Ask
from tropilla.ir import Json, Malformed, Problem, ProblemError, UpstreamDialect, Usage
from tropilla.measures import Counted, Measure
from tropilla.record import Record
from tropilla.upstream.fleet import Fleet
from tropilla.upstream.lease import Lease
from tropilla.upstream.member import Upstream

_JSON = {"Content-Type": "application/json"}
_BACKS: dict[UpstreamDialect, str] = {
    "llamacpp": "llamacpp", "openai": "openai_chat", "afs": "afs",
}  # fmt: skip

_BYTES_OF_A_TOKEN = 4
"""About as many as a token of English text has, where there is nobody to count."""


class Reply(Protocol):
    """Where the answer goes."""

    async def whole(self, status: int, body: bytes, headers: Mapping[str, str]) -> None:
        """Send a JSON answer in one piece."""


async def measure(
    one: Measure[Any, Any],
    request: Any,
    record: Record,
    *,
    fleet: Fleet,
    reply: Reply,
    key: str = "",
    body: int = 0,
    matryoshka: bool = False,
    render: Callable[[Any, str], bytes] | None = None,
) -> None:
    """Serve one request for numbers; `matryoshka` models allow vectors of fewer dimensions.

    `key` is whose it is, and `body` a fingerprint of what was asked. `render` says the answer in
    another form than the measure's own; it is given the name of the model here.

    Raises:
        ProblemError: nothing has been sent, and nothing can be.
    """
    record.model, record.operation = request.model, one.ABILITY

    async def work(lease: Lease) -> None:
        lease.tell(record)
        told, dropped = await _ask_all(one, request, lease)
        answer = one.join(told, request, matryoshka=matryoshka)
        if answer.usage is None:
            usage = await _count(one.counted(request), lease)
            answer = msgspec.structs.replace(answer, usage=usage)
        try:
            name = request.model or lease.name
            body = render(answer, name) if render else one.render_answer(answer, request, name)
        except RecursionError:
            raise ProblemError(_TOO_DEEP) from None
        record.used(answer.usage)
        await record.enter()
        headers = lease.headers() | dialects.dropped_header(dropped)
        await reply.whole(200, body, headers)

    ask = Ask(model=request.model, needs=(one.ABILITY,), key=key, body=body)
    await fleet.serve(ask, work, told=lambda: False)


_TOO_DEEP = Problem(kind="upstream_failed", message="The upstream's JSON is nested too deeply.")


async def _ask_all(
    one: Measure[Any, Any], request: Any, lease: Lease
) -> tuple[list[Any], tuple[str, ...]]:
    """The answers to all parts of a request, and what of it the upstream was not told."""
    traits = lease.upstream.traits
    parts = one.split(msgspec.structs.replace(request, model=lease.there), traits)
    # First every part is said, then the first one is asked: what cannot be said costs nothing.
    try:
        wires = [one.render_request(part, traits) for part in parts]
    except Malformed as error:
        # A newer server of the same model may be able to read it.
        raise ProblemError(msgspec.structs.replace(error.problem, retryable=True)) from None
    told = []
    for part, wire in zip(parts, wires, strict=True):
        body, answer = await _ask(wire, lease.upstream)
        try:
            told.append(one.parse_answer(body, part, traits))
        except Malformed as error:
            raise ProblemError(_failure(error.problem, body, answer, lease.upstream)) from None
    return told, wires[0].dropped


async def _ask(wire: Wire, upstream: Upstream) -> tuple[Json, bytes]:
    """Ask, until there is a free slot."""
    try:
        data = encode(wire.body)
    except RecursionError:
        raise Malformed("The JSON of the body is nested too deeply.") from None
    for pause in BUSY_SECONDS:
        try:
            return await _ask_once(wire.path, data, upstream)
        except ProblemError as error:
            if error.problem != BUSY:
                raise
        await asyncio.sleep(pause)
    return await _ask_once(wire.path, data, upstream)


async def _ask_once(path: str, data: bytes, upstream: Upstream) -> tuple[Json, bytes]:
    traits = upstream.traits
    path = path if traits.v1 else path.removeprefix("/v1")
    async with upstream.link.send("POST", path, data, _JSON) as incoming:
        answer = await incoming.whole()
    if incoming.status != 200:
        raise ProblemError(_refusal(incoming.status, answer, upstream))
    if traits.llamacpp and traits.build < QUEUES and b'"slot unavailable"' in answer:
        raise ProblemError(BUSY)  # with status 200 (b1496)
    try:
        return decode(answer), answer
    except Malformed as error:
        raise ProblemError(_failure(error.problem, None, answer, upstream)) from None


def _parse_problem(status: int, answer: bytes, upstream: Upstream) -> Problem:
    dialect = dialects.named(_BACKS[upstream.traits.dialect])
    return dialect.parse_problem(status, upstream.link.hide(answer))


def _refusal(status: int, answer: bytes, upstream: Upstream) -> Problem:
    problem = _parse_problem(status, answer, upstream)
    if status in {404, 501}:
        # It is another server than it was: what it can do now, a probe tells. Another server of
        # the same model may be able to.
        upstream.doubt()
        return msgspec.structs.replace(problem, retryable=True)
    if upstream.traits.llamacpp and "too large to process" in problem.message:
        # An input has to fit into one batch (--ubatch-size), and llama.cpp says 500.
        return Problem(kind="context_exceeded", message=problem.message)
    return problem


def _failure(why: Problem, body: Json, answer: bytes, upstream: Upstream) -> Problem:
    """What is wrong with an answer of status 200: it may tell of an error, or be none."""
    if type(body) is dict and any(body.get(key) for key in ("error", "detail", "message")):
        error = body.get("error")
        code = error.get("code") if type(error) is dict else None
        status = code if type(code) is int and 400 <= code < 600 else 500
        return _parse_problem(status, answer, upstream)
    kind = "upstream_failed" if why.kind == "malformed" else why.kind
    return msgspec.structs.replace(why, kind=kind, retryable=True)


# Counting what nobody has counted.


async def _count(counted: list[Counted], lease: Lease) -> Usage:
    """The usage of a request whose upstream tells none, marked as estimated where it is."""
    total, estimated = 0, False
    for one in counted:
        if isinstance(one.input, list):
            size = len(one.input)
        elif (told := await _tokens(one.input, lease)) is not None:
            size = told
        else:
            estimated = True
            size = -(-len(one.input.encode()) // _BYTES_OF_A_TOKEN)
        total += size * one.times
    return Usage(prompt_tokens=total, extras={"estimated": True} if estimated else {})


async def _tokens(text: str, lease: Lease) -> int | None:
    """How many tokens the upstream sees in a text; `None` if it cannot be asked."""
    upstream = lease.upstream
    if not upstream.traits.tokenizes:
        return None
    body = {"content": text, "add_special": True}
    if lease.there is not None:
        body["model"] = lease.there
    try:
        status, answer = await upstream.link.ask("POST", "/tokenize", body, seconds=60)
        told = decode(answer) if status == 200 else None
    except ProblemError:
        return None
    match told:
        case {"tokens": list(tokens)}:
            return len(tokens)
    return None
