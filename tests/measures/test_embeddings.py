"""Embeddings: what is asked and answered, in every form."""

from __future__ import annotations

import base64
import struct
from array import array
from contextlib import suppress
from pathlib import Path
from typing import Any

import msgspec
import pytest
from hypothesis import given
from hypothesis import strategies as st

from tropilla.dialects._bases import AFS_BASES
from tropilla.ir import Malformed, Problem, Traits, Usage
from tropilla.measures import Counted, Embed, Vectors, embeddings, named, names

CAPTURES = Path(__file__).parent / "captures"
PATH = "/v1/embeddings"
TODAY = Traits(build=11549, chat=True)
OPENAI = Traits(dialect="openai", chat=True, tokenizes=False)
AFS = Traits(dialect="afs", chat=True, tokenizes=False)
JSON = st.recursive(
    st.none() | st.booleans() | st.integers() | st.floats(allow_nan=False) | st.text(max_size=5),
    lambda inner: st.lists(inner, max_size=3) | st.dictionaries(st.text(max_size=5), inner),
)


def capture(name: str) -> Any:
    return msgspec.json.decode((CAPTURES / f"{name}.json").read_bytes())


def parsed(path: str = PATH, **body: Any) -> Embed:
    return embeddings.parse_request(body, path)


def refused(path: str = PATH, **body: Any) -> Problem:
    with pytest.raises(Malformed) as error:
        parsed(path, **body)
    return error.value.problem


def said(request: Embed, traits: Traits) -> list[Any]:
    wires = [embeddings.render_request(one, traits) for one in embeddings.split(request, traits)]
    return [(wire.path, wire.body) for wire in wires]


def told(*vectors: list[float], usage: Usage | None = None, **more: Any) -> Vectors:
    return Vectors(vectors=tuple(array("d", one) for one in vectors), usage=usage, **more)


# What is asked.


def test_it_is_found() -> None:
    assert names() == ("embeddings", "rerank")
    assert named("embeddings") is embeddings
    paths = {place.path: place.dialect for place in embeddings.PLACES}
    assert paths == {
        "/v1/embeddings": "openai_chat",
        "/embeddings": "openai_chat",
        "/embeddings/api/embeddings": "afs",
        **{f"{base}/models/embeddings": "afs" for base in AFS_BASES},
    }


@pytest.mark.parametrize(
    ("given", "inputs"),
    [
        ("a", ("a",)),
        (["a", "b"], ("a", "b")),
        ([1, 0, 3], ([1, 0, 3],)),
        ([[1, 2], [3]], ([1, 2], [3])),
        (["a", [3]], ("a", [3])),
    ],
)
def test_the_four_shapes(given: Any, inputs: tuple[Any, ...]) -> None:
    assert parsed(input=given).inputs == inputs


@pytest.mark.parametrize(
    ("given", "param", "code"),
    [
        (None, "input", "missing_required_parameter"),
        ("", "input", "invalid_value"),
        ([], "input", "array_below_min_length"),
        (["a", ""], "input.1", "invalid_value"),
        ([[]], "input.0", "invalid_value"),
        (["a", None], "input.1", "invalid_type"),
        (["a", 1], "input.1", "invalid_type"),
        ([1, "a"], "input.1", "invalid_type"),
        ([1, True], "input.1", "invalid_type"),
        ([1.5], "input.0", "invalid_type"),
        ([[1, "a"]], "input.0.1", "invalid_type"),
        ([1, -1], "input.1", "invalid_value"),
        ([2**31], "input.0", "invalid_value"),
        (True, "input", "invalid_type"),
        ({"text": "a"}, "input", "invalid_type"),
        (["a"] * 2049, "input", "array_above_max_length"),
    ],
)
def test_a_bad_input_is_named(given: Any, param: str, code: str) -> None:
    problem = refused(input=given)
    assert (problem.kind, problem.param, problem.code) == ("malformed", param, code)


def test_a_long_text_of_tokens_is_one_input() -> None:
    assert len(parsed(input=list(range(5000))).inputs) == 1
    assert len(parsed(input=["a"] * 2048).inputs) == 2048


@pytest.mark.parametrize(
    ("field", "value"),
    [
        ("encoding_format", "int8"),
        ("encoding_format", 1),
        ("dimensions", 0),
        ("dimensions", "8"),
        ("dimensions", 1.5),
        ("model", 1),
    ],
)
def test_a_bad_field_is_named(field: str, value: Any) -> None:
    assert refused(input="a", **{field: value}).param == field


