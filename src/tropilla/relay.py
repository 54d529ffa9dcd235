"""THE path of one request, top to bottom: from what a client asked to what it hears.

::

    Request -> template -> lease -> back dialect renders -> upstream
    client  <- front dialect renders <- events <- back dialect parses <-

There is one path. The upstream is always asked to stream; a client that wants the answer whole
gets the fold of that stream. Before the first byte has reached the client a failure of an
upstream is tried once more, on another one where there is one; after it, a failure is told in
the stream. Giving up in any phase (the task is cancelled) closes the upstream's connection.
"""

from __future__ import annotations

from asyncio import CancelledError
from collections.abc import Mapping
from typing import NamedTuple, Protocol
from urllib.parse import quote

import msgspec

from tropilla import dialects, ir
from tropilla.dialects import Dialect, Stamp, StreamParser, Wire
from tropilla.dialects._openai import decode
from tropilla.framing import SseFramer
from tropilla.ir import (
    Chat,
    Event,
    Failed,
    Json,
    JsonObject,
    Malformed,
    Problem,
    ProblemError,
    Request,
)
from tropilla.templates import Classic, flatten
from tropilla.upstream.fleet import Fleet, Upstream
from tropilla.upstream.http import Incoming

_JSON = {"Content-Type": "application/json"}


class Reply(Protocol):
    """Where the answer goes; `write` waits while the client does not read."""

    @property
    def started(self) -> bool:
        """Whether a byte has been sent: from then on there is no other status."""

    async def start(self, status: int, content_type: str, headers: Mapping[str, str]) -> None:
        """Send the head."""

    async def write(self, data: bytes) -> None:
        """Send a piece of the body."""

    async def end(self) -> None:
        """Send the end of the body."""

    async def whole(self, status: int, body: bytes, headers: Mapping[str, str]) -> None:
        """Send a JSON answer in one piece."""


class Origin(NamedTuple):
    """Where a reply comes from: what becomes part of its ids, and when (seconds since 1970)."""

    unique: str
    created: int


async def generate(
    front: Dialect,
    request: Request,
    origin: Origin,
    *,
    fleet: Fleet,
    template: Classic | None,
    reply: Reply,
) -> None:
    """Serve one request for text.

    Raises:
        ProblemError: nothing has been sent yet, and nothing can be.
    """
    failed: Upstream | None = None
    while True:
        async with fleet.lease(request.model, failed) as upstream:
            try:
                await _attempt(front, request, origin, upstream, template, reply)
            except ProblemError as error:
                if error.problem.kind in {"unavailable", "loading"}:
                    fleet.lost(upstream, error.problem)
                if reply.started or not error.problem.retryable or failed is not None:
                    raise
                failed = upstream
            else:
                return


async def _attempt(
    front: Dialect,
    request: Request,
    origin: Origin,
    upstream: Upstream,
    template: Classic | None,
    reply: Reply,
) -> None:
    named = next(iter(upstream.traits.models), "")
    stamp = Stamp(origin.unique, origin.created, request.model or named)
    wanted = request
    if request.model not in upstream.traits.models:
        wanted = msgspec.structs.replace(request, model=named)
    if template is None and isinstance(request.input, Chat) and not upstream.traits.chat:
        # A server before b1561 has no chat of its own: it is asked as the script asked it.
        template = Classic()
    if template is not None and front.NAME != "llamacpp":
        wanted = flatten(wanted, template)
    if upstream.traits.llamacpp and not upstream.traits.chat:
        _refuse_unknown_to_old(wanted)
    back = _back_for(wanted)
    wire = back.render_request(wanted, upstream.traits)
    kin = back.NAME == front.NAME
    ids = await _prompt_ids(wanted, upstream) if request.tokenize and not request.stream else None
    async with upstream.link.send("POST", wire.path, _encoded(wire.body), _JSON) as incoming:
        if incoming.status != 200:
            raise ProblemError(back.parse_problem(incoming.status, await incoming.whole()))
        events = _Events(incoming, back, back.stream_parser(wanted, extras=kin), extras=kin)
        if request.stream:
            await _stream(front, request, stamp, events, wire, reply)
        else:
            await _whole(front, request, stamp, events, wire, reply, ids)
        await incoming.finish()


def _refuse_unknown_to_old(request: Request) -> None:
    """Refuse what a server before b1561 would misread, or ignore without a word.

    Raises:
        Malformed: of kind `unsupported`.
    """
    if request.choices > 1:
        param, why = "n" if request.n > 1 else "prompt", "gives one answer to one prompt"
    elif request.format is not None and request.format.kind != "text":
        param, why = "response_format", "cannot be held to a format"
    else:
        return
    raise Malformed(f"The server is so old that it {why}.", param=param, kind="unsupported")


def _encoded(body: JsonObject) -> bytes:
    try:
        return msgspec.json.encode(body)
    except RecursionError:
        # What could just be read cannot be written from here, deeper in the program.
        raise Malformed("The JSON of the body is nested too deeply.") from None


def _back_for(request: Request) -> Dialect:
    """The dialect in which a llama.cpp server is asked: its chat, or its native one."""
    return dialects.named("openai_chat" if isinstance(request.input, Chat) else "llamacpp")


