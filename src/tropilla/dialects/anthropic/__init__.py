"""Anthropic's Messages: `POST /v1/messages`, as a client speaks it and as a server.

As a front it keeps what SDKs and agents rely on: every event has its name, every block begins and
ends, calls have their arguments as an object, and the words of an error are Anthropic's.

`request` reads and says what is asked (`messages` and `tools` its parts), `parse` reads what an
upstream answers, `render` says it to a client, and `problems` what went wrong.
"""

from tropilla.dialects import Route
from tropilla.dialects._beside import Counter, Page, Versions
from tropilla.dialects._openai import CONTENT_TYPE
from tropilla.dialects.anthropic import models, shapes
from tropilla.dialects.anthropic.names import COUNT, MESSAGES, NAME
from tropilla.dialects.anthropic.parse import parse_answer, stream_parser
from tropilla.dialects.anthropic.problems import STATUSES, parse_problem, render_problem
from tropilla.dialects.anthropic.render import (
    PING,
    render_answer,
    render_count,
    stream_renderer,
)
from tropilla.dialects.anthropic.request import parse_request, render_request
from tropilla.dialects.anthropic.shapes import SCHEMAS

__all__ = [
    "CONTENT_TYPE",
    "COUNTERS",
    "NAME",
    "PAGES",
    "PING",
    "ROUTES",
    "SCHEMAS",
    "STATUSES",
    "VERSIONS",
    "parse_answer",
    "parse_problem",
    "parse_request",
    "render_answer",
    "render_problem",
    "render_request",
    "stream_parser",
    "stream_renderer",
]

ROUTES = (Route(path=MESSAGES, shape=shapes.MESSAGES),)
COUNTERS = (Counter(path=COUNT, of=COUNT, shape=shapes.COUNT, render=render_count),)
VERSIONS = Versions(header="anthropic-version", known=("2023-06-01", "2026-10-21"))
PAGES = (
    Page(method="HEAD", path="/", answer=models.alive, shape=shapes.ALIVE, public=True),
    *(
        page
        for prefix in ("", "/v1")
        for page in (
            Page(
                method="GET", path=f"{prefix}/models", answer=models.listed, shape=shapes.LIST,
                header=VERSIONS.header,
            ),
            Page(
                method="GET", path=f"{prefix}/models/{{model}}", answer=models.one,
                shape=shapes.ONE, header=VERSIONS.header,
            ),
        )
    ),
)  # fmt: skip
