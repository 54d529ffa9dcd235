"""What a client of OpenAI's Responses can ask, for Hypothesis, in the form in which it is read."""

from __future__ import annotations

from base64 import b64encode
from typing import Any

from hypothesis import strategies as st

from tropilla import ir
from tropilla.dialects._media import DETAILS
from tropilla.ir import Chat, Message, Part, Request, Text, Tool, ToolChoice

words = st.text(st.characters(codec="utf-8"), max_size=8)
some = st.text(st.characters(codec="utf-8"), min_size=1, max_size=8)
_maybe = st.none() | words
_flags = st.none() | st.booleans()
_texts = st.builds(Text, text=words)
_encoded = st.binary(min_size=1, max_size=6).map(lambda data: b64encode(data).decode())
_content = (
    _texts
    | st.builds(
        ir.Image,
        url=_encoded.map("data:image/png;base64,{}".format),
        detail=st.none() | st.sampled_from(DETAILS),
    )
    | st.builds(ir.Audio, data=_encoded, format=some)
)
_turn = st.one_of(
    st.builds(ir.Reasoning, text=some),
    _texts,
    st.builds(ir.Refusal, text=words),
    st.builds(ir.ToolCall, id=some, name=some, arguments=words),
)
_schemas = st.sampled_from([{}, {"type": "object", "properties": {"a": {"type": "string"}}}])
_names = st.from_regex(r"\A[a-zA-Z0-9_-]{1,8}\Z")
_tools = st.builds(
    Tool,
    name=_names,
    description=_maybe,
    parameters=st.none() | _schemas,
    strict=_flags,
)
_formats = st.builds(
    ir.Format,
    kind=st.just("json_schema"),
    schema=st.none() | _schemas,
    name=st.none() | _names,
    description=_maybe,
    strict=_flags,
) | st.builds(ir.Format, kind=st.sampled_from(["text", "json_object"]))
_own = st.fixed_dictionaries(
    {},
    optional={
        "include": st.just(["reasoning.encrypted_content"]),
        "max_tool_calls": st.integers(1, 9),
        "metadata": st.dictionaries(some, words, max_size=2),
        "previous_response_id": some,
        "prompt_cache_key": some,
        "reasoning": st.just({"summary": "auto"}),
        "store": st.booleans(),
        "truncation": st.sampled_from(["auto", "disabled"]),
        "verbosity": st.sampled_from(["low", "high"]),
    },
)


@st.composite
def _messages(draw: st.DrawFn) -> list[Message]:
    """Turns that alternate: what an assistant says in two is one."""
    told: list[Message] = []
    for _ in range(draw(st.integers(1, 3))):
        role: Any = draw(st.sampled_from(["system", "developer", "user", "tool", "assistant"]))
        if role == "assistant":
            if not told or told[-1].role != "assistant":
                parts = tuple(draw(st.lists(_turn, min_size=1, max_size=4)))
                told.append(Message(role=role, parts=parts))
            continue
        held: list[Part] = draw(st.lists(_content, min_size=1, max_size=3))
        id_ = draw(some) if role == "tool" else None
        told.append(Message(role=role, parts=tuple(held), tool_call_id=id_))
    return told or [Message(role="user", parts=(Text(text=draw(words)),))]


@st.composite
def chats(draw: st.DrawFn, instructions: str | None) -> Chat:
    """A conversation."""
    messages = draw(_messages())
    if instructions is not None:
        messages.insert(0, Message(role="system", parts=(Text(text=instructions),)))
    tools = tuple(draw(st.lists(_tools, max_size=2, unique_by=lambda tool: tool.name)))
    choices = [None, ToolChoice(mode="none"), ToolChoice(mode="auto")]
    if tools:
        names = tuple(tool.name for tool in tools)
        choices += [
            ToolChoice(mode="required"),
            ToolChoice(mode="required", only=names),
            ToolChoice(mode="auto", only=names),
        ]
    return Chat(
        messages=tuple(messages),
        tools=tools,
        tool_choice=draw(st.sampled_from(choices)),
        parallel_tool_calls=draw(_flags),
        reasoning_effort=draw(st.none() | st.sampled_from(["none", "low", "max"])),
    )


@st.composite
def requests(
    draw: st.DrawFn, knobs: st.SearchStrategy[ir.Knobs], extras: st.SearchStrategy[Any]
) -> Request:
    """A request for a response, streamed."""
    own = draw(_own)
    instructions = draw(_maybe)
    if instructions is not None:
        own["instructions"] = instructions
    return Request(
        dialect="openai_responses",
        input=draw(chats(instructions)),
        model=draw(_maybe),
        stream=True,
        max_tokens=draw(st.none() | st.integers(100, 2**40)),
        stop=tuple(draw(st.lists(some, max_size=2))),
        knobs=draw(knobs),
        logprobs=draw(st.none() | st.integers(0, 20)),
        format=draw(st.none() | _formats),
        extras=own | draw(extras),
    )
