"""What upstreams say that is no answer: it ends, it is told, and nothing of it is another's.

The servers here are sockets that say bytes. Each table is gone through with both clients, once as
the bytes are, and once byte by byte.
"""

from __future__ import annotations

import asyncio
from collections.abc import AsyncIterator, Awaitable, Callable
from typing import Literal, NamedTuple, TypeAlias

import pytest

from conftest import CHAT, Answer, Serve, Served
from doubles.talk import Script, Server, Talk
from doubles.upstream import (
    DEADLINE,
    DONE,
    JSON,
    SSE,
    USAGE,
    Double,
    Exchange,
    chunk,
    streams,
)
from tropilla.config import FailuresConfig, TimeoutsConfig, UpstreamConfig
from tropilla.exchanges import exchange
from tropilla.framing import SseFramer
from tropilla.ir import Problem, ProblemError
from tropilla.upstream import incoming as arriving
from tropilla.upstream.http import Link

pytestmark = pytest.mark.anyio

FORMS = pytest.mark.parametrize("stream", [False, True], ids=["whole", "stream"])

OK = b"HTTP/1.1 200 OK\r\n"
CHUNKED = OK + b"Transfer-Encoding: chunked\r\n\r\n"
ABC = OK + b"Content-Length: 3\r\n\r\nabc"


@pytest.fixture(params=[True, False], ids=["lean", "aiohttp"])
def plain(request: pytest.FixtureRequest) -> bool:
    return bool(request.param)


@pytest.fixture
async def links(plain: bool, server: Server) -> AsyncIterator[Callable[[bool], Link]]:  # noqa: FBT001
    """Makes a client; only one of whom it is expected loses patience soon."""
    made: list[Link] = []

    def link(hasty: bool) -> Link:  # noqa: FBT001
        timeouts = TimeoutsConfig(connect=0.5, idle=0.1) if hasty else TimeoutsConfig(idle=DEADLINE)
        made.append(Link(server.url, timeouts=timeouts, plain=plain))
        return made[-1]

    yield link
    for one in made:
        await one.close()


End: TypeAlias = Literal["closes", "resets", "stays"]


def says(server: Server, data: bytes, end: End, *, dripping: bool) -> Script:
    """Say this to the first request, whatever it is."""

    async def script(talk: Talk) -> None:
        await talk.asked()
        try:
            await (talk.drip(data) if dripping else talk.say(data))
        finally:
            server.said.set()
        if end == "resets":
            talk.reset()
        elif end == "closes":
            talk.writer.write_eof()
            await talk.left()
        else:
            await right(talk)

    return script


async def right(talk: Talk) -> None:
    """Answer every request with its own target and body."""
    while True:
        target, body = await talk.asked()
        told = target.encode() + b" " + body
        await talk.say(OK + b"Content-Length: %d\r\n\r\n%b" % (len(told), told))


class Case(NamedTuple):
    """What is said, and what is heard: a body, or the kind of a problem."""

    data: bytes
    heard: bytes | str
    end: End = "closes"
    kept: bool = False
    """Whether its connection may be used again."""


HEADS = {
    "ssh": b"SSH-2.0-OpenSSH_9.6\r\n\r\n",
    "html": b"<html>hello</html>\r\n\r\n",
    "no status": b"HTTP/1.1\r\n\r\n",
    "status of one digit": b"HTTP/1.1 2 OK\r\n\r\n",
    "status of four digits": b"HTTP/1.1 2000 OK\r\n\r\n",
    "no colon": OK + b"Content-Length\r\n\r\n",
    "length negative": OK + b"Content-Length: -3\r\n\r\nabc",
    "length of letters": OK + b"Content-Length: abc\r\n\r\nabc",
    "length overflows": OK + b"Content-Length: 99999999999999999999999\r\n\r\nabc",
    "two lengths": OK + b"Content-Length: 3\r\nContent-Length: 4\r\n\r\nabcd",
    "length and chunks": OK
    + b"Content-Length: 3\r\nTransfer-Encoding: chunked\r\n\r\n3\r\nabc\r\n0\r\n\r\n",
    "other protocol": b"HTTP/1.1 101 Go\r\nUpgrade: x\r\nConnection: upgrade\r\n\r\nabc",
    "one long header": OK + b"X: " + b"x" * 70_000 + b"\r\n\r\n",
    "many headers": OK + b"X: y\r\n" * 200 + b"\r\n",
    "many long headers": OK + b"".join(b"X%d: %b\r\n" % (n, b"x" * 6000) for n in range(50)),
}
"""No answer begins so."""

