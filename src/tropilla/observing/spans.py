"""Spans of every request, for OpenTelemetry: where its time went, and never what was said.

The span of the server holds those of its children: `admit`, and for each upstream that was asked
the wait in the `queue` and the call, which holds the `first token` and the `stream`. They are made
of the record once the request is over. They leave in a thread of the SDK's own: nobody waits for
them, and whoever takes them may be gone.

This module is loaded only where there are traces: the SDK is an extra, and takes its time to load.
"""

from __future__ import annotations

import asyncio
import logging
import secrets
import threading
from collections.abc import Mapping, Sequence
from typing import Any
from urllib.parse import urlsplit

from opentelemetry.exporter.otlp.proto.http.trace_exporter import OTLPSpanExporter
from opentelemetry.sdk.resources import SERVICE_NAME, SERVICE_VERSION, Resource
from opentelemetry.sdk.trace import ReadableSpan, TracerProvider
from opentelemetry.sdk.trace.export import BatchSpanProcessor, SpanExporter, SpanExportResult
from opentelemetry.sdk.trace.id_generator import IdGenerator
from opentelemetry.sdk.trace.sampling import ParentBased, TraceIdRatioBased
from opentelemetry.trace import (
    NonRecordingSpan,
    Span,
    SpanContext,
    SpanKind,
    Status,
    StatusCode,
    TraceFlags,
    TraceState,
    set_span_in_context,
)

from tropilla import __version__, log
from tropilla.config import TracesConfig
from tropilla.observing import semconv
from tropilla.observing.trace import Trace
from tropilla.record import Attempt, Record

_NAME = "tropilla"
_LAST_SECONDS = 3.0
"""How long the last spans may take to be sent."""


class Spans:
    """A book that makes spans."""

    def __init__(self, config: TracesConfig) -> None:
        # What goes wrong is told once, by `_Telling`.
        logging.getLogger("opentelemetry").setLevel(logging.CRITICAL)
        exporter = OTLPSpanExporter(endpoint=config.endpoint, headers=dict(config.headers) or None)
        sampler = None
        if config.sample is not None:
            sampler = ParentBased(TraceIdRatioBased(config.sample))
        self._ids = _Ids()
        self._provider = TracerProvider(
            sampler=sampler,
            resource=_resource(),
            id_generator=self._ids,
            shutdown_on_exit=False,
        )
        self._provider.add_span_processor(BatchSpanProcessor(_Telling(exporter)))
        self._tracer = self._provider.get_tracer(_NAME, __version__, schema_url=semconv.SCHEMA)
        self._open: dict[str, Span] = {}

    def begun(self, record: Record) -> None:
        """Begin the span of the server, in the trace of the client if it has one."""
        told = record.trace
        span = self._tracer.start_span(
            record.method,
            None if told is None else _within(told.id, told.parent, told.flags, told.state),
            SpanKind.SERVER,
            {semconv.HTTP_METHOD: record.method, semconv.URL_PATH: record.path},
            start_time=_nanoseconds(record.at),
        )
        context = span.get_span_context()
        trace = Trace(
            f"{context.trace_id:032x}",
            "" if told is None else told.parent,
            int(context.trace_flags),
            context.trace_state.to_header(),
        )
        trace.span, trace.ours = f"{context.span_id:016x}", True
        record.trace = trace
        if span.is_recording():
            self._open[record.id] = span

    async def enter(self, record: Record) -> None:
        """Spans are made when it is over."""

    def over(self, record: Record) -> None:
        """End the span of the server, with all that is in it."""
        span = self._open.pop(record.id, None)
        if span is None or not record.worth_a_line:
            return
        _describe(span, record)
        inside = set_span_in_context(span)
        if record.admitted is not None:
            self._span("admit", record, 0.0, record.admitted, inside)
        for number, attempt in enumerate(record.asked):
            following = record.asked[number + 1 :]
            end = following[0].at - following[0].waited if following else record.took or 0.0
            self._span("queue", record, attempt.at - attempt.waited, attempt.at, inside)
            self._attempt(record, attempt, max(end, attempt.at), inside, last=not following)
        span.end(_nanoseconds(record.at + (record.took or 0.0)))

    def _attempt(
        self, record: Record, attempt: Attempt, end: float, inside: Any, *, last: bool
    ) -> None:
        """The span of one upstream's answer."""
        self._ids.span = int(attempt.span, 16) if attempt.span else 0
        name = f"{record.operation} {record.model or ''}" if record.operation else record.method
        span = self._tracer.start_span(
            name.strip(),
            inside,
            SpanKind.CLIENT,
            _of_attempt(record, attempt, last=last),
            start_time=_nanoseconds(record.at + attempt.at),
        )
        if not last:
            span.set_attribute(semconv.ERROR_TYPE, "upstream_failed")
            span.set_status(Status(StatusCode.ERROR))
        elif record.problem is not None:
            _fail(span, record.problem.kind)
        if last and record.first is not None and record.first >= attempt.at:
            within = set_span_in_context(span)
            self._span("first token", record, attempt.at, record.first, within)
            self._span("stream", record, record.first, end, within)
        span.end(_nanoseconds(record.at + end))

    def _span(self, name: str, record: Record, begin: float, end: float, inside: Any) -> None:
        start = _nanoseconds(record.at + max(begin, 0.0))
        span = self._tracer.start_span(name, inside, start_time=start)
        span.end(max(start, _nanoseconds(record.at + end)))

    async def close(self) -> None:
        """Have everything sent, if somebody takes it soon."""
        # No thread of the loop's own: at its end that one would be waited for.
        ending = threading.Thread(target=self._provider.shutdown, daemon=True)
        ending.start()
        await asyncio.to_thread(ending.join, _LAST_SECONDS)


