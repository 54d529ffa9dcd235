"""Runs atheris on every target: each in a process of its own, one for each core at once."""

from __future__ import annotations

import os
import re
import subprocess
import sys
import tempfile
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path

from fuzz.targets import targets

ROOT = Path(__file__).parents[2]
PROGRAM = ROOT / ".venvs" / "fuzz" / "bin" / "python"
_EXPLORE = Path(__file__).with_name("explore.py")


def fuzz(runs: int, seed: int) -> bool:
    """So many inputs for each target; whether none failed. What failed is printed, and kept."""
    if sys.platform != "linux":
        sys.stderr.write("There is no atheris for this system: the parsers are not fuzzed.\n")
        return True
    with ThreadPoolExecutor(len(os.sched_getaffinity(0))) as pool:
        return all([*pool.map(lambda name: _explore(name, runs, seed), targets())])


def _explore(name: str, runs: int, seed: int) -> bool:
    kept = ROOT / "dist" / "fuzz"
    kept.mkdir(parents=True, exist_ok=True)
    with tempfile.TemporaryDirectory() as corpus:
        command = [
            str(PROGRAM), str(_EXPLORE), name, corpus,
            f"-runs={runs}", f"-seed={seed}", f"-artifact_prefix={kept}/{name}-",
        ]  # fmt: skip
        done = subprocess.run(
            command, check=False, capture_output=True, text=True, errors="replace"
        )
    branches = re.findall(r"DONE +cov: (\d+)", done.stderr)
    well = done.returncode == 0 and bool(branches)
    if well:
        sys.stdout.write(f"{name}: {runs} inputs, {branches[0]} branches\n")
    else:
        sys.stdout.write(f"{name} FAILED:\n{done.stdout[-4000:]}\n{done.stderr[-4000:]}\n")
    sys.stdout.flush()
    return well
