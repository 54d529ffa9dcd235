"""How servers are asked to count the tokens of a text, each in its own way.

llama.cpp has `/tokenize` from the first server on; vLLM has another one under the same path, which
counts whole conversations too, and so has SGLang; llama-cpp-python has `/extras/tokenize/count`.
"""

from __future__ import annotations

from typing import Literal, TypeAlias

from tropilla.dialects import Wire
from tropilla.ir import Json, JsonObject, Prompt, Tokenizer, Traits

Form: TypeAlias = Tokenizer | Literal["llamacpp"]

_OF_A_CHAT = (
    "model", "messages", "tools", "chat_template", "chat_template_kwargs",
    "add_generation_prompt", "continue_final_message",
)  # fmt: skip


def form_of(traits: Traits) -> Form | None:
    """The form that a server understands, if there is one."""
    return "llamacpp" if traits.tokenizes else traits.tokenizer


def ask_text(form: Form, text: Prompt, model: str | None, *, begins: bool) -> Wire:
    """Ask for the tokens of a text; where it `begins` a prompt, with what marks the beginning.

    llama.cpp reads `add_special` since b2815, and llama-cpp-python always marks a beginning.
    """
    body: JsonObject = {} if model is None else {"model": model}
    match form:
        case "llamacpp":
            return Wire(path="/tokenize", body=body | {"content": text, "add_special": begins})
        case "vllm":
            return Wire(
                path="/tokenize", body=body | {"prompt": text, "add_special_tokens": begins}
            )
        case "llama-cpp-python":
            return Wire(path="/extras/tokenize/count", body=body | {"input": text})


def ask_chat(body: JsonObject) -> Wire:
    """Ask vLLM for the tokens of the prompt that a chat request becomes there."""
    return Wire(path="/tokenize", body={name: body[name] for name in _OF_A_CHAT if name in body})


def read(told: Json) -> int | None:
    """How many tokens there are; `None` if this is no answer to the question."""
    match told:
        case {"count": int(count)} if count >= 0:
            return count
        case {"tokens": list(tokens)}:
            return len(tokens)
    return None
