"""HTTP/1.1 as this gateway speaks it: uvicorn's protocol, with every refusal in JSON."""

from __future__ import annotations

import uuid

from uvicorn.protocols.http.httptools_impl import HttpToolsProtocol

from tropilla.dialects._openai import render_problem
from tropilla.ir import Problem


class Protocol(HttpToolsProtocol):
    """One connection of a client."""

    def send_400_response(self, msg: str) -> None:
        """Refuse bytes that are not HTTP, in the envelope that clients can read."""
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
        self.transport.close()
