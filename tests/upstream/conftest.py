"""What the tests of clients share."""

from __future__ import annotations

from collections.abc import AsyncIterator
from typing import Any

import pytest

from doubles.talk import Server


@pytest.fixture
async def server(anyio_backend: Any) -> AsyncIterator[Server]:  # noqa: ARG001
    one = Server()
    await one.start()
    yield one
    await one.stop()
