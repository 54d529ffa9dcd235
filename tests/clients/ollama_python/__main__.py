"""What a program that uses `ollama` expects: run by ../run.py."""

from __future__ import annotations

import asyncio
import os
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from importlib.metadata import version
from typing import Any

from ollama import (  # type: ignore[import-not-found]  # it has an environment of its own
    AsyncClient,
    Client,
    ResponseError,
)

from clients.telling import tell_all

ROOT = os.environ["TROPILLA_ROOT"]
CLOSED = os.environ["TROPILLA_CLOSED"].removesuffix("/v1")
KEY = os.environ["TROPILLA_KEY"]
MODEL = os.environ["TROPILLA_MODEL"]
ALIAS = os.environ["TROPILLA_ALIAS"]
HEADERS = {"Authorization": f"Bearer {KEY}"}
HELLO = [{"role": "user", "content": "Hello!"}]
SCHEMA: dict[str, Any] = {
    "type": "object",
    "properties": {"name": {"type": "string", "maxLength": 8}, "age": {"type": "integer"}},
    "required": ["name", "age"],
}
SHORT = {"num_predict": 8, "temperature": 0, "seed": 1}

Check = Callable[[Client], None]
CHECKS: list[tuple[str, Check]] = []


def check(group: str) -> Callable[[Check], Check]:
    """A check of a group."""

    def keep(function: Check) -> Check:
        CHECKS.append((group, function))
        return function

    return keep


@contextmanager
def refused(status: int, says: str) -> Iterator[None]:
    """What is done within is refused, in all that the client shows of a refusal."""
    try:
        yield
    except ResponseError as error:
        told = (error.status_code, says in error.error)
        assert told == (status, True), error  # noqa: PT017 - there is no pytest here
    else:
        raise AssertionError("nothing was refused")


def weather(city: str, days: int = 1) -> str:
    """Tell the weather.

    Args:
        city: Where.
        days: For how long.
    """
    return f"{city}: {days}"


# Chat.


@check("chat")
def an_answer(client: Client) -> None:
    answer = client.chat(MODEL, HELLO, options=SHORT, keep_alive="5m")
    assert answer.message.role == "assistant"
    assert answer.message.content
    assert answer.model == MODEL
    assert answer.done
    assert answer.done_reason in {"stop", "length"}
    assert answer.created_at.endswith("Z")


@check("chat")
def the_counts_and_durations_are_there(client: Client) -> None:
    answer = client.chat(MODEL, HELLO, options=SHORT)
    assert answer.prompt_eval_count > 0
    assert 0 < answer.eval_count <= 8
    assert answer.total_duration >= answer.eval_duration > 0
    assert answer.prompt_eval_duration > 0


@check("chat")
def a_stream_says_what_the_whole_says(client: Client) -> None:
    whole = client.chat(MODEL, HELLO, options=SHORT)
    parts = list(client.chat(MODEL, HELLO, options=SHORT, stream=True))
    assert len(parts) > 2
    assert [part.done for part in parts] == [False] * (len(parts) - 1) + [True]
    assert "".join(part.message.content for part in parts) == whole.message.content
    assert parts[-1].eval_count == whole.eval_count
    assert parts[-1].done_reason == whole.done_reason


@check("chat")
def the_limit_is_kept_and_told(client: Client) -> None:
    answer = client.chat(MODEL, HELLO, options={"num_predict": 2, "temperature": 0})
    assert (answer.eval_count, answer.done_reason) == (2, "length")


@check("chat")
def a_stop_word_ends_it(client: Client) -> None:
    text = client.chat(MODEL, HELLO, options={"temperature": 0}).message.content
    word = text[2:5]
    answer = client.chat(MODEL, HELLO, options={"temperature": 0, "stop": [word]})
    assert answer.message.content == text[: text.index(word)]


@check("chat")
def a_seed_gives_the_same_again(client: Client) -> None:
    options = {"seed": 7, "temperature": 1.2, "num_predict": 12}
    texts = {client.chat(MODEL, HELLO, options=options).message.content for _ in range(2)}
    assert len(texts) == 1


@check("chat")
def probabilities(client: Client) -> None:
    answer = client.chat(MODEL, HELLO, options=SHORT, logprobs=True, top_logprobs=2)
    assert "".join(one.token for one in answer.logprobs) == answer.message.content
    assert all(len(one.top_logprobs) == 2 for one in answer.logprobs)


@check("chat")
def thinking_may_be_asked_for(client: Client) -> None:
    for think in (True, False, "low"):
        assert client.chat(MODEL, HELLO, options=SHORT, think=think).message.content


