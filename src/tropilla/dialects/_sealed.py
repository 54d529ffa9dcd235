"""Thoughts in a form in which a client that may not show them can send them back.

They are its own, so nothing is hidden: it is a text that says whose it is.
"""

from __future__ import annotations

from base64 import b64decode, b64encode
from binascii import Error

_MARK = "tropilla1."


def seal(thought: str) -> str:
    """A thought as a client gets it to send it back."""
    return _MARK + b64encode(thought.encode("utf-8", "replace")).decode()


def unseal(sealed: str) -> str | None:
    """A thought that was sealed here; another server's cannot be read."""
    if not sealed.startswith(_MARK):
        return None
    try:
        return b64decode(sealed.removeprefix(_MARK), validate=True).decode()
    except (Error, ValueError):
        return None
