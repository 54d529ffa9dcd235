"""The template of llama.cpp's `api_like_OAI.py` (removed in b2307): four names around each turn."""

from __future__ import annotations

from tropilla.ir import Message, Value
from tropilla.templates._says import no_place, text_of


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

    @property
    def stops(self) -> tuple[str, ...]:
        """What ends an answer."""
        stop = _unescape(self.stop)
        return (stop,) if stop else ()

    def prompt(self, messages: tuple[Message, ...]) -> str:
        """The prompt for a conversation, ready for the assistant's next words.

        Raises:
            Malformed: of kind `unsupported`, for what it cannot say.
        """
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
                raise no_place(message, index, "classic")
            told.append(name + text_of(message, index, "classic"))
            if message.role == "assistant":
                told.append(stop)
        told.append(names["assistant"].rstrip())
        return "".join(told)


def _unescape(text: str) -> str:
    # Only these two characters, as in the script: a tab or a backslash stays what it is.
    return text.replace("\\n", "\n")
