"""The tools that a client offers, and which of them may be called.

Tools of OpenAI's own servers (a web search, a shell, a namespace) are nobody's here: agents offer
them to every server, so they are passed over. A choice that names one is refused.
"""

from __future__ import annotations

from typing import Any

from tropilla.dialects import _formats
from tropilla.dialects._fields import Fields, invalid, missing
from tropilla.dialects._names import check_name, read_mode
from tropilla.ir import Chat, Json, JsonObject, Malformed, Tool, ToolChoice

_KINDS = ("function", "custom")
_MOST_NAME = 128
_BAD_SCHEMA = "invalid_function_parameters"


def parse_tools(values: list[Json]) -> tuple[Tool, ...]:
    """The tools that can be called here."""
    tools: dict[str, Tool] = {}
    for index, value in enumerate(values):
        tool = _parse_tool(value, f"tools.{index}")
        if tool is not None:
            if tool.name in tools:
                raise invalid(f"tools.{index}.name", f"there is another tool named '{tool.name}'.")
            tools[tool.name] = tool
    return tuple(tools.values())


def _parse_tool(value: Json, path: str) -> Tool | None:
    fields = Fields(value, path)
    kind = fields.required("type")
    if kind not in _KINDS:
        return None
    name = check_name(fields.required("name"), fields.at("name"), _MOST_NAME)
    description = fields.string("description")
    if kind == "custom":
        form = fields.object("format")
        return Tool(name=name, description=description, custom=True, form=form)
    parameters = fields.object("parameters")
    if parameters is not None:
        _formats.check(parameters, fields.at("parameters"), _BAD_SCHEMA)
    strict = fields.boolean("strict")
    return Tool(name=name, description=description, parameters=parameters, strict=strict)


def render_tool(tool: Tool) -> JsonObject:
    """A tool, as it is asked for and as an answer repeats it."""
    if tool.custom:
        body: JsonObject = {"type": "custom", "name": tool.name}
        if tool.form is not None:
            body["format"] = tool.form
    else:
        body = {
            "type": "function", "name": tool.name, "parameters": tool.parameters,
            "strict": tool.strict,
        }  # fmt: skip
    if tool.description is not None:
        body["description"] = tool.description
    return body


# The choice.


def parse_choice(value: Json, offered: list[Json], tools: tuple[Tool, ...]) -> ToolChoice | None:
    """Whether tools may or must be called, and which; `tools` are those of the `offered` ones."""
    choice = _parse_choice(value)
    if choice is not None and choice.mode == "required" and not tools:
        why = "that can be called here " if offered else ""
        raise invalid("tool_choice", f"it is only allowed when there are 'tools' {why}".strip())
    return choice


def _parse_choice(value: Json) -> ToolChoice | None:
    if value is None:
        return None
    if (said := read_mode(value)) is not None:
        return said
    fields = Fields(value, "tool_choice")
    if fields.rest.get("type") != "allowed_tools":
        return ToolChoice(mode="required", only=(_name(fields),))
    mode: Any = fields.choice("mode", ("auto", "required"))
    if mode is None:
        raise missing("tool_choice.mode")
    allowed = fields.array("tools")
    if not allowed:
        raise invalid("tool_choice.tools", "expected at least one tool.", "empty_array")
    names = [
        _name(Fields(tool, f"tool_choice.tools.{index}")) for index, tool in enumerate(allowed)
    ]
    return ToolChoice(mode=mode, only=tuple(names))


def _name(fields: Fields) -> str:
    kind = fields.required("type")
    if kind not in _KINDS:
        raise Malformed(
            f"'{fields.at('type')}' names the tool '{kind}', which is not there: only functions "
            "and custom tools can be called here.",
            param=fields.path,
            code="unsupported_value",
            kind="unsupported",
        )
    return fields.required("name")


def render_choice(chat: Chat) -> Json:
    """The choice, as it is asked for and as an answer repeats it."""
    choice = chat.tool_choice
    if choice is None:
        return "auto"
    if not choice.only:
        return choice.mode
    customs = {tool.name for tool in chat.tools if isinstance(tool, Tool) and tool.custom}
    named = [
        {"type": "custom" if name in customs else "function", "name": name} for name in choice.only
    ]
    if choice.mode == "required" and len(named) == 1:
        return named[0]
    return {"type": "allowed_tools", "mode": choice.mode, "tools": named}
