"""The items of an input, to messages and back.

What an assistant did in one turn (a thought, a message, calls) is several items here and one
message of a chat: templates need it as one. Items that other servers' tools have left behind say
nothing to a model here, and are passed over.
"""

from __future__ import annotations

from collections.abc import Iterable, Iterator, Sequence
from typing import Any

from tropilla.dialects._fields import Fields, check_length, invalid, missing, wrong_type
from tropilla.dialects._media import DETAILS, check_base64, check_data_url
from tropilla.dialects._openai import MOST_MESSAGES
from tropilla.dialects._sealed import unseal
from tropilla.ir import (
    Audio,
    Image,
    Json,
    JsonObject,
    Malformed,
    Message,
    Part,
    Reasoning,
    Refusal,
    Text,
    ToolCall,
)

_ROLES = ("user", "assistant", "system", "developer")
_PARTS = "'input_text', 'input_image', 'input_audio', 'output_text', and 'refusal'"
_PASSED_OVER = frozenset({
    "additional_tools", "apply_patch_call", "apply_patch_call_output", "code_interpreter_call",
    "compaction", "compaction_summary", "compaction_trigger", "computer_call",
    "computer_call_output", "context_compaction", "file_search_call", "image_generation_call",
    "local_shell_call", "local_shell_call_output", "mcp_approval_request",
    "mcp_approval_response", "mcp_call", "mcp_list_tools", "program", "program_output",
    "shell_call", "shell_call_output", "tool_search_call", "tool_search_output",
    "web_search_call",
})  # fmt: skip
"""What agents send again of a conversation with OpenAI's own tools."""


def parse_items(given: Json, earlier: Sequence[Json] = ()) -> tuple[Message, ...]:
    """The messages of an input, those of `earlier` items first."""
    turns = _Turns()
    for item in earlier:
        turns.take(item, "previous_response_id")
    match given:
        case str():
            turns.say(Message(role="user", parts=(Text(text=given),)))
        case list():
            check_length(given, "input", MOST_MESSAGES)
            for index, item in enumerate(given):
                turns.take(item, f"input.{index}")
        case None:
            if not earlier:
                raise missing("input")
        case _:
            raise wrong_type("input", "a string or an array of items", given)
    messages = tuple(turns.told())
    if not messages:
        raise invalid("input", "expected at least one item.", "empty_array")
    return messages


class _Turns:
    """Items to messages."""

    def __init__(self) -> None:
        self._messages: list[Message] = []
        self._turn: list[Part] = []
        """What the assistant does in the turn that is open."""

    def told(self) -> list[Message]:
        """All messages."""
        self._close()
        return self._messages

    def say(self, message: Message) -> None:
        """Take the message of somebody else than the assistant."""
        self._close()
        self._messages.append(message)

    def _close(self) -> None:
        if self._turn:
            self._messages.append(Message(role="assistant", parts=tuple(self._turn)))
            self._turn = []

    def take(self, item: Json, path: str) -> None:
        """Take one item."""
        fields = Fields(item, path)
        kind = fields.string("type")
        match kind:
            case None if "role" not in fields.rest:
                raise missing(fields.at("type"))
            case None | "message":
                self._message(fields)
            case "reasoning":
                thought = _thought(fields)
                if thought:
                    self._turn.append(Reasoning(text=thought))
            case "function_call" | "custom_tool_call":
                custom = kind == "custom_tool_call"
                self._turn.append(
                    ToolCall(
                        id=fields.required("call_id"),
                        name=fields.required("name"),
                        arguments=fields.required("input" if custom else "arguments"),
                        custom=custom,
                    )
                )
            case "function_call_output" | "custom_tool_call_output":
                id_ = fields.required("call_id")
                parts = _content(fields, "output")
                self.say(Message(role="tool", tool_call_id=id_, parts=parts))
            case "item_reference":
                name = fields.required("id")
                raise no_item(name, fields.at("id"))
            case _ if kind in _PASSED_OVER:
                pass
            case _:
                raise invalid(fields.at("type"), f"'{kind}' is no type of item that is known here.")

    def _message(self, fields: Fields) -> None:
        role: Any = fields.choice("role", _ROLES)
        if role is None:
            raise missing(fields.at("role"))
        parts = _content(fields, "content")
        if role != "assistant":
            for index, part in enumerate(parts):
                if isinstance(part, Refusal):
                    raise invalid(
                        f"{fields.at('content')}.{index}", "only an assistant can refuse."
                    )
            self.say(Message(role=role, parts=parts))
            return
        for index, part in enumerate(parts):
            if not isinstance(part, Text | Refusal):
                raise invalid(
                    f"{fields.at('content')}.{index}", "an assistant's message holds text only."
                )
        self._turn += parts


def no_item(name: str, path: str) -> Malformed:
    """The error for a reference to what is not kept."""
    return invalid(path, f"there is no item with id '{name}' here.", "item_not_found")


