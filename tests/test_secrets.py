"""No key is ever shown: each is a canary here, and everything that goes out is looked through.

Upstreams are as indiscreet as they can be: whatever they answer, they repeat all that they got.
"""

from __future__ import annotations

import base64
import logging
import signal
import time
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import msgspec
import pytest
from click.testing import CliRunner

from conftest import Serve, Served, Start
from doubles.llama import llama
from doubles.upstream import DONE, Double, Exchange, Script, chunk, event, streams, told
from serving import DEADLINE, POSIX, ask, serving
from tropilla import relay
from tropilla.cli import main
from tropilla.config import Config, UpstreamConfig
from tropilla.log import Human, Json
from tropilla.upstream import fleet
from tropilla.upstream.engine import Engine, EngineOptions

OWN = "canary-of-the-gateway"
UPSTREAMS = "canary-of-the-upstream"
HEADER = "canary in a header"
PASSWORD = "canary+of/an@address"
QUOTED = "canary%2Bof%2Fan%40address"
WRONG = "canary-of-a-stranger"
COOKIE = "canary-of-a-cookie"
CANARIES = {
    OWN, UPSTREAMS, HEADER, PASSWORD, QUOTED, WRONG, COOKIE,
    base64.b64encode(f"user:{PASSWORD}".encode()).decode(),
}  # fmt: skip
CHAT = {"model": "m", "messages": [{"role": "user", "content": "Hello!"}]}
PATH = "/v1/chat/completions"


def clean(shown: str | bytes) -> None:
    """Look through something that went out."""
    text = shown if isinstance(shown, str) else shown.decode("utf-8", "replace")
    assert text
    assert [one for one in CANARIES if one in text] == []
    assert "canary" not in text


@pytest.fixture(autouse=True)
def logged(caplog: pytest.LogCaptureFixture) -> Iterator[None]:
    """Everything that is logged, down to what is only for developers, in both forms."""
    caplog.set_level(logging.DEBUG)
    logging.getLogger("asyncio").setLevel(logging.DEBUG)
    yield
    logging.getLogger("asyncio").setLevel(logging.NOTSET)
    for record in caplog.get_records("call"):
        for form in (Human(), Json()):
            clean(form.format(record))


# What upstreams repeat.


def repeated(exchange: Exchange) -> str:
    """Everything that an upstream was sent, and what it can make of that."""
    basic = exchange.headers.get("authorization", "").removeprefix("Basic ")
    try:
        decoded = base64.b64decode(basic, validate=True).decode()
    except ValueError:
        decoded = ""
    return f"{exchange.headers} {exchange.body.decode()} {decoded}"


def whole(status: int) -> Script:
    async def script(exchange: Exchange) -> None:
        error = {"message": repeated(exchange), "type": repeated(exchange), "param": "x"}
        body = msgspec.json.encode({"error": error, "detail": repeated(exchange)})
        await exchange.whole(status, body)

    return script


def text(status: int) -> Script:
    async def script(exchange: Exchange) -> None:
        await exchange.whole(status, repeated(exchange).encode(), "text/plain")

    return script


def in_stream(*before: bytes) -> Script:
    async def script(exchange: Exchange) -> None:
        failed = event({"error": {"message": repeated(exchange), "code": 500}})
        await exchange.stream(*before, failed, DONE)

    return script


STATUSES = (200, 400, 401, 403, 404, 413, 429, 500, 501, 503)
SAYS: dict[str, Script] = {
    **{f"json {status}": whole(status) for status in STATUSES},
    **{f"text {status}": text(status) for status in STATUSES if status != 200},
    "stream at once": in_stream(),
    "stream later": in_stream(chunk("Once")),
}


def discreet(url: str, *, password: bool) -> UpstreamConfig:
    """An upstream with secrets of every kind."""
    more = {"X-Key": HEADER}
    if password:
        url = url.replace("//", f"//user:{QUOTED}@")
        return UpstreamConfig(url=url, headers=more, client="aiohttp")
    return UpstreamConfig(url=url, headers=more, api_key=UPSTREAMS)


