"""What Tropilla may cost, and whether it does: limits of its own, and beside others of the run."""

from __future__ import annotations

from collections.abc import Iterator, Sequence
from typing import NamedTuple, Protocol


class Row(Protocol):
    """What is looked at of a gateway; times in seconds, memory in bytes."""

    name: str
    request_cpu: float
    token_cpu: float | None
    thousand: bool | None
    idle: int
    stream_memory: float


class Budget(NamedTuple):
    """A limit, and what there is, both in words."""

    what: str
    limit: str
    found: str
    holds: bool


def budgets(rows: Sequence[Row]) -> list[Budget]:
    """All that can be judged by these rows, for each way in which Tropilla was asked."""
    by_name = {row.name: row for row in rows}
    own = [row for row in rows if row.name.startswith("tropilla")]
    return [one for row in own for one in _budgets(row, by_name.get("nginx"), by_name.get("smg"))]


def _budgets(row: Row, nginx: Row | None, smg: Row | None) -> Iterator[Budget]:
    def under(what: str, limit: float, found: float, unit: str, of: str = "") -> Budget:
        told = f"{limit:g} {unit}{of}"
        return Budget(f"{row.name}: {what}", told, f"{found:.2f} {unit}", found <= limit)

    yield under("CPU of a whole answer", 120, row.request_cpu * 1e6, "us")
    if smg is not None:
        yield under("the same", 0.5, row.request_cpu / smg.request_cpu, "x", " smg's")
    if row.token_cpu is not None:
        yield under("CPU of a streamed token", 30, row.token_cpu * 1e6, "us")
        for peer, most in ((smg, 1.0), (nginx, 2.0)):
            if peer is not None and peer.token_cpu is not None:
                found = row.token_cpu / peer.token_cpu
                yield under("the same", most, found, "x", f" {peer.name}'s")
    if row.thousand is not None:
        flows = "flow" if row.thousand else "stall"
        yield Budget(f"{row.name}: 1000 streams of 30 tokens/s", "flow", flows, row.thousand)
    yield under("memory at rest", 60, row.idle / 2**20, "MB")
    yield under("memory of a stream", 40, row.stream_memory / 2**10, "KiB")
