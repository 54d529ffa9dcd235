"""Counts and times for Prometheus: what Tropilla did, and what its upstreams say of themselves.

A request is counted once, when it is over, and reaches the series with those that are like it,
when somebody asks; a token never does. Labels are bounded: a model
is one that was served (any other name is `other`), a key is its name in the accounts, and there are
as many upstreams as there are. Several processes of one gateway count in shared files
(`PROMETHEUS_MULTIPROC_DIR`), and each of them tells the sums.
"""

from __future__ import annotations

import asyncio
import os
from bisect import bisect_left
from collections.abc import Callable, Iterable, Iterator, Sequence
from typing import Final, Generic, TypeAlias, TypeVar

from prometheus_client import (
    CollectorRegistry,
    Counter,
    Gauge,
    Histogram,
    disable_created_metrics,
    generate_latest,
)
from prometheus_client.core import GaugeMetricFamily, Metric
from prometheus_client.multiprocess import MultiProcessCollector

from tropilla.record import Record

CONTENT_TYPE: Final = "text/plain; version=0.0.4; charset=utf-8"
_SHARED = "PROMETHEUS_MULTIPROC_DIR"

_SECONDS = (0.01, 0.025, 0.05, 0.1, 0.25, 0.5, 1.0, 2.5, 5.0, 10.0, 30.0, 60.0, 120.0, 300.0, 600.0)
_TOKEN_SECONDS = (0.002, 0.005, 0.01, 0.02, 0.03, 0.05, 0.075, 0.1, 0.2, 0.5, 1.0, 2.0)
_MOST_KEYS = 1000
"""Beyond, a key is `other`."""
_OTHER = "other"
_MOST_WAITING = 1000
"""Requests that gather before they are counted; they are, too, whenever somebody asks."""
_SOON_SECONDS = 0.25

disable_created_metrics()  # type: ignore[no-untyped-call] # nobody asks when a counter was made

_Alike: TypeAlias = tuple[str, str, int, str, str, str, bool, str | None, bool]


class _Times(Histogram):
    """A histogram that takes many values at once: one by one each costs a microsecond."""

    def observe(self, values: Sequence[float]) -> None:  # type: ignore[override]
        """Take them."""
        bounds: list[float] = self._upper_bounds
        found: dict[int, int] = {}
        for value in values:
            at = bisect_left(bounds, value)
            found[at] = found.get(at, 0) + 1
        self._sum.inc(sum(values))
        for at, count in found.items():
            self._buckets[at].inc(count)


_Child = TypeVar("_Child", Counter, _Times)


class _Series(Generic[_Child]):
    """A series, and its children by what they are told apart by: to look one up is cheap."""

    def __init__(self, series: _Child) -> None:
        self._series: _Child = series
        self._children: dict[tuple[str, ...], _Child] = {}

    def __call__(self, *labels: str) -> _Child:
        child = self._children.get(labels)
        if child is None:
            child = self._series.labels(*labels) if labels else self._series
            self._children[labels] = child
        return child


class _Counted:
    """What requests that are alike came to."""

    __slots__ = (
        "again", "cached", "first", "moved", "pace", "queued", "read", "reasoning", "requests",
        "took", "written",
    )  # fmt: skip

    def __init__(self) -> None:
        self.requests = self.again = self.moved = 0
        self.read = self.cached = self.written = self.reasoning = 0
        self.queued: list[float] = []
        self.took: list[float] = []
        self.first: list[float] = []
        self.pace: list[float] = []


def _observe(counted: _Counted, record: Record, *, failed: bool) -> None:
    """Take what an upstream did."""
    took, first = record.took, record.first
    counted.queued.append(record.queued)
    counted.cached += record.cached or 0
    counted.reasoning += record.reasoning or 0
    if record.attempts > 1:
        if record.failed_over:
            counted.moved += 1
        else:
            counted.again += 1
    if took is None:
        return
    counted.took.append(took)
    if first is not None:
        counted.first.append(first)
        if record.written > 1 and not failed:
            counted.pace.append((took - first) / (record.written - 1))


