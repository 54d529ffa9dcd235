"""What a client hears: events to the events of a response, and a whole answer to one response.

Each part of an answer is an item of its own: a thought, a message, a call. An item that was open
when the answer came to its limit is `incomplete`; whether it was, is known with the event after
its end, and until then its end waits.
"""

from __future__ import annotations

from typing import Any, NamedTuple

from tropilla.dialects import Stamp
from tropilla.dialects._openai import encode, error_body
from tropilla.dialects._sealed import seal
from tropilla.dialects.openai_responses.names import ENCRYPTED
from tropilla.dialects.openai_responses.problems import reworded
from tropilla.dialects.openai_responses.request import render_text
from tropilla.dialects.openai_responses.tools import render_choice, render_tool
from tropilla.framing import sse
from tropilla.ir import (
    Answer,
    Chat,
    Choice,
    ChoiceEnded,
    Event,
    Failed,
    Finished,
    FinishReason,
    JsonObject,
    Part,
    PartDelta,
    PartEnded,
    PartKind,
    PartStarted,
    Problem,
    Progress,
    Reasoning,
    Refusal,
    Request,
    Started,
    Text,
    TokenLogprob,
    Tool,
    ToolCall,
    Usage,
)

_INCOMPLETE: dict[FinishReason | None, str] = {
    "length": "max_output_tokens",
    "content_filter": "content_filter",
}
_ERRORS = {
    "limited": "rate_limit_exceeded",
    "malformed": "invalid_prompt",
    "unsupported": "invalid_prompt",
    "context_exceeded": "invalid_prompt",
}
"""The words of `response.error.code`, of which there are few; everything else is the server's."""


# The response.


def _response(request: Request, stamp: Stamp) -> JsonObject:
    """The response before anything of it is there: what was asked, with every key."""
    chat, extras, knobs = request.input, request.extras, request.knobs
    tools = chat.tools if isinstance(chat, Chat) else ()
    effort = chat.reasoning_effort if isinstance(chat, Chat) else None
    parallel = chat.parallel_tool_calls if isinstance(chat, Chat) else None
    summary = extras.get("reasoning", {}).get("summary")
    body: JsonObject = {
        "id": f"resp_{stamp.unique}",
        "object": "response",
        "created_at": stamp.created,
        "status": "in_progress",
        "background": False,
        "completed_at": None,
        "error": None,
        "incomplete_details": None,
        "instructions": extras.get("instructions"),
        "max_output_tokens": request.max_tokens,
        "max_tool_calls": extras.get("max_tool_calls"),
        "metadata": extras.get("metadata") or {},
        "model": stamp.model,
        "output": [],
        "parallel_tool_calls": parallel is not False,
        "previous_response_id": extras.get("previous_response_id"),
        "reasoning": {"effort": effort, "summary": summary},
        "service_tier": "default",
        "store": extras.get("store") is not False,
        "temperature": knobs.temperature,
        "text": _text(request),
        "tool_choice": render_choice(chat) if isinstance(chat, Chat) else "auto",
        "tools": [render_tool(tool) for tool in tools if isinstance(tool, Tool)],
        "top_logprobs": request.logprobs or extras.get("top_logprobs") or 0,
        "top_p": knobs.top_p,
        "truncation": "disabled",
    }
    for name in ("prompt_cache_key", "safety_identifier", "user"):
        if name in extras:
            body[name] = extras[name]
    return body


def _text(request: Request) -> JsonObject:
    form = request.format
    body = render_text(form, request.extras.get("verbosity"))
    if form is None:
        body["format"] = {"type": "text"}
    elif form.kind == "json_schema":
        body["format"] = {"name": "response", "schema": {}, "strict": None} | body["format"]
    return body


