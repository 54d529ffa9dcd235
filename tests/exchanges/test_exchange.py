"""Several answers from a server that gives one at a time."""

from __future__ import annotations

from typing import Any

import pytest

from conftest import Serve
from doubles.upstream import Double, answers, breaks, chunk, native_told, streams, told

pytestmark = pytest.mark.anyio

PATH = "/v1/chat/completions"
FORMS = pytest.mark.parametrize("stream", [False, True], ids=["whole", "stream"])


@pytest.fixture
def old(double: Double) -> Double:
    """A server from before `n` (b7308)."""
    double.props["build_info"] = "b5000-old"
    return double


async def test_a_server_that_can_is_asked_once(gateway: Serve, double: Double) -> None:
    tropilla = await gateway(double)
    double.on(PATH, answers(400, b"{}"))
    await tropilla.chat(n=2)
    assert [exchange.json["n"] for exchange in double.requests] == [2]
    # More than it has slots (here 4), it refuses.
    double.on(PATH, streams(*told("x")))
    answer = await tropilla.chat(n=5)
    assert len(answer.json["choices"]) == 5
    assert ["n" in exchange.json for exchange in double.requests[1:]] == [False] * 5


async def test_prompts_in_a_list_are_split_for_a_server_that_misreads_them(
    gateway: Serve, double: Double
) -> None:
    double.on("/completion", streams(*native_told("x")))
    double.props["build_info"] = "b4401-old"
    tropilla = await gateway(double)
    body = {"model": "m", "prompt": ["a", [1, 2]]}
    assert (await tropilla.ask("POST", "/v1/completions", body)).status == 200
    assert [exchange.json["prompt"] for exchange in double.requests] == ["a", [1, 2]]


@FORMS
async def test_what_one_of_them_cannot_be_asked_is_known_before_the_first_is(
    gateway: Serve, double: Double, *, stream: bool
) -> None:
    double.on("/completion", streams(*native_told("x")))
    double.props["build_info"] = "b4401-old"
    tropilla = await gateway(double)
    body = {"prompt": ["a", {"prompt_string": "b"}], "stream": stream}
    answer = await tropilla.ask("POST", "/completion", body)
    assert (answer.status, answer.error["param"]) == (400, "prompt")
    assert double.requests == []


@FORMS
@pytest.mark.parametrize("how", ["refused", "broken"])
async def test_the_second_fails(gateway: Serve, old: Double, how: str, *, stream: bool) -> None:
    bad = answers(500, b"{}") if how == "refused" else breaks(chunk("Hel"))
    old.on(PATH, streams(*told("x")), bad)
    answer = await (await gateway(old)).chat(n=2, stream=stream)
    if not stream:
        assert (answer.status, answer.error["code"]) == (502, "upstream_error")
        return
    assert answer.status == 200
    assert answer.events[-1] == "[DONE]"
    assert answer.events[-2]["error"]["code"] == "upstream_error"
    assert answer.text == ("x" if how == "refused" else "xHel")
    ends = [one["choices"][0] for one in answer.events[:-2]]
    assert [one["index"] for one in ends if one["finish_reason"]] == [0]


async def test_the_client_leaves_in_the_second(gateway: Serve, old: Double) -> None:
    tropilla = await gateway(old)
    raw = await tropilla.connect()
    body: dict[str, Any] = {"model": "m", "messages": [{"role": "user", "content": "x"}]}
    await raw.post(PATH, body | {"n": 3, "stream": True})
    await (await old.arrives()).stream(*told("first"))
    second = await old.arrives()
    await second.head()
    await second.send(chunk("second"))
    await raw.see(b"second")
    raw.leave()
    await second.left()
    assert len(old.requests) == 2


async def test_usage_is_the_sum_or_nothing(gateway: Serve, old: Double) -> None:
    old.on(PATH, streams(*told("x")))
    tropilla = await gateway(old)
    usage = (await tropilla.chat(n=3)).json["usage"]
    assert (usage["prompt_tokens"], usage["completion_tokens"]) == (3, 6)


async def test_the_real_engine_gives_more_answers_than_it_has_slots(
    gateway: Serve, engine: str
) -> None:
    tropilla = await gateway(engine)
    answer = await tropilla.chat(n=5, max_tokens=4, seed=1, temperature=1)
    assert [choice["index"] for choice in answer.json["choices"]] == [0, 1, 2, 3, 4]
    assert len({choice["message"]["content"] for choice in answer.json["choices"]}) > 1
    assert answer.json["usage"]["completion_tokens"] <= 20