@check("chat")
def asked_by_many_at_once(client: Client) -> None:
    del client

    async def ask() -> list[str]:
        one = AsyncClient(ROOT, headers=HEADERS)
        told = await asyncio.gather(*(one.chat(MODEL, HELLO, options=SHORT) for _ in range(4)))
        return [answer.message.content for answer in told]

    assert len(set(asyncio.run(ask()))) == 1


@check("chat")
def without_messages_a_model_is_loaded(client: Client) -> None:
    assert client.chat(MODEL).done_reason == "load"
    assert client.chat(MODEL, keep_alive=0).done_reason == "unload"


# Generate.


@check("completions")
def a_prompt_is_answered(client: Client) -> None:
    answer = client.generate(MODEL, "Hello!", system="Be kind.", options=SHORT)
    assert answer.response
    assert answer.done
    parts = list(client.generate(MODEL, "Hello!", system="Be kind.", options=SHORT, stream=True))
    assert "".join(part.response for part in parts) == answer.response


@check("completions")
def a_context_is_remembered(client: Client) -> None:
    first = client.generate(MODEL, "Hello!", options=SHORT)
    assert first.context
    second = client.generate(MODEL, "Again!", context=first.context, options=SHORT)
    assert second.prompt_eval_count > first.prompt_eval_count + 5
    streamed = list(client.generate(MODEL, "Hello!", options=SHORT, stream=True))
    assert streamed[-1].context == first.context


@check("completions")
def raw_text_is_gone_on_with(client: Client) -> None:
    answer = client.generate(MODEL, "Once upon a", raw=True, options=SHORT)
    assert answer.response
    assert answer.context is None
    assert answer.prompt_eval_count <= 6


@check("completions")
def a_hole_is_filled(client: Client) -> None:
    assert client.generate(MODEL, "def f(", suffix="return 1", options=SHORT).done


@check("completions")
def without_a_prompt_a_model_is_loaded(client: Client) -> None:
    assert client.generate(MODEL).done_reason == "load"


# Tools.


@check("tools")
def a_call_is_whole_and_has_an_object(client: Client) -> None:
    asked = [{"role": "user", "content": "Weather in Rome?"}]
    whole = client.chat("caller", asked, tools=[weather])
    (call,) = whole.message.tool_calls
    assert (call.function.name, call.function.arguments) == ("weather", {"city": "Rome"})
    assert whole.done_reason == "stop"
    assert weather(**call.function.arguments) == "Rome: 1"
    parts = list(client.chat("caller", asked, tools=[weather], stream=True))
    assert [part.message.tool_calls for part in parts] == [whole.message.tool_calls, None]


@check("tools")
def the_engine_takes_tools(client: Client) -> None:
    asked = [{"role": "user", "content": "Weather in Rome?"}]
    for part in client.chat(MODEL, asked, tools=[weather], stream=True, options={"seed": 1}):
        for call in part.message.tool_calls or ():
            assert isinstance(call.function.arguments, dict)
    assert part.done


@check("tools")
def a_result_goes_back_by_the_name_of_its_tool(client: Client) -> None:
    called = {"function": {"name": "weather", "arguments": {"city": "Rome"}}}
    answer = client.chat(
        MODEL,
        [
            {"role": "user", "content": "Weather in Rome?"},
            {"role": "assistant", "content": "", "tool_calls": [called]},
            {"role": "tool", "content": "Sunny.", "tool_name": "weather"},
        ],
        tools=[weather],
        options=SHORT,
    )
    assert answer.done


# Formats.


@check("formats")
def a_schema_is_kept(client: Client) -> None:
    import json  # noqa: TID251 - this program has nothing of Tropilla's

    answer = client.chat(MODEL, HELLO, format=SCHEMA, options={"seed": 1})
    told = json.loads(answer.message.content)
    assert told.keys() == {"name", "age"}
    assert type(told["age"]) is int
    answer = client.generate(MODEL, "Hello!", format=SCHEMA, options={"seed": 1})
    assert json.loads(answer.response).keys() == {"name", "age"}


@check("formats")
def json_is_json(client: Client) -> None:
    answer = client.chat(MODEL, HELLO, format="json", options={"num_predict": 40, "seed": 1})
    assert answer.message.content.lstrip().startswith("{")


# Embeddings.


@check("embeddings")
def one_text_and_several(client: Client) -> None:
    one = client.embed("embedder", "Hello!")
    several = client.embed("embedder", ["Hello!", "Good day"])
    assert len(one.embeddings) == 1
    assert len(several.embeddings) == 2
    far = zip(one.embeddings[0], several.embeddings[0], strict=True)
    assert max(abs(a - b) for a, b in far) < 1e-3
    assert one.prompt_eval_count > 0
    assert abs(sum(number**2 for number in one.embeddings[0]) - 1) < 1e-3


