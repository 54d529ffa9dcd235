"""Embeddings and rankings, from a client's bytes to those of every upstream, and back."""

from __future__ import annotations

import asyncio
import base64
import math
import struct
import subprocess
import sys
from collections.abc import AsyncIterator, Iterator, Mapping
from pathlib import Path
from typing import Any

import msgspec
import openai
import pytest

from conftest import Serve, Served, Start
from doubles.llama import llama
from doubles.upstream import (
    DEADLINE,
    JSON,
    Double,
    Exchange,
    answers,
    breaks,
    refuses,
    resets,
)
from tropilla import measured
from tropilla.config import TINY_MODEL, ModelConfig, UpstreamConfig
from tropilla.ir import ProblemError
from tropilla.measures import embeddings
from tropilla.record import Record
from tropilla.upstream import fleet
from tropilla.upstream.engine import Engine, EngineOptions

pytestmark = pytest.mark.anyio

CAPTURES = Path(__file__).parent.parent / "measures" / "captures"
PATH, NATIVE = "/v1/embeddings", "/embedding"
AFS_PATH = "/models/embeddings"
QUERY = {"model": "m", "query": "q", "documents": ["a", "b"]}


def vectors(*told: list[float], **more: Any) -> bytes:
    """What an upstream answers."""
    data = [{"object": "embedding", "index": n, "embedding": one} for n, one in enumerate(told)]
    usage = {"prompt_tokens": 5, "total_tokens": 5}
    return msgspec.json.encode({"object": "list", "data": data, "usage": usage, **more})


def scores(*told: float) -> bytes:
    results = [{"index": n, "relevance_score": one} for n, one in enumerate(told)]
    return msgspec.json.encode({"results": results, "usage": {"prompt_tokens": 5}})


def config(double: Double, dialect: str, **more: Any) -> dict[str, Any]:
    """A gateway's config with one upstream that is no llama.cpp."""
    one = UpstreamConfig(url=double.url, dialect=dialect, **more)  # type: ignore[arg-type]
    return {"upstreams": (one,)}


class Kept:
    """Keeps what a client is told."""

    body: Any = None

    async def whole(self, status: int, body: bytes, headers: Mapping[str, str]) -> None:
        assert status == 200
        assert set(headers) == {"x-tropilla-upstream", "x-tropilla-queue-ms"}
        self.body = msgspec.json.decode(body)


# Today's server.


@pytest.mark.parametrize("path", [PATH, "/embeddings"])
async def test_openais_embeddings(gateway: Serve, double: Double, path: str) -> None:
    double.on(PATH, answers(200, vectors([0.5, 1], [2, 3], model="there")))
    tropilla = await gateway(double)
    answer = await tropilla.ask("POST", path, {"model": "m", "input": ["a", "b"]})
    assert answer.status == 200
    assert answer.headers["content-type"] == "application/json"
    assert answer.headers["x-tropilla-upstream"]
    assert answer.json["model"] == "m"
    assert [one["embedding"] for one in answer.json["data"]] == [[0.5, 1.0], [2.0, 3.0]]
    assert answer.json["usage"] == {"prompt_tokens": 5, "total_tokens": 5}
    (asked,) = double.requests
    assert asked.json == {"model": "m", "input": ["a", "b"], "encoding_format": "base64"}


@pytest.mark.parametrize("path", ["/v1/rerank", "/rerank", "/v1/reranking", "/reranking"])
async def test_rankings(gateway: Serve, double: Double, path: str) -> None:
    double.on("/v1/rerank", answers(200, scores(-1, 2.5)))
    tropilla = await gateway(double)
    answer = await tropilla.ask("POST", path, QUERY | {"top_n": 1, "return_documents": True})
    assert answer.json == {
        "model": "m",
        "object": "list",
        "usage": {"prompt_tokens": 5, "total_tokens": 5},
        "results": [{"index": 1, "relevance_score": 2.5, "document": {"text": "b"}}],
    }
    assert double.requests[0].json == QUERY
    tei = await tropilla.ask("POST", path, {"query": "q", "texts": ["a", "b"], "truncate": True})
    assert tei.json == [{"index": 1, "score": 2.5}, {"index": 0, "score": -1}]
    assert tei.headers["x-tropilla-dropped"] == "truncate"


