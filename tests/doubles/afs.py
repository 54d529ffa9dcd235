"""A deployment of AFS/FFM that answers as the facts tell, and sees everything.

It serves conversation, generate and text infilling below `/api`, streamed and not, checks the
key, and refuses what AFS refuses. A test says how the answer looks (`Says`); without, it is a
short text. Nothing else is there: no `/health`, no list of models, as with AFS itself.
"""

from __future__ import annotations

from dataclasses import dataclass, field
from typing import Any

import msgspec
from aiohttp import web

KEY = "afs-key"
PING = b"event: ping\r\ndata: 2023-11-08 12:34:56.123456\r\n\r\n"

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
    old: bool = False
    """As in 2023: no finish reason, and of the counts only those of the answer."""
    extra: bytes = b""
    """Bytes in the middle of the stream."""
    status: int = 200
    body: Any = None
    """What is said in place of an answer."""


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
    says: list[Says] = field(default_factory=list)
    """The answers to come, the first first; then the last again and again."""
    asked: list[Asked] = field(default_factory=list)
    """Every request, in order."""
    url: str = ""
    """The base of its paths, as it would stand in a config."""
    _runner: web.AppRunner | None = None

    async def start(self) -> None:
        """Begin to listen."""
        app = web.Application()
        app.router.add_post("/api/models/conversation", self._serve)
        app.router.add_post("/api/models/generate", self._serve)
        app.router.add_post("/api/models/text_infilling", self._serve)
        self._runner = web.AppRunner(app, access_log=None, shutdown_timeout=0)
        await self._runner.setup()
        await web.TCPSite(self._runner, "127.0.0.1", 0).start()
        port: int = self._runner.addresses[0][1]
        self.url = f"http://127.0.0.1:{port}/api"

    async def stop(self) -> None:
        """Listen no more."""
        if self._runner is not None:
            await self._runner.cleanup()

    async def _serve(self, request: web.Request) -> web.StreamResponse:
        body = msgspec.json.decode(await request.read())
        headers = {name.lower(): value for name, value in request.headers.items()}
        self.asked.append(Asked(request.path, headers, body))
        if headers.get("x-api-key") != self.key:
            return _json(401, {"detail": "Invalid API key."})
        wrong = _wrong(request.path, body)
        if wrong is not None:
            loc, why = wrong
            return _json(422, {"detail": [{"loc": ["body", *loc], "msg": why, "type": "value"}]})
        says = self._next()
        if says.body is not None or says.status != 200:
            return _json(says.status, says.body)
        if body.get("stream"):
            return await _streamed(request, says, body)
        return _json(200, _last(says, body, "".join(says.deltas)))

    def _next(self) -> Says:
        if len(self.says) > 1:
            return self.says.pop(0)
        return self.says[0] if self.says else Says()


def _wrong(path: str, body: Body) -> tuple[tuple[str, ...], str] | None:
    """What AFS would not take (facts 4.2 and 4.3)."""
    parameters = body.get("parameters") or {}
    if path.endswith("/conversation"):
        if not body.get("messages"):
            return ("messages",), "field required"
    elif not isinstance(body.get("inputs"), str):
        return ("inputs",), "field required"
    elif path.endswith("/text_infilling") and body["inputs"].count("<FILL_ME>") != 1:
        return ("inputs",), "exactly one <FILL_ME> is expected"
    for name in ("temperature", "top_p", "frequence_penalty", "max_new_tokens", "top_k"):
        value = parameters.get(name)
        if value is not None and value <= 0:
            return ("parameters", name), "ensure this value is greater than 0"
    if len(parameters.get("stop_sequences") or ()) > 4:
        return ("parameters", "stop_sequences"), "at most 4"
    return None


def _json(status: int, body: Any) -> web.Response:
    return web.Response(
        status=status, body=msgspec.json.encode(body), content_type="application/json"
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


async def _streamed(request: web.Request, says: Says, body: Body) -> web.StreamResponse:
    response = web.StreamResponse(headers={"Content-Type": "text/event-stream"})
    await response.prepare(request)
    for delta in says.deltas:
        if says.pings:
            await response.write(PING)
        await response.write(_event(_flat(delta, says)))
        if says.extra:
            await response.write(says.extra)
    if not says.cut:
        await response.write(_event(_last(says, body, "")))
        if says.done:
            await response.write(b"data: [DONE]\n\n")
    await response.write_eof()
    return response


def _event(body: Body) -> bytes:
    return b"data: %b\n\n" % msgspec.json.encode(body)
