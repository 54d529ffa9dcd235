"""The tools that a client offers, and which of them may be called.

Tools that Anthropic's own servers run (a search, a sandbox, another server's tools) are nobody's
here: agents offer them to every server, so they are passed over. A choice that names one is
refused. Those whose schema only Anthropic's models know are told with it.
"""

from __future__ import annotations

import re
from typing import Any

from tropilla.dialects import _formats
from tropilla.dialects._fields import Fields, invalid, missing
from tropilla.dialects._names import check_name
from tropilla.ir import Chat, Json, JsonObject, Malformed, Opaque, Tool, ToolChoice

_MOST_NAME = 128
_BAD_SCHEMA = "invalid_function_parameters"
_DATED = re.compile(r"([a-z][a-z0-9_]*)_[0-9]{8}")
_UNDATED = frozenset({"mcp_toolset", "tool_search_tool_bm25", "tool_search_tool_regex"})


def _object(required: tuple[str, ...], **properties: JsonObject) -> JsonObject:
    return {"type": "object", "properties": properties, "required": list(required)}


_TEXT: JsonObject = {"type": "string"}
_NUMBER: JsonObject = {"type": "integer"}
_RANGE: JsonObject = {"type": "array", "items": _NUMBER, "minItems": 2, "maxItems": 2}
_CLIENTS: dict[str, tuple[str, JsonObject]] = {
    "bash": (
        "Run a command in a shell that stays open between calls.",
        _object((), command=_TEXT, restart={"type": "boolean"}),
    ),
    "text_editor": (
        "View, create and edit files.",
        _object(
            ("command", "path"),
            command={"enum": ["view", "create", "str_replace", "insert"]},
            path=_TEXT, file_text=_TEXT, old_str=_TEXT, new_str=_TEXT,
            insert_line=_NUMBER, insert_text=_TEXT, view_range=_RANGE,
        ),
    ),
    "memory": (
        "Keep notes in files below /memories, across conversations.",
        _object(
            ("command",),
            command={"enum": ["view", "create", "str_replace", "insert", "delete", "rename"]},
            path=_TEXT, file_text=_TEXT, old_str=_TEXT, new_str=_TEXT, insert_line=_NUMBER,
            insert_text=_TEXT, view_range=_RANGE, old_path=_TEXT, new_path=_TEXT,
        ),
    ),
}  # fmt: skip
"""What a client runs itself, though the schema is Anthropic's."""


def parse_tools(values: list[Json]) -> tuple[Tool, ...]:
    """The tools that can be called here."""
    tools: dict[str, Tool] = {}
    for index, value in enumerate(values):
        tool = _parse_tool(Fields(value, f"tools.{index}"))
        if tool is not None:
            if tool.name in tools:
                raise invalid(f"tools.{index}.name", f"there is another tool named '{tool.name}'.")
            tools[tool.name] = tool
    return tuple(tools.values())


def _parse_tool(fields: Fields) -> Tool | None:
    kind = fields.string("type") or "custom"
    if kind == "custom":
        name = check_name(fields.required("name"), fields.at("name"), _MOST_NAME)
        schema = fields.object("input_schema")
        if schema is None:
            raise missing(fields.at("input_schema"))
        _formats.check(schema, fields.at("input_schema"), _BAD_SCHEMA)
        return Tool(
            name=name,
            description=fields.string("description"),
            parameters=schema,
            strict=fields.boolean("strict"),
        )
    dated = _DATED.fullmatch(kind)
    if dated is None and kind not in _UNDATED:
        raise invalid(
            fields.at("type"), f"'{kind}' is no type of tool: expected 'custom', or none."
        )
    if dated is None or dated[1] not in _CLIENTS:
        return None
    name = check_name(fields.required("name"), fields.at("name"), _MOST_NAME)
    description, schema = _CLIENTS[dated[1]]
    return Tool(name=name, description=description, parameters=schema)


def render_tools(chat: Chat) -> list[JsonObject]:
    """The tools for an upstream: of those that are chosen among, only these.

    Raises:
        Malformed: of kind `unsupported`, for what is no function.
    """
    choice = chat.tool_choice
    only = choice.only if choice is not None and not _names_one(choice) else ()
    return [
        _render_tool(tool)
        for tool in chat.tools
        if not only or isinstance(tool, Opaque) or tool.name in only
    ]


def _render_tool(tool: Tool | Opaque) -> JsonObject:
    if isinstance(tool, Opaque) or tool.custom:
        raise Malformed(
            "A tool that is no function cannot be said in Anthropic's Messages.",
            kind="unsupported",
        )
    body: JsonObject = {"name": tool.name, "input_schema": tool.parameters or {"type": "object"}}
    if tool.description is not None:
        body["description"] = tool.description
    if tool.strict is not None:
        body["strict"] = tool.strict
    return body


# The choice.

_MODES: dict[str, Any] = {"auto": "auto", "any": "required", "tool": "required", "none": "none"}


def parse_choice(
    value: JsonObject | None, offered: list[Json], tools: tuple[Tool, ...]
) -> tuple[ToolChoice | None, bool | None]:
    """Whether tools may or must be called, and which; and whether several at once.

    `tools` are those of the `offered` ones that can be called.
    """
    if value is None:
        return None, None
    fields = Fields(value, "tool_choice")
    kind = fields.choice("type", tuple(_MODES))
    if kind is None:
        raise missing("tool_choice.type")
    only = (fields.required("name"),) if kind == "tool" else ()
    single = fields.boolean("disable_parallel_tool_use")
    names = {tool.name for tool in tools}
    if _MODES[kind] == "required" and not (names >= set(only) and names):
        raise _not_there(only, offered)
    return ToolChoice(mode=_MODES[kind], only=only), None if single is None else not single


def _not_there(only: tuple[str, ...], offered: list[Json]) -> Malformed:
    if not offered:
        return invalid("tool_choice", "it is only allowed when there are 'tools'.")
    if only and not any(type(one) is dict and one.get("name") == only[0] for one in offered):
        return invalid("tool_choice.name", f"no tool named '{only[0]}' is among 'tools'.")
    return Malformed(
        "'tool_choice' wants a tool to be called that Anthropic's servers run, and there is none "
        "of these here.",
        param="tool_choice",
        code="unsupported_value",
        kind="unsupported",
    )


def render_choice(chat: Chat) -> JsonObject | None:
    """The choice for an upstream, with whether several calls may be made at once."""
    choice, parallel = chat.tool_choice, chat.parallel_tool_calls
    if choice is None and (parallel is None or not chat.tools):
        return None
    mode = "auto" if choice is None else choice.mode
    if mode == "none":
        return {"type": "none"}
    body: JsonObject = {"type": "any" if mode == "required" else mode}
    if choice is not None and _names_one(choice):
        body = {"type": "tool", "name": choice.only[0]}
    if parallel is not None:
        body["disable_parallel_tool_use"] = not parallel
    return body


def _names_one(choice: ToolChoice) -> bool:
    return choice.mode == "required" and len(choice.only) == 1
