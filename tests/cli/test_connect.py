"""`tropilla connect`: what it prints works, and what it writes can be taken back."""

from __future__ import annotations

import asyncio
import shutil
import subprocess
import sys
import tomllib
from pathlib import Path
from typing import Any

import pytest
import yaml
from click.testing import CliRunner, Result

from conftest import Serve
from tropilla.cli import main
from tropilla.clients import CLIENTS, Place, Settings
from tropilla.clients.edits import EditError, alone, edited

PLACE = Place(root="http://h:1", model="org/m", key="k'\"1", context=4096)
TOLD = ("--url", "h:1/v1/", "--model", "org/m", "--api-key", "k'\"1", "--context", "4096")
FILES = {
    name: settings
    for name, one in CLIENTS.items()
    if (settings := one.connection(PLACE).settings) is not None
}
PATHS = {
    "claude-code": ".claude/settings.json",
    "codex": ".codex/tropilla.config.toml",
    "aider": ".aider.conf.yml",
    "continue": ".continue/config.yaml",
    "llm": ".config/io.datasette.llm/extra-openai-models.yaml",
    "zed": ".config/zed/settings.json",
}
THERE = {
    "claude-code": '{"model": "opus", "env": {"A": "b", "ANTHROPIC_BASE_URL": "old"}}\n',
    "codex": 'model = "x"\n',
    "aider": "# Mine.\ndark-mode: true\n",
    "continue": (
        "name: Mine\nversion: 1.0.0\nschema: v1\nmodels: # the best\n\n  # is this\n"
        "  - name: x\n    provider: ollama\n    model: y\ncontext:\n  - provider: code\n"
    ),
    "llm": "- model_id: a  # b\n  model_name: c",
    "zed": '// { Zed }\n{\n  /* "x" */ "theme": "One // Two", // three\n  "vim_mode": true,\n}\n',
}


