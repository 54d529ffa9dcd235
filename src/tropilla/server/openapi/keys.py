"""The schemas of keys: what they may do, and what is told of them."""

from __future__ import annotations

from tropilla.ir import JsonObject
from tropilla.server.openapi.schemas import (
    _TEXT,
    _TEXT_OR_NULL,
    _const,
    _list,
    _number,
    _object,
    _one_of,
    _whole,
)

_SECONDS: JsonObject = {"type": ["number", "null"]}
_TERMS: JsonObject = {
    "name": _TEXT,
    "team": _TEXT_OR_NULL,
    "models": {"type": ["array", "null"], "items": _TEXT},
    "limits": _object({
        "requests": _whole(0), "tokens": _whole(0), "concurrent": _whole(0),
    }),
    "budgets": _list(_object({
        "tokens": _whole(0), "money": _number(0), "per": _one_of("day", "month", "total"),
    })),
    "priority": _whole(-100, 100),
    "expires": _TEXT_OR_NULL,
    "tags": _list(_TEXT),
}  # fmt: skip

KEYS: JsonObject = {
    "KeyTerms": _object(_TERMS) | {"additionalProperties": False},
    "Rotation": _object({"grace": _number(0)}) | {"additionalProperties": False},
    "Key": _object(
        {
            "object": _const("key"),
            "id": _TEXT,
            **_TERMS,
            "tail": _TEXT,
            "state": _one_of("active", "expired", "revoked"),
            "created": {"type": "number"},
            "rotated": _SECONDS,
            "revoked": _SECONDS,
            "key": _TEXT,
        },
        "object", "id", "name", "tail", "state", "created",
    ),
    "Keys": _object(
        {"object": _const("list"), "data": _list({"$ref": "#/components/schemas/Key"})},
        "object", "data",
    ),
}  # fmt: skip
