"""OpenAI's published schemas, as a check of what Tropilla says to a client."""

from __future__ import annotations

import re
from functools import cache
from pathlib import Path
from typing import Any

import msgspec
from jsonschema import Draft202012Validator  # type: ignore[import-untyped]
from referencing import Registry
from referencing.jsonschema import DRAFT202012

_DOCUMENT = Path(__file__).parent / "openapi" / "openai-subset.json"
_URI = "urn:openai"


@cache
def _schemas() -> tuple[Any, Registry[Any]]:
    document = msgspec.json.decode(_DOCUMENT.read_bytes())
    # OpenAPI 3.1 is JSON Schema 2020-12, its references reaching into the whole document.
    registry: Registry[Any] = Registry()
    return document, registry.with_resource(_URI, DRAFT202012.create_resource(document))


@cache
def _validator(name: str) -> Draft202012Validator:
    document, registry = _schemas()
    assert name in document["components"]["schemas"]
    return Draft202012Validator({"$ref": f"{_URI}#/components/schemas/{name}"}, registry=registry)


def check(name: str, value: Any) -> None:
    """Fail where a value is not what OpenAI's schema of this name says."""
    errors = [
        f"{'.'.join(str(step) for step in error.absolute_path)}: {error.message[:300]}"
        for error in _validator(name).iter_errors(value)
    ]
    assert not errors, "\n".join(errors)


def check_chat_chunk(value: Any) -> None:
    """One event of a chat completion's stream; an error is OpenAI's error.

    The schema of a chunk has forgotten custom tools, which that of a whole answer has.
    """
    value = _without_custom_calls(value)
    check("ErrorResponse" if "error" in value else "CreateChatCompletionStreamResponse", value)


def _without_custom_calls(value: Any) -> Any:
    match value:
        case {"choices": [{"delta": {"tool_calls": [*calls]} as delta} as choice]}:
            left = [one for one in calls if "custom" not in one]
            return value | {"choices": [choice | {"delta": delta | {"tool_calls": left}}]}
    return value


def check_chat(value: Any) -> None:
    """A whole chat completion."""
    check("CreateChatCompletionResponse", value)


def check_completion(value: Any) -> None:
    """A whole text completion, which is what a chunk of one looks like too.

    But for `usage`: the schema of the endpoint's `stream_options` says that it is null in every
    chunk but the last, and the schema of the chunk has forgotten that.
    """
    if "usage" in value and value["usage"] is None:
        value = {key: value[key] for key in value if key != "usage"}
    check("ErrorResponse" if "error" in value else "CreateCompletionResponse", value)


def check_response(value: Any) -> None:
    """A whole response."""
    check("ErrorResponse" if "id" not in value else "Response", value)


def check_response_event(value: Any) -> None:
    """One event of a response's stream."""
    check("ResponseStreamEvent", value)


# Every answer of the suite: its path tells what it must be.

_KINDS = tuple(
    (re.compile(asked), whole, chunk)
    for asked, whole, chunk in (
        (
            "POST .*/chat/completions",
            "CreateChatCompletionResponse",
            "CreateChatCompletionStreamResponse",
        ),
        ("POST .*/completions", "CreateCompletionResponse", "CreateCompletionResponse"),
        ("POST /v1/embeddings", "CreateEmbeddingResponse", ""),
        ("POST (/v1)?/responses", "Response", "ResponseStreamEvent"),
        ("GET (/v1)?/responses/[^/]+", "Response", ""),
        ("GET (/v1)?/models", "ListModelsResponse", ""),
        ("GET (/v1)?/models/(?!sse$).+", "Model", ""),
        ("(GET|POST|DELETE) (/v1)?/responses/.+", "", ""),
    )
)
"""What is asked, and the schemas of a whole answer and of a stream's event."""
_AFS = ("/models/conversation", "/models/generate", "/models/text_infilling")
_NATIVE = ("/completion", "/infill")
_ERROR_KEYS = {"message", "type", "param", "code"}


def check_answer(method: str, path: str, status: int, content_type: str, body: bytes) -> None:
    """Fail where an answer is not what its API says.

    Of a stream that was cut, the last event may not be whole.
    """
    path = path.rstrip("/")
    kind = next((one for one in _KINDS if one[0].fullmatch(f"{method} {path}")), None)
    if kind is None and path not in _NATIVE and not path.endswith(_AFS):
        return
    if status >= 400:
        check_error(path, status, body)
    elif status == 200 and kind is not None and body:
        if not content_type.startswith("text/event-stream"):
            if kind[1]:
                _check_whole(kind[1], msgspec.json.decode(body))
            return
        for line in body.split(b"\n")[:-1]:
            if line.startswith(b"data: {"):
                _check_event(kind[2], msgspec.json.decode(line.removeprefix(b"data: ")))


def check_error(path: str, status: int, body: bytes) -> None:
    """An error has the envelope of its API, with all four keys."""
    told = msgspec.json.decode(body)
    assert told["error"].keys() >= _ERROR_KEYS, (path, status, told)
    assert type(told["error"]["message"]) is str
    assert told["error"]["message"]
    assert type(told["error"]["type"]) is str
    if path in _NATIVE:
        assert told["error"]["code"] == status, (path, told)
    else:
        check("ErrorResponse", told)
    if path.endswith(_AFS):
        assert told["detail"] == told["error"]["message"]


def _check_whole(name: str, value: Any) -> None:
    if name == "CreateCompletionResponse":
        check_completion(value)
        return
    if name == "CreateEmbeddingResponse":
        # The schema has forgotten base64, which the endpoint's own `encoding_format` has.
        data = [
            one | {"embedding": []} if type(one["embedding"]) is str else one
            for one in value["data"]
        ]
        value = value | {"data": data}
    check(name, value)


def _check_event(name: str, value: Any) -> None:
    if name == "CreateCompletionResponse":
        check_completion(value)
    elif name == "ResponseStreamEvent":
        check(name, value)
    else:
        check_chat_chunk(value)
