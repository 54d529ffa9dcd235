"""A double of llama.cpp's server at b1496 (2023-11-07, commit e9c1cecb).

The server that `api_like_OAI.py` was written for. It speaks HTTP as that server did, in threads of
its own, and writes what `says` holds, a piece for a token. Each behaviour has the build in which
it was still there, or in which it went.
"""

from __future__ import annotations

import struct
from collections.abc import Iterator
from contextlib import contextmanager, suppress
from dataclasses import dataclass, field
from http.server import BaseHTTPRequestHandler, ThreadingHTTPServer
from threading import Thread
from typing import Any

import msgspec

MODEL = "/models/TheBloke/Llama-2-7b-Chat-GGUF/llama-2-7b-chat.Q4_K_M.gguf"
NAME = "llama-2-7b-chat.Q4_K_M"
"""The model's name: no route of b1496 tells it but `/model.json`, as a path."""

SEED_PROMPT = "Nice to meet you!\n\nHuman: hi\nAssistant:"
SEED_IDS = [20103, 304, 5870, 366, 29991, 13, 13, 29950, 7889, 29901, 7251, 13, 7900, 22137, 29901]
# Recorded in the seed, with Llama 2's vocabulary; any other text is bytes to this tokenizer.
_RECORDED = {SEED_PROMPT: SEED_IDS, "Hello!": [15043, 29991], "Hello": [15043]}

_METHODS = ("GET", "POST", "OPTIONS", "PUT", "DELETE")
_FORM = "application/x-www-form-urlencoded"
_PAGES = {"/": "text/html", "/index.js": "text/javascript", "/completion.js": "text/javascript"}
_NUMBERS: dict[str, float] = {
    "n_predict": -1, "n_keep": 0, "n_probs": 0, "seed": -1, "slot_id": -1,
    "temperature": 0.8, "top_k": 40, "top_p": 0.95, "tfs_z": 1.0, "typical_p": 1.0,
    "repeat_last_n": 64, "repeat_penalty": 1.1, "presence_penalty": 0.0, "frequency_penalty": 0.0,
    "mirostat": 0, "mirostat_tau": 5.0, "mirostat_eta": 0.1,
}  # fmt: skip
_BOOLEANS = {"stream": False, "cache_prompt": False, "penalize_nl": True, "ignore_eos": False}


def tokens_of(text: str) -> list[int]:
    """The ids that `/tokenize` gives for a text (no BOS before b2815)."""
    return _RECORDED.get(text) or [byte + 3 for byte in text.encode()]


@dataclass
class Asked:
    """One request that has arrived."""

    method: str
    path: str
    headers: dict[str, str]
    raw: bytes

    @property
    def body(self) -> Any:
        """The body as JSON."""
        return msgspec.json.decode(self.raw)


@dataclass
class Llama:
    """What the server does next, and what it was asked."""

    says: list[str] = field(default_factory=lambda: [" I", "'m", " fine", "."])
    ends: str = "eos"
    """What it does once everything is said: `eos`, or `never`, which only a limit ends."""
    busy: int = 0
    """How many of the next requests find no free slot."""
    gone: set[str] = field(default_factory=set)
    """Paths that this server does not have, after all."""
    base: str = ""
    """What stands before every path, as behind a reverse proxy."""
    chat: bool = False
    """Whether it is b1561 already, the first that has OpenAI's chat."""
    asked: list[Asked] = field(default_factory=list)
    port: int = 0

    @property
    def url(self) -> str:
        """Its address, base path and all."""
        return f"http://127.0.0.1:{self.port}{self.base}"

    @property
    def paths(self) -> list[str]:
        """The paths that were posted to: everything but the probes."""
        return [one.path for one in self.asked if one.method == "POST" and one.raw != b"{"]

    def last(self, path: str = "/completion") -> Any:
        """The body of the last request for a path."""
        return next(one.body for one in reversed(self.asked) if one.path == path)

    def clear(self) -> None:
        """Be as new, but on the same port."""
        fresh = Llama()
        self.says, self.ends, self.busy = fresh.says, fresh.ends, fresh.busy
        self.gone, self.asked = fresh.gone, fresh.asked


