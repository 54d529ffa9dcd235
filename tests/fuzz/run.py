"""Fuzzes what reads bytes of others: `make fuzz`, which has three parts.

`document`: requests that schemathesis makes out of the gateway's own document, `--cases` of them.
`parsers`: atheris on everything that reads bytes (`targets`), `--runs` inputs for each.
`requests`: `--requests` requests that are each a little wrong, at a gateway with real engines.
The same seed makes the same. What follows `--` is for schemathesis.
"""

from __future__ import annotations

import argparse
import sys
from pathlib import Path

sys.path.insert(0, str(Path(__file__).parents[1]))

from fuzz import document, parsers, sending

PARTS = ("document", "parsers", "requests")


def main() -> int:
    own, more = sys.argv[1:], list[str]()
    if "--" in own:
        own, more = own[: own.index("--")], own[own.index("--") + 1 :]
    parser = argparse.ArgumentParser(description=__doc__, allow_abbrev=False)
    parser.add_argument("parts", nargs="*", metavar="PART", help=", ".join(PARTS))
    parser.add_argument("--cases", type=int, default=5000)
    parser.add_argument("--runs", type=int, default=50_000)
    parser.add_argument("--requests", type=int, default=1_000_000)
    parser.add_argument("--seed", type=int, default=1)
    options = parser.parse_args(own)
    if unknown := [one for one in options.parts if one not in PARTS]:
        parser.error(f"There is no part {unknown[0]!r}; there are: {', '.join(PARTS)}.")
    parts = options.parts or PARTS
    seed, well = options.seed, True
    if "document" in parts:
        well &= document.fuzz(options.cases, seed, more)
    if "parsers" in parts:
        well &= parsers.fuzz(options.runs, seed)
    if "requests" in parts:
        well &= sending.fuzz(options.requests, seed)
    return 0 if well else 1


if __name__ == "__main__":
    sys.exit(main())
