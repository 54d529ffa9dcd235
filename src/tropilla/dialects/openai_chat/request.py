"""What is asked: a client's chat completion request to the IR, and the IR to an upstream's."""

from __future__ import annotations

from typing import Any

from tropilla.dialects import Wire, _ages, _formats, _ignored
from tropilla.dialects._fields import Fields, invalid, missing, read_knobs, texts
from tropilla.dialects._names import check_name
from tropilla.dialects._openai import (
    MOST_MESSAGES,
    MOST_STOPS,
    MOST_TOOLS,
    read_limit,
    read_logit_bias,
    read_stream_options,
    write_common,
)
from tropilla.dialects.openai_chat.messages import parse_messages, render_message
from tropilla.dialects.openai_chat.names import NAME
from tropilla.dialects.openai_chat.tools import (
    check_offered,
    parse_choice,
    parse_function_choice,
    parse_functions,
    parse_tools,
    render_choice,
    render_tools,
)
from tropilla.ir import Chat, Format, Json, JsonObject, Malformed, Request, Traits

_EFFORTS = ("none", "minimal", "low", "medium", "high", "xhigh", "max")
_CALLING = frozenset({
    "tools", "functions", "tool_choice", "function_call", "parallel_tool_calls",
})  # fmt: skip
_SCHEMA = "response_format.json_schema.schema"
_BAD_SCHEMA = "invalid_json_schema"


# A client's request.


def parse_request(body: JsonObject, path: str) -> Request:  # noqa: ARG001 - one path
    """Read a chat completion request."""
    fields = Fields(body)
    stream = fields.boolean("stream") or False
    messages = fields.array("messages", MOST_MESSAGES)
    if messages is None:
        raise missing("messages")
    if not messages:
        raise invalid("messages", "expected at least one message.", "empty_array")
    _ignored.check(fields.rest)
    chat = _parse_chat(fields, messages)
    return Request(
        dialect=NAME,
        input=chat,
        model=fields.string("model"),
        stream=stream,
        include_usage=read_stream_options(fields, stream=stream),
        n=fields.integer("n", 1, 128) or 1,
        max_tokens=read_limit(fields),
        stop=texts(fields.any("stop"), "stop", MOST_STOPS),
        knobs=read_knobs(fields, openai=True),
        logit_bias=read_logit_bias(fields.any("logit_bias"), "logit_bias"),
        logprobs=_parse_logprobs(fields),
        format=_parse_format(fields.object("response_format")),
        tokenize=fields.boolean("tokenize") or False,
        extras=fields.rest,
    )


def _parse_chat(fields: Fields, messages: list[Json]) -> Chat:
    if _CALLING.isdisjoint(fields.rest):
        return Chat(
            messages=parse_messages(messages),
            reasoning_effort=fields.choice("reasoning_effort", _EFFORTS),
        )
    tools = parse_tools(fields.array("tools", MOST_TOOLS) or [])
    functions = parse_functions(fields.array("functions", MOST_TOOLS) or [])
    choice = parse_choice(fields.any("tool_choice"), tools)
    old_choice = parse_function_choice(fields.any("function_call"), functions)
    check_offered(choice, tools, "tool_choice")
    check_offered(old_choice, functions, "function_call")
    if functions and (tools or choice):
        raise invalid("functions", "give either 'tools' or 'functions', not both.")
    parallel = fields.boolean("parallel_tool_calls")
    return Chat(
        messages=parse_messages(messages),
        tools=tools or functions,
        tool_choice=choice or old_choice,
        # There is place for one call in an answer of the old form.
        parallel_tool_calls=False if functions else parallel,
        reasoning_effort=fields.choice("reasoning_effort", _EFFORTS),
        functions=bool(functions),
    )


def _parse_logprobs(fields: Fields) -> int | None:
    wanted, top = fields.boolean("logprobs"), fields.integer("top_logprobs", 0, 20)
    if top is not None and not wanted:
        raise invalid("top_logprobs", "it is only allowed when 'logprobs' is true.")
    return (top or 0) if wanted else None


def _parse_format(value: JsonObject | None) -> Format | None:
    if value is None:
        return None
    fields = Fields(value, "response_format")
    kind: Any = fields.choice("type", ("text", "json_object", "json_schema"))
    if kind is None:
        raise missing("response_format.type")
    if kind != "json_schema":
        # llama.cpp takes a schema beside json_object too.
        own = fields.object("schema")
        if own is not None:
            _formats.check(own, "response_format.schema", _BAD_SCHEMA)
        return Format(kind=kind, schema=own)
    inner = fields.object("json_schema")
    if inner is None:
        raise missing("response_format.json_schema")
    told = Fields(inner, "response_format.json_schema")
    name, schema = told.string("name"), told.object("schema")
    if name is not None:
        check_name(name, told.at("name"))
    if schema is not None:
        _formats.check(schema, _SCHEMA, _BAD_SCHEMA)
    return Format(
        kind=kind,
        schema=schema,
        name=name,
        description=told.string("description"),
        strict=told.boolean("strict"),
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
    if request.tells_stop and request.stop and traits.llamacpp:
        body["verbose"] = True  # else a llama-server does not name the word
    if traits.strict and "max_tokens" in body:
        # The newer models of OpenAI refuse the old name; other servers know only that one.
        body["max_completion_tokens"] = body.pop("max_tokens")
    body["messages"] = [
        render_message(message, number, traits) for number, message in enumerate(chat.messages)
    ]
    if tools := render_tools(chat, traits, lost, own=request.dialect == NAME):
        body["tools"] = tools
    if chat.tool_choice is not None:
        body["tool_choice"] = render_choice(chat, chat.tool_choice, traits)
    if chat.parallel_tool_calls is not None:
        body["parallel_tool_calls"] = chat.parallel_tool_calls
    if chat.reasoning_effort is not None:
        body["reasoning_effort"] = chat.reasoning_effort
    if request.format is not None and "grammar" not in instead:
        body["response_format"] = _render_format(
            request.format, traits, lost, own=request.dialect == NAME
        )
    if request.logprobs is not None:
        body["logprobs"] = True
        # llama.cpp takes 0 alternatives to mean no logprobs at all, and none given to mean 20.
        body["top_logprobs"] = max(request.logprobs, 1) if traits.llamacpp else request.logprobs
        if not _ages.chat_streams(request, traits):
            body["stream"] = False
            body.pop("stream_options", None)
    return Wire(path="/v1/chat/completions", body=body, dropped=(*dropped, *lost))


def _render_format(form: Format, traits: Traits, dropped: list[str], *, own: bool) -> JsonObject:
    schema = form.schema
    if schema is not None and traits.llamacpp:
        strict = form.strict or False
        path = _SCHEMA if own else "schema"
        schema, lost = _formats.for_llamacpp(schema, path, _BAD_SCHEMA, strict=strict)
        dropped += (name for name in lost if name not in dropped)
    if form.kind != "json_schema":
        body: JsonObject = {"type": form.kind}
        return body if schema is None else body | {"schema": schema}
    members = {
        "name": form.name,
        "description": form.description,
        "schema": schema,
        "strict": form.strict,
    }
    inner = {name: value for name, value in members.items() if value is not None}
    return {"type": "json_schema", "json_schema": inner}
