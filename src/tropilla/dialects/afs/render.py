"""What a client hears: events to streamed flat objects, and a whole answer to one."""

from __future__ import annotations

from tropilla.dialects import Stamp
from tropilla.dialects._openai import encode, error_body
from tropilla.dialects.afs.request import NAME, render_call
from tropilla.framing import sse
from tropilla.ir import (
    Answer,
    ChoiceEnded,
    Event,
    Failed,
    Finished,
    JsonObject,
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
    ToolCall,
    Usage,
)

# Clients of AFS that read line by line know this event and its clock, which is no JSON, and skip
# both; on a comment some of them fail. A pure module has no clock: what is told is that it lives.
PING = b"event: ping\ndata: 1970-01-01 00:00:00.000000\n\n"

_NO_TIME = "0.00 sec"
_PLAIN = (
    b'data: {"generated_text":%b,"function_call":null,"details":null,'
    b'"total_time_taken":"0.00 sec","prompt_tokens":0,"generated_tokens":0,"total_tokens":0,'
    b'"finish_reason":null}\n\n'
)


def stream_renderer(request: Request, stamp: Stamp) -> _Renderer:
    """A renderer of flat objects, of which each tells a delta and the last the numbers."""
    return _Renderer(request, stamp)


class _Renderer:
    def __init__(self, request: Request, stamp: Stamp) -> None:
        self._request = request
        self._stamp = stamp
        self._kind: PartKind = "text"
        self._calls: list[ToolCall] = []
        self._call: PartStarted | None = None
        self._arguments = ""
        self._ended: ChoiceEnded | None = None

    def feed(self, event: Event) -> bytes:
        match event:
            case PartDelta():
                return self._delta(event)
            case PartStarted():
                self._kind = event.kind
                self._call = event if event.kind == "tool_call" else None
                return b""
            case PartEnded():
                self._end_call()
                return b""
            case ChoiceEnded():
                # The last object tells the numbers too: it waits for them.
                self._ended = event
                return b""
            case Finished():
                return self._finish(event)
            case Failed():
                return sse(render_problem(event.problem, 500))
            case Started() | Progress():
                return b""

    def _delta(self, event: PartDelta) -> bytes:
        if self._kind == "tool_call":
            # A call is of no use before it is complete: the last object tells it.
            self._arguments += event.text
            return b""
        if event.logprobs is None and event.extras is None and self._kind != "reasoning":
            return _PLAIN % encode(event.text) if event.text else b""
        said = _flat("" if self._kind == "reasoning" else event.text)
        if self._kind == "reasoning":
            said["reasoning_content"] = event.text
        said["details"] = _details(event.logprobs, self._request)
        if event.extras is not None:
            said |= event.extras.top
        return sse(encode(said))

    def _end_call(self) -> None:
        call, self._call = self._call, None
        if call is not None:
            arguments, self._arguments = self._arguments, ""
            self._calls.append(
                ToolCall(id=call.id or "", name=call.name or "", arguments=arguments)
            )

    def _finish(self, event: Finished) -> bytes:
        ended = self._ended or ChoiceEnded(reason="stop")
        said = _flat("")
        said["details"] = _details(ended.logprobs, self._request)
        said |= _numbers(event.usage, event.timings)
        said["finish_reason"] = _reason(ended.reason, ended.stop_word, self._request)
        said |= _render_calls(self._calls, self._request, self._stamp)
        for extras in (ended.extras, event.extras):
            if extras is not None:
                said |= extras.top
        return sse(encode(said))


def render_answer(answer: Answer, request: Request, stamp: Stamp) -> bytes:
    """The answer, whole."""
    choice = answer.choices[0]
    texts = [part.text for part in choice.parts if isinstance(part, Text | Refusal)]
    said = _flat("".join(texts))
    reasoning = choice.text(Reasoning)
    if reasoning:
        said["reasoning_content"] = reasoning
    said["details"] = _details(choice.logprobs, request)
    said |= _numbers(answer.usage, answer.timings)
    said["finish_reason"] = _reason(choice.reason or "stop", choice.stop_word, request)
    said |= _render_calls(choice.tool_calls, request, stamp)
    return encode(said | answer.extras)


def _flat(text: str) -> JsonObject:
    """AFS's object, with nothing known yet but a text, which is never null."""
    return {
        "generated_text": text,
        "function_call": None,
        "details": None,
        "total_time_taken": _NO_TIME,
        "prompt_tokens": 0,
        "generated_tokens": 0,
        "total_tokens": 0,
        "finish_reason": None,
    }


def _numbers(usage: Usage | None, timings: JsonObject | None) -> JsonObject:
    usage = usage or Usage()
    return {
        "total_time_taken": _time(timings),
        "prompt_tokens": usage.prompt_tokens,
        "generated_tokens": usage.completion_tokens,
        "total_tokens": usage.total_tokens,
    }


def _time(timings: JsonObject | None) -> str:
    """What the engine says that it worked; zero where nobody measured."""
    spent = 0.0
    for name in ("prompt_ms", "predicted_ms"):
        value = (timings or {}).get(name)
        if type(value) is float or type(value) is int:
            spent += value
    return f"{spent / 1000:.2f} sec"


def _is_old(request: Request) -> bool:
    """Whether the client gave functions for tools: it is answered in the same form."""
    return NAME in request.extras


def _reason(reason: str, stop_word: str | None, request: Request) -> str:
    match reason:
        case "stop":
            return "eos_token" if stop_word is None else "stop_sequence"
        case "tool_calls" | "function_call":
            return "function_call" if _is_old(request) else "tool_calls"
    return reason


def _render_calls(calls: list[ToolCall], request: Request, stamp: Stamp) -> JsonObject:
    if not calls:
        return {}
    said: JsonObject = {}
    if _is_old(request):
        said["function_call"] = {"name": calls[0].name, "arguments": calls[0].arguments}
        if len(calls) == 1:
            return said
        # The old form has place for one: rather the new one beside it than a call that is lost.
    said["tool_calls"] = [
        {"index": number}
        | render_call(call, own=False)
        | {"id": call.id or f"call_{stamp.unique}_{number}"}
        for number, call in enumerate(calls)
    ]
    return said


def _details(entries: list[TokenLogprob] | None, request: Request) -> JsonObject | None:
    """What `show_probabilities` asks for, in the form of TGI: that of AFS is unknown."""
    if entries is None or request.logprobs is None:
        return None
    tokens = [
        {"id": entry.get("id"), "text": entry.get("token"), "logprob": entry.get("logprob")}
        for entry in entries
    ]
    return {"tokens": tokens}


def render_problem(problem: Problem, status: int) -> bytes:  # noqa: ARG001 - other dialects say it
    """AFS is a FastAPI application: its clients read `detail`.

    `error.message` is beside it, because clients of streams look there, and so do those that also
    speak OpenAI: no client looks at only one of them and is hurt by the other.
    """
    error = error_body(problem)
    return encode({"detail": error["message"], "error": error})
