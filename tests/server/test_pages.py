"""What a dialect answers beside generation is found, told apart, described and kept in bounds."""

from __future__ import annotations

from collections.abc import Collection
from types import ModuleType
from typing import Any

import msgspec
import pytest

from conftest import CHAT, Serve, Start
from doubles.upstream import Double, streams
from doubles.upstream import told as said
from tropilla import dialects
from tropilla.dialects import Route, openai_chat
from tropilla.dialects._beside import Counter, Page, Shape, Shown, Visit
from tropilla.ir import Malformed, Usage
from tropilla.server import openapi

pytestmark = pytest.mark.anyio

BEARER = {"Authorization": "Bearer k"}
SHAPE = Shape("A page", None, "MadeThing", None, ("401",))
SHAPES = {"MadeThing": {"type": "object"}, "MadeError": {"type": "object"}}


def root(visit: Visit) -> Shown:
    assert visit.rest == ""
    return Shown(body=b"Made is here", content_type="text/plain")


def listed(visit: Visit) -> Shown:
    names = [card["id"] for card in visit.known.models]
    told = {"made": names, "by": visit.headers["made-version"], "query": visit.query}
    return Shown(body=msgspec.json.encode(told), headers={"made-id": "1"})


def one(visit: Visit) -> Shown:
    return Shown(body=msgspec.json.encode({"rest": visit.rest}), status=203)


def shown(visit: Visit) -> Shown:
    if "name" not in visit.body:
        raise Malformed("There is no name.", param="name")
    return Shown(body=msgspec.json.encode(visit.body | {"version": visit.known.version}))


def loaded(visit: Visit) -> Shown | None:
    return None if visit.body["messages"] else Shown(body=b'{"loaded":true}')


def render(usage: Usage) -> bytes:
    return msgspec.json.encode({"made_tokens": usage.prompt_tokens})


def served_as(name: str, served: Collection[str]) -> str:
    return name if name in served else name.removeprefix("made/")


@pytest.fixture(autouse=True)
def made(monkeypatch: pytest.MonkeyPatch) -> None:
    """One dialect more, which has everything that a dialect may have."""
    module: Any = ModuleType("made")
    vars(module).update(vars(openai_chat))
    module.NAME = "made"
    module.ROUTES = (Route(path="/made/chat", v1=False, instead=loaded, shape=SHAPE),)
    module.COUNTERS = (
        Counter(path="/made/count", of="/made/chat", v1=False, shape=SHAPE, render=render),
    )
    module.PAGES = (
        Page(method="GET", path="/", answer=root, shape=SHAPE, public=True),
        Page(method="GET", path="/v1/models", answer=listed, shape=SHAPE, header="made-version"),
        Page(method="GET", path="/v1/models/{m}", answer=one, shape=SHAPE, header="made-version"),
        Page(method="GET", path="/made/things/{thing}", answer=one, shape=SHAPE),
        Page(method="POST", path="/made/show", answer=shown, shape=SHAPE),
        Page(method="DELETE", path="/made/show", answer="Made things stay.", shape=SHAPE),
    )
    module.SCHEMAS = SHAPES
    module.served_as = served_as
    names, named = dialects.names(), dialects.named
    monkeypatch.setattr(dialects, "names", lambda: (*names, "made"))
    monkeypatch.setattr(dialects, "named", lambda name: module if name == "made" else named(name))


async def test_a_page_is_answered_in_its_own_type_and_a_head_too(
    gateway: Serve, double: Double
) -> None:
    tropilla = await gateway(double)
    answer = await tropilla.ask("GET", "/")
    assert (answer.status, answer.body) == (200, b"Made is here")
    assert answer.headers["content-type"] == "text/plain"
    answer = await tropilla.ask("HEAD", "/made/things/x")
    assert (answer.status, answer.body, answer.headers["content-length"]) == (203, b"", "12")


async def test_a_header_tells_two_forms_of_a_path_apart(gateway: Serve, doubles: Start) -> None:
    tropilla = await gateway(await doubles("m", "org/m"))
    assert (await tropilla.ask("GET", "/v1/models")).json["object"] == "list"
    answer = await tropilla.ask("GET", "/v1/models?limit=2", headers={"Made-Version": "7"})
    assert answer.json == {"made": ["m", "org/m"], "by": "7", "query": "limit=2"}
    assert answer.headers["made-id"] == "1"
    answer = await tropilla.ask("GET", "/v1/models/org%2Fm", headers={"Made-Version": "7"})
    assert (answer.status, answer.json) == (203, {"rest": "org/m"})
    assert (await tropilla.ask("GET", "/v1/models/org%2Fm")).json["id"] == "org/m"