async def test_many_inputs_are_asked_for_in_turn(gateway: Serve, double: Double) -> None:
    async def script(exchange: Exchange) -> None:
        told = [[float(one), 1.0] for one in exchange.json["input"]]
        await exchange.whole(200, vectors(*told))

    double.on(PATH, script)
    tropilla = await gateway(double)
    inputs = [str(number) for number in range(300)]
    answer = await tropilla.ask("POST", PATH, {"input": inputs})
    assert [one["embedding"][0] for one in answer.json["data"]] == list(range(300))
    assert [one["index"] for one in answer.json["data"]] == list(range(300))
    assert len(double.requests) == 3
    assert answer.json["usage"]["prompt_tokens"] == 15


@pytest.mark.parametrize(
    ("path", "body", "param"),
    [
        (PATH, {"input": ""}, "input"),
        (PATH, {"input": ["a", None]}, "input.1"),
        ("/embeddings", {"content": "a"}, "input"),
        ("/v1/rerank", {"query": "q", "documents": []}, "documents"),
        ("/rerank", {"query": "q", "texts": [1]}, "texts.0"),
        (AFS_PATH, {"inputs": []}, "inputs"),
    ],
)
async def test_a_bad_request_costs_no_upstream_anything(
    gateway: Serve, double: Double, path: str, body: Any, param: str
) -> None:
    tropilla = await gateway(double)
    answer = await tropilla.ask("POST", path, body)
    assert (answer.status, answer.error["param"]) == (400, param)
    assert ("detail" in answer.json) is (path == AFS_PATH)
    assert double.requests == []


async def test_the_native_path_is_still_passed_on(gateway: Serve, double: Double) -> None:
    double.on(NATIVE, answers(200, b"[]"))
    tropilla = await gateway(double)
    assert (await tropilla.ask("POST", NATIVE, {"content": "a"})).body == b"[]"


async def test_an_unknown_model_and_a_wrong_method(gateway: Serve, double: Double) -> None:
    tropilla = await gateway(double)
    answer = await tropilla.ask("POST", PATH, {"model": "x", "input": "a"})
    assert (answer.status, answer.error["code"]) == (404, "model_not_found")
    answer = await tropilla.ask("GET", "/v1/rerank")
    assert (answer.status, answer.headers["allow"]) == (405, "POST, OPTIONS")


# What goes wrong.


@pytest.mark.parametrize("fault", [resets, breaks(b"{"), answers(200, b"{"), answers(200, b"{}")])
async def test_a_fault_is_tried_again_elsewhere(gateway: Serve, doubles: Start, fault: Any) -> None:
    one, two = await doubles(), await doubles()
    one.keeps = False
    one.on(PATH, fault)
    two.on(PATH, answers(200, vectors([1, 2])))
    tropilla = await gateway(one, two)
    answer = await tropilla.ask("POST", PATH, {"input": "a"})
    assert answer.status == 200, answer.body
    assert (len(one.requests), len(two.requests)) == (1, 1)


@pytest.mark.parametrize(
    ("script", "status", "words"),
    [
        (answers(200, b"not json"), 502, "not JSON"),
        (answers(200, b"{}"), 502, "no vectors"),
        (answers(200, b'{"error":{"code":400,"message":"bad"}}'), 400, "bad"),
        (answers(200, b'{"error":"odd"}'), 502, "odd"),
        (answers(200, vectors([0, 0])), 400, "--embedding"),
        (answers(200, vectors([1], extra="a")[:-1]), 502, "not JSON"),
        (refuses(400, "Prompt contains invalid tokens", "x"), 400, "invalid tokens"),
        (
            refuses(500, "input (600 tokens) is too large to process.", "server_error"),
            400,
            "600 tokens",
        ),
    ],
)
async def test_what_an_upstream_says_wrong_is_told(
    gateway: Serve, double: Double, script: Any, status: int, words: str
) -> None:
    double.on(PATH, script)
    tropilla = await gateway(double)
    answer = await tropilla.ask("POST", PATH, {"input": "a"})
    assert answer.status == status
    assert words in answer.error["message"]


