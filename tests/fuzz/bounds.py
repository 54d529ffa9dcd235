"""Little work for the engines: what is right in a request, and only that, is bounded.

What is wrong must be refused as it was sent.
"""

from __future__ import annotations

from typing import Any

_LIMITS = {"completion": "n_predict", "infill": "n_predict", "responses": "max_output_tokens"}
"""What the most tokens are called, by the end of the path; `max_tokens` elsewhere."""
_WITHIN = {"/models/": ("parameters", "max_new_tokens"), "/api/": ("options", "num_predict")}
"""AFS and Ollama have theirs in an object, by what is in the path."""
_MOST_TOKENS = 4
_MOST_ANSWERS = 2
_ANSWERS_ALLOWED = 128


def bound(body: dict[str, Any], path: str) -> None:
    """Bound the work of a request."""
    end = path.rpartition("/")[2]
    for name in ("n", "n_cmpl", "best_of"):
        if type(body.get(name)) is int and _MOST_ANSWERS < body[name] <= _ANSWERS_ALLOWED:
            body[name] = _MOST_ANSWERS
    within = next((where for part, where in _WITHIN.items() if part in path), None)
    if within is not None and not end.endswith("completions"):
        group, main = within
        if body.get(group) is None:
            body[group] = {}
        if type(body[group]) is dict:
            _bound(body[group], main)
    elif "embed" not in end and "rank" not in end:
        _bound(body, _LIMITS.get(end, "max_tokens"))


def _bound(body: dict[str, Any], main: str) -> None:
    for name in {"max_tokens", "max_completion_tokens", "n_predict", main}:
        limit = body.get(name)
        if limit is None:
            if name == main:
                body[name] = _MOST_TOKENS
        elif type(limit) in {int, float} and (limit == -1 or limit > _MOST_TOKENS):
            body[name] = _MOST_TOKENS
