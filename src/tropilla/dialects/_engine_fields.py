"""What a llama-server reads beside what the IR models: each field with its type and its bounds.

A llama-server takes whatever a request holds for its own parameters, those too that only its own
chat parser should set. So it is told of what is here, in the bounds that are here, and of nothing
else: one window of 2^31 tokens takes all memory of the machine, and a deep grammar ends the
process (b11549).
"""

from __future__ import annotations

import re

from tropilla.dialects._fields import Fields, invalid, texts
from tropilla.ir import Json, JsonObject, Malformed

MOST_TOKENS = 2**20
"""Of a window that the server looks through, and keeps room for."""
MOST_WORDS = 128
MOST_LETTERS = 1024
"""Of one of these words."""
MOST_GRAMMAR = 64 * 1024
MOST_NESTED = 64
MOST_REPEATED = 2000
MOST_RULES = 2000
"""Rules and alternatives of a grammar, together: 100,000 keep a server busy for minutes."""

_COUNT = 2**31 - 1


_WINDOW = (-1, MOST_TOKENS)
_SLOT = (-1, 10_000)
_FROM_ZERO = (0, _COUNT)
_MOST = 1e9
"""Of a number that is no count, and of its opposite."""
_COUNTS: dict[str, tuple[int, int]] = {
    "n_keep": (-1, _COUNT), "n_indent": (0, 10_000), "n_probs": (0, 1000),
    "n_cache_reuse": _FROM_ZERO, "min_keep": (0, MOST_TOKENS), "id_slot": _SLOT, "slot_id": _SLOT,
    "repeat_last_n": _WINDOW, "dry_penalty_last_n": _WINDOW, "dry_allowed_length": _FROM_ZERO,
    "t_max_predict_ms": (-1, 2**53), "t_max_prompt_ms": (-1, 2**53),
    "reasoning_budget_tokens": (-1, _COUNT),
}  # fmt: skip
_NUMBERS = frozenset({
    "adaptive_decay", "adaptive_target", "dry_base", "dry_multiplier", "dynatemp_exponent",
    "dynatemp_range", "tfs_z", "top_n_sigma", "xtc_probability", "xtc_threshold",
})  # fmt: skip
_FLAGS = frozenset({
    "add_generation_prompt", "backend_sampling", "cache_prompt", "ignore_eos",
    "parse_tool_calls", "penalize_nl", "post_sampling_probs", "reasoning_control",
    "return_progress", "return_tokens", "timings_per_token", "verbose",
})  # fmt: skip
_TEXTS = frozenset({"reasoning_format"})
_WORDS = frozenset({"samplers", "dry_sequence_breakers"})
_ALSO = frozenset({
    "chat_template_kwargs", "continue_final_message", "echo", "grammar", "image_data",
    "input_extra", "json_schema", "lora", "response_fields", "suffix", "system_prompt",
})  # fmt: skip
"""What is checked otherwise, or elsewhere."""
KNOWN = frozenset(_COUNTS) | _NUMBERS | _FLAGS | _TEXTS | _WORDS | _ALSO


def checked(extras: JsonObject) -> tuple[JsonObject, list[str]]:
    """What of these a llama-server is told, and the names of the rest.

    Raises:
        Malformed: one is of a wrong type, or out of its bounds.
    """
    if not extras:
        return {}, []
    fields = Fields(extras)
    for name in extras:
        if name in _COUNTS:
            fields.integer(name, *_COUNTS[name])
        elif name in _NUMBERS:
            fields.number(name, -_MOST, _MOST)
        elif name in _FLAGS:
            fields.boolean(name)
        elif name in _TEXTS:
            fields.string(name)
        elif name in _WORDS:
            _check_words(fields.any(name), name)
        elif name == "grammar":
            check_grammar(fields.string(name) or "", name)
        elif name == "lora":
            _check_lora(fields.array(name, MOST_WORDS))
        elif name == "chat_template_kwargs":
            _check_arguments(fields.object(name))
    said = {name: value for name, value in extras.items() if name in KNOWN}
    return said, [name for name in extras if name not in KNOWN]


def _check_words(value: Json, path: str) -> None:
    for index, word in enumerate(texts(value, path, MOST_WORDS)):
        if len(word) > MOST_LETTERS:
            raise invalid(f"{path}.{index}", f"expected at most {MOST_LETTERS} letters.")


def _check_lora(adapters: list[Json] | None) -> None:
    for index, one in enumerate(adapters or ()):
        fields = Fields(one, f"lora.{index}")
        fields.integer("id", 0, _COUNT)
        fields.number("scale", -_MOST, _MOST)


def _check_arguments(arguments: JsonObject | None) -> None:
    """No template of a client's own is run by a server, in whatever it comes."""
    if arguments and "chat_template" in arguments:
        path = "chat_template_kwargs.chat_template"
        raise Malformed(f"'{path}' is not passed on.", param=path, kind="unsupported")


# Grammars (GBNF).

_TOKEN = re.compile(
    r'"(?:\\.|[^"\\\n])*+"|\[(?:\\.|[^\]\\])*+\]|#[^\n]*+|::=|[()|]|\{([^}\n]*+)\}', re.DOTALL
)


def check_grammar(grammar: str, path: str) -> None:
    """See that a grammar is none that ends a server, or keeps it busy for long.

    Raises:
        Malformed: it is too long, too deep, or repeats too often.
    """
    if len(grammar) > MOST_GRAMMAR:
        raise invalid(path, f"a grammar has at most {MOST_GRAMMAR} letters.")
    depth = rules = 0
    for token in _TOKEN.finditer(grammar):
        match token[0]:
            case "(":
                depth += 1
                if depth > MOST_NESTED:
                    raise invalid(path, f"a grammar is nested at most {MOST_NESTED} levels deep.")
            case ")":
                depth -= 1
            case "::=" | "|":
                rules += 1
                if rules > MOST_RULES:
                    raise invalid(path, f"a grammar has at most {MOST_RULES} alternatives.")
            case _ if token[1] is not None:
                _check_times(token[1], path)


def _check_times(times: str, path: str) -> None:
    for count in re.findall(r"\d++", times):
        if len(count) > 6 or int(count) > MOST_REPEATED:
            raise invalid(path, f"a grammar repeats at most {MOST_REPEATED} times.")
