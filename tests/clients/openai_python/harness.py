"""How a check is written, and what all of them need."""

from __future__ import annotations

import os
from collections.abc import Callable, Iterator
from contextlib import contextmanager

from openai import APIError, APIStatusError, AsyncOpenAI, OpenAI
from openai.types.chat import ChatCompletionChunk, ChatCompletionMessageParam

ROOT = os.environ["TROPILLA_ROOT"]
BASE = os.environ["TROPILLA_BASE"]
FLAKY = os.environ["TROPILLA_FLAKY"]
CLOSED = os.environ["TROPILLA_CLOSED"]
KEY = os.environ["TROPILLA_KEY"]
MODEL = os.environ["TROPILLA_MODEL"]
ALIAS = os.environ["TROPILLA_ALIAS"]
MAX_BODY = int(os.environ["TROPILLA_MAX_BODY"])
HELLO: list[ChatCompletionMessageParam] = [{"role": "user", "content": "Hello!"}]

Check = Callable[[OpenAI], None]
CHECKS: list[tuple[str, Check]] = []


def check(function: Check) -> Check:
    """A check; its module is its group."""
    CHECKS.append((function.__module__.rpartition(".")[2], function))
    return function


def connect(
    base: str = BASE, key: str = KEY, *, retries: int = 0, strict: bool = True, timeout: float = 30
) -> OpenAI:
    """A client. Strict: an answer whose fields are not of their types raises."""
    return OpenAI(
        base_url=base,
        api_key=key,
        max_retries=retries,
        timeout=timeout,
        _strict_response_validation=strict,
    )


def connect_async(base: str = BASE) -> AsyncOpenAI:
    """An async client, strict too."""
    return AsyncOpenAI(
        base_url=base, api_key=KEY, max_retries=0, timeout=30, _strict_response_validation=True
    )


@contextmanager
def refused(
    kind: type[APIError],
    *,
    code: str | None,
    param: str | None = None,
    type_: str = "invalid_request_error",
    says: str = "",
) -> Iterator[None]:
    """What is done within is refused, in all that the SDK shows of a refusal."""
    try:
        yield
    except kind as error:
        told = (error.type, error.code, error.param)
        assert told == (type_, code, param), told
        assert says in error.message, error.message  # noqa: PT017 - there is no pytest here
        if isinstance(error, APIStatusError):
            assert error.request_id  # noqa: PT017
    else:
        raise AssertionError(f"no {kind.__name__}")


def text_of(chunks: list[ChatCompletionChunk], index: int = 0) -> str:
    """All text of a choice."""
    return "".join(
        choice.delta.content or ""
        for chunk in chunks
        for choice in chunk.choices
        if choice.index == index
    )


def is_one_answer(chunks: list[ChatCompletionChunk], choices: int = 1) -> None:
    """One id, one role, some text and one reason for each choice, in this order."""
    assert len({(chunk.id, chunk.created, chunk.model, chunk.object) for chunk in chunks}) == 1
    assert chunks[0].choices[0].index == 0
    for index in range(choices):
        mine = [one for chunk in chunks for one in chunk.choices if one.index == index]
        assert [one.delta.role for one in mine] == ["assistant"] + [None] * (len(mine) - 1)
        assert all(one.finish_reason is None for one in mine[:-1])
        assert mine[-1].finish_reason in {"stop", "length"}
        assert not mine[-1].delta.content
        assert text_of(chunks, index)
