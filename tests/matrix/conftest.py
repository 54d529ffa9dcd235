"""Notes what each test of the matrix saw, for the table in docs/matrix.md."""

from __future__ import annotations

from collections.abc import Generator
from typing import Any

import pytest

SEEN: dict[tuple[str, str, str], bool] = {}
"""Whether a front over a back passed a test, by the names of the three."""

REFUSED: dict[tuple[str, str], str] = {}
"""Why a feature was refused over a back; empty where it worked."""


@pytest.hookimpl(wrapper=True)
def pytest_runtest_makereport(
    item: pytest.Item, call: pytest.CallInfo[Any]
) -> Generator[None, pytest.TestReport, pytest.TestReport]:
    report = yield
    spec = getattr(item, "callspec", None)
    if call.when == "call" and spec is not None and {"front", "back"} <= spec.params.keys():
        key = spec.params["front"].name, spec.params["back"].name, item.function.__name__  # type: ignore[attr-defined]
        SEEN[key] = SEEN.get(key, True) and report.passed
    return report
