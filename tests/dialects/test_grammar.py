"""JSON held to a schema by a grammar, on the real engine."""

from __future__ import annotations

from typing import Any

import jsonschema  # type: ignore[import-untyped]
import msgspec
import pytest

from tropilla.dialects import _grammar
from tropilla.ir import Malformed
from tropilla.upstream.http import Link

pytestmark = pytest.mark.anyio

SCHEMAS: dict[str, Any] = {
    "plain": {
        "type": "object",
        "properties": {"name": {"type": "string", "enum": ["a", 'q"\\']}, "n": {"type": "integer"}},
        "required": ["name", "n"],
        "additionalProperties": False,
    },
    "optional": {
        "type": "object",
        "properties": {
            "a": {"type": "boolean"},
            "b": {"type": ["boolean", "null"]},
            "c": {"const": {"x": [1, 2.5]}},
        },
        "required": ["b"],
    },
    "nothing required": {
        "type": "object",
        "properties": {"a": {"type": "null"}, "b": {"const": 1}},
    },
    "list": {"type": "array", "items": {"type": "boolean"}, "minItems": 2},
    "choice": {"anyOf": [{"const": "yes"}, {"type": "object", "properties": {}}]},
    "reference": {
        "$ref": "#/$defs/tree",
        "$defs": {
            "tree": {
                "type": "object",
                "title": "A tree",
                "properties": {
                    "leaf": {"type": "boolean"},
                    "next": {"anyOf": [{"type": "null"}, {"$ref": "#/$defs/tree"}]},
                },
                "required": ["leaf", "next"],
            }
        },
    },
}


async def written(link: Link, grammar: str, seed: int) -> Any:
    body = {"prompt": "JSON: ", "grammar": grammar, "n_predict": 400, "seed": seed, "top_k": 0}
    status, answer = await link.ask("POST", "/completion", body, seconds=60)
    assert status == 200, answer
    told = msgspec.json.decode(answer)
    return msgspec.json.decode(told["content"]) if told["stop_type"] == "eos" else None


@pytest.mark.parametrize("name", SCHEMAS)
async def test_what_the_engine_writes_fits_the_schema(engine: str, name: str) -> None:
    link = Link(engine)
    grammar = _grammar.of_schema(SCHEMAS[name])
    values = [await written(link, grammar, seed) for seed in range(6)]
    await link.close()
    # The tiny model may go on for ever where the grammar lets it.
    ended = [value for value in values if value is not None]
    assert ended
    for value in ended:
        jsonschema.validate(value, SCHEMAS[name])


async def test_any_object(engine: str) -> None:
    link = Link(engine)
    values = [await written(link, _grammar.of_json(), seed) for seed in range(8)]
    await link.close()
    assert all(value is None or isinstance(value, dict) for value in values)


@pytest.mark.parametrize(
    ("schema", "path"),
    [
        ({"type": "string", "pattern": "a+"}, "s.pattern"),
        ({"type": "integer", "minimum": 3}, "s.minimum"),
        ({"type": "object", "properties": {"a": {"not": {}}}}, "s.properties.a.not"),
        ({"type": "thing"}, "s.type"),
        ({"$ref": "https://example.com"}, "s.$ref"),
        ({"$ref": "#/nowhere"}, "s.$ref"),
        ({"$ref": "#"}, "s.$ref"),
        ({"enum": []}, "s.enum"),
        ({"anyOf": []}, "s.anyOf"),
        ({"type": "array", "items": 5}, "s.items"),
        ({"type": "array", "minItems": 10**9}, "s.minItems"),
        ({"type": "object", "required": ["x"]}, "s.required"),
        ({"type": "object", "properties": {str(i): True for i in range(40)}}, "s.properties"),
    ],
)
async def test_what_a_grammar_cannot_say_is_named(schema: Any, path: str) -> None:
    with pytest.raises(Malformed) as caught:
        _grammar.of_schema(schema, "s")
    assert (caught.value.problem.kind, caught.value.problem.param) == ("unsupported", path)


async def test_depth_has_an_end() -> None:
    schema: Any = True
    for _ in range(5000):
        schema = {"type": "array", "items": schema}
    with pytest.raises(Malformed):
        _grammar.of_schema(schema)
