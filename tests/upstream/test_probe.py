"""What a probe learns of servers of every age, and of what is no server of models at all."""

from __future__ import annotations

from collections.abc import AsyncIterator
from typing import Any

import msgspec
import pytest

from doubles.upstream import Double, answers, refuses
from tropilla.ir import ProblemError, Traits
from tropilla.upstream.http import Link
from tropilla.upstream.probe import probe

pytestmark = pytest.mark.anyio

NONE = answers(404, b"File Not Found", "text/plain")
HTML = answers(200, b"<!doctype html>", "text/html")


def says(value: Any) -> Any:
    return answers(200, msgspec.json.encode(value))


@pytest.fixture
async def learn(double: Double) -> AsyncIterator[Any]:
    link = Link(double.url)

    async def learn(**scripts: Any) -> Traits:
        for name in ("health", "models", "props", "model_json"):
            path = {"models": "/v1/models", "model_json": "/model.json"}.get(name, f"/{name}")
            double.on(path, scripts.get(name, NONE))
        for path in ("/models", "/no-such-path", "/completion"):
            double.on(path, NONE)
        return await probe(link)

    yield learn
    await link.close()


async def test_a_server_of_today(learn: Any) -> None:
    traits = await learn(
        health=says({"status": "ok"}),
        models=says({"data": [{"id": "org/m", "aliases": ["m", "", 1], "meta": {"n": 1}}, {}, 1]}),
        props=says(
            {
                "default_generation_settings": {"n_ctx": 2048},
                "total_slots": 3,
                "build_info": "b11549",
                "model_path": "/x/other.gguf",
            }
        ),
    )
    assert list(traits.models) == ["org/m", "m"]
    assert traits.models["m"]["meta"] == {"n": 1}
    assert (traits.chat, traits.build, traits.build_info) == (True, 11549, "b11549")
    assert (traits.n_ctx, traits.slots) == (2048, 3)


@pytest.mark.parametrize(
    "scripts",
    [
        {"props": says({"model_path": "C:\\models\\old-7b.gguf"})},
        {"model_json": says({"model": "/models/old-7b.gguf"})},
        {"model_json": says({"model": "old-7b.gguf"}), "health": HTML, "props": HTML},
    ],
)
async def test_old_servers_are_named_by_their_file(learn: Any, scripts: Any) -> None:
    traits = await learn(**scripts)
    assert list(traits.models) == ["old-7b"]
    assert traits.chat is False


async def test_a_server_that_hides_its_model_serves_default(learn: Any) -> None:
    assert list((await learn(props=says({"assistant_name": "x"}))).models) == ["default"]
    assert list((await learn(models=says({"data": []}))).models) == ["default"]


@pytest.mark.parametrize("value", [None, 1, [], "x", {"data": 1}, {"data": [{"id": 1}]}])
async def test_nothing_is_believed(learn: Any, value: Any) -> None:
    traits = await learn(
        models=says(value), props=says({"total_slots": value, "build_info": value})
    )
    assert list(traits.models) == ["default"]
    assert traits.slots == (1 if value == 1 else None)


@pytest.mark.parametrize("script", [NONE, HTML, answers(200, b"[" * 100_000)])
async def test_what_is_no_server_of_models(learn: Any, script: Any) -> None:
    with pytest.raises(ProblemError) as caught:
        await learn(health=script, models=script, props=script, model_json=script)
    assert "not as a llama.cpp server does" in caught.value.problem.message


@pytest.mark.parametrize(
    ("scripts", "kind", "words"),
    [
        ({"health": refuses(503, "Loading model", "unavailable_error")}, "loading", "Loading"),
        ({"health": answers(503, b"")}, "loading", "503"),
        ({"health": answers(500, b"oh")}, "upstream_failed", "oh"),
        ({"health": answers(401, b"")}, "upstream_failed", "--upstream-api-key"),
        ({"health": answers(302, b"")}, "upstream_failed", "redirects"),
        ({"models": answers(401, b"")}, "upstream_failed", "--upstream-api-key"),
        ({"models": answers(403, b"")}, "upstream_failed", "--upstream-api-key"),
    ],
)
async def test_who_cannot_serve(learn: Any, scripts: Any, kind: str, words: str) -> None:
    with pytest.raises(ProblemError) as caught:
        await learn(**scripts)
    assert caught.value.problem.kind == kind
    assert words in caught.value.problem.message


@pytest.mark.parametrize("build", ["b11549", "b4383", None])
async def test_no_token_is_asked_for(learn: Any, double: Double, build: str | None) -> None:
    await learn(models=says({"data": [{"id": "m"}]}), props=says({"build_info": build}))
    asked = [one for one in (*double.requests, *double.probes) if one.method != "GET"]
    assert {one.body for one in asked} <= {b"{}", b"{"}


async def test_the_real_one(engine: str) -> None:
    link = Link(engine)
    traits = await probe(link)
    assert list(traits.models) == ["m"]
    assert traits.chat
    assert traits.slots == 2
    await link.close()
