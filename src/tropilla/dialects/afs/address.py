"""Where AFS is served, and how its key is shown.

Public mode has one address and wants to hear which service is meant; a private deployment has
an address of its own. Both have OpenAI's paths beside AFS's own, below `/models`, where the key
travels as OpenAI's does: there they are OpenAI-compatible servers like any other.
"""

from __future__ import annotations

from typing import Literal
from urllib.parse import urlsplit

_DOMAIN = "twcc.ai"
_PUBLIC = "api-ams.twcc.ai"


def dialect_at(url: str) -> Literal["afs", "openai"] | None:
    """What is spoken at an address, where it is one of TWS's."""
    host, path = _host(url), urlsplit(url).path.rstrip("/")
    if host != _DOMAIN and not host.endswith(f".{_DOMAIN}"):
        return None
    return "openai" if path.endswith("/models") else "afs"


def credentials(url: str, api_key: str | None) -> dict[str, str]:
    """The headers that show the key."""
    shown = {} if api_key is None else {"X-API-KEY": api_key}
    return shown | {"X-API-HOST": "afs-inference"} if _host(url) == _PUBLIC else shown


def _host(url: str) -> str:
    return urlsplit(url).hostname or ""
