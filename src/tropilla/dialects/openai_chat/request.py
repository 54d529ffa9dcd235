"""What is asked: a client's chat completion request to the IR, and the IR to an upstream's."""

from __future__ import annotations

import re
from binascii import a2b_base64
from typing import Any

from tropilla.dialects import Wire, _ages
from tropilla.dialects._fields import Fields, invalid, missing, read_knobs, texts, wrong_type
from tropilla.dialects._openai import (
    read_limit,
    read_logit_bias,
    read_stream_options,
    write_common,
)
from tropilla.ir import (
    Audio,
    Chat,
    Format,
    Image,
    Json,
    JsonObject,
    Malformed,
    Message,
    Opaque,
    Part,
    Reasoning,
    Refusal,
    Request,
    Text,
    Tool,
    ToolCall,
    ToolChoice,
    Traits,
)

NAME = "openai_chat"
_ROLES = ("system", "developer", "user", "assistant", "tool", "function")
_OPAQUE_PARTS = ("file", "input_video")


# A client's request.


def parse_request(body: JsonObject, path: str) -> Request:  # noqa: ARG001 - one path
    """Read a chat completion request."""
    fields = Fields(body)
    stream = fields.boolean("stream") or False
    messages = fields.array("messages")
    if messages is None:
        raise missing("messages")
    if not messages:
        raise invalid("messages", "expected at least one message.", "empty_array")
    for name in ("functions", "function_call"):
        if fields.any(name):
            raise Malformed(
                f"'{name}' is deprecated and not supported here: use 'tools' and 'tool_choice'.",
                param=name,
                code="unsupported_parameter",
                kind="unsupported",
            )
    chat = Chat(
        messages=tuple(_parse_message(m, f"messages.{i}") for i, m in enumerate(messages)),
        tools=tuple(
            _parse_tool(tool, f"tools.{i}") for i, tool in enumerate(fields.array("tools") or ())
        ),
        tool_choice=_parse_tool_choice(fields.any("tool_choice")),
        parallel_tool_calls=fields.boolean("parallel_tool_calls"),
        reasoning_effort=fields.string("reasoning_effort"),
    )
    return Request(
        dialect=NAME,
        input=chat,
        model=fields.string("model"),
        stream=stream,
        include_usage=read_stream_options(fields, stream=stream),
        n=fields.integer("n", 1, 128) or 1,
        max_tokens=read_limit(fields),
        stop=texts(fields.any("stop"), "stop"),
        knobs=read_knobs(fields, openai=True),
        logit_bias=read_logit_bias(fields.any("logit_bias"), "logit_bias"),
        logprobs=_parse_logprobs(fields),
        format=_parse_format(fields.object("response_format")),
        tokenize=fields.boolean("tokenize") or False,
        extras=fields.rest,
    )


def _parse_logprobs(fields: Fields) -> int | None:
    wanted, top = fields.boolean("logprobs"), fields.integer("top_logprobs", 0, 20)
    if top is not None and not wanted:
        raise invalid("top_logprobs", "it is only allowed when 'logprobs' is true.")
    return (top or 0) if wanted else None


def _parse_message(value: Json, path: str) -> Message:
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
            if role != "assistant":
                raise missing(fields.at("content"))
        case _:
            raise wrong_type(fields.at("content"), "a string or an array of parts", content)
    refusal = fields.string("refusal")
    if refusal:
        parts.append(Refusal(text=refusal))
    calls = fields.array("tool_calls") or []
    parts += [_parse_tool_call(call, f"{path}.tool_calls.{i}") for i, call in enumerate(calls)]
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
            _check_data_url(url, image.at("url"))
            detail = image.string("detail")
            return Image(url=url, detail=detail, extras=_nested("image_url", image, fields))
        case "input_audio":
            inner = fields.object("input_audio")
            if inner is None:
                raise missing(fields.at("input_audio"))
            audio = Fields(inner, fields.at("input_audio"))
            data, form = audio.required("data"), audio.required("format")
            _check_base64(data, audio.at("data"))
            return Audio(data=data, format=form, extras=_nested("input_audio", audio, fields))
        case "video_url":
            video = Fields(fields.any("video_url"), fields.at("video_url"))
            _check_data_url(video.required("url"), video.at("url"))
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


