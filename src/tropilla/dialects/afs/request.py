"""What is asked: a client's AFS request to the IR, and the IR to an AFS deployment."""

from __future__ import annotations

from contextlib import suppress
from typing import Any

from tropilla.dialects import Wire, _formats
from tropilla.dialects._fields import Fields, invalid, missing, texts, wrong_type
from tropilla.dialects._openai import MOST_MESSAGES, MOST_TOOLS, encode
from tropilla.ir import (
    Chat,
    Completion,
    Infill,
    Json,
    JsonObject,
    Knobs,
    Malformed,
    Message,
    Opaque,
    Reasoning,
    Refusal,
    Request,
    Role,
    Text,
    Tool,
    ToolCall,
    ToolChoice,
    Traits,
)

NAME = "afs"

CONVERSATION, GENERATE = "/models/conversation", "/models/generate"
_INFILLING = "/models/text_infilling"
PATHS = (CONVERSATION, GENERATE, _INFILLING)

_HOLE = "<FILL_ME>"
_MOST_STOPS = 4
_COLD = 0.01
"""AFS wants a temperature and a top_p above 0; this is what its clients send for 0."""

_ROLES: dict[str, Role] = {
    "human": "user",
    "user": "user",
    "assistant": "assistant",
    "system": "system",
    "tool": "tool",
    # The old name of a tool's result.
    "function": "tool",
}


# A client's request.


def parse_request(body: JsonObject, path: str) -> Request:
    """Read a request to one of the three paths, below whichever base."""
    fields = Fields(body)
    fields.any(NAME)  # our own mark, below: nobody else may set it
    parameters = Fields(fields.object("parameters") or {}, "parameters")
    asked: Chat | Completion | Infill
    functions = False
    if path.endswith(CONVERSATION):
        asked, functions = _parse_chat(fields)
    elif path.endswith(GENERATE):
        asked = Completion(prompts=(fields.required("inputs"),))
    else:
        asked = _parse_infill(fields.required("inputs"))
    stream, also = fields.boolean("stream"), parameters.boolean("stream")
    stops = texts(parameters.any("stop_sequences"), "parameters.stop_sequences")
    # Clients write it OpenAI's way, too, and mean the same.
    others = texts(parameters.any("stop"), "parameters.stop")
    shown = parameters.boolean("show_probabilities")
    request = Request(
        dialect=NAME,
        input=asked,
        model=fields.string("model"),
        stream=(also if stream is None else stream) or False,
        max_tokens=_parse_limit(parameters),
        stop=stops + tuple(word for word in others if word not in stops),
        knobs=_parse_knobs(parameters),
        logprobs=0 if shown else None,
        extras=fields.rest,
    )
    # `frequency_penalty` stays here: clients write it for AFS's own multiplicative penalty (1.2),
    # AFS ignores it, and as OpenAI's additive one it would ruin their answers.
    if parameters.rest:
        fields.rest["parameters"] = parameters.rest
    if functions:
        fields.rest[NAME] = {"functions": True}
    return request


def _parse_limit(parameters: Fields) -> int | None:
    limit = parameters.integer("max_new_tokens", -1)
    if limit == 0:
        raise invalid(
            "parameters.max_new_tokens",
            "expected a value >= 1, but got 0 instead.",
            "integer_below_min_value",
        )
    return None if limit == -1 else limit


def _parse_knobs(parameters: Fields) -> Knobs:
    # `null` is chance, where a missing seed is the deployment's default.
    chance = "seed" in parameters.rest and parameters.rest["seed"] is None
    penalty = parameters.number("frequence_penalty", 0)
    if penalty == 0:
        raise invalid(
            "parameters.frequence_penalty",
            "expected a value > 0, but got 0 instead: it multiplies, and 1 changes nothing.",
            "decimal_below_min_value",
        )
    seed = parameters.integer("seed", 0)
    return Knobs(
        temperature=parameters.number("temperature", 0),
        top_k=parameters.integer("top_k", 1),
        top_p=parameters.number("top_p", 0, 1),
        repeat_penalty=penalty,
        seed=-1 if chance else seed,
    )


def _parse_infill(inputs: str) -> Infill:
    before, *after = inputs.split(_HOLE)
    if len(after) != 1:
        raise invalid("inputs", f"expected exactly one '{_HOLE}', but found {len(after)}.")
    return Infill(prefix=before, suffix=after[0])


