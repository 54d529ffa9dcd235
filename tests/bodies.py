"""A right request, or several, for the path of each route on which text is wanted."""

from __future__ import annotations

from typing import Any

CHAT = [{"role": "user", "content": "@"}]
_OBJECT = {"type": "object"}
_TOOL = {"type": "function", "function": {"name": "f", "parameters": _OBJECT}}

BODIES: dict[str, list[dict[str, Any]]] = {
    "/chat/completions": [
        {"messages": CHAT, "max_tokens": 24},
        {"messages": CHAT, "max_tokens": 24, "n": 2, "logprobs": True},
        {"messages": CHAT, "max_tokens": 8, "tools": [_TOOL]},
        {"messages": CHAT, "max_tokens": 16, "response_format": {"type": "json_object"}},
    ],
    "/completions": [
        {"prompt": "@", "max_tokens": 24},
        {"prompt": ["@", "and @"], "max_tokens": 4, "echo": True, "logprobs": 1},
    ],
    "/responses": [
        {"input": "@", "max_output_tokens": 16},
        {
            "instructions": "Be brief.",
            "input": [
                {"role": "user", "content": [{"type": "input_text", "text": "@"}]},
                {"type": "function_call", "call_id": "c", "name": "f", "arguments": "{}"},
                {"type": "function_call_output", "call_id": "c", "output": "x"},
            ],
            "tools": [{"type": "function", "name": "f", "parameters": {"type": "object"}}],
            "text": {"format": {"type": "json_object"}},
            "max_output_tokens": 8,
        },
    ],
    "/messages": [
        {"messages": CHAT, "max_tokens": 16, "system": "Be brief."},
        {"messages": CHAT, "max_tokens": 8, "tools": [{"name": "f", "input_schema": _OBJECT}]},
    ],
    "/api/chat": [
        {"messages": CHAT, "options": {"num_predict": 16}, "format": _OBJECT},
        {"messages": CHAT, "options": {"num_predict": 8}, "tools": [_TOOL]},
    ],
    "/api/generate": [{"prompt": "@", "options": {"num_predict": 16, "stop": ["x"]}}],
    "/completion": [
        {"prompt": "@", "n_predict": 24},
        {"prompt": ["@", "b"], "n_predict": 4, "n_probs": 2},
    ],
    "/infill": [{"input_prefix": "@", "input_suffix": "end", "n_predict": 8}],
    "/models/conversation": [{"messages": CHAT, "parameters": {"max_new_tokens": 16}}],
    "/models/generate": [{"inputs": "@", "parameters": {"max_new_tokens": 16}}],
    "/models/text_infilling": [
        {"inputs": "@ [FILL_ME] end", "parameters": {"max_new_tokens": 16}},
    ],
}
"""By the end of the path. In the place of each `@` comes a text."""


def for_path(path: str) -> list[dict[str, Any]]:
    """What is asked on a path, by how it ends."""
    return BODIES[max((end for end in BODIES if path.endswith(end)), key=len)]
