"""Lets atheris look for bytes that a target fails at: `explore.py TARGET CORPUS [libFuzzer's]`.

It sees which of Tropilla's branches an input takes, and keeps those that take new ones. Half of
the changes are libFuzzer's own, half are `mutate`'s.
"""

from __future__ import annotations

import random
import sys
from pathlib import Path

import atheris  # type: ignore[import-not-found,import-untyped,unused-ignore]

sys.path.insert(0, str(Path(__file__).parents[1]))
sys.path.insert(0, str(Path(__file__).parents[2] / "src"))

from fuzz.mutate import mutated

with atheris.instrument_imports(include=["tropilla"]):
    from fuzz.targets import targets

    targets()  # which imports each dialect

MOST = 16_384
"""Bytes of one input."""


def change(data: bytes, most: int, seed: int) -> bytes:
    """Another input out of one."""
    chance = random.Random(seed)
    if chance.random() < 0.5:
        changed: bytes = atheris.Mutate(data, most)
        return changed
    return mutated(data, chance)[:most]


def main() -> None:
    name, corpus, *more = sys.argv[1:]
    target = targets()[name]
    for number, seed in enumerate(target.seeds):
        Path(corpus, f"seed-{number}").write_bytes(seed)
    told = [sys.argv[0], f"-max_len={MOST}", "-timeout=10", "-rss_limit_mb=1024", *more, corpus]
    atheris.Setup(told, target.run, custom_mutator=change)
    atheris.Fuzz()


if __name__ == "__main__":
    main()
