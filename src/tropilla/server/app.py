"""The gateway as an ASGI application: from a request's bytes to the relay, and errors back.

The only module that knows status codes. Whatever happens, a client gets an answer in the
envelope of the dialect it speaks; a client that goes away ends what was being done for it.
"""

from __future__ import annotations

import asyncio
import logging
import time
import uuid
from collections.abc import Awaitable, Callable, Mapping
from contextlib import suppress
from math import ceil
from typing import Any, TypeAlias
from urllib.parse import parse_qs

import msgspec

from tropilla import dialects, measured, measures, relay
from tropilla.config import Config
from tropilla.dialects import Dialect
from tropilla.ir import Json, JsonObject, Malformed, Problem, ProblemError, ProblemKind
from tropilla.keys import Keys
from tropilla.server import herd, models, responses
from tropilla.server.reply import Message, Reply, Send
from tropilla.server.responses import Responses, Turn
from tropilla.server.routes import Count, Forward, Generate, Kept, Measure, Methods, Own, Router
from tropilla.upstream.fleet import Fleet

Scope: TypeAlias = Mapping[str, Any]
Receive: TypeAlias = Callable[[], Awaitable[Message]]

log = logging.getLogger("tropilla")

STATUS: dict[ProblemKind, int] = {
    "malformed": 400,
    "too_large": 413,
    "unsupported_media": 415,
    "context_exceeded": 400,
    "unsupported": 400,
    "unauthenticated": 401,
    "forbidden": 403,
    "not_found": 404,
    "method_not_allowed": 405,
    "unknown_model": 404,
    "limited": 429,
    "loading": 503,
    "unavailable": 503,
    "upstream_failed": 502,
    "timeout": 504,
    "internal": 500,
}
_WORKED: frozenset[ProblemKind] = frozenset({"upstream_failed", "timeout", "internal"})
"""Much may have been generated before these, and on two upstreams: SDKs would have it done again,
twice, if they were not told not to."""
_PASS_OVER_SECONDS = 10.0
_NATIVE = "llamacpp"
_DEFAULT = "openai_chat"
_DEFAULT_PATH = "/v1/chat/completions"


