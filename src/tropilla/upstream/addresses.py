"""The addresses behind a name, where each is a server of its own.

That is a headless service, or a DNS round robin. A name that cannot be looked up for a while keeps
the addresses that it had.
"""

from __future__ import annotations

import asyncio
import socket
from collections.abc import Mapping
from typing import TypeAlias
from urllib.parse import urlsplit

from tropilla.config import Config

Known: TypeAlias = Mapping[str, tuple[str, ...]]
"""The addresses of an upstream, by its URL."""

SECONDS = 10.0
"""How often they are looked up."""
_PATIENCE_SECONDS = 5.0


def names_of(config: Config) -> set[str]:
    """The URLs of the upstreams of which each address is a server."""
    everywhere = (*config.upstreams, *(u for m in config.models.values() for u in m.upstreams))
    return {one.url for one in everywhere if one.each_address}


async def look_up(urls: set[str], known: Known) -> dict[str, tuple[str, ...]]:
    """The addresses of these; of one that has none now, those that are known of it."""
    ordered = sorted(urls)
    found = await asyncio.gather(*(_look_up(url) for url in ordered))
    told = {url: new or known.get(url, ()) for url, new in zip(ordered, found, strict=True)}
    return {url: addresses for url, addresses in told.items() if addresses}


async def _look_up(url: str) -> tuple[str, ...]:
    place = urlsplit(url)
    loop = asyncio.get_running_loop()
    try:
        async with asyncio.timeout(_PATIENCE_SECONDS):
            found = await loop.getaddrinfo(
                place.hostname, place.port or 80, type=socket.SOCK_STREAM
            )
    except (OSError, UnicodeError, TimeoutError):
        return ()
    return tuple(sorted({str(address[0]) for *_, address in found}))


def at_address(url: str, address: str) -> tuple[str, dict[str, str]]:
    """The URL of one address of a name, and the header that still says the name."""
    place = urlsplit(url)
    who, at, host = place.netloc.rpartition("@")
    port = f":{place.port}" if place.port is not None else ""
    literal = f"[{address}]" if ":" in address else address
    return place._replace(netloc=f"{who}{at}{literal}{port}").geturl(), {"Host": host}
