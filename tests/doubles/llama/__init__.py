"""Doubles of llama.cpp's server, from b1496 (November 2023) to b4300 (December 2024).

`llama(build)` runs one. It speaks HTTP as that build did, in threads of its own, and says what
`says` holds, a piece for a token; `Llama` is what a test tells it and sees of it. Each behaviour
has beside it the build in which it came or went. They were read in the server's source of twelve
days: 2023-11-07 (b1496), 2024-01-21 (about b1937), 2024-03-09 (b2378), 03-15 (b2431), 03-31
(b2586), 04-09 (b2645), May (b2800), 05-24 (b2998), July (b3340), August (b3648), November (b4027)
and 2024-12-09 (b4295). Where only two of these bound a change the text says so.
"""

from __future__ import annotations

import functools
from collections.abc import Iterator
from contextlib import contextmanager, suppress
from http.server import ThreadingHTTPServer
from socket import socket
from threading import Thread
from typing import Any

from doubles.llama import pages
from doubles.llama.chat import chat
from doubles.llama.control import DEADLINE, Asked, Llama
from doubles.llama.native import NAME, PATH, complete, infill
from doubles.llama.wire import Call, Route, reset
from doubles.llama.words import SEED_IDS, SEED_PROMPT

__all__ = [
    "BUILDS", "DEADLINE", "NAME", "PATH", "SEED_IDS", "SEED_PROMPT", "Asked", "Llama", "llama",
]  # fmt: skip

BUILDS = (1496, 1915, 2400, 3000, 4300)
"""One of each generation."""

_METHODS = ("GET", "POST", "OPTIONS", "PUT", "DELETE")
_ROUTES = (
    Route("GET", "/", pages.page),
    Route("GET", "/index.js", pages.page, until=3600),
    Route("GET", "/completion.js", pages.page, until=3600),
    Route("GET", "/json-schema-to-grammar.mjs", pages.page, until=3600),
    Route("GET", "/health", pages.health, since=1809),
    Route("GET", "/props", pages.props),
    Route("POST", "/props", pages.change_props, since=3898),
    Route("GET", "/model.json", pages.model, until=2084),
    Route("GET", "/v1/models", pages.models, since=1561),
    Route("GET", "/models", pages.models, since=3900),
    Route("GET", "/slots", pages.slots, since=2181),
    Route("GET", "/metrics", pages.metrics, since=2258),
    Route("POST", "/completion", complete),
    Route("POST", "/completions", complete, since=2358),
    Route("POST", "/v1/completions", complete, since=2358, until=4402),
    Route("POST", "/infill", infill),
    Route("POST", "/v1/chat/completions", chat, since=1561),
    Route("POST", "/chat/completions", chat, since=2284),
    Route("POST", "/tokenize", pages.tokenize),
    Route("POST", "/detokenize", pages.detokenize),
    Route("POST", "/embedding", pages.embedding),
    Route("POST", "/embeddings", pages.embedding, since=2369),
    Route("POST", "/v1/embeddings", pages.embedding, since=2004),
    Route("POST", "/rerank", pages.rerank, since=3838),
    Route("POST", "/reranking", pages.rerank, since=3838),
    Route("POST", "/v1/rerank", pages.rerank, since=3838),
    Route("POST", "/v1/reranking", pages.rerank, since=3838),
)


@contextmanager
def llama(build: int, **settings: Any) -> Iterator[Llama]:
    """A server of a build that runs; the settings are fields of `Llama`."""
    double = Llama(build, **settings)
    methods = {f"do_{method}": Call.serve for method in _METHODS}
    connections: set[socket] = set()
    told = {"double": double, "routes": _ROUTES, "open": connections}
    call = type("Call", (Call,), told | methods)
    server = ThreadingHTTPServer(("127.0.0.1", 0), call)
    server.daemon_threads = False  # they are waited for
    double.port = server.server_address[1]
    thread = Thread(target=functools.partial(server.serve_forever, poll_interval=0.01))
    thread.start()
    try:
        yield double
    finally:
        server.shutdown()
        thread.join()
        double.ending = True
        for connection in list(connections):
            reset(connection)
        with suppress(OSError):
            server.server_close()
