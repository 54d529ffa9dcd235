"""Every way to ask for something that takes a slot has the header, whatever the dialect."""

from __future__ import annotations

from collections.abc import Iterator
from pathlib import Path
from typing import Any

import msgspec
import pytest

from conftest import CHAT, Answer, Serve
from doubles.upstream import Double, answers, streams, told
from matrix.fronts import FRONTS, Front, JsonObject, Told, Want
from repeats.asking import KEY, PATH, YES, replayed, rows
from tropilla import dialects, measures
from tropilla.config import AccountsConfig
from tropilla.server.openapi import describe
from tropilla.server.repeats import may_repeat
from tropilla.server.routes import Forward, Generate, Measure, patterns, table

pytestmark = pytest.mark.anyio


def _ask_response(want: Want) -> JsonObject:
    return {
        "model": "m", "input": want.text, "stream": want.stream, "temperature": 0,
        "max_output_tokens": want.limit,
    }  # fmt: skip


def _whole_response(body: Any) -> Told:
    text = "".join(part["text"] for item in body["output"] for part in item["content"])
    usage = body["usage"]
    return Told(text, body["status"], usage["input_tokens"], usage["output_tokens"])


WAYS = (
    *FRONTS,
    Front(
        "OpenAI responses", "/v1/responses", _ask_response, _whole_response,
        lambda events: _whole_response(events[-1]["response"]), named=True,
    ),
)  # fmt: skip


def _routes() -> Iterator[tuple[str, Generate | Measure | Forward]]:
    for path, methods in (table() | patterns()).items():
        action = methods.get("POST")
        if isinstance(action, Generate | Measure | Forward) and may_repeat(action):
            yield path, action


def test_every_dialect_that_asks_for_text_is_tried() -> None:
    tried = {action.dialect for path, action in _routes() for one in WAYS if one.path == path}
    generating = {action.dialect for _, action in _routes() if isinstance(action, Generate)}
    assert generating == {name for name in dialects.names() if dialects.named(name).ROUTES}
    assert tried == generating


@pytest.mark.parametrize("stream", [False, True], ids=["whole", "stream"])
@pytest.mark.parametrize("front", WAYS, ids=lambda front: front.name)
async def test_every_dialect_says_it_again(
    gateway: Serve, engine: str, tmp_path: Path, front: Front, *, stream: bool
) -> None:
    store = AccountsConfig(store=f"sqlite:///{tmp_path}/accounts.db")
    tropilla = await gateway(engine, accounts=store)
    body = front.ask(Want(stream=stream))
    first, again = [await tropilla.ask("POST", front.path, body, KEY) for _ in range(2)]
    assert front.told(again) == front.told(first)
    assert (again.body, replayed(first), replayed(again)) == (first.body, False, True)
    assert await rows(tropilla) == 1
    for wrong, key, status in (
        (front.ask(Want(stream=stream, limit=3)), KEY, 409), (body, {"Idempotency-Key": "a b"}, 400)
    ):  # fmt: skip
        answer = await tropilla.ask("POST", front.path, wrong, key)
        assert answer.status == status
        assert "Idempotency-Key" in front.fault(answer)


MEASURED = {
    "embeddings": (
        {"model": "m", "input": "a", "prompt": "a", "inputs": ["a"], "content": "a"},
        {"data": [{"index": 0, "embedding": [0.5, 1.0]}], "usage": {"prompt_tokens": 1}},
    ),
    "rerank": (
        {"model": "m", "query": "q", "documents": ["a"], "texts": ["a"]},
        {"results": [{"index": 0, "relevance_score": 0.5}], "usage": {"prompt_tokens": 1}},
    ),
}


@pytest.mark.parametrize(
    ("path", "name"),
    [(path, action.name) for path, action in _routes() if isinstance(action, Measure)],
)
async def test_every_measure_says_it_again(
    gateway: Serve, double: Double, path: str, name: str
) -> None:
    assert set(MEASURED) == set(measures.names())
    body, answer = MEASURED[name]
    double.on(f"/v1/{name}", answers(200, msgspec.json.encode(answer)))
    tropilla = await gateway(double)
    body = {key: value for key, value in body.items() if _knows(path, key)}
    first, again = [await tropilla.ask("POST", path, body, KEY) for _ in range(2)]
    assert first.status == 200, first.body
    assert (replayed(again), again.body) == (True, first.body)
    assert len(double.requests) == 1


