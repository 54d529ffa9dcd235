"""The embedded engine: the real one where it matters, a scripted `xllamacpp` where it must fail."""

import asyncio
import contextlib
import ctypes
import os
import platform
import select
import signal
import stat
import subprocess
import sys
import tempfile
import textwrap
from collections.abc import Callable, Iterator
from importlib.resources import files
from pathlib import Path

import aiohttp
import pytest

from tropilla.upstream import _engine_child as child
from tropilla.upstream import engine as module
from tropilla.upstream.engine import (
    Engine,
    EngineOptions,
    EngineProblem,
    EngineState,
    explain_death,
    explain_refusal,
)

DEADLINE = 20.0
SOURCE = str(Path(module.__file__).parents[2])
CPUINFO = "processor\t: 0\nflags\t\t: fpu sse2 {}\nbogomips\t: 5000\n"
linux_only = pytest.mark.skipif(sys.platform != "linux", reason="looks into /proc")

# Of the loader's own kind: PyDLL keeps the GIL, as xllamacpp does while it loads.
LOADS_FOREVER = """
    class Server:
        def __init__(self, params):
            with open(os.environ["TEST_FIFO"], "w") as fifo:
                fifo.write(str(os.getpid()))
            ctypes.PyDLL(None).sleep(600)
"""
PARENT = """
    import asyncio, sys
    from pathlib import Path
    sys.path.insert(0, sys.argv[2])
    from tropilla.upstream.engine import Engine, EngineOptions

    async def main():
        engine = Engine(EngineOptions(Path(sys.argv[1]), "tiny"))
        await engine.start()
        print(engine.pid, flush=True)
        await asyncio.Event().wait()

    asyncio.run(main())
"""


@pytest.fixture(params=[False, True], ids=["asyncio", "uvloop"])
def anyio_backend(request: pytest.FixtureRequest) -> tuple[str, dict[str, bool]]:
    return "asyncio", {"use_uvloop": request.param}


@pytest.fixture
def model() -> Path:
    return Path(str(files("tropilla") / "models" / "tiny.gguf"))


@pytest.fixture(autouse=True)
def temporary(
    tmp_path_factory: pytest.TempPathFactory, monkeypatch: pytest.MonkeyPatch
) -> Iterator[Path]:
    """A temporary directory of the test's own, in which nothing may be left."""
    tmp_path_factory.getbasetemp()  # pytest's is not to be in ours
    with tempfile.TemporaryDirectory(dir="/tmp", prefix="t") as path:  # short enough for a socket
        monkeypatch.setenv("TMPDIR", path)
        monkeypatch.setattr(tempfile, "tempdir", path)
        yield Path(path)
        assert list(Path(path).iterdir()) == []


