"""The herd's scorecard: `make faults`.

Plays what befalls a herd on four real engines and a real `tropilla serve`, and says of each promise
what was demanded, what was measured, and whether it is kept. With `--controls` everything is played
again, shorter, with the mechanism switched off that a promise is about: it must not be kept then.
"""

from __future__ import annotations

import argparse
import sys
import time
from pathlib import Path
from typing import Any

import msgspec
from rich.console import Console
from rich.table import Table

sys.path.insert(0, str(Path(__file__).parents[1]))

from faults.accounts import accounts
from faults.killing import killing
from faults.leaving import leaving
from faults.overload import flooding, overload
from faults.repeats import repeats
from faults.rolling import rolling
from faults.score import Line, Run, Scenario
from faults.standing import all_down, standing

SCENARIOS: dict[str, Scenario] = {
    one.__name__: one
    for one in (
        killing,
        standing,
        all_down,
        rolling,
        overload,
        flooding,
        leaving,
        accounts,
        repeats,
    )
}
CONTROL_SCALE = 0.1


async def play(names: list[str], scale: float, *, controls: bool) -> list[dict[str, Any]]:
    """Each scenario, and its controls; what they come to."""
    played: list[dict[str, Any]] = []
    for name in names:
        say(f"{name} ...")
        for line in await SCENARIOS[name](Run(scale)):
            say(f"  {line.what} {shown(line)}: {'kept' if line.passed else 'NOT KEPT'}")
            played.append({"scenario": name, **msgspec.to_builtins(line)})
    if controls:
        for name in names:
            wanted = {one["control"] for one in played if one["scenario"] == name}
            for control in sorted(wanted):
                say(f"{name} without {control} ...")
                run = Run(min(scale, CONTROL_SCALE), (control,))
                for line in await SCENARIOS[name](run):
                    if line.control == control:
                        say(f"  {line.what} {shown(line)}: {'KEPT' if line.passed else 'not kept'}")
                        note(played, name, line)
    return played


def note(played: list[dict[str, Any]], name: str, line: Line) -> None:
    """What a line comes to in its control."""
    for one in played:
        if one["scenario"] == name and one["what"] == line.what:
            one["without"] = {"measured": line.measured, "bites": not line.passed}


def shown(line: Line) -> str:
    return number(line.measured, line.unit)


def number(value: float, unit: str) -> str:
    """A number as people write it."""
    if value == float("inf"):
        return "never"
    return f"{value:.3g} {unit}".rstrip() if value < 1000 else f"{value:.0f} {unit}".rstrip()


def scorecard(played: list[dict[str, Any]]) -> Table:
    table = Table("scenario", "promise", "demanded", "measured", "kept", "without", title="Faults")
    for one in played:
        without = one.get("without")
        control = (
            ""
            if without is None
            else f"{one['control']}: {number(without['measured'], one['unit'])}"
        )
        if without is not None and not without["bites"]:
            control += " (KEPT)"
        table.add_row(
            one["scenario"], one["what"], one["demanded"], number(one["measured"], one["unit"]),
            "yes" if one["passed"] else "NO", control,
        )  # fmt: skip
    return table


def say(text: str) -> None:
    sys.stderr.write(f"{text}\n")
    sys.stderr.flush()


def main() -> int:
    parser = argparse.ArgumentParser(description=__doc__, allow_abbrev=False)
    parser.add_argument("scenarios", nargs="*", metavar="SCENARIO", help=", ".join(SCENARIOS))
    parser.add_argument("--scale", type=float, default=1.0, help="0.2: a fifth of the rounds")
    parser.add_argument("--controls", action="store_true", help="play the controls too")
    parser.add_argument(
        "--json", type=Path, metavar="FILE", help="write everything that was measured"
    )
    options = parser.parse_args()
    if unknown := [one for one in options.scenarios if one not in SCENARIOS]:
        parser.error(f"There is no scenario {unknown[0]!r}; there are: {', '.join(SCENARIOS)}.")
    import uvloop

    began = time.monotonic()
    names = options.scenarios or list(SCENARIOS)
    played = uvloop.run(play(names, options.scale, controls=options.controls))
    Console(width=None if sys.stdout.isatty() else 150).print(scorecard(played))
    say(f"{time.monotonic() - began:.0f} s")
    if options.json is not None:
        options.json.write_bytes(msgspec.json.format(msgspec.json.encode(played)))
    bites = all(one.get("without", {"bites": True})["bites"] for one in played)
    return 0 if bites and all(one["passed"] for one in played) else 1


if __name__ == "__main__":
    sys.exit(main())
