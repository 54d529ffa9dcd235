"""JSON as a grammar in llama.cpp's GBNF, for servers that know no JSON Schema (before b2490).

Only what the first grammars had is used: literals, ranges, groups, `|`, `*`, `+`, `?`. Blanks are
bounded, so that a model cannot write them for ever. What a schema asks for and a grammar cannot
say is refused with its path; what only explains (titles, descriptions, defaults) is passed over.
"""

from __future__ import annotations

import msgspec

from tropilla.ir import Json, JsonObject, Malformed

_COMMON = {
    "value": 'object | array | string | number | "true" ws | "false" ws | "null" ws',
    "object": '"{" ws ( string ":" ws value ( "," ws string ":" ws value )* )? "}" ws',
    "array": '"[" ws ( value ( "," ws value )* )? "]" ws',
    "string": r'"\"" char* "\"" ws',
    "char": r'[^"\\\x00-\x1f] | "\\" ( ["\\/bfnrt] | "u" hex hex hex hex )',
    "hex": "[0-9a-fA-F]",
    "number": 'integral ( "." [0-9]+ )? ( [eE] [-+]? [0-9]+ )? ws',
    "integer": "integral ws",
    "integral": '"-"? ( "0" | [1-9] [0-9]* )',
    "boolean": '( "true" | "false" ) ws',
    "null": '"null" ws',
    "ws": r"[ \n]? [ ]? [ ]? [ ]? [ ]?",
}
_USES = {
    "value": ("object", "array", "string", "number", "ws"),
    "object": ("string", "value", "ws"),
    "array": ("value", "ws"),
    "string": ("char", "ws"),
    "char": ("hex",),
    "number": ("integral", "ws"),
    "integer": ("integral", "ws"),
    "boolean": ("ws",),
    "null": ("ws",),
}
_EXPLAIN = {
    "title", "description", "default", "examples", "$schema", "$id", "$comment", "$defs",
    "definitions", "deprecated", "readOnly", "writeOnly", "strict",
}  # fmt: skip
_KNOWN = _EXPLAIN | {
    "type", "properties", "required", "additionalProperties", "items", "enum", "const", "anyOf",
    "oneOf", "$ref", "minItems",
}  # fmt: skip
_MOST_RULES = 500
_MOST_OPTIONAL = 24
"""Optional members of one object: each may be followed by each that comes later."""


def of_json() -> str:
    """Any JSON object."""
    return _written({"root": "object"}, {"object"})


def of_schema(schema: JsonObject, path: str = "response_format.json_schema.schema") -> str:
    """What a JSON Schema allows.

    Raises:
        Malformed: of kind `unsupported`, for what a grammar cannot say here.
    """
    maker = _Maker(schema, path)
    try:
        maker.rules["root"] = maker.of(schema, path)
    except RecursionError:
        raise _unsayable(path, "is nested too deeply") from None
    return _written(maker.rules, maker.used)


def _written(rules: dict[str, str], used: set[str]) -> str:
    """The grammar, with the common rules that it uses."""
    open_ = list(used | {"ws"})
    needed: set[str] = set()
    while open_:
        name = open_.pop()
        if name not in needed:
            needed.add(name)
            open_ += _USES.get(name, ())
    lines = rules | {name: rule for name, rule in _COMMON.items() if name in needed}
    return "\n".join(f"{name} ::= {rule}" for name, rule in lines.items())


