"""Legacy completions through the gateway: echo, the best of several, and no token at all."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import msgspec
import openai
import pytest

from conftest import Answer, Serve, Served
from doubles.llama import BUILDS, llama
from doubles.upstream import DONE, Double, Exchange, Script, event, streams
from grammar import TODAY, check_grammar
from openapi_schema import check_completion
from test_openai_upstreams import FORMS, Servers, at, servers
from tropilla.dialects import named
from tropilla.exchanges.completing import asked
from tropilla.ir import Event, Failed, Finished, PartDelta, PartStarted, Traits
from tropilla.upstream.http import Link
from tropilla.upstream.member import Upstream

__all__ = ["servers"]  # a fixture

TEXT = "/v1/completions"


async def ask(tropilla: Served, **fields: Any) -> Answer:
    """Ask for a completion that OpenAI's schema has a word for."""
    answer = await tropilla.ask("POST", TEXT, {"model": "m", "prompt": "Hello"} | fields)
    if answer.status == 200:
        for body in answer.events[:-1] if fields.get("stream") else [answer.json]:
            check_completion(body)
    return answer


def heard(answer: Answer, *, stream: bool) -> dict[int, tuple[str, str]]:
    """The texts of an answer and why they ended, by the index of the choice."""
    told: dict[int, tuple[str, str]] = {}
    for body in answer.events[:-1] if stream else [answer.json]:
        for choice in body["choices"]:
            text, reason = told.get(choice["index"], ("", ""))
            told[choice["index"]] = text + choice["text"], choice["finish_reason"] or reason
    return told


# The prompt again.


@FORMS
@pytest.mark.parametrize("build", BUILDS)
async def test_every_choice_begins_with_its_prompt(
    gateway: Serve, build: int, *, stream: bool
) -> None:
    with llama(build) as old:
        tropilla = await gateway(old.url)
        wanted = {"model": None, "prompt": ["Well,", "So"], "n": 2, "max_tokens": 2}
        plain = heard(await ask(tropilla, **wanted, stream=stream), stream=stream)
        told = heard(await ask(tropilla, **wanted, stream=stream, echo=True), stream=stream)
    for index, prompt in enumerate(["Well,", "Well,", "So", "So"]):
        assert told[index] == (prompt + plain[index][0], plain[index][1])
    assert len(told) == 4


@FORMS
async def test_token_ids_are_told_as_text(gateway: Serve, engine: str, *, stream: bool) -> None:
    tropilla = await gateway(engine)
    ids = (await tropilla.ask("POST", "/tokenize", {"content": "Hello, my"})).json["tokens"]
    fields = {"max_tokens": 2, "temperature": 0, "stream": stream}
    for prompt in (ids, [ids], [ids, ids]):
        plain = heard(await ask(tropilla, prompt=prompt, **fields), stream=stream)
        told = heard(await ask(tropilla, prompt=prompt, echo=True, **fields), stream=stream)
        assert told == {
            index: ("Hello, my" + text, reason) for index, (text, reason) in plain.items()
        }


@FORMS
async def test_a_prompt_alone(gateway: Serve, engine: str, *, stream: bool) -> None:
    tropilla = await gateway(engine)
    wanted: dict[str, Any] = {"max_tokens": 0, "stream": stream, "n": 2}
    if stream:
        wanted["stream_options"] = {"include_usage": True}
    for echo in (False, True):
        answer = await ask(tropilla, **wanted, echo=echo)
        said = "Hello" if echo else ""
        assert heard(answer, stream=stream) == {0: (said, "length"), 1: (said, "length")}
        usage = (answer.events[-2] if stream else answer.json)["usage"]
        assert (usage["prompt_tokens"], usage["completion_tokens"]) == (2, 0)


async def test_no_prompt_is_the_beginning_of_a_text(gateway: Serve, engine: str) -> None:
    tropilla = await gateway(engine)
    fields = {"max_tokens": 3, "temperature": 0}
    nothing = await ask(tropilla, prompt=None, **fields)
    begin = await ask(tropilla, prompt=[1], **fields)
    assert heard(nothing, stream=False) == heard(begin, stream=False)
    assert nothing.json["usage"]["prompt_tokens"] == 1


@FORMS
async def test_a_failure_closes_what_was_echoed(
    gateway: Serve, double: Double, *, stream: bool
) -> None:
    async def cut(exchange: Exchange) -> None:
        await exchange.head()
        await exchange.send(event({"index": 0, "content": " there", "stop": False}))
        exchange.reset()

    double.on("/completion", cut)
    tropilla = await gateway(double.url)
    answer = await ask(tropilla, echo=True, stream=stream)
    if stream:
        texts = [one["choices"][0]["text"] for one in answer.events[:2]]
        assert texts == ["Hello", " there"]
        assert "error" in answer.events[-2]
    else:
        assert answer.status == 502


