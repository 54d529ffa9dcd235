"""The new text of a client's file of settings: what is there stays, but for what is ours.

Comments and the order of things stay too, wherever the file is of a kind that has any. What was
made is read again and compared with what it should say: an edit that would say something else is
not made.
"""

from __future__ import annotations

import re
from contextlib import suppress
from typing import Any

import msgspec

from tropilla.clients import Settings

_BEGIN = "# By `tropilla connect`, until the line that says its end."
_END = "# The end of what is by `tropilla connect`."
_BLOCK = re.compile(
    rf"^[ ]*{re.escape(_BEGIN)}\n.*?^[ ]*{re.escape(_END)}\n", re.DOTALL | re.MULTILINE
)
# A string, which may hold what looks like a comment; or a comment.
_JSONC = re.compile(r'("(?:\\.|[^"\\])*")|//[^\n]*|/\*.*?\*/', re.DOTALL)
_TRAILING = re.compile(r'("(?:\\.|[^"\\])*")|,(?=\s*[}\]])')


_HEAD = {"name": "Local", "version": "0.0.1", "schema": "v1"}
"""Of a file that has a list under a key: Continue's."""


class EditError(ValueError):
    """The file is not what such a file should be, or cannot be changed without a loss."""


def alone(settings: Settings) -> str:
    """What the file would say if it said nothing else."""
    if settings.kind == "json":
        return _json(settings.value)
    if settings.kind == "toml":
        return _toml(settings.value)
    if settings.kind == "yaml":
        return _yaml(settings.value)
    if settings.under is None:
        return _yaml([settings.value])
    return _yaml(_HEAD | {settings.under: [settings.value]})


def edited(settings: Settings, text: str | None) -> str:
    """The text of the file with the settings in it; `None` stands for no file.

    Raises:
        EditError: it cannot be done by a program; the message says why.
    """
    empty = text is None or not text.strip()
    if settings.kind == "toml" or (settings.kind == "json" and empty):
        return alone(settings)
    if settings.kind == "json":
        return _merged_json(text or "", settings.value)
    before = _BLOCK.sub("", text or "")
    if settings.kind == "yaml":
        return _with_keys(before, settings.value)
    if settings.under and not before.strip():
        before = _yaml(_HEAD)
    return _with_item(before, settings.value, settings.under)


def _json(value: Any) -> str:
    return msgspec.json.format(msgspec.json.encode(value), indent=2).decode() + "\n"


def _merged_json(text: str, value: dict[str, Any]) -> str:
    plain = True
    try:
        there = msgspec.json.decode(text)
    except ValueError:
        plain = False
        bare = _TRAILING.sub(r"\1", _JSONC.sub(lambda one: one[1] or "", text))
        try:
            there = msgspec.json.decode(bare)
        except ValueError as error:
            raise EditError(f"it is no JSON: {error}") from None
    if type(there) is not dict:
        raise EditError("it is no JSON object")
    if plain:
        return _json(_merged(there, value))
    if known := [name for name in value if name in there]:
        raise EditError(f"it has comments, and {known[0]} is there already")
    if not there:
        raise EditError("it has comments, and nothing else")
    inside = _json(value).rstrip()[1:-1].rstrip()
    # The first brace that is no part of a comment: no string can come before it.
    start = next(one.end() for one in re.finditer(r"//[^\n]*|/\*.*?\*/|\{", text, re.DOTALL)
                 if one[0] == "{")  # fmt: skip
    return f"{text[:start]}{inside},{text[start:]}"


def _merged(there: Any, value: dict[str, Any]) -> dict[str, Any]:
    if type(there) is not dict:
        return value
    return there | {
        name: _merged(there.get(name), one) if type(one) is dict else one
        for name, one in value.items()
    }


def _yaml(value: Any) -> str:
    import yaml  # noqa: PLC0415 - only where there is YAML

    told: str = yaml.safe_dump(value, sort_keys=False, allow_unicode=True, width=1000)
    return told


def _read_yaml(text: str) -> Any:
    import yaml  # noqa: PLC0415 - as above

    try:
        return yaml.safe_load(text)
    except yaml.YAMLError as error:
        raise EditError(f"it is no YAML: {error}") from None


def _block(text: str, indent: str = "") -> str:
    lines = [_BEGIN, *text.splitlines(), _END]
    return "".join(f"{indent}{line}\n" for line in lines)


def _appended(before: str, block: str) -> str:
    return before + ("\n" if before and not before.endswith("\n") else "") + block


def _with_keys(before: str, value: dict[str, Any]) -> str:
    there = _read_yaml(before)
    if there is None:
        there = {}
    if type(there) is not dict:
        raise EditError("it is no mapping")
    if known := [name for name in value if name in there]:
        raise EditError(f"{known[0]} is there already")
    return _checked(_appended(before, _block(_yaml(value))), there | value)


def _with_item(before: str, value: dict[str, Any], under: str | None) -> str:
    there = _read_yaml(before)
    if under is None:
        if there is not None and type(there) is not list:
            raise EditError("it is no list")
        return _checked(_appended(before, _block(_yaml([value]))), [*(there or []), value])
    if there is not None and type(there) is not dict:
        raise EditError("it is no mapping")
    there = there or {}
    if under not in there:
        block = _block(f"{under}:\n{_yaml([value])}")
        return _checked(_appended(before, block), there | {under: [value]})
    if there[under] is not None and type(there[under]) is not list:
        raise EditError(f"its {under} are no list")
    head = re.search(
        rf"^{re.escape(under)}:[ ]*(?:#[^\n]*)?\n(?:[ ]*(?:#[^\n]*)?\n)*", before, re.MULTILINE
    )
    if head is None:
        raise EditError(f"its list of {under} is written in a way that cannot be added to")
    indent = re.match(r"[ ]*", before[head.end() :])
    block = _block(_yaml([value]), indent[0] if indent else "")
    new = before[: head.end()] + block + before[head.end() :]
    return _checked(new, there | {under: [value, *(there[under] or [])]})


def _checked(text: str, should: Any) -> str:
    with suppress(EditError):
        if _read_yaml(text) == should:
            return text
    raise EditError("it is written in a way that cannot be added to")


def _toml(value: dict[str, Any]) -> str:
    """Texts, numbers, and tables of tables of them: all that we say."""
    lines = [_toml_line(name, one) for name, one in value.items() if type(one) is not dict]
    for name, group in value.items():
        if type(group) is dict:
            for inner, table in group.items():
                lines += ["", f"[{name}.{inner}]"]
                lines += [_toml_line(key, one) for key, one in table.items()]
    return "\n".join(lines) + "\n"


def _toml_line(name: str, value: str | int) -> str:
    # JSON's texts are TOML's, but for one character that JSON lets stand.
    told = msgspec.json.encode(value).decode().replace("\x7f", "\\u007f")
    return f"{name} = {told}"
