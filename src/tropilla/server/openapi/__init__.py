"""`GET /openapi.json`: what this gateway serves, as an OpenAPI 3.1 document.

It is made from the table of routes, so that no path is left out, and none is told that is not
there. It describes Tropilla's own answers exactly; what is only passed on is the upstream's.
"""

from __future__ import annotations

from functools import cache

import msgspec

from tropilla import __version__, dialects
from tropilla.accounts.usage import WHERE
from tropilla.dialects._beside import Face, Shape
from tropilla.ir import JsonObject
from tropilla.server.openapi.keys import KEYS
from tropilla.server.openapi.schemas import SCHEMAS, event, ref
from tropilla.server.repeats import HEADER, may_repeat
from tropilla.server.routes import (
    Action,
    Count,
    Forward,
    Generate,
    Kept,
    Look,
    Manage,
    Measure,
    Own,
    View,
    marked,
    patterns,
    table,
)

_STREAM = "text/event-stream"
_OURS = "openai_chat"
"""The dialect of what is no dialect's."""
_REFUSALS = {
    "400": "What was sent is wrong, or cannot be had; `param` names the field.",
    "401": "There is no valid key.",
    "403": "The operator does not allow it.",
    "404": "No such model, or no such thing.",
    "409": "The Idempotency-Key was used for another request.",
    "408": "The body comes too slowly.",
    "413": "The body is too large.",
    "415": "The body is compressed.",
    "429": "Too much at once: `retry-after` says when to come again.",
    "500": "A defect of Tropilla's own.",
    "501": "That is not done here.",
    "502": "An upstream failed.",
    "503": "No upstream can be reached, or the model is loading.",
    "504": "An upstream took too long.",
    "529": "What is 503 elsewhere.",
}
_ERRORS = {"llamacpp": "NativeError", "afs": "AfsError"}
_TAGS = {"llamacpp": "llama.cpp", "afs": "AFS"}


_GENERATE = {
    "openai_chat": Shape("Continue a conversation", "ChatRequest", "Chat", "ChatChunk"),
    "openai_completions": Shape(
        "Continue texts", "CompletionRequest", "Completion", "CompletionChunk"
    ),
    "openai_responses": Shape("Respond", "ResponseRequest", "Response", "ResponseEvent"),
    "llamacpp": Shape("Continue a text, llama.cpp's way", "NativeRequest", "Native", "NativeChunk"),
    "afs": Shape("Continue a text, the way of AFS", "AfsInputs", "AfsAnswer", "AfsAnswer"),
}
"""Of the dialects that are asked for text, but those that tell it themselves."""
_SPECIAL = {
    "/infill": Shape("Fill a hole in a text", "InfillRequest", "Native", "NativeChunk"),
    "/models/conversation": Shape(
        "Continue a conversation, the way of AFS", "AfsConversation", "AfsAnswer", "AfsAnswer"
    ),
}
"""By the end of their paths: other forms of the same dialects."""
_MEASURE = {
    "embeddings": Shape("Make vectors of texts", "EmbeddingRequest", "Embeddings"),
    "rerank": Shape("Rank documents by a query", "RerankRequest", "Ranking"),
}
_AFS_EMBEDDINGS = Shape(
    "Make vectors of texts, the way of AFS", "AfsEmbeddingRequest", "AfsEmbeddings"
)
_OF_KEPT = ("400", "401", "403", "404", "500")
_KEPT = {
    "get": Shape("A response that is kept", None, "Response", "ResponseEvent", _OF_KEPT),
    "delete": Shape("Delete a response that is kept", None, "Deleted", None, _OF_KEPT),
    "items": Shape("What a response was given", None, "Items", None, _OF_KEPT),
    "cancel": Shape("Refused: none is made in the background", None, "Response", None, _OF_KEPT),
}
_OWN = {
    "health": Shape("Whether this gateway can serve", None, "Health", None, ("503",)),
    "live": Shape("Whether this process lives", None, "Health", None, ()),
    "ready": Shape(
        "Whether requests may be sent here, and why not", None, "Health", None, ("503",)
    ),
    "report": Shape(
        "How the gateway is: upstreams, store, spool", None, "Report", None, ("401", "403", "500")
    ),
    "docs": Shape("What is served, as a page for people", refuses=()),
    "logs": Shape(
        "The last lines of the log, as lines of JSON; and, followed, what comes after them",
        refuses=("400", "401", "403", "500"),
        asked=("lines", "follow"),
    ),
    "models": Shape("What is served", None, "Models", None, ("401", "403", "500")),
    "model": Shape("One model", None, "Model", None, ("401", "403", "404", "500")),
    "herd": Shape("The upstreams, and who waits", None, "Herd", None, ("401", "403", "500")),
    "route": Shape(
        "Where a request would go",
        "ChatRequest",
        "Route",
        None,
        ("400", "401", "403", "408", "413", "415", "500"),
    ),
    "metrics": Shape("Counts and times, as Prometheus reads them", refuses=("401", "500")),
    "usage": Shape(
        "What was used",
        None,
        "Usages",
        None,
        ("400", "401", "403", "404", "500", "503"),
        ("by", "since", "until", *WHERE),
    ),
    "openapi": Shape("This document", None, "Document", None, ("401", "500")),
}


