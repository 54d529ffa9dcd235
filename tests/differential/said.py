"""What an answer says, whatever its form: the streamed and the whole one become the same value.

Written apart from Tropilla's own fold on purpose: it is what that one is measured by.
"""

from __future__ import annotations

from collections import defaultdict
from collections.abc import Iterable
from typing import Any

import msgspec

OF_NATIVE = (
    "stop_type", "stopping_word", "tokens_predicted", "tokens_evaluated", "truncated",
    "has_new_line", "tokens_cached", "prompt",
)  # fmt: skip
"""Of a native answer, beside its text, tokens and probabilities: all but clocks and names."""


def events(body: bytes) -> list[Any]:
    """The data of a stream, `[DONE]` and nulls left out."""
    lines = [line.removeprefix(b"data: ") for line in body.split(b"\n") if line[:5] == b"data:"]
    told = [msgspec.json.decode(line) for line in lines if line != b"[DONE]"]
    # The engine has such an event where it streams several prompts.
    return [one for one in told if one is not None]


def said(path: str, body: bytes, *, stream: bool) -> Any:
    """Everything that an answer says of text, tokens, calls and ends."""
    if not stream:
        told = msgspec.json.decode(body)
        if path == "/completion":
            return [_native([one]) for one in (told if isinstance(told, list) else [told])]
        return _openai([told])
    told = events(body)
    if path == "/completion":
        apart = defaultdict(list)
        for one in told:
            apart[one.get("index", 0)].append(one)
        return [_native(apart[index]) for index in sorted(apart)]
    return _openai(told)


def _native(chunks: list[dict[str, Any]]) -> dict[str, Any]:
    last = chunks[-1]
    return {
        "content": "".join(one["content"] for one in chunks),
        "tokens": [token for one in chunks for token in one.get("tokens", ())],
        "probabilities": [
            token for one in chunks for token in one.get("completion_probabilities", ())
        ],
        **{name: last.get(name) for name in OF_NATIVE},
    }


def _openai(chunks: list[dict[str, Any]]) -> dict[str, Any]:
    choices: dict[int, dict[str, Any]] = {}
    usage = None
    for chunk in chunks:
        usage = chunk.get("usage") or usage
        for choice in chunk["choices"]:
            mine = choices.setdefault(
                choice["index"],
                {"text": "", "reasoning": "", "calls": {}, "reason": None, "logprobs": []},
            )
            part = choice.get("message") or choice.get("delta") or {"content": choice.get("text")}
            mine["text"] += part.get("content") or ""
            mine["reasoning"] += part.get("reasoning_content") or ""
            for index, call in enumerate(part.get("tool_calls") or ()):
                held = mine["calls"].setdefault(
                    call.get("index", index), {"name": "", "arguments": ""}
                )
                for name in held:
                    held[name] += call["function"].get(name) or ""
            mine["reason"] = choice["finish_reason"] or mine["reason"]
            mine["logprobs"] += _logprobs(choice.get("logprobs"), chat="text" not in choice)
    return {
        "choices": [choices[index] for index in sorted(choices)],
        "usage": usage
        and [usage["prompt_tokens"], usage["completion_tokens"], usage["total_tokens"]],
    }


def _logprobs(told: dict[str, Any] | None, *, chat: bool) -> Iterable[Any]:
    """Each token, how likely it was and what else it could have been; chat's shape or the old.

    The old one has the chosen token among the others, however unlikely it was; the engine, which
    answers in chat's shape, has not.
    """
    if told is None:
        return []
    if "content" not in told:
        return list(zip(told["tokens"], told["token_logprobs"], told["top_logprobs"], strict=True))
    return [
        (
            one["token"],
            one["logprob"],
            {top["token"]: top["logprob"] for top in one["top_logprobs"]}
            | ({} if chat else {one["token"]: one["logprob"]}),
        )
        for one in told["content"] or ()
    ]
