"""What a client of AFS can ask, for Hypothesis, in the form in which it is read again."""

from __future__ import annotations

from typing import Any

from hypothesis import strategies as st

from tropilla import ir
from tropilla.ir import (
    Chat,
    Completion,
    Infill,
    Knobs,
    Message,
    Request,
    Text,
    Tool,
    ToolCall,
    ToolChoice,
)

some = st.text(st.characters(codec="utf-8"), min_size=1, max_size=8)
plain = some.filter(lambda text: "<FILL_ME>" not in text)
tool_names = st.from_regex(r"\A[a-z_]{1,8}\Z")
unknown = st.dictionaries(
    some.map("x_".__add__), st.integers() | some | st.lists(some, max_size=2), max_size=2
)


@st.composite
def chats(draw: st.DrawFn) -> tuple[Chat, bool]:
    """A conversation; and whether it is in the old form."""
    old = draw(st.booleans())
    tools = draw(
        st.lists(
            st.builds(Tool, name=tool_names, description=st.none() | some, extras=unknown),
            min_size=int(old),
            max_size=2,
            unique_by=lambda tool: tool.name,
        )
    )
    messages: list[Message] = []
    called: str | None = None
    for number in range(draw(st.integers(1, 3))):
        role: Any = draw(st.sampled_from(["system", "user", "assistant", "tool"]))
        parts: list[ir.Part] = [Text(text=draw(some))]
        if role == "assistant" and draw(st.booleans()):
            called = f"call_{number}" if old else draw(some)
            parts = [*parts[draw(st.integers(0, 1)) :]]
            parts.append(ToolCall(id=called, name=draw(some), arguments=draw(some)))
        answered = called if old else draw(some)
        messages.append(
            Message(
                role=role,
                parts=tuple(parts),
                name=draw(st.none() | some),
                tool_call_id=answered if role == "tool" else None,
                extras=draw(unknown),
            )
        )
    choice = draw(st.none() | st.sampled_from([ToolChoice(mode="none"), ToolChoice(mode="auto")]))
    if draw(st.booleans()) and tools:
        choice = ToolChoice(mode="required", only=(tools[0].name,))
    chat = Chat(
        messages=tuple(messages),
        tools=tuple(tools),
        tool_choice=choice,
        parallel_tool_calls=False if old else draw(st.none() | st.booleans()),
    )
    return chat, old


@st.composite
def requests(draw: st.DrawFn) -> Request:
    """A request of a client of AFS, in either form of tools, streamed."""
    extras: dict[str, Any] = draw(unknown)
    kind = draw(st.sampled_from([Chat, Completion, Infill]))
    asked_for: Any = Completion(prompts=(draw(some),))
    if kind is Chat:
        asked_for, old = draw(chats())
        extras |= {"afs": {"functions": True}} if old else {}
    elif kind is Infill:
        asked_for = Infill(prefix=draw(plain), suffix=draw(plain))
    more = draw(unknown)
    return Request(
        dialect="afs",
        input=asked_for,
        model=draw(st.none() | some),
        stream=True,
        max_tokens=draw(st.none() | st.integers(1, 2**40)),
        # With a template's own no more than OpenAI has place for.
        stop=tuple(draw(st.lists(some, max_size=3))),
        knobs=Knobs(
            temperature=draw(st.none() | st.floats(0.01, 2)),
            top_k=draw(st.none() | st.integers(1, 200)),
            top_p=draw(st.none() | st.floats(0.01, 1)),
            repeat_penalty=draw(st.none() | st.floats(0.5, 2)),
            seed=draw(st.none() | st.integers(-1, 2**32)),
        ),
        extras=extras | ({"parameters": more} if more else {}),
    )