class Gateway:
    """The ASGI application."""

    def __init__(self, config: Config, fleet: Fleet) -> None:
        self._config = config
        self._fleet = fleet
        self._keys = Keys(config.api_keys)
        self._router = Router()
        self._responses = Responses(config.responses)
        self._since = int(time.time())
        self._draining = False
        self._open = 0
        self.idle = asyncio.Event()
        """Set while no request is being served."""
        self.idle.set()

    def reload(self, config: Config) -> None:
        """Serve as another config says, from the next request on."""
        self._config, self._keys = config, Keys(config.api_keys)
        self._fleet.reload(config)

    def drain(self) -> None:
        """Serve what is being served, and nothing new."""
        self._draining = True
        self._fleet.drain()

    def close(self) -> None:
        """Let go of what is kept."""
        self._responses.close()

    async def __call__(self, scope: Scope, receive: Receive, send: Send) -> None:
        """Serve one request."""
        if scope["type"] != "http":
            return
        reply = Reply(send, f"req_{uuid.uuid4().hex}")
        call = _Call(scope, receive)
        self._open += 1
        self.idle.clear()
        try:
            await self._serve(call, reply)
        except ProblemError as error:
            await self._refuse(call, error.problem, reply)
        except _Gone:
            pass
        except asyncio.CancelledError:
            # The gateway ends, and has waited long enough for this one.
            problem = Problem(kind="unavailable", message="Tropilla was ended.", retry_after=1)
            await self._refuse(call, problem, reply)
        except Exception:
            log.exception("A defect of Tropilla's own, in %s", reply.request_id)
            problem = Problem(
                kind="internal",
                message=f"Tropilla failed; its log tells why, under {reply.request_id}.",
            )
            await self._refuse(call, problem, reply)
        finally:
            self._open -= 1
            if not self._open:
                self.idle.set()

    async def _serve(self, call: _Call, reply: Reply) -> None:
        if call.method == "OPTIONS":
            await reply.preflight(call.headers.get(b"access-control-request-headers"))
            return
        methods = self._router.find(call.path)
        method = "GET" if call.method == "HEAD" else call.method
        action = methods.get(method) if methods else None
        if isinstance(action, Generate | Measure | Forward | Count | Kept):
            call.dialect = dialects.named(action.dialect)
        if action != _HEALTH and not self._keys.admit(call.headers):
            raise ProblemError(_unauthenticated(call.headers))
        if methods is None:
            raise ProblemError(Problem(kind="not_found", message="File Not Found"))
        match action:
            case None:
                call.allowed = ", ".join(_allowed(methods))
                message = f"{call.method} is not allowed here; allowed: {call.allowed}."
                raise ProblemError(Problem(kind="method_not_allowed", message=message))
            case Generate():
                await self._generate(call, action, reply)
            case Measure():
                await self._measure(call, action, reply)
            case Forward():
                await self._forward(call, action, reply)
            case Count():
                await self._count(call, action, reply)
            case Kept():
                await self._kept(call, action, reply)
            case Own():
                await self._own(call, action, reply)

    async def _generate(self, call: _Call, action: Generate, reply: Reply) -> None:
        data = await call.body(self._config.max_body)
        turn = await self._turn(call, action, _object(data), reply)
        request = turn.request
        if not self._config.allow_grammar and request.extras.get("grammar"):
            raise ProblemError(_NO_GRAMMAR)
        hint = request.extras.get("prompt_cache_key")
        origin = relay.Origin(
            reply.request_id.removeprefix("req_"),
            int(time.time()),
            key=self._keys.owner(call.headers) or call.client,
            session=call.text_header(b"x-session-id") or (hint if type(hint) is str else ""),
            body=hash(data),
            began=reply.began,
        )
        await call.until_gone(
            reply,
            relay.generate(
                turn.front,
                request,
                origin,
                fleet=self._fleet,
                reply=turn.reply,
            ),
        )

    async def _turn(self, call: _Call, action: Generate, body: JsonObject, reply: Reply) -> Turn:
        if action.dialect == responses.NAME:
            unique = reply.request_id.removeprefix("req_")
            owner = self._keys.owner(call.headers)
            return await self._responses.turn(body, action.path, owner, reply, unique)
        return Turn(call.dialect, call.dialect.parse_request(body, action.path), reply)

    async def _count(self, call: _Call, action: Count, reply: Reply) -> None:
        body, owner = (
            _object(await call.body(self._config.max_body)),
            self._keys.owner(call.headers),
        )
        if action.dialect == responses.NAME:
            request = await self._responses.read(body, action.path, owner)
        else:
            request = call.dialect.parse_request(body, action.path)
        key = owner or call.client
        work = relay.count(request, key, fleet=self._fleet, reply=reply)
        await call.until_gone(reply, work)

    async def _kept(self, call: _Call, action: Kept, reply: Reply) -> None:
        owner = self._keys.owner(call.headers)
        await self._responses.answer(action.what, action.id, call.query, owner, reply)

    async def _measure(self, call: _Call, action: Measure, reply: Reply) -> None:
        body = _object(await call.body(self._config.max_body))
        measure = measures.named(action.name)
        request = measure.parse_request(body, action.path)
        work = measured.measure(measure, request, fleet=self._fleet, reply=reply)
        await call.until_gone(reply, work)

    async def _forward(self, call: _Call, action: Forward, reply: Reply) -> None:
        if action.admin and not self._config.allow_admin:
            raise ProblemError(
                Problem(
                    kind="forbidden",
                    message=f"{call.method} {action.path} changes or exposes the server: "
                    "it is relayed only if Tropilla runs with --allow-admin.",
                )
            )
        body = await call.body(self._config.max_body)
        await call.until_gone(
            reply,
            relay.forward(
                call.method,
                relay.target(action.path, call.query),
                body,
                call.text_headers(),
                _model_of(body, call.query) if not action.admin else None,
                slots=action.slots,
                fleet=self._fleet,
                reply=reply,
            ),
        )

    async def _refuse(self, call: _Call, problem: Problem, reply: Reply) -> None:
        status = STATUS[problem.kind]
        if status >= 500:
            log.warning("%s %s %s: %s", reply.request_id, status, call.path, problem.message)
        if reply.started:
            # The status is sent: all that is left is to cut the answer off (uvicorn does).
            return
        headers: dict[str, str] = {}
        if status == 401:
            headers["www-authenticate"] = "Bearer"
        if status == 405:
            headers["allow"] = call.allowed
        if status == 413:
            headers["connection"] = "close"
        if problem.retry_after is not None:
            headers["retry-after"] = str(max(1, ceil(problem.retry_after)))
            headers["retry-after-ms"] = str(ceil(problem.retry_after * 1000))
        elif problem.kind in _WORKED:
            headers["x-should-retry"] = "false"
        body = call.dialect.render_problem(problem, status)
        if status == 413:
            await reply.whole(status, body, headers, before_end=call.pass_over())
        else:
            await reply.whole(status, body, headers)

    # What Tropilla answers itself.

    async def _own(self, call: _Call, action: Own, reply: Reply) -> None:
        match action.name:
            case "health":
                await self._health(reply)
            case "herd":
                await reply.whole(200, msgspec.json.encode(herd.told(self._fleet)))
            case "route":
                await self._route(call, reply)
            case "models":
                await self._models(reply)
            case "model":
                await self._model(action.argument, reply)
            case "openapi":
                from tropilla.server import openapi  # noqa: PLC0415 - most never ask for it

                await reply.whole(200, openapi.document())

    async def _route(self, call: _Call, reply: Reply) -> None:
        body = _object(await call.body(self._config.max_body))
        path = parse_qs(call.query).get("path", [_DEFAULT_PATH])[0]
        action = (self._router.find(path) or {}).get("POST")
        if not isinstance(action, Generate):
            raise Malformed(f"'{path}' is no path at which text is wanted.", param="path")
        request = dialects.named(action.dialect).parse_request(body, action.path)
        ask = relay.ask_of(request, relay.Origin("", 0, key=self._keys.owner(call.headers)))
        await reply.whole(200, msgspec.json.encode(herd.route(self._fleet, ask)))

    async def _health(self, reply: Reply) -> None:
        if self._draining:
            error = {"code": 503, "message": "Tropilla ends", "type": "unavailable_error"}
            body = msgspec.json.encode({"status": "draining", "error": error})
            await reply.whole(503, body, {"retry-after": "2"})
            return
        state = self._fleet.state()
        if state == "ready":
            await reply.whole(200, b'{"status":"ok"}')
            return
        loading = state in {"starting", "loading"}
        error = {
            "code": 503,
            "message": "Loading model" if loading else "No upstream can be reached",
            "type": "unavailable_error",
        }
        status = "loading" if loading else "unavailable"
        body = msgspec.json.encode({"status": status, "error": error})
        await reply.whole(503, body, {"retry-after": "1"})

    async def _models(self, reply: Reply) -> None:
        data = models.cards(self._fleet, self._since)
        await reply.whole(200, msgspec.json.encode({"object": "list", "data": data}))

    async def _model(self, name: str, reply: Reply) -> None:
        card = models.card(self._fleet, name, self._since)
        if card is None:
            raise ProblemError(self._fleet.unknown(name))
        await reply.whole(200, msgspec.json.encode(card))


