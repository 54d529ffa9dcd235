"""A server that says anything: answers, halves of them, pages, errors, lines without an end."""

from __future__ import annotations

import asyncio
import random

from doubles.upstream import (
    DONE,
    LOADING,
    Double,
    Exchange,
    Script,
    answers,
    breaks,
    chunk,
    closes,
    native_told,
    refuses,
    resets,
    streams,
    told,
)

_PATHS = ("/v1/chat/completions", "/v1/completions", "/completion", "/infill", "/v1/embeddings")
_ENDLESS = 2_000_000


async def line_without_end(exchange: Exchange) -> None:
    """One event, and no end of it."""
    await exchange.head()
    await exchange.send(chunk("Hello") + b"data: ")
    while exchange.written < _ENDLESS:
        await exchange.send(b"x" * 100_000)
    exchange.reset()


async def drips(exchange: Exchange) -> None:
    """Byte by byte."""
    await exchange.head()
    for byte in b"".join(told("Once", " upon")):
        await exchange.send(bytes((byte,)))
        await asyncio.sleep(0)
    await exchange.end()


async def raw(exchange: Exchange) -> None:
    """What is no answer at all."""
    await exchange.raw(b"SSH-2.0-OpenSSH_9.6\r\n\r\n")


async def too_short(exchange: Exchange) -> None:
    """Less than it says."""
    await exchange.head(200, "application/json", "Content-Length: 9", chunked=False)
    await exchange.raw(b"{}")
    exchange.reset()


SCRIPTS: list[Script] = [
    streams(*told("Once", " upon")),
    streams(*native_told("Once", " upon")),
    streams(chunk("Once"), DONE),
    streams(chunk("Once")),
    streams(b'data: {"choices": [{"delta": {"content": "H\xff'),
    streams(b'data: {"error": {"message": "Oh no", "code": 500}}\n\n'),
    streams(),
    breaks(chunk("Once"), chunk(" upon")),
    answers(200, b"<html>It works!</html>", "text/html"),
    answers(200, b'{"choices": [{"message": {"content": "x"'),
    answers(502, b"<html>Bad Gateway</html>", "text/html"),
    refuses(400, "What?", "invalid_request_error"),
    refuses(429, "Too many.", "rate_limit_error"),
    refuses(500, "Out of order.", "server_error"),
    LOADING,
    resets,
    closes,
    line_without_end,
    drips,
    raw,
    too_short,
]


def odd(model: str, seed: int = 1) -> Double:
    """A server of this model that says any of these; the same seed says the same."""
    double = Double(model, slots=16)
    chance = random.Random(seed)

    async def says(exchange: Exchange) -> None:
        # A server that is asked for hours cannot keep it all.
        double.requests.clear()
        double.probes.clear()
        await chance.choice(SCRIPTS)(exchange)

    for path in _PATHS:
        double.on(path, says)
    return double
