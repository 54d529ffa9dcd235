"""What a program that uses `openai` expects: run by run.py, with 2.x and with 3.x."""

from __future__ import annotations

import asyncio
import os
import sys
from collections.abc import Callable

import openai
from openai import AsyncOpenAI, OpenAI
from openai.types.chat import ChatCompletion, ChatCompletionChunk, ChatCompletionMessageParam

BASE = os.environ["TROPILLA_BASE"]
KEY = os.environ["TROPILLA_KEY"]
MODEL = os.environ["TROPILLA_MODEL"]
HELLO: list[ChatCompletionMessageParam] = [{"role": "user", "content": "Hello!"}]

Check = Callable[[OpenAI], None]
CHECKS: list[Check] = []


def check(function: Check) -> Check:
    CHECKS.append(function)
    return function


def connect(base: str = BASE, key: str = KEY, *, retries: int = 0, strict: bool = True) -> OpenAI:
    """Strict: an answer whose fields are not of their types raises."""
    return OpenAI(
        base_url=base,
        api_key=key,
        max_retries=retries,
        timeout=30,
        _strict_response_validation=strict,
    )


def text_of(chunks: list[ChatCompletionChunk], index: int = 0) -> str:
    return "".join(
        choice.delta.content or ""
        for chunk in chunks
        for choice in chunk.choices
        if choice.index == index
    )


def is_one_answer(chunks: list[ChatCompletionChunk], choices: int = 1) -> None:
    """One id, one role, some text and one reason for each choice, in this order."""
    assert len({(chunk.id, chunk.created, chunk.model, chunk.object) for chunk in chunks}) == 1
    for index in range(choices):
        mine = [one for chunk in chunks for one in chunk.choices if one.index == index]
        assert [one.delta.role for one in mine] == ["assistant"] + [None] * (len(mine) - 1)
        assert all(one.finish_reason is None for one in mine[:-1])
        assert mine[-1].finish_reason in {"stop", "length"}
        assert not mine[-1].delta.content
        assert text_of(chunks, index)


@check
def chat(client: OpenAI) -> None:
    got = client.chat.completions.create(model=MODEL, messages=HELLO)
    assert isinstance(got, ChatCompletion)
    assert got.id.startswith("chatcmpl-")
    assert got.object == "chat.completion"
    assert got.created > 1_600_000_000
    assert got.model == MODEL
    (choice,) = got.choices
    assert choice.index == 0
    assert choice.finish_reason in {"stop", "length"}
    assert choice.logprobs is None
    assert choice.message.role == "assistant"
    assert choice.message.content
    assert choice.message.refusal is None
    assert not choice.message.tool_calls
    assert got.usage
    assert got.usage.prompt_tokens > 0
    assert got.usage.completion_tokens > 0
    assert got.usage.total_tokens == got.usage.prompt_tokens + got.usage.completion_tokens
    assert got._request_id


@check
def chat_stream(client: OpenAI) -> None:
    chunks = list(client.chat.completions.create(model=MODEL, messages=HELLO, stream=True))
    is_one_answer(chunks)
    assert all(chunk.choices for chunk in chunks)
    assert all(chunk.usage is None for chunk in chunks)


@check
def chat_stream_with_usage(client: OpenAI) -> None:
    *chunks, last = client.chat.completions.create(
        model=MODEL, messages=HELLO, stream=True, stream_options={"include_usage": True}
    )
    is_one_answer(chunks)
    assert all(chunk.usage is None for chunk in chunks)
    assert last.choices == []
    assert last.usage
    assert last.usage.total_tokens == last.usage.prompt_tokens + last.usage.completion_tokens


@check
def chat_stream_helper_gathers_the_same_answer(client: OpenAI) -> None:
    whole = client.chat.completions.create(model=MODEL, messages=HELLO, temperature=0, seed=7)
    with client.chat.completions.stream(
        model=MODEL, messages=HELLO, temperature=0, seed=7, stream_options={"include_usage": True}
    ) as stream:
        kinds = {event.type for event in stream}
        gathered = stream.get_final_completion()
    assert {"chunk", "content.delta", "content.done"} <= kinds
    mine, theirs = gathered.choices[0], whole.choices[0]
    assert mine.message.role == "assistant"
    assert mine.message.content == theirs.message.content
    assert mine.finish_reason == theirs.finish_reason
    assert gathered.usage
    assert whole.usage
    assert gathered.usage.completion_tokens == whole.usage.completion_tokens


