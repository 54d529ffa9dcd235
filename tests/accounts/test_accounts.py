"""Accounts of a gateway: what clients were told of usage is what is in the store, and is shown."""

from __future__ import annotations

import asyncio
import csv
import io
import os
import re
import signal
import sqlite3
import subprocess
import sys
from contextlib import closing
from pathlib import Path
from typing import Any

import msgspec
import pytest
from click.testing import CliRunner

from conftest import CHAT, Serve, Served
from doubles.upstream import Double, breaks, chunk, native_told, streams, told
from serving import DEADLINE, POSIX, ask, serving
from tropilla.accounts import usage
from tropilla.accounts.store import StoreError
from tropilla.cli import main
from tropilla.config import AccountsConfig, EngineConfig, KeyConfig
from tropilla.server.accounts import Accounts

pytestmark = pytest.mark.anyio

PATH = "/v1/chat/completions"
_USAGE = re.compile(rb'"usage":(\{[^{}]*(?:\{[^{}]*\}[^{}]*)*\})')


async def keeping(gateway: Serve, path: Path, *doubles: Double, **config: Any) -> Served:
    accounts = AccountsConfig(store=f"sqlite:///{path}/accounts.db")
    return await gateway(*doubles, accounts=accounts, **config)


def accounts(tropilla: Served) -> Accounts:
    found = tropilla.gateway._accounts
    assert found is not None
    return found


async def rows(tropilla: Served) -> list[dict[str, Any]]:
    return await usage.rows(accounts(tropilla).store, most=1000)


async def test_what_clients_are_told_is_what_is_kept(gateway: Serve, tmp_path: Path) -> None:
    # The real engine; every form of answer.
    tropilla = await keeping(gateway, tmp_path, engine=EngineConfig(slots=2, name="m"))
    heard = []
    for path, body in (
        (PATH, {"messages": [{"role": "user", "content": "Hi"}], "max_tokens": 5}),
        (PATH, {"messages": [{"role": "user", "content": "Hi"}], "max_tokens": 5, "n": 2}),
        ("/v1/completions", {"prompt": ["a llama", "b"], "max_tokens": 3}),
        ("/v1/responses", {"input": "Hi", "max_output_tokens": 16}),
    ):
        for stream in (False, True):
            more = {"stream_options": {"include_usage": True}} if stream else {}
            if path == "/v1/responses":
                more = {}
            answer = await tropilla.ask("POST", path, body | {"stream": stream} | more)
            assert answer.status == 200
            told_usage = msgspec.json.decode(_USAGE.findall(answer.body)[-1])
            heard.append((answer.headers["x-request-id"], told_usage))
    kept = {row["id"]: row for row in await rows(tropilla)}
    assert len(kept) == len(heard)
    for id_, one in heard:
        read = one.get("prompt_tokens", one.get("input_tokens"))
        written = one.get("completion_tokens", one.get("output_tokens"))
        assert (kept[id_]["prompt"], kept[id_]["written"]) == (read, written)
    answer = await tropilla.ask("GET", "/api/usage?by=model")
    (row,) = answer.json["data"]
    assert (row["model"], row["requests"]) == ("m", len(heard))
    assert row["prompt"] == sum(one["prompt"] for one in kept.values())
    assert row["written"] == sum(one["written"] for one in kept.values())


async def test_failures_and_refusals_have_rows(
    gateway: Serve, double: Double, tmp_path: Path
) -> None:
    double.on(PATH, breaks(chunk("Hello")))
    tropilla = await keeping(gateway, tmp_path, double, failover=False)
    await tropilla.chat(stream=True)
    await tropilla.chat(model="nobody")
    await tropilla.ask("GET", "/v1/models")
    kept = [(one["problem"], one["status"], one["written"]) for one in await rows(tropilla)]
    assert kept == [("unknown_model", 404, 0), ("upstream_failed", 200, 1)]


async def test_a_stranger_leaves_no_row(gateway: Serve, double: Double, tmp_path: Path) -> None:
    tropilla = await keeping(gateway, tmp_path, double, api_keys=("secret",))
    assert (await tropilla.chat()).status == 401
    assert await rows(tropilla) == []


