"""Spans, as a real receiver of OTLP over HTTP is told them."""

from __future__ import annotations

import asyncio
import sys
import threading
from collections.abc import AsyncIterator, Iterator
from http.server import BaseHTTPRequestHandler, ThreadingHTTPServer
from itertools import pairwise
from pathlib import Path
from typing import Any

import pytest

from conftest import CHAT, Serve, Served, Start
from doubles.upstream import DEADLINE, DONE, Double, breaks, chunk, event, refuses, streams
from tropilla.config import ConfigError, TracesConfig
from tropilla.config.load import load
from tropilla.config.show import show
from tropilla.observing import semconv
from tropilla.server import tracing

pytest.importorskip("opentelemetry.sdk", reason="the extra otel is not installed")
pytestmark = pytest.mark.anyio

PATH = "/v1/chat/completions"
ID, SPAN = "0af7651916cd43dd8448eb211c80319c", "b7ad6b7169203331"
USAGE = event({"choices": [], "usage": {
    "prompt_tokens": 7, "completion_tokens": 3, "total_tokens": 10,
    "prompt_tokens_details": {"cached_tokens": 4},
}})  # fmt: skip
SECRET = "a secret that nobody may see"


class Receiver:
    """A collector: it takes spans, and answers as it is told to."""

    def __init__(self) -> None:
        self.status = 200
        self.asked: list[tuple[str, dict[str, str]]] = []
        self.resources: list[dict[str, Any]] = []
        self.schemas: set[str] = set()
        self.spans: list[Any] = []
        self.came = threading.Event()
        receiver = self

        class Handler(BaseHTTPRequestHandler):
            def do_POST(self) -> None:
                from opentelemetry.proto.collector.trace.v1.trace_service_pb2 import (
                    ExportTraceServiceRequest,
                )

                body = self.rfile.read(int(self.headers["content-length"]))
                headers = {name.lower(): value for name, value in self.headers.items()}
                receiver.asked.append((self.path, headers))
                if receiver.status == 200:
                    told = ExportTraceServiceRequest.FromString(body)
                    for one in told.resource_spans:
                        receiver.resources.append(values(one.resource.attributes))
                        for scope in one.scope_spans:
                            receiver.schemas.add(scope.schema_url)
                            receiver.spans += scope.spans
                self.send_response(receiver.status)
                self.send_header("content-length", "0")
                self.end_headers()
                receiver.came.set()

            def log_message(self, *_: object) -> None:
                """Say nothing."""

        self.server = ThreadingHTTPServer(("127.0.0.1", 0), Handler)
        self.url = f"http://127.0.0.1:{self.server.server_port}"

    def named(self, name: str) -> Any:
        """The one span of this name."""
        (found,) = [one for one in self.spans if one.name == name]
        return found


def values(attributes: Any) -> dict[str, Any]:
    found: dict[str, Any] = {}
    for one in attributes:
        kind = one.value.WhichOneof("value")
        value = getattr(one.value, kind)
        if kind == "array_value":
            value = [item.string_value for item in value.values]
        found[one.key] = value
    return found


@pytest.fixture
def receiver(monkeypatch: pytest.MonkeyPatch) -> Iterator[Receiver]:
    monkeypatch.setenv("OTEL_BSP_SCHEDULE_DELAY", "3600000")  # they leave when they are asked to
    one = Receiver()
    thread = threading.Thread(target=one.server.serve_forever, args=(0.01,))
    thread.start()
    yield one
    one.server.shutdown()
    thread.join(DEADLINE)
    one.server.server_close()


class Traced:
    """A gateway whose spans go to a receiver."""

    def __init__(self, tropilla: Served, receiver: Receiver, config: TracesConfig) -> None:
        self.tropilla = tropilla
        self.receiver = receiver
        spans = tracing.spans(config)
        assert spans is not None
        self.spans = spans
        tropilla.gateway.books = (spans, *tropilla.gateway.books)

    async def told(self) -> Receiver:
        """The receiver, once it has all."""
        await self.tropilla.has(self.tropilla.gateway.idle.is_set)
        await asyncio.to_thread(self.spans._provider.force_flush)
        return self.receiver


@pytest.fixture
async def traced(receiver: Receiver) -> AsyncIterator[Any]:
    made: list[Traced] = []

    def make(tropilla: Served, **config: Any) -> Traced:
        told = TracesConfig(**({"endpoint": receiver.url} | config))
        made.append(Traced(tropilla, receiver, told))
        return made[-1]

    yield make
    for one in made:
        await one.spans.close()


