"""What schemathesis is told of this gateway: a model that is there, and little work for it.

Only what is right is bounded: what is wrong must be refused as it was sent.
"""

from __future__ import annotations

import os
from typing import Any

import schemathesis  # type: ignore[import-not-found]

_LIMITS = {"completion": "n_predict", "infill": "n_predict", "responses": "max_output_tokens"}
"""What the most tokens are called, by the end of the path; `max_tokens` elsewhere."""
_AFS = ("conversation", "generate", "text_infilling")
_MOST_TOKENS = 4
_MOST_ANSWERS = 2
_ANSWERS_ALLOWED = 128


@schemathesis.hook  # type: ignore[untyped-decorator]
def before_call(_context: Any, case: Any, _kwargs: dict[str, Any]) -> None:
    """Bound the work of a case."""
    body, end = case.body, case.path.rpartition("/")[2]
    if type(body) is not dict:
        return
    if type(body.get("model", "")) is str and len(body.get("model", "")) != 1:
        body["model"] = os.environ["FUZZ_EMBEDDER" if "embedding" in end else "FUZZ_MODEL"]
    for name in ("n", "n_cmpl", "best_of"):
        if type(body.get(name)) is int and _MOST_ANSWERS < body[name] <= _ANSWERS_ALLOWED:
            body[name] = _MOST_ANSWERS
    if end in _AFS:
        if body.get("parameters") is None:
            body["parameters"] = {}
        if type(body["parameters"]) is dict:
            _bound(body["parameters"], "max_new_tokens")
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


@schemathesis.check  # type: ignore[untyped-decorator]
def no_failure_of_ours(_context: Any, response: Any, case: Any) -> None:
    """No 5xx, but an upstream's own answer that was only passed on, and what is not done here."""
    passed_on = "Passed on" in case.operation.tags and b'"param"' not in response.content
    assert response.status_code < 500 or response.status_code == 501 or passed_on
