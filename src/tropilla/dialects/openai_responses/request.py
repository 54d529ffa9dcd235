"""What is asked: a client's request for a response to the IR, and the IR to such a request."""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any

from tropilla.dialects import Wire, _formats, _ignored
from tropilla.dialects._fields import (
    Fields,
    invalid,
    missing,
    read_knobs,
    texts,
    wrong_type,
)
from tropilla.dialects._names import check_name
from tropilla.dialects._openai import (
    MOST_TOOLS,
    read_limit,
    read_logit_bias,
    read_stream_options,
    write_common,
)
from tropilla.dialects.openai_responses.items import parse_items, render_items
from tropilla.dialects.openai_responses.names import LOGPROBS, NAME
from tropilla.dialects.openai_responses.tools import (
    parse_choice,
    parse_tools,
    render_choice,
    render_tool,
)
from tropilla.ir import (
    Chat,
    Format,
    Json,
    JsonObject,
    Malformed,
    Message,
    Opaque,
    Request,
    Text,
    Traits,
)

_UNSUPPORTED = {
    "background": "nothing is answered in the background: leave it out, or stream the answer.",
    "conversation": "conversations are not kept: use 'previous_response_id'.",
    "prompt": "there are no stored prompts: say it in 'instructions' and 'input'.",
}
_EFFORTS = ("none", "minimal", "low", "medium", "high", "xhigh", "max")
_SUMMARIES = ("auto", "concise", "detailed")


# A client's request.


def parse_request(body: JsonObject, path: str, earlier: Sequence[Json] = ()) -> Request:  # noqa: ARG001 - one path
    """Read a request for a response; `earlier` items come before those of its input."""
    fields = Fields(body)
    for name, why in _UNSUPPORTED.items():
        if fields.any(name):
            raise Malformed(
                f"'{name}' is not supported here: {why}",
                param=name,
                code="unsupported_parameter",
                kind="unsupported",
            )
    stream = fields.boolean("stream") or False
    n = fields.integer("n")
    if n not in {None, 1}:
        raise invalid("n", "a response has one answer: expected 1.")
    _ignored.check(fields.rest)
    effort = _read_reasoning(fields)
    form = _read_text(fields)
    limit = fields.integer("max_output_tokens", 1)
    read_stream_options(fields, stream=stream)
    logprobs = _read_logprobs(fields)
    chat = _read_chat(fields, earlier, effort)
    other_limit = read_limit(fields)
    _check_own(fields.rest)
    return Request(
        dialect=NAME,
        input=chat,
        model=fields.string("model"),
        stream=stream,
        max_tokens=other_limit if limit is None else limit,
        stop=texts(fields.any("stop"), "stop"),
        knobs=read_knobs(fields, openai=True),
        logit_bias=read_logit_bias(fields.any("logit_bias"), "logit_bias"),
        logprobs=logprobs,
        format=form,
        extras={name: value for name, value in fields.rest.items() if value is not None},
    )


def _read_chat(fields: Fields, earlier: Sequence[Json], effort: str | None) -> Chat:
    messages = parse_items(fields.any("input"), earlier)
    instructions = fields.rest.get("instructions")
    if instructions is not None:
        if type(instructions) is not str:
            raise wrong_type("instructions", "a string", instructions)
        messages = (_instructing(instructions), *messages)
    offered = fields.array("tools", MOST_TOOLS) or []
    tools = parse_tools(offered)
    return Chat(
        messages=messages,
        tools=tools,
        tool_choice=parse_choice(fields.any("tool_choice"), offered, tools),
        parallel_tool_calls=fields.boolean("parallel_tool_calls"),
        reasoning_effort=effort,
    )


def _instructing(instructions: str) -> Message:
    return Message(role="system", parts=(Text(text=instructions),))


def _check_own(body: JsonObject) -> None:
    """Raise for a field of this API alone that is not of its type; it stays where it is."""
    fields = Fields(body)
    fields.string("previous_response_id")
    fields.choice("truncation", ("auto", "disabled"))
    fields.integer("max_tool_calls", 1)
    fields.array("context_management")
    fields.object("client_metadata")


def _read_reasoning(fields: Fields) -> str | None:
    """The effort; a summary is nothing that a model here writes, and only remembered."""
    reasoning = fields.object("reasoning")
    if reasoning is None:
        return None
    told = Fields(reasoning, "reasoning")
    effort = told.choice("effort", _EFFORTS)
    told.choice("generate_summary", _SUMMARIES)
    summary = told.choice("summary", _SUMMARIES)
    if summary is not None:
        fields.rest["reasoning"] = {"summary": summary}
    return effort


