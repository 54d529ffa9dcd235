"""JSON as a grammar: what it lets through, what not, and that the real engine keeps to it."""

from __future__ import annotations

from typing import Any

import jsonschema  # type: ignore[import-untyped]
import msgspec
import pytest
from hypothesis import assume, given
from hypothesis import strategies as st

from dialects.gbnf import Grammar
from strategies import law
from tropilla.dialects._grammar import of_json, of_schema
from tropilla.ir import JsonObject, Malformed
from tropilla.upstream.http import Link

COMMON = set(Grammar(of_json()).rules) | {"zeros", "above-zero", "decimals"}


def own_rules(schema: JsonObject) -> str:
    """The rules that only this schema has."""
    lines = of_schema(schema).split("\n")
    return "\n".join(line for line in lines if line.split(" ")[0] not in COMMON - {"root"})


def test_members_in_their_order() -> None:
    schema = {
        "type": "object",
        "properties": {"a": {"type": "integer"}, 'é"': {"type": ["string", "null"]}},
        "required": ["a", 'é"'],
        "additionalProperties": False,
    }
    assert own_rules(schema) == (
        r'root ::= "{" ws "\"a\":" ws integer ws "," ws "\"é\\\"\":" ws (string | "null") ws "}"'
    )


def test_members_that_may_be_left_out() -> None:
    flag = {"type": "boolean"}
    schema = {"properties": {"a": flag, "b": flag, "c": flag}, "required": ["b"]}
    assert own_rules(schema).split("\n") == [
        'root ::= "{" ws (member-5 after-6 | first-7) "}"',
        r'member-1 ::= "\"c\":" ws boolean ws',
        r'member-2 ::= "\"b\":" ws boolean ws',
        'after-3 ::= ("," ws member-1)?',
        r'member-5 ::= "\"a\":" ws boolean ws',
        'after-6 ::= "," ws member-2 after-3',
        "first-7 ::= member-2 after-3",
    ]


def test_an_object_that_may_hold_itself() -> None:
    schema = {
        "$ref": "#/$defs/a~1b",
        "$defs": {
            "a/b": {
                "type": "object",
                "properties": {"a": {"anyOf": [{"$ref": "#/$defs/a~1b"}, {"type": "null"}]}},
                "required": ["a"],
            }
        },
    }
    assert own_rules(schema).split("\n") == [
        "root ::= ref-1",
        r'ref-1 ::= "{" ws "\"a\":" ws (ref-1 | "null") ws "}"',
    ]


def accepted(schema: JsonObject, *texts: str) -> list[str]:
    grammar = Grammar(of_schema(schema))
    return [text for text in texts if grammar.accepts(text)]


def test_any_object() -> None:
    grammar = Grammar(of_json())
    for text in (
        "{}",
        '{"a":[1,-2.5e+10,{"b":null}],"c":"\\u00e9\\ud83d\\ude00\\n"}',
        '{\n  "a": true,\n  "b": [\n    1\n  ]\n}',
    ):
        assert grammar.accepts(text)
    for text in (
        "", "[]", "1", '{"a":01}', '{"a":1,}', "{'a':1}", '{"a":"\n"}', '{"a":"\\ud83d"}',
        '{"a":"\\udc00"}', '{"a":NaN}', '{"a":+1}', '{"a":.5}', "{} ", " {}",
        "{" + " " * 40 + "}", '{"a":0.' + "3" * 40 + "}",
    ):  # fmt: skip
        assert not grammar.accepts(text), text


