"""Headers, retries, timeouts, leaving, and the async client."""

from __future__ import annotations

import asyncio
import os
import time
from typing import Any, cast
from uuid import uuid4

import openai
from openai import OpenAI

from clients.openai_python.harness import (
    FLAKY,
    HELLO,
    MODEL,
    ROOT,
    check,
    connect,
    connect_async,
    refused,
    text_of,
)  # fmt: skip


@check
def raw_responses(client: OpenAI) -> None:
    raw = client.chat.completions.with_raw_response.create(model=MODEL, messages=HELLO)
    assert raw.headers["x-request-id"] == raw.parse()._request_id
    assert int(raw.headers["openai-processing-ms"]) >= 0
    assert raw.headers["content-type"].startswith("application/json")
    assert raw.retries_taken == 0


@check
def streaming_responses(client: OpenAI) -> None:
    with client.chat.completions.with_streaming_response.create(
        model=MODEL, messages=HELLO, stream=True
    ) as streamed:
        assert streamed.headers["x-request-id"]
        assert int(streamed.headers["openai-processing-ms"]) >= 0
        assert streamed.headers["content-type"].startswith("text/event-stream")
        lines = [line for line in streamed.iter_lines() if line]
    assert all(line.startswith("data: {") for line in lines[:-1])
    assert lines[-1] == "data: [DONE]"
    with client.chat.completions.with_streaming_response.create(
        model=MODEL, messages=HELLO
    ) as whole:
        assert whole.parse().choices[0].message.content


@check
def retries_after_503(_: OpenAI) -> None:
    """`retry-after-ms` of whatever stands before the gateway."""
    since = time.monotonic()
    raw = connect(FLAKY, retries=2).chat.completions.with_raw_response.create(
        model=MODEL, messages=HELLO
    )
    assert raw.retries_taken == 1
    assert raw.headers["x-attempts"] == "2"
    assert raw.parse().choices[0].message.content
    # By itself the SDK waits for half a second, and more.
    assert time.monotonic() - since < 30
    once = connect(FLAKY)
    try:
        once.chat.completions.create(model=MODEL, messages=HELLO)
    except openai.InternalServerError as error:
        assert error.code == "server_is_overloaded"  # noqa: PT017
    else:
        raise AssertionError("no InternalServerError")


@check
def retries_after_429(_: OpenAI) -> None:
    """The gateway's own word."""
    raw = connect(retries=1).chat.completions.with_raw_response.create(
        model="limited", messages=[{"role": "user", "content": f"again, {os.getpid()}"}]
    )
    assert raw.retries_taken == 1
    assert raw.parse().choices[0].message.content == "Here again"


@check
def said_again(client: OpenAI) -> None:
    """Under a key of the client's own."""
    key = {"Idempotency-Key": str(uuid4())}
    first, again = (
        client.chat.completions.with_raw_response.create(
            model=MODEL, messages=HELLO, extra_headers=key
        )
        for _ in range(2)
    )
    told = [raw.headers.get("idempotency-replayed") for raw in (first, again)]
    assert told == [None, "true"], told
    assert first.content == again.content
    key = {"Idempotency-Key": str(uuid4())}
    streams = [
        list(
            client.chat.completions.create(
                model=MODEL, messages=HELLO, stream=True, extra_headers=key
            )
        )
        for _ in range(2)
    ]
    assert streams[0] == streams[1]
    code = "idempotency_key_reused"
    with refused(openai.ConflictError, code=code, param="Idempotency-Key"):
        # It would ask again after a 409, were it not told not to.
        connect(retries=5).chat.completions.create(
            model=MODEL, messages=HELLO, seed=1, extra_headers=key
        )


@check
def retries_under_a_key(_: OpenAI) -> None:
    """The SDK's own key, the same for each try: what was refused is not told again."""
    client = connect(retries=1)
    client._idempotency_header = "Idempotency-Key"
    raw = client.chat.completions.with_raw_response.create(
        model="limited", messages=[{"role": "user", "content": f"under a key, {os.getpid()}"}]
    )
    assert raw.http_request.headers["idempotency-key"].startswith("stainless-python-retry-")
    assert raw.retries_taken == 1
    assert raw.parse().choices[0].message.content == "Here again"
    assert "idempotency-replayed" not in raw.headers


def is_idle() -> bool:
    """Whether nothing is written any more for those that have left."""
    slots = cast(
        "list[dict[str, Any]]",
        connect().get(f"{ROOT}/slots?model=endless", cast_to=object),
    )
    assert len(slots) > 1
    return not any(slot["is_processing"] for slot in slots)


def becomes_idle() -> None:
    """Nothing is written any more, soon: by itself it would end much later."""
    deadline = time.monotonic() + 10
    while not is_idle():
        assert time.monotonic() < deadline, "a slot still works"


@check
def leaving_a_stream_midway(client: OpenAI) -> None:
    """More often than there are slots: one that is not given back would be missed."""
    for _ in range(12):
        stream = client.chat.completions.create(model="endless", messages=HELLO, stream=True)
        for _, chunk in zip(range(3), stream, strict=False):
            assert chunk.choices
        stream.close()
    becomes_idle()
    assert client.chat.completions.create(model=MODEL, messages=HELLO).choices[0].message.content


@check
def timeout_of_a_whole_answer(_: OpenAI) -> None:
    """The client gives up; the work is given up, too."""
    try:
        connect(timeout=0.3).chat.completions.create(model="endless", messages=HELLO)
    except openai.APITimeoutError:
        pass
    else:
        raise AssertionError("no APITimeoutError")
    becomes_idle()


@check
def async_streams(_: OpenAI) -> None:
    async def several() -> list[str]:
        async def one() -> str:
            stream = await client.chat.completions.create(model=MODEL, messages=HELLO, stream=True)
            return text_of([chunk async for chunk in stream])

        async with connect_async() as client:
            return list(await asyncio.gather(*(one() for _ in range(8))))

    assert all(asyncio.run(several()))


@check
def async_helper(_: OpenAI) -> None:
    async def run() -> str | None:
        async with (
            connect_async() as client,
            client.chat.completions.stream(model=MODEL, messages=HELLO) as helper,
        ):
            kinds = {event.type async for event in helper}
            assert "content.done" in kinds
            return (await helper.get_final_completion()).choices[0].message.content

    assert asyncio.run(run())


@check
def async_leaving(_: OpenAI) -> None:
    async def run() -> None:
        async with connect_async() as client:
            task = asyncio.ensure_future(
                client.chat.completions.create(model="endless", messages=HELLO)
            )
            while await asyncio.to_thread(is_idle):
                assert not task.done(), "it ended before it was seen to work"
            task.cancel()
            await asyncio.gather(task, return_exceptions=True)

    asyncio.run(run())
    becomes_idle()