async def test_a_request_is_a_trace(gateway: Serve, double: Double, traced: Any) -> None:
    double.on(PATH, streams(chunk(SECRET), chunk(None, "stop"), USAGE, DONE))
    tropilla = await gateway(double)
    one = traced(tropilla, headers={"x-token": "abc"})
    answer = await tropilla.ask(
        "POST", PATH, CHAT | {"stream": True, "user": SECRET},
        {"traceparent": f"00-{ID}-{SPAN}-01", "tracestate": "a=1"},
    )  # fmt: skip
    found = await one.told()
    assert [(path, told["x-token"]) for path, told in found.asked] == [("/v1/traces", "abc")]
    assert found.schemas == {semconv.SCHEMA}
    assert found.resources[0]["service.name"] == "tropilla"
    assert {span.trace_id.hex() for span in found.spans} == {ID}

    server, call = found.named(f"POST {PATH}"), found.named("chat m")
    assert (server.parent_span_id.hex(), server.kind, server.trace_state) == (SPAN, 2, "a=1")
    parents = {span.name: span.parent_span_id for span in found.spans}
    assert parents["admit"] == parents["queue"] == parents["chat m"] == server.span_id
    assert parents["first token"] == parents["stream"] == call.span_id
    assert len(found.spans) == 6

    # The upstream hears of the span that asks it.
    heard = double.requests[-1].headers
    assert heard["traceparent"] == f"00-{ID}-{call.span_id.hex()}-01"
    assert heard["tracestate"] == "a=1"

    assert {
        semconv.HTTP_METHOD: "POST", semconv.HTTP_ROUTE: PATH, semconv.HTTP_STATUS: 200,
        semconv.REQUEST_ID: answer.headers["x-request-id"], semconv.ATTEMPTS: 1,
    }.items() <= values(server.attributes).items()  # fmt: skip
    told = values(call.attributes)
    assert {
        semconv.OPERATION: "chat", semconv.PROVIDER: "llama_cpp", semconv.REQUEST_MODEL: "m",
        semconv.REQUEST_STREAM: True, semconv.INPUT_TOKENS: 7, semconv.OUTPUT_TOKENS: 3,
        semconv.CACHED_TOKENS: 4, semconv.FINISH_REASONS: ["stop"],
        semconv.SERVER_ADDRESS: "127.0.0.1",
        semconv.SERVER_PORT: int(double.url.rpartition(":")[2]),
    }.items() <= told.items()  # fmt: skip
    assert told[semconv.FIRST_CHUNK] > 0
    # Every child lies within its parent, and the phases follow each other.
    spans = {span.span_id: span for span in found.spans}
    for span in found.spans:
        assert span.start_time_unix_nano <= span.end_time_unix_nano
        if span.parent_span_id in spans:
            above = spans[span.parent_span_id]
            assert above.start_time_unix_nano <= span.start_time_unix_nano
            assert span.end_time_unix_nano <= above.end_time_unix_nano
    order = [found.named(name) for name in ("admit", "queue", "first token", "stream")]
    for before, after in pairwise(order):
        assert before.end_time_unix_nano <= after.start_time_unix_nano
    # Nothing of what was said, or shown, is in them.
    assert SECRET not in str(found.spans)
    assert "Hello" not in str(found.spans)


async def test_each_upstream_that_was_asked_has_a_span(
    gateway: Serve, doubles: Start, traced: Any
) -> None:
    one, two = await doubles(), await doubles()
    one.on(PATH, breaks())
    two.on(PATH, streams(chunk("a"), chunk(None, "stop"), USAGE, DONE))
    tropilla = await gateway(one, two)
    told = traced(tropilla)
    while not any(asked.path == PATH for asked in one.requests):
        told.receiver.spans.clear()
        assert (await tropilla.chat()).status == 200
    found = await told.told()
    last = [span for span in found.spans if span.name == "chat m"][-2:]
    assert [values(span.attributes)[semconv.UPSTREAM] for span in last] == [one.url, two.url]
    assert [span.status.code for span in last] == [2, 0]
    heard = [
        next(asked for asked in reversed(double.requests) if asked.path == PATH)
        for double in (one, two)
    ]
    assert [asked.headers["traceparent"].split("-")[2] for asked in heard] == [
        span.span_id.hex() for span in last
    ]


async def test_failures_are_said_by_their_kind(gateway: Serve, double: Double, traced: Any) -> None:
    double.on(PATH, refuses(500, SECRET, "server_error"))
    tropilla = await gateway(double)
    one = traced(tropilla)
    await tropilla.chat()
    await tropilla.chat(model="nobody")
    found = await one.told()
    failed, unknown = (span for span in found.spans if span.kind == 2)
    assert (failed.status.code, unknown.status.code) == (2, 0)
    assert values(failed.attributes)[semconv.ERROR_TYPE] == "upstream_failed"
    assert values(unknown.attributes)[semconv.ERROR_TYPE] == "unknown_model"
    assert SECRET not in str(found.spans)


