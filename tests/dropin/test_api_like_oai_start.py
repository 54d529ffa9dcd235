"""Started as `api_like_OAI.py` was: its flags, and the commands of the seed document."""

from __future__ import annotations

import re
import shutil
import subprocess
import sys
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import click
import msgspec
import pytest

from doubles.llama_b1496 import NAME, SEED_IDS, SEED_PROMPT, Llama, llama
from dropin.test_api_like_oai import BOTH, COMPLETION, PREFIX, Client
from templates.test_builtin import SEED_PROMPT as CONVERSATION
from tropilla.cli import serve
from tropilla.config import Config, ConfigError, UpstreamConfig
from tropilla.config.load import Loaded
from tropilla.templates import Classic

ROOT = Path(__file__).parents[2]
PAGE = ROOT / "docs" / "api_like_OAI.md"


# The flags.


def told(monkeypatch: pytest.MonkeyPatch, *flags: str) -> Config:
    """What `tropilla serve` makes of these flags."""
    monkeypatch.setattr(sys, "argv", ["tropilla", "serve", *flags])
    with serve.command.make_context("serve", list(flags)) as context:
        given = {name: value for name, value in context.params.items() if name != "config_file"}
        return serve.with_flags(Loaded(Config()), **given)


def test_every_flag_of_the_script(monkeypatch: pytest.MonkeyPatch) -> None:
    config = told(
        monkeypatch, "--llama-api", "http://h:1", "--host", "0.0.0.0", "--port", "2",
        "--api-key", "k", "--chat-prompt", r"c\n", "--user-name", "u", "--ai-name", "a",
        "--system-name", "s", "--stop", "e",
    )  # fmt: skip
    assert config == Config(
        upstreams=(UpstreamConfig(url="http://h:1"),), listen="0.0.0.0:2", api_keys=("k",),
        any_model=True,
        template=Classic(
            chat_prompt=r"c\n", user_name="u", ai_name="a", system_name="s", stop="e"
        ),
    )  # fmt: skip


def test_the_defaults_of_the_script(monkeypatch: pytest.MonkeyPatch) -> None:
    config = told(monkeypatch, "--template", "classic")
    assert (config.host, config.port, config.api_keys) == ("127.0.0.1", 8081, ())
    assert config.template == Classic(
        chat_prompt=PREFIX.replace("\n", r"\n"),
        user_name=r"\nUSER: ",
        ai_name=r"\nASSISTANT: ",
        system_name=r"\nASSISTANT's RULE: ",
        stop="</s>",
    )


@pytest.mark.parametrize("flag", ["chat_prompt", "user_name", "ai_name", "system_name", "stop"])
def test_a_classic_flag_chooses_the_classic_template(
    monkeypatch: pytest.MonkeyPatch, flag: str
) -> None:
    config = told(monkeypatch, f"--{flag.replace('_', '-')}", "")
    assert config.template == msgspec.structs.replace(Classic(), **{flag: ""})
    assert config.any_model


def test_an_empty_api_key_is_none(monkeypatch: pytest.MonkeyPatch) -> None:
    assert told(monkeypatch, "--api-key", "").api_keys == ()


def test_without_llama_api_an_engine_is_served(monkeypatch: pytest.MonkeyPatch) -> None:
    assert told(monkeypatch).upstreams == ()