@pytest.fixture(autouse=True)
def home(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    for name in ("XDG_STATE_HOME", *(one.variable for one in FILES.values() if one.variable)):
        monkeypatch.delenv(name, raising=False)
    for name in ("HOME", "USERPROFILE"):
        monkeypatch.setenv(name, str(tmp_path))
    return tmp_path


def cli(*arguments: str, say: str | None = None) -> Result:
    return CliRunner().invoke(main, ["connect", *arguments], input=say)


def read(name: str, text: str) -> Any:
    if name == "codex":
        return tomllib.loads(text)
    # JSON without its comments is YAML.
    return yaml.safe_load(text)


def test_the_list() -> None:
    told = cli()
    assert told.exit_code == 0
    assert [line.split()[0] for line in told.output.splitlines()[:15]] == list(CLIENTS)


@pytest.mark.parametrize("name", CLIENTS)
def test_what_is_printed_names_the_place(name: str) -> None:
    told = cli(name, *TOLD)
    assert told.exit_code == 0, told.output
    assert "http://h:1" in told.output
    assert "http://h:1/v1/v1" not in told.output
    assert name == "open-webui" or "org/m" in told.output, "Open WebUI finds models by itself"
    assert CLIENTS[name].documentation in told.stderr
    assert "k" in cli(name, *TOLD).stdout


@pytest.mark.parametrize(
    ("arguments", "words"),
    [
        (("codxe",), "Did you mean codex?"),
        (("zzz",), "There are: openai-python"),
        (("--write",), "--write wants a CLIENT"),
        (("curl", "--model", "m", "--context", "0"), "--context"),
    ],
)
def test_what_cannot_be_is_refused(arguments: tuple[str, ...], words: str) -> None:
    told = cli(*arguments)
    assert told.exit_code == 2
    assert words in told.output


def test_without_a_gateway_a_model_must_be_named(closed_port: int) -> None:
    told = cli("curl", "--url", f"127.0.0.1:{closed_port}")
    assert told.exit_code == 1
    assert "No gateway answers" in told.output


@pytest.mark.parametrize("name", [name for name in CLIENTS if name not in FILES])
def test_who_has_no_file_is_not_written(name: str) -> None:
    told = cli(name, *TOLD, "--write", "--yes")
    assert told.exit_code == 1
    assert "has no file of settings" in told.output


@pytest.mark.parametrize("name", PATHS)
def test_a_file_is_made_and_taken_away(name: str, home: Path) -> None:
    path = home / PATHS[name]
    told = cli(name, *TOLD, "--write", say="y\n")
    assert told.exit_code == 0, told.output
    assert "+++ ~/" + PATHS[name] in told.output
    assert read(name, path.read_text()) == read(name, alone(FILES[name]))
    assert path.stat().st_mode & 0o077 == 0, "it holds a key"
    assert "says so already" in cli(name, *TOLD, "--write").output
    told = cli(name, "--restore", "--yes")
    assert told.exit_code == 0, told.output
    assert not path.exists()
    assert "Nothing was written" in cli(name, "--restore").output


@pytest.mark.parametrize("name", PATHS)
def test_what_is_there_stays_and_comes_back(name: str, home: Path) -> None:
    path = home / PATHS[name]
    path.parent.mkdir(parents=True, exist_ok=True)
    path.write_text(THERE[name])
    path.chmod(0o640)
    assert cli(name, *TOLD, "--write", "--yes").exit_code == 0
    told = cli(name, "--url", "other:2", "--model", "new", "--write", "--yes")
    if name == "zed":  # its comments stay, so nothing that is there can be changed
        assert "it has comments, and language_models is there already" in told.output
    else:
        assert told.exit_code == 0, told.output
        assert "http://h:1" not in path.read_text()
        assert "http://other:2" in path.read_text()
    assert path.stat().st_mode & 0o777 == 0o640
    assert cli(name, "--restore", "--yes").exit_code == 0
    assert path.read_text() == THERE[name]


def test_what_was_there_is_still_said() -> None:
    new = {name: edited(settings, THERE[name]) for name, settings in FILES.items()}
    claude = read("claude-code", new["claude-code"])
    assert claude["model"] == "opus"
    assert (claude["env"]["A"], claude["env"]["ANTHROPIC_BASE_URL"]) == ("b", "http://h:1")
    assert new["aider"].startswith(THERE["aider"])
    assert yaml.safe_load(new["aider"])["model"] == "openai/org/m"
    assert [one["name"] for one in yaml.safe_load(new["continue"])["models"]] == [
        "Tropilla: org/m", "x",
    ]  # fmt: skip
    assert "models: # the best\n\n  # is this\n" in new["continue"]
    assert [one["model_id"] for one in yaml.safe_load(new["llm"])] == ["a", "tropilla/org/m"]
    first, rest = THERE["zed"].split("{\n")
    assert new["zed"].startswith(first + "{\n")
    assert new["zed"].endswith(rest)
    assert '"One // Two", // three' in new["zed"]


@pytest.mark.parametrize(
    ("name", "text", "why"),
    [
        ("claude-code", "{", "no JSON"),
        ("claude-code", "[]", "no JSON object"),
        ("zed", "// x\n{}", "comments, and nothing else"),
        ("aider", "- x", "no mapping"),
        ("aider", "a: [", "no YAML"),
        ("aider", "model: mine", "model is there already"),
        ("aider", "{a: b}", "cannot be added to"),
        ("llm", "a: b", "no list"),
        ("llm", "[]", "cannot be added to"),
        ("continue", "models: [{name: x}]", "cannot be added to"),
        ("continue", "models: {a: b}", "no list"),
        ("continue", "models:\n  a: b\n", "no list"),
        ("continue", "- x", "no mapping"),
    ],
)
def test_what_would_be_damaged_is_left_alone(name: str, text: str, why: str, home: Path) -> None:
    with pytest.raises(EditError, match=why):
        edited(FILES[name], text)
    path = home / PATHS[name]
    path.parent.mkdir(parents=True, exist_ok=True)
    path.write_text(text)
    told = cli(name, *TOLD, "--write", "--yes")
    assert told.exit_code == 1
    assert "is left as it is" in told.output
    assert path.read_text() == text


def test_no_is_no(home: Path) -> None:
    assert cli("aider", *TOLD, "--write", say="n\n").exit_code == 1
    assert not (home / PATHS["aider"]).exists()


def test_what_was_changed_since_is_not_undone(home: Path) -> None:
    path = home / PATHS["aider"]
    assert cli("aider", *TOLD, "--write", "--yes").exit_code == 0
    path.write_text(path.read_text() + "dark-mode: true\n")
    told = cli("aider", "--restore", "--yes")
    assert told.exit_code == 1
    assert "-dark-mode: true" in told.output
    assert "changed since" in told.output
    assert "dark-mode" in path.read_text()


def test_a_link_stays_one(home: Path) -> None:
    (home / "dotfiles").mkdir()
    real, path = home / "dotfiles" / "aider.yml", home / PATHS["aider"]
    real.write_text("dark-mode: true\n")
    path.symlink_to(real)
    assert cli("aider", *TOLD, "--write", "--yes").exit_code == 0
    assert path.is_symlink()
    assert "openai-api-base" in real.read_text()


def test_another_folder(home: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("CODEX_HOME", str(home / "elsewhere"))
    assert cli("codex", *TOLD, "--write", "--yes").exit_code == 0
    told = tomllib.loads((home / "elsewhere" / "tropilla.config.toml").read_text())
    assert told["model_providers"]["tropilla"]["wire_api"] == "responses"


def test_toml_says_any_text() -> None:
    texts = {"a": 'x"\\\n\x7f\u00e9\U0001f999', "b": 3, "t": {"in": {"c": "d"}}}
    settings = Settings(file="f", folder="~", kind="toml", value=texts)
    assert tomllib.loads(alone(settings)) == texts


@pytest.mark.anyio
@pytest.mark.parametrize("name", ["curl", "openai-python"])
async def test_what_is_printed_runs(name: str, gateway: Serve, engine: str) -> None:
    if name == "curl" and shutil.which("curl") is None:
        pytest.skip("curl is not on this machine")
    tropilla = await gateway(engine, api_keys=('it\'s "one"',))
    told = await asyncio.to_thread(cli, name, "--url", tropilla.url, "--api-key", 'it\'s "one"')
    code = told.stdout.partition("After pip install openai:\n\n")[2] or told.stdout
    code = code.partition("Or leave")[0]
    command = ["sh", "-c", code] if name == "curl" else [sys.executable, "-c", code]
    done = await asyncio.to_thread(
        subprocess.run, command, capture_output=True, text=True, timeout=60, check=False
    )
    assert done.returncode == 0, done.stderr
    assert ("[DONE]" in done.stdout) if name == "curl" else done.stdout.strip()


@pytest.mark.anyio
async def test_the_gateway_tells_its_model_and_context(gateway: Serve, engine: str) -> None:
    tropilla = await gateway(engine)
    context = (await tropilla.ask("GET", "/v1/models/m")).json["context_length"]
    told = await asyncio.to_thread(cli, "codex", "--url", tropilla.url)
    assert f'model = "m"\nmodel_provider = "tropilla"\nmodel_context_window = {context}\n' in (
        told.stdout
    )
