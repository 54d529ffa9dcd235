"""Tools: forced, chosen, streamed, and several steps of them."""

from __future__ import annotations

from typing import Literal

import openai
from openai import OpenAI
from openai.types.chat import ChatCompletionFunctionToolParam, ChatCompletionMessageParam
from pydantic import BaseModel

from clients.openai_python.harness import MODEL, check

LONGEST = 400
"""Tokens: the tiny model may prattle, which takes its time."""
ASK: list[ChatCompletionMessageParam] = [{"role": "user", "content": "How is Lima?"}]
WEATHER: ChatCompletionFunctionToolParam = {
    "type": "function",
    "function": {
        "name": "weather",
        "description": "The weather in a town.",
        "parameters": {
            "type": "object",
            "properties": {"town": {"type": "string", "enum": ["Lima", "Cusco"]}},
            "required": ["town"],
            "additionalProperties": False,
        },
        "strict": True,
    },
}
NOW: ChatCompletionFunctionToolParam = {
    "type": "function",
    "function": {"name": "now", "parameters": {"type": "object", "properties": {}}},
}


class Weather(BaseModel):
    """The weather in a town."""

    town: Literal["Lima", "Cusco"]


@check
def required(client: OpenAI) -> None:
    got = client.chat.completions.create(
        model=MODEL,
        messages=ASK,
        tools=[WEATHER],
        tool_choice="required",
        temperature=0,
        max_tokens=LONGEST,
    )
    (choice,) = got.choices
    assert choice.finish_reason == "tool_calls"
    assert not choice.message.content
    assert choice.message.tool_calls
    for call in choice.message.tool_calls:
        assert call.id
        assert call.type == "function"
        assert call.function.name == "weather"
        Weather.model_validate_json(call.function.arguments)


@check
def one_by_its_name(client: OpenAI) -> None:
    got = client.chat.completions.create(
        model=MODEL,
        messages=ASK,
        tools=[NOW, WEATHER],
        tool_choice={"type": "function", "function": {"name": "weather"}},
        temperature=0,
        max_tokens=LONGEST,
    )
    calls = got.choices[0].message.tool_calls
    assert calls
    for call in calls:
        assert call.type == "function"
        assert call.function.name == "weather"
    # OpenAI ends a call that was named with "stop"; llama.cpp does not, and either is told.
    assert got.choices[0].finish_reason in {"stop", "tool_calls"}


@check
def one_at_a_time(client: OpenAI) -> None:
    got = client.chat.completions.create(
        model=MODEL,
        messages=ASK,
        tools=[WEATHER, NOW],
        tool_choice="required",
        parallel_tool_calls=False,
        temperature=0,
        max_tokens=LONGEST,
    )
    assert len(got.choices[0].message.tool_calls or ()) == 1


@check
def allowed_ones(client: OpenAI) -> None:
    got = client.chat.completions.create(
        model=MODEL,
        messages=ASK,
        tools=[WEATHER, NOW],
        tool_choice={
            "type": "allowed_tools",
            "allowed_tools": {
                "mode": "required",
                "tools": [{"type": "function", "function": {"name": "now"}}],
            },
        },
        temperature=0,
        max_tokens=LONGEST,
    )
    calls = got.choices[0].message.tool_calls
    assert calls
    assert all(call.type == "function" and call.function.name == "now" for call in calls)


@check
def none(client: OpenAI) -> None:
    got = client.chat.completions.create(
        model=MODEL,
        messages=ASK,
        tools=[WEATHER],
        tool_choice="none",
        temperature=0,
        max_tokens=LONGEST,
    )
    assert not got.choices[0].message.tool_calls
    assert got.choices[0].message.content


@check
def streamed(client: OpenAI) -> None:
    chunks = list(
        client.chat.completions.create(
            model=MODEL,
            messages=ASK,
            tools=[WEATHER],
            tool_choice="required",
            temperature=0,
            max_tokens=LONGEST,
            parallel_tool_calls=False,
            stream=True,
        )
    )
    pieces = [
        piece
        for chunk in chunks
        for choice in chunk.choices
        for piece in choice.delta.tool_calls or ()
    ]
    first, *rest = pieces
    assert first.index == 0
    assert first.id
    assert first.type == "function"
    assert first.function
    assert first.function.name == "weather"
    for piece in rest:
        assert piece.index == 0
        assert piece.id is None
        assert piece.function
        assert piece.function.name is None
    arguments = "".join((piece.function and piece.function.arguments) or "" for piece in pieces)
    Weather.model_validate_json(arguments)
    assert chunks[-1].choices[0].finish_reason == "tool_calls"


@check
def streamed_by_the_helper(client: OpenAI) -> None:
    tool = openai.pydantic_function_tool(Weather, name="weather")
    with client.chat.completions.stream(
        model=MODEL,
        messages=ASK,
        tools=[tool],
        tool_choice="required",
        temperature=0,
        max_tokens=LONGEST,
    ) as helper:
        events = list(helper)
        gathered = helper.get_final_completion()
    done = [event for event in events if event.type == "tool_calls.function.arguments.done"]
    assert any(event.type == "tool_calls.function.arguments.delta" for event in events)
    calls = gathered.choices[0].message.tool_calls
    assert calls
    assert len(calls) == len(done)
    for call, event in zip(calls, done, strict=True):
        assert call.function.name == event.name == "weather"
        assert isinstance(call.function.parsed_arguments, Weather)
        assert isinstance(event.parsed_arguments, Weather)


@check
def parsed(client: OpenAI) -> None:
    got = client.chat.completions.parse(
        model=MODEL,
        messages=ASK,
        tools=[openai.pydantic_function_tool(Weather, name="weather")],
        tool_choice="required",
        temperature=0,
        max_tokens=LONGEST,
    )
    calls = got.choices[0].message.tool_calls
    assert calls
    assert all(isinstance(call.function.parsed_arguments, Weather) for call in calls)


@check
def several_steps(client: OpenAI) -> None:
    """Call, answer, call again, answer again, and then text."""
    messages: list[ChatCompletionMessageParam] = []
    for ask, answer in (("How is Lima?", "Fog, 17 degrees"), ("And Cusco?", "Rain, 9 degrees")):
        messages.append({"role": "user", "content": ask})
        got = client.chat.completions.create(
            model=MODEL,
            messages=messages,
            tools=[WEATHER],
            tool_choice="required",
            temperature=0,
            max_tokens=LONGEST,
            parallel_tool_calls=False,
        )
        message = got.choices[0].message
        assert message.tool_calls
        # As programs do it: the SDK's own object goes back as it came.
        messages.append(message)  # type: ignore[arg-type]
        messages.extend(
            {"role": "tool", "tool_call_id": call.id, "content": answer}
            for call in message.tool_calls
        )
    got = client.chat.completions.create(
        model=MODEL,
        messages=messages,
        tools=[WEATHER],
        tool_choice="none",
        temperature=0,
        max_tokens=LONGEST,
    )
    assert got.choices[0].message.content
    assert got.choices[0].finish_reason in {"stop", "length"}


@check
def custom(client: OpenAI) -> None:
    got = client.chat.completions.create(
        model=MODEL,
        messages=ASK,
        tools=[{"type": "custom", "custom": {"name": "note", "description": "Takes a note."}}],
        tool_choice="required",
        temperature=0,
        max_tokens=LONGEST,
    )
    calls = got.choices[0].message.tool_calls
    assert calls
    for call in calls:
        assert call.type == "custom"
        assert call.custom.name == "note"
        assert isinstance(call.custom.input, str)
