"""Who is logged in: a cookie that is signed, ends, and is no use without the key that it came by.

A cookie names an end, a word of chance and who it is for. It is signed under the admin key and the
secret of the store, so that another admin key ends every session, and all processes of a gateway
know it. The token of a form is signed in the same way, under the cookie's own word of chance.
"""

from __future__ import annotations

import hmac
import secrets
from collections.abc import Mapping
from http.cookies import CookieError, SimpleCookie
from typing import Final, Literal, NamedTuple, TypeAlias

Who: TypeAlias = Literal["nobody", "anybody", "admin"]
"""Not logged in; anybody, where the gateway needs no key; logged in with the admin key."""

NAME: Final = "tropilla_ui"
SECONDS: Final = 12 * 3600
_WHO: tuple[Who, ...] = ("nobody", "anybody", "admin")
_CHANCE = secrets.token_bytes(32)
"""Of this process, where there is nothing else to sign under."""


class Session(NamedTuple):
    """One browser."""

    who: Who
    nonce: str
    ends: int


class Sessions:
    """What signs them."""

    def __init__(self, admin_key: str | None, secret: bytes | None) -> None:
        key = (secret or _CHANCE) + (admin_key or "").encode()
        self._key = hmac.digest(key, b"sessions of the dashboard", "sha256")

    def begun(self, who: Who, now: float) -> Session:
        """A new session."""
        return Session(who, secrets.token_urlsafe(16), int(now) + SECONDS)

    def read(self, headers: Mapping[str, str], now: float) -> Session | None:
        """The session of a browser, if it has one that is good."""
        try:
            cookies = SimpleCookie(headers.get("cookie", ""))
        except CookieError:
            return None
        parts = cookies[NAME].value.split(".") if NAME in cookies else []
        if len(parts) != 4:
            return None
        who, nonce, ends, signed = parts
        if not hmac.compare_digest(signed, self._sign(f"{who}.{nonce}.{ends}")):
            return None
        found = next((one for one in _WHO if one == who), None)
        return None if found is None or int(ends) <= now else Session(found, nonce, int(ends))

    def cookie(self, session: Session, *, secure: bool) -> str:
        """What a browser is told to keep."""
        told = f"{session.who}.{session.nonce}.{session.ends}"
        more = "; Secure" if secure else ""
        return (
            f"{NAME}={told}.{self._sign(told)}; Path=/ui; HttpOnly; SameSite=Strict; "
            f"Max-Age={SECONDS}{more}"
        )

    def token(self, session: Session) -> str:
        """What a form of this session has in it, and no other."""
        return self._sign(f"form.{session.nonce}")

    def fits(self, session: Session, token: str) -> bool:
        """Whether a form is this session's."""
        return hmac.compare_digest(token.encode(), self.token(session).encode())

    def _sign(self, text: str) -> str:
        return hmac.digest(self._key, text.encode(), "sha256").hex()[:43]
