"""HTTP as cpp-httplib and each build of the server have it."""

from __future__ import annotations

import socket
import struct
from collections.abc import Callable, Iterator
from contextlib import contextmanager, suppress
from http.server import BaseHTTPRequestHandler
from typing import Any, ClassVar, NamedTuple, TypeAlias

import msgspec

from doubles.llama.control import Asked, Left, Llama, is_gone

_FORM = "application/x-www-form-urlencoded"
_TYPES = {
    400: "invalid_request_error",
    401: "authentication_error",
    404: "not_found_error",
    500: "server_error",
    501: "not_supported_error",
    503: "unavailable_error",
}
_LOCKED = {
    1643: {"/completion", "/v1/chat/completions", "/infill"},  # #4441
    2400: {
        "/props", "/completion", "/completions", "/v1/completions", "/chat/completions",
        "/v1/chat/completions", "/infill", "/tokenize", "/detokenize", "/embedding",
        "/embeddings", "/v1/embeddings",
    },
}  # fmt: skip
_PUBLIC = {"/", "/health", "/models", "/v1/models"}
"""All that needs no key since b3898 (#9776)."""


class Refused(Exception):  # noqa: N818
    """A status of 400 and more; its body depends on the build.

    What is `late` is found out by the main loop: for a stream, the head is sent by then.
    """

    def __init__(self, status: int, what: str = "", *, late: bool = False) -> None:
        self.status = status
        self.what = what
        self.late = late


class Crashed(Exception):  # noqa: N818
    """An exception that the main loop does not catch: the process is over."""


class Hung(Exception):  # noqa: N818
    """A request that is never answered."""