def test_afs_asks_with_inputs() -> None:
    for path in ("/models/embeddings", "/api/models/embeddings"):
        request = parsed(path, model="m", inputs=["a", "b"])
        assert request == Embed(inputs=("a", "b"), model="m", form="afs")
        assert refused(path, inputs=[]).param == "inputs"
        assert refused(path, inputs=["a", ""]).param == "inputs.1"
        assert refused(path, inputs=[1]).param == "inputs.0"


def test_the_old_path_of_afs_asks_with_input() -> None:
    request = parsed("/embeddings/api/embeddings", input=["a"])
    assert (request.inputs, request.form) == (("a",), "afs")
    assert refused("/embeddings/api/embeddings", input=[1]).param == "input.0"


def test_openais_sdk_on_the_path_of_afs_is_openais() -> None:
    request = parsed("/api/models/embeddings", input="a", encoding_format="base64")
    assert (request.form, request.encoding) == ("openai", "base64")


# To an upstream.


def test_llamacpp_is_asked_for_all_at_once_in_base64() -> None:
    request = parsed(input=["a", [1, 2]], model="m", user="u", dimensions=8)
    body = {"input": ["a", [1, 2]], "model": "m", "user": "u", "encoding_format": "base64"}
    assert said(request, TODAY) == [("/v1/embeddings", body)]
    assert said(request, Traits(build=4355, chat=True)) == [("/v1/embeddings", body)]


@pytest.mark.parametrize("build", [2004, 2372, 4354])
def test_older_servers_are_asked_for_one_after_the_other(build: int) -> None:
    asked = said(parsed(input=["a", "b"], encoding_format="base64"), Traits(build=build, chat=True))
    assert asked == [("/v1/embeddings", {"input": one}) for one in "ab"]


@pytest.mark.parametrize("build", [0, 1561, 1809, 2003])
def test_the_oldest_servers_have_a_path_of_their_own(build: int) -> None:
    request = parsed(input=["a", "b"], model="m", user="u")
    traits = Traits(build=build)
    assert said(request, traits) == [("/embedding", {"content": one}) for one in "ab"]
    assert embeddings.render_request(request, traits).dropped == ("user",)


@pytest.mark.parametrize(("build", "fits"), [(0, True), (1561, False), (2371, False), (2372, True)])
def test_token_ids_are_not_given_to_who_misreads_them(build: int, *, fits: bool) -> None:
    request, traits = parsed(input=[1, 2]), Traits(build=build, chat=build > 0)
    if fits:
        ((_, body),) = said(request, traits)
        assert [1, 2] in body.values()
        return
    with pytest.raises(Malformed) as error:
        embeddings.render_request(request, traits)
    assert (error.value.problem.kind, error.value.problem.param) == ("unsupported", "input")


def test_an_openai_server_is_asked_for_dimensions_and_never_for_base64() -> None:
    request = parsed(input="a", dimensions=8, encoding_format="base64", user="u")
    assert said(request, OPENAI) == [
        ("/v1/embeddings", {"input": ["a"], "dimensions": 8, "user": "u"})
    ]


def test_afs_is_asked_in_its_own_form() -> None:
    request = parsed(input=["a", "b"], model="m", user="u")
    wire = embeddings.render_request(request, AFS)
    assert (wire.path, wire.body) == ("/models/embeddings", {"model": "m", "inputs": ["a", "b"]})
    assert wire.dropped == ("user",)
    with pytest.raises(Malformed) as error:
        embeddings.render_request(parsed(input=[1]), AFS)
    assert error.value.problem.kind == "unsupported"
    native = embeddings.render_request(parsed("/models/embeddings", inputs=["a"], x=1), AFS)
    assert (native.body, native.dropped) == ({"inputs": ["a"], "x": 1}, ())


@given(st.integers(1, 400), st.sampled_from([TODAY, OPENAI, AFS, Traits()]))
def test_no_input_is_lost_in_the_split(count: int, traits: Traits) -> None:
    inputs = tuple(f"{number}" for number in range(count))
    parts = embeddings.split(Embed(inputs=inputs), traits)
    assert tuple(one for part in parts for one in part.inputs) == inputs
    assert max(len(part.inputs) for part in parts) <= 128


# An upstream's answer.


