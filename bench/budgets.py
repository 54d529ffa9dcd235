"""What Tropilla may cost, and whether it does: limits of its own, and beside others of the run."""

from __future__ import annotations

from collections.abc import Iterator, Sequence
from typing import NamedTuple, Protocol


class Row(Protocol):
    """What is looked at of a gateway; times in seconds, memory in bytes."""

    name: str
    request_cpu: float
    token_cpu: float | None
    first_added: float | None
    thousand: bool | None
    idle: int
    stream_memory: float


JUDGED = ("tropilla", "nginx", "smg")
"""Whose rows are looked at."""


class Budget(NamedTuple):
    """A limit, and what there is in each run, all in words."""

    what: str
    limit: str
    found: str
    verdict: str


class _Found(NamedTuple):
    what: str
    limit: str
    found: str
    holds: bool


def budgets(runs: Sequence[Sequence[Row]]) -> list[Budget]:
    """All that can be judged by these runs, for each way in which Tropilla was asked."""
    told: dict[tuple[str, str], list[_Found]] = {}
    for rows in runs:
        by_name = {row.name: row for row in rows}
        for row in rows:
            if row.name.startswith("tropilla"):
                for one in _budgets(row, by_name.get("nginx"), by_name.get("smg")):
                    told.setdefault((one.what, one.limit), []).append(one)
    return [
        Budget(what, limit, ", ".join(one.found for one in found), _verdict(found))
        for (what, limit), found in told.items()
    ]


def _verdict(found: Sequence[_Found]) -> str:
    holds = sum(one.holds for one in found)
    if holds in {0, len(found)}:
        return "holds" if holds else "IS MISSED"
    return f"holds in {holds} of {len(found)} runs"


def _budgets(row: Row, nginx: Row | None, smg: Row | None) -> Iterator[_Found]:
    def under(what: str, limit: float, found: float, unit: str, of: str = "") -> _Found:
        told = f"{limit:g} {unit}{of}"
        return _Found(f"{row.name}: {what}", told, f"{found:.2f} {unit}", found <= limit)

    yield under("CPU of a whole answer", 120, row.request_cpu * 1e6, "us")
    if smg is not None:
        yield under("the same", 0.5, row.request_cpu / smg.request_cpu, "x", " smg's")
    if row.token_cpu is not None:
        yield under("CPU of a streamed token", 30, row.token_cpu * 1e6, "us")
        for peer, most in ((smg, 1.0), (nginx, 2.0)):
            if peer is not None and peer.token_cpu is not None:
                found = row.token_cpu / peer.token_cpu
                yield under("the same", most, found, "x", f" {peer.name}'s")
    if row.first_added is not None:
        yield under("added to a first token, p99", 1, row.first_added * 1e3, "ms")
    if row.thousand is not None:
        flows = "flow" if row.thousand else "stall"
        yield _Found(f"{row.name}: 1000 streams of 30 tokens/s", "flow", flows, row.thousand)
    yield under("memory at rest", 60, row.idle / 2**20, "MB")
    yield under("memory of a stream", 40, row.stream_memory / 2**10, "KiB")