_HEALTH = Own(name="health")
_NO_GRAMMAR = Problem(
    kind="unsupported",
    message="A grammar is not passed on here: ask for a JSON Schema, in 'response_format'.",
    param="grammar",
    code="unsupported_parameter",
)


def _allowed(methods: Methods) -> list[str]:
    """Every method that a path answers, those that need no row of their own included."""
    rows = [m for method in methods for m in ((method, "HEAD") if method == "GET" else (method,))]
    return [*rows, "OPTIONS"]


class _Gone(Exception):  # noqa: N818 - nothing went wrong
    """The client has left; there is nobody to answer."""


class _Call:
    """What one client asks: its head, then its body, then whether it is still there."""

    def __init__(self, scope: Scope, receive: Receive) -> None:
        self.method: str = scope["method"]
        self.path: str = scope["raw_path"].decode("ascii", "replace")
        self.query: str = scope["query_string"].decode("ascii", "replace")
        self.headers: dict[bytes, bytes] = dict(scope["headers"])
        self.dialect: Dialect = dialects.named(_DEFAULT)
        client = scope.get("client")
        self.client: str = client[0] if client else ""
        """The address that it comes from."""
        self.allowed = ""
        """The methods of its path, once it is refused for its own."""
        self._receive = receive

    def text_headers(self) -> dict[str, str]:
        """The headers as text."""
        return {
            name.decode("latin-1"): value.decode("latin-1") for name, value in self.headers.items()
        }

    def text_header(self, name: bytes) -> str:
        """One header as text; empty if it is not there."""
        return self.headers.get(name, b"").decode("latin-1")

    async def body(self, limit: int) -> bytes:
        """The whole body.

        Raises:
            ProblemError: it is larger than the limit, or compressed.
        """
        if self.headers.get(b"content-encoding", b"identity").lower() != b"identity":
            raise ProblemError(
                Problem(
                    kind="unsupported_media",
                    message="A compressed body is not accepted: send it plain.",
                )
            )
        declared = self.headers.get(b"content-length", b"0")
        pieces, size = [], int(declared) if declared.isdigit() else 0
        more = size <= limit
        size = 0 if more else size
        while more:
            message = await self._receive()
            if message["type"] == "http.disconnect":
                raise _Gone
            piece = message.get("body", b"")
            size += len(piece)
            pieces.append(piece)
            more = message.get("more_body", False) and size <= limit
        if size > limit:
            raise ProblemError(
                Problem(kind="too_large", message=f"The body is larger than {limit} bytes.")
            )
        return b"".join(pieces)

    async def pass_over(self) -> None:
        """Let what is left of the body go by, for a while.

        A connection that is closed while its client still sends is reset, and takes the answer
        with it that the client has not read yet.
        """
        with suppress(TimeoutError):
            async with asyncio.timeout(_PASS_OVER_SECONDS):
                while (await self._receive()).get("more_body", False):
                    pass

    async def until_gone(self, reply: Reply, work: Awaitable[None]) -> None:
        """Do the work, unless the client leaves: then it is cancelled at once.

        Raises:
            _Gone: the client has left.
        """
        task = asyncio.current_task()
        watcher = asyncio.ensure_future(self._watch(task, reply))
        try:
            await work
        except asyncio.CancelledError:
            if task is not None and watcher.done() and not watcher.cancelled():
                task.uncancel()
                raise _Gone from None
            raise
        finally:
            watcher.cancel()

    async def _watch(self, task: asyncio.Task[Any] | None, reply: Reply) -> None:
        while (await self._receive())["type"] != "http.disconnect":
            pass
        # A complete answer ends in the same message, and there is nothing left to give up.
        if task is not None and not reply.ended:
            task.cancel()


