"""OpenAI's chat completions: `POST /v1/chat/completions`, as a client speaks it and as a server.

As a front it keeps the rules that clients rely on and that servers break: one role per choice,
in order of the choices; an `id` and a name only in the first fragment of a tool call; nothing
after the usage chunk but `[DONE]`. As a back it reads what servers really send: no role, no
`[DONE]`, usage anywhere, `reasoning` under either name.

`request` reads and says what is asked, `parse` reads what an upstream answers, and `render`
says it to a client.
"""

from tropilla.dialects import Route
from tropilla.dialects._bases import AFS_BASES
from tropilla.dialects._beside import Counter, Shape
from tropilla.dialects._openai import CONTENT_TYPE, PING, parse_problem, render_problem
from tropilla.dialects.openai_chat.names import NAME
from tropilla.dialects.openai_chat.parse import parse_answer, stream_parser
from tropilla.dialects.openai_chat.render import render_answer, stream_renderer
from tropilla.dialects.openai_chat.request import parse_request, render_request

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

ROUTES = (
    Route(path="/chat/completions"),
    *(Route(path=f"{base}/models/chat/completions", v1=False) for base in AFS_BASES),
)
COUNTERS = (
    Counter(
        path="/chat/completions/input_tokens",
        of="/chat/completions",
        shape=Shape("Count the tokens of a conversation", "ChatRequest", "Counted"),
    ),
)