async def events_of(url: str, back: str, **fields: Any) -> list[Event]:
    """What an upstream is heard to say; its own words are in the dialect `back`."""
    front = named("openai_completions")
    request = front.parse_request({"prompt": ["a", "b"]} | fields, "/completions")
    link = Link(url)
    upstream = Upstream(link, url, dialect="llamacpp" if back == "llamacpp" else "openai")
    upstream.traits = TODAY if back == "llamacpp" else Traits(dialect="openai", tokenizes=False)
    told: list[Event] = []
    try:
        async with asked(upstream, named(back), request, extras=False) as answer:
            while not told or not isinstance(told[-1], Finished | Failed):
                told += await answer.next()
    finally:
        await link.close()
    return told


@pytest.mark.parametrize("cut", [False, True])
async def test_an_echo_is_the_beginning_of_the_one_part(double: Double, *, cut: bool) -> None:
    pieces = [event({"index": 1, "content": " x", "stop": False})]
    if not cut:
        pieces += [event({"index": one, "content": "", "stop": True}) for one in (0, 1)]
    double.on("/completion", streams(*pieces))

    told = await events_of(double.url, "llamacpp", echo=True)

    check_grammar(told)
    assert [one.choice for one in told if isinstance(one, PartStarted)] == [0, 1]
    said = [(one.choice, one.text) for one in told if isinstance(one, PartDelta)]
    assert said == [(0, "a"), (1, "b"), (1, " x")]
    assert isinstance(told[-1], Failed if cut else Finished)


@pytest.mark.parametrize("text", ["a I", "I"])
async def test_what_is_passed_on_keeps_the_order_of_events(double: Double, text: str) -> None:
    double.on(TEXT, telling(text, LISTS))
    told = await events_of(double.url, "openai_completions", prompt="a", echo=True, logprobs=1)
    check_grammar(told)
    assert isinstance(told[-1], Finished if text == "a I" else Failed)


# The best of several.


def saying(*choices: tuple[str, list[float]]) -> Script:
    """A server that writes these, with how likely their tokens were."""
    events = []
    for index, (text, chances) in enumerate(choices):
        entries = [
            {"id": 5, "token": "x", "bytes": [120], "logprob": chance, "top_logprobs": []}
            for chance in chances
        ]
        told = {"index": index, "content": text, "stop": False}
        events.append(event(told | {"completion_probabilities": entries}))
        end = {"tokens_predicted": len(chances), "tokens_evaluated": 3, "stop_type": "limit"}
        events.append(event({"index": index, "content": "", "stop": True} | end))
    return streams(*events)


async def test_the_likeliest_are_chosen(gateway: Serve, double: Double) -> None:
    likely = ("b", [-1.0, -1.0, -1.0]), ("a", [-2.0]), ("c", [-0.5, -0.1])
    double.on("/completion", saying(*likely))
    tropilla = await gateway(double.url)

    answer = await ask(tropilla, best_of=3, n=2)

    assert heard(answer, stream=False) == {0: ("c", "length"), 1: ("b", "length")}
    assert all(choice["logprobs"] is None for choice in answer.json["choices"])
    usage = answer.json["usage"]
    assert (usage["prompt_tokens"], usage["completion_tokens"]) == (3, 6)
    sent = double.requests[-1].json
    assert (sent["n_cmpl"], sent["n_probs"]) == (3, 1)
    assert "best_of" not in sent


async def test_of_each_prompt_the_likeliest(gateway: Serve, double: Double) -> None:
    likely = ("a", [-2.0]), ("b", [-1.0]), ("c", [-1.0]), ("d", [-2.0])
    double.on("/completion", saying(*likely))
    tropilla = await gateway(double.url)
    answer = await ask(tropilla, prompt=["x", "y"], best_of=2, echo=True)
    assert heard(answer, stream=False) == {0: ("xb", "length"), 1: ("yc", "length")}


async def test_the_best_of_the_engine_is_its_best(gateway: Serve, engine: str) -> None:
    tropilla = await gateway(engine)
    fields = {"prompt": "Hello", "max_tokens": 4, "seed": 7, "logprobs": 0, "temperature": 1.5}

    every = (await ask(tropilla, **fields, n=2)).json["choices"]
    best = (await ask(tropilla, **fields, best_of=2)).json

    def mean(choice: Any) -> float:
        chances = choice["logprobs"]["token_logprobs"]
        return float(sum(chances) / len(chances))

    assert best["choices"][0]["text"] == max(every, key=mean)["text"]
    assert best["usage"]["completion_tokens"] == sum(
        len(one["logprobs"]["tokens"]) for one in every
    )


async def test_what_tells_no_probabilities_has_no_best(gateway: Serve, servers: Servers) -> None:
    double = await servers()
    tropilla = await gateway(models=at(double.url))
    answer = await ask(tropilla, best_of=2)
    assert (answer.status, answer.error["param"]) == (400, "best_of")


# Servers that echo themselves.


LISTS = {
    "tokens": ["Hello", " I"],
    "token_logprobs": [None, -0.5],
    "top_logprobs": [None, {" I": -0.5, " We": -1.5}],
    "text_offset": [0, 5],
}


