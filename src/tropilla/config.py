"""What the gateway is told: one typed tree, whatever it was filled from."""

from __future__ import annotations

from pathlib import Path
from urllib.parse import urlsplit

import msgspec

from tropilla.templates import Classic

TINY_MODEL = Path(__file__).parent / "models" / "tiny.gguf"
TINY_NAME = "tropilla-tiny"


class ConfigError(ValueError):
    """A setting that cannot be; the message says which, and how to mend it."""


class UpstreamConfig(msgspec.Struct, frozen=True, kw_only=True):
    """A running server to send requests to."""

    url: str
    api_key: str | None = None


class EngineConfig(msgspec.Struct, frozen=True, kw_only=True):
    """The embedded engine. Zeros leave the choice to it."""

    model: Path = TINY_MODEL
    name: str = TINY_NAME
    slots: int = 4
    ctx_size: int = 0
    """Tokens of context per slot."""
    threads: int = 0


class Config(msgspec.Struct, frozen=True, kw_only=True):
    """Everything that `tropilla serve` needs to know."""

    host: str = "127.0.0.1"
    port: int = 8081
    api_keys: tuple[str, ...] = ()
    upstreams: tuple[UpstreamConfig, ...] = ()
    """None at all means: run the engine."""
    engine: EngineConfig = EngineConfig()
    template: Classic | None = None
    """None leaves it to the server's own."""
    any_model: bool = False
    """A name that nobody serves is answered by whatever is served, as api_like_OAI.py did."""
    allow_admin: bool = False
    """Relay the routes that change or expose a server."""
    max_body: int = 32 * 1024 * 1024
    """Bytes of one request."""


def read_url(text: str) -> str:
    """The address of an upstream, as people write it: `host:port` means `http://host:port`.

    The script that Tropilla replaces took such an address for a path, and failed with
    `MissingSchema` at the first request. An OpenAI client's base URL, which ends in `/v1`, is
    as good: every path that is asked for has its own `/v1`.

    Raises:
        ConfigError: it is no address of an HTTP server.
    """
    url = text.strip()
    if "://" not in url:
        url = f"http://{url}"
    try:
        parts = urlsplit(url)
    except ValueError as error:
        raise ConfigError(f"{text!r} is no address: {error}.") from None
    if parts.scheme == "unix":
        return url
    if parts.scheme not in {"http", "https"}:
        raise ConfigError(f"{text!r}: an upstream is reached by http, https or unix, "
                          f"not by {parts.scheme!r}.")  # fmt: skip
    try:
        port = parts.port
    except ValueError:
        raise ConfigError(f"{text!r}: the port is not a number between 1 and 65535.") from None
    if not parts.hostname or port == 0 or any(c.isspace() for c in url):
        raise ConfigError(f"{text!r} names no server: write it as http://HOST:PORT.")
    if parts.query or parts.fragment:
        raise ConfigError(f"{text!r}: an upstream's address ends with its path.")
    return url.rstrip("/").removesuffix("/v1").rstrip("/")


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
