"""Single settings as people write them. No message shows a password."""

from __future__ import annotations

import re
from datetime import UTC, datetime
from pathlib import Path
from urllib.parse import urlsplit

from tropilla.config.tree import ConfigError

# Up to the last `@`: what is wrong with an address may be the `/` or the `@` in its password.
_USER = re.compile(r"^([A-Za-z][A-Za-z0-9+.-]*://)?.*@", re.DOTALL)
_QUERY = re.compile(r"[?#].*", re.DOTALL)
_LISTEN = re.compile(r"(\[[0-9A-Fa-f:.%\w]+\]|[^:\s\[\]]+):([0-9]{1,5})")
_STORES = frozenset({"sqlite", "postgresql", "postgres"})
_SHARED = frozenset({"valkey", "valkeys", "redis", "rediss", "unix"})
_LAST_PORT = 65535


def read_url(text: str) -> str:
    """The address of an upstream, as people write it: `host:port` means `http://host:port`.

    The script that Tropilla replaces took such an address for a path, and failed with
    `MissingSchema` at the first request. An OpenAI client's base URL, which ends in `/v1`, is
    as good: every path that is asked for has its own `/v1`.

    Raises:
        ConfigError: it is no address of an HTTP server.
    """
    url = text.strip()
    shown = repr(_QUERY.sub("?...", _USER.sub(lambda found: f"{found[1] or ''}***@", text)))
    if "://" not in url:
        url = f"http://{url}"
    try:
        parts = urlsplit(url)
    except ValueError:
        raise ConfigError(f"{shown} is no address: write it as http://HOST:PORT.") from None
    if parts.scheme == "unix":
        if not parts.path.strip("/"):
            raise ConfigError(f"{shown} names no socket: write it as unix:///PATH.")
        return url
    if parts.scheme not in {"http", "https"}:
        raise ConfigError(f"{shown}: an upstream is reached by http, https or unix, "
                          f"not by {parts.scheme!r}.")  # fmt: skip
    try:
        port = parts.port
    except ValueError:
        raise ConfigError(f"{shown}: the port is not a number between 1 and 65535.") from None
    if not parts.hostname or port == 0 or any(c.isspace() for c in url):
        raise ConfigError(f"{shown} names no server: write it as http://HOST:PORT.")
    if parts.query or parts.fragment:
        raise ConfigError(f"{shown}: an upstream's address ends with its path.")
    return url.rstrip("/").removesuffix("/v1").rstrip("/")


def shown_url(url: str) -> str:
    """An address as it may be shown: without the user and the password in it."""
    scheme, separator, rest = url.rpartition("://")
    place, slash, path = rest.partition("/")
    _, at, host = place.rpartition("@")
    return f"{scheme}{separator}{'***@' if at else ''}{host}{slash}{path}"


def read_listen(text: str) -> str:
    """The address to listen on.

    Raises:
        ConfigError: it is not HOST:PORT.
    """
    found = _LISTEN.fullmatch(text.strip())
    if found is None or int(found[2]) > _LAST_PORT:
        raise ConfigError(
            f"{text!r} is not HOST:PORT with a port from 0 to 65535: write it as "
            "127.0.0.1:8081, or [::1]:8081; 0.0.0.0 listens everywhere."
        )
    return text.strip()


def read_shared(text: str) -> str:
    """Where gateways share what they count: `memory`, or the address of a Valkey or a Redis.

    Raises:
        ConfigError: it is neither.
    """
    url = text.strip()
    if url == "memory":
        return url
    try:
        parts = urlsplit(url)
        good = parts.scheme in _SHARED and parts.port != 0
        number = parts.path.strip("/")
    except ValueError:
        good, number = False, ""
    if not good or any(c.isspace() for c in url):
        raise ConfigError(
            "is neither memory nor the address of a Valkey: write it as valkey://HOST:PORT, "
            "valkeys://HOST:PORT for TLS, or unix:///PATH."
        )
    if parts.scheme != "unix" and number and not number.isdecimal():
        raise ConfigError("names no database: what follows the port is a number.")
    return url


def read_kept(text: str) -> str:
    """Where responses are kept: `auto`, `memory`, or the address of a store.

    Raises:
        ConfigError: it is neither.
    """
    where = text.strip()
    scheme, _, rest = where.partition("://")
    if where not in {"auto", "memory"} and (scheme not in _STORES or not rest.strip("/")):
        raise ConfigError(
            "is neither auto nor memory nor the address of a store: write it as sqlite:///PATH, or "
            "as postgresql://USER@HOST/NAME."
        )
    return where


def read_moment(text: str) -> str:
    """A day or a time, as ISO 8601 says it: `2027-01-31`, `2027-01-31T12:00:00+01:00`.

    It is given back in UTC, which it is in if it does not say otherwise.

    Raises:
        ConfigError: it is none.
    """
    try:
        told = datetime.fromisoformat(text.strip())
        moment = told.replace(tzinfo=UTC) if told.tzinfo is None else told.astimezone(UTC)
    except (ValueError, OverflowError):
        raise ConfigError(
            f"{text[:40]!r} is no time: write it as 2027-01-31, or as 2027-01-31T12:00:00Z."
        ) from None
    return moment.isoformat().replace("+00:00", "Z")


def read_keys(keys: tuple[str, ...], key_file: Path | None) -> tuple[str, ...]:
    """The client keys of flags and of a file (one a line, `#` begins a comment).

    Raises:
        ConfigError: the file cannot be read, or holds no key: it was meant to protect.
    """
    found = [key for key in keys if key]
    if key_file is not None:
        try:
            lines = key_file.read_text(encoding="utf-8-sig").splitlines()
        except (OSError, UnicodeDecodeError) as error:
            raise ConfigError(f"{key_file}: the keys cannot be read: {error}.") from None
        told = [line.strip() for line in lines]
        in_file = [line for line in told if line and not line.startswith("#")]
        if not in_file:
            raise ConfigError(f"{key_file}: there is no key in it.")
        found += in_file
    return tuple(dict.fromkeys(found))
