"""A browser for all tests of the dashboard."""

from __future__ import annotations

import shutil
from collections.abc import AsyncIterator, Awaitable, Callable
from contextlib import AsyncExitStack
from pathlib import Path
from typing import Any

import pytest
from playwright.async_api import Browser, async_playwright, expect

from conftest import Serve, Served
from dashboard.browser import ADMIN, CHROMIUM, Look, arguments
from doubles.upstream import DEADLINE, Double
from tropilla.config import AccountsConfig


@pytest.fixture(scope="session")
async def browser(anyio_backend: Any) -> AsyncIterator[Browser]:  # noqa: ARG001
    """Chromium, once for all."""
    if shutil.which(CHROMIUM) is None:
        pytest.skip("Chromium is not on this machine (Debian: apt-get install chromium)")
    expect.set_options(timeout=DEADLINE * 1000)
    async with async_playwright() as playwright:
        browser = await playwright.chromium.launch(executable_path=CHROMIUM, args=arguments())
        yield browser
        await browser.close()


@pytest.fixture
async def look(browser: Browser) -> AsyncIterator[Callable[..., Awaitable[Look]]]:
    """Open windows; they are closed with the test."""
    async with AsyncExitStack() as stack:

        async def begin(tropilla: Served, **context: Any) -> Look:
            looked = await Look.begin(browser, tropilla, **context)
            stack.push_async_callback(looked.context.close)
            return looked

        yield begin


@pytest.fixture
def kept(gateway: Serve, tmp_path: Path) -> Callable[..., Awaitable[Served]]:
    """Start gateways that keep accounts and have an admin key."""

    async def start(*upstreams: Double | str, **config: Any) -> Served:
        accounts = config.pop("accounts", {})
        told = AccountsConfig(
            store=f"sqlite:///{tmp_path}/accounts.db", admin_key=ADMIN, **accounts
        )
        return await gateway(*upstreams, accounts=told, **config)

    return start