async def test_an_input_that_is_too_long_has_openais_code(gateway: Serve, double: Double) -> None:
    double.on(PATH, refuses(500, "input (600 tokens) is too large to process.", "server_error"))
    tropilla = await gateway(double)
    answer = await tropilla.ask("POST", PATH, {"input": "a"})
    assert answer.error["code"] == "context_length_exceeded"
    assert len(double.requests) == 1


@pytest.mark.parametrize(
    ("path", "to", "body", "flag"),
    [
        (PATH, PATH, {"input": "a"}, "--embeddings"),
        ("/rerank", "/v1/rerank", QUERY, "--reranking"),
    ],
)
async def test_who_cannot_do_it_says_how_it_could(
    gateway: Serve, doubles: Start, path: str, to: str, body: Any, flag: str
) -> None:
    name = "embeddings_501" if path == PATH else "rerank_501"
    refusal = answers(501, (CAPTURES / f"{name}.json").read_bytes())
    one = await doubles()
    one.on(to, refusal)
    tropilla = await gateway(one)
    answer = await tropilla.ask("POST", path, body)
    assert (answer.status, answer.error["code"]) == (400, "unsupported_value")
    assert flag in answer.error["message"]
    assert len(one.requests) == 1
    two = await doubles()
    two.on(to, answers(200, vectors([1]) if path == PATH else scores(1, 2)))
    both = await gateway(one, two)
    assert (await both.ask("POST", path, body)).status == 200


@pytest.mark.parametrize("fault", [resets, refuses(501, "no", "not_supported_error")])
async def test_a_server_that_fails_is_looked_at(
    gateway: Serve, double: Double, monkeypatch: pytest.MonkeyPatch, fault: Any
) -> None:
    monkeypatch.setitem(fleet._CHECK_SECONDS, "llamacpp", 3600.0)
    looked = asyncio.Event()

    async def healthy(exchange: Exchange) -> None:
        looked.set()
        await exchange.whole(*double.health, JSON, "Connection: close")

    double.keeps = False
    tropilla = await gateway(double)
    double.on("/health", healthy)
    double.on(PATH, fault)
    await tropilla.ask("POST", PATH, {"input": "a"})
    await asyncio.wait_for(looked.wait(), DEADLINE)


async def test_a_client_that_leaves_ends_the_work(gateway: Serve, double: Double) -> None:
    tropilla = await gateway(double)
    raw = await tropilla.connect()
    await raw.post(PATH, {"input": "a"})
    exchange = await double.arrives()
    raw.leave()
    await exchange.left()
    assert tropilla.fleet.upstreams[0].leases == 0


# Dimensions.


async def test_dimensions_need_a_model_that_allows_them(gateway: Serve, double: Double) -> None:
    double.on(PATH, answers(200, vectors([3, 4, 12])))
    tropilla = await gateway(double)
    for size, status in ((3, 200), (2, 400), (4, 400)):
        answer = await tropilla.ask("POST", PATH, {"input": "a", "dimensions": size})
        assert answer.status == status
        if status == 400:
            assert answer.error["param"] == "dimensions"
    kept, record = Kept(), Record("req_1", "POST", PATH, 0.0)
    request = embeddings.parse_request({"input": "a", "dimensions": 2}, PATH)
    await measured.measure(
        embeddings, request, record, fleet=tropilla.fleet, reply=kept, matryoshka=True
    )
    assert kept.body["data"][0]["embedding"] == [0.6, 0.8]
    request = embeddings.parse_request({"input": "a", "dimensions": 4}, PATH)
    with pytest.raises(ProblemError):
        await measured.measure(
            embeddings, request, record, fleet=tropilla.fleet, reply=kept, matryoshka=True
        )


