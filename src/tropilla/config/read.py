"""Values with places to settings, and everything that is wrong with them at once.

A complaint names the place, the setting and the remedy. It shows no value, except addresses
without their passwords: what is wrong may be a secret, and what stood in the environment too.
"""

from __future__ import annotations

import math
import os
import re
from collections.abc import Callable, Iterable, Iterator, Mapping
from difflib import get_close_matches
from pathlib import Path
from types import UnionType
from typing import Any, Final

import msgspec

from tropilla import templates
from tropilla.config.kinds import (
    SHORT,
    Choice,
    Kind,
    Many,
    Plain,
    Setting,
    Table,
    Templated,
    Tree,
    Way,
    settings,
)
from tropilla.config.nodes import Complaint, Items, Node, Odd, Place, Refused
from tropilla.config.texts import read_kept, read_listen, read_moment, read_shared, read_url
from tropilla.config.tree import Config, ConfigError, ModelConfig, UpstreamConfig
from tropilla.ir import Malformed
from tropilla.templates import Classic, Template

MOST_VALUES = 100_000
"""Values of a config: a few references in a file may stand for any number of them."""

MOST_TEMPLATE = 1024 * 1024
"""Bytes of a template's file."""

NOTHING: Final = object()
"""In the place of a value that was refused."""

_REFERENCE = re.compile(r"\$\$\{|\$\{([A-Za-z_][A-Za-z0-9_]*)\}|\$\{")
_FORMS: dict[str | None, Callable[[str], str]] = {
    "url": read_url,
    "listen": read_listen,
    "moment": read_moment,
    "kept": read_kept,
    "shared": read_shared,
}
_WANTED: dict[str | None, str] = {
    "url": "an address, as http://HOST:PORT",
    "listen": "HOST:PORT, as 127.0.0.1:8081",
    "moment": "a day or a time, as 2027-01-31",
    "kept": "an address, as sqlite:///PATH, or auto, or memory",
    "shared": "an address, as valkey://HOST:PORT, or memory",
}
_JINJA = (".jinja", ".jinja2", ".j2")
_TYPES: dict[type, str] = {
    str: "a text",
    Path: "a text",
    int: "a whole number",
    float: "a number",
    bool: "true or false",
}
_ELSEWHERE: dict[tuple[type[msgspec.Struct], str], str] = {
    (Config, "host"): "listen: HOST:PORT says it",
    (Config, "port"): "listen: HOST:PORT says it",
    (Config, "slots"): "it belongs below engine",
    (Config, "ctx_size"): "it belongs below engine",
    (Config, "url"): "it belongs to an upstream, below upstreams",
    (ModelConfig, "url"): "it belongs to an upstream, below upstreams",
    (ModelConfig, "weight"): "it belongs to an upstream, below upstreams",
    (ModelConfig, "dialect"): "it belongs to an upstream, below upstreams",
    (ModelConfig, "api_key"): "it belongs to an upstream, below upstreams",
    (UpstreamConfig, "timeout"): "timeouts: {connect: SECONDS, idle: SECONDS} says it",
    (UpstreamConfig, "aliases"): "it belongs to the model",
}