def test_without_a_classic_flag_the_template_is_the_servers_own(
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    assert told(monkeypatch, "--llama-api", "http://h:1").template is None


def test_llama_api_may_be_given_several_times(monkeypatch: pytest.MonkeyPatch) -> None:
    config = told(monkeypatch, "--llama-api", "http://h:1", "--llama-api=http://h:2")
    assert [one.url for one in config.upstreams] == ["http://h:1", "http://h:2"]


def test_a_flag_is_not_abbreviated(monkeypatch: pytest.MonkeyPatch) -> None:
    with pytest.raises(click.NoSuchOption):
        told(monkeypatch, "--llama", "http://h:1")


@pytest.mark.parametrize("flags", [["--llama-api", "h:1"], ["--llama-api=h:1"]])
def test_llama_api_answers_for_any_model(monkeypatch: pytest.MonkeyPatch, flags: list[str]) -> None:
    assert told(monkeypatch, *flags).any_model
    assert not told(monkeypatch, *flags, "--no-any-model").any_model
    assert not told(monkeypatch, "--upstream", "h:1").any_model


def test_an_address_without_http_is_one(monkeypatch: pytest.MonkeyPatch) -> None:
    config = told(monkeypatch, "--llama-api", "10.78.26.241:40081")
    assert config.upstreams[0].url == "http://10.78.26.241:40081"


@pytest.mark.parametrize("address", ["", "http://:8080", "ftp://h:1", "http://h:x"])
def test_an_address_that_is_none_is_refused_at_once(
    monkeypatch: pytest.MonkeyPatch, address: str
) -> None:
    with pytest.raises(ConfigError):
        told(monkeypatch, "--llama-api", address)


# Started as the script was, and asked as the seed document asks.

OLD_ADDRESS = re.compile(r"http://10\.78\.26\.241:\d+")
CURLS = {
    "completions": r"""curl -X POST http://10.78.26.241:40082/completions \
-H 'Content-Type: application/json' \
-d '{"n_predict":400,"prompt":"Nice to meet you!\n\nHuman: hi\nAssistant:"}'""",
    "no header": r"""curl -X POST http://10.78.26.241:40082/completions \
-d '{"n_predict":400,"prompt":"Nice to meet you!\n\nHuman: hi\nAssistant:"}'""",
    "tokenize": r"""curl -X POST http://10.78.26.241:40082/completions \
-H 'Content-Type: application/json' \
-d '{"n_predict":400,"prompt":"Nice to meet you!\n\nHuman: hi\nAssistant:", "tokenize": true}'""",
    "/tokenize": r"""curl -X POST http://10.78.26.241:40081/tokenize """
    r"""-d '{"content": "Nice to meet you!\n\nHuman: hi\nAssistant:"}'""",
    "/completion": r"""curl -X POST http://10.78.26.241:40081/completion """
    r"""-d '{"n_predict":200, "prompt": "Hello!"}'""",
    "/completion streamed": r"""curl -X POST http://10.78.26.241:40081/completion """
    r"""-d '{"n_predict":200, "prompt": "Hello!", "stream": true}'""",
}


@pytest.fixture(scope="module")
def server() -> Iterator[Llama]:
    with llama() as double:
        yield double


@pytest.fixture
def old(server: Llama) -> Llama:
    server.clear()
    return server


@pytest.fixture(scope="module")
def started(server: Llama, tmp_path_factory: pytest.TempPathFactory) -> Iterator[tuple[str, Path]]:
    """The address of a real `tropilla serve`, and where its log is."""
    log = tmp_path_factory.mktemp("started") / "log"
    command = [sys.executable, "-m", "tropilla", "serve"]
    command += ["--llama-api", server.url, "--host", "127.0.0.1", "--port", "0"]
    with (
        log.open("wb") as errors,
        subprocess.Popen(command, stdout=subprocess.PIPE, stderr=errors, text=True) as process,
    ):
        assert process.stdout is not None
        try:
            found = re.search(r"listens on (http://[\d.:]+)/v1", process.stdout.readline())
            assert found
            yield found[1], log
        finally:
            process.terminate()
            process.stdout.close()


@pytest.mark.skipif(shutil.which("curl") is None, reason="curl is not on this machine")
@pytest.mark.parametrize("name", CURLS)
def test_the_commands_of_the_seed(started: tuple[str, Path], old: Llama, name: str) -> None:
    command = OLD_ADDRESS.sub(started[0], CURLS[name]).replace("curl", "curl -sS", 1)
    done = subprocess.run(["sh", "-c", command], capture_output=True, timeout=60, check=True)
    if name == "/completion streamed":
        assert done.stdout.startswith(b'data: {"')
        assert b'"stopped_eos":true' in done.stdout
        return
    answer = msgspec.json.decode(done.stdout)
    if name == "/completion":
        assert (answer["content"], answer["tokens_evaluated"]) == (" I'm fine.", 3)
    elif name == "/tokenize":
        assert answer == {"tokens": SEED_IDS}
    else:
        assert answer["choices"][0]["text"] == " I'm fine."
        assert answer.get("promptToken") == (SEED_IDS if name == "tokenize" else None)
        assert (old.last()["prompt"], old.last()["n_predict"]) == (SEED_PROMPT, 400)


@BOTH
@pytest.mark.parametrize("model", ["gpt-3.5-turbo", "LLaMA_CPP", None])
def test_any_model_is_answered_for(
    started: tuple[str, Path], old: Llama, path: str, body: Any, model: str | None
) -> None:
    client = Client(int(started[0].rpartition(":")[2]))
    answer = client.post(path, body if model is None else body | {"model": model})
    assert (answer.status, answer.json["model"]) == (200, model or NAME)
    assert old.last()["model"] == NAME


def test_what_is_written_is_not_logged(started: tuple[str, Path], old: Llama) -> None:
    old.says = [" a secret"]
    client = Client(int(started[0].rpartition(":")[2]))
    assert " a secret" in client.post("/v1/completions", COMPLETION).choice["text"]
    log = started[1].read_text(encoding="utf-8")
    assert "is ready" in log
    assert "secret" not in log
    assert "Nice to meet you" not in log


def test_the_page_shows_the_defaults_and_the_prompt_as_they_are() -> None:
    page = PAGE.read_text(encoding="utf-8")
    assert CONVERSATION in page
    assert all(f"`{text}`" in page for text in msgspec.structs.astuple(Classic()))


def test_every_difference_names_a_test_that_is_there() -> None:
    page = PAGE.read_text(encoding="utf-8")
    paths = [*ROOT.glob("tests/dropin/*.py"), ROOT / "tests" / "templates" / "test_builtin.py"]
    code = "".join(path.read_text(encoding="utf-8") for path in paths)
    rows = [line for line in page.splitlines() if line.startswith("| ") and "`test_" in line]
    named = set(re.findall(r"`(test_\w+)`", page))
    assert len(rows) > 20
    assert named <= set(re.findall(r"^def (test_\w+)", code, re.MULTILINE))
