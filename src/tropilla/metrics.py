"""Counts and times for Prometheus: what Tropilla did, and what its upstreams say of themselves.

A request touches a series once, when it is over; a token never does. Labels are bounded: a model
is one that was served (any other name is `other`), a key is its name in the accounts, and there are
as many upstreams as there are. Several processes of one gateway count in shared files
(`PROMETHEUS_MULTIPROC_DIR`), and each of them tells the sums.
"""

from __future__ import annotations

import os
from collections.abc import Callable, Iterable, Iterator
from typing import Final, Generic, TypeVar

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

disable_created_metrics()  # type: ignore[no-untyped-call] # nobody asks when a counter was made

_Child = TypeVar("_Child", Counter, Histogram)


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


class Metrics:
    """A book that counts. `gauges` tells what is, when it is asked: names, helps and samples."""

    def __init__(self, gauges: Callable[[], Iterable[Metric]] = tuple) -> None:
        self._own = own = CollectorRegistry()
        self._gauges = gauges

        def counter(name: str, text: str, *labels: str) -> _Series[Counter]:
            return _Series(Counter(name, text, labels, registry=own))

        def histogram(
            name: str, text: str, *labels: str, buckets: tuple[float, ...] = _SECONDS
        ) -> _Series[Histogram]:
            return _Series(Histogram(name, text, labels, buckets=buckets, registry=own))

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
        self._key_requests = counter("tropilla_key_requests", "Requests by key.", "key")
        self._key_tokens = counter("tropilla_key_tokens", "Tokens read and written by key.", "key")
        self._key_limited = counter(
            "tropilla_key_limited", "Refusals because a key asked too much.", "key"
        )
        self._keys: set[str] = set()

    def begun(self, record: Record) -> None:  # noqa: ARG002 - as books are told
        """One more is being answered."""
        self._open.inc()

    async def enter(self, record: Record) -> None:
        """Nothing is counted before it is over."""

    def over(self, record: Record) -> None:
        """Count it."""
        self._open.dec()
        model = (record.model or "") if record.upstream else _OTHER if record.model else ""
        self._requests(record.dialect, model, str(record.status)).inc()
        if record.problem is not None:
            self._errors(record.problem.kind).inc()
        if record.cancelled:
            self._left().inc()
        if record.metered:
            self._of_key(record)
        if not record.upstream:
            return
        failed = record.problem is not None
        outcome = "failed" if failed else "left" if record.cancelled else "answered"
        self._of_upstreams(record.upstream, outcome).inc()
        self._queued(model).observe(record.queued)
        if record.attempts > 1:
            (self._moved if record.failed_over else self._again)().inc()
        if record.took is not None:
            self._seconds(model).observe(record.took)
        if record.first is not None:
            self._first(model).observe(record.first)
            if record.written > 1 and record.took is not None and not failed:
                self._pace(model).observe((record.took - record.first) / (record.written - 1))
        for kind, count in (
            ("read", record.prompt), ("cached", record.cached),
            ("written", record.written), ("reasoning", record.reasoning),
        ):  # fmt: skip
            if count:
                self._tokens(model, kind).inc(count)

    def _of_key(self, record: Record) -> None:
        key = record.key
        if key not in self._keys:
            if len(self._keys) < _MOST_KEYS:
                self._keys.add(key)
            else:
                key = _OTHER
        self._key_requests(key).inc()
        if record.prompt or record.written:
            self._key_tokens(key).inc(record.prompt + record.written)
        if record.problem is not None and record.problem.kind == "limited":
            self._key_limited(key).inc()

    def told(self) -> bytes:
        """All of it, as Prometheus reads it."""
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
