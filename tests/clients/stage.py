"""What the clients talk to: a real gateway, real engines behind it, and servers that misbehave.

The gateway is `tropilla serve` with a config of its own. Beside the tiny model it has an embedder,
and models whose servers refuse, break off, or say nothing: every class of error is had from them.
"""

from __future__ import annotations

import asyncio
import http.client
import re
import socket
import subprocess
import threading
import time
import urllib.error
import urllib.request
from collections import Counter
from collections.abc import Callable, Coroutine, Iterator
from contextlib import ExitStack, contextmanager, suppress
from http.server import BaseHTTPRequestHandler, ThreadingHTTPServer
from pathlib import Path
from typing import Any, TypeVar

import msgspec

from doubles.upstream import (
    DONE,
    USAGE,
    Double,
    Exchange,
    Script,
    answers,
    breaks,
    chunk,
    event,
    refuses,
    streams,
    told,
)
from tropilla.config import TINY_MODEL
from tropilla.upstream.engine import Engine, EngineOptions

ROOT = Path(__file__).parents[2]
KEY = "key-of-the-clients"
MODEL = "tropilla-tiny"
ALIAS = "herd/tiny"
MAX_BODY = 1_000_000
START_SECONDS = 60.0
HOP_BY_HOP = {"connection", "content-length", "date", "server", "transfer-encoding"}
BUSY = (
    b'{"error": {"message": "Busy.", "type": "server_error", "param": null,'
    b' "code": "server_is_overloaded"}}'
)

T = TypeVar("T")


class Loop:
    """An event loop in a thread: the engines' output is read while the clients run."""

    def __init__(self) -> None:
        self._loop = asyncio.new_event_loop()
        threading.Thread(target=self._loop.run_forever, daemon=True).start()

    def run(self, work: Coroutine[Any, Any, T]) -> T:
        """Do it there, and wait for it."""
        return asyncio.run_coroutine_threadsafe(work, self._loop).result(START_SECONDS)

    def stop(self) -> None:
        """End the loop."""
        self._loop.call_soon_threadsafe(self._loop.stop)


@contextmanager
def engine(loop: Loop, options: EngineOptions) -> Iterator[str]:
    """A llama.cpp: its address, once it serves."""

    async def make() -> Engine:
        return Engine(options)

    one = loop.run(make())
    try:
        loop.run(one.start())
        yield one.address
    finally:
        loop.run(one.stop())


# What the servers that misbehave do with a chat.


def limited() -> Script:
    """The first time it hears a text it has no time; it says when to come again."""
    heard: set[str] = set()

    async def script(exchange: Exchange) -> None:
        text = exchange.json["messages"][-1]["content"]
        if text in heard:
            await exchange.stream(*told("Here", " again"))
            return
        heard.add(text)
        error = {"message": "Too many.", "type": "rate_limit_error", "code": None}
        body = msgspec.json.encode({"error": error})
        await exchange.whole(429, body, "application/json", "Retry-After: 1")

    return script


def broken() -> Script:
    """Each refusal tells how often it heard that text."""
    heard: Counter[str] = Counter()

    async def script(exchange: Exchange) -> None:
        text = exchange.json["messages"][-1]["content"]
        heard[text] += 1
        await refuses(500, f"Out of order, {heard[text]}.", "server_error")(exchange)

    return script


async def silent(exchange: Exchange) -> None:
    """Take the request, and say nothing until the gateway leaves."""
    await exchange.gone.wait()


async def endless(exchange: Exchange) -> None:
    """Write until the gateway leaves; meanwhile a slot is busy.

    One that never leaves gets an end, so that its check fails.
    """
    exchange.server.busy += 1
    try:
        await exchange.head()
        for _ in range(2_000):
            await exchange.send(chunk(" word"))
            with suppress(TimeoutError):
                await asyncio.wait_for(exchange.gone.wait(), 0.01)
                return
        for piece in (chunk(reason="length"), USAGE, DONE):
            await exchange.send(piece)
        await exchange.end()
    finally:
        exchange.server.busy -= 1


def called(arguments: str, **more: Any) -> bytes:
    """A piece of a call."""
    call = {"index": 0, "function": {"arguments": arguments, **more}}
    if more:
        call |= {"id": "call_1", "type": "function"}
    choice = {"index": 0, "delta": {"tool_calls": [call]}, "finish_reason": None}
    return event({"choices": [choice]})


def caller() -> Script:
    """A model that asks for the weather in Rome, whatever it hears."""
    pieces = called("", name="weather"), called('{"ci'), called('ty":"Rome"}')
    return streams(*pieces, chunk(reason="tool_calls"), USAGE, DONE)


SCRIPTS: dict[str, Callable[[], Script]] = {
    "limited": limited,
    "broken": broken,
    "cut": lambda: breaks(chunk("Once"), chunk(" upon")),
    "silent": lambda: silent,
    "endless": lambda: endless,
    "caller": caller,
    "odd": lambda: answers(200, b"<html>It works!</html>", "text/html"),
}


@contextmanager
def misbehaving(loop: Loop, name: str) -> Iterator[str]:
    """A server of one model, `name`, which it serves as `SCRIPTS` says."""

    async def make() -> Double:
        double = Double(name)
        double.on("/v1/chat/completions", SCRIPTS[name]())
        await double.start()
        return double

    one = loop.run(make())
    try:
        yield one.url
    finally:
        loop.run(one.stop())


