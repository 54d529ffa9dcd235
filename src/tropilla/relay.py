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

from asyncio import CancelledError
from collections.abc import Callable, Mapping
from time import perf_counter
from typing import NamedTuple
from urllib.parse import parse_qsl, quote, urlencode

import msgspec

from tropilla import calls, dialects, ir, log, templates, turns
from tropilla.dialects import Dialect, Stamp
from tropilla.dialects._ages import chat_tells
from tropilla.dialects._openai import decode
from tropilla.exchanges.completing import Asked
from tropilla.exchanges.completing import asked as asking
from tropilla.exchanges.counting import prompt_tokens
from tropilla.exchanges.failover import Joint
from tropilla.herd.affinity import blocks, session_of
from tropilla.herd.balance import Ability
from tropilla.herd.pool import Ask
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
    Usage,
)
from tropilla.record import Record
from tropilla.telling import Reply, Telling
from tropilla.templates import Classic, Template, flatten
from tropilla.upstream.fleet import Fleet
from tropilla.upstream.lease import Lease, Ticket
from tropilla.upstream.member import Upstream


class Origin(NamedTuple):
    """Where a reply comes from, and where its request did."""

    unique: str
    """What becomes part of its ids."""
    created: int
    """In seconds since 1970, UTC."""
    key: str = ""
    """Whose request it is: those who ask take turns."""
    session: str = ""
    """What the client says belongs together."""
    body: int = 0
    """A fingerprint of what was asked."""
    model: str | None = None
    """The name that the client has for the model, where the request has another."""
    spent: Callable[[], float] | None = None
    """How many seconds ago it came."""


_MOST_CHOICES = 16384
"""Of one request: each is kept here while it is written."""


async def generate(
    front: Dialect, request: Request, origin: Origin, record: Record, *, fleet: Fleet, reply: Reply
) -> None:
    """Serve one request for text.

    Raises:
        ProblemError: nothing has been sent yet, and nothing can be.
    """
    if request.choices > _MOST_CHOICES:
        raise Malformed(
            f"{request.choices} answers are asked for at once: at most {_MOST_CHOICES} are given.",
            param="prompt",
            code="array_above_max_length",
        )
    record.model, record.stream, record.choices = request.model, request.stream, request.choices
    record.operation = "chat" if isinstance(request.input, Chat) else "text_completion"
    ask = ask_of(request, origin, alone=len(fleet.upstreams) == 1)
    ticket = Ticket()
    joint = Joint(request, wanted=fleet.failover)
    telling = Telling(front, request, reply, record, joint, lambda: fleet.place(ticket))

    async def work(lease: Lease) -> float | None:
        try:
            return await _attempt(front, request, origin, record, lease, reply, telling, joint)
        except ProblemError as error:
            if telling.told or not _minds_options(lease.upstream, error.problem):
                raise
        return await _attempt(front, request, origin, record, lease, reply, telling, joint)

    def told() -> bool:
        return telling.told and joint.problem is None

    if not request.stream:
        await fleet.serve(ask, work, told=lambda: False)
        return
    with telling:
        try:
            await fleet.serve(ask, work, told=told, hurries=lambda: joint.waits, ticket=ticket)
        except ProblemError as error:
            problem = error.problem
        except CancelledError:
            if reply.started and not reply.ended:
                # A client that has left does not hear this; it is for the end of the gateway.
                record.problem = _ENDED
                await telling.fail([Failed(problem=_ENDED)], _stamp(request, origin))
            raise
        else:
            return
        if not reply.started:
            raise ProblemError(problem)
        end = [Failed(problem=problem)] if joint.problem is None else joint.failed()
        record.problem = joint.problem or problem
        await record.enter()
        await telling.fail(end, _stamp(request, origin))


def ask_of(request: Request, origin: Origin, *, alone: bool = False) -> Ask:
    """What the choice of an upstream depends on; of one that is `alone`, no cache is weighed."""
    return Ask(
        model=request.model,
        needs=tuple(_needs(request)),
        key=origin.key,
        chain=() if alone else blocks(request),
        # One key's sessions are nobody else's.
        session=session_of(origin.key, origin.session) if origin.session else None,
        slots=request.choices,
        body=origin.body,
    )


