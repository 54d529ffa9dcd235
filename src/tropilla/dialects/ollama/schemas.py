"""What the OpenAPI document says of this API: what its parsers check, and what it answers."""

from __future__ import annotations

from tropilla.dialects._beside import Shape
from tropilla.ir import JsonObject

CHAT = Shape("Continue a conversation", "OllamaChat", "OllamaMessage", "OllamaMessage")
GENERATE = Shape("Answer a prompt", "OllamaGenerate", "OllamaResponse", "OllamaResponse")


def _object(properties: JsonObject, *required: str) -> JsonObject:
    told: JsonObject = {"type": "object", "properties": properties}
    return told | {"required": list(required)} if required else told


def _or_null(kind: str) -> JsonObject:
    return {"type": [kind, "null"]}


def _list(items: JsonObject) -> JsonObject:
    return {"type": ["array", "null"], "items": items}


_TEXT: JsonObject = {"type": "string"}
_COUNT: JsonObject = {"type": "integer", "minimum": 0}
_OBJECT: JsonObject = {"type": "object"}
_WHOLE = {"type": ["integer", "null"], "minimum": -(2**63 - 1), "maximum": 2**63 - 1}
_NUMBER = _or_null("number")
_OPTIONS = _object(
    {
        "num_predict": _WHOLE, "seed": _WHOLE, "top_k": _WHOLE, "mirostat": _WHOLE,
        "temperature": _NUMBER, "top_p": _NUMBER, "min_p": _NUMBER, "typical_p": _NUMBER,
        "repeat_penalty": _NUMBER, "presence_penalty": _NUMBER, "frequency_penalty": _NUMBER,
        "mirostat_tau": _NUMBER, "mirostat_eta": _NUMBER,
        "stop": {"anyOf": [_or_null("string"), _list(_TEXT)]},
    }
)  # fmt: skip
_COMMON: JsonObject = {
    "model": _or_null("string"),
    "stream": _or_null("boolean"),
    "options": {"anyOf": [_OPTIONS, {"type": "null"}]},
    "format": {"anyOf": [{"enum": ["", "json", None]}, _OBJECT]},
    "think": {"enum": [True, False, None, "low", "medium", "high", "max"]},
    "logprobs": _or_null("boolean"),
    "top_logprobs": {"type": ["integer", "null"], "minimum": 0, "maximum": 20},
    "keep_alive": {"type": ["number", "string", "null"]},
}
_FUNCTION = _object(
    {"name": _TEXT, "description": _or_null("string"), "parameters": _or_null("object")}, "name"
)
_CALLED = _object({"function": _object({"name": _TEXT, "arguments": _OBJECT}, "name")}, "function")
_MESSAGE = _object(
    {
        "role": {"enum": ["system", "developer", "user", "assistant", "tool"]},
        "content": _or_null("string"),
        "thinking": _or_null("string"),
        "images": _list(_TEXT),
        "tool_calls": _list(_CALLED),
        "tool_name": _or_null("string"),
    },
    "role",
)
_DONE: JsonObject = {
    "model": _TEXT,
    "created_at": _TEXT,
    "done": {"type": "boolean"},
    "done_reason": {"enum": ["stop", "length", "load", "unload"]},
    "total_duration": _COUNT,
    "prompt_eval_count": _COUNT,
    "prompt_eval_duration": _COUNT,
    "eval_count": _COUNT,
    "eval_duration": _COUNT,
}
_SAID = ("model", "created_at", "done")
_VECTOR: JsonObject = {"type": "array", "items": {"type": "number"}}
_EMBEDS: JsonObject = {"model": _or_null("string"), "truncate": _or_null("boolean")}

SCHEMAS: JsonObject = {
    "OllamaChat": _object(
        _COMMON
        | {
            "messages": _list(_MESSAGE),
            "tools": _list(_object({"function": _FUNCTION}, "function")),
        },
        "model",
    ),
    "OllamaGenerate": _object(
        _COMMON
        | {
            "prompt": _or_null("string"),
            "suffix": _or_null("string"),
            "system": _or_null("string"),
            "raw": _or_null("boolean"),
            "images": _list(_TEXT),
            "context": _list({"type": "integer"}),
        },
        "model",
    ),
    "OllamaMessage": _object(_DONE | {"message": _MESSAGE}, "message", *_SAID),
    "OllamaResponse": _object(
        _DONE | {"response": _TEXT, "thinking": _TEXT, "context": _list({"type": "integer"})},
        "response",
        *_SAID,
    ),
    "OllamaEmbed": _object(
        _EMBEDS
        | {
            "input": {"anyOf": [_TEXT, {"type": "array", "items": _TEXT, "maxItems": 2048}]},
            "dimensions": {"type": ["integer", "null"], "minimum": 1},
        },
        "model",
        "input",
    ),
    "OllamaEmbedded": _object(
        {
            "model": _TEXT,
            "embeddings": {"type": "array", "items": _VECTOR},
            "prompt_eval_count": _COUNT,
        },
        "model",
        "embeddings",
    ),
    "OllamaEmbedding": _object({"model": _or_null("string"), "prompt": _or_null("string")}),
    "OllamaEmbeddingAnswer": _object({"embedding": _VECTOR}, "embedding"),
    "OllamaVersion": _object({"version": _TEXT}, "version"),
    "OllamaModels": _object(
        {
            "models": {
                "type": "array",
                "items": _object(
                    {"name": _TEXT, "model": _TEXT, "size": _COUNT, "digest": _TEXT},
                    "name",
                    "model",
                    "size",
                    "digest",
                ),
            }
        },
        "models",
    ),
    "OllamaShow": _object({"model": _TEXT, "name": _TEXT}),
    "OllamaShown": _object(
        {"details": _OBJECT, "model_info": _OBJECT, "capabilities": {"type": "array"}},
        "details",
        "model_info",
        "capabilities",
    ),
    "OllamaError": _object({"error": _TEXT}, "error"),
}
