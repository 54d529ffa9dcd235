"""The schemas of the document: what each API takes, and what it answers.

They say what the parsers of the dialects check, and no more: a field that stands in no schema is
taken, too, and goes on to an upstream that may know it.
"""

from __future__ import annotations

from typing import Any

from tropilla.ir import JsonObject

_LARGEST = 2**63 - 1


def _or_null(schema: JsonObject) -> JsonObject:
    """`null` is the same as absent, in every request."""
    return {"anyOf": [schema, {"type": "null"}]}


def _whole(least: int | None = None, most: int | None = None) -> JsonObject:
    least = -_LARGEST if least is None else least
    return {
        "type": ["integer", "null"],
        "minimum": least,
        "maximum": _LARGEST if most is None else most,
    }


def _number(least: float | None = None, most: float | None = None) -> JsonObject:
    schema: JsonObject = {"type": ["number", "null"]}
    if least is not None:
        schema["minimum"] = least
    if most is not None:
        schema["maximum"] = most
    return schema


def _one_of(*values: str) -> JsonObject:
    return {"type": ["string", "null"], "enum": [*values, None]}


def _list(items: JsonObject, least: int = 0, most: int | None = None) -> JsonObject:
    schema: JsonObject = {"type": "array", "items": items}
    if least:
        schema["minItems"] = least
    if most is not None:
        schema["maxItems"] = most
    return schema


def _object(properties: JsonObject, *required: str) -> JsonObject:
    schema: JsonObject = {"type": "object", "properties": properties}
    if required:
        schema["required"] = list(required)
    return schema


def ref(name: str) -> JsonObject:
    """A reference to a schema of the document."""
    return {"$ref": f"#/components/schemas/{name}"}


def _any(*schemas: JsonObject) -> JsonObject:
    return {"anyOf": list(schemas)}


_TEXT: JsonObject = {"type": "string"}
_TEXT_OR_NULL: JsonObject = {"type": ["string", "null"]}
_FLAG: JsonObject = {"type": ["boolean", "null"]}
_OBJECT: JsonObject = {"type": "object"}
_OBJECT_OR_NULL: JsonObject = {"type": ["object", "null"]}
_COUNT: JsonObject = {"type": "integer", "minimum": 0}
_TOKEN: JsonObject = {"type": "integer", "minimum": 0, "maximum": 2**31 - 1}
_IDS = _list(_TOKEN, 1)


def _const(value: Any) -> JsonObject:
    return {"const": value}


def _stop(most: int | None) -> JsonObject:
    return _any(_TEXT_OR_NULL, _list(_TEXT, 0, most))


def _knobs(*, openai: bool) -> JsonObject:
    """The sampling knobs; with `openai` in OpenAI's ranges, else as the engine takes them."""
    penalty = _number(-2, 2) if openai else _number()
    return {
        "temperature": _number(0, 2) if openai else _number(),
        "top_p": _number(0, 1) if openai else _number(),
        "top_k": _whole(),
        "min_p": _number(),
        "typical_p": _number(),
        "presence_penalty": penalty,
        "frequency_penalty": penalty,
        "repeat_penalty": _number(),
        "mirostat": _whole(),
        "mirostat_tau": _number(),
        "mirostat_eta": _number(),
        "seed": _whole(),
    }


_LIMIT = {"description": "-1 is no limit, as for llama.cpp.", "not": {"const": 0}} | _whole(-1)
_COMMON: JsonObject = {
    "model": _TEXT_OR_NULL,
    "stream": _FLAG,
    "stream_options": _or_null(_object({"include_usage": _FLAG, "include_obfuscation": _FLAG})),
    "n": _whole(1, 128),
    "user": _TEXT_OR_NULL,
    "max_tokens": _LIMIT,
    "n_predict": _LIMIT,
    "stop": _stop(4),
    "logit_bias": _any(
        {
            "type": ["object", "null"],
            "additionalProperties": {"type": "number", "minimum": -100, "maximum": 100},
        },
        _list({"type": "array", "minItems": 2, "maxItems": 2}),
    ),
    **_knobs(openai=True),
}

