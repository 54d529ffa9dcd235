"""Tries real SDKs on a real gateway: `make clients`.

Each client is a program in an environment of its own. It is told the addresses in its environment,
and prints a line for its version and one for each check: `version 3.54.0`, `ok GROUP: NAME`,
`FAIL GROUP: NAME: why`.
"""

from __future__ import annotations

import os
import re
import shutil
import subprocess
import sys
import tempfile
import time
from collections import Counter
from dataclasses import dataclass, field
from pathlib import Path

sys.path.insert(0, str(Path(__file__).parents[1]))

from clients import connected, stage

HERE = Path(__file__).parent
ENVIRONMENTS = stage.ROOT / ".venvs"
PAGE = stage.ROOT / "docs" / "clients.md"
MADE = "<!-- made by `make clients ARGS=--write`: all that follows -->\n"
CLIENT_SECONDS = 90.0
OLDEST_NODE = 20


@dataclass(frozen=True)
class Client:
    """An SDK, and how to start the program that tries it."""

    name: str
    folder: str
    """Of its environment, below `.venvs`."""
    program: str
    """A folder below `tests/clients`."""
    page: str = "clients.md"
    """Whose examples are run with it."""

    @property
    def is_node(self) -> bool:
        return self.program.endswith("_node")

    @property
    def home(self) -> Path:
        return ENVIRONMENTS / self.folder

    def command(self) -> list[str]:
        if not self.is_node:
            return [str(self.home / "bin" / "python"), "-m", f"clients.{self.program}"]
        # Node looks for packages beside the script, not where it is started.
        for script in (*HERE.glob("*.mjs"), *(HERE / self.program).glob("*.mjs")):
            shutil.copy(script, self.home)
        return ["node", str(self.home / "main.mjs")]

    def example(self, code: str) -> list[str]:
        """How to run an example of the page."""
        script = self.home / f"example.{'mjs' if self.is_node else 'py'}"
        script.write_text(code, encoding="utf-8")
        return ["node" if self.is_node else str(self.home / "bin" / "python"), str(script)]


CLIENTS = [
    Client("openai (Python) 2.x", "openai2", "openai_python"),
    Client("openai (Python) 3.x", "openai3", "openai_python"),
    Client("openai (Node) 6.x", "node-v6", "openai_node"),
    Client("openai (Node) 7.x", "node-v7", "openai_node"),
    Client("anthropic (Python) 0.x", "anthropic0", "anthropic_python", "anthropic.md"),
    Client("anthropic (Python) 2.x", "anthropic2", "anthropic_python", "anthropic.md"),
    Client("@anthropic-ai/sdk (Node) 1.x", "node-anthropic", "anthropic_node", "anthropic.md"),
    Client("ollama (Python) 0.6", "ollama", "ollama_python", "ollama.md"),
    Client("ollama (Node) 0.6", "node-ollama", "ollama_node", "ollama.md"),
]


@dataclass
class Result:
    """What became of one client."""

    client: Client
    version: str = "?"
    passed: list[str] = field(default_factory=list)
    failed: list[str] = field(default_factory=list)
    skipped: str = ""
    seconds: float = 0


def say(text: str = "") -> None:
    sys.stdout.write(f"{text}\n")
    sys.stdout.flush()


def why_no_node() -> str:
    """Why the Node clients cannot be tried here; nothing if they can."""
    if not (shutil.which("node") and shutil.which("npm")):
        return "node and npm are not on this machine"
    told = subprocess.run(["node", "--version"], capture_output=True, text=True, check=True).stdout
    if int(told.lstrip("v").split(".")[0]) < OLDEST_NODE:
        return f"node {told.strip()} is older than {OLDEST_NODE}"
    return ""


def try_examples(result: Result, base: str) -> None:
    """What the page of a client shows, as it is there but for the address and the key."""
    page = (PAGE.parent / result.client.page).read_text(encoding="utf-8")
    language = "js" if result.client.is_node else "python"
    for code in re.findall(rf"^```{language}\n(.*?)^```", page, re.DOTALL | re.MULTILINE):
        line = page[: page.index(code)].count("\n") + 1
        here = re.sub(r'\bnone"', f'{stage.KEY}"', code.replace("http://127.0.0.1:8081", base))
        try:
            done = subprocess.run(
                result.client.example(here), stdin=subprocess.DEVNULL, capture_output=True,
                text=True, timeout=CLIENT_SECONDS, check=False,
            )  # fmt: skip
        except (OSError, subprocess.TimeoutExpired) as error:
            result.failed.append(f"examples: line {line}: {error}")
            continue
        if done.returncode or not done.stdout.strip():
            told = [one for one in done.stderr.splitlines() if "Error" in one]
            why = told[-1] if told else f"it ended with {done.returncode}"
            result.failed.append(f"examples: line {line}: {why}")
        else:
            result.passed.append(f"examples: line {line}")


