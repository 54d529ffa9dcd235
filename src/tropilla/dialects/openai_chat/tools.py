"""Tools, the choice of them, and their calls: as a client says them, and to an upstream.

Checked here is what no upstream could make sense of; whether an answer keeps to the choice is
seen to in `tropilla.calls`.
"""

from __future__ import annotations

from typing import Any

from tropilla.dialects import _formats
from tropilla.dialects._fields import Fields, invalid, missing, wrong_type
from tropilla.dialects._names import check_name, read_mode
from tropilla.dialects.openai_chat.names import NAME
from tropilla.ir import (
    Chat,
    Json,
    JsonObject,
    Malformed,
    Opaque,
    Tool,
    ToolCall,
    ToolChoice,
    Traits,
)

_MOST_TOOLS = 128
_KINDS = ("function", "custom")
BAD_SCHEMA = "invalid_function_parameters"


# Tools.


def parse_tools(values: list[Json]) -> tuple[Tool, ...]:
    """The tools of a client's request."""
    if len(values) > _MOST_TOOLS:
        raise invalid(
            "tools",
            f"expected at most {_MOST_TOOLS} tools, but got {len(values)} instead.",
            "array_above_max_length",
        )
    tools = tuple(_parse_tool(value, f"tools.{i}") for i, value in enumerate(values))
    _check_distinct(tools, lambda i: f"tools.{i}.{_kind(tools[i])}.name")
    return tools


def parse_functions(values: list[Json]) -> tuple[Tool, ...]:
    """The same in the form of before tools."""
    tools = tuple(
        _parse_function(Fields(value, f"functions.{i}"), {}) for i, value in enumerate(values)
    )
    _check_distinct(tools, lambda i: f"functions.{i}.name")
    return tools


def _check_distinct(tools: tuple[Tool, ...], path: Any) -> None:
    seen: set[str] = set()
    for index, tool in enumerate(tools):
        if tool.name in seen:
            raise invalid(path(index), f"there is another tool named '{tool.name}'.")
        seen.add(tool.name)


def _kind(tool: Tool) -> str:
    return "custom" if tool.custom else "function"


def _parse_tool(value: Json, path: str) -> Tool:
    fields = Fields(value, path)
    kind = fields.choice("type", _KINDS)
    if kind is None:
        raise missing(fields.at("type"))
    inner = fields.object(kind)
    if inner is None:
        raise missing(fields.at(kind))
    told = Fields(inner, fields.at(kind))
    if kind == "function":
        return _parse_function(told, fields.rest)
    return Tool(
        name=check_name(told.required("name"), told.at("name")),
        description=told.string("description"),
        custom=True,
        form=_parse_form(told.object("format"), told.at("format")),
        extras=told.rest,
        beside=fields.rest,
    )


def _parse_function(told: Fields, beside: JsonObject) -> Tool:
    name = check_name(told.required("name"), told.at("name"))
    parameters = told.object("parameters")
    if parameters is not None:
        _formats.check(parameters, told.at("parameters"), BAD_SCHEMA)
    return Tool(
        name=name,
        description=told.string("description"),
        parameters=parameters,
        strict=told.boolean("strict"),
        extras=told.rest,
        beside=beside,
    )


def _parse_form(value: JsonObject | None, path: str) -> JsonObject | None:
    if value is None:
        return None
    fields = Fields(value, path)
    kind = fields.choice("type", ("text", "grammar"))
    if kind is None:
        raise missing(fields.at("type"))
    if kind == "grammar":
        inner = fields.object("grammar")
        if inner is None:
            raise missing(fields.at("grammar"))
        grammar = Fields(inner, fields.at("grammar"))
        grammar.required("definition")
        if grammar.choice("syntax", ("lark", "regex")) is None:
            raise missing(grammar.at("syntax"))
    return value


def render_tools(chat: Chat, traits: Traits, dropped: list[str], *, own: bool) -> list[JsonObject]:
    """The tools for an upstream; what of them is lost is added to `dropped`.

    `own` says that the request came in this dialect.
    """
    only: tuple[str, ...] = ()
    if chat.tool_choice is not None and traits.llamacpp:
        if chat.tool_choice.mode == "none":
            # Told of tools that it may not call, a llama.cpp model calls them in its text (b11549).
            return []
        only = chat.tool_choice.only
    tools: list[JsonObject] = []
    for index, tool in enumerate(chat.tools):
        if isinstance(tool, Opaque):
            tools.append(_verbatim(tool))
        elif not only or tool.name in only:
            where = "functions.{}" if chat.functions else "tools.{}.function"
            path = f"{where.format(index)}.parameters" if own else "parameters"
            tools.append(_render_tool(tool, traits, path, dropped))
    if only and not tools:
        raise invalid("tool_choice", f"no tool named '{only[0]}' is among 'tools'.")
    return tools


def _render_tool(tool: Tool, traits: Traits, path: str, dropped: list[str]) -> JsonObject:
    said: JsonObject = {"name": tool.name}
    if tool.description is not None:
        said["description"] = tool.description
    if tool.custom:
        if tool.form is not None:
            said["format"] = _render_form(tool.form)
        return tool.beside | {"type": "custom", "custom": said | tool.extras}
    if tool.parameters is not None:
        parameters = tool.parameters
        if traits.llamacpp:
            parameters, lost = _formats.for_llamacpp(
                parameters, path, BAD_SCHEMA, strict=tool.strict or False
            )
            dropped += (name for name in lost if name not in dropped)
        said["parameters"] = parameters
    if tool.strict is not None:
        said["strict"] = tool.strict
    return tool.beside | {"type": "function", "function": said | tool.extras}


