"""The keys in the store: made, shown, changed, rotated and revoked.

A key is told once, when it is made. Every change adds one to a number in the store, in the same
transaction: by that the gateways that run notice it.
"""

from __future__ import annotations

import os
import secrets
import time
from collections.abc import Callable, Iterable
from contextlib import suppress
from pathlib import Path
from typing import NamedTuple

import msgspec

from tropilla.accounts.keys import Account, Known, account, digest, made
from tropilla.accounts.keys.rights import authorize, check_word
from tropilla.accounts.store import Cell, Store, StoreError
from tropilla.config import TermsConfig, read_moment
from tropilla.ir import JsonObject, Malformed, Problem, ProblemError, Value

_COLUMNS = "id, name, digest, seal, tail, former, former_until, terms, created, rotated, revoked"
_COUNT = """
    INSERT INTO changes (what, number) VALUES ('keys', 1)
    ON CONFLICT (what) DO UPDATE SET number = changes.number + 1
"""
_CHANGED = (_COUNT, [()])
_SECRET_BYTES = 32
_ID = "key_"
MOST_GRACE = 30 * 86400.0
"""Seconds for which a key that was rotated may go on."""


class Stored(Value, frozen=True, kw_only=True):
    """A key as it is kept."""

    id: str
    name: str
    digest: str
    seal: str
    tail: str
    """Its last four characters."""
    former: str | None
    """The digest that it had before it was rotated, which is good until then."""
    former_until: float | None
    terms: TermsConfig
    created: float
    rotated: float | None
    revoked: float | None

    @property
    def account(self) -> Account:
        """Whose it is."""
        return account(self.id, self.name, self.terms, stored=True)

    def state(self, now: float) -> str:
        """Whether it is `active`, `expired` or `revoked`."""
        if self.revoked is not None:
            return "revoked"
        expires = self.account.expires
        return "expired" if expires is not None and expires <= now else "active"

    def shown(self, now: float) -> JsonObject:
        """What may be shown of it."""
        terms: JsonObject = msgspec.to_builtins(self.terms)
        return {
            "object": "key",
            "id": self.id,
            "name": self.name,
            "tail": self.tail,
            "state": self.state(now),
            "created": self.created,
            "rotated": self.rotated,
            "revoked": self.revoked,
            **terms,
        }


def known(stored: Iterable[Stored]) -> list[Known]:
    """What lets somebody in."""
    found = []
    for one in stored:
        if one.revoked is None:
            who = one.account
            found.append(Known(digest=bytes.fromhex(one.digest), account=who))
            if one.former is not None:
                old = bytes.fromhex(one.former)
                found.append(Known(digest=old, account=who, until=one.former_until))
    return found


class Made(NamedTuple):
    """A key that was made just now."""

    stored: Stored
    key: str
    """What its client shows; it is told here and never again."""


class Terms(TermsConfig, frozen=True, kw_only=True, forbid_unknown_fields=True):
    """What is said of a key that is to be made, or changed."""

    name: str = ""


def read_terms(body: JsonObject, before: JsonObject | None = None) -> tuple[str, TermsConfig]:
    """A key's name and terms, as JSON tells them; what it leaves out is as it was `before`.

    Raises:
        Malformed: it tells something else.
    """
    try:
        told = msgspec.convert({**(before or {}), **body}, Terms)
    except msgspec.ValidationError as error:
        message, _, place = str(error).partition(" - at `$.")
        param = place.rstrip("`").replace("[", ".").replace("]", "") or None
        if param is None and "unknown field" in message:
            param = message.rpartition("`")[0].rpartition("`")[2]
        where = f"'{param}': " if param else ""
        raise Malformed(f"{where}{message}.", param=param) from None
    terms = {name: getattr(told, name) for name in TermsConfig.__struct_fields__}
    return told.name, TermsConfig(**terms)


