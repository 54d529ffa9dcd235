"""What llama.cpp servers of each age would misread, ignore, or crash on: said otherwise, or not.

A server of 2023 answers a request that it does not understand as if it had not been asked, and
one wrong type ends it for everybody. Each rule here has the build up to which it is needed; for a
server whose build is not known the oldest is assumed that it can be.
"""

from __future__ import annotations

from tropilla.dialects import _grammar
from tropilla.ir import (
    Bias,
    Chat,
    Completion,
    Format,
    Infill,
    JsonObject,
    Malformed,
    Message,
    Reasoning,
    Refusal,
    Request,
    Text,
    ToolCall,
    Traits,
)

_TOOLS = 4599
"""Since when chat knows OpenAI's tools; before, it reads texts and little more."""


def chat_tells(request: Request, traits: Traits) -> bool:
    """Whether a server's own chat can tell all that is wanted, or the prompt is better made here.

    Token probabilities are told in chat since b4364 (#10783), natively always.
    """
    return not traits.llamacpp or traits.build >= 4364 or request.logprobs is None


def chat_streams(request: Request, traits: Traits) -> bool:
    """Whether a server can stream what is wanted: llama.cpp refuses probabilities beside tools.

    A whole answer it gives with both (b11549); but one that was begun by the client begins there
    with what is known already.
    """
    match request.input:
        case Chat(messages=[*_, Message(role="assistant")]):
            pass
        case Chat(tools=[_, *_], tool_choice=choice) if choice is None or choice.mode != "none":
            return not traits.llamacpp or request.logprobs is None
    return True


def fit_chat(request: Request, chat: Chat, traits: Traits) -> tuple[Chat, JsonObject, list[str]]:
    """A conversation as an old server's chat reads it, with what its body needs, and what is lost.

    Raises:
        Malformed: of kind `unsupported`, for what it cannot be told.
    """
    if not traits.llamacpp or traits.build >= _TOOLS:
        return chat, {}, []
    if not chat_tells(request, traits):
        raise _unsupported(
            "logprobs",
            "This server is so old that its chat tells no probabilities (llama.cpp b4364 does). "
            "With a 'template' for it in the config, they can be had.",
        )
    _refuse_text_bias(request.logit_bias, traits)
    dropped = [
        name
        for name in ("reasoning_effort", "parallel_tool_calls")
        if getattr(chat, name) is not None
    ]
    messages = tuple(
        _plain(message, f"messages.{index}", dropped) for index, message in enumerate(chat.messages)
    )
    body: JsonObject = {}
    if (grammar := _grammar_for(request.format, traits)) is not None:
        body["grammar"] = grammar
    if traits.build < 2490:  # #5978: before, a list of fields is read, and these are not on it
        dropped += [
            name for name in ("repeat_penalty", "min_p") if getattr(request.knobs, name) is not None
        ]
    return Chat(messages=messages), body, dropped


def _plain(message: Message, path: str, dropped: list[str]) -> Message:
    """A message as one text: parts are refused until b2608, and their texts lost until b3500."""
    texts = []
    for part in message.parts:
        match part:
            case Text() | Refusal():
                texts.append(part.text)
            case Reasoning():
                if "reasoning_content" not in dropped:
                    dropped.append("reasoning_content")
            case ToolCall():
                raise _unsupported(
                    f"{path}.tool_calls",
                    "This server is so old that it knows no tools (llama.cpp b4599 does).",
                )
            case _:
                raise _unsupported(
                    f"{path}.content",
                    "This server is so old that it reads text only (pictures since b5331).",
                )
    role = "system" if message.role == "developer" else message.role
    # `null` for no content is refused by some (b4300).
    return Message(role=role, parts=(Text(text="\n".join(texts)),), extras=message.extras)


def _grammar_for(form: Format | None, traits: Traits) -> str | None:
    """The grammar that holds an answer to its form, where the server has no other means."""
    if form is None or form.kind == "text":
        return None
    # `json_object` in chat since b2490 (#5978), `json_schema` since b3778 (#9522).
    if traits.build >= (2490 if form.kind == "json_object" else 3778):
        return None
    return grammar_of(form)


def grammar_of(form: Format, path: str = "response_format.json_schema.schema") -> str:
    """A form of JSON as a grammar, which llama.cpp has always read.

    Raises:
        Malformed: of kind `unsupported`, for what a grammar cannot say.
    """
    return _grammar.of_json() if form.schema is None else _grammar.of_schema(form.schema, path)


def fit_native(request: Request, body: JsonObject, traits: Traits) -> list[str]:
    """Make a native body one that an old server reads right; what is lost of it.

    Raises:
        Malformed: it would be misread, or end the server.
    """
    if not traits.llamacpp or traits.build >= 4402:
        return []
    _refuse_text_bias(request.logit_bias, traits)
    match request.input:
        case Infill(prompt=None) if traits.build < 4383:
            # Without a prompt there is nothing to do before b2357, and a crash until b3900 or so;
            # it is not read before that, and an empty one changes nothing after it.
            body["prompt"] = " " if traits.build < 2357 else ""
        case Completion(prompts=(prompt,)):
            # A list in a list of one ends a server, until b3655.
            body["prompt"] = prompt
            if type(prompt) is dict:
                raise _unsupported("prompt", "This server reads texts and token ids only (b6243).")
            ids = type(prompt) is list and any(type(item) is int for item in prompt)
            if ids and 1561 <= traits.build < 2372:
                raise _unsupported(
                    "prompt",
                    "Token ids hang or end a server from b1591 to b2371, and this one may be such: "
                    "send a text.",
                )
    if traits.build < 2490 and request.format is not None and request.format.kind != "text":
        body.pop("json_schema", None)
        body["grammar"] = grammar_of(request.format, "json_schema")
    if traits.build < 1561 and request.knobs.min_p is not None:
        return ["min_p"]  # b1500 (#3877)
    return []


def _refuse_text_bias(biases: tuple[Bias, ...], traits: Traits) -> None:
    if traits.build < 2123 and any(type(bias.token) is str for bias in biases):
        raise _unsupported(
            "logit_bias",
            "This server is so old that it knows tokens by their ids only (texts since b2123).",
        )


def _unsupported(param: str, why: str) -> Malformed:
    return Malformed(why, param=param, kind="unsupported")