async def _stream(
    front: Dialect, request: Request, stamp: Stamp, events: _Events, wire: Wire, reply: Reply
) -> None:
    feed = front.stream_renderer(request, stamp).feed
    over = False
    while not over:
        try:
            batch, alive = await events.next()
        except CancelledError:
            if reply.started:
                # A client that has left does not hear this; it is for the end of the gateway.
                await reply.write(feed(Failed(problem=_ENDED)))
                await reply.end()
            raise
        if batch:
            last = batch[-1]
            over = isinstance(last, ir.Finished | Failed)
            if isinstance(last, Failed) and not reply.started:
                raise ProblemError(last.problem)
            try:
                data = b"".join([feed(event) for event in batch])
            except RecursionError:
                if not reply.started:
                    raise ProblemError(_TOO_DEEP) from None
                over, data = True, feed(Failed(problem=_TOO_DEEP))
        else:
            data = front.PING if alive else b""
        if data:
            if not reply.started:
                await reply.start(200, front.CONTENT_TYPE, _headers(wire))
            await reply.write(data)
    await reply.end()


async def _whole(
    front: Dialect,
    request: Request,
    stamp: Stamp,
    events: _Events,
    wire: Wire,
    reply: Reply,
    ids: list[int] | None,
) -> None:
    told: list[Event] = []
    while not told or not isinstance(told[-1], ir.Finished | Failed):
        batch, _ = await events.next()
        told += batch
    answer = ir.fold(told)
    if ids:
        answer = msgspec.structs.replace(answer, extras=answer.extras | {"promptToken": ids})
    try:
        body = front.render_answer(answer, request, stamp)
    except RecursionError:
        raise ProblemError(_TOO_DEEP) from None
    await reply.whole(200, body, _headers(wire))


_ENDED = Problem(kind="unavailable", message="Tropilla was ended.", retry_after=1)
_TOO_DEEP = Problem(kind="upstream_failed", message="The upstream's JSON is nested too deeply.")


def _headers(wire: Wire) -> dict[str, str]:
    return {"x-tropilla-dropped": ", ".join(wire.dropped)} if wire.dropped else {}


class _Events:
    """An upstream's answer as events, whatever it looks like; always ends in a terminal one."""

    def __init__(
        self, answer: Incoming, back: Dialect, parser: StreamParser, *, extras: bool
    ) -> None:
        self._answer = answer
        self._streams = answer.content_type.lower().startswith("text/event-stream")
        self._back = back
        self._parser = parser
        self._extras = extras
        self._framer = SseFramer()

    async def next(self) -> tuple[list[Event], bool]:
        """The events of the next piece; and whether the upstream said that it lives."""
        try:
            if not self._streams:
                # It was asked to stream, and answered all the same.
                body = decode(await self._answer.whole())
                _check(body, self._back)
                answer = self._back.parse_answer(body)
                return list(ir.unfold(answer, extras=self._extras)), False
            piece = await self._answer.read()
            if piece:
                frames = self._framer.feed(piece)
                return self._parser.feed(frames), bool(frames)
            return self._parser.feed(self._framer.end()) + self._parser.end(), False
        except Malformed as error:
            problem = Problem(kind="upstream_failed", message=error.problem.message, retryable=True)
        except ProblemError as error:
            problem = error.problem
        return self._parser.abort(problem), False


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


async def _prompt_ids(request: Request, upstream: Upstream) -> list[int]:
    """The token ids of the final prompt, as the upstream counts them."""
    match request.input:
        case Chat():
            wire = dialects.named("openai_chat").render_request(request, upstream.traits)
            told = await _asked(upstream, "/apply-template", wire.body)
            prompt = told.get("prompt")
        case ir.Completion(prompts=(prompt,)):
            pass
        case _:
            prompt = None
    if type(prompt) is list:
        return prompt
    if type(prompt) is not str:
        raise Malformed("Only one prompt of text can be tokenized.", param="tokenize")
    tokens = (await _asked(upstream, "/tokenize", {"content": prompt})).get("tokens")
    return tokens if type(tokens) is list else []


async def _asked(upstream: Upstream, path: str, body: JsonObject) -> JsonObject:
    status, answer = await upstream.link.ask("POST", path, body, seconds=60)
    if status != 200:
        raise ProblemError(dialects.named("llamacpp").parse_problem(status, answer))
    told = decode(answer)
    return told if type(told) is dict else {}


# What is passed on as it is.

_PASSED_HEADERS = ("content-type", "accept", "anthropic-version", "anthropic-beta")


async def forward(
    method: str,
    path: str,
    body: bytes,
    headers: Mapping[str, str],
    model: str | None,
    *,
    fleet: Fleet,
    reply: Reply,
) -> None:
    """Pass one request on to an upstream as it is, and the answer back as it is.

    Of the headers only those of content go through, in both directions: keys, cookies, CORS and
    llama.cpp's conversation ids are nobody else's.

    Raises:
        ProblemError: nothing has been sent yet, and nothing can be.
    """
    sent = {name: headers[name] for name in _PASSED_HEADERS if name in headers}
    if sent.get("content-type", "").startswith("application/x-www-form-urlencoded"):
        # curl's default: servers before b1647 refuse a long body that calls itself a form.
        sent["content-type"] = "application/json"
    failed: Upstream | None = None
    while True:
        async with fleet.lease(model, failed) as upstream:
            try:
                async with upstream.link.send(method, path, body or None, sent) as incoming:
                    await reply.start(incoming.status, incoming.content_type, {})
                    while piece := await incoming.read():
                        await reply.write(piece)
                    await reply.end()
                    return
            except ProblemError as error:
                if error.problem.kind == "unavailable":
                    fleet.lost(upstream, error.problem)
                if reply.started or not error.problem.retryable or failed is not None:
                    raise
                failed = upstream


def target(path: str, query: str) -> str:
    """The path of a request as it goes on, its query behind it, nothing unescaped in it."""
    safe = quote(path, safe="/%-._~!$&'()*+,;=:@")
    return f"{safe}?{query}" if query else safe
