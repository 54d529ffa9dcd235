"""Sends very many requests, each a little wrong, to a real gateway before four real engines.

What is changed is the body, mostly; or the target, or any bytes of the head. No answer may be a
failure of the gateway's, none may be missing, and the memory may not grow by 32 MiB.
"""

from __future__ import annotations

import asyncio
import random
import sys
import time
from collections import Counter
from contextlib import suppress

import msgspec

from bodies import BODIES, for_path
from faults.stage import Gateway, gateway, herd
from fuzz.bounds import bound
from fuzz.mutate import mutated
from fuzz.targets import MEASURED, targets
from soak.crowd import Line
from tropilla.dialects._beside import Page
from tropilla.server.routes import Count, Forward, Generate, Measure, Own, View, table

MOST_GROWN = 32 * 2**20
_AT_ONCE = 48
_PATIENCE = 60.0
_GLANCE = 0.2
"""Seconds for an answer to what may be half of a request."""
_SAMPLES = 20
_SHOWN = 20
_PASSED_ON: dict[str, list[bytes]] = {
    "/tokenize": [b'{"content":"Once","with_pieces":true}'],
    "/detokenize": [b'{"tokens":[1,2]}'],
    "/apply-template": [b'{"messages":[{"role":"user","content":"x"}]}'],
}


def seeds() -> list[tuple[str, str, bytes]]:
    """Right requests: method, path and body, of every route that is no administrator's."""
    found: list[tuple[str, str, bytes]] = []
    for path, methods in table().items():
        for method, action in methods.items():
            bodies: list[bytes] = [b""]
            match action:
                case Generate():
                    recorded = targets()[f"{action.dialect}.request"].seeds
                    own = (msgspec.json.encode(one) for one in for_path(path))
                    bodies = [*own, *recorded]
                case Measure():
                    bodies = [msgspec.json.encode(MEASURED[action.name])]
                case Count():
                    bodies = [
                        msgspec.json.encode(one)
                        for one in for_path(action.counter.of.removesuffix("/count_tokens"))
                    ]
                case Forward(admin=True):
                    bodies = []
                case Forward() if method == "POST":
                    bodies = _PASSED_ON.get(path, [b'{"content":"x"}'])
                case Own() if method == "POST":
                    bodies = [msgspec.json.encode(one) for one in BODIES["/chat/completions"]]
            found += [(method, path, body) for body in bodies]
    return found


