"""An answer on its way, whichever client fetches it, and the words for one that does not come.

Every failure leaves as a `ProblemError` which says whether another upstream may do: that is
decided here, once, and no client has words of its own.
"""

from __future__ import annotations

import asyncio
import os
from collections.abc import Callable
from contextlib import suppress

import msgspec

from tropilla.ir import Problem, ProblemError

MAX_WHOLE = 64 * 1024 * 1024
"""Bytes of an answer that is wanted whole."""

END_SECONDS = 0.05
"""How long the end of a complete answer is waited for: it follows, but in a packet of its own."""

# llama-server closes an idle connection after 5 s, and any after 100 requests.
KEEP_SECONDS = 3.0
"""How long a connection is kept that nobody uses."""

STALE_SECONDS = 1.0
"""How soon a used connection shows that it was dead already; what is lost later was at work."""

MAX_HEAD = 64 * 1024
"""Bytes of the head of an answer."""
MAX_HEADERS = 128


class Incoming:
    """An answer on its way: its head has come, and its body comes piece by piece."""

    __slots__ = ("content_type", "hide", "retry_after", "since", "status", "url")

    def __init__(self, url: str) -> None:
        self.url = url
        """Of the upstream, as it may be shown."""
        self.status = 0
        self.content_type = ""
        self.since = 0.0
        """When the last sign of life came, or somebody began to wait for one (`monotonic`)."""
        self.retry_after: float | None = None
        """In seconds, where the upstream says so."""
        self.hide: Callable[[bytes], bytes] = bytes
        """Takes out of a refusal what nobody else may see."""

    async def read(self) -> bytes:
        """The next piece, as it came; empty at the end.

        Raises:
            ProblemError: the upstream broke off or fell silent.
        """
        raise NotImplementedError

    async def pour(self, into: Callable[[bytes], bool]) -> bool:
        """Have `into` take each piece as it comes, as long as it wants the next one, too.

        Whether there may be more of them. What `into` raises, this raises.

        Raises:
            ProblemError: as `read` does.
        """
        while piece := await self.read():
            if not into(piece):
                return True
        return False

    def give_up(self) -> None:
        """Break it off: whoever reads it hears that the upstream has."""
        raise NotImplementedError

    def leave(self) -> None:
        """Be done with it. What has not come to its end takes its connection with it."""
        raise NotImplementedError

    async def whole(self) -> bytes:
        """All that is left of the body.

        Raises:
            ProblemError: as `read` does; or there is more than anybody would want.
        """
        pieces, size = [], 0
        while piece := await self.read():
            size += len(piece)
            if size > MAX_WHOLE:
                raise ProblemError(too_much(self.url))
            pieces.append(piece)
        body = b"".join(pieces)
        return body if self.status < 400 else self.hide(body)

    async def finish(self) -> None:
        """Take the end of an answer that has said everything, if it comes at once.

        With it comes the right to use the connection again.
        """
        with suppress(TimeoutError, ProblemError):
            async with asyncio.timeout(END_SECONDS):
                while await self.read():
                    pass


def seconds(retry_after: str) -> float | None:
    """When to ask again; a date is of no use where two clocks differ."""
    return float(retry_after) if retry_after.isdecimal() and len(retry_after) < 6 else None


# There is no answer.


def not_reached(url: str, error: OSError) -> Problem:
    """It did not let us in."""
    reason = os.strerror(error.errno) if error.errno else str(error)
    return _unavailable(f"The upstream {url} cannot be reached: {reason}.")


def not_reached_in_time(url: str, seconds: float) -> Problem:
    """It did not let us in, nor say that it will not."""
    return _unavailable(
        f"The upstream {url} cannot be reached: it did not answer in {seconds:g} s."
    )


def no_address(url: str) -> Problem:
    """Its name is nobody's."""
    return _unavailable(f"The upstream {url} has no address: its host name is unknown here.")


def no_tls(url: str, error: Exception) -> Problem:
    """There is no TLS with it, or not with whom we mean."""
    return _unavailable(f"TLS with the upstream {url} failed: {error}.")


def closed(url: str) -> Problem:
    """It took the request, and went away."""
    return _unavailable(f"The upstream {url} closed the connection before it answered.", died=True)


def after_a_loss(problem: Problem, *, lost: bool) -> Problem:
    """Why there is no new connection, where a used one was `lost` with the request on it.

    It was there a moment ago, and may have died of this very request.
    """
    return msgspec.structs.replace(problem, died=True) if lost else problem


def not_http(url: str, error: Exception | str) -> Problem:
    """What it says has no meaning."""
    return _unavailable(f"The upstream {url} answered with something that is not HTTP: {error}.")


def late(url: str) -> Problem:
    """It took the request, and is silent."""
    return Problem(kind="timeout", message=f"The upstream {url} did not answer in time.")


# The answer breaks off.


def silent(url: str) -> Problem:
    """There is no more of it, and no end."""
    return Problem(kind="timeout", message=f"The upstream {url} fell silent.")


def broken(url: str) -> Problem:
    """It ended before its end, or went on in something that is not HTTP."""
    return Problem(
        kind="upstream_failed",
        message=f"The upstream {url} broke off in the middle of its answer.",
        retryable=True,
        died=True,
    )


def too_much(url: str) -> Problem:
    """There is no end of it."""
    return Problem(
        kind="upstream_failed",
        message=f"The upstream {url} answered with over {MAX_WHOLE} bytes.",
    )


def _unavailable(message: str, *, died: bool = False) -> Problem:
    return Problem(kind="unavailable", message=message, retryable=True, retry_after=1, died=died)
