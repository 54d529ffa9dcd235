"""A real browser, and what one who looks with it finds wrong with a page."""

from __future__ import annotations

import os
from pathlib import Path
from typing import Any, Final
from urllib.parse import urlsplit

from playwright.async_api import Browser, BrowserContext, ConsoleMessage, Page, Request

from conftest import Served

ROOT: Final = Path(__file__).parents[2]
CHROMIUM: Final = "/usr/bin/chromium"
ADMIN: Final = "the-admin-key-of-the-tests"
_ARGUMENTS = (
    "--no-sandbox", "--disable-background-networking", "--disable-component-update",
    "--disable-sync", "--no-first-run", "--disable-default-apps",
)  # fmt: skip
_AXE = (Path(__file__).parent / "axe.min.js").read_text(encoding="utf-8")
_RUN_AXE = """async (rules) => {
  const told = await axe.run(document, {resultTypes: ["violations"], ...rules});
  return told.violations.filter((one) => ["serious", "critical"].includes(one.impact))
    .map((one) => `${one.id}: ${one.help}: ${one.nodes.map((node) => node.html).join(" | ")}`);
}"""
_AT_NIGHT, _ON_A_PHONE = {"activity"}, {"herd"}
_WIDE, _NARROW = {"width": 1280, "height": 860}, {"width": 390, "height": 844}


def arguments() -> list[str]:
    """How Chromium is started: it asks nobody for anything by itself."""
    return list(_ARGUMENTS)


class Look:
    """Somebody with a browser in front of a gateway. `wrong` is what no page may do."""

    def __init__(self, tropilla: Served, context: BrowserContext, page: Page) -> None:
        self.tropilla = tropilla
        self.context = context
        self.page = page
        self.wrong: list[str] = []
        page.set_default_timeout(20_000)
        page.on("console", self._says)
        page.on("pageerror", lambda error: self.wrong.append(f"error: {error}"))
        page.on("request", self._asks)
        page.on("dialog", self._asks_back)
        self.dialogs: list[str] = []

    @classmethod
    async def begin(cls, browser: Browser, tropilla: Served, **context: Any) -> Look:
        """Open a window."""
        opened = await browser.new_context(viewport=_WIDE, **context)  # type: ignore[arg-type]
        return cls(tropilla, opened, await opened.new_page())

    def _says(self, message: ConsoleMessage) -> None:
        # What the network answered is the test's to judge; the rest is a page's own fault.
        if message.type == "error" and "Failed to load resource" not in message.text:
            self.wrong.append(f"console: {message.text}")

    def _asks(self, request: Request) -> None:
        told = urlsplit(request.url)
        if told.scheme != "data" and told.netloc != f"127.0.0.1:{self.tropilla.port}":
            self.wrong.append(f"asks {request.url}")

    async def _asks_back(self, dialog: Any) -> None:
        self.dialogs.append(dialog.message)
        await dialog.accept()

    async def go(self, place: str) -> None:
        """Open a page of the dashboard."""
        await self.page.goto(f"{self.tropilla.url}/ui/{place}")

    async def log_in(self) -> None:
        """Log in with the admin key."""
        await self.go("login")
        await self.page.get_by_label("Admin key").fill(ADMIN)
        await self.page.get_by_role("button", name="Log in").click()
        await self.page.get_by_role("heading", name="Herd", exact=True).wait_for()

    async def main(self) -> str:
        """All that a page says."""
        return await self.page.locator("main").inner_text()

    async def check(self, name: str = "") -> None:
        """Nothing is wrong with the page, for whoever reads it and at any width; take its picture.

        Pictures are taken where TROPILLA_WRITE_PICTURES says so.
        """
        await self.page.evaluate(_AXE)
        assert await self.page.evaluate(_RUN_AXE, {}) == []
        await self.page.emulate_media(color_scheme="dark")
        assert await self.page.evaluate(_RUN_AXE, {"runOnly": ["color-contrast"]}) == []
        await self.page.set_viewport_size(_NARROW)  # type: ignore[arg-type]
        wide = await self.page.evaluate("document.documentElement.scrollWidth")
        assert wide <= _NARROW["width"], "it fits a phone"
        if os.environ.get("TROPILLA_WRITE_PICTURES") and name:
            await self._pictures(name)
        await self.page.set_viewport_size(_WIDE)  # type: ignore[arg-type]
        await self.page.emulate_media(color_scheme="light")
        assert self.wrong == []

    async def _pictures(self, name: str) -> None:
        """Of every page by day, and of some as they are else."""
        folder = ROOT / "docs" / "img"
        if name in _ON_A_PHONE:
            await self.page.emulate_media(color_scheme="light")
            await self.page.screenshot(path=folder / f"{name}-phone.png")
        await self.page.set_viewport_size(_WIDE)  # type: ignore[arg-type]
        for scheme in ("light", "dark") if name in _AT_NIGHT else ("light",):
            await self.page.emulate_media(color_scheme=scheme)
            await self.page.screenshot(path=folder / f"{name}-{scheme}.png")