def try_client(client: Client, base: str) -> Result:
    result = Result(client)
    if client.is_node and (why := why_no_node()):
        result.skipped = why
        return result
    since = time.monotonic()
    with stage.flaky(base) as unsteady, stage.closed() as refusing:
        environment = {
            **os.environ,
            "TROPILLA_ROOT": base,
            "TROPILLA_BASE": f"{base}/v1",
            "TROPILLA_FLAKY": f"{unsteady}/v1",
            "TROPILLA_CLOSED": f"{refusing}/v1",
            "TROPILLA_KEY": stage.KEY,
            "TROPILLA_MODEL": stage.MODEL,
            "TROPILLA_ALIAS": stage.ALIAS,
            "TROPILLA_MAX_BODY": str(stage.MAX_BODY),
            "NO_PROXY": "127.0.0.1",
            "no_proxy": "127.0.0.1",
        }
        try:
            done = subprocess.run(
                client.command(), env=environment, stdin=subprocess.DEVNULL, cwd=HERE.parent,
                stdout=subprocess.PIPE, text=True, timeout=CLIENT_SECONDS, check=False,
            )  # fmt: skip
        except (OSError, subprocess.TimeoutExpired) as error:
            result.failed.append(f"the program: {error}")
            return result
    for line in done.stdout.splitlines():
        word, _, rest = line.partition(" ")
        if word == "version":
            result.version = rest
        elif word == "ok":
            result.passed.append(rest)
        elif word == "FAIL":
            result.failed.append(rest)
    if done.returncode and not result.failed:
        result.failed.append(f"the program: ended with {done.returncode}, see above")
    if not result.passed and not result.failed:
        result.failed.append("the program: checked nothing")
    try_examples(result, base)
    result.seconds = time.monotonic() - since
    return result


def table(results: list[Result]) -> list[str]:
    """A row a client, a column a group of checks: how many of them it passed (docs/clients.md)."""
    of = [Counter(one.partition(":")[0] for one in result.passed) for result in results]
    all_of = [
        of_it + Counter(one.partition(":")[0] for one in result.failed)
        for of_it, result in zip(of, results, strict=True)
    ]
    groups = list(dict.fromkeys(group for one in all_of for group in one))
    rows = [["client", "version", *groups, "all"]]
    for result, passed, every in zip(results, of, all_of, strict=True):
        cells = [f"{passed[group]}/{every[group]}" if every[group] else "" for group in groups]
        total = f"{passed.total()}/{every.total()}"
        rows.append([result.client.name, result.version, *cells, result.skipped or total])
    return [f"| {' | '.join(row)} |" for row in [rows[0], ["---"] * len(rows[0]), *rows[1:]]]


def main() -> int:
    """All clients, or those whose folders are named; `--write` puts the table into the page."""
    named = [argument for argument in sys.argv[1:] if argument != "--write"]
    chosen = [one for one in CLIENTS if one.folder in named] if named else CLIENTS
    if not chosen:
        say(f"No such client. There are: {', '.join(one.folder for one in CLIENTS)}")
        return 2
    try:
        with tempfile.TemporaryDirectory() as folder, stage.gateway(Path(folder)) as base:
            results = [try_client(client, base) for client in chosen]
            lost = {} if named else connected.try_connected(base)
    except RuntimeError as error:
        say(str(error))
        return 1
    for result in results:
        for reason in result.failed:
            say(f"FAIL {result.client.folder}: {reason}")
    for name, reason in lost.items():
        say(f"FAIL connect {name}: {reason}" if reason else f"ok connect {name}")
    rows = "\n".join(table(results))
    say(rows)
    if "--write" in sys.argv:
        before = PAGE.read_text(encoding="utf-8").partition(MADE)[0]
        PAGE.write_text(f"{before}{MADE}\n{rows}\n", encoding="utf-8")
    say(f"{sum(result.seconds for result in results):.0f} s")
    return 1 if any(result.failed for result in results) or any(lost.values()) else 0


if __name__ == "__main__":
    raise SystemExit(main())