def test_what_llamacpp_answered_is_read_to_the_bit() -> None:
    body = capture("embeddings")
    answer = embeddings.parse_answer(body, Embed(inputs=("hello", "world")), TODAY)
    assert [one.tolist() for one in answer.vectors] == [one["embedding"] for one in body["data"]]
    assert answer.usage == Usage(prompt_tokens=7)
    body = capture("embeddings_base64")
    answer = embeddings.parse_answer(body, Embed(inputs=("hello",)), TODAY)
    ((vector,), raw) = (answer.vectors, base64.b64decode(body["data"][0]["embedding"]))
    assert vector.tolist() == list(struct.unpack("<64f", raw))
    asked = Embed(inputs=("hello",), encoding="base64")
    again = msgspec.json.decode(embeddings.render_answer(answer, asked, "e"))
    del body["data"][0]["encoding_format"]
    assert again == body


def test_llamacpp_ignores_dimensions() -> None:
    asked = Embed(inputs=("hello",), dimensions=8)
    answer = embeddings.parse_answer(capture("embeddings_dims"), asked, TODAY)
    assert len(answer.vectors[0]) == 64


def test_the_one_vector_of_an_old_server() -> None:
    for body in ({"embedding": [0.5, 1]}, {"index": 0, "embedding": [0.5, 1]}):
        answer = embeddings.parse_answer(body, Embed(inputs=("a",)), Traits())
        assert answer.vectors == (array("d", [0.5, 1.0]),)
        assert answer.usage is None


def test_usage_that_was_never_filled_is_none() -> None:
    body = {"data": [{"embedding": [1], "index": 0}]}
    for usage in (None, {}, {"prompt_tokens": 0, "total_tokens": 0}, "x"):
        answer = embeddings.parse_answer(body | {"usage": usage}, Embed(inputs=("a",)), OPENAI)
        assert answer.usage is None


def test_the_index_tells_the_place() -> None:
    data = [{"index": 1, "embedding": [1]}, {"index": 0, "embedding": [2]}]
    answer = embeddings.parse_answer({"data": data}, Embed(inputs=("a", "b")), OPENAI)
    assert [one.tolist() for one in answer.vectors] == [[2.0], [1.0]]


def test_zeros_of_llamacpp_are_no_embeddings() -> None:
    body = {"embedding": [0.0, 0.0]}
    with pytest.raises(Malformed) as error:
        embeddings.parse_answer(body, Embed(inputs=("a",)), Traits())
    assert error.value.problem.kind == "unsupported"
    assert "--embedding" in error.value.problem.message
    assert embeddings.parse_answer(body, Embed(inputs=("a",)), OPENAI).vectors


def test_holes_are_zeros_for_afs_alone() -> None:
    body = {"data": [{"index": 0, "embedding": [1, None]}]}
    answer = embeddings.parse_answer(body, Embed(inputs=("a",)), AFS)
    assert answer.vectors[0].tolist() == [1.0, 0.0]
    with pytest.raises(Malformed):
        embeddings.parse_answer(body, Embed(inputs=("a",)), OPENAI)


@pytest.mark.parametrize(
    "body",
    [
        None, [], {}, {"data": None}, {"data": [1]}, {"data": []}, {"embedding": [1]},
        {"data": [{"index": 0, "embedding": [1]}]},
        {"data": [{"index": 0, "embedding": [1]}, {"index": 0, "embedding": [1]}]},
        {"data": [{"index": 0, "embedding": [1]}, {"index": 2, "embedding": [1]}]},
        {"data": [{"index": 0, "embedding": [1]}, {"index": "1", "embedding": [1]}]},
        {"data": [{"index": 0, "embedding": [1]}, {"index": 1}]},
    ],
)  # fmt: skip
def test_what_is_no_answer_is_malformed(body: Any) -> None:
    with pytest.raises(Malformed):
        embeddings.parse_answer(body, Embed(inputs=("a", "b")), OPENAI)


@given(JSON, st.sampled_from([TODAY, OPENAI, AFS, Traits()]))
def test_garbage_is_only_malformed(body: Any, traits: Traits) -> None:
    for one in (body, {"data": body}, {"data": [{"embedding": body}], "usage": body}):
        with suppress(Malformed):
            embeddings.parse_answer(one, Embed(inputs=("a",)), traits)


