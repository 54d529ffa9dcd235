"""What goes wrong, in the words of this API: an upstream is asked in those of chat completions."""

from __future__ import annotations

import re

import msgspec

from tropilla.dialects import _openai
from tropilla.ir import Problem

_WORDS = (
    (re.compile(r"\bresponse_format\.json_schema\b"), "text.format"),
    (re.compile(r"\bresponse_format\b"), "text.format"),
    (re.compile(r"^schema\b"), "text.format.schema"),
    (re.compile(r"^parameters\b"), "tools.parameters"),
    (re.compile(r"\btools\.(\d+)\.(?:function|custom)\b"), r"tools.\1"),
    (re.compile(r"\bmax_(?:completion_)?tokens\b"), "max_output_tokens"),
    (re.compile(r"\breasoning_effort\b"), "reasoning.effort"),
    (re.compile(r"\bmessages\b(?=$|\.\d)"), "input"),
)


def reworded(problem: Problem) -> Problem:
    """The same problem, which names the fields as this client knows them."""
    if problem.param is None:
        return problem
    param, message = problem.param, problem.message
    for chat, name in _WORDS:
        new = chat.sub(name, param)
        if new != param:
            message = message.replace(f"'{param}'", f"'{new}'")
            param = new
    return msgspec.structs.replace(problem, param=param, message=message)


def render_problem(problem: Problem, status: int) -> bytes:
    """OpenAI's envelope, with all four keys."""
    return _openai.render_problem(reworded(problem), status)