async def test_an_openai_server_shortens_its_vectors_itself(gateway: Serve, double: Double) -> None:
    double.on(PATH, answers(200, vectors([0.6, 0.8], id="x", system="y")))
    tropilla = await gateway(**config(double, "openai"))
    body = {"model": "m", "input": "a", "dimensions": 2, "user": "u"}
    answer = await tropilla.ask("POST", PATH, body)
    assert (answer.json["data"][0]["embedding"], answer.json["id"]) == ([0.6, 0.8], "x")
    assert double.requests[-1].json == body | {"input": ["a"]}


async def test_an_openai_server_may_have_no_v1(gateway: Serve, double: Double) -> None:
    double.on("/api/v1/models", answers(404, b"{}"))
    double.on("/api/models", answers(200, b'{"data":[{"id":"m"}]}'))
    double.on("/api/embeddings", answers(200, vectors([1, 2])))
    one = UpstreamConfig(url=f"{double.url}/api", dialect="openai")
    tropilla = await gateway(upstreams=(one,))
    assert (await tropilla.ask("POST", PATH, {"input": "a"})).status == 200


# Usage.


async def test_usage_that_nobody_told_is_counted(gateway: Serve, double: Double) -> None:
    nothing = {"prompt_tokens": 0, "total_tokens": 0}
    double.on(PATH, answers(200, vectors([1], [2], usage=nothing)))
    double.on("/tokenize", answers(200, b'{"tokens":[1,2,3]}'))
    tropilla = await gateway(double)
    answer = await tropilla.ask("POST", PATH, {"input": ["a", [7, 8]]})
    assert answer.json["usage"] == {"prompt_tokens": 5, "total_tokens": 5}
    (asked,) = (one.json for one in double.requests if one.path == "/tokenize")
    assert asked == {"content": "a", "add_special": True, "model": "m"}


@pytest.mark.parametrize("script", [answers(404, b""), answers(200, b"[]"), resets])
async def test_usage_that_nobody_can_count_is_estimated(
    gateway: Serve, double: Double, script: Any
) -> None:
    double.on(PATH, answers(200, vectors([1], usage=None)))
    double.on("/tokenize", script)
    tropilla = await gateway(double)
    answer = await tropilla.ask("POST", PATH, {"input": "fünf words, or so"})
    usage = {"prompt_tokens": 5, "total_tokens": 5, "estimated": True}
    assert answer.json["usage"] == usage


async def test_a_query_counts_with_every_document(gateway: Serve, double: Double) -> None:
    results = [{"index": 0, "relevance_score": 1}, {"index": 1, "relevance_score": 2}]
    double.on("/v1/rerank", answers(200, msgspec.json.encode({"results": results})))
    double.on("/tokenize", answers(200, b'{"tokens":[1,2,3]}'))
    tropilla = await gateway(double)
    answer = await tropilla.ask("POST", "/rerank", QUERY)
    assert answer.json["usage"]["prompt_tokens"] == 12


# AFS, and programs that were written for it.


@pytest.mark.parametrize("base", ["", "/api", "/text-generation/api", "/text-generation/api/v4"])
async def test_a_program_of_afs(gateway: Serve, double: Double, base: str) -> None:
    double.on(PATH, answers(200, vectors([1, 2])))
    tropilla = await gateway(double)
    answer = await tropilla.ask("POST", base + AFS_PATH, {"model": "m", "inputs": ["a"]})
    assert answer.json == {
        "data": [{"object": "embedding", "index": 0, "embedding": [1.0, 2.0]}],
        "total_time_taken": "0.00 sec",
        "usage": {"prompt_tokens": 5, "total_tokens": 5},
    }


async def test_an_old_program_of_afs(gateway: Serve, double: Double) -> None:
    double.on(PATH, answers(200, vectors([1, 2])))
    tropilla = await gateway(double)
    answer = await tropilla.ask("POST", "/embeddings/api/embeddings", {"input": ["a"]})
    assert answer.json["data"][0]["embedding"] == [1.0, 2.0]


