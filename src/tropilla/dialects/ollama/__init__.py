"""Ollama's API: `/api/chat`, `/api/generate` and all around them, as client and server speak it.

As a front it keeps what Ollama's clients rely on: lines of JSON, streamed unless it is said not
to be; a call whole in one line, its arguments an object; one line that is `done` at the end, with
the counts. What is Ollama's own business, the files of models, is refused.

`request` reads and says what is asked (`messages` what was said before), `parse` reads what a
server answers, `render` says it to a client; `pages` and `vectors` are what is not generation.
"""

from tropilla.dialects import Route
from tropilla.dialects.ollama.names import NAME, served_as
from tropilla.dialects.ollama.pages import PAGES, loads_chat, loads_generate
from tropilla.dialects.ollama.parse import parse_answer, parse_problem, stream_parser
from tropilla.dialects.ollama.render import (
    CONTENT_TYPE,
    PING,
    render_answer,
    render_problem,
    stream_renderer,
)
from tropilla.dialects.ollama.request import parse_request, render_request
from tropilla.dialects.ollama.schemas import CHAT, GENERATE, SCHEMAS
from tropilla.dialects.ollama.vectors import FACES

__all__ = [
    "CONTENT_TYPE",
    "FACES",
    "NAME",
    "PAGES",
    "PING",
    "ROUTES",
    "SCHEMAS",
    "parse_answer",
    "parse_problem",
    "parse_request",
    "render_answer",
    "render_problem",
    "render_request",
    "served_as",
    "stream_parser",
    "stream_renderer",
]

ROUTES = (
    Route(path="/api/chat", v1=False, instead=loads_chat, shape=CHAT),
    Route(path="/api/generate", v1=False, instead=loads_generate, shape=GENERATE),
)
