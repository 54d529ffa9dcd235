"""Conversations in turns that every template can read."""

from __future__ import annotations

from typing import Any

import pytest

from conftest import CHAT, Serve
from doubles.upstream import Double, streams
from doubles.upstream import told as said
from tropilla.ir import Chat, Message, Request, Text
from tropilla.turns import joined


def turns(*roles: str, **fields: Any) -> list[tuple[str, str]]:
    """Messages of these roles, each saying its number; what they say when they are joined."""
    messages = tuple(
        Message(role=role, parts=(Text(text=str(number)),), **fields)  # type: ignore[arg-type]
        for number, role in enumerate(roles)
    )
    chat = joined(Request(dialect="anthropic", input=Chat(messages=messages))).input
    assert isinstance(chat, Chat)
    return [
        (one.role, "".join(part.text for part in one.parts if isinstance(part, Text)))
        for one in chat.messages
    ]


def test_the_system_speaks_once_and_first() -> None:
    assert turns("developer", "system", "user") == [("system", "01"), ("user", "2")]
    assert turns("user", "system", "assistant", "developer") == [
        ("user", "01"), ("assistant", "2"), ("user", "3"),
    ]  # fmt: skip
    assert turns("system", "tool", "system", "user") == [
        ("system", "0"), ("tool", "1"), ("user", "23"),
    ]  # fmt: skip


def test_nobody_speaks_twice_in_a_row() -> None:
    assert turns("user", "user", "assistant", "assistant", "tool", "tool", "user") == [
        ("user", "01"), ("assistant", "23"), ("tool", "4"), ("tool", "5"), ("user", "6"),
    ]  # fmt: skip


def test_what_is_told_beside_the_text_keeps_messages_apart() -> None:
    assert turns("user", "user", extras={"x": 1}) == [("user", "0"), ("user", "1")]
    assert turns("user", "user", name="Ana") == [("user", "01")]


def test_raw_text_has_no_turns() -> None:
    from tropilla.ir import Completion

    request = Request(dialect="llamacpp", input=Completion(prompts=("x",)))
    assert joined(request) is request


CODEX = [
    {"type": "message", "role": role, "content": [{"type": "input_text", "text": text}]}
    for role, text in (
        ("developer", "Rules."), ("developer", "More."), ("user", "Place."), ("user", "Ask."),
    )
]  # fmt: skip


@pytest.mark.anyio
async def test_agents_are_understood_and_clients_of_chat_are_taken_at_their_word(
    gateway: Serve, double: Double
) -> None:
    double.on("/v1/chat/completions", streams(*said("x")))
    tropilla = await gateway(double)
    tools = [{"type": "namespace", "name": "n"}, {"type": "web_search"}]
    asked = {"model": "m", "input": CODEX, "instructions": "Be.", "tools": tools, "store": False}
    answer = await tropilla.ask("POST", "/v1/responses", asked)
    assert answer.status == 200, answer.body
    sent = double.requests[-1].json
    assert [message["role"] for message in sent["messages"]] == ["system", "user"]
    assert "tools" not in sent
    own = [{"role": "user", "content": "a"}, {"role": "system", "content": "b"}]
    await tropilla.ask("POST", "/v1/chat/completions", CHAT | {"messages": own})
    assert double.requests[-1].json["messages"] == own
