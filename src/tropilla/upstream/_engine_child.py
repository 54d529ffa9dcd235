"""What the engine's process runs: llama.cpp's own server, out of the xllamacpp wheel.

It promises to end when the gateway does, at once and leaving no file, whatever killed the gateway
and whatever this process is doing. It never imports anything but the standard library and
xllamacpp, never prints anything but its reports on stdout, and never decides what to tell a
person: `engine.py`, which starts it, does.

    argv[1]   the options, as JSON; TROPILLA_ENGINE_KEY in the environment may hold an API key
    stdin     silence; its end means that the gateway has gone, or wants this process to go
    stdout    one report per line, {"kind": ..., "text": ...}: "guard" with a process id, then
              "ready" with the address, or the kind of a problem with its details
    stderr    the engine's log

The gateway's end is seen by whoever can see it. Once the model is loaded that is the main thread,
which has nothing else to do. But xllamacpp holds the GIL while it loads, for minutes if the model
is large, and no thread of this process can run: so a small fork, the guard, watches until then.
"""

import contextlib
import json  # noqa: TID251 - msgspec would be the second dependency of a process that has one
import os
import platform
import re
import select
import signal
import sys
from collections.abc import Iterator
from pathlib import Path
from typing import Any

# The wheels for x86-64 are built for x86-64-v3; an older processor kills them with SIGILL.
NEEDED_FLAGS = ("avx2", "bmi2", "f16c", "fma")

# The most tokens of cache that are taken unasked; about 8 GB for a model of 8B.
AFFORDABLE_TOKENS = 65536


class Problem(Exception):  # noqa: N818 - as in ir.py: a problem is a value, and here it is raised
    """Why the engine cannot run; the kinds are explained in `engine.py`."""

    def __init__(self, kind: str, text: str) -> None:
        super().__init__(kind, text)
        self.kind = kind
        self.text = text


def read_head(path: str) -> bytes:
    """Return the beginning of a model file, where GGUF keeps what describes the model.

    What is clearly no model is refused, sooner and in clearer words than llama.cpp would.
    """
    try:
        with Path(path).open("rb") as file:
            head = file.read(262144)
    except FileNotFoundError:
        raise Problem("no-model", path) from None
    except OSError as error:
        raise Problem("unreadable", f"{path}: {error.strerror}") from None
    if not head.startswith(b"GGUF"):
        raise Problem("not-gguf", path)
    return head


def plan_cache(head: bytes, slots: int, ctx_size: int) -> tuple[int, bool]:
    """Decide the size of the cache, in tokens, and whether the slots share it.

    Every slot has its own `ctx_size`, if one is given, and else the model's own size if that is
    affordable. A larger cache is shared, as llama-server does by default: when the sharers
    together want more than there is, it fails all of them, but a model of 131072 tokens would
    otherwise take the whole memory and a minute of zeroing before its first answer.
    """
    if ctx_size:
        return ctx_size * slots, False
    # In GGUF a value follows its key: the type, here 4 for uint32, then four bytes.
    found = re.search(rb"\.context_length\x04\0\0\0(.{4})", head, re.DOTALL)
    context = int.from_bytes(found[1], "little") if found else AFFORDABLE_TOKENS
    if slots * context <= AFFORDABLE_TOKENS:
        return slots * context, False
    return min(context, AFFORDABLE_TOKENS), True


def missing_flags(cpuinfo: str) -> list[str]:
    """Which of NEEDED_FLAGS /proc/cpuinfo does not list; none if it lists no flags at all."""
    for line in cpuinfo.splitlines():
        name, _, flags = line.partition(":")
        if name.strip() == "flags":
            return sorted(set(NEEDED_FLAGS) - set(flags.split()))
    return []


def check_processor() -> None:
    """Refuse a processor on which importing xllamacpp would be death by SIGILL."""
    if sys.platform == "linux" and platform.machine() == "x86_64":
        with contextlib.suppress(OSError):
            missing = missing_flags(Path("/proc/cpuinfo").read_text(encoding="utf-8"))
            if missing:
                raise Problem("processor", ", ".join(missing))


def import_problem(error: ImportError) -> Problem:
    """Name what `import xllamacpp` stumbled over."""
    if isinstance(error, ModuleNotFoundError) and error.name == "xllamacpp":
        return Problem("not-installed", str(error))
    return Problem("no-libgomp" if "libgomp" in str(error) else "import", str(error))