def _stamp(request: Request, origin: Origin, lease: Lease | None = None) -> Stamp:
    name = "" if lease is None else lease.name
    n_ctx = None if lease is None else lease.upstream.traits.n_ctx
    model = origin.model or request.model or name
    return Stamp(origin.unique, origin.created, model, n_ctx, origin.spent)


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
    front: Dialect,
    request: Request,
    origin: Origin,
    record: Record,
    lease: Lease,
    reply: Reply,
    telling: Telling,
    joint: Joint,
) -> float | None:
    """Have one upstream answer; the part of the prompt that it had in its cache, if it tells."""
    upstream, traits = lease.upstream, lease.upstream.traits
    stamp = _stamp(request, origin, lease)
    lease.tell(record)
    record.failed_over = joint.problem is not None
    wanted, lost = _prepared(request, lease)
    if joint.problem is not None:
        wanted = await _going_on(wanted, upstream, joint)
    back = _back_for(wanted, traits)
    asked = asking(upstream, back, wanted, extras=back.NAME == front.NAME)
    asked.dropped = (*lost, *asked.dropped)
    ids = await _prompt_ids(wanted, upstream) if request.tokenize and not request.stream else None
    spent = perf_counter() - record.began - lease.waited
    async with asked as answer:
        headers = _Headers(lease, asked, spent)
        try:
            if request.stream:
                await _stream(stamp, answer, record, reply, telling, headers, joint)
                lease.problem = record.problem
            else:
                await _whole(front, request, stamp, answer, record, reply, ids, headers)
        except BaseException:
            record.used(asked.usage)
            _log_end(origin, lease, asked.usage)
            raise
    if lease.problem is not None:
        _log_end(origin, lease, asked.usage)
    return _cached(asked.usage)


async def _going_on(wanted: Request, upstream: Upstream, joint: Joint) -> Request:
    """The rest of an answer that broke off.

    Raises:
        ProblemError: this upstream cannot go on with it.
    """
    if not joint.may_go_on(upstream.traits, wanted):
        raise ProblemError(_NOT_HERE)
    match wanted.input:
        case ir.Completion(prompts=(str(prompt),)):
            return joint.go_on(wanted, prompt)
    wire = dialects.named("openai_chat").render_request(wanted, upstream.traits)
    told = (await _asked(upstream, "/apply-template", wire.body)).get("prompt")
    if type(told) is not str:
        raise ProblemError(_NOT_HERE)
    return joint.go_on(wanted, told)


_NOT_HERE = Problem(kind="unsupported", message="This upstream cannot go on with a text.")


def _log_end(origin: Origin, lease: Lease, used: Usage) -> None:
    log.info(
        "request.unfinished",
        "{request} was not answered to the end; {upstream} read about {prompt_tokens} tokens "
        "and wrote {completion_tokens}.",
        request=f"req_{origin.unique}",
        upstream=lease.upstream.name,
        prompt_tokens=used.prompt_tokens,
        completion_tokens=used.completion_tokens,
    )


def _prepared(request: Request, lease: Lease) -> tuple[Request, tuple[str, ...]]:
    """The request as this upstream is asked it, and what of it is lost."""
    traits = lease.upstream.traits
    wanted = request
    if lease.there != request.model:
        wanted = msgspec.structs.replace(request, model=lease.there)
    template = lease.template or _own_template(request, traits)
    lost: tuple[str, ...] = ()
    if not traits.strict:
        # Only OpenAI itself has tools of free text, and hears its instructions anywhere.
        wanted, lost = calls.fitted(wanted)
        if request.dialect not in _TAKEN_AT_THEIR_WORD:
            wanted = turns.joined(wanted)
    if template is not None and request.dialect != "llamacpp":
        wanted, more = flatten(wanted, template, eos=traits.eos or "")
        lost += more
    return wanted, lost


_TAKEN_AT_THEIR_WORD = frozenset({"openai_chat", "afs"})
"""Whose clients mean the turns that they send: what a template makes of them is theirs to know."""


def _cached(usage: Usage) -> float | None:
    if usage.cached_tokens is None or not usage.prompt_tokens:
        return None
    return min(1.0, usage.cached_tokens / usage.prompt_tokens)


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


class _Headers:
    """What the head of an answer tells of how it came about."""

    def __init__(self, lease: Lease, answer: Asked, spent: float) -> None:
        self._lease = lease
        self._answer = answer
        self._spent = spent
        self._since = 0.0

    def heard(self) -> float:
        """The upstream has answered: from now on time is spent here again."""
        self._since = perf_counter()
        return self._since

    def __call__(self) -> dict[str, str]:
        spent = self._spent + (perf_counter() - self._since if self._since else 0.0)
        told = self._lease.headers() | {"x-tropilla-overhead-ms": f"{spent * 1000:.2f}"}
        cached = self._answer.told.cached_tokens if self._answer.told is not None else None
        if cached is not None:
            told["x-tropilla-cache-tokens"] = str(cached)
        return told | dialects.dropped_header(self._answer.dropped)


async def _stream(
    stamp: Stamp,
    answer: Asked,
    record: Record,
    reply: Reply,
    telling: Telling,
    headers: _Headers,
    joint: Joint,
) -> None:
    """Tell the answer; the record has how it ended.

    Raises:
        ProblemError: nothing was told yet; or another upstream can go on.
    """
    renderer = telling.renderer(stamp)
    over = False
    while not over:
        try:
            # Once the head is sent, tokens pass from socket to socket without waking this.
            batch = await answer.next(telling.take if telling.told else None)
            if not batch:
                await telling.sent()
                continue
            if not telling.told:
                record.first = headers.heard() - record.began
            last = batch[-1]
            over = isinstance(last, _ENDS)
            if telling.told or not over:
                batch = joint.joined(batch)
            if isinstance(last, Failed) and not telling.told:
                raise ProblemError(last.problem)
            data = b"".join([renderer.feed(event) for event in batch])
        except RecursionError:
            if not telling.told:
                raise ProblemError(_TOO_DEEP) from None
            over, last = True, Failed(problem=_TOO_DEEP)
            batch, data = [last], renderer.feed(last)
        if not isinstance(last, ir.PartDelta):
            record.take(batch)
        if over and not joint.waits:
            await record.enter()
        if data:
            await telling.tell(data, headers)
        if joint.problem is not None and joint.waits:
            raise ProblemError(joint.problem)
    await reply.end()


