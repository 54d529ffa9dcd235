"""What Tropilla costs, beside other gateways in the same run: `make bench`.

One after the other, each gateway stands on a core of its own in front of the same upstream; the
upstream and the clients share another core. Told are, for each: the CPU of a request that is
answered whole and of a token that is streamed (by the kernel's own account of its threads),
requests a second, what it adds to the time that the upstream takes, how many streams it carries
without a stall, its memory, and how fast it starts.

    make bench ARGS="--quick --only tropilla,nginx"
"""

from __future__ import annotations

import argparse
import http.client
import os
import signal
import statistics
import subprocess
import sys
import tempfile
import time
from collections.abc import Iterator, Sequence
from contextlib import contextmanager, suppress
from pathlib import Path
from typing import Any, NamedTuple

import msgspec
from rich.console import Console
from rich.table import Table

from bench.budgets import JUDGED, Budget, budgets
from bench.chart import chart
from bench.gateways import ROOT, Gateway, gateways
from bench.load import Plan, Seen, percentile

PORT, UPSTREAM, OTHER = 18200, 18300, 18301
TOKENS = 100
console = Console(stderr=True)

_FAST, _SLOW = 1000, 200
"""Requests a second, from which on very many of them can be asked; and up to which few streams."""
_MARK = "<!-- make bench -->\n"
_PATIENCE_SECONDS = 120
"""For one load; who takes longer is left out."""


class Row(msgspec.Struct, kw_only=True):
    """What one gateway came to; times in seconds, memory in bytes."""

    name: str
    what: str
    start: float = 0.0
    idle: int = 0
    request_cpu: float = 0.0
    requests: float = 0.0
    added_p50: float = 0.0
    added_p99: float = 0.0
    token_cpu: float | None = None
    """`None` if not every stream came to its end."""
    first_p50: float = 0.0
    first_p99: float = 0.0
    first_added: float | None = None
    """What is added to the first token of a stream, at the 99th percentile."""
    streams: int = 0
    """As many at once, of 50 tokens a second, without a stall."""
    thousand: bool | None = None
    """Whether 1,000 streams of 30 tokens a second had none; `None` if that was not tried."""
    stream_memory: float = 0.0
    after: int = 0
    """Memory after many requests."""
    failed: int = 0


class Size(msgspec.Struct, frozen=True):
    """How much is asked."""

    requests: int
    single: int
    streams: int
    steps: tuple[int, ...]
    many: int
    thousand: bool


FULL = Size(20_000, 2_000, 200, (200, 400, 600, 800, 1000), 100_000, thousand=True)
QUICK = Size(4_000, 400, 100, (200,), 0, thousand=False)


def _pin(core: int) -> list[str]:
    return ["taskset", "-c", str(core % (os.cpu_count() or 1))]


def _tree(pid: int) -> list[int]:
    found = [pid]
    for task in Path(f"/proc/{pid}/task").glob("*/children"):
        with suppress(OSError):
            for child in task.read_text(encoding="ascii").split():
                found += _tree(int(child))
    return found


def cpu(pid: int) -> float:
    """Seconds that a process and its children have run, by the kernel's own account."""
    ticks = 0
    for one in _tree(pid):
        with suppress(OSError):
            fields = Path(f"/proc/{one}/stat").read_text(encoding="ascii").rpartition(")")[2]
            ticks += sum(int(field) for field in fields.split()[11:13])
    return ticks / os.sysconf("SC_CLK_TCK")


def memory(pid: int) -> int:
    """Bytes that a process and its children hold."""
    pages = 0
    for one in _tree(pid):
        with suppress(OSError):
            pages += int(Path(f"/proc/{one}/statm").read_text(encoding="ascii").split()[1])
    return pages * os.sysconf("SC_PAGE_SIZE")


@contextmanager
def running(command: list[str], core: int, environment: dict[str, str]) -> Iterator[int]:
    """A process on one core, until this is left; its id."""
    out = subprocess.DEVNULL if "BENCH_SHOW" not in os.environ else None
    with subprocess.Popen(
        [*_pin(core), *command],
        stdout=out, stderr=out, env=os.environ | environment, cwd=ROOT, start_new_session=True,
    ) as process:  # fmt: skip
        try:
            yield process.pid
        finally:
            with suppress(ProcessLookupError):
                os.killpg(process.pid, signal.SIGKILL)


