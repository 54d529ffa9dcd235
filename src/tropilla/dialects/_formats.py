"""JSON Schemas of clients, checked before they reach an upstream.

`check` is for any upstream: it finds what is no schema, what nothing could ever fulfil (a
llama-server hangs on a `minLength` above its `maxLength`), what refers to nothing, to itself or
to another host, and what is so large that a server would work on it for minutes (b11549 takes 3 s
for an object of 1,000 optional members, and minutes for one of 5,000).

`for_llamacpp` says a schema as llama.cpp reads it. That ignores without a word what a grammar
cannot say: where `strict` was asked for, such a schema is refused.
"""

from __future__ import annotations

import graphlib
import re
from typing import Any, NamedTuple
from urllib.parse import unquote

from tropilla.dialects._fields import wrong_type
from tropilla.ir import Json, JsonObject, Malformed

MOST_DEPTH = 64
MOST_MEMBERS = 1000
MOST_VALUES = 5000
MOST_LETTERS = 120_000
MOST_REPEATED = 2000
"""What llama.cpp's grammars repeat at most (`MAX_REPETITION_THRESHOLD`)."""

MOST_PATTERN = 1024
MOST_NESTED = 16
"""Groups of a pattern, one in the other: 60,000 end a server."""

_KINDS = ("object", "array", "string", "number", "integer", "boolean", "null")
_MAPS = (
    "properties", "patternProperties", "$defs", "definitions", "dependentSchemas",
)  # fmt: skip
_ONES = (
    "additionalProperties", "additionalItems", "contains", "propertyNames", "not", "if", "then",
    "else", "unevaluatedItems", "unevaluatedProperties",
)  # fmt: skip
_MANY = ("anyOf", "oneOf", "allOf", "prefixItems")
_COUNTS = (
    "minItems", "maxItems", "minLength", "maxLength", "minProperties", "maxProperties",
    "minContains", "maxContains",
)  # fmt: skip
_NUMBERS = ("minimum", "maximum", "exclusiveMinimum", "exclusiveMaximum", "multipleOf")
_TEXTS = ("$ref", "pattern", "format")
_BOUNDS = (
    ("minItems", "maxItems"), ("minLength", "maxLength"), ("minProperties", "maxProperties"),
    ("minimum", "maximum"), ("minContains", "maxContains"),
)  # fmt: skip


def check(schema: JsonObject, path: str, code: str) -> None:
    """Look at a schema; `path` is where it stands in the request, `code` the error's.

    Raises:
        Malformed: it cannot be used, and where.
    """
    _Check(schema, path, code).run()


class _At(NamedTuple):
    """Where a schema stands: in the request, in the whole schema, and how deep."""

    path: str
    pointer: str
    depth: int

    def into(self, *names: str | int) -> _At:
        """A schema within."""
        inner = "".join(f"/{str(n).replace('~', '~0').replace('/', '~1')}" for n in names)
        path = ".".join((self.path, *map(str, names)))
        return _At(path, self.pointer + inner, self.depth + 1)


