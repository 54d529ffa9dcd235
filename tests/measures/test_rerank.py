"""Rerank: what is asked and answered, in every form."""

from __future__ import annotations

from contextlib import suppress
from typing import Any

import msgspec
import pytest
from hypothesis import given
from hypothesis import strategies as st

from tropilla.ir import Malformed, Problem, Traits, Usage
from tropilla.measures import Counted, Rank, Ranked, Ranking, rerank

TODAY = Traits(build=11549, chat=True)
OPENAI = Traits(dialect="openai", chat=True, tokenizes=False)
QUERY: dict[str, Any] = {"query": "q", "documents": ["a", "b", "c"]}


def parsed(**body: Any) -> Rank:
    return rerank.parse_request(body, "/v1/rerank")


def refused(**body: Any) -> Problem:
    with pytest.raises(Malformed) as error:
        parsed(**body)
    return error.value.problem


def answered(request: Rank, *results: tuple[int, float], **more: Any) -> Any:
    """What a client hears, when an upstream says this."""
    entries = [{"index": index, "relevance_score": score} for index, score in results]
    told = rerank.parse_answer({"results": entries} | more, request, TODAY)
    whole = rerank.join([told], request, matryoshka=False)
    return msgspec.json.decode(rerank.render_answer(whole, request, "m"))


def test_where_it_is_found() -> None:
    paths = {place.path for place in rerank.PLACES}
    assert paths == {"/v1/rerank", "/rerank", "/v1/reranking", "/reranking"}


@pytest.mark.parametrize(
    ("body", "param"),
    [
        ({"documents": ["a"]}, "query"),
        ({"query": "", "documents": ["a"]}, "query"),
        ({"query": {"text": "q"}, "documents": ["a"]}, "query"),
        ({"query": "q"}, "documents"),
        ({"query": "q", "documents": []}, "documents"),
        ({"query": "q", "documents": "a"}, "documents"),
        ({"query": "q", "documents": ["a", 1]}, "documents.1"),
        ({"query": "q", "documents": [{"title": "a"}]}, "documents.0.text"),
        ({"query": "q", "documents": [{"text": 1}]}, "documents.0.text"),
        ({"query": "q", "texts": []}, "texts"),
        ({"query": "q", "texts": [{"text": "a"}]}, "texts.0"),
        ({"query": "q", "texts": ["a"], "return_text": 1}, "return_text"),
        (QUERY | {"top_n": 0}, "top_n"),
        (QUERY | {"top_n": "1"}, "top_n"),
        (QUERY | {"return_documents": "yes"}, "return_documents"),
        (QUERY | {"model": 1}, "model"),
    ],
)
def test_what_is_wrong_is_named(body: dict[str, Any], param: str) -> None:
    problem = refused(**body)
    assert (problem.kind, problem.param) == ("malformed", param)


@pytest.mark.parametrize("traits", [TODAY, OPENAI, Traits(build=3838, chat=True)])
def test_every_upstream_is_asked_for_every_score(traits: Traits) -> None:
    request = parsed(**QUERY, top_n=1, return_documents=True, model="m", max_chunks_per_doc=2)
    assert rerank.split(request, traits) == (request,)
    wire = rerank.render_request(request, traits)
    assert wire.path == "/v1/rerank"
    assert wire.body == QUERY | {"model": "m", "max_chunks_per_doc": 2}
    assert wire.dropped == ()


def test_teis_form_is_said_in_jinas() -> None:
    request = parsed(query="q", texts=["a", "b"], truncate=True, return_text=True)
    wire = rerank.render_request(request, TODAY)
    assert wire.body == {"query": "q", "documents": ["a", "b"]}
    assert wire.dropped == ("truncate",)


def test_afs_ranks_nothing() -> None:
    with pytest.raises(Malformed) as error:
        rerank.render_request(parsed(**QUERY), Traits(dialect="afs"))
    assert error.value.problem.kind == "unsupported"


def test_the_best_comes_first_and_equals_keep_their_order() -> None:
    answer = answered(parsed(**QUERY), (0, -2.5), (2, 1), (1, 1.0), usage={"prompt_tokens": 9})
    assert answer == {
        "model": "m",
        "object": "list",
        "usage": {"prompt_tokens": 9, "total_tokens": 9},
        "results": [
            {"index": 1, "relevance_score": 1.0},
            {"index": 2, "relevance_score": 1},
            {"index": 0, "relevance_score": -2.5},
        ],
    }


