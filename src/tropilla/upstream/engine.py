"""The embedded engine: llama.cpp's server as a child process of the gateway.

It promises one address for life: the child listens on a private unix socket (on Windows: a port
of 127.0.0.1 behind a random key), and after a crash the next child listens on the same. The child
ends when the gateway does, however that happens, and leaves no file. What is wrong is said once,
in words that a person can act on.

It never loads the engine into the gateway's own process, where one failed assertion in C++ would
end every stream, and never speaks HTTP: for the rest of Tropilla the engine is an upstream like
any other. `_engine_child.py` is the other half, and describes how the two talk.
"""

import asyncio
import contextlib
import dataclasses
import os
import secrets
import signal
import socket
import sys
import tempfile
from collections import deque
from collections.abc import Callable, Sequence
from pathlib import Path
from typing import Final, Literal, TypeAlias

import msgspec

Phase: TypeAlias = Literal["starting", "ready", "down"]

_CHILD: Final = str(Path(__file__).with_name("_engine_child.py"))

# sockaddr_un holds 108 bytes on Linux and 104 on macOS, the final NUL included.
_LONGEST_SOCKET_PATH: Final = 103

_TAIL_LINES: Final = 50
_TAIL_SHOWN: Final = 8
_LONGEST_LINE: Final = 2000

_FIRST_DELAY: Final = 0.1
_LONGEST_DELAY: Final = 10.0
_HEALTHY_AFTER: Final = 10.0

_PATIENCE: Final = 2.0  # seconds between asking the child to end and killing it

_OTHER_SERVER: Final = (
    "use a llama-server built for this machine instead: tropilla serve --upstream http://..."
)
_PROBLEMS: Final = {
    "no-model": "There is no model file {text}; check the path.",
    "unreadable": "The model file cannot be read: {text}.",
    "not-gguf": "{text} is not a GGUF file, the only format that llama.cpp loads.",
    "not-installed": "The engine is not installed; install it: pip install 'tropilla[engine]'",
    "no-libgomp": (
        "The engine needs the system library libgomp.so.1, which is not installed; install it: "
        "apt-get install libgomp1 (Debian, Ubuntu) or dnf install libgomp (Fedora, RHEL)."
    ),
    "import": "The engine cannot be imported ({text}); reinstall it, or " + _OTHER_SERVER,
    "processor": "The engine needs a processor with {text}, which this one lacks; " + _OTHER_SERVER,
}


@dataclasses.dataclass(frozen=True, slots=True)
class EngineOptions:
    """What to serve; a zero leaves the choice to the model or the machine."""

    model: Path
    alias: str
    slots: int = 4
    ctx_size: int = 0  # tokens of each slot
    threads: int = 0
    embedding: bool = False


class EngineProblem(Exception):  # noqa: N818 - what users read; not every one is an error of ours
    """What is wrong with the engine and how to mend it; `fatal` if trying again is useless."""

    def __init__(self, message: str, *, fatal: bool = False) -> None:
        super().__init__(message)
        self.fatal = fatal


@dataclasses.dataclass(frozen=True, slots=True)
class EngineState:
    """Where the engine is in its life and, when it is down, why."""

    name: Phase
    problem: EngineProblem | None = None


class _Report(msgspec.Struct):
    kind: str
    text: str


def explain_refusal(kind: str, text: str, model: Path, tail: Sequence[str]) -> EngineProblem:
    """Put what the child reported into words."""
    if kind in _PROBLEMS:
        return EngineProblem(_PROBLEMS[kind].format(text=text), fatal=True)
    log = "\n".join(tail)
    if "couldn't bind" in log:
        return EngineProblem("The engine cannot listen on its address." + _last_words(tail))
    if "failed to allocate" in log or "insufficient memory" in log:
        hint = "There is not enough memory for it; choose a smaller --ctx-size or fewer --slots."
    else:
        hint = "It may be damaged, or too new or too old for this engine."
    return EngineProblem(f"llama.cpp cannot load {model}. {hint}{_last_words(tail)}", fatal=True)