def _parse_chat(fields: Fields) -> tuple[Chat, bool]:
    """The conversation; and whether it is in the old form, with functions for tools."""
    values = fields.array("messages", MOST_MESSAGES)
    tools = fields.array("tools", MOST_TOOLS)
    functions = fields.array("functions", MOST_TOOLS)
    if values is None:
        raise missing("messages")
    if not values:
        raise invalid("messages", "expected at least one message.", "empty_array")
    if tools and functions:
        raise invalid("functions", "give either 'tools' or 'functions', not both.")
    choice, old_choice = fields.any("tool_choice"), fields.any("function_call")
    parallel = fields.boolean("parallel_tool_calls")
    messages: list[Message] = []
    called: str | None = None
    for number, value in enumerate(values):
        message = _parse_message(value, f"messages.{number}", number, called)
        calls = [part.id for part in message.parts if isinstance(part, ToolCall)]
        called = calls[-1] if calls else called
        messages.append(message)
    if functions:
        return Chat(
            messages=tuple(messages),
            tools=tuple(_parse_tool(f, f"functions.{i}") for i, f in enumerate(functions)),
            tool_choice=_parse_choice(old_choice if choice is None else choice),
            # There is place for one call in an old answer.
            parallel_tool_calls=False,
        ), True
    return Chat(
        messages=tuple(messages),
        tools=tuple(_parse_new_tool(tool, f"tools.{i}") for i, tool in enumerate(tools or ())),
        tool_choice=_parse_choice(choice),
        parallel_tool_calls=parallel,
    ), False


def _parse_message(value: Json, path: str, number: int, called: str | None) -> Message:
    fields = Fields(value, path)
    role = fields.choice("role", tuple(_ROLES))
    if role is None:
        raise missing(fields.at("role"))
    content, call = fields.any("content"), fields.object("function_call")
    calls = [
        _parse_call(item, f"{path}.tool_calls.{i}", f"call_{number}_{i}")
        for i, item in enumerate(fields.array("tool_calls") or ())
    ]
    if call is not None:
        calls.append(_parse_function(call, fields.at("function_call"), f"call_{number}"))
    text = _parse_content(content, fields.at("content"))
    if text is None and role != "assistant":
        raise missing(fields.at("content"))
    answered = fields.string("tool_call_id")
    if answered is None and role == "function":
        answered = called  # The old form answers the last call, by its function's name.
    return Message(
        role=_ROLES[role],
        parts=(*(() if text is None else (Text(text=text),)), *calls),
        name=fields.string("name"),
        tool_call_id=answered,
        extras=fields.rest,
    )


def _parse_content(value: Json, path: str) -> str | None:
    match value:
        case None | str():
            return value
        case list():
            pieces = []
            for index, part in enumerate(value):
                match part:
                    case {"type": "text", "text": str(text)}:
                        pieces.append(text)
                    case _:
                        raise wrong_type(f"{path}.{index}", "a part of text", part)
            return "".join(pieces)
    raise wrong_type(path, "a string", value)


def _parse_call(value: Json, path: str, unnamed: str) -> ToolCall:
    fields = Fields(value, path)
    fields.choice("type", ("function",))
    id_ = fields.string("id") or unnamed
    call = _parse_function(fields.any("function"), fields.at("function"), id_)
    return ToolCall(id=id_, name=call.name, arguments=call.arguments, extras=fields.rest)


def _parse_function(value: Json, path: str, id_: str) -> ToolCall:
    fields = Fields(value, path)
    name, arguments = fields.required("name"), fields.any("arguments")
    if type(arguments) is dict:
        with suppress(RecursionError):  # what could just be read may be too deep to be written
            arguments = encode(arguments).decode()
    if type(arguments) is not str:
        raise wrong_type(fields.at("arguments"), "a string of JSON", arguments)
    return ToolCall(id=id_, name=name, arguments=arguments)


def _parse_new_tool(value: Json, path: str) -> Tool:
    fields = Fields(value, path)
    fields.choice("type", ("function",))
    return _parse_tool(fields.any("function"), fields.at("function"))


def _parse_tool(value: Json, path: str) -> Tool:
    fields = Fields(value, path)
    name, parameters = fields.required("name"), fields.object("parameters")
    if parameters is not None:
        _formats.check(parameters, fields.at("parameters"), "invalid_function_parameters")
    return Tool(
        name=name,
        description=fields.string("description"),
        parameters=parameters,
        extras=fields.rest,
    )


