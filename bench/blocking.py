"""How long one request keeps all others waiting: `python -m bench.blocking`.

A gateway serves in this process, before an upstream that costs nothing. It is sent bodies that are
as large as they may be, of the shapes that take longest to read. For each is told how long the
loop was held by one thing, at most: in time of the CPU, so that other programs do not count. It
ends with 1 if that was over 100 ms.
"""

from __future__ import annotations

import argparse
import asyncio
import gc
import socket
import sys
import time
from collections.abc import Callable
from contextlib import suppress
from typing import Any

from rich.console import Console
from rich.table import Table

from tropilla.config import Config, UpstreamConfig
from tropilla.server.app import Gateway
from tropilla.server.http import Listener
from tropilla.upstream.fleet import Fleet

LIMIT = 100.0
"""Milliseconds."""
SIZE = Config().max_text - 1024
_CHAT, _TEXT, _NATIVE = "/v1/chat/completions", "/v1/completions", "/completion"
_RESPONSES, _VECTORS, _AFS = "/v1/responses", "/v1/embeddings", "/models/conversation"
_RANKS, _ANTHROPIC, _OLLAMA, _OLLAMA_TEXT = (
    "/v1/rerank",
    "/v1/messages",
    "/api/chat",
    "/api/generate",
)
_MESSAGE = b'{"role":"user","content":%b}'
_SAYS = b'{"max_tokens":1,"messages":['
"""How a request to Anthropic begins."""
_ANY = b'"messages":[%b],"prompt":"x","input":"x","max_tokens":1' % (_MESSAGE % b'"x"')
"""What makes a body right wherever it is sent."""


def fill(before: bytes, unit: bytes, after: bytes, most: int | None = None) -> bytes:
    """As many of these, with commas between, as there is place for."""
    room = (SIZE - len(before) - len(after)) // (len(unit) + 1)
    return before + b",".join([unit] * min(room, most or room)) + after