@check
def chat_async_stream(_: OpenAI) -> None:
    async def several() -> list[str]:
        async def one() -> str:
            stream = await client.chat.completions.create(model=MODEL, messages=HELLO, stream=True)
            return text_of([chunk async for chunk in stream])

        async with AsyncOpenAI(base_url=BASE, api_key=KEY, max_retries=0, timeout=30) as client:
            return list(await asyncio.gather(*(one() for _ in range(8))))

    assert all(asyncio.run(several()))


@check
def two_choices(client: OpenAI) -> None:
    got = client.chat.completions.create(model=MODEL, messages=HELLO, n=2, max_tokens=6)
    assert [choice.index for choice in got.choices] == [0, 1]
    assert all(choice.message.content for choice in got.choices)
    stream = client.chat.completions.create(
        model=MODEL, messages=HELLO, n=2, max_tokens=6, stream=True
    )
    is_one_answer(list(stream), choices=2)


@check
def two_choices_gathered_by_the_helper(client: OpenAI) -> None:
    with client.chat.completions.stream(model=MODEL, messages=HELLO, n=2) as stream:
        got = stream.get_final_completion()
    assert [choice.index for choice in got.choices] == [0, 1]
    assert all(choice.message.content for choice in got.choices)


@check
def max_tokens_ends_with_length(client: OpenAI) -> None:
    got = client.chat.completions.create(model=MODEL, messages=HELLO, max_completion_tokens=2)
    assert got.choices[0].finish_reason == "length"
    assert got.usage
    assert got.usage.completion_tokens == 2


@check
def logprobs(client: OpenAI) -> None:
    # The end of an answer is a token that counts and that is not told: here it has to go on.
    got = client.chat.completions.create(
        model=MODEL, messages=HELLO, max_tokens=4, temperature=0, logprobs=True, top_logprobs=3
    )
    told = got.choices[0].logprobs
    assert told
    assert told.content
    assert got.usage
    assert len(told.content) == got.usage.completion_tokens
    assert "".join(one.token for one in told.content) == got.choices[0].message.content
    assert all(one.logprob <= 0 and len(one.top_logprobs) == 3 for one in told.content)
    stream = client.chat.completions.create(
        model=MODEL, messages=HELLO, max_tokens=4, logprobs=True, top_logprobs=3, stream=True
    )
    for chunk in stream:
        choice = chunk.choices[0]
        assert bool(choice.delta.content) == bool(choice.logprobs and choice.logprobs.content)


@check
def completions(client: OpenAI) -> None:
    prompt = "The llama"
    whole = client.completions.create(
        model=MODEL, prompt=prompt, max_tokens=16, temperature=0, seed=7
    )
    assert whole.object == "text_completion"
    assert whole.model == MODEL
    assert whole.choices[0].text
    assert whole.choices[0].finish_reason in {"stop", "length"}
    assert whole.choices[0].logprobs is None
    assert whole.usage
    assert whole.usage.completion_tokens > 0
    # The SDK's type wants a reason in every chunk, but OpenAI sends null until the last.
    *chunks, last = connect(strict=False).completions.create(
        model=MODEL, prompt=prompt, max_tokens=16, temperature=0, seed=7, stream=True,
        stream_options={"include_usage": True},
    )  # fmt: skip
    assert "".join(chunk.choices[0].text for chunk in chunks) == whole.choices[0].text
    assert chunks[-1].choices[0].finish_reason == whole.choices[0].finish_reason
    assert last.choices == []
    assert last.usage
    assert last.usage.completion_tokens == whole.usage.completion_tokens


@check
def completions_of_several_prompts(client: OpenAI) -> None:
    got = client.completions.create(
        model=MODEL, prompt=["The llama", "The sun"], n=2, max_tokens=4, logprobs=1
    )
    assert [choice.index for choice in got.choices] == [0, 1, 2, 3]
    for choice in got.choices:
        told = choice.logprobs
        assert told
        assert told.tokens
        assert told.token_logprobs
        assert told.text_offset
        assert len(told.tokens) == len(told.token_logprobs) == len(told.text_offset)
        assert "".join(told.tokens) == choice.text


@check
def models(client: OpenAI) -> None:
    (listed,) = [model for model in client.models.list() if model.id == MODEL]
    assert listed.object == "model"
    assert listed.created > 0
    assert listed.owned_by
    assert client.models.retrieve(MODEL).id == MODEL


