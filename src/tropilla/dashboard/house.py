"""What the dashboard is given to show, and what a page of it is: values, and the templates."""

from __future__ import annotations

from collections.abc import Awaitable, Callable, Mapping, Sequence
from dataclasses import dataclass
from functools import cache
from hashlib import sha256
from pathlib import Path
from typing import Any, NamedTuple, Protocol, TypeAlias
from urllib.parse import parse_qsl

import minijinja

from tropilla import __version__
from tropilla.accounts.keys import Account, config_id
from tropilla.accounts.keys.ring import Ring, Stored
from tropilla.accounts.limits import Standings
from tropilla.accounts.store import Store
from tropilla.accounts.usage import labels
from tropilla.capture import Capture
from tropilla.config import Config
from tropilla.observing.activity import Activity
from tropilla.upstream.fleet import Fleet

STATIC = Path(__file__).parent / "static"
_PAGES = Path(__file__).parent / "pages"
_DEFAULT_PORTS = {"http": ":80", "https": ":443"}
NOBODY = "anybody"
"""Whose requests are that need no key, in words."""


class Kept(Protocol):
    """The accounts, where some are kept."""

    store: Store
    ring: Ring
    stored: Sequence[Stored]

    async def look(self) -> None:
        """Read the keys again, if they have changed."""


@dataclass
class House:
    """All that is shown, and all that can be done."""

    config: Config
    fleet: Fleet
    activity: Activity
    capture: Capture
    accounts: Kept | None
    levels: Callable[[Account], Standings]
    """How it stands with somebody's limits."""
    who: Callable[[str], Account | None]
    """Whose a key is."""
    is_open: Callable[[], bool]
    """Whether the gateway has no keys at all."""

    def names(self) -> dict[str, str]:
        """What the keys are called, by their ids; no two of them the same."""
        told = {config_id(name): name for name in self.config.accounts.keys}
        if self.accounts is not None:
            told |= {one.id: one.name for one in self.accounts.stored}
        return labels(told)

    def teams(self) -> dict[str, str]:
        """Whose the keys are, by their ids, where they are a team's."""
        told = {config_id(name): one.team for name, one in self.config.accounts.keys.items()}
        if self.accounts is not None:
            told |= {one.id: one.terms.team for one in self.accounts.stored}
        return {id_: team for id_, team in told.items() if team is not None}


def named(key: str, names: Mapping[str, str]) -> str:
    """A key as people know it."""
    return names.get(key) or (key[:12] if key else NOBODY)


@dataclass(frozen=True)
class Visit:
    """What a browser wants."""

    method: str
    place: str
    """The path below `/ui`."""
    query: str
    headers: Mapping[str, str]
    body: bytes
    now: float
    """Seconds since 1970."""

    @property
    def asked(self) -> dict[str, str]:
        """The fields of the query."""
        return dict(parse_qsl(self.query))

    @property
    def form(self) -> dict[str, str]:
        """The fields of the form that was sent."""
        return dict(parse_qsl(self.body.decode("utf-8", "replace"), keep_blank_values=True))

    @property
    def root(self) -> str:
        """The address of the gateway, as the browser has it."""
        scheme = self.headers.get("x-forwarded-proto", "http")
        scheme = scheme if scheme in _DEFAULT_PORTS else "http"
        return f"{scheme}://{self.headers.get('host', 'localhost')}"

    @property
    def is_own(self) -> bool:
        """Whether a page of this gateway asks, or a person: no page of somebody else's."""
        origin = self.headers.get("origin")
        if origin is not None and origin.partition("://")[2] != self.headers.get("host"):
            return False
        site = self.headers.get("sec-fetch-site", "none")
        goes = self.method == "GET" and self.headers.get("sec-fetch-mode") == "navigate"
        return site in {"same-origin", "none"} or goes


class Page(NamedTuple):
    """What a browser gets."""

    body: bytes
    status: int = 200
    content_type: str = "text/html; charset=utf-8"
    headers: Mapping[str, str] = {}


class Told(NamedTuple):
    """A page to be made of a template, or a part of one, with what goes into it."""

    template: str
    fields: dict[str, Any]
    status: int = 200


class Go(NamedTuple):
    """Another page is to be shown."""

    place: str


Answer: TypeAlias = Told | Go | Page
Do: TypeAlias = Callable[[House, Visit, Account, str], Awaitable[Answer]]
"""Answers: with the house, the visit, who asks, and the part of the path that is the page's own."""
Pages: TypeAlias = Mapping[tuple[str, str], Do]
"""By method and path; `*` stands for one part that is a name."""


# Templates.


def _load(name: str) -> str | None:
    path = _PAGES / name
    return path.read_text(encoding="utf-8") if path.is_file() else None


@cache
def _environment() -> minijinja.Environment:
    # Every template is HTML, and everything that is put into one is escaped.
    environment = minijinja.Environment(
        loader=_load, trim_blocks=True, lstrip_blocks=True,
        auto_escape_callback=lambda _: "html",
        globals={"version": __version__, "static": static},
        filters={"number": number, "seconds": seconds, "share": share},
    )  # fmt: skip
    environment.undefined_behavior = "strict"
    return environment


def render(told: Told, **more: Any) -> Page:
    """The page."""
    text = _environment().render_template(told.template, **told.fields, **more)
    return Page(text.encode("utf-8", "replace"), told.status)


@cache
def static(name: str) -> str:
    """Where a file is; its address changes with what is in it."""
    digest = sha256((STATIC / name).read_bytes()).hexdigest()[:12]
    return f"/ui/static/{name}?{digest}"


# Numbers, as people read them.


def number(value: float | None) -> str:
    """A number with its thousands apart."""
    if value is None:
        return "\u2013"
    told = f"{value:,.2f}" if value % 1 and value < 100 else f"{round(value):,}"
    return told.replace(",", "\u2009")


def seconds(value: float | None) -> str:
    """A time in the unit that suits it."""
    if value is None:
        return "\u2013"
    if value < 1:
        return f"{value * 1000:.0f}\u2009ms"
    if value < 100:
        return f"{value:.1f}\u2009s"
    return f"{value / 60:.0f}\u2009min" if value < 7200 else f"{value / 3600:.0f}\u2009h"


def share(value: float | None) -> str:
    """A part of one, in per cent."""
    return "\u2013" if value is None else f"{value * 100:.0f}\u2009%"
