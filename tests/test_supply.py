"""What is delivered: the wheel holds what it should and nothing else, and audits do not flatter."""

from __future__ import annotations

import csv
import hashlib
import importlib.util
import io
import re
import shutil
import subprocess
import sys
import zipfile
from collections.abc import Callable, Iterator
from email.parser import Parser
from pathlib import Path
from typing import Any

import pytest

ROOT = Path(__file__).parents[1]
SOURCE = ROOT / "src"
EXPECTED = {
    "tropilla/py.typed", "tropilla/herd/design.md", "tropilla/models/README.md",
    "tropilla/models/tiny.gguf",
}  # fmt: skip
"""All that is no Python."""
METADATA = {"METADATA", "WHEEL", "RECORD", "entry_points.txt", "licenses/LICENSE"}


@pytest.fixture(scope="module")
def wheel(tmp_path_factory: pytest.TempPathFactory) -> Iterator[zipfile.ZipFile]:
    """The wheel, made as pip makes it."""
    folder = tmp_path_factory.mktemp("wheel")
    command = [sys.executable, "-m", "hatchling", "build", "--target", "wheel", "-d", str(folder)]
    subprocess.run(command, cwd=ROOT, check=True, capture_output=True)
    (path,) = folder.iterdir()
    assert re.fullmatch(r"tropilla-[\d.a-z]+-py3-none-any\.whl", path.name)
    with zipfile.ZipFile(path) as opened:
        yield opened


def info(wheel: zipfile.ZipFile, name: str) -> str:
    (found,) = (one for one in wheel.namelist() if one.endswith(f".dist-info/{name}"))
    return wheel.read(found).decode()


def test_it_holds_the_package_and_nothing_else(wheel: zipfile.ZipFile) -> None:
    names = set(wheel.namelist())
    assert len(names) == len(wheel.namelist()), "each once"
    metadata = {one for one in names if re.match(r"tropilla-[^/]+\.dist-info/", one)}
    assert {one.partition("/")[2] for one in metadata} == METADATA
    kinds = (
        "**/*.py", "accounts/store/migrations/*.sql", "accounts/valkey/*.lua",
        "dashboard/pages/*.html",
        "dashboard/static/*.*",
    )  # fmt: skip
    code = [path for kind in kinds for path in (SOURCE / "tropilla").glob(kind)]
    found = {path.relative_to(SOURCE).as_posix() for path in code}
    assert names - metadata == found | EXPECTED


def test_what_others_wrote_for_browsers_is_what_it_says(wheel: zipfile.ZipFile) -> None:
    # As npm has them; LICENSES.txt tells which, and under what.
    expected = {
        "htmx.min.js": "a0abb04f2f45a1f89d1d4844023245537e5e6014c87b144553e0607b4cc32130",
        "uplot.min.js": "19c8d4c6ad88929a79f4ae49d6f7161566dfd0ba3d15cc495e974f787eb78f1f",
        "uplot.min.css": "df630c6a8d6f8eeaff264b50f73ce5b114f646ffd9a0bb74f049b0a00135fa04",
    }
    place = "tropilla/dashboard/static/"
    for name, digest in expected.items():
        assert hashlib.sha256(wheel.read(place + name)).hexdigest() == digest
    told = wheel.read(place + "LICENSES.txt").decode()
    for words in ("htmx.org 4.0.1", "uPlot 1.6.32", "Zero-Clause BSD", "The MIT License"):
        assert words in told
    vendored = {one for one in wheel.namelist() if one.startswith(place) and ".min." in one}
    assert vendored == {place + name for name in expected}


def test_nothing_in_it_runs_by_itself(wheel: zipfile.ZipFile) -> None:
    for one in wheel.infolist():
        assert not one.filename.endswith((".pth", ".so", ".pyd", ".dll", ".exe", ".pyc"))
        assert not re.search(
            r"(^|/)(\.\.|\.|sitecustomize\.py|usercustomize\.py)(/|$)", one.filename
        )
        kind = one.external_attr >> 28
        assert kind in {0, 0o10}, "a plain file, and no link"
    assert "Root-Is-Purelib: true" in info(wheel, "WHEEL")
    assert info(wheel, "entry_points.txt").split() == [
        "[console_scripts]", "tropilla", "=", "tropilla.cli:main",
    ]  # fmt: skip


