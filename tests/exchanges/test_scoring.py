"""How likely a prompt is: against the engine's own words, and the model's own numbers."""

from __future__ import annotations

from collections.abc import Awaitable, Callable
from typing import Any

import gguf
import msgspec
import numpy as np
import pytest

from conftest import Answer, Serve, Served, Start
from doubles.llama import llama
from doubles.upstream import Double, Exchange
from openapi_schema import check_completion
from tropilla.config import TINY_MODEL
from tropilla.upstream.http import Link

TEXT = "/v1/completions"
PROMPT = "The llamas walk. Hello, my name is Tropilla."
CLOSE = 2e-3
"""What the model's own numbers differ by from what the engine makes of them."""
NEAR = 2e-4
"""What the engine's own numbers differ by, when it computes the same in another batch."""


async def scored(tropilla: Served, prompt: Any = PROMPT, **fields: Any) -> Any:
    """The choices of an answer that tells how likely its prompt is."""
    asked = {"model": "m", "prompt": prompt, "echo": True, "logprobs": 2, "max_tokens": 0}
    answer = await tropilla.ask("POST", TEXT, asked | fields)
    assert answer.status == 200, answer.body
    check_completion(answer.json)
    return answer.json["choices"]


async def asked_of(engine: str, path: str, body: Any) -> Any:
    link = Link(engine)
    try:
        status, told = await link.ask("POST", path, body)
    finally:
        await link.close()
    assert status == 200, told
    return msgspec.json.decode(told)


async def ids_of(engine: str, text: str) -> list[int]:
    told = await asked_of(engine, "/tokenize", {"content": text, "add_special": True})
    ids: list[int] = told["tokens"]
    return ids


Relay = Callable[[Exchange], Awaitable[None]]


def passing(engine: str) -> Relay:
    """A script that has the engine answer."""

    async def script(exchange: Exchange) -> None:
        link = Link(engine)
        try:
            status, told = await link.ask("POST", exchange.path, exchange.json)
        finally:
            await link.close()
        await exchange.whole(status, told)

    return script


async def refusing(exchange: Exchange) -> None:
    """What a server says that knows no token ids in a grammar."""
    error = {"code": 400, "message": "Failed to parse grammar", "type": "invalid_request_error"}
    await exchange.whole(400, msgspec.json.encode({"error": error}))


# What the numbers are.


def short(values: Any) -> Any:
    """Numbers of 16 bits: what llama.cpp multiplies weights of 16 bits with."""
    return values.astype(np.float16).astype(np.float64)


def chances(ids: list[int]) -> Any:
    """The log-probabilities of every next token, by the model's weights alone."""
    reader = gguf.GGUFReader(TINY_MODEL)
    weights = {one.name: np.asarray(one.data, dtype=np.float64) for one in reader.tensors}

    def norm(values: Any, name: str) -> Any:
        scale = np.sqrt((values**2).mean(-1, keepdims=True) + 1e-5)
        return values / scale * weights[f"{name}.weight"]

    def turned(values: Any) -> Any:
        """Pairs of numbers, turned by their place."""
        pairs = values.reshape(len(ids), 3, 16, 2)
        angles = np.arange(len(ids))[:, None] / 10000.0 ** (np.arange(16) / 16)
        sines, cosines = np.sin(angles)[:, None], np.cos(angles)[:, None]
        left, right = pairs[..., 0], pairs[..., 1]
        turns = (left * cosines - right * sines, left * sines + right * cosines)
        return np.stack(turns, -1).reshape(len(ids), 3, 32)

    def times(values: Any, name: str) -> Any:
        return short(values) @ weights[f"blk.0.{name}.weight"].T

    x = weights["token_embd.weight"][ids]
    seen = norm(x, "blk.0.attn_norm")
    heads = len(ids), 3, 32
    query, key = (turned(times(seen, name).reshape(heads)) for name in ("attn_q", "attn_k"))
    value = short(times(seen, "attn_v").reshape(heads))
    scores = np.einsum("ihd,jhd->hij", short(query), short(key)) / np.sqrt(32)
    scores = np.where(np.tri(len(ids), dtype=bool), scores, -np.inf)
    parts = np.exp(scores - scores.max(-1, keepdims=True))
    parts /= parts.sum(-1, keepdims=True)
    x = x + times(np.einsum("hij,jhd->ihd", parts, value).reshape(len(ids), 96), "attn_output")
    seen = norm(x, "blk.0.ffn_norm")
    gate = times(seen, "ffn_gate")
    x = x + times(gate / (1 + np.exp(-gate)) * times(seen, "ffn_up"), "ffn_down")
    logits = short(norm(x, "output_norm")) @ weights["output.weight"].T
    logits -= logits.max(-1, keepdims=True)
    return logits - np.log(np.exp(logits).sum(-1, keepdims=True))


