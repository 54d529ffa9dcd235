"""Fuzzes a real gateway with the document that it serves of itself.

Schemathesis makes requests out of the schemas, right ones and wrong ones. No answer may be a
failure of the gateway's, and each must be one that the document declares, in its status, its
content type and its schema: a stream event by event. The same seed makes the same requests.
"""

from __future__ import annotations

import os
import subprocess
import sys
import tempfile
from collections.abc import Iterator
from contextlib import ExitStack, contextmanager
from math import ceil
from pathlib import Path
from typing import Any

import msgspec

from clients import stage
from tropilla.config import TINY_MODEL
from tropilla.server import openapi
from tropilla.upstream.engine import EngineOptions

PROGRAM = stage.ROOT / ".venvs" / "fuzz" / "bin" / "schemathesis"
CHECKS = (
    "no_failure_of_ours",
    "status_code_conformance",
    "content_type_conformance",
    "response_schema_conformance",
)
EMBEDDER = "embedder"


@contextmanager
def gateway(folder: Path) -> Iterator[str]:
    """A real `tropilla serve` before two engines: its base URL, once both serve."""
    with ExitStack() as stack:
        loop = stage.Loop()
        stack.callback(loop.stop)
        tiny = EngineOptions(model=TINY_MODEL, alias=stage.MODEL, slots=4)
        embedder = EngineOptions(model=TINY_MODEL, alias=EMBEDDER, embedding=True)
        models = {
            stage.MODEL: stack.enter_context(stage.engine(loop, tiny)),
            EMBEDDER: stack.enter_context(stage.engine(loop, embedder)),
        }
        config = folder / "tropilla.yaml"
        # JSON is YAML.
        config.write_bytes(msgspec.json.encode({"models": models}))
        with stage.serve("--config", str(config)) as base:
            yield base


def _schemathesis(base: str, cases: int, seed: int, report: Path, more: list[str]) -> int:
    """Run schemathesis; what it says goes to who started this."""
    paths = openapi.describe()["paths"].values()
    # A request without a body has one form only: all the others share what is wanted.
    asking = sum("requestBody" in row for rows in paths for row in rows.values())
    command = [
        str(PROGRAM), "run", f"{base}/openapi.json",
        "--header", f"Authorization: Bearer {stage.KEY}",
        "--phases", "fuzzing",
        "--checks", ",".join(CHECKS),
        "--max-examples", str(ceil(cases / asking)),
        "--seed", str(seed),
        "--generation-database", "none",
        "--suppress-health-check", "all",
        "--request-timeout", "30",
        "--warnings", "off",
        "--continue-on-failure",
        "--report", "json", "--report-json-path", str(report),
        *more,
    ]  # fmt: skip
    told = {
        "SCHEMATHESIS_HOOKS": "fuzz.hooks",
        "PYTHONPATH": str(stage.ROOT / "tests"),
        "FUZZ_MODEL": stage.MODEL,
        "FUZZ_EMBEDDER": EMBEDDER,
    }
    return subprocess.run(command, check=False, cwd=report.parent, env=os.environ | told).returncode


def fuzz(cases: int, seed: int, more: list[str]) -> bool:
    """So many cases; whether all went well. What is more is schemathesis's."""
    with tempfile.TemporaryDirectory() as folder:
        report = Path(folder) / "report.json"
        with gateway(Path(folder)) as base:
            status = _schemathesis(base, cases, seed, report, more)
        told: Any = msgspec.json.decode(report.read_bytes()) if report.exists() else {}
    made = told.get("test_cases", {}).get("generated", 0)
    if made < cases and not more:
        sys.stderr.write(f"Only {made} of {cases} cases were tried.\n")
        return False
    return status == 0
