"""A config as YAML, to be read by people: every setting that is in force, and no secret.

Texts that refer to the environment are shown as they are written, not as what they stand for.
"""

from __future__ import annotations

from pathlib import Path
from typing import Any

import msgspec
import yaml

from tropilla.config.kinds import Kind, Many, Plain, Table, Templated, Tree, Way, settings
from tropilla.config.load import Loaded
from tropilla.config.nodes import CORE
from tropilla.config.texts import shown_url
from tropilla.config.tree import Config
from tropilla.templates import Classic, Jinja

HIDDEN = "***"


def show(loaded: Loaded) -> str:
    """The whole tree, below a line that says where it came from."""
    origins = [str(loaded.file)] if loaded.file else []
    origins += loaded.variables
    tree = _Shown(loaded.references).tree(Config, loaded.config, ())
    if not tree["models"]:
        del tree["models"]
    if loaded.config.models or loaded.config.upstreams:
        del tree["engine"]
    _inherit(tree)
    text = yaml.dump(tree, Dumper=_Dumper, sort_keys=False, allow_unicode=True, width=96)
    return f"# From {', '.join(origins) or 'nowhere'}; the rest are defaults.\n{text}"


def _inherit(tree: dict[str, Any], *, inherits: bool = False) -> None:
    """Leave `auto` out where a template above is in force: it is not `auto` that holds there."""
    none = tree["template"] == "auto"
    if none and inherits:
        del tree["template"]
    for below in (*tree.get("models", {}).values(), *tree.get("upstreams", [])):
        _inherit(below, inherits=inherits or not none)


class _Shown:
    """A tree as plain values."""

    def __init__(self, references: Any) -> None:
        self._references = references

    def tree(self, struct: type[msgspec.Struct], value: Any, way: Way) -> dict[str, Any]:
        """All settings of a struct."""
        return {
            setting.name: self._value(setting.kind, getattr(value, setting.name), way, setting.name)
            for setting in settings(struct).values()
        }

    def _value(self, kind: Kind, value: Any, above: Way, name: str) -> Any:
        way = (*above, name)
        match kind:
            case Plain(form="secret") if value is not None:
                return HIDDEN
            case Plain(form="url" | "store" | "kept" | "shared") if value is not None:
                return shown_url(self._text(value, way))
            case Many(item=item):
                return [self._value(item, one, way, str(at)) for at, one in enumerate(value)]
            case Table(value=inner):
                return {key: self._value(inner, one, way, key) for key, one in value.items()}
            case Tree(struct=struct):
                return self.tree(struct, value, way)
            case Templated():
                return self._template(value, way)
            case _:
                return self._text(value, way)

    def _text(self, value: Any, way: Way) -> Any:
        if way in self._references:
            return self._references[way]
        if isinstance(value, Path):
            value = str(value)
        return value.replace("${", "$${") if isinstance(value, str) else value

    def _template(self, value: Any, way: Way) -> Any:
        match value:
            case None:
                return self._references.get(way, "auto")
            case Jinja(name=name):
                return self._text(name, way)
            case Classic() if value != Classic():
                return self.tree(Classic, value, way)
            case _:
                return self._references.get(way, "classic")


class _Dumper(yaml.SafeDumper):
    """Quotes what another reader of YAML, or ours, would not take for a text."""

    def ignore_aliases(self, data: Any) -> bool:  # noqa: ARG002 - every value is written out
        return True


for _tag, _form, _first in CORE:
    _Dumper.add_implicit_resolver(f"tag:yaml.org,2002:{_tag}", _form, _first)
