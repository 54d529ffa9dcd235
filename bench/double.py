"""An upstream that costs next to nothing: bytes made beforehand, each token a write of its own.

It answers as a llama-server does where a gateway asks: chat and native completions, streamed or
whole, and what a probe looks at. `python -m bench.double PORT TOKENS INTERVAL`: the interval
between tokens is in seconds; 0 sends all at once.
"""

from __future__ import annotations

import asyncio
import sys
from functools import cache
from typing import cast

import msgspec
import uvloop

SLOTS = 4096
_STREAM = (
    b"HTTP/1.1 200 OK\r\nContent-Type: text/event-stream\r\nTransfer-Encoding: chunked\r\n"
    b"Server: llama.cpp\r\n\r\n"
)
_HEAD = {"id": "chatcmpl-bench", "created": 1, "model": "m", "system_fingerprint": "b11549-bench"}
_TIMINGS = {"cache_n": 8, "prompt_n": 4, "prompt_ms": 1.0, "predicted_ms": 10.0}


def _chunk(data: object) -> bytes:
    event = b"data: %b\n\n" % (data if isinstance(data, bytes) else msgspec.json.encode(data))
    return b"%x\r\n%b\r\n" % (len(event), event)


def _whole(data: object, status: int = 200) -> bytes:
    body = msgspec.json.encode(data)
    head = b"HTTP/1.1 %d OK\r\nContent-Type: application/json\r\nContent-Length: %d\r\n\r\n"
    return head % (status, len(body)) + body


_WORDS = (" llama", " of", " the", " high", " plains", ",", "\n", ' "herd"', " café")


class _Answers:
    """The bytes of one form of answer."""

    def __init__(
        self, first: list[bytes], tokens: list[bytes], last: list[bytes], whole: bytes
    ) -> None:
        self.first = _STREAM + b"".join(first)
        self.tokens = tokens
        self.last = b"".join(last) + b"0\r\n\r\n"
        self.whole = whole


def _chat(tokens: int) -> _Answers:
    def choice(delta: object, reason: str | None = None) -> dict[str, object]:
        choices = [{"index": 0, "delta": delta, "finish_reason": reason}]
        return _HEAD | {"object": "chat.completion.chunk", "choices": choices}

    usage = {"prompt_tokens": 12, "completion_tokens": tokens, "total_tokens": 12 + tokens}
    end = _HEAD | {"object": "chat.completion.chunk", "choices": [], "usage": usage}
    words = [_WORDS[number % len(_WORDS)] for number in range(tokens)]
    message = {"role": "assistant", "content": "".join(words)}
    choices = [{"index": 0, "message": message, "finish_reason": "stop"}]
    return _Answers(
        [_chunk(choice({"role": "assistant", "content": None}))],
        [_chunk(choice({"content": word})) for word in words],
        [_chunk(choice({}, "stop")), _chunk(end | {"timings": _TIMINGS}), _chunk(b"[DONE]")],
        _whole(_HEAD | {"object": "chat.completion", "choices": choices, "usage": usage}),
    )


def _native(tokens: int) -> _Answers:
    told = {"tokens_predicted": tokens, "tokens_evaluated": 12, "timings": _TIMINGS, "stop": True}
    end = {"index": 0, "content": "", "stop_type": "eos", "stopping_word": ""} | told
    words = [_WORDS[number % len(_WORDS)] for number in range(tokens)]
    chunks = [
        {
            "index": 0, "content": word, "tokens": [100 + number], "stop": False, "id_slot": -1,
            "tokens_predicted": number + 1, "tokens_evaluated": 12,
        }
        for number, word in enumerate(words)
    ]  # fmt: skip
    whole = end | {"content": "".join(words), "model": "m"}
    return _Answers([], [_chunk(one) for one in chunks], [_chunk(end)], _whole(whole))


@cache
def answers(tokens: int) -> tuple[_Answers, _Answers]:
    """A chat's, and a native one's."""
    return _chat(tokens), _native(tokens)


_TOLD = {
    b"/health": _whole({"status": "ok"}),
    b"/v1/models": _whole({"object": "list", "data": [{"id": "m", "object": "model"}]}),
    b"/props": _whole({
        "default_generation_settings": {"n_ctx": 4096},
        "total_slots": SLOTS,
        "build_info": "b11549-bench",
    }),
}  # fmt: skip


class _Connection(asyncio.Protocol):
    def __init__(self, tokens: int, interval: float) -> None:
        self._tokens = tokens
        self._interval = interval
        self._chat, self._native = answers(tokens)
        self._transport: asyncio.Transport
        self._held = b""
        self._timer: asyncio.TimerHandle | None = None

    def connection_made(self, transport: asyncio.BaseTransport) -> None:
        self._transport = cast("asyncio.Transport", transport)

    def connection_lost(self, exc: Exception | None) -> None:
        del exc
        if self._timer is not None:
            self._timer.cancel()

    def data_received(self, data: bytes) -> None:
        self._held += data
        while (end := self._held.find(b"\r\n\r\n")) >= 0:
            head = self._held[:end].lower()
            length = 0
            if (at := head.find(b"content-length:")) >= 0:
                length = int(head[at + 15 :].split(b"\r\n", 1)[0])
            after = end + 4 + length
            if head.find(b"chunked") >= 0:
                after = self._held.find(b"0\r\n\r\n", end) + 5
            if len(self._held) < after or after < 5:
                return
            body, target = self._held[end + 4 : after], self._held.split(b" ", 2)[1]
            self._held = self._held[after:]
            self._answer(target.partition(b"?")[0], body)

    def _answer(self, path: bytes, body: bytes) -> None:
        write = self._transport.write
        if not path.endswith((b"/completions", b"/completion")):
            write(_TOLD.get(path) or _whole({"error": {"code": 404, "message": "what?"}}, 404))
            return
        told = self._chat if path.endswith(b"/chat/completions") else self._native
        if b'"stream":true' not in body and b'"stream": true' not in body:
            write(told.whole)
        elif not self._interval:
            write(told.first + b"".join(told.tokens) + told.last)
        else:
            write(told.first)
            loop = asyncio.get_running_loop()
            self._tell(told, self._tokens, loop.time() + self._interval, loop)

    def _tell(self, told: _Answers, left: int, at: float, loop: asyncio.AbstractEventLoop) -> None:
        def tell() -> None:
            token = told.tokens[-left]
            self._transport.write(token if left > 1 else token + told.last)
            if left > 1:
                self._tell(told, left - 1, at + self._interval, loop)

        self._timer = loop.call_at(at, tell)


async def _serve(port: int, tokens: int, interval: float) -> None:
    loop = asyncio.get_running_loop()
    server = await loop.create_server(
        lambda: _Connection(tokens, interval), "127.0.0.1", port, backlog=4096
    )
    await server.serve_forever()


if __name__ == "__main__":
    uvloop.run(_serve(int(sys.argv[1]), int(sys.argv[2]), float(sys.argv[3])))
