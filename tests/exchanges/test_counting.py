"""Usage where an upstream tells none: counted by its tokenizer, or estimated and marked."""

from __future__ import annotations

import asyncio
import urllib.request
from typing import Any

import msgspec
import pytest

from conftest import Answer, Serve, Served, Start
from doubles.llama import llama
from doubles.upstream import (
    DEADLINE,
    DONE,
    Double,
    Exchange,
    Script,
    answers,
    breaks,
    chunk,
    event,
    streams,
)
from test_openai_upstreams import FORMS, Servers, servers
from tropilla import ir
from tropilla.config import Config, ModelConfig, UpstreamConfig
from tropilla.dialects import named
from tropilla.exchanges import counting
from tropilla.exchanges.exchange import exchange
from tropilla.herd.pool import Ask
from tropilla.ir import Usage
from tropilla.upstream.fleet import Fleet

pytestmark = pytest.mark.anyio

__all__ = ["servers"]  # a fixture
CHAT, TEXT, TOKENIZE = "/v1/chat/completions", "/v1/completions", "/tokenize"


def at(url: str, dialect: Any = "openai") -> dict[str, ModelConfig]:
    return {"m": ModelConfig(upstreams=(UpstreamConfig(url=url, dialect=dialect),))}


async def ask(tropilla: Served, path: str, *, stream: bool, **fields: Any) -> Answer:
    if stream and path.startswith("/v1/"):
        fields["stream_options"] = {"include_usage": True}
    asked: Any = {"messages": [{"role": "user", "content": "Hello!"}]} if path == CHAT else {}
    asked |= {} if path == CHAT else {"prompt": "Hello!"}
    return await tropilla.ask("POST", path, {"model": "m", "stream": stream, **asked, **fields})


def counts(answer: Answer) -> tuple[int, int, bool]:
    """Prompt, completion, and whether they are estimated."""
    assert answer.status == 200, answer.body
    whole = answer.headers["content-type"] == "application/json"
    usage = (answer.json if whole else answer.events[-2])["usage"]
    assert usage["total_tokens"] == usage["prompt_tokens"] + usage["completion_tokens"]
    assert usage.get("estimated") in {None, True}
    return usage["prompt_tokens"], usage["completion_tokens"], "estimated" in usage


def said_by_itself(url: str, path: str, body: Any) -> Any:
    """What a server answers whole, which tells its own counts."""
    request = urllib.request.Request(url + path, msgspec.json.encode(body))
    request.add_header("Content-Type", "application/json")
    with urllib.request.urlopen(request, timeout=DEADLINE) as answer:
        return msgspec.json.decode(answer.read())


# llama.cpp that tells nothing.


@FORMS
@pytest.mark.parametrize("build", [1915, 2400])
async def test_a_chat_of_an_old_server(gateway: Serve, build: int, *, stream: bool) -> None:
    with llama(build) as double:
        tropilla = await gateway(models=at(double.url, "auto"))
        answer = await ask(tropilla, CHAT, stream=stream)
        body = {"messages": [{"role": "user", "content": "Hello!"}]}
        usage = said_by_itself(double.url, CHAT, body)["usage"]
    # Which prompt it makes of a conversation, such a server tells nobody.
    assert counts(answer) == (6, usage["completion_tokens"], True)


@FORMS
@pytest.mark.parametrize("build", [1915, 2400, 3000, 4300])
@pytest.mark.parametrize(
    "stop", [[], [" fine"], ["'m fine"]], ids=["to its end", "to a stop word", "to a longer one"]
)
async def test_what_is_counted_is_what_the_server_counts(
    gateway: Serve, build: int, stop: list[str], *, stream: bool
) -> None:
    with llama(build) as double:
        tropilla = await gateway(models=at(double.url, "auto"))
        answer = await ask(tropilla, TEXT, stream=stream, stop=stop)
        own = said_by_itself(double.url, "/completion", {"prompt": "Hello!", "stop": stop})
    assert counts(answer) == (own["tokens_evaluated"], own["tokens_predicted"], False)