def _ended(
    body: JsonObject,
    output: list[JsonObject],
    reason: FinishReason | None,
    usage: Usage | None,
    timings: JsonObject | None,
) -> JsonObject:
    """The response with its answer."""
    why = _INCOMPLETE.get(reason)
    ended = body | {
        "status": "incomplete" if why else "completed",
        "incomplete_details": {"reason": why} if why else None,
        "completed_at": None if why else body["created_at"] + _seconds(timings),
        "output": output,
        "usage": _usage(usage or Usage()),
    }
    if timings is not None:
        ended["timings"] = timings
    return ended


def _seconds(timings: JsonObject | None) -> int:
    """How long an answer took, as far as its upstream tells: there is no clock here."""
    spent: list[Any] = [(timings or {}).get(name) for name in ("prompt_ms", "predicted_ms")]
    known = sum(one for one in spent if type(one) in {int, float} and 0 <= one < 1e12)
    return int(known / 1000 + 0.5)


def _usage(usage: Usage) -> JsonObject:
    body: JsonObject = {
        "input_tokens": usage.prompt_tokens,
        "input_tokens_details": {
            "cached_tokens": usage.cached_tokens or 0, "cache_write_tokens": 0,
        },
        "output_tokens": usage.completion_tokens,
        "output_tokens_details": {"reasoning_tokens": usage.reasoning_tokens or 0},
        "total_tokens": usage.total_tokens,
    }  # fmt: skip
    if usage.extras.get("estimated") is True:
        body["estimated"] = True
    return body


def _error(problem: Problem) -> JsonObject:
    return {"code": _ERRORS.get(problem.kind, "server_error"), "message": problem.message}


# Its items.


class _Head(NamedTuple):
    """What an item is, before it says anything."""

    kind: PartKind
    id: str
    name: str
    call_id: str
    custom: bool
    sealed: bool
    """Whether a thought is wanted in a form in which it can be sent back."""

    def item(self, text: str, status: str, logprobs: list[TokenLogprob]) -> JsonObject:
        """The item that says this text."""
        body: JsonObject = {"id": self.id, "status": status}
        match self.kind:
            case "reasoning":
                content = [{"type": "reasoning_text", "text": text}] if text else []
                body |= {"type": "reasoning", "summary": [], "content": content}
                if self.sealed:
                    body["encrypted_content"] = seal(text)
            case "tool_call" if self.custom:
                body |= {"type": "custom_tool_call", "call_id": self.call_id, "name": self.name}
                body["input"] = text
            case "tool_call":
                body |= {"type": "function_call", "call_id": self.call_id, "name": self.name}
                body["arguments"] = text
            case _:
                content = [self.content(text, logprobs)] if status != "in_progress" else []
                body |= {"type": "message", "role": "assistant", "content": content}
        return body

    def content(self, text: str, logprobs: list[TokenLogprob]) -> JsonObject:
        """The content of an item that has some."""
        match self.kind:
            case "text":
                return {
                    "type": "output_text", "text": text, "annotations": [], "logprobs": logprobs,
                }  # fmt: skip
            case "refusal":
                return {"type": "refusal", "refusal": text}
        return {"type": "reasoning_text", "text": text}


_PREFIXES: dict[PartKind, str] = {
    "text": "msg", "refusal": "msg", "reasoning": "rs", "tool_call": "fc",
}  # fmt: skip


def _head(request: Request, stamp: Stamp, index: int, part: PartStarted | Part) -> _Head:
    """What the item of a part is; `index` is its place in the output."""
    match part:
        case PartStarted(kind=kind, id=id_, name=name, custom=custom):
            pass
        case ToolCall(id=id_, name=name, custom=custom):
            kind = "tool_call"
        case _:
            kind = _KINDS.get(type(part), "text")
            id_, name, custom = None, None, False
    prefix = "ctc" if custom else _PREFIXES[kind]
    return _Head(
        kind,
        f"{prefix}_{stamp.unique}_{index}",
        name or "",
        id_ or f"call_{stamp.unique}_{index}",
        custom,
        ENCRYPTED in request.extras.get("include", ()),
    )