_PARTS: JsonObject = _any(
    _object({"type": _const("text"), "text": _TEXT}, "type", "text"),
    _object({"type": _const("refusal"), "refusal": _TEXT}, "type", "refusal"),
    _object(
        {
            "type": _const("image_url"),
            "image_url": _object({"url": {"type": "string", "pattern": "^data:"}}, "url"),
        },
        "type", "image_url",
    ),
    _object(
        {
            "type": _const("input_audio"),
            "input_audio": _object({"data": _TEXT, "format": _TEXT}, "data", "format"),
        },
        "type", "input_audio",
    ),
)  # fmt: skip
_CALLED = _object({"name": _TEXT, "arguments": _TEXT}, "name", "arguments")
_MESSAGE = _object(
    {
        "role": {
            "enum": ["system", "developer", "user", "assistant", "tool", "function"],
        },
        "content": _any(_TEXT_OR_NULL, _list(_PARTS)),
        "name": _TEXT_OR_NULL,
        "tool_call_id": _TEXT_OR_NULL,
        "tool_calls": _any({"type": "null"}, _list(ref("ToolCall"))),
        "function_call": _or_null(_CALLED),
        "refusal": _TEXT_OR_NULL,
        "reasoning_content": _TEXT_OR_NULL,
    },
    "role",
)
_FUNCTION = _object(
    {
        "name": {"type": "string", "pattern": "^[a-zA-Z0-9_-]{1,64}$"},
        "description": _TEXT_OR_NULL,
        "parameters": _OBJECT_OR_NULL,
        "strict": _FLAG,
    },
    "name",
)
_FORMAT = _any(
    _object({"type": _const("text")}, "type"),
    _object({"type": _const("json_object")}, "type"),
    _object(
        {
            "type": _const("json_schema"),
            "json_schema": _object(
                {
                    "name": {"type": "string", "pattern": "^[a-zA-Z0-9_-]{1,64}$"},
                    "description": _TEXT_OR_NULL,
                    "schema": _OBJECT_OR_NULL,
                    "strict": _FLAG,
                },
                "name",
            ),
        },
        "type", "json_schema",
    ),
    {"type": "null"},
)  # fmt: skip

