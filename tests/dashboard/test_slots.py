"""What a slot shows, from what a llama-server tells of it."""

from __future__ import annotations

from collections.abc import Awaitable, Callable
from typing import Any

import pytest
from playwright.async_api import expect

from conftest import CHAT, Served
from dashboard.browser import Look
from doubles.upstream import Double, chunk
from tropilla.config import KeyConfig
from tropilla.dashboard.herd import _slot, _timed

Kept = Callable[..., Awaitable[Served]]
Begin = Callable[..., Awaitable[Look]]


def told(task: int, written: int, **more: Any) -> dict[str, Any]:
    of = {"id_task": task, "n_ctx": 100, "n_prompt_tokens": 50, "is_processing": True}
    return of | {"next_token": [{"n_decoded": written}]} | more


@pytest.mark.parametrize(
    ("first", "then", "shown"),
    [
        (told(1, 10), told(1, 30), "10 tokens/s"),
        (told(1, 30), told(1, 10), "0 tokens/s"),
        (told(1, 10), told(2, 30), "writing"),
        (told(1, 0), told(1, 0), "reading, 50 tokens"),
        (told(1, 10), told(1, 30, is_processing=False), "free"),
        (told(1, 10), told(1, 0, next_token={"n_decoded": 30}), "10 tokens/s"),
    ],
)
def test_a_slot_tells_its_pace(first: dict[str, Any], then: dict[str, Any], shown: str) -> None:
    before = _timed(first, None, 5.0)
    slot = _slot(then, _timed(then, before, 7.0), None)
    assert slot["text"] == shown
    assert slot["full"] == (0 if shown == "free" else 50)


@pytest.mark.anyio
async def test_a_slot_fills_while_somebody_looks(kept: Kept, look: Begin, double: Double) -> None:
    tropilla = await kept(double, accounts={"keys": {"calm": KeyConfig(key="calm-key")}})
    seen = await look(tropilla)
    await seen.log_in()
    slots = seen.page.locator(".slots")
    await expect(slots.locator(".free")).to_have_count(4)
    raw = await tropilla.connect()
    await raw.post(
        "/v1/chat/completions", CHAT | {"stream": True}, "Authorization: Bearer calm-key"
    )
    exchange = await double.arrives()
    await exchange.head()
    await exchange.send(chunk("a"))
    double.busy = 1
    await expect(slots.locator(".reading, .writing")).to_have_count(1)
    await expect(slots.locator(".free")).to_have_count(3)
    double.busy = 0
    raw.leave()
    await expect(slots.locator(".free")).to_have_count(4)