class Sender:
    """Sends to a port; the same seed makes the same requests."""

    def __init__(self, port: int, requests: int, seed: int) -> None:
        self._port = port
        self._left = requests
        self._chance = random.Random(seed)
        self._seeds = seeds()
        self._passed_on, self._never_done = set[str](), set[bytes]()
        for path, methods in table().items():
            for action in methods.values():
                match action:
                    case Forward():
                        self._passed_on.add(path)
                    case View(page=Page(answer=str(why))):
                        self._never_done.add(why.encode())
        self.heard: Counter[str] = Counter()
        self.failures: list[str] = []

    @property
    def sent(self) -> int:
        """How many were sent."""
        return self.heard.total()

    async def send(self) -> None:
        """Send all of them."""
        async with asyncio.TaskGroup() as group:
            for _ in range(_AT_ONCE):
                group.create_task(self._one_after_the_other())

    async def _one_after_the_other(self) -> None:
        line: Line | None = None
        while self._left > 0:
            self._left -= 1
            data, framed = self._next()
            if line is None:
                line = Line(*await asyncio.open_connection("127.0.0.1", self._port))
            line.writer.write(data)
            try:
                async with asyncio.timeout(_PATIENCE if framed else _GLANCE):
                    status, body = await line.answer()
            except (OSError, asyncio.IncompleteReadError, TimeoutError) as error:
                self.heard["none"] += 1
                if framed:
                    self._fail(f"no answer ({error!r})", data)
                line.leave(abruptly=True)
                line = None
                continue
            self.heard[str(status)] += 1
            if not self._may_be(status, body, data):
                self._fail(f"{status} {body[:300]!r}", data)
            if not framed or line.reader.at_eof():
                line.leave(abruptly=True)
                line = None
        if line is not None:
            line.leave(abruptly=False)

    def _may_be(self, status: int, body: bytes, data: bytes) -> bool:
        """Whether this is no failure of the gateway's."""
        if b"Tropilla failed" in body:
            return False
        # A path that was changed may be another one that there is.
        asked = data.partition(b" ")[2].partition(b" ")[0].partition(b"?")[0].rstrip(b"/")
        passed_on = asked.decode("latin-1") in self._passed_on
        if status == 501:
            # HTTP's own word for a coding that is not known; what is never done here; or an
            # upstream's word, passed on.
            never = any(told in body for told in self._never_done)
            return never or b"Transfer-Encoding" in body or passed_on
        return status < 500 or (passed_on and b'"param"' not in body)

    def _fail(self, what: str, data: bytes) -> None:
        self.heard["failed"] += 1
        if len(self.failures) < _SHOWN:
            self.failures.append(f"{what}\n    {data[:2000]!r}")

    def _next(self) -> tuple[bytes, bool]:
        """A request, and whether it is one by its framing."""
        chance = self._chance
        method, path, body = chance.choice(self._seeds)
        body = self._bounded(mutated(body, chance) if body else body, path)
        target = path
        kind = chance.random()
        if kind < 0.05:
            target = _target(path, chance)
        head = f"{method} {target} HTTP/1.1\r\nHost: t\r\nContent-Length: {len(body)}\r\n\r\n"
        data = head.encode("latin-1", "replace") + body
        if 0.05 <= kind < 0.1:
            whole = head.encode()
            changed = mutated(whole, chance)
            return changed + body, False
        return data, kind >= 0.05

    def _bounded(self, data: bytes, path: str) -> bytes:
        try:
            body = msgspec.json.decode(data)
        except (msgspec.DecodeError, UnicodeDecodeError, RecursionError):
            return data
        if type(body) is not dict:
            return data
        bound(body, path)
        with suppress(RecursionError):
            return msgspec.json.encode(body)
        return data


def _target(path: str, chance: random.Random) -> str:
    """Another target: what is behind a path, or a path that is changed."""
    odd = (
        "?",
        "?path=x",
        "?model=%FF",
        "/",
        "//",
        "/..",
        "%2F",
        "%00",
        "?" + "a" * 3000,
        ";x",
        "\xe9",
    )
    if chance.random() < 0.5:
        return path + chance.choice(odd)
    return mutated(path.encode(), chance).decode("latin-1")


async def _fuzz(requests: int, seed: int) -> bool:
    kept = {"max_bytes": 2**20}
    async with herd(4) as engines, gateway(engines, (), responses=kept) as tropilla:
        before = (await tropilla.inside())["memory"]
        sender = Sender(tropilla.port, requests, seed)
        began = time.monotonic()
        sending = asyncio.create_task(sender.send())
        most = await _watch(tropilla, sender, sending, requests, before)
        await sending
        after = await tropilla.inside()
    seconds = time.monotonic() - began
    told = ", ".join(f"{count} x {what}" for what, count in sorted(sender.heard.items()))
    grown = max(most, after["memory"]) - before
    sys.stdout.write(f"{requests} requests in {seconds:.0f} s: {told}\n")
    sys.stdout.write(
        f"Memory: {before / 2**20:.1f} MiB before, {grown / 2**20:+.1f} MiB at most, "
        f"{(after['memory'] - before) / 2**20:+.1f} MiB at the end.\n"
    )
    for failure in sender.failures:
        sys.stdout.write(f"FAILED: {failure}\n")
    return not sender.failures and grown < MOST_GROWN and not after["leases"]


async def _watch(
    tropilla: Gateway, sender: Sender, sending: asyncio.Task[None], requests: int, before: int
) -> int:
    """The most memory that was seen, now and then."""
    most = before
    step = max(1, requests // _SAMPLES)
    due = step
    while not sending.done():
        await asyncio.wait([sending], timeout=0.5)
        if sender.sent >= due:
            due += step
            memory = (await tropilla.inside())["memory"]
            sys.stderr.write(f"{sender.sent} sent, {memory / 2**20:.1f} MiB\n")
            most = max(most, memory)
    return most


def fuzz(requests: int, seed: int) -> bool:
    """So many requests; whether all went well."""
    import uvloop

    return uvloop.run(_fuzz(requests, seed))