_OF_KEYS = ("400", "401", "403", "404", "408", "413", "415", "500", "503")
_MANAGE = {
    "list": Shape("The keys, without what their clients show", None, "Keys", None, _OF_KEYS),
    "create": Shape(
        "Make a key; it is told here and never again", "KeyTerms", "Key", None, _OF_KEYS
    ),
    "show": Shape("One key", None, "Key", None, _OF_KEYS),
    "change": Shape("Give a key other terms", "KeyTerms", "Key", None, _OF_KEYS),
    "rotate": Shape("Make another key in the place of one", "Rotation", "Key", None, _OF_KEYS),
    "revoke": Shape("Let nobody in by a key any more", None, "Key", None, _OF_KEYS),
}


@cache
def document() -> bytes:
    """The document, as JSON."""
    return msgspec.json.encode(describe())


def describe() -> JsonObject:
    """The document."""
    own: JsonObject = {}
    for name in dialects.names():
        own |= dialects.schemas(name)
    paths: JsonObject = {}
    for path, methods in {**table(), **patterns()}.items():
        rows: JsonObject = {
            method.lower(): operation(action, method, path) for method, action in methods.items()
        }
        paths[path] = _with_names(rows, path)
    for header, pages in marked().items():
        for path, methods in pages.items():
            rows = paths.setdefault(path, _with_names({}, path))
            for method, action in methods.items():
                also = operation(action, method, path)
                rows[method.lower()] = _either(rows.get(method.lower()), also, header)
    return {
        "openapi": "3.1.0",
        "info": {
            "title": "Tropilla",
            "version": __version__,
            "summary": "One OpenAI-compatible endpoint for a herd of llama.cpp servers",
            "license": {"name": "Apache-2.0", "identifier": "Apache-2.0"},
        },
        "security": [{}, {"key": []}],
        "paths": paths,
        "components": {
            "schemas": SCHEMAS | KEYS | own,
            "responses": {
                f"{name}{status}": {
                    "description": why,
                    "content": {"application/json": {"schema": ref(name)}},
                }
                for name in sorted({_error(one) for one in dialects.names()})
                for status, why in _REFUSALS.items()
            },
            "securitySchemes": {"key": {"type": "http", "scheme": "bearer"}},
        },
    }


def _with_names(rows: JsonObject, path: str) -> JsonObject:
    """The operations of a path, and the parts of it that have names."""
    names = [part[1:-1] for part in path.split("/") if part.startswith("{")]
    if names:
        rows["parameters"] = [
            {"name": name, "in": "path", "required": True, "schema": {"type": "string"}}
            for name in names
        ]
    return rows


def _either(plain: JsonObject | None, also: JsonObject, header: str) -> JsonObject:
    """An operation that means something else, and is answered so, if it has a header."""
    parameter = {"name": header, "in": "header", "schema": {"type": "string"}}
    if plain is None:
        return also | {"parameters": [parameter | {"required": True}]}
    told = plain | also
    told["summary"] = f"{plain['summary']}; or, with {header}: {also['summary']}"
    told["parameters"] = [*plain.get("parameters", ()), parameter]
    told["responses"] = plain["responses"] | also["responses"]
    for status in plain["responses"].keys() & also["responses"].keys():
        told["responses"][status] = {
            "description": "By the header, in one form or the other.",
            "content": _both(plain["responses"][status], also["responses"][status]),
        }
    return told


def _both(one: JsonObject, other: JsonObject) -> JsonObject:
    """What either of two answers may hold."""
    told, more = _content(one), _content(other)
    for kind in told.keys() & more.keys():
        told_before = told[kind]["schema"]
        forms = told_before.get("anyOf", [told_before])
        more[kind] = {"schema": {"anyOf": [*forms, more[kind]["schema"]]}}
    return told | more


