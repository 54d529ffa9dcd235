"""What a server of 2023 cannot do is refused, and nothing is asked of it."""

from __future__ import annotations

from collections.abc import Iterator
from typing import Any

import msgspec
import pytest

from doubles.llama_b1496 import NAME, Llama, llama
from test_api_like_oai import CHAT, CLASSIC, Client, gateway

Pair = tuple[Client, Llama]


@pytest.fixture(scope="module")
def pair() -> Iterator[Pair]:
    with llama() as double, gateway(double.url, template=CLASSIC) as client:
        yield client, double


@pytest.mark.parametrize(
    ("path", "body", "param"),
    [
        ("/v1/completions", {"prompt": "x", "n": 2}, "n"),
        ("/v1/chat/completions", CHAT | {"n": 2}, "n"),
        ("/v1/completions", {"prompt": ["x", "y"]}, "prompt"),
        (
            "/v1/chat/completions",
            CHAT | {"response_format": {"type": "json_object"}},
            "response_format",
        ),
        ("/v1/completions", {"prompt": "x", "system_prompt": {"prompt": "evil"}}, "system_prompt"),
        ("/completion", {"prompt": "x", "system_prompt": {"prompt": "evil"}}, "system_prompt"),
    ],
)
def test_what_it_would_misread_is_refused(
    pair: Pair, path: str, body: dict[str, Any], param: str
) -> None:
    client, double = pair
    double.clear()
    answer = client.post(path, body)
    assert (answer.status, answer.json["error"]["param"]) == (400, param)
    assert double.paths == []


@pytest.mark.parametrize(
    ("path", "body"),
    [
        ("/completion", {"prompt": "x"}),
        ("/infill", {"input_prefix": "x", "input_suffix": ""}),
    ],
)
def test_a_native_request_is_the_clients_own(pair: Pair, path: str, body: dict[str, Any]) -> None:
    client, double = pair
    double.clear()
    assert client.post(path, body).status == 200
    assert double.last(path) == body | {"stream": True, "model": NAME}


def test_a_long_body_goes_on_as_json_though_curl_calls_it_a_form(pair: Pair) -> None:
    client, double = pair
    double.clear()
    body = msgspec.json.encode({"content": "x" * 9000})
    form = "application/x-www-form-urlencoded"
    answer = client.ask("POST", "/tokenize", body, Content_Type=form)
    assert (answer.status, len(answer.json["tokens"])) == (200, 9000)
