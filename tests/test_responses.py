"""OpenAI's Responses through the gateway: answered, streamed, kept, gone on from, counted."""

from __future__ import annotations

from collections.abc import AsyncIterator, Mapping
from contextlib import asynccontextmanager
from typing import Any, Literal

import msgspec
import openai
import pytest
from openai import AsyncOpenAI
from pydantic import BaseModel

from conftest import Answer, Serve, Served, Start
from doubles.llama import llama
from doubles.upstream import DONE, Double, answers, breaks, chunk, event, streams, told
from grammar import STAMP
from matrix.backs import BACKS, Back
from openapi_schema import check_response, check_response_event
from tropilla.accounts.store import Later
from tropilla.config import ModelConfig, ResponsesConfig
from tropilla.framing import SseFramer
from tropilla.ir import ChoiceEnded, Event, Finished, Started, fold
from tropilla.server.responses import Responses
from tropilla.templates import Classic

pytestmark = pytest.mark.anyio

PATH = "/v1/responses"
CHAT_PATH = "/v1/chat/completions"
COUNT_PATH = "/v1/chat/completions/input_tokens"
WEATHER: Any = {
    "type": "function",
    "name": "weather",
    "description": "The weather in a town.",
    "parameters": {
        "type": "object",
        "properties": {"town": {"type": "string", "enum": ["Lima", "Cusco"]}},
        "required": ["town"],
        "additionalProperties": False,
    },
    "strict": True,
}


class Wool(BaseModel):
    """Of an animal."""

    colour: Literal["brown", "white"]
    soft: bool


@asynccontextmanager
async def sdk(tropilla: Served, key: str = "-") -> AsyncIterator[AsyncOpenAI]:
    url = f"{tropilla.url}/v1"
    async with AsyncOpenAI(base_url=url, api_key=key, max_retries=0) as client:
        yield client


async def ask(tropilla: Served, **fields: Any) -> Answer:
    """Ask for a response, which must be as OpenAI has it."""
    answer = await tropilla.ask("POST", PATH, {"model": "m", "input": "Hello!"} | fields)
    if answer.headers["content-type"].startswith("text/event-stream"):
        for one in events_of(answer):
            check_response_event(one)
    else:
        check_response(answer.json)
    return answer


def events_of(answer: Answer) -> list[Any]:
    return [
        msgspec.json.decode(frame.data)
        for frame in SseFramer().feed(answer.body)
        if frame.event != ":"
    ]


def texts(response: Any) -> list[str]:
    return [
        part["text"] for item in response["output"] for part in item.get("content", ())
    ]  # fmt: skip


# Answers.


async def test_whole_and_streamed_are_the_same(gateway: Serve, engine: str) -> None:
    tropilla = await gateway(engine)
    asked = {"temperature": 0, "max_output_tokens": 12, "ignore_eos": True, "instructions": "Hi."}
    whole = (await ask(tropilla, **asked)).json
    streamed = events_of(await ask(tropilla, **asked, stream=True))[-1]["response"]

    assert texts(whole) == texts(streamed) != [""]
    for response in (whole, streamed):
        assert response["usage"]["output_tokens"] == 12
        assert response["status"] == "incomplete"
    for name in ("id", "output", "usage", "timings", "created_at"):
        del whole[name], streamed[name]
    assert whole == streamed


async def test_the_sdk_reads_a_stream(gateway: Serve, engine: str) -> None:
    tropilla = await gateway(engine)
    async with sdk(tropilla) as client:
        whole = await client.responses.create(model="m", input="Hello!", temperature=0)
        async with client.responses.stream(model="m", input="Hello!", temperature=0) as helper:
            kinds = [one.type async for one in helper]
            got = await helper.get_final_response()

    assert kinds[:2] == ["response.created", "response.in_progress"]
    assert kinds[-1] == "response.completed"
    assert got.output_text == whole.output_text
    assert whole.output_text
    assert got.usage is not None
    assert got.usage == whole.usage or got.usage.output_tokens > 0


async def test_the_sdk_reads_a_form(gateway: Serve, engine: str) -> None:
    tropilla = await gateway(engine)
    async with sdk(tropilla) as client:
        got = await client.responses.parse(model="m", input="Who are you?", text_format=Wool)

    assert isinstance(got.output_parsed, Wool)


