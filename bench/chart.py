"""The figures of `make bench` as a picture: bars, on a logarithmic scale."""

from __future__ import annotations

from collections.abc import Sequence
from html import escape
from math import log10
from typing import Protocol


class Row(Protocol):
    """What is drawn of a gateway; times in seconds."""

    name: str
    request_cpu: float
    token_cpu: float | None


_WIDTH, _LEFT, _BAR, _GAP, _TOP = 760, 190, 16, 10, 40
_STYLE = (
    "text{font:13px system-ui,sans-serif;fill:#333}.t{font-weight:600}.a{fill:#2a7f62}"
    ".b{fill:#9aa5b1}@media(prefers-color-scheme:dark){text{fill:#ddd}.b{fill:#66727f}"
    ".a{fill:#4fb892}}"
)


def chart(rows: Sequence[Row]) -> str:
    """An SVG of the CPU that each takes for a request and for a token."""
    parts: list[str] = []
    y = 0
    for title, values in (
        ("CPU of a request that is answered whole, in us", [r.request_cpu * 1e6 for r in rows]),
        ("CPU of a token that is streamed, in us", [(r.token_cpu or 0) * 1e6 for r in rows]),
    ):
        parts.append(f'<text class="t" x="0" y="{y + 20}">{title} (logarithmic)</text>')
        most = max(values, default=1.0)
        for number, (row, value) in enumerate(zip(rows, values, strict=True)):
            top = y + _TOP + number * (_BAR + _GAP)
            part = log10(max(value, 1.0) * 1.5) / log10(max(most, 1.0) * 1.5)
            width = max(2.0, part * (_WIDTH - _LEFT - 80))
            kind = "a" if row.name.startswith("tropilla") else "b"
            parts += [
                f'<text x="0" y="{top + 13}">{escape(row.name)}</text>',
                f'<rect class="{kind}" x="{_LEFT}" y="{top}" width="{width:.0f}" height="{_BAR}"/>',
                f'<text x="{_LEFT + width + 8:.0f}" y="{top + 13}">{value:,.0f}</text>',
            ]
        y += _TOP + len(rows) * (_BAR + _GAP) + 20
    return (
        f'<svg xmlns="http://www.w3.org/2000/svg" width="{_WIDTH}" height="{y}" '
        f'viewBox="0 0 {_WIDTH} {y}" role="img" aria-label="CPU of each gateway">'
        f"<style>{_STYLE}</style>{''.join(parts)}</svg>\n"
    )
