"""What is asked: a client's request for a message to the IR, and the IR to such a request."""

from __future__ import annotations

from tropilla.dialects import Wire, _formats
from tropilla.dialects._fields import Fields, invalid, missing, read_knobs, texts, write_knobs
from tropilla.dialects._openai import MOST_MESSAGES, MOST_TOOLS
from tropilla.dialects.anthropic.messages import (
    parse_messages,
    render_messages,
    render_system,
)
from tropilla.dialects.anthropic.names import COUNT, NAME
from tropilla.dialects.anthropic.tools import (
    parse_choice,
    parse_tools,
    render_choice,
    render_tools,
)
from tropilla.ir import Chat, Format, Json, JsonObject, Malformed, Request, Traits

_EFFORTS = ("low", "medium", "high", "xhigh", "max")
_THINKING = ("enabled", "disabled", "adaptive", "between_tools")
_DISPLAYS = ("summarized", "omitted")
_LEAST_BUDGET = 1024
_FORM = "output"
"""Servers want a name for a schema, and this API has none."""
_LIMIT = 8192
"""Of tokens, where none was given: this API wants a limit, and all its newer models reach this."""
_KNOBS = ("temperature", "top_k", "top_p")


# A client's request.


def parse_request(body: JsonObject, path: str) -> Request:
    """Read a request for a message, or one to count the tokens of its prompt."""
    fields = Fields(body)
    limit = fields.integer("max_tokens", 0)
    if limit is None and path != COUNT:
        raise missing("max_tokens")
    messages = fields.array("messages", MOST_MESSAGES)
    if messages is None:
        raise missing("messages")
    if not messages:
        raise invalid("messages", "expected at least one message.", "empty_array")
    config = Fields(fields.object("output_config") or {}, "output_config")
    effort = config.choice("effort", _EFFORTS)
    form = config.object("format")
    where = config.at("format")
    if form is None:
        form, where = fields.object("output_format"), "output_format"
    if config.rest:
        fields.rest["output_config"] = config.rest
    if _read_thinking(fields) == "disabled":
        effort = "none"
        del fields.rest["thinking"]
    _check_metadata(fields.rest.get("metadata"))
    offered = fields.array("tools", MOST_TOOLS) or []
    tools = parse_tools(offered)
    choice, parallel = parse_choice(fields.object("tool_choice"), offered, tools)
    return Request(
        dialect=NAME,
        input=Chat(
            messages=parse_messages(messages, fields.any("system")),
            tools=tools,
            tool_choice=choice,
            parallel_tool_calls=parallel,
            reasoning_effort=effort,
        ),
        model=fields.string("model"),
        stream=fields.boolean("stream") or False,
        max_tokens=limit,
        stop=texts(fields.array("stop_sequences"), "stop_sequences"),
        tells_stop=True,
        knobs=read_knobs(fields, openai=True),
        format=_read_format(form, where),
        extras={name: value for name, value in fields.rest.items() if value is not None},
    )


def _read_thinking(fields: Fields) -> str | None:
    """Whether the model shall think; how long, is its own to decide here."""
    thinking = fields.object("thinking")
    if thinking is None:
        return None
    fields.rest["thinking"] = thinking
    told = Fields(thinking, "thinking")
    kind = told.choice("type", _THINKING)
    if kind is None:
        raise missing("thinking.type")
    budget = told.integer("budget_tokens", _LEAST_BUDGET)
    if kind == "enabled" and budget is None:
        raise missing("thinking.budget_tokens")
    told.choice("display", _DISPLAYS)
    return kind


def _check_metadata(value: Json) -> None:
    if value is not None:
        Fields(value, "metadata").string("user_id")


def _read_format(value: JsonObject | None, path: str) -> Format | None:
    if value is None:
        return None
    fields = Fields(value, path)
    if fields.choice("type", ("json_schema",)) is None:
        raise missing(fields.at("type"))
    schema = fields.object("schema")
    if schema is None:
        raise missing(fields.at("schema"))
    _formats.check(schema, fields.at("schema"), "invalid_json_schema")
    return Format(kind="json_schema", schema=schema, name=_FORM, strict=True)


# A request to an upstream.


def render_request(request: Request, traits: Traits) -> Wire:
    """Say a request as one for a message.

    Raises:
        Malformed: of kind `unsupported`, for what cannot be said.
    """
    chat = request.input
    if not isinstance(chat, Chat):
        raise Malformed("A message cannot continue raw text.", kind="unsupported")
    if request.n != 1:
        raise Malformed("A message is one answer.", param="n", kind="unsupported")
    if request.logprobs is not None:
        raise Malformed(
            "Anthropic's Messages tell no probabilities.", param="logprobs", kind="unsupported"
        )
    body = dict(request.extras) if request.dialect == NAME else {}
    knobs = write_knobs(request.knobs)
    said = knobs if traits.llamacpp else {name: knobs[name] for name in _KNOBS if name in knobs}
    body |= said
    dropped = [name for name in knobs if name not in said]
    if request.logit_bias:
        dropped.append("logit_bias")
    if request.model is not None:
        body["model"] = request.model
    body["stream"] = True
    body["max_tokens"] = _LIMIT if request.max_tokens is None else request.max_tokens
    if request.stop:
        body["stop_sequences"] = list(request.stop)
    _say_effort(body, chat.reasoning_effort)
    if request.format is not None:
        _say_format(body, request.format)
    messages = chat.messages
    if messages and messages[0].role in {"system", "developer"} and messages[0].parts:
        body["system"] = render_system(messages[0])
        messages = messages[1:]
    body["messages"] = list(render_messages(messages))
    if not body["messages"]:
        raise Malformed("A system message alone cannot be answered.", kind="unsupported")
    if chat.tools:
        body["tools"] = render_tools(chat)
    if (choice := render_choice(chat)) is not None:
        body["tool_choice"] = choice
    return Wire(path="/v1/messages", body=body, dropped=tuple(dropped))


def _say_effort(body: JsonObject, effort: str | None) -> None:
    if effort == "none":
        body["thinking"] = {"type": "disabled"}
    elif effort is not None:
        said = "low" if effort == "minimal" else effort
        body["output_config"] = body.get("output_config", {}) | {"effort": said}


def _say_format(body: JsonObject, form: Format) -> None:
    match form.kind:
        case "text":
            return
        case "json_object":
            schema = form.schema or {"type": "object"}
        case _:
            schema = form.schema or {}
    said = {"type": "json_schema", "schema": schema}
    body["output_config"] = body.get("output_config", {}) | {"format": said}
