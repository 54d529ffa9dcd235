"""`make audit`: look up what is known against the locked packages.

pip-audit ends well where nobody could tell it anything: "no known vulnerabilities". Here that is
no success: a package that was not looked up is told, and the end is another one (2) than where
something is known (1).
"""

from __future__ import annotations

import json  # noqa: TID251 - the environment of the audit has no msgspec
import subprocess
import sys
from pathlib import Path
from typing import Any

FOUND, UNKNOWN = 1, 2


def verdict(report: dict[str, Any]) -> tuple[int, list[str]]:
    """How an audit of one file ends, and what there is to tell, by pip-audit's report in JSON."""
    packages = report["dependencies"]
    lines = [
        f"{one['name']} {one['version']}: {known['id']}, mended in "
        f"{', '.join(known['fix_versions']) or 'no version yet'}"
        for one in packages
        for known in one.get("vulns", ())
    ]
    missed = [one["name"] for one in packages if "skip_reason" in one]
    if missed:
        lines.append(
            f"{len(missed)} of {len(packages)} packages could not be looked up: the service that "
            "knows of vulnerabilities does not answer from here. NOTHING IS KNOWN of them."
        )
    if not packages:
        return UNKNOWN, ["There is no package in it."]
    if len(lines) > bool(missed):
        return FOUND, lines
    return (UNKNOWN, lines) if missed else (0, [f"Nothing is known against {len(packages)}."])


def audit(file: str) -> tuple[int, list[str]]:
    """Look up the packages of one locked file."""
    tool = Path(sys.executable).with_name("pip-audit")
    command = [str(tool), "--disable-pip", "--require-hashes", "--requirement", file]
    command += ["--format", "json", "--progress-spinner", "off", "--timeout", "15"]
    done = subprocess.run(command, capture_output=True, text=True, check=False)  # noqa: S603
    try:
        return verdict(json.loads(done.stdout))
    except ValueError:
        last = (done.stderr.strip() or "pip-audit said nothing").splitlines()[-1]
        return UNKNOWN, [f"It could not be looked up: {last}"]


def main(files: list[str]) -> int:
    """Audit these files; 0 if all was looked up, and nothing is known against it."""
    ends = set()
    for file in files:
        end, lines = audit(file)
        ends.add(end)
        for line in lines:
            print(f"{file}: {line}")
    return FOUND if FOUND in ends else max(ends, default=UNKNOWN)


if __name__ == "__main__":
    sys.exit(main(sys.argv[1:]))