def telling(text: str, lists: Any) -> Script:
    choice = {"index": 0, "text": text, "logprobs": lists, "finish_reason": None}
    end = {"index": 0, "text": "", "logprobs": None, "finish_reason": "length"}
    usage = {"prompt_tokens": 1, "completion_tokens": 1, "total_tokens": 2}
    return streams(event({"choices": [choice]}), event({"choices": [end], "usage": usage}), DONE)


@FORMS
async def test_a_server_that_scores_is_asked_itself(
    gateway: Serve, double: Double, *, stream: bool
) -> None:
    double.on(TEXT, telling("Hello I", LISTS))
    tropilla = await gateway(models=at(double.url))
    for prompt in ("Hello", [15496]):
        answer = await ask(tropilla, prompt=prompt, echo=True, logprobs=2, stream=stream)
        assert heard(answer, stream=stream) == {0: ("Hello I", "length")}
        first = answer.events[0] if stream else answer.json
        assert first["choices"][0]["logprobs"] == LISTS
        sent = double.requests[-1].json
        assert (sent["echo"], sent["logprobs"], sent["prompt"]) == (True, 2, prompt)


@FORMS
@pytest.mark.parametrize(
    ("text", "lists"),
    [
        (" I", {"tokens": [" I"], "token_logprobs": [-0.5], "text_offset": [0]}),
        ("Hello I", None),
        ("Hello", {"tokens": ["Hello"], "token_logprobs": [-0.5], "text_offset": [0]}),
        ("", None),
    ],
)
async def test_a_server_that_does_not_echo_is_found_out(
    gateway: Serve, double: Double, text: str, lists: Any, *, stream: bool
) -> None:
    double.on(TEXT, telling(text, lists))
    tropilla = await gateway(models=at(double.url))
    answer = await ask(tropilla, echo=True, logprobs=2, stream=stream)
    error = answer.events[-2]["error"] if answer.status == 200 else answer.error
    assert (error["code"], error["param"]) == ("unsupported_value", "echo")


async def test_token_ids_of_a_server_that_cannot_be_asked_for_their_text(
    gateway: Serve, double: Double
) -> None:
    double.on(TEXT, telling("Hello I", LISTS))
    tropilla = await gateway(models=at(double.url))
    # It may echo by itself.
    answer = await ask(tropilla, prompt=[15496], echo=True)
    assert heard(answer, stream=False) == {0: ("Hello I", "length")}
    assert double.requests[-1].json["echo"] is True


async def test_several_prompts_are_echoed_one_by_one(gateway: Serve, double: Double) -> None:
    double.on(TEXT, telling("Hello I", LISTS))
    tropilla = await gateway(models=at(double.url))
    answer = await ask(tropilla, prompt=["Hello", "Hello"], echo=True, logprobs=1)
    assert set(heard(answer, stream=False)) == {0, 1}
    assert [one.json["echo"] for one in double.requests] == [True, True]


# Everything else.


async def test_as_openais_sdk_reads_it(gateway: Serve, engine: str) -> None:
    tropilla = await gateway(engine)
    async with openai.AsyncOpenAI(base_url=f"{tropilla.url}/v1", api_key="-") as client:
        told = await client.completions.create(
            model="m", prompt=["Hello", "The"], echo=True, logprobs=3, max_tokens=2, n=2, seed=1
        )
        assert [one.index for one in told.choices] == [0, 1, 2, 3]
        for choice in told.choices:
            lists = choice.logprobs
            assert lists is not None
            assert lists.token_logprobs is not None
            assert lists.tokens is not None
            assert "".join(lists.tokens[1:]) == choice.text
            assert len(lists.token_logprobs) == len(lists.tokens)
        stream = await client.completions.create(
            model="m", prompt="Hello", echo=True, max_tokens=2, stream=True, seed=1
        )
        assert "".join([one.choices[0].text async for one in stream]).startswith("Hello")


async def test_a_banned_token_is_not_written(gateway: Serve, engine: str) -> None:
    tropilla = await gateway(engine)
    fields = {"max_tokens": 1, "temperature": 0, "logprobs": 1}
    lists = (await ask(tropilla, **fields)).json["choices"][0]["logprobs"]
    banned = (await tropilla.ask("POST", "/tokenize", {"content": lists["tokens"][0]})).json
    bias = {str(banned["tokens"][-1]): -100}

    other = (await ask(tropilla, **fields, logit_bias=bias)).json["choices"][0]["logprobs"]

    assert other["tokens"] != lists["tokens"]
    # What would have been the likeliest is told as it is, and what was written is there too.
    assert set(other["top_logprobs"][0]) == {lists["tokens"][0], other["tokens"][0]}


def test_the_page_has_a_row_for_every_field() -> None:
    page = (Path(__file__).parents[2] / "docs" / "completions.md").read_text(encoding="utf-8")
    document = Path(__file__).parents[1] / "openapi" / "openai-subset.json"
    schemas = msgspec.json.decode(document.read_bytes())["components"]["schemas"]
    for name in schemas["CreateCompletionRequest"]["properties"]:
        assert f"\n| `{name}`" in page, name