class Ring:
    """The keys of a store. `clock` tells seconds since 1970."""

    def __init__(
        self, store: Store, secret: bytes | None, clock: Callable[[], float] = time.time
    ) -> None:
        self._store = store
        self._secret = secret
        self._clock = clock

    @property
    def told(self) -> bytes | None:
        """The secret, where somebody has told it."""
        return self._secret

    @property
    def secret(self) -> bytes:
        """Under which keys are digested.

        Raises:
            StoreError: nobody has told it.
        """
        if self._secret is None:
            message = "accounts.secret is needed for keys in this store: 32 characters of chance."
            raise StoreError(message)
        return self._secret

    async def number(self) -> int:
        """How often the keys have changed."""
        told = await self._store.read("SELECT number FROM changes WHERE what = 'keys'")
        return int(told[0][0]) if told else 0

    async def all(self) -> list[Stored]:
        """Every key there ever was, the oldest first."""
        rows = await self._store.read(f"SELECT {_COLUMNS} FROM keys ORDER BY created, id")  # noqa: S608
        return [_stored(row) for row in rows]

    async def find(self, which: str) -> Stored:
        """A key by its id, or by the name that it has while it is not revoked.

        Raises:
            ProblemError: there is none.
        """
        asked = f"SELECT {_COLUMNS} FROM keys WHERE id = $1 OR (name = $2 AND revoked IS NULL)"  # noqa: S608
        rows = await self._store.read(asked, which, which)
        if not rows:
            shown = which if len(which) <= 100 else which[:100] + "..."
            raise ProblemError(Problem(kind="not_found", message=f"There is no key '{shown}'."))
        return _stored(rows[0])

    async def create(self, actor: Account, name: str, terms: TermsConfig) -> Made:
        """Make a key.

        Raises:
            ProblemError: it is not for this one, or cannot be.
        """
        authorize(actor, "give", terms)
        _check_name(name)
        key, id_, now = made(), f"{_ID}{secrets.token_hex(8)}", self._clock()
        found, seal = digest(self.secret, key.encode()).hex(), seal_of(self.secret)
        told = _encoded(terms)
        row = (id_, name, found, seal, key[-4:], None, None, told, now, None, None)
        await self._told_apart(name)
        await self._write(
            f"INSERT INTO keys ({_COLUMNS}) VALUES ($1, $2, $3, $4, $5, $6, $7, $8, $9, $10, $11)",  # noqa: S608
            row,
        )
        return Made(await self.find(id_), key)

    async def change(self, actor: Account, which: str, body: JsonObject) -> Stored:
        """Give a key other terms; what is left out stays.

        Raises:
            ProblemError: it is not for this one, or cannot be, or there is none.
        """
        authorize(actor, "give")
        one = await self._living(which)
        before = {"name": one.name, **msgspec.to_builtins(one.terms)}
        name, terms = read_terms(body, before)
        authorize(actor, "give", terms)
        _check_name(name)
        if name != one.name:
            await self._told_apart(name)
        old, new = _encoded(one.terms), _encoded(terms)
        changed = await self._write(
            "UPDATE keys SET name = $1, terms = $2 "
            "WHERE id = $3 AND terms = $4 AND revoked IS NULL",
            (name, new, one.id, old),
        )
        if not changed:
            message = "Somebody else has changed this key at the same time: look, and try again."
            raise Malformed(message, code="conflict")
        return await self.find(one.id)

    async def rotate(self, actor: Account, which: str, grace: float = 0.0) -> Made:
        """Make another key in the place of one, which goes on for as many seconds.

        Raises:
            ProblemError: it is not for this one, or there is none.
        """
        authorize(actor, "give")
        if not 0 <= grace <= MOST_GRACE:
            message = f"'grace' must be from 0 to {MOST_GRACE:.0f} seconds."
            raise Malformed(message, param="grace")
        one = await self._living(which)
        key, now = made(), self._clock()
        former = (one.digest, now + grace) if grace else (None, None)
        found = digest(self.secret, key.encode()).hex()
        await self._write(
            "UPDATE keys SET digest = $1, seal = $2, tail = $3, former = $4, former_until = $5, "
            "rotated = $6 WHERE id = $7 AND revoked IS NULL",
            (found, seal_of(self.secret), key[-4:], *former, now, one.id),
        )
        return Made(await self.find(one.id), key)

    async def revoke(self, actor: Account, which: str) -> Stored:
        """Let nobody in by this key any more. One that is revoked stays so.

        Raises:
            ProblemError: it is not for this one, or there is none.
        """
        authorize(actor, "give")
        one = await self.find(which)
        await self._write(
            "UPDATE keys SET revoked = $1, former = NULL, former_until = NULL "
            "WHERE id = $2 AND revoked IS NULL",
            (self._clock(), one.id),
        )
        return await self.find(one.id)

    async def _living(self, which: str) -> Stored:
        one = await self.find(which)
        if one.revoked is not None:
            message = f"The key '{one.name}' is revoked, and stays so: make another one."
            raise Malformed(message, code="key_revoked")
        return one

    async def _told_apart(self, name: str) -> None:
        asked = "SELECT id FROM keys WHERE name = $1 AND revoked IS NULL"
        if await self._store.read(asked, name):
            message = f"There is a key '{name}' already: take another name, or revoke it first."
            raise Malformed(message, param="name", code="name_taken")

    async def _write(self, sql: str, row: tuple[Cell, ...]) -> int:
        changed = await self._store.write((sql, [row]), _CHANGED)
        return changed[0]


