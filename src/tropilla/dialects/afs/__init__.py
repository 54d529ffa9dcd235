"""AFS/FFM, the API of TWS's AI Foundry Service: conversation, generate and text infilling.

As a front it lets a program that was written for AFS ask any upstream by changing its host and
port: every base path that AFS has had is served. As a back it reads what deployments since 2023
have sent: the flat object, tool calls at its root or in OpenAI's `choices`, pings that are no
JSON, answers of status 200 that are errors, and calls that a model wrote into its text.

No deployment was at hand when this was written: what AFS does is known from its documentation
and from its public clients. What neither proves is read tolerantly, and docs/afs.md marks it.

`request` reads and says what is asked, `parse` reads what an upstream answers (`leaks` finds the
calls in its text), `render` says it to a client, and `address` knows where it is served.
"""

from tropilla.dialects import Route
from tropilla.dialects._bases import AFS_BASES
from tropilla.dialects._openai import CONTENT_TYPE
from tropilla.dialects.afs.address import credentials, dialect_at
from tropilla.dialects.afs.parse import parse_answer, parse_problem, stream_parser
from tropilla.dialects.afs.render import PING, render_answer, render_problem, stream_renderer
from tropilla.dialects.afs.request import (
    CONVERSATION,
    GENERATE,
    NAME,
    PATHS,
    parse_request,
    render_request,
)

__all__ = [
    "CONTENT_TYPE",
    "CONVERSATION",
    "GENERATE",
    "NAME",
    "PING",
    "ROUTES",
    "credentials",
    "dialect_at",
    "parse_answer",
    "parse_problem",
    "parse_request",
    "render_answer",
    "render_problem",
    "render_request",
    "stream_parser",
    "stream_renderer",
]

ROUTES = tuple(Route(path=base + path, v1=False) for base in AFS_BASES for path in PATHS)