class Metrics:
    """A book that counts. `gauges` tells what is, when it is asked: names, helps and samples."""

    def __init__(self, gauges: Callable[[], Iterable[Metric]] = tuple) -> None:
        self._own = own = CollectorRegistry()
        self._gauges = gauges

        def counter(name: str, text: str, *labels: str) -> _Series[Counter]:
            return _Series(Counter(name, text, labels, registry=own))

        def histogram(
            name: str, text: str, *labels: str, buckets: tuple[float, ...] = _SECONDS
        ) -> _Series[_Times]:
            return _Series(_Times(name, text, labels, buckets=buckets, registry=own))

        self._open = Gauge(
            "tropilla_requests_open", "Requests that are being answered.",
            registry=own, multiprocess_mode="livesum",
        )  # fmt: skip
        self._requests = counter(
            "tropilla_requests", "Requests that are over.", "dialect", "model", "status"
        )
        self._of_upstreams = counter(
            "tropilla_upstream_requests", "Requests by who answered them.", "upstream", "outcome"
        )
        self._seconds = histogram(
            "tropilla_request_seconds", "From a request's head to the end of its answer.", "model"
        )
        self._queued = histogram(
            "tropilla_queue_seconds", "How long a request waited for a slot.", "model"
        )
        self._first = histogram(
            "tropilla_first_token_seconds", "Until the first of an answer was there.", "model"
        )
        self._pace = histogram(
            "tropilla_token_seconds", "Between two tokens of an answer, on the whole.", "model",
            buckets=_TOKEN_SECONDS,
        )  # fmt: skip
        self._tokens = counter(
            "tropilla_tokens", "Tokens: read, of these cached, written, of these reasoning.",
            "model", "kind",
        )  # fmt: skip
        self._errors = counter(
            "tropilla_errors", "Requests that were refused or broke off.", "kind"
        )
        self._left = counter("tropilla_clients_left", "Clients that left before the end.")
        self._again = counter("tropilla_retries", "Requests that were tried again.")
        self._moved = counter("tropilla_failovers", "Streams that went on from another upstream.")
        self._replays = counter(
            "tropilla_replays", "Requests that were told the answer of an earlier one."
        )
        self._key_requests = counter("tropilla_key_requests", "Requests by key.", "key")
        self._key_tokens = counter("tropilla_key_tokens", "Tokens read and written by key.", "key")
        self._key_limited = counter(
            "tropilla_key_limited", "Refusals because a key asked too much.", "key"
        )
        self._keys: set[str] = set()
        self._now_open = 0
        self._counted: dict[_Alike, _Counted] = {}
        """What is not in the series yet, by what they are told apart by."""
        self._waiting = 0
        """How many requests that are."""
        self._shared = _SHARED in os.environ
        self._timer: asyncio.TimerHandle | None = None

    def begun(self, record: Record) -> None:  # noqa: ARG002 - as books are told
        """One more is being answered."""
        self._now_open += 1
        self._soon()

    async def enter(self, record: Record) -> None:
        """Nothing is counted before it is over."""

    def over(self, record: Record) -> None:
        """Count it, with those that are like it."""
        self._now_open -= 1
        self._soon()
        problem, upstream = record.problem, record.upstream
        failed = problem is not None
        outcome = "failed" if failed else "left" if record.cancelled else "answered"
        replayed = record.replays != ""
        alike = (
            record.dialect,
            (record.model or "") if upstream or replayed else _OTHER if record.model else "",
            record.status,
            upstream,
            outcome if upstream else "",
            "" if problem is None else problem.kind,
            record.cancelled,
            record.key if record.metered else None,
            replayed,
        )
        counted = self._counted.get(alike)
        if counted is None:
            counted = self._counted[alike] = _Counted()
        counted.requests += 1
        counted.read += record.prompt
        counted.written += record.written
        if upstream:
            _observe(counted, record, failed=failed)
        self._waiting += 1
        if self._waiting >= _MOST_WAITING:
            self.count()

    def _soon(self) -> None:
        """Where several processes count, have the others see it soon."""
        if self._shared and self._timer is None:
            self._timer = asyncio.get_running_loop().call_later(_SOON_SECONDS, self.count)

    def count(self) -> None:
        """Bring to the series what has gathered."""
        if self._timer is not None:
            self._timer.cancel()
            self._timer = None
        counted, self._counted, self._waiting = self._counted, {}, 0
        self._open.set(self._now_open)
        for alike, one in counted.items():
            dialect, model, status, upstream, outcome, kind, left, key, replayed = alike
            self._requests(dialect, model, str(status)).inc(one.requests)
            if kind:
                self._errors(kind).inc(one.requests)
            if left:
                self._left().inc(one.requests)
            if replayed:
                self._replays().inc(one.requests)
            if key is not None:
                self._of_key(key, one, limited=kind == "limited")
            if upstream:
                self._of_upstreams(upstream, outcome).inc(one.requests)
                self._served(model, one)

    def _served(self, model: str, one: _Counted) -> None:
        """Count what upstreams did."""
        for series, values in (
            (self._queued, one.queued), (self._seconds, one.took),
            (self._first, one.first), (self._pace, one.pace),
        ):  # fmt: skip
            if values:
                series(model).observe(values)
        for count, counter in ((one.again, self._again), (one.moved, self._moved)):
            if count:
                counter().inc(count)
        for kind, tokens in (
            ("read", one.read), ("cached", one.cached),
            ("written", one.written), ("reasoning", one.reasoning),
        ):  # fmt: skip
            if tokens:
                self._tokens(model, kind).inc(tokens)

    def _of_key(self, key: str, one: _Counted, *, limited: bool) -> None:
        if key not in self._keys:
            if len(self._keys) < _MOST_KEYS:
                self._keys.add(key)
            else:
                key = _OTHER
        self._key_requests(key).inc(one.requests)
        if one.read or one.written:
            self._key_tokens(key).inc(one.read + one.written)
        if limited:
            self._key_limited(key).inc(one.requests)

    def told(self) -> bytes:
        """All of it, as Prometheus reads it."""
        self.count()
        now = CollectorRegistry()
        now.register(_Now(self._gauges))
        counted = self._own
        if _SHARED in os.environ:
            counted = CollectorRegistry()
            MultiProcessCollector(counted)  # type: ignore[no-untyped-call]
        return generate_latest(counted) + generate_latest(now)


class _Now:
    """What is told by what it is when it is asked."""

    def __init__(self, gauges: Callable[[], Iterable[Metric]]) -> None:
        self._gauges = gauges

    def collect(self) -> Iterator[Metric]:
        yield from self._gauges()


def gauge(
    name: str, text: str, labels: tuple[str, ...], values: Iterable[tuple[tuple[str, ...], float]]
) -> Metric:
    """What has these values now, by these labels."""
    family = GaugeMetricFamily(name, text, labels=labels)
    for names, value in values:
        family.add_metric(names, value)
    return family