async def see(tropilla: Served, method: str, path: str, body: Any = None) -> int:
    """Ask with all that a client can show, and look through the answer."""
    headers = {
        "authorization": f"Bearer {OWN}",
        "x-api-key": WRONG,
        "cookie": COOKIE,
        "x-session-id": COOKIE,
        "x-conversation-id": COOKIE,
    }
    answer = await tropilla.ask(method, path, body, headers)
    clean(f"{answer.headers}")
    clean(answer.body or b"-")
    return answer.status


async def look_around(tropilla: Served) -> None:
    """Everything that tells of the gateway."""
    for path in ("/api/herd", "/openapi.json", "/v1/models", "/health", "/v1/models/none"):
        await see(tropilla, "GET", path)
    await see(tropilla, "POST", "/api/route", CHAT)


@pytest.mark.anyio
@pytest.mark.parametrize("password", [False, True])
@pytest.mark.parametrize("says", SAYS)
async def test_what_an_upstream_repeats(
    gateway: Serve, double: Double, says: str, *, password: bool
) -> None:
    tropilla = await gateway(upstreams=(discreet(double.url, password=password),), api_keys=(OWN,))
    asked: list[tuple[str, str, Any]] = [
        ("POST", PATH, CHAT),
        ("POST", PATH, CHAT | {"stream": True}),
        ("POST", "/v1/completions", {"model": "m", "prompt": "x"}),
        ("POST", "/v1/responses", {"model": "m", "input": "x"}),
        ("POST", "/completion", {"prompt": "x", "stream": True}),
        ("POST", "/v1/embeddings", {"model": "m", "input": "x"}),
    ]
    if says != "json 200" and "stream" not in says:
        asked += [("POST", "/tokenize", {"content": "x"}), ("GET", "/props", None)]
    for method, path, body in asked:
        for one in (path, "/completion"):
            double.on(one, SAYS[says])
        await see(tropilla, method, path, body)
    assert double.requests
    assert all("canary" in repeated(one) for one in double.requests)
    assert all(COOKIE not in repeated(one) for one in double.requests)
    await look_around(tropilla)


@pytest.mark.anyio
@pytest.mark.parametrize("says", ["json 401", "json 500", "text 404", "text 503"])
@pytest.mark.parametrize("path", ["/health", "/v1/models", "/props"])
async def test_what_it_repeats_to_probes(
    gateway: Serve, double: Double, monkeypatch: pytest.MonkeyPatch, says: str, path: str
) -> None:
    monkeypatch.setattr(fleet, "PATIENCE_SECONDS", 0.01)
    for one in (path, PATH, "/completion", "/no-such-path", "/model.json"):
        double.on(one, SAYS[says])
    upstreams = (discreet(double.url, password=False),)
    tropilla = await gateway(upstreams=upstreams, api_keys=(OWN,), ready=False)
    (upstream,) = tropilla.fleet.upstreams
    await tropilla.has(lambda: upstream.state == "ready" or upstream.problem is not None)
    await look_around(tropilla)
    await see(tropilla, "POST", PATH, CHAT | {"model": None})


@pytest.mark.anyio
@pytest.mark.usefixtures("hasty_probes")
async def test_who_cannot_be_reached(gateway: Serve, closed_port: int) -> None:
    upstream = discreet(f"http://127.0.0.1:{closed_port}", password=True)
    tropilla = await gateway(upstreams=(upstream,), api_keys=(OWN,), ready=False)
    await tropilla.until(lambda: tropilla.fleet.state() == "down")
    assert await see(tropilla, "POST", PATH, CHAT) in {404, 503}
    await look_around(tropilla)