async def test_the_numbers_are_the_models(gateway: Serve, engine: str) -> None:
    tropilla = await gateway(engine)
    told = (await scored(tropilla))[0]["logprobs"]
    ids = await ids_of(engine, PROMPT)

    exact = chances(ids)

    true = [exact[at, id_] for at, id_ in enumerate(ids[1:])]
    assert told["token_logprobs"][1:] == pytest.approx(true, abs=CLOSE)
    for tops, numbers in zip(told["top_logprobs"][1:], exact, strict=False):
        likeliest = sorted(numbers, reverse=True)[:2]
        assert list(tops.values())[:2] == pytest.approx(likeliest, abs=CLOSE)


async def test_what_is_written_is_as_likely_when_it_is_read(gateway: Serve, engine: str) -> None:
    tropilla = await gateway(engine)
    asked = {"model": "m", "prompt": "Hello", "max_tokens": 24, "logprobs": 3, "temperature": 0}
    asked |= {"ignore_eos": True}
    wrote = (await tropilla.ask("POST", TEXT, asked)).json["choices"][0]

    read = (await scored(tropilla, "Hello" + wrote["text"], logprobs=3))[0]

    lists, size = read["logprobs"], len(wrote["logprobs"]["tokens"])
    assert lists["tokens"][-size:] == wrote["logprobs"]["tokens"]
    chances_then = wrote["logprobs"]["token_logprobs"]
    assert lists["token_logprobs"][-size:] == pytest.approx(chances_then, abs=NEAR)
    for one, other in zip(
        lists["top_logprobs"][-size:], wrote["logprobs"]["top_logprobs"], strict=True
    ):
        assert one == pytest.approx(other, abs=NEAR)


async def test_without_grammars_of_ids_the_numbers_are_the_same(
    gateway: Serve, double: Double, engine: str
) -> None:
    double.on("/tokenize", passing(engine))
    double.on("/completion", refusing, passing(engine))
    plain, other = await gateway(engine), await gateway(double.url)

    by_grammar, by_bias = await scored(plain), await scored(other)

    for name in ("tokens", "text_offset"):
        assert by_bias[0]["logprobs"][name] == by_grammar[0]["logprobs"][name]
    for name in ("token_logprobs", "top_logprobs"):
        for one, two in zip(
            by_bias[0]["logprobs"][name][1:], by_grammar[0]["logprobs"][name][1:], strict=True
        ):
            assert one == pytest.approx(two, abs=NEAR)
    asked = [one.json for one in double.requests if one.path == "/completion"]
    ids = await ids_of(engine, PROMPT)
    assert "grammar" in asked[0]
    assert [one["prompt"] for one in asked[1:]] == [ids[:at] for at in range(1, len(ids))]
    assert [one["logit_bias"] for one in asked[1:]] == [[[id_, 1e6]] for id_ in ids[1:]]


async def test_tokens_that_no_grammar_can_hold(gateway: Serve, engine: str) -> None:
    tropilla = await gateway(engine)
    text = "A llama é \N{LLAMA}<|im_end|> x"
    choice = (await scored(tropilla, text))[0]
    ids = await ids_of(engine, text)

    told = choice["logprobs"]
    assert choice["text"] == text
    assert told["tokens"][-3:] == ["<|im_end|>", " ", "x"]
    first = told["tokens"].index("bytes:\\xc3")
    assert told["tokens"][first + 1 : first + 4] == ["bytes:\\xa9", " ", "bytes:\\xf0"]
    assert told["text_offset"][first : first + 4] == [8, 8, 9, 10]
    body = {"n_predict": 1, "n_probs": 5000, "temperature": 0}
    for at in (first, first + 1, first + 3, len(ids) - 3):
        answer = await asked_of(engine, "/completion", body | {"prompt": ids[:at]})
        tops = answer["completion_probabilities"][0]["top_logprobs"]
        true = next(top["logprob"] for top in tops if top["id"] == ids[at])
        assert told["token_logprobs"][at] == pytest.approx(true, abs=NEAR)


async def test_a_long_prompt_is_scored_in_ranges(gateway: Serve, engine: str) -> None:
    tropilla = await gateway(engine)
    text = " ".join([PROMPT] * 16)
    ids = await ids_of(engine, text)
    assert len(ids) > 130

    told = (await scored(tropilla, text))[0]["logprobs"]

    first = (await scored(tropilla, ids[:64]))[0]["logprobs"]
    assert len(told["token_logprobs"]) == len(ids)
    assert None not in told["token_logprobs"][1:]
    assert told["token_logprobs"][1:64] == pytest.approx(first["token_logprobs"][1:], abs=NEAR)


# How a client hears them.