async def test_tools_in_several_steps(gateway: Serve, engine: str) -> None:
    tropilla = await gateway(engine)
    more: dict[str, Any] = {"model": "m", "tools": [WEATHER], "max_output_tokens": 400}
    async with sdk(tropilla) as client:
        first = await client.responses.create(
            input="How is Lima?", tool_choice="required", temperature=0, **more
        )
        calls = [item for item in first.output if item.type == "function_call"]
        said: Any = [
            {"type": "function_call_output", "call_id": call.call_id, "output": "Fog."}
            for call in calls
        ]
        second = await client.responses.create(
            input=said, previous_response_id=first.id, tool_choice="none", temperature=0, **more
        )
        items = (await client.responses.input_items.list(second.id)).data

    assert [call.name for call in calls] == ["weather"]
    assert msgspec.json.decode(calls[0].arguments)["town"] in {"Lima", "Cusco"}
    assert second.output_text
    assert [item.type for item in items] == ["function_call_output"]


async def test_the_same_steps_without_a_store(gateway: Serve, double: Double) -> None:
    tropilla = await gateway(double)
    call = {"index": 0, "id": "call_1", "function": {"name": "weather", "arguments": '{"a":1}'}}
    double.on(
        CHAT_PATH,
        streams(
            delta(reasoning_content="Hm."), delta(content="Wait."), delta(tool_calls=[call]),
            chunk(reason="tool_calls"), DONE,
        ),
        streams(*told("Fog.")),
    )  # fmt: skip
    include = ["reasoning.encrypted_content"]
    asked = {"store": False, "include": include, "tools": [WEATHER], "instructions": "Be brief."}
    first = (await ask(tropilla, **asked)).json
    assert [item["type"] for item in first["output"]] == ["reasoning", "message", "function_call"]
    thought, *rest = first["output"]
    del thought["content"]  # as agents do, which send the sealed one
    output = {"type": "function_call_output", "call_id": "call_1", "output": "Fog."}
    asked["input"] = [{"role": "user", "content": "Hello!"}, thought, *rest, output]
    await ask(tropilla, **asked)

    assert double.requests[1].json["messages"] == [
        {"role": "system", "content": "Be brief."},
        {"role": "user", "content": "Hello!"},
        {
            "role": "assistant",
            "content": "Wait.",
            "reasoning_content": "Hm.",
            "tool_calls": [{
                "id": "call_1", "type": "function",
                "function": {"name": "weather", "arguments": '{"a":1}'},
            }],
        },
        {"role": "tool", "content": "Fog.", "tool_call_id": "call_1"},
    ]  # fmt: skip
    assert (await tropilla.ask("GET", f"{PATH}/{first['id']}")).status == 404


def delta(**said: Any) -> bytes:
    """One event of a chat stream that says this."""
    return event({"choices": [{"index": 0, "delta": said, "finish_reason": None}]})


async def test_a_custom_tool_over_a_server_that_knows_functions(
    gateway: Serve, double: Double
) -> None:
    tropilla = await gateway(double)
    call = {"index": 0, "id": "c", "function": {"name": "run", "arguments": '{"input":"x = 1"}'}}
    double.on(CHAT_PATH, streams(delta(tool_calls=[call]), chunk(reason="tool_calls"), DONE))
    got = await ask(tropilla, tools=[{"type": "custom", "name": "run"}])

    (item,) = got.json["output"]
    assert (item["type"], item["call_id"], item["name"], item["input"]) == (
        "custom_tool_call", "c", "run", "x = 1",
    )  # fmt: skip


@pytest.mark.parametrize("back", BACKS, ids=lambda back: back.name)
async def test_over_every_kind_of_server(gateway: Serve, engine: str, back: Back) -> None:
    async with back.stage(engine) as stage:
        tropilla = await gateway(models={"m": ModelConfig(upstreams=(stage.config,))})
        asked = {"temperature": 0, "max_output_tokens": 24}
        first = (await ask(tropilla, **asked)).json
        streamed = events_of(await ask(tropilla, **asked, stream=True))[-1]["response"]
        more = await ask(tropilla, **asked, previous_response_id=first["id"])
        counted = await tropilla.ask("POST", f"{PATH}/input_tokens", {"model": "m", "input": "x"})

    assert texts(first) == texts(streamed)
    if stage.text is not None:
        assert texts(first) == texts(more.json) == [stage.text]
    assert first["usage"]["output_tokens"] > 0
    assert counted.json["input_tokens"] > 0


# Failures.


