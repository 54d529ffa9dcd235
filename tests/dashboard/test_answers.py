"""Who has never seen the dashboard finds in it what he looks for: he reads what is there."""

from __future__ import annotations

import asyncio
import re
from collections.abc import Awaitable, Callable
from typing import Any

import pytest
from playwright.async_api import expect

from conftest import CHAT, Served, Start
from dashboard.browser import Look
from doubles.upstream import Double, refuses, streams, told
from tropilla.config import CaptureConfig, KeyConfig, LimitsConfig, UpstreamConfig

pytestmark = pytest.mark.anyio

Kept = Callable[..., Awaitable[Served]]
Begin = Callable[..., Awaitable[Look]]
PATH = "/v1/chat/completions"
KEYS = {
    "calm": KeyConfig(key="calm-key"),
    "crawler": KeyConfig(key="crawler-key", limits=LimitsConfig(requests=20)),
}


async def ask(tropilla: Served, who: str, **more: Any) -> int:
    body = {"model": "m", "messages": [{"role": "user", "content": "Hi"}]} | more
    headers = {"Authorization": f"Bearer {who}-key"}
    return (await tropilla.ask("POST", PATH, body, headers)).status


async def test_which_upstream_is_sick(kept: Kept, look: Begin, doubles: Start) -> None:
    well, sick = await doubles(), await doubles()
    well.on(PATH, streams(*told("Hello")))
    sick.on(PATH, refuses(500, "CUDA error: out of memory", "server_error"))
    tropilla = await kept(well, sick, accounts={"keys": KEYS})
    seen = await look(tropilla)
    await seen.log_in()
    await expect(seen.page.get_by_label("What is wrong")).to_have_count(0)
    for _ in range(8):
        await ask(tropilla, "calm")
    note = seen.page.get_by_label("What is wrong")
    await expect(note).to_contain_text("1 of 2 needs a look")
    await expect(note).to_contain_text(re.compile(f"{sick.url} is (quarantined|failing)"))
    await expect(note).to_contain_text("CUDA error: out of memory")
    await expect(note).not_to_contain_text(well.url)
    await seen.check("herd-sick")
    # And one that is gone.
    await sick.stop()
    await expect(note).to_contain_text("Connection refused")


async def test_which_key_floods(kept: Kept, look: Begin, double: Double) -> None:
    double.on(PATH, streams(*told("Hello")))
    tropilla = await kept(double, accounts={"keys": KEYS})
    seen = await look(tropilla)
    await seen.log_in()
    for _ in range(3):
        await ask(tropilla, "calm")
    await seen.page.get_by_role("link", name="Activity").click()
    await expect(seen.page.get_by_role("rowheader", name="calm")).to_be_visible()
    await expect(seen.page.get_by_label("Who asks too much")).to_have_count(0)
    await asyncio.gather(*(ask(tropilla, "crawler") for _ in range(60)))
    note = seen.page.get_by_label("Who asks too much")
    await expect(note).to_contain_text("crawler asks the most by far")
    await expect(note).to_contain_text("40 were refused by its limits")
    await seen.page.locator("select[name=state]").select_option("limited")
    await expect(seen.page.locator(".requests tbody tr")).to_have_count(40)
    assert "calm" not in await seen.page.locator(".requests").inner_text()
    # Its limit is full.
    await seen.page.get_by_role("link", name="Keys").click()
    assert "20 of 20" in await seen.page.get_by_label("crawler").inner_text()


async def test_why_the_last_request_was_slow(kept: Kept, look: Begin, double: Double) -> None:
    upstream = UpstreamConfig(url=double.url, slots=1)
    tropilla = await kept(accounts={"keys": KEYS}, upstreams=(upstream,))
    await tropilla.until(lambda: tropilla.fleet.state() == "ready")
    before = asyncio.ensure_future(ask(tropilla, "calm", stream=True))
    first = await double.arrives()
    last = asyncio.ensure_future(ask(tropilla, "calm", stream=True))
    await tropilla.has(lambda: tropilla.fleet.pool.waiting == 1)
    seen = await look(tropilla)
    await seen.log_in()
    # While it waits, that is what there is to see.
    await expect(seen.page.locator("dl.tiles")).to_contain_text("1 for m")
    await seen.page.get_by_role("link", name="Activity").click()
    await expect(seen.page.locator(".requests .state").first).to_have_text("waiting")
    await first.stream(*told("Hello"))
    second = await double.arrives()
    await second.stream(*told("Hello"))
    assert (await before, await last) == (200, 200)
    await expect(seen.page.locator(".requests .state").first).to_have_text("done")
    await seen.page.locator(".requests tbody a").first.click()
    said = seen.page.locator(".lead")
    await expect(said).to_contain_text("it waited for a free slot")


async def test_which_request_was_told_an_earlier_answer(
    kept: Kept, look: Begin, double: Double
) -> None:
    double.on(PATH, streams(*told("Hello")))
    tropilla = await kept(double, accounts={"keys": KEYS})
    headers = {"Authorization": "Bearer calm-key", "Idempotency-Key": "k"}
    first, again = [await tropilla.ask("POST", PATH, CHAT, headers) for _ in range(2)]
    ids = [one.headers["x-request-id"] for one in (first, again)]
    seen = await look(tropilla)
    await seen.log_in()
    await seen.page.get_by_role("link", name="Activity").click()
    rows = seen.page.locator(".requests tbody tr")
    await expect(rows).to_have_count(2)
    await expect(rows.first).to_have_id(ids[1])
    await expect(rows.first.locator("td").last).to_have_text("replayed")
    await expect(rows.last.locator("td").last).to_have_text("stop")
    await rows.first.locator("a").click()
    await expect(seen.page.locator(".lead")).to_contain_text("no upstream was asked")
    await seen.page.locator(".note").get_by_role("link", name=ids[0]).click()
    await expect(seen.page.locator("h1")).to_contain_text(ids[0])
    await expect(seen.page.locator(".note")).to_have_count(0)
    await seen.go("activity?q=replayed")
    await expect(rows).to_have_count(1)


async def test_what_was_said_is_shown_where_it_is_kept(
    kept: Kept, look: Begin, double: Double
) -> None:
    double.on(PATH, streams(*told("Hello")))
    keys = {"accounts": {"keys": KEYS}}
    tropilla = await kept(double, **keys, capture=CaptureConfig(enabled=True))
    await ask(tropilla, "calm")
    seen = await look(tropilla)
    page = seen.page
    await seen.log_in()
    await page.get_by_role("link", name="Activity").click()
    await page.locator(".requests tbody a").first.click()
    await expect(page.locator("#body")).to_contain_text('"content": "Hi"')
    await expect(page.locator("#asked-1")).to_contain_text('"stream": true')
    assert f"curl -N {tropilla.url}{PATH}" in await page.locator("#curl").inner_text()
    await seen.check()
    await page.get_by_label("Key").fill("calm-key")
    await page.get_by_role("button", name="Replay").click()
    await expect(page.locator("#replayed")).to_contain_text("Hello")
    assert len(double.requests) == 2
    assert double.requests[0].json == double.requests[1].json
    assert "calm-key" not in await page.content()
    assert seen.wrong == []