@pytest.fixture
async def afs(gateway: Serve, double: Double) -> Served:
    """A gateway to a deployment of AFS, whose model is called `m` here and `there` there."""
    double.on("/api/models/conversation", answers(422, b"{}"))
    one = UpstreamConfig(url=f"{double.url}/api", dialect="afs", model="there", api_key="afs-key")
    return await gateway(models={"m": ModelConfig(upstreams=(one,))}, upstreams=())


async def test_a_deployment_of_afs(afs: Served, double: Double) -> None:
    body = {
        "data": [
            {"embedding": [1, None], "index": 0, "object": "embedding"},
            {"embedding": [3, 4], "index": 1, "object": "embedding"},
        ],
        "total_time_taken": "0.06 sec",
        "usage": {"prompt_tokens": 6, "total_tokens": 6},
    }
    double.on(f"/api{AFS_PATH}", answers(200, msgspec.json.encode(body)))
    answer = await afs.ask("POST", PATH, {"model": "m", "input": ["a", "b"], "user": "u"})
    assert [one["embedding"] for one in answer.json["data"]] == [[1.0, 0.0], [3.0, 4.0]]
    assert answer.json["usage"] == {"prompt_tokens": 6, "total_tokens": 6}
    assert answer.headers["x-tropilla-dropped"] == "user"
    assert "total_time_taken" not in answer.json
    asked = double.requests[-1]
    assert asked.json == {"model": "there", "inputs": ["a", "b"]}
    assert asked.headers["x-api-key"] == "afs-key"
    native = await afs.ask("POST", f"/api{AFS_PATH}", {"model": "m", "inputs": ["a", "b"]})
    body["data"][0]["embedding"] = [1.0, 0.0]  # type: ignore[index]
    assert native.json == body


@pytest.mark.parametrize(
    ("script", "status", "words"),
    [
        (answers(200, b'{"detail":"the model is gone"}'), 502, "the model is gone"),
        (answers(429, b'{"detail":"slow down"}'), 429, "slow down"),
        (answers(401, b'{"detail":"bad key afs-key"}'), 502, "api_key"),
    ],
)
async def test_a_deployment_that_refuses(
    afs: Served, double: Double, script: Any, status: int, words: str
) -> None:
    double.on(f"/api{AFS_PATH}", script)
    answer = await afs.ask("POST", PATH, {"model": "m", "input": "a"})
    assert answer.status == status
    assert words in answer.error["message"]
    assert "afs-key" not in answer.error["message"]


async def test_afs_ranks_nothing_and_reads_no_ids(afs: Served, double: Double) -> None:
    for path, body in (("/v1/rerank", QUERY), (PATH, {"model": "m", "input": [1]})):
        answer = await afs.ask("POST", path, body)
        assert (answer.status, answer.error["code"]) == (400, "unsupported_value")
    assert {one.path for one in double.requests} == {"/api/models/conversation"}


# Servers of every age.


@pytest.mark.parametrize("build", [1496, 1915, 2400, 3000, 4300])
async def test_an_old_server_makes_the_same_vectors(gateway: Serve, build: int) -> None:
    with llama(build, embeddings=True) as old:
        tropilla = await gateway(old.url)
        answer = await tropilla.ask("POST", PATH, {"input": ["Hello", "you all"]})
        assert answer.status == 200, answer.body
        found = [one["embedding"] for one in answer.json["data"]]
        single = [
            (await tropilla.ask("POST", PATH, {"input": one})).json["data"][0]["embedding"]
            for one in ("Hello", "you all")
        ]
        assert found == single
        assert all(sum(one) == 1 for one in found)
        assert answer.json["usage"]["prompt_tokens"] > 1
        assert "estimated" not in answer.json["usage"]
        paths = {one.path for one in old.asked if b"Hello" in one.raw}
        assert paths == {NATIVE if build < 2004 else PATH, "/tokenize"}


