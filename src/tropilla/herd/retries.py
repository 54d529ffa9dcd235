"""What may be asked again: how many retries there may be, and what upstreams have died of.

Both are bounded, and know time only as they are told it.
"""

from __future__ import annotations

from collections import OrderedDict, deque


class Budget:
    """How many requests there were in the last ten seconds, and how many were retries."""

    _SECONDS = 10

    def __init__(self) -> None:
        self._counts: deque[list[int]] = deque()

    def note(self, now: float, *, retry: bool) -> None:
        """One more."""
        self._forget(now)
        second = int(now)
        if not self._counts or self._counts[-1][0] != second:
            self._counts.append([second, 0, 0])
        self._counts[-1][1] += 1
        self._counts[-1][2] += retry

    def allows(self, now: float, per_second: float, share: float) -> bool:
        """Whether there may be one more retry: so many in a second, or a share of all requests."""
        self._forget(now)
        requests = sum(one[1] for one in self._counts)
        retries = sum(one[2] for one in self._counts)
        return retries < max(per_second * self._SECONDS, requests * share)

    def _forget(self, now: float) -> None:
        while self._counts and self._counts[0][0] <= now - self._SECONDS:
            self._counts.popleft()


class Poison:
    """Requests that upstreams have died of, by their fingerprints."""

    _MOST = 1024

    def __init__(self) -> None:
        self._deaths: OrderedDict[int, tuple[float, set[tuple[int, int]]]] = OrderedDict()

    def note(self, body: int, death: tuple[int, int], now: float) -> None:
        """One upstream has died while it served this; one death counts once."""
        if not body:
            return
        _, deaths = self._deaths.pop(body, (now, set()))
        self._deaths[body] = (now, deaths | {death})
        if len(self._deaths) > self._MOST:
            self._deaths.popitem(last=False)

    def forgive(self, body: int) -> None:
        """It was served: it was not the reason."""
        self._deaths.pop(body, None)

    def has(self, body: int, now: float, most: int, seconds: float) -> bool:
        """Whether so many have died of it, the last one less than so many seconds ago."""
        told = self._deaths.get(body)
        if told is None:
            return False
        last, deaths = told
        if now - last >= seconds:
            del self._deaths[body]
            return False
        return len(deaths) >= most