async def test_usage_by_key_has_their_names(
    gateway: Serve, double: Double, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    double.on(PATH, streams(*told("Hi")))
    monkeypatch.setenv("COLUMNS", "200")
    config = AccountsConfig(
        store=f"sqlite:///{tmp_path}/accounts.db", admin_key="the-admin-key",
        keys={"robot": KeyConfig(key="a-key-of-the-config"), "carol": KeyConfig(key="carols-own")},
    )  # fmt: skip
    tropilla = await gateway(double, accounts=config, api_keys=("nameless",))
    admin = {"Authorization": "Bearer the-admin-key"}
    ids = {}
    for name in ("alice", "=carol", "bob", "carol", "bob"):
        made = (await tropilla.ask("POST", "/api/keys", {"name": name}, admin)).json
        mine = {"Authorization": f"Bearer {made['key']}"}
        assert (await tropilla.ask("POST", PATH, CHAT, mine)).status == 200
        ids[made["id"]] = name
        if name == "bob":  # so that the next one may have his name
            assert (
                await tropilla.ask("DELETE", f"/api/keys/{made['id']}", None, admin)
            ).status == 200
    for key in ("a-key-of-the-config", "carols-own", "nameless"):
        mine = {"Authorization": f"Bearer {key}"}
        assert (await tropilla.ask("POST", PATH, CHAT, mine)).status == 200
    await tropilla.ask("POST", PATH, CHAT, {"Authorization": "Bearer a-key-of-the-config"})

    rows_ = (await tropilla.ask("GET", "/api/usage?by=key,model", headers=admin)).json["data"]
    heard = {row["key"]: row["key_name"] for row in rows_}
    (nameless,) = set(heard) - {*ids, "config:robot", "config:carol"}
    named = ids | {"config:robot": "robot", "config:carol": "carol"}
    assert heard == named | {nameless: None}
    own = await tropilla.ask(
        "GET", "/api/usage?by=key", headers={"Authorization": "Bearer a-key-of-the-config"}
    )
    assert [(row["key"], row["key_name"]) for row in own.json["data"]] == [
        ("config:robot", "robot")
    ]
    by_model = await tropilla.ask("GET", "/api/usage?by=model", headers=admin)
    assert "key_name" not in by_model.json["data"][0]

    # The command reads the store alone.
    file = tmp_path / "accounts.db"
    (alice,) = [id_ for id_, name in ids.items() if name == "alice"]

    def lines(*arguments: str) -> list[dict[str, str]]:
        return list(csv.DictReader(io.StringIO(shows(file, *arguments, "--csv"))))

    def look() -> None:
        for row in msgspec.json.decode(shows(file, "--by", "key", "--json")):
            assert row["key_name"] == heard[row["key"]]
        in_csv = {line["key"]: line["key_name"] for line in lines("--by", "key,day")}
        assert in_csv == {
            id_: "'=carol" if name == "=carol" else name or "" for id_, name in heard.items()
        }
        assert "key_name" not in lines("--by", "day")[0]
        table = shows(file, "--by", "key")
        shown = {line.split("│")[1].strip() for line in table.splitlines() if "│" in line}
        twice = {f"{name} ({id_})" for id_, name in named.items() if name in {"bob", "carol"}}
        assert len(twice) == 4
        assert shown == {"alice", "=carol", "robot", nameless, *twice, "all"}
        for asked, id_ in (("alice", alice), ("robot", "config:robot"), (nameless, nameless)):
            (line,) = lines("--by", "key", "--key", asked)
            assert line["key"] == id_
        assert "Nothing was used" in shows(file, "--key", "nobody")
        done = CliRunner().invoke(main, ["usage", "--store", f"sqlite:///{file}", "--key", "carol"])
        assert done.exit_code == 2
        assert "several keys are called 'carol': config:carol, key_" in done.output

    await asyncio.to_thread(look)


async def test_a_key_hears_of_its_own_usage(gateway: Serve, double: Double, tmp_path: Path) -> None:
    double.on(PATH, streams(*told("Hi")), streams(*told("Hi")))
    tropilla = await keeping(gateway, tmp_path, double, api_keys=("one", "two"))
    for key in ("one", "two"):
        headers = {"Authorization": f"Bearer {key}"}
        assert (
            await tropilla.ask(
                "POST",
                PATH,
                {"model": "m", "messages": [{"role": "user", "content": "Hi"}]},
                headers,
            )
        ).status == 200
        (row,) = (await tropilla.ask("GET", "/api/usage?by=key", headers=headers)).json["data"]
        assert row["requests"] == 1
        assert key not in row["key"]


@pytest.mark.parametrize(
    ("query", "param"),
    [("by=colour", "by"), ("since=soon", "since"), ("until=1e99", "until"), ("a=1", "a")],
)
async def test_a_bad_question_is_told_so(
    gateway: Serve, double: Double, tmp_path: Path, query: str, param: str
) -> None:
    tropilla = await keeping(gateway, tmp_path, double)
    answer = await tropilla.ask("GET", f"/api/usage?{query}")
    assert (answer.status, answer.error["param"]) == (400, param)


async def test_usage_of_a_gateway_that_keeps_none(gateway: Serve, double: Double) -> None:
    answer = await (await gateway(double)).ask("GET", "/api/usage")
    assert answer.status == 404
    assert "accounts.store" in answer.error["message"]


async def test_nothing_is_served_that_could_not_be_accounted_for(
    gateway: Serve, double: Double, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    double.on("/completion", *(streams(*native_told("Hi")) for _ in range(3)))
    monkeypatch.setattr("tropilla.accounts.ledger._RETRY_SECONDS", 0.01)
    told = AccountsConfig(store=f"sqlite:///{tmp_path}/accounts.db", max_spool=300)
    tropilla = await gateway(double, accounts=told)
    kept = accounts(tropilla)
    writes = kept.store.write

    async def fails(*_: Any) -> list[int]:
        raise StoreError("The disk is full.")

    monkeypatch.setattr(kept.store, "write", fails)
    for _ in range(2):
        assert (await tropilla.ask("POST", "/completion", {"prompt": "a"})).status == 200
    refused = await tropilla.ask("POST", "/completion", {"prompt": "a"})
    assert (refused.status, refused.headers["retry-after"]) == (503, "5")
    assert (await tropilla.ask("GET", "/health")).status == 200
    monkeypatch.setattr(kept.store, "write", writes)
    assert kept.ledger._catcher is not None
    await kept.ledger._catcher
    assert (await tropilla.ask("POST", "/completion", {"prompt": "a"})).status == 200
    assert len(await rows(tropilla)) == 3


# The command line.


def shows(path: Path, *arguments: str) -> str:
    done = CliRunner().invoke(main, ["usage", "--store", f"sqlite:///{path}", *arguments])
    assert done.exit_code == 0, done.output
    return done.output


@POSIX
def test_what_was_served_is_shown(tmp_path: Path) -> None:
    file = tmp_path / "accounts.db"
    command = [
        sys.executable,
        "-m",
        "tropilla",
        "serve",
        "--port",
        "0",
        "--store",
        f"sqlite:///{file}",
    ]
    with subprocess.Popen(
        command, stdout=subprocess.PIPE, stderr=subprocess.PIPE, text=True
    ) as one:
        try:
            assert one.stdout is not None
            found = re.search(r"listens on http://([\d.:]+)/v1", one.stdout.readline())
            assert found
            status, body = ask(
                found[1], "POST", PATH, {"messages": [{"role": "user", "content": "Hi"}]}
            )
            assert status == 200
            # What a client has heard the end of is there, whatever becomes of the gateway.
            one.send_signal(signal.SIGKILL)
            one.communicate(timeout=DEADLINE)
        finally:
            one.kill()
    heard = msgspec.json.decode(body)["usage"]
    table = shows(file, "--by", "model")
    assert "tropilla-tiny" in table
    assert f"{heard['completion_tokens']:,}" in table
    (row,) = msgspec.json.decode(shows(file, "--by", "model,dialect", "--json"))
    assert (row["requests"], row["prompt"]) == (1, heard["prompt_tokens"])
    told_csv = list(csv.DictReader(io.StringIO(shows(file, "--by", "day", "--csv"))))
    assert [one["written"] for one in told_csv] == [str(heard["completion_tokens"])]
    assert "Nothing was used" in shows(file, "--model", "another")


def test_what_a_client_calls_a_model_is_no_formula_and_no_markup(tmp_path: Path) -> None:
    import asyncio

    from accounts.test_ledger import record
    from tropilla.accounts.ledger import Ledger
    from tropilla.accounts.spool import Spool
    from tropilla.accounts.store import open_store

    async def fill() -> None:
        store = await open_store(f"sqlite:///{tmp_path}/accounts.db")
        ledger = Ledger(store, Spool(tmp_path / "spool", 1000))
        await ledger.enter(record(model="=1+1[red]"))
        await ledger.close()
        await store.close()

    asyncio.run(fill())
    every = ("--since", "1970-01-01", "--by", "model")
    assert "=1+1[red]" in shows(tmp_path / "accounts.db", *every)
    assert "'=1+1[red]" in shows(tmp_path / "accounts.db", *every, "--csv")


@pytest.mark.parametrize(
    ("arguments", "said"),
    [
        (["--by", "colour"], "none of key, model"),
        (["--since", "soon"], "is no time"),
        (["--store", "none"], "No accounts are kept"),
        (["--store", "mysql://x"], "no store"),
    ],
)
def test_a_bad_option_is_told_so(tmp_path: Path, arguments: list[str], said: str) -> None:
    given = ["usage", "--store", f"sqlite:///{tmp_path}/accounts.db", *arguments]
    done = CliRunner().invoke(main, given)
    assert done.exit_code != 0
    assert said in done.output


def test_a_gateway_that_was_told_of_no_store_serves_without(tmp_path: Path) -> None:
    # A state folder that cannot be made is told of, and is no reason not to serve.
    import asyncio

    from tropilla.config import Config, ConfigError

    (tmp_path / "tropilla").write_text("in the way")
    os_state = os.environ["XDG_STATE_HOME"]
    os.environ["XDG_STATE_HOME"] = str(tmp_path)
    try:
        assert asyncio.run(Accounts.open(Config())) is None
        named = AccountsConfig(store=f"sqlite:///{tmp_path}/tropilla/accounts.db")
        with pytest.raises(ConfigError, match="accounts"):
            asyncio.run(Accounts.open(Config(accounts=named)))
        assert asyncio.run(Accounts.open(Config(accounts=AccountsConfig(store="none")))) is None
    finally:
        os.environ["XDG_STATE_HOME"] = os_state


@POSIX
@pytest.mark.parametrize("named", [False, True])
def test_what_was_said_is_on_a_disk_only_where_a_store_is_named(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, *, named: bool
) -> None:
    monkeypatch.setenv("XDG_STATE_HOME", str(tmp_path))
    path = tmp_path / "tropilla" / "accounts.db"
    settings = tmp_path / "tropilla.yaml"
    settings.write_text(f"accounts: {{store: 'sqlite:///{path}'}}" if named else "{}")
    body = {"model": "tropilla-tiny", "input": "A secret.", "max_output_tokens": 16}
    with serving("--config", str(settings)) as (process, address, _):
        for number in range(2):
            status, told = ask(address, "POST", "/v1/responses", body, {"Idempotency-Key": "one"})
            assert status == 200, number
        id_ = msgspec.json.decode(told)["id"]
        assert ask(address, "GET", f"/v1/responses/{id_}")[0] == 200
        process.terminate()
        process.wait(DEADLINE)
    with closing(sqlite3.connect(path)) as store:
        counts = [
            store.execute(f"SELECT count(*) FROM {table}").fetchone()[0]
            for table in ("requests", "responses", "repeats")
        ]
    assert counts == [1, int(named), int(named)]