class _Check:
    def __init__(self, root: JsonObject, path: str, code: str) -> None:
        self._root = root
        self._path = path
        self._code = code
        self._members = 0
        self._values = 0
        self._letters = 0
        self._seen: set[str] = set()
        self._refs: dict[str, str] = {}
        """What is referred to, and where that is said."""

    def run(self) -> None:
        self._schema(self._root, _At(self._path, "#", 0))
        begins: dict[str, dict[str, str]] = {}
        while open_ := self._refs.keys() - begins.keys():
            for ref in open_:
                target = self._target(ref, self._refs[ref])
                if ref not in self._seen:
                    self._schema(target, _At(self._refs[ref], ref, 1))
                begins[ref] = _begins(target)
        try:
            graphlib.TopologicalSorter(begins).prepare()
        except graphlib.CycleError as error:
            raise self._bad(self._refs[error.args[1][0]], "leads back to itself") from None

    def _bad(self, path: str, why: str) -> Malformed:
        return Malformed(f"Invalid schema: '{path}' {why}.", param=path, code=self._code)

    def _wrong(self, path: str, expected: str, value: Json) -> Malformed:
        problem = wrong_type(path, expected, value).problem
        return Malformed(f"Invalid schema: {problem.message}", param=path, code=self._code)

    def _target(self, ref: str, path: str) -> Json:
        """What a reference names: a JSON pointer within the schema."""
        if ref != "#" and not ref.startswith("#/"):
            raise self._bad(
                path, "refers to something that is not in the schema: only '#/...' is followed"
            )
        at: Json = self._root
        for step in ref.split("/")[1:]:
            name = unquote(step).replace("~1", "/").replace("~0", "~")
            match at:
                case dict() if name in at:
                    at = at[name]
                case list() if name.isdecimal() and len(name) < 6 and int(name) < len(at):
                    at = at[int(name)]
                case _:
                    raise self._bad(path, f"refers to '{ref}', which is not there")
        return at

    def _schema(self, schema: Json, at: _At) -> None:
        if type(schema) is bool:
            return
        if type(schema) is not dict:
            raise self._wrong(at.path, "an object", schema)
        if at.depth > MOST_DEPTH:
            raise self._bad(self._path, f"is nested more than {MOST_DEPTH} levels deep")
        self._seen.add(at.pointer)
        for keyword, value in schema.items():
            if value is not None:
                self._keyword(keyword, value, at)
        for low, high in _BOUNDS:
            least, most = schema.get(low), schema.get(high)
            if least is not None and most is not None and least > most:
                raise self._bad(at.into(low).path, f"is greater than '{high}'")

    def _keyword(self, keyword: str, value: Json, at: _At) -> None:
        here = at.into(keyword)
        if keyword in _MAPS:
            self._map(keyword, value, at)
        elif keyword in _MANY or (keyword == "items" and type(value) is list):
            for index, one in enumerate(self._list(value, here)):
                self._schema(one, at.into(keyword, index))
        elif keyword in _ONES or keyword == "items":
            self._schema(value, here)
        elif keyword in _COUNTS:
            whole = type(value) is int or (type(value) is float and value.is_integer())
            if not whole or value < 0:
                raise self._wrong(here.path, "a whole number that is not negative", value)
        elif keyword in _NUMBERS:
            # The exclusive ones were booleans until draft 4.
            old = keyword.startswith("exclusive") and type(value) is bool
            if not old and type(value) is not int and type(value) is not float:
                raise self._wrong(here.path, "a number", value)
        elif keyword in _TEXTS:
            if type(value) is not str:
                raise self._wrong(here.path, "a string", value)
            if keyword == "$ref":
                self._refs.setdefault(value, here.path)
            elif keyword == "pattern":
                self._pattern(value, here)
        elif keyword in {"type", "required", "enum", "const"}:
            self._words(keyword, value, here)

    def _pattern(self, pattern: str, here: _At) -> None:
        if len(pattern) > MOST_PATTERN:
            raise self._bad(here.path, f"has more than {MOST_PATTERN} letters")
        depth = deepest = 0
        for bracket in re.findall(r"(?<!\\)[()]", pattern):
            depth += 1 if bracket == "(" else -1
            deepest = max(deepest, depth)
        if deepest > MOST_NESTED:
            raise self._bad(here.path, f"is nested more than {MOST_NESTED} groups deep")

    def _list(self, value: Json, here: _At) -> list[Json]:
        """An array that says something."""
        if type(value) is not list:
            raise self._wrong(here.path, "an array", value)
        if not value:
            raise self._bad(here.path, "must not be empty")
        return value

    def _map(self, keyword: str, value: Json, at: _At) -> None:
        if type(value) is not dict:
            raise self._wrong(at.into(keyword).path, "an object", value)
        self._members += len(value) if keyword == "properties" else 0
        if self._members > MOST_MEMBERS:
            raise self._bad(self._path, f"has more than {MOST_MEMBERS} properties")
        for name, one in value.items():
            self._spend(name)
            self._schema(one, at.into(keyword, name))

    def _words(self, keyword: str, value: Json, here: _At) -> None:
        match keyword:
            case "type":
                kinds = value if type(value) is list else [value]
                if not kinds:
                    raise self._bad(here.path, "must not be empty")
                for kind in kinds:
                    if type(kind) is not str:
                        raise self._wrong(here.path, "a string or an array of strings", value)
                    if kind not in _KINDS:
                        raise self._bad(here.path, f"names no type of JSON ('{kind[:40]}')")
            case "required":
                if type(value) is not list:
                    raise self._wrong(here.path, "an array", value)
                for index, name in enumerate(value):
                    if type(name) is not str:
                        raise self._wrong(here.into(index).path, "a string", name)
            case "enum":
                self._values += len(self._list(value, here))
                if self._values > MOST_VALUES:
                    raise self._bad(self._path, f"has more than {MOST_VALUES} values of 'enum'")
                for one in value:
                    self._spend(one)
            case _:
                self._spend(value)

    def _spend(self, value: Json) -> None:
        self._letters += len(value) if type(value) is str else 8
        if self._letters > MOST_LETTERS:
            raise self._bad(
                self._path, f"has more than {MOST_LETTERS} letters in its names and values"
            )


