"""Names of tools and of schemas, and how they are chosen in a word, as OpenAI has it."""

from __future__ import annotations

import re

from tropilla.dialects._fields import invalid, wrong_type
from tropilla.ir import Json, ToolChoice

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


def read_mode(value: Json) -> ToolChoice | None:
    """A `tool_choice` that is a word; `None` for an object, whose form each API has its own of.

    Raises:
        Malformed: it is neither.
    """
    match value:
        case "none" | "auto" | "required":
            return ToolChoice(mode=value)
        case str():
            raise invalid(
                "tool_choice", f"'{value}'. Supported values are: 'none', 'auto', and 'required'."
            )
        case dict():
            return None
    raise wrong_type("tool_choice", "a string or an object", value)
