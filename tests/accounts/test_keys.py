"""Who may ask; the header forms are tested over the wire, in server/test_surface.py."""

from __future__ import annotations

import pytest

from tropilla.accounts.keys import Keys

BEARER = b"authorization"


def owner(keys: Keys, headers: dict[bytes, bytes]) -> str | None:
    found = keys.find(headers, 0.0)
    return None if found is None else found.id


def test_no_key_lets_everybody_in() -> None:
    for keys in (Keys(()), Keys(("",))):
        assert not keys
        assert owner(keys, {}) is not None
        assert owner(keys, {BEARER: b"Bearer x"}) is not None


@pytest.mark.parametrize("key", ["k", "sk-" + "x" * 500, "Grüße", "a b"])
def test_a_key_lets_its_owner_in(key: str) -> None:
    for keys in (Keys((key,)), Keys(("other", key)), Keys((key, "other"))):
        assert keys
        assert owner(keys, {BEARER: b"Bearer " + key.encode()}) is not None
        assert owner(keys, {b"x-api-key": key.encode()}) is not None
        assert owner(keys, {b"api-key": key.encode(), BEARER: b"Bearer wrong"}) is not None


@pytest.mark.parametrize(
    "headers",
    [
        {},
        {BEARER: b""},
        {BEARER: b"k"},
        {BEARER: b"Bearer"},
        {BEARER: b"Bearer  "},
        {BEARER: b"Basic k"},
        {BEARER: b"Bearer K"},
        {BEARER: b"Bearer kk"},
        {BEARER: b"Bearer \xff"},
        {b"x-api-key": b""},
        {b"api-key": b" k"},
        {b"cookie": b"k"},
    ],
)
def test_nobody_else_comes_in(headers: dict[bytes, bytes]) -> None:
    assert owner(Keys(("k",)), headers) is None


def test_a_digest_is_all_that_is_kept() -> None:
    assert "hidden" not in repr(vars(Keys(("hidden",))))


def test_whose_a_request_is() -> None:
    keys = Keys(["one", "two"])
    one = owner(keys, {b"authorization": b"Bearer one"})
    assert one == owner(keys, {b"x-api-key": b"one"}) == owner(keys, {b"api-key": b"one"})
    assert one not in {"", "one", owner(keys, {b"x-api-key": b"two"})}
    assert owner(keys, {b"authorization": b"Bearer wrong", b"x-api-key": b"one"}) == one
    assert owner(keys, {b"x-api-key": b"wrong"}) is owner(keys, {}) is None
    assert owner(Keys([]), {b"x-api-key": b"one"}) == ""


def test_a_key_without_a_name_keeps_its_id() -> None:
    """Its rows are found by it after every start, and after every update."""
    for keys in (Keys(("k",)), Keys(("other", "k"))):
        assert owner(keys, {b"x-api-key": b"k"}) == "08da21ffd76434d8e54d7d6f38d965a9"
