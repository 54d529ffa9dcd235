"""How these tests ask, and what they look at."""

from __future__ import annotations

from typing import Any

from conftest import CHAT, Answer, Served
from tropilla.accounts import usage
from tropilla.server.accounts import Accounts

PATH = "/v1/chat/completions"
KEY = {"Idempotency-Key": "7b0a2f6e"}
ADMIN = {"Authorization": "Bearer the-admin-key"}
YES = "idempotency-replayed"


async def chat(tropilla: Served, headers: dict[str, str] = KEY, **fields: Any) -> Answer:
    return await tropilla.ask("POST", PATH, CHAT | fields, headers)


def replayed(answer: Answer) -> bool:
    assert answer.headers.get(YES, "true") == "true"
    return YES in answer.headers


def accounts(tropilla: Served) -> Accounts:
    found = tropilla.gateway._accounts
    assert found is not None
    return found


async def open_keys(tropilla: Served, count: int) -> None:
    """Wait until so many keys are being seen to."""
    await tropilla.has(lambda: len(tropilla.gateway._repeats._open) == count)


async def waits(tropilla: Served, most: int) -> None:
    """Wait until so many requests are open."""
    await tropilla.has(lambda: tropilla.gateway._open == most)


async def rows(tropilla: Served) -> int:
    (sums,) = await usage.sums(accounts(tropilla).store, [])
    assert sums["requests"] == len(await usage.rows(accounts(tropilla).store, most=1000))
    count: int = sums["requests"]
    return count
