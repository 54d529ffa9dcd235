"""Vectors of texts: `/api/embed`, and the older `/api/embeddings` for one text."""

from __future__ import annotations

from array import array
from collections.abc import Sequence

from tropilla.dialects._beside import Face, Shape, Shown, Visit
from tropilla.dialects._fields import Fields, missing, wrong_type
from tropilla.dialects._openai import encode
from tropilla.dialects.ollama.pages import asked
from tropilla.ir import JsonObject, Usage


def _parse(body: JsonObject) -> JsonObject:
    fields = Fields(body)
    given = fields.any("input")
    for place, one in enumerate(given if type(given) is list else ()):
        if type(one) is not str:
            raise wrong_type(f"input.{place}", "a string", one)
    told = {
        "model": fields.string("model"),
        "input": given,
        "dimensions": fields.integer("dimensions", least=1),
    }
    fields.boolean("truncate")
    return told


def _parse_old(body: JsonObject) -> JsonObject:
    fields = Fields(body)
    return {"model": fields.string("model"), "input": fields.string("prompt")}


def _render(vectors: Sequence[array[float]], usage: Usage | None, model: str) -> bytes:
    told = {"model": model, "embeddings": [vector.tolist() for vector in vectors]}
    return encode(told | {"prompt_eval_count": (usage or Usage()).prompt_tokens})


def _render_old(vectors: Sequence[array[float]], usage: Usage | None, model: str) -> bytes:
    del usage, model
    return encode({"embedding": vectors[0].tolist()})


def _none(visit: Visit) -> Shown | None:
    """No input at all is how a model is loaded: none here has to be."""
    given = visit.body.get("input")
    if given is None:
        raise missing("input")
    if given not in ("", []):
        return None
    asked(visit, "model")
    return Shown(body=encode({"model": visit.body["model"], "embeddings": []}))


def _none_old(visit: Visit) -> Shown | None:
    if visit.body.get("prompt"):
        return None
    asked(visit, "model")
    return Shown(body=encode({"embedding": []}))


FACES = (
    Face(
        path="/api/embed",
        parse=_parse,
        render=_render,
        instead=_none,
        shape=Shape("Make vectors of texts", "OllamaEmbed", "OllamaEmbedded"),
    ),
    Face(
        path="/api/embeddings",
        parse=_parse_old,
        render=_render_old,
        instead=_none_old,
        shape=Shape("Make a vector of a text", "OllamaEmbedding", "OllamaEmbeddingAnswer"),
    ),
)
