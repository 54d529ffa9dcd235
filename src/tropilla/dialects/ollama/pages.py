"""What a gateway tells of its models, and of itself, as Ollama does; and what it does not do.

A model is told as far as its server tells of it. Files of models are none of a gateway's business:
who asks for them to be fetched, made or deleted is told so.
"""

from __future__ import annotations

from collections.abc import Callable
from hashlib import sha256
from typing import Literal

from tropilla.dialects._beside import Page, Shape, Shown, Visit
from tropilla.dialects._fields import invalid, missing, wrong_type
from tropilla.dialects._openai import encode
from tropilla.dialects.ollama.names import served_as, tagged, when
from tropilla.dialects.ollama.request import check_alive
from tropilla.ir import Json, JsonObject, Problem, ProblemError

_ABILITIES = {
    "completion": "completion", "tools": "tools", "vision": "vision", "audio": "audio",
    "infill": "insert", "embeddings": "embedding",
}  # fmt: skip
"""A card's words, and Ollama's."""
_NEVER = "9999-12-31T23:59:59Z"
"""When a model is unloaded: that is up to its server."""
_UNITS = ((10**12, "T"), (10**9, "B"), (10**6, "M"), (10**3, "K"))


def _json(body: JsonObject) -> Shown:
    return Shown(body=encode(body))


def _running(visit: Visit) -> Shown:
    del visit
    return Shown(body=b"Ollama is running", content_type="text/plain; charset=utf-8")


def _version(visit: Visit) -> Shown:
    return _json({"version": visit.known.version})


def _tags(visit: Visit) -> Shown:
    return _json({"models": [_listed(card) for card in visit.known.models]})


def _ps(visit: Visit) -> Shown:
    return _json({"models": [_loaded(card) for card in visit.known.models if _is_loaded(card)]})


def _show(visit: Visit) -> Shown:
    card = asked(visit, "model", "name")
    details = _details(card)
    meta = _meta(card)
    info: JsonObject = {"general.architecture": details["family"] or "unknown"}
    family = info["general.architecture"]
    told = {
        "general.parameter_count": meta.get("n_params"),
        f"{family}.context_length": card.get("context_length"),
        f"{family}.embedding_length": meta.get("n_embd"),
        f"{family}.vocab_size": meta.get("n_vocab"),
    }
    info |= {name: value for name, value in told.items() if type(value) is int}
    able = card.get("capabilities") or ()
    return _json(
        {
            "modelfile": f"FROM {card['id']}\n",
            "parameters": "",
            "template": "",
            "details": details,
            "model_info": info,
            "capabilities": [word for name, word in _ABILITIES.items() if name in able],
            "modified_at": when(card["created"]),
        }
    )


def asked(visit: Visit, *names: str) -> JsonObject:
    """The card of the model that a request names.

    Raises:
        ProblemError: it names none, or one that is not served.
    """
    name: Json = None
    for field in names:
        name = visit.body.get(field) or name
    if name is None:
        raise missing(names[0])
    if type(name) is not str:
        raise wrong_type(names[0], "a string", name)
    cards = {card["id"]: card for card in visit.known.models}
    card = cards.get(served_as(name, cards))
    if card is None:
        raise ProblemError(Problem(kind="unknown_model", message=f"model '{name}' not found"))
    return card


def _listed(card: JsonObject) -> JsonObject:
    name = tagged(card["id"])
    return {
        "name": name,
        "model": name,
        "modified_at": when(card["created"]),
        "size": size if type(size := _meta(card).get("size")) is int else 0,
        # Of what is known of it: the file is where its server is.
        "digest": sha256(encode([card["id"], _plain(_meta(card))])).hexdigest(),
        "details": _details(card),
    }


def _loaded(card: JsonObject) -> JsonObject:
    told = _listed(card)
    del told["modified_at"]
    return told | {
        "expires_at": _NEVER,
        "size_vram": 0,
        "context_length": card.get("context_length", 0),
    }


def _is_loaded(card: JsonObject) -> bool:
    return card["status"].get("value") in {"loaded", "sleeping"}


