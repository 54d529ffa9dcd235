"""`tropilla keys`, as people type it."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import msgspec
import pytest
from click.testing import CliRunner, Result

from tropilla.accounts.keys import mistyped
from tropilla.cli import main


class Keys:
    """The command on a store of its own."""

    def __init__(self, folder: Path) -> None:
        self._store = f"sqlite:///{folder}/accounts.db"

    def run(self, *arguments: str) -> Result:
        return CliRunner().invoke(main, ["keys", "--store", self._store, *arguments])

    def json(self, *arguments: str) -> Any:
        done = self.run(*arguments, "--json")
        assert done.exit_code == 0, done.output
        return msgspec.json.decode(done.stdout)


@pytest.fixture
def keys(tmp_path: Path) -> Keys:
    return Keys(tmp_path)


def test_a_key_is_alone_on_stdout_once(keys: Keys) -> None:
    done = keys.run("create", "alice", "--team", "red")
    assert done.exit_code == 0
    key = done.stdout.strip()
    assert done.stdout == f"{key}\n"
    assert not mistyped(key)
    assert key.startswith("trp_")
    assert "alice" in done.stderr
    for told in (keys.run("list"), keys.run("show", "alice"), keys.run("list", "--json")):
        assert "alice" in told.stdout
        assert key not in told.output
        assert key[-4:] in told.stdout


def test_terms_are_what_was_said(keys: Keys) -> None:
    told = keys.json(
        "create", "a", "--model", "m", "--model", "n", "--requests", "60", "--tokens", "5000",
        "--budget", "tokens=100/day", "--budget", "money=2.5/month", "--priority", "7",
        "--expires", "2030-01-31", "--tag", "x",
    )  # fmt: skip
    assert told["models"] == ["m", "n"]
    assert told["limits"] == {"requests": 60, "tokens": 5000, "concurrent": None}
    assert told["budgets"] == [
        {"tokens": 100, "money": None, "per": "day"},
        {"tokens": None, "money": 2.5, "per": "month"},
    ]
    assert (told["priority"], told["tags"]) == (7, ["x"])
    assert told["expires"] == "2030-01-31T00:00:00Z"
    changed = keys.json("change", "a", "--concurrent", "3", "--clear", "models", "--name", "b")
    assert changed["models"] is None
    assert changed["limits"] == {"requests": None, "tokens": None, "concurrent": 3}
    assert (changed["name"], changed["priority"]) == ("b", 7)
    shown = keys.run("show", "b").stdout
    assert "2.5 a month" in shown
    assert "100 tokens a day" in shown
    assert "3 concurrent" in shown


def test_rotated_and_revoked(keys: Keys) -> None:
    first = keys.json("create", "a")
    other = keys.json("rotate", "a", "--grace", "60")
    assert (other["id"], other["key"] != first["key"]) == (first["id"], True)
    assert keys.json("revoke", "a")["state"] == "revoked"
    assert keys.json("list") == []
    assert [one["state"] for one in keys.json("list", "--all")] == ["revoked"]
    assert "There are no keys." in keys.run("list").stdout
    assert keys.json("create", "a")["id"] != first["id"]


@pytest.mark.parametrize(
    ("arguments", "why"),
    [
        (("create", "a", "--budget", "5/day"), "no budget"),
        (("create", "a", "--budget", "money=x/day"), "no budget"),
        (("create", "a", "--budget", "tokens=5/week"), "no budget"),
        (("create", "a", "--budget", "tokens=1.5/day"), "no budget"),
        (("create", "a", "--budget", "money=nan/day"), "money"),
        (("create", "a", "--budget", "money=inf/day"), "money"),
        (("create", "a", "--budget", "money=-1/day"), "money"),
        (("create", "a", "--requests", "-1"), "limits.requests"),
        (("create", "a", "--priority", "500"), "priority"),
        (("create", "a", "--expires", "soon"), "no time"),
        (("create", ""), "name"),
        (("create", "there"), "already"),
        (("show", "nobody"), "There is no key 'nobody'"),
        (("rotate", "there", "--grace", "-1"), "grace"),
        (("rotate", "there", "--grace", "nan"), "grace"),
        (("revoke", "nobody"), "There is no key"),
        (("change", "there", "--clear", "everything"), "everything"),
    ],
)
def test_what_cannot_be_is_told_in_a_line(keys: Keys, arguments: tuple[str, ...], why: str) -> None:
    keys.json("create", "there")
    done = keys.run(*arguments)
    assert done.exit_code != 0
    assert why in done.stderr
    assert "Traceback" not in done.output
    assert len(keys.json("list", "--all")) == 1


def test_without_a_store_there_is_a_hint(tmp_path: Path) -> None:
    done = CliRunner().invoke(main, ["keys", "--store", "none", "list"])
    assert (done.exit_code, "--store" in done.output) == (1, True)
    config = tmp_path / "t.yaml"
    config.write_text(f"accounts: {{store: 'sqlite:///{tmp_path}/a.db', secret: told-secret}}\n")
    done = CliRunner().invoke(main, ["keys", "--config", str(config), "create", "a"])
    assert done.exit_code == 0, done.output
    assert not list(tmp_path.glob("*-secret")), "it was told"
