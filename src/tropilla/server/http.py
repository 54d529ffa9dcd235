"""HTTP/1.1 as this gateway speaks it: uvicorn's protocol, with every refusal in JSON."""

from __future__ import annotations

import uuid

import httptools
from uvicorn.protocols.http.httptools_impl import HttpToolsProtocol

from tropilla.dialects._openai import render_problem
from tropilla.ir import Problem

_LENGTHS = {b"content-length", b"transfer-encoding"}


class Protocol(HttpToolsProtocol):
    """One connection of a client."""

    def data_received(self, data: bytes) -> None:
        """Take what has come; a wish for another protocol is passed over."""
        self._unset_keepalive_if_required()
        try:
            self.parser.feed_data(data)
        except httptools.HttpParserError:
            self.send_400_response("Invalid HTTP request received.")
        except httptools.HttpParserUpgrade as wish:
            # The parser takes what follows for the other protocol: another one goes on here.
            self.parser = httptools.HttpRequestParser(self)
            if self._has_body():
                again = _Again(self)
                self.parser = httptools.HttpRequestParser(again)
                lengths = [b"%b: %b\r\n" % one for one in self.headers if one[0] in _LENGTHS]
                self.parser.feed_data(b"POST / HTTP/1.1\r\n%b\r\n" % b"".join(lengths))
            self.parser.set_dangerous_leniencies(lenient_data_after_close=True)
            if rest := data[wish.args[0] :]:
                self.data_received(rest)

    def _has_body(self) -> bool:
        return any(name in _LENGTHS and value != b"0" for name, value in self.headers)

    def on_message_complete(self) -> None:
        """Note that a request is whole: one that wishes for another protocol only seems so."""
        if not (self.parser.should_upgrade() and self._has_body()):
            super().on_message_complete()

    def send_400_response(self, msg: str) -> None:
        """Refuse bytes that are not HTTP, in the envelope that clients can read."""
        begun = self.cycle is not None  # uvicorn's type leaves that out
        if not begun or self.cycle.response_complete:
            body = render_problem(Problem(kind="malformed", message=msg), 400)
            head = (
                "HTTP/1.1 400 Bad Request\r\n"
                "content-type: application/json\r\n"
                f"x-request-id: req_{uuid.uuid4().hex}\r\n"
                "openai-processing-ms: 0\r\n"
                "access-control-allow-origin: *\r\n"
                f"content-length: {len(body)}\r\n"
                "connection: close\r\n\r\n"
            )
            self.transport.write(head.encode() + body)
        # Behind a request that is being answered, a refusal would land in that answer.
        self.transport.close()


class _Again:
    """Hears a parser that was told a head once more, for the sake of the body behind it.

    A parser drops the body of a request that wishes for another protocol, and Java's HTTP client
    wishes for HTTP/2 with every first request (`Upgrade: h2c`).
    """

    def __init__(self, protocol: Protocol) -> None:
        self._protocol = protocol
        self._known = True
        """Whether this is the head that the protocol knows already."""
        self.on_body = protocol.on_body

    def on_message_begin(self) -> None:
        if not self._known:
            self._protocol.on_message_begin()

    def on_url(self, url: bytes) -> None:
        if not self._known:
            self._protocol.on_url(url)

    def on_header(self, name: bytes, value: bytes) -> None:
        if not self._known:
            self._protocol.on_header(name, value)

    def on_headers_complete(self) -> None:
        if not self._known:
            self._protocol.on_headers_complete()
        self._known = False

    def on_message_complete(self) -> None:
        self._protocol.on_message_complete()
