"""JSON as a grammar of llama.cpp (GBNF), for servers that know no JSON Schema.

What a grammar lets through, its schema allows; not all that a schema allows is let through:

- members come in the order of the schema, and others only where `additionalProperties` allows
  them in so many words (or nothing is named at all);
- a constant is written in one way, and a number has no more digits than most programs keep;
- `oneOf` is `anyOf`, as llama.cpp has it; formats other than the four known ones explain only.

What a grammar cannot say is refused with its path. Only what the first grammars had is used:
literals, ranges, groups, `|`, `*`, `+` and `?` (`{m,n}` came with b3091, #6640). No rule begins
with itself and nothing empty is repeated: until b2895 (#7083) that ends a server.
"""

from __future__ import annotations

import graphlib
import math
import re
from collections.abc import Iterable, Iterator
from typing import Any
from urllib.parse import unquote

from tropilla.dialects import _schema
from tropilla.dialects._digits import DIGITS, Bound, integers, nested, numbers
from tropilla.dialects._schema import text_of, unsayable
from tropilla.ir import Json, JsonObject, Value

_MOST_SIZE = 200_000
"""Roughly the letters of the largest grammar."""
_MOST_DEPTH = 64
_MOST_TIMES = 10_000

_NAME = "[a-z][a-z0-9-]*"
_TERMINAL = r'"(?:[^"\\]|\\.)*"|\[(?:[^\]\\]|\\.)*\]'


def of_json() -> str:
    """Any JSON object."""
    return of_schema({"type": "object"})


def of_schema(schema: JsonObject, path: str = "response_format.json_schema.schema") -> str:
    """What a JSON Schema allows; `path` is where it stands in the request.

    Raises:
        Malformed: it is no schema; or, of kind `unsupported`, it is one that a grammar cannot say.
    """
    try:
        return _Writer(schema, path).written()
    except RecursionError:
        raise unsayable(path, "is nested too deeply") from None


_COMMON = {
    "value": 'object | array | string | number | boolean | "null"',
    "object": '"{" ws (member ("," ws member)*)? "}"',
    "member": 'string ":" ws value ws',
    "array": '"[" ws (value ws ("," ws value ws)*)? "]"',
    "string": r'"\"" char* "\""',
    "char": r'plain | "\\" (["\\/bfnrt] | "u" unit)',
    "plain": r'[^"\\\x00-\x1f]',
    # Half a pair of surrogates is no text.
    "unit": (
        "[0-9a-cefA-CEF] hex hex hex | [dD] ([0-7] hex hex"
        r' | [89abAB] hex hex "\\u" [dD] [c-fC-F] hex hex)'
    ),
    "hex": "[0-9a-fA-F]",
    **DIGITS,
    "boolean": '"true" | "false"',
    "date-time": 'date "T" time',
    "date": (
        '[0-9] [0-9] [0-9] [0-9] "-" (("0" [1-9] | "1" [0-2]) "-" ("0" [1-9] | [12] [0-9])'
        ' | ("0" [13-9] | "1" [0-2]) "-30" | ("0" [13578] | "1" [02]) "-31")'
    ),
    "time": 'clock ":" [0-5] [0-9] ("." digits)? ("Z" | [-+] clock)',
    "clock": '([01] [0-9] | "2" [0-3]) ":" [0-5] [0-9]',
    "uuid": 'quad quad "-" quad "-" quad "-" quad "-" quad quad quad',
    "quad": "hex hex hex hex",
    "ws": r'(" " | "\n" ' + nested(r"[ \t]", 20) + ")?",
}
_FORMATS = {"date", "time", "date-time", "uuid"}


class _Place(Value, frozen=True, kw_only=True):
    """Where a schema stands, and the rule that begins with it, if one does."""

    path: str
    depth: int = 0
    rule: str | None = None

    def at(self, *names: str) -> _Place:
        """Deeper in the request, but no further in the text."""
        return _Place(path=".".join((self.path, *names)), depth=self.depth + 1, rule=self.rule)

    def inside(self, *names: str) -> _Place:
        """Behind a bracket."""
        return _Place(path=".".join((self.path, *names)), depth=self.depth + 1)


