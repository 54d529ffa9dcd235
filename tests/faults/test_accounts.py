"""A gateway that is killed loses nothing that it has told; `make faults` kills it 200 times."""

from __future__ import annotations

import pytest

from faults.accounts import accounts
from faults.score import Run
from serving import POSIX

pytestmark = [pytest.mark.anyio, POSIX]


async def test_what_was_told_is_kept_once_whenever_the_gateway_is_killed() -> None:
    lines = await accounts(Run(0.02))
    assert lines[0].more["requests"] >= 4 * 40
    assert [line.measured for line in lines] == [0, 0, 0]


async def test_and_if_nobody_waited_for_that_it_would_not_be() -> None:
    lines = await accounts(Run(0.015, ("commit",)))
    assert not lines[0].passed