def _object(body: bytes) -> JsonObject:
    """A client's JSON, whatever its Content-Type says.

    Raises:
        Malformed: it is none, or no object.
    """
    if not body.strip():
        raise Malformed("The request has no body: a JSON object is expected.")
    try:
        value: Json = msgspec.json.decode(body)
    except RecursionError:
        raise Malformed("The JSON of the body is nested too deeply.") from None
    except (msgspec.DecodeError, UnicodeDecodeError) as error:
        raise Malformed(f"The body is not JSON: {error}.") from None
    if type(value) is not dict:
        raise Malformed("The body is not a JSON object.")
    return value


def _model_of(body: bytes, query: str) -> str | None:
    """The model that a request which is passed on names: in its body, or in its query."""
    named = parse_qs(query).get("model")
    if named:
        return named[0]
    if not body.lstrip().startswith(b"{"):
        return None
    name = _object(body).get("model")
    return name if type(name) is str else None


def _unauthenticated(headers: Mapping[bytes, bytes]) -> Problem:
    if any(name in headers for name in (b"authorization", b"x-api-key", b"api-key")):
        message = "Incorrect API key provided."
    else:
        message = (
            "You didn't provide an API key. Send it in an Authorization header: "
            "Authorization: Bearer YOUR_KEY."
        )
    return Problem(kind="unauthenticated", message=message)
