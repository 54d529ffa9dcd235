"""What a client of Ollama can ask, for Hypothesis, in the form in which it is read again."""

from __future__ import annotations

from typing import Any

import msgspec
from hypothesis import strategies as st

import strategies
from strategies import Carries, json_objects, knobs, maybe, some, unknown, words
from tropilla import ir
from tropilla.dialects.ollama.messages import object_of
from tropilla.ir import Chat, Completion, Infill, Message, Request, Text, Tool, ToolCall

CARRIES = Carries(
    inputs=(Chat, Completion, Infill),
    include_usage=False,
    most_logprobs=20,
    least_logprobs=1,
    kinds=("text", "reasoning", "tool_call"),
    reasons=("stop", "length", "tool_calls"),
    ids=False,
    ends_with_numbers=True,
    usage_details=False,
    timings=False,
    only_text_chances=True,
    calls_are_reasons=True,
    objects_are_called=True,
    calls_come_whole=True,
)
SMALLEST = {"messages": [{"role": "user", "content": "c"}]}

_objects = json_objects.map(msgspec.json.encode).map(bytes.decode)
_calls = st.builds(ToolCall, id=some, name=some, arguments=_objects, extras=unknown)
_pictures = strategies._encoded.map("data:image/png;base64,{}".format).filter(
    lambda url: not url.partition(",")[2].startswith(("/9j/", "R0lGOD", "UklGR", "Qk"))
)
_tools = st.builds(
    Tool,
    name=strategies._called,
    description=maybe(words),
    parameters=maybe(strategies._explained),
    extras=unknown,
    beside=unknown,
)


@st.composite
def _messages(draw: st.DrawFn) -> Message:
    role: Any = draw(st.sampled_from(["system", "user", "assistant", "tool"]))
    parts: list[ir.Part] = []
    if role == "assistant" and draw(st.booleans()):
        parts.append(ir.Reasoning(text=draw(some)))
    if role != "assistant" or draw(st.booleans()):
        parts.append(Text(text=draw(some)))
    parts += draw(st.lists(st.builds(ir.Image, url=_pictures), max_size=2))
    if role == "assistant":
        parts += draw(st.lists(_calls, max_size=2))
    return Message(
        role=role,
        parts=tuple(parts),
        name=draw(maybe(some)),
        tool_call_id=draw(some) if role == "tool" else None,
        extras=draw(unknown),
    )


_chats = st.builds(
    Chat,
    messages=st.lists(_messages(), min_size=1, max_size=3).map(tuple),
    tools=st.lists(_tools, max_size=2, unique_by=lambda tool: tool.name).map(tuple),
    reasoning_effort=st.sampled_from([None, "none", "low", "medium", "high", "max"]),
)
_asked: st.SearchStrategy[Any] = (
    _chats
    | st.builds(Completion, prompts=words.map(lambda text: (text,)))
    | st.builds(Infill, prefix=words, suffix=some)
)
_forms = st.just(ir.Format(kind="json_object")) | st.builds(
    ir.Format, kind=st.just("json_schema"), schema=strategies._explained, name=st.just("format")
)


@st.composite
def requests(draw: st.DrawFn) -> Request:
    """A request, streamed."""
    extras = draw(unknown)
    if options := draw(unknown):
        extras["options"] = options
    return Request(
        dialect="ollama",
        input=draw(_asked),
        model=draw(maybe(words)),
        stream=True,
        max_tokens=draw(maybe(st.integers(100, 2**40))),
        stop=tuple(draw(st.lists(some, max_size=2))),
        knobs=draw(knobs),
        logprobs=draw(maybe(st.integers(1, 20))),
        format=draw(maybe(_forms)),
        extras=extras,
    )


def unsayable(request: Request) -> bool:
    """It gives one answer, and reads texts, pictures, functions, and calls with objects."""
    if request.n != 1:
        return True
    match request.input:
        case Infill(suffix=suffix, prompt=prompt):
            return prompt is not None or not suffix
        case Completion(prompts=prompts, echo=echo):
            return echo or len(prompts) != 1 or not isinstance(prompts[0], str)
        case Chat(messages=messages, tools=tools, tool_choice=choice):
            parts = [part for message in messages for part in message.parts]
            offered = () if choice is not None and choice.mode == "none" else tools
            if choice is not None and choice.only:
                offered = tuple(one for one in offered if getattr(one, "name", "") in choice.only)
            return (
                any(isinstance(part, ir.Audio | ir.Opaque) for part in parts)
                or any(_broken(part) for part in parts if isinstance(part, ToolCall))
                or any(isinstance(tool, ir.Opaque) or tool.custom for tool in offered)
            )


def _broken(call: ToolCall) -> bool:
    return call.custom or object_of(call.arguments) is None
