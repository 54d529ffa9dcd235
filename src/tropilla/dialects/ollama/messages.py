"""Messages: a text, pictures beside it, and calls whose arguments are objects.

Ollama's clients answer a call by the name of its tool, or by nothing at all: the call that is
meant is the first of that name which has no answer yet.
"""

from __future__ import annotations

from collections import OrderedDict
from typing import Any

import msgspec

from tropilla.dialects import _formats
from tropilla.dialects._fields import Fields, check_length, invalid, missing
from tropilla.dialects._media import check_base64, check_data_url
from tropilla.dialects._openai import MOST_MESSAGES, MOST_TOOLS, encode
from tropilla.ir import (
    Audio,
    Image,
    Json,
    JsonObject,
    Malformed,
    Message,
    Opaque,
    Part,
    Reasoning,
    Refusal,
    Text,
    Tool,
    ToolCall,
)

MOST_PICTURES = 4096
"""Of one request: more would keep everybody else waiting while they are read."""
_ROLES = ("system", "developer", "user", "assistant", "tool")
_BASE64 = ";base64,"
_PICTURES = {
    "/9j/": "image/jpeg", "R0lGOD": "image/gif", "UklGR": "image/webp", "Qk": "image/bmp",
}  # fmt: skip
"""How the base64 of a picture begins that is no PNG."""


def parse_messages(values: list[Json]) -> tuple[Message, ...]:
    """The messages of a client's request."""
    check_length(values, "messages", MOST_MESSAGES)
    told: list[Message] = []
    calls, pictures = _Calls(), 0
    for number, value in enumerate(values):
        message = _parse_message(value, f"messages.{number}", number)
        pictures += sum(isinstance(part, Image) for part in message.parts)
        if pictures > MOST_PICTURES:
            why = f"expected at most {MOST_PICTURES} pictures in all messages."
            raise invalid(f"messages.{number}.images", why, "array_above_max_length")
        if message.role == "tool" and message.tool_call_id is None:
            message = msgspec.structs.replace(message, tool_call_id=calls.meant(message.name))
        if message.tool_call_id is not None:
            calls.answered(message.tool_call_id)
        for part in message.parts:
            if isinstance(part, ToolCall):
                calls.made(part)
        told.append(message)
    return tuple(told)


class _Calls:
    """The calls that have no answer yet, in their order; there may be very many."""

    def __init__(self) -> None:
        self._names: OrderedDict[str, str] = OrderedDict()
        """Of each by its id."""
        self._named: dict[str, OrderedDict[str, None]] = {}
        """Their ids by their names."""

    def made(self, call: ToolCall) -> None:
        self.answered(call.id)
        self._names[call.id] = call.name
        self._named.setdefault(call.name, OrderedDict())[call.id] = None

    def meant(self, name: str | None) -> str:
        """The id of the call that an answer answers."""
        named = self._named.get(name) if name is not None else None
        return next(iter(named or self._names), "call")

    def answered(self, id_: str) -> None:
        name = self._names.pop(id_, None)
        if name is not None:
            del self._named[name][id_]


def _parse_message(value: Json, path: str, number: int) -> Message:
    fields = Fields(value, path)
    role: Any = fields.choice("role", _ROLES)
    if role is None:
        raise missing(fields.at("role"))
    parts: list[Part] = []
    if thought := fields.string("thinking"):
        parts.append(Reasoning(text=thought))
    if (text := fields.string("content")) or role in {"system", "developer", "tool"}:
        parts.append(Text(text=text or ""))
    parts += read_images(fields.array("images"), fields.at("images"))
    for place, call in enumerate(fields.array("tool_calls") or ()):
        parts.append(_parse_call(call, f"{path}.tool_calls.{place}", f"call_{number}_{place}"))
    if not parts and role == "user":
        parts.append(Text(text=""))
    return Message(
        role=role,
        parts=tuple(parts),
        name=fields.string("tool_name"),
        tool_call_id=fields.string("tool_call_id"),
        extras=fields.rest,
    )


