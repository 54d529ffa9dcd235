"""What a limit costs a request, in memory: microseconds of CPU, the best of several rounds.

    python -m bench.limits

A request is admitted, settled and over, as the gateway does it; looking up its key and making the
headers are told apart.
"""

from __future__ import annotations

import asyncio
import sys
import time
from collections.abc import Awaitable, Callable

from tropilla.accounts.admission import Admission, Need
from tropilla.accounts.keys import Keys, of_config
from tropilla.accounts.limits import Amount, Hold, Scope, cap
from tropilla.accounts.meters.memory import Memory
from tropilla.config import (
    AccountsConfig,
    BudgetConfig,
    Config,
    KeyConfig,
    LimitsConfig,
    TeamConfig,
)
from tropilla.record import Record

ROUNDS = 7
TIMES = 5_000
LIMITS = LimitsConfig(requests=10**9, tokens=10**12, concurrent=10**6)
BUDGETS = (BudgetConfig(money=10**6, per="month"),)


async def _best(work: Callable[[], Awaitable[None]]) -> float:
    best = float("inf")
    for _ in range(ROUNDS):
        began = time.process_time()
        for _ in range(TIMES):
            await work()
        best = min(best, (time.process_time() - began) / TIMES)
    return best * 1e6


async def main() -> None:
    """Measure, and print a line for each."""
    meter = Memory()
    key = Scope("key/a", LIMITS, tuple(cap(one) for one in BUDGETS))
    team = Scope("team/t", LIMITS)
    most, used = Amount(1, 500, 900, 5_000), Amount(1, 300, 300, 3_000)

    def metered(*scopes: Scope) -> Callable[[], Awaitable[None]]:
        async def work() -> None:
            hold = await meter.reserve(scopes, most)
            if isinstance(hold, Hold):
                meter.settle(hold, used)
                meter.release(hold)

        return work

    told = KeyConfig(key="k", team="t", limits=LIMITS, budgets=BUDGETS)
    accounts = AccountsConfig(
        store="none", keys={"a": told}, teams={"t": TeamConfig(limits=LIMITS)}
    )
    config = Config(accounts=accounts)
    admission = Admission(config, Memory())
    account = of_config("a", told)

    async def admitted() -> None:
        record = Record("r", "POST", "/", 0.0)
        await admission.admit(account, record, "m", lambda: Need(100, 300, 1, 200))
        record.prompt, record.written = 90, 150
        await admission.enter(record)
        admission.over(record)

    async def standing() -> None:
        admission.standing(account)

    keys, headers = Keys((), accounts), {b"authorization": b"Bearer k"}

    async def found() -> None:
        keys.find(headers, 0.0)

    for name, work in (
        ("a key: requests, tokens, at once, a budget", metered(key)),
        ("the same, and a team with three limits", metered(key, team)),
        ("both, with the record and the prices", admitted),
        ("the headers of both", standing),
        ("looking up a key", found),
    ):
        sys.stdout.write(f"{await _best(work):6.2f} us  {name}\n")


if __name__ == "__main__":
    asyncio.run(main())
