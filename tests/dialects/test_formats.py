"""Schemas of clients: what is refused before an upstream sees it, and what llama.cpp is told."""

from __future__ import annotations

from typing import Any

import pytest

from tropilla.dialects import _formats
from tropilla.ir import JsonObject, Malformed, Problem

LINK = {"type": "object", "properties": {"next": {"$ref": "#"}}}


def nested(depth: int) -> JsonObject:
    schema: JsonObject = {"type": "string"}
    for _ in range(depth):
        schema = {"type": "array", "items": schema}
    return schema


FINE: list[JsonObject] = [
    {},
    {"type": ["object", "null"], "properties": {"a": {}, "b": True}, "required": ["a"]},
    {"enum": ["a", 1, None, {"b": []}]},
    {"const": None},
    {"type": "array", "items": [{"type": "integer"}], "additionalItems": False},
    {"type": "array", "minItems": 2, "maxItems": 2.0},
    {"type": "string", "pattern": "(?<=x)y", "format": "email"},
    {"type": "integer", "minimum": 1, "exclusiveMaximum": True, "maximum": 1.5},
    {"properties": {"$ref": {"type": "string"}, "enum": {"type": "string"}}},
    {"description": 5, "x-mine": {"type": "banana"}, "default": {"$ref": "http://a"}},
    {"items": None, "enum": None, "required": None},
    {"$ref": "#/$defs/a~1b%20c", "$defs": {"a/b c": {"type": "null"}}},
    {"anyOf": [{"type": "null"}, {"$ref": "#/anyOf/0"}]},
    LINK,
    nested(_formats.MOST_DEPTH - 1),
    {"enum": [str(number) for number in range(_formats.MOST_VALUES)]},
    {"properties": {str(number): {} for number in range(_formats.MOST_MEMBERS)}},
]


@pytest.mark.parametrize("schema", FINE, ids=lambda one: repr(one)[:60])
def test_what_can_be_is_let_through(schema: JsonObject) -> None:
    _formats.check(schema, "s", "c")


BAD: list[tuple[JsonObject, str, str]] = [
    ({"type": "banana"}, "s.type", "names no type"),
    ({"type": 5}, "s.type", "expected a string or an array"),
    ({"type": []}, "s.type", "must not be empty"),
    ({"properties": []}, "s.properties", "expected an object"),
    ({"properties": {"a": {"type": "x"}}}, "s.properties.a.type", "names no type"),
    ({"properties": {"a": None}}, "s.properties.a", "expected an object"),
    ({"items": "x"}, "s.items", "expected an object"),
    ({"items": []}, "s.items", "must not be empty"),
    ({"anyOf": {}}, "s.anyOf", "expected an array"),
    ({"anyOf": []}, "s.anyOf", "must not be empty"),
    ({"anyOf": [{}, 5]}, "s.anyOf.1", "expected an object"),
    ({"enum": "a"}, "s.enum", "expected an array"),
    ({"enum": []}, "s.enum", "must not be empty"),
    ({"required": True}, "s.required", "expected an array"),
    ({"required": ["a", 5]}, "s.required.1", "expected a string"),
    ({"minItems": -1}, "s.minItems", "not negative"),
    ({"minItems": 1.5}, "s.minItems", "whole number"),
    ({"minItems": True}, "s.minItems", "whole number"),
    ({"minimum": "1"}, "s.minimum", "expected a number"),
    ({"pattern": 5}, "s.pattern", "expected a string"),
    ({"format": ["x"]}, "s.format", "expected a string"),
    ({"$ref": 5}, "s.$ref", "expected a string"),
    # b11549 works on these two for ever.
    ({"minLength": 10, "maxLength": 1}, "s.minLength", "greater than 'maxLength'"),
    ({"minItems": 3, "maxItems": 1}, "s.minItems", "greater than 'maxItems'"),
    ({"minimum": 2, "maximum": 1}, "s.minimum", "greater than 'maximum'"),
    ({"$ref": "http://127.0.0.1:9/x.json"}, "s.$ref", "not in the schema"),
    ({"$ref": "#name"}, "s.$ref", "not in the schema"),
    ({"$ref": "#/$defs/zzz"}, "s.$ref", "which is not there"),
    ({"$ref": "#/anyOf/7", "anyOf": [{}]}, "s.$ref", "which is not there"),
    ({"$ref": "#/anyOf/" + "9" * 5000, "anyOf": [{}]}, "s.$ref", "which is not there"),
    ({"$ref": "#"}, "s.$ref", "leads back to itself"),
    (
        {"$ref": "#/$defs/a", "$defs": {"a": {"anyOf": [{"type": "null"}, {"$ref": "#/$defs/a"}]}}},
        "s.$ref",
        "leads back to itself",
    ),
    (
        {"properties": {"a": {"$ref": "#/x-parts/b"}}, "x-parts": {"b": {"type": "banana"}}},
        "s.properties.a.$ref.type",
        "names no type",
    ),
    (nested(_formats.MOST_DEPTH + 1), "s", "nested more than"),
    ({"enum": ["a"] * (_formats.MOST_VALUES + 1)}, "s", "values of 'enum'"),
    ({"anyOf": [{"enum": ["a"] * 3000}, {"enum": ["b"] * 3000}]}, "s", "values of 'enum'"),
    ({"properties": {str(number): {} for number in range(1001)}}, "s", "properties"),
    ({"const": "a" * (_formats.MOST_LETTERS + 1)}, "s", "letters"),
]


def problem_of(schema: JsonObject) -> Problem:
    with pytest.raises(Malformed) as told:
        _formats.check(schema, "s", "c")
    return told.value.problem