def test_it_is_what_its_record_says(wheel: zipfile.ZipFile) -> None:
    rows = {row[0]: row[1:] for row in csv.reader(io.StringIO(info(wheel, "RECORD")))}
    assert rows.keys() == set(wheel.namelist())
    unhashed = [name for name, (digest, _) in rows.items() if not digest.startswith("sha256=")]
    assert [one.rpartition("/")[2] for one in unhashed] == ["RECORD"]


def test_it_wants_only_what_is_named(wheel: zipfile.ZipFile) -> None:
    metadata = Parser().parsestr(info(wheel, "METADATA"))
    wanted = metadata.get_all("Requires-Dist", [])
    served = [one for one in wanted if "extra ==" not in one or "engine" in one]
    for file, some in (("serve.txt", served), ("dev.txt", wanted)):
        locked = (ROOT / "requirements" / file).read_text(encoding="utf-8")
        names = {re.split(r"[^a-z0-9-]", one)[0] for one in some}
        assert names <= set(re.findall(r"^([a-z0-9-]+)==", locked, re.MULTILINE))
    assert not any("@" in one for one in metadata.get_all("Requires-Dist", [])), "no addresses"


LOCKS = [
    path.relative_to(ROOT).as_posix()
    for folder in ("requirements", "bench", "tests", "tools")
    for path in sorted((ROOT / folder).rglob("*.txt"))
    if path.parent.name == "requirements" or path.name == "requirements.txt"
]


@pytest.mark.parametrize("lock", LOCKS)
def test_what_is_locked_is_held_by_hashes_and_says_no_place(lock: str) -> None:
    text = (ROOT / lock).read_text(encoding="utf-8")
    assert "://" not in text
    packages = re.split(r"^(?=[a-z])", text, flags=re.MULTILINE)[1:]
    assert packages
    for one in packages:
        assert "==" in one.splitlines()[0]
        assert "--hash=sha256:" in one


@pytest.mark.skipif(shutil.which("make") is None, reason="there is no make here")
def test_every_lock_is_audited() -> None:
    # What would be run.
    command = ["make", "--dry-run", "--assume-old=.venvs/audit/.done", "audit"]
    done = subprocess.run(command, cwd=ROOT, capture_output=True, text=True, check=True)
    (line,) = (one for one in done.stdout.splitlines() if "tools/audit/run.py" in one)
    asked = line.partition("run.py")[2].split()
    audited = {path.relative_to(ROOT).as_posix() for one in asked for path in ROOT.glob(one)}
    assert audited == set(LOCKS)


# The audit.


@pytest.fixture(scope="module")
def verdict() -> Callable[[dict[str, Any]], tuple[int, list[str]]]:
    spec = importlib.util.spec_from_file_location("audit", ROOT / "tools" / "audit" / "run.py")
    assert spec is not None
    assert spec.loader is not None
    module = importlib.util.module_from_spec(spec)
    spec.loader.exec_module(module)
    found: Callable[[dict[str, Any]], tuple[int, list[str]]] = module.verdict
    return found


FINE = {"name": "a", "version": "1", "vulns": []}
BAD = {"name": "b", "version": "1", "vulns": [{"id": "CVE-1", "fix_versions": ["2"]}]}
MISSED = {"name": "c", "skip_reason": "Dependency not found on PyPI and could not be audited"}


@pytest.mark.parametrize(
    ("packages", "end", "told"),
    [
        ([FINE], 0, "Nothing is known against 1."),
        ([FINE, BAD], 1, "b 1: CVE-1, mended in 2"),
        ([FINE, MISSED], 2, "1 of 2 packages could not be looked up"),
        ([MISSED, MISSED], 2, "NOTHING IS KNOWN"),
        ([BAD, MISSED], 1, "CVE-1"),
        ([], 2, "no package"),
    ],
)
def test_how_an_audit_ends(
    verdict: Callable[[dict[str, Any]], tuple[int, list[str]]],
    packages: list[dict[str, Any]],
    end: int,
    told: str,
) -> None:
    found, lines = verdict({"dependencies": packages})
    assert found == end
    assert told in "\n".join(lines)