@pytest.fixture
def script(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Callable[[str], None]:
    """Let the child find an xllamacpp that does what the test says."""
    monkeypatch.setenv("PYTHONPATH", str(tmp_path))

    def write(body: str) -> None:
        head = """
            import ctypes, os, signal, sys
            from types import SimpleNamespace as Some
            def CommonParams():
                return Some(model=Some(), cpuparams=Some(), cpuparams_batch=Some())
        """
        text = textwrap.dedent(head) + textwrap.dedent(body)
        (tmp_path / "xllamacpp.py").write_text(text, encoding="utf-8")

    return write


@pytest.fixture
def loading(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, script: Callable[[str], None]
) -> Iterator[Callable[[], int]]:
    """Let the engine load for ever; call to wait until it does, for its process id."""
    fifo = tmp_path / "fifo"
    os.mkfifo(fifo)
    monkeypatch.setenv("TEST_FIFO", str(fifo))
    script(LOADS_FOREVER)
    reading = os.open(fifo, os.O_RDONLY | os.O_NONBLOCK)

    def wait() -> int:
        assert select.select([reading], [], [], DEADLINE)[0]
        return int(os.read(reading, 100))

    yield wait
    os.close(reading)


class Watch:
    """Remembers the states of an engine and waits for them."""

    def __init__(self) -> None:
        self.seen: list[EngineState] = []
        self._news = asyncio.Event()

    def __call__(self, state: EngineState) -> None:
        self.seen.append(state)
        self._news.set()

    def names(self) -> list[str]:
        return [state.name for state in self.seen]

    async def until(self, names: list[str]) -> None:
        async with asyncio.timeout(DEADLINE):
            while self.names()[: len(names)] != names:
                self._news.clear()
                await self._news.wait()


def options(path: Path) -> EngineOptions:
    return EngineOptions(model=path, alias="tiny")


async def get(engine: Engine, path: str) -> str:
    connector = aiohttp.UnixConnector(engine.address.removeprefix("unix://"))
    timeout = aiohttp.ClientTimeout(DEADLINE)
    async with (
        aiohttp.ClientSession(connector=connector, timeout=timeout) as session,
        session.get(f"http://engine{path}") as answer,
    ):
        assert answer.status == 200
        return await answer.text()


def alive(pid: int) -> bool:
    try:
        os.kill(pid, 0)
    except ProcessLookupError:
        return False
    return True


def ends(pidfd: int) -> bool:
    try:
        return bool(select.select([pidfd], [], [], DEADLINE)[0])
    finally:
        os.close(pidfd)


def guards_of(pid: int) -> list[int]:
    text = Path(f"/proc/{pid}/task/{pid}/children").read_text(encoding="ascii")
    return [int(guard) for guard in text.split()]


@contextlib.contextmanager
def gateway(model: Path) -> Iterator[subprocess.Popen[str]]:
    """Run another process with an engine, and kill it in the end."""
    command = [sys.executable, "-c", textwrap.dedent(PARENT), str(model), SOURCE]
    with subprocess.Popen(command, stdout=subprocess.PIPE, text=True) as parent:
        try:
            yield parent
        finally:
            parent.kill()


async def problem_of(path: Path) -> EngineProblem:
    engine = Engine(options(path))
    with pytest.raises(EngineProblem) as caught:
        async with asyncio.timeout(DEADLINE):
            await engine.start()
    assert engine.pid is None
    assert engine.state == EngineState("down", caught.value)
    return caught.value


# The real engine


@pytest.mark.anyio
async def test_it_serves_on_a_private_socket(model: Path) -> None:
    watch = Watch()
    engine = Engine(options(model), on_change=watch)
    try:
        await engine.start()
        assert "ok" in await get(engine, "/health")
        assert '"id":"tiny"' in await get(engine, "/v1/models")
        assert (await get(engine, "/slots")).count('"n_ctx"') == 4
        assert "llamacpp:" in await get(engine, "/metrics")
        directory = Path(engine.address.removeprefix("unix://")).parent
        assert stat.S_IMODE(directory.stat().st_mode) == 0o700
        assert watch.names() == ["starting", "ready"]
    finally:
        await engine.stop()


@pytest.mark.anyio
async def test_each_slot_has_the_context_size_that_was_asked_for(model: Path) -> None:
    engine = Engine(EngineOptions(model=model, alias="tiny", slots=2, ctx_size=512))
    try:
        await engine.start()
        assert (await get(engine, "/slots")).count('"n_ctx":512,') == 2
    finally:
        await engine.stop()


@pytest.mark.anyio
async def test_after_a_crash_it_comes_back_at_the_same_address(model: Path) -> None:
    watch = Watch()
    engine = Engine(options(model), on_change=watch)
    address = engine.address
    async with asyncio.timeout(DEADLINE), asyncio.TaskGroup() as tasks:
        try:
            await engine.start()
            tasks.create_task(engine.run())
            first = engine.pid
            assert first is not None
            os.kill(first, signal.SIGKILL)
            await watch.until(["starting", "ready", "down", "starting", "ready"])
            assert "SIGKILL" in str(watch.seen[2].problem)
            assert engine.pid not in {first, None}
            assert engine.address == address
            assert "ok" in await get(engine, "/health")
        finally:
            await engine.stop()
    assert watch.names()[5:] == ["down"]


@pytest.mark.anyio
async def test_stop_leaves_nothing_and_may_be_called_twice(model: Path) -> None:
    engine = Engine(options(model))
    await engine.stop()
    engine = Engine(options(model))
    await engine.start()
    pid = engine.pid
    assert pid is not None
    await asyncio.gather(engine.stop(), engine.stop())
    await engine.stop()
    assert not alive(pid)
    assert engine.pid is None
    with pytest.raises(EngineProblem, match="has been stopped"):
        await engine.start()


@pytest.mark.anyio
async def test_stop_ends_an_engine_that_hangs(model: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(module, "_PATIENCE", 0.1)
    engine = Engine(options(model))
    await engine.start()
    pid = engine.pid
    assert pid is not None
    os.kill(pid, signal.SIGSTOP)
    async with asyncio.timeout(DEADLINE):
        await engine.stop()
    assert not alive(pid)


@pytest.mark.anyio
async def test_cancelling_run_leaves_the_engine_to_stop(model: Path) -> None:
    watch = Watch()
    engine = Engine(options(model), on_change=watch)
    try:
        running = asyncio.create_task(engine.run())
        await watch.until(["starting", "ready"])
        running.cancel()
        with pytest.raises(asyncio.CancelledError):
            await running
        assert "ok" in await get(engine, "/health")
    finally:
        await engine.stop()


@pytest.mark.anyio
async def test_signals_for_the_whole_group_do_not_end_the_engine(model: Path) -> None:
    engine = Engine(options(model))
    try:
        await engine.start()
        assert engine.pid is not None
        assert os.getsid(engine.pid) == engine.pid
        for number in (signal.SIGINT, signal.SIGTERM, signal.SIGHUP):
            os.kill(engine.pid, number)
        assert "ok" in await get(engine, "/health")
    finally:
        await engine.stop()


@pytest.mark.anyio
async def test_without_room_for_a_socket_it_serves_on_loopback_behind_a_key(
    model: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(tempfile, "tempdir", "/tmp/" + "x" * 100)
    engine = Engine(options(model))
    assert engine.address.startswith("http://127.0.0.1:")
    try:
        await engine.start()
        statuses = []
        async with aiohttp.ClientSession() as session:
            for key in (engine.api_key, "wrong"):
                headers = {"authorization": f"Bearer {key}"}
                async with session.get(f"{engine.address}/slots", headers=headers) as answer:
                    statuses.append(answer.status)
        assert statuses == [200, 401]
    finally:
        await engine.stop()


@linux_only
def test_the_engine_ends_with_a_killed_gateway(model: Path, temporary: Path) -> None:
    with gateway(model) as parent:
        assert parent.stdout is not None
        pidfd = os.pidfd_open(int(parent.stdout.readline()))
        assert len(list(temporary.iterdir())) == 1
    assert ends(pidfd)
    assert list(temporary.iterdir()) == []


# While it loads


@linux_only
def test_the_engine_ends_with_a_gateway_killed_while_it_loads(
    model: Path, temporary: Path, loading: Callable[[], int]
) -> None:
    with gateway(model):
        pid = loading()
        [guard] = guards_of(pid)
        pidfds = [os.pidfd_open(pid), os.pidfd_open(guard)]
        assert len(list(temporary.iterdir())) == 1
    assert all(ends(pidfd) for pidfd in pidfds)
    assert list(temporary.iterdir()) == []


@linux_only
@pytest.mark.anyio
async def test_stop_while_it_loads(
    model: Path, loading: Callable[[], int], monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(module, "_PATIENCE", 10 * DEADLINE)  # it is not what ends it
    engine = Engine(options(model))
    starting = asyncio.create_task(engine.start())
    pid = await asyncio.to_thread(loading)
    [guard] = guards_of(pid)
    pidfd = os.pidfd_open(guard)
    async with asyncio.timeout(DEADLINE):
        await engine.stop()
    with pytest.raises(EngineProblem, match="stopped while it started"):
        await starting
    assert not alive(pid)
    assert ends(pidfd)


@pytest.mark.anyio
async def test_cancelling_start_leaves_nothing(model: Path, loading: Callable[[], int]) -> None:
    engine = Engine(options(model))
    starting = asyncio.create_task(engine.start())
    pid = await asyncio.to_thread(loading)
    starting.cancel()
    with pytest.raises(asyncio.CancelledError):
        await starting
    assert not alive(pid)
    assert engine.state == EngineState("down")


@linux_only
@pytest.mark.anyio
async def test_a_gateway_that_is_process_1_keeps_no_zombie(
    model: Path, loading: Callable[[], int]
) -> None:
    be_subreaper = 36
    libc = ctypes.CDLL(None)
    engine = Engine(options(model))
    libc.prctl(be_subreaper, 1)
    try:
        starting = asyncio.create_task(engine.start())
        pid = await asyncio.to_thread(loading)
        [guard] = guards_of(pid)
        os.kill(pid, signal.SIGKILL)
        with pytest.raises(EngineProblem, match="SIGKILL"):
            await starting
        assert not alive(guard)
    finally:
        libc.prctl(be_subreaper, 0)
        await engine.stop()


# What may be wrong


@pytest.mark.anyio
async def test_models_that_are_none(tmp_path: Path) -> None:
    (tmp_path / "text.gguf").write_text("hello")
    (tmp_path / "cut.gguf").write_bytes(b"GGUF\x03\0\0\0\xff\0\0\0")
    for path, words in (
        (tmp_path / "absent.gguf", "no model file"),
        (tmp_path, "cannot be read"),
        (tmp_path / "text.gguf", "not a GGUF file"),
        (tmp_path / "cut.gguf", "(?s)cannot load.*error loading model"),
    ):
        problem = await problem_of(path)
        assert problem.fatal
        assert str(path) in str(problem)
        with pytest.raises(EngineProblem, match=words):
            raise problem


@pytest.mark.anyio
@pytest.mark.parametrize(
    ("body", "words", "fatal"),
    [
        ("raise ImportError('libgomp.so.1: cannot open shared object')", "libgomp1", True),
        ("raise ModuleNotFoundError('no', name='xllamacpp')", r"'tropilla\[engine\]'", True),
        ("raise ImportError('GLIBCXX_3.4.99 not found')", "GLIBCXX_3.4.99", True),
        ("os.kill(os.getpid(), signal.SIGILL)", "AVX2.*--upstream", True),
        ("os.write(2, b'ouch'); os.abort()", "SIGABRT.*\n  ouch", False),
        ("os._exit(7)", "code 7", False),
        ("0 / 0", "ZeroDivisionError", False),
    ],
)
async def test_an_engine_that_cannot_run(
    model: Path, script: Callable[[str], None], body: str, words: str, *, fatal: bool
) -> None:
    script(body)
    problem = await problem_of(model)
    with pytest.raises(EngineProblem, match=words):
        raise problem
    assert problem.fatal is fatal


@pytest.mark.anyio
async def test_run_retries_with_growing_delays_what_may_pass(
    model: Path, script: Callable[[str], None], monkeypatch: pytest.MonkeyPatch
) -> None:
    script("os._exit(7)")
    monkeypatch.setattr(module, "_FIRST_DELAY", 0.05)
    monkeypatch.setattr(module, "_LONGEST_DELAY", 0.1)
    delays = []
    wait_for = asyncio.wait_for

    async def spy(awaitable: object, delay: float) -> object:
        delays.append(delay)
        return await wait_for(awaitable, delay)  # type: ignore[arg-type]

    monkeypatch.setattr(asyncio, "wait_for", spy)
    watch = Watch()
    engine = Engine(options(model), on_change=watch)
    running = asyncio.create_task(engine.run())
    try:
        await watch.until(["starting", "down"] * 3 + ["starting"])
        assert delays == [0.05, 0.1, 0.1]
    finally:
        await engine.stop()
        await running


@pytest.mark.anyio
async def test_run_gives_up_on_what_will_not_pass(tmp_path: Path) -> None:
    with pytest.raises(EngineProblem, match="no model file"):
        async with asyncio.timeout(DEADLINE):
            await Engine(options(tmp_path / "absent.gguf")).run()


@pytest.mark.anyio
async def test_once_ready_no_problem_is_final(
    tmp_path: Path, script: Callable[[str], None]
) -> None:
    script("class Server:\n    def __init__(self, params): self.listening_address = ''")
    passing = tmp_path / "passing.gguf"
    passing.write_bytes(b"GGUF")
    watch = Watch()
    engine = Engine(options(passing), on_change=watch)
    running = asyncio.create_task(engine.run())
    try:
        await watch.until(["starting", "ready"])
        passing.unlink()
        assert engine.pid is not None
        os.kill(engine.pid, signal.SIGKILL)
        await watch.until(["starting", "ready", "down", "starting", "down"])
        passing.write_bytes(b"GGUF")
        await watch.until(["starting", "ready", "down", "starting", "down", "starting", "ready"])
    finally:
        await engine.stop()
        await running


@pytest.mark.anyio
async def test_a_talkative_engine_is_drained_and_its_last_lines_kept(
    model: Path, script: Callable[[str], None]
) -> None:
    script("""
        class Server:
            def __init__(self, params):
                print('on stdout, where reports go', flush=True)
                for number in range(100_000):
                    os.write(2, b'line %d\\n' % number)
                os.write(2, b'x' * 1_000_000)
                os._exit(1)
    """)
    problem = await problem_of(model)
    assert "line 99999\n  xxx" in str(problem)
    assert "line 99000\n" not in str(problem)
    assert len(str(problem)) < 3000


@pytest.mark.anyio
async def test_the_child_imports_nothing_of_ours(
    model: Path, tmp_path: Path, script: Callable[[str], None]
) -> None:
    seen = tmp_path / "seen"
    script(f"open({str(seen)!r}, 'w').write('\\n'.join([*sys.modules, *sys.path])); 0 / 0")
    await problem_of(model)
    lines = seen.read_text().splitlines()
    assert "select" in lines
    assert not {"tropilla", "aiohttp", "msgspec", "asyncio"} & set(lines)
    assert str(Path(child.__file__).parent) not in lines  # our http.py is not the library's


# Pure functions


def test_flags_that_the_processor_lacks() -> None:
    assert child.missing_flags(CPUINFO.format("avx2 bmi2 f16c fma")) == []
    assert child.missing_flags(CPUINFO.format("avx bmi1 f16c")) == ["avx2", "bmi2", "fma"]
    assert child.missing_flags("Features\t: fp asimd\n") == []


def test_an_old_processor_is_refused_before_the_import(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(sys, "platform", "linux")
    monkeypatch.setattr(platform, "machine", lambda: "x86_64")
    monkeypatch.setattr(Path, "read_text", lambda _self, **_: CPUINFO.format("avx bmi2 f16c fma"))
    with pytest.raises(child.Problem) as caught:
        child.check_processor()
    problem = explain_refusal(caught.value.kind, caught.value.text, Path("m"), [])
    assert "a processor with avx2," in str(problem)
    assert "--upstream" in str(problem)


def test_how_it_died() -> None:
    assert "SIGSEGV" in str(explain_death(-11, []))
    assert "memory" in str(explain_death(-9, []))
    assert "signal 250" in str(explain_death(-250, []))
    assert not explain_death(-11, []).fatal
    assert explain_death(-4, []).fatal


def test_why_it_could_not_load() -> None:
    def explain(line: str) -> EngineProblem:
        return explain_refusal("load", "", Path("m.gguf"), ["first", line])

    assert "--ctx-size" in str(explain("E x: failed to allocate buffer for kv cache"))
    assert "damaged" in str(explain("E x: error loading model"))
    assert not explain("E srv start: couldn't bind HTTP server socket").fatal


def test_slots_share_a_cache_only_when_one_for_each_is_too_much() -> None:
    def head(context: int) -> bytes:
        return b"GGUF llama.context_length\x04\0\0\0" + context.to_bytes(4, "little")

    assert child.plan_cache(head(2048), 4, 0) == (8192, False)
    assert child.plan_cache(head(32768), 4, 0) == (32768, True)
    assert child.plan_cache(head(131072), 4, 0) == (65536, True)
    assert child.plan_cache(head(131072), 2, 100_000) == (200_000, False)
    assert child.plan_cache(b"GGUF", 1, 0) == (65536, False)


def test_threads_keep_to_what_the_process_may_use() -> None:
    assert child.cpu_quota("max 100000") is None
    assert child.cpu_quota("50000 100000") == 1
    assert child.cpu_quota("250000 100000\n") == 2
    with contextlib.suppress(AttributeError):
        allowed = os.sched_getaffinity(0)
        try:
            os.sched_setaffinity(0, {min(allowed)})
            assert child.automatic_threads() == (-1 if os.cpu_count() == 1 else 1)
        finally:
            os.sched_setaffinity(0, allowed)
