"""What kind of server is this, and can it serve? Asked cheaply, without generating a token.

A probe reads three documents at most and believes none of them: a server is whatever answered.
"""

from __future__ import annotations

import msgspec

from tropilla.dialects import _problems
from tropilla.ir import Json, JsonObject, Problem, ProblemError, Traits
from tropilla.upstream.http import Link

_SECONDS = 5.0


async def alive(link: Link) -> None:
    """Return if the server can serve.

    Servers before b1809 have no `/health`: any HTTP answer but 503 is a sign of life.

    Raises:
        ProblemError: it cannot; of kind `loading` while it loads its model.
    """
    status, body = await link.ask("GET", "/health", seconds=_SECONDS)
    if status == 503:
        problem = _problems.parse(status, body)
        raise ProblemError(msgspec.structs.replace(problem, kind="loading", retryable=True))
    if status in {401, 403}:
        raise ProblemError(_refused(link))
    if status >= 500:
        raise ProblemError(_problems.parse(status, body))


async def probe(link: Link) -> Traits:
    """Learn what a live server serves.

    Raises:
        ProblemError: it cannot serve, or is not a server of models at all.
    """
    await alive(link)
    status, models = await _document(link, "/v1/models")
    if status in {401, 403}:
        raise ProblemError(_refused(link))
    _, props = await _document(link, "/props")
    settings = props.get("default_generation_settings")
    settings = settings if type(settings) is dict else {}
    cards = _cards(models)
    if not cards:
        old = await _old_model(link, props)
        if old is None and status != 200 and not props:
            raise ProblemError(
                Problem(
                    kind="upstream_failed",
                    message=f"{link.url} answers, but not as a llama.cpp server does: "
                    "is the address right?",
                )
            )
        cards = {old or "default": {}}
    return Traits(
        models=cards,
        chat=status == 200,
        build=_text(props.get("build_info")),
        n_ctx=_number(settings.get("n_ctx")),
        slots=_number(props.get("total_slots")),
    )


def _refused(link: Link) -> Problem:
    return Problem(
        kind="upstream_failed",
        message=f"The upstream {link.url} wants an API key: give it with --upstream-api-key.",
    )


async def _document(link: Link, path: str) -> tuple[int, JsonObject]:
    status, body = await link.ask("GET", path, seconds=_SECONDS)
    try:
        document: Json = msgspec.json.decode(body) if status == 200 else None
    except (msgspec.DecodeError, RecursionError, UnicodeDecodeError):
        return 0, {}
    return status, document if type(document) is dict else {}


def _cards(models: JsonObject) -> dict[str, JsonObject]:
    """Every model of the list by its name, and by each of its aliases."""
    cards: dict[str, JsonObject] = {}
    data = models.get("data")
    for card in data if type(data) is list else ():
        match card:
            case {"id": str(name)}:
                aliases = card.get("aliases")
                names = [name, *(aliases if type(aliases) is list else ())]
                cards |= {alias: card for alias in names if type(alias) is str and alias}
    return cards


async def _old_model(link: Link, props: JsonObject) -> str | None:
    """The model's file name: `/props` has it since b4285, `/model.json` had it before b2084."""
    path = _text(props.get("model_path"))
    if path is None:
        _, settings = await _document(link, "/model.json")
        path = _text(settings.get("model"))
    if path is None:
        return None
    name = path.replace("\\", "/").rsplit("/", 1)[-1].removesuffix(".gguf")
    return name or None


def _text(value: Json) -> str | None:
    return value if type(value) is str and value else None


def _number(value: Json) -> int | None:
    return value if type(value) is int and value > 0 else None
