"""Chat messages to prompt text, for upstreams that are to continue raw text.

`classic` is the template of llama.cpp's `api_like_OAI.py`; `jinja` renders the templates that
models carry, and `builtin` holds those of well-known families by name. What a template cannot
say (tools, pictures) is refused, what changes nothing is named; nothing is left out in silence.
"""

from __future__ import annotations

from typing import NamedTuple, TypeAlias

import msgspec

from tropilla.ir import Chat, Completion, Malformed, Message, Request
from tropilla.templates.builtin import JINJA, family
from tropilla.templates.classic import Classic
from tropilla.templates.jinja import Jinja, compiled

__all__ = [
    "NAMES",
    "Classic",
    "Flattened",
    "Jinja",
    "Template",
    "compiled",
    "flatten",
    "named",
    "recognised",
]

Template: TypeAlias = Classic | Jinja

NAMES = ("classic", *JINJA)
"""The templates that are known by name."""


def named(name: str) -> Template:
    """The template of this name.

    Raises:
        KeyError: there is none.
    """
    if name == "classic":
        return Classic()
    source, *stop = JINJA[name]
    return compiled(name, source, stop=tuple(stop))


def recognised(source: str) -> Template | None:
    """The template that is known by name and does what this one does, if there is one.

    It is for what a server tells: nothing of the source is run.
    """
    name = family(source)
    return None if name is None else named(name)


class Flattened(NamedTuple):
    """A request as raw text to be continued, and the fields that are lost in it."""

    request: Request
    dropped: tuple[str, ...]


def flatten(request: Request, template: Template, *, bos: str = "", eos: str = "") -> Flattened:
    """The same request as raw text to be continued, or as it is when it is text already.

    The template's stop texts come before the client's own. The classic one's holds for completions
    too, as the script did it. `bos` and `eos` are the server's beginning and end of text, for a
    template that was not told.

    Raises:
        Malformed: of kind `unsupported`, for what the template cannot say.
    """
    chat = request.input
    if not isinstance(chat, Chat):
        stop = template.stops if isinstance(template, Classic) else ()
        return Flattened(msgspec.structs.replace(request, stop=_joined(stop, request.stop)), ())
    choice = chat.tool_choice
    if chat.tools and (choice is None or choice.mode != "none"):
        raise Malformed(
            "The prompt is made by a template here, which cannot tell the model about tools.",
            param="functions" if chat.functions else "tools",
            kind="unsupported",
        )
    if isinstance(template, Jinja):
        template = msgspec.structs.replace(
            template, bos=template.bos or bos, eos=template.eos or eos
        )
    prompt = template.prompt(chat.messages)
    flat = msgspec.structs.replace(
        request,
        input=Completion(prompts=(prompt,)),
        stop=_joined(template.stops, request.stop),
    )
    return Flattened(flat, tuple(_dropped(chat)))


def _joined(first: tuple[str, ...], then: tuple[str, ...]) -> tuple[str, ...]:
    return (*first, *(word for word in then if word not in first))


def _dropped(chat: Chat) -> list[str]:
    """What of a conversation a prompt does not hold."""
    dropped = ["tools"] if chat.tools else []
    dropped += [
        name
        for name in ("parallel_tool_calls", "reasoning_effort")
        if getattr(chat, name) is not None
    ]
    if any(_is_named(message) for message in chat.messages):
        dropped.append("name")
    return dropped


def _is_named(message: Message) -> bool:
    return message.name is not None