async def test_an_answer_that_is_said_again_says_whose_it_is(
    gateway: Serve, double: Double, traced: Any
) -> None:
    double.on(PATH, streams(chunk("a"), chunk(None, "stop"), USAGE, DONE))
    tropilla = await gateway(double)
    one = traced(tropilla)
    key = {"Idempotency-Key": "k"}
    first, again = [await tropilla.ask("POST", PATH, CHAT, key) for _ in range(2)]
    found = await one.told()
    told = [values(span.attributes) for span in found.spans if span.name == f"POST {PATH}"]
    assert [one.get(semconv.REPLAYS) for one in told] == [None, first.headers["x-request-id"]]
    assert told[1][semconv.REQUEST_ID] == again.headers["x-request-id"]
    assert [span.name for span in found.spans].count("chat m") == 1


async def test_what_is_not_sampled_is_passed_on_all_the_same(
    gateway: Serve, double: Double, traced: Any
) -> None:
    double.on(PATH, streams(chunk("a"), chunk(None, "stop"), USAGE, DONE))
    tropilla = await gateway(double)
    one = traced(tropilla, sample=0.0)
    await tropilla.chat()
    _, id_, _, flags = double.requests[-1].headers["traceparent"].split("-")
    assert (len(id_), int(flags, 16) & 1) == (32, 0)
    # Its client wants it: that is stronger.
    sampled = {"traceparent": f"00-{ID}-{SPAN}-01"}
    await tropilla.ask("POST", PATH, CHAT, sampled)
    found = await one.told()
    assert {span.trace_id.hex() for span in found.spans} == {ID}


async def test_looks_at_the_health_are_no_spans(
    gateway: Serve, double: Double, traced: Any
) -> None:
    tropilla = await gateway(double)
    one = traced(tropilla)
    await tropilla.ask("GET", "/health")
    await tropilla.ask("GET", "/v1/models")
    found = await one.told()
    assert [span.name for span in found.spans] == ["GET"]


async def test_a_receiver_that_fails_is_told_of_once(
    gateway: Serve, double: Double, traced: Any, caplog: pytest.LogCaptureFixture
) -> None:
    caplog.set_level("INFO")
    tropilla = await gateway(double)
    one = traced(tropilla)
    one.receiver.status = 400  # of 503 the SDK tries again for long

    def events() -> list[str]:
        told = [getattr(record, "event", record.name) for record in caplog.records]
        return [name for name in told if name.startswith(("traces", "opentelemetry"))]

    for _ in range(3):
        assert (await tropilla.ask("GET", "/v1/models")).status == 200
        await one.told()
    assert events() == ["traces.lost"]
    one.receiver.status = 200
    await tropilla.ask("GET", "/v1/models")
    await one.told()
    assert events() == ["traces.lost", "traces.taken"]


def test_where_spans_go(monkeypatch: pytest.MonkeyPatch, caplog: pytest.LogCaptureFixture) -> None:
    for name in ("OTEL_EXPORTER_OTLP_ENDPOINT", "OTEL_EXPORTER_OTLP_TRACES_ENDPOINT"):
        monkeypatch.delenv(name, raising=False)
    assert tracing.spans(TracesConfig()) is None
    monkeypatch.setenv("OTEL_EXPORTER_OTLP_ENDPOINT", "http://127.0.0.1:1")
    monkeypatch.setenv("OTEL_EXPORTER_OTLP_PROTOCOL", "grpc")
    assert tracing.spans(TracesConfig()) is None
    assert "grpc" in caplog.text
    monkeypatch.delenv("OTEL_EXPORTER_OTLP_PROTOCOL")
    for name, value in (("OTEL_TRACES_EXPORTER", "none"), ("OTEL_SDK_DISABLED", "true")):
        with monkeypatch.context() as patch:
            patch.setenv(name, value)
            assert tracing.spans(TracesConfig()) is None
    made = tracing.spans(TracesConfig())
    assert made is not None
    made._provider.shutdown()


def test_without_the_extra_it_is_said(
    monkeypatch: pytest.MonkeyPatch, caplog: pytest.LogCaptureFixture
) -> None:
    monkeypatch.setitem(sys.modules, "tropilla.observing.spans", None)
    with pytest.raises(ConfigError, match=r"tropilla\[otel\]"):
        tracing.spans(TracesConfig(endpoint="http://127.0.0.1:4318"))
    monkeypatch.setenv("OTEL_EXPORTER_OTLP_ENDPOINT", "http://127.0.0.1:4318")
    assert tracing.spans(TracesConfig()) is None
    assert "tropilla[otel]" in caplog.text


def test_the_settings_name_it(tmp_path: Path) -> None:
    path = tmp_path / "t.yaml"
    path.write_text("traces: {endpoint: 'h:4318', sample: 0.5, headers: {x-token: abc}}")
    told = load(path, {}).config.traces
    assert told == TracesConfig(endpoint="http://h:4318", sample=0.5, headers={"x-token": "abc"})
    assert "abc" not in show(load(path, {}))
