"""What a client of Anthropic's Messages can ask, for Hypothesis, in the form that is read."""

from __future__ import annotations

from base64 import b64encode
from typing import Any

import msgspec
from hypothesis import strategies as st

from strategies import Carries, some, unknown, words
from tropilla import ir
from tropilla.ir import Chat, Message, Request, Text, Tool, ToolChoice

CARRIES = Carries(
    inputs=(Chat,),
    include_usage=False,
    most_logprobs=0,
    least_logprobs=1,
    kinds=("text", "reasoning", "tool_call"),
    reasons=("stop", "length", "tool_calls", "content_filter"),
    ids=False,
    ends_with_numbers=True,
    stop_word=True,
    calls_are_reasons=True,
    objects_are_called=True,
)
SMALLEST = {"messages": [{"role": "user", "content": "c"}], "max_tokens": 1}

_maybe = st.none() | words
_flags = st.none() | st.booleans()
_texts = st.builds(Text, text=words)
_encoded = st.binary(min_size=1, max_size=6).map(lambda data: b64encode(data).decode())
_content = _texts | st.builds(ir.Image, url=_encoded.map("data:image/png;base64,{}".format))
_arguments = st.dictionaries(words, st.none() | st.booleans() | st.integers() | words, max_size=2)
_turn = st.one_of(
    st.builds(ir.Reasoning, text=some),
    _texts,
    st.builds(
        ir.ToolCall,
        id=some,
        name=some,
        arguments=_arguments.map(lambda given: msgspec.json.encode(given).decode()),
    ),
)
_schemas = st.sampled_from([{}, {"type": "object", "properties": {"a": {"type": "string"}}}])
_tools = st.builds(
    Tool,
    name=st.from_regex(r"\A[a-zA-Z0-9_-]{1,8}\Z"),
    description=_maybe,
    parameters=st.just({"type": "object"}),
    strict=_flags,
)
_formats = st.builds(
    ir.Format,
    kind=st.just("json_schema"),
    schema=_schemas,
    name=st.just("output"),
    strict=st.just(value=True),
)
_own: st.SearchStrategy[dict[str, Any]] = st.fixed_dictionaries(
    {},
    optional={
        "metadata": st.fixed_dictionaries({}, optional={"user_id": words}),
        "service_tier": st.sampled_from(["auto", "standard_only"]),
        "cache_control": st.just({"type": "ephemeral"}),
        "container": some,
    },
)
_thinking = st.sampled_from(
    [
        {"type": "adaptive"},
        {"type": "between_tools"},
        {"type": "enabled", "budget_tokens": 1024, "display": "summarized"},
    ]
)
_knobs = st.builds(
    ir.Knobs,
    temperature=st.none() | st.floats(0, 2),
    top_k=st.none() | st.integers(-1, 100),
    top_p=st.none() | st.floats(0, 1),
)


@st.composite
def _messages(draw: st.DrawFn) -> list[Message]:
    """A system message or none, and what follows."""
    told: list[Message] = []
    if draw(st.booleans()):
        said = draw(st.lists(st.builds(Text, text=some), min_size=1, max_size=2))
        told.append(Message(role="system", parts=tuple(said)))
    for _ in range(draw(st.integers(1, 3))):
        role: Any = draw(st.sampled_from(["user", "tool", "assistant", "system"]))
        if role == "system" and not told:
            role = "user"
        if role != "tool" and told and told[-1].role == role:
            continue  # what one says in two messages is one turn
        held: st.SearchStrategy[Any] = {"assistant": _turn, "system": _texts}.get(role, _content)
        least = 0 if role == "assistant" else 1
        parts = tuple(draw(st.lists(held, min_size=least, max_size=3)))
        id_ = draw(some) if role == "tool" else None
        told.append(Message(role=role, parts=parts, tool_call_id=id_))
    if all(message.role == "system" for message in told):
        told.append(Message(role="user", parts=(draw(_texts),)))
    return told


@st.composite
def requests(draw: st.DrawFn) -> Request:
    """A request for a message, streamed."""
    tools = tuple(draw(st.lists(_tools, max_size=2, unique_by=lambda tool: tool.name)))
    choices = [None, ToolChoice(mode="none"), ToolChoice(mode="auto")]
    if tools:
        choices += [
            ToolChoice(mode="required"),
            ToolChoice(mode="required", only=(tools[0].name,)),
        ]
    choice = draw(st.sampled_from(choices))
    parallel = draw(_flags) if choice is not None and choice.mode != "none" else None
    effort = draw(st.none() | st.sampled_from(["none", "low", "xhigh", "max"]))
    own = draw(_own)
    if effort != "none" and draw(st.booleans()):
        own["thinking"] = draw(_thinking)
    return Request(
        dialect="anthropic",
        input=Chat(
            messages=tuple(draw(_messages())),
            tools=tools,
            tool_choice=choice,
            parallel_tool_calls=parallel,
            reasoning_effort=effort,
        ),
        model=draw(_maybe),
        stream=True,
        max_tokens=draw(st.integers(100, 2**40)),
        stop=tuple(draw(st.lists(some, max_size=2))),
        tells_stop=True,
        knobs=draw(_knobs),
        format=draw(st.none() | _formats),
        extras=own | draw(unknown),
    )


_SAYABLE: dict[str, tuple[type, ...]] = {
    "system": (Text,), "developer": (Text,), "user": (Text, ir.Image), "tool": (Text, ir.Image),
    "assistant": (Text, ir.Refusal, ir.Reasoning, ir.ToolCall),
}  # fmt: skip


def unsayable(request: Request) -> bool:
    """It is a conversation with one answer and no chances, of texts, pictures and functions."""
    chat = request.input
    if not isinstance(chat, Chat) or request.n != 1 or request.logprobs is not None:
        return True
    parts = [(message.role, part) for message in chat.messages for part in message.parts]
    return (
        any(message.role == "function" for message in chat.messages)
        or any(isinstance(tool, ir.Opaque) or tool.custom for tool in offered(chat))
        or any(isinstance(part, ir.ToolCall) and part.custom for _, part in parts)
        or not all(isinstance(part, _SAYABLE[role]) for role, part in parts)
        or [message.role in {"system", "developer"} for message in chat.messages] == [True]
    )


def offered(chat: Chat) -> list[Tool | ir.Opaque]:
    """The tools that may be chosen: others are not told where they cannot be."""
    choice = chat.tool_choice
    one_named = choice is not None and choice.mode == "required" and len(choice.only) == 1
    only = () if choice is None or one_named else choice.only
    return [one for one in chat.tools if not only or getattr(one, "name", "") in only]
