"""A conversation in turns that every template can read.

Templates know one message of the system, at the beginning, and many fail where there is another
one, or where somebody speaks twice in a row. Agents do both. Nothing is left out or put elsewhere:
what the system says later becomes part of what the user says there, as agents themselves say such
things to models that know it no other way.
"""

from __future__ import annotations

import msgspec

from tropilla.ir import Chat, Message, Request, Role

_SYSTEM: tuple[Role, ...] = ("system", "developer")


def joined(request: Request) -> Request:
    """The same request, its conversation in such turns."""
    chat = request.input
    if not isinstance(chat, Chat):
        return request
    turns: list[Message] = []
    for message in chat.messages:
        last = turns[-1] if turns else None
        one = _in_its_place(message, last)
        if last is not None and _same_turn(last, one):
            turns[-1] = msgspec.structs.replace(last, parts=last.parts + one.parts)
        else:
            turns.append(one)
    if tuple(turns) == chat.messages:
        return request
    return msgspec.structs.replace(
        request, input=msgspec.structs.replace(chat, messages=tuple(turns))
    )


def _in_its_place(message: Message, last: Message | None) -> Message:
    if message.role not in _SYSTEM:
        return message
    role: Role = "system" if last is None or last.role == "system" else "user"
    return message if message.role == role else msgspec.structs.replace(message, role=role)


def _same_turn(last: Message, one: Message) -> bool:
    plain = not (last.extras or one.extras) and last.name == one.name
    return last.role == one.role and last.role in {"system", "user", "assistant"} and plain
