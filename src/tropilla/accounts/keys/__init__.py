"""Who may ask: what a client shows, and whose that is.

A key is looked up by its digest under a secret. Every key that is shown is digested and looked up,
and the same is done for what is right, wrong, revoked or over, so that the time an answer takes
tells nothing.
"""

from __future__ import annotations

import hashlib
import hmac
import secrets
from collections.abc import Iterable, Iterator, Mapping
from datetime import datetime
from functools import cache
from typing import Literal, TypeAlias
from zlib import crc32

from tropilla.config import AccountsConfig, KeyConfig, TermsConfig
from tropilla.ir import Value

Role: TypeAlias = Literal["anybody", "static", "account", "admin"]
"""Who somebody is: one of all where no key is needed; a client with one of `api_keys`, who may all
that a client may; a client with a key that has terms; who gives keys, and asks for nothing else."""

PREFIX = "trp_"
_CONFIG = "config:"
_ALPHABET = "0123456789ABCDEFGHIJKLMNOPQRSTUVWXYZabcdefghijklmnopqrstuvwxyz"
_RANDOM_BYTES = 20
_LENGTH = 27
"""So many of these characters are as many bits."""
_CHECK = 6


class Account(Value, frozen=True, kw_only=True):
    """Somebody who may ask."""

    role: Role
    id: str = ""
    """A name for it, which shows no key."""
    name: str = ""
    terms: TermsConfig = TermsConfig()
    stored: bool = False
    """Whether its key is in the store."""
    expires: float | None = None
    """When it ends, in seconds since 1970."""


ANYBODY = Account(role="anybody")


class Known(Value, frozen=True, kw_only=True):
    """A digest that lets somebody in, until then if it says so."""

    digest: bytes
    account: Account
    until: float | None = None


def made() -> str:
    """A new key: 160 bits of chance, and a checksum by which a slip of the pen is known."""
    body = _digits(int.from_bytes(secrets.token_bytes(_RANDOM_BYTES)), _LENGTH)
    return f"{PREFIX}{body}{_checksum(body)}"


def mistyped(key: str) -> bool:
    """Whether this was meant to be a key of Tropilla's and is none: its checksum does not fit."""
    body = key.removeprefix(PREFIX)
    if body == key:
        return False
    fits = len(body) == _LENGTH + _CHECK and set(body) <= set(_ALPHABET)
    return not fits or _checksum(body[:_LENGTH]) != body[_LENGTH:]


def digest(secret: bytes, key: bytes) -> bytes:
    """What is kept of a key; without the secret nobody can tell whether a guess is right."""
    return hmac.digest(secret, key, "sha256")


def _checksum(body: str) -> str:
    return _digits(crc32(PREFIX.encode() + body.encode()), _CHECK)


def _digits(number: int, length: int) -> str:
    found = ""
    for _ in range(length):
        number, digit = divmod(number, len(_ALPHABET))
        found = _ALPHABET[digit] + found
    return found


class Keys:
    """The keys that a client may show: those of the config, and those of the store.

    Anybody may ask where there is no key at all, and never was one.
    """

    def __init__(
        self,
        keys: Iterable[str],
        accounts: AccountsConfig | None = None,
        secret: bytes | None = None,
    ) -> None:
        self._secret = secret or secrets.token_bytes(32)
        self._own: dict[bytes, Known] = {}
        self._stored: dict[bytes, Known] = {}
        self._closed = False
        self.stale = False
        """Whether nobody knows any more what is in the store."""
        for key in keys:
            if key:
                self._let_in(key, Account(role="static", id=_static_id(key)))
        if accounts is not None:
            for name, told in accounts.keys.items():
                self._let_in(told.key, of_config(name, told))
            if accounts.admin_key:
                self._let_in(accounts.admin_key, Account(role="admin", id="admin"))

    def _let_in(self, key: str, account: Account) -> None:
        found = digest(self._secret, key.encode())
        self._own[found] = Known(digest=found, account=account)

    def stored(self, known: Iterable[Known], *, closed: bool) -> None:
        """These are in the store now; it is `closed` if there ever was one."""
        self._stored = {one.digest: one for one in known}
        self._closed = closed

    def __bool__(self) -> bool:
        """Whether a key is needed."""
        return bool(self._own or self._stored or self._closed)

    def find(self, headers: Mapping[bytes, bytes], now: float) -> Account | None:
        """Whose request this is, by its headers (names in lower case); `None` may not pass.

        `now` is in seconds since 1970.
        """
        if not self:
            return ANYBODY
        found: Account | None = None
        for offered in _offered(headers):
            told = digest(self._secret, offered)
            for table in (self._own, self._stored):
                known = table.get(told)
                fits = known is not None and hmac.compare_digest(told, known.digest)
                if known is not None and fits and found is None:
                    ends = (known.until, known.account.expires)
                    over = any(end is not None and end <= now for end in ends)
                    found = None if over else known.account
        return found

    def priorities(self) -> dict[str, int]:
        """Of the accounts that come before others, or after them, by their ids."""
        known = (*self._own.values(), *self._stored.values())
        found = {one.account.id: one.account.terms.priority for one in known}
        return {id_: priority for id_, priority in found.items() if priority}

    def mistyped(self, headers: Mapping[bytes, bytes]) -> bool:
        """Whether a key that is shown was meant to be one of Tropilla's."""
        return any(mistyped(one.decode("latin-1")) for one in _offered(headers))


@cache
def _static_id(key: str) -> str:
    """The id of a key that has no name: the same after every start, and in logs and rows.

    Whoever reads those can try keys until one has that id. Those that people think up are few, so
    each try has to cost: 10 ms and 4 MB.
    """
    return hashlib.scrypt(key.encode(), salt=b"tropilla: an id", n=2**12, r=8, p=1, dklen=16).hex()


def config_id(name: str) -> str:
    """The id of a key that the config names: no key of the store has it."""
    return f"{_CONFIG}{name}"


def config_name(id_: str) -> str | None:
    """The name that the config gives a key with this id, if it is one of the config's."""
    return id_.removeprefix(_CONFIG) if id_.startswith(_CONFIG) else None


def of_config(name: str, told: KeyConfig) -> Account:
    """A key that the config names."""
    terms = {field: getattr(told, field) for field in TermsConfig.__struct_fields__}
    return account(config_id(name), name, TermsConfig(**terms), stored=False)


def account(id_: str, name: str, terms: TermsConfig, *, stored: bool) -> Account:
    """Somebody with terms."""
    expires = None if terms.expires is None else datetime.fromisoformat(terms.expires).timestamp()
    return Account(role="account", id=id_, name=name, terms=terms, stored=stored, expires=expires)


def _offered(headers: Mapping[bytes, bytes]) -> Iterator[bytes]:
    """Every key a client shows: OpenAI's way, Anthropic's, and Azure's."""
    scheme, _, token = headers.get(b"authorization", b"").partition(b" ")
    if scheme.lower() == b"bearer":
        yield token.strip()
    for name in (b"x-api-key", b"api-key"):
        if name in headers:
            yield headers[name]
