"""A Hugging Face hub on this machine, which serves what a test gives it, as badly as it says.

It sends whoever wants a file to another server, as the real one does.
"""

from __future__ import annotations

import hashlib
import threading
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from http.server import BaseHTTPRequestHandler, ThreadingHTTPServer
from typing import Any

import msgspec

COMMIT = "0123456789abcdef" * 2 + "01234567"


class Hub:
    """What it has, how it behaves, and what it was asked."""

    def __init__(self) -> None:
        self.url = ""
        self.elsewhere = ""
        self.repos: dict[str, dict[str, bytes]] = {}
        self.refuses: tuple[int, dict[str, str]] | None = None
        self.refused = ""
        """What is in the paths that it refuses."""
        self.listing: Callable[[dict[str, Any]], Any] = lambda told: told
        self.cuts: list[int] = []
        """After so many bytes the answers end, one after the other."""
        self.ranges = True
        self.tampers: Callable[[bytes], bytes] = lambda data: data
        self.asked: list[tuple[str, str, dict[str, str]]] = []
        """Who was asked, for what, with which headers."""

    def listed(self, repo: str) -> Any:
        """What the hub tells of a repository."""
        siblings = []
        for name, data in self.repos[repo].items():
            git = hashlib.sha1(b"blob %d\0" % len(data) + data).hexdigest()
            one: dict[str, Any] = {"rfilename": name, "size": len(data), "blobId": git}
            if name.endswith(".gguf"):
                digest = hashlib.sha256(data).hexdigest()
                one["lfs"] = {"sha256": digest, "size": len(data), "pointerSize": 134}
            siblings.append(one)
        return self.listing({"id": repo, "sha": COMMIT, "siblings": siblings})

    def fetched(self) -> list[str | None]:
        """The ranges of the files that were asked for elsewhere."""
        return [headers.get("range") for who, _, headers in self.asked if who == "elsewhere"]


def _handler(hub: Hub, who: str) -> type[BaseHTTPRequestHandler]:
    class Handler(BaseHTTPRequestHandler):
        def do_GET(self) -> None:
            headers = {name.lower(): value for name, value in self.headers.items()}
            hub.asked.append((who, self.path, headers))
            if hub.refuses is not None and hub.refused in self.path:
                self.answer(hub.refuses[0], hub.refuses[1], b"{}")
                return
            if who == "elsewhere":
                repo, _, name = self.path.strip("/").partition("?")
                self.give(hub.tampers(hub.repos[repo][name]), headers.get("range"))
                return
            api = self.path.removeprefix("/api/models/").removesuffix("/revision/main?blobs=true")
            if api in hub.repos:
                self.answer(200, {}, msgspec.json.encode(hub.listed(api)))
                return
            repo, _, name = self.path.strip("/").partition(f"/resolve/{COMMIT}/")
            if name in hub.repos.get(repo, {}):
                self.answer(302, {"Location": f"{hub.elsewhere}/{repo}?{name}"}, b"")
                return
            self.answer(404, {"X-Error-Code": "RepoNotFound"}, b"{}")

        def give(self, data: bytes, wanted: str | None) -> None:
            start = int(wanted.removeprefix("bytes=").rstrip("-")) if wanted and hub.ranges else 0
            self.send_response(206 if start else 200)
            self.send_header("Content-Length", str(len(data) - start))
            self.end_headers()
            self.wfile.write(data[start:][: hub.cuts.pop(0) if hub.cuts else None])
            self.close_connection = True

        def answer(self, status: int, headers: dict[str, str], body: bytes) -> None:
            self.send_response(status)
            for name, value in headers.items():
                self.send_header(name, value)
            self.send_header("Content-Length", str(len(body)))
            self.end_headers()
            self.wfile.write(body)

        def log_message(self, *_: object) -> None:
            """Says nothing."""

    return Handler


@contextmanager
def hub() -> Iterator[Hub]:
    """A hub that runs."""
    it = Hub()
    with (
        ThreadingHTTPServer(("127.0.0.1", 0), _handler(it, "hub")) as front,
        ThreadingHTTPServer(("127.0.0.1", 0), _handler(it, "elsewhere")) as back,
    ):
        it.url = f"http://127.0.0.1:{front.server_port}"
        it.elsewhere = f"http://127.0.0.1:{back.server_port}"
        for server in (front, back):
            threading.Thread(target=server.serve_forever, args=(0.05,), daemon=True).start()
        try:
            yield it
        finally:
            front.shutdown()
            back.shutdown()
