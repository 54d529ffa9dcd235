"""The dashboard: pages for people, made here, with nothing from any other host.

It lets people in by itself: with the admin key; or, where the gateway needs no key at all and
listens on this machine alone, anybody on it. A page is asked for by its own browser or by a person,
never by a page of somebody else's, and whatever changes something has the token of its session.
"""

from __future__ import annotations

import ipaddress
from urllib.parse import unquote

from tropilla.accounts.keys import ANYBODY
from tropilla.accounts.keys.rights import OPERATOR
from tropilla.accounts.store import StoreError
from tropilla.config import Config
from tropilla.dashboard import activity, connect, herd, keys, playground, usage
from tropilla.dashboard.house import STATIC, Go, House, Page, Pages, Told, Visit, render
from tropilla.dashboard.sessions import Session, Sessions
from tropilla.ir import Problem, ProblemError

__all__ = ["Dashboard", "House", "Page", "Visit"]

_PAGES: Pages = {
    **herd.PAGES, **activity.PAGES, **usage.PAGES, **keys.PAGES, **playground.PAGES,
    **connect.PAGES,
}  # fmt: skip
_NAV = (
    ("herd", "Herd"),
    ("activity", "Activity"),
    ("usage", "Usage"),
    ("keys", "Keys"),
    ("playground", "Playground"),
    ("connect", "Connect"),
)
_POLICY = (
    "default-src 'none'; script-src 'self'; style-src 'self'; img-src 'self' data:; "
    "connect-src 'self'; form-action 'self'; base-uri 'none'; frame-ancestors 'none'"
)
_SAFE = {
    "content-security-policy": _POLICY,
    "x-content-type-options": "nosniff",
    "x-frame-options": "DENY",
    "referrer-policy": "same-origin",
    "cross-origin-opener-policy": "same-origin",
    "cross-origin-resource-policy": "same-origin",
}
_TYPES = {
    ".js": "text/javascript; charset=utf-8",
    ".css": "text/css; charset=utf-8",
    ".svg": "image/svg+xml",
    ".txt": "text/plain; charset=utf-8",
}
_STATUS = {"forbidden": 403, "not_found": 404, "unavailable": 503}


