"""What a JSON Schema asks for, as far as a grammar can say it (`_grammar`)."""

from __future__ import annotations

from typing import Any

import msgspec

from tropilla.dialects._fields import wrong_type
from tropilla.ir import Json, JsonObject, Malformed

_TEXT = ((str,), "a string")
_LIST = ((list,), "an array")
_COUNT = ((int,), "an integer")
_NUMBER = ((int, float), "a number")
_SCHEMA = ((bool, dict), "a boolean or an object")
_SHAPES: dict[str, tuple[tuple[type[Any], ...], str]] = {
    "$ref": _TEXT, "format": _TEXT,
    "allOf": _LIST, "anyOf": _LIST, "oneOf": _LIST, "enum": _LIST, "prefixItems": _LIST,
    "required": _LIST, "properties": ((dict,), "an object"),
    "type": ((str, list), "a string or an array"),
    "additionalProperties": _SCHEMA, "items": _SCHEMA,
    "minItems": _COUNT, "maxItems": _COUNT, "minLength": _COUNT, "maxLength": _COUNT,
    "minimum": _NUMBER, "maximum": _NUMBER,
    "exclusiveMinimum": _NUMBER, "exclusiveMaximum": _NUMBER,
}  # fmt: skip

RANGE = {"minimum", "maximum", "exclusiveMinimum", "exclusiveMaximum"}
TELLS: dict[str, set[str]] = {
    "object": {"properties", "required", "additionalProperties"},
    "array": {"items", "prefixItems", "minItems", "maxItems"},
    "string": {"minLength", "maxLength", "format"},
    "number": RANGE,
    "integer": RANGE,
    "boolean": set(),
    "null": set(),
}
"""What tells more of each type."""
_UNSAID: dict[str, set[str]] = {
    "object": {
        "patternProperties", "propertyNames", "minProperties", "maxProperties", "dependencies",
        "dependentRequired", "dependentSchemas", "unevaluatedProperties",
    },
    "array": {
        "contains", "minContains", "maxContains", "uniqueItems", "additionalItems",
        "unevaluatedItems",
    },
    "string": {"pattern"},
    "number": {"multipleOf"},
    "integer": {"multipleOf"},
}  # fmt: skip
_NEVER = {"not", "if", "$dynamicRef", "$recursiveRef"}
_KEYWORDS = {"const", *_SHAPES, *_NEVER}.union(*_UNSAID.values())
_IDLE: JsonObject = {
    "uniqueItems": False, "minProperties": 0, "patternProperties": {}, "dependencies": {},
    "dependentRequired": {}, "dependentSchemas": {}, "unevaluatedProperties": False,
}  # fmt: skip
"""The value with which a keyword asks for nothing, or for what a grammar does anyway."""


def unsayable(path: str, why: str) -> Malformed:
    """The error for what a grammar cannot say."""
    return Malformed(
        f"The server is so old that it needs a grammar, and '{path}' {why}.",
        param=path,
        kind="unsupported",
    )


def told(schema: Json, path: str) -> JsonObject:
    """The keywords of a schema that do more than explain it, each of its type."""
    if schema is True:
        return {}
    if schema is False:
        raise unsayable(path, "allows nothing")
    if type(schema) is not dict:
        raise wrong_type(path, "a boolean or an object", schema)
    asked = {
        keyword: value
        for keyword, value in schema.items()
        if keyword == "const"
        or (keyword in _KEYWORDS and value is not None and value != _IDLE.get(keyword))
    }
    for keyword, value in asked.items():
        if keyword in _NEVER:
            raise unsayable(f"{path}.{keyword}", "cannot be said in one")
        kinds, expected = _SHAPES.get(keyword, ((type(value),), ""))
        if type(value) not in kinds:
            raise wrong_type(f"{path}.{keyword}", expected, value)
    for index, name in enumerate(asked.get("required", ())):
        if type(name) is not str:
            raise wrong_type(f"{path}.required.{index}", "a string", name)
    return asked


def kinds_of(asked: JsonObject, path: str) -> list[str]:
    """The types that a schema allows; where it names none, those of which it tells more."""
    match asked.get("type"):
        case None:
            kinds = [one for one in TELLS if asked.keys() & (TELLS[one] | _UNSAID.get(one, set()))]
        case str(kind):
            kinds = [kind]
        case listed:
            kinds = listed
    for kind in kinds:
        if type(kind) is not str or kind not in TELLS:
            raise unsayable(f"{path}.type", "names no type")
    if not kinds:
        raise unsayable(f"{path}.type", "allows nothing")
    return [kind for kind in dict.fromkeys(kinds) if kind != "integer" or "number" not in kinds]


def refuse_unsaid(kind: str, asked: JsonObject, path: str) -> None:
    """Raise for what a schema asks of a type, and a grammar cannot say."""
    for keyword in sorted(asked.keys() & _UNSAID.get(kind, set())):
        raise unsayable(f"{path}.{keyword}", "cannot be said in one")


def constants(asked: JsonObject, path: str) -> list[str]:
    """What `const` and `enum` leave, as JSON, each value once."""
    keyword = "const" if "const" in asked else "enum"
    for other in sorted(asked.keys() - {"const", "enum", "type"}):
        raise unsayable(f"{path}.{other}", f"cannot be said beside {keyword}")
    texts = {text_of(value): value for value in asked.get("enum", [asked.get("const")])}
    if "const" in asked:
        texts = {text: value for text, value in texts.items() if text == text_of(asked["const"])}
    if "type" in asked:
        kinds = kinds_of(asked, path)
        texts = {text: value for text, value in texts.items() if _is(value, kinds)}
    if not texts:
        raise unsayable(f"{path}.{keyword}", "allows nothing")
    return list(texts)


def _is(value: Json, kinds: list[str]) -> bool:
    """Whether a value is of one of these types."""
    match value:
        case None:
            return "null" in kinds
        case bool():
            return "boolean" in kinds
        case int() | float():
            return "number" in kinds or ("integer" in kinds and value == int(value))
        case str():
            return "string" in kinds
        case list():
            return "array" in kinds
        case _:
            return "object" in kinds


def joined(parts: list[JsonObject], path: str) -> JsonObject:
    """One schema that asks for what all of these do."""
    for part in parts:
        own = part.get("properties", {}).keys()
        if part.get("additionalProperties", True) is not True and any(
            other.get("properties", {}).keys() - own for other in parts
        ):
            raise unsayable(f"{path}.additionalProperties", "is about members of another schema")
    whole: JsonObject = {}
    for part in parts:
        for keyword, value in part.items():
            twice = keyword in whole
            whole[keyword] = _both(keyword, whole[keyword], value, path) if twice else value
    return whole


def _both(keyword: str, one: Json, two: Json, path: str) -> Json:
    """What a keyword says, said twice."""
    if text_of(one) == text_of(two):
        return one
    match keyword:
        case "properties":
            return one | two | {n: {"allOf": [one[n], two[n]]} for n in one.keys() & two.keys()}
        case "required":
            return [*one, *two]
        case "additionalProperties" if one is True or two is True:
            return two if one is True else one
        case "type":
            kinds = [kinds_of({"type": kind}, path) for kind in (one, two)]
            wide = [{*some, "integer"} if "number" in some else {*some} for some in kinds]
            return sorted(wide[0] & wide[1])
    raise unsayable(f"{path}.{keyword}", "is said twice")


def text_of(value: Json) -> str:
    """A value as JSON."""
    return msgspec.json.encode(value).decode()
