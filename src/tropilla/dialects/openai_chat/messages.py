"""Messages: what a client says that was said before, and how an upstream hears it.

The form before tools (`function_call`, the role `function`) is read as calls and their answers.
"""

from __future__ import annotations

from typing import Any

import msgspec

from tropilla.dialects._fields import Fields, invalid, missing, wrong_type
from tropilla.dialects._media import DETAILS, check_base64, check_data_url
from tropilla.dialects.openai_chat.names import NAME
from tropilla.dialects.openai_chat.tools import parse_call, render_call
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
    ToolCall,
    Traits,
)

_ROLES = ("system", "developer", "user", "assistant", "tool", "function")
_OPAQUE_PARTS = ("file", "input_video")


def parse_messages(values: list[Json]) -> tuple[Message, ...]:
    """The messages of a client's request."""
    messages: list[Message] = []
    called: dict[str, str] = {}
    for number, value in enumerate(values):
        message = _parse_message(value, f"messages.{number}", number, called)
        if message.role == "function" and (call := called.get(message.name or "")):
            message = msgspec.structs.replace(message, role="tool", tool_call_id=call)
        messages.append(message)
    return tuple(messages)


def _parse_message(value: Json, path: str, number: int, called: dict[str, str]) -> Message:
    match value:
        case {"role": "system" | "user" | "assistant" as said, "content": str(text)} if (
            len(value) == 2
        ):
            return Message(role=said, parts=(Text(text=text),))  # as most are
    fields = Fields(value, path)
    role: Any = fields.choice("role", _ROLES)
    if role is None:
        raise missing(fields.at("role"))
    content = fields.any("content")
    parts: list[Part] = []
    reasoning, other = fields.string("reasoning_content"), fields.string("reasoning")
    if reasoning or other:
        parts.append(Reasoning(text=reasoning or other or ""))
    match content:
        case str():
            parts.append(Text(text=content))
        case list():
            if not content and role != "assistant":
                raise invalid(fields.at("content"), "expected at least one part.", "empty_array")
            parts += [_parse_part(p, f"{path}.content.{i}") for i, p in enumerate(content)]
        case None:
            if role not in {"assistant", "function"}:
                raise missing(fields.at("content"))
        case _:
            raise wrong_type(fields.at("content"), "a string or an array of parts", content)
    refusal = fields.string("refusal")
    if refusal:
        parts.append(Refusal(text=refusal))
    calls = fields.array("tool_calls") or []
    parts += [parse_call(call, f"{path}.tool_calls.{i}") for i, call in enumerate(calls)]
    old = fields.object("function_call")
    if old is not None:
        function = Fields(old, fields.at("function_call"))
        name, arguments = function.required("name"), function.required("arguments")
        called[name] = f"call_{number}"
        parts.append(ToolCall(id=called[name], name=name, arguments=arguments))
    tool_call_id = fields.string("tool_call_id")
    if role == "tool" and tool_call_id is None:
        raise missing(fields.at("tool_call_id"))
    return Message(
        role=role,
        parts=tuple(parts),
        name=fields.string("name"),
        tool_call_id=tool_call_id,
        extras=fields.rest,
    )


def _parse_part(value: Json, path: str) -> Part:
    fields = Fields(value, path)
    kind = fields.required("type")
    match kind:
        case "text":
            return Text(text=fields.required("text"), extras=fields.rest)
        case "refusal":
            return Refusal(text=fields.required("refusal"))
        case "image_url":
            inner = fields.object("image_url")
            if inner is None:
                raise missing(fields.at("image_url"))
            image = Fields(inner, fields.at("image_url"))
            url = image.required("url")
            check_data_url(url, image.at("url"))
            detail = image.choice("detail", DETAILS)
            return Image(url=url, detail=detail, extras=_nested("image_url", image, fields))
        case "input_audio":
            inner = fields.object("input_audio")
            if inner is None:
                raise missing(fields.at("input_audio"))
            audio = Fields(inner, fields.at("input_audio"))
            data, form = audio.required("data"), audio.required("format")
            check_base64(data, audio.at("data"))
            return Audio(data=data, format=form, extras=_nested("input_audio", audio, fields))
        case "video_url":
            video = Fields(fields.any("video_url"), fields.at("video_url"))
            check_data_url(video.required("url"), video.at("url"))
            return Opaque(dialect=NAME, body=value)
        case _ if kind in _OPAQUE_PARTS:
            return Opaque(dialect=NAME, body=value)
        case _:
            raise invalid(
                fields.at("type"),
                f"'{kind}'. Supported values are: 'text', 'image_url', 'input_audio', 'refusal'.",
            )


def _nested(name: str, inner: Fields, outer: Fields) -> JsonObject:
    """The unknown keys of a part, and under its name those of the object in it."""
    return outer.rest | {name: inner.rest} if inner.rest else outer.rest


# A message to an upstream.


def render_message(message: Message, number: int, traits: Traits) -> JsonObject:
    """A message for an upstream, and its place among all.

    Raises:
        Malformed: of kind `unsupported`, for what this upstream cannot read.
    """
    body: JsonObject = {"role": message.role}
    content: list[JsonObject] = []
    calls: list[JsonObject] = []
    for part in message.parts:
        match part:
            case Text():
                content.append({"type": "text", "text": part.text, **part.extras})
            case Image():
                url: JsonObject = {"url": part.url}
                if part.detail is not None:
                    url["detail"] = part.detail
                content.append(_render_nested("image_url", url, part.extras))
            case Audio():
                audio = {"data": part.data, "format": part.format}
                content.append(_render_nested("input_audio", audio, part.extras))
            case Reasoning():
                body["reasoning_content"] = body.get("reasoning_content", "") + part.text
            case Refusal():
                body["refusal"] = body.get("refusal", "") + part.text
            case ToolCall():
                calls.append(render_call(part))
            case Opaque():
                content.append(_verbatim(part, f"messages.{number}.content.{len(content)}", traits))
    # One plain text is a string: that is what every server and every template can read.
    if len(content) == 1 and content[0].keys() == {"type", "text"}:
        body["content"] = content[0]["text"]
    else:
        body["content"] = content or None
    if calls:
        body["tool_calls"] = calls
    if message.name is not None:
        body["name"] = message.name
    if message.tool_call_id is not None or message.role == "tool":
        body["tool_call_id"] = message.tool_call_id or ""  # servers want one, as a text
    return body | message.extras


def _render_nested(name: str, inner: JsonObject, extras: JsonObject) -> JsonObject:
    return {"type": name} | extras | {name: inner | extras.get(name, {})}


def _verbatim(part: Opaque, path: str, traits: Traits) -> JsonObject:
    kind = part.body.get("type")
    if part.dialect != NAME:
        raise Malformed(
            f"A '{kind}' part of {part.dialect} cannot be said in OpenAI's chat.",
            kind="unsupported",
        )
    if kind == "file" and traits.llamacpp:
        raise Malformed(
            f"Unsupported value for '{path}.type': a llama.cpp server reads no files. "
            "Send what is in them as texts and pictures.",
            param=f"{path}.type",
            kind="unsupported",
        )
    return part.body
