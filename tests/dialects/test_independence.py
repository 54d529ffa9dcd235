"""No dialect knows another: what several need is in the modules with an underscore."""

from __future__ import annotations

import re
from pathlib import Path

import pytest

from tropilla import dialects

_IMPORT = re.compile(r"^\s*(?:from|import) tropilla\.dialects\.([a-z]\w*)|"
                     r"^\s*from tropilla\.dialects import ([^_(\n]*)", re.MULTILINE)  # fmt: skip
HOME = Path(dialects.__file__).parent


@pytest.mark.parametrize("name", dialects.names())
def test_a_dialect_knows_no_other(name: str) -> None:
    files = [HOME / f"{name}.py", *(HOME / name).glob("*.py")]
    found = {
        word.strip()
        for file in files
        if file.exists()
        for groups in _IMPORT.findall(file.read_text(encoding="utf-8"))
        for word in (*groups[:1], *groups[1].split(","))
    }
    assert found.isdisjoint(set(dialects.names()) - {name})