@contextmanager
def llama(base: str = "", *, chat: bool = False) -> Iterator[Llama]:
    """A server that runs. Whoever is connected has to leave before it ends."""
    double = Llama(base=base, chat=chat)
    methods = {f"do_{method}": _Handler.serve for method in _METHODS}
    handler = type("Handler", (_Handler,), {"double": double, **methods})
    server = ThreadingHTTPServer(("127.0.0.1", 0), handler)
    server.daemon_threads = False  # they are waited for
    double.port = server.server_address[1]
    thread = Thread(target=server.serve_forever, kwargs={"poll_interval": 0.01})
    thread.start()
    try:
        yield double
    finally:
        server.shutdown()
        thread.join()
        server.server_close()


class _Refused(Exception):  # noqa: N818
    """A status of 400 and more: the error handler makes the body."""

    def __init__(self, status: int, what: str = "") -> None:
        self.status = status
        self.what = what


class _Handler(BaseHTTPRequestHandler):
    protocol_version = "HTTP/1.1"
    timeout = 5  # cpp-httplib's keep-alive
    double: Llama
    served = 0

    def log_message(self, *_: object) -> None:
        """Be silent."""

    def handle(self) -> None:
        """Serve a connection until somebody closes it, in order or not."""
        with suppress(ConnectionError):
            super().handle()

    def serve(self) -> None:
        """Answer one request of any method."""
        self.served += 1
        size = int(self.headers.get("Content-Length", 0))
        raw = self.rfile.read(size)
        headers = {name.lower(): value for name, value in self.headers.items()}
        path = self.path.removeprefix(self.double.base)
        if not self.path.startswith(self.double.base):
            path = "/nowhere"
        self.double.asked.append(Asked(self.command, path, headers, raw))
        try:
            if headers.get("content-type") == _FORM and size > 8192:
                raise _Refused(413)  # until b1647 (#4500)
            if path in self.double.gone:
                raise _Refused(404)
            self._route(path, raw)
        except _Refused as refused:
            # The error handler of b1496 runs for every status, and overwrites the body.
            if refused.status == 500:
                what = f"500 Internal Server Error\n{refused.what}"
                self._whole(500, what.encode(), "text/plain")
            elif refused.status == 400:
                self._whole(400, b"Invalid request", "text/plain")
            else:
                self._whole(404, b"File Not Found", "text/plain")

    def _route(self, path: str, raw: bytes) -> None:
        # No /health before b1809, no /v1/* before b1561, no /slots before b2181.
        match self.command, path:
            case "OPTIONS", _:
                self._whole(200, b"", "application/json")
            case "GET", "/props":  # default_generation_settings since b2067
                self._json({"user_name": "", "assistant_name": ""})
            case "GET", "/model.json":  # until b2084
                self._json(_settings(_defaults()))
            case "GET", page if page in _PAGES:
                self._whole(200, b"<html></html>", _PAGES[page])
            case "POST", "/completion" | "/infill":
                self._complete(_parsed(raw))
            case "POST", "/tokenize":
                content = _parsed(raw).get("content")
                self._json({"tokens": [] if content is None else tokens_of(content)})
            case "POST", "/detokenize":
                ids = _parsed(raw).get("tokens") or []
                self._json({"content": bytes(one - 3 for one in ids).decode("utf-8", "replace")})
            case "GET", "/v1/models" if self.double.chat:  # b1561 (#4198)
                self._json({"object": "list", "data": [{"id": NAME, "object": "model"}]})
            case "POST", "/v1/chat/completions" if self.double.chat:
                self._chat()
            case _:
                raise _Refused(404)

    def _chat(self) -> None:
        self._head(200, "text/event-stream", "Transfer-Encoding: chunked")
        for piece in (*self.double.says, None):
            delta, reason = ({}, "stop") if piece is None else ({"content": piece}, None)
            choice = {"index": 0, "delta": delta, "finish_reason": reason}
            event = {"id": "chatcmpl-x", "object": "chat.completion.chunk", "choices": [choice]}
            self._chunk(b"data: %b\n\n" % msgspec.json.encode(event))
        self._chunk(b"")  # no [DONE] before b3754

    # /completion.

    def _complete(self, body: dict[str, Any]) -> None:
        params = _params(body)
        if self.double.busy:
            self.double.busy -= 1
            if not params["stream"]:
                raise _Refused(404)  # "slot unavailable", overwritten; queued since b1915
            self._head(200, "text/event-stream", "Transfer-Encoding: chunked")
            self._chunk(b"")  # an empty stream; an `error:` line since b1542
            return
        written = _write(self.double, params)
        final = _final(written, params)
        if not params["stream"]:
            self._json(final)
            return
        self._head(200, "text/event-stream", "Transfer-Encoding: chunked")
        for piece in written.pieces:
            event = {"content": piece, "multimodal": False, "slot_id": 0, "stop": False}
            if params["n_probs"]:
                event["completion_probabilities"] = [_probability(piece)]
            self._chunk(b"data: %b\n\n" % msgspec.json.encode(event))
        self._chunk(b"data: %b\n\n" % msgspec.json.encode(final | {"content": ""}))
        self._chunk(b"")  # no [DONE], in any build

    # HTTP, as cpp-httplib has it.

    def _json(self, value: Any) -> None:
        self._whole(200, msgspec.json.encode(value), "application/json")

    def _whole(self, status: int, body: bytes, content_type: str) -> None:
        self._head(status, content_type, f"Content-Length: {len(body)}")
        self.wfile.write(body)

    def _head(self, status: int, content_type: str, length: str) -> None:
        self.close_connection = self.served == 5  # its keep-alive ends with the fifth answer
        lines = [
            f"HTTP/1.1 {status} {self.responses[status][0]}",
            "Access-Control-Allow-Headers: content-type",
            "Access-Control-Allow-Origin: *",  # echoes the Origin since b1825
            length,
            f"Content-Type: {content_type}",
            "Connection: close" if self.close_connection else "Keep-Alive: timeout=5, max=5",
            "Server: llama.cpp",
        ]
        self.wfile.write(("\r\n".join(lines) + "\r\n\r\n").encode())

    def _chunk(self, data: bytes) -> None:
        self.wfile.write(b"%x\r\n%b\r\n" % (len(data), data))