class Dashboard:
    """All pages of a gateway."""

    def __init__(self, house: House) -> None:
        self._house = house
        self.reload(house.config)

    def reload(self, config: Config) -> None:
        """Show what another config says."""
        self._house.config = config
        accounts = self._house.accounts
        secret = None if accounts is None else accounts.ring.told
        self._sessions = Sessions(config.accounts.admin_key, secret)

    async def answer(self, visit: Visit) -> Page:
        """The page that is wanted."""
        if not visit.is_own:
            message = "This is for pages of this gateway alone."
            page = self._failed(visit, Problem(kind="forbidden", message=message), None)
        elif visit.place.startswith("/static/") and visit.method == "GET":
            page = _static(visit.place.removeprefix("/static/"))
        else:
            page = await self._shown(visit)
        return page._replace(headers=_SAFE | dict(page.headers))

    async def _shown(self, visit: Visit) -> Page:
        opened = self._opened(visit)
        session = self._sessions.read(visit.headers, visit.now)
        new = session is None or (session.who == "anybody" and not opened)
        if session is None or new:
            session = self._sessions.begun("anybody" if opened else "nobody", visit.now)
        if visit.method == "POST":
            token = visit.headers.get("x-csrf-token") or visit.form.get("csrf", "")
            if new or not self._sessions.fits(session, token):
                message = "This page is too old to do that: load it again, and try once more."
                return self._failed(visit, Problem(kind="forbidden", message=message), session)
        if visit.place == "/login":
            return self._login(visit, session, new=new)
        if visit.place == "/logout" and visit.method == "POST":
            session = self._sessions.begun("nobody", visit.now)
            return self._with(visit, session, _to("login"))
        if session.who == "nobody":
            return self._with(visit, session, _to("login"), new=new)
        page = await self._own(visit, session)
        return self._with(visit, session, page, new=new)

    def _opened(self, visit: Visit) -> bool:
        """Whether anybody may look who can reach this address, which is this machine's own.

        A name that leads here is another's: a page could have it lead here to read this one.
        """
        host = visit.headers.get("host", "").rpartition("]")[0].lstrip("[")
        host = host or visit.headers.get("host", "").partition(":")[0]
        return self._house.is_open() and _is_here(self._house.config.host) and _is_here(host)

    def _login(self, visit: Visit, session: Session, *, new: bool) -> Page:
        fields = {"wrong": False, "keyless": not self._house.config.accounts.admin_key}
        if visit.method == "POST":
            found = self._house.who(visit.form.get("key", "").strip())
            if found is not None and found.role == "admin":
                return self._with(visit, self._sessions.begun("admin", visit.now), _to("herd"))
            fields["wrong"] = True
        elif session.who != "nobody":
            return self._with(visit, session, _to("herd"), new=new)
        told = Told("login.html", fields, 403 if fields["wrong"] else 200)
        return self._with(visit, session, self._rendered(told, session, ""), new=new)

    def _with(self, visit: Visit, session: Session, page: Page, *, new: bool = True) -> Page:
        if not new:
            return page
        secure = visit.root.startswith("https:")
        cookie = self._sessions.cookie(session, secure=secure)
        return page._replace(headers={**page.headers, "set-cookie": cookie})

    async def _own(self, visit: Visit, session: Session) -> Page:
        parts = visit.place.strip("/").split("/")
        if parts == [""]:
            return _to("herd")
        own, rest = "/".join(parts), ""
        do = _PAGES.get((visit.method, own))
        if do is None and len(parts) > 1:
            rest = unquote(parts[1])
            do = _PAGES.get((visit.method, "/".join((parts[0], "*", *parts[2:]))))
        actor = OPERATOR if session.who == "admin" else ANYBODY
        try:
            if do is None:
                raise ProblemError(Problem(kind="not_found", message="There is no such page."))
            answer = await do(self._house, visit, actor, rest)
        except ProblemError as error:
            return self._failed(visit, error.problem, session)
        except StoreError:
            message = "The store of the accounts cannot be read now; the log of Tropilla tells why."
            problem = Problem(kind="unavailable", message=message)
            return self._failed(visit, problem, session)
        if isinstance(answer, Page):
            return answer
        if isinstance(answer, Go):
            return _to(answer.place)
        return self._rendered(answer, session, parts[0])

    def _failed(self, visit: Visit, problem: Problem, session: Session | None) -> Page:
        status = _STATUS.get(problem.kind, 400)
        if visit.headers.get("accept", "").startswith("application/json"):
            body = problem.message.encode()
            return Page(body, status, "text/plain; charset=utf-8")
        here = visit.place.strip("/").partition("/")[0]
        told = Told("problem.html", {"problem": problem.message}, status)
        return self._rendered(told, session, here)

    def _rendered(self, told: Told, session: Session | None, here: str) -> Page:
        known = session is not None and session.who != "nobody"
        part, of = self._house.fleet.part
        return render(
            told,
            here=here,
            nav=_NAV if known else (),
            token="" if session is None else self._sessions.token(session),
            admin=session is not None and session.who == "admin",
            process=f"{part + 1} of {of}" if of > 1 else "",
        )


def _to(place: str) -> Page:
    return Page(b"", 303, headers={"location": f"/ui/{place}"})


def _static(name: str) -> Page:
    path = STATIC / name
    if "/" in name or not path.is_file():
        return Page(b"There is no such file.", 404, "text/plain; charset=utf-8")
    kept = {"cache-control": "public, max-age=31536000, immutable"}
    return Page(path.read_bytes(), 200, _TYPES[path.suffix], kept)


def _is_here(host: str) -> bool:
    """Whether an address is this machine's own, and reached by nobody else."""
    if host == "localhost":
        return True
    try:
        return ipaddress.ip_address(host).is_loopback
    except ValueError:
        return False
