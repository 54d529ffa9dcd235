"""What an upstream's refusal means, whatever the server: JSON of any shape, text, HTML, nothing.

The text of a refusal is passed on, because it is the only thing that tells what is wrong, but
bounded, and as text: an upstream's HTML page reaches no client as HTML.
"""

from __future__ import annotations

from typing import Any

import msgspec

from tropilla.ir import Json, JsonObject, Malformed, Problem, ProblemKind

_MAX_TEXT = 2000
_KINDS: dict[int, ProblemKind] = {
    400: "malformed",
    408: "timeout",
    413: "too_large",
    415: "malformed",
    422: "malformed",
    429: "limited",
    501: "unsupported",
    503: "unavailable",
    504: "timeout",
}
_CLIENTS = ("Failed to parse tool call arguments as JSON",)
"""How messages begin of what llama.cpp calls its own failure, and is what the client sent."""
_RETRYABLE: set[ProblemKind] = {"loading", "unavailable", "upstream_failed"}


def parse(status: int, body: bytes) -> Problem:
    """Read the refusal of an upstream. Never raises."""
    try:
        decoded: Json = msgspec.json.decode(body)
    except (msgspec.DecodeError, RecursionError, UnicodeDecodeError):
        decoded = None
    error = decoded.get("error") if type(decoded) is dict else None
    if type(error) is not dict:
        error = {"message": error if type(error) is str else _plain(status, body, decoded)}
    return of_error(error, status)


def of_error(error: dict[str, Any], status: int | None = None) -> Problem:
    """The problem that an error object tells, in a body or in the middle of a stream.

    llama.cpp puts the HTTP status into `code`; OpenAI puts a word there.
    """
    message = error.get("message") or error.get("content") or "The upstream gave no reason."
    code, type_ = error.get("code"), error.get("type")
    if status is None:
        status = code if type(code) is int else 500
    kind = _KINDS.get(status, "upstream_failed")
    extras: JsonObject = {}
    if type_ == "exceed_context_size_error" or code == "context_length_exceeded":
        kind = "context_exceeded"
        extras = {
            key: value
            for key in ("n_prompt_tokens", "n_ctx")
            if type(value := error.get(key)) is int
        }
    elif str(message).startswith(_CLIENTS):
        kind = "malformed"
    elif status in {401, 403}:
        message = f"The upstream refused this gateway's own key ({status}): {message}"
    elif status == 503 and message == "Loading model":
        kind = "loading"
    param = error.get("param")
    return Problem(
        kind=kind,
        message=str(message)[:_MAX_TEXT],
        param=param if type(param) is str else None,
        code=code if type(code) is str and kind == "malformed" else None,
        retryable=kind in _RETRYABLE,
        extras=extras,
    )


def of_malformed(error: Malformed) -> Problem:
    """The problem of a stream that is not what its dialect says.

    A parser tells it as an event: what it told before stands, and what is open must close.
    """
    return Problem(kind="upstream_failed", message=error.problem.message, retryable=True)


def _plain(status: int, body: bytes, decoded: Json) -> str:
    if type(decoded) is dict:
        for key in ("detail", "message"):
            if type(decoded.get(key)) is str:
                return str(decoded[key])
    text = body[:_MAX_TEXT].decode("utf-8", "replace").strip()
    if not text or text.startswith("<"):
        return f"The upstream answered {status} with no reason that can be shown."
    return f"The upstream answered {status}: {text}"