def _answers(port: int, path: str, key: str = "bench") -> bool:
    connection = http.client.HTTPConnection("127.0.0.1", port, timeout=2)
    try:
        connection.request("GET", path, headers={"Authorization": f"Bearer {key}"})
        return connection.getresponse().status < 500
    except OSError:
        return False
    finally:
        connection.close()


def wait_for(port: int, path: str, seconds: float = 60) -> float:
    """Seconds until something is served."""
    began = time.perf_counter()
    while not _answers(port, path):
        if time.perf_counter() - began > seconds:
            raise TimeoutError
        time.sleep(0.01)
    return time.perf_counter() - began


def load(**plan: Any) -> Seen:
    """Have clients ask, and tell what they saw."""
    told = msgspec.json.encode(Plan(**plan)).decode()
    command = [*_pin(1), sys.executable, "-m", "bench.load", told]
    try:
        done = subprocess.run(
            command, cwd=ROOT, check=True, capture_output=True, timeout=_PATIENCE_SECONDS
        )
    except subprocess.TimeoutExpired:
        raise TimeoutError from None
    return msgspec.json.decode(done.stdout, type=Seen)


@contextmanager
def upstream(tokens: int, interval: float) -> Iterator[None]:
    """Two of them, of which each gateway is told that knows more than one."""
    command = [sys.executable, "-m", "bench.double"]
    more = [str(tokens), str(interval)]
    with (
        running([*command, str(UPSTREAM), *more], 1, {}),
        running([*command, str(OTHER), *more], 1, {}),
    ):
        for port in (UPSTREAM, OTHER):
            wait_for(port, "/health")
        yield


@contextmanager
def started(one: Gateway) -> Iterator[tuple[int, float, dict[str, Any]]]:
    """A gateway that serves: its process, how long it took, and how to ask it."""
    with tempfile.TemporaryDirectory(prefix="bench-") as folder:
        told = one.start(PORT, [UPSTREAM, OTHER], Path(folder))
        began = time.perf_counter()
        with running(told.command, 0, told.environment) as pid:
            wait_for(PORT, told.ready)
            how: dict[str, Any] = {"port": PORT, "headers": told.headers}
            while load(**how, requests=1, connections=1).statuses.get("200") != 1:
                if time.perf_counter() - began > 60:
                    raise TimeoutError
            yield pid, time.perf_counter() - began, how


class Direct(NamedTuple):
    """What the clients see without a gateway."""

    whole: Seen
    streams: Seen


