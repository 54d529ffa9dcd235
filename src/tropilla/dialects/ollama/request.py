"""What is asked: a client's request to the IR, and the IR to a server.

`/api/generate` is three things: raw text to be continued, a hole to be filled, and a conversation
of one message, whose answer is told in another form than that of `/api/chat`.
"""

from __future__ import annotations

import re
from typing import Literal, TypeAlias

import msgspec

from tropilla.dialects import Wire, _formats
from tropilla.dialects._fields import (
    Fields,
    check_length,
    invalid,
    missing,
    read_knobs,
    texts,
    write_knobs,
)
from tropilla.dialects._openai import MOST_MESSAGES, encode
from tropilla.dialects.ollama.messages import (
    parse_messages,
    parse_tools,
    read_images,
    render_message,
    render_tools,
)
from tropilla.dialects.ollama.names import CHAT_PATH, GENERATE_PATH, NAME
from tropilla.ir import (
    Chat,
    Completion,
    Format,
    Infill,
    Json,
    JsonObject,
    Malformed,
    Message,
    Request,
    Text,
    Traits,
)

_EFFORTS = {"minimal": "low", "xhigh": "max"}
"""What Ollama has no word for."""
_FORMAT = "format"
_MOST_TOPS = 20
_MOST_CONTEXT = 1_000_000
"""Letters: a body may hold not many more numbers."""
_Role: TypeAlias = Literal["system", "user", "assistant"]
_DURATION = re.compile(r"[+-]?(\d+(\.\d*)?|\.\d+)(ns|us|µs|ms|s|m|h)")


def generates(request: Request) -> bool:
    """Whether the answer has a `response`, not a `message`: the path is kept for it."""
    return not isinstance(request.input, Chat) or GENERATE_PATH in request.extras


# A client's request.


def parse_request(body: JsonObject, path: str) -> Request:
    """Read a request; without a word about it, it is streamed."""
    fields = Fields(body)
    options = Fields(fields.object("options") or {}, "options")
    stream = fields.boolean("stream")
    wanted: Chat | Completion | Infill
    extras: JsonObject = {}
    model = fields.string("model")
    effort = _parse_think(fields)
    if path == GENERATE_PATH:
        wanted = _parse_generate(fields, effort)
        if isinstance(wanted, Chat):
            extras[GENERATE_PATH] = True
    else:
        wanted = _parse_chat(fields, effort)
    check_alive(fields.rest.get("keep_alive"))
    limit = options.integer("num_predict")
    chances = fields.boolean("logprobs"), fields.integer("top_logprobs", 0, _MOST_TOPS)
    knobs = read_knobs(options, openai=False)
    stop = texts(options.any("stop"), "options.stop")
    format_ = _parse_format(fields.any(_FORMAT))
    extras |= fields.rest
    if options.rest:
        extras["options"] = options.rest
    return Request(
        dialect=NAME,
        input=wanted,
        model=model,
        stream=stream is not False,
        # None at all, or what fits into the context, is no limit.
        max_tokens=limit if limit is not None and limit > 0 else None,
        stop=stop,
        knobs=knobs,
        logprobs=(chances[1] or 0) if chances[0] else None,
        format=format_,
        extras=extras,
    )


def _parse_chat(fields: Fields, effort: str | None) -> Chat:
    values = fields.array("messages")
    if not values:
        raise missing("messages")
    return Chat(
        messages=parse_messages(values),
        tools=parse_tools(fields.array("tools") or []),
        reasoning_effort=effort,
    )


def _parse_generate(fields: Fields, effort: str | None) -> Chat | Completion | Infill:
    prompt = fields.string("prompt") or ""
    system, suffix = fields.string("system") or "", fields.string("suffix") or ""
    raw, template = fields.boolean("raw"), fields.string("template")
    images = read_images(fields.array("images"), "images")
    before = _read_context(fields.array("context"))
    if template:
        raise Malformed(
            "A template of Ollama's is not run here: send the whole prompt, with 'raw'.",
            param="template",
            kind="unsupported",
        )
    if raw or suffix:
        if system or before:
            raise invalid("raw", "it goes with neither 'system' nor 'context'.")
        if images:
            raise Malformed(
                "Pictures are read in a conversation only.", param="images", kind="unsupported"
            )
        return Infill(prefix=prompt, suffix=suffix) if suffix else Completion(prompts=(prompt,))
    said = [Message(role="system", parts=(Text(text=system),))] if system else []
    if before and before[0].role == "system" and system:
        before = before[1:]
    asked = Message(role="user", parts=(Text(text=prompt), *images))
    return Chat(messages=(*said, *before, asked), reasoning_effort=effort)


