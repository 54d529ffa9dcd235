"""What this dialect is called, and what it calls models: each name of Ollama's has a tag."""

from __future__ import annotations

from collections.abc import Collection
from datetime import UTC, datetime

NAME = "ollama"
CHAT_PATH = "/api/chat"
GENERATE_PATH = "/api/generate"
_LATEST = ":latest"


def tagged(name: str) -> str:
    """The name of a model as Ollama lists it."""
    return name if ":" in name.rpartition("/")[2] else name + _LATEST


def served_as(name: str, served: Collection[str]) -> str:
    """The served model that a client means: a tag that says nothing may be there or not."""
    if name in served:
        return name
    other = name.removesuffix(_LATEST) if name.endswith(_LATEST) else name + _LATEST
    return other if other in served else name


def when(seconds: int) -> str:
    """A time as Ollama writes it (RFC 3339)."""
    try:
        told = datetime.fromtimestamp(seconds, UTC)
    except (OverflowError, ValueError, OSError):
        told = datetime.fromtimestamp(0, UTC)
    return told.strftime("%Y-%m-%dT%H:%M:%SZ")
