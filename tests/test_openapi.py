"""The document that Tropilla serves of itself: it tells every route, and no other."""

from __future__ import annotations

from typing import Any

import msgspec
import pytest
from jsonschema import Draft202012Validator  # type: ignore[import-untyped]

from conftest import Serve
from doubles.upstream import Double
from tropilla import dialects
from tropilla.server import openapi
from tropilla.server.app import STATUS
from tropilla.server.routes import Forward, Generate, Measure, Own, Router, patterns, table

_DOCUMENT = openapi.describe()
_OPERATIONS = {
    (path, method.upper()): row
    for path, rows in _DOCUMENT["paths"].items()
    for method, row in rows.items()
    if method != "parameters"
}


@pytest.mark.anyio
async def test_the_document_is_served(gateway: Serve, double: Double) -> None:
    tropilla = await gateway(double, api_keys=("k",))
    assert (await tropilla.ask("GET", "/openapi.json")).status == 401
    answer = await tropilla.ask("GET", "/openapi.json", headers={"Authorization": "Bearer k"})
    assert answer.status == 200
    assert answer.headers["content-type"] == "application/json"
    assert answer.json == _DOCUMENT
    assert answer.json["openapi"] == "3.1.0"


def test_every_route_is_described_and_nothing_else() -> None:
    routes = {**table(), **patterns()}
    assert set(_OPERATIONS) == {(path, method) for path in routes for method in routes[path]}
    assert _OPERATIONS["/v1/chat/completions", "POST"]["summary"] == "Continue a conversation"


def test_a_path_with_a_part_of_its_own_is_found_as_it_is_described() -> None:
    router = Router()
    for path, methods in patterns().items():
        found = router.find(path.replace("{model}", "m").replace("{slot}", "7"))
        assert found is not None
        assert found.keys() == methods.keys()
        assert [type(one) for one in found.values()] == [type(one) for one in methods.values()]
        assert _DOCUMENT["paths"][path]["parameters"][0]["name"] in path


def test_every_status_of_a_problem_is_declared_where_it_can_be() -> None:
    kinds = STATUS.keys() - {"method_not_allowed", "not_implemented"}  # of no method, of pages
    for (path, method), row in _OPERATIONS.items():
        action = {**table(), **patterns()}[path][method]
        match action:
            case Generate() | Measure():
                own = dialects.statuses(dialects.named(action.dialect))
                ours = {str(own.get(kind) or STATUS[kind]) for kind in kinds}
                assert ours <= row["responses"].keys(), path
            case Forward():
                assert row["responses"].keys() == {"200", "4XX", "5XX"}
            case Own():
                assert "200" in row["responses"]


def test_every_reference_leads_somewhere_and_every_schema_is_one() -> None:
    found = 0

    def walk(value: Any) -> None:
        nonlocal found
        if isinstance(value, dict):
            target = value.get("$ref")
            if isinstance(target, str):
                place: Any = _DOCUMENT
                for step in target.removeprefix("#/").split("/"):
                    place = place[step]
                found += 1
            for inner in value.values():
                walk(inner)
        elif isinstance(value, list):
            for inner in value:
                walk(inner)

    walk(_DOCUMENT)
    assert found > 100
    for schema in _DOCUMENT["components"]["schemas"].values():
        Draft202012Validator.check_schema(schema)


def test_no_schema_is_left_over() -> None:
    text = msgspec.json.encode(_DOCUMENT)
    for name in _DOCUMENT["components"]["schemas"]:
        assert b'"#/components/schemas/%b"' % name.encode() in text, name
