"""Chat templates in Jinja, as models carry them and people write them.

A template reads no file, knows no clock, and runs no longer than its fuel lasts. Yet it is code:
minijinja bounds neither the texts that it builds in memory nor the depth of its values, and one
that is written for it can end the whole process. So only the operator may choose one; for what a
server tells there is `recognised`, which runs nothing of it.
"""

from __future__ import annotations

import re
from functools import lru_cache
from typing import TYPE_CHECKING, Any, NoReturn

import msgspec

from tropilla.ir import Malformed, Message, Value
from tropilla.templates._says import no_place, text_of

if TYPE_CHECKING:
    import minijinja

_FUEL = 1_000_000
"""Steps of one rendering: some milliseconds. A long conversation takes a few thousand."""

_MOST_SOURCE = 1024 * 1024
"""Characters of a template."""

_MOST_PROMPT = 64 * 1024 * 1024
"""Characters of a prompt."""

_KEPT = 64
"""Templates that are kept compiled."""

_ROLES = {
    "system": "system",
    "developer": "system",
    "user": "user",
    "assistant": "assistant",
}


class Jinja(Value, frozen=True, kw_only=True):
    """A chat template; `stop` ends an answer.

    `bos` and `eos` are the model's beginning and end of text, empty where nobody told them.
    """

    name: str
    source: str
    stop: tuple[str, ...] = ()
    bos: str = ""
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
            told.append((role, text_of(message, index, self.name)))
        begun = told.pop()[1] if told and told[-1][0] == "assistant" else ""
        typed = _takes_parts(self.name, self.source)
        prompt = self._told(_rendered(self.name, self.source, told, typed=typed))
        if len(prompt) > _MOST_PROMPT:
            raise _malformed(f"The {self.name} template makes far too long a prompt.")
        return prompt + begun

    def _told(self, prompt: str) -> str:
        """A prompt with the model's own marks in the place of those that stand for them."""
        before, begins, after = prompt.partition(_BOS)
        if begins and not before.strip():
            # The engine puts the beginning of text before a raw prompt by itself.
            prompt = before + after
        for mark, word, name in ((_BOS, self.bos, "bos_token"), (_EOS, self.eos, "eos_token")):
            if mark in prompt and not word:
                raise _malformed(
                    f"The {self.name} template puts {name} between turns, which the server does "
                    "not tell. Write it into the template."
                )
            prompt = prompt.replace(mark, word)
        return prompt


def compiled(
    name: str, source: str, *, bos: str = "", eos: str = "", stop: tuple[str, ...] = ()
) -> Jinja:
    """A template that can be used; without stop texts, those that its own words suggest.

    Raises:
        Malformed: it is none; the message says in which line.
    """
    _environment(name, source)
    if not stop:
        marks = [mark for mark in (eos, *_ENDS) if mark and (mark == eos or mark in source)]
        stop = tuple(dict.fromkeys(marks))
    return Jinja(name=name, source=source, stop=stop, bos=bos, eos=eos)


_ENDS = (
    "<|im_end|>",
    "<|eot_id|>",
    "<|eot|>",
    "<end_of_turn>",
    "<|end|>",
    "<|end_of_turn|>",
    "<|END_OF_TURN_TOKEN|>",
    "<|end_of_text|>",
    "<|endoftext|>",
    "<|EOT|>",
    "<\uff5cend\u2581of\u2581sentence\uff5c>",
    "[|endofturn|]",
    "</s>",
)
"""How turns end: those of them in a template end an answer, on a server that does not know it."""


# What stands for a text's beginning and end while a template is run: Unicode keeps U+FDD0 unused.
_BOS = "\ufdd0bos\ufdd0"
_EOS = "\ufdd0eos\ufdd0"


class _Refused(Exception):  # noqa: N818 - the template's own word
    """What a template says with `raise_exception`."""


def _raise(message: object = "") -> NoReturn:
    raise _Refused(str(message))


def _rendered(name: str, source: str, talk: list[tuple[str, str]], *, typed: bool) -> str:
    try:
        return _environment(name, source).render_template(
            "chat",
            messages=[
                {"role": role, "content": [{"type": "text", "text": text}] if typed else text}
                for role, text in talk
            ],
            add_generation_prompt=True,
            bos_token=_BOS,
            eos_token=_EOS,
        )
    except _Refused as refused:
        raise _malformed(f"The {name} template refuses this: {refused}") from None
    except Exception as error:  # noqa: BLE001 - whatever a template does, it is not ours
        told_why = str(error).partition("\n")[0]
        raise _malformed(f"The {name} template fails: {told_why}") from None


@lru_cache(_KEPT)
def _takes_parts(name: str, source: str) -> bool:
    """Whether a template reads a list of parts only, and would leave out a content that is a text.

    It is asked, as llama.cpp does: told a word, does it say it?
    """
    word = "tropilla"

    def says(*, typed: bool) -> bool:
        try:
            return word in _rendered(name, source, [("user", word)], typed=typed)
        except Malformed:
            return False

    return not says(typed=False) and says(typed=True)


@lru_cache(_KEPT)
def _environment(name: str, source: str) -> minijinja.Environment:
    import minijinja  # noqa: PLC0415 - only who uses such a template pays for it

    if len(source) > _MOST_SOURCE:
        raise _malformed(f"The {name} template has more than {_MOST_SOURCE} characters.")
    # As transformers and llama.cpp have it.
    environment = minijinja.Environment(trim_blocks=True, lstrip_blocks=True)
    environment.fuel = _FUEL
    environment.auto_escape_callback = _escape_nothing
    environment.add_global("raise_exception", _raise)
    environment.add_filter("tojson", _json)
    try:
        environment.add_template("chat", _GENERATION.sub(_as_if, source))
    except minijinja.TemplateError as error:
        why = str(error).partition(" (in ")[0]
        raise _malformed(f"The {name} template has an error in line {error.line}: {why}.") from None
    return environment


# Transformers marks with it what a model is trained on; it changes no text.
_GENERATION = re.compile(r"(\{%[-+]?\s*)(end)?generation(\s*[-+]?%\})")


def _as_if(found: re.Match[str]) -> str:
    opened, end, closed = found.groups()
    return f"{opened}{'endif' if end else 'if true'}{closed}"


def _json(value: Any, *, indent: int | None = None, **_: Any) -> str:
    """A value as transformers writes it: with spaces, and not escaped for HTML."""
    return msgspec.json.format(msgspec.json.encode(value), indent=indent or 0).decode()


def _escape_nothing(_: Any) -> bool:
    return False


def _malformed(message: str) -> Malformed:
    return Malformed(message, param="messages", kind="unsupported")
