"""The settings of a struct as data: what reads them, shows them and describes them agrees so."""

from __future__ import annotations

import inspect
from ast import AnnAssign, ClassDef, Constant, Expr, Name, parse
from functools import cache
from pathlib import Path
from types import NoneType, UnionType
from typing import Annotated, Any, Literal, TypeAlias, Union, get_args, get_origin, get_type_hints

import msgspec

from tropilla.config.tree import ModelConfig, UpstreamConfig
from tropilla.ir import Value
from tropilla.templates import Classic, Jinja

Way: TypeAlias = tuple[str, ...]
"""The way to a setting from the root: `("models", "ffm", "upstreams", "0", "url")`."""


class Plain(Value, frozen=True, kw_only=True):
    """A text, a number, a truth value or a file's path."""

    type: type
    meta: msgspec.Meta = msgspec.Meta()

    @property
    def form(self) -> str | None:
        """What kind of text it is: `url`, `listen`, `moment` or `secret`."""
        return (self.meta.extra or {}).get("form")


class Choice(Value, frozen=True, kw_only=True):
    """One of some words."""

    words: tuple[str, ...]


class Many(Value, frozen=True, kw_only=True):
    """A list; one value stands for a list of one."""

    item: Kind
    least: int = 0


class Table(Value, frozen=True, kw_only=True):
    """A mapping whose keys are names of the user's own."""

    name: Plain
    value: Kind
    least: int = 0


class Tree(Value, frozen=True, kw_only=True):
    """A mapping with settings."""

    struct: type[msgspec.Struct]


class Templated(Value, frozen=True, kw_only=True):
    """A template: its name, its file, or the texts of the classic one."""


Kind: TypeAlias = Plain | Choice | Many | Table | Tree | Templated


class Setting(Value, frozen=True, kw_only=True):
    """One setting of a struct. `optional` ones may be null."""

    name: str
    kind: Kind
    optional: bool
    required: bool
    default: Any = None


SHORT: dict[type[msgspec.Struct], str] = {UpstreamConfig: "url", ModelConfig: "upstreams"}
"""What a value that is no mapping sets, where one of these is wanted."""


@cache
def settings(struct: type[msgspec.Struct]) -> dict[str, Setting]:
    """The settings of a struct, by their names."""
    hints = get_type_hints(struct, include_extras=True)
    return {
        field.name: _setting(field, hints[field.name]) for field in msgspec.structs.fields(struct)
    }


def described(struct: type[msgspec.Struct]) -> dict[str, str]:
    """What the texts below the settings of a struct say."""
    told: dict[str, str] = {}
    for base in struct.__bases__:
        if base is not msgspec.Struct and issubclass(base, msgspec.Struct):
            told |= described(base)
    (tree,) = parse(inspect.getsource(struct)).body
    assert isinstance(tree, ClassDef)  # noqa: S101 - the source of a class is one
    for line, below in zip(tree.body, tree.body[1:], strict=False):
        match line, below:
            case (
                AnnAssign(target=Name(id=name)),
                Expr(value=Constant(value=str(text))),
            ):
                told[name] = " ".join(text.split())
    return told


def _setting(field: msgspec.structs.FieldInfo, hint: Any) -> Setting:
    kinds = _members(hint) - {NoneType}
    default = None if field.required else field.default
    if field.default_factory is not msgspec.NODEFAULT:
        default = field.default_factory()
    return Setting(
        name=field.name,
        kind=Templated() if kinds == {Classic, Jinja} else _kind(*kinds),
        optional=NoneType in _members(hint),
        required=field.required,
        default=default,
    )


def _members(hint: Any) -> set[Any]:
    return set(get_args(hint)) if get_origin(hint) in {Union, UnionType} else {hint}


def _kind(hint: Any, meta: msgspec.Meta | None = None) -> Kind:
    if get_origin(hint) is Annotated:
        inner, given = get_args(hint)
        return _kind(inner, given)
    meta = meta or msgspec.Meta()
    match get_origin(hint), get_args(hint):
        case origin, words if origin is Literal:
            return Choice(words=words)
        case origin, (item, _) if origin is tuple:
            return Many(item=_kind(item), least=meta.min_length or 0)
        case origin, (key, value) if origin is dict:
            name = _kind(key)
            assert isinstance(name, Plain)  # noqa: S101 - a key is a text
            return Table(name=name, value=_kind(value), least=meta.min_length or 0)
    if issubclass(hint, msgspec.Struct):
        return Tree(struct=hint)
    if hint not in {str, int, float, bool, Path}:
        raise TypeError(f"A setting cannot be a {hint!r} yet: say how it is read.")
    return Plain(type=hint, meta=meta)