async def test_errors_before_the_first_byte_have_a_status(gateway: Serve, double: Double) -> None:
    tropilla = await gateway(double)
    async with sdk(tropilla) as client:
        with pytest.raises(openai.NotFoundError) as unknown:
            await client.responses.create(model="other", input="Hello!", stream=True)
        with pytest.raises(openai.BadRequestError) as bad:
            await client.responses.create(model="m", input="Hello!", temperature=9)

    assert (unknown.value.code, unknown.value.param) == ("model_not_found", "model")
    assert (bad.value.param, bad.value.type) == ("temperature", "invalid_request_error")
    for body in (b"", b"[]", b"{", b'{"model":"m"}'):
        answer = await tropilla.ask("POST", PATH, body)
        assert answer.status == 400
        assert answer.error["type"] == "invalid_request_error"


async def test_what_an_upstream_refuses_is_said_in_this_apis_words(
    gateway: Serve, double: Double
) -> None:
    tropilla = await gateway(double)
    schema = {"type": "object", "properties": {"a": {"type": "array", "uniqueItems": True}}}
    form = {"type": "json_schema", "name": "n", "schema": schema, "strict": True}
    answer = await ask(tropilla, text={"format": form})

    assert answer.status == 400
    assert answer.error["param"].startswith("text.format.schema.properties.a")
    assert answer.error["param"] in answer.error["message"]


async def test_a_stream_that_breaks_off_fails_and_is_not_kept(
    gateway: Serve, double: Double
) -> None:
    tropilla = await gateway(double)
    double.on(CHAT_PATH, breaks(chunk("Hi")))
    told_events = events_of(await ask(tropilla, stream=True))

    assert [one["type"] for one in told_events[-2:]] == ["error", "response.failed"]
    name = told_events[-1]["response"]["id"]
    assert (await tropilla.ask("GET", f"{PATH}/{name}")).status == 404


# What is kept.


@pytest.mark.parametrize("stream", [False, True])
async def test_a_conversation_goes_on(gateway: Serve, double: Double, *, stream: bool) -> None:
    tropilla = await gateway(double)
    double.on(CHAT_PATH, streams(*told("One")), streams(*told("Two")), streams(*told("Three")))

    async def say(**fields: Any) -> Any:
        answer = await ask(tropilla, stream=stream, **fields)
        return events_of(answer)[-1]["response"] if stream else answer.json

    first = await say(input="1", instructions="Be brief.")
    second = await say(input="2", previous_response_id=first["id"])
    reference = {"type": "item_reference", "id": first["output"][0]["id"]}
    own = (await tropilla.ask("GET", f"{PATH}/{second['id']}/input_items")).json["data"][0]
    items = [reference, {"id": own["id"]}, {"role": "user", "content": "3"}]
    third = await say(input=items, previous_response_id=second["id"], instructions="Be kind.")

    said = [[m["content"] for m in one.json["messages"]] for one in double.requests]
    assert said == [
        ["Be brief.", "1"],
        ["1", "One", "2"],
        ["Be kind.", "1", "One", "2", parts("Two", "One"), parts("2", "3")],
    ]
    assert texts(third) == ["Three"]
    assert third["previous_response_id"] == second["id"]
    assert (await tropilla.ask("GET", f"{PATH}/{first['id']}")).json == first


def parts(*texts: str) -> Any:
    return [{"type": "text", "text": text} for text in texts]


async def test_what_is_kept_is_shown_listed_and_deleted(gateway: Serve, engine: str) -> None:
    tropilla = await gateway(engine)
    said: Any = [
        {"role": "user", "content": "Hello!"},
        {"role": "assistant", "content": "Yes?"},
        {"role": "user", "content": [{"type": "input_text", "text": "Well."}], "id": "msg_own"},
    ]
    async with sdk(tropilla) as client:
        made = await client.responses.create(model="m", input=said, max_output_tokens=4)
        assert await client.responses.retrieve(made.id) == made
        pages = client.responses.input_items.list(made.id, limit=2, order="asc")
        items = [item async for item in pages]
        newest = (await client.responses.input_items.list(made.id, limit=1)).data
        rest = (await client.responses.input_items.list(made.id, after="msg_own")).data
        await client.responses.delete(made.id)
        with pytest.raises(openai.NotFoundError) as gone:
            await client.responses.retrieve(made.id)
        with pytest.raises(openai.BadRequestError) as lost:
            await client.responses.create(model="m", input="x", previous_response_id=made.id)

    assert [(item.type, item.role) for item in items] == [  # type: ignore[union-attr]
        ("message", "user"), ("message", "assistant"), ("message", "user"),
    ]  # fmt: skip
    assert len({item.id for item in items}) == 3
    assert [item.id for item in newest] == ["msg_own"]
    assert [item.id for item in rest] == [item.id for item in items[1::-1]]
    assert made.id in gone.value.message
    assert gone.value.type == "invalid_request_error"
    assert (lost.value.code, lost.value.param) == (
        "previous_response_not_found", "previous_response_id",
    )  # fmt: skip