CASES = {
    **{name: Case(data, "unavailable", "stays") for name, data in HEADS.items()},
    "nothing": Case(b"", "unavailable"),
    "nothing, reset": Case(b"", "unavailable", "resets"),
    "nothing, stays": Case(b"", "timeout", "stays"),
    "half a head": Case(OK + b"Content-Le", "unavailable"),
    "half a head, reset": Case(OK + b"Content-Le", "unavailable", "resets"),
    "half a head, stays": Case(OK + b"Content-Le", "timeout", "stays"),
    "interim alone": Case(b"HTTP/1.1 100 Continue\r\n\r\n", "unavailable"),
    "interim": Case(
        b"HTTP/1.1 103 Early\r\nContent-Type: x\r\n\r\n" + ABC, b"abc", "stays", kept=True
    ),
    "length": Case(ABC, b"abc", "stays", kept=True),
    "length, short": Case(OK + b"Content-Length: 4\r\n\r\nabc", "upstream_failed"),
    "length, short, reset": Case(OK + b"Content-Length: 4\r\n\r\nabc", "upstream_failed", "resets"),
    "length, short, stays": Case(OK + b"Content-Length: 4\r\n\r\nabc", "timeout", "stays"),
    "length, long": Case(ABC + b"def", b"abc", "stays"),
    "the last one": Case(OK + b"Connection: close" + ABC[len(OK) - 2 :], b"abc", "stays"),
    "compressed": Case(OK + b"Transfer-Encoding: gzip\r\n\r\nabc", "unavailable", "stays"),
    "two answers": Case(ABC + OK + b"Content-Length: 3\r\n\r\ndef", b"abc", "stays"),
    "until the end": Case(OK + b"\r\nabc", b"abc"),
    "until the end, reset": Case(OK + b"\r\nabc", "upstream_failed", "resets"),
    "until the end, stays": Case(OK + b"\r\nabc", "timeout", "stays"),
    "old": Case(b"HTTP/1.0 200 OK\r\n\r\nabc", b"abc"),
    "no content": Case(b"HTTP/1.1 204 No\r\n\r\n", b"", "stays", kept=True),
    "no content, and some": Case(b"HTTP/1.1 204 No\r\n\r\nabc", b"", "stays"),
    "chunks": Case(CHUNKED + b"3\r\nabc\r\n0\r\n\r\n", b"abc", "stays", kept=True),
    "chunks, trailers": Case(
        CHUNKED + b"3\r\nabc\r\n0\r\nA: b\r\n\r\n", b"abc", "stays", kept=True
    ),
    "chunks without the last": Case(CHUNKED + b"3\r\nabc\r\n", "upstream_failed"),
    "chunks, no last, reset": Case(CHUNKED + b"3\r\nabc\r\n", "upstream_failed", "resets"),
    "chunks, no last, stays": Case(CHUNKED + b"3\r\nabc\r\n", "timeout", "stays"),
    "half the last chunk": Case(CHUNKED + b"3\r\nabc\r\n0\r\n", "upstream_failed"),
    "half a chunk": Case(CHUNKED + b"4\r\nabc", "upstream_failed"),
    "chunk too long": Case(CHUNKED + b"3\r\nabcd\r\n0\r\n\r\n", "upstream_failed", "stays"),
    "chunk of letters": Case(CHUNKED + b"3\r\nabc\r\nxyz\r\n", "upstream_failed", "stays"),
    "chunk overflows": Case(CHUNKED + b"f" * 20 + b"\r\nabc", "upstream_failed", "stays"),
    "chunk negative": Case(CHUNKED + b"-3\r\nabc\r\n0\r\n\r\n", "upstream_failed", "stays"),
    "many trailers": Case(CHUNKED + b"0\r\n" + b"A: b\r\n" * 200, "upstream_failed", "stays"),
}