def _content(answer: JsonObject) -> JsonObject:
    refusal = answer.get("$ref")
    if refusal is None:
        return dict(answer["content"])
    return _json(ref(refusal.rpartition("/")[2][:-3]))  # without its status


def operation(action: Action, method: str, path: str) -> JsonObject:
    """One method of a path."""
    match action:
        case Generate(dialect=name):
            return _repeatable(_operation(_shape(action, path), name), name)
        case Measure(face=Face(shape=shape), dialect=dialect):
            return _repeatable(_operation(shape, dialect), dialect)
        case Measure(name=name, dialect=dialect):
            afs = dialect == "afs"
            shape = _AFS_EMBEDDINGS if afs else _MEASURE[name]
            return _repeatable(_operation(shape, dialect), dialect)
        case Count(dialect=name):
            return _operation(action.counter.shape, name)
        case View(dialect=name, page=page):
            return _operation(page.shape, name, done=not isinstance(page.answer, str))
        case Kept(what=what):
            return _operation(_KEPT[what], action.dialect)
        case Own(name=name):
            return _operation(_OWN[name], _OURS)
        case Manage(what=what):
            return _operation(_MANAGE[what], _OURS)
        case Forward():
            return _forwarded(action, method)
        case Look():
            raise LookupError(path)  # pages for people, of which the document does not tell


def _shape(action: Generate, path: str) -> Shape:
    special = (shape for end, shape in _SPECIAL.items() if path.endswith(end))
    return action.route.shape or next(special, None) or _GENERATE[action.dialect]


def _tells(dialect: str) -> bool:
    """Whether a dialect describes itself."""
    return bool(dialects.schemas(dialect))


def _error(dialect: str) -> str:
    """The schema of a dialect's refusals."""
    return f"{dialect.title()}Error" if _tells(dialect) else _ERRORS.get(dialect, "Error")


def _tag(dialect: str) -> str:
    return dialect.title() if _tells(dialect) else _TAGS.get(dialect, "OpenAI")


def _operation(shape: Shape, dialect: str, *, done: bool = True) -> JsonObject:
    error = _error(dialect)
    told: JsonObject = {"summary": shape.summary, "tags": [_tag(dialect)]}
    if shape.asked:
        told["parameters"] = [
            {"name": name, "in": "query", "schema": {"type": "string"}} for name in shape.asked
        ]
    if shape.asks is not None:
        told["requestBody"] = {"required": True, "content": _json(ref(shape.asks))}
    content = {} if shape.answers is None else _json(ref(shape.answers))
    if shape.streams is not None:
        kind = dialects.named(dialect).CONTENT_TYPE.partition(";")[0]
        schema = event(shape.streams, error) if kind == _STREAM else ref(shape.streams)
        content[kind] = {"schema": schema}
    done_so = {"description": "What was asked for.", "content": content}
    told["responses"] = {"200": done_so} if done else {}
    for status in shape.refuses:
        told["responses"][status] = {"$ref": f"#/components/responses/{error}{status}"}
    return told


_KEY: JsonObject = {
    "name": HEADER,
    "in": "header",
    "description": "Whoever says the same again under this key is told the same answer.",
    "schema": {"type": "string", "minLength": 1, "maxLength": 255, "pattern": "^[!-~]+$"},
}


def _repeatable(told: JsonObject, dialect: str) -> JsonObject:
    """An operation that is done once, however often it is said under one key."""
    told["parameters"] = [*told.get("parameters", ()), _KEY]
    told["responses"]["200"]["headers"] = {
        "idempotency-replayed": {
            "description": "`true` where this is the answer of an earlier request.",
            "schema": {"const": "true"},
        }
    }
    told["responses"]["409"] = {"$ref": f"#/components/responses/{_error(dialect)}409"}
    return told


def _forwarded(action: Forward, method: str) -> JsonObject:
    summary = "Passed on to an upstream, as it is"
    told: JsonObject = {
        "summary": f"{summary}; only with --allow-admin" if action.admin else summary,
        "tags": ["Passed on"],
    }
    if method == "POST":
        told["requestBody"] = {"content": _json(ref("Forwarded"))}
    if may_repeat(action):
        told["parameters"] = [_KEY]
    told["responses"] = {
        "200": {"description": "The upstream's answer."},
        "4XX": {"description": "Tropilla's refusal, or the upstream's."},
        "5XX": {"description": "Tropilla's failure, or the upstream's."},
    }
    return told


def _json(schema: JsonObject) -> JsonObject:
    return {"application/json": {"schema": schema}}
