"""What the books are told of a request: all of it, before its client hears the end, and once."""

from __future__ import annotations

import asyncio
from typing import Any

import pytest

from conftest import CHAT, Serve, Served, Start
from doubles.upstream import DONE, Double, breaks, chunk, event, resets, streams, told
from tropilla.record import Record

pytestmark = pytest.mark.anyio

PATH = "/v1/chat/completions"


class Noted:
    """A book that remembers, and lets nobody hear the end while it is shut."""

    def __init__(self) -> None:
        self.calls: list[tuple[str, Record]] = []
        self.open = asyncio.Event()
        self.open.set()

    def begun(self, record: Record) -> None:
        self.calls.append(("begun", record))

    async def enter(self, record: Record) -> None:
        self.calls.append(("enter", record))
        await self.open.wait()

    def over(self, record: Record) -> None:
        self.calls.append(("over", record))

    @property
    def said(self) -> list[str]:
        return [name for name, _ in self.calls]

    @property
    def last(self) -> Record:
        return self.calls[-1][1]


async def noted(gateway: Serve, *doubles: Double, **config: Any) -> tuple[Served, Noted]:
    tropilla, book = await gateway(*doubles, **config), Noted()
    tropilla.gateway.books = (book,)
    return tropilla, book


def usage(prompt: int, completion: int, cached: int) -> bytes:
    return event({
        "object": "chat.completion.chunk", "created": 1, "id": "x", "model": "m", "choices": [],
        "usage": {
            "prompt_tokens": prompt, "completion_tokens": completion,
            "total_tokens": prompt + completion, "prompt_tokens_details": {"cached_tokens": cached},
        },
    })  # fmt: skip


@pytest.mark.parametrize("stream", [False, True], ids=["whole", "stream"])
async def test_an_answer_is_told_in_full(gateway: Serve, double: Double, *, stream: bool) -> None:
    script = streams(chunk("Hi"), chunk(None, "length"), usage(7, 2, 3), DONE)
    double.on(PATH, script)
    tropilla, book = await noted(gateway, double)
    assert (await tropilla.chat(stream=stream)).status == 200
    assert book.said == ["begun", "enter", "over"]
    one = book.last
    assert (one.method, one.path, one.dialect) == ("POST", PATH, "openai_chat")
    assert (one.model, one.upstream, one.stream) == ("m", double.url, stream)
    assert (one.prompt, one.written, one.cached, one.estimated) == (7, 2, 3, False)
    assert (one.status, one.finish, one.attempts, one.problem) == (200, "length", 1, None)
    assert one.first is not None
    assert one.took is not None
    assert 0 < one.first <= one.took


@pytest.mark.parametrize("stream", [False, True], ids=["whole", "stream"])
async def test_nobody_hears_the_end_before_the_books_have_it(
    gateway: Serve, double: Double, *, stream: bool
) -> None:
    double.on(PATH, streams(*told("Hi")))
    tropilla, book = await noted(gateway, double)
    book.open.clear()
    raw = await tropilla.connect()
    await raw.post(PATH, CHAT | {"stream": stream})
    if stream:
        await raw.see(b"Hi")
    await tropilla.has(lambda: "enter" in book.said)
    assert b"[DONE]" not in raw._held
    assert b"finish_reason" not in raw._held.partition(b"Hi")[2].partition(b"\n\n")[2]
    book.open.set()
    assert (await raw.answer()).status == 200


async def test_who_leaves_is_over_without_an_entry(gateway: Serve, double: Double) -> None:
    tropilla, book = await noted(gateway, double)
    raw = await tropilla.connect()
    await raw.post(PATH, CHAT | {"stream": True})
    exchange = await double.arrives()
    await exchange.head()
    await exchange.send(chunk("Hello"))
    await raw.see(b"Hello")
    raw.leave()
    await tropilla.has(lambda: "over" in book.said)
    assert book.said == ["begun", "over"]
    assert book.last.cancelled
    assert (book.last.written, book.last.estimated) == (1, True)


async def test_a_refusal_is_entered_with_its_problem(gateway: Serve, double: Double) -> None:
    tropilla, book = await noted(gateway, double)
    assert (await tropilla.chat(model="nobody")).status == 404
    assert book.said == ["begun", "enter", "over"]
    assert book.last.problem is not None
    assert (book.last.problem.kind, book.last.status, book.last.upstream) == (
        "unknown_model", 404, "",
    )  # fmt: skip


async def test_a_stream_that_breaks_off_has_the_problem_and_what_it_took(
    gateway: Serve, double: Double
) -> None:
    double.on(PATH, breaks(chunk("Hello")))
    tropilla, book = await noted(gateway, double, failover=False)
    assert (await tropilla.chat(stream=True)).status == 200
    assert book.said == ["begun", "enter", "over"]
    assert book.last.problem is not None
    assert book.last.problem.kind == "upstream_failed"
    assert (book.last.status, book.last.written, book.last.finish) == (200, 1, None)


async def test_a_second_try_is_counted(gateway: Serve, doubles: Start) -> None:
    bad, good = await doubles(), await doubles()
    bad.on(PATH, resets)
    good.on(PATH, streams(*told("Hi")))
    tropilla, book = await noted(gateway, bad, good)
    while book.last.attempts < 2 if book.calls else True:
        assert (await tropilla.chat()).status == 200
    assert (book.last.upstream, book.last.status) == (good.url, 200)