_DATA_URL = re.compile(r"data:[A-Za-z0-9.+-]+/[A-Za-z0-9.+-]+(?:;[^;,]+)*;base64,")


def _check_data_url(url: str, path: str) -> None:
    """Anything else would be fetched by some server, from a network where the client is not."""
    if not url.startswith("data:"):
        raise invalid(
            path,
            "the gateway fetches nothing that a client names: send it as "
            "'data:image/png;base64,...'.",
        )
    head = _DATA_URL.match(url)
    if head is None:
        raise invalid(path, "expected a type and base64, as in 'data:image/png;base64,...'.")
    _check_base64(url[head.end() :], path)


def _check_base64(data: str, path: str) -> None:
    try:
        known = bool(a2b_base64(data, strict_mode=True))
    except ValueError:
        known = False
    if not known:
        raise invalid(path, "the data is not base64.")


def _parse_tool_call(value: Json, path: str) -> ToolCall:
    fields = Fields(value, path)
    if fields.choice("type", ("function",)) is None:
        raise missing(fields.at("type"))
    function = Fields(fields.any("function"), fields.at("function"))
    return ToolCall(
        id=fields.required("id"),
        name=function.required("name"),
        arguments=function.required("arguments"),
        extras=fields.rest,
    )


def _parse_tool(value: Json, path: str) -> Tool | Opaque:
    fields = Fields(value, path)
    if fields.required("type") != "function":
        return Opaque(dialect=NAME, body=value)
    function = Fields(fields.any("function"), fields.at("function"))
    return Tool(
        name=function.required("name"),
        description=function.string("description"),
        parameters=function.object("parameters"),
        strict=function.boolean("strict"),
        extras=function.rest,
        beside=fields.rest,
    )


def _parse_tool_choice(value: Json) -> ToolChoice | None:
    match value:
        case None:
            return None
        case "none" | "auto" | "required":
            return ToolChoice(mode=value)
        case {"type": "function", "function": {"name": str(name)}}:
            return ToolChoice(mode="required", only=(name,))
        case {
            "type": "allowed_tools",
            "allowed_tools": {"mode": "auto" | "required" as mode, "tools": list(tools)},
        }:
            return ToolChoice(mode=mode, only=tuple(_allowed_name(tool) for tool in tools))
        case str():
            raise invalid(
                "tool_choice", f"'{value}'. Supported values are: 'none', 'auto', and 'required'."
            )
        case _:
            raise wrong_type("tool_choice", "a string or a function's name", value)


def _allowed_name(tool: Json) -> str:
    match tool:
        case {"type": "function", "function": {"name": str(name)}} | {
            "type": "function",
            "name": str(name),
        }:
            return name
    raise wrong_type("tool_choice.allowed_tools.tools", "functions by name", tool)


def _parse_format(value: JsonObject | None) -> Format | None:
    if value is None:
        return None
    fields = Fields(value, "response_format")
    kind: Any = fields.choice("type", ("text", "json_object", "json_schema"))
    if kind is None:
        raise missing("response_format.type")
    if kind != "json_schema":
        # llama.cpp takes a schema beside json_object too.
        return Format(kind=kind, schema=fields.object("schema"))
    inner = fields.object("json_schema")
    if inner is None:
        raise missing("response_format.json_schema")
    schema = Fields(inner, "response_format.json_schema")
    return Format(
        kind=kind,
        schema=schema.object("schema"),
        name=schema.string("name"),
        description=schema.string("description"),
        strict=schema.boolean("strict"),
    )


# A request to an upstream.