_REQUESTS: JsonObject = {
    "ChatRequest": _object(
        {
            **_COMMON,
            "messages": _list(ref("Message"), 1),
            "max_completion_tokens": _LIMIT,
            "logprobs": _FLAG,
            "top_logprobs": _whole(0, 20),
            "response_format": _FORMAT,
            "tools": _any({"type": "null"}, _list(ref("Tool"))),
            "tool_choice": _any(
                _one_of("none", "auto", "required"), _object({"type": _TEXT}, "type")
            ),
            "parallel_tool_calls": _FLAG,
            "functions": _any({"type": "null"}, _list(ref("Function"))),
            "function_call": _any(_one_of("none", "auto"), _object({"name": _TEXT}, "name")),
            "reasoning_effort": _one_of(
                "none", "minimal", "low", "medium", "high", "xhigh", "max"
            ),
        },
        "messages",
    ),
    "Message": _MESSAGE,
    "Function": _FUNCTION,
    "Tool": _any(
        _object({"type": _const("function"), "function": ref("Function")}, "type", "function"),
        _object(
            {"type": _const("custom"), "custom": _object({"name": _TEXT}, "name")},
            "type", "custom",
        ),
    ),
    "CompletionRequest": _object(
        {
            **_COMMON,
            "prompt": _any(
                _TEXT_OR_NULL, _list(_any(_TEXT, _IDS), 1), _IDS
            ),
            "suffix": _TEXT_OR_NULL,
            "echo": _FLAG,
            "logprobs": _whole(0, 5),
            "best_of": _whole(1, 20),
            "max_tokens": _whole(-1),
        },
        "prompt",
    ),
    "ResponseRequest": _object(
        {
            **_knobs(openai=True),
            "input": _any(_TEXT, _list(_OBJECT, 1)),
            "instructions": _TEXT_OR_NULL,
            "model": _TEXT_OR_NULL,
            "stream": _FLAG,
            "max_output_tokens": _whole(1),
            "tools": _any({"type": "null"}, _list(_object({"type": _TEXT}, "type"))),
            "tool_choice": _any(
                _one_of("none", "auto", "required"), _object({"type": _TEXT}, "type")
            ),
            "parallel_tool_calls": _FLAG,
            "previous_response_id": _TEXT_OR_NULL,
            "store": _FLAG,
            "metadata": _any(
                {"type": "null"},
                {"type": "object", "additionalProperties": _TEXT, "maxProperties": 16},
            ),
            "include": _any({"type": "null"}, _list(_TEXT)),
            "top_logprobs": _whole(0, 20),
            "truncation": _one_of("auto", "disabled"),
            "reasoning": _OBJECT_OR_NULL,
            "text": _OBJECT_OR_NULL,
        },
        "input",
    ),
    "EmbeddingRequest": _object(
        {
            "input": _any(
                {"type": "string", "minLength": 1},
                _list(_any({"type": "string", "minLength": 1}, _IDS), 1, 2048),
                _IDS,
            ),
            "model": _TEXT_OR_NULL,
            "dimensions": _whole(1),
            "encoding_format": _one_of("float", "base64"),
        },
        "input",
    ),
    "RerankRequest": _object(
        {
            "query": {"type": "string", "minLength": 1},
            "documents": _list(_any(_TEXT, _object({"text": _TEXT}, "text")), 1),
            "texts": _any({"type": "null"}, _list(_TEXT, 1)),
            "model": _TEXT_OR_NULL,
            "top_n": _whole(1),
            "return_documents": _FLAG,
            "return_text": _FLAG,
        },
        "query",
    ) | {"anyOf": [{"required": ["documents"]}, {"required": ["texts"]}]},
    "NativeRequest": _object(
        {
            **_knobs(openai=False),
            "prompt": _any(
                _TEXT,
                _list(_any(_TEXT, {"type": "integer"}, _list(_any(_TEXT, _TOKEN))), 1),
                _object({"prompt_string": _TEXT}, "prompt_string"),
            ),
            "model": _TEXT_OR_NULL,
            "stream": _FLAG,
            "n_cmpl": _whole(1, 128),
            "n_predict": _whole(-1),
            "n_probs": _whole(0),
            "stop": _stop(None),
            "json_schema": _OBJECT_OR_NULL,
            "response_fields": _list(_TEXT),
        },
        "prompt",
    ),
    "InfillRequest": _object(
        {
            **_knobs(openai=False),
            "input_prefix": _TEXT_OR_NULL,
            "input_suffix": _TEXT_OR_NULL,
            "prompt": _TEXT_OR_NULL,
            "model": _TEXT_OR_NULL,
            "stream": _FLAG,
            "n_predict": _whole(-1),
            "stop": _stop(None),
        }
    ),
    "AfsParameters": _object(
        {
            "temperature": _number(0),
            "top_k": _whole(1),
            "top_p": _number(0, 1),
            "frequence_penalty": {"type": ["number", "null"], "exclusiveMinimum": 0},
            "max_new_tokens": _LIMIT,
            "seed": _whole(0),
            "stop_sequences": _stop(None),
            "show_probabilities": _FLAG,
        }
    ),
    "AfsConversation": _object(
        {
            "messages": _list(
                _object(
                    {
                        "role": {
                            "enum": ["human", "user", "assistant", "system", "tool", "function"]
                        },
                        "content": _TEXT_OR_NULL,
                    },
                    "role", "content",
                ),
                1,
            ),
            "model": _TEXT_OR_NULL,
            "parameters": _or_null(ref("AfsParameters")),
            "functions": _any({"type": "null"}, _list(ref("Function"))),
            "stream": _FLAG,
        },
        "messages",
    ),
    "AfsInputs": _object(
        {
            "inputs": _TEXT,
            "model": _TEXT_OR_NULL,
            "parameters": _or_null(ref("AfsParameters")),
            "stream": _FLAG,
        },
        "inputs",
    ),
    "AfsEmbeddingRequest": _object(
        {
            "inputs": _list({"type": "string", "minLength": 1}, 1, 2048),
            "model": _TEXT_OR_NULL,
        },
        "inputs",
    ),
    "Forwarded": {"type": "object", "description": "As the upstream has it: passed on as it is."},
}  # fmt: skip

_REASONS = ["stop", "length", "tool_calls", "content_filter", "function_call"]
_USAGE = _object(
    {"prompt_tokens": _COUNT, "completion_tokens": _COUNT, "total_tokens": _COUNT},
    "prompt_tokens", "total_tokens",
)  # fmt: skip
_HEAD: JsonObject = {"id": _TEXT, "created": {"type": "integer"}, "model": _TEXT}


