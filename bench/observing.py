"""What it costs to see: metrics and a line of the log for each request, and a scrape of a herd.

    .venv/bin/python -m bench.observing

Times are of one core, and the best of a few rounds counts. Lines go nowhere.
The scrape is that of a gateway in this process with upstreams that are its own too, so that what it
takes holds what they take to answer: each tells what a llama-server does.
"""

from __future__ import annotations

import argparse
import asyncio
import os
import sys
import time
from collections.abc import Callable
from pathlib import Path

from tropilla import log
from tropilla.config import AccountsConfig, Config, TracesConfig, UpstreamConfig
from tropilla.observing.journal import Journal
from tropilla.observing.metrics import Metrics
from tropilla.record import Record
from tropilla.server import tracing
from tropilla.server.metrics import Told
from tropilla.upstream.fleet import Fleet

_REQUESTS = 20_000
_ROUNDS = 5
_SCRAPES = 10
_PROPS = b'{"build_info":"b11549-x","total_slots":4,"default_generation_settings":{"n_ctx":4096}}'
_MODELS = b'{"data":[{"id":"m","object":"model","owned_by":"llamacpp","meta":{}}]}'
_NAMES = (
    "prompt_tokens_total", "prompt_seconds_total", "tokens_predicted_total",
    "tokens_predicted_seconds_total", "n_decode_total", "n_tokens_max", "prompt_tokens_seconds",
    "predicted_tokens_seconds", "requests_processing", "requests_deferred",
    "n_busy_slots_per_decode",
)  # fmt: skip
_METRICS = "".join(
    f"# HELP llamacpp:{name} What there is of it.\n# TYPE llamacpp:{name} gauge\n"
    f"llamacpp:{name} {number}.5\n"
    for number, name in enumerate(_NAMES)
).encode()


def _record(number: int) -> Record:
    """A chat that was streamed."""
    record = Record(f"req_{number:032x}", "POST", "/v1/chat/completions", 0.0)
    record.dialect, record.model, record.key = "openai_chat", "qwen3-30b", f"key_{number % 20}"
    record.upstream, record.attempts, record.status = f"http://10.0.0.{number % 8}:8080", 1, 200
    record.first, record.took, record.queued = 0.21, 2.5, 0.0
    record.prompt, record.cached, record.written = 1200 + number % 50, 1024, 250
    record.finish, record.stream, record.metered = "stop", True, True
    return record


def _each(work: Callable[[Record], None], after: Callable[[], object] = int) -> float:
    """Microseconds of a request."""
    found = []
    for _ in range(_ROUNDS):
        records = [_record(number) for number in range(_REQUESTS)]
        began = time.process_time()
        for record in records:
            work(record)
        after()
        found.append((time.process_time() - began) / _REQUESTS * 1e6)
    return min(found)


async def _costs() -> tuple[float, float]:
    metrics, journal = Metrics(), Journal()

    def count(record: Record) -> None:
        metrics.begun(record)
        metrics.over(record)

    counted = _each(count, metrics.told)
    with Path(os.devnull).open("w", encoding="utf-8") as nowhere:  # noqa: ASYNC230 - it is nowhere
        log.out = log.Out(nowhere, "json")
        written = _each(journal.over, journal.write)
        log.out = None
    journal.close()
    return counted, written


def _traced() -> float:
    """Microseconds in which a request gets its spans; another thread sends them, to nobody."""
    spans = tracing.spans(TracesConfig(endpoint="http://127.0.0.1:1"))
    assert spans is not None  # noqa: S101

    def trace(record: Record) -> None:
        spans.begun(record)
        record.admitted = 0.001
        record.asks(record.upstream, "llamacpp", 0.0, 0.0)
        spans.over(record)

    records = [_record(number) for number in range(_REQUESTS // 10)]
    began = time.thread_time()
    for record in records:
        trace(record)
    return (time.thread_time() - began) / len(records) * 1e6


async def _answer(reader: asyncio.StreamReader, writer: asyncio.StreamWriter) -> None:
    """As a llama-server answers who looks at it."""
    told = {b"/props": _PROPS, b"/v1/models": _MODELS, b"/metrics": _METRICS, b"/health": b"{}"}
    while line := await reader.readline():
        path = line.split()[1].partition(b"?")[0]
        while (await reader.readline()).strip():
            pass
        body = told.get(path)
        status = b"404 Not Found" if body is None else b"200 OK"
        head = b"HTTP/1.1 %b\r\nContent-Type: application/json\r\nContent-Length: %d\r\n\r\n"
        writer.write(head % (status, len(body or b"")) + (body or b""))


async def _scrape(upstreams: int) -> float:
    """Milliseconds that a scrape takes."""
    servers = [await asyncio.start_server(_answer, "127.0.0.1", 0) for _ in range(upstreams)]
    urls = [f"http://127.0.0.1:{one.sockets[0].getsockname()[1]}" for one in servers]
    config = Config(
        upstreams=tuple(UpstreamConfig(url=url, dialect="llamacpp") for url in urls),
        accounts=AccountsConfig(store="none"),
    )
    fleet = Fleet(config)
    await fleet.start()
    while not all(one.state == "ready" for one in fleet.upstreams):  # noqa: ASYNC110 - it is short
        await asyncio.sleep(0.05)
    told, found = Told(fleet), []
    for _ in range(_SCRAPES):
        began = time.perf_counter()
        text = await told.told()
        found.append((time.perf_counter() - began) * 1e3)
        assert text.count(b"llamacpp:n_decode_total{") == upstreams  # noqa: S101
    await fleet.stop()
    await asyncio.sleep(0.1)  # its connections end
    for one in servers:
        one.close()
    return min(found)


def main() -> int:
    parser = argparse.ArgumentParser(description="What it costs to see.")
    parser.add_argument("--upstreams", type=int, default=50)
    upstreams = parser.parse_args().upstreams
    counted, written = asyncio.run(_costs())
    scrape = asyncio.run(_scrape(upstreams))
    rows = (
        ("metrics, each request", counted, "us", None),
        ("line of the log, each request", written, "us", None),
        ("both", counted + written, "us", 8.0),
        ("spans, each request", _traced(), "us", None),
        (f"scrape of {upstreams} upstreams", scrape, "ms", 100.0),
    )
    for what, found, unit, limit in rows:
        word = "" if limit is None or found < limit else "NOT "
        held = "" if limit is None else f"  (limit {limit:g}: {word}held)"
        sys.stdout.write(f"{what:<34}{found:8.2f} {unit}{held}\n")
    return int(any(limit is not None and found >= limit for _, found, _, limit in rows))


if __name__ == "__main__":
    sys.exit(main())