@pytest.mark.parametrize(("top_n", "count"), [(1, 1), (3, 3), (9, 3), (None, 3)])
def test_as_many_as_were_wanted(top_n: int | None, count: int) -> None:
    answer = answered(parsed(**QUERY, top_n=top_n), (0, 1), (1, 2), (2, 3))
    assert [one["index"] for one in answer["results"]] == [2, 1, 0][:count]


def test_documents_are_shown_as_they_were_given() -> None:
    documents = ["a", {"text": "b", "id": 7}]
    request = parsed(query="q", documents=documents, return_documents=True)
    first, second = answered(request, (0, 1), (1, 2))["results"]
    assert first["document"] == {"text": "b", "id": 7}
    assert second["document"] == {"text": "a"}
    hidden = parsed(query="q", documents=documents)
    assert "document" not in answered(hidden, (0, 1), (1, 2))["results"][0]


@pytest.mark.parametrize("shows", [False, True])
def test_tei_hears_a_bare_list(*, shows: bool) -> None:
    request = parsed(query="q", texts=["a", "b"], return_text=shows)
    text: list[dict[str, str]] = [{"text": "b"}, {"text": "a"}] if shows else [{}, {}]
    assert answered(request, (0, 1), (1, 2), id="x") == [
        {"index": 1, "score": 2} | text[0],
        {"index": 0, "score": 1} | text[1],
    ]


def test_a_bare_list_is_read_too() -> None:
    body = [{"index": 0, "score": 1.5}, {"index": 1, "score": 2.5}]
    told = rerank.parse_answer(body, parsed(query="q", documents=["a", "b"]), OPENAI)
    assert told.ranked == (Ranked(index=1, score=2.5), Ranked(index=0, score=1.5))


def test_usage_may_be_a_total_alone() -> None:
    answer = answered(parsed(**QUERY), (0, 1), usage={"total_tokens": 12}, id="r-1")
    assert answer["usage"] == {"prompt_tokens": 12, "total_tokens": 12}
    assert answer["id"] == "r-1"
    told = rerank.parse_answer({"results": []}, parsed(**QUERY), TODAY)
    assert told == Ranking(ranked=())


def test_the_query_counts_with_every_document() -> None:
    assert rerank.counted(parsed(query="q", documents=["a", "b"])) == [
        Counted(input="q", times=2), Counted(input="a"), Counted(input="b"),
    ]  # fmt: skip
    whole = rerank.join(
        [Ranking(ranked=(), usage=Usage(prompt_tokens=1))], parsed(**QUERY), matryoshka=False
    )
    assert whole.usage == Usage(prompt_tokens=1)


@pytest.mark.parametrize(
    "body",
    [
        None, {}, "x", {"results": None}, {"results": [1]}, [1],
        {"results": [{"index": 3, "relevance_score": 1}]},
        {"results": [{"index": -1, "relevance_score": 1}]},
        {"results": [{"index": 0, "relevance_score": None}]},
        {"results": [{"index": 0, "relevance_score": True}]},
        {"results": [{"index": 0}]},
        {"results": [{"index": 1, "relevance_score": 1}, {"index": 1, "relevance_score": 1}]},
    ],
)  # fmt: skip
def test_what_is_no_ranking_is_malformed(body: Any) -> None:
    with pytest.raises(Malformed):
        rerank.parse_answer(body, parsed(**QUERY), TODAY)


JSON = st.recursive(
    st.none() | st.booleans() | st.integers() | st.floats(allow_nan=False) | st.text(max_size=5),
    lambda inner: st.lists(inner, max_size=3) | st.dictionaries(st.text(max_size=5), inner),
)


@given(JSON)
def test_garbage_is_only_malformed(body: Any) -> None:
    for one in (body, {"results": body}, {"results": [{"index": 0, "score": body}]}):
        with suppress(Malformed):
            rerank.parse_answer(one, parsed(**QUERY), TODAY)
    for field in ("query", "documents", "texts", "top_n", "return_documents", "model"):
        with suppress(Malformed):
            parsed(**QUERY | {field: body})