def render_request(request: Request, traits: Traits) -> Wire:
    """Say a request as a chat completion."""
    chat = request.input
    if not isinstance(chat, Chat):
        raise Malformed("A chat endpoint cannot continue raw text.", kind="unsupported")
    chat, instead, dropped = _ages.fit_chat(request, chat, traits)
    body, lost = write_common(request, traits)
    body |= instead
    if traits.strict and "max_tokens" in body:
        # The newer models of OpenAI refuse the old name; other servers know only that one.
        body["max_completion_tokens"] = body.pop("max_tokens")
    body["messages"] = [_render_message(message) for message in chat.messages]
    if tools := _render_tools(chat, traits):
        body["tools"] = tools
    if chat.tool_choice is not None:
        body["tool_choice"] = _render_tool_choice(chat.tool_choice, traits)
    if chat.parallel_tool_calls is not None:
        body["parallel_tool_calls"] = chat.parallel_tool_calls
    if chat.reasoning_effort is not None:
        body["reasoning_effort"] = chat.reasoning_effort
    if request.format is not None and "grammar" not in instead:
        body["response_format"] = _render_format(request.format)
    if request.logprobs is not None:
        body["logprobs"] = True
        # llama.cpp takes 0 alternatives to mean no logprobs at all, and none given to mean 20.
        body["top_logprobs"] = max(request.logprobs, 1) if traits.llamacpp else request.logprobs
    return Wire(path="/v1/chat/completions", body=body, dropped=(*dropped, *lost))


def _render_message(message: Message) -> JsonObject:
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
                content.append(_verbatim(part))
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


def render_call(call: ToolCall) -> JsonObject:
    """A tool call as messages hold it, asked or answered."""
    function = {"name": call.name, "arguments": call.arguments}
    return {"id": call.id, "type": "function", "function": function, **call.extras}


def _verbatim(part: Opaque) -> JsonObject:
    if part.dialect != NAME:
        raise Malformed(
            f"A '{part.body.get('type')}' part of {part.dialect} cannot be said in OpenAI's chat.",
            kind="unsupported",
        )
    return part.body


def _render_tools(chat: Chat, traits: Traits) -> list[JsonObject]:
    only: tuple[str, ...] = ()
    if chat.tool_choice is not None and traits.llamacpp:
        if chat.tool_choice.mode == "none":
            # Told of tools that it may not call, a llama.cpp model calls them in its text (b11549).
            return []
        only = chat.tool_choice.only
    tools: list[JsonObject] = []
    for tool in chat.tools:
        if isinstance(tool, Opaque):
            tools.append(_verbatim(tool))
        elif not only or tool.name in only:
            function: JsonObject = {"name": tool.name}
            if tool.description is not None:
                function["description"] = tool.description
            if tool.parameters is not None:
                function["parameters"] = tool.parameters
            if tool.strict is not None:
                function["strict"] = tool.strict
            tools.append(tool.beside | {"type": "function", "function": function | tool.extras})
    if only and not tools:
        raise invalid("tool_choice", f"no tool named '{only[0]}' is among 'tools'.")
    return tools


def _render_tool_choice(choice: ToolChoice, traits: Traits) -> Json:
    # llama.cpp silently reads the object form as "auto" (#26535): there the named tools are the
    # only ones it is told of, and the mode does the rest.
    if not choice.only or traits.llamacpp:
        return choice.mode
    names = [{"type": "function", "function": {"name": name}} for name in choice.only]
    if choice.mode == "required" and len(names) == 1:
        return names[0]
    return {"type": "allowed_tools", "allowed_tools": {"mode": choice.mode, "tools": names}}


def _render_format(form: Format) -> JsonObject:
    if form.kind != "json_schema":
        body: JsonObject = {"type": form.kind}
        return body if form.schema is None else body | {"schema": form.schema}
    members = {
        "name": form.name,
        "description": form.description,
        "schema": form.schema,
        "strict": form.strict,
    }
    inner = {name: value for name, value in members.items() if value is not None}
    return {"type": "json_schema", "json_schema": inner}
