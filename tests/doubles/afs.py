"""A deployment of AFS/FFM that answers as the facts tell, and sees everything.

It serves conversation, generate and text infilling below `/api`, and beside them OpenAI's chat and
completions below `/api/models`, streamed and not; it checks the key, and refuses what AFS refuses.
A test says how the answer looks (`Says`); without, it is a short text. What is said ends at a stop
of the request, and at its limit. Nothing else is there: no `/health`, no list of models, as with
AFS itself.
"""

from __future__ import annotations

import asyncio
from dataclasses import dataclass, field, replace
from typing import Any

import msgspec
from aiohttp import web

KEY = "afs-key"
PING = b"event: ping\r\ndata: 2023-11-08 12:34:56.123456\r\n\r\n"
CONVERSATION, GENERATE = "/api/models/conversation", "/api/models/generate"
INFILLING = "/api/models/text_infilling"
CHAT, COMPLETIONS = "/api/models/chat/completions", "/api/models/completions"

Body = dict[str, Any]


@dataclass
class Says:
    """One answer of a deployment."""

    deltas: tuple[str, ...] = ("你", "好", "。")
    finish_reason: str | None = "eos_token"
    calls: tuple[Body, ...] = ()
    """`{"name", "arguments"}`; said in the form that the request used."""
    pings: bool = False
    """Before each delta."""
    done: bool = False
    """Whether the stream ends with `[DONE]`."""
    cut: bool = False
    """Whether the stream ends before its last object."""
    held: bool = False
    """Whether the stream waits after its deltas, until the test lets it go on."""
    whole: bool = False
    """Whether the answer is one object, even if a stream was asked for."""
    old: bool = False
    """As in 2023: no finish reason, and of the counts only those of the answer."""
    extra: bytes = b""
    """Bytes in the middle of the stream, after each delta."""
    tail: bytes = b""
    """Bytes after all deltas."""
    status: int = 200
    headers: dict[str, str] = field(default_factory=dict)
    body: Any = None
    """What is said in place of an answer: JSON, or bytes, which are a page of HTML."""


@dataclass
class Asked:
    """One request that has arrived."""

    path: str
    headers: dict[str, str]
    body: Body


@dataclass
class AfsDouble:
    """An AFS-like server on a free port of this machine."""

    key: str = KEY
    without: frozenset[str] = frozenset()
    """Paths that this deployment does not have."""
    page: bool = False
    """Whether it is no AFS at all, but a web site."""
    says: list[Says] = field(default_factory=list)
    """The answers to come, the first first; then the last again and again."""
    asked: list[Asked] = field(default_factory=list)
    """Every request, in order, without those that ask for nothing."""
    probed: list[Asked] = field(default_factory=list)
    """The requests that ask for nothing, to hear how they are refused."""
    left: asyncio.Event = field(default_factory=asyncio.Event)
    """Set when a client has left in the middle of an answer."""
    go_on: asyncio.Event = field(default_factory=asyncio.Event)
    """What a held stream waits for."""
    url: str = ""
    """The base of its paths, as it would stand in a config."""
    _runner: web.AppRunner | None = None

    async def start(self) -> None:
        """Begin to listen."""
        app = web.Application()
        if self.page:
            app.router.add_route("*", "/{path:.*}", _page)
        for path in {CONVERSATION, GENERATE, INFILLING, CHAT, COMPLETIONS} - self.without:
            app.router.add_post(path, self._serve)
        self._runner = web.AppRunner(
            app, access_log=None, shutdown_timeout=0, handler_cancellation=True
        )
        await self._runner.setup()
        await web.TCPSite(self._runner, "127.0.0.1", 0).start()
        port: int = self._runner.addresses[0][1]
        self.url = f"http://127.0.0.1:{port}/api"

    async def stop(self) -> None:
        """Listen no more."""
        if self._runner is not None:
            await self._runner.cleanup()

    @property
    def last(self) -> Asked:
        """The last request."""
        return self.asked[-1]

    async def _serve(self, request: web.Request) -> web.StreamResponse:
        body = msgspec.json.decode(await request.read())
        headers = {name.lower(): value for name, value in request.headers.items()}
        (self.asked if body else self.probed).append(Asked(request.path, headers, body))
        openai = request.path.endswith("/completions")
        shown = headers.get("authorization") if openai else headers.get("x-api-key")
        if shown != (f"Bearer {self.key}" if openai else self.key):
            return _json(401, {"detail": f"Invalid API key: {shown}."})
        wrong = _wrong(request.path, body)
        if wrong is not None:
            loc, why = wrong
            return _json(422, {"detail": [{"loc": ["body", *loc], "msg": why, "type": "value"}]})
        says = _bounded(self._next(), body)
        if isinstance(says.body, bytes):
            return _html(says.status, says.body)
        if says.body is not None or says.status != 200:
            return _json(says.status, says.body, says.headers)
        if openai:
            return await _openai(request, says, body)
        if not body.get("stream") or says.whole:
            return _json(200, _last(says, body, "".join(says.deltas)))
        try:
            return await self._stream(request, says, body)
        except asyncio.CancelledError:
            self.left.set()
            raise

    async def _stream(self, request: web.Request, says: Says, body: Body) -> web.StreamResponse:
        response = web.StreamResponse(headers={"Content-Type": "text/event-stream"})
        await response.prepare(request)
        for delta in says.deltas:
            if says.pings:
                await response.write(PING)
            await response.write(_event(_flat(delta, says)))
            if says.extra:
                await response.write(says.extra)
        if says.held:
            await self.go_on.wait()
        if says.tail:
            await response.write(says.tail)
        if not says.cut:
            await response.write(_event(_last(says, body, "")))
            if says.done:
                await response.write(b"data: [DONE]\n\n")
        await response.write_eof()
        return response

    def _next(self) -> Says:
        if len(self.says) > 1:
            return self.says.pop(0)
        return self.says[0] if self.says else Says()


