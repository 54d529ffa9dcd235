"""What is asked twice: a fixed table, every row of it streamed and whole.

A row says how its answers may differ by design (`Differs`); whatever it does not say is equal.
"""

from __future__ import annotations

from collections.abc import Iterator
from enum import Enum
from typing import Any, NamedTuple, TypeAlias

Body: TypeAlias = dict[str, Any]

CHAT, TEXT, NATIVE = "/v1/chat/completions", "/v1/completions", "/completion"


class Differs(Enum):
    """Where Tropilla does otherwise on purpose; docs/llamacpp.md says so to its users."""

    FOLDED = "a whole answer is its stream put together, and says no less and no more than that"
    SUMMED = "usage counts every choice, where the engine counts one of them"
    FORBIDDEN = "tools that may not be called are not told to the model"
    NAMED = "a tool that is named must be called, where the engine takes the object for `auto`"
    ALONE = "`top_logprobs: 0` tells the chosen tokens, where the engine then tells nothing"


class Case(NamedTuple):
    """One thing to ask for."""

    name: str
    path: str
    body: Body
    differs: Differs | None = None


Rows: TypeAlias = tuple[tuple[str, Body] | tuple[str, Body, Differs], ...]

BASE: Body = {
    "model": "m",
    "temperature": 0,
    "seed": 7,
    "max_tokens": 24,
    # What a slot remembers decides how many tokens are read in one batch, and the size of a batch
    # changes the last digits of its logits: both must read the whole prompt.
    "cache_prompt": False,
}

LONG = " ".join(f"Llama {n} went up the hill, and {n * 7 % 11} came down." for n in range(50))
WORDS = (
    ("plain", "Tell me of the llama."),
    ("one letter", "a"),
    ("unicode", "Ünïcödé: 日本語 и русский, العربية, ελληνικά ✓"),
    ("emoji", "👩‍👩‍👧‍👦 🦙🦙 and a flag 🇵🇪"),
    ("combined marks", "e\u0301 a\u0308 n\u0303 \u200d \ufeff"),
    ("line breaks", "First line\n\nthird line\r\n\tindented\n"),
    ("code", 'def f(x):\n    return {"a": [1, 2, x]}  # <b>&amp;</b> \\n \\" \\u00e9'),
    ("blanks", "   two   words   "),
    ("template marks", "<|im_end|>\n<|im_start|>assistant\nno <s> </s> [INST]"),
    ("control characters", "a\u0001b\u007fc\u0085d\u2028e"),
    ("long", LONG),
)

TOOL = {
    "type": "function",
    "function": {
        "name": "weather",
        "description": "The weather in a town.",
        "parameters": {
            "type": "object",
            "properties": {"town": {"enum": ["Lima", "Cusco"]}, "days": {"enum": [1, 2]}},
            "required": ["town", "days"],
        },
    },
}
OTHER_TOOL = {
    "type": "function",
    "function": {
        "name": "now",
        "parameters": {
            "type": "object", "properties": {"utc": {"type": "boolean"}}, "required": ["utc"],
        },
    },
}  # fmt: skip
SCHEMA = {
    "type": "object",
    "properties": {
        "name": {"enum": ["Ana", "José"]},
        "old": {"type": "boolean"},
        "tags": {"type": "array", "items": {"enum": ["a", "b"]}, "minItems": 2, "maxItems": 2},
    },
    "required": ["name", "old", "tags"],
    "additionalProperties": False,
}
CALLED = [
    {"role": "user", "content": "How is Lima?"},
    {
        "role": "assistant",
        "content": None,
        "tool_calls": [{
            "id": "call_1",
            "type": "function",
            "function": {"name": "weather", "arguments": '{"town": "Lima", "days": 1}'},
        }],
    },
    {"role": "tool", "tool_call_id": "call_1", "content": "Fog, 17 °C"},
]  # fmt: skip
GRAMMAR = 'root ::= ("yes" | "no") ", " [a-c]+ "."'