@pytest.mark.parametrize(
    ("schema", "fit", "unfit"),
    [
        ({"const": {"a": [1, None]}}, ['{"a":[1,null]}'], ['{"a":[1]}', "1"]),
        ({"type": "integer", "enum": [1, 1.5, True, "1"]}, ["1"], ["1.5", "true", '"1"']),
        ({"enum": ["a", "b"], "const": "b"}, ['"b"'], ['"a"']),
        (
            {"type": "string", "format": "date"},
            ['"2024-02-29"', '"1999-12-31"'],
            ['"2024-02-30"', '"2024-13-01"', '"2024-04-31"', '"24-01-01"', '"2024-01-00"'],
        ),
        (
            {"format": "date-time"},
            ['"2024-02-29T23:59:59Z"', '"2024-01-01T00:00:00.125+08:00"'],
            ['"2024-01-01"', '"2024-01-01T24:00:00Z"', '"2024-01-01T00:00:00"'],
        ),
        (
            {"format": "uuid"},
            ['"123e4567-e89b-12d3-a456-426614174000"'],
            ['"123e4567e89b12d3a456426614174000"', '""'],
        ),
        ({"format": "email", "maxLength": 3}, ['"a@b"'], ['"a@bc"']),
        ({"type": "string", "maxLength": 300}, ['"' + "é" * 300 + '"'], ['"' + "é" * 301 + '"']),
        (
            {"type": "string", "minLength": 40, "maxLength": 41},
            ['"' + "\\ud83d\\ude00" * 40 + '"', '"' + "a" * 41 + '"'],
            ['"' + "a" * 39 + '"', '"' + "a" * 42 + '"'],
        ),
        ({"type": "integer", "minimum": 0, "maximum": 150}, ["0", "150"], ["-1", "151", "007"]),
        ({"type": "integer", "exclusiveMinimum": 0.5}, ["1", "10", "123456"], ["0", "-1"]),
        ({"type": "integer", "minimum": 211, "maximum": 3e2}, ["211", "300"], ["210", "301"]),
        ({"type": "integer", "maximum": -8}, ["-8", "-10", "-99"], ["-7", "8", "0"]),
        ({"type": "number", "minimum": 0, "maximum": 1}, ["0", "0.5", "1.0"], ["1.01", "-0.5"]),
        ({"exclusiveMinimum": 0}, ["0.001", "3", "12.5"], ["0", "0.0", "-1"]),
        ({"minimum": -1, "exclusiveMaximum": 2}, ["-1", "-0.5", "-0", "0", "1.9"], ["2", "2.0"]),
        ({"minimum": -1, "exclusiveMaximum": 0}, ["-1", "-0.5"], ["0", "-0", "-0.0", "-1.1"]),
        ({"type": "array", "maxItems": 0}, ["[]", "[ ]"], ["[1]"]),
        ({"items": {"const": 1}, "minItems": 2, "maxItems": 3}, ["[1,1]", "[1, 1, 1]"], ["[1]"]),
        ({"items": {"const": 1}, "maxItems": 40}, ["[]", f"[{'1,' * 39}1]"], [f"[{'1,' * 40}1]"]),
        (
            {"prefixItems": [{"const": 1}, {"const": 2}], "minItems": 1},
            ["[1]", "[1,2]"],
            ["[]", "[2]", "[1,2,3]"],
        ),
        (
            {"prefixItems": [{"const": 1}], "items": {"const": 2}, "maxItems": 3},
            ["[]", "[1]", "[1,2,2]"],
            ["[1,1]", "[1,2,2,2]"],
        ),
        ({"properties": {}}, ["{}", '{"a":1}'], ["[]"]),
        ({"additionalProperties": False}, ["{}"], ['{"a":1}']),
        ({"additionalProperties": {"const": 1}}, ["{}", '{"a":1,"b":1}'], ['{"a":2}']),
        (
            {
                "properties": {"ab": {"const": 1}, "-]^": {"const": 2}},
                "additionalProperties": {"const": 3},
            },
            ['{"ab":1,"abc":3}', '{"a":3,"":3,"-]":3}', '{"-]^":2,"é":3}', "{}"],
            ['{"ab":3}', '{"-]^":3}', '{"\\u0061b":3}', '{"a":1}'],
        ),
        (
            {"properties": {'q"': {"const": 1}}, "additionalProperties": {"const": 3}},
            ['{"q\\"":1}', '{"q":3}'],
            ['{"q\\"":3}', '{"q\\u0022":3}'],
        ),
        ({"required": ["a"]}, ['{"a":[]}'], ["{}", '{"b":1}']),
        (
            {"required": ["a"], "additionalProperties": {"const": 1}},
            ['{"a":1}', '{"a":1,"b":1}'],
            ["{}", '{"a":2}'],
        ),
        (
            {
                "allOf": [{"$ref": "#/$defs/a"}, {"properties": {"b": {"const": 2}}}],
                "required": ["b"],
                "description": "both",
                "$defs": {"a": {"type": "object", "properties": {"a": {"const": 1}}}},
            },
            ['{"a":1,"b":2}', '{"b":2}'],
            ['{"a":1}', "2"],
        ),
        (
            {"allOf": [{"type": ["number", "null"]}, {"type": ["integer", "string"]}]},
            ["1"],
            ["1.5", "null", '"a"'],
        ),
        ({"allOf": [{"required": ["a"]}, {"required": ["b"]}]}, ['{"a":1,"b":2}'], ['{"a":1}']),
        (
            {
                "type": "object",
                "properties": {"a": {"const": 1}, "b": {"const": 2}},
                "anyOf": [{"required": ["a"]}, {"required": ["b"]}],
            },
            ['{"a":1}', '{"b":2}', '{"a":1,"b":2}'],
            ["{}"],
        ),
        (
            {"type": "string", "nullable": True, "title": "t", "default": 1, "x-order": 2},
            ['"a"'],
            ["null", "1"],
        ),
        ({"type": ["integer", "number"]}, ["1", "1.5"], ['"1"']),
    ],
)  # fmt: skip
def test_what_is_let_through(schema: JsonObject, fit: list[str], unfit: list[str]) -> None:
    assert accepted(schema, *fit, *unfit) == fit