class _Ids(IdGenerator):
    """Ids by chance, but for a span whose upstream has heard of it already."""

    span = 0

    def generate_span_id(self) -> int:
        """The id of a span."""
        given, self.span = self.span, 0
        return given or int(secrets.token_hex(8), 16) or 1

    def generate_trace_id(self) -> int:
        """The id of a trace."""
        return int(secrets.token_hex(16), 16) or 1

    def is_trace_id_random(self) -> bool:
        """Whether all of it is chance."""
        return True


class _Telling(SpanExporter):
    """Says once that spans are not taken, and once that they are taken again."""

    def __init__(self, to: SpanExporter) -> None:
        self._to = to
        self._failing = False

    def export(self, spans: Sequence[ReadableSpan]) -> SpanExportResult:
        """Send them."""
        result = self._to.export(spans)
        failed = result is not SpanExportResult.SUCCESS
        if failed and not self._failing:
            text = "Spans are lost: nobody takes them where 'traces' or OTEL_* say."
            log.warning("traces.lost", text)
        elif self._failing and not failed:
            log.info("traces.taken", "Spans are taken again.")
        self._failing = failed
        return result

    def shutdown(self) -> None:
        """Send nothing more."""
        self._to.shutdown()

    def force_flush(self, timeout_millis: int = 30000) -> bool:
        """Have sent what was given."""
        return self._to.force_flush(timeout_millis)


def _resource() -> Resource:
    """Who tells the spans; OTEL_SERVICE_NAME and OTEL_RESOURCE_ATTRIBUTES win."""
    own = Resource({SERVICE_NAME: _NAME, SERVICE_VERSION: __version__})
    told = Resource.create()
    if str(told.attributes.get(SERVICE_NAME, "")).startswith("unknown_service"):
        return told.merge(own)
    return own.merge(told)


def _within(trace: str, span: str, flags: int, state: str) -> Any:
    context = SpanContext(
        int(trace, 16),
        int(span, 16),
        is_remote=True,
        trace_flags=TraceFlags(flags),
        trace_state=TraceState.from_header([state]) if state else None,
    )
    return set_span_in_context(NonRecordingSpan(context))


def _describe(span: Span, record: Record) -> None:
    if record.asks_a_model:  # only there a path is one of a few
        span.update_name(f"{record.method} {record.path}")
        span.set_attribute(semconv.HTTP_ROUTE, record.path)
    told: dict[str, Any] = {
        semconv.HTTP_STATUS: record.status,
        semconv.URL_SCHEME: "http",
        semconv.REQUEST_ID: record.id,
        semconv.DIALECT: record.dialect,
        semconv.KEY: record.key,
        semconv.UPSTREAM: record.upstream,
        semconv.ATTEMPTS: record.attempts,
        semconv.REPLAYS: record.replays,
        semconv.CLIENT_LEFT: record.cancelled,
    }
    span.set_attributes({name: value for name, value in told.items() if value})
    if record.problem is not None:
        _fail(span, record.problem.kind, error=record.status >= 500 or record.status < 400)


def _fail(span: Span, kind: str, *, error: bool = True) -> None:
    """Say why it failed; that is an error of who serves only where it was not the client's."""
    span.set_attribute(semconv.ERROR_TYPE, kind)
    if error:
        span.set_status(Status(StatusCode.ERROR))


def _of_attempt(record: Record, attempt: Attempt, *, last: bool) -> Mapping[str, Any]:
    place = urlsplit(attempt.upstream)
    told: dict[str, Any] = {
        semconv.UPSTREAM: attempt.upstream,
        semconv.PROVIDER: semconv.PROVIDERS.get(attempt.speaks, attempt.speaks),
        semconv.OPERATION: record.operation,
        semconv.REQUEST_MODEL: record.model,
        semconv.REQUEST_STREAM: record.stream,
        semconv.CHOICES: record.choices if record.choices > 1 else 0,
        semconv.SERVER_ADDRESS: place.hostname,
        semconv.SERVER_PORT: place.port,
    }
    if last:
        told |= {
            semconv.EXPECTED_CACHE: record.expected,
            semconv.INPUT_TOKENS: record.prompt,
            semconv.OUTPUT_TOKENS: record.written,
            semconv.CACHED_TOKENS: record.cached,
            semconv.REASONING_TOKENS: record.reasoning,
            semconv.ESTIMATED: record.estimated,
            semconv.FINISH_REASONS: [record.finish] if record.finish else None,
        }
        if record.first is not None and record.stream:
            told[semconv.FIRST_CHUNK] = record.first - attempt.at
    return {name: value for name, value in told.items() if value}


def _nanoseconds(at: float) -> int:
    return int(at * 1e9)