def _read_text(fields: Fields) -> Format | None:
    text = fields.object("text")
    if text is None:
        return None
    told = Fields(text, "text")
    verbosity = told.choice("verbosity", ("low", "medium", "high"))
    if verbosity is not None:
        fields.rest["verbosity"] = verbosity
    return _read_format(told.object("format"))


def _read_format(value: JsonObject | None) -> Format | None:
    if value is None:
        return None
    fields = Fields(value, "text.format")
    kind: Any = fields.choice("type", ("text", "json_object", "json_schema"))
    if kind is None:
        raise missing("text.format.type")
    schema = fields.object("schema")
    if schema is not None:
        _formats.check(schema, "text.format.schema", "invalid_json_schema")
    if kind != "json_schema":
        return Format(kind=kind, schema=schema)
    name = fields.string("name")
    if name is not None:
        check_name(name, "text.format.name")
    return Format(
        kind=kind,
        schema=schema,
        name=name,
        description=fields.string("description"),
        strict=fields.boolean("strict"),
    )


def _read_logprobs(fields: Fields) -> int | None:
    """How many alternatives: they are told where they are to be included."""
    top = fields.integer("top_logprobs", 0, 20)
    include = fields.array("include") or []
    for index, one in enumerate(include):
        if type(one) is not str:
            raise wrong_type(f"include.{index}", "a string", one)
    others = [one for one in include if one != LOGPROBS]
    if others:
        fields.rest["include"] = others
    if len(others) < len(include):
        return top or 0
    return None


# A request to an upstream.


def render_request(request: Request, traits: Traits) -> Wire:
    """Say a request as one for a response."""
    chat = request.input
    if not isinstance(chat, Chat):
        raise Malformed("A response cannot continue raw text.", kind="unsupported")
    if request.n != 1:
        raise Malformed("A response has one answer.", param="n", kind="unsupported")
    body, dropped = write_common(request, traits)
    body.pop("stream_options", None)
    if "max_tokens" in body:
        body["max_output_tokens"] = body.pop("max_tokens")
    own = request.extras if request.dialect == NAME else {}
    body |= {name: value for name, value in own.items() if name not in dropped}
    messages = chat.messages
    if type(said := own.get("instructions")) is str and messages[:1] == (_instructing(said),):
        messages = messages[1:]
    items = body["input"] = list(render_items(messages))
    if not items and "instructions" not in body:
        raise Malformed("Messages that say nothing cannot be sent.", kind="unsupported")
    if chat.tools:
        body["tools"] = [_render_tool(tool) for tool in chat.tools]
    if chat.tool_choice is not None:
        body["tool_choice"] = render_choice(chat)
    if chat.parallel_tool_calls is not None:
        body["parallel_tool_calls"] = chat.parallel_tool_calls
    if chat.reasoning_effort is not None:
        body["reasoning"] = body.get("reasoning", {}) | {"effort": chat.reasoning_effort}
    if request.format is not None or "verbosity" in body:
        body["text"] = render_text(request.format, body.pop("verbosity", None))
    if request.logprobs is not None:
        body["include"] = [LOGPROBS, *body.get("include", ())]
        # llama.cpp takes 0 alternatives to mean that none of this is wanted.
        body["top_logprobs"] = max(request.logprobs, 1) if traits.llamacpp else request.logprobs
    return Wire(path="/v1/responses", body=body, dropped=tuple(dropped))


def _render_tool(tool: Any) -> JsonObject:
    if isinstance(tool, Opaque):
        raise Malformed(
            f"A '{tool.body.get('type')}' tool of {tool.dialect} cannot be said in OpenAI's "
            "Responses.",
            kind="unsupported",
        )
    return render_tool(tool)


def render_text(form: Format | None, verbosity: Json) -> JsonObject:
    """The form that the answer must have, and how much it should say."""
    body: JsonObject = {}
    if form is not None:
        members = {
            "type": form.kind,
            "name": form.name,
            "description": form.description,
            "schema": form.schema,
            "strict": form.strict,
        }
        body["format"] = {name: value for name, value in members.items() if value is not None}
    if verbosity is not None:
        body["verbosity"] = verbosity
    return body
