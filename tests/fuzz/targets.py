"""What reads bytes of others, each as a function of bytes that must not fail; found, not listed.

A target says what may come of any bytes: a value that keeps its promises, or the one exception
that is declared. `make fuzz` lets atheris look for others; the test suite tries each with its
seeds, and with some hundreds of mutations of these.
"""

from __future__ import annotations

from collections.abc import Callable, Iterator
from contextlib import suppress
from functools import cache, partial
from pathlib import Path
from typing import Any, NamedTuple, TypeAlias

import msgspec

from bodies import for_path
from grammar import CUT, STAMP, TODAY, check_grammar, parsed, rendered
from tropilla import dialects, measures
from tropilla.dialects import Dialect
from tropilla.framing import Frame, SseFramer
from tropilla.ir import Json, JsonObject, Malformed, Problem, Request, Traits
from tropilla.server.wire import Chunked, Refused, body_of, parse_head

FIXTURES = Path(__file__).parents[1] / "dialects"
OTHERS = Traits(dialect="openai", chat=True)
MEASURED = {
    "embeddings": {"input": ["Once", [1, 2]], "dimensions": 2, "encoding_format": "base64"},
    "rerank": {"query": "Once", "documents": ["a", {"text": "b"}], "top_n": 1},
}
_ASKED = "tell me"
_FRAME_LIMIT = 4096

Run: TypeAlias = Callable[[bytes], None]


class Target(NamedTuple):
    """One reader, and right things that it reads."""

    run: Run
    seeds: tuple[bytes, ...]


@cache
def targets() -> dict[str, Target]:
    """Every reader by its name."""
    found = {
        "framing": Target(framing, _streams()),
        "wire.head": Target(head, _HEADS),
        "wire.body": Target(chunks, _CHUNKS),
    }
    for name in dialects.names():
        dialect = dialects.named(name)
        answers = (*_recorded(name, ".json"), *_told_whole(dialect))
        found |= {
            f"{name}.request": Target(partial(request, dialect), _requests(dialect)),
            f"{name}.stream": Target(partial(stream, dialect), _streams_of(dialect)),
            f"{name}.answer": Target(partial(answer, dialect), answers),
            f"{name}.problem": Target(partial(problem, dialect), _PROBLEMS),
        }
    for name in measures.names():
        measure = measures.named(name)
        seed = msgspec.json.encode(MEASURED[name])
        captures = sorted((FIXTURES.parent / "measures" / "captures").glob(f"{name}*.json"))
        told = tuple(path.read_bytes() for path in captures)
        found |= {
            f"{name}.request": Target(partial(question, measure), (seed,)),
            f"{name}.answer": Target(partial(numbers, measure, MEASURED[name]), told),
        }
    return found


# Bytes.


def framing(data: bytes) -> None:
    """Cut anywhere, the same bytes give the same frames."""
    step = 1 + data[0] % 16 if data else 1
    assert _frames([data]) == _frames([data[at : at + step] for at in range(0, len(data), step)])


def _frames(pieces: list[bytes]) -> tuple[list[Frame], bool]:
    framer, frames = SseFramer(_FRAME_LIMIT), list[Frame]()
    try:
        for piece in pieces:
            frames += framer.feed(piece)
        return frames + framer.end(), True
    except Malformed:
        # Which of the events before one that is too large are told hangs on the cuts.
        return [], False


def head(data: bytes) -> None:
    """A head has what it must have, or it is refused."""
    try:
        told = parse_head(data)
    except Refused as error:
        assert error.status in {400, 431, 501}  # noqa: PT017 - either is right
        assert error.message  # noqa: PT017
        return
    assert told.path.startswith("/") or told.path == "*"
    assert told.old or told.headers[b"host"]
    assert told.length is None or told.length >= 0
    assert not {b"content-length", b"transfer-encoding"} <= told.headers.keys()
    assert body_of(told).size == 0


def chunks(data: bytes) -> None:
    """Cut anywhere, the same bytes are the same body, or none."""
    step = 1 + data[0] % 16 if data else 1
    whole = _body([data])
    assert _body([data[at : at + step] for at in range(0, len(data), step)]) == whole


def _body(pieces: list[bytes]) -> tuple[bytes, bytes] | None:
    body, rest = Chunked(), b""
    for piece in pieces:
        if body.complete:
            rest += piece
            continue
        try:
            rest = body.feed(piece)
        except Refused:
            return None
    return (body.take(), rest) if body.complete else (b"", b"")


# Dialects.


def request(dialect: Dialect, data: bytes) -> None:
    """A client's request is refused with a reason, or can be said to any upstream that has it."""
    body = _json(data)
    if type(body) is not dict:
        return
    for route in dialect.ROUTES:
        with suppress(Malformed):
            read = dialect.parse_request(body, route.path)
            for name in dialects.names():
                for traits in (TODAY, OTHERS):
                    with suppress(Malformed):
                        wire = dialects.named(name).render_request(read, traits)
                        assert _json(msgspec.json.encode(wire.body)) is not None
                        dialects.dropped_header(wire.dropped)