async def _whole(
    front: Dialect,
    request: Request,
    stamp: Stamp,
    answer: Asked,
    record: Record,
    reply: Reply,
    ids: list[int] | None,
    headers: _Headers,
) -> None:
    told: list[Event] = []

    def take(batch: list[Event]) -> bool:
        told.extend(batch)
        return True

    while not told or not isinstance(told[-1], _ENDS):
        told += await answer.next(take if told else None)
        if record.first is None and told:
            record.first = perf_counter() - record.began
    headers.heard()
    folded = ir.fold(told)
    if ids:
        folded = msgspec.structs.replace(folded, extras=folded.extras | {"promptToken": ids})
    try:
        body = front.render_answer(folded, request, stamp)
    except RecursionError:
        raise ProblemError(_TOO_DEEP) from None
    record.take(told[-2:])  # the end of the last choice, and of all
    await record.enter()
    await reply.whole(200, body, headers())


_ENDS = (ir.Finished, Failed)
_ENDED = Problem(kind="unavailable", message="Tropilla was ended.", retry_after=1)
_TOO_DEEP = Problem(kind="upstream_failed", message="The upstream's JSON is nested too deeply.")


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


# Only counted.


async def count(
    request: Request,
    key: str,
    record: Record,
    render: Callable[[Usage], bytes],
    *,
    fleet: Fleet,
    reply: Reply,
) -> None:
    """Tell how many tokens the prompt of a request is.

    Raises:
        ProblemError: nothing has been sent yet, and nothing can be.
    """
    record.model = request.model

    async def work(lease: Lease) -> None:
        lease.tell(record)
        wanted = _prepared(request, lease)[0]
        usage = await prompt_tokens(lease.upstream, wanted)
        await reply.whole(200, render(usage), lease.headers())

    needs = tuple(_needs(request))
    ask = Ask(model=request.model, needs=needs, key=key, slots=0)
    await fleet.serve(ask, work, told=lambda: reply.started)


async def size(request: Request, key: str, *, fleet: Fleet) -> int | None:
    """How many tokens the prompt of a request is; `None` if nobody can count them.

    Raises:
        ProblemError: nobody can serve such a request.
    """
    found: Usage | None = None

    async def work(lease: Lease) -> None:
        nonlocal found
        found = await prompt_tokens(lease.upstream, _prepared(request, lease)[0])

    ask = Ask(model=request.model, needs=tuple(_needs(request)), key=key, slots=0)
    await fleet.serve(ask, work, told=lambda: False)
    return None if found is None or found.extras else found.prompt_tokens


# What is passed on as it is.

_NATIVE: tuple[Ability, ...] = ("native",)
_PASSED_HEADERS = ("content-type", "accept")


async def forward(
    method: str,
    path: str,
    body: bytes,
    headers: Mapping[str, str],
    model: str | None,
    record: Record,
    *,
    slots: int,
    key: str,
    fleet: Fleet,
    reply: Reply,
) -> None:
    """Pass one request on to an upstream as it is, and the answer back as it is.

    Only a model that has another name there is said by that name. Of the headers only those of
    content go through, in both directions: keys, cookies, CORS and llama.cpp's conversation ids
    are nobody else's. `key` is whose request it is.

    Raises:
        ProblemError: nothing has been sent yet, and nothing can be.
    """
    sent = {name: headers[name] for name in _PASSED_HEADERS if name in headers}
    if sent.get("content-type", "").startswith("application/x-www-form-urlencoded"):
        # curl's default: servers before b1647 refuse a long body that calls itself a form.
        sent["content-type"] = "application/json"

    record.model = model

    async def work(lease: Lease) -> None:
        lease.tell(record)
        where, data = path, body
        if model is not None and lease.there not in {None, model}:
            where, data = _renamed(path, body, str(lease.there))
        async with lease.upstream.link.send(method, where, data or None, sent) as incoming:
            # A refusal may repeat the key that this upstream was shown: that is taken out of it.
            refused = await incoming.whole() if incoming.status >= 400 else b""
            told = lease.headers()
            await reply.start(incoming.status, incoming.content_type, told, refused)
            while piece := await incoming.read():
                await reply.write(piece)
            await record.enter()
            await reply.end()

    ask = Ask(
        model=model,
        needs=_NATIVE,
        key=key,
        slots=slots,
        body=hash((path, body)) if body else 0,
    )
    await fleet.serve(ask, work, told=lambda: reply.started)


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
