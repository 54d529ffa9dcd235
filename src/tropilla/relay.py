"""THE path of one request, top to bottom: from what a client asked to what it hears.

::

    Request -> lease -> template -> exchange: back dialect renders -> upstream
    client  <- front dialect renders <- events <- back dialect parses <-

There is one path. The upstream is always asked to stream; a client that wants the answer whole
gets the fold of that stream. Before the first byte has reached the client a failure of an
upstream is tried once more, on another one where there is one; after it, a failure is told in
the stream. Giving up in any phase (the task is cancelled) closes the upstream's connection.
"""

from __future__ import annotations

import logging
from asyncio import CancelledError
from collections.abc import Mapping
from typing import NamedTuple, Protocol
from urllib.parse import parse_qsl, quote, urlencode

import msgspec

from tropilla import dialects, ir, templates
from tropilla.counting import Counted
from tropilla.dialects import Dialect, Stamp
from tropilla.dialects._ages import chat_tells
from tropilla.dialects._openai import decode
from tropilla.exchange import BUSY, Exchange, exchange
from tropilla.herd.balance import Ability
from tropilla.ir import (
    Chat,
    Event,
    Failed,
    Infill,
    JsonObject,
    Malformed,
    Problem,
    ProblemError,
    Request,
    Traits,
)
from tropilla.templates import Classic, Template, flatten
from tropilla.upstream.fleet import Fleet, Lease, Upstream

log = logging.getLogger("tropilla")


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
    front: Dialect, request: Request, origin: Origin, *, fleet: Fleet, reply: Reply
) -> None:
    """Serve one request for text.

    Raises:
        ProblemError: nothing has been sent yet, and nothing can be.
    """
    needs = _needs(request)
    failed: Upstream | None = None
    limit: ProblemError | None = None
    while True:
        async with fleet.lease(request.model, failed, needs) as lease:
            if limit is not None and lease.upstream is failed:
                raise limit  # it has just said that it was asked too often
            try:
                await _attempt(front, request, origin, lease, reply)
            except ProblemError as error:
                if not reply.started and _minds_options(lease.upstream, error.problem):
                    continue
                if error.problem.kind in {"unavailable", "loading"} and error.problem != BUSY:
                    fleet.lost(lease.upstream, error.problem)
                if reply.started or not error.problem.retryable or failed is not None:
                    raise
                failed = lease.upstream
                limit = error if error.problem.kind == "limited" else None
            else:
                return


def _minds_options(upstream: Upstream, problem: Problem) -> bool:
    """Whether this is an old server (vLLM before 0.4.3) that refuses to be asked for usage.

    It is not asked for it again, until a probe looks at it anew: it may have been replaced.
    """
    traits = upstream.traits
    told = f"{problem.param} {problem.message}"
    if not traits.tells_usage or problem.kind != "malformed" or "stream_options" not in told:
        return False
    upstream.traits = msgspec.structs.replace(traits, tells_usage=False)
    return True


def _needs(request: Request) -> list[Ability]:
    """What an upstream must be able to do."""
    match request.input:
        case Infill():
            return ["infill"]
        case Chat() as chat:
            kinds = {type(part) for message in chat.messages for part in message.parts}
            needs: list[Ability] = []
            if chat.tools and (chat.tool_choice is None or chat.tool_choice.mode != "none"):
                needs.append("tools")
            if ir.Image in kinds:
                needs.append("vision")
            if ir.Audio in kinds:
                needs.append("audio")
            return needs
    return []


async def _attempt(
    front: Dialect, request: Request, origin: Origin, lease: Lease, reply: Reply
) -> None:
    upstream, traits = lease.upstream, lease.upstream.traits
    stamp = Stamp(origin.unique, origin.created, request.model or lease.name, traits.n_ctx)
    wanted = msgspec.structs.replace(request, model=lease.there)
    template = lease.template or _own_template(request, traits)
    lost: tuple[str, ...] = ()
    if template is not None and front.NAME != "llamacpp":
        wanted, lost = flatten(wanted, template, eos=traits.eos or "")
    back = _back_for(wanted, traits)
    asked = Counted(
        exchange(upstream, back, wanted, extras=back.NAME == front.NAME), upstream, wanted
    )
    asked.dropped = (*lost, *asked.dropped)
    ids = await _prompt_ids(wanted, upstream) if request.tokenize and not request.stream else None
    async with asked as answer:
        try:
            if request.stream:
                await _stream(front, request, stamp, answer, reply)
            else:
                await _whole(front, request, stamp, answer, reply, ids)
        except BaseException:
            used = asked.usage
            log.info(
                "req_%s was not answered to the end; %s read about %d tokens and wrote %d.",
                origin.unique, upstream.name, used.prompt_tokens, used.completion_tokens,
            )  # fmt: skip
            raise