class Reader:
    """Reads settings, and keeps what was found of each on the way.

    `folder` is where relative paths begin. Without `environment`, `${NAME}` is no reference.
    """

    def __init__(self, folder: Path, environment: Mapping[str, str] | None) -> None:
        self.complaints: list[Complaint] = []
        self.values: dict[Way, Any] = {}
        """Every setting that was given and is fine."""
        self.places: dict[Way, Place] = {}
        """Where every setting stands that was given."""
        self.references: dict[Way, str] = {}
        """Texts with references to the environment, as they are written."""
        self._folder = folder
        self._environment = environment
        self._count = 0

    def complain(self, way: Way, message: str, place: Place | None = None) -> None:
        """Add a complaint about a setting that was given, or about what is at a place in it."""
        self.complaints.append(Complaint(place or self.places[way], ".".join(way), message))

    def read(self, kind: Kind, node: Node, way: Way = ()) -> Any:
        """The value of a setting, or `NOTHING` after a complaint.

        Raises:
            Refused: there are too many values.
        """
        self._count += 1
        if self._count > MOST_VALUES:
            raise Refused(Complaint(node.place, "", f"there are more than {MOST_VALUES} values."))
        self.places[way] = node.place
        if isinstance(node.value, Odd):
            return self._refuse(way, f"{node.value.why}.")
        value = self._read(kind, node, way)
        if value is not NOTHING:
            self.values[way] = value
        return value

    def setting(self, setting: Setting, node: Node, way: Way) -> Any:
        """As `read`, for a setting that may be null."""
        if node.value is not None:
            return self.read(setting.kind, node, way)
        self.places[way] = node.place
        if not setting.optional:
            return self._refuse(way, "has no value: give it one, or leave it out.")
        self.values[way] = None
        return None

    def _refuse(self, way: Way, message: str) -> Any:
        self.complain(way, message)
        return NOTHING

    def _read(self, kind: Kind, node: Node, way: Way) -> Any:
        match kind:
            case Plain():
                return self._plain(kind, node, way)
            case Choice(words=words):
                text = self._text(node, way, "one of " + ", ".join(words))
                if text is NOTHING or text in words:
                    return text
                hint = "" if way in self.references else _meant(text, words)
                return self._refuse(way, f"must be one of {', '.join(words)}{hint}.")
            case Many():
                return self._many(kind, node, way)
            case Table():
                return self._table(kind, node, way)
            case Tree(struct=struct):
                return self._tree(struct, node, way)
            case Templated():
                return self._template(node, way)

    # Single values.

    def _plain(self, kind: Plain, node: Node, way: Way) -> Any:
        if kind.type in {str, Path}:
            text = self._text(node, way, _WANTED.get(kind.form, "a text"))
            return NOTHING if text is NOTHING else self._formed(kind, text, way)
        value = node.value
        if kind.type is float and type(value) is int:
            value = float(value)
        if type(value) is not kind.type:
            hint = ""
            if kind.type is bool and value in ("yes", "no", "on", "off"):
                hint = " (yes, no, on and off are texts)"
            elif isinstance(value, str):
                hint = ": `${NAME}` makes a text" if "${" in value else ": write it without quotes"
            told = _told(node)
            return self._refuse(way, f"must be {_TYPES[kind.type]}, not {told}{hint}.")
        wrong = _out_of_bounds(value, kind.meta)
        return self._refuse(way, f"must be {wrong}.") if wrong else value

    def _text(self, node: Node, way: Way, wanted: str = "a text") -> Any:
        """A text, with what it refers to in its place."""
        if not isinstance(node.value, str):
            plain = wanted == "a text" and isinstance(node.value, bool | int | float)
            hint = ": put it in quotes" if plain else ""
            return self._refuse(way, f"must be {wanted}, not {_told(node)}{hint}.")
        if self._environment is None or "${" not in node.value:
            return node.value
        environment, wrong = self._environment, []

        def stand_in(found: re.Match[str]) -> str:
            if found[0] == "$${":
                return "${"
            if not found[1]:
                wrong.append("`${` begins the name of a variable, as in ${NAME}: "
                             "write $${ for the two characters.")  # fmt: skip
            elif found[1] not in environment:
                wrong.append(f"the variable {found[1]} is not set in the environment.")
            elif not environment[found[1]]:
                wrong.append(f"the variable {found[1]} is empty in the environment.")
            else:
                self.references[way] = str(node.value)
                return environment[found[1]]
            return ""

        text = _REFERENCE.sub(stand_in, node.value)
        for message in dict.fromkeys(wrong):
            self.complain(way, message)
        return NOTHING if wrong else text

    def _formed(self, kind: Plain, text: str, way: Way) -> Any:
        if not text and kind.meta.min_length:
            return self._refuse(way, "must not be empty.")
        if not _fits(kind.meta, text):
            return self._refuse(way, "must have no line break and no other control character.")
        if kind.type is Path:
            return self._path(text)
        try:
            return _FORMS[kind.form](text) if kind.form in _FORMS else text
        except ConfigError as error:
            if way not in self.references:
                return self._refuse(way, str(error))
            told = f"must be {_WANTED[kind.form]}; the variable in it has something else."
            return self._refuse(way, told)

    def _path(self, text: str) -> Path:
        return self._folder / os.path.expanduser(text)  # noqa: PTH111 - Path's own may raise

    # What holds others.

    def _many(self, kind: Many, node: Node, way: Way) -> Any:
        items = node.value if isinstance(node.value, list) else [node]
        if len(items) < kind.least:
            return self._refuse(way, "is empty: it needs one at least.")
        found = [self.read(kind.item, item, (*way, str(at))) for at, item in enumerate(items)]
        return NOTHING if NOTHING in found else tuple(found)

    def _table(self, kind: Table, node: Node, way: Way) -> Any:
        if not isinstance(node.value, Items):
            return self._refuse(way, f"must be a mapping of names, not {_told(node)}.")
        if len(node.value.pairs) < kind.least:
            return self._refuse(way, "is empty: name one, or leave it out.")
        found: dict[str, Any] = {}
        fine = True
        for name, key, value in self._pairs(node.value, way):
            if not _fits(kind.name.meta, name):
                self.complain(way, "this name cannot be used: it is empty, or has characters that "
                              "do not belong in it.", key.place)  # fmt: skip
                fine = False
                continue
            below = (*way, name)
            read = Setting(name=name, kind=kind.value, optional=False, required=True)
            found[name] = self.setting(read, value, below)
            # The name is where a complaint about the whole of it points to.
            self.places[below] = key.place
        fine = fine and NOTHING not in found.values()
        return found if fine else NOTHING

    def _tree(self, struct: type[msgspec.Struct], node: Node, way: Way) -> Any:
        known = settings(struct)
        found: dict[str, Any] = {}
        fine = True
        short = SHORT.get(struct)
        if isinstance(node.value, Items):
            for name, key, value in self._pairs(node.value, way):
                if name in known:
                    found[name] = self.setting(known[name], value, (*way, name))
                else:
                    message = f"there is no such setting{_instead(struct, name, known)}."
                    self.complain((*way, name), message, key.place)
                    fine = False
        elif short and isinstance(node.value, _shorthand(known[short].kind)):
            found[short] = self.setting(known[short], node, (*way, short))
        else:
            return self._refuse(way, f"must be a mapping of settings, not {_told(node)}.")
        for setting in known.values():
            if setting.required and setting.name not in found:
                self.complain(way, f"{setting.name} is missing.")
                fine = False
        fine = fine and NOTHING not in found.values()
        return struct(**found) if fine else NOTHING

    def _pairs(self, items: Items, way: Way) -> Iterator[tuple[str, Node, Node]]:
        """The names, and what they name; a name that comes again is refused."""
        first: dict[str, Place] = {}
        for key, value in items.pairs:
            if not isinstance(key.value, str):
                self.complain(way, "a key in it is no name.", key.place)
            elif key.value in first:
                message = f"is set twice; the first time in line {first[key.value].line}."
                self.complain((*way, key.value), message, key.place)
            else:
                first[key.value] = key.place
                yield key.value, key, value

    # Templates.

    def _template(self, node: Node, way: Way) -> Any:
        if isinstance(node.value, Items):
            return self._tree(Classic, node, way)
        text = self._text(node, way, "a template's name, its file, or a mapping of classic's texts")
        if text is NOTHING:
            return NOTHING
        try:
            return self.template(text)
        except ConfigError as error:
            # The message names what was asked for.
            told = "the variable in it names no template that can be used."
            return self._refuse(way, told if way in self.references else str(error))

    def template(self, text: str) -> Template | None:
        """A template by its name, or from a file.

        Raises:
            ConfigError: there is none, or it cannot be used.
        """
        if text == "auto":
            return None
        if "/" in text or os.sep in text or text.endswith(_JINJA):
            return _jinja(self._path(text))
        try:
            return templates.named(text)
        except KeyError:
            names = ("auto", *templates.NAMES)
            hint = _meant(text, names) or f"; there are: {', '.join(names)}, or a file's path"
            raise ConfigError(f"there is no template {text!r}{hint}.") from None