@pytest.mark.anyio
async def test_a_stranger_is_told_nothing(gateway: Serve, double: Double) -> None:
    tropilla = await gateway(upstreams=(discreet(double.url, password=False),), api_keys=(OWN,))
    for name, value in (("authorization", f"Bearer {WRONG}"), ("api-key", WRONG)):
        for path in (PATH, "/api/herd", f"/{WRONG[:6]}"):
            answer = await tropilla.ask("POST", path, CHAT, {name: value})
            assert answer.status == 401
            clean(answer.body)
            clean(f"{answer.headers}")


@pytest.mark.anyio
async def test_a_defect_shows_no_key(
    gateway: Serve,
    double: Double,
    monkeypatch: pytest.MonkeyPatch,
    caplog: pytest.LogCaptureFixture,
) -> None:
    async def breaks(*_: object, **__: object) -> None:
        secret = OWN  # what is on the stack is not told
        raise RuntimeError(len(secret))

    monkeypatch.setattr(relay, "generate", breaks)
    tropilla = await gateway(upstreams=(discreet(double.url, password=True),), api_keys=(OWN,))
    assert await see(tropilla, "POST", PATH, CHAT) == 500
    assert "RuntimeError" in caplog.text


@pytest.mark.anyio
async def test_an_answer_is_never_changed(gateway: Serve, doubles: Start) -> None:
    """What is taken out of refusals stays where a model says it: it may be anybody's word."""
    double = await doubles()
    double.on(PATH, streams(*told(UPSTREAMS)))
    tropilla = await gateway(upstreams=(discreet(double.url, password=False),))
    assert (await tropilla.chat(stream=True)).text == UPSTREAMS


# What the commands print.

FILE = """
api_keys: ${CANARY_OWN}
models:
  m:
    - {url: "http://user:%s@127.0.0.1:1", headers: {X-Key: %s}}
    - {url: "http://127.0.0.1:2", api_key: "${CANARY_UPSTREAM}"}
"""