def _parse_think(fields: Fields) -> str | None:
    match fields.any("think"):
        case None:
            return None
        case False:
            return "none"
        case True:
            return "medium"
        case "low" | "medium" | "high" | "max" as effort:
            return str(effort)
    raise invalid("think", "expected true, false, 'low', 'medium', 'high' or 'max'.")


def _parse_format(value: Json) -> Format | None:
    match value:
        case None | "":
            return None
        case "json":
            return Format(kind="json_object")
        case dict():
            _formats.check(value, _FORMAT, "invalid_json_schema")
            return Format(kind="json_schema", schema=value, name=_FORMAT)
    raise invalid(_FORMAT, "expected 'json' or a JSON Schema.")


def check_alive(value: Json) -> None:
    """Models stay loaded here, as long as their servers run; but it must be a duration."""
    if value is None or type(value) is int or type(value) is float:
        return
    if type(value) is not str or not (value == "0" or _DURATION.match(value)):
        raise invalid("keep_alive", "expected seconds, or a duration like '5m'.")


# The memory of `/api/generate`: what was said, as a list of numbers.


def context_of(request: Request, answer: str) -> JsonObject:
    """What a client sends with its next request, so that this one is remembered.

    To clients it is a list of numbers that nobody but the server reads: in Ollama tokens, here
    the letters of the conversation. There is none of one that is too long to be sent back.
    """
    chat = request.input
    assert isinstance(chat, Chat)  # noqa: S101 - others have no context
    said = [[one.role, "".join(p.text for p in one.parts if isinstance(p, Text))]
            for one in chat.messages]  # fmt: skip
    told = encode([*said, ["assistant", answer]])
    return {"context": list(told)} if len(told) <= _MOST_CONTEXT else {}


def _read_context(values: list[Json] | None) -> tuple[Message, ...]:
    if not values:
        return ()
    try:
        said = msgspec.json.decode(bytes(values), type=list[tuple[_Role, str]])
    except (msgspec.MsgspecError, TypeError, ValueError, RecursionError):
        raise invalid("context", "it is none that this gateway has given.") from None
    check_length(said, "context", MOST_MESSAGES)
    return tuple(Message(role=role, parts=(Text(text=text),)) for role, text in said)


# A request to a server.


def render_request(request: Request, traits: Traits) -> Wire:  # noqa: ARG001 - all are alike
    """Say a request to a server of Ollama's."""
    own = request.extras if request.dialect == NAME else {}
    body: JsonObject = {name: value for name, value in own.items() if name != GENERATE_PATH}
    options: JsonObject = dict(body.pop("options", {}))
    dropped: list[str] = []
    if request.n != 1:
        raise _unsayable("n", "A server of Ollama's gives one answer.")
    path = GENERATE_PATH
    match request.input:
        case Chat() as chat:
            path = CHAT_PATH
            body |= _render_chat(chat, dropped)
        case Completion(prompts=(str(prompt),), echo=False, best_of=None):
            body |= {"prompt": prompt, "raw": True}
        case Infill(prefix=prefix, suffix=suffix, prompt=None) if suffix:
            body |= {"prompt": prefix, "suffix": suffix}
        case _:
            raise _unsayable("prompt", "A server of Ollama's continues one text.")
    options |= write_knobs(request.knobs)
    if request.max_tokens is not None:
        options["num_predict"] = request.max_tokens
    if request.stop:
        options["stop"] = list(request.stop)
    if request.logit_bias:
        dropped.append("logit_bias")
    if request.model is not None:
        body["model"] = request.model
    if options:
        body["options"] = options
    if request.logprobs is not None:
        body |= {"logprobs": True, "top_logprobs": min(request.logprobs, _MOST_TOPS)}
    if (form := request.format) is not None and form.kind != "text":
        body[_FORMAT] = "json" if form.schema is None else form.schema
    return Wire(path=path, body=body | {"stream": True}, dropped=tuple(dropped))


def _render_chat(chat: Chat, dropped: list[str]) -> JsonObject:
    body: JsonObject = {"messages": [render_message(message) for message in chat.messages]}
    choice = chat.tool_choice
    tools = chat.tools
    if choice is not None:
        if choice.mode == "required":
            dropped.append("tool_choice")
        known = [tool for tool in tools if not choice.only or _name(tool) in choice.only]
        tools = () if choice.mode == "none" else tuple(known)
    if tools:
        body["tools"] = render_tools(tools)
    if chat.parallel_tool_calls is not None:
        dropped.append("parallel_tool_calls")
    effort = chat.reasoning_effort
    if effort is not None:
        body["think"] = False if effort == "none" else _EFFORTS.get(effort, effort)
    return body


def _name(tool: object) -> str:
    return getattr(tool, "name", "")


def _unsayable(param: str, why: str) -> Malformed:
    return Malformed(why, param=param, kind="unsupported")