def _knows(path: str, field: str) -> bool:
    """Whether what is asked on a path has such a field."""
    document = describe()
    schema = document["paths"][path]["post"]["requestBody"]["content"]["application/json"]["schema"]
    name = schema["$ref"].rpartition("/")[2]
    return field in document["components"]["schemas"][name]["properties"]


async def test_what_is_passed_on_is_said_again_where_it_takes_a_slot(
    gateway: Serve, double: Double, kept: AccountsConfig
) -> None:
    double.on("/embedding", answers(200, b'[{"embedding":[1]}]'))
    double.on("/detokenize", answers(200, b'{"content":"a"}'))
    tropilla = await gateway(double, accounts=kept)
    for path, again in (("/embedding", True), ("/detokenize", False)):
        key = {"Idempotency-Key": path}
        first, second = [await tropilla.ask("POST", path, {"content": "a"}, key) for _ in "ab"]
        assert (first.status, second.status, first.body) == (200, 200, second.body)
        assert replayed(second) == again


async def test_what_an_upstream_refuses_is_not_said_again(
    gateway: Serve, double: Double, kept: AccountsConfig
) -> None:
    double.on("/embedding", answers(429, b"{}"), answers(200, b'[{"embedding":[1]}]'))
    tropilla = await gateway(double, accounts=kept)
    told_ = [await tropilla.ask("POST", "/embedding", {"content": "a"}, KEY) for _ in range(3)]
    assert [(one.status, replayed(one)) for one in told_] == [
        (429, False), (200, False), (200, True)
    ]  # fmt: skip


async def test_a_form_is_the_same_with_another_boundary(gateway: Serve, double: Double) -> None:
    path = "/v1/audio/transcriptions"
    double.on(path, answers(200, b'{"text":"Hi"}'))
    tropilla = await gateway(double)

    async def ask(boundary: str, sound: str) -> Answer:
        part = f'--{boundary}\r\nContent-Disposition: form-data; name="file"; filename="a"\r\n\r\n'
        body = f"{part}{sound}\r\n--{boundary}--\r\n".encode()
        form = {"Content-Type": f"multipart/form-data; boundary={boundary}"}
        return await tropilla.ask("POST", path, body, form | KEY)

    assert (await ask("one", "la")).status == 200
    assert replayed(await ask("two", "la"))
    assert (await ask("three", "lo")).status == 409


async def test_a_large_body_is_told_apart(gateway: Serve, double: Double) -> None:
    double.on(PATH, streams(*told("Hi")))
    tropilla = await gateway(double)
    for letter, status in (("a", 200), ("a", 200), ("b", 409)):
        text = "x" * 2_000_000 + letter
        body = CHAT | {"messages": [{"role": "user", "content": text}]}
        raw = await tropilla.connect()
        await raw.post(PATH, body, "Idempotency-Key: k")
        assert (await raw.answer()).status == status
    assert len(double.requests) == 1


def test_the_document_tells_of_it() -> None:
    document = describe()
    for path, methods in (table() | patterns()).items():
        for method, action in methods.items():
            row = document["paths"][path][method.lower()]
            names = [one["name"] for one in row.get("parameters", ())]
            repeated = isinstance(action, Generate | Measure | Forward) and may_repeat(action)
            assert ("Idempotency-Key" in names) == repeated, path
            if repeated and not isinstance(action, Forward):
                assert YES in row["responses"]["200"]["headers"]


async def test_a_response_of_the_responses_api_is_kept_once(
    gateway: Serve, double: Double, kept: AccountsConfig
) -> None:
    double.on(PATH, streams(*told("Hi")))
    tropilla = await gateway(double, accounts=kept)
    body = {"model": "m", "input": "Hello!", "stream": True}
    first, again = [await tropilla.ask("POST", "/v1/responses", body, KEY) for _ in range(2)]
    assert (replayed(again), again.body) == (True, first.body)
    id_ = msgspec.json.decode(first.body.rpartition(b"data: ")[2])["response"]["id"]
    assert (await tropilla.ask("GET", f"/v1/responses/{id_}")).json["status"] == "completed"
    more = {"model": "m", "input": "And?", "previous_response_id": id_}
    assert (
        await tropilla.ask("POST", "/v1/responses", more, {"Idempotency-Key": "2"})
    ).status == 200