@check
def unknown_model(client: OpenAI) -> None:
    for ask in (
        lambda: client.chat.completions.create(model="no/such", messages=HELLO),
        lambda: client.completions.create(model="no/such", prompt="x"),
        lambda: client.models.retrieve("no/such"),
    ):
        try:
            ask()
        except openai.NotFoundError as error:
            assert error.code == "model_not_found"  # noqa: PT017 - there is no pytest here
            assert error.param == "model"  # noqa: PT017
            assert error.type == "invalid_request_error"  # noqa: PT017
            assert error.request_id  # noqa: PT017
            assert "no/such" in error.message  # noqa: PT017
        else:
            raise AssertionError("no NotFoundError")


@check
def bad_parameters(client: OpenAI) -> None:
    for name, value in {
        "temperature": 9,
        "n": 0,
        "top_p": "much",
        "max_tokens": -5,
        "stream": "yes",
        "messages": "Hello!",
        "stop": [1],
        "logit_bias": "much",
        "response_format": {"type": "sonnet"},
    }.items():
        try:
            client.chat.completions.create(model=MODEL, messages=HELLO, extra_body={name: value})
        except openai.BadRequestError as error:
            told = (error.param or "").split(".")[0].split("[")[0]
            assert told == name, (name, error.param)  # noqa: PT017
            assert error.type == "invalid_request_error", name  # noqa: PT017
            assert error.request_id, name  # noqa: PT017
        else:
            raise AssertionError(f"no BadRequestError for {name}")


@check
def wrong_key(_: OpenAI) -> None:
    try:
        connect(key="wrong").chat.completions.create(model=MODEL, messages=HELLO)
    except openai.AuthenticationError as error:
        assert error.code == "invalid_api_key"  # noqa: PT017
        assert error.request_id  # noqa: PT017
    else:
        raise AssertionError("no AuthenticationError")


@check
def connection_refused(_: OpenAI) -> None:
    try:
        connect(os.environ["TROPILLA_CLOSED"]).models.list()
    except openai.APIConnectionError as error:
        assert not isinstance(error, openai.APITimeoutError)  # noqa: PT017
    else:
        raise AssertionError("no APIConnectionError")


@check
def headers(client: OpenAI) -> None:
    raw = client.chat.completions.with_raw_response.create(model=MODEL, messages=HELLO)
    assert raw.headers["x-request-id"] == raw.parse()._request_id
    assert int(raw.headers["openai-processing-ms"]) >= 0
    assert raw.headers["content-type"].startswith("application/json")
    with client.chat.completions.with_streaming_response.create(
        model=MODEL, messages=HELLO, stream=True
    ) as streamed:
        assert streamed.headers["x-request-id"]
        assert int(streamed.headers["openai-processing-ms"]) >= 0
        assert streamed.headers["content-type"].startswith("text/event-stream")


@check
def leaving_a_stream_midway(client: OpenAI) -> None:
    """More often than there are slots: one that is not given back would be missed."""
    for _ in range(12):
        stream = client.chat.completions.create(
            model=MODEL, messages=HELLO, stream=True, max_tokens=2000,
            extra_body={"ignore_eos": True},
        )  # fmt: skip
        for _, chunk in zip(range(3), stream, strict=False):
            assert chunk.choices
        stream.close()
    assert client.chat.completions.create(model=MODEL, messages=HELLO).choices[0].message.content


@check
def retries_after_503(_: OpenAI) -> None:
    client = connect(os.environ["TROPILLA_FLAKY"], retries=2)
    raw = client.chat.completions.with_raw_response.create(model=MODEL, messages=HELLO)
    assert raw.retries_taken == 1
    assert raw.headers["x-attempts"] == "2"
    assert raw.parse().choices[0].message.content
    once = connect(os.environ["TROPILLA_FLAKY"])
    try:
        once.chat.completions.create(model=MODEL, messages=HELLO)
    except openai.InternalServerError as error:
        assert error.code == "server_is_overloaded"  # noqa: PT017
    else:
        raise AssertionError("no InternalServerError")


def main() -> int:
    say = sys.stdout.write
    say(f"version {openai.__version__}\n")
    failures = 0
    for one in CHECKS:
        name = one.__name__.replace("_", " ")
        try:
            one(connect())
        except Exception as error:  # noqa: BLE001 - whatever it is, the others are tried too
            failures += 1
            trace = error.__traceback__
            while trace and trace.tb_next and trace.tb_next.tb_frame.f_code.co_filename == __file__:
                trace = trace.tb_next
            place = f"line {trace.tb_lineno}" if trace else "?"
            why = " ".join(str(error).split())[:300]
            say(f"FAIL {name}: {place}: {type(error).__name__} {why}\n")
        else:
            say(f"ok {name}\n")
        sys.stdout.flush()
    return 1 if failures else 0


if __name__ == "__main__":
    raise SystemExit(main())
