"""`GET /metrics`: Tropilla's own series, and its upstreams' under a label that says whose they are.

One scrape shows the herd. All upstreams are asked at once, and one that is slow, or says something
else than metrics, is left out of this scrape: `tropilla_upstream_scraped` tells.
"""

from __future__ import annotations

import asyncio
import re
from collections.abc import Iterable, Iterator
from typing import TypeAlias

from prometheus_client.core import Metric

from tropilla.ir import ProblemError
from tropilla.observing.metrics import CONTENT_TYPE, Metrics, gauge
from tropilla.upstream.fleet import Fleet
from tropilla.upstream.member import Upstream

_Value: TypeAlias = tuple[tuple[str, ...], float]
_SCRAPE_SECONDS = 2.0
_MOST_SAMPLES = 2000
"""Of one upstream."""
_SAMPLE = re.compile(
    r"([a-zA-Z_:][a-zA-Z0-9_:]*)(?:\{((?:[^\"}]|\"(?:[^\"\\]|\\.)*\")*)\})?"
    r" ([-+0-9.eEinfINFaN]+)(?: [-0-9]+)?"
)
_COMMENT = re.compile(r"# (HELP|TYPE) ([a-zA-Z_:][a-zA-Z0-9_:]*) (.*)")
_OURS = "tropilla_"
"""What the series of a gateway are called that is an upstream itself: they would be ours."""
_PAIR = re.compile(r"(\w+)(=\"(?:[^\"\\]|\\.)*\")")
_PARTS = ("_bucket", "_count", "_sum")
"""What the samples of a histogram are called behind its name."""


class Told:
    """All that `/metrics` tells; `book` counts the requests."""

    CONTENT_TYPE = CONTENT_TYPE

    def __init__(self, fleet: Fleet) -> None:
        self._fleet = fleet
        self.book = Metrics(lambda: _gauges(fleet))

    async def told(self) -> bytes:
        """Tropilla's own, and the upstreams'."""
        others = await _of_upstreams(self._fleet)
        return self.book.told() + others


def _gauges(fleet: Fleet) -> Iterator[Metric]:
    """How the upstreams are now."""
    up: list[_Value] = []
    slots: list[_Value] = []
    out: list[_Value] = []
    for one in fleet.upstreams:
        seen = fleet.candidate(one)
        up.append(((one.name,), one.state == "ready"))
        out.append(((one.name,), fleet.quarantine(one) or 0.0))
        slots.append(((one.name, "leased"), seen.leases))
        slots.append(((one.name, "foreign"), seen.foreign))
        if seen.slots is not None:
            free = max(seen.slots - seen.leases - seen.foreign, 0)
            slots.append(((one.name, "free"), free))
    # None of a model that is served is a number, too: who scales by it wants to hear it.
    waiting = dict.fromkeys(fleet.serving(), 0) | fleet.pool.queues()
    queues = [((model or "",), count) for model, count in waiting.items()]
    yield gauge("tropilla_upstream_up", "Whether an upstream is ready.", ("upstream",), up)
    yield gauge(
        "tropilla_upstream_slots", "Its slots: leased here, taken by others, free.",
        ("upstream", "state"), slots,
    )  # fmt: skip
    yield gauge(
        "tropilla_upstream_quarantine_seconds", "How long it still gets nothing.",
        ("upstream",), out,
    )  # fmt: skip
    yield gauge("tropilla_queue_length", "Requests that wait, by model.", ("model",), queues)


async def _of_upstreams(fleet: Fleet) -> bytes:
    """What the upstreams say of themselves."""
    asked = [one for one in fleet.upstreams if one.state == "ready" and one.traits.llamacpp]
    texts = await asyncio.gather(*(_ask(one) for one in asked))
    found = [(one.name, text) for one, text in zip(asked, texts, strict=True) if text is not None]
    told = {one.name: 0 for one in asked} | {name: 1 for name, _ in found}
    lines = [
        "# HELP tropilla_upstream_scraped Whether an upstream told its own metrics.",
        "# TYPE tropilla_upstream_scraped gauge",
        *(f"tropilla_upstream_scraped{{{_label(name)}}} {value}" for name, value in told.items()),
    ]
    return ("\n".join([*lines, *merged(found)]) + "\n").encode()


async def _ask(upstream: Upstream) -> str | None:
    try:
        status, body = await upstream.link.ask("GET", "/metrics", None, seconds=_SCRAPE_SECONDS)
    except ProblemError:
        return None
    return body.decode("utf-8", "replace") if status == 200 else None


def merged(told: Iterable[tuple[str, str]]) -> Iterator[str]:
    """The lines of several servers as one text: each family once, each sample under its server."""
    families: dict[str, tuple[dict[str, str], list[str]]] = {}
    for name, text in told:
        label, samples = _label(name), 0
        for line in text.splitlines():
            if comment := _COMMENT.fullmatch(line):
                kind, family, rest = comment.groups()
                families.setdefault(family, ({}, []))[0].setdefault(kind, rest)
            elif (sample := _SAMPLE.fullmatch(line)) and samples < _MOST_SAMPLES:
                samples += 1
                family, labels, value = sample.groups()
                if family.startswith(_OURS):
                    continue
                labels = _PAIR.sub(_renamed, labels or "")
                for part in _PARTS:
                    kind = families.get(family.removesuffix(part), ({}, []))[0].get("TYPE", "")
                    if kind in {"histogram", "summary"}:
                        family = family.removesuffix(part)
                more = f",{labels.strip(',')}" if labels else ""
                families.setdefault(family, ({}, []))[1].append(
                    f"{sample[1]}{{{label}{more}}} {value}"
                )
    for family, (comments, lines) in families.items():
        if lines:
            yield from (f"# {kind} {family} {rest}" for kind, rest in sorted(comments.items()))
            yield from lines


def _renamed(pair: re.Match[str]) -> str:
    """A label by another name, where the name is taken; Prometheus says it so, too."""
    return f"exported_{pair[0]}" if pair[1] == "upstream" else pair[0]


def _label(name: str) -> str:
    escaped = name.replace("\\", "\\\\").replace('"', '\\"').replace("\n", "\\n")
    return f'upstream="{escaped}"'