TREE = {
    "type": "object",
    "properties": {"leaf": {"type": "boolean"}, "more": {"items": {"$ref": "#/$defs/tree"}}},
    "required": ["more"],
}
NAMES = st.sampled_from(["a", "ab", "abc", "b", 'q"', "é", "n\n", ""])
SCALARS = st.none() | st.booleans() | st.integers(-99, 99) | st.text(max_size=4)
JSON = st.recursive(
    SCALARS | st.integers(-999, 999).map(lambda number: number / 64),
    lambda inside: st.lists(inside, max_size=3) | st.dictionaries(NAMES, inside, max_size=3),
    max_leaves=6,
)


@st.composite
def ranges(draw: st.DrawFn, kind: str) -> JsonObject:
    low, high = sorted((draw(st.integers(-300, 300)), draw(st.integers(-300, 300))))
    bounds = {
        draw(st.sampled_from(["minimum", "exclusiveMinimum"])): low - 1,
        draw(st.sampled_from(["maximum", "exclusiveMaximum"])): high + 1,
    }
    kept = draw(st.sets(st.sampled_from(sorted(bounds))))
    return {"type": kind} | {name: bounds[name] for name in kept}


@st.composite
def objects(draw: st.DrawFn, inside: st.SearchStrategy[Any]) -> JsonObject:
    properties = draw(st.dictionaries(NAMES, inside, max_size=4))
    schema = {"type": "object", "properties": properties}
    if properties:
        schema["required"] = sorted(draw(st.sets(st.sampled_from(sorted(properties)))))
    return schema | draw(
        st.just({}) | st.fixed_dictionaries({"additionalProperties": st.booleans() | inside})
    )


@st.composite
def arrays(draw: st.DrawFn, inside: st.SearchStrategy[Any]) -> JsonObject:
    least, more = draw(st.integers(0, 3)), draw(st.integers(0, 3))
    schema = {
        "items": draw(inside),
        "prefixItems": draw(st.lists(inside, min_size=1, max_size=2)),
        "minItems": least,
        "maxItems": least + more,
    }
    kept = draw(st.sets(st.sampled_from(sorted(schema)), min_size=1))
    return {"type": "array"} | {name: schema[name] for name in kept}


LEAVES = st.one_of(
    st.sampled_from(
        [{}, {"type": "null"}, {"type": ["boolean", "string"]}, {"$ref": "#/$defs/tree"}]
    ),
    ranges("integer"),
    ranges("number"),
    st.fixed_dictionaries({"enum": st.lists(SCALARS, min_size=1, max_size=3)}),
    st.fixed_dictionaries({"const": SCALARS}),
    st.integers(0, 20).map(lambda least: {"type": "string", "minLength": least}),
    st.integers(0, 40).map(lambda most: {"type": "string", "maxLength": most}),
)
SCHEMAS = st.recursive(
    LEAVES,
    lambda inside: st.one_of(
        objects(inside),
        arrays(inside),
        st.lists(inside, min_size=1, max_size=3).map(lambda choices: {"anyOf": choices}),
        inside.map(lambda one: {"allOf": [one], "title": "t"}),
    ),
    max_leaves=6,
).map(lambda schema: schema | {"$defs": {"tree": TREE}})


