"""OpenAI's published schemas, as a check of what Tropilla says to a client."""

from __future__ import annotations

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
    """One event of a chat completion's stream; an error is OpenAI's error."""
    check("ErrorResponse" if "error" in value else "CreateChatCompletionStreamResponse", value)


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