async def test_the_prompt_comes_before_what_is_written(gateway: Serve, engine: str) -> None:
    tropilla = await gateway(engine)
    asked = {"max_tokens": 3, "temperature": 0, "n": 2}
    told = await scored(tropilla, ["Hello,", " friend"], **asked)

    assert [one["index"] for one in told] == [0, 1, 2, 3]
    for one, prompt in zip(told, ["Hello,", "Hello,", " friend", " friend"], strict=True):
        lists = one["logprobs"]
        assert one["text"].startswith(prompt)
        assert lists["token_logprobs"][0] is None
        assert lists["top_logprobs"][0] is None
        # The mark of the beginning has no place in the text.
        assert lists["tokens"][0] == "<s>"
        assert "".join(lists["tokens"][1:]) == one["text"]
        for token, offset in zip(lists["tokens"][1:], lists["text_offset"][1:], strict=True):
            assert one["text"].startswith(token, offset)
        for token, chance, tops in zip(
            lists["tokens"][1:], lists["token_logprobs"][1:], lists["top_logprobs"][1:], strict=True
        ):
            assert tops[token] == chance


async def test_streamed_it_is_the_same(gateway: Serve, engine: str) -> None:
    tropilla = await gateway(engine)
    fields = {"max_tokens": 3, "temperature": 0}
    whole = (await scored(tropilla, **fields))[0]

    asked = {"model": "m", "prompt": PROMPT, "echo": True, "logprobs": 2, "stream": True} | fields
    answer = await tropilla.ask("POST", TEXT, asked)

    chunks = answer.events[:-1]
    for chunk in chunks:
        check_completion(chunk)
    choices = [chunk["choices"][0] for chunk in chunks]
    assert "".join(one["text"] for one in choices) == whole["text"]
    assert choices[0]["text"] == PROMPT
    lists = [one["logprobs"] for one in choices if one["logprobs"]]
    for name in ("tokens", "text_offset"):
        assert [value for one in lists for value in one[name]] == whole["logprobs"][name]


async def test_usage_counts_a_prompt_once(gateway: Serve, engine: str) -> None:
    tropilla = await gateway(engine)
    ids = await ids_of(engine, PROMPT)
    for most in (0, 2):
        asked = {"model": "m", "prompt": [PROMPT, ids], "echo": True, "logprobs": 0, "n": 2}
        answer = await tropilla.ask("POST", TEXT, asked | {"max_tokens": most, "ignore_eos": True})
        usage = answer.json["usage"]
        assert usage["prompt_tokens"] == 2 * len(ids)
        assert usage["completion_tokens"] == 4 * most
        assert usage["prompt_tokens_details"]["cached_tokens"] == 0
        assert "x-tropilla-cache-tokens" not in answer.headers


async def test_as_lm_eval_asks_and_reads(gateway: Serve, engine: str) -> None:
    """`local-completions` of lm-evaluation-harness 0.4: its payload, and its `parse_logprobs`."""
    tropilla = await gateway(engine)
    context = await ids_of(engine, "Hello, my")
    endings = [(await ids_of(engine, text))[1:] for text in (" name is Tropilla", " cat")]
    payload = {
        "model": "m",
        "prompt": [context + ending for ending in endings],
        "temperature": 0,
        "max_tokens": 1,
        "logprobs": 1,
        "seed": 1234,
        "echo": True,
    }

    answer = await tropilla.ask("POST", TEXT, payload)

    for choice, ending in zip(
        sorted(answer.json["choices"], key=lambda one: one["index"]), endings, strict=True
    ):
        chosen = choice["logprobs"]["token_logprobs"][len(context) : -1]
        tops = choice["logprobs"]["top_logprobs"][len(context) : -1]
        exact = chances(context + ending)[len(context) - 1 : -1]
        assert len(chosen) == len(tops) == len(ending)
        assert sum(chosen) == pytest.approx(
            sum(exact[at, id_] for at, id_ in enumerate(ending)), abs=CLOSE
        )
        greedy = [one == max(top.values()) for one, top in zip(chosen, tops, strict=True)]
        assert greedy == [exact[at].argmax() == id_ for at, id_ in enumerate(ending)]


# What cannot be had.


def refusal(answer: Answer) -> tuple[int, str | None]:
    return answer.status, answer.error["param"]


async def test_a_prompt_longer_than_allowed_is_not_scored(
    gateway: Serve, double: Double, engine: str
) -> None:
    double.on("/tokenize", passing(engine))
    tropilla = await gateway(double.url, max_scored_tokens=10)
    asked = {"model": "m", "prompt": PROMPT, "echo": True, "logprobs": 1}
    answer = await tropilla.ask("POST", TEXT, asked)
    assert refusal(answer) == (400, "prompt")
    assert "limited to 10" in answer.error["message"]
    assert {one.path for one in double.requests} == {"/tokenize"}