def measure(one: Gateway, size: Size, direct: Direct) -> Row:
    """All about one gateway."""
    row = Row(name=one.name, what=one.what)

    def step(what: str) -> None:
        console.log(f"{one.name}: {what}")

    with upstream(16, 0):
        step("starting")
        with started(one) as (pid, row.start, how):
            time.sleep(1)
            row.idle = memory(pid)
            step("answers that are whole")
            load(**how, requests=size.requests // 10)
            before = cpu(pid)
            seen = load(**how, requests=size.requests)
            row.request_cpu = (cpu(pid) - before) / len(seen.whole)
            row.requests = len(seen.whole) / seen.seconds
            row.failed += seen.failed + _bad(seen)
            single = load(**how, requests=size.single, connections=1)
            row.added_p50 = percentile(single.whole, 0.5) - percentile(direct.whole.whole, 0.5)
            row.added_p99 = percentile(single.whole, 0.99) - percentile(direct.whole.whole, 0.99)
            if size.many and row.requests > _FAST:
                step(f"{size.many} requests")
                load(**how, requests=size.many, seconds=_PATIENCE_SECONDS)
            row.after = memory(pid)
    # Who is slow has a tenth of the streams, or none of them would end.
    streams = size.streams if row.requests > _SLOW else size.streams // 10
    with upstream(TOKENS, 1 / 50), started(one) as (pid, _, how):
        step(f"{streams} streams")
        before, idle = cpu(pid), memory(pid)
        told = msgspec.json.encode(Plan(**how, **_streams(streams))).decode()
        with subprocess.Popen(
            [*_pin(1), sys.executable, "-m", "bench.load", told], cwd=ROOT, stdout=subprocess.PIPE
        ) as clients:
            time.sleep(2)
            row.stream_memory = (memory(pid) - idle) / streams
            out, _ = clients.communicate(timeout=_PATIENCE_SECONDS)
        seen = msgspec.json.decode(out, type=Seen)
        if not seen.failed and not _bad(seen) and len(seen.whole) == streams * 2:
            row.token_cpu = (cpu(pid) - before) / (streams * 2 * TOKENS)
            row.first_p50, row.first_p99 = (percentile(seen.first, part) for part in (0.5, 0.99))
            if streams == size.streams:
                row.first_added = row.first_p99 - percentile(direct.streams.first, 0.99)
        row.failed += max(seen.failed, _bad(seen))
        for number in size.steps:
            step(f"{number} streams at 50 tokens/s")
            if not _flows(how, number, 1 / 50):
                break
            row.streams = number
    if size.thousand:
        with upstream(TOKENS, 1 / 30), started(one) as (_, _, how):
            step("1000 streams at 30 tokens/s")
            row.thousand = _flows(how, 1000, 1 / 30)
    return row


def _streams(number: int) -> dict[str, Any]:
    """So many at once, each followed by another, until all have ended."""
    return {
        "stream": True, "connections": number, "requests": number * 2, "ramp": 1.0,
        "seconds": _PATIENCE_SECONDS / 2,
    }  # fmt: skip


def _bad(seen: Seen) -> int:
    return sum(count for status, count in seen.statuses.items() if status != "200")


def _flows(how: dict[str, Any], number: int, interval: float) -> bool:
    """Whether no stream fell silent for over three times as long as its upstream."""
    seen = load(**how, stream=True, connections=number, requests=number, ramp=2.0)
    return not seen.failed and not _bad(seen) and max(seen.gaps, default=1.0) <= 3 * interval


def middle(runs: Sequence[Sequence[Row]]) -> list[Row]:
    """For each gateway of the first run, the median of what each figure was in all."""
    found = []
    for first in runs[0]:
        same = [row for run in runs for row in run if row.name == first.name]
        told: dict[str, Any] = {}
        for field in first.__struct_fields__:
            values = [value for row in same if (value := getattr(row, field)) is not None]
            told[field] = statistics.median_low(values) if values else None
        found.append(Row(**told))
    return found


def table(rows: Sequence[Row]) -> Table:
    """As people compare it."""
    told = Table(title="Tropilla beside others, one core each")
    told.add_column("")
    for row in rows:
        told.add_column(row.name, justify="right")
    cells = [_cells(row) for row in rows]
    for name in cells[0] if cells else ():
        told.add_row(name, *(one[name] for one in cells))
    return told


def markdown(rows: Sequence[Row], judged: Sequence[Budget]) -> str:
    """The same for a page."""
    cells = [_cells(row) for row in rows]
    lines = [
        "| | " + " | ".join(row.name for row in rows) + " |",
        "|---" * (len(rows) + 1) + "|",
        *(
            f"| {name} | " + " | ".join(one[name] for one in cells) + " |"
            for name in (cells[0] if cells else ())
        ),
    ]
    lines += ["", "| budget | limit | found, run by run | |", "|---|---|---|---|"]
    lines += [f"| {one.what} | {one.limit} | {one.found} | {one.verdict} |" for one in judged]
    return "\n".join(lines) + "\n"


def _cells(row: Row) -> dict[str, str]:
    flows = {True: "flow", False: "stall", None: ""}[row.thousand]
    streams = row.token_cpu is not None
    return {
        "CPU of a whole answer": f"{row.request_cpu * 1e6:.0f} us",
        "whole answers a second": f"{row.requests:.0f}",
        "added to one alone, p50": f"{row.added_p50 * 1e3:.2f} ms",
        "p99": f"{row.added_p99 * 1e3:.2f} ms",
        "CPU of a streamed token": f"{(row.token_cpu or 0) * 1e6:.1f} us" if streams else "",
        "first token of a stream, p50": f"{row.first_p50 * 1e3:.1f} ms" if streams else "",
        "its p99": f"{row.first_p99 * 1e3:.1f} ms" if streams else "",
        "of which added": "" if row.first_added is None else f"{row.first_added * 1e3:.1f} ms",
        "streams of 50 tokens/s without a stall": str(row.streams) if streams else "",
        "1000 streams of 30 tokens/s": flows if streams else "",
        "memory at rest": f"{row.idle / 2**20:.0f} MB",
        "for a stream": f"{row.stream_memory / 2**10:.0f} KiB" if streams else "",
        "after all of it": f"{row.after / 2**20:.0f} MB",
        "from start to the first answer": f"{row.start:.2f} s",
        "answers that failed": str(row.failed),
    }


def main() -> None:
    """Compare, and tell."""
    signal.signal(signal.SIGTERM, lambda *_: sys.exit("ended"))
    parser = argparse.ArgumentParser(prog="make bench", description=__doc__.split("\n")[0])
    parser.add_argument("--quick", action="store_true", help="a short look, a minute for each")
    parser.add_argument("--only", default="", help="names, with commas: tropilla,nginx")
    parser.add_argument("--runs", type=int, default=1, help="how often; told is the median")
    parser.add_argument("--json", type=Path, help="where the figures go")
    parser.add_argument("--write", action="store_true", help="write them into docs/, with a chart")
    parser.add_argument("--tell", type=Path, help="tell what was measured again, from its --json")
    asked = parser.parse_args()
    only = [name for name in asked.only.split(",") if name]
    if asked.tell is not None:
        runs = msgspec.json.decode(asked.tell.read_bytes(), type=list[list[Row]])
    else:
        size = QUICK if asked.quick else FULL
        runs = [_run(size, only)]
        # Only what a budget is judged by is measured again.
        again = [name for name in JUDGED if not only or name in only]
        runs += [_run(size, again) for _ in range(asked.runs - 1)]
    tell(runs, asked)


def _run(size: Size, only: Sequence[str]) -> list[Row]:
    """All gateways that are here, one after the other."""
    with upstream(16, 0):
        whole = load(port=UPSTREAM, requests=size.single, connections=1)
    with upstream(TOKENS, 1 / 50):
        direct = Direct(whole, load(port=UPSTREAM, **_streams(size.streams)))
    rows = []
    for one in gateways():
        if only and one.name.split()[0] not in only:
            continue
        if one.program is None:
            console.print(f"{one.name} is not here ({one.missing}): left out.")
            continue
        try:
            rows.append(measure(one, size, direct))
        except TimeoutError:
            console.print(f"{one.name} did not start, or not answer in time: left out.")
    return rows


def tell(runs: list[list[Row]], asked: argparse.Namespace) -> None:
    """Print the figures, and write them where that is wanted."""
    rows, judged = middle(runs), budgets(runs)
    Console(width=None if sys.stdout.isatty() else 160).print(table(rows))
    for one in judged:
        console.print(f"{one.what}: {one.found}, of {one.limit}: {one.verdict}", highlight=False)
    told = msgspec.json.format(msgspec.json.encode(runs), indent=1)
    if asked.json is not None:
        asked.json.write_bytes(told + b"\n")
    if asked.write:
        (ROOT / "docs/performance.json").write_bytes(told + b"\n")
        (ROOT / "docs/img").mkdir(exist_ok=True)
        page = ROOT / "docs/performance.md"
        before, mark, rest = page.read_text(encoding="utf-8").partition(_MARK)
        _, _, after = rest.partition(_MARK)
        page.write_text(f"{before}{mark}\n{markdown(rows, judged)}{mark}{after}", encoding="utf-8")
        (ROOT / "docs/img/performance.svg").write_text(chart(rows), encoding="utf-8")


if __name__ == "__main__":
    main()
