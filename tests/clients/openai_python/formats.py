"""Structured output: JSON, a schema, and what the SDK makes of it."""

from __future__ import annotations

import json  # noqa: TID251 - the clients' environments have no msgspec
from typing import Annotated, Literal

from openai import OpenAI
from openai.types.chat import ChatCompletionMessageParam
from pydantic import BaseModel, Field

from clients.openai_python.harness import MODEL, check

ASK: list[ChatCompletionMessageParam] = [{"role": "user", "content": "Who are you?"}]


class Wool(BaseModel):
    """Of an animal."""

    colour: Literal["brown", "white"]
    soft: bool


class Animal(BaseModel):
    """As a program wants to hear of it."""

    name: Literal["llama", "alpaca"]
    legs: Literal[2, 4]
    wool: Wool
    friends: Annotated[list[Literal["Ana", "José"]], Field(min_length=1, max_length=2)]


@check
def json_object(client: OpenAI) -> None:
    got = client.chat.completions.create(
        model=MODEL, messages=ASK, response_format={"type": "json_object"}, temperature=0
    )
    assert isinstance(json.loads(got.choices[0].message.content or ""), dict)


@check
def json_schema(client: OpenAI) -> None:
    got = client.chat.completions.create(
        model=MODEL,
        messages=ASK,
        response_format={
            "type": "json_schema",
            "json_schema": {
                "name": "answer",
                "strict": True,
                "schema": {
                    "type": "object",
                    "properties": {"yes": {"type": "boolean"}},
                    "required": ["yes"],
                    "additionalProperties": False,
                },
            },
        },
        temperature=0,
    )
    told = json.loads(got.choices[0].message.content or "")
    assert told.keys() == {"yes"}
    assert isinstance(told["yes"], bool)


@check
def parsed(client: OpenAI) -> None:
    got = client.chat.completions.parse(
        model=MODEL, messages=ASK, response_format=Animal, temperature=0, max_tokens=200
    )
    message = got.choices[0].message
    assert isinstance(message.parsed, Animal)
    assert message.refusal is None


@check
def three_parsed(client: OpenAI) -> None:
    got = client.chat.completions.parse(
        model=MODEL, messages=ASK, response_format=Wool, n=3, max_tokens=200
    )
    assert [type(choice.message.parsed) for choice in got.choices] == [Wool] * 3


@check
def streamed_by_the_helper(client: OpenAI) -> None:
    with client.chat.completions.stream(
        model=MODEL, messages=ASK, response_format=Animal, temperature=0, max_tokens=200
    ) as helper:
        events = list(helper)
        gathered = helper.get_final_completion()
    (done,) = [event for event in events if event.type == "content.done"]
    assert isinstance(done.parsed, Animal)
    assert gathered.choices[0].message.parsed == done.parsed
    assert any(event.type == "content.delta" and event.parsed for event in events)