@contextmanager
def closed() -> Iterator[str]:
    """An address that refuses connections: a port that is taken, and not listened on."""
    with socket.socket() as taken:
        taken.bind(("127.0.0.1", 0))
        yield f"http://127.0.0.1:{taken.getsockname()[1]}"


@contextmanager
def gateway(folder: Path) -> Iterator[str]:
    """A real `tropilla serve` with all of these: its base URL, once it is ready.

    Raises:
        RuntimeError: it did not come up.
    """
    with ExitStack() as stack:
        loop = Loop()
        stack.callback(loop.stop)
        tiny = EngineOptions(model=TINY_MODEL, alias=MODEL)
        embedder = EngineOptions(model=TINY_MODEL, alias="embedder", embedding=True)
        models: dict[str, Any] = {
            MODEL: {"upstreams": stack.enter_context(engine(loop, tiny)), "aliases": [ALIAS]},
            "embedder": stack.enter_context(engine(loop, embedder)),
            "down": stack.enter_context(closed()),
        }
        for name in SCRIPTS:
            url = stack.enter_context(misbehaving(loop, name))
            models[name] = url
        # Only of this one is silence a failure, however busy the machine is.
        models["silent"] = {"upstreams": [{"url": models["silent"], "timeouts": {"idle": 1}}]}
        config = folder / "tropilla.yaml"
        # JSON is YAML.
        config.write_bytes(msgspec.json.encode({"models": models, "max_body": MAX_BODY}))
        with serve("--config", str(config)) as base:
            yield base


@contextmanager
def serve(*arguments: str) -> Iterator[str]:
    """`tropilla serve`: its base URL, once it serves all that it can."""
    command = [str(ROOT / ".venv" / "bin" / "tropilla"), "serve", "--port", "0", "--api-key", KEY]
    deadline = time.monotonic() + START_SECONDS
    process = subprocess.Popen(
        [*command, *arguments],
        stdout=subprocess.PIPE, stdin=subprocess.DEVNULL, text=True, cwd=ROOT,
    )  # fmt: skip
    # A gateway that prints nothing must not hold us for ever: its end ends the reading.
    watchdog = threading.Timer(START_SECONDS, process.kill)
    watchdog.start()
    try:
        assert process.stdout is not None
        found = None
        for line in process.stdout:
            if found := re.search(r"^Tropilla \S+ listens on (http://\S+:\d+)/v1", line):
                break
        if found is None:
            raise RuntimeError("`tropilla serve` printed no address, see above.")
        drain = threading.Thread(target=process.stdout.read, daemon=True)
        drain.start()
        _wait_until_ready(found[1], process, deadline)
        watchdog.cancel()
        yield found[1]
        if process.poll() is not None:
            raise RuntimeError(f"The gateway ended by itself, with {process.returncode}.")
    finally:
        watchdog.cancel()
        process.terminate()
        try:
            process.wait(15)
        except subprocess.TimeoutExpired:
            process.kill()
            process.wait()


def _wait_until_ready(base: str, process: subprocess.Popen[str], deadline: float) -> None:
    request = urllib.request.Request(
        f"{base}/v1/models", headers={"Authorization": f"Bearer {KEY}"}
    )
    states: dict[str, str] = {}
    while time.monotonic() < deadline and process.poll() is None:
        try:
            with urllib.request.urlopen(request, timeout=5) as answer:
                cards = msgspec.json.decode(answer.read())["data"]
        except (urllib.error.URLError, OSError):
            cards = []
        states = {card["id"]: card["status"]["value"] for card in cards}
        if states and all(state == "loaded" for name, state in states.items() if name != "down"):
            return
        time.sleep(0.05)
    raise RuntimeError(f"Not all models of {base} came up: {states}.")


@contextmanager
def flaky(upstream: str) -> Iterator[str]:
    """In front of the gateway: every first try gets 503 and `retry-after-ms`, the next passes.

    `x-attempts` of an answer says how many tries it took.
    """
    host, port = upstream.removeprefix("http://").split(":")
    tries = 0

    class Flaky(BaseHTTPRequestHandler):
        protocol_version = "HTTP/1.1"

        def do_POST(self) -> None:
            nonlocal tries
            tries += 1
            body = self.rfile.read(int(self.headers["content-length"]))
            if tries % 2:
                headers = {"content-type": "application/json", "retry-after-ms": "20"}
                self.answer(503, headers, BUSY)
                return
            connection = http.client.HTTPConnection(host, int(port), timeout=30)
            try:
                connection.request("POST", self.path, body, dict(self.headers))
                got = connection.getresponse()
                self.answer(got.status, dict(got.getheaders()), got.read())
            finally:
                connection.close()

        def answer(self, status: int, headers: dict[str, str], body: bytes) -> None:
            self.send_response(status)
            for name, value in headers.items():
                if name.lower() not in HOP_BY_HOP:
                    self.send_header(name, value)
            self.send_header("x-attempts", str(tries))
            self.send_header("content-length", str(len(body)))
            self.end_headers()
            self.wfile.write(body)

        def log_message(self, *_: object) -> None:
            """Says nothing."""

    class Server(ThreadingHTTPServer):
        def handle_error(self, *_: object) -> None:
            """A client that left its kept-alive connection is no news."""

    with Server(("127.0.0.1", 0), Flaky) as server:
        threading.Thread(target=server.serve_forever, daemon=True).start()
        try:
            yield f"http://127.0.0.1:{server.server_port}"
        finally:
            server.shutdown()