@pytest.mark.parametrize(("schema", "param", "why"), BAD, ids=lambda one: repr(one)[:60])
def test_what_cannot_be_is_refused_with_its_place(schema: JsonObject, param: str, why: str) -> None:
    problem = problem_of(schema)
    assert (problem.kind, problem.param, problem.code) == ("malformed", param, "c")
    assert why in problem.message


# As llama.cpp reads it.


def said(schema: JsonObject, *, strict: bool = True) -> tuple[JsonObject, list[str]]:
    _formats.check(schema, "s", "c")
    return _formats.for_llamacpp(schema, "s", "c", strict=strict)


def test_what_it_reads_is_said_as_it_is() -> None:
    schema = {
        "type": "object",
        "title": "T",
        "properties": {
            "a": {"type": "integer", "minimum": 1, "description": "d"},
            "b": {"type": "array", "items": {"$ref": "#/$defs/c"}, "minItems": 1, "maxItems": 3},
            "not": {"type": "string", "pattern": "^[a-z]+$"},
        },
        "required": ["a"],
        "additionalProperties": False,
        "$defs": {"c": {"anyOf": [{"type": "null"}, {"const": {"not": 1}}]}},
    }
    assert said(schema) == (schema, [])


@pytest.mark.parametrize(
    ("schema", "told"),
    [
        ({"properties": {"a": True}}, {"properties": {"a": {}}}),
        ({"items": True}, {"items": {}}),
        ({"additionalProperties": True}, {"additionalProperties": True}),
        ({"prefixItems": [{}], "items": False}, {"prefixItems": [{}]}),
        ({"minItems": 2.0}, {"minItems": 2}),
        ({"enum": None, "type": "null"}, {"type": "null"}),
        ({"uniqueItems": False, "minProperties": 0}, {"uniqueItems": False, "minProperties": 0}),
    ],
)
def test_what_it_would_stumble_over_is_said_otherwise(schema: Any, told: Any) -> None:
    assert said(schema) == (told, [])


def test_a_schema_that_holds_itself_gets_a_name() -> None:
    told, lost = said(LINK | {"$defs": {"x": {}}})
    ref = {"$ref": "#/$defs/whole-schema"}
    whole = {"type": "object", "properties": {"next": ref}}
    assert (told, lost) == (ref | {"$defs": {"x": {}, "whole-schema": whole}}, [])


@pytest.mark.parametrize(
    ("schema", "keyword"),
    [
        ({"type": "number", "minimum": 5}, "minimum"),
        ({"multipleOf": 5, "type": "integer"}, "multipleOf"),
        ({"type": "string", "pattern": "a+"}, "pattern"),
        ({"type": "string", "pattern": "^a+$", "minLength": 2}, "minLength"),
    ],
)
def test_what_it_passes_over_is_told(schema: Any, keyword: str) -> None:
    for strict in (True, False):
        assert said(schema, strict=strict)[1] == [f"schema.{keyword}"]


@pytest.mark.parametrize(
    "schema",
    [
        {"not": {"type": "string"}},
        {"uniqueItems": True},
        {"properties": {"a": {"patternProperties": {"^a": {}}}}},
        {"if": {"type": "string"}, "then": {}},
    ],
    ids=repr,
)
def test_a_shape_that_it_passes_over_is_refused_where_it_must_be_kept(schema: JsonObject) -> None:
    with pytest.raises(Malformed) as told:
        said(schema)
    assert (told.value.problem.kind, told.value.problem.code) == ("unsupported", "c")
    assert str(told.value.problem.param).startswith("s.")
    assert len(said(schema, strict=False)[1]) == 1


@pytest.mark.parametrize(
    "schema", [{"minLength": 2001}, {"properties": {"a": False}}, {"items": False}], ids=repr
)
def test_what_it_fails_at_is_refused(schema: JsonObject) -> None:
    for strict in (True, False):
        with pytest.raises(Malformed) as told:
            said(schema, strict=strict)
        assert told.value.problem.kind == "unsupported"


PATTERNS = {
    r"^$": r"^$",
    r"^\d{3}-\w+$": r"^[0-9]{3}-[A-Za-z0-9_]+$",
    r"^[\d.]+$": r"^[0-9.]+$",
    r"^(?:a|b)?c{2,3}$": r"^(?:a|b)?c{2,3}$",
    r"^a\/b\.c\-d$": r"^a/b\.c\-d$",
    r"^a+?b*?c{2}?d??$": r"^a+b*c{2}d?$",
    r"^a\??$": r"^a\??$",
    r"^[^a-z]+$": r'^[^"\\\x00-\x1fa-z]+$',
    r"^.{1,50}$": r"^.{1,50}$",
    # It passes these over, fails at them, writes no JSON, or hangs.
    r"[a-z]": None,
    r"^a\$": None,
    r"^(?=a)b$": None,
    r"^(?i)a$": None,
    r"^\bq$": None,
    r"^\s$": None,
    r"^(a)\1$": None,
    r"^a$b$": None,
    r"^a^b$": None,
    r'^"a"$': None,
    r'^["]$': None,
    r"^a\\b$": None,
    r"^é$": None,
    "^\n$": None,
    r"^*$": None,
    r"^[]$": None,
    r"^[^]$": None,
    r"^(a$": None,
    r"^a++$": None,
    r"^[[:alpha:]]$": None,
    r"^x{2,1}$": None,
    r"^x{3000}$": None,
    r"^x{99999999999999999999}$": None,
    "^" + "(" * 2000 + ")" * 2000 + "$": None,
}


@pytest.mark.parametrize(("pattern", "told"), PATTERNS.items(), ids=lambda one: repr(one)[:40])
def test_patterns(pattern: str, told: str | None) -> None:
    assert _formats.readable(pattern) == told
