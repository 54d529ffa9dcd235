"""What the gateway is told: one typed tree, whatever it was filled from."""

from __future__ import annotations

from pathlib import Path
from typing import Literal
from urllib.parse import urlsplit

import msgspec

from tropilla.templates import Template

TINY_MODEL = Path(__file__).parent / "models" / "tiny.gguf"
TINY_NAME = "tropilla-tiny"


class ConfigError(ValueError):
    """A setting that cannot be; the message says which, and how to mend it."""


class TimeoutsConfig(msgspec.Struct, frozen=True, kw_only=True):
    """How long an upstream is waited for, in seconds."""

    connect: float = 5.0
    idle: float = 600.0
    """The longest silence in an answer: a long prompt is read in silence."""


class UpstreamConfig(msgspec.Struct, frozen=True, kw_only=True):
    """A running server to send requests to."""

    url: str
    dialect: Literal["auto", "llamacpp", "openai", "afs"] = "auto"
    """What it speaks; `auto` finds out."""
    model: str | None = None
    """The model's name there, if it is another one than here."""
    api_key: str | None = None
    headers: dict[str, str] = {}
    """More headers, sent with every request."""
    weight: float = 1.0
    """Of two upstreams of the same model, one of weight 2 takes twice as many requests."""
    template: Template | None = None
    timeouts: TimeoutsConfig = TimeoutsConfig()


class ModelConfig(msgspec.Struct, frozen=True, kw_only=True):
    """A model by the name that clients use, and who serves it."""

    upstreams: tuple[UpstreamConfig, ...]
    aliases: tuple[str, ...] = ()
    template: Template | None = None
    """Who turns chat messages into a prompt; None leaves it to the server."""


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

    listen: str = "127.0.0.1:8081"
    """HOST:PORT; port 0 takes any that is free."""
    api_keys: tuple[str, ...] = ()
    """The keys that clients must show; none at all lets anybody ask."""
    models: dict[str, ModelConfig] = {}
    upstreams: tuple[UpstreamConfig, ...] = ()
    """Servers whose models are found by asking them. Neither these nor models: the engine runs."""
    engine: EngineConfig = EngineConfig()
    template: Template | None = None
    """For every model that has none of its own; None leaves it to the server."""
    any_model: bool = False
    """A name that nobody serves is answered by whatever is served, as api_like_OAI.py did."""
    allow_admin: bool = False
    """Relay the routes that change or expose a server."""
    max_body: int = 32 * 1024 * 1024
    """Bytes of one request."""

    @property
    def host(self) -> str:
        """The address to listen on."""
        return self.listen.rpartition(":")[0].strip("[]")

    @property
    def port(self) -> int:
        """The port to listen on."""
        return int(self.listen.rpartition(":")[2])


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
