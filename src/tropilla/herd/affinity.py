"""Who has seen the beginning of a prompt: its key-value cache saves reading that again.

A prompt is a chain of blocks, each known by a hash of itself and of all that comes before it: two
conversations share blocks as far as they begin alike. For each upstream the newest blocks are
kept, as many as it seems to keep itself, which the truth in its answers corrects. Memory is
bounded; texts are not kept.
"""

from __future__ import annotations

import hashlib
from collections import OrderedDict
from collections.abc import Iterable, Iterator

import msgspec

from tropilla.ir import (
    Audio,
    Chat,
    Completion,
    Image,
    Infill,
    Opaque,
    Reasoning,
    Refusal,
    Request,
    Text,
    ToolCall,
)

BLOCK = 128
"""Bytes of a block: about 30 tokens of English."""

MOST_BLOCKS = 2048
"""Of one prompt; what follows makes no difference to the choice."""

MOST_KEPT = 65_536
"""Blocks for each upstream: 8 MB of prompts, in about 6 MB of memory."""
_LEAST_KEPT = 256
_FIRST_KEPT = 8192
_READ = MOST_BLOCKS * BLOCK
"""Bytes of a prompt that are looked at."""


def blocks(request: Request) -> tuple[int, ...]:
    """The chain of a request's prompt; what is shorter than a block has none."""
    data = bytearray()
    for piece in _pieces(request):
        data += piece[:_READ].encode("utf-8", "replace")
        if len(data) >= _READ:
            break
    told = bytes(data[:_READ])
    chain: list[int] = []
    last = hash(request.model)
    for start in range(0, len(told) - BLOCK + 1, BLOCK):
        last = hash((last, told[start : start + BLOCK]))
        chain.append(last)
    return tuple(chain)


def session_of(owner: str, name: str) -> int:
    """What stands for a session of somebody's; other gateways have the same for it."""
    digest = hashlib.blake2b(f"{owner}\0{name}".encode("utf-8", "replace"), digest_size=8)
    return int.from_bytes(digest.digest(), "big", signed=True)


def _pieces(request: Request) -> Iterator[str]:
    """What a prompt is made of, in about the order in which a template puts it together."""
    match request.input:
        case Chat(messages=messages, tools=tools):
            if tools:
                yield _json(tools)
            for message in messages:
                yield f"\n{message.role}\n"
                for part in message.parts:
                    match part:
                        case Text(text=text) | Reasoning(text=text) | Refusal(text=text):
                            yield text
                        case ToolCall(name=name, arguments=arguments):
                            yield f"{name}{arguments}"
                        case Image(url=data) | Audio(data=data):
                            yield _sample(data)
                        case Opaque(body=body):
                            yield _sample(_json(body))
        case Completion(prompts=prompts):
            match prompts[0]:
                case str(prompt):
                    yield prompt
                case list(ids):
                    yield _json(ids[:_READ])
                case prompt:
                    yield _json(prompt)
        case Infill(prefix=prefix, suffix=suffix):
            yield f"{suffix}\n{prefix}"


def _json(value: object) -> str:
    return msgspec.json.encode(value).decode()


def _sample(data: str) -> str:
    """Enough to tell images and sounds apart, which are too large to be read for that."""
    return f"{len(data)} {data[:: len(data) // BLOCK + 1]} {data[-BLOCK:]}"


class Affinity:
    """Whose cache holds which blocks, as far as that can be known from here."""

    def __init__(self, most: int = MOST_KEPT) -> None:
        self._most = most
        self._kept: dict[int, OrderedDict[int, None]] = {}
        self._room: dict[int, int] = {}

    def expect(self, upstream: int, chain: Iterable[int]) -> int:
        """How many blocks of a chain, from its beginning, an upstream seems to have."""
        kept = self._kept.get(upstream)
        if not kept:
            return 0
        found = 0
        for block in chain:
            if block not in kept:
                break
            found += 1
        return found

    def saw(self, upstream: int, chain: Iterable[int]) -> None:
        """An upstream reads this now: it has it, and of the oldest perhaps no more."""
        kept = self._kept.setdefault(upstream, OrderedDict())
        for block in chain:
            kept[block] = None
            kept.move_to_end(block)
        room = self._room.setdefault(upstream, min(_FIRST_KEPT, self._most))
        while len(kept) > room:
            kept.popitem(last=False)

    def learn(self, upstream: int, expected: float, cached: float) -> None:
        """How much of a prompt was expected in the cache, and how much was, from 0 to 1."""
        room = self._room.get(upstream)
        if room is None or not expected:
            return
        if cached < expected / 2:
            kept = self._kept[upstream]
            room = max(_LEAST_KEPT, len(kept) * 3 // 4)
            while len(kept) > room:
                kept.popitem(last=False)
        else:
            room = min(self._most, room + room // 64)
        self._room[upstream] = room

    def forget(self, upstream: int) -> None:
        """It has begun anew, or is gone: its cache is empty."""
        self._kept.pop(upstream, None)
        self._room.pop(upstream, None)
