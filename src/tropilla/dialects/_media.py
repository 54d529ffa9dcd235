"""What a message may hold besides text, where it stands for itself: `data:` URLs and base64."""

from __future__ import annotations

import re
from binascii import a2b_base64

from tropilla.dialects._fields import invalid

DETAILS = ("auto", "low", "high", "original")
"""How closely a picture may be looked at."""

_DATA_URL = re.compile(r"data:[A-Za-z0-9.+-]+/[A-Za-z0-9.+-]+(?:;[^;,]+)*;base64,")


def check_data_url(url: str, path: str) -> None:
    """Anything else would be fetched by some server, from a network where the client is not."""
    if not url.startswith("data:"):
        raise invalid(
            path,
            "the gateway fetches nothing that a client names: send it as "
            "'data:image/png;base64,...'.",
        )
    head = _DATA_URL.match(url)
    if head is None:
        raise invalid(path, "expected a type and base64, as in 'data:image/png;base64,...'.")
    check_base64(url[head.end() :], path)


def check_base64(data: str, path: str) -> None:
    """Raise for what is no base64, or nothing at all."""
    try:
        known = bool(a2b_base64(data, strict_mode=True))
    except ValueError:
        known = False
    if not known:
        raise invalid(path, "the data is not base64.")