@pytest.fixture
def file(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    monkeypatch.setenv("CANARY_OWN", OWN)
    monkeypatch.setenv("CANARY_UPSTREAM", UPSTREAMS)
    path = tmp_path / "tropilla.yaml"
    path.write_text(FILE % (QUOTED, f'"{HEADER}"'), encoding="utf-8")
    return path


@pytest.mark.parametrize(
    "command", [("config", "show"), ("config", "check"), ("doctor", "--config"),
                ("doctor", "--json", "--config")],
)  # fmt: skip
def test_what_commands_print(file: Path, command: tuple[str, ...]) -> None:
    done = CliRunner().invoke(main, [*command, str(file)])
    assert done.exit_code == (command[0] == "doctor")
    clean(done.output.replace("CANARY", ""))


@pytest.mark.parametrize(
    "more",
    [
        f"api_keys: [{OWN}, {{a: {OWN}}}]",
        f"api_key: {OWN}",
        f'api_keys: ["{OWN}\\n"]',
        f"upstreams: [http://user:{QUOTED}@h:port]",
        f"upstreams: [{{url: h, headers: {{'{HEADER}': x}}}}]".replace(HEADER, "a b"),
        f"upstreams: [{{url: h, api_key: {{{OWN}: 1}}}}]",
        "api_keys: ${CANARY_OWN}${NOT_SET_AT_ALL}",
    ],
)
def test_what_complaints_print(file: Path, more: str) -> None:
    file.write_text(more, encoding="utf-8")
    done = CliRunner().invoke(main, ["config", "check", str(file)])
    assert done.exit_code == 1
    clean(done.output.replace("CANARY", ""))


def test_what_the_environment_says_is_not_printed(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("TROPILLA_API_KEY", OWN)
    monkeypatch.setenv("TROPILLA_UPSTREAM_API_KEY", UPSTREAMS)
    for command in (("config", "show"), ("serve", "--help"), ("doctor", "--help")):
        clean(CliRunner().invoke(main, command).output)


# A real one.


def arguments(pid: int) -> bytes:
    """All that a list of processes shows of one and of those that it has started."""
    folder = Path(f"/proc/{pid}")
    found = (folder / "cmdline").read_bytes() + (folder / "comm").read_bytes()
    for child in Path(folder, "task", str(pid), "children").read_text().split():
        found += arguments(int(child))
    return found


@POSIX
@pytest.mark.skipif(not Path("/proc/self/task").exists(), reason="arguments are found in /proc")
@pytest.mark.parametrize("form", ["human", "json"])
def test_a_real_gateway(file: Path, form: str) -> None:
    with llama(4300) as double:
        double.key = UPSTREAMS
        text = file.read_text(encoding="utf-8").replace("http://127.0.0.1:2", double.url)
        file.write_text(text, encoding="utf-8")
        with serving("--config", str(file), "--log", form) as (process, address, banner):
            clean(banner)
            clean(arguments(process.pid))
            end = time.monotonic() + DEADLINE
            while b"Incorrect" not in ask(address, "POST", PATH, CHAT)[1]:
                assert time.monotonic() < end
            file.write_text(text.replace(HEADER, HEADER + "2"), encoding="utf-8")
            process.send_signal(signal.SIGHUP)
            file.write_text(f"api_keys: {{{OWN}: 1}}", encoding="utf-8")
            process.send_signal(signal.SIGHUP)
            clean(ask(address, "GET", "/api/herd")[1])
            process.send_signal(signal.SIGTERM)
            output, errors = process.communicate(timeout=DEADLINE)
    clean(f"-{output}")
    clean(errors)
    assert "refused" in errors


@pytest.mark.anyio
@pytest.mark.skipif(not Path("/proc/self/task").exists(), reason="arguments are found in /proc")
async def test_the_engines_own_key_is_no_argument() -> None:
    one = Engine(EngineOptions(model=Config().engine.model, alias="m", slots=1))
    await one.start()
    try:
        assert one.api_key is None or one.api_key.encode() not in arguments(_pid(one))
    finally:
        await one.stop()


def _pid(engine: Engine) -> int:
    child = engine._child
    assert child is not None
    return child.process.pid


# Warnings.


@POSIX
@pytest.mark.parametrize(
    ("flags", "warned"),
    [
        (("--host", "0.0.0.0"), True),
        (("--host", "0.0.0.0", "--insecure"), False),
        (("--host", "0.0.0.0", "--api-key", "k"), False),
        (("--host", "0.0.0.0", "--api-key", ""), True),
        (("--host", "127.0.0.1"), False),
        (("--host", "localhost"), False),
    ],
)
def test_a_gateway_that_is_open_to_all_says_so(flags: tuple[str, ...], *, warned: bool) -> None:
    with llama(4300) as double, serving("--upstream", double.url, *flags) as (process, at, _):
        end = time.monotonic() + DEADLINE
        while ask(at, "GET", "/health")[0] != 200:
            assert time.monotonic() < end
        process.send_signal(signal.SIGTERM)
        _, errors = process.communicate(timeout=DEADLINE)
    assert ("without a key" in errors) == warned


@POSIX
def test_a_gateway_whose_store_has_keys_is_not_open(tmp_path: Path) -> None:
    store = f"sqlite:///{tmp_path}/accounts.db"
    made = CliRunner().invoke(main, ["keys", "--store", store, "create", "a"])
    assert made.exit_code == 0
    flags = ("--host", "0.0.0.0", "--store", store)
    with llama(4300) as double, serving("--upstream", double.url, *flags) as (process, at, _):
        end = time.monotonic() + DEADLINE
        while ask(at, "GET", "/health")[0] != 200:
            assert time.monotonic() < end
        assert ask(at, "GET", "/v1/models")[0] == 401
        process.send_signal(signal.SIGTERM)
        _, errors = process.communicate(timeout=DEADLINE)
    assert "without a key" not in errors


def test_help_tells_where_keys_are_seen() -> None:
    for command in (("serve",), ("doctor",), ("herd",), ("route",)):
        told = CliRunner().invoke(main, [*command, "--help"]).output
        assert "processes" in " ".join(told.split())