def _render_form(form: JsonObject) -> JsonObject:
    """A custom tool's form; a grammar's parts are an object of their own in chat."""
    if form.get("type") != "grammar" or "grammar" in form:
        return form
    parts = ("definition", "syntax")
    rest = {key: form[key] for key in form if key not in parts}
    return rest | {"grammar": {key: form[key] for key in parts if key in form}}


def _verbatim(tool: Opaque) -> JsonObject:
    if tool.dialect != NAME:
        raise Malformed(
            f"A '{tool.body.get('type')}' tool of {tool.dialect} cannot be said in OpenAI's chat.",
            kind="unsupported",
        )
    return tool.body


# The choice.


def parse_choice(value: Json, tools: tuple[Tool, ...]) -> ToolChoice | None:
    """What a client says of its tools: whether they may or must be called, and which."""
    choice = _parse_choice(value)
    if choice is not None and choice.mode == "required" and not tools:
        raise invalid("tool_choice", "it is only allowed when there are 'tools'.")
    return choice


def _parse_choice(value: Json) -> ToolChoice | None:
    if value is None:
        return None
    if (said := read_mode(value)) is not None:
        return said
    fields = Fields(value, "tool_choice")
    kind = fields.choice("type", (*_KINDS, "allowed_tools"))
    if kind is None:
        raise missing("tool_choice.type")
    inner = fields.object(kind)
    if inner is None:
        raise missing(f"tool_choice.{kind}")
    told = Fields(inner, f"tool_choice.{kind}")
    if kind != "allowed_tools":
        return ToolChoice(mode="required", only=(told.required("name"),))
    mode: Any = told.choice("mode", ("auto", "required"))
    if mode is None:
        raise missing(told.at("mode"))
    allowed = told.array("tools")
    if allowed is None:
        raise missing(told.at("tools"))
    if not allowed:
        raise invalid(told.at("tools"), "expected at least one tool.", "empty_array")
    names = (_allowed(tool, f"{told.at('tools')}.{i}") for i, tool in enumerate(allowed))
    return ToolChoice(mode=mode, only=tuple(names))


def _allowed(value: Json, path: str) -> str:
    """A tool's name, in the form of this API or in that of Responses."""
    fields = Fields(value, path)
    kind = fields.choice("type", _KINDS)
    if kind is None:
        raise missing(fields.at("type"))
    if type(value.get("name")) is str:
        return fields.required("name")
    inner = fields.object(kind)
    if inner is None:
        raise missing(fields.at(kind))
    return Fields(inner, fields.at(kind)).required("name")


def parse_function_choice(value: Json, tools: tuple[Tool, ...]) -> ToolChoice | None:
    """The same in the form of before tools."""
    match value:
        case None:
            choice = None
        case "none" | "auto":
            choice = ToolChoice(mode=value)
        case str():
            raise invalid("function_call", f"'{value}'. Supported values are: 'none' and 'auto'.")
        case dict():
            name = Fields(value, "function_call").required("name")
            choice = ToolChoice(mode="required", only=(name,))
        case _:
            raise wrong_type("function_call", "a string or an object", value)
    if choice is not None and choice.mode == "required" and not tools:
        raise invalid("function_call", "it is only allowed when there are 'functions'.")
    return choice


def check_offered(choice: ToolChoice | None, tools: tuple[Tool, ...], path: str) -> None:
    """Raise for a choice of what is not offered."""
    offered = {tool.name for tool in tools}
    for name in choice.only if choice is not None else ():
        if name not in offered:
            raise invalid(path, f"no tool named '{name}' is among those that are offered.")


def render_choice(chat: Chat, choice: ToolChoice, traits: Traits) -> Json:
    """The choice for an upstream."""
    # llama.cpp silently reads the object form as "auto" (#26535): there the named tools are the
    # only ones it is told of, and the mode does the rest.
    if not choice.only or traits.llamacpp:
        return choice.mode
    customs = {tool.name for tool in chat.tools if isinstance(tool, Tool) and tool.custom}
    kinds = ["custom" if name in customs else "function" for name in choice.only]
    named = [
        {"type": kind, kind: {"name": name}} for kind, name in zip(kinds, choice.only, strict=True)
    ]
    if choice.mode == "required" and len(named) == 1:
        return named[0]
    return {"type": "allowed_tools", "allowed_tools": {"mode": choice.mode, "tools": named}}


# Calls.


def parse_call(value: Json, path: str) -> ToolCall:
    """A call of a message."""
    fields = Fields(value, path)
    kind = fields.choice("type", _KINDS)
    if kind is None:
        raise missing(fields.at("type"))
    told = Fields(fields.any(kind), fields.at(kind))
    return ToolCall(
        id=fields.required("id"),
        name=told.required("name"),
        arguments=told.required("input" if kind == "custom" else "arguments"),
        custom=kind == "custom",
        extras=fields.rest,
    )


def render_call(call: ToolCall) -> JsonObject:
    """A tool call as messages hold it, asked or answered."""
    kind, text = ("custom", "input") if call.custom else ("function", "arguments")
    told = {"name": call.name, text: call.arguments}
    return {"id": call.id, "type": kind, kind: told, **call.extras}