AIOHTTP_HEARS = [
    CASES[name]
    for name in (
        "many long headers",  # there may be 8 MB of them
        "length, long",  # is no answer, as far as what is too much comes with it
        "no content, and some",  # likewise
        "compressed",  # is passed on, as its body is never unpacked
        "until the end, reset",  # is an end like another
    )
]
"""Where aiohttp hears something else than `lean`, which is no worse than that."""


async def heard(link: Link) -> tuple[bytes, Problem | None]:
    """What comes of an answer, and what went wrong."""
    body = b""
    try:
        async with asyncio.timeout(DEADLINE), link.send("POST", "/first", b"{}") as answer:
            while piece := await answer.read():
                body += piece
    except ProblemError as error:
        return body, error.problem
    return body, None


@pytest.mark.parametrize("dripping", [False, True], ids=["at once", "byte by byte"])
@pytest.mark.parametrize("case", CASES.values(), ids=CASES.keys())
async def test_what_is_heard(
    server: Server, links: Callable[[bool], Link], case: Case, *, plain: bool, dripping: bool
) -> None:
    waited_out = not plain and (case.heard == "upstream_failed" or case in AIOHTTP_HEARS)
    cut_short = dripping and len(case.data) > 1000
    link = links(case.heard == "timeout" or waited_out or cut_short)
    if cut_short:
        # So many packets say no more than these.
        server.scripts = [says(server, case.data[:300], "stays", dripping=True), right]
        body, problem = await heard(link)
        assert (body, problem and problem.kind) == (b"", "timeout")
        return
    server.scripts = [says(server, case.data, case.end, dripping=dripping), right]
    body, problem = await heard(link)
    kind = None if problem is None else problem.kind
    if isinstance(case.heard, bytes):
        assert (body, kind) == (case.heard, None) or (not plain and case in AIOHTTP_HEARS)
    elif plain or case not in AIOHTTP_HEARS:
        # What comes with a head that aiohttp minds, it takes for no answer; some it waits out.
        assert kind == case.heard or (not plain and case.heard == "upstream_failed" and kind)
        assert b"abc".startswith(body)
    if problem is not None:
        # Who was not there, or broke off, may be asked elsewhere; who is silent is at work.
        assert problem.retryable == (kind != "timeout")
        assert server.url in problem.message
    # Whatever that was, the next answer is the next question's.
    await asyncio.wait_for(server.said.wait(), DEADLINE)
    for _ in range(3):
        await asyncio.sleep(0)
    told = await asyncio.wait_for(link.ask("POST", "/second", {"a": 1}), DEADLINE)
    assert told == (200, b'/second {"a":1}')
    assert server.accepted == (1 if case.kept else 2)


async def endless_headers(talk: Talk) -> None:
    await talk.say(OK)
    while True:
        await talk.say(b"X: y\r\n" * 20)


async def endless_header(talk: Talk) -> None:
    await talk.say(OK + b"X: ")
    while True:
        await talk.say(b"y" * 100)


async def endless_interim(talk: Talk) -> None:
    while True:
        await talk.say(b"HTTP/1.1 100 Continue\r\n\r\n" * 100)


async def endless_trailers(talk: Talk) -> None:
    await talk.say(CHUNKED + b"3\r\nabc\r\n0\r\n")
    while True:
        await talk.say(b"X: y\r\n" * 20)


async def dripping_head(talk: Talk) -> None:
    await talk.say(OK + b"X: ")
    while True:
        await talk.say(b"y")
        await asyncio.sleep(0.005)