def read_images(values: list[Json] | None, path: str) -> list[Image]:
    """Pictures in base64; some clients send them as `data:` URLs."""
    check_length(values or [], path, MOST_PICTURES)
    told = []
    for place, value in enumerate(values or ()):
        at = f"{path}.{place}"
        if type(value) is not str:
            raise invalid(at, "expected base64.")
        if value.startswith("data:"):
            check_data_url(value, at)
            told.append(Image(url=value))
            continue
        check_base64(value, at)
        kinds = (kind for begin, kind in _PICTURES.items() if value.startswith(begin))
        told.append(Image(url=f"data:{next(kinds, 'image/png')}{_BASE64}{value}"))
    return told


def _parse_call(value: Json, path: str, made: str) -> ToolCall:
    fields = Fields(value, path)
    function = Fields(fields.any("function"), fields.at("function"))
    function.integer("index")
    arguments = function.object("arguments")
    fields.any("type")
    return ToolCall(
        id=fields.string("id") or made,
        name=function.required("name"),
        arguments=encode(arguments or {}).decode(),
        extras=fields.rest,
    )


def parse_tools(values: list[Json]) -> tuple[Tool, ...]:
    """The tools of a client's request."""
    check_length(values, "tools", MOST_TOOLS)
    told: list[Tool] = []
    names: set[str] = set()
    for place, value in enumerate(values):
        fields = Fields(value, f"tools.{place}")
        fields.choice("type", ("function",))
        function = Fields(fields.any("function"), fields.at("function"))
        name = function.required("name")
        if not name or name in names:
            raise invalid(function.at("name"), f"'{name}' is empty, or there already.")
        names.add(name)
        parameters = function.object("parameters")
        if parameters is not None:
            _formats.check(parameters, function.at("parameters"), "invalid_function_parameters")
        told.append(
            Tool(
                name=name,
                description=function.string("description"),
                parameters=parameters,
                extras=function.rest,
                beside=fields.rest,
            )
        )
    return tuple(told)


# To an upstream.


def render_message(message: Message) -> JsonObject:
    """A message for a server.

    Raises:
        Malformed: of kind `unsupported`, for what it cannot be told.
    """
    role = {"developer": "system", "function": "tool"}.get(message.role, message.role)
    body: JsonObject = {**message.extras, "role": role, "content": ""}
    images: list[str] = []
    calls: list[JsonObject] = []
    for part in message.parts:
        match part:
            case Text() | Refusal():
                body["content"] += part.text
            case Reasoning():
                body["thinking"] = body.get("thinking", "") + part.text
            case Image():
                images.append(part.url.partition(_BASE64)[2])
            case ToolCall():
                calls.append(_render_call(part, len(calls)))
            case Audio() | Opaque():
                raise Malformed(
                    "A server of Ollama's reads texts and pictures only.",
                    param="messages",
                    kind="unsupported",
                )
    more = {
        "images": images,
        "tool_calls": calls,
        "tool_name": message.name,
        "tool_call_id": message.tool_call_id,
    }
    return body | {name: value for name, value in more.items() if value}


def _render_call(call: ToolCall, index: int) -> JsonObject:
    arguments = None if call.custom else object_of(call.arguments)
    if arguments is None:
        raise Malformed(
            "A server of Ollama's reads calls whose arguments are JSON objects only.",
            param="messages",
            kind="unsupported",
        )
    return call.extras | {
        "id": call.id,
        "function": {"index": index, "name": call.name, "arguments": arguments},
    }


def object_of(arguments: str) -> JsonObject | None:
    """The arguments of a call; `None` where they are no object, and none where nothing is said."""
    try:
        told = msgspec.json.decode(arguments) if arguments.strip() else {}
    except (msgspec.DecodeError, RecursionError):
        return None
    return told if type(told) is dict else None


def render_tools(tools: tuple[Tool | Opaque, ...]) -> list[JsonObject]:
    """The tools for a server; only functions can be said."""
    told: list[JsonObject] = []
    for tool in tools:
        if isinstance(tool, Opaque) or tool.custom:
            raise Malformed(
                "A server of Ollama's knows tools that are functions only.",
                param="tools",
                kind="unsupported",
            )
        members = {
            "name": tool.name,
            "description": tool.description,
            "parameters": tool.parameters,
        }
        known = {name: value for name, value in members.items() if value is not None}
        told.append({**tool.beside, "type": "function", "function": tool.extras | known})
    return told
