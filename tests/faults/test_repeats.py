"""What was told under a key is told again; `make faults` kills the gateway 200 times."""

from __future__ import annotations

import pytest

from faults.repeats import repeats
from faults.score import Run
from serving import POSIX

pytestmark = [pytest.mark.anyio, POSIX]


async def test_what_was_told_is_told_again_whenever_the_gateway_is_killed() -> None:
    (line,) = await repeats(Run(0.02))
    assert line.more["kills"] == 4
    assert line.measured == 0


async def test_and_if_nobody_waited_for_that_it_would_not_be() -> None:
    (line,) = await repeats(Run(0.015, ("keeping",)))
    assert not line.passed