@pytest.mark.parametrize(
    ("script", "kind"),
    [
        (endless_headers, "unavailable"),
        (endless_header, "unavailable"),
        (endless_interim, "unavailable"),
        (endless_trailers, "upstream_failed"),
        (dripping_head, "timeout"),
    ],
)
async def test_what_has_no_end(
    server: Server, links: Callable[[bool], Link], script: Script, kind: str, *, plain: bool
) -> None:
    unbounded = not plain and script in {endless_interim, endless_trailers}
    link = links(kind == "timeout" or unbounded)

    async def first(talk: Talk) -> None:
        await talk.asked()
        await script(talk)

    server.scripts = [first, right]
    _, problem = await heard(link)
    assert problem is not None
    # aiohttp bounds neither interim answers nor trailers by themselves.
    assert problem.kind == kind or unbounded
    assert await link.ask("GET", "/second") == (200, b"/second ")
    assert server.accepted == 2


# What comes of that in a gateway.

PATH = "/v1/chat/completions"
TEXT = "H\xe9 \N{LLAMA}!"
STREAM = b"".join((chunk(TEXT[:2]), chunk(TEXT[2:]), chunk(reason="stop"), USAGE, DONE)).replace(
    b"\n", b"\r\n"
)
STOPPED = STREAM.index(b'"stop"')


@pytest.fixture(params=["auto", "aiohttp"])
async def tropilla(request: pytest.FixtureRequest, gateway: Serve, double: Double) -> Served:
    one = UpstreamConfig(
        url=double.url, client=request.param, failures=FailuresConfig(tolerated=1_000_000)
    )
    return await gateway(upstreams=(one,))


def told_of(answer: Answer) -> tuple[str, bool, bool]:
    """The text that a client has heard, whether it was told to the end, and whether of an error."""
    if not answer.headers["content-type"].startswith(SSE):
        if answer.status != 200:
            assert answer.status >= 500, "it is not the client's fault"
            assert answer.error["message"]
            return "", False, True
        (choice,) = answer.json["choices"]
        return choice["message"]["content"], choice["finish_reason"] == "stop", False
    assert answer.events[-1] == "[DONE]"
    told = [one for one in answer.events if isinstance(one, dict)]
    ended = any(
        choice["finish_reason"] == "stop" for one in told for choice in one.get("choices", ())
    )
    errors = [one["error"] for one in told if "error" in one]
    assert all(error["type"] == "server_error" for error in errors), errors
    return answer.text, ended, bool(errors)


def cut(at: int) -> Callable[[Exchange], Awaitable[None]]:
    """A stream without its end, which is that of its connection."""

    async def script(asked: Exchange) -> None:
        await asked.head(200, SSE, "Connection: close", chunked=False)
        await asked.raw(STREAM[:at])
        asked._connection.transport.close()

    return script


@FORMS
async def test_a_stream_that_ends_early_anywhere(
    tropilla: Served, double: Double, *, stream: bool
) -> None:
    for at in range(0, len(STREAM), 1 if stream else 3):
        double.on(PATH, cut(at))
        text, ended, failed = told_of(await tropilla.chat(stream=stream))
        assert TEXT.startswith(text)
        # Nobody says "stop" whom the upstream has not heard say it.
        assert failed or (ended and text == TEXT)
        assert not ended or at > STOPPED


@FORMS
async def test_a_stream_in_two_pieces_anywhere(
    tropilla: Served, double: Double, *, stream: bool
) -> None:
    for at in range(1, len(STREAM), 1 if stream else 3):
        double.on(PATH, streams(STREAM[:at], STREAM[at:]))
        assert told_of(await tropilla.chat(stream=stream)) == (TEXT, True, False)


@FORMS
async def test_a_line_without_an_end(
    tropilla: Served, double: Double, monkeypatch: pytest.MonkeyPatch, *, stream: bool
) -> None:
    monkeypatch.setattr(exchange, "framer", lambda _: SseFramer(1_000_000))

    async def endless(asked: Exchange) -> None:
        await asked.head()
        await asked.send(chunk("Hello") + b"data: ")
        while True:
            await asked.send(b"x" * 100_000)

    double.on(PATH, endless)
    answer = await tropilla.chat(stream=stream)
    assert told_of(answer) == ("Hello" if stream else "", False, True)
    assert double.requests[-1].written < 10_000_000