def _choices(inner: JsonObject, *required: str, ended: bool = True) -> JsonObject:
    reason: JsonObject = {"enum": _REASONS if ended else [*_REASONS, None]}
    properties = {"index": _COUNT, "finish_reason": reason, "logprobs": _OBJECT_OR_NULL, **inner}
    return _list(_object(properties, "index", "finish_reason", *required))


def _answer(kind: str, choices: JsonObject, *, usage: bool) -> JsonObject:
    told = {"object": _const(kind), **_HEAD, "choices": choices}
    told["usage"] = ref("Usage") if usage else _or_null(ref("Usage"))
    required = ["id", "object", "created", "model", "choices"]
    return _object(told, *required, *(("usage",) if usage else ()))


_SAID: JsonObject = {
    "role": _const("assistant"),
    "content": _TEXT_OR_NULL,
    "refusal": _TEXT_OR_NULL,
    "tool_calls": _list(ref("ToolCall")),
    "reasoning_content": _TEXT_OR_NULL,
}


def event(name: str, error: str) -> JsonObject:
    """An event of a stream: what its data is, or that it is an error, or the end of a stream."""
    data = {
        "contentMediaType": "application/json",
        "contentSchema": _any(ref(name), ref(error)),
    }
    told = _any({"enum": ["[DONE]", "1970-01-01 00:00:00.000000"]}, data)
    return _object({"event": _TEXT, "data": {"type": "string"} | told}, "data")


_ERROR_KEYS = ("message", "type", "param", "code")


def _error(code: JsonObject) -> JsonObject:
    told = {"message": _TEXT, "type": _TEXT, "param": _TEXT_OR_NULL, "code": code}
    return _object({"error": _object(told, *_ERROR_KEYS)}, "error")


