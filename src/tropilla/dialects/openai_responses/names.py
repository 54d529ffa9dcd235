"""What the modules of this dialect have in common: its name, and its ways to write things."""

from __future__ import annotations

from base64 import b64decode, b64encode
from binascii import Error

NAME = "openai_responses"

LOGPROBS = "message.output_text.logprobs"
ENCRYPTED = "reasoning.encrypted_content"
"""What a client can ask to be included in an answer."""

_MARK = "tropilla1."


def seal(thought: str) -> str:
    """A thought as a client gets it to send it back: it is its own, so nothing is hidden."""
    return _MARK + b64encode(thought.encode("utf-8", "replace")).decode()


def unseal(sealed: str) -> str | None:
    """A thought that was sealed here; another server's cannot be read."""
    if not sealed.startswith(_MARK):
        return None
    try:
        return b64decode(sealed.removeprefix(_MARK), validate=True).decode()
    except (Error, ValueError):
        return None
