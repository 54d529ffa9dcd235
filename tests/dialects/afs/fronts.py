"""The eight ways in which a client asks an AFS deployment through a gateway."""

from __future__ import annotations

from collections.abc import Callable
from typing import Any, NamedTuple

import msgspec

from conftest import Answer
from doubles.afs import CONVERSATION, GENERATE, INFILLING

JsonObject = dict[str, Any]


class Front(NamedTuple):
    """How a client asks, where that arrives, and how the client hears text and reason."""

    path: str
    body: JsonObject
    arrives: str
    sent: JsonObject
    whole: Callable[[Any], tuple[str, str]]
    delta: Callable[[Any], str]
    reasons: dict[str, str]

    def heard(self, answer: Answer) -> tuple[str, str]:
        """The text and the reason of an answer in either form."""
        assert answer.status == 200, answer.body
        if not answer.headers["content-type"].startswith("text/event-stream"):
            return self.whole(answer.json)
        events = [one for one in events_of(answer) if one != "[DONE]" and one.get("choices") != []]
        assert events, answer.body
        return "".join(map(self.delta, events)), self.whole(events[-1])[1]


def events_of(answer: Answer) -> list[Any]:
    """The events of a stream; a ping is none."""
    blocks = [block for block in answer.body.split(b"\n\n") if block.startswith(b"data: ")]
    data = [block.removeprefix(b"data: ") for block in blocks]
    return ["[DONE]" if one == b"[DONE]" else msgspec.json.decode(one) for one in data]


def chat_of(body: Any) -> tuple[str, str]:
    (choice,) = body["choices"]
    return choice.get("message", {}).get("content"), choice["finish_reason"]


def chat_delta(event: Any) -> str:
    return event["choices"][0]["delta"].get("content") or ""


def text_of(body: Any) -> tuple[str, str]:
    (choice,) = body["choices"]
    return choice["text"], choice["finish_reason"]


def native_of(body: Any) -> tuple[str, str]:
    return body["content"], body["stop_type"]


def flat_of(body: Any) -> tuple[str, str]:
    return body["generated_text"], body["finish_reason"]


OPENAI = {"eos_token": "stop", "stop_sequence": "stop", "length": "length"}
NATIVE = {"eos_token": "eos", "stop_sequence": "word", "length": "limit"}
AFS = {"eos_token": "eos_token", "stop_sequence": "stop_sequence", "length": "length"}
HUMAN = {"role": "human", "content": "Hello!"}
MESSAGES = {"messages": [{"role": "user", "content": "Hello!"}]}
HOLE = {"inputs": "def f(<FILL_ME>): pass"}
AS_TEXT = (text_of, lambda event: text_of(event)[0], OPENAI)
AS_NATIVE = (native_of, lambda event: event["content"], NATIVE)
AS_FLAT = (flat_of, lambda event: event["generated_text"], AFS)

FRONTS = {
    "chat": Front(
        "/v1/chat/completions", MESSAGES, CONVERSATION, {"messages": [HUMAN]},
        chat_of, chat_delta, OPENAI,
    ),
    "completions": Front(
        "/v1/completions", {"prompt": "Hello!"}, GENERATE, {"inputs": "Hello!"}, *AS_TEXT
    ),
    "suffix": Front(
        "/v1/completions", {"prompt": "def f(", "suffix": "): pass"}, INFILLING, HOLE,
        *AS_TEXT,
    ),
    "native": Front(
        "/completion", {"prompt": "Hello!"}, GENERATE, {"inputs": "Hello!"}, *AS_NATIVE
    ),
    "infill": Front(
        "/infill", {"input_prefix": "def f(", "input_suffix": "): pass"}, INFILLING, HOLE,
        *AS_NATIVE,
    ),
    "conversation": Front(
        "/api/models/conversation", {"messages": [HUMAN]}, CONVERSATION, {"messages": [HUMAN]},
        *AS_FLAT,
    ),
    "generate": Front(
        "/api/models/generate", {"inputs": "Hello!"}, GENERATE, {"inputs": "Hello!"}, *AS_FLAT
    ),
    "infilling": Front("/api/models/text_infilling", HOLE, INFILLING, HOLE, *AS_FLAT),
}  # fmt: skip


def fault(front: Front, answer: Answer) -> str:
    """What the error of an answer says, in the client's envelope."""
    told = events_of(answer) if answer.status == 200 else [answer.json]
    (body,) = [one for one in told if one != "[DONE]" and "error" in one]
    message: str = body["error"]["message"]
    if front.path.startswith("/api/"):
        assert body["detail"] == message
    return message