def _own_template(request: Request, traits: Traits) -> Template | None:
    """The template for a server whose chat is not there, or cannot tell what is wanted.

    That is one that is known here and does what the one it tells does: nothing that a server says
    is run. Else it is asked as the script asked it.
    """
    if not isinstance(request.input, Chat) or (traits.chat and chat_tells(request, traits)):
        return None
    known = templates.recognised(traits.template) if traits.template is not None else None
    return Classic() if known is None and not traits.chat else known


def _back_for(request: Request, traits: Traits) -> Dialect:
    """The dialect in which an upstream is asked: a llama.cpp server has one for chat, and its own.

    An AFS has one for everything.
    """
    if traits.dialect == "afs":
        return dialects.named("afs")
    if isinstance(request.input, Chat):
        return dialects.named("openai_chat")
    return dialects.named("llamacpp" if traits.llamacpp else "openai_completions")


async def _stream(
    front: Dialect, request: Request, stamp: Stamp, answer: Exchange, reply: Reply
) -> None:
    feed = front.stream_renderer(request, stamp).feed
    over = False
    while not over:
        try:
            batch, alive = await answer.next()
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
                await reply.start(200, front.CONTENT_TYPE, _headers(answer))
            await reply.write(data)
    await reply.end()


async def _whole(
    front: Dialect,
    request: Request,
    stamp: Stamp,
    answer: Exchange,
    reply: Reply,
    ids: list[int] | None,
) -> None:
    told: list[Event] = []
    while not told or not isinstance(told[-1], ir.Finished | Failed):
        batch, _ = await answer.next()
        told += batch
    folded = ir.fold(told)
    if ids:
        folded = msgspec.structs.replace(folded, extras=folded.extras | {"promptToken": ids})
    try:
        body = front.render_answer(folded, request, stamp)
    except RecursionError:
        raise ProblemError(_TOO_DEEP) from None
    await reply.whole(200, body, _headers(answer))


_ENDED = Problem(kind="unavailable", message="Tropilla was ended.", retry_after=1)
_TOO_DEEP = Problem(kind="upstream_failed", message="The upstream's JSON is nested too deeply.")


def _headers(answer: Exchange) -> dict[str, str]:
    return {"x-tropilla-dropped": ", ".join(answer.dropped)} if answer.dropped else {}


async def _prompt_ids(request: Request, upstream: Upstream) -> list[int]:
    """The token ids of the final prompt, as the upstream counts them."""
    if not upstream.traits.tokenizes:
        raise Malformed(
            "The upstream has no tokenizer that can be asked.", param="tokenize", kind="unsupported"
        )
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

_NATIVE: tuple[Ability, ...] = ("native",)
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

    Only a model that has another name there is said by that name. Of the headers only those of
    content go through, in both directions: keys, cookies, CORS and llama.cpp's conversation ids
    are nobody else's.

    Raises:
        ProblemError: nothing has been sent yet, and nothing can be.
    """
    sent = {name: headers[name] for name in _PASSED_HEADERS if name in headers}
    if sent.get("content-type", "").startswith("application/x-www-form-urlencoded"):
        # curl's default: servers before b1647 refuse a long body that calls itself a form.
        sent["content-type"] = "application/json"
    failed: Upstream | None = None
    while True:
        async with fleet.lease(model, failed, _NATIVE) as lease:
            upstream = lease.upstream
            where, data = path, body
            if model is not None and lease.there not in {None, model}:
                where, data = _renamed(path, body, str(lease.there))
            try:
                async with upstream.link.send(method, where, data or None, sent) as incoming:
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


def _renamed(path: str, body: bytes, model: str) -> tuple[str, bytes]:
    """The same request for a model by its name there, wherever the request names it."""
    path, mark, query = path.partition("?")
    pairs = [
        (name, model if name == "model" else value)
        for name, value in parse_qsl(query, keep_blank_values=True)
    ]
    if body.lstrip().startswith(b"{"):
        asked: JsonObject = msgspec.json.decode(body)
        if "model" in asked:
            body = msgspec.json.encode(asked | {"model": model})
    return path + mark + urlencode(pairs), body


def target(path: str, query: str) -> str:
    """The path of a request as it goes on, its query behind it, nothing unescaped in it."""
    safe = quote(path, safe="/%-._~!$&'()*+,;=:@")
    return f"{safe}?{query}" if query else safe
