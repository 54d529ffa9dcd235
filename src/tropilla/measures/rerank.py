"""Rerank: how well documents answer a query, as Jina and Cohere have it, and as TEI has it.

An upstream is asked for every score. Which of them a client hears, in which order and beside
which documents is decided here: llama.cpp before #16403 neither sorts nor knows `top_n`, and it
never shows documents.
"""

from __future__ import annotations

import math
from typing import Literal

from tropilla.dialects import Wire
from tropilla.dialects._fields import Fields, invalid, missing, wrong_type
from tropilla.dialects._openai import encode
from tropilla.ir import Json, JsonObject, Malformed, Traits
from tropilla.measures import Counted, Place, Rank, Ranked, Ranking, _answers

ABILITY: Literal["rerank"] = "rerank"

PLACES = tuple(
    Place(path=path) for path in ("/v1/rerank", "/rerank", "/v1/reranking", "/reranking")
)


# A client's request.


def parse_request(body: JsonObject, path: str) -> Rank:  # noqa: ARG001 - one form on every path
    """Read a request: TEI's, where it has `texts`, and else Jina's and Cohere's."""
    fields = Fields(body)
    tei = fields.rest.get("texts") is not None
    query = fields.required("query")
    if not query:
        raise invalid("query", "it must not be empty.")
    name = "texts" if tei else "documents"
    given = fields.array(name)
    if given is None:
        raise missing(name)
    if not given:
        raise invalid(name, "it must not be empty.", "array_below_min_length")
    documents = tuple(_read_document(one, f"{name}.{n}", tei=tei) for n, one in enumerate(given))
    shows = fields.boolean("return_text" if tei else "return_documents")
    shown = [one if type(one) is dict else {"text": one} for one in given]
    return Rank(
        query=query,
        documents=documents,
        model=fields.string("model"),
        top_n=fields.integer("top_n", least=1),
        shown=tuple(shown) if shows else None,
        form="tei" if tei else "jina",
        extras=fields.rest,
    )


def _read_document(value: Json, path: str, *, tei: bool) -> str:
    """A text, or an object that has one."""
    if type(value) is str:
        return value
    if type(value) is not dict or tei:
        raise wrong_type(path, "a string" if tei else "a string or an object", value)
    return Fields(value, path).required("text")


# To an upstream.


def split(request: Rank, traits: Traits) -> tuple[Rank, ...]:  # noqa: ARG001 - nobody needs it
    """All at once: there are models that compare the documents with each other."""
    return (request,)


def render_request(request: Rank, traits: Traits) -> Wire:
    """Ask for every score, in Jina's form, which every server of rankings reads."""
    if traits.dialect == "afs":
        raise Malformed("AFS ranks no texts.", kind="unsupported")
    related = request.form == "jina"
    body: JsonObject = dict(request.extras) if related else {}
    if request.model is not None:
        body["model"] = request.model
    body |= {"query": request.query, "documents": list(request.documents)}
    dropped = () if related else tuple(request.extras)
    return Wire(path="/v1/rerank", body=body, dropped=dropped)


# An upstream's answer.


def parse_answer(body: Json, request: Rank, traits: Traits) -> Ranking:  # noqa: ARG001 - as above
    """Read the scores: `results` as Jina and Cohere give them, or TEI's bare list."""
    extras: JsonObject = {}
    usage = None
    match body:
        case {"results": entries}:
            usage = _answers.usage_of(body)
            if request.form == "jina":
                extras = {key: body[key] for key in body.keys() - _OWN}
        case list(entries):
            pass
        case _:
            raise Malformed("The upstream's answer has no results.")
    told = _answers.indexed(entries, len(request.documents), "results")
    ranked = [Ranked(index=index, score=_score(entry)) for index, entry in told]
    return Ranking(ranked=tuple(sorted(ranked, key=_place)), usage=usage, extras=extras)


_OWN = {"results", "model", "object", "usage"}


def _score(entry: JsonObject) -> float:
    score = entry.get("relevance_score", entry.get("score"))
    if type(score) is int or (type(score) is float and math.isfinite(score)):
        return score
    raise Malformed("A score of the upstream is no number.")


def _place(one: Ranked) -> tuple[float, int]:
    """The best score first; of equals, the document that was named first."""
    return -one.score, one.index


def join(parts: list[Ranking], request: Rank, *, matryoshka: bool) -> Ranking:  # noqa: ARG001
    """As many of the best as were wanted."""
    (whole,) = parts
    return Ranking(ranked=whole.ranked[: request.top_n], usage=whole.usage, extras=whole.extras)


def counted(request: Rank) -> list[Counted]:
    """The query, which is read with every document, and each document."""
    documents = [Counted(input=one) for one in request.documents]
    return [Counted(input=request.query, times=len(documents)), *documents]


# A client's answer.


def render_answer(answer: Ranking, request: Rank, model: str) -> bytes:
    """The answer, whole: in Jina's form, or in that of TEI."""
    tei = request.form == "tei"
    results = [_result(one, request, tei=tei) for one in answer.ranked]
    if tei:
        return encode(results)
    usage = _answers.write_usage(answer.usage)
    told = {"object": "list", "model": model, "usage": usage, "results": results}
    return encode(answer.extras | told)


def _result(one: Ranked, request: Rank, *, tei: bool) -> JsonObject:
    result: JsonObject = {"index": one.index, "score" if tei else "relevance_score": one.score}
    if request.shown is not None:
        document = request.shown[one.index]
        result |= document if tei else {"document": document}
    return result