@check("embeddings")
def the_older_form(client: Client) -> None:
    assert len(client.embeddings("embedder", "Hello!").embedding) > 10


@check("embeddings")
def no_input_is_no_vector(client: Client) -> None:
    assert client.embed("embedder", []).embeddings == []


# Models.


@check("models")
def they_are_listed_by_names_that_can_be_asked_for(client: Client) -> None:
    names = [one.model for one in client.list().models]
    assert f"{MODEL}:latest" in names
    assert f"{ALIAS}:latest" in names
    assert client.chat(f"{MODEL}:latest", HELLO, options=SHORT).model == f"{MODEL}:latest"
    assert client.chat(f"{ALIAS}:latest", HELLO, options=SHORT).message.content


@check("models")
def one_is_shown(client: Client) -> None:
    told = client.show(MODEL)
    assert "completion" in told.capabilities
    assert "tools" in told.capabilities
    assert told.modelinfo[f"{told.modelinfo['general.architecture']}.context_length"] > 0
    assert told.details.parameter_size
    assert "embedding" in client.show("embedder").capabilities


@check("models")
def what_is_loaded_is_told(client: Client) -> None:
    loaded = {one.model: one for one in client.ps().models}
    assert loaded[f"{MODEL}:latest"].context_length > 0
    assert loaded[f"{MODEL}:latest"].size > 0
    assert "down:latest" not in loaded


# Errors.


@check("errors")
def an_unknown_model(client: Client) -> None:
    with refused(404, "nobody"):
        client.chat("nobody", HELLO)
    with refused(404, "nobody"):
        list(client.chat("nobody", HELLO, stream=True))
    with refused(404, "nobody"):
        client.show("nobody")
    with refused(404, "nobody"):
        client.generate("nobody")


@check("errors")
def a_wrong_key(client: Client) -> None:
    del client
    with refused(401, "API key"):
        Client(ROOT, headers={"Authorization": "Bearer wrong"}).list()


@check("errors")
def a_wrong_option(client: Client) -> None:
    with refused(400, "options.temperature"):
        client.chat(MODEL, HELLO, options={"temperature": "warm"})


@check("errors")
def a_wrong_picture_and_one_that_nobody_sees(client: Client) -> None:
    with refused(400, "images"):
        client.chat(MODEL, [{"role": "user", "content": "?", "images": [b""]}])
    picture = b"\x89PNG\r\n\x1a\n"
    with refused(400, "images"):
        client.chat(MODEL, [{"role": "user", "content": "?", "images": [picture]}])


@check("errors")
def a_prompt_that_does_not_fit(client: Client) -> None:
    with refused(400, "context"):
        client.chat(MODEL, [{"role": "user", "content": "Hello! " * 20_000}])


@check("errors")
def a_server_that_breaks_off(client: Client) -> None:
    texts = []
    with refused(-1, "broke off"):
        for part in client.chat("cut", HELLO, stream=True):
            texts.append(part.message.content)  # noqa: PERF401 - it ends in the middle
    assert "".join(texts) == "Once upon"
    with refused(502, "broke off"):
        client.chat("cut", HELLO)


@check("errors")
def a_server_that_is_not_there(client: Client) -> None:
    with refused(503, "cannot be reached"):
        client.chat("down", HELLO)


@check("errors")
def a_server_that_makes_no_vectors(client: Client) -> None:
    with refused(400, "embeddings"):
        client.embed(MODEL, "Hello!")


@check("errors")
def what_is_ollamas_own_business(client: Client) -> None:
    for work in (
        lambda: client.pull(MODEL),
        lambda: list(client.pull(MODEL, stream=True)),
        lambda: client.push(MODEL),
        lambda: client.create("other", from_=MODEL),
        lambda: client.copy(MODEL, "other"),
        lambda: client.delete(MODEL),
    ):
        with refused(501, "Tropilla"):
            work()


# How it gets there.


@check("transport")
def nobody_listens(client: Client) -> None:
    del client
    try:
        Client(CLOSED).list()
    except ConnectionError:
        return
    raise AssertionError("somebody listens")


@check("transport")
def a_stream_that_is_left(client: Client) -> None:
    parts = iter(client.chat("endless", HELLO, stream=True))
    assert next(parts).message.content is not None
    parts.close()
    assert client.chat(MODEL, HELLO, options=SHORT).done


if __name__ == "__main__":
    raise SystemExit(
        tell_all(version("ollama"), CHECKS, lambda: Client(ROOT, headers=HEADERS, timeout=30))
    )