@pytest.mark.parametrize("path", [CHAT, TEXT])
async def test_todays_engine_counts_alike(gateway: Serve, engine: str, path: str) -> None:
    """It tells its usage; it is counted here to see whether that comes to the same."""
    tropilla = await gateway(engine)
    fields: dict[str, Any] = {"temperature": 0, "max_tokens": 12}
    if path == CHAT:
        function = {"name": "look", "parameters": {"type": "object", "properties": {}}}
        fields |= {"tools": [{"type": "function", "function": function}], "tool_choice": "auto"}
    answer = await ask(tropilla, path, stream=False, **fields)
    prompt, _, estimated = counts(answer)
    front = named("openai_chat" if path == CHAT else "openai_completions")
    asked: Any = {"messages": [{"role": "user", "content": "Hello!"}]} if path == CHAT else {}
    request = front.parse_request({"prompt": "Hello!", "model": "m", **asked, **fields}, path)
    counter = counting._Counter(tropilla.fleet.upstreams[0], "llamacpp", "m")
    assert (await counter.prompt(request), estimated) == (prompt, False)


# Others.

FIVE = 5
"""Four pieces, and the token that ends them."""


@FORMS
@pytest.mark.parametrize("path", [CHAT, TEXT])
async def test_another_tokenizer(
    gateway: Serve, servers: Servers, path: str, *, stream: bool
) -> None:
    double = await servers(usage="never", tokenizes=True)
    tropilla = await gateway(models=at(double.url))
    answer = await ask(tropilla, path, stream=stream)
    prompt = {"messages": [{"role": "user", "content": "Hello!"}]} if path == CHAT else {}
    told = await asyncio.to_thread(
        said_by_itself, double.url, TOKENIZE, prompt or {"prompt": "Hello!"}
    )
    assert counts(answer) == (told["count"], FIVE, False)


async def test_tools_are_part_of_the_prompt(gateway: Serve, servers: Servers) -> None:
    double = await servers(usage="never", tokenizes=True)
    tropilla = await gateway(models=at(double.url))
    tool = {"type": "function", "function": {"name": "look"}}
    await ask(tropilla, CHAT, stream=False, tools=[tool])
    asked = [one.body for one in double.asked if one.path == TOKENIZE]
    assert [body["tools"] for body in asked if "messages" in body] == [[tool]]


async def test_an_image_is_counted_by_nobody(gateway: Serve, servers: Servers) -> None:
    double = await servers(usage="never", tokenizes=True)
    tropilla = await gateway(models=at(double.url))
    image = {"type": "image_url", "image_url": {"url": "data:image/png;base64," + "AAAA" * 500}}
    content = [{"type": "text", "text": "Hello!"}, image]
    answer = await ask(
        tropilla, CHAT, stream=False, messages=[{"role": "user", "content": content}]
    )
    # Two for the text, four around the message, and nothing for what its base64 would be.
    assert counts(answer) == (6, FIVE, True)


@FORMS
@pytest.mark.parametrize("path", [CHAT, TEXT])
async def test_several_choices(
    gateway: Serve, servers: Servers, path: str, *, stream: bool
) -> None:
    double = await servers(usage="never", tokenizes=True)
    tropilla = await gateway(models=at(double.url))
    one = counts(await ask(tropilla, path, stream=stream))
    three = counts(await ask(tropilla, path, stream=stream, n=3))
    assert three == (one[0], 3 * FIVE, False)


@FORMS
async def test_several_prompts(gateway: Serve, servers: Servers, *, stream: bool) -> None:
    double = await servers(usage="never", tokenizes=True)
    tropilla = await gateway(models=at(double.url))
    answer = await ask(tropilla, TEXT, stream=stream, prompt=["abc", [1, 2, 3, 4]])
    assert counts(answer) == (3 + 4, 2 * FIVE, False)


@FORMS
async def test_thoughts_and_calls_count_too(
    gateway: Serve, servers: Servers, *, stream: bool
) -> None:
    calls = ({"name": "look", "arguments": '{"at":"it"}'},)
    double = await servers(usage="never", tokenizes=True, thinks=["Hm", "."], calls=calls)
    tropilla = await gateway(models=at(double.url))
    tool = {"type": "function", "function": {"name": "look"}}
    answer = await ask(tropilla, CHAT, stream=stream, tools=[tool])
    # A letter is a token there, if it is none of the pieces that the model says.
    assert counts(answer)[1:] == (len('Hm.look{"at":"it"}') + 1, False)


LLAMA_CPP_PYTHON = {"id": "m", "object": "model", "owned_by": "me", "permissions": []}


async def counts_letters(exchange: Exchange) -> None:
    """As llama-cpp-python counts: always with the mark of a beginning."""
    await exchange.whole(200, msgspec.json.encode({"count": len(exchange.json["input"]) + 1}))