def _thought(fields: Fields) -> str:
    """What was thought; a summary is not that, and another server's secret cannot be read."""
    texts: list[str] = []
    for index, value in enumerate(fields.array("content") or ()):
        part = Fields(value, f"{fields.at('content')}.{index}")
        part.choice("type", ("reasoning_text", "text"))
        texts.append(part.required("text"))
    sealed = fields.string("encrypted_content")
    if not texts and sealed is not None:
        return unseal(sealed) or ""
    return "".join(texts)


def _content(fields: Fields, name: str) -> tuple[Part, ...]:
    content, path = fields.any(name), fields.at(name)
    match content:
        case str():
            return (Text(text=content),)
        case [_, *_]:
            return tuple(_part(one, f"{path}.{i}") for i, one in enumerate(content))
        case []:
            raise invalid(path, "expected at least one part.", "empty_array")
        case None:
            raise missing(path)
    raise wrong_type(path, "a string or an array of parts", content)


def _part(value: Json, path: str) -> Part:
    fields = Fields(value, path)
    kind = fields.required("type")
    match kind:
        case "input_text" | "output_text" | "text":
            return Text(text=fields.required("text"))
        case "refusal":
            return Refusal(text=fields.required("refusal"))
        case "input_image":
            if fields.any("file_id") is not None:
                raise _no_files(fields.at("file_id"))
            url = fields.required("image_url")
            check_data_url(url, fields.at("image_url"))
            return Image(url=url, detail=fields.choice("detail", DETAILS))
        case "input_audio":
            audio = Fields(fields.any("input_audio"), fields.at("input_audio"))
            data, form = audio.required("data"), audio.required("format")
            check_base64(data, audio.at("data"))
            return Audio(data=data, format=form)
        case "input_file":
            raise _no_files(path)
    raise invalid(fields.at("type"), f"'{kind}'. Supported values are: {_PARTS}.")


def _no_files(path: str) -> Malformed:
    return Malformed(
        f"'{path}' is a file, and there are none here: send its text, or an image as a data URL.",
        param=path,
        code="unsupported_value",
        kind="unsupported",
    )


# To an upstream.


def render_items(messages: Iterable[Message]) -> Iterator[JsonObject]:
    """The items that say these messages.

    Raises:
        Malformed: of kind `unsupported`, where there are none.
    """
    customs: set[str] = set()
    for message in messages:
        if message.role == "assistant":
            customs |= {p.id for p in message.parts if isinstance(p, ToolCall) and p.custom}
            yield from _render_turn(message)
        elif message.role == "tool":
            id_ = message.tool_call_id or ""
            kind = "custom_tool_call_output" if id_ in customs else "function_call_output"
            yield {"type": kind, "call_id": id_, "output": _render_content(message)}
        elif message.role == "function":
            raise _unsayable("A message of the role 'function'")
        else:
            yield {"type": "message", "role": message.role, "content": _render_content(message)}


def _render_turn(message: Message) -> Iterator[JsonObject]:
    content: list[JsonObject] = []
    for part in message.parts:
        match part:
            case Text():
                content.append({"type": "output_text", "text": part.text, "annotations": []})
                continue
            case Refusal():
                content.append({"type": "refusal", "refusal": part.text})
                continue
        if content:
            yield {"type": "message", "role": "assistant", "content": content}
            content = []
        match part:
            case Reasoning():
                said = [{"type": "reasoning_text", "text": part.text}]
                yield {"type": "reasoning", "summary": [], "content": said}
            case ToolCall(custom=True):
                yield {
                    "type": "custom_tool_call", "call_id": part.id, "name": part.name,
                    "input": part.arguments,
                }  # fmt: skip
            case ToolCall():
                yield {
                    "type": "function_call", "call_id": part.id, "name": part.name,
                    "arguments": part.arguments,
                }  # fmt: skip
            case _:
                raise _unsayable("What an assistant says besides text")
    if content:
        yield {"type": "message", "role": "assistant", "content": content}


def _render_content(message: Message) -> Json:
    parts = message.parts
    if len(parts) == 1 and isinstance(parts[0], Text):
        return parts[0].text
    return [_render_part(part) for part in parts]


def _render_part(part: Part) -> JsonObject:
    match part:
        case Text():
            return {"type": "input_text", "text": part.text}
        case Image():
            body = {"type": "input_image", "image_url": part.url}
            return body if part.detail is None else body | {"detail": part.detail}
        case Audio():
            return {
                "type": "input_audio", "input_audio": {"data": part.data, "format": part.format},
            }  # fmt: skip
    raise _unsayable("A part of a message")


def _unsayable(what: str) -> Malformed:
    return Malformed(f"{what} cannot be said in OpenAI's Responses.", kind="unsupported")