def _check_name(name: str) -> None:
    check_word(name, "name")
    if name.startswith(_ID):
        raise Malformed(f"A name does not begin with '{_ID}': ids do.", param="name")


def _encoded(terms: TermsConfig) -> str:
    expires = None if terms.expires is None else read_moment(terms.expires)
    return msgspec.json.encode(msgspec.structs.replace(terms, expires=expires)).decode()


def _stored(row: tuple[object, ...]) -> Stored:
    cells = dict(zip(_COLUMNS.split(", "), row, strict=True))
    terms = msgspec.json.decode(str(cells.pop("terms")), type=TermsConfig)
    return msgspec.convert({**cells, "terms": terms}, Stored)


# The secret of an installation.


def seal_of(secret: bytes) -> str:
    """By which a secret is known again, and nothing else."""
    return digest(secret, b"the seal of Tropilla's keys").hex()[:16]


async def open_ring(store: Store, told: str | None) -> Ring:
    """The keys of a store, under a secret that was told, or that is kept beside it.

    Raises:
        StoreError: the secret is not the one that the keys were made under.
    """
    rows = await store.read("SELECT DISTINCT seal FROM keys WHERE revoked IS NULL")
    seals = {str(row[0]) for row in rows}
    secret = told.encode() if told else _beside(store.url, wanted=not seals)
    if seals and (secret is None or seals != {seal_of(secret)}):
        raise StoreError(
            "The keys in this store were made under another secret: put that back "
            "(accounts.secret, or the file beside the store), or else revoke them all."
        )
    return Ring(store, secret)


def _beside(url: str, *, wanted: bool) -> bytes | None:
    """The secret in the file beside a store that is a file; made if it is `wanted`."""
    path = url.removeprefix("sqlite:///")
    if path == url:
        return None
    file = Path(f"{path}-secret")
    try:
        if wanted and not file.exists():
            _put(file, secrets.token_bytes(_SECRET_BYTES))
        return file.read_bytes() if file.exists() else None
    except OSError as error:
        raise StoreError(f"{file}: {error.strerror or error}") from error


def _put(file: Path, data: bytes) -> None:
    """Write a file that only its owner reads; of two who do it at once the first has done it."""
    draft = file.with_name(f"{file.name}.{secrets.token_hex(4)}")
    opened = os.open(draft, os.O_WRONLY | os.O_CREAT | os.O_EXCL, 0o600)
    try:
        with os.fdopen(opened, "wb") as to:
            to.write(data)
            to.flush()
            os.fsync(to.fileno())
        with suppress(FileExistsError):
            os.link(draft, file)
    finally:
        draft.unlink()
