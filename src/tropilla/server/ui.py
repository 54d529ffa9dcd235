"""The way to the dashboard: nothing of it is loaded before somebody asks for it."""

from __future__ import annotations

import asyncio
import time
from typing import TYPE_CHECKING

from tropilla.capture import Capture
from tropilla.config import Config
from tropilla.observing.activity import Activity
from tropilla.server.accounts import Accounts
from tropilla.server.door import Door
from tropilla.server.http import Call
from tropilla.upstream.fleet import Fleet

if TYPE_CHECKING:
    from tropilla.dashboard import Dashboard

_MOST_FORM = 1024 * 1024
_HEADERS = {"cache-control": "no-store"}


class Ui:
    """The dashboard of a gateway; `activity` is the book that it reads."""

    def __init__(self, config: Config, fleet: Fleet, accounts: Accounts | None, door: Door) -> None:
        self.activity = Activity()
        self.capture = Capture(config.capture)
        self._config = config
        self._fleet = fleet
        self._accounts = accounts
        self._door = door
        self._dashboard: Dashboard | None = None

    def reload(self, config: Config) -> None:
        """Show what another config says."""
        self._config = config
        self.capture.reload(config.capture)
        if self._dashboard is not None:
            self._dashboard.reload(config)

    def close(self) -> None:
        """Let go of what is kept."""
        self.capture.close()

    async def answer(self, call: Call, place: str) -> None:
        """Show a page, or do what one of them asks for."""
        if self._dashboard is None:
            # Those who are served meanwhile do not wait for what is loaded.
            await asyncio.to_thread(_load)
        from tropilla import dashboard  # noqa: PLC0415 - most gateways never show it

        if self._dashboard is None:
            house = dashboard.House(
                config=self._config,
                fleet=self._fleet,
                activity=self.activity,
                capture=self.capture,
                accounts=self._accounts,
                levels=self._door.admission.levels,
                who=self._door.who,
                is_open=lambda: self._door.open,
            )
            self._dashboard = dashboard.Dashboard(house)
        body = await call.body(_MOST_FORM) if call.method == "POST" else b""
        visit = dashboard.Visit(
            method=call.method,
            place=place,
            query=call.head.query,
            headers=call.texts(),
            body=body,
            now=time.time(),
        )
        page = await self._dashboard.answer(visit)
        call.reply.shared = False
        headers = {**_HEADERS, **page.headers}
        await call.reply.whole(page.status, page.body, headers, page.content_type)


def _load() -> None:
    from tropilla import dashboard  # noqa: F401, PLC0415 - it stays loaded
