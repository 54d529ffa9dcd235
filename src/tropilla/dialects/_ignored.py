"""The parameters that OpenAI's own servers act on, and that ask for nothing here.

Their types are checked, for a program's mistake is one wherever it runs. They stay among the
extras: a server that is no llama.cpp may know them. What would make an answer another one than it
claims to be is refused instead.
"""

from __future__ import annotations

from tropilla.dialects import _engine_fields
from tropilla.dialects._fields import Fields, invalid, kindred_extras, missing, wrong_type
from tropilla.ir import Json, JsonObject, Malformed, Request

_TIERS = ("auto", "default", "flex", "scale", "priority", "fast")
_MOST_METADATA, _MOST_NAME, _MOST_VALUE = 16, 64, 512

IGNORED = frozenset({
    "metadata", "modalities", "moderation", "prediction", "prompt_cache_key",
    "prompt_cache_options", "prompt_cache_retention", "safety_identifier", "service_tier", "store",
    "user", "verbosity", "web_search_options",
})  # fmt: skip
"""What a llama-server does not read."""


def check(body: JsonObject) -> None:
    """Raise for one that is not of its type, or that asks for what cannot be had."""
    if IGNORED.isdisjoint(body) and "audio" not in body:
        return
    fields = Fields(body)
    for name in ("user", "safety_identifier", "prompt_cache_key"):
        fields.string(name)
    fields.boolean("store")
    fields.choice("service_tier", _TIERS)
    fields.choice("verbosity", ("low", "medium", "high"))
    # Two spellings: the SDK's type has the one, OpenAI's documents the other.
    fields.choice("prompt_cache_retention", ("in_memory", "in-memory", "24h"))
    for name in ("prompt_cache_options", "web_search_options", "moderation"):
        fields.object(name)
    _check_metadata(fields.object("metadata"))
    _check_prediction(fields.object("prediction"))
    _check_modalities(fields.array("modalities"))
    if fields.any("audio") is not None:
        raise _silent("audio")


def _check_metadata(pairs: JsonObject | None) -> None:
    if pairs is None:
        return
    if len(pairs) > _MOST_METADATA:
        raise invalid(
            "metadata",
            f"expected at most {_MOST_METADATA} pairs, but got {len(pairs)} instead.",
            "object_above_max_properties",
        )
    for name, value in pairs.items():
        path = f"metadata.{name}"
        if type(value) is not str:
            raise wrong_type(path, "a string", value)
        for text, most in ((name, _MOST_NAME), (value, _MOST_VALUE)):
            if len(text) > most:
                raise invalid(
                    path,
                    f"expected at most {most} characters, but got {len(text)} instead.",
                    "string_above_max_length",
                )


def _check_prediction(value: JsonObject | None) -> None:
    if value is None:
        return
    fields = Fields(value, "prediction")
    if fields.choice("type", ("content",)) is None:
        raise missing("prediction.type")
    content = fields.any("content")
    if content is None:
        raise missing("prediction.content")
    if type(content) is not str and type(content) is not list:
        raise wrong_type("prediction.content", "a string or an array of parts", content)


def _check_modalities(wanted: list[Json] | None) -> None:
    for index, one in enumerate(wanted or ()):
        if type(one) is not str:
            raise wrong_type(f"modalities.{index}", "a string", one)
        if one == "audio":
            raise _silent("modalities")
        if one != "text":
            raise invalid(f"modalities.{index}", f"'{one}'. Supported values are: 'text'.")


def _silent(name: str) -> Malformed:
    return Malformed(
        f"'{name}' asks for an answer that is spoken, and what is served here writes text only.",
        param=name,
        code="unsupported_value",
        kind="unsupported",
    )


def extras_for_llamacpp(request: Request) -> tuple[JsonObject, list[str]]:
    """The fields that the IR does not model, and that a llama-server reads; what it is not told.

    Raises:
        Malformed: of kind `unsupported`, where an answer would not be what it claims to be; or a
            field is out of its bounds.
    """
    extras = kindred_extras(request)
    if IGNORED.isdisjoint(extras):
        return _engine_fields.checked(extras)
    if extras.get("web_search_options") is not None:
        raise Malformed(
            "'web_search_options' asks for an answer that was looked up, and this model cannot "
            "search: give it a tool that can.",
            param="web_search_options",
            code="unsupported_parameter",
            kind="unsupported",
        )
    said = {name: value for name, value in extras.items() if name not in IGNORED}
    return _engine_fields.checked(said)