@pytest.mark.parametrize(
    ("method", "rest", "status", "param"),
    [
        ("GET", "/resp_none", 404, "response_id"),
        ("DELETE", "/resp_none", 404, "response_id"),
        ("GET", "/resp_none/input_items", 404, "response_id"),
        ("POST", "/resp_none/cancel", 404, "response_id"),
        ("GET", "/ID?stream=true", 400, "stream"),
        ("POST", "/ID/cancel", 400, "response_id"),
        ("GET", "/ID/input_items?limit=0", 400, "limit"),
        ("GET", "/ID/input_items?limit=101", 400, "limit"),
        ("GET", "/ID/input_items?limit=x", 400, "limit"),
        ("GET", "/ID/input_items?order=up", 400, "order"),
        ("GET", "/ID/input_items?after=msg_none", 400, "after"),
        ("PUT", "/ID", 405, None),
        ("GET", "/ID/other", 404, None),
    ],
)
async def test_what_cannot_be_had_of_it(
    gateway: Serve, double: Double, method: str, rest: str, status: int, param: str | None
) -> None:
    tropilla = await gateway(double)
    double.on(CHAT_PATH, streams(*told("Hi")))
    made = (await ask(tropilla)).json
    for base in ("/v1/responses", "/responses"):
        answer = await tropilla.ask(method, base + rest.replace("ID", made["id"]))
        assert answer.status == status
        assert answer.error["param"] == param
        if "none" in rest and param == "response_id":
            assert "resp_none" in answer.error["message"]


async def test_a_response_is_its_keys_alone(gateway: Serve, double: Double) -> None:
    tropilla = await gateway(double, api_keys=("one", "two"))
    double.on(CHAT_PATH, streams(*told("Hi")))
    async with sdk(tropilla, "one") as mine, sdk(tropilla, "two") as other:
        made = await mine.responses.create(model="m", input="Hello!")
        for call in (
            other.responses.retrieve(made.id),
            other.responses.delete(made.id),
            other.responses.input_items.list(made.id),
        ):
            with pytest.raises(openai.NotFoundError):
                await call
        with pytest.raises(openai.BadRequestError):
            await other.responses.create(model="m", input="x", previous_response_id=made.id)
        item: Any = {"type": "item_reference", "id": made.output[0].id}
        with pytest.raises(openai.BadRequestError) as hidden:
            await other.responses.create(model="m", input=[item])
        assert (await mine.responses.retrieve(made.id)).id == made.id

    assert hidden.value.param == "input.0.id"
    assert (await tropilla.ask("GET", f"{PATH}/{made.id}")).status == 401


async def test_an_answer_goes_on_with_nothing_new(gateway: Serve, double: Double) -> None:
    tropilla = await gateway(double)
    double.on(CHAT_PATH, streams(*told("One")))
    first = (await ask(tropilla, input=[{"role": "user", "content": "1", "id": 5}])).json
    second = await ask(tropilla, input=None, previous_response_id=first["id"])

    assert [m["content"] for m in double.requests[1].json["messages"]] == ["1", "One"]
    listed = await tropilla.ask("GET", f"{PATH}/{second.json['id']}/input_items")
    assert listed.json == {
        "object": "list", "data": [], "first_id": None, "last_id": None, "has_more": False,
    }  # fmt: skip
    (item,) = (await tropilla.ask("GET", f"{PATH}/{first['id']}/input_items")).json["data"]
    assert item["id"].startswith("msg_")


async def test_a_response_that_its_client_left_is_not_kept(gateway: Serve, double: Double) -> None:
    tropilla = await gateway(double)
    client = await tropilla.connect()
    await client.post(PATH, {"model": "m", "input": "Hello!", "stream": True})
    asked = await double.arrives()
    await asked.head()
    await asked.send(chunk("Hi"))
    seen = await client.until(b"output_text.delta")
    client.leave()
    await asked.left()

    name = seen.partition(b'"id":"')[2].partition(b'"')[0].decode()
    assert name.startswith("resp_")
    assert (await tropilla.ask("GET", f"{PATH}/{name}")).status == 404


