"""The Responses API: created, streamed, parsed, continued, kept and forgotten."""

from __future__ import annotations

from typing import Any, Literal

import openai
from openai import OpenAI
from openai.types.responses import FunctionToolParam, Response, ResponseFunctionToolCall
from pydantic import BaseModel

from clients.openai_python.harness import MODEL, check, refused

WEATHER: FunctionToolParam = {
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


def calls_of(response: Response) -> list[ResponseFunctionToolCall]:
    return [item for item in response.output if item.type == "function_call"]


@check
def created(client: OpenAI) -> None:
    got = client.responses.create(model=MODEL, instructions="Be brief.", input="Hello!")
    assert got.id.startswith("resp_")
    assert got.object == "response"
    assert got.model == MODEL
    assert got.status == "completed"
    assert got.error is None
    assert got.incomplete_details is None
    assert got.instructions == "Be brief."
    assert got.output_text
    (message,) = [item for item in got.output if item.type == "message"]
    assert message.id.startswith("msg_")
    assert message.role == "assistant"
    assert message.status == "completed"
    assert got.usage
    assert got.usage.input_tokens > 0
    assert got.usage.total_tokens == got.usage.input_tokens + got.usage.output_tokens
    assert got._request_id


@check
def of_items(client: OpenAI) -> None:
    got = client.responses.create(
        model=MODEL,
        input=[
            {"role": "developer", "content": "Be brief."},
            {"role": "user", "content": [{"type": "input_text", "text": "Hello!"}]},
        ],
        temperature=0,
        metadata={"a": "b"},
        truncation="disabled",
    )
    assert got.output_text
    assert got.metadata == {"a": "b"}


@check
def streamed(client: OpenAI) -> None:
    events = list(client.responses.create(model=MODEL, input="Hello!", temperature=0, stream=True))
    kinds = [event.type for event in events]
    assert kinds[:4] == [
        "response.created",
        "response.in_progress",
        "response.output_item.added",
        "response.content_part.added",
    ]
    assert kinds[-4:] == [
        "response.output_text.done",
        "response.content_part.done",
        "response.output_item.done",
        "response.completed",
    ]
    assert set(kinds[4:-4]) == {"response.output_text.delta"}
    assert [event.sequence_number for event in events] == list(range(len(events)))
    deltas = [event for event in events if event.type == "response.output_text.delta"]
    assert len({event.item_id for event in deltas}) == 1
    last = events[-1]
    assert last.type == "response.completed"
    assert "".join(event.delta for event in deltas) == last.response.output_text


@check
def streamed_by_the_helper(client: OpenAI) -> None:
    whole = client.responses.create(model=MODEL, input="Hello!", temperature=0)
    with client.responses.stream(model=MODEL, input="Hello!", temperature=0) as helper:
        kinds = {event.type for event in helper}
        got = helper.get_final_response()
    assert "response.output_text.delta" in kinds
    assert got.output_text == whole.output_text
    assert got.usage
    assert whole.usage
    assert got.usage.output_tokens == whole.usage.output_tokens


@check
def parsed(client: OpenAI) -> None:
    got = client.responses.parse(model=MODEL, input="Who are you?", text_format=Wool, temperature=0)
    assert isinstance(got.output_parsed, Wool)
    with client.responses.stream(
        model=MODEL, input="Who are you?", text_format=Wool, temperature=0
    ) as helper:
        helper.until_done()
        assert helper.get_final_response().output_parsed == got.output_parsed


@check
def incomplete(client: OpenAI) -> None:
    got = client.responses.create(
        model=MODEL,
        input="Hello!",
        temperature=0,
        max_output_tokens=16,
        extra_body={"ignore_eos": True},
    )
    assert got.status == "incomplete"
    assert got.incomplete_details
    assert got.incomplete_details.reason == "max_output_tokens"


@check
def tools_in_several_steps(client: OpenAI) -> None:
    """Kept by the server: each step sends only what is new."""
    first = client.responses.create(
        model=MODEL,
        input="How is Lima?",
        tools=[WEATHER],
        tool_choice="required",
        temperature=0,
        max_output_tokens=400,
    )
    choices: tuple[Literal["required", "none"], ...] = ("required", "none")
    for choice in choices:
        calls = calls_of(first)
        assert calls
        assert all(call.name == "weather" and call.call_id and call.id for call in calls)
        said: Any = [
            {"type": "function_call_output", "call_id": call.call_id, "output": "Fog"}
            for call in calls
        ]
        said.append({"role": "user", "content": "And Cusco?"})
        first = client.responses.create(
            model=MODEL,
            previous_response_id=first.id,
            input=said,
            tools=[WEATHER],
            tool_choice=choice,
            temperature=0,
            max_output_tokens=400,
        )
    assert not calls_of(first)
    assert first.output_text


@check
def tools_in_several_steps_without_a_store(client: OpenAI) -> None:
    """Kept by the program: everything is sent each time, as the SDK's own objects."""
    first = client.responses.create(
        model=MODEL,
        input="How is Lima?",
        tools=[WEATHER],
        tool_choice="required",
        temperature=0,
        max_output_tokens=400,
        store=False,
    )
    calls = calls_of(first)
    assert calls
    said: Any = [
        {"role": "user", "content": "How is Lima?"},
        *first.output,
        *(
            {"type": "function_call_output", "call_id": call.call_id, "output": "Fog"}
            for call in calls
        ),
    ]
    got = client.responses.create(
        model=MODEL,
        input=said,
        tools=[WEATHER],
        tool_choice="none",
        temperature=0,
        max_output_tokens=400,
        store=False,
    )
    assert got.output_text


@check
def a_tool_that_is_streamed(client: OpenAI) -> None:
    with client.responses.stream(
        model=MODEL,
        input="How is Lima?",
        tools=[WEATHER],
        tool_choice="required",
        temperature=0,
        max_output_tokens=400,
    ) as helper:
        events = list(helper)
        got = helper.get_final_response()
    deltas = [one for one in events if one.type == "response.function_call_arguments.delta"]
    done = [one for one in events if one.type == "response.function_call_arguments.done"]
    assert deltas
    assert len(done) == len(calls_of(got)) > 0
    assert [one.arguments for one in done] == [call.arguments for call in calls_of(got)]


@check
def a_conversation_that_is_kept(client: OpenAI) -> None:
    first = client.responses.create(model=MODEL, input="Hello!", temperature=0)
    second = client.responses.create(
        model=MODEL, input="And then?", previous_response_id=first.id, temperature=0
    )
    assert second.previous_response_id == first.id
    assert first.usage
    assert second.usage
    assert second.usage.input_tokens > first.usage.total_tokens


@check
def retrieved_listed_and_deleted(client: OpenAI) -> None:
    made = client.responses.create(model=MODEL, input="Hello!", temperature=0)
    assert client.responses.retrieve(made.id).output_text == made.output_text
    items = list(client.responses.input_items.list(made.id))
    (item,) = items
    assert item.type == "message"
    assert item.role == "user"
    client.responses.delete(made.id)
    try:
        client.responses.retrieve(made.id)
    except openai.NotFoundError as error:
        assert error.request_id  # noqa: PT017
    else:
        raise AssertionError("it is still there")


@check
def not_stored(client: OpenAI) -> None:
    made = client.responses.create(model=MODEL, input="Hello!", store=False)
    try:
        client.responses.retrieve(made.id)
    except openai.NotFoundError as error:
        assert error.type == "invalid_request_error"  # noqa: PT017
    else:
        raise AssertionError("it was stored")


@check
def input_tokens(client: OpenAI) -> None:
    counted = client.responses.input_tokens.count(model=MODEL, input="Hello!")
    made = client.responses.create(model=MODEL, input="Hello!", store=False)
    assert made.usage
    assert counted.input_tokens == made.usage.input_tokens


@check
def unknown_tools_are_passed_over(client: OpenAI) -> None:
    got = client.responses.create(
        model=MODEL, input="Hello!", tools=[{"type": "web_search"}, WEATHER], max_output_tokens=400
    )
    assert got.status in {"completed", "incomplete"}


@check
def what_does_not_exist(client: OpenAI) -> None:
    with refused(openai.NotFoundError, code="model_not_found", param="model"):
        client.responses.create(model="no/such", input="Hello!")
    for ask in (
        lambda: client.responses.retrieve("resp_none"),
        lambda: client.responses.delete("resp_none"),
        lambda: client.responses.input_items.list("resp_none"),
    ):
        try:
            ask()
        except openai.NotFoundError as error:
            assert error.type == "invalid_request_error"  # noqa: PT017
            assert "resp_none" in error.message  # noqa: PT017
        else:
            raise AssertionError("found")
    with refused(
        openai.BadRequestError,
        code="previous_response_not_found",
        param="previous_response_id",
        says="resp_none",
    ):
        client.responses.create(model=MODEL, input="Hello!", previous_response_id="resp_none")


@check
def bad_parameters(client: OpenAI) -> None:
    for name, value in {
        "temperature": 9,
        "top_p": "much",
        "max_output_tokens": -5,
        "input": 5,
        "tools": "all",
    }.items():
        try:
            client.responses.create(model=MODEL, input="Hello!", extra_body={name: value})
        except openai.BadRequestError as error:
            told = (error.param or "").split(".")[0].split("[")[0]
            assert told == name, (name, error.param)  # noqa: PT017
        else:
            raise AssertionError(f"no BadRequestError for {name}")
