"""The page that connects other programs: what `tropilla connect` prints, for this gateway."""

from __future__ import annotations

from typing import Any

from tropilla.accounts.keys import Account
from tropilla.accounts.keys.rights import authorize
from tropilla.clients import CLIENTS, Client, Place, edits
from tropilla.dashboard.house import House, Pages, Told, Visit
from tropilla.ir import Problem, ProblemError

_A_KEY = "YOUR_KEY"


def _shown(client: Client, place: Place) -> dict[str, Any]:
    told = client.connection(place)
    settings = told.settings
    file = None
    if settings is not None:
        folder = settings.folder
        if folder.startswith("app:"):
            folder = f"the folder of settings of {folder.removeprefix('app:')}"
        file = {"path": f"{folder}/{settings.file}", "text": edits.alone(settings)}
    return {
        "name": client.name,
        "title": client.title,
        "documentation": client.documentation,
        "steps": [{"title": one.title, "text": one.text} for one in told.steps],
        "file": file,
    }


async def _page(house: House, visit: Visit, actor: Account, rest: str) -> Told:
    authorize(actor, "look")
    client = CLIENTS.get(rest or "curl")
    if client is None:
        raise ProblemError(Problem(kind="not_found", message="There is no such client."))
    serving = house.fleet.serving()
    names = sorted(serving)
    asked = visit.asked.get("model", "")
    model = asked if asked in serving else next(iter(names), "MODEL")
    contexts = [one.traits.n_ctx for one in serving.get(model, ()) if one.traits.n_ctx]
    place = Place(
        root=visit.root,
        model=model,
        key=None if house.is_open() else _A_KEY,
        context=min(contexts, default=None),
    )
    return Told(
        "connect.html",
        {
            "clients": [(one.name, one.title) for one in CLIENTS.values()],
            "one": _shown(client, place),
            "models": names,
            "model": model,
            "keyless": house.is_open(),
            "a_key": _A_KEY,
            "root": visit.root,
        },
    )


PAGES: Pages = {("GET", "connect"): _page, ("GET", "connect/*"): _page}