_KINDS: dict[type, PartKind] = {Text: "text", Reasoning: "reasoning", Refusal: "refusal"}


def _cut(entries: list[TokenLogprob] | None, request: Request) -> list[TokenLogprob]:
    """Token probabilities with as many alternatives as are wanted."""
    wanted = request.logprobs
    if entries is None or wanted is None:
        return []
    return [
        entry | {"top_logprobs": (entry.get("top_logprobs") or [])[:wanted]} for entry in entries
    ]


# The stream.

_DELTAS: dict[PartKind, str] = {
    "text": "response.output_text.delta",
    "reasoning": "response.reasoning_text.delta",
    "refusal": "response.refusal.delta",
    "tool_call": "response.function_call_arguments.delta",
}
_CUSTOM_DELTA = "response.custom_tool_call_input.delta"


class _Open:
    """The item that is being said."""

    __slots__ = ("before", "closing", "head", "index", "logprobs", "texts")

    def __init__(self, head: _Head, index: int) -> None:
        self.head = head
        self.index = index
        self.texts: list[str] = []
        self.logprobs: list[TokenLogprob] = []
        self.closing = False
        kind = _CUSTOM_DELTA if head.custom else _DELTAS[head.kind]
        told = {"type": kind, "item_id": head.id, "output_index": index, **self.within}
        self.before = b"event: %b\ndata: %b," % (kind.encode(), encode(told)[:-1])

    @property
    def within(self) -> JsonObject:
        """Where in the item something is said."""
        return {} if self.head.kind == "tool_call" else {"content_index": 0}