def _parsed(raw: bytes) -> dict[str, Any]:
    """The body, whatever its Content-Type says."""
    try:
        value = msgspec.json.decode(raw)
    except msgspec.DecodeError as error:
        raise _Refused(500, f"[json.exception.parse_error.101] {error}") from None
    if not isinstance(value, dict):
        raise _Refused(500, "[json.exception.type_error.306] cannot use value() with this type")
    return value


def _defaults() -> dict[str, Any]:
    return {**_NUMBERS, **_BOOLEANS, "stop": [], "logit_bias": [], "grammar": "", "prompt": ""}


def _params(body: dict[str, Any]) -> dict[str, Any]:
    """What is read of a request: `null` is the default, and what it does not know it ignores."""
    params = _defaults()
    for names, kinds, called in (
        (_NUMBERS, (int, float), "number"),
        (_BOOLEANS, (bool,), "boolean"),
        (("grammar",), (str,), "string"),
    ):
        for name in names:
            value = body.get(name)
            if value is None:
                continue
            if type(value) not in kinds:
                raise _Refused(500, f"[json.exception.type_error.302] type must be {called}")
            params[name] = value
    # A string is silently ignored, and so is an empty word.
    stop = body.get("stop")
    params["stop"] = [word for word in stop if word] if isinstance(stop, list) else []
    # Pairs of an id and a number or false; anything else is silently skipped (texts until b2123).
    bias = body.get("logit_bias")
    params["logit_bias"] = [
        pair
        for pair in (bias if isinstance(bias, list) else [])
        if isinstance(pair, list) and len(pair) == 2 and type(pair[0]) is int
    ]
    params["prompt"] = body.get("prompt", body.get("input_prefix", ""))
    return params


