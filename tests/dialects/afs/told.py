"""What the tests of the AFS dialect say and hear: requests, streams, and their short forms."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import msgspec

from grammar import parsed
from tropilla import dialects, ir
from tropilla.dialects import afs
from tropilla.dialects.afs.leaks import Leak
from tropilla.framing import sse
from tropilla.ir import (
    Chat,
    Event,
    Failed,
    Json,
    JsonObject,
    Message,
    Problem,
    Request,
    Text,
    ToolCall,
    Traits,
)

FIXTURES = Path(__file__).parent
CONVERSATION, GENERATE = "/models/conversation", "/models/generate"
INFILLING = "/models/text_infilling"
HUMAN = {"role": "human", "content": "Hello."}
ASK: JsonObject = {"model": "m", "messages": [HUMAN]}
WEATHER = {
    "name": "get_weather",
    "description": "The weather.",
    "parameters": {"type": "object", "properties": {"city": {"type": "string"}}},
}
NEW_TOOLS = [{"type": "function", "function": WEATHER}]
CALL = ToolCall(id="call_9", name="get_weather", arguments='{"city":"Taipei"}')
PLAIN_CHAT = Chat(messages=(Message(role="user", parts=(Text(text="Hello."),)),))
CALL_JSON = {
    "id": "call_9",
    "type": "function",
    "function": {"name": "get_weather", "arguments": CALL.arguments},
}
OLD_CALL = {"name": "get_weather", "arguments": CALL.arguments}
PING = b"event: ping\ndata: 2023-11-08 12:34:56.123456\n\n"


def asked(body: JsonObject, path: str = CONVERSATION) -> Request:
    return afs.parse_request(body, path)


def chat_of(request: Request) -> Chat:
    assert isinstance(request.input, Chat)
    return request.input


def with_parameters(**parameters: Json) -> JsonObject:
    return ASK | {"parameters": parameters}


def foreign(**fields: Any) -> Request:
    """A request of an OpenAI client."""
    plain: JsonObject = {"dialect": "openai_chat", "input": PLAIN_CHAT, "model": "m"}
    return Request(**plain | fields)


def said(request: Request) -> dialects.Wire:
    return afs.render_request(request, Traits())


def flat(text: str | None, **fields: Json) -> JsonObject:
    """The object of facts 4.5 and 4.6."""
    return {
        "generated_text": text,
        "function_call": None,
        "details": None,
        "total_time_taken": "0.05 sec",
        "prompt_tokens": 0,
        "generated_tokens": 0,
        "total_tokens": 0,
        "finish_reason": None,
    } | fields


def last(text: str = "", reason: str = "eos_token", **fields: Json) -> JsonObject:
    counts = {"prompt_tokens": 17, "generated_tokens": 3, "total_tokens": 20}
    return flat(text, total_time_taken="1.50 sec", finish_reason=reason, **counts) | fields


def stream(*objects: JsonObject | bytes) -> bytes:
    return b"".join(
        one if isinstance(one, bytes) else sse(msgspec.json.encode(one)) for one in objects
    )


def heard(*objects: JsonObject | bytes, request: Request | None = None) -> list[Event]:
    return parsed(afs, request or asked(ASK), [stream(*objects)])


def folded(*objects: JsonObject | bytes, request: Request | None = None) -> ir.Choice:
    return ir.fold(heard(*objects, request=request)).choices[0]


def failure(events: list[Event]) -> Problem:
    assert isinstance(events[-1], Failed)
    return events[-1].problem


def joined(pieces: list[str | Leak]) -> list[str | Leak]:
    told: list[str | Leak] = []
    for piece in pieces:
        before = told[-1] if told else None
        if isinstance(before, str) and isinstance(piece, str):
            told[-1] = before + piece
        else:
            told.append(piece)
    return told


WITH_TOOLS = asked(ASK | {"tools": NEW_TOOLS})