def _begins(schema: Json) -> dict[str, str]:
    """The references that a schema may begin with, before anything is written."""
    found: dict[str, str] = {}
    open_ = [schema]
    while open_:
        one = open_.pop()
        if type(one) is dict:
            if type(one.get("$ref")) is str:
                found[one["$ref"]] = ""
            for keyword in ("anyOf", "oneOf", "allOf"):
                open_ += one.get(keyword) or ()
    return found


# As llama.cpp reads it.


def for_llamacpp(
    schema: JsonObject, path: str, code: str, *, strict: bool
) -> tuple[JsonObject, list[str]]:
    """A schema that was checked, said so that llama.cpp reads it; and the keywords that are lost.

    Raises:
        Malformed: of kind `unsupported`: nothing would hold an answer to it that must keep to it.
    """
    sayer = _Sayer(code, strict=strict)
    said: JsonObject = sayer.schema(schema, path)
    if sayer.recursive:
        # It follows no reference to the whole schema: that gets a name.
        groups = {name: said.pop(name) for name in ("$defs", "definitions") if name in said}
        groups["$defs"] = groups.get("$defs", {}) | {_WHOLE: said}
        said = {"$ref": f"#/$defs/{_WHOLE}"} | groups
    return said, [f"schema.{keyword}" for keyword in sorted(sayer.lost)]


_WHOLE = "whole-schema"
_SHAPES = (
    "not", "if", "patternProperties", "propertyNames", "uniqueItems", "contains", "minProperties",
    "maxProperties", "dependentRequired", "dependentSchemas", "dependencies",
)  # fmt: skip
"""What OpenAI refuses with `strict`, and llama.cpp passes over."""
_IDLE: tuple[Json, ...] = (None, False, 0, {}, [])
"""The values with which these ask for nothing."""


