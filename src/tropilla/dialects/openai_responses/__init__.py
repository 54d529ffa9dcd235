"""OpenAI's Responses: `POST /v1/responses`, as a client speaks it and as a server.

As a front it keeps the order of events that SDKs and agents rely on: every item is added, said
and done, under one id; numbers go up by one; the last event holds the whole response. What is
kept of responses, and found again by their ids, is not known here.

`request` reads and says what is asked (`items` its input, `tools` what may be called), `parse`
reads what an upstream answers, `render` says it to a client, and `problems` what went wrong.
"""

from tropilla.dialects import Route
from tropilla.dialects._beside import Counter, Shape
from tropilla.dialects._openai import CONTENT_TYPE, PING, parse_problem
from tropilla.dialects.openai_responses.names import NAME
from tropilla.dialects.openai_responses.parse import parse_answer, stream_parser
from tropilla.dialects.openai_responses.problems import render_problem
from tropilla.dialects.openai_responses.render import render_answer, stream_renderer
from tropilla.dialects.openai_responses.request import parse_request, render_request

__all__ = [
    "CONTENT_TYPE",
    "COUNTERS",
    "NAME",
    "PING",
    "ROUTES",
    "parse_answer",
    "parse_problem",
    "parse_request",
    "render_answer",
    "render_problem",
    "render_request",
    "stream_parser",
    "stream_renderer",
]

ROUTES = (Route(path="/responses"),)
COUNTERS = (
    Counter(
        path="/responses/input_tokens",
        of="/responses",
        shape=Shape("Count the tokens of what would be responded to", "ResponseRequest", "Counted"),
    ),
)