_ANSWERS: JsonObject = {
    "Usage": _USAGE,
    "ToolCall": _any(
        _object(
            {"id": _TEXT, "type": _const("function"), "function": _CALLED},
            "id", "type", "function",
        ),
        _object({"id": _TEXT, "type": _const("custom"), "custom": _OBJECT}, "id", "type", "custom"),
    ),
    "Chat": _answer(
        "chat.completion",
        _choices({"message": _object(_SAID, "role", "content", "refusal")}, "message", "logprobs"),
        usage=True,
    ),
    "ChatChunk": _answer(
        "chat.completion.chunk",
        _choices(
            {"delta": _object({**_SAID, "tool_calls": _list(_object({"index": _COUNT}, "index"))})},
            "delta",
            ended=False,
        ),
        usage=False,
    ),
    "Completion": _answer(
        "text_completion", _choices({"text": _TEXT}, "text", "logprobs"), usage=True
    ),
    "CompletionChunk": _answer(
        "text_completion", _choices({"text": _TEXT}, "text", ended=False), usage=False
    ),
    "Response": _object(
        {
            "id": _TEXT,
            "object": _const("response"),
            "created_at": {"type": "number"},
            "status": {"enum": ["completed", "failed", "in_progress", "incomplete"]},
            "error": _OBJECT_OR_NULL,
            "incomplete_details": _OBJECT_OR_NULL,
            "model": _TEXT,
            "output": _list(_object({"type": _TEXT}, "type")),
            "usage": _OBJECT_OR_NULL,
        },
        "id", "object", "created_at", "status", "error", "incomplete_details", "model", "output",
    ),
    "ResponseEvent": _object({"type": _TEXT, "sequence_number": _COUNT}, "type"),
    "Embeddings": _object(
        {
            "object": _const("list"),
            "model": _TEXT,
            "usage": ref("Usage"),
            "data": _list(
                _object(
                    {
                        "object": _const("embedding"),
                        "index": _COUNT,
                        "embedding": _any(_TEXT, _list({"type": "number"})),
                    },
                    "object", "index", "embedding",
                )
            ),
        },
        "object", "model", "usage", "data",
    ),
    "AfsEmbeddings": _object(
        {"total_time_taken": _TEXT, "data": _list(_OBJECT), "usage": ref("Usage")},
        "data", "usage",
    ),
    "Ranking": _any(
        _object(
            {
                "object": _const("list"),
                "model": _TEXT,
                "usage": ref("Usage"),
                "results": _list(
                    _object(
                        {"index": _COUNT, "relevance_score": {"type": "number"}},
                        "index", "relevance_score",
                    )
                ),
            },
            "object", "model", "usage", "results",
        ),
        _list(_object({"index": _COUNT, "score": {"type": "number"}}, "index", "score")),
    ),
    "Native": _any(_OBJECT, _list(_OBJECT, 2)),
    "NativeChunk": _object({"index": _COUNT, "content": _TEXT, "stop": {"type": "boolean"}}),
    "AfsAnswer": _object(
        {
            "generated_text": _TEXT,
            "function_call": _or_null(_CALLED),
            "tool_calls": _list(ref("ToolCall")),
            "details": _OBJECT_OR_NULL,
            "total_time_taken": _TEXT,
            "prompt_tokens": _COUNT,
            "generated_tokens": _COUNT,
            "total_tokens": _COUNT,
            "finish_reason": _TEXT_OR_NULL,
        },
        "generated_text", "function_call", "details", "total_time_taken", "prompt_tokens",
        "generated_tokens", "total_tokens", "finish_reason",
    ),
    "Model": _object(
        {
            "id": _TEXT,
            "object": _const("model"),
            "created": {"type": "integer"},
            "owned_by": _TEXT,
            "aliases": _list(_TEXT),
            "status": _object({"value": _TEXT}, "value"),
            "capabilities": _list(_TEXT),
            "context_length": {"type": "integer", "minimum": 1},
        },
        "id", "object", "created", "owned_by", "aliases", "status", "capabilities",
    ),
    "Models": _object(
        {"object": _const("list"), "data": _list(ref("Model"))}, "object", "data"
    ),
    "Herd": _object(
        {
            "object": _const("herd"),
            "state": _TEXT,
            "upstreams": _list(_object({"name": _TEXT, "state": _TEXT}, "name", "state")),
            "waiting": _COUNT,
            "queues": _OBJECT,
        },
        "object", "state", "upstreams", "waiting", "queues",
    ),
    "Counted": _object(
        {"object": _const("response.input_tokens"), "input_tokens": _COUNT},
        "object", "input_tokens",
    ),
    "Deleted": _object(
        {"id": _TEXT, "object": _TEXT, "deleted": _const(value=True)}, "id", "object", "deleted"
    ),
    "Items": _object(
        {
            "object": _const("list"),
            "data": _list(_OBJECT),
            "first_id": _TEXT_OR_NULL,
            "last_id": _TEXT_OR_NULL,
            "has_more": {"type": "boolean"},
        },
        "object", "data", "first_id", "last_id", "has_more",
    ),
    "Document": _object({"openapi": _TEXT}, "openapi"),
    "Route": _object(
        {
            "object": _const("route"),
            "upstreams": _list(_object({"name": _TEXT, "verdict": _TEXT}, "name", "verdict")),
        },
        "object", "upstreams",
    ),
    "Usages": _object(
        {"object": _const("list"), "by": _list(_TEXT), "data": _list(_OBJECT)},
        "object", "by", "data",
    ),
    "Health": _object({"status": _TEXT, "reasons": _list(_TEXT)}, "status"),
    "Report": _object(
        {
            "object": _const("health"),
            "status": _one_of("ok", "degraded", "unavailable"),
            "live": {"type": "boolean"},
            "ready": {"type": "boolean"},
            "reasons": _list(_TEXT),
            "version": _TEXT,
            "seconds": _number(0),
            "upstreams": _OBJECT,
            "waiting": _COUNT,
            "store": {"type": ["object", "null"]},
            "spool": {"type": ["object", "null"]},
            "valkey": {"type": ["object", "null"]},
        },
        "object", "status", "live", "ready", "reasons", "upstreams", "store", "spool", "valkey",
    ),
    "Error": _error(_TEXT_OR_NULL),
    "NativeError": _error({"type": "integer"}),
    "AfsError": {"allOf": [ref("Error"), _object({"detail": _TEXT}, "detail")]},
}  # fmt: skip

SCHEMAS: JsonObject = _REQUESTS | _ANSWERS