def explain_death(returncode: int, tail: Sequence[str]) -> EngineProblem:
    """Put the way the child ended into words."""
    if returncode >= 0:
        return EngineProblem(f"The engine ended with code {returncode}.{_last_words(tail)}")
    if returncode == -signal.SIGILL:
        needs = "AVX2, BMI2, F16C and FMA"
        return EngineProblem(_PROBLEMS["processor"].format(text=needs), fatal=True)
    try:
        name = signal.Signals(-returncode).name
    except ValueError:
        name = f"signal {-returncode}"
    if name == "SIGKILL":
        name += " (the kernel does that when memory runs out)"
    return EngineProblem(f"The engine died of {name}.{_last_words(tail)}")


def _last_words(tail: Sequence[str]) -> str:
    return "\n  ".join([" Its last words:", *list(tail)[-_TAIL_SHOWN:]]) if tail else ""


class _Child:
    """One child process, from its start until nothing is left of it."""

    def __init__(self, process: asyncio.subprocess.Process) -> None:
        self.process = process
        self.tail: deque[str] = deque(maxlen=_TAIL_LINES)
        self._guard: int | None = None
        self._outcome: asyncio.Future[_Report | None] = asyncio.Future()
        # Both pipes are read to their ends for ever: the child must never wait for us, and its
        # guard may hold them a moment longer than the child.
        self._pipes = asyncio.gather(self._keep_tail(), self._hear())

    async def report(self) -> _Report | None:
        """Return what came of the start, or None if the child ended without a word."""
        return await asyncio.shield(self._outcome)

    async def death(self) -> EngineProblem:
        """Wait for the child's end and say how it came."""
        returncode = await self.process.wait()
        await asyncio.wait([self._pipes])
        self._close_stdin()
        if self._guard is not None:
            # A child that ends while it loads leaves its guard, about to end, to process 1; in a
            # container that is often us.
            guard, self._guard = self._guard, None
            with contextlib.suppress(ChildProcessError):
                os.waitpid(guard, 0)  # noqa: ASYNC222 - it has closed stderr: it is ending
        return explain_death(returncode, self.tail)

    async def end(self) -> None:
        """Make it end, soon."""
        self._close_stdin()
        try:
            await asyncio.wait_for(self.process.wait(), _PATIENCE)
        except TimeoutError:
            with contextlib.suppress(ProcessLookupError):
                self.process.kill()
        await self.death()

    def _close_stdin(self) -> None:
        if self.process.stdin is not None:
            self.process.stdin.close()

    async def _hear(self) -> None:
        if (stdout := self.process.stdout) is not None:
            while line := await stdout.readline():
                report = msgspec.json.decode(line, type=_Report)
                self._guard = int(report.text) if report.kind == "guard" else None
                if report.kind != "guard":
                    self._outcome.set_result(report)
        if not self._outcome.done():
            self._outcome.set_result(None)

    async def _keep_tail(self) -> None:
        partial = ""
        if (stderr := self.process.stderr) is not None:
            while chunk := await stderr.read(65536):
                *lines, partial = (partial + chunk.decode("utf-8", "replace")).split("\n")
                self.tail.extend(line[:_LONGEST_LINE] for line in lines)
                partial = partial[:_LONGEST_LINE]
        if partial:
            self.tail.append(partial)


