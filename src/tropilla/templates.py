"""Chat messages to prompt text, for upstreams that are to continue raw text.

The classic template is that of llama.cpp's `api_like_OAI.py` (removed in b2307): four names and
a stop text around each turn. What it cannot say (tools, pictures) is refused, never left out.
"""

from __future__ import annotations

from typing import TypeAlias

import msgspec

from tropilla.ir import (
    Chat,
    Completion,
    Malformed,
    Message,
    Reasoning,
    Refusal,
    Request,
    Text,
    ToolCall,
    Value,
)


class Classic(Value, frozen=True, kw_only=True):
    r"""The template of `api_like_OAI.py`, with its defaults.

    In each field the two characters `\n` stand for a line break, as on the script's command
    line. An empty `stop` disables the stop text.
    """

    chat_prompt: str = (
        "A chat between a curious user and an artificial intelligence assistant. "
        r"The assistant follows the given rules no matter what.\n"
    )
    user_name: str = r"\nUSER: "
    ai_name: str = r"\nASSISTANT: "
    system_name: str = r"\nASSISTANT's RULE: "
    stop: str = "</s>"

    def prompt(self, messages: tuple[Message, ...]) -> str:
        """The prompt for a conversation, ready for the assistant's next words."""
        names = {
            "system": _unescape(self.system_name),
            "developer": _unescape(self.system_name),
            "user": _unescape(self.user_name),
            "assistant": _unescape(self.ai_name),
        }
        stop = _unescape(self.stop)
        told = [_unescape(self.chat_prompt)]
        for index, message in enumerate(messages):
            name = names.get(message.role)
            if name is None:
                raise Malformed(
                    f"The classic template has no place for a '{message.role}' message.",
                    param=f"messages.{index}.role",
                    kind="unsupported",
                )
            told.append(name + _text(message, index))
            if message.role == "assistant":
                told.append(stop)
        told.append(names["assistant"].rstrip())
        return "".join(told)


class Jinja(Value, frozen=True, kw_only=True):
    """A chat template in Jinja, as models carry it and servers tell it."""

    name: str
    source: str
    stop: tuple[str, ...] = ()
    eos: str = ""


Template: TypeAlias = Classic | Jinja


def flatten(request: Request, template: Template) -> Request:
    """The same request as raw text to be continued, or as it is when it is text already.

    The template's stop text comes before the client's own, for chat and completions alike, as
    the script did it.

    Raises:
        Malformed: of kind `unsupported`, for what the template cannot say.
    """
    stop = _unescape(template.stop)
    stops = (stop, *request.stop) if stop else request.stop
    chat = request.input
    if not isinstance(chat, Chat):
        return msgspec.structs.replace(request, stop=stops)
    if chat.tools:
        raise Malformed(
            "The classic template cannot tell the model about tools.",
            param="tools",
            kind="unsupported",
        )
    prompt = template.prompt(chat.messages)
    return msgspec.structs.replace(request, input=Completion(prompts=(prompt,)), stop=stops)


def _unescape(text: str) -> str:
    # Only these two characters, as in the script: a tab or a backslash stays what it is.
    return text.replace("\\n", "\n")


def _text(message: Message, index: int) -> str:
    texts = []
    for part in message.parts:
        if not isinstance(part, Text):
            field = _FIELDS.get(type(part), "content")
            raise Malformed(
                f"The classic template can only say text, not '{type(part).__name__.lower()}'.",
                param=f"messages.{index}.{field}",
                kind="unsupported",
            )
        texts.append(part.text)
    return "".join(texts)


# Where a client says what is no text, if not in the content.
_FIELDS = {ToolCall: "tool_calls", Reasoning: "reasoning_content", Refusal: "refusal"}