def _jinja(path: Path) -> Template:
    try:
        with path.open("rb") as file:
            data = file.read(MOST_TEMPLATE + 1)
        source = data.decode("utf-8-sig")
    except OSError as error:
        raise ConfigError(f"{path} cannot be read: {error.strerror or error}.") from None
    except UnicodeDecodeError:
        raise ConfigError(f"{path} is not in UTF-8.") from None
    except ValueError:
        raise ConfigError("a path has no NUL in it.") from None
    if len(data) > MOST_TEMPLATE:
        raise ConfigError(f"{path} has more than {MOST_TEMPLATE} bytes.")
    try:
        return templates.compiled(str(path), source)
    except Malformed as error:
        raise ConfigError(f"{path} is no template: {error}") from None


def _fits(meta: msgspec.Meta, text: str) -> bool:
    # `$` also fits before a line break at the end.
    pattern = (meta.pattern or "").removeprefix("^").removesuffix("$")
    fits = not pattern or re.fullmatch(pattern, text)
    return bool(fits) and len(text) >= (meta.min_length or 0)


def _out_of_bounds(value: Any, meta: msgspec.Meta) -> str | None:
    """Of what kind a number would have to be, if it is not."""
    if isinstance(value, float) and not math.isfinite(value):
        return "a finite number"
    more, least, most = meta.gt, meta.ge, meta.le
    low = (more is not None and value <= more) or (least is not None and value < least)
    if not low and (most is None or value <= most):
        return None
    bounds = []
    if more is not None:
        bounds.append(f"more than {more}")
    if least is not None:
        bounds.append(f"at least {least}")
    if most is not None:
        bounds.append(f"at most {most}")
    return " and ".join(bounds)


def _shorthand(kind: Kind) -> type | UnionType:
    return str | list if isinstance(kind, Many) else str


def _told(node: Node) -> str:
    match node.value:
        case None:
            return "nothing"
        case list():
            return "a list"
        case Items():
            return "a mapping"
        case value:
            return _TYPES.get(type(value), "this")


def _meant(text: str, names: Iterable[str]) -> str:
    found = get_close_matches(text, names, 1)
    return f" (did you mean {found[0]}?)" if found else ""


def _instead(struct: type[msgspec.Struct], name: str, known: Mapping[str, Setting]) -> str:
    if (struct, name) in _ELSEWHERE:
        return f"; {_ELSEWHERE[struct, name]}"
    return _meant(name, known) or f"; there are: {', '.join(known)}"
