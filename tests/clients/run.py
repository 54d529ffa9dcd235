"""Tries real OpenAI SDKs on a real gateway: `make clients`.

Each client is a script in an environment of its own. It is told the addresses in its environment,
and prints a line for its version and one for each check: `version 3.54.0`, `ok NAME`,
`FAIL NAME: why`.
"""

from __future__ import annotations

import http.client
import os
import re
import shutil
import socket
import subprocess
import sys
import threading
import time
import urllib.error
import urllib.request
from collections.abc import Iterator
from contextlib import contextmanager
from dataclasses import dataclass, field
from http.server import BaseHTTPRequestHandler, ThreadingHTTPServer
from pathlib import Path

ROOT = Path(__file__).parents[2]
HERE = ROOT / "tests" / "clients"
ENVIRONMENTS = ROOT / ".venvs"
KEY = "key-of-the-clients"
START_SECONDS = 60.0
CLIENT_SECONDS = 180.0
OLDEST_NODE = 20
HOP_BY_HOP = {"connection", "content-length", "date", "server", "transfer-encoding"}
BUSY = (
    b'{"error": {"message": "Busy.", "type": "server_error", "param": null,'
    b' "code": "server_is_overloaded"}}'
)


@dataclass(frozen=True)
class Client:
    """An SDK, and how to start the script that tries it."""

    name: str
    folder: str
    """Of its environment, below `.venvs`."""
    script: str
    """Below `tests/clients`."""

    @property
    def is_node(self) -> bool:
        return self.script.endswith(".mjs")

    def command(self) -> list[str]:
        home = ENVIRONMENTS / self.folder
        if not self.is_node:
            return [str(home / "bin" / "python"), str(HERE / self.script)]
        # Node looks for packages beside the script, not where it is started.
        return ["node", str(shutil.copy(HERE / self.script, home))]


CLIENTS = [
    Client("openai (Python) 2.x", "openai2", "openai_python.py"),
    Client("openai (Python) 3.x", "openai3", "openai_python.py"),
    Client("openai (Node) 6.x", "node-v6", "openai_node/main.mjs"),
    Client("openai (Node) 7.x", "node-v7", "openai_node/main.mjs"),
]


@dataclass
class Result:
    """What became of one client."""

    client: Client
    version: str = "?"
    passed: list[str] = field(default_factory=list)
    failed: list[str] = field(default_factory=list)
    skipped: str = ""


def say(text: str = "") -> None:
    sys.stdout.write(f"{text}\n")
    sys.stdout.flush()


@contextmanager
def gateway() -> Iterator[str]:
    """A real `tropilla serve` on its own engine: its base URL, once it is healthy.

    Raises:
        RuntimeError: it did not come up.
    """
    command = [str(ROOT / ".venv" / "bin" / "tropilla"), "serve", "--port", "0", "--api-key", KEY]
    deadline = time.monotonic() + START_SECONDS
    process = subprocess.Popen(
        command, stdout=subprocess.PIPE, stdin=subprocess.DEVNULL, text=True, cwd=ROOT
    )
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
        _wait_for_health(found[1], process, deadline)
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


def _wait_for_health(base: str, process: subprocess.Popen[str], deadline: float) -> None:
    while time.monotonic() < deadline and process.poll() is None:
        try:
            with urllib.request.urlopen(f"{base}/health", timeout=5) as answer:
                if answer.status == 200:
                    return
        except (urllib.error.URLError, OSError):
            time.sleep(0.05)
    raise RuntimeError(f"{base}/health did not become 200.")


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


@contextmanager
def closed() -> Iterator[str]:
    """An address that refuses connections: a port that is taken, and not listened on."""
    with socket.socket() as taken:
        taken.bind(("127.0.0.1", 0))
        yield f"http://127.0.0.1:{taken.getsockname()[1]}"


def why_no_node() -> str:
    """Why the Node clients cannot be tried here; nothing if they can."""
    if not (shutil.which("node") and shutil.which("npm")):
        return "node and npm are not on this machine"
    told = subprocess.run(["node", "--version"], capture_output=True, text=True, check=True).stdout
    if int(told.lstrip("v").split(".")[0]) < OLDEST_NODE:
        return f"node {told.strip()} is older than {OLDEST_NODE}"
    return ""


def try_client(client: Client, base: str) -> Result:
    result = Result(client)
    if client.is_node and (why := why_no_node()):
        result.skipped = why
        return result
    with flaky(base) as unsteady, closed() as refusing:
        environment = {
            **os.environ,
            "TROPILLA_BASE": f"{base}/v1",
            "TROPILLA_FLAKY": f"{unsteady}/v1",
            "TROPILLA_CLOSED": f"{refusing}/v1",
            "TROPILLA_KEY": KEY,
            "TROPILLA_MODEL": "tropilla-tiny",
            "NO_PROXY": "127.0.0.1",
            "no_proxy": "127.0.0.1",
        }
        try:
            done = subprocess.run(
                client.command(), env=environment, stdin=subprocess.DEVNULL,
                stdout=subprocess.PIPE, text=True, timeout=CLIENT_SECONDS, check=False,
            )  # fmt: skip
        except (OSError, subprocess.TimeoutExpired) as error:
            result.failed.append(f"the script: {error}")
            return result
    for line in done.stdout.splitlines():
        word, _, rest = line.partition(" ")
        if word == "version":
            result.version = rest
        elif word == "ok":
            result.passed.append(rest)
        elif word == "FAIL":
            result.failed.append(rest)
    if done.returncode and not result.failed:
        result.failed.append(f"the script: ended with {done.returncode}, see above")
    if not result.passed and not result.failed:
        result.failed.append("the script: checked nothing")
    return result


def show(results: list[Result]) -> None:
    say(f"{'client':<22}{'version':<10}checks passed")
    for result in results:
        total = len(result.passed) + len(result.failed)
        text = (
            f"skipped: {result.skipped}" if result.skipped else f"{len(result.passed)} of {total}"
        )
        say(f"{result.client.name:<22}{result.version:<10}{text}")
        for reason in result.failed:
            say(f"  FAIL {reason}")


def main() -> int:
    """All clients, or those whose folders are named."""
    chosen = [one for one in CLIENTS if one.folder in sys.argv[1:]] if sys.argv[1:] else CLIENTS
    if not chosen:
        say(f"No such client. There are: {', '.join(one.folder for one in CLIENTS)}")
        return 2
    try:
        with gateway() as base:
            results = [try_client(client, base) for client in chosen]
    except RuntimeError as error:
        say(str(error))
        return 1
    show(results)
    return 1 if any(result.failed for result in results) else 0


if __name__ == "__main__":
    raise SystemExit(main())
