"""What a program that uses `anthropic` expects: run by ../run.py, with 0.x and with 2.x."""

from __future__ import annotations

import asyncio
import os
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from importlib.metadata import version
from itertools import count
from typing import Any

import anthropic  # type: ignore[import-not-found]  # it has an environment of its own

from clients.telling import tell_all

ROOT = os.environ["TROPILLA_ROOT"]
FLAKY = os.environ["TROPILLA_FLAKY"].removesuffix("/v1")
CLOSED = os.environ["TROPILLA_CLOSED"].removesuffix("/v1")
KEY = os.environ["TROPILLA_KEY"]
MODEL = os.environ["TROPILLA_MODEL"]
ALIAS = os.environ["TROPILLA_ALIAS"]
MAX_BODY = int(os.environ["TROPILLA_MAX_BODY"])
HELLO = [{"role": "user", "content": "Hello!"}]
SHORT: dict[str, Any] = {"model": MODEL, "max_tokens": 8, "messages": HELLO}
STILL = {"temperature": 0}
WEATHER: dict[str, Any] = {
    "name": "weather",
    "description": "Tell the weather.",
    "input_schema": {
        "type": "object", "properties": {"town": {"enum": ["Lima", "Cusco"]}},
        "required": ["town"], "additionalProperties": False,
    },
}  # fmt: skip

Check = Callable[[Any], None]
CHECKS: list[tuple[str, Check]] = []
_numbers = count()


def check(group: str) -> Callable[[Check], Check]:
    """A check of a group."""

    def keep(function: Check) -> Check:
        CHECKS.append((group, function))
        return function

    return keep


def connect(base: str = ROOT, key: str = KEY, *, retries: int = 0, strict: bool = True) -> Any:
    """A client. Strict: an answer whose fields are not of their types raises."""
    return anthropic.Anthropic(
        base_url=base, api_key=key, max_retries=retries, timeout=30,
        _strict_response_validation=strict,
    )  # fmt: skip


@contextmanager
def refused(kind: str, status: int, type_: str, says: str = "") -> Iterator[None]:
    """What is done within is refused, in all that the SDK shows of a refusal."""
    try:
        yield
    except anthropic.APIStatusError as failure:
        error: Any = failure
        told = error.body["error"]
        assert kind in [one.__name__ for one in type(error).__mro__], repr(error)
        assert (error.status_code, told["type"]) == (status, type_), error
        assert says in told["message"], told["message"]
        assert error.request_id, error
    else:
        raise AssertionError(f"no {kind}")


def unheard() -> list[dict[str, str]]:
    """Words that no server has heard before."""
    return [{"role": "user", "content": f"{os.getpid()}, {next(_numbers)}"}]


# Chat.


@check("chat")
def a_message(client: Any) -> None:
    message = client.messages.create(**SHORT)
    assert (message.type, message.role, message.model) == ("message", "assistant", MODEL)
    assert message.content[0].type == "text"
    assert message.content[0].text
    assert message.stop_reason in {"end_turn", "max_tokens"}
    assert message.usage.input_tokens + message.usage.cache_read_input_tokens > 0
    assert 0 < message.usage.output_tokens <= 8
    assert message._request_id.startswith("req_")


@check("chat")
def the_helper_gathers_what_the_whole_says(client: Any) -> None:
    whole = client.messages.create(**SHORT, extra_body=STILL)
    with client.messages.stream(**SHORT, extra_body=STILL) as stream:
        texts = list(stream.text_stream)
        message = stream.get_final_message()
    assert len(texts) > 2
    assert "".join(texts) == message.content[0].text == whole.content[0].text
    assert message.stop_reason == whole.stop_reason
    read = [one.usage.input_tokens + one.usage.cache_read_input_tokens for one in (message, whole)]
    assert read[0] == read[1] > 0
    assert message.usage.output_tokens == whole.usage.output_tokens


