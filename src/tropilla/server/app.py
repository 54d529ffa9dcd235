"""The gateway: from a request's path and body to the relay, and errors back.

The only module that knows status codes. Whatever happens, a client gets an answer in the
envelope of the dialect it speaks; a client that goes away ends what was being done for it.
"""

from __future__ import annotations

import asyncio
import time
from collections.abc import Sequence
from functools import partial
from math import ceil
from typing import TYPE_CHECKING, TypeAlias
from urllib.parse import parse_qs

import msgspec

from tropilla import __version__, dialects, log, measured, measures, relay
from tropilla.accounts.admission import Need, need_of, need_of_inputs
from tropilla.accounts.limits import Meter
from tropilla.accounts.meters.memory import Memory
from tropilla.accounts.repeats import Shelf
from tropilla.accounts.store import MEMORY, Later
from tropilla.accounts.valkey import Valkey
from tropilla.config import Config
from tropilla.dialects import Dialect
from tropilla.dialects._beside import Face, Known, Shown, Visit
from tropilla.ir import JsonObject, Malformed, Problem, ProblemError, ProblemKind, Request
from tropilla.measures import Vectors
from tropilla.observing import trace
from tropilla.observing.journal import Journal
from tropilla.record import Book, Record
from tropilla.server import health, herd, lines, models, responses
from tropilla.server.accounts import Accounts
from tropilla.server.bodies import json_object, media_in
from tropilla.server.door import Door
from tropilla.server.http import Call
from tropilla.server.managing import manage
from tropilla.server.repeats import KEY, Repeats, Tape, may_repeat, replay
from tropilla.server.reply import Reply
from tropilla.server.responses import Responses, Turn
from tropilla.server.routes import (
    Count,
    Forward,
    Generate,
    Kept,
    Look,
    Manage,
    Measure,
    Methods,
    Own,
    Router,
    View,
)
from tropilla.server.ui import Ui
from tropilla.upstream.fleet import Fleet
from tropilla.upstream.refusals import STOPS_SERVERS

if TYPE_CHECKING:
    from tropilla.observing.spans import Spans

