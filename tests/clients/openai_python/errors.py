"""Every class of error, with all that the SDK shows of it."""

from __future__ import annotations

import os
from itertools import count

import openai
from openai import OpenAI
from openai.types.chat import ChatCompletionChunk, ChatCompletionMessageParam

from clients.openai_python.harness import (
    CLOSED,
    HELLO,
    MAX_BODY,
    MODEL,
    ROOT,
    check,
    connect,
    refused,
)  # fmt: skip

_numbers = count()


def unheard() -> list[ChatCompletionMessageParam]:
    """Words that no server has heard before."""
    return [{"role": "user", "content": f"{os.getpid()}, {next(_numbers)}"}]


@check
def of_400_bad_parameters(client: OpenAI) -> None:
    for name, value in {
        "temperature": 9,
        "n": 0,
        "top_p": "much",
        "max_tokens": -5,
        "stream": "yes",
        "messages": "Hello!",
        "stop": [1],
        "logit_bias": "much",
        "top_logprobs": 3,
        "seed": "x",
        "tools": [{"type": "function"}],
        "tool_choice": "sometimes",
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
def of_400_wrong_deep_within(client: OpenAI) -> None:
    parts = [{"type": "text", "text": "Hello"}, {"type": "sound"}]
    with refused(openai.BadRequestError, code="invalid_value", param="messages.0.content.1.type"):
        client.chat.completions.create(
            model=MODEL,
            messages=[{"role": "user", "content": parts}],  # type: ignore[misc,list-item]
        )


@check
def of_400_the_context_is_too_short(client: OpenAI) -> None:
    for stream in (False, True):
        with refused(openai.BadRequestError, code="context_length_exceeded", says="8192"):
            client.chat.completions.create(
                model=MODEL, messages=[{"role": "user", "content": "llama " * 20_000}],
                stream=stream,
            )  # fmt: skip


@check
def of_400_a_picture_for_a_model_of_text(client: OpenAI) -> None:
    picture = {"type": "image_url", "image_url": {"url": "data:image/png;base64,iVBORw0KGgo="}}
    try:
        client.chat.completions.create(
            model=MODEL,
            messages=[{"role": "user", "content": [picture]}],  # type: ignore[misc,list-item]
        )
    except openai.BadRequestError as error:
        assert (error.param or "").startswith("messages"), error.param  # noqa: PT017
        assert "image" in error.message  # noqa: PT017
    else:
        raise AssertionError("a text model saw a picture")


@check
def of_401_wrong_key(_: OpenAI) -> None:
    with refused(openai.AuthenticationError, code="invalid_api_key"):
        connect(key="wrong").chat.completions.create(model=MODEL, messages=HELLO)
    with refused(openai.AuthenticationError, code="invalid_api_key"):
        connect(key="wrong").models.list()


@check
def of_403_what_is_not_allowed(client: OpenAI) -> None:
    try:
        client.post(f"{ROOT}/props", cast_to=object, body={})
    except openai.PermissionDeniedError as error:
        # The path is llama.cpp's own, and so are the type and the code.
        assert "--allow-admin" in error.message  # noqa: PT017
    else:
        raise AssertionError("no PermissionDeniedError")


@check
def of_404_unknown_model(client: OpenAI) -> None:
    for ask in (
        lambda: client.chat.completions.create(model="no/such", messages=HELLO),
        lambda: client.chat.completions.create(model="no/such", messages=HELLO, stream=True),
        lambda: client.completions.create(model="no/such", prompt="x"),
        lambda: client.embeddings.create(model="no/such", input="x"),
        lambda: client.models.retrieve("no/such"),
    ):
        with refused(openai.NotFoundError, code="model_not_found", param="model", says="no/such"):
            ask()


@check
def of_404_unknown_path(client: OpenAI) -> None:
    with refused(openai.NotFoundError, code="unknown_url", type_="invalid_request_error"):
        client.files.list()


@check
def of_405_wrong_method(client: OpenAI) -> None:
    with refused(openai.APIStatusError, code="method_not_allowed", says="POST"):
        client.get("/chat/completions", cast_to=object)


@check
def of_413_too_large(client: OpenAI) -> None:
    with refused(openai.APIStatusError, code="request_too_large", says=str(MAX_BODY)):
        client.chat.completions.create(
            model=MODEL, messages=[{"role": "user", "content": "x" * MAX_BODY}]
        )


@check
def of_415_compressed(client: OpenAI) -> None:
    with refused(openai.APIStatusError, code="unsupported_media_type"):
        client.chat.completions.create(
            model=MODEL, messages=HELLO, extra_headers={"Content-Encoding": "gzip"}
        )


@check
def of_429_and_when_to_come_again(client: OpenAI) -> None:
    try:
        client.chat.completions.create(model="limited", messages=unheard())
    except openai.RateLimitError as error:
        assert error.code == "rate_limit_exceeded"  # noqa: PT017
        assert error.type == "rate_limit_error"  # noqa: PT017
        assert error.response.headers["retry-after"] == "1"  # noqa: PT017
        assert error.response.headers["retry-after-ms"] == "1000"  # noqa: PT017
        assert "x-should-retry" not in error.response.headers  # noqa: PT017
    else:
        raise AssertionError("no RateLimitError")


@check
def of_502_and_not_to_come_again(client: OpenAI) -> None:
    """It might have been generated already: the SDK asks once, however often it may."""
    told = set()
    for one in (client, connect(retries=2)):
        try:
            one.chat.completions.create(model="broken", messages=unheard())
        except openai.InternalServerError as error:
            assert error.status_code == 502  # noqa: PT017
            assert error.code == "upstream_error"  # noqa: PT017
            assert error.type == "server_error"  # noqa: PT017
            assert error.response.headers["x-should-retry"] == "false"  # noqa: PT017
            told.add(error.message)
        else:
            raise AssertionError("no InternalServerError")
    # The server counts how often it was asked.
    assert len(told) == 1, told


@check
def of_502_nonsense(client: OpenAI) -> None:
    with refused(openai.InternalServerError, code="upstream_error", type_="server_error"):
        client.chat.completions.create(model="odd", messages=HELLO)


@check
def of_503_nobody_is_there(client: OpenAI) -> None:
    with refused(openai.InternalServerError, code="no_upstream", type_="server_error"):
        client.chat.completions.create(model="down", messages=HELLO)


@check
def of_504_silence(client: OpenAI) -> None:
    with refused(openai.InternalServerError, code="upstream_timeout", type_="server_error"):
        client.chat.completions.create(model="silent", messages=HELLO)


@check
def in_the_middle_of_a_stream(client: OpenAI) -> None:
    heard: list[ChatCompletionChunk] = []
    with refused(openai.APIError, code="upstream_error", type_="server_error"):
        heard.extend(client.chat.completions.create(model="cut", messages=unheard(), stream=True))
    assert "".join(one.choices[0].delta.content or "" for one in heard) == "Once upon"
    assert all(one.choices[0].finish_reason is None for one in heard)


@check
def in_the_middle_of_a_whole_answer(client: OpenAI) -> None:
    with refused(openai.InternalServerError, code="upstream_error", type_="server_error"):
        client.chat.completions.create(model="cut", messages=unheard())


@check
def connection_refused(_: OpenAI) -> None:
    try:
        connect(CLOSED).models.list()
    except openai.APIConnectionError as error:
        assert not isinstance(error, openai.APITimeoutError)  # noqa: PT017
    else:
        raise AssertionError("no APIConnectionError")
