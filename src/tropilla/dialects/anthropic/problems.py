"""What goes wrong, in the words of this API: an upstream is asked in those of chat completions."""

from __future__ import annotations

import re

import msgspec

from tropilla.dialects import _problems
from tropilla.dialects._openai import encode, error_body
from tropilla.ir import JsonObject, Problem, ProblemKind

_OVERLOADED = 529
STATUSES: dict[ProblemKind, int] = {"loading": _OVERLOADED, "unavailable": _OVERLOADED}
"""Where this API has a status of its own."""

TOLD = {
    "invalid_request_error": 400,
    "authentication_error": 401,
    "permission_error": 403,
    "not_found_error": 404,
    "request_too_large": 413,
    "rate_limit_error": 429,
    "overloaded_error": 503,
    "timeout_error": 504,
}
"""What the error of a stream would have been, had it come before it."""

_TYPES: dict[ProblemKind, str] = {
    "too_large": "request_too_large",
    "unauthenticated": "authentication_error",
    "forbidden": "permission_error",
    "not_found": "not_found_error",
    "unknown_model": "not_found_error",
    "limited": "rate_limit_error",
    "loading": "overloaded_error",
    "unavailable": "overloaded_error",
    "upstream_failed": "api_error",
    "timeout": "timeout_error",
    "internal": "api_error",
}
"""Everything else is the request's fault."""
_WORDS = (
    (re.compile(r"\bresponse_format(?:\.json_schema)?\b"), "output_config.format"),
    (re.compile(r"^schema\b"), "output_config.format.schema"),
    (re.compile(r"^parameters\b"), "tools.input_schema"),
    (re.compile(r"\bmax_completion_tokens\b"), "max_tokens"),
    (re.compile(r"\breasoning_effort\b"), "output_config.effort"),
    (re.compile(r"^stop\b"), "stop_sequences"),
)
_MESSAGE = re.compile(r"^messages\.\d+\b.*")


def parse_problem(status: int, body: bytes) -> Problem:
    """Read an upstream's refusal."""
    return _problems.parse(503 if status == _OVERLOADED else status, body)


def render_problem(problem: Problem, status: int) -> bytes:  # noqa: ARG001 - the type says it
    """The envelope of an error."""
    return encode(envelope(problem))


def envelope(problem: Problem) -> JsonObject:
    """An error, as a body and in the middle of a stream."""
    told = error_body(_reworded(problem))
    details = {"error_code": told["code"], "param": told["param"]}
    error: JsonObject = {
        "type": _TYPES.get(problem.kind, "invalid_request_error"),
        "message": told["message"],
    }
    if any(details.values()):
        error["details"] = {name: value for name, value in details.items() if value is not None}
    return {"type": "error", "error": error}


def _reworded(problem: Problem) -> Problem:
    """The same problem, which names the fields as this client knows them."""
    param, message = problem.param, problem.message
    if problem.kind == "context_exceeded":
        # Agents look for these words, and make the conversation shorter.
        sizes = problem.extras.get("n_prompt_tokens"), problem.extras.get("n_ctx")
        told = f"{sizes[0]} tokens > {sizes[1]} maximum" if all(sizes) else message
        message = f"prompt is too long: {told}"
    # Of an upstream's chat: its messages are others than those of this API.
    foreign = problem.kind == "unsupported" and problem.code is None
    words = (*_WORDS, (_MESSAGE, "messages")) if foreign else _WORDS
    for chat, name in words if param is not None else ():
        new = chat.sub(name, param or "")
        if new != param:
            message = message.replace(f"'{param}'", f"'{new}'")
            param = new
            break
    return msgspec.structs.replace(problem, param=param, message=message)
