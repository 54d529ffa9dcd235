"""A double of llama.cpp's server at b1496 (2023-11-07, commit e9c1cecb).

The server that `api_like_OAI.py` was written for: the oldest of `doubles.llama`.
"""

from __future__ import annotations

from contextlib import AbstractContextManager

from doubles import llama as servers
from doubles.llama import NAME, SEED_IDS, SEED_PROMPT, Llama

__all__ = ["NAME", "SEED_IDS", "SEED_PROMPT", "Llama", "llama"]


def llama(base: str = "", *, chat: bool = False) -> AbstractContextManager[Llama]:
    """One that runs; with `chat` it is b1561 already, the first that has OpenAI's chat."""
    return servers.llama(1561 if chat else 1496, base=base)