@pytest.mark.parametrize("build", [1496, 1915, 2400, 3000])
async def test_an_old_server_without_embeddings_says_how_to_start_it(
    gateway: Serve, build: int
) -> None:
    with llama(build) as old:
        tropilla = await gateway(old.url)
        answer = await tropilla.ask("POST", PATH, {"input": "Hello"})
        assert (answer.status, answer.error["code"]) == (400, "unsupported_value")
        assert "--embedding" in answer.error["message"]


@pytest.mark.parametrize("build", [1496, 1915, 2400, 3000, 4300])
async def test_an_old_server_is_not_given_what_it_misreads(gateway: Serve, build: int) -> None:
    with llama(build, embeddings=True) as old:
        tropilla = await gateway(old.url)
        answer = await tropilla.ask("POST", PATH, {"input": [[1, 2], [3]]})
        assert answer.status == (400 if build == 1915 else 200), answer.body


async def test_what_one_server_misreads_another_one_reads(gateway: Serve, double: Double) -> None:
    double.on(PATH, answers(200, vectors([1, 2])))
    with llama(1915, embeddings=True) as old:
        tropilla = await gateway(old.url, double)
        for _ in range(2):
            assert (await tropilla.ask("POST", PATH, {"input": [1, 2]})).status == 200
        assert len(double.requests) == 2


async def test_a_busy_old_server_is_asked_again(gateway: Serve, double: Double) -> None:
    double.props = {"user_name": "", "assistant_name": ""}
    double.on("/v1/models", answers(404, b"File Not Found", "text/plain"))
    double.on("/model.json", answers(200, b'{"model":"/models/old.gguf"}'))
    busy = answers(200, b'{"content":"slot unavailable"}')
    double.on(NATIVE, busy, busy, answers(200, b'{"embedding":[1,2]}'))
    double.on("/tokenize", answers(200, b'{"tokens":[1]}'))
    tropilla = await gateway(double)
    answer = await tropilla.ask("POST", PATH, {"input": "a"})
    assert answer.json["data"][0]["embedding"] == [1.0, 2.0]
    assert [one.path for one in double.requests].count(NATIVE) == 3


async def test_an_old_server_ranks_unsorted(gateway: Serve) -> None:
    with llama(4300, reranks=True) as old:
        tropilla = await gateway(old.url)
        body = {"query": "Hello", "documents": ["you", "Hello"], "top_n": 1}
        answer = await tropilla.ask("POST", "/rerank", body)
        (best,) = answer.json["results"]
        assert best["index"] == 1
        assert answer.json["usage"]["prompt_tokens"] > 2
    with llama(3000) as older:
        tropilla = await gateway(older.url)
        answer = await tropilla.ask("POST", "/rerank", body)
        assert (answer.status, answer.error["code"]) == (400, "unsupported_value")
        assert "--reranking" in answer.error["message"]


# The real engine.


@pytest.fixture(scope="module")
async def embedder(anyio_backend: Any) -> AsyncIterator[str]:  # noqa: ARG001
    """The address of the real llama.cpp, with the tiny model, making embeddings."""
    pytest.importorskip("xllamacpp")
    one = Engine(EngineOptions(model=TINY_MODEL, alias="m", slots=2, embedding=True))
    await one.start()
    yield one.address
    await one.stop()


async def test_the_openai_sdk_on_the_real_engine(gateway: Serve, embedder: str) -> None:
    tropilla = await gateway(embedder)
    async with openai.AsyncOpenAI(base_url=f"{tropilla.url}/v1", api_key="x") as client:
        plain = await client.embeddings.create(model="m", input=["Hello", "you"])
        floats = await client.embeddings.create(
            model="m", input=["Hello", "you"], encoding_format="float"
        )
        ids = await client.embeddings.create(model="m", input=[[1, 2, 3], [4]])
        with pytest.raises(openai.BadRequestError) as long:
            await client.embeddings.create(model="m", input="word " * 3000)
        with pytest.raises(openai.BadRequestError) as empty:
            await client.embeddings.create(model="m", input=["Hello", ""])
        with pytest.raises(openai.BadRequestError) as short:
            await client.embeddings.create(model="m", input="Hello", dimensions=8)
    assert [one.embedding for one in plain.data] == [one.embedding for one in floats.data]
    assert [one.index for one in plain.data] == [0, 1]
    assert math.isclose(math.hypot(*plain.data[0].embedding), 1, rel_tol=1e-5)
    assert plain.usage.prompt_tokens == plain.usage.total_tokens > 0
    assert ids.usage.prompt_tokens == 4
    assert long.value.code == "context_length_exceeded"
    assert empty.value.param == "input.1"
    assert short.value.param == "dimensions"