def fits(schema: JsonObject, value: Any) -> bool:
    valid: bool = jsonschema.Draft202012Validator(schema).is_valid(value)
    return valid


def texts_of(value: Any) -> list[str]:
    compact = msgspec.json.encode(value)
    return [
        compact.decode(),
        msgspec.json.format(compact, indent=0).decode(),
        msgspec.json.format(compact, indent=2).decode(),
    ]


@st.composite
def instances(draw: st.DrawFn, schema: Any) -> Any:
    """What fits, in the order of the schema, and with no members that nobody named."""
    match schema:
        case True:
            return draw(JSON)
        case {"$ref": _}:
            tree: Any = TREE | {"properties": {"more": {"maxItems": 0}}}
            for _ in range(draw(st.integers(0, 2))):
                inside = {"leaf": {"enum": [True, False]}, "more": {"type": "array", "items": tree}}
                tree = TREE | {"properties": inside}
            return draw(instances(tree))
        case {"anyOf": [*choices]}:
            return draw(instances(draw(st.sampled_from(choices))))
        case {"allOf": [one]}:
            return draw(instances(one))
        case {"const": value}:
            return value
        case {"enum": values}:
            return draw(st.sampled_from(values))
        case {"type": ["boolean", "string"]}:
            return draw(st.booleans() | st.text())
        case {"type": "null"}:
            return None
        case {"type": "string"}:
            return draw(
                st.text(min_size=schema.get("minLength", 0), max_size=schema.get("maxLength", 40))
            )
        case {"type": "integer" | "number" as kind}:
            whole = kind == "integer"
            step = 1 if whole else 64
            low = schema.get("minimum", schema.get("exclusiveMinimum", -999)) * step
            high = schema.get("maximum", schema.get("exclusiveMaximum", 999)) * step
            low, high = low + ("exclusiveMinimum" in schema), high - ("exclusiveMaximum" in schema)
            assume(low <= high)
            number = draw(st.integers(low, high))
            return number if whole else number / step
        case {"type": "array"} | {"maxItems": _}:
            return draw(filled(schema))
        case {"type": "object"}:
            return draw(membered(schema))
    return draw(JSON)


@st.composite
def filled(draw: st.DrawFn, schema: JsonObject) -> list[Any]:
    prefix, least = schema.get("prefixItems", []), schema.get("minItems", 0)
    rest = schema.get("items", not prefix or least > len(prefix))
    most = schema.get("maxItems", least + 2)
    if rest is False:
        most = min(most, len(prefix))
    places = [*prefix, *[rest] * most]
    return [draw(instances(one)) for one in places[: draw(st.integers(least, most))]]


@st.composite
def membered(draw: st.DrawFn, schema: JsonObject) -> JsonObject:
    properties = schema["properties"]
    more = schema.get("additionalProperties", not properties)
    members = {
        name: draw(instances(one))
        for name, one in properties.items()
        if name in schema.get("required", ()) or draw(st.booleans())
    }
    if more is not False:
        others = draw(st.lists(st.sampled_from(["abcd", "aa", "x"]), max_size=2, unique=True))
        members |= {name: draw(instances(more)) for name in others}
    return members


@law(150)
@given(st.data())
def test_what_fits_is_let_through(data: st.DataObject) -> None:
    schema = data.draw(SCHEMAS)
    value = data.draw(instances(schema))
    assert fits(schema, value)
    texts = texts_of(value)
    assert accepted(schema, *texts) == texts


@law(150)
@given(SCHEMAS, st.randoms(use_true_random=False))
def test_what_is_let_through_fits(schema: JsonObject, chance: Any) -> None:
    grammar = Grammar(of_schema(schema))
    for _ in range(5):
        text = grammar.text(chance.randrange)
        assert grammar.accepts(text)
        assert fits(schema, msgspec.json.decode(text)), text