class Engine:
    """One engine's whole life: `start`, then `run` beside everything else, then `stop`."""

    def __init__(
        self,
        options: EngineOptions,
        *,
        on_change: Callable[[EngineState], None] | None = None,
    ) -> None:
        self._options = options
        self._on_change = on_change
        self._child: _Child | None = None
        self._spawning = asyncio.Lock()
        self._stopped = asyncio.Event()
        self._was_ready = False
        self.state = EngineState("down")

        # The directory comes later, with the first child; only its name is chosen here.
        path = Path(tempfile.gettempdir(), f"tropilla-{secrets.token_hex(8)}", "engine.sock")
        self._socket: Path | None = None
        self._port = 0
        self.api_key: str | None = None
        if sys.platform != "win32" and len(os.fsencode(path)) <= _LONGEST_SOCKET_PATH:
            self._socket = path
            self.address = f"unix://{path}"
        else:
            with socket.create_server(("127.0.0.1", 0)) as free:
                self._port = free.getsockname()[1]
            self.address = f"http://127.0.0.1:{self._port}"
            self.api_key = secrets.token_urlsafe(32)

    @property
    def pid(self) -> int | None:
        """The child's process id while it lives."""
        if self._child is None or self._child.process.returncode is not None:
            return None
        return self._child.process.pid

    async def start(self) -> None:
        """Start the child; return when it serves.

        Raises:
            EngineProblem: It does not; neither child nor file is left.
        """
        self._change("starting")
        try:
            await self._launch()
        except BaseException as error:
            self._remove_files()
            self._change("down", error if isinstance(error, EngineProblem) else None)
            raise
        self._was_ready = True
        self._change("ready")

    async def run(self) -> None:
        """Keep the engine running, starting it if need be, until cancelled or stopped.

        Cancelling ends only the watch: `stop` ends the engine.

        Raises:
            EngineProblem: The engine has never been ready and never will be. Once it has been, no
                problem is final: what has changed around it may change again.
        """
        clock = asyncio.get_running_loop().time
        delay = _FIRST_DELAY
        while not self._stopped.is_set():
            try:
                if self.state.name != "ready":
                    await self.start()
                if self._child is not None:
                    since = clock()
                    problem = await self._child.death()
                    if self._stopped.is_set():
                        return
                    self._remove_files()
                    self._change("down", problem)
                    if clock() - since >= _HEALTHY_AFTER:
                        delay = _FIRST_DELAY
            except EngineProblem as refusal:
                if refusal.fatal and not (self._was_ready or self._stopped.is_set()):
                    raise
            with contextlib.suppress(TimeoutError):
                await asyncio.wait_for(self._stopped.wait(), delay)
            delay = min(delay * 2, _LONGEST_DELAY)

    async def stop(self) -> None:
        """End the child and remove its files; the engine cannot be started again."""
        self._stopped.set()
        async with self._spawning:
            pass  # a child that is on its way has arrived, and no other will come
        if self._child is not None:
            await self._child.end()
        self._remove_files()
        self._change("down")

    def _change(self, name: Phase, problem: EngineProblem | None = None) -> None:
        state = EngineState(name, problem)
        if state != self.state:
            self.state = state
            if self._on_change is not None:
                self._on_change(state)

    async def _launch(self) -> None:
        async with self._spawning:
            if self._stopped.is_set():
                raise EngineProblem("The engine has been stopped.", fatal=True)
            child = self._child = _Child(await self._spawn())
        try:
            report = await child.report()
            if report is not None and report.kind == "ready":
                return
            problem = await child.death()
        except BaseException:
            await child.end()
            raise
        if self._stopped.is_set():
            raise EngineProblem("The engine was stopped while it started.", fatal=True)
        if report is not None:
            problem = explain_refusal(report.kind, report.text, self._options.model, child.tail)
        raise problem

    async def _spawn(self) -> asyncio.subprocess.Process:
        if self._socket is not None:
            try:
                # Never one that exists already: it could be somebody else's.
                self._socket.parent.mkdir(mode=0o700)
            except OSError as error:
                raise EngineProblem(f"The engine's directory cannot be made: {error}.") from None
        options = {
            **dataclasses.asdict(self._options),
            "model": str(self._options.model),
            "socket": self._socket and str(self._socket),
            "port": self._port,
        }
        return await asyncio.create_subprocess_exec(
            sys.executable,
            # By path and with -P: as -m the child would import our package, and without -P the
            # folder of the script would come before the standard library.
            "-P",
            _CHILD,
            msgspec.json.encode(options).decode(),
            stdin=asyncio.subprocess.PIPE,
            stdout=asyncio.subprocess.PIPE,
            stderr=asyncio.subprocess.PIPE,
            env=os.environ | ({"TROPILLA_ENGINE_KEY": self.api_key} if self.api_key else {}),
            start_new_session=True,  # out of reach of the terminal's Ctrl-C
        )

    def _remove_files(self) -> None:
        """Do what the child has done unless it was killed or refused to run."""
        if self._socket is not None:
            with contextlib.suppress(OSError):
                self._socket.unlink()
            with contextlib.suppress(OSError):
                self._socket.parent.rmdir()