class _Writer:
    """Writes the grammar of one schema."""

    def __init__(self, schema: JsonObject, path: str) -> None:
        self._root = schema
        self._path = path
        self._rules = {"root": ""}
        self._names: dict[str, str] = {}
        self._refs = {"#": "root"}
        self._begins: dict[str, dict[str, str]] = {}
        """Which rules a rule may begin with, and where that is said."""
        self._left = _MOST_SIZE

    def written(self) -> str:
        """The grammar."""
        self._rules["root"] = self._say(self._root, _Place(path=self._path, rule="root"))
        try:
            graphlib.TopologicalSorter(self._begins).prepare()
        except graphlib.CycleError as error:
            first, then = error.args[1][:2]
            raise unsayable(self._begins[then][first], "leads back to itself") from None
        rules = self._rules | _COMMON
        used, open_ = set[str](), ["root"]
        while open_:
            name = open_.pop()
            if name not in used:
                used.add(name)
                open_ += _names_in(rules[name])
        return "\n".join(f"{name} ::= {rule}" for name, rule in rules.items() if name in used)

    def _spend(self, size: int) -> None:
        self._left -= size
        if self._left < 0:
            raise unsayable(self._path, "is too large")

    def _rule(self, kind: str, text: str) -> str:
        """The name of a rule with this text; of a text that is a name, the name."""
        if re.fullmatch(_NAME, text):
            return text
        if (name := self._names.get(text)) is None:
            self._spend(len(text))
            name = self._names[text] = f"{kind}-{len(self._rules)}"
            self._rules[name] = text
        return name

    def _literal(self, text: str) -> str:
        self._spend(len(text))
        escaped = text.replace("\\", "\\\\").replace('"', '\\"')
        return f'"{escaped}"'

    # Schemas: each gives an element of a sequence, which is never empty.

    def _say(self, schema: Json, place: _Place) -> str:
        asked = self._asked(schema, place)
        match asked:
            case _ if not asked:
                return "value"
            case {"$ref": pointer} if len(asked) == 1:
                return self._ref(pointer, place)
            case {"allOf": [only]} if len(asked) == 1:
                return self._say(only, place.at("allOf", "0"))
            case {"$ref": _} | {"allOf": _}:
                parts = list(self._flat(asked, place))
                self._spend(sum(len(text_of(part)) for part in parts))
                return self._say(_schema.joined(parts, place.path), place.at())
            case {"anyOf": choices}:
                return self._any_of("anyOf", choices, asked, place)
            case {"oneOf": choices}:
                return self._any_of("oneOf", choices, asked, place)
            case {"const": _} | {"enum": _}:
                texts = _schema.constants(asked, place.path)
                return _one_of([self._literal(text) for text in texts])
        kinds = _schema.kinds_of(asked, place.path)
        return _one_of([self._kind(kind, asked, place) for kind in kinds])

    def _asked(self, schema: Json, place: _Place) -> JsonObject:
        self._spend(16)
        if place.depth > _MOST_DEPTH:
            raise unsayable(place.path, "is nested too deeply")
        return _schema.told(schema, place.path)

    def _ref(self, pointer: str, place: _Place) -> str:
        target, path = self._target(pointer, place)
        name = self._refs.get(pointer)
        if name is None:
            # The name is there before the rule: a schema may hold itself.
            name = self._refs[pointer] = f"ref-{len(self._rules)}"
            self._rules[name] = ""
            there = _Place(path=path, depth=place.depth + 1, rule=name)
            self._rules[name] = self._say(target, there)
        if place.rule is not None:
            self._begins.setdefault(place.rule, {})[name] = f"{place.path}.$ref"
        return name

    def _target(self, pointer: str, place: _Place) -> tuple[Json, str]:
        """The schema that is pointed to, and its path."""
        found: Json = self._root
        head, *steps = pointer.split("/")
        names = [unquote(step).replace("~1", "/").replace("~0", "~") for step in steps]
        for name in names:
            match found:
                case dict():
                    found = found.get(name)
                case list() if name.isdecimal() and int(name) < len(found):
                    found = found[int(name)]
                case _:
                    found = None
        if head != "#" or found is None:
            raise unsayable(f"{place.path}.$ref", "leads to nothing in this schema")
        return found, ".".join((self._path, *names))

    def _flat(self, schema: Json, place: _Place) -> Iterator[JsonObject]:
        """What a schema asks for in its own words, and by reference, and in `allOf`."""
        asked = self._asked(schema, place)
        if (pointer := asked.pop("$ref", None)) is not None:
            target, path = self._target(pointer, place)
            yield from self._flat(target, _Place(path=path, depth=place.depth + 1))
        for index, one in enumerate(asked.pop("allOf", ())):
            yield from self._flat(one, place.at("allOf", str(index)))
        if asked:
            yield asked

    def _any_of(self, keyword: str, choices: list[Json], asked: JsonObject, place: _Place) -> str:
        rest = {name: value for name, value in asked.items() if name != keyword}
        if not choices:
            raise unsayable(f"{place.path}.{keyword}", "allows nothing")
        return _one_of(
            [
                self._say({"allOf": [rest, one]} if rest else one, place.at(keyword, str(index)))
                for index, one in enumerate(choices)
            ]
        )

    def _kind(self, kind: str, asked: JsonObject, place: _Place) -> str:
        _schema.refuse_unsaid(kind, asked, place.path)
        if not asked.keys() & _schema.TELLS[kind]:
            return '"null"' if kind == "null" else kind
        match kind:
            case "object":
                text = self._object(asked, place)
            case "array":
                text = self._array(asked, place)
            case "string":
                text = self._string(asked, place)
            case _:
                text = _number(kind, asked, place)
        self._spend(len(text))
        return text

    def _object(self, asked: JsonObject, place: _Place) -> str:
        properties, required = asked.get("properties", {}), asked.get("required", [])
        more = asked.get("additionalProperties")
        inside: dict[str, tuple[Json, tuple[str, ...]]] = {
            name: (one, ("properties", name)) for name, one in properties.items()
        }
        for name in required:
            inside.setdefault(name, (more is None or more, ("additionalProperties",)))
        members, needed = [], set(required)
        for name, (one, where) in inside.items():
            value = self._say(one, place.inside(*where))
            key = self._literal(text_of(name) + ":")
            members.append((f"{key} ws {value} ws", name in needed))
        other = None
        if more or (more is None and not inside):
            value = self._say(more or True, place.inside("additionalProperties"))
            key = self._other(inside) if inside else "string"
            other = self._rule("other", f'{key} ":" ws {value} ws')
        return _row('"{" ws', self._members(members, other), '"}"')

    def _members(self, members: list[tuple[str, bool]], other: str | None) -> str:
        """Members in their order, those that are not needed left out or not; then others."""
        after = f'("," ws {other})*' if other else ""
        first = f"({other} {after})?" if other else ""
        in_all = all(needed for _, needed in members)
        for member, needed in reversed(members):
            here = member
            if not in_all:
                # Each is said in two places: where something stands before it, and where not.
                here, after = self._rule("member", here), after and self._rule("after", after)
                first = first and self._rule("first", first)
            if needed:
                first, after = _row(here, after), _row('"," ws', here, after)
            else:
                rest = f"({_row(here, after)} | {first})" if first else f"({_row(here, after)})?"
                first, after = rest, _row(f'("," ws {here})?', after)
        return first

    def _other(self, names: Iterable[str]) -> str:
        """A key that is none of these, and written without escapes: they could disguise it."""
        tree: dict[str, Any] = {}
        for name in names:
            if text_of(name) == f'"{name}"':
                self._spend(16 * len(name))
                branch = tree
                for letter in name:
                    branch = branch.setdefault(letter, {})
                branch[""] = {}
        return f'"\\"" {self._unlike(tree)}'

    def _unlike(self, tree: dict[str, Any]) -> str:
        """The rest of a key that leaves this tree somewhere, and its closing quote."""
        letters = {one: one if one.isalnum() else f"\\U{ord(one):08x}" for one in tree if one}
        rests = [] if "" in tree else ['"\\""']
        rests += [f"[{code}] {self._unlike(tree[letter])}" for letter, code in letters.items()]
        rests.append(rf'[^"\\\x00-\x1f{"".join(letters.values())}] plain* "\""')
        return self._rule("key", " | ".join(rests))

    def _array(self, asked: JsonObject, place: _Place) -> str:
        prefix = asked.get("prefixItems", [])
        least, most = asked.get("minItems", 0), asked.get("maxItems", math.inf)
        rest = asked.get("items", not prefix or least > len(prefix))
        if rest is False:
            most = min(most, len(prefix))
        if most < max(least, 0):
            raise unsayable(place.path, "allows nothing")
        firsts = [
            self._say(one, place.inside("prefixItems", str(index)))
            for index, one in enumerate(prefix)
            if index < most
        ]
        items = ""
        if most > len(prefix):
            item = self._rule("item", f"{self._say(rest, place.inside('items'))} ws")
            more = self._rule("more", f'"," ws {item}')
            if firsts:
                items = self._times(more, least - len(prefix), most - len(prefix), place, "Items")
            else:
                items = _row(item, self._times(more, least - 1, most - 1, place, "Items"))
                items = items if least > 0 else f"({items})?"
        for index, first in reversed(list(enumerate(firsts))):
            items = _row('"," ws' if index else "", first, "ws", items)
            items = items if index < least else f"({items})?"
        return _row('"[" ws', items, '"]"')

    def _string(self, asked: JsonObject, place: _Place) -> str:
        least, most = asked.get("minLength", 0), asked.get("maxLength", math.inf)
        if most < max(least, 0):
            raise unsayable(place.path, "allows nothing")
        if (form := asked.get("format")) in _FORMATS:
            for other in sorted(asked.keys() & {"minLength", "maxLength"}):
                raise unsayable(f"{place.path}.{other}", f"cannot be said beside '{form}'")
            return rf'"\"" {form} "\""'
        return _row(r'"\""', self._times("char", least, most, place, "Length"), r'"\""')

    def _times(self, item: str, least: int, most: float, place: _Place, what: str) -> str:
        """So many of an item, which is a rule's name."""
        least = max(least, 0)
        for bound, keyword in ((least, "min"), (most, "max")):
            if _MOST_TIMES < bound < math.inf:
                raise unsayable(f"{place.path}.{keyword}{what}", f"is more than {_MOST_TIMES}")
        if most == math.inf:
            return _row(self._exactly(item, least), f"{item}*")
        return _row(self._exactly(item, least), self._up_to(item, int(most) - least))

    def _exactly(self, item: str, count: int) -> str:
        sixteen = self._rule("sixteen", " ".join([item] * 16)) if count >= 16 else ""
        return " ".join([sixteen] * (count // 16) + [item] * (count % 16))

    def _up_to(self, item: str, most: int) -> str:
        """Sixteens and a rest, because groups in groups without end would be too deep."""
        if most <= 16:
            return nested(item, most) if most else ""
        sixteen, below = self._exactly(item, 16), self._rule("below", nested(item, 15))
        text = self._up_to(item, most % 16)
        for _ in range(most // 16):
            text = self._rule("upto", f"{_row(sixteen, text)} | {below}")
        return text


def _number(kind: str, asked: JsonObject, place: _Place) -> str:
    """A number within bounds."""
    bounds = {keyword: value for keyword, value in asked.items() if keyword in _schema.RANGE}
    for keyword, value in bounds.items():
        if kind == "number" and value != int(value):
            raise unsayable(f"{place.path}.{keyword}", "is no whole number")
    low = max(
        Bound(bounds.get("minimum", -math.inf)),
        Bound(bounds.get("exclusiveMinimum", -math.inf), open=True),
    )
    high = min(
        Bound(bounds.get("maximum", math.inf)),
        Bound(bounds.get("exclusiveMaximum", math.inf), open=True),
        key=lambda bound: (bound.at, not bound.open),
    )
    text = (integers if kind == "integer" else numbers)(low, high)
    if not text:
        raise unsayable(place.path, "allows nothing")
    return text


def _names_in(rule: str) -> list[str]:
    """The rules that a rule leads to."""
    return re.findall(_NAME, re.sub(_TERMINAL, " ", rule))


def _row(*texts: str) -> str:
    return " ".join(text for text in texts if text)


def _one_of(texts: list[str]) -> str:
    return texts[0] if len(texts) == 1 else f"({' | '.join(dict.fromkeys(texts))})"