@check("chat")
def the_events_have_their_order(client: Any) -> None:
    kinds = [event.type for event in client.messages.create(**SHORT, stream=True)]
    assert kinds[:2] == ["message_start", "content_block_start"]
    assert kinds[-3:] == ["content_block_stop", "message_delta", "message_stop"]
    assert set(kinds[2:-3]) == {"content_block_delta"}


@check("chat")
def the_stop_word_is_named(client: Any) -> None:
    text = client.messages.create(**SHORT, extra_body=STILL).content[0].text
    word = text[len(text) // 2 :][:3]
    message = client.messages.create(**SHORT, stop_sequences=[word, "never"], extra_body=STILL)
    assert message.content[0].text == text[: text.index(word)]
    assert (message.stop_reason, message.stop_sequence) == ("stop_sequence", word)


@check("chat")
def the_limit_is_kept_and_told(client: Any) -> None:
    message = client.messages.create(**SHORT | {"max_tokens": 2})
    assert (message.stop_reason, message.usage.output_tokens) == ("max_tokens", 2)


@check("chat")
def no_token_at_all(client: Any) -> None:
    message = client.messages.create(**SHORT | {"max_tokens": 0})
    assert (message.content, message.usage.output_tokens) == ([], 0)


@check("chat")
def a_conversation_in_blocks(client: Any) -> None:
    cached = {"type": "ephemeral"}
    message = client.messages.create(
        model=ALIAS,
        max_tokens=8,
        system=[{"type": "text", "text": "Be kind.", "cache_control": cached}],
        messages=[
            *HELLO,
            {"role": "assistant", "content": [{"type": "text", "text": "Yes?"}]},
            {
                "role": "user",
                "content": [
                    {"type": "text", "text": "Who"},
                    {"type": "text", "text": "are you?", "cache_control": cached},
                ],
            },
        ],
        metadata={"user_id": "u"},
    )
    assert message.model == ALIAS
    assert message.content[0].text


@check("chat")
def an_answer_is_gone_on_with(client: Any) -> None:
    turns = [*HELLO, {"role": "assistant", "content": "Good"}]
    message = client.messages.create(**SHORT | {"messages": turns})
    assert message.content[0].text


@check("chat")
def thoughts_may_be_asked_for(client: Any) -> None:
    for thinking in ({"type": "enabled", "budget_tokens": 1024}, {"type": "disabled"}):
        assert client.messages.create(**SHORT, extra_body={"thinking": thinking}).content


@check("chat")
def a_form_is_kept_to(client: Any) -> None:
    form = {"type": "json_schema", "schema": WEATHER["input_schema"]}
    message = client.messages.create(
        **SHORT | {"max_tokens": 64}, extra_body={"output_config": {"format": form}}
    )
    assert message.content[0].text.replace(" ", "") in ('{"town":"Lima"}', '{"town":"Cusco"}')


@check("chat")
def an_async_client(_: Any) -> None:
    async def ask() -> None:
        client = anthropic.AsyncAnthropic(base_url=ROOT, api_key=KEY, max_retries=0, timeout=30)
        async with client, client.messages.stream(**SHORT) as stream:
            texts = [text async for text in stream.text_stream]
            message = await stream.get_final_message()
        assert "".join(texts) == message.content[0].text

    asyncio.run(ask())


@check("chat")
def the_beta_resource(client: Any) -> None:
    message = client.beta.messages.create(**SHORT, betas=["context-management-2025-06-27"])
    assert message.content[0].text


# Tools.


@check("tools")
def a_forced_call_and_its_result(client: Any) -> None:
    asked = SHORT | {"max_tokens": 200, "tools": [WEATHER]}
    for choice in ({"type": "any"}, {"type": "tool", "name": "weather"}):
        message = client.messages.create(**asked, tool_choice=choice)
        assert message.stop_reason == "tool_use"
        (call,) = [block for block in message.content if block.type == "tool_use"]
        assert call.name == "weather"
        assert call.input["town"] in {"Lima", "Cusco"}
        result = {"type": "tool_result", "tool_use_id": call.id, "content": "Fog."}
        turns = [
            *HELLO,
            {"role": "assistant", "content": [block.to_dict() for block in message.content]},
            {"role": "user", "content": [result]},
        ]
        after = client.messages.create(
            **asked | {"messages": turns, "max_tokens": 8}, tool_choice={"type": "none"}
        )
        assert after.content[0].type == "text"


@check("tools")
def a_forced_call_in_a_stream(client: Any) -> None:
    with client.messages.stream(
        **SHORT | {"max_tokens": 200}, tools=[WEATHER],
        tool_choice={"type": "tool", "name": "weather", "disable_parallel_tool_use": True},
    ) as stream:  # fmt: skip
        pieces = [event.partial_json for event in stream if event.type == "input_json"]
        message = stream.get_final_message()
    assert len(pieces) > 1
    assert message.content[-1].input["town"] in {"Lima", "Cusco"}
    assert message.stop_reason == "tool_use"


@check("tools")
def what_anthropics_servers_would_run_is_passed_over(client: Any) -> None:
    search = {"type": "web_search_20250305", "name": "web_search", "max_uses": 3}
    assert client.messages.create(**SHORT, tools=[search]).content
    with refused("BadRequestError", 400, "invalid_request_error", "servers run"):
        client.messages.create(**SHORT, tools=[search], tool_choice={"type": "any"})


# Counts and models.


@check("models")
def tokens_are_counted(client: Any) -> None:
    asked = {"model": MODEL, "messages": HELLO, "system": "Be kind.", "tools": [WEATHER]}
    counted = client.messages.count_tokens(**asked).input_tokens
    usage = client.messages.create(**asked, max_tokens=1).usage
    assert counted == usage.input_tokens + usage.cache_read_input_tokens > 10


@check("models")
def all_models_and_one(client: Any) -> None:
    names = [model.id for model in client.models.list(limit=2)]  # all pages
    assert {MODEL, ALIAS, "down"} <= set(names)
    model = client.models.retrieve(MODEL)
    assert (model.type, model.id, model.display_name) == ("model", MODEL, MODEL)
    assert model.created_at.year >= 1970
    assert model.max_input_tokens > 0
    with refused("NotFoundError", 404, "not_found_error", "none"):
        client.models.retrieve("none")


# Errors.


@check("errors")
def of_400(client: Any) -> None:
    for name, value in {
        "max_tokens": -1, "messages": [], "temperature": 9, "stop_sequences": "x", "system": 5,
        "tools": [{"name": "x"}], "tool_choice": {"type": "any"}, "thinking": {"type": "on"},
    }.items():  # fmt: skip
        with refused("BadRequestError", 400, "invalid_request_error", name.partition("_")[0]):
            client.messages.create(**SHORT, extra_body={name: value})


@check("errors")
def of_400_pictures_that_would_be_fetched(client: Any) -> None:
    for source, says in (
        ({"type": "url", "url": "http://127.0.0.1:1/x.png"}, "fetched"),
        ({"type": "base64", "media_type": "image/png", "data": "AAAA"}, "can see images"),
        ({"type": "base64", "media_type": "image/png", "data": "§"}, "base64"),
    ):
        turns = [{"role": "user", "content": [{"type": "image", "source": source}]}]
        with refused("BadRequestError", 400, "invalid_request_error", says):
            client.messages.create(**SHORT | {"messages": turns})


@check("errors")
def of_400_too_long(client: Any) -> None:
    turns = [{"role": "user", "content": "Hello! " * 20_000}]
    with refused("BadRequestError", 400, "invalid_request_error", "prompt is too long: "):
        client.messages.create(**SHORT | {"messages": turns})


@check("errors")
def of_401(_: Any) -> None:
    with refused("AuthenticationError", 401, "authentication_error"):
        connect(key="wrong").messages.create(**SHORT)


@check("errors")
def of_404(client: Any) -> None:
    with refused("NotFoundError", 404, "not_found_error", "claude-none"):
        client.messages.create(**SHORT | {"model": "claude-none"})
    with refused("NotFoundError", 404, "not_found_error"):
        client.messages.batches.list()


@check("errors")
def of_413(client: Any) -> None:
    turns = [{"role": "user", "content": "x" * MAX_BODY}]
    with refused("APIStatusError", 413, "request_too_large"):
        client.messages.create(**SHORT | {"messages": turns})


@check("errors")
def of_429(client: Any) -> None:
    with refused("RateLimitError", 429, "rate_limit_error"):
        client.messages.create(**SHORT | {"model": "limited", "messages": unheard()})


@check("errors")
def of_429_and_again(_: Any) -> None:
    client = connect(retries=2)
    message = client.messages.create(**SHORT | {"model": "limited", "messages": unheard()})
    assert message.content[0].text == "Here again"


@check("errors")
def of_502(_: Any) -> None:
    """Much may have been generated: the SDK does not ask again, however often it may."""
    with refused("InternalServerError", 502, "api_error", ", 1."):
        connect(retries=2).messages.create(**SHORT | {"model": "broken", "messages": unheard()})


@check("errors")
def of_504(client: Any) -> None:
    with refused("InternalServerError", 504, "timeout_error"):
        client.messages.create(**SHORT | {"model": "silent"})


@check("errors")
def of_529(client: Any) -> None:
    with refused("APIStatusError", 529, "overloaded_error"):
        client.messages.create(**SHORT | {"model": "down"})


@check("errors")
def in_the_middle_of_a_stream(client: Any) -> None:
    texts: list[str] = []
    try:
        with client.messages.stream(**SHORT | {"model": "cut", "messages": unheard()}) as stream:
            texts.extend(stream.text_stream)
    except anthropic.APIStatusError as error:
        assert error.body["error"]["type"] == "api_error", error  # noqa: PT017
    else:
        raise AssertionError("no APIStatusError")
    assert "".join(texts) == "Once upon"


@check("errors")
def of_a_version_that_there_is_not(client: Any) -> None:
    with refused("BadRequestError", 400, "invalid_request_error", "not a valid version"):
        client.messages.create(**SHORT, extra_headers={"anthropic-version": "2022-01-01"})


# How it gets there.


@check("transport")
def nobody_listens(_: Any) -> None:
    try:
        connect(CLOSED).messages.create(**SHORT)
    except anthropic.APIConnectionError:
        return
    raise AssertionError("no APIConnectionError")


@check("transport")
def it_asks_again(_: Any) -> None:
    assert connect(FLAKY, retries=1).messages.create(**SHORT).content


@check("transport")
def keys_in_either_header(_: Any) -> None:
    bearer = anthropic.Anthropic(base_url=ROOT, auth_token=KEY, max_retries=0)
    header = anthropic.Anthropic(
        base_url=ROOT, auth_token="wrong", default_headers={"X-Api-Key": KEY}, max_retries=0
    )
    for client in (bearer, header):
        assert client.messages.create(**SHORT).content


@check("transport")
def both_versions(client: Any) -> None:
    for one in ("2023-06-01", "2026-10-21"):
        told = client.messages.create(
            **SHORT, extra_headers={"anthropic-version": one}, extra_body={"top_k": 5}
        )
        assert told.content


@check("transport")
def a_stream_that_is_left(client: Any) -> None:
    with client.messages.create(**SHORT | {"model": "endless"}, stream=True) as stream:
        assert next(stream).type == "message_start"
    assert client.messages.create(**SHORT).content


if __name__ == "__main__":
    raise SystemExit(tell_all(version("anthropic"), CHECKS, connect))