class Renderer:
    """Writes the events of one response; `response` is the whole of it, once it has ended."""

    def __init__(self, request: Request, stamp: Stamp) -> None:
        self.response: JsonObject | None = None
        self._request = request
        self._stamp = stamp
        self._body: JsonObject | None = None
        self._number = 0
        self._output: list[JsonObject] = []
        self._open: _Open | None = None
        self._reason: FinishReason | None = None
        self._last = b""
        """What has told its end."""

    def feed(self, event: Event) -> bytes:
        """The bytes that tell this event; often none."""
        match event:
            case PartDelta():
                return self._delta(event)
            case Progress():
                return b""
        begun = self._begin()
        match event:
            case Started():
                return begun
            case PartStarted():
                return begun + self._close("completed") + self._part(event)
            case PartEnded():
                if self._open is not None:
                    self._open.closing = True
                return begun
            case ChoiceEnded():
                self._reason = event.reason
                status = "incomplete" if event.reason in _INCOMPLETE else "completed"
                return begun + self._close(status)
            case Finished():
                return begun + self._finish(event)
            case _:
                return begun + self._close("incomplete") + self._fail(event)

    def _begin(self) -> bytes:
        if self._body is not None:
            return b""
        self._body = _response(self._request, self._stamp)
        return b"".join(
            self._tell(kind, {"response": self._body})
            for kind in ("response.created", "response.in_progress")
        )

    def _tell(self, kind: str, body: JsonObject) -> bytes:
        told = {"type": kind, **body, "sequence_number": self._number}
        self._number += 1
        return sse(encode(told), kind)

    def _part(self, event: PartStarted) -> bytes:
        index = len(self._output)
        head = _head(self._request, self._stamp, index, event)
        self._open = opened = _Open(head, index)
        item = head.item("", "in_progress", [])
        if head.kind == "reasoning":
            item.pop("encrypted_content", None)
        told = self._tell("response.output_item.added", {"output_index": index, "item": item})
        if head.kind == "tool_call":
            return told
        return told + self._tell(
            "response.content_part.added", self._place(opened) | {"part": head.content("", [])}
        )

    @staticmethod
    def _place(opened: _Open) -> JsonObject:
        return {"item_id": opened.head.id, "output_index": opened.index, **opened.within}

    def _delta(self, event: PartDelta) -> bytes:
        opened = self._open
        if opened is None:
            return b""
        logprobs: list[TokenLogprob] = []
        if opened.head.kind == "text" and event.logprobs:
            logprobs = _cut(event.logprobs, self._request)
            opened.logprobs += logprobs
        if not event.text and not logprobs:
            return b""
        opened.texts.append(event.text)
        number = self._number
        self._number += 1
        more = b',"logprobs":' + encode(logprobs) if opened.head.kind == "text" else b""
        return b'%b"delta":%b%b,"sequence_number":%d}\n\n' % (
            opened.before, encode(event.text), more, number,
        )  # fmt: skip

    def _close(self, status: str) -> bytes:
        opened, self._open = self._open, None
        if opened is None:
            return b""
        head, place = opened.head, self._place(opened)
        text = "".join(opened.texts)
        item = head.item(text, status, opened.logprobs)
        self._output.append(item)
        match head.kind:
            case "tool_call" if head.custom:
                told = self._tell("response.custom_tool_call_input.done", place | {"input": text})
            case "tool_call":
                said = place | {"name": head.name, "arguments": text}
                told = self._tell("response.function_call_arguments.done", said)
            case "text":
                said = place | {"text": text, "logprobs": opened.logprobs}
                told = self._tell("response.output_text.done", said)
            case "refusal":
                told = self._tell("response.refusal.done", place | {"refusal": text})
            case _:
                told = self._tell("response.reasoning_text.done", place | {"text": text})
        if head.kind != "tool_call":
            part = head.content(text, opened.logprobs)
            told += self._tell("response.content_part.done", place | {"part": part})
        done = {"output_index": opened.index, "item": item}
        return told + self._tell("response.output_item.done", done)

    def _finish(self, event: Finished) -> bytes:
        body = _ended(self._body or {}, self._output, self._reason, event.usage, event.timings)
        return self._end(body)

    def _end(self, body: JsonObject) -> bytes:
        self.response = body
        self._last = self._tell(f"response.{body['status']}", {"response": body})
        return self._last

    def unkept(self, told: bytes) -> bytes:
        """What has told the end of a response, as it says that it is not kept."""
        before = told.removesuffix(self._last)
        self._number -= 1
        return before + self._end((self.response or {}) | {"store": False})

    def _fail(self, event: Failed) -> bytes:
        problem = reworded(event.problem)
        told = error_body(problem)
        error = {name: told[name] for name in ("code", "message", "param")}
        body = (self._body or {}) | {
            "status": "failed",
            "error": _error(problem),
            "output": self._output,
        }
        if event.usage is not None:
            body["usage"] = _usage(event.usage)
        return self._tell("error", error) + self._end(body)


def stream_renderer(request: Request, stamp: Stamp) -> Renderer:
    """A renderer of the events of a response."""
    return Renderer(request, stamp)


# The whole.


def whole(answer: Answer, request: Request, stamp: Stamp) -> JsonObject:
    """The response, whole."""
    choice = answer.choices[0] if answer.choices else Choice()
    output: list[JsonObject] = []
    logprobs = _cut(choice.logprobs, request)
    for number, part in enumerate(choice.parts, 1):
        head = _head(request, stamp, len(output), part)
        last = number == len(choice.parts) and choice.reason in _INCOMPLETE
        here: list[TokenLogprob] = []
        if head.kind == "text":
            here, logprobs = logprobs, []
        output.append(head.item(_said(part), "incomplete" if last else "completed", here))
    body = _response(request, stamp)
    return _ended(body, output, choice.reason, answer.usage, answer.timings)


def _said(part: Part) -> str:
    match part:
        case Text(text=text) | Reasoning(text=text) | Refusal(text=text):
            return text
        case ToolCall(arguments=text):
            return text
    return ""


def render_answer(answer: Answer, request: Request, stamp: Stamp) -> bytes:
    """The response, whole, as its bytes."""
    return encode(whole(answer, request, stamp))
