"""The dashboard in a real browser, in front of the real engine: what an operator does on a day."""

from __future__ import annotations

import csv
import io
from collections.abc import Awaitable, Callable
from typing import Any

import pytest
from playwright.async_api import expect

from conftest import Served
from dashboard.browser import ADMIN, Look
from tropilla.config import EngineConfig

pytestmark = pytest.mark.anyio

Start = Callable[..., Awaitable[Served]]
Begin = Callable[..., Awaitable[Look]]
PATH = "/v1/chat/completions"


async def test_a_day_of_an_operator(  # noqa: PLR0915 - a day is long
    kept: Start, look: Begin
) -> None:
    tropilla = await kept(engine=EngineConfig(slots=2, name="m"))
    seen = await look(tropilla)
    page = seen.page

    # Nobody is let in but with the admin key.
    await seen.go("herd")
    await expect(page.get_by_role("heading", name="Log in")).to_be_visible()
    await seen.check("login")
    await page.get_by_label("Admin key").fill("another")
    await page.get_by_role("button", name="Log in").click()
    await expect(page.get_by_role("alert")).to_have_text("That is not the admin key.")
    await page.get_by_label("Admin key").fill(ADMIN)
    await page.keyboard.press("Enter")
    await expect(page.get_by_role("heading", name="Herd", exact=True)).to_be_visible()

    # A key is made, and shown once.
    await page.get_by_role("link", name="Keys").click()
    await page.get_by_label("Name", exact=True).fill("research bot")
    await page.get_by_label("Tokens a minute").fill("100000")
    await page.get_by_label("Amount").fill("5000000")
    await page.get_by_role("button", name="Make the key").click()
    key = await page.locator("#made").inner_text()
    assert key.startswith("trp_")
    await seen.go("keys")
    assert key not in await page.content()
    assert "research bot" in await seen.main()

    # It asks a model, in the playground.
    await page.get_by_role("link", name="Playground").click()
    await page.get_by_label("Key", exact=True).fill(key)
    await page.get_by_label("Show how likely").check()
    await page.get_by_label("Your message").fill("Tell me of a llama.")
    await page.keyboard.press("Enter")
    told = page.locator(".turn.assistant .told")
    await expect(told).to_contain_text("written")
    coloured = page.locator(".turn.assistant .text span[title]")
    assert await coloured.count() > 3
    assert "%" in (await coloured.first.get_attribute("title") or "")
    await page.get_by_text("The same request").click()
    assert "Tell me of a llama." in await page.locator("#same").inner_text()
    assert key not in await page.locator("#same").inner_text()
    await seen.check("playground")

    # What it asked is found, and looked at.
    await page.get_by_role("link", name="Activity").click()
    await page.get_by_label("Search").fill("nobody has this")
    await expect(page.get_by_text("Nothing yet that fits")).to_be_visible()
    await page.get_by_label("Search").fill("research")
    await expect(page.locator(".requests tbody tr")).to_have_count(1)
    await expect(page.locator(".requests")).to_contain_text("embedded engine")
    await seen.check("activity")
    await page.locator(".requests tbody a").click()
    await expect(page.get_by_role("heading", name="Why this upstream")).to_be_visible()
    shown = await seen.main()
    for word in ("research bot", "could take it, and was taken", "x-tropilla-upstream", "Most of"):
        assert word in shown
    await seen.check("request")

    # It is in the accounts.
    await page.get_by_role("link", name="Usage").click()
    await page.locator("select[name=by]").select_option("key")
    row = page.locator(".scroll tbody tr", has_text="research bot")
    await expect(row).to_be_visible()
    await expect(page.locator("#chart canvas")).to_be_visible()
    await seen.check("usage")
    async with page.expect_download() as waiting:
        await page.get_by_role("link", name="CSV").click()
    path = await (await waiting.value).path()
    (line,) = csv.DictReader(io.StringIO(path.read_text(encoding="utf-8")))
    assert (line["key"], line["requests"]) == ("research bot", "1")
    assert int(line["written"]) > 0

    await page.get_by_role("link", name="Herd", exact=True).click()
    await expect(page.locator(".slots .free")).to_have_count(2)
    await seen.check("herd")

    # An upstream is drained by hand, and gets nothing until it is resumed.
    await page.get_by_role("button", name="Drain embedded engine").click()
    await expect(page.locator(".upstream .state")).to_have_text("held back")
    refused = await ask(tropilla, key)
    assert refused == 503
    await page.get_by_role("button", name="Resume embedded engine").click()
    await expect(page.locator(".upstream .state")).to_have_text("ready")
    assert await ask(tropilla, key) == 200

    # Another key in its place, and then none.
    await page.get_by_role("link", name="Keys").click()
    await seen.check("keys")
    await page.get_by_role("button", name="Rotate research bot").click()
    new = await page.locator("#made").inner_text()
    assert (await ask(tropilla, key), await ask(tropilla, new)) == (401, 200)
    await page.get_by_role("button", name="Revoke research bot").click()
    await expect(page.locator(".account .state")).to_have_text("revoked")
    assert "Revoke research bot?" in seen.dialogs[0]
    assert await ask(tropilla, new) == 401

    # Another program is connected.
    await page.get_by_role("link", name="Connect").click()
    await page.get_by_label("Key").fill("trp_mine")
    assert f"{tropilla.url}/v1/chat/completions" in await seen.main()
    assert "Bearer trp_mine" in await seen.main()
    await page.get_by_role("link", name="Claude Code").click()
    assert "ANTHROPIC_BASE_URL" in await seen.main()
    await seen.check("connect")

    await page.get_by_role("button", name="Log out").click()
    await expect(page.get_by_role("heading", name="Log in")).to_be_visible()
    await seen.go("activity")
    await expect(page.get_by_role("heading", name="Log in")).to_be_visible()
    assert seen.wrong == []


async def ask(tropilla: Served, key: str) -> int:
    body: dict[str, Any] = {"messages": [{"role": "user", "content": "Hi"}], "max_tokens": 2}
    headers = {"Authorization": f"Bearer {key}"}
    return (await tropilla.ask("POST", PATH, {"model": "m"} | body, headers)).status