class Listener:
    """A client that looks for its response as soon as it hears of its end."""

    started = ended = False

    def __init__(self, kept: Responses) -> None:
        self._kept = kept
        self.found: list[bytes] = []

    async def start(
        self, status: int, content_type: str, headers: Mapping[str, str], first: bytes = b""
    ) -> None:
        raise NotImplementedError

    async def end(self) -> None:
        raise NotImplementedError

    def push(self, data: bytes) -> bool:
        raise NotImplementedError

    async def sent(self) -> None:
        raise NotImplementedError

    async def write(self, data: bytes) -> None:
        assert b"response.completed" in data
        await self._look()

    async def whole(self, status: int, body: bytes, headers: Mapping[str, str]) -> None:
        if len(self.found) or status != 200 or headers:
            self.found.append(body)
            return
        await self._look()

    async def _look(self) -> None:
        self.found.append(b"")
        await self._kept.answer("get", "resp_u", "", "", self)


@pytest.mark.parametrize("stream", [False, True])
async def test_it_is_kept_before_its_end_is_told(*, stream: bool) -> None:
    kept = Responses(ResponsesConfig(), None, Later())
    client = Listener(kept)
    body = {"model": "m", "input": "Hello!", "stream": stream}
    turn = await kept.turn(body, "/responses", "", client, "u")
    end: list[Event] = [Started(), ChoiceEnded(reason="stop"), Finished()]
    if stream:
        feed = turn.front.stream_renderer(turn.request, STAMP).feed
        await turn.reply.write(b"".join([feed(one) for one in end]))
    else:
        told_whole = turn.front.render_answer(fold(end), turn.request, STAMP)
        await turn.reply.whole(200, told_whole, {})
    await kept.close()

    assert msgspec.json.decode(client.found[1])["status"] == "completed"


# Counting.


async def test_tokens_are_those_that_an_answer_takes(gateway: Serve, engine: str) -> None:
    tropilla = await gateway(engine)
    said: Any = {"instructions": "Be brief.", "input": "How is Lima?", "tools": [WEATHER]}
    async with sdk(tropilla) as client:
        made = await client.responses.create(model="m", max_output_tokens=4, **said)
        counted = await client.responses.input_tokens.count(model="m", **said)
        more: Any = {"input": "And?", "previous_response_id": made.id}
        later = await client.responses.create(model="m", max_output_tokens=4, **more)
        counted_later = await client.responses.input_tokens.count(model="m", **more)
    chat = {"model": "m", "messages": [{"role": "user", "content": "Hello!"}]}
    answer = await tropilla.ask("POST", CHAT_PATH, chat | {"max_tokens": 1})
    counted_chat = await tropilla.ask("POST", COUNT_PATH, chat)

    assert made.usage is not None
    assert later.usage is not None
    assert counted.object == "response.input_tokens"
    assert counted.input_tokens == made.usage.input_tokens
    assert counted_later.input_tokens == later.usage.input_tokens > made.usage.output_tokens
    assert counted_chat.json == {
        "object": "response.input_tokens",
        "input_tokens": answer.json["usage"]["prompt_tokens"],
    }


async def test_tokens_that_nobody_can_count_are_estimated(gateway: Serve, doubles: Start) -> None:
    double = await doubles()
    double.on(COUNT_PATH, answers(404, b"{}"))
    tropilla = await gateway(double)
    body = {"model": "m", "input": "Hello!"}
    answer = await tropilla.ask("POST", f"{PATH}/input_tokens", body)

    assert answer.status == 200
    assert answer.json == {
        "object": "response.input_tokens", "input_tokens": 6, "estimated": True,
    }  # fmt: skip


@pytest.mark.parametrize("template", [None, Classic()])
async def test_an_old_server_counts_what_is_written_here(
    gateway: Serve, template: Classic | None
) -> None:
    with llama(3000) as old:
        tropilla = await gateway(old.url, template=template)
        answer = await tropilla.ask("POST", f"{PATH}/input_tokens", {"input": "Hello!"})
        made = await tropilla.ask("POST", PATH, {"input": "Hello!"})

    # Only the server knows what it makes of messages; a prompt of ours it can count.
    assert ("estimated" in answer.json) == (template is None)
    if template is not None:
        assert answer.json["input_tokens"] == made.json["usage"]["input_tokens"]


async def test_what_is_wrong_is_not_counted(gateway: Serve, double: Double) -> None:
    tropilla = await gateway(double)
    for path, body, param in (
        (f"{PATH}/input_tokens", {"model": "m", "input": 5}, "input"),
        (COUNT_PATH, {"model": "m", "messages": 5}, "messages"),
        (f"{PATH}/input_tokens", {"model": "other", "input": "x"}, "model"),
    ):
        answer = await tropilla.ask("POST", path, body)
        assert answer.status in {400, 404}
        assert answer.error["param"] == param