def _wrong(path: str, body: Body) -> tuple[tuple[str, ...], str] | None:
    """What AFS would not take (facts 4.2 and 4.3)."""
    parameters = body.get("parameters") or {}
    needed = {CONVERSATION: "messages", CHAT: "messages", COMPLETIONS: "prompt"}.get(path, "inputs")
    if not body.get(needed):
        return (needed,), "field required"
    if path == INFILLING and body["inputs"].count("<FILL_ME>") != 1:
        return ("inputs",), "exactly one <FILL_ME> is expected"
    for name in ("temperature", "top_p", "frequence_penalty", "max_new_tokens", "top_k"):
        value = parameters.get(name)
        if value is not None and value <= 0:
            return ("parameters", name), "ensure this value is greater than 0"
    if len(parameters.get("stop_sequences") or ()) > 4:
        return ("parameters", "stop_sequences"), "at most 4"
    return None


async def _page(request: web.Request) -> web.Response:  # noqa: ARG001 - every path is the same
    return _html(200, b"<!DOCTYPE html><title>Welcome</title>")


def _bounded(says: Says, body: Body) -> Says:
    """What is left of an answer within the limit and before the stops of a request."""
    asked = body.get("parameters") or body
    limit = asked.get("max_new_tokens", asked.get("max_tokens"))
    deltas, reason = says.deltas, says.finish_reason
    if limit is not None and limit < len(deltas):
        deltas, reason = deltas[:limit], "length"
    text = "".join(deltas)
    stops = asked.get("stop_sequences") or asked.get("stop") or ()
    at = min((text.index(word) for word in stops if word in text), default=len(text))
    if at < len(text):
        deltas, reason = tuple(text[:at]), "stop_sequence"
    return replace(says, deltas=deltas, finish_reason=reason)


def _html(status: int, body: bytes) -> web.Response:
    return web.Response(status=status, body=body, content_type="text/html")


def _json(status: int, body: Any, headers: dict[str, str] | None = None) -> web.Response:
    return web.Response(
        status=status,
        body=msgspec.json.encode(body),
        content_type="application/json",
        headers=headers,
    )


def _flat(text: str, says: Says, **fields: Any) -> Body:
    if says.old:
        return {"generated_text": text}
    return {
        "generated_text": text,
        "function_call": None,
        "details": None,
        "total_time_taken": "0.05 sec",
        "prompt_tokens": 0,
        "generated_tokens": 0,
        "total_tokens": 0,
        "finish_reason": None,
    } | fields


def _last(says: Says, body: Body, text: str) -> Body:
    count = len(says.deltas)
    if says.old:
        told = _flat(text, says)
        return told | {"total_time_taken": "2.46 sec", "generated_tokens": count}
    told = _flat(
        text,
        says,
        total_time_taken="1.50 sec",
        prompt_tokens=17,
        generated_tokens=count,
        total_tokens=17 + count,
        finish_reason=says.finish_reason,
    )
    if says.calls and body.get("functions"):
        told["function_call"] = says.calls[0]
    elif says.calls:
        told["tool_calls"] = [
            {"id": f"call_{number}", "type": "function", "function": call}
            for number, call in enumerate(says.calls)
        ]
    return told


def _event(body: Body) -> bytes:
    return b"data: %b\n\n" % msgspec.json.encode(body)


# OpenAI's paths.


async def _openai(request: web.Request, says: Says, body: Body) -> web.StreamResponse:
    chat, count = request.path == CHAT, len(says.deltas)
    reason = "length" if says.finish_reason == "length" else "stop"
    usage = {"prompt_tokens": 17, "completion_tokens": count, "total_tokens": 17 + count}
    told: Body = {"id": "afs-1", "created": 1700000000, "model": body.get("model")}
    if not body.get("stream"):
        text = "".join(says.deltas)
        said: Body = {"message": {"role": "assistant", "content": text}} if chat else {"text": text}
        choice: Body = {"index": 0, "finish_reason": reason} | said
        told["object"] = "chat.completion" if chat else "text_completion"
        return _json(200, told | {"choices": [choice], "usage": usage})
    response = web.StreamResponse(headers={"Content-Type": "text/event-stream"})
    await response.prepare(request)
    told["object"] = "chat.completion.chunk" if chat else "text_completion"
    for delta in says.deltas:
        said = {"delta": {"content": delta}} if chat else {"text": delta}
        choice = {"index": 0, "finish_reason": None} | said
        await response.write(_event(told | {"choices": [choice]}))
    last: Body = {"delta": {}} if chat else {"text": ""}
    choice = {"index": 0, "finish_reason": reason} | last
    await response.write(_event(told | {"choices": [choice]}))
    if (body.get("stream_options") or {}).get("include_usage"):
        await response.write(_event(told | {"choices": [], "usage": usage}))
    await response.write(b"data: [DONE]\n\n")
    await response.write_eof()
    return response