class _Maker:
    """Makes the rules of one schema."""

    def __init__(self, root: JsonObject, path: str) -> None:
        self.rules: dict[str, str] = {}
        self.used: set[str] = set()
        self._root = root
        self._path = path
        self._refs: dict[str, str] = {}

    def of(self, schema: Json, path: str) -> str:
        """A rule for a schema; every rule takes the blanks behind it."""
        if schema is True or schema == {}:
            return self._common("value")
        if type(schema) is not dict:
            raise _unsayable(path, "is no schema")
        unknown = sorted(schema.keys() - _KNOWN)
        if unknown:
            raise _unsayable(f"{path}.{unknown[0]}", "cannot be held to here")
        if "$ref" in schema:
            return self._ref(schema["$ref"], path)
        if "const" in schema:
            return _literal(schema["const"])
        if "enum" in schema:
            values = schema["enum"]
            if type(values) is not list or not values:
                raise _unsayable(f"{path}.enum", "has no values")
            return "( " + " | ".join(_literal(value) for value in values) + " )"
        for name in ("anyOf", "oneOf"):
            if name in schema:
                return self._one_of(schema[name], f"{path}.{name}")
        return self._typed(schema, path)

    def _common(self, name: str) -> str:
        self.used.add(name)
        return name

    def _rule(self, rule: str) -> str:
        """A rule of its own, by its name."""
        if len(self.rules) >= _MOST_RULES:
            raise _unsayable(self._path, "is too large")
        name = f"r{len(self.rules)}"
        self.rules[name] = rule
        return name

    def _one_of(self, schemas: Json, path: str) -> str:
        if type(schemas) is not list or not schemas:
            raise _unsayable(path, "has no schemas")
        return (
            "( " + " | ".join(self.of(one, f"{path}.{i}") for i, one in enumerate(schemas)) + " )"
        )

    def _ref(self, ref: Json, path: str) -> str:
        if type(ref) is not str or not ref.startswith("#"):
            raise _unsayable(f"{path}.$ref", "refers to another document")
        if ref in self._refs:
            return self._refs[ref]
        target: Json = self._root
        for step in ref.removeprefix("#").split("/")[1:]:
            key = step.replace("~1", "/").replace("~0", "~")
            target = target.get(key) if type(target) is dict else None
        if target is None:
            raise _unsayable(f"{path}.$ref", "refers to nothing")
        # The name is there before the rule: a schema may hold itself.
        name = self._refs[ref] = self._rule("")
        self.rules[name] = self.of(target, ref)
        if self.rules[name] == name:
            raise _unsayable(f"{path}.$ref", "refers to itself")
        return name

    def _typed(self, schema: JsonObject, path: str) -> str:
        kind = schema.get("type", "object" if "properties" in schema else None)
        match kind:
            case None:
                return self._common("value")
            case list() if kind:
                kinds = [self._typed(schema | {"type": one}, path) for one in kind]
                return "( " + " | ".join(kinds) + " )"
            case "object":
                return self._rule(self._object(schema, path))
            case "array":
                return self._rule(self._array(schema, path))
            case "string" | "number" | "integer" | "boolean" | "null":
                return self._common(kind)
        raise _unsayable(f"{path}.type", "is no type")

    def _array(self, schema: JsonObject, path: str) -> str:
        item = self.of(schema.get("items", True), f"{path}.items")
        least = schema.get("minItems", 0)
        if type(least) is not int or not 0 <= least <= 64:
            raise _unsayable(f"{path}.minItems", "is too large")
        first = " ".join([item, *[f'"," ws {item}'] * (least - 1)])
        items = f'{first} ( "," ws {item} )*'
        return f'"[" ws {items} "]" ws' if least else f'"[" ws ( {items} )? "]" ws'

    def _object(self, schema: JsonObject, path: str) -> str:
        properties, required = schema.get("properties", {}), schema.get("required", [])
        more = schema.get("additionalProperties", not properties)
        if type(properties) is not dict or type(required) is not list:
            raise _unsayable(path, "is no schema of an object")
        missing = [name for name in required if name not in properties]
        if missing:
            raise _unsayable(f"{path}.required", f"names what is no property: {missing[0]}")
        # Beside named members no others are written, though they may be allowed.
        if not properties:
            if more is False:
                return '"{" ws "}" ws'
            value = self.of(more, f"{path}.additionalProperties")
            member = f'{self._common("string")} ":" ws {value}'
            return f'"{{" ws ( {member} ( "," ws {member} )* )? "}}" ws'
        members = [
            (
                f'{_literal(name)} ":" ws {self.of(one, f"{path}.properties.{name}")}',
                name in required,
            )
            for name, one in properties.items()
        ]
        if sum(not must for _, must in members) > _MOST_OPTIONAL:
            raise _unsayable(f"{path}.properties", "has too many optional members")
        return f'"{{" ws {self._members(members, first=True)} "}}" ws'

    def _members(self, members: list[tuple[str, bool]], *, first: bool) -> str:
        """The members in their order, with a comma before each but the first that is there."""
        if not members:
            return '""'
        (member, must), rest = members[0], members[1:]
        comma = "" if first else '"," ws '
        after = self._rule(self._members(rest, first=False)) if rest else '""'
        here = f"{comma}{member} {after}"
        if must:
            return here
        if not first:
            return f"( {comma}{member} )? {after}"
        return f"( {here} | {self._rule(self._members(rest, first=True)) if rest else ''} )"


def _literal(value: Json) -> str:
    """A value as JSON, as a literal of the grammar."""
    text = msgspec.json.encode(value).decode()
    escaped = text.replace("\\", "\\\\").replace('"', '\\"')
    return f'"{escaped}" ws'


def _unsayable(path: str, why: str) -> Malformed:
    return Malformed(
        f"The server is so old that it needs a grammar, and '{path}' {why}.",
        param=path,
        kind="unsupported",
    )
