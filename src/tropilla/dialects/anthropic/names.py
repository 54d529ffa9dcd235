"""What the modules of this dialect have in common: its name, its paths, and how calls are said."""

from __future__ import annotations

import msgspec

from tropilla.dialects._openai import decode
from tropilla.ir import JsonObject, Malformed

NAME = "anthropic"
MESSAGES = "/messages"
COUNT = "/messages/count_tokens"

_UNREADABLE = "INVALID_JSON"
"""Under this name Anthropic has clients send what a model wrote and is no JSON."""


def said(arguments: JsonObject) -> str:
    """The arguments of a call as the text of their JSON.

    Raises:
        Malformed: they are nested too deeply.
    """
    try:
        return msgspec.json.encode(arguments).decode()
    except RecursionError:
        raise Malformed("The JSON of a call is nested too deeply.") from None


def read(arguments: str) -> JsonObject:
    """The arguments of a call as the object that they are in this API."""
    if not arguments.strip():
        return {}
    try:
        told = decode(arguments.encode("utf-8", "replace"))
    except Malformed:
        told = None
    return told if type(told) is dict else {_UNREADABLE: arguments}
