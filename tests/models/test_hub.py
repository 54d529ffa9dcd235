"""Models of the hub: whole, gone on with, right, and where every program of the hub looks."""

from __future__ import annotations

import hashlib
import shutil
import socket
import sys
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import msgspec
import pytest
from click.testing import CliRunner, Result

from cli.test_cli import told
from doubles.hub import COMMIT, Hub, hub
from tropilla.cli import main
from tropilla.config import TINY_MODEL, Config
from tropilla.models import hub as module
from tropilla.models import memory, shelf
from tropilla.server import run

REPO = "herd/Tiny-GGUF"
TINY = TINY_MODEL.read_bytes()


@pytest.fixture(autouse=True)
def there(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Iterator[Hub]:
    for name in ("HF_TOKEN", "HF_HUB_OFFLINE", "HF_HUB_CACHE", "HF_TOKEN_PATH"):
        monkeypatch.delenv(name, raising=False)
    monkeypatch.setenv("HF_HOME", str(tmp_path))
    monkeypatch.setenv("NO_PROXY", "127.0.0.1")
    monkeypatch.setattr(module, "_pause", 0.0)
    with hub() as it:
        monkeypatch.setenv("HF_ENDPOINT", it.url)
        it.repos[REPO] = {
            "README.md": b"# Tiny\n",
            "tiny-Q8_0.gguf": TINY[:64],
            "tiny-Q4_K_M.gguf": TINY,
            "mmproj-tiny-Q4_K_M.gguf": TINY[:8192],
        }
        yield it


def cli(*arguments: str) -> Result:
    return CliRunner(env={"COLUMNS": "160"}).invoke(main, arguments)


def test_a_model_comes_into_the_cache(there: Hub, tmp_path: Path) -> None:
    done = cli("pull", REPO)
    assert done.exit_code == 0, done.output
    path = Path(done.stdout.strip())
    folder = tmp_path / "hub" / "models--herd--Tiny-GGUF"
    assert path == folder / "snapshots" / COMMIT / "tiny-Q4_K_M.gguf"
    assert path.is_symlink()
    assert not path.readlink().is_absolute(), "the cache can be moved"
    assert path.resolve() == folder / "blobs" / hashlib.sha256(TINY).hexdigest()
    assert path.read_bytes() == TINY
    assert (folder / "refs" / "main").read_text() == COMMIT
    assert [one.name for one in (folder / "blobs").iterdir()] == [path.resolve().name]
    assert "4 slots of 8192 tokens: 3.4 MB model" in done.stderr
    assert f"tropilla serve --hf {REPO}" in done.stderr
    asked = len(there.fetched())
    assert cli("pull", REPO).stdout == done.stdout
    assert len(there.fetched()) == asked, "it is there"


def test_a_model_is_listed(tmp_path: Path) -> None:
    assert cli("pull", f"{REPO}:q8_0").exit_code == 1, "that is no whole file"
    assert cli("pull", REPO).exit_code == 0
    rows = {one["id"]: one for one in msgspec.json.decode(cli("models", "--json").stdout)}
    one = rows[f"{REPO}:Q4_K_M"]
    assert (one["bytes"], one["architecture"], one["context_length"]) == (len(TINY), "llama", 8192)
    assert one["plan"]["fits"] is True
    assert rows[f"{REPO}:Q8_0"]["plan"] is None
    assert "tropilla-tiny" in rows
    table = cli("models").output
    assert f"{REPO}:Q4_K_M" in table
    assert "4 x 8192" in table
    assert str(tmp_path)[:20] in table


def test_the_token_is_the_hubs(there: Hub, monkeypatch: pytest.MonkeyPatch, tmp_path: Path) -> None:
    (tmp_path / "token").write_text("kept\n")
    assert cli("pull", f"{REPO}:Q8_0").exit_code == 1
    monkeypatch.setenv("HF_TOKEN", "secret")
    assert cli("pull", f"{REPO}:Q4_K_M").exit_code == 0
    shown = [(who, headers.get("authorization")) for who, _, headers in there.asked]
    assert set(shown) == {
        ("hub", "Bearer kept"), ("hub", "Bearer secret"), ("elsewhere", None),
    }  # fmt: skip


def test_what_breaks_off_goes_on(there: Hub) -> None:
    there.cuts = [100_000, 200_000, 0]
    done = cli("pull", REPO)
    assert done.exit_code == 0, done.output
    assert Path(done.stdout.strip()).read_bytes() == TINY
    assert there.fetched() == [None, "bytes=100000-", "bytes=300000-", "bytes=300000-"]


def test_what_was_given_up_goes_on_another_time(there: Hub) -> None:
    there.cuts = [1_000_000, *[0] * 4]
    done = cli("pull", REPO)
    assert done.exit_code == 1
    assert "came to 1,000,000 of" in done.output
    assert "goes on with it" in done.output
    assert shelf.find(shelf.Wanted(REPO)) is None, "half a model is none"
    there.asked.clear()
    done = cli("pull", REPO)
    assert done.exit_code == 0, done.output
    assert there.fetched() == ["bytes=1000000-"]
    assert Path(done.stdout.strip()).read_bytes() == TINY


def test_a_server_that_knows_no_ranges(there: Hub) -> None:
    there.cuts, there.ranges = [100_000], False
    done = cli("pull", REPO)
    assert Path(done.stdout.strip()).read_bytes() == TINY
    assert len(there.fetched()) == 2, "the second time it was taken from its beginning"


@pytest.mark.parametrize("name", ["tiny-Q4_K_M.gguf", "tiny.gguf"])
def test_wrong_bytes_are_thrown_away(there: Hub, tmp_path: Path, name: str) -> None:
    def without_lfs(listed: dict[str, Any]) -> dict[str, Any]:
        for one in listed["siblings"]:
            one.pop("lfs", None)
        return listed

    if name == "tiny.gguf":  # a small file, of which only git's own checksum is told
        there.listing = without_lfs
    there.repos[REPO] = {name: TINY}
    there.tampers = lambda data: data[:-1] + b"x"
    done = cli("pull", REPO)
    assert done.exit_code == 1
    assert "not the checksum" in done.output
    assert not list(tmp_path.rglob("blobs/*"))
    assert not list(tmp_path.rglob("*.gguf"))
    there.tampers = lambda data: data
    done = cli("pull", REPO)
    assert done.exit_code == 0, done.output
    assert Path(done.stdout.strip()).read_bytes() == TINY


def test_what_was_damaged_before_is_found_out(there: Hub, tmp_path: Path) -> None:
    there.cuts = [1_000_000, *[0] * 4]
    assert cli("pull", REPO).exit_code == 1
    (part,) = tmp_path.rglob("*.tropilla")
    part.write_bytes(b"\0" * 1_000_000)
    assert "not the checksum" in cli("pull", REPO).output
    assert cli("pull", REPO).exit_code == 0


def test_all_parts_come(there: Hub) -> None:
    there.repos[REPO] = {f"x/big-Q4_K_M-0000{n}-of-00002.gguf": TINY + b"%d" % n for n in (1, 2)}
    done = cli("pull", REPO)
    assert done.exit_code == 0, done.output
    path = Path(done.stdout.strip())
    assert path.name == "big-Q4_K_M-00001-of-00002.gguf"
    assert len(list(path.parent.iterdir())) == 2
    assert shelf.size(path) == 2 * len(TINY) + 2
    path.with_name("big-Q4_K_M-00002-of-00002.gguf").resolve().unlink()
    assert shelf.find(shelf.Wanted(REPO)) is None
    assert shelf.size(path) == len(TINY) + 1, "a link that leads nowhere harms nothing"
    assert cli("models").exit_code == 0


@pytest.mark.parametrize(
    ("status", "headers", "words"),
    [
        (401, {"X-Error-Code": "GatedRepo"}, "agree to its terms at"),
        (403, {"X-Error-Code": "GatedRepo"}, "set HF_TOKEN"),
        (401, {}, "if it is private, set HF_TOKEN"),
        (404, {"X-Error-Code": "RepoNotFound"}, "There is no herd/Tiny-GGUF at"),
        (429, {"Retry-After": "9"}, "wait some minutes"),
        (418, {}, "it answers 418"),
        (500, {}, "Try again"),
    ],
)
def test_refusals_say_what_to_do(
    there: Hub, status: int, headers: dict[str, str], words: str
) -> None:
    there.refuses = (status, headers)
    done = cli("pull", REPO)
    assert done.exit_code == 1
    assert words in done.output
    assert "Traceback" not in done.output


def test_a_gated_model_is_listed_and_its_files_are_not_for_everybody(there: Hub) -> None:
    there.refuses, there.refused = (403, {"X-Error-Code": "GatedRepo"}), "/resolve/"
    assert "agree to its terms at" in cli("pull", REPO).output


def test_a_token_that_is_refused(there: Hub, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("HF_TOKEN", "secret")
    there.refuses = (401, {})
    assert "does not take this token" in cli("pull", REPO).output
    there.refuses = (403, {"X-Error-Code": "GatedRepo"})
    assert "wait until that is granted" in cli("pull", REPO).output


def test_offline(there: Hub, monkeypatch: pytest.MonkeyPatch, closed_port: int) -> None:
    monkeypatch.setenv("HF_HUB_OFFLINE", "1")
    assert "HF_HUB_OFFLINE" in cli("pull", REPO).output
    assert not there.asked
    monkeypatch.delenv("HF_HUB_OFFLINE")
    monkeypatch.setenv("HF_ENDPOINT", f"http://127.0.0.1:{closed_port}")
    assert "cannot be reached" in cli("pull", REPO).output
    monkeypatch.setenv("HF_ENDPOINT", "file:///etc")
    assert "is no address" in cli("pull", REPO).output


@pytest.mark.parametrize(
    ("model", "words"),
    [
        ("herd/Other", "There is no herd/Other"),
        (f"{REPO}:Q2_K", "has no Q2_K; it has Q4_K_M, Q8_0"),
        ("herd/Empty", "no GGUF file"),
        ("herd", "is no OWNER/NAME"),
        ("../x", "is no OWNER/NAME"),
        ("a/b/c", "is no OWNER/NAME"),
    ],
)
def test_what_is_not_there(there: Hub, model: str, words: str) -> None:
    there.repos["herd/Empty"] = {"README.md": b""}
    done = cli("pull", model)
    assert done.exit_code != 0
    assert words in done.output


@pytest.mark.parametrize("name", ["../../x.gguf", "/x.gguf", "a//x.gguf", "..\\x.gguf"])
def test_no_name_leads_out_of_the_cache(there: Hub, name: str, tmp_path: Path) -> None:
    there.repos[REPO] = {name: TINY}
    done = cli("pull", REPO)
    assert done.exit_code == 1
    assert "as no hub does" in done.output
    assert not list(tmp_path.rglob("x.gguf"))


@pytest.mark.parametrize("told", [[], {"sha": "x"}, {"sha": "../x", "siblings": []}, {"sha": 3}])
def test_what_no_hub_says(there: Hub, told: Any) -> None:
    there.listing = lambda _: told
    assert "as no hub does" in cli("pull", REPO).output


@pytest.mark.skipif(sys.platform == "win32", reason="POSIX's locks")
def test_two_do_not_fetch_the_same(tmp_path: Path) -> None:
    part = tmp_path / "x"
    with (
        module._alone(part),
        pytest.raises(module.HubError, match="Another process"),
        module._alone(part),
    ):
        pass


def test_a_full_disk(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(shutil, "disk_usage", lambda _: type("Usage", (), {"free": 5}))
    assert "has 5 left" in cli("pull", REPO).output


def test_a_model_is_served(there: Hub, monkeypatch: pytest.MonkeyPatch) -> None:
    config = told(monkeypatch, "--hf", REPO)
    assert config.engine.name == "Tiny"
    assert config.engine.model.read_bytes() == TINY
    assert (config.engine.slots, config.engine.ctx_size) == (4, 8192)
    there.asked.clear()
    config = told(monkeypatch, "--hf", f"{REPO}:q4_k_m", "--model-name", "m", "--slots", "2")
    assert (config.engine.name, config.engine.slots) == ("m", 2)
    assert not there.asked, "what is on disk is served without a network"
    refused = cli("serve", "--hf", REPO, "--model", "x.gguf")
    assert refused.exit_code == 2
    assert "exclude" in refused.output


def test_an_engine_keeps_its_size_when_settings_are_read_again(
    monkeypatch: pytest.MonkeyPatch, tmp_path: Path
) -> None:
    file = tmp_path / "tropilla.yaml"
    file.write_text("drain: 1\n")
    heard: list[Any] = []

    def serves(config: Config, sockets: list[socket.socket], *more: Any) -> None:
        for sock in sockets:
            sock.close()
        monkeypatch.setattr(memory, "free_memory", lambda: 600_000_000)
        file.write_text("drain: 2\n")
        heard.extend([config, *more[1]()])
        file.write_text("drain: 2\nengine: {slots: 2}\n")
        heard.append(more[1]()[0])

    monkeypatch.setattr(run, "run", serves)
    monkeypatch.setattr(memory, "free_memory", lambda: 8_000_000_000)
    assert cli("serve", "--port", "0", "--config", str(file)).exit_code == 0
    config, again, news, other = heard
    assert config.engine.slots == 4
    assert (again.engine, again.drain) == (config.engine, 2)
    assert "+drain: 2" in news
    assert "engine" not in news
    assert other.engine.slots == 2, "what is said now is another engine, which wants a restart"