@st.composite
def changed(draw: st.DrawFn, value: Any) -> Any:
    """A value with one change somewhere."""
    inside = bool(value) and draw(st.booleans())
    match value:
        case dict() if inside:
            name = draw(st.sampled_from(sorted(value)))
            rest = {key: one for key, one in value.items() if key != name}
            return rest if draw(st.booleans()) else value | {name: draw(changed(value[name]))}
        case list() if inside:
            place = draw(st.integers(0, len(value) - 1))
            return [*value[:place], draw(changed(value[place])), *value[place + 1 :]]
        case dict():
            return value | {draw(NAMES): draw(JSON)}
        case list():
            return [*value, draw(JSON)]
    return draw(JSON)


@law(150)
@given(st.data())
def test_what_does_not_fit_is_not_let_through(data: st.DataObject) -> None:
    schema = data.draw(SCHEMAS)
    value = data.draw(instances(schema).flatmap(changed))
    assume(not fits(schema, value))
    assert not accepted(schema, *texts_of(value))


@pytest.mark.parametrize(
    ("schema", "path"),
    [
        ({"type": "string", "pattern": "a+"}, "s.pattern"),
        ({"type": "string", "maxLength": 10_001}, "s.maxLength"),
        ({"format": "date", "maxLength": 3}, "s.maxLength"),
        ({"type": "number", "minimum": 0.5}, "s.minimum"),
        ({"type": "integer", "multipleOf": 3}, "s.multipleOf"),
        ({"type": "integer", "minimum": 3, "maximum": 2}, "s"),
        ({"type": "array", "uniqueItems": True}, "s.uniqueItems"),
        ({"type": "array", "minItems": 10**9}, "s.minItems"),
        ({"type": "array", "minItems": 2, "maxItems": 1}, "s"),
        ({"patternProperties": {"a": True}}, "s.patternProperties"),
        ({"type": "object", "properties": {"a": {"not": {}}}}, "s.properties.a.not"),
        ({"type": "object", "properties": {"a": False}}, "s.properties.a"),
        ({"required": ["x"], "additionalProperties": False}, "s.additionalProperties"),
        ({"type": "thing"}, "s.type"),
        ({"type": []}, "s.type"),
        ({"type": "string", "enum": [1]}, "s.enum"),
        ({"enum": []}, "s.enum"),
        ({"enum": ["a"], "minLength": 1}, "s.minLength"),
        ({"anyOf": []}, "s.anyOf"),
        ({"anyOf": [True, {"if": {}}]}, "s.anyOf.1.if"),
        ({"allOf": [{"minimum": 1}, {"minimum": 2}]}, "s.minimum"),
        (
            {"properties": {"a": True}, "allOf": [{"additionalProperties": False}]},
            "s.additionalProperties",
        ),
        ({"$ref": "https://example.com"}, "s.$ref"),
        ({"$ref": "#/nowhere"}, "s.$ref"),
        ({"$ref": "#"}, "s.$ref"),
        ({"$ref": "#/$defs/a", "$defs": {"a": {"allOf": [{"$ref": "#/$defs/a"}]}}},
         "s.$defs.a.allOf.0.$ref"),
        (
            {
                "items": {"$ref": "#/$defs/a"},
                "$defs": {
                    "a": {"anyOf": [{"items": {"$ref": "#/$defs/b"}}, {"$ref": "#/$defs/b"}]},
                    "b": {"$ref": "#/$defs/a"},
                },
            },
            "s.$defs.a.anyOf.1.$ref",
        ),
    ],
)  # fmt: skip
def test_what_a_grammar_cannot_say_is_named(schema: JsonObject, path: str) -> None:
    with pytest.raises(Malformed) as caught:
        of_schema(schema, "s")
    assert (caught.value.problem.kind, caught.value.problem.param) == ("unsupported", path)


@pytest.mark.parametrize(
    ("schema", "path"),
    [
        ({"type": 1}, "s.type"),
        ({"type": "array", "items": 5}, "s.items"),
        ({"minLength": "1"}, "s.minLength"),
        ({"exclusiveMinimum": True}, "s.exclusiveMinimum"),
        ({"required": [1]}, "s.required.0"),
        ({"properties": {"a": 1}}, "s.properties.a"),
        ({"allOf": {}}, "s.allOf"),
    ],
)
def test_what_is_no_schema_is_named(schema: JsonObject, path: str) -> None:
    with pytest.raises(Malformed) as caught:
        of_schema(schema, "s")
    assert (caught.value.problem.kind, caught.value.problem.param) == ("malformed", path)


