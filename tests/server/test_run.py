"""What a process is made ready for before it serves."""

from __future__ import annotations

import subprocess
import sys

from serving import DEADLINE

BUSY = """
import asyncio, threading, time
from tropilla.server.run import tune

tune()
wanted, done = threading.Event(), []

def write():
    wanted.wait()
    done.append(True)

async def busy():
    threading.Thread(target=write, daemon=True).start()
    for turn in range(10_000):
        if turn == 100:
            wanted.set()
        until = time.perf_counter() + 0.0002
        while time.perf_counter() < until:
            pass
        if done:
            return turn - 100
        await asyncio.sleep(0)
    return None

print(asyncio.run(busy()))
"""


def test_a_thread_has_its_turn_though_the_loop_is_always_busy() -> None:
    done = subprocess.run(
        [sys.executable, "-c", BUSY], capture_output=True, text=True, timeout=DEADLINE, check=True
    )
    # Without its turn it waits for seconds: for all of the 10,000 (with one core, for less).
    assert done.stdout.strip() != "None"
    assert int(done.stdout) < 1_000
