"""What the gateway is told, as people write it."""

from __future__ import annotations

from pathlib import Path

import pytest

from tropilla.config import (
    TINY_MODEL,
    Config,
    ConfigError,
    read_keys,
    read_listen,
    read_url,
    shown_url,
)


@pytest.mark.parametrize(
    ("text", "url"),
    [
        ("10.78.26.241:40081", "http://10.78.26.241:40081"),
        ("localhost:8080", "http://localhost:8080"),
        ("localhost", "http://localhost"),
        (" http://h:1/ ", "http://h:1"),
        ("https://h.example/llama/", "https://h.example/llama"),
        ("HTTP://h:1", "HTTP://h:1"),
        ("http://[::1]:8080", "http://[::1]:8080"),
        ("[::1]:8080", "http://[::1]:8080"),
        ("http://u:p@h:1", "http://u:p@h:1"),
        ("unix:///run/llama.sock", "unix:///run/llama.sock"),
        # What an OpenAI client is given.
        ("http://h:1/v1", "http://h:1"),
        ("http://h:1/v1/", "http://h:1"),
        ("https://h/llama/v1", "https://h/llama"),
    ],
)
def test_an_address_as_people_write_it(text: str, url: str) -> None:
    assert read_url(text) == url


@pytest.mark.parametrize(
    ("text", "words"),
    [
        ("", "names no server"),
        ("http://", "names no server"),
        ("http:///path", "names no server"),
        ("http://:8080", "names no server"),
        ("http://h:0", "names no server"),
        ("http://a b:1", "names no server"),
        ("ftp://h", "not by 'ftp'"),
        ("http://h:99999", "port"),
        ("h:port", "port"),
        ("http://h:1:2", "port"),
        ("http://[::1", "no address"),
        ("http://h/?key=1", "ends with its path"),
        ("http://h/#x", "ends with its path"),
        ("unix://", "names no socket"),
    ],
)
def test_what_is_no_address(text: str, words: str) -> None:
    with pytest.raises(ConfigError, match=words):
        read_url(text)


@pytest.mark.parametrize(
    "text",
    [
        "http://u:hunter2@h:x",
        "http://u:hunter2/@h",
        "http://u:a@hunter2@h:x",
        "ftp://u:hunter2@h",
        "u:hunter2@h:99999",
        "https://h/?key=hunter2",
        "http://[u:hunter2@h",
    ],
)
def test_a_password_is_in_no_complaint(text: str) -> None:
    with pytest.raises(ConfigError) as refused:
        read_url(text)
    assert "hunter2" not in str(refused.value)


@pytest.mark.parametrize(
    ("url", "shown"),
    [
        ("http://h:1/a@b", "http://h:1/a@b"),
        ("http://u:p@h:1/a@b", "http://***@h:1/a@b"),
        ("https://u:p@q@h", "https://***@h"),
        ("unix:///run/a@b.sock", "unix:///run/a@b.sock"),
        ("u:p@h", "***@h"),
    ],
)
def test_an_address_is_shown_without_its_password(url: str, shown: str) -> None:
    assert shown_url(url) == shown


@pytest.mark.parametrize(
    "text", ["127.0.0.1:0", "[::1]:8081", "localhost:65535", "[fe80::1%eth0]:1"]
)
def test_an_address_to_listen_on(text: str) -> None:
    assert read_listen(f" {text} ") == text


@pytest.mark.parametrize(
    "text", ["", "h", ":1", "::1:1", "[::1]", "h:65536", "h:-1", "h:x", "a b:1"]
)
def test_what_nobody_can_listen_on(text: str) -> None:
    with pytest.raises(ConfigError, match="not HOST:PORT"):
        read_listen(text)


def test_keys_of_flags_and_of_a_file(key_file: Path) -> None:
    assert read_keys(("flag", "", "one"), key_file) == ("flag", "one", "two")
    assert read_keys(("", ""), None) == ()


def test_a_byte_order_mark_is_no_part_of_a_key(tmp_path: Path) -> None:
    path = tmp_path / "keys"
    path.write_text("one\n", encoding="utf-8-sig")
    assert read_keys((), path) == ("one",)


@pytest.mark.parametrize("text", ["", "\n \n", "# none\n"])
def test_a_key_file_that_protects_nothing(tmp_path: Path, text: str) -> None:
    path = tmp_path / "keys"
    path.write_text(text)
    with pytest.raises(ConfigError, match="no key in it"):
        read_keys(("flag",), path)


def test_a_key_file_that_cannot_be_read(tmp_path: Path) -> None:
    with pytest.raises(ConfigError, match="cannot be read"):
        read_keys((), tmp_path / "none")
    path = tmp_path / "keys"
    path.write_bytes(b"\xff\xfe\x00")
    with pytest.raises(ConfigError, match="cannot be read"):
        read_keys((), path)


def test_nothing_at_all_is_enough() -> None:
    config = Config()
    assert (config.host, config.port, config.upstreams) == ("127.0.0.1", 8081, ())
    assert config.engine.model == TINY_MODEL
    assert TINY_MODEL.is_file()
