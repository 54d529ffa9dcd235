"""`GET /api/logs`: the last lines of the log, and what comes after them."""

from __future__ import annotations

import asyncio
from collections.abc import Callable
from time import monotonic
from urllib.parse import parse_qs

from tropilla.ir import Malformed
from tropilla.observing.journal import MOST_KEPT, Last
from tropilla.server.reply import Reply

_LOOK_SECONDS = 0.25
_SILENCE_SECONDS = 10.0
"""The longest that a follower hears nothing; then there is an empty line."""
_TYPE = "application/x-ndjson"


async def tell(last: Last, query: str, reply: Reply, ending: Callable[[], bool]) -> None:
    """Send lines of JSON; who follows hears of the next ones until it leaves, or all ends.

    Raises:
        Malformed: the query asks for something else.
    """
    asked = {name: values[-1] for name, values in parse_qs(query, keep_blank_values=True).items()}
    most = _count(asked.pop("lines", str(MOST_KEPT)))
    follow = _flag(asked.pop("follow", "false"))
    for name in asked:
        raise Malformed(f"'{name}' is not known here: lines and follow are.", param=name)
    found = list(last.since())
    seen = found[-1][0] if found else 0
    told_first = _joined([line for _, line in found[-most:] if most])
    # An empty line is where what has been ends, and what comes begins.
    await reply.start(200, _TYPE, {}, told_first + b"\n" if follow else told_first)
    told = monotonic()
    while follow and not ending():
        await asyncio.sleep(_LOOK_SECONDS)
        if found := list(last.since(seen)):
            seen = found[-1][0]
        if found or monotonic() - told > _SILENCE_SECONDS:
            await reply.write(_joined([line for _, line in found]) or b"\n")
            told = monotonic()
    await reply.end()


def _joined(lines: list[str]) -> bytes:
    return "".join(f"{line}\n" for line in lines).encode()


def _count(text: str) -> int:
    if not text.isdecimal() or int(text) > MOST_KEPT:
        raise Malformed(f"'lines' must be a number up to {MOST_KEPT}.", param="lines")
    return int(text)


def _flag(text: str) -> bool:
    if text not in {"true", "false"}:
        raise Malformed("'follow' must be true or false.", param="follow")
    return text == "true"
