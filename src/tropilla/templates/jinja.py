"""Chat templates in Jinja, as models carry them, servers tell them and people write them.

A template reads no file, knows no clock, and runs no longer than its fuel lasts. What it builds
in memory is not bounded: it is the operator who chooses a template, or the server that tells it.
"""

from __future__ import annotations

from functools import cache
from typing import TYPE_CHECKING, Any, NoReturn

from tropilla.ir import Malformed, Message, Value
from tropilla.templates._says import no_place, text_of

if TYPE_CHECKING:
    import minijinja

_FUEL = 1_000_000
"""Steps of one rendering: some milliseconds. A long conversation takes a few thousand."""

_MOST_SOURCE = 1024 * 1024
"""Characters of a template."""

_ROLES = {
    "system": "system",
    "developer": "system",
    "user": "user",
    "assistant": "assistant",
}


class Jinja(Value, frozen=True, kw_only=True):
    """A chat template; `stop` ends an answer, `eos` is the model's end of text."""

    name: str
    source: str
    stop: tuple[str, ...] = ()
    eos: str = ""

    @property
    def stops(self) -> tuple[str, ...]:
        """What ends an answer."""
        return self.stop

    def prompt(self, messages: tuple[Message, ...]) -> str:
        """The prompt for a conversation, ready for the assistant's next words.

        Where the last message is the assistant's, the answer goes on after it.

        Raises:
            Malformed: of kind `unsupported`, for what it cannot say.
        """
        told = []
        for index, message in enumerate(messages):
            role = _ROLES.get(message.role)
            if role is None:
                raise no_place(message, index, self.name)
            told.append({"role": role, "content": text_of(message, index, self.name)})
        begun = told.pop()["content"] if len(told) > 1 and told[-1]["role"] == "assistant" else ""
        environment = _environment(self.name, self.source)
        try:
            prompt = environment.render_template(
                "chat",
                messages=told,
                add_generation_prompt=True,
                # The engine puts the beginning of text before a raw prompt by itself.
                bos_token="",
                eos_token=self.eos,
            )
        except _Refused as refused:
            raise _malformed(f"The {self.name} template refuses this: {refused}") from None
        except Exception as error:  # noqa: BLE001 - whatever a template does, it is not ours
            told_why = str(error).partition("\n")[0]
            raise _malformed(f"The {self.name} template fails: {told_why}") from None
        return prompt + begun


def compiled(name: str, source: str, *, eos: str = "", stop: tuple[str, ...] = ()) -> Jinja:
    """A template that can be used; without stop texts, those that its own words suggest.

    Raises:
        Malformed: it is none; the message says in which line.
    """
    _environment(name, source)
    if not stop:
        marks = [mark for mark in (eos, *_ENDS) if mark and (mark == eos or mark in source)]
        stop = tuple(dict.fromkeys(marks))
    return Jinja(name=name, source=source, stop=stop, eos=eos)


_ENDS = (
    "<|im_end|>",
    "<|eot_id|>",
    "<end_of_turn>",
    "<|end|>",
    "<|end_of_turn|>",
    "<|END_OF_TURN_TOKEN|>",
    "<|end_of_text|>",
    "<|endoftext|>",
    "<|EOT|>",
    "</s>",
)
"""How turns end: one of these in a template ends an answer, on a server that does not know it."""


class _Refused(Exception):  # noqa: N818 - the template's own word
    """What a template says with `raise_exception`."""


def _raise(message: object = "") -> NoReturn:
    raise _Refused(str(message))


@cache
def _environment(name: str, source: str) -> minijinja.Environment:
    import minijinja  # noqa: PLC0415 - only who uses such a template pays for it

    if len(source) > _MOST_SOURCE:
        raise _malformed(f"The {name} template has more than {_MOST_SOURCE} characters.")
    # As transformers and llama.cpp have it.
    environment = minijinja.Environment(trim_blocks=True, lstrip_blocks=True)
    environment.fuel = _FUEL
    environment.auto_escape_callback = _escape_nothing
    environment.add_global("raise_exception", _raise)
    try:
        environment.add_template("chat", source)
    except minijinja.TemplateError as error:
        why = str(error).partition(" (in ")[0]
        raise _malformed(f"The {name} template has an error in line {error.line}: {why}.") from None
    return environment


def _escape_nothing(_: Any) -> bool:
    return False


def _malformed(message: str) -> Malformed:
    return Malformed(message, param="messages", kind="unsupported")