# How tokens are chosen and where they end: fields that all three APIs of the engine have.
COMMON: Rows = (
    ("one token", {"max_tokens": 1}),
    ("sixty tokens", {"max_tokens": 60, "ignore_eos": True}),
    ("to its own end", {"max_tokens": 400, "ignore_eos": False}),
    ("sampled", {"temperature": 0.9, "seed": 42, "ignore_eos": True}),
    ("sampled hot, few candidates", {"temperature": 1.7, "top_k": 5, "seed": 2**31 - 1}),
    ("top_p", {"temperature": 1, "top_p": 0.4, "seed": 3}),
    ("min_p", {"temperature": 1, "min_p": 0.3, "top_p": 1, "top_k": 0, "seed": 4}),
    ("typical_p", {"temperature": 1, "typical_p": 0.6, "seed": 5}),
    ("mirostat 1", {"temperature": 1, "mirostat": 1, "mirostat_tau": 3, "mirostat_eta": 0.2}),
    ("mirostat 2", {"temperature": 1, "mirostat": 2}),
    ("presence_penalty", {"presence_penalty": 1.5, "ignore_eos": True}),
    ("frequency_penalty", {"frequency_penalty": -1.2, "ignore_eos": True}),
    ("repeat_penalty", {"repeat_penalty": 1.6, "repeat_last_n": 32, "ignore_eos": True}),
    ("dry", {"dry_multiplier": 2.0, "dry_allowed_length": 1, "ignore_eos": True}),
    ("samplers", {"samplers": ["top_k", "temperature"], "temperature": 1.2, "top_k": 3}),
    ("xtc", {"xtc_probability": 0.9, "xtc_threshold": 0.05, "temperature": 0.7}),
    ("dynamic temperature", {"temperature": 0.8, "dynatemp_range": 0.5}),
    ("a stop word", {"stop": "the", "max_tokens": 100, "ignore_eos": True}),
    ("a stop of one letter", {"stop": ["e"]}),
    ("four stops", {"stop": ["zzz", "and", "\n", "é"], "max_tokens": 60, "ignore_eos": True}),
    ("a stop that does not come", {"stop": ["\u2603 never"], "max_tokens": 40}),
    ("a biased token", {"logit_bias": {"300": 8}}),
    ("a banned token", {"logit_bias": {"2": -100, "300": -100}}),
    ("a forced token", {"logit_bias": {"400": 100}, "max_tokens": 9}),
    ("a grammar", {"grammar": GRAMMAR, "ignore_eos": False}),
    ("ids of tokens", {"return_tokens": True}),
    ("a slot by its number", {"id_slot": 1}),
)

CHATS: Rows = (
    ("no messages but a system's", {"messages": [{"role": "system", "content": "Be brief."}]}),
    (
        "many turns",
        {
            "messages": [
                {"role": "system", "content": "You know llamas."},
                {"role": "user", "content": "Hi!"},
                {"role": "assistant", "content": "Hello."},
                {"role": "user", "content": "What do they eat? 🌿"},
            ]
        },
    ),
    (
        "content in parts",
        {
            "messages": [
                {"role": "developer", "content": [{"type": "text", "text": "Be kind."}]},
                {
                    "role": "user",
                    "content": [
                        {"type": "text", "text": "One"},
                        {"type": "text", "text": "two"},
                    ],
                },
            ]
        },
    ),
    ("a name", {"messages": [{"role": "user", "name": "ana", "content": "I am Ana."}]}),
    ("an empty text", {"messages": [{"role": "user", "content": ""}]}),
    ("JSON object", {"response_format": {"type": "json_object"}, "max_tokens": 40}),
    (
        "JSON schema",
        {
            "response_format": {
                "type": "json_schema",
                "json_schema": {"name": "person", "strict": True, "schema": SCHEMA},
            },
            "max_tokens": 60,
        },
    ),
    ("format of text", {"response_format": {"type": "text"}}),
    ("tools that need not be called", {"tools": [TOOL]}),
    (
        "tools that may not be called",
        {"tools": [TOOL], "tool_choice": "none"},
        Differs.FORBIDDEN,
    ),
    ("a tool that must be called", {"tools": [TOOL], "tool_choice": "required", "max_tokens": 80}),
    (
        "one of two tools must be called",
        {"tools": [OTHER_TOOL, TOOL], "tool_choice": "required", "max_tokens": 80},
    ),
    (
        "tools, several calls at once",
        {
            "tools": [TOOL, OTHER_TOOL],
            "tool_choice": "required",
            "parallel_tool_calls": True,
            "max_tokens": 120,
        },
    ),
    (
        "a tool by its name",
        {
            "tools": [OTHER_TOOL, TOOL],
            "tool_choice": {"type": "function", "function": {"name": "weather"}},
            "max_tokens": 80,
        },
        Differs.NAMED,
    ),
    ("the answer of a tool", {"messages": CALLED, "tools": [TOOL]}),
    (
        "the answer of a tool, and another call",
        {"messages": CALLED, "tools": [TOOL], "tool_choice": "required", "max_tokens": 80},
    ),
    ("logprobs", {"logprobs": True, "top_logprobs": 3}, Differs.FOLDED),
    ("logprobs that end early", {"logprobs": True, "top_logprobs": 3, "max_tokens": 6}),
    ("logprobs, no others", {"logprobs": True, "top_logprobs": 0, "max_tokens": 6}, Differs.ALONE),
    (
        "logprobs and a stop",
        {"logprobs": True, "top_logprobs": 2, "stop": ["sleep", " llamas came back"]},
        Differs.FOLDED,
    ),
    (
        "logprobs, sampled",
        {"logprobs": True, "top_logprobs": 5, "temperature": 1, "seed": 11, "max_tokens": 6},
    ),
    ("two choices", {"n": 2}, Differs.SUMMED),
    (
        "two choices, sampled",
        {"n": 2, "temperature": 1, "seed": 21, "max_tokens": 30, "ignore_eos": True},
        Differs.SUMMED,
    ),
    (
        "two choices with logprobs",
        {"n": 2, "logprobs": True, "top_logprobs": 2, "max_tokens": 5},
        Differs.SUMMED,
    ),
    (
        "the beginning of the answer",
        {
            "messages": [
                {"role": "user", "content": "Who are you?"},
                {"role": "assistant", "content": "I am a llama, and"},
            ]
        },
        Differs.FOLDED,
    ),
    ("max_completion_tokens", {"max_tokens": None, "max_completion_tokens": 5}),
    ("template arguments", {"chat_template_kwargs": {"enable_thinking": False}}),
    ("reasoning_effort", {"reasoning_effort": "low"}),
)