@FORMS
async def test_llama_cpp_pythons_tokenizer(gateway: Serve, double: Double, *, stream: bool) -> None:
    double.on("/v1/models", answers(200, msgspec.json.encode({"data": [LLAMA_CPP_PYTHON]})))
    double.on(TEXT, streams(event({"choices": [{"text": "abc", "finish_reason": "stop"}]}), DONE))
    double.on("/extras/tokenize/count", counts_letters)
    tropilla = await gateway(models=at(double.url))
    assert counts(await ask(tropilla, TEXT, stream=stream)) == (len("Hello!") + 1, 3, False)


# Estimates.


@FORMS
@pytest.mark.parametrize(("path", "prompt"), [(CHAT, 2 + 4), (TEXT, 2)])
async def test_without_a_tokenizer_it_is_estimated(
    gateway: Serve, servers: Servers, path: str, prompt: int, *, stream: bool
) -> None:
    double = await servers(usage="never")
    tropilla = await gateway(models=at(double.url))
    answer = await ask(tropilla, path, stream=stream)
    # A token has four bytes: " I'm fine." has ten, "Hello!" six.
    assert counts(answer) == (prompt, 3, True)


async def test_only_the_mark_differs(gateway: Serve, servers: Servers) -> None:
    double = await servers(usage="never")
    tropilla = await gateway(models=at(double.url))
    told = (await ask(tropilla, CHAT, stream=False)).json
    double.usage = "always"
    other = (await ask(tropilla, CHAT, stream=False)).json
    assert other.keys() == told.keys()
    assert told["choices"] == other["choices"]
    assert told["usage"].keys() - other["usage"].keys() == {"estimated"}


@pytest.mark.parametrize(
    "path", ["/completion", "/api/models/conversation", "/api/models/generate"]
)
@FORMS
async def test_every_client_hears_counts(
    gateway: Serve, servers: Servers, path: str, *, stream: bool
) -> None:
    double = await servers(usage="never")
    tropilla = await gateway(models=at(double.url))
    asked = {"inputs": "Hello!", "messages": [{"role": "human", "content": "Hello!"}]}
    answer = await ask(tropilla, path, stream=stream, **asked)
    data = [line for line in answer.body.split(b"\n") if line.startswith(b"data: {")]
    last = msgspec.json.decode(data[-1].removeprefix(b"data: ")) if stream else answer.json
    names = ("tokens_evaluated", "tokens_predicted")
    names = names if path == "/completion" else ("prompt_tokens", "generated_tokens")
    assert [last[name] for name in names] == [6 if "conversation" in path else 2, 3]


async def test_letters_of_several_bytes(gateway: Serve, servers: Servers) -> None:
    double = await servers(usage="never", says=["你", "好", "。"])
    tropilla = await gateway(models=at(double.url))
    assert counts(await ask(tropilla, TEXT, stream=True, prompt="你好")) == (2, 3, True)


async def test_a_usage_of_nothing_is_none(gateway: Serve, double: Double) -> None:
    none = {"prompt_tokens": 0, "completion_tokens": 0, "total_tokens": 0}
    double.on(CHAT, streams(chunk("Hello"), chunk(reason="stop", usage=none), DONE))
    tropilla = await gateway(models=at(double.url))
    assert counts(await ask(tropilla, CHAT, stream=True)) == (6, 2, True)


# Whatever happens to the tokenizer, the answer is good.


async def closes(exchange: Exchange) -> None:
    exchange.reset()


TROUBLES: dict[str, Script] = {
    "refused": answers(500, b"{}"),
    "no JSON": answers(200, b"<html>"),
    "no count": answers(200, b'{"tokens": 5}'),
    "no object": answers(200, b"[]"),
    "gone": closes,
}


@FORMS
@pytest.mark.parametrize("trouble", TROUBLES.values(), ids=TROUBLES)
async def test_a_tokenizer_that_fails(
    gateway: Serve, double: Double, trouble: Script, *, stream: bool
) -> None:
    double.props["build_info"] = "b4000-double"
    double.on(CHAT, streams(chunk("Hello"), chunk(reason="stop"), DONE))
    double.on(TOKENIZE, trouble)
    tropilla = await gateway(double)
    assert counts(await ask(tropilla, CHAT, stream=stream)) == (6, 2, True)
    assert any(one.path == TOKENIZE for one in double.requests)
    assert tropilla.fleet.state() == "ready"


