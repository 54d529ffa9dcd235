"""How a client's program tells of its checks, in an environment without Tropilla."""

from __future__ import annotations

import sys
import traceback
from collections.abc import Callable, Iterable
from typing import TypeVar

Client = TypeVar("Client")


def tell_all(
    version: str,
    checks: Iterable[tuple[str, Callable[[Client], None]]],
    connect: Callable[[], Client],
) -> int:
    """Do the checks of every group, each with a client of its own; 1 if one has failed."""
    say = sys.stdout.write
    say(f"version {version}\n")
    failures = 0
    for group, check in checks:
        name = f"{group}: {check.__name__.replace('_', ' ')}"
        try:
            check(connect())
        except Exception as error:  # noqa: BLE001 - whatever it is, the others are tried too
            failures += 1
            trace = traceback.extract_tb(error.__traceback__)
            lines = [one.lineno for one in trace if one.filename == check.__code__.co_filename]
            why = " ".join(str(error).split())[:300]
            place = lines[-1] if lines else "?"
            say(f"FAIL {name}: line {place}: {type(error).__name__} {why}\n")
        else:
            say(f"ok {name}\n")
        sys.stdout.flush()
    return 1 if failures else 0
