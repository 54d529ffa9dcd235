"""A gateway all of whose answers are looked at, whoever asked and whatever became of the asker."""

from __future__ import annotations

from collections.abc import Mapping

from openapi_schema import check_answer
from tropilla.server.app import Gateway
from tropilla.server.http import Call
from tropilla.server.reply import Reply


class _Heard(Reply):
    """A reply that remembers what it told."""

    def __init__(self, one: Reply) -> None:
        super().__init__(one._to, one.request_id, headless=one._bodiless, old=one._old)
        self.content_type = ""
        self.heard = bytearray()

    async def start(
        self, status: int, content_type: str, headers: Mapping[str, str], first: bytes = b""
    ) -> None:
        self.content_type = content_type
        self.heard += first
        await super().start(status, content_type, headers, first)

    async def write(self, data: bytes) -> None:
        self.heard += data
        await super().write(data)

    async def whole(
        self,
        status: int,
        body: bytes,
        headers: Mapping[str, str] | None = None,
        content_type: str = "application/json",
    ) -> None:
        self.content_type = content_type
        self.heard += body
        await super().whole(status, body, headers, content_type)


_NAMES = {"openai_chat", "openai_completions", "openai_responses", "llamacpp", "afs"}
"""The dialects whose answers `check_answer` knows; others may have the same paths, by a header."""


class Checked:
    """The gateway; `wrong` is what of its answers is not as OpenAI's schemas say."""

    def __init__(self, gateway: Gateway) -> None:
        self._gateway = gateway
        self.wrong: list[str] = []

    async def __call__(self, call: Call) -> None:
        """Answer one request."""
        reply = call.reply = _Heard(call.reply)
        try:
            await self._gateway(call)
        finally:
            try:
                if call.dialect.NAME in _NAMES:
                    heard = bytes(reply.heard)
                    check_answer(call.method, call.path, reply.status, reply.content_type, heard)
            except (AssertionError, LookupError, TypeError, ValueError) as error:
                self.wrong.append(f"{call.method} {call.path}: {error}")