def cpu_quota(cpu_max: str) -> int | None:
    """How many whole processors a cgroup's cpu.max ("150000 100000", "max 100000") allows."""
    quota, _, period = cpu_max.partition(" ")
    return None if quota == "max" else max(1, int(quota) // int(period))


def automatic_threads() -> int:
    """How many threads may compute here; -1 leaves it to llama.cpp.

    llama.cpp takes the machine's physical (on hybrid processors: fast) cores, which is right unless
    this process may use only some of them: it knows neither affinity nor a container's quota, and
    threads that wait for each other on too few processors are slower than one.
    """
    if not hasattr(os, "sched_getaffinity"):
        return -1
    allowed = os.sched_getaffinity(0)
    quota = None
    with contextlib.suppress(OSError, ValueError):
        group = Path("/proc/self/cgroup").read_text(encoding="utf-8").rpartition("0::/")[2].strip()
        quota = cpu_quota(Path("/sys/fs/cgroup", group, "cpu.max").read_text(encoding="utf-8"))
    if quota is None and len(allowed) == os.cpu_count():
        return -1
    cores = len(allowed)
    with contextlib.suppress(OSError):
        topology = "/sys/devices/system/cpu/cpu{}/topology/thread_siblings_list"
        cores = len({Path(topology.format(cpu)).read_bytes() for cpu in allowed})
    return min(cores, quota or cores)


def serve(options: dict[str, Any], head: bytes) -> Any:
    """Load the model and return the listening server, which lives as long as it is held."""
    try:
        import xllamacpp  # noqa: PLC0415 - not before the processor has been checked
    except ImportError as error:
        raise import_problem(error) from error

    params = xllamacpp.CommonParams()
    params.model.path = options["model"]
    params.model_alias = [options["alias"]]
    params.hostnames = [options["socket"] or "127.0.0.1"]
    params.port = options["port"]
    key = os.environ.get("TROPILLA_ENGINE_KEY")
    params.api_keys = [key] if key else []

    # llama.cpp divides n_ctx by the slots, unless they share it.
    params.n_parallel = options["slots"]
    params.n_ctx, params.kv_unified = plan_cache(head, options["slots"], options["ctx_size"])
    threads = options["threads"] or automatic_threads()
    params.cpuparams.n_threads = params.cpuparams_batch.n_threads = threads
    params.embedding = options["embedding"]
    if options["embedding"] and b".pooling_type\x04" not in head:
        # A chat model: without a pooling every embedding would be refused.
        params.pooling_type = xllamacpp.llama_pooling_type.LLAMA_POOLING_TYPE_MEAN

    params.use_jinja = True
    params.endpoint_metrics = params.endpoint_slots = True
    params.sse_ping_interval = 5
    params.ui = False
    params.verbosity = 1  # errors only
    try:
        return xllamacpp.Server(params)
    except RuntimeError as error:  # its text says nothing; what llama.cpp logged does
        raise Problem("load", str(error)) from error


def clean_up(socket: str | None) -> None:
    """Remove the socket and the directory made for it."""
    if socket:
        with contextlib.suppress(OSError):
            Path(socket).unlink()
        with contextlib.suppress(OSError):
            Path(socket).parent.rmdir()


@contextlib.contextmanager
def guarded(socket: str | None) -> Iterator[int]:
    """Within, a fork of this process kills it and cleans up after it when stdin ends."""
    engine = os.getpid()
    over, held = os.pipe()
    guard = os.fork()
    if guard == 0:
        os.close(held)
        readable, _, _ = select.select([0, over], [], [])
        if 0 in readable:
            if os.getppid() == engine:
                os.kill(engine, signal.SIGKILL)
                os.read(over, 1)  # ends when the engine really has
            clean_up(socket)
        os._exit(0)
    os.close(over)
    try:
        yield guard
    finally:
        os.close(held)
        os.waitpid(guard, 0)


def main() -> None:
    """Be the engine until stdin ends."""
    # The gateway ends the engine when the last answer is out; the signals with which a terminal
    # or systemd ends a whole group must not cut those answers short.
    for name in ("SIGINT", "SIGTERM", "SIGHUP"):
        if hasattr(signal, name):
            signal.signal(getattr(signal, name), signal.SIG_IGN)
    # Whatever a library prints must not look like a report.
    reports = os.fdopen(os.dup(1), "w", encoding="ascii")
    os.dup2(2, 1)

    def report(kind: str, text: str) -> None:
        print(json.dumps({"kind": kind, "text": text}), file=reports, flush=True)

    options: dict[str, Any] = json.loads(sys.argv[1])
    socket: str | None = options["socket"]
    try:
        with contextlib.ExitStack() as until_ready:
            if hasattr(os, "fork"):
                report("guard", str(until_ready.enter_context(guarded(socket))))
            head = read_head(options["model"])
            check_processor()
            if socket:
                Path(socket).unlink(missing_ok=True)
            server = serve(options, head)
    except Problem as problem:
        report(problem.kind, problem.text)
        sys.exit(1)
    report("ready", server.listening_address)
    while os.read(0, 1024):
        pass
    clean_up(socket)
    # Without the destructors: they would wait for requests that nobody is waiting for.
    os._exit(0)


if __name__ == "__main__":
    main()
