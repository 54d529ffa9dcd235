"""Custom tools for servers that know only functions: a function with one text, `input`.

What the model writes as JSON is told as the text that it stands for, as it comes. The form that a
custom tool may want (a grammar) is said to the model, and nothing holds the model to it: that it
was lost is told.
"""

from __future__ import annotations

import re

import msgspec

from tropilla.ir import Chat, JsonObject, Message, Opaque, Part, Request, Tool, ToolCall

_INPUT = "input"


def fitted(request: Request) -> tuple[Request, tuple[str, ...]]:
    """The same request with functions alone, which keep their form; and what of it is lost."""
    chat = request.input
    if not isinstance(chat, Chat) or not _is_custom(chat):
        return request, ()
    lost = any(not isinstance(tool, Opaque) and _grammar(tool) for tool in chat.tools)
    said = msgspec.structs.replace(
        chat,
        messages=tuple(_message(message) for message in chat.messages),
        tools=tuple(_function(tool) for tool in chat.tools),
    )
    return msgspec.structs.replace(request, input=said), ("format",) if lost else ()


def names(request: Request) -> frozenset[str]:
    """The custom tools that a request offers, as functions or as what they are."""
    chat = request.input
    if not isinstance(chat, Chat):
        return frozenset()
    return frozenset(t.name for t in chat.tools if not isinstance(t, Opaque) and _free(t))


def _free(tool: Tool) -> bool:
    return tool.custom or tool.form is not None


def _is_custom(chat: Chat) -> bool:
    return any(not isinstance(tool, Opaque) and tool.custom for tool in chat.tools) or any(
        isinstance(part, ToolCall) and part.custom
        for message in chat.messages
        for part in message.parts
    )


def _grammar(tool: Tool) -> JsonObject | None:
    """The grammar that a custom tool wants, in either place where OpenAI's APIs have it."""
    match tool.form:
        case {"type": "grammar", "grammar": dict(grammar)}:
            return grammar
        case {"type": "grammar"} as form:
            return form
    return None


def _function(tool: Tool | Opaque) -> Tool | Opaque:
    if isinstance(tool, Opaque) or not tool.custom:
        return tool
    grammar = _grammar(tool)
    told = "Free text."
    if grammar is not None:
        told = (
            f"Text that follows this grammar ({grammar.get('syntax')}):\n"
            f"{grammar.get('definition')}"
        )
    return Tool(
        name=tool.name,
        description=tool.description,
        parameters={
            "type": "object",
            "properties": {_INPUT: {"type": "string", "description": told}},
            "required": [_INPUT],
            "additionalProperties": False,
        },
        form=tool.form or {"type": "text"},
        extras=tool.extras,
        beside=tool.beside,
    )


def _message(message: Message) -> Message:
    return msgspec.structs.replace(message, parts=tuple(_part(part) for part in message.parts))


def _part(part: Part) -> Part:
    if not isinstance(part, ToolCall) or not part.custom:
        return part
    arguments = msgspec.json.encode({_INPUT: part.arguments}).decode()
    return msgspec.structs.replace(part, arguments=arguments, custom=False)


_HEAD = re.compile(r'[ \t\r\n]*\{[ \t\r\n]*"input"[ \t\r\n]*:[ \t\r\n]*"')
_SPACE = re.compile(r"[ \t\r\n]+")
_PLAIN = re.compile(r'[^"\\]+')
_ESCAPES = {
    '"': '"', "\\": "\\", "/": "/", "b": "\b", "f": "\f", "n": "\n", "r": "\r", "t": "\t",
}  # fmt: skip
_UNIT = re.compile("[0-9a-fA-F]{4}")


class Unwrapped:
    """The text in the JSON of one call, as it comes.

    What is not of that form was written by a model that did not do as it was told: it is the text.
    Half a pair of surrogates is no text, and becomes U+FFFD.
    """

    __slots__ = ("_held", "_high", "_state")

    def __init__(self) -> None:
        self._state = "head"
        self._held = ""
        self._high: int | None = None

    def feed(self, piece: str) -> str:
        """The text that is certain."""
        match self._state:
            case "raw":
                return piece
            case "over":
                return ""
        text, self._held = self._held + piece, ""
        if self._state == "head":
            head = _HEAD.match(text)
            if head is not None:
                self._state, text = "text", text[head.end() :]
            elif '{"input":"'.startswith(_SPACE.sub("", text)):
                self._held = text
                return ""
            else:
                self._state = "raw"
                return text
        return self._unescaped(text)

    def end(self) -> str:
        """What was still held back."""
        held, self._held = self._held, ""
        if self._state == "head":
            return held
        return self._lone()

    def _unescaped(self, text: str) -> str:
        out: list[str] = []
        at = 0
        while at < len(text):
            plain = _PLAIN.match(text, at)
            if plain is not None:
                out += [self._lone(), plain[0]]
                at = plain.end()
            elif text[at] == '"':
                out.append(self._lone())
                self._state = "over"
                break
            else:
                size = self._escape(text, at, out)
                if not size:
                    self._held = text[at:]
                    break
                at += size
        return "".join(out)

    def _escape(self, text: str, at: int, out: list[str]) -> int:
        """Tell what an escape stands for; its size, or 0 where it is not whole yet."""
        kind = text[at + 1 : at + 2]
        if not kind:
            return 0
        if kind != "u":
            # What is no escape stands for itself.
            out += [self._lone(), _ESCAPES.get(kind, "\\" + kind)]
            return 2
        digits = text[at + 2 : at + 6]
        if len(digits) < 4:
            return 0
        if _UNIT.fullmatch(digits) is None:
            out += [self._lone(), "\\u"]
            return 2
        unit = int(digits, 16)
        if self._high is not None and 0xDC00 <= unit < 0xE000:
            out.append(chr(0x10000 + ((self._high - 0xD800) << 10) + unit - 0xDC00))
            self._high = None
            return 6
        out.append(self._lone())
        if 0xD800 <= unit < 0xDC00:
            self._high = unit
        else:
            out.append("\ufffd" if 0xDC00 <= unit < 0xE000 else chr(unit))
        return 6

    def _lone(self) -> str:
        """What stands for half a pair whose other half did not come."""
        if self._high is None:
            return ""
        self._high = None
        return "\ufffd"
