"""What was asked, word for word: kept for a while, in memory, and only where the settings say so.

Of the latest requests, what the client sent and what upstreams were sent for it. What looks like a
secret is kept as stars, and so are long pictures and sounds. What is kept is gone after its time,
whether anybody looks or not.
"""

from __future__ import annotations

import asyncio
import re
import time
from collections import OrderedDict
from collections.abc import Mapping
from contextvars import ContextVar
from typing import Final, NamedTuple

from tropilla.config import CaptureConfig

MOST: Final = 200
"""Requests that are kept at once."""
_MOST_ASKED: Final = 20
"""Of one request, to upstreams: some are asked for much beside the answer."""
_SECRET_HEADERS = frozenset({
    "authorization", "x-api-key", "api-key", "cookie", "proxy-authorization", "x-auth-token",
})  # fmt: skip
_SECRETS = re.compile(
    r"\b(sk-|trp_|hf_|gh[pousr]_|xox[abp]-|AKIA|glpat-|Bearer )[A-Za-z0-9_.\-]{8,}"
)
_FIELDS = re.compile(
    r'("(?:api_?key|password|passwd|secret|authorization|access_token|client_secret)"\s*:\s*)'
    r'"(?:[^"\\]|\\.)*"',
    re.IGNORECASE,
)
_MEDIA = re.compile(r"[A-Za-z0-9+/_-]{512,}={0,2}")
"""What is so long and has no space is no text."""


class Text(NamedTuple):
    """A body, as it is kept."""

    text: str
    whole: bool
    """Whether it is all that there was, as it was."""


class Asked(NamedTuple):
    """What an upstream was asked for a request."""

    place: str
    method: str
    path: str
    body: Text


class Captured:
    """One request, as it is kept."""

    def __init__(self, headers: Mapping[str, str], body: Text, most: int) -> None:
        self.headers = headers
        self.body = body
        self.asked: list[Asked] = []
        self._most = most

    def asks(self, place: str, method: str, path: str, body: bytes | None) -> None:
        """Keep what an upstream is asked."""
        if len(self.asked) < _MOST_ASKED:
            self.asked.append(Asked(place, method, path, kept(body or b"", self._most)))


CAPTURED: ContextVar[Captured | None] = ContextVar("captured", default=None)
"""The request that is being served, where it is kept."""


def kept(body: bytes, most: int) -> Text:
    """A body without what looks like a secret, and no longer than that."""
    told = body[:most].decode("utf-8", "replace")
    text = _FIELDS.sub(r'\1"***"', _SECRETS.sub(r"\1***", told))
    text = _MEDIA.sub(lambda found: f"*** {len(found[0])} characters ***", text)
    return Text(text, whole=text == told and len(body) <= most)


class Capture:
    """Those that are kept."""

    def __init__(self, config: CaptureConfig) -> None:
        self.config = config
        self._kept: OrderedDict[str, tuple[float, Captured]] = OrderedDict()
        self._timer: asyncio.TimerHandle | None = None

    def reload(self, config: CaptureConfig) -> None:
        """Keep as another config says; what it would not keep is gone at once."""
        if config != self.config:
            self._kept.clear()
        self.config = config

    def begin(self, id_: str, headers: Mapping[str, str], body: bytes) -> None:
        """Keep a request, and what is asked for it from now on, in this task."""
        most = self.config.max_bytes
        told = {name: "***" if name in _SECRET_HEADERS else value[:1000]
                for name, value in headers.items()}  # fmt: skip
        one = Captured(told, kept(body, most), most)
        CAPTURED.set(one)
        self._kept[id_] = (time.monotonic() + self.config.seconds, one)
        while len(self._kept) > MOST:
            self._kept.popitem(last=False)
        self._forget_later()

    def find(self, id_: str) -> Captured | None:
        """What is kept of a request, if it still is."""
        until, one = self._kept.get(id_, (0.0, None))
        return one if until > time.monotonic() else None

    def _forget_later(self) -> None:
        if self._timer is None and self._kept:
            until, _ = next(iter(self._kept.values()))
            after = max(0.0, until - time.monotonic())
            self._timer = asyncio.get_running_loop().call_later(after, self._forget)

    def _forget(self) -> None:
        self._timer = None
        now = time.monotonic()
        while self._kept and next(iter(self._kept.values()))[0] <= now:
            self._kept.popitem(last=False)
        self._forget_later()

    def close(self) -> None:
        """Keep nothing."""
        self._kept.clear()
        if self._timer is not None:
            self._timer.cancel()
