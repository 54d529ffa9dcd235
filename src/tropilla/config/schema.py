"""The JSON Schema of the config file: what an editor needs to complete and to check it.

It says of each setting what `read` accepts, made from the same types. What settings have to
satisfy together, and what only this machine knows (files, variables), it does not say.
"""

from __future__ import annotations

import inspect
from pathlib import Path
from typing import Any, TypeAlias

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
    described,
    settings,
)
from tropilla.config.tree import Config
from tropilla.templates import Classic

Schema: TypeAlias = dict[str, Any]

_TYPES = {str: "string", Path: "string", int: "integer", float: "number", bool: "boolean"}
_BOUNDS = {
    "gt": "exclusiveMinimum",
    "ge": "minimum",
    "le": "maximum",
    "min_length": "minLength",
    "pattern": "pattern",
}
_REFERENCE: Schema = {"type": "string", "pattern": r"\$\{"}


def schema() -> Schema:
    """The schema of a config file, of draft 2020-12."""
    made: dict[str, Schema] = {}
    root = _struct(Config, made)
    return {
        "$schema": "https://json-schema.org/draft/2020-12/schema",
        "title": "Tropilla's config file",
        # An empty file is an empty config.
        **root,
        "type": ["object", "null"],
        "$defs": dict(sorted(made.items())),
    }


def _struct(struct: type[msgspec.Struct], made: dict[str, Schema]) -> Schema:
    told = described(struct)
    known = settings(struct).values()
    shape: Schema = {
        "description": inspect.cleandoc(struct.__doc__ or "").partition("\n")[0],
        "type": "object",
        "properties": {one.name: _setting(one, told.get(one.name), made) for one in known},
        "additionalProperties": False,
    }
    required = [one.name for one in known if one.required]
    return shape | {"required": required} if required else shape


def _setting(setting: Setting, told: str | None, made: dict[str, Schema]) -> Schema:
    shape = _shape(setting.kind, made)
    if setting.optional:
        shape = {"anyOf": [*shape.get("anyOf", [shape]), {"type": "null"}]}
    if isinstance(setting.default, str | int | float | bool):
        shape = shape | {"default": setting.default}
    return {"description": told} | shape if told else shape


def _shape(kind: Kind, made: dict[str, Schema]) -> Schema:
    match kind:
        case Plain(type=of, meta=meta):
            bounds = {name: getattr(meta, ours) for ours, name in _BOUNDS.items()}
            return {"type": _TYPES[of]} | {
                name: bound for name, bound in bounds.items() if bound is not None
            }
        case Choice(words=words):
            return {"anyOf": [{"enum": list(words)}, _REFERENCE]}
        case Many(item=item, least=least):
            one = _shape(item, made)
            many: Schema = {"type": "array", "items": one}
            return {"anyOf": [one, many | {"minItems": least} if least else many]}
        case Table(name=name, value=value, least=least):
            table: Schema = {
                "type": "object",
                "propertyNames": _shape(name, made),
                "additionalProperties": _shape(value, made),
            }
            return table | {"minProperties": least} if least else table
        case Tree(struct=struct):
            return _referred(struct, made)
        case Templated():
            names = {"enum": ["auto", *templates.NAMES]}
            file = {"type": "string", "description": "a Jinja file, relative to this one"}
            return {"anyOf": [names, file, _referred(Classic, made)]}


def _referred(struct: type[msgspec.Struct], made: dict[str, Schema]) -> Schema:
    """A struct by its name; what it says is said once."""
    name = struct.__name__.removesuffix("Config")
    if name not in made:
        made[name] = {}
        shape = _struct(struct, made)
        short = SHORT.get(struct)
        made[name] = {"anyOf": [shape, _shorthand(struct, short, made)]} if short else shape
    return {"$ref": f"#/$defs/{name}"}


def _shorthand(struct: type[msgspec.Struct], name: str, made: dict[str, Schema]) -> Schema:
    """What stands for a struct: a text or a list, as the one setting that it sets has it."""
    shape = _shape(settings(struct)[name].kind, made)
    return {"type": ["string", "array"], **shape}