def _plain(meta: JsonObject) -> list[Json]:
    return sorted([name, value] for name, value in meta.items() if type(value) is int)


def _meta(card: JsonObject) -> JsonObject:
    meta = card.get("meta")
    return meta if type(meta) is dict else {}


def _details(card: JsonObject) -> JsonObject:
    count, family = _meta(card).get("n_params"), card.get("architecture")
    family = family if type(family) is str else ""
    quant = _meta(card).get("ftype")
    return {
        "parent_model": "",
        "format": "gguf" if card.get("owned_by") == "llamacpp" else "",
        "family": family,
        "families": [family] if family else [],
        "parameter_size": _rounded(count) if type(count) is int else "",
        "quantization_level": quant if type(quant) is str else "",
    }


def _rounded(count: int) -> str:
    for size, unit in _UNITS:
        if count >= size:
            return f"{count / size:.1f}{unit}"
    return str(count)


# What is asked on the paths of generation, and is none.


def loads_chat(visit: Visit) -> Shown | None:
    """A request without messages, which has a model loaded or unloaded: all here stay loaded."""
    if visit.body.get("messages"):
        return None
    return _load(visit, {"message": {"role": "assistant", "content": ""}})


def loads_generate(visit: Visit) -> Shown | None:
    """A request without a prompt, which has a model loaded or unloaded: all here stay loaded."""
    if visit.body.get("prompt"):
        return None
    return _load(visit, {"response": ""})


def _load(visit: Visit, said: JsonObject) -> Shown:
    if visit.body.get("images") or visit.body.get("suffix"):
        raise invalid("prompt", "it must not be empty.")
    card = asked(visit, "model")
    alive = visit.body.get("keep_alive")
    check_alive(alive)
    unloads = alive in {0, "0", "0s", "0m"}
    head = {"model": visit.body["model"], "created_at": when(visit.known.now)}
    if card["status"].get("failed"):
        message = f"The server of '{card['id']}' cannot be reached."
        raise ProblemError(Problem(kind="unavailable", message=message, retry_after=1))
    return _json(head | said | {"done": True, "done_reason": "unload" if unloads else "load"})


# What is not done.

_FILES = "the files of models are where their servers are."
_REFUSED: tuple[tuple[Literal["GET", "HEAD", "POST", "PUT", "DELETE"], str, str], ...] = (
    ("POST", "/api/pull", f"Tropilla pulls nothing for a client: {_FILES}"),
    ("POST", "/api/push", f"Tropilla pushes nothing: {_FILES}"),
    ("POST", "/api/create", f"Tropilla creates no models: {_FILES}"),
    ("POST", "/api/copy", "Tropilla copies no models: its config gives one as many names."),
    ("DELETE", "/api/delete", f"Tropilla deletes no models: {_FILES}"),
    ("POST", "/api/blobs/{digest}", f"Tropilla takes no files: {_FILES}"),
    ("HEAD", "/api/blobs/{digest}", f"Tropilla has no files: {_FILES}"),
)


def _page(
    path: str, answer: Callable[[Visit], Shown], summary: str, answers: str | None = None
) -> Page:
    refuses = ("500",) if path == "/" else ("401", "500")
    shape = Shape(summary, None, answers, None, refuses)
    return Page(method="GET", path=path, answer=answer, shape=shape, public=path == "/")


PAGES = (
    _page("/", _running, "Whether there is an Ollama"),
    _page("/api/version", _version, "The version of Tropilla", "OllamaVersion"),
    _page("/api/tags", _tags, "What is served", "OllamaModels"),
    _page("/api/ps", _ps, "What is loaded", "OllamaModels"),
    Page(
        method="POST",
        path="/api/show",
        answer=_show,
        shape=Shape(
            "One model",
            "OllamaShow",
            "OllamaShown",
            None,
            ("400", "401", "404", "408", "413", "415", "500"),
        ),
    ),
    *(
        Page(
            method=method,
            path=path,
            answer=why,
            shape=Shape("Refused", None, None, None, ("401", "501")),
        )
        for method, path, why in _REFUSED
    ),
)
