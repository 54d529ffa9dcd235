"""How a command finds a gateway that runs, and asks it."""

from __future__ import annotations

from collections.abc import Callable, Iterator
from contextlib import contextmanager
from typing import Any

import click

_SILENCE_SECONDS = 30.0
"""A stream tells every 10 s that it lives."""


class NoGateway(click.ClickException):
    """Nobody answers there, or not as a gateway does."""


def asking(command: Callable[..., None]) -> Callable[..., None]:
    """Add the options by which a running gateway is found."""
    key = click.option(
        "--api-key", metavar="KEY", envvar="TROPILLA_API_KEY",
        help="A key that it takes; the variable keeps it from those who list this machine's "
        "processes.  [env: TROPILLA_API_KEY]",
    )  # fmt: skip
    url = click.option(
        "--url", metavar="URL", envvar="TROPILLA_URL", default="http://127.0.0.1:8081",
        show_default=True, help="The gateway that runs.  [env: TROPILLA_URL]",
    )  # fmt: skip
    return url(key(command))


def root_of(url: str) -> str:
    """The address of a gateway, however it was told: with a scheme, without `/v1`."""
    if not url.startswith(("http://", "https://")):
        url = f"http://{url}"
    return url.rstrip("/").removesuffix("/v1")


def ask(url: str, api_key: str | None, path: str, body: bytes | None = None) -> Any:
    """What a running gateway answers.

    Raises:
        NoGateway: it does not.
        ClickException: it refuses.
    """
    import msgspec  # noqa: PLC0415

    with _opened(url, api_key, path, body) as answer:
        try:
            return msgspec.json.decode(answer.read())
        except (OSError, ValueError) as error:
            raise _nobody(url, error) from None


def streamed(url: str, api_key: str | None, path: str, body: Any) -> Iterator[Any]:
    """The events of a stream that a running gateway tells.

    Raises:
        NoGateway: it does not answer.
        ClickException: it refuses.
        OSError: it has broken off.
    """
    import msgspec  # noqa: PLC0415

    with _opened(url, api_key, path, msgspec.json.encode(body)) as answer:
        for line in answer:
            if line.startswith(b"data: ") and line[6:].strip() != b"[DONE]":
                yield msgspec.json.decode(line[6:])


def lines(url: str, api_key: str | None, path: str) -> Iterator[bytes]:
    """The lines that a running gateway tells, as they come.

    Raises:
        NoGateway: it does not answer, or not any more.
        ClickException: it refuses.
    """
    with _opened(url, api_key, path, None) as answer:
        try:
            yield from answer
        except (OSError, ValueError) as error:
            raise _nobody(url, error) from None


@contextmanager
def _opened(url: str, api_key: str | None, path: str, body: bytes | None) -> Iterator[Any]:
    from urllib.error import HTTPError  # noqa: PLC0415
    from urllib.request import Request, urlopen  # noqa: PLC0415

    headers = {"Content-Type": "application/json"}
    if api_key:
        headers["Authorization"] = f"Bearer {api_key}"
    url = root_of(url)
    asked = Request(url + path, body, headers)  # noqa: S310 - `root_of` checks it
    try:
        answer = urlopen(asked, timeout=_SILENCE_SECONDS)  # noqa: S310 - `root_of` checks it
    except HTTPError as error:
        with error:
            why = _why(error.code, error.read())
        raise click.ClickException(f"{url} refuses: {why}") from None
    except (OSError, ValueError) as error:
        raise _nobody(url, error) from None
    with answer:
        yield answer


def _nobody(url: str, error: Exception) -> NoGateway:
    why = getattr(error, "reason", error)
    return NoGateway(
        f"No gateway answers at {url} ({why}). Does it run there? Name another with --url."
    )


def _why(status: int, body: bytes) -> str:
    import msgspec  # noqa: PLC0415

    try:
        return str(msgspec.json.decode(body)["error"]["message"])
    except (ValueError, KeyError, TypeError):
        return f"it answered {status}."
