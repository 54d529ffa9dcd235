"""Makes something slightly wrong out of something right: JSON, events, or any bytes.

The same chance makes the same of the same. What is decoded is changed as a value, so that most of
what comes out is still JSON, and gets past the first look.
"""

from __future__ import annotations

import random
from typing import Any

import msgspec

ODD: tuple[Any, ...] = (
    None, True, False, 0, -1, 1, 0.5, -0.0, 1e308, 2**31, 2**53 + 1, 2**63, 2**64, -(2**63), "",
    "x", "\0", "\x7f\u2028\u202e", "\U0010ffff", "null", "a" * 300, "data:image/png;base64,AA==",
    "http://127.0.0.1:1/", "#", "#/$defs/x", "^(a+)+$", [], {}, [[]], [None], {"": {}},
    {"type": "object"}, {"$ref": "#"}, {"type": "function"}, [0], ["x", "y"],
)  # fmt: skip
_DEEP = 80
_MOST = 200_000
"""Bytes of what comes out: more is no new case."""


def mutated(data: bytes, chance: random.Random) -> bytes:
    """The same with something changed, or several things."""
    for _ in range(chance.choice((1, 1, 1, 2, 3))):
        data = _once(data, chance)[:_MOST]
    return data


def _once(data: bytes, chance: random.Random) -> bytes:
    if chance.random() < 0.15:
        return _bytes(data, chance)
    if b"data:" in data:
        return _events(data, chance)
    try:
        value = msgspec.json.decode(data)
    except (msgspec.DecodeError, UnicodeDecodeError, RecursionError):
        return _bytes(data, chance)
    return _encoded(_value(value, chance), data)


def _encoded(value: Any, instead: bytes) -> bytes:
    try:
        return msgspec.json.encode(value)
    except (ValueError, UnicodeEncodeError, RecursionError):
        return instead


def _bytes(data: bytes, chance: random.Random) -> bytes:
    at = chance.randrange(len(data) + 1)
    to = min(len(data), at + chance.choice((1, 1, 2, 8, 100)))
    match chance.randrange(6):
        case 0:
            return data[:at] + data[to:]
        case 1:
            return data[:at] + data[at:to] * 2 + data[to:]
        case 2:
            return data[:at] + chance.randbytes(to - at) + data[to:]
        case 3:
            odd = (
                b"\r\n",
                b"\n",
                b"\0",
                b"\xff",
                b'"',
                b"{",
                b"[" * 200,
                b":",
                b"-",
                b"\\u0000",
                b" ",
            )
            return data[:at] + chance.choice(odd) + data[at:]
        case 4:
            return data[:at]
        case _:
            if at == len(data):
                return data
            return data[:at] + bytes((data[at] ^ (1 << chance.randrange(8)),)) + data[at + 1 :]


def _events(data: bytes, chance: random.Random) -> bytes:
    """A stream with an event changed, lost, doubled, moved, or of another kind."""
    blocks = data.split(b"\n\n")
    at = chance.randrange(len(blocks))
    block = blocks[at]
    match chance.randrange(8):
        case 0:
            del blocks[at]
        case 1:
            blocks.insert(at, block)
        case 2:
            blocks.insert(chance.randrange(len(blocks) + 1), blocks.pop(at))
        case 3:
            blocks[at] = chance.choice((b"event: error\n", b"error: ", b": ", b"id: 1\n")) + block
        case _:
            name, colon, told = block.partition(b": ")
            try:
                value = msgspec.json.decode(told)
            except (msgspec.DecodeError, UnicodeDecodeError, RecursionError):
                blocks[at] = _bytes(block, chance)
            else:
                blocks[at] = name + colon + _encoded(_value(value, chance), told)
    return b"\n\n".join(blocks)


def _value(value: Any, chance: random.Random) -> Any:
    """A value with one thing changed, mostly far inside."""
    if type(value) is dict and value and chance.random() < 0.9:
        return _object(value, chance)
    if type(value) is list and value and chance.random() < 0.8:
        return _array(value, chance)
    if type(value) is str and chance.random() < 0.3:
        more = ("", "\0", "x", "\u00e9", "<|im_end|>")
        return value * chance.choice((0, 2, 50)) + chance.choice(more)
    if type(value) in {int, float} and chance.random() < 0.5:
        return chance.choice((-value, value + 1, value * 2**20, float(value), str(value)))
    if chance.random() < 0.1:
        for _ in range(_DEEP):
            value = [value] if chance.random() < 0.5 else {"a": value}
        return value
    return chance.choice(ODD)


def _object(value: dict[str, Any], chance: random.Random) -> dict[str, Any]:
    name = chance.choice([*value])
    match chance.randrange(10):
        case 0:
            return {one: value[one] for one in value if one != name}
        case 1:
            return value | {chance.choice([*value]): value[name]}
        case 2:
            return value | {chance.choice(NAMES): chance.choice(ODD)}
        case 3:
            return {(f"{one}_" if one == name else one): value[one] for one in value}
        case _:
            return value | {name: _value(value[name], chance)}


def _array(value: list[Any], chance: random.Random) -> list[Any]:
    at = chance.randrange(len(value))
    match chance.randrange(8):
        case 0:
            return value[:at] + value[at + 1 :]
        case 1:
            return value[: at + 1] * 2 + value[at:]
        case 2:
            return [*value, chance.choice(ODD)]
        case 3:
            return value * chance.choice((2, 5, 40))
        case _:
            return [*value[:at], _value(value[at], chance), *value[at + 1 :]]


NAMES = (
    "messages", "prompt", "input", "model", "stream", "n", "max_tokens", "stop", "logprobs",
    "top_logprobs", "logit_bias", "seed", "temperature", "tools", "tool_choice", "functions",
    "response_format", "json_schema", "grammar", "stream_options", "echo", "best_of", "suffix",
    "parameters", "choices", "delta", "content", "usage", "error", "index", "finish_reason",
    "tool_calls", "function", "arguments", "id", "type", "name", "role", "text", "tokens",
    "timings", "prompt_progress", "completion_probabilities", "stop_type", "data", "embedding",
    "results", "output", "response", "item", "previous_response_id", "include", "store",
)  # fmt: skip
"""Names that mean something to some dialect; here they come where they do not belong."""
