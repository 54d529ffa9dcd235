"""Messages: blocks to parts, and back.

What a user says and what a tool has answered are blocks of one message here, and messages of their
own in a chat. Messages of one role in a row are one turn. Blocks that Anthropic's servers have left
behind (their searches, thoughts that cannot be read) say nothing to a model here, and are passed
over.
"""

from __future__ import annotations

from collections.abc import Iterable, Iterator
from typing import Any

from tropilla.dialects._fields import Fields, invalid, missing, wrong_type
from tropilla.dialects._media import check_data_url
from tropilla.dialects._sealed import unseal
from tropilla.dialects.anthropic.names import read, said
from tropilla.ir import (
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

SIGNATURE = "tropilla"
"""Thoughts are signed, so that they can be sent back: what signs them is not looked at here."""

_ROLES = ("user", "assistant", "system")
_BILLING = "x-anthropic-billing-header:"
"""How a block begins that agents put before all others, and that is another one each time: it is
for Anthropic, which takes it out, and every cache would end where it begins."""
_PASSED_OVER = frozenset({
    "advisor_tool_result", "bash_code_execution_tool_result", "code_execution_tool_result",
    "container_upload", "fallback", "mcp_tool_result", "mcp_tool_use", "redacted_thinking",
    "server_tool_use", "text_editor_code_execution_tool_result", "tool_search_tool_result",
    "web_fetch_tool_result", "web_search_tool_result",
})  # fmt: skip
_TAGS = {
    "user": "'document', 'image', 'search_result', 'text', 'tool_result'",
    "assistant": "'redacted_thinking', 'text', 'thinking', 'tool_use'",
    "system": "'text'",
    "tool": "'document', 'image', 'search_result', 'text', 'tool_reference'",
}
"""What each may hold; a tool says its part in the message of a user."""


def _parse_system(value: Json) -> tuple[Message, ...]:
    """What comes before all messages; nothing, if it says nothing."""
    texts: list[Part] = []
    match value:
        case None | "":
            pass
        case str():
            texts.append(Text(text=value))
        case list():
            for index, one in enumerate(value):
                fields = Fields(one, f"system.{index}")
                texts += _parse_block(fields, _kind(fields), "system")
        case _:
            raise wrong_type("system", "a string or an array of blocks", value)
    parts = tuple(one for one in texts if not _is_billing(one))
    return (Message(role="system", parts=parts),) if parts else ()


def _is_billing(part: Part) -> bool:
    return isinstance(part, Text) and part.text.startswith(_BILLING)


def parse_messages(values: list[Json], system: Json) -> tuple[Message, ...]:
    """The messages of a client's request, after what the `system` says."""
    turns = list(_parse_system(system))
    for one in _each(values):
        if turns and turns[-1].role == one.role != "tool":
            turns[-1] = Message(role=one.role, parts=turns[-1].parts + one.parts)
        else:
            turns.append(one)
    return tuple(turns)


def _each(values: list[Json]) -> Iterator[Message]:
    for number, value in enumerate(values):
        fields = Fields(value, f"messages.{number}")
        role: Any = fields.choice("role", _ROLES)
        if role is None:
            raise missing(fields.at("role"))
        content, path = fields.any("content"), fields.at("content")
        match content:
            case str():
                yield Message(role=role, parts=(Text(text=content),))
            case list() if role == "user":
                yield from _parse_user(content, path)
            case list():
                parts: list[Part] = []
                for index, one in enumerate(content):
                    block = Fields(one, f"{path}.{index}")
                    parts += _parse_block(block, _kind(block), role)
                yield Message(role=role, parts=tuple(parts))
            case None:
                raise missing(path)
            case _:
                raise wrong_type(path, "a string or an array of blocks", content)


def _parse_user(content: list[Json], path: str) -> Iterator[Message]:
    """What a user says, and what their tools have answered, in this order."""
    if not content:
        raise invalid(path, "a user's message must say something.", "empty_array")
    parts: list[Part] = []
    for index, one in enumerate(content):
        block = Fields(one, f"{path}.{index}")
        kind = _kind(block)
        if kind != "tool_result":
            parts += _parse_block(block, kind, "user")
            continue
        if parts:
            yield Message(role="user", parts=tuple(parts))
            parts = []
        id_ = block.required("tool_use_id")
        block.boolean("is_error")
        yield Message(role="tool", tool_call_id=id_, parts=tuple(_parse_result(block)))
    if parts:
        yield Message(role="user", parts=tuple(parts))


def _parse_result(block: Fields) -> list[Part]:
    """What a tool has answered; there is always some text, for servers want some."""
    content, path = block.any("content"), block.at("content")
    match content:
        case None:
            return [Text(text="")]
        case str():
            return [Text(text=content)]
        case list():
            parts: list[Part] = []
            for index, one in enumerate(content):
                inner = Fields(one, f"{path}.{index}")
                parts += _parse_block(inner, _kind(inner), "tool")
            return parts or [Text(text="")]
    raise wrong_type(path, "a string or an array of blocks", content)


def _kind(block: Fields) -> str:
    return block.required("type")


def _parse_block(block: Fields, kind: str, where: str) -> Iterator[Part]:
    """What one block says: mostly one part."""
    match kind, where:
        case "text", _:
            yield Text(text=block.required("text"))
        case "image", "user" | "tool":
            yield _parse_image(block)
        case "document", "user" | "tool":
            yield from _parse_document(block)
        case "search_result", "user" | "tool":
            yield from _parse_search_result(block)
        case "tool_reference", "tool":
            # All tools are told to a model here: there is none that had to be found first.
            yield Text(text=block.required("tool_name"))
        case "thinking", "assistant":
            thought = block.required("thinking") or unseal(block.string("signature") or "")
            if thought:
                yield Reasoning(text=thought)
        case "tool_use", "assistant":
            id_, name = block.required("id"), block.required("name")
            given = block.object("input")
            if given is None:
                raise missing(block.at("input"))
            yield ToolCall(id=id_, name=name, arguments=said(given))
        case "compaction", "assistant":
            summary = block.string("content")
            if summary:
                yield Text(text=summary)
        case _ if kind in _PASSED_OVER and where in {"assistant", "user"}:
            pass
        case _:
            raise invalid(
                block.at("type"), f"'{kind}'. Here there can be these blocks: {_TAGS[where]}."
            )


def _parse_image(block: Fields) -> Image:
    source = _source(block)
    kind = source.required("type")
    if kind != "base64":
        raise _not_fetched(source, kind, "an image as base64")
    media, data = source.required("media_type"), source.required("data")
    url = f"data:{media};base64,{data}"
    if not media.startswith("image/"):
        raise invalid(source.at("media_type"), f"'{media}' is no type of image.")
    check_data_url(url, source.at("data"))
    return Image(url=url)


def _parse_document(block: Fields) -> Iterator[Part]:
    """A document of text is a text; what is in a PDF cannot be read here."""
    source = _source(block)
    kind = source.required("type")
    match kind:
        case "text":
            yield Text(text=source.required("data"))
        case "content":
            content, path = source.any("content"), source.at("content")
            if type(content) is str:
                yield Text(text=content)
            elif type(content) is list:
                for index, one in enumerate(content):
                    inner = Fields(one, f"{path}.{index}")
                    yield from _parse_block(inner, _kind(inner), "user")
            else:
                raise wrong_type(path, "a string or an array of blocks", content)
        case _:
            raise _not_fetched(source, kind, "a document as text")


def _parse_search_result(block: Fields) -> Iterator[Part]:
    title, source = block.required("title"), block.required("source")
    yield Text(text=f"{title}\n{source}")
    for index, one in enumerate(block.array("content") or ()):
        inner = Fields(one, f"{block.at('content')}.{index}")
        yield from _parse_block(inner, _kind(inner), "system")


def _source(block: Fields) -> Fields:
    source = block.object("source")
    if source is None:
        raise missing(block.at("source"))
    return Fields(source, block.at("source"))


def _not_fetched(source: Fields, kind: str, instead: str) -> Malformed:
    """The error for what some server would have to fetch, or to read."""
    return Malformed(
        f"'{source.path}' is of the type '{kind}', and is neither fetched nor read here: "
        f"send {instead}.",
        param=source.path,
        code="unsupported_value",
        kind="unsupported",
    )


# To an upstream.


def render_messages(messages: Iterable[Message]) -> Iterator[JsonObject]:
    """The messages that say these; a run of them by one role is one turn for Anthropic.

    Raises:
        Malformed: of kind `unsupported`, for what cannot be said.
    """
    for message in messages:
        match message.role:
            case "assistant":
                blocks = [_render_part(part, "assistant") for part in message.parts]
                yield {"role": "assistant", "content": blocks}
            case "tool":
                result = {
                    "type": "tool_result",
                    "tool_use_id": message.tool_call_id or "",
                    "content": _render_content(message, "user"),
                }
                yield {"role": "user", "content": [result]}
            case "system" | "developer":
                yield {"role": "system", "content": _render_content(message, "system")}
            case "user":
                yield {"role": "user", "content": _render_content(message, "user")}
            case _:
                raise _unsayable(f"A message of the role '{message.role}'")


def render_system(message: Message) -> Json:
    """What a system message says, before all others."""
    return _render_content(message, "system")


def _render_content(message: Message, where: str) -> Json:
    match message.parts:
        case [Text(text=text)]:
            return text
    return [_render_part(part, where) for part in message.parts]


def _render_part(part: Part, where: str) -> JsonObject:
    match part:
        case Text(text=text):
            return {"type": "text", "text": text}
        case Refusal(text=text) if where == "assistant":
            return {"type": "text", "text": text}
        case Reasoning(text=text) if where == "assistant":
            return {"type": "thinking", "thinking": text, "signature": SIGNATURE}
        case ToolCall(custom=False) if where == "assistant":
            return {
                "type": "tool_use", "id": part.id, "name": part.name, "input": read(part.arguments),
            }  # fmt: skip
        case Image(url=url) if where == "user":
            media, _, data = url.removeprefix("data:").partition(";base64,")
            source = {"type": "base64", "media_type": media, "data": data}
            return {"type": "image", "source": source}
    raise _unsayable(f"A part of the kind '{type(part).__name__.lower()}' of such a message")


def _unsayable(what: str) -> Malformed:
    return Malformed(f"{what} cannot be said in Anthropic's Messages.", kind="unsupported")