class _Sayer:
    def __init__(self, code: str, *, strict: bool) -> None:
        self._code = code
        self._strict = strict
        self.recursive = False
        self.lost: set[str] = set()
        """The keywords that explain only."""

    def _cannot(self, path: str, why: str) -> Malformed:
        return Malformed(
            f"llama.cpp cannot hold an answer to '{path}': {why}.",
            param=path,
            code=self._code,
            kind="unsupported",
        )

    def schema(self, schema: Json, path: str) -> Any:
        if schema is True:
            return {}
        if schema is False:
            raise self._cannot(path, "it allows nothing")
        said = {
            keyword: self._keyword(keyword, value, f"{path}.{keyword}")
            for keyword, value in schema.items()
            if value is not None
        }
        if said.get("items") is False:
            # What comes after `prefixItems` is closed anyhow.
            del said["items"]
            if "prefixItems" not in said:
                raise self._cannot(f"{path}.items", "it allows nothing")
        self._pattern(said)
        # It reads bounds of whole numbers only.
        if said.get("type") != "integer":
            self.lost.update(keyword for keyword in _NUMBERS if keyword in said)
        return said

    def _keyword(self, keyword: str, value: Json, path: str) -> Json:
        if keyword in _SHAPES and value not in _IDLE:
            if self._strict:
                raise self._cannot(path, "a grammar cannot say it, and 'strict' asks for it")
            self.lost.add(keyword)
        elif keyword == "multipleOf":
            self.lost.add(keyword)
        if keyword in _MAPS and keyword != "patternProperties":
            return {name: self.schema(one, f"{path}.{name}") for name, one in value.items()}
        if keyword in _MANY or (keyword == "items" and type(value) is list):
            return [self.schema(one, f"{path}.{index}") for index, one in enumerate(value)]
        if keyword == "items":
            return False if value is False else self.schema(value, path)
        if keyword == "additionalProperties" and type(value) is dict:
            return self.schema(value, path)
        if keyword in _COUNTS:
            if value > MOST_REPEATED and keyword.startswith("min"):
                raise self._cannot(path, f"a grammar repeats up to {MOST_REPEATED} times")
            return int(value)
        if keyword == "$ref" and value == "#":
            self.recursive = True
            return f"#/$defs/{_WHOLE}"
        return value

    def _pattern(self, said: JsonObject) -> None:
        if "pattern" not in said:
            return
        pattern = readable(said["pattern"])
        if pattern is None:
            self.lost.add("pattern")
            del said["pattern"]
        else:
            said["pattern"] = pattern
            self.lost.update({"minLength", "maxLength"} & said.keys())


_SHORT = {"d": "0-9", "w": "A-Za-z0-9_"}
_LITERALS = "^$.[]()|{}*+?-"
_TIMES = re.compile(r"\{(\d*),?(\d*)\}")
_NOT_IN_TEXT = r'"\\\x00-\x1f'


def readable(pattern: str) -> str | None:
    """A pattern in the words that llama.cpp reads; `None` for any other.

    Others it passes over, fails at (`é`), or writes what is no JSON (`"`); `x{2,1}` hangs it
    (b11549).
    """
    if not _is_simple(pattern):
        return None
    out: list[str] = []
    at, in_class, last = 1, False, len(pattern) - 1
    while at < last:
        one, next_ = pattern[at], pattern[at + 1]
        at += 1
        if one == "\\":
            at += 1
            if next_ in _SHORT:
                out.append(_SHORT[next_] if in_class else f"[{_SHORT[next_]}]")
            elif next_ in _LITERALS:
                out.append(one + next_)
            elif next_ == "/":
                out.append(next_)
            else:
                return None
        elif in_class:
            in_class = one != "]"
            if one in '["':
                return None
            out.append(one)
        elif one == "[":
            in_class = True
            negated = next_ == "^"
            at += negated
            if pattern[at] == "]":
                return None
            out.append(f"[^{_NOT_IN_TEXT}" if negated else "[")
        elif one in '"^$':
            return None
        elif one == "?" and pattern[at - 2] in "*+?}" and pattern[at - 3] != "\\":
            # What is not greedy matches the same.
            continue
        else:
            out.append(one)
    return f"^{''.join(out)}$"


def _is_simple(pattern: str) -> bool:
    """Whether it is whole, in plain letters, valid, and repeats no more than can be."""
    whole = pattern.startswith("^") and pattern.endswith("$") and not pattern.endswith("\\$")
    if not whole or not pattern.isascii() or not pattern.isprintable():
        return False
    if re.search(r"\(\?(?!:)|[*+?}]\+|(?<!\\)\[\[|&&|--|~~|\|\|", pattern):
        return False
    times = [int(count) for found in _TIMES.findall(pattern) for count in found if count[:9]]
    if any(count > MOST_REPEATED for count in times):
        return False
    try:
        re.compile(pattern)
    except (re.error, OverflowError, RecursionError):
        return False
    return True