@dataclass
class _Written:
    pieces: list[str]
    predicted: int
    stopped: str
    word: str = ""


def _write(double: Llama, params: dict[str, Any]) -> _Written:
    limit = int(params["n_predict"])
    most: int | None = None
    if limit >= 0:
        # Off by one until b1778 (#4798), and looked at from the fourth token on: the seed's 5 gives
        # six pieces, 2 gives five.
        most = max(limit + 1, 5)
    source = list(double.says)
    if double.ends == "never" and most is not None:
        source = (source * most)[:most]
    text, sent = "", 0
    pieces: list[str] = []
    for number, piece in enumerate(source, 1):
        text += piece
        found = [(text.find(word, sent), word) for word in params["stop"] if word in text[sent:]]
        if found:
            at, word = min(found)
            return _Written([*pieces, text[sent:at]], number, "word", word)
        held = max((_overlap(text[sent:], word) for word in params["stop"]), default=0)
        pieces.append(text[sent : len(text) - held])  # "" while a stop word may be coming
        sent = len(text) - held
        if number == most:
            return _Written([*pieces, *filter(None, [text[sent:]])], limit, "limit")
    return _Written([*pieces, text[sent:]], len(source), "eos")


def _overlap(text: str, word: str) -> int:
    """How much of the end of a text may be the beginning of a stop word."""
    return next((size for size in range(len(word) - 1, 0, -1) if text.endswith(word[:size])), 0)


def _final(written: _Written, params: dict[str, Any]) -> dict[str, Any]:
    prompt = params["prompt"]
    items = prompt if isinstance(prompt, list) else [prompt]  # a list is ONE prompt until b1591
    told = [len(tokens_of(item)) if isinstance(item, str) else 1 for item in items]
    evaluated = sum(told) + isinstance(items[0], str)  # BOS before a text only
    final = {
        "content": "".join(written.pieces),
        "generation_settings": _settings(params),
        "model": MODEL,
        "prompt": prompt,
        "slot_id": 0,  # id_slot since b2357
        "stop": True,
        # stop_type since b4275
        "stopped_eos": written.stopped == "eos",
        "stopped_limit": written.stopped == "limit",
        "stopped_word": written.stopped == "word",
        "stopping_word": written.word,
        "timings": {
            "predicted_ms": 469.622,
            "predicted_n": written.predicted,
            "predicted_per_second": 10.646860666663827,
            "predicted_per_token_ms": 93.9244,
            "prompt_ms": 234.539,
            "prompt_n": evaluated,
            "prompt_per_second": 8.527366450782173,
            "prompt_per_token_ms": 117.2695,
        },
        "tokens_cached": evaluated + written.predicted,
        "tokens_evaluated": evaluated,
        "tokens_predicted": written.predicted,
        "truncated": False,
    }
    if params["n_probs"]:
        final["completion_probabilities"] = [_probability(piece) for piece in written.pieces]
    return final


def _probability(piece: str) -> dict[str, Any]:
    """The form of before b4364."""
    probs = [{"tok_str": piece, "prob": 0.5}, {"tok_str": " x", "prob": 0.25}]
    return {"content": piece, "probs": probs}


def _settings(params: dict[str, Any]) -> dict[str, Any]:
    told = {name: params[name] for name in (*_NUMBERS, *_BOOLEANS, "stop", "logit_bias", "grammar")}
    del told["slot_id"], told["cache_prompt"]
    told["temp"] = told.pop("temperature")  # `temperature` since 2023-12-28 (#4668)
    told["seed"] = told["seed"] % 2**32
    told["n_keep"] = 0  # always the server's own
    single = {name: _single(value) for name, value in told.items() if type(value) is float}
    return told | single | {"model": MODEL, "n_ctx": 512}


def _single(value: float) -> float:
    """What a C++ float makes of a number."""
    (rounded,) = struct.unpack("f", struct.pack("f", value))
    return float(rounded)
