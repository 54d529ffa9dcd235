"""The list of models as Anthropic's clients read it, told apart from OpenAI's by its header."""

from __future__ import annotations

from datetime import UTC, datetime
from urllib.parse import parse_qs

from tropilla.dialects._beside import Shown, Visit
from tropilla.dialects._fields import invalid
from tropilla.dialects._openai import encode
from tropilla.ir import Json, JsonObject, Problem, ProblemError

_MOST = 1000
_USUAL = 20
_LAST_DATE = 253_402_300_800
"""Seconds at which the years have five digits."""


def listed(visit: Visit) -> Shown:
    """One page of all models.

    Raises:
        Malformed: there is no such page.
    """
    asked = {name: values[-1] for name, values in parse_qs(visit.query).items()}
    limit = asked.get("limit", str(_USUAL))
    if not limit.isdecimal() or len(limit) > 4 or not 1 <= int(limit) <= _MOST:
        raise invalid("limit", f"expected a whole number from 1 to {_MOST}.")
    found, more = _page(visit, asked, int(limit))
    told = {
        "data": found,
        "has_more": more,
        "first_id": found[0]["id"] if found else None,
        "last_id": found[-1]["id"] if found else None,
    }
    return Shown(body=encode(told))


def _page(visit: Visit, asked: dict[str, str], limit: int) -> tuple[list[JsonObject], bool]:
    """Some of the models, and whether there are more behind them, or before."""
    cards = list(visit.known.models)
    ids = [card["id"] for card in cards]
    for name in ("after_id", "before_id"):
        if name in asked and asked[name] not in ids:
            raise invalid(name, f"there is no model '{asked[name]}'.")
    if "after_id" in asked:
        cards = cards[ids.index(asked["after_id"]) + 1 :]
    elif "before_id" in asked:
        cards = cards[: ids.index(asked["before_id"])]
        return [_info(card) for card in cards[-limit:]], len(cards) > limit
    return [_info(card) for card in cards[:limit]], len(cards) > limit


def one(visit: Visit) -> Shown:
    """One model.

    Raises:
        ProblemError: it is not served.
    """
    for card in visit.known.models:
        if card["id"] == visit.rest:
            return Shown(body=encode(_info(card)))
    message = f"The model '{visit.rest}' does not exist."
    raise ProblemError(Problem(kind="unknown_model", message=message, param="model"))


def _info(card: JsonObject) -> JsonObject:
    """A model in the words of this API; `null` is what nobody knows."""
    size = card.get("context_length")
    return {
        "type": "model",
        "id": card["id"],
        "display_name": card["id"],
        "created_at": _date(card.get("created")),
        "lifecycle": "active",
        "max_input_tokens": size,
        "max_tokens": size,
        "capabilities": _capabilities(card.get("capabilities")),
    }


def _date(seconds: Json) -> str:
    """When a model was made; the epoch stands for what is not known, as Anthropic has it."""
    known = type(seconds) is int and 0 <= seconds < _LAST_DATE
    made = datetime.fromtimestamp(seconds if known else 0, UTC)
    return made.strftime("%Y-%m-%dT%H:%M:%SZ")


_NO, _YES = {"supported": False}, {"supported": True}


def _capabilities(told: Json) -> JsonObject:
    """What a model can do, every key of it."""
    vision = type(told) is list and "vision" in told
    return {
        "batch": _NO,
        "citations": _NO,
        "code_execution": _NO,
        "context_management": _NO,
        "effort": _YES | dict.fromkeys(("low", "medium", "high", "xhigh", "max"), _YES),
        "image_input": _YES if vision else _NO,
        "pdf_input": _NO,
        "server_tools": _NO | {"code_execution": _NO, "web_search": _NO},
        "structured_outputs": _YES,
        "thinking": _YES
        | {"types": dict.fromkeys(("adaptive", "between_tools", "disabled", "enabled"), _YES)},
    }


def alive(visit: Visit) -> Shown:  # noqa: ARG001 - whoever asks
    """That somebody is here: agents look before they ask."""
    return Shown(body=b"", content_type="text/plain")