async def test_a_prompt_longer_than_the_context(
    gateway: Serve, doubles: Start, engine: str
) -> None:
    double = await doubles(n_ctx=8)
    double.on("/tokenize", passing(engine))
    tropilla = await gateway(double.url)
    asked = {"model": "m", "prompt": PROMPT, "echo": True, "logprobs": 1}
    answer = await tropilla.ask("POST", TEXT, asked)
    assert refusal(answer) == (400, "prompt")
    assert answer.error["code"] == "context_length_exceeded"


@pytest.mark.parametrize("build", [1496, 3000, 4300])
async def test_what_is_not_exact_is_refused(gateway: Serve, build: int) -> None:
    with llama(build) as old:
        tropilla = await gateway(old.url)
        for fields in ({"echo": True, "logprobs": 1}, {"best_of": 2}):
            asked = {"model": old.models[0] if hasattr(old, "models") else None, "prompt": "a"}
            answer = await tropilla.ask("POST", TEXT, asked | fields)
            assert refusal(answer) == (400, "logprobs" if "echo" in fields else "best_of")
            assert "b4364" in answer.error["message"]


async def test_token_ids_that_the_model_has_not(gateway: Serve, engine: str) -> None:
    tropilla = await gateway(engine)
    for more in ({"logprobs": 1}, {}):
        asked = {"model": "m", "prompt": [10**6], "echo": True} | more
        assert refusal(await tropilla.ask("POST", TEXT, asked)) == (400, "prompt")


async def test_a_prompt_without_a_token(gateway: Serve, double: Double) -> None:
    async def none(exchange: Exchange) -> None:
        await exchange.whole(200, b'{"tokens":[]}')

    double.on("/tokenize", none)
    tropilla = await gateway(double.url)
    asked = {"model": "m", "prompt": "", "echo": True, "logprobs": 1}
    assert refusal(await tropilla.ask("POST", TEXT, asked)) == (400, "prompt")


@pytest.mark.parametrize("tokens", [b"[5]", b'[{"id":1,"piece":[300]}]', b'[{"id":7,"piece":"a"}]'])
async def test_a_tokenizer_that_is_not_understood(
    gateway: Serve, double: Double, tokens: bytes
) -> None:
    async def odd(exchange: Exchange) -> None:
        await exchange.whole(200, b'{"tokens":%b}' % tokens)

    double.on("/tokenize", odd)
    tropilla = await gateway(double.url)
    asked = {"model": "m", "prompt": [1], "echo": True, "logprobs": 1}
    answer = await tropilla.ask("POST", TEXT, asked)
    assert answer.status == 502
    assert "cannot be scored" in answer.error["message"]


async def test_who_leaves_ends_all_of_it(gateway: Serve, double: Double, engine: str) -> None:
    double.on("/tokenize", passing(engine))
    tropilla = await gateway(double.url)
    raw = await tropilla.connect()
    asked = {"model": "m", "prompt": ["Hello,", " friend"], "echo": True, "logprobs": 1}
    await raw.post(TEXT, asked)
    working = [await double.arrives(), await double.arrives()]
    assert {one.path for one in working} == {"/completion"}

    raw.leave()

    for one in working:
        await one.left()
    await tropilla.until(lambda: not tropilla.fleet.upstreams[0].leases)


@pytest.mark.parametrize("stream", [False, True])
async def test_a_server_that_fails_is_told_of(
    gateway: Serve, double: Double, engine: str, *, stream: bool
) -> None:
    async def failing(exchange: Exchange) -> None:
        await exchange.whole(500, b'{"error":{"code":500,"message":"boom","type":"server_error"}}')

    double.on("/tokenize", passing(engine))
    double.on("/completion", failing)
    tropilla = await gateway(double.url)
    asked = {"model": "m", "prompt": "Hello,", "echo": True, "logprobs": 1, "stream": stream}
    answer = await tropilla.ask("POST", TEXT, asked)
    error = answer.events[-2]["error"] if stream and answer.status == 200 else answer.error
    assert "boom" in error["message"]


async def test_a_server_that_writes_another_token_is_not_believed(
    gateway: Serve, double: Double, engine: str
) -> None:
    told = {"completion_probabilities": [{"id": 5, "token": "x", "logprob": -1, "bytes": [120]}]}

    async def stubborn(exchange: Exchange) -> None:
        await exchange.whole(200, msgspec.json.encode(told))

    double.on("/tokenize", passing(engine))
    double.on("/completion", stubborn)
    tropilla = await gateway(double.url)
    asked = {"model": "m", "prompt": "Hello,", "echo": True, "logprobs": 1}
    answer = await tropilla.ask("POST", TEXT, asked)
    assert answer.status == 502
    assert "cannot be scored" in answer.error["message"]
