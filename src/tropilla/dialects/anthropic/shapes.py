"""What the OpenAPI document tells of this dialect."""

from __future__ import annotations

from tropilla.dialects._beside import Shape
from tropilla.ir import JsonObject

_REFUSES = (
    "400", "401", "403", "404", "408", "413", "415", "429", "500", "501", "502", "504", "529",
)  # fmt: skip
MESSAGES = Shape(
    "Answer a conversation, Anthropic's way",
    "AnthropicRequest", "AnthropicMessage", "AnthropicEvent", _REFUSES,
)  # fmt: skip
COUNT = Shape(
    "Count the tokens of a conversation, Anthropic's way",
    "AnthropicCountRequest", "AnthropicCount", None, _REFUSES,
)  # fmt: skip
_READ = ("400", "401", "500")
LIST = Shape("What is served, as Anthropic lists it", None, "AnthropicModels", None, _READ)
ONE = Shape("One model, as Anthropic tells it", None, "AnthropicModel", None, (*_READ, "404"))
ALIVE = Shape("Whether anybody is here", refuses=())

_TEXT: JsonObject = {"type": "string"}
_OBJECT: JsonObject = {"type": "object"}
_COUNT: JsonObject = {"type": "integer", "minimum": 0}
_NULL: JsonObject = {"type": "null"}


def _of(properties: JsonObject, *required: str) -> JsonObject:
    return {"type": "object", "properties": properties, "required": list(required)}


def _list(of: JsonObject, least: int = 0) -> JsonObject:
    return {"type": "array", "items": of, "minItems": least}


def _any(*of: JsonObject) -> JsonObject:
    return {"anyOf": list(of)}


_TEXT_OR_NULL = _any(_TEXT, _NULL)
_CONTENT = _any(_TEXT, _list(_of({"type": _TEXT}, "type")))
_ASKED: JsonObject = {
    "model": _TEXT,
    "system": _CONTENT,
    "messages": _list(
        _of(
            {"role": {"enum": ["user", "assistant", "system"]}, "content": _CONTENT},
            "role", "content",
        ),
        1,
    ),
    "tools": _list(_of({"name": _TEXT, "description": _TEXT, "input_schema": _OBJECT})),
    "tool_choice": _of({"type": {"enum": ["auto", "any", "tool", "none"]}}, "type"),
    "thinking": _of({"type": _TEXT}, "type"),
    "output_config": _OBJECT,
}  # fmt: skip
_USAGE = _of(
    {
        "input_tokens": _COUNT, "cache_creation_input_tokens": _COUNT,
        "cache_read_input_tokens": _COUNT, "output_tokens": _COUNT,
    },
    "input_tokens", "output_tokens",
)  # fmt: skip
_MODEL = _of(
    {
        "type": {"const": "model"}, "id": _TEXT, "display_name": _TEXT, "created_at": _TEXT,
        "lifecycle": _TEXT, "max_input_tokens": _any(_COUNT, _NULL),
        "max_tokens": _any(_COUNT, _NULL), "capabilities": _OBJECT,
    },
    "type", "id", "display_name", "created_at",
)  # fmt: skip
SCHEMAS: JsonObject = {
    "AnthropicRequest": _of(
        {
            **_ASKED, "max_tokens": _COUNT, "stream": {"type": "boolean"},
            "stop_sequences": _list(_TEXT), "temperature": {"type": "number"},
            "top_k": {"type": "integer"}, "top_p": {"type": "number"}, "metadata": _OBJECT,
        },
        "messages", "max_tokens",
    ),
    "AnthropicMessage": _of(
        {
            "id": _TEXT, "type": {"const": "message"}, "role": {"const": "assistant"},
            "model": _TEXT, "content": _list(_of({"type": _TEXT}, "type")),
            "stop_reason": _TEXT, "stop_sequence": _TEXT_OR_NULL, "usage": _USAGE,
        },
        "id", "type", "role", "model", "content", "stop_reason", "stop_sequence", "usage",
    ),
    "AnthropicEvent": _of({"type": _TEXT}, "type"),
    "AnthropicCountRequest": _of(_ASKED, "messages"),
    "AnthropicCount": _of({"input_tokens": _COUNT}, "input_tokens"),
    "AnthropicModel": _MODEL,
    "AnthropicModels": _of(
        {
            "data": _list(_MODEL), "has_more": {"type": "boolean"},
            "first_id": _TEXT_OR_NULL, "last_id": _TEXT_OR_NULL,
        },
        "data", "has_more", "first_id", "last_id",
    ),
    "AnthropicError": _of(
        {
            "type": {"const": "error"},
            "error": _of({"type": _TEXT, "message": _TEXT, "details": _OBJECT}, "type", "message"),
        },
        "type", "error",
    ),
}  # fmt: skip