def words(unit: bytes, **_: Any) -> bytes:
    """A long text."""
    return b'"' + unit * ((SIZE - 4096) // len(unit)) + b'"'


def several(unit: bytes, most: int) -> bytes:
    """So many different ones; `%d` in each is its number."""
    found, size = [], 0
    for number in range(most):
        one = unit.replace(b"%d", b"%d" % number)
        size += len(one) + 1
        if size > SIZE - 4096:
            break
        found.append(one)
    return b",".join(found)


def anywhere() -> dict[str, bytes]:
    """Shapes that are sent everywhere."""
    before = b"{" + _ANY + b',"metadata":['
    units = {
        "arrays": b"[]", "objects": b"{}", "objects with a name": b'{"a":0}', "numbers": b"0",
        "long numbers": b"1" * 30, "exponents": b"0.12345678901234567890e-300", "texts": b'""',
        "true": b"true", "arrays of texts": b'["a","b"]',
    }  # fmt: skip
    found = {name: fill(before, unit, b"]}") for name, unit in units.items()}
    allowed = {"arrays": 149_000, "objects": 149_000, "objects with a name": 149_000,
               "numbers": 1_490_000, "long numbers": 1_490_000, "exponents": 1990, "texts": 149_000,
               "true": 1_490_000, "arrays of texts": 74_000}  # fmt: skip
    found |= {f"{name}, no more than may be": fill(before, units[name], b"]}", most)
              for name, most in allowed.items()}  # fmt: skip
    found["names"] = b"{" + _ANY + b"," + several(b'"%d":0', 149_000) + b"}"
    found["names within"] = b"{" + _ANY + b',"a":{' + several(b'"%d":0', 149_000) + b"}}"
    found["backslashes"] = b"{" + _ANY + b',"user":' + words(b"\\\\\\n") + b"}"
    found["quotes"] = b"{" + _ANY + b',"user":' + words(b'\\"') + b"}"
    found["escapes"] = b"{" + _ANY + b',"user":' + words(b"\\u00e9") + b"}"
    found["spaces"] = b"{" + _ANY + b" " * (SIZE - 200) + b"}"
    return found


def particular() -> list[tuple[str, str, bytes]]:
    """Shapes for one path: its lists as long as they may be, and its texts."""
    part = b'{"type":"text","text":"x"}'
    tool = b'{"type":"function","function":{"name":"f%d","parameters":{"type":"object"}}}'
    schema = b'{"type":"object","properties":{' + several(b'"p%d":{"type":"string"}', 990) + b"}}"
    enum = b'{"enum":[' + several(b'"v%d"', 4990) + b"]}"
    members = b'"properties":{' + several(b'"p%d":{"type":"string","enum":["a","b"]}', 180) + b"}"
    rich = tool.replace(b'"type":"object"}', b'"type":"object",' + members + b"}")
    own_tool = b'{"name":"f%d","input_schema":{"type":"object",' + members + b"}}"
    used = (
        b'{"role":"assistant","content":[{"type":"tool_use","id":"c%d","name":"f","input":{}}]},'
        b'{"role":"user","content":[{"type":"tool_result","tool_use_id":"c%d","content":"x"}]}'
    )
    called = (
        b'{"role":"assistant","content":"","tool_calls":[{"function":{"name":"f","arguments":{}}}]}'
    )
    long_message = _MESSAGE % (b'"%b"' % (b"x" * 1900))
    ids = b"[1,2]"
    data = b"data:image/png;base64," + b"AAAA" * (Config().max_body // 4 - 1024)
    bare = data.partition(b",")[2]
    source = b'"source":{"type":"base64","media_type":"image/png","data":"%b"}}' % bare
    pictured = b'{"role":"user","content":"x","images":[%b]}'
    picture = b'{"type":"image_url","image_url":{"url":"%b"}}' % data
    found = []
    for text, unit in (("words", b"hello world "), ("one letter", b"a"), ("accents", b"\xc3\xa9"),
                       ("JSON", b'[{\\"a\\": 1.5e3}, '), ("markup", b"<|im_end|>\\n")):  # fmt: skip
        long = words(unit)
        found += [
            (_CHAT, text, b'{"messages":[' + _MESSAGE % long + b"]}"),
            (_TEXT, text, b'{"prompt":' + long + b"}"),
            (_NATIVE, text, b'{"prompt":' + long + b"}"),
            (_RESPONSES, text, b'{"input":' + long + b"}"),
            (_VECTORS, text, b'{"input":' + long + b"}"),
            (_AFS, text, b'{"messages":[' + _MESSAGE % long + b"]}"),
            (_ANTHROPIC, text, _SAYS + _MESSAGE % long + b"]}"),
            (_OLLAMA, text, b'{"messages":[' + _MESSAGE % long + b"]}"),
            (_OLLAMA_TEXT, text, b'{"prompt":' + long + b"}"),
        ]
    return [
        *found,
        (_CHAT, "a picture", b'{"messages":[' + _MESSAGE % (b"[" + picture + b"]") + b"]}"),
        (_CHAT, "messages", fill(b'{"messages":[', _MESSAGE % b'"x"', b"]}", 4096)),
        (_CHAT, "long messages", fill(b'{"messages":[', long_message, b"]}")),
        (_CHAT, "parts", fill(b'{"messages":[{"role":"user","content":[', part, b"]}]}")),
        (_CHAT, "parts, no more than may be",
         fill(b'{"messages":[{"role":"user","content":[', part, b"]}]}", 37_000)),
        (_CHAT, "tools", b"{" + _ANY + b',"tools":[' + several(tool, 1024) + b"]}"),
        (_CHAT, "a schema", b"{" + _ANY + b',"response_format":{"type":"json_schema","json_schema":'
         b'{"name":"n","schema":' + schema + b"}}}"),
        (_CHAT, "values", b"{" + _ANY + b',"response_format":{"type":"json_schema","json_schema":'
         b'{"name":"n","schema":' + enum + b"}}}"),
        (_CHAT, "schemas of tools", b"{" + _ANY + b',"tools":[' + several(rich, 180) + b"]}"),
        (_CHAT, "calls", b'{"messages":[{"role":"assistant","tool_calls":[' + several(
            b'{"id":"c%d","type":"function","function":{"name":"f","arguments":"{}"}}', 20_000)
         + b"]}]}"),
        (_CHAT, "biases", b"{" + _ANY + b',"logit_bias":{' + several(b'"%d":1', 149_000) + b"}}"),
        (_NATIVE, "biases", fill(b'{"prompt":"x","logit_bias":[', ids, b"]}", 137_000)),
        (_NATIVE, "biases, no more than may be",
         fill(b'{"prompt":"x","logit_bias":[', ids, b"]}", 16_384)),
        (_NATIVE, "stop words", fill(b'{"prompt":"x","stop":[', b'"x"', b"]}", 137_000)),
        (_NATIVE, "a grammar", b'{"prompt":"x","grammar":"' + b"(" * 64_000 + b'"}'),
        (_NATIVE, "prompts", fill(b'{"prompt":[', b'"x"', b"]}", 16_000)),
        (_NATIVE, "token ids", fill(b'{"prompt":[', b"1", b"]}", 1_490_000)),
        (_TEXT, "token ids", fill(b'{"prompt":[', b"1", b"]}", 1_490_000)),
        (_TEXT, "lists of token ids", fill(b'{"prompt":[', ids, b"]}", 128)),
        (_VECTORS, "token ids", fill(b'{"input":[', b"1", b"]}", 1_490_000)),
        (_VECTORS, "lists of token ids",
         fill(b'{"input":[', b"[" + b"1," * 900 + b"1]", b"]}", 2048)),
        (_VECTORS, "texts", fill(b'{"input":[', b'"%b"' % (b"x" * 4000), b"]}", 2048)),
        (_RANKS, "texts", fill(b'{"query":"x","documents":[', b'"x"', b"]}", 137_000)),
        (_RESPONSES, "items", fill(b'{"input":[', _MESSAGE % b'"x"', b"]}", 4096)),
        (_AFS, "messages", fill(b'{"messages":[', _MESSAGE % b'"x"', b"]}", 4096)),
        (_ANTHROPIC, "a picture",
         _SAYS + _MESSAGE % (b'[{"type":"image",' + source + b"]") + b"]}"),
        (_ANTHROPIC, "a document",
         _SAYS + _MESSAGE % (b'[{"type":"document",' + source + b"]") + b"]}"),
        (_ANTHROPIC, "messages", fill(_SAYS, _MESSAGE % b'"x"', b"]}", 4096)),
        (_ANTHROPIC, "parts", fill(_SAYS + b'{"role":"user","content":[', part, b"]}]}", 37_000)),
        (_ANTHROPIC, "tools", b"{" + _ANY + b',"tools":[' + several(own_tool, 180) + b"]}"),
        (_ANTHROPIC, "calls", _SAYS + several(used, 2048) + b"]}"),
        (_ANTHROPIC, "parts of a system",
         fill(_SAYS + _MESSAGE % b'"x"' + b'],"system":[', part, b"]}", 37_000)),
        (_OLLAMA, "a picture", b'{"messages":[' + pictured % (b'"%b"' % bare) + b"]}"),
        (_OLLAMA, "pictures", fill(b'{"messages":[' + pictured[:-4], b'"AAAA"', b"]}]}", 149_000)),
        (_OLLAMA, "messages", fill(b'{"messages":[', _MESSAGE % b'"x"', b"]}", 4096)),
        (_OLLAMA, "tools", b"{" + _ANY + b',"tools":[' + several(rich, 180) + b"]}"),
        (_OLLAMA, "a schema", b"{" + _ANY + b',"format":' + schema + b"}"),
        (_OLLAMA, "calls", fill(b'{"messages":[', called, b"]}", 4096)),
        (_OLLAMA_TEXT, "a picture", b'{"prompt":"x","images":["%b"]}' % bare),
        (_OLLAMA_TEXT, "a context", fill(b'{"prompt":"x","context":[', b"1", b"]}", 1_490_000)),
    ]  # fmt: skip


class Clock:
    """The longest time that the loop was held, in milliseconds."""

    def __init__(self) -> None:
        self.longest = 0.0
        run: Callable[[asyncio.Handle], None] = asyncio.Handle._run

        def timed(handle: asyncio.Handle) -> None:
            began = time.thread_time()
            run(handle)
            self.longest = max(self.longest, (time.thread_time() - began) * 1000)

        setattr(asyncio.Handle, "_run", timed)  # noqa: B010 - there is no other way in


def send(port: int, path: str, body: bytes) -> bytes:
    """Ask from another thread, and hear the first line of the answer."""
    with socket.create_connection(("127.0.0.1", port)) as sock:
        head = f"POST {path} HTTP/1.1\r\nHost: t\r\nConnection: close\r\n"
        with suppress(ConnectionError):
            sock.sendall(f"{head}Content-Length: {len(body)}\r\n\r\n".encode() + body)
        told = b""
        while piece := sock.recv(65536):
            told += piece
    return told


async def measure(times: int) -> list[tuple[str, str, int, float, bytes]]:
    """Each shape, the longest time that it held the loop, and the status of its answer."""
    with socket.create_server(("127.0.0.1", 0)) as taken:
        upstream = taken.getsockname()[1]
    command = [sys.executable, "-m", "bench.double", str(upstream), "4", "0"]
    double = await asyncio.create_subprocess_exec(*command)
    sock = socket.create_server(("127.0.0.1", 0))
    config = Config(upstreams=(UpstreamConfig(url=f"http://127.0.0.1:{upstream}"),))
    fleet = Fleet(config)
    listener = Listener(Gateway(config, fleet))
    await fleet.start()
    await listener.open(sock)
    found = []
    try:
        while fleet.state() != "ready":  # noqa: ASYNC110 - another process starts
            await asyncio.sleep(0.05)
        gc.freeze()
        clock = Clock()
        cases = [(path, name, body) for name, body in anywhere().items()
                 for path in (_CHAT, _NATIVE, _RESPONSES, _VECTORS, _ANTHROPIC, _OLLAMA)
                 ] + particular()  # fmt: skip
        for path, name, body in cases:
            longest, told = 0.0, b""
            for _ in range(times):
                clock.longest = 0.0
                told = await asyncio.to_thread(send, sock.getsockname()[1], path, body)
                longest = max(longest, clock.longest)
            found.append((path, name, len(body), longest, told[9:12]))
    finally:
        await listener.close()
        await fleet.stop()
        double.kill()
        await double.wait()
    return found


def main() -> int:
    parser = argparse.ArgumentParser(description=__doc__, allow_abbrev=False)
    parser.add_argument("--times", type=int, default=2)
    found = asyncio.run(measure(parser.parse_args().times))
    table = Table("path", "shape", "KiB", "ms", "status")
    for path, name, size, longest, status in sorted(found, key=lambda one: -one[3]):
        table.add_row(path, name, f"{size >> 10}", f"{longest:.0f}", status.decode())
    Console(width=110).print(table)
    return 0 if all(one[3] <= LIMIT for one in found) else 1


if __name__ == "__main__":
    sys.exit(main())