def stream(dialect: Dialect, data: bytes) -> None:
    """A stream tells events that nest and end, the same however its frames come."""
    asked = _asked(dialect)
    framer = SseFramer()
    frames = framer.feed(data) + framer.end()
    at_once, one_by_one = (dialect.stream_parser(asked, extras=True) for _ in range(2))
    events = at_once.feed(frames)
    apart = [event for frame in frames for event in one_by_one.feed([frame])]
    events += at_once.end()
    apart += one_by_one.end()
    check_grammar(events)
    assert apart == events
    cut = dialect.stream_parser(asked, extras=False)
    check_grammar(cut.feed(frames[: len(frames) // 2]) + cut.abort(CUT))
    assert type(rendered(dialect, asked, events)) is bytes


def answer(dialect: Dialect, data: bytes) -> None:
    """A whole answer is one, and can be told again; or it is none."""
    body = _json(data)
    asked = _asked(dialect)
    with suppress(Malformed):
        assert _json(dialect.render_answer(dialect.parse_answer(body, asked), asked, STAMP))


def problem(dialect: Dialect, data: bytes) -> None:
    """Any bytes are some problem."""
    for status in (400, 404, 429, 500, 503):
        told = dialect.parse_problem(status, data)
        assert isinstance(told, Problem)
        assert told.message
        assert _json(dialect.render_problem(told, status))


def question(measure: Any, data: bytes) -> None:
    """A request for numbers is refused with a reason, or can be said."""
    body = _json(data)
    if type(body) is not dict:
        return
    for place in measure.PLACES:
        with suppress(Malformed):
            read = measure.parse_request(body, place.path)
            assert measure.counted(read)
            for traits in (TODAY, OTHERS):
                with suppress(Malformed):
                    for part in measure.split(read, traits):
                        msgspec.json.encode(measure.render_request(part, traits).body)


def numbers(measure: Any, asked: JsonObject, data: bytes) -> None:
    """Numbers are those that were asked for, or they are refused."""
    read = measure.parse_request(asked, measure.PLACES[0].path)
    with suppress(Malformed):
        part = measure.parse_answer(_json(data), read, TODAY)
        told = measure.join([part], read, matryoshka=True)
        assert _json(measure.render_answer(told, read, "m"))


def _json(data: bytes) -> Json:
    """What is decoded before any of these sees it; `None` for what is no JSON."""
    try:
        return msgspec.json.decode(data)
    except (msgspec.DecodeError, UnicodeDecodeError, RecursionError):
        return None


# Seeds.


def _asked(dialect: Dialect) -> Request:
    """A request to which any answer may come."""
    (path, body) = next(_bodies(dialect))
    read = dialect.parse_request(body | {"n": 2} if "llama" in dialect.NAME else body, path)
    wants = {"return_progress": True, "return_tokens": True}
    return msgspec.structs.replace(read, extras=read.extras | wants)


def _bodies(dialect: Dialect) -> Iterator[tuple[str, JsonObject]]:
    for route in dialect.ROUTES:
        for body in for_path(route.path):
            told = msgspec.json.encode(body).replace(b"@", _ASKED.encode())
            yield route.path, msgspec.json.decode(told)


def _requests(dialect: Dialect) -> tuple[bytes, ...]:
    own = tuple(msgspec.json.encode(body) for _, body in _bodies(dialect))
    return (*_recorded(dialect.NAME, ".request.json"), *own)


def _recorded(name: str, end: str) -> tuple[bytes, ...]:
    paths = sorted((FIXTURES / name).glob(f"*{end}"))
    return tuple(
        one.read_bytes()
        for one in paths
        if (end != ".json") == (".request" in one.name) or end == ".sse"
    )


def _events() -> Iterator[list[Any]]:
    """The events of the streams that a llama-server has told."""
    chat = dialects.named("openai_chat")
    for told in _recorded("openai_chat", ".sse"):
        yield parsed(chat, _asked(chat), [told], extras=True)


def _streams_of(dialect: Dialect) -> tuple[bytes, ...]:
    asked = _asked(dialect)
    own = tuple(rendered(dialect, asked, events) for events in _events())
    return (*_recorded(dialect.NAME, ".sse"), *own)


def _told_whole(dialect: Dialect) -> tuple[bytes, ...]:
    chat, asked = dialects.named("openai_chat"), _asked(dialect)
    whole = (chat.parse_answer(_json(told)) for told in _recorded("openai_chat", ".json"))
    return tuple(dialect.render_answer(one, asked, STAMP) for one in whole)


def _streams() -> tuple[bytes, ...]:
    return tuple(one for name in dialects.names() for one in _recorded(name, ".sse"))


_HEADS = (
    b"POST /v1/chat/completions?a=b HTTP/1.1\r\nHost: t:80\r\nContent-Length: 7\r\n",
    b"POST / HTTP/1.1\r\nHost: [::1]\r\nTransfer-Encoding: chunked\r\nExpect: 100-continue\r\n",
    b"GET /health HTTP/1.0\r\nConnection: keep-alive\r\n",
    b"OPTIONS * HTTP/1.1\r\nHost: t\r\nX: a\r\nX: b\r\n",
)
_CHUNKS = (
    b"0\r\n\r\n",
    b"3\r\nabc\r\na;x=y\r\n0123456789\r\n0\r\nA: b\r\n\r\nGET /",
)
_PROBLEMS = (
    b'{"error":{"message":"No","type":"invalid_request_error","param":"n","code":400}}',
    b'{"error":{"code":400,"message":"too long","type":"exceed_context_size_error","n_ctx":1}}',
    b'{"object":"error","message":"No","type":"BadRequestError","code":400}',
    b'{"detail":[{"loc":["body","n",0],"msg":"No","type":"value_error"}]}',
    b'{"detail":"No"}',
    b"<html>Bad Gateway</html>",
)
