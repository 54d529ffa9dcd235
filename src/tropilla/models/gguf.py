"""What a GGUF file says of itself at its beginning. The weights are never looked at.

A file may be anything that somebody has put on a disk or on the hub: whatever it says, reading it
ends soon, takes little memory, and raises nothing but `NotGguf`.
"""

from __future__ import annotations

import struct
from collections.abc import Sequence
from typing import Any, BinaryIO

import msgspec

_FORMATS = {0: "B", 1: "b", 2: "H", 3: "h", 4: "I", 5: "i", 6: "f", 7: "?", 10: "Q", 11: "q",
            12: "d"}  # fmt: skip
_STRING, _ARRAY = 8, 9
_MOST_KEYS = 10_000
_MOST_ITEMS = 10_000_000
_LONGEST_TEXT = 16 * 1024 * 1024
_LONGEST_LIST = 4096
"""Of numbers, which are kept: there is one for each layer."""


class NotGguf(ValueError):  # noqa: N818 - it says what is wrong
    """The file is none that llama.cpp could load; the message says why."""


class Header(msgspec.Struct, frozen=True, kw_only=True):
    """What a model is made of; zeros stand for what the file does not say."""

    architecture: str = ""
    name: str = ""
    context: int = 0
    """Tokens that it was trained to see."""
    layers: int = 0
    cache_width: int = 0
    """Numbers that all layers together keep of each token: keys and values."""

    @property
    def token_bytes(self) -> int:
        """Bytes of cache that each token of context takes, at 16 bits a number."""
        return 2 * self.cache_width


def read_header(file: BinaryIO) -> Header:
    """Read the beginning of a file.

    Raises:
        NotGguf: it is no such file.
    """
    if _bytes(file, 4) != b"GGUF":
        raise NotGguf("it does not begin as a GGUF file does")
    version, _, keys = _unpack(file, "IQQ")
    if not 2 <= version <= 3:
        raise NotGguf(f"it has version {version} of the format, and 2 and 3 are known")
    if keys > _MOST_KEYS:
        raise NotGguf("it is damaged: it has too many keys")
    found: dict[str, Any] = {}
    for _ in range(keys):
        key = _text(file)
        if key.startswith("tokenizer.") and _has_all(found):
            break  # which can be megabytes of words
        found[key] = _value(file, *_unpack(file, "I"))
    return _header(found)


def _has_all(found: dict[str, Any]) -> bool:
    arch = found.get("general.architecture")
    return f"{arch}.context_length" in found and f"{arch}.block_count" in found


def _header(found: dict[str, Any]) -> Header:
    arch = found.get("general.architecture")
    arch = arch if type(arch) is str else ""

    def number(key: str) -> int:
        value = found.get(f"{arch}.{key}")
        return value if type(value) is int and value > 0 else 0

    layers = number("block_count")
    heads = found.get(f"{arch}.attention.head_count")
    kv_heads = found.get(f"{arch}.attention.head_count_kv", heads)
    widest = max(_counts(heads, 1), default=0)
    length = number("embedding_length") // widest if widest else 0
    each = (number("attention.key_length") or length) + (number("attention.value_length") or length)
    name = found.get("general.name")
    return Header(
        architecture=arch,
        name=name if type(name) is str else "",
        context=number("context_length"),
        layers=layers,
        cache_width=sum(_counts(kv_heads, layers)) * each,
    )


def _counts(told: Any, layers: int) -> Sequence[int]:
    """A count for each layer: one for all of them, or a list."""
    if type(told) is int:
        return [told] * min(layers, _LONGEST_LIST)
    if type(told) is list and all(type(one) is int for one in told):
        return told
    return []


def _value(file: BinaryIO, kind: int) -> Any:
    if kind == _STRING:
        return _text(file)
    if kind != _ARRAY:
        return _unpack(file, _format(kind))[0]
    inner, count = _unpack(file, "IQ")
    if count > _MOST_ITEMS:
        raise NotGguf("it is damaged: a list in it has no end")
    if inner == _STRING:
        for _ in range(count):
            _text(file)
        return None
    one = _format(inner)
    if count > _LONGEST_LIST:
        left = count * struct.calcsize(one)
        while left:
            left -= len(_bytes(file, min(left, 1 << 20)))
        return None
    return list(_unpack(file, one * count)) if count else []


def _format(kind: int) -> str:
    if kind not in _FORMATS:
        raise NotGguf(f"it is damaged: there is no kind {kind} of value")
    return _FORMATS[kind]


def _text(file: BinaryIO) -> str:
    (length,) = _unpack(file, "Q")
    if length > _LONGEST_TEXT:
        raise NotGguf("it is damaged: a text in it has no end")
    return _bytes(file, length).decode("utf-8", "replace")


def _unpack(file: BinaryIO, form: str) -> tuple[Any, ...]:
    form = f"<{form}"
    return struct.unpack(form, _bytes(file, struct.calcsize(form)))


def _bytes(file: BinaryIO, count: int) -> bytes:
    data = file.read(count)
    if len(data) < count:
        raise NotGguf("it ends too soon")
    return data