async def test_what_was_said_does_not_wait_for_the_count(
    gateway: Serve, double: Double, monkeypatch: pytest.MonkeyPatch
) -> None:
    double.props["build_info"] = "b4000-double"
    double.on(CHAT, streams(chunk("Hello") + chunk(reason="stop") + DONE))
    tropilla = await gateway(double)
    raw = await tropilla.connect()
    options = {"stream": True, "stream_options": {"include_usage": True}}
    body = {"model": "m", "messages": [{"role": "user", "content": "Hello!"}], **options}
    monkeypatch.setattr("doubles.upstream._ASIDE", set())
    await raw.post(CHAT, body)
    # Nobody answers this: the client has everything but the numbers all the same.
    asked = await double.arrives()
    assert asked.path == TOKENIZE
    await raw.see(b'"finish_reason":"stop"')
    await asked.whole(200, b'{"tokens": [1, 2, 3]}')
    assert b'"completion_tokens":4' in await raw.until(b"[DONE]")


async def test_counting_is_given_up(
    gateway: Serve, double: Double, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(counting, "SECONDS", 0.05)
    monkeypatch.setattr("doubles.upstream._ASIDE", set())
    double.props["build_info"] = "b4000-double"
    double.on(CHAT, streams(chunk("Hello"), chunk(reason="stop"), DONE))
    tropilla = await gateway(double)
    assert counts(await ask(tropilla, CHAT, stream=True)) == (6, 2, True)
    await (await double.arrives()).left()


# What is not counted.


async def test_who_tells_is_not_asked(gateway: Serve, servers: Servers) -> None:
    double = await servers(tokenizes=True)
    tropilla = await gateway(models=at(double.url))
    for path in (CHAT, TEXT):
        assert counts(await ask(tropilla, path, stream=True))[2] is False
    assert not any(one.path == TOKENIZE for one in double.asked)


@FORMS
@pytest.mark.parametrize("fault", ["error_midstream", "cut"])
async def test_what_failed_is_not_counted(
    gateway: Serve, servers: Servers, fault: str, *, stream: bool
) -> None:
    double = await servers(usage="never", tokenizes=True, **{fault: True})
    tropilla = await gateway(models=at(double.url))
    answer = await ask(tropilla, CHAT, stream=stream)
    assert b'"usage":{' not in answer.body
    assert not any(one.path == TOKENIZE for one in double.asked)


async def test_what_was_given_up_is_not_counted(gateway: Serve, servers: Servers) -> None:
    double = await servers(usage="never", tokenizes=True)
    double.hold(after=1)
    tropilla = await gateway(models=at(double.url))
    raw = await tropilla.connect()
    messages = [{"role": "user", "content": "Hello!"}]
    await raw.post(CHAT, {"model": "m", "messages": messages, "stream": True})
    await raw.see(b'"content":" I"')
    raw.leave()
    await double.until(lambda: double.gone_away == 1)
    assert not any(one.path == TOKENIZE for one in double.asked)


async def test_a_stop_word_found_here_ends_the_servers_work(gateway: Serve, doubles: Start) -> None:
    double = await doubles()
    double.props["build_info"] = "b4000-double"
    left = asyncio.Event()

    async def goes_on(exchange: Exchange) -> None:
        await exchange.head()
        await exchange.send(event({"content": "Hello STOP more", "stop": False}))
        await exchange.left()
        left.set()

    async def counts_once_alone(exchange: Exchange) -> None:
        await asyncio.wait_for(left.wait(), DEADLINE)
        await exchange.whole(200, b'{"tokens": [1]}')

    double.on("/completion", goes_on)
    double.on(TOKENIZE, counts_once_alone)
    tropilla = await gateway(double)
    answer = await ask(tropilla, TEXT, stream=True, stop=["STOP"])
    assert counts(answer) == (1, 2, False)


# The parts.


def test_texts_are_kept_as_few() -> None:
    said = counting._Said(keeps=True)
    pieces = [f"{number} " for number in range(1000)]
    for text in pieces:
        said.note([ir.PartDelta(text=text)])
    assert said.texts() == ["".join(pieces)]
    assert len(said._texts[0]) < counting._MANY
    assert said.size == len("".join(pieces))


def test_where_nobody_counts_nothing_is_kept() -> None:
    said = counting._Said(keeps=False)
    said.note([ir.PartDelta(text="Hello"), ir.PartDelta(choice=1, text="é")])
    assert (said.texts(), said.size) == ([], 7)


@pytest.mark.parametrize(
    ("usage", "untold"),
    [
        (None, True),
        (Usage(), True),
        (Usage(prompt_tokens=1), False),
        (Usage(completion_tokens=1), False),
    ],
)
def test_what_is_untold(usage: Usage | None, *, untold: bool) -> None:
    assert counting._is_untold(usage) is untold


# Of an answer that thinks, that fails, that is given up.


def thinks(*texts: str) -> tuple[bytes, ...]:
    """Chunks of reasoning."""
    return tuple(
        chunk().replace(b'"delta":{}', b'"delta":{"reasoning_content":%b}' % msgspec.json.encode(t))
        for t in texts
    )


def reasoning_tokens(answer: Answer) -> int:
    """How many tokens of an answer were reasoning."""
    whole = answer.headers["content-type"] == "application/json"
    usage = (answer.json if whole else answer.events[-2])["usage"]
    assert "estimated" not in usage, "the counts of the upstream stand"
    assert usage["completion_tokens"] == 6
    tokens: int = usage["completion_tokens_details"]["reasoning_tokens"]
    return tokens


THOUGHTS = (*thinks("Hm, ", "let me see"), chunk("Well."), chunk(reason="stop"))
USED = chunk(usage={"prompt_tokens": 3, "completion_tokens": 6, "total_tokens": 9}).replace(
    b'"choices":[{"index":0,"delta":{},"finish_reason":null}]', b'"choices":[]'
)


@FORMS
async def test_how_much_was_thought(gateway: Serve, double: Double, *, stream: bool) -> None:
    double.on(CHAT, streams(*THOUGHTS, USED, DONE))
    double.on(TOKENIZE, answers(200, b'{"tokens":[1,2,3,4]}'))
    tropilla = await gateway(double)
    assert reasoning_tokens(await ask(tropilla, CHAT, stream=stream)) == 4
    (asked,) = (one for one in double.requests if one.path == TOKENIZE)
    assert asked.json["content"] == "Hm, let me see"


@FORMS
async def test_where_it_is_not_counted_it_is_its_part_of_the_text(
    gateway: Serve, double: Double, *, stream: bool
) -> None:
    double.on(CHAT, streams(*THOUGHTS, USED, DONE))
    double.on(TOKENIZE, answers(500, b"{}"))
    assert reasoning_tokens(await ask(await gateway(double), CHAT, stream=stream)) == 4


async def test_an_answer_without_thoughts_is_not_counted_again(
    gateway: Serve, double: Double
) -> None:
    double.on(CHAT, streams(chunk("Well."), chunk(reason="stop"), USED, DONE))
    answer = await ask(await gateway(double), CHAT, stream=False)
    assert answer.json["usage"]["completion_tokens_details"]["reasoning_tokens"] == 0
    assert [one.path for one in double.requests] == [CHAT]


async def test_an_answer_that_fails_tells_what_it_took(double: Double) -> None:
    double.on(CHAT, breaks(chunk("Well"), chunk(", ")))
    fleet = Fleet(Config(upstreams=(UpstreamConfig(url=double.url),)))
    await fleet.start()
    front = named("openai_chat")
    body = {"model": "m", "messages": [{"role": "user", "content": "Hello!"}]}
    request = front.parse_request(body, CHAT)
    async with fleet.lease(Ask(model="m")) as lease:
        asked = exchange(lease.upstream, front, request, extras=False)
        async with counting.Counted(asked, lease.upstream, request) as answer:
            told: list[ir.Event] = []
            while not told or not isinstance(told[-1], ir.Failed):
                told += await answer.next()
                used = answer.usage
    await fleet.stop()
    assert used == Usage(prompt_tokens=6, completion_tokens=2, extras={"estimated": True})
    assert isinstance(told[-1], ir.Failed)
    assert told[-1].usage == used


@FORMS
async def test_an_answer_that_is_given_up_is_told_to_the_operator(
    gateway: Serve, double: Double, caplog: pytest.LogCaptureFixture, *, stream: bool
) -> None:
    tropilla = await gateway(double)
    raw = await tropilla.connect()
    body = {"model": "m", "messages": [{"role": "user", "content": "Hello!"}]}
    with caplog.at_level("INFO", "tropilla"):
        await raw.post(CHAT, body | {"stream": stream})
        asked = await double.arrives()
        await asked.head()
        await asked.send(chunk("Well") + chunk(", "))
        if stream:
            await raw.see(b'", "')
        raw.leave()
        await asked.left()
    (line,) = (one.getMessage() for one in caplog.records if "to the end" in one.getMessage())
    assert "read about 6 tokens" in line