STATUS: dict[ProblemKind, int] = {
    "malformed": 400,
    "too_large": 413,
    "too_slow": 408,
    "unsupported_media": 415,
    "context_exceeded": 400,
    "unsupported": 400,
    "unauthenticated": 401,
    "forbidden": 403,
    "not_found": 404,
    "method_not_allowed": 405,
    "conflict": 409,
    "not_implemented": 501,
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
_NEVER: frozenset[ProblemKind] = _WORKED | {"not_implemented", "conflict"}
"""SDKs ask again whatever the server's fault is, and after a 409."""
_COMMON: frozenset[ProblemKind] = frozenset({"limited", "loading", "unavailable"})
"""Once it happens to one, it happens to all who ask."""
_SELDOM_SECONDS = 10.0
_LARGE = 4 * 1024 * 1024
_NATIVE = "llamacpp"
_DEFAULT = "openai_chat"
_DEFAULT_PATH = "/v1/chat/completions"
Metered: TypeAlias = Generate | Measure | Forward
_METERED = (Generate, Measure, Forward)
"""What takes something of an upstream."""
_SPOKEN = (*_METERED, Count, Kept, View)
"""What is asked in a dialect that its path tells."""
TRACE, STATE = trace.PARENT.encode(), trace.STATE.encode()


class Gateway:
    """Answers the requests of all clients."""

    def __init__(
        self,
        config: Config,
        fleet: Fleet,
        accounts: Accounts | None = None,
        meter: Meter | None = None,
        spans: Spans | None = None,
        memory: str = MEMORY,
        valkey: Valkey | None = None,
    ) -> None:
        self._door = Door(config, fleet, accounts, meter or Memory())
        # What counts decides how when it is loaded: alone, or with other processes.
        from tropilla.server import metrics  # noqa: PLC0415

        self._metrics = metrics.Told(fleet)
        self.journal = Journal(on=config.log_requests)
        """The lines of the log."""
        self._ui = Ui(config, fleet, accounts, self._door)
        self.books: Sequence[Book] = (
            self._door.admission, self._metrics.book, self.journal, self._ui.activity,
        )  # fmt: skip
        """Who takes note of every request."""
        if accounts is not None:
            self.books = (*self.books, accounts.ledger)
        self._spans = spans
        if spans is not None:
            self.books = (spans, *self.books)
        self._accounts = accounts
        self._valkey = valkey
        self._config = config
        self._fleet = fleet
        self._router = Router()
        self._marks = [
            (versions.header.encode(), dialects.named(name))
            for name in dialects.names()
            if (versions := dialects.versions(dialects.named(name))) is not None
        ]
        self._memory = Later(memory)
        store = accounts.store if accounts is not None and accounts.keeps else None
        self._responses = Responses(config.responses, store, self._memory)
        shelf = Shelf(store or self._memory, config.repeats)
        self._repeats = Repeats(config, shelf, lasting=store is not None)
        self._since = int(time.time())
        self._draining = False
        self._seldom: dict[ProblemKind, log.Seldom] = {}
        self._open = 0
        self.idle = asyncio.Event()
        """Set while no request is being served."""
        self.idle.set()

    def reload(self, config: Config) -> None:
        """Serve as another config says, from the next request on."""
        self._config = config
        self.journal.on = config.log_requests
        self._door.reload(config)
        self._ui.reload(config)
        self._repeats.reload(config)
        self._fleet.reload(config)

    def drain(self) -> None:
        """Serve what is being served, and nothing new."""
        self._draining = True
        self._fleet.drain()

    async def close(self) -> None:
        """Let go of what is kept."""
        self._ui.close()
        await self._responses.close()
        await self._repeats.close()
        await self._memory.close()
        if self._accounts is not None:
            await self._accounts.close()
        self.journal.close()
        self._metrics.book.count()
        if self._spans is not None:
            await self._spans.close()

    async def __call__(self, call: Call) -> None:
        """Answer one request."""
        call.dialect = self._spoken(call)
        reply = call.reply
        record = Record(reply.request_id, call.method, call.path, reply.began, self.books)
        call.record = record
        if TRACE in call.headers:
            record.trace = trace.read(call.text(TRACE), call.text(STATE))
        record.begin()
        if record.trace is not None:
            record.trace.tell()
        self._open += 1
        self.idle.clear()
        try:
            await self._serve(call, reply)
        except ProblemError as error:
            await self._refuse(call, error.problem)
        except asyncio.CancelledError:
            record.cancelled = call.gone
            if not call.gone:
                # The gateway ends, and has waited long enough for this one.
                problem = Problem(kind="unavailable", message="Tropilla was ended.", retry_after=1)
                await self._refuse(call, problem)
        except Exception:  # noqa: BLE001 - it is told, and the next request is served
            log.defect(
                "request.defect",
                "A defect of Tropilla's own, in {request}",
                request=call.reply.request_id,
            )
            problem = Problem(
                kind="internal",
                message=f"Tropilla failed; its log tells why, under {call.reply.request_id}.",
            )
            await self._refuse(call, problem)
        finally:
            record.status, record.headers = reply.status, reply.told
            try:
                record.end()
            except Exception:  # noqa: BLE001 - it is told, and the next request is served
                log.defect("book.defect", "{request} is not in all books", request=record.id)
            self._open -= 1
            if not self._open:
                self.idle.set()

    def _spoken(self, call: Call) -> Dialect:
        """The dialect that a client says it speaks, if it says so; a path may say otherwise."""
        for header, dialect in self._marks:
            if header in call.headers:
                return dialect
        return dialects.named(_DEFAULT)

    async def _serve(self, call: Call, reply: Reply) -> None:
        if call.method == "OPTIONS":
            await reply.preflight(call.text(b"access-control-request-headers"))
            return
        methods = self._router.find(call.path, call.headers)
        action = methods.get(call.method) if methods else None
        if action is None and methods and call.method == "HEAD":
            action = methods.get("GET")
        if isinstance(action, _SPOKEN):
            call.dialect = dialects.named(action.dialect)
            call.record.dialect = action.dialect
        await self._door.enter(call, action)
        if isinstance(action, _METERED):
            self._meter(call)
        if methods is None:
            message = f"Invalid URL ({call.method} {call.path}): File Not Found"
            raise ProblemError(Problem(kind="not_found", message=message))
        _check_version(call)
        match action:
            case None:
                call.allowed = ", ".join(_allowed(methods))
                message = f"{call.method} is not allowed here; allowed: {call.allowed}."
                raise ProblemError(Problem(kind="method_not_allowed", message=message))
            case Generate() | Measure() | Forward():
                if KEY in call.headers and self._repeats.on and may_repeat(action):
                    await self._once(call, action, reply)
                else:
                    await self._do(call, action, reply)
            case Count():
                await self._count(call, action, reply)
            case Kept():
                await self._kept(call, action, reply)
            case View():
                await self._view(call, action, reply)
            case Own() | Look():
                await self._own(call, action, reply)
            case Manage():
                await self._manage(call, action, reply)

    def _meter(self, call: Call) -> None:
        """Have a row for a request that may take something of an upstream."""
        if self._accounts is not None:
            self._accounts.admit()
        call.record.metered = True

    async def _once(self, call: Call, action: Metered, reply: Reply) -> None:
        """Do what a client may say again, or say its answer again."""
        begun = await self._repeats.begin(call, self._config.max_body)
        if isinstance(begun, Tape):
            try:
                await self._do(call, action, begun)
            finally:
                await self._repeats.end(begun.done, wait=not call.gone)
            return
        # It may have waited for long: what its key may not do any more it does not hear, either.
        await self._door.enter(call, action)
        self._door.model(call, begun.model)
        await replay(begun, call.record, reply)

    async def _do(self, call: Call, action: Metered, reply: Reply | Tape) -> None:
        match action:
            case Generate():
                await self._generate(call, action, reply)
            case Measure():
                await self._measure(call, action, reply)
            case Forward():
                await self._forward(call, action, reply)

    async def _generate(self, call: Call, action: Generate, reply: Reply | Tape) -> None:
        data = await self._text(call)
        body = json_object(data)
        if large := len(data) > _LARGE:
            await asyncio.sleep(0)
        if action.route.instead is not None:
            shown = action.route.instead(self._visit(call, body))
            if shown is not None:
                await _show(shown, reply)
                return
        turn = await self._turn(call, action, body, reply)
        if large:
            await asyncio.sleep(0)
        request, model = turn.request, turn.request.model
        if (served := self._door.model(call, self._served_as(call, model))) != model:
            request = msgspec.structs.replace(request, model=served)
        if not self._config.allow_grammar and request.extras.get("grammar"):
            raise ProblemError(_NO_GRAMMAR)
        origin = relay.Origin(
            call.record.id.removeprefix("req_"),
            int(time.time()),
            key=call.owner or call.client,
            session=_session(call, request),
            body=hash(data),
            model=model,
            spent=lambda: time.perf_counter() - call.record.began,
        )
        call.record.session = origin.session

        def needs() -> Need:
            context = models.context(self._fleet.serving(), request.model)
            return need_of(
                request, context, lambda: relay.size(request, origin.key, fleet=self._fleet)
            )

        most = await self._door.admit(call, request.model, needs)
        if most is not None:
            request = msgspec.structs.replace(request, max_tokens=most)
        if large:
            await asyncio.sleep(0)
        await relay.generate(
            turn.front,
            request,
            origin,
            call.record,
            fleet=self._fleet,
            reply=turn.reply,
        )

    async def _text(self, call: Call) -> bytes:
        """A body that is read as JSON.

        Raises:
            ProblemError: it is too large, or too slow.
        """
        data = await call.body(self._config.max_body)
        limit = self._config.max_text
        if len(data) > limit and len(data) - media_in(data) > limit:
            message = f"The body has more than {limit} bytes beside pictures and sounds."
            raise ProblemError(Problem(kind="too_large", message=message))
        if self._config.capture.enabled and call.record.metered:
            self._ui.capture.begin(call.record.id, call.texts(), data)
        if len(data) > _LARGE:
            await asyncio.sleep(0)  # between the steps of a large body others have their turn
        return data

    async def _turn(
        self, call: Call, action: Generate, body: JsonObject, reply: Reply | Tape
    ) -> Turn:
        if action.dialect == responses.NAME:
            unique = call.record.id.removeprefix("req_")
            return await self._responses.turn(body, action.path, call.owner, reply, unique)
        return Turn(call.dialect, call.dialect.parse_request(body, action.path), reply)

    def _served_as(self, call: Call, model: str | None) -> str | None:
        """The served model that a client means, in the words of its dialect."""
        find = dialects.served_as(call.dialect)
        if find is None or model is None:
            return model
        return find(model, self._fleet.serving())

    async def _count(self, call: Call, action: Count, reply: Reply) -> None:
        body, counter = json_object(await self._text(call)), action.counter
        if action.dialect == responses.NAME:
            request = await self._responses.read(body, counter.of, call.owner)
        else:
            request = call.dialect.parse_request(body, counter.of)
        request = msgspec.structs.replace(
            request, model=self._door.model(call, self._served_as(call, request.model))
        )
        await self._door.admit(call, request.model)
        key = call.owner or call.client
        await relay.count(request, key, call.record, counter.render, fleet=self._fleet, reply=reply)

    async def _kept(self, call: Call, action: Kept, reply: Reply) -> None:
        await self._responses.answer(action.what, action.id, call.head.query, call.owner, reply)

    async def _view(self, call: Call, action: View, reply: Reply) -> None:
        page = action.page
        if isinstance(page.answer, str):
            raise ProblemError(Problem(kind="not_implemented", message=page.answer))
        body = json_object(await self._text(call)) if page.method == "POST" else {}
        await _show(page.answer(self._visit(call, body, action.rest)), reply)

    def _visit(self, call: Call, body: JsonObject, rest: str = "") -> Visit:
        now = int(time.time())
        cards = tuple(models.cards(self._door.serving(call), self._since))
        known = Known(version=__version__, models=cards, now=now)
        return Visit(known=known, rest=rest, query=call.head.query, headers=call.texts(), body=body)

    async def _measure(self, call: Call, action: Measure, reply: Reply | Tape) -> None:
        data = await self._text(call)
        body, measure, face = json_object(data), measures.named(action.name), action.face
        if face is not None:
            if face.instead is not None and (shown := face.instead(self._visit(call, body))):
                await _show(shown, reply)
                return
            body = face.parse(body)
        request = measure.parse_request(body, action.path)
        model = request.model
        served = self._door.model(call, self._served_as(call, model))
        await self._door.admit(call, served, lambda: need_of_inputs(measure.counted(request)))
        await measured.measure(
            measure,
            msgspec.structs.replace(request, model=served),
            call.record,
            fleet=self._fleet,
            reply=reply,
            key=call.owner or call.client,
            body=hash(data),
            render=None if face is None else partial(_faced, face, model),
        )

    async def _forward(self, call: Call, action: Forward, reply: Reply | Tape) -> None:
        if action.admin and not self._config.allow_admin:
            raise ProblemError(
                Problem(
                    kind="forbidden",
                    message=f"{call.method} {action.path} changes or exposes the server: "
                    "it is relayed only if Tropilla runs with --allow-admin.",
                )
            )
        body = await call.body(self._config.max_body)
        model = None
        if not action.admin:
            body, model = self._door.passed(call, body, counted=action.slots == 0)
        await self._door.admit(call, model)
        await relay.forward(
            call.method,
            relay.target(action.path, call.head.query),
            body,
            call.texts(),
            model,
            call.record,
            slots=action.slots,
            key=call.owner or call.client,
            fleet=self._fleet,
            reply=reply,
        )

    async def _manage(self, call: Call, action: Manage, reply: Reply) -> None:
        if self._accounts is None:
            raise ProblemError(_NO_ACCOUNTS)
        data = await self._text(call) if call.method == "POST" else b""
        if not data.strip() and action.what == "rotate":
            data = b"{}"
        body = json_object(data) if call.method == "POST" else {}
        told = await manage(self._accounts, call.account, action, body)
        await reply.whole(200, msgspec.json.encode(told))

    async def _refuse(self, call: Call, problem: Problem) -> None:
        status = dialects.statuses(call.dialect).get(problem.kind) or STATUS[problem.kind]
        problem = self._door.told(call, problem)
        reply = call.reply
        call.record.problem, call.record.status = problem, reply.status or status
        await call.record.enter()
        told = (status >= 500 and status != 501) or problem.kind == "limited"
        if told or problem.code == STOPS_SERVERS:
            self._log(call, problem, status)
        if reply.started:
            return  # the status is sent: all that is left is to cut the answer off
        headers: dict[str, str] = {}
        if status == 401:
            headers["www-authenticate"] = "Bearer"
        if status == 405:
            headers["allow"] = call.allowed
        if problem.retry_after is not None:
            headers["retry-after"] = str(max(1, ceil(problem.retry_after)))
            headers["retry-after-ms"] = str(ceil(problem.retry_after * 1000))
        elif problem.kind in _NEVER or problem.code == "insufficient_quota":
            headers["x-should-retry"] = "false"
        await reply.whole(status, call.dialect.render_problem(problem, status), headers)

    def _log(self, call: Call, problem: Problem, status: int) -> None:
        """What a client was refused that is not its own fault; what befalls many now and then."""
        times = 1
        if problem.kind in _COMMON:
            seldom = self._seldom.setdefault(problem.kind, log.Seldom(_SELDOM_SECONDS))
            seldom.add()
            times = seldom.due(time.monotonic())
        if times:
            more = f" ({times} times since it was told last)" if times > 1 else ""
            log.warning(
                "request.refused",
                "{request} {status} {path}: {why}" + more,
                request=call.reply.request_id,
                status=status,
                path=call.path,
                kind=problem.kind,
                why=problem.message,
                times=times,
            )

    # What Tropilla answers itself.

    async def _own(self, call: Call, action: Own | Look, reply: Reply) -> None:
        if isinstance(action, Look):
            await self._ui.answer(call, action.place)
            return
        match action.name:
            case "health":
                await self._health(reply)
            case "live":
                await reply.whole(200, b'{"status":"ok"}')
            case "ready":
                await self._ready(reply)
            case "report":
                told = await health.told(
                    self._fleet,
                    self._accounts,
                    self._valkey,
                    self._since,
                    draining=self._draining,
                )
                await reply.whole(200, msgspec.json.encode(told))
            case "docs":
                await self._docs(call, reply)
            case "logs":
                self.journal.write()
                last = self.journal.last
                await lines.tell(last, call.head.query, reply, lambda: self._draining)
            case "herd":
                await reply.whole(200, msgspec.json.encode(herd.told(self._fleet)))
            case "route":
                await self._route(call, reply)
            case "metrics":
                text = await self._metrics.told()
                await reply.whole(200, text, content_type=self._metrics.CONTENT_TYPE)
            case "usage":
                await self._usage(call, reply)
            case "models":
                await self._models(call, reply)
            case "model":
                await self._model(call, action.argument, reply)
            case "openapi":
                from tropilla.server import openapi  # noqa: PLC0415 - most never ask for it

                await reply.whole(200, openapi.document())

    async def _route(self, call: Call, reply: Reply) -> None:
        body = json_object(await self._text(call))
        path = parse_qs(call.head.query).get("path", [_DEFAULT_PATH])[0]
        action = (self._router.find(path) or {}).get("POST")
        if not isinstance(action, Generate):
            raise Malformed(f"'{path}' is no path at which text is wanted.", param="path")
        request = dialects.named(action.dialect).parse_request(body, action.path)
        key = call.owner or call.client
        origin = relay.Origin("", 0, key=key, session=_session(call, request))
        ask = relay.ask_of(request, origin)
        await reply.whole(200, msgspec.json.encode(herd.route(self._fleet, ask)))

    async def _usage(self, call: Call, reply: Reply) -> None:
        if self._accounts is None:
            raise ProblemError(_NO_ACCOUNTS)
        owner = "" if call.account.role == "admin" else call.owner
        told = await self._accounts.told(call.head.query, owner)
        await reply.whole(200, msgspec.json.encode(told))

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

    async def _ready(self, reply: Reply) -> None:
        reasons = health.why_not(self._fleet, self._accounts, draining=self._draining)
        told: JsonObject = {"status": "unavailable" if reasons else "ok", "reasons": reasons}
        if reasons:
            told["error"] = {
                "code": 503, "message": ", ".join(reasons), "type": "unavailable_error",
            }  # fmt: skip
        await reply.whole(503 if reasons else 200, msgspec.json.encode(told))

    async def _docs(self, call: Call, reply: Reply) -> None:
        from tropilla.server import docs  # noqa: PLC0415 - most never ask for it

        models = list(self._fleet.serving()) if self._door.open else []
        page = docs.page(call.text(b"host"), models)
        await reply.whole(200, page, docs.HEADERS, docs.CONTENT_TYPE)

    async def _models(self, call: Call, reply: Reply) -> None:
        data = models.cards(self._door.serving(call), self._since)
        await reply.whole(200, msgspec.json.encode({"object": "list", "data": data}))

    async def _model(self, call: Call, name: str, reply: Reply) -> None:
        call.record.model = name
        card = models.card(self._door.serving(call), name, self._since)
        if card is None:
            raise ProblemError(self._fleet.unknown(name))
        await reply.whole(200, msgspec.json.encode(card))


def _faced(face: Face, model: str | None, answer: Vectors, name: str) -> bytes:
    """Vectors in a dialect's own form, under the name by which the client knows the model."""
    return face.render(answer.vectors, answer.usage, model or name)


async def _show(shown: Shown, reply: Reply | Tape) -> None:
    await reply.whole(shown.status, shown.body, shown.headers, shown.content_type)


_NO_ACCOUNTS = Problem(
    kind="not_found",
    message="No accounts are kept here: 'accounts.store' says where they could be.",
)
_NO_GRAMMAR = Problem(
    kind="unsupported",
    message="A grammar is not passed on here: ask for a JSON Schema, in 'response_format'.",
    param="grammar",
    code="unsupported_parameter",
)


def _check_version(call: Call) -> None:
    """Raise for a version of the client's dialect that there is not."""
    versions = dialects.versions(call.dialect)
    told = "" if versions is None else call.text(versions.header.encode())
    if versions is not None and told and told not in versions.known:
        raise Malformed(
            f'{versions.header}: "{told}" is not a valid version', param=versions.header
        )


_SESSIONS = (b"x-session-id", b"x-claude-code-session-id")
"""Where clients say it: anybody, and an agent that never says it otherwise."""


def _session(call: Call, request: Request) -> str:
    """What the client says belongs together."""
    for name in _SESSIONS:
        if told := call.text(name):
            return told
    hint = request.extras.get("prompt_cache_key")
    return hint if type(hint) is str else ""


def _allowed(methods: Methods) -> list[str]:
    """Every method that a path answers, those that need no row of their own included."""
    rows = [m for method in methods for m in ((method, "HEAD") if method == "GET" else (method,))]
    return [*dict.fromkeys(rows), "OPTIONS"]
