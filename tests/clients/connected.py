"""What `tropilla connect` prints, run with the clients that it is for."""

from __future__ import annotations

import os
import subprocess
import tempfile
from pathlib import Path

from clients import stage

ENVIRONMENTS = stage.ROOT / ".venvs"
SECONDS = 90.0
WHERE = {
    "openai-python": "openai3",
    "langchain": "frameworks",
    "llamaindex": "frameworks",
    "llm": "llm",
    "openai-node": "node-v7",
    "ai-sdk": "node-ai_sdk",
}
"""The environment of each client."""


def try_connected(base: str) -> dict[str, str]:
    """Why each of the clients answered nothing; an empty text is fine."""
    found = {}
    for name, folder in WHERE.items():
        if folder.startswith("node-") and not (ENVIRONMENTS / folder / ".done").exists():
            found[name] = "its environment is not there: node and npm make it"
            continue
        with tempfile.TemporaryDirectory() as home:
            found[name] = _try(name, ENVIRONMENTS / folder, base, Path(home))
    return found


def _try(name: str, environment: Path, base: str, home: Path) -> str:
    llm = name == "llm"
    told = [str(stage.ROOT / ".venv" / "bin" / "tropilla"), "connect", name, "--url", base,
            "--model", stage.MODEL, *(("--write", "--yes") if llm else ())]  # fmt: skip
    variables = {
        "HOME": str(home),
        "LLM_USER_PATH": str(home),
        "PATH": f"{environment / 'bin'}{os.pathsep}{os.environ['PATH']}",
        "TROPILLA_API_KEY": stage.KEY,
        "NO_PROXY": "127.0.0.1",
    }
    try:
        printed = subprocess.run(
            told, env=variables, capture_output=True, text=True, timeout=SECONDS, check=True
        ).stdout
        done = subprocess.run(
            _command(printed, environment), env=variables, stdin=subprocess.DEVNULL,
            capture_output=True, text=True, timeout=SECONDS, check=False,
        )  # fmt: skip
    except (OSError, subprocess.SubprocessError) as error:
        return str(error)
    if done.returncode or not done.stdout.strip():
        return done.stderr.strip().rpartition("\n")[2] or f"it ended with {done.returncode}"
    return ""


def _command(printed: str, environment: Path) -> list[str]:
    """What runs the first thing that was printed; of what has a file of settings, all."""
    if environment.name == "llm":
        return ["sh", "-ec", "\n".join(one for one in printed.splitlines() if one[:4] == "llm ")]
    code = printed.partition("\n\n")[2].partition("\n\nOr ")[0]
    node = environment.name.startswith("node-")
    script = environment / ("connected.mjs" if node else "connected.py")
    script.write_text(code, encoding="utf-8")
    return ["node" if node else str(environment / "bin" / "python"), str(script)]
