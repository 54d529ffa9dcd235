"""What a message says in a template that knows texts only."""

from __future__ import annotations

from tropilla.ir import Malformed, Message, Reasoning, Refusal, Text, ToolCall


def text_of(message: Message, index: int, template: str) -> str:
    """The text of a message.

    Raises:
        Malformed: of kind `unsupported`: it says something else too.
    """
    texts = []
    for part in message.parts:
        if not isinstance(part, Text):
            field = _FIELDS.get(type(part), "content")
            raise Malformed(
                f"The {template} template can only say text, not '{type(part).__name__.lower()}'.",
                param=f"messages.{index}.{field}",
                kind="unsupported",
            )
        texts.append(part.text)
    return "".join(texts)


# Where a client says what is no text, if not in the content.
_FIELDS = {ToolCall: "tool_calls", Reasoning: "reasoning_content", Refusal: "refusal"}


def no_place(message: Message, index: int, template: str) -> Malformed:
    """The error for a role that a template does not know."""
    return Malformed(
        f"The {template} template has no place for a '{message.role}' message.",
        param=f"messages.{index}.role",
        kind="unsupported",
    )