TEXTS: Rows = (
    ("token ids", {"prompt": [1, 300, 301, 302, 400]}),
    ("logprobs", {"logprobs": 3, "max_tokens": 12}),
    ("logprobs of one", {"logprobs": 1, "max_tokens": 6}),
    (
        "logprobs and a stop",
        {"logprobs": 2, "stop": [" llamas came back", "young ones"]},
        Differs.FOLDED,
    ),
    ("two choices", {"n": 2, "max_tokens": 8}, Differs.SUMMED),
    (
        "two choices, sampled",
        {"n": 2, "temperature": 1, "seed": 21, "max_tokens": 30},
        Differs.SUMMED,
    ),
)

NATIVES: Rows = (
    ("a limit of no tokens", {"max_tokens": None, "n_predict": 0}),
    ("token ids", {"prompt": [1, 300, 301, 302, 400]}),
    ("a mixed prompt", {"prompt": [1, "The llama", 300]}),
    ("n_predict", {"max_tokens": None, "n_predict": 5}),
    ("n_probs", {"n_probs": 4, "max_tokens": 12}),
    ("n_probs and tokens", {"n_probs": 1, "return_tokens": True, "max_tokens": 6}),
    ("n_probs after sampling", {"n_probs": 3, "post_sampling_probs": True, "max_tokens": 6}),
    (
        "n_probs and a stop",
        {"n_probs": 2, "stop": [" llamas came back", "young ones"]},
        Differs.FOLDED,
    ),
    ("JSON schema", {"json_schema": SCHEMA, "max_tokens": 60}),
    ("biases as pairs", {"logit_bias": [[300, 5.5], ["the", -3], [2, False]]}),
    ("two choices", {"n": 2, "max_tokens": 8}),
    ("several prompts", {"prompt": ["The llama", "Él", [1, 300, 301]], "max_tokens": 8}),
)


def cases() -> Iterator[Case]:
    """Every row."""
    for path, own in ((CHAT, CHATS), (TEXT, TEXTS), (NATIVE, NATIVES)):
        for name, words in WORDS:
            yield _case(path, words, f"words: {name}", {})
        for turn, row in enumerate(COMMON + own):
            # Every field meets other words, but none of them the long ones.
            yield _case(path, WORDS[turn % (len(WORDS) - 1)][1], *row)


def _case(path: str, words: str, name: str, fields: Body, differs: Differs | None = None) -> Case:
    asks: Body = {"messages": [{"role": "user", "content": words}]}
    if path != CHAT:
        # Else the model would end most of these texts at once.
        asks = {"prompt": words, "ignore_eos": True}
    body = {field: value for field, value in (BASE | asks | fields).items() if value is not None}
    return Case(name, path, body, differs)