@FORMS
async def test_a_body_without_an_end(
    tropilla: Served, double: Double, monkeypatch: pytest.MonkeyPatch, *, stream: bool
) -> None:
    monkeypatch.setattr(arriving, "MAX_WHOLE", 1_000_000)

    async def endless(asked: Exchange) -> None:
        await asked.head(200, JSON)
        while True:
            await asked.send(b" " * 100_000)

    double.on(PATH, endless)
    answer = await tropilla.chat(stream=stream)
    assert (answer.status, answer.error["code"]) == (502, answer.error["code"])
    assert "over 1000000 bytes" in answer.error["message"]
    assert double.requests[-1].written < 20_000_000


async def test_a_stream_without_an_end_that_nobody_may_see_before_it(
    tropilla: Served, double: Double, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(arriving, "MAX_WHOLE", 1_000_000)

    async def endless(asked: Exchange) -> None:
        await asked.head()
        while True:
            await asked.send(chunk("x" * 10_000))

    double.on(PATH, endless)
    answer = await tropilla.chat(stream=False)
    assert (answer.status, "over 1000000 bytes" in answer.error["message"]) == (502, True)
    assert double.requests[-1].written < 20_000_000
    # Who reads it as it comes may go on.
    raw = await tropilla.connect()
    await raw.post(PATH, CHAT | {"stream": True})
    assert (await raw.head())[0] == 200
    read = 0
    while read < 3_000_000:
        read += len(await raw.reader.read(65536))
    raw.leave()


LLAMA = chunk("Hello")
GARBAGE: dict[str, tuple[bytes, ...]] = {
    "nothing": (),
    "no end": (LLAMA,),
    "end without a reason": (LLAMA, DONE),
    "html": (b"<html><body>Hello</body></html>",),
    "no JSON": (b"data: {'choices': []}\n\n",),
    "half of JSON": (LLAMA[:-20], b"\n\n"),
    "no UTF-8": (LLAMA.replace(b"Hello", b"H\xffllo"),),
    "a zero": (LLAMA.replace(b"Hello", b"H\0llo"),),
    "deep": (b"data: " + b"[" * 100_000 + b"\n\n",),
    "a number": (b"data: 17\n\n",),
    "choices of another kind": (b'data: {"choices": {"0": {}}}\n\n',),
    "a choice that nobody asked for": (LLAMA.replace(b'"index":0', b'"index":1'),),
    "a text that is none": (LLAMA.replace(b'"Hello"', b"[1]"),),
    "an error": (LLAMA, b'data: {"error": {"message": "Oh no", "code": 500}}\n\n'),
    "an error of one word": (b'data: {"error": "Oh no"}\n\n',),
    "an error's event": (b'event: error\ndata: {"message": "Oh no"}\n\n',),
}


@FORMS
@pytest.mark.parametrize("pieces", GARBAGE.values(), ids=GARBAGE.keys())
async def test_a_stream_that_makes_no_sense(
    tropilla: Served, double: Double, pieces: tuple[bytes, ...], *, stream: bool
) -> None:
    double.on(PATH, streams(*pieces))
    answer = await tropilla.chat(stream=stream)
    text, ended, failed = told_of(answer)
    assert (ended, failed) == (False, True)
    assert text in {"", "Hello"}
    assert b"Traceback" not in answer.body
    double.on(PATH, streams(STREAM))
    assert told_of(await tropilla.chat(stream=stream)) == (TEXT, True, False)


@FORMS
async def test_what_comes_after_the_end_is_nobodys(
    tropilla: Served, double: Double, *, stream: bool
) -> None:
    double.on(PATH, streams(STREAM + chunk("evil") + DONE), streams(STREAM))
    for _ in range(2):
        assert told_of(await tropilla.chat(stream=stream)) == (TEXT, True, False)
