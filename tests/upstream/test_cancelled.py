"""Who is cancelled in whatever turn of the loop leaves nothing that would have to be waited for."""

from __future__ import annotations

import asyncio
from pathlib import Path

import pytest

from doubles.upstream import DEADLINE, Double
from tropilla.upstream.http import Link

pytestmark = pytest.mark.anyio


@pytest.mark.parametrize("turns", range(16))
@pytest.mark.parametrize("unix", [False, True])
async def test_a_link_closes_after_any_cancellation(
    double: Double, tmp_path: Path, turns: int, *, unix: bool
) -> None:
    url = double.url
    if unix:
        path = tmp_path / "s"
        await double.stop()
        await double.start(path)
        url = f"unix://{path}"
    link = Link(url)
    asked = asyncio.create_task(link.ask("GET", "/never-answered"))
    for _ in range(turns):
        await asyncio.sleep(0)
    asked.cancel()
    with pytest.raises(asyncio.CancelledError):
        await asked
    async with asyncio.timeout(DEADLINE):
        await link.close()
