"""The playground asks as its knobs say, and shows what comes."""

from __future__ import annotations

from collections.abc import Awaitable, Callable

import pytest
from playwright.async_api import expect

from conftest import Serve, Start
from dashboard.browser import Look
from doubles.upstream import DONE, chunk, event, refuses, streams, told

pytestmark = pytest.mark.anyio

Begin = Callable[..., Awaitable[Look]]
PATH = "/v1/chat/completions"


async def test_knobs_models_again_and_stop(gateway: Serve, look: Begin, doubles: Start) -> None:
    one, other = await doubles("one"), await doubles("other")
    one.on(PATH, streams(*told("Hello")), streams(*told("Once more")))
    other.on(PATH, streams(*told("Good day")), refuses(400, "<b>No</b>", "invalid_request_error"))
    tropilla = await gateway(one, other)
    seen = await look(tropilla)
    page = seen.page
    await seen.go("playground")
    await page.locator("#model").select_option("one")
    await page.locator("#other").select_option("other")
    await page.get_by_label("System prompt").fill("Be kind.")
    await page.get_by_text("Sampling", exact=True).click()
    await page.get_by_label("Temperature").fill("0.5")
    await page.get_by_text("Tools and form").click()
    await page.get_by_label("JSON Schema").fill('{"type": "object"}')
    await page.get_by_label("Your message").fill("Hi")
    await page.keyboard.press("Enter")
    texts = page.locator(".turn.assistant .text")
    await expect(texts).to_have_text(["Hello", "Good day"])
    sent = one.requests[0].json
    assert sent["messages"][0] == {"role": "system", "content": "Be kind."}
    assert (sent["temperature"], sent["max_tokens"]) == (0.5, 256)
    assert sent["response_format"]["json_schema"]["schema"] == {"type": "object"}
    # Again: the last question alone; what one of them refuses is told.
    await page.get_by_role("button", name="Again").click()
    await expect(page.get_by_role("alert")).to_contain_text("<b>No</b>")
    await expect(texts.nth(2)).to_have_text("Once more")
    assert one.requests[1].json["messages"] == sent["messages"]
    # Stop ends the work upstream.
    await page.locator("#other").select_option("")
    one.on(PATH)
    await page.get_by_label("Your message").fill("Go on")
    await page.get_by_role("button", name="Send").click()
    long = await one.arrives()
    await long.head()
    await long.send(chunk("For ever"))
    await expect(texts.last).to_have_text("For ever")
    await page.get_by_role("button", name="Stop").click()
    await long.left()
    await expect(page.locator(".told").last).to_contain_text("stopped")
    assert seen.wrong == []


async def test_calls_of_tools_are_shown(gateway: Serve, look: Begin, doubles: Start) -> None:
    one = await doubles("one")
    call = {
        "index": 0,
        "id": "c",
        "type": "function",
        "function": {"name": "look", "arguments": "{}"},
    }
    delta = {"index": 0, "delta": {"tool_calls": [call]}, "finish_reason": None}
    head = {"id": "x", "object": "chat.completion.chunk", "created": 1, "model": "one"}
    one.on(PATH, streams(event(head | {"choices": [delta]}), chunk(reason="tool_calls"), DONE))
    tropilla = await gateway(one)
    seen = await look(tropilla)
    await seen.go("playground")
    await seen.page.get_by_text("Tools and form").click()
    tools = '[{"type": "function", "function": {"name": "look", "parameters": {"type": "object"}}}]'
    await seen.page.get_by_label("Tools, as JSON").fill(tools)
    await seen.page.get_by_label("Your message").fill("Hi")
    await seen.page.keyboard.press("Enter")
    await expect(seen.page.locator(".turn.assistant pre")).to_have_text("look({})")
    assert one.requests[0].json["tools"][0]["function"]["name"] == "look"
    # What is no JSON is told before anything is asked.
    await seen.page.get_by_label("Tools, as JSON").fill("{")
    await seen.page.get_by_label("Your message").fill("Hi")
    await seen.page.keyboard.press("Enter")
    await expect(seen.page.get_by_role("alert")).to_contain_text("no JSON")
    assert len(one.requests) == 1
