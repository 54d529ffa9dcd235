"""Everything that reads bytes of others, with right bytes and with some hundreds of wrong ones.

`make fuzz` looks for more of them, guided by what they reach.
"""

from __future__ import annotations

import random

import msgspec
import pytest

from fuzz.mutate import mutated
from fuzz.sending import seeds
from fuzz.targets import targets
from tropilla import dialects, measures
from tropilla.server.routes import Forward, table

WRONG = 300


@pytest.mark.parametrize("name", targets())
def test_whatever_comes_is_read_or_refused(name: str) -> None:
    target = targets()[name]
    assert target.seeds
    for seed in target.seeds:
        target.run(seed)
    chance = random.Random(name)
    for _ in range(WRONG):
        target.run(mutated(chance.choice(target.seeds), chance))


def test_nothing_that_reads_is_left_out() -> None:
    readers = {(name, kind) for name in dialects.names()
               for kind in ("request", "stream", "answer", "problem")}  # fmt: skip
    readers |= {(name, kind) for name in measures.names() for kind in ("request", "answer")}
    assert {tuple(name.split(".")) for name in targets()} >= readers


def test_every_path_is_sent_to_but_an_administrators() -> None:
    asked = {(method, path) for method, path, _ in seeds()}
    for path, methods in table().items():
        for method, action in methods.items():
            admin = isinstance(action, Forward) and action.admin
            assert ((method, path) in asked) is not admin


def test_most_of_what_is_made_wrong_is_json_still() -> None:
    chance, whole = random.Random(1), 0
    seed = msgspec.json.encode({"messages": [{"role": "user", "content": "x"}], "n": 1})
    for _ in range(WRONG):
        try:
            msgspec.json.decode(mutated(seed, chance))
        except (msgspec.DecodeError, UnicodeDecodeError):
            continue
        whole += 1
    assert WRONG / 2 < whole < WRONG