def _parse_choice(value: Json) -> ToolChoice | None:
    match value:
        case None:
            return None
        case "none" | "auto" | "required":
            return ToolChoice(mode=value)
        case {"type": "function", "function": {"name": str(name)}} | {"name": str(name)}:
            return ToolChoice(mode="required", only=(name,))
    raise wrong_type("tool_choice", "'none', 'auto', 'required' or a function's name", value)


# A request to an upstream.


def render_request(request: Request, traits: Traits) -> Wire:  # noqa: ARG001 - AFS is not probed
    """Say a request as AFS reads it: what it cannot honour is dropped, and named.

    Raises:
        Malformed: of kind `unsupported`, where dropping would change what is asked for.
    """
    _refuse(request)
    own = request.dialect == NAME
    dropped: list[str] = []
    body: JsonObject = dict(request.extras) if own else {}
    mark, parameters = body.pop(NAME, None), dict(body.pop("parameters", {}))
    if not own:
        dropped += request.extras
    if request.model is not None:
        body["model"] = request.model
    match request.input:
        case Chat() as chat:
            path = CONVERSATION
            body |= _render_chat(chat, dropped, functions=mark is not None, own=own)
        case Completion(prompts=(str(prompt),)):
            path, body["inputs"] = GENERATE, prompt
        case Completion():
            raise _unsayable("prompt", "AFS continues one prompt of text at a time.")
        case Infill() as hole:
            path, body["inputs"] = _INFILLING, _render_infill(hole)
    parameters |= _render_knobs(request, dropped, own=own)
    if parameters:
        body["parameters"] = parameters
    body["stream"] = True
    return Wire(path=path, body=body, dropped=tuple(dropped))


_CONSTRAINING = ("grammar", "json_schema", "image_data")
"""Fields of other dialects without which the answer would be another one."""


def _unsayable(param: str, why: str) -> Malformed:
    return Malformed(why, param=param, code="unsupported_value", kind="unsupported")


def _refuse(request: Request) -> None:
    own = request.dialect == NAME
    if request.n != 1:
        raise _unsayable("n", "AFS gives one answer to a request: 'n' must be 1.")
    if request.logprobs is not None and not own:
        raise _unsayable("logprobs", "AFS tells no log probabilities in a known form.")
    if request.format is not None and request.format.kind != "text":
        raise _unsayable("response_format", "AFS cannot be held to a format: only 'text' is.")
    # A stop word too few would change where the answer ends. A client of AFS's own hears AFS.
    if len(request.stop) > _MOST_STOPS and not own:
        raise _unsayable(
            "stop", f"AFS takes at most {_MOST_STOPS} stop sequences, got {len(request.stop)}."
        )
    for name in _CONSTRAINING:
        if request.extras.get(name) and not own:
            raise _unsayable(name, f"AFS does not know '{name}'.")


def _render_infill(hole: Infill) -> str:
    if hole.prompt:
        raise _unsayable("prompt", "AFS fills a hole between two texts, without a prompt.")
    if _HOLE in hole.prefix + hole.suffix:
        raise _unsayable("inputs", f"AFS marks the hole by '{_HOLE}': no other may be there.")
    return hole.prefix + _HOLE + hole.suffix


_NEUTRAL: dict[str, float] = {
    "min_p": 0, "typical_p": 1, "presence_penalty": 0, "frequency_penalty": 0, "mirostat": 0,
    "mirostat_tau": 5, "mirostat_eta": 0.1,
}  # fmt: skip
"""The knobs that AFS does not have, and with which value each does nothing."""


def _render_knobs(request: Request, dropped: list[str], *, own: bool) -> JsonObject:
    knobs, said = request.knobs, dict[str, Any]()
    for name, neutral in _NEUTRAL.items():
        if getattr(knobs, name) not in {None, neutral}:
            dropped.append(name)
    if request.logit_bias:
        dropped.append("logit_bias")
    if request.max_tokens is not None:
        said["max_new_tokens"] = request.max_tokens
    for name in ("temperature", "top_p"):
        value: float | None = getattr(knobs, name)
        if value is not None:
            said[name] = value if value > 0 else _COLD
    if knobs.top_k is not None:
        if own or 1 <= knobs.top_k <= 100:
            said["top_k"] = knobs.top_k
        else:
            dropped.append("top_k")
    if knobs.repeat_penalty is not None:
        # The one penalty that AFS has multiplies, as llama.cpp's does, whatever its name says.
        if knobs.repeat_penalty > 0:
            said["frequence_penalty"] = knobs.repeat_penalty
        else:
            dropped.append("repeat_penalty")
    if knobs.seed is not None:
        said["seed"] = knobs.seed if knobs.seed >= 0 else None
    if request.stop:
        said["stop_sequences"] = list(request.stop)
    if request.logprobs is not None:
        said["show_probabilities"] = True
    return said