def deep(levels: int) -> JsonObject:
    schema: Any = True
    for _ in range(levels):
        schema = {"type": "array", "items": schema}
    return {"items": schema}


def doubling(keyword: str) -> JsonObject:
    return {
        "$ref": "#/$defs/0",
        "$defs": {
            str(index): {"type": "string", keyword: [{"$ref": f"#/$defs/{index + 1}"}] * 2}
            for index in range(50)
        }
        | {"50": {"type": "string"}},
    }


@pytest.mark.parametrize(
    "schema",
    [
        deep(70),
        deep(5000),
        doubling("allOf"),
        doubling("anyOf"),
        {"type": "object", "properties": {"a" * index: {"minItems": 999} for index in range(999)}},
        {"enum": list(range(99_999))},
        {"properties": {"a": {"enum": ["b" * 99_999]}}, "anyOf": [{"required": ["a"]}] * 999},
        {"properties": {"a" * 9_999: True}, "additionalProperties": True},
    ],
    ids=["deep", "too deep", "allOf", "anyOf", "wide", "enum", "distributed", "name"],
)
def test_a_schema_without_measure_is_refused(schema: JsonObject) -> None:
    with pytest.raises(Malformed) as caught:
        of_schema(schema)
    assert caught.value.problem.kind == "unsupported"


ON_THE_ENGINE: dict[str, JsonObject] = {
    "plain": {
        "type": "object",
        "properties": {
            "name": {"type": "string", "enum": ["a", 'q"\\', "é漢😀"]},
            "n": {"type": "integer"},
            "share": {"type": "number", "minimum": 0, "maximum": 1},
        },
        "required": ["name", "n", "share"],
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
    "many that may be left out": {
        "properties": {f"member {index}": {"type": "boolean"} for index in range(60)}
    },
    "others": {
        "properties": {"a-b": {"const": 1}, "é": {"const": 2}},
        "additionalProperties": {"type": "integer", "minimum": -5, "exclusiveMaximum": 1234},
    },
    "list": {"type": "array", "items": {"type": "boolean"}, "minItems": 2, "maxItems": 70},
    "text": {"type": "string", "minLength": 20, "maxLength": 50},
    "time": {"prefixItems": [{"format": "date-time"}, {"format": "uuid"}], "minItems": 2},
    "choice": {"anyOf": [{"const": "yes"}, {"type": "object", "properties": {}}]},
    "reference": {
        "$ref": "#/$defs/tree",
        "$defs": {
            "tree": {
                "type": "object",
                "properties": {
                    "leaf": {"type": "boolean"},
                    "next": {"anyOf": [{"type": "null"}, {"$ref": "#/$defs/tree"}]},
                },
                "required": ["leaf", "next"],
            }
        },
    },
}


async def written(link: Link, grammar: str, **fields: Any) -> Any:
    body = {"prompt": "JSON: ", "grammar": grammar, "n_predict": 300, **fields}
    status, answer = await link.ask("POST", "/completion", body, seconds=60)
    assert status == 200, answer
    told = msgspec.json.decode(answer)
    # The tiny model may go on for ever where the grammar lets it.
    return msgspec.json.decode(told["content"]) if told["stop_type"] == "eos" else None


@pytest.mark.anyio
@pytest.mark.parametrize("name", ON_THE_ENGINE)
async def test_what_the_engine_writes_fits(engine: str, name: str) -> None:
    schema = ON_THE_ENGINE[name]
    grammar = of_schema(schema)
    link = Link(engine)
    values = [await written(link, grammar, temperature=0)]
    values += [await written(link, grammar, seed=seed, top_k=0) for seed in range(5)]
    await link.close()
    ended = [value for value in values if value is not None]
    assert ended
    for value in ended:
        assert fits(schema, value), value


@pytest.mark.anyio
async def test_the_engine_writes_any_object(engine: str) -> None:
    link = Link(engine)
    values = [await written(link, of_json(), seed=seed) for seed in range(6)]
    await link.close()
    assert all(value is None or isinstance(value, dict) for value in values)