async def test_the_rest_of_a_path_is_what_was_sent_and_there_must_be_some(
    gateway: Serve, double: Double
) -> None:
    tropilla = await gateway(double)
    assert (await tropilla.ask("GET", "/made/things/a%20b/c")).json == {"rest": "a b/c"}
    assert (await tropilla.ask("GET", "/made/things/")).status == 404


async def test_what_is_sent_to_a_page_is_read_as_json(gateway: Serve, double: Double) -> None:
    tropilla = await gateway(double)
    answer = await tropilla.ask("POST", "/made/show", {"name": "m"})
    assert answer.json["name"] == "m"
    assert answer.json["version"]
    for body in (b"", b"[]", b"{", {"other": 1}):
        answer = await tropilla.ask("POST", "/made/show", body)
        assert (answer.status, answer.error["type"]) == (400, "invalid_request_error")


async def test_what_is_not_done_is_refused_for_good(gateway: Serve, double: Double) -> None:
    tropilla = await gateway(double)
    answer = await tropilla.ask("DELETE", "/made/show")
    assert (answer.status, answer.error["message"]) == (501, "Made things stay.")
    assert answer.headers["x-should-retry"] == "false"
    answer = await tropilla.ask("GET", "/made/show")
    assert (answer.status, answer.headers["allow"]) == (405, "POST, DELETE, OPTIONS")


async def test_only_a_public_page_needs_no_key(gateway: Serve, double: Double) -> None:
    tropilla = await gateway(double, api_keys=("k",))
    assert (await tropilla.ask("GET", "/")).status == 200
    assert (await tropilla.ask("GET", "/made/things/x")).status == 401
    assert (await tropilla.ask("DELETE", "/made/show")).status == 401
    assert (await tropilla.ask("GET", "/made/things/x", headers=BEARER)).status == 203


async def test_what_asks_for_no_text_takes_no_upstream(gateway: Serve, double: Double) -> None:
    double.on("/v1/chat/completions", streams(*said("Good", " day")))
    tropilla = await gateway(double)
    answer = await tropilla.ask("POST", "/made/chat", {"messages": []})
    assert answer.json == {"loaded": True}
    answer = await tropilla.ask("POST", "/made/chat", CHAT)
    assert answer.json["choices"][0]["message"]["content"] == "Good day"


async def test_a_dialect_finds_a_model_by_names_of_its_own(gateway: Serve, double: Double) -> None:
    double.on("/v1/chat/completions", streams(*said("Good", " day")))
    tropilla = await gateway(double)
    answer = await tropilla.ask("POST", "/made/chat", CHAT | {"model": "made/m"})
    assert (answer.status, answer.json["model"]) == (200, "made/m"), "it hears what it said"
    assert (await tropilla.chat(model="made/m")).status == 404, "that is nobody else's way"
    answer = await tropilla.ask("POST", "/made/chat", CHAT | {"model": "made/x"})
    assert answer.error["code"] == "model_not_found"


async def test_tokens_are_counted_in_the_words_of_the_dialect(gateway: Serve, engine: str) -> None:
    tropilla = await gateway(engine)
    answer = await tropilla.ask("POST", "/made/count", CHAT | {"model": "made/m"})
    counted = await tropilla.ask("POST", "/v1/chat/completions/input_tokens", CHAT)
    assert answer.json == {"made_tokens": counted.json["input_tokens"]}


def test_the_document_has_it_all() -> None:
    told = openapi.describe()
    paths = told["paths"]
    assert paths["/made/show"]["delete"]["responses"].keys() == {"401"}
    assert paths["/made/things/{thing}"]["parameters"][0]["name"] == "thing"
    both = paths["/v1/models"]["get"]
    # Those that other dialects tell by a header of theirs may be there too.
    assert "made-version" in [one["name"] for one in both["parameters"]]
    for status, names in (("200", {"Models", "MadeThing"}), ("401", {"Error", "MadeError"})):
        forms = both["responses"][status]["content"]["application/json"]["schema"]["anyOf"]
        assert {f"#/components/schemas/{name}" for name in names} <= {one["$ref"] for one in forms}
    assert paths["/made/chat"]["post"]["tags"] == ["Made"]
    assert told["components"]["schemas"]["MadeThing"] == SHAPES["MadeThing"]
    assert "MadeError501" in told["components"]["responses"]