def _render_chat(chat: Chat, dropped: list[str], *, functions: bool, own: bool) -> JsonObject:
    said: JsonObject = {
        "messages": [
            _render_message(message, f"messages.{i}", dropped, functions=functions, own=own)
            for i, message in enumerate(chat.messages)
        ]
    }
    tools = _render_tools(chat, dropped, own=own)
    if tools and functions:
        said["functions"] = tools
    elif tools:
        said["tools"] = [{"type": "function", "function": tool} for tool in tools]
    if chat.tool_choice is not None:
        choice = _render_choice(chat.tool_choice, functions=functions)
        said["function_call" if functions else "tool_choice"] = choice
    if own and not functions and chat.parallel_tool_calls is not None:
        said["parallel_tool_calls"] = chat.parallel_tool_calls
    elif not own and chat.parallel_tool_calls is False:
        dropped.append("parallel_tool_calls")
    if chat.reasoning_effort is not None:
        dropped.append("reasoning_effort")
    return said


def _render_message(
    message: Message, path: str, dropped: list[str], *, functions: bool, own: bool
) -> JsonObject:
    said: JsonObject = dict(message.extras) if own else {}
    pieces: list[str] = []
    calls: list[ToolCall] = []
    for part in message.parts:
        match part:
            case Text() | Refusal():
                pieces.append(part.text)
            case ToolCall():
                calls.append(part)
            case Reasoning():
                _once(dropped, "reasoning_content")
            case _:
                raise _unsayable(
                    f"{path}.content", f"AFS reads text only, no {type(part).__name__.lower()}."
                )
    said["role"] = _role(message, functions=functions)
    # Beside calls AFS wants the content, even if it is null.
    said["content"] = "".join(pieces) if pieces or not calls else None
    if calls and functions and len(calls) == 1:
        said["function_call"] = {"name": calls[0].name, "arguments": calls[0].arguments}
    elif calls:
        said["tool_calls"] = [render_call(call, own=own) for call in calls]
    if message.tool_call_id is not None and not (functions and message.role == "tool"):
        said["tool_call_id"] = message.tool_call_id
    if message.name is not None:
        if own or message.role in {"tool", "function"}:
            said["name"] = message.name
        else:
            _once(dropped, "name")
    return said


def _once(names: list[str], name: str) -> None:
    if name not in names:
        names.append(name)


def _role(message: Message, *, functions: bool) -> str:
    match message.role:
        case "user":
            return "human"
        case "developer":
            return "system"
        case "tool" if functions:
            return "function"
    return message.role


def render_call(call: ToolCall, *, own: bool) -> JsonObject:
    """A call in the new form, as messages and answers hold it."""
    function = {"name": call.name, "arguments": call.arguments}
    said = {"id": call.id, "type": "function", "function": function}
    return said | call.extras if own else said


def _render_tools(chat: Chat, dropped: list[str], *, own: bool) -> list[JsonObject]:
    # One tool that must be called is told as the choice. Several, or those that may be called,
    # are told as the only ones there are.
    choice = chat.tool_choice
    only = choice.only if choice and (choice.mode != "required" or len(choice.only) > 1) else ()
    tools = []
    for tool in chat.tools:
        if isinstance(tool, Opaque):
            raise _unsayable("tools", f"AFS knows functions only, no '{tool.body.get('type')}'.")
        if only and tool.name not in only:
            continue
        said: JsonObject = {"name": tool.name}
        if tool.description is not None:
            said["description"] = tool.description
        if tool.parameters is not None:
            said["parameters"] = tool.parameters
        if tool.strict is not None:
            _once(dropped, "strict")
        tools.append(said | tool.extras if own else said)
    if only and not tools:
        raise invalid("tool_choice", f"no tool named '{only[0]}' is among 'tools'.")
    return tools


def _render_choice(choice: ToolChoice, *, functions: bool) -> Json:
    if choice.mode != "required" or len(choice.only) != 1:
        return choice.mode
    name = {"name": choice.only[0]}
    return name if functions else {"type": "function", "function": name}
