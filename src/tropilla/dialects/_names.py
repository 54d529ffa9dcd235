"""Names of tools and of schemas, as OpenAI wants them."""

from __future__ import annotations

import re

from tropilla.dialects._fields import invalid

_NAME = re.compile(r"[a-zA-Z0-9_-]+")


def check_name(name: str, path: str, most: int = 64) -> str:
    """A name of at most so many characters.

    Raises:
        Malformed: it is none.
    """
    if len(name) > most:
        raise invalid(
            path,
            f"expected at most {most} characters, but got {len(name)} instead.",
            "string_above_max_length",
        )
    if _NAME.fullmatch(name) is None:
        raise invalid(path, "expected letters, digits, '_' and '-' only.")
    return name
