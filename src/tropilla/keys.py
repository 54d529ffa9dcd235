"""Who may ask: the static keys of a gateway.

A key is compared by its digest, and with every key there is, so that the time an answer takes
says nothing about which key was nearly right.
"""

from __future__ import annotations

import hashlib
import hmac
from collections.abc import Iterable, Iterator, Mapping


class Keys:
    """The keys that a client may show; an empty one is none, and none lets anybody ask."""

    def __init__(self, keys: Iterable[str]) -> None:
        self._digests = [_digest(key.encode()) for key in keys if key]

    def __bool__(self) -> bool:
        return bool(self._digests)

    def owner(self, headers: Mapping[bytes, bytes]) -> str | None:
        """Whose request this is, by its headers (names in lower case); `None` may not pass.

        It is a name for the key that it shows, which does not show the key. Where any client may
        ask, they are all the same one, without a name.
        """
        if not self._digests:
            return ""
        found = None
        for offered in _offered(headers):
            digest = _digest(offered)
            if digest in self and found is None:
                found = digest.hex()[:32]
        return found

    def __contains__(self, digest: bytes) -> bool:
        found = False
        for known in self._digests:
            found |= hmac.compare_digest(digest, known)
        return found


def _offered(headers: Mapping[bytes, bytes]) -> Iterator[bytes]:
    """Every key a client shows: OpenAI's way, Anthropic's, and Azure's."""
    scheme, _, token = headers.get(b"authorization", b"").partition(b" ")
    if scheme.lower() == b"bearer":
        yield token.strip()
    for name in (b"x-api-key", b"api-key"):
        if name in headers:
            yield headers[name]


def _digest(key: bytes) -> bytes:
    return hashlib.sha256(key).digest()