class Call(BaseHTTPRequestHandler):
    """A connection, and the request on it that is being served."""

    protocol_version = "HTTP/1.1"
    disable_nagle_algorithm = True  # a head and its body are two writes
    timeout = 5  # cpp-httplib's keep-alive
    double: Llama
    routes: ClassVar[tuple[Route, ...]]
    open: ClassVar[set[socket.socket]]
    served = 0
    asked: Asked

    @property
    def build(self) -> int:
        """The build of the server."""
        return self.double.build

    def log_message(self, *_: object) -> None:
        """Be silent."""

    def handle(self) -> None:
        """Serve a connection until somebody closes it, in order or not."""
        self.open.add(self.connection)
        try:
            if self.double.dead:
                reset(self.connection)
            else:
                with suppress(OSError, Left):
                    super().handle()
        finally:
            self.open.discard(self.connection)

    def serve(self) -> None:
        """Answer one request of any method."""
        self.served += 1
        size = int(self.headers.get("Content-Length", 0))
        raw = self.rfile.read(size)
        headers = {name.lower(): value for name, value in self.headers.items()}
        path = self.path.removeprefix(self.double.base).partition("?")[0]
        if not self.path.startswith(self.double.base):
            path = "/nowhere"
        self.asked = Asked(self.command, path, headers, raw)
        self.double.note(self.asked)
        try:
            # Forms of more than 8192 bytes until b1647 (#4500), of more than 1 MiB since.
            if headers.get("content-type") == _FORM and size > (
                8192 if self.build < 1647 else 1048576
            ):
                raise Refused(413)
            if path in self.double.gone:
                raise Refused(404)
            self._route()
        except Refused as refused:
            self.refuse(refused)
        except Hung:
            self.close_connection = True
        except Crashed:
            self.double.dead = True
            for connection in list(self.open):
                reset(connection)
        except (Left, OSError):
            if not (self.double.ending or self.double.dead):
                self.double.add("gone_away", 1)
            self.close_connection = True

    def _route(self) -> None:
        asked, build = self.asked, self.build
        if asked.method == "OPTIONS":
            self.whole(200, b"", "application/json" if build < 3599 else "text/html")
            return
        if self.double.loading and self._still_loading():
            return
        if self.double.key and self._is_locked():
            token = asked.headers.get("authorization", "")
            if token != f"Bearer {self.double.key}":
                raise Refused(401, "Invalid API Key")
        for route in self.routes:
            here = (route.method, route.path) == (asked.method, asked.path)
            if here and route.since <= build < route.until:
                route.serve(self)
                return
        raise Refused(404)

    def _is_locked(self) -> bool:
        if self.build >= 3898:
            return self.asked.path not in _PUBLIC
        locked = [paths for since, paths in _LOCKED.items() if since <= self.build]
        return bool(locked) and self.asked.path in locked[-1]

    def _still_loading(self) -> bool:
        """Say so, or wait; whether that was the answer."""
        if self.build >= 3599:  # #9056: every path
            raise Refused(503, "Loading model")
        if 1809 <= self.build < 2300:
            # `/health` alone was there (#4860), until b2378 at the latest.
            if self.asked.path == "/health":
                body = b'{"status": "loading model"}'
                self.whole(503, body, "application/json")
                return True
            raise Refused(404)
        # Before, and from then on: the port is bound first, and served once the model is there.
        self.double.must_wait(lambda: not self.double.loading, self.connection)
        return False

    # The request.

    def body(self) -> dict[str, Any]:
        """The body as an object, whatever its Content-Type says."""
        try:
            value = msgspec.json.decode(self.asked.raw)
        except msgspec.DecodeError as error:
            raise Refused(500, f"[json.exception.parse_error.101] {error}") from None
        if not isinstance(value, dict):
            raise Refused(500, "[json.exception.type_error.306] cannot use value() with this type")
        return value

    def client(self, body: dict[str, Any]) -> socket.socket | None:
        """Whose leaving is noticed: that of a client that streams."""
        return self.connection if body.get("stream") is True else None

    @contextmanager
    def slot(self, body: dict[str, Any]) -> Iterator[Callable[[], None]]:
        """Take a slot; what comes of it gives it back early."""
        double = self.double
        client = self.client(body)

        def free() -> bool:
            return not double.busy and double.working < double.slots and not double.stalled

        taking = True
        while taking:
            if self.build >= 1915:  # queued since (#5018)
                double.must_wait(free, client)
            with double.lock:
                if free():
                    double.working += 1
                    taking = False
                elif self.build < 1915:
                    double.busy = max(0, double.busy - 1)
                    raise NoSlot
        taken = [True]

        def release() -> None:
            if taken:
                taken.clear()
                double.add("working", -1)

        try:
            yield release
        finally:
            release()

    # The answer.

    def json(self, value: Any, status: int = 200) -> None:
        """Answer with JSON."""
        self.whole(status, msgspec.json.encode(value), json_type(self.build))

    def refuse(self, refused: Refused) -> None:
        """Answer with an error as this build does it."""
        status, what = refused.status, refused.what
        plain = "text/plain" if self.build < 1643 else "text/plain; charset=utf-8"
        if self.build >= 2400:  # #5961
            if status == 404:
                what = "File Not Found"
            if status == 413:
                self.whole(413, b"", plain)
                return
            self.json({"error": error(status, what)}, status)
            return
        # The error handler overwrites bodies: until b1643 for every status but 500.
        text = f"500 Internal Server Error\n{what}" if status == 500 else ""
        if status == 400:
            text = "Invalid request"
        elif status == 401:
            text = "Unauthorized"
        elif status == 404 or (self.build < 1643 and status != 500):
            status, text = 404, "File Not Found"
        self.whole(status, text.encode(), plain)

    def whole(self, status: int, body: bytes, content_type: str) -> None:
        """Answer with one body."""
        if is_gone(self.connection):
            raise Left
        self._head(status, content_type, f"Content-Length: {len(body)}")
        self.wfile.write(body)

    def begin(self) -> None:
        """Begin a stream."""
        self._head(200, "text/event-stream", "Transfer-Encoding: chunked")

    def event(self, value: Any, field: str = "data") -> None:
        """Send one event."""
        data = b"%b: %b\n\n" % (field.encode(), msgspec.json.encode(value))
        self.chunk(data)

    def chunk(self, data: bytes) -> None:
        """Send bytes of a stream; no bytes are its end."""
        self.wfile.write(b"%x\r\n%b\r\n" % (len(data), data))

    def end(self) -> None:
        """End a stream in order."""
        self.chunk(b"")
        if self.build >= 4000:
            # The provider of the stream says that it has failed, so the connection is closed; b3648
            # did not, b4027 does.
            self.close_connection = True

    def _head(self, status: int, content_type: str, length: str) -> None:
        if self.served == 5:  # its keep-alive ends with the fifth answer
            self.close_connection = True
        lines = [
            f"HTTP/1.1 {status} {self.responses[status][0]}",
            *self._cors(),
            length,
            f"Content-Type: {content_type}",
            "Connection: close" if self.close_connection else "Keep-Alive: timeout=5, max=5",
            "Server: llama.cpp",
        ]
        self.wfile.write(("\r\n".join(lines) + "\r\n\r\n").encode())

    def _cors(self) -> list[str]:
        if self.build < 1825:  # #4514
            return ["Access-Control-Allow-Headers: content-type", "Access-Control-Allow-Origin: *"]
        lines = [f"Access-Control-Allow-Origin: {self.asked.headers.get('origin', '')}"]
        if self.asked.method == "OPTIONS":
            methods = "POST" if self.build < 3599 else "GET, POST"
            lines += [
                "Access-Control-Allow-Credentials: true",
                f"Access-Control-Allow-Methods: {methods}",
                "Access-Control-Allow-Headers: *",
            ]
        return lines


class NoSlot(Exception):  # noqa: N818
    """No slot is free, and the server does not queue yet."""


class Route(NamedTuple):
    """A path, and the builds that have it."""

    method: str
    path: str
    serve: Callable[[Call], None]
    since: int = 0
    until: int = 1_000_000


Body: TypeAlias = dict[str, Any]


def json_type(build: int) -> str:
    """The Content-Type of JSON; it has got its charset between b1496 and b1915."""
    return "application/json" if build < 1643 else "application/json; charset=utf-8"


def error(status: int, what: str) -> Body:
    """The inside of an error, since b2400."""
    return {"code": status, "message": what, "type": _TYPES[status]}


def reset(connection: socket.socket) -> None:
    """Break a connection off, whoever reads it."""
    with suppress(OSError):
        connection.setsockopt(socket.SOL_SOCKET, socket.SO_LINGER, struct.pack("ii", 1, 0))
        connection.shutdown(socket.SHUT_RDWR)