async def test_the_real_engines_numbers_are_its_own(gateway: Serve, embedder: str) -> None:
    tropilla = await gateway(embedder)
    body = {"model": "m", "input": "Hello", "encoding_format": "float"}
    upstream = tropilla.fleet.upstreams[0]
    _, direct = await upstream.link.ask("POST", PATH, body)
    expected = msgspec.json.decode(direct)["data"][0]["embedding"]
    answer = await tropilla.ask("POST", PATH, body)
    assert answer.json["data"][0]["embedding"] == expected
    coded = await tropilla.ask("POST", PATH, body | {"encoding_format": "base64"})
    raw = base64.b64decode(coded.json["data"][0]["embedding"])
    assert list(struct.unpack(f"<{len(raw) // 4}f", raw)) == expected


# The engine's options know no ranking; it lives as long as its standard input.
RANKER = """
import sys, xllamacpp
params = xllamacpp.CommonParams()
params.model.path, params.hostnames, params.port = sys.argv[1], ["127.0.0.1"], 0
params.n_parallel, params.n_ctx, params.embedding, params.warmup = 2, 2048, True, False
params.pooling_type = xllamacpp.llama_pooling_type.LLAMA_POOLING_TYPE_RANK
params.model_alias, params.verbosity, params.ui = ["m"], 0, False
server = xllamacpp.Server(params)
print("\\naddress", server.listening_address, flush=True)
sys.stdin.read()
"""


@pytest.fixture(scope="module")
def ranker() -> Iterator[str]:
    """The address of the real llama.cpp, ranking; the tiny model's scores mean nothing."""
    pytest.importorskip("xllamacpp")
    command = [sys.executable, "-c", RANKER, str(TINY_MODEL)]
    with subprocess.Popen(
        command,
        stdin=subprocess.PIPE,
        stdout=subprocess.PIPE,
        stderr=subprocess.DEVNULL,
        text=True,
    ) as child:
        assert child.stdout is not None
        yield next(line.split()[1] for line in child.stdout if line.startswith("address"))
        child.kill()


async def test_the_real_engine_ranks(gateway: Serve, ranker: str) -> None:
    tropilla = await gateway(ranker)
    body = {"model": "m", "query": "Hello", "documents": ["one", {"text": "two three"}, "four"]}
    whole = await tropilla.ask("POST", "/v1/rerank", body)
    assert whole.status == 200, whole.body
    results = whole.json["results"]
    assert sorted(one["index"] for one in results) == [0, 1, 2]
    assert results == sorted(results, key=lambda one: -one["relevance_score"])
    assert whole.json["usage"]["prompt_tokens"] > 3
    best = await tropilla.ask("POST", "/rerank", body | {"top_n": 1, "return_documents": True})
    (only,) = best.json["results"]
    assert only["relevance_score"] == results[0]["relevance_score"]
    assert only["document"]["text"] in {"one", "two three", "four"}
    texts = {"query": "Hello", "texts": ["one", "two three", "four"]}
    tei = await tropilla.ask("POST", "/rerank", texts)
    assert [one["score"] for one in tei.json] == [one["relevance_score"] for one in results]


async def test_the_real_engine_that_only_chats(gateway: Serve, engine: str) -> None:
    tropilla = await gateway(engine)
    answer = await tropilla.ask("POST", PATH, {"model": "m", "input": "a"})
    assert (answer.status, answer.error["code"]) == (400, "unsupported_value")
    assert "--embeddings" in answer.error["message"]
    answer = await tropilla.ask("POST", "/rerank", QUERY)
    assert "--reranking" in answer.error["message"]