@given(JSON, st.sampled_from([place.path for place in embeddings.PLACES]))
def test_a_clients_garbage_is_only_malformed(value: Any, path: str) -> None:
    for field in ("input", "inputs", "model", "dimensions", "encoding_format"):
        with suppress(Malformed):
            embeddings.parse_request({"input": "a", field: value}, path)


# Joined, and cut to size.


def test_the_parts_are_one_answer() -> None:
    parts = [told([1], [2], usage=Usage(prompt_tokens=3)), told([3], usage=Usage(prompt_tokens=4))]
    whole = embeddings.join(parts, Embed(inputs=("a", "b", "c")), matryoshka=False)
    assert [one.tolist() for one in whole.vectors] == [[1.0], [2.0], [3.0]]
    assert whole.usage == Usage(prompt_tokens=7)
    half = embeddings.join([parts[0], told([3])], Embed(inputs=("a", "b", "c")), matryoshka=False)
    assert half.usage is None


@pytest.mark.parametrize("matryoshka", [False, True])
def test_dimensions_that_are_there_are_no_question(*, matryoshka: bool) -> None:
    asked = Embed(inputs=("a",), dimensions=2)
    assert embeddings.join([told([3, 4])], asked, matryoshka=matryoshka).vectors[0][1] == 4


def test_fewer_dimensions_need_a_model_that_allows_them() -> None:
    asked = Embed(inputs=("a",), dimensions=2)
    whole = embeddings.join([told([3, 4, 12])], asked, matryoshka=True)
    assert whole.vectors[0].tolist() == [0.6, 0.8]
    with pytest.raises(Malformed) as error:
        embeddings.join([told([3, 4, 12])], asked, matryoshka=False)
    assert (error.value.problem.kind, error.value.problem.param) == ("unsupported", "dimensions")


def test_no_vector_grows() -> None:
    with pytest.raises(Malformed) as error:
        embeddings.join([told([3, 4])], Embed(inputs=("a",), dimensions=3), matryoshka=True)
    assert (error.value.problem.kind, error.value.problem.param) == ("malformed", "dimensions")


def test_vectors_of_two_sizes_are_the_upstreams_fault() -> None:
    with pytest.raises(Malformed) as error:
        embeddings.join([told([1]), told([1, 2])], Embed(inputs=("a", "b")), matryoshka=False)
    assert error.value.problem.kind == "upstream_failed"


def test_every_input_counts_once() -> None:
    asked = Embed(inputs=("a", [1, 2]))
    assert embeddings.counted(asked) == [Counted(input="a"), Counted(input=[1, 2])]


# What a client hears.


def test_openais_answer() -> None:
    answer = told([0.5, 1], [2, 3], usage=Usage(prompt_tokens=7), extras={"id": "x", "model": "y"})
    asked = Embed(inputs=("a", "b"))
    assert msgspec.json.decode(embeddings.render_answer(answer, asked, "m")) == {
        "id": "x",
        "object": "list",
        "model": "m",
        "data": [
            {"object": "embedding", "index": 0, "embedding": [0.5, 1.0]},
            {"object": "embedding", "index": 1, "embedding": [2.0, 3.0]},
        ],
        "usage": {"prompt_tokens": 7, "total_tokens": 7},
    }


def test_afss_answer() -> None:
    asked = Embed(inputs=("a",), form="afs")
    answer = told([1, 2], usage=Usage(prompt_tokens=6))
    expected = {
        "data": [{"object": "embedding", "index": 0, "embedding": [1.0, 2.0]}],
        "total_time_taken": "0.00 sec",
        "usage": {"prompt_tokens": 6, "total_tokens": 6},
    }
    assert msgspec.json.decode(embeddings.render_answer(answer, asked, "m")) == expected
    timed = told([1, 2], usage=Usage(prompt_tokens=6), extras={"total_time_taken": "0.06 sec"})
    expected["total_time_taken"] = "0.06 sec"
    assert msgspec.json.decode(embeddings.render_answer(timed, asked, "m")) == expected


def test_unknown_fields_stay_within_their_family() -> None:
    body = {"data": [{"index": 0, "embedding": [1]}], "total_time_taken": "0.06 sec"}
    native, openai = Embed(inputs=("a",), form="afs"), Embed(inputs=("a",))
    assert embeddings.parse_answer(body, native, AFS).extras == {"total_time_taken": "0.06 sec"}
    assert embeddings.parse_answer(body, openai, AFS).extras == {}
    assert embeddings.parse_answer(body, native, OPENAI).extras == {}
