"""What a client hears: events to lines of JSON, and a whole answer to one object.

A call is told once it is whole, because its arguments are an object; one that the limit has cut
off is not told, and the reason says why. Durations are in nanoseconds, and there only where
somebody measured them.
"""

from __future__ import annotations

from tropilla.dialects import Stamp
from tropilla.dialects._openai import encode, error_body
from tropilla.dialects.ollama.messages import object_of
from tropilla.dialects.ollama.names import when
from tropilla.dialects.ollama.request import context_of, generates
from tropilla.ir import (
    Answer,
    Chat,
    ChoiceEnded,
    Event,
    Failed,
    Finished,
    FinishReason,
    Json,
    JsonObject,
    PartDelta,
    PartEnded,
    PartKind,
    PartStarted,
    Problem,
    ProblemError,
    Progress,
    Reasoning,
    Refusal,
    Request,
    Started,
    ToolCall,
    Usage,
)

CONTENT_TYPE = "application/x-ndjson"
PING = b" "
"""Before a line of JSON a space says nothing, and an empty line is none to Ollama's clients."""
_NS_OF_MS = 1_000_000
_NS_OF_S = 1_000_000_000


def _line(body: JsonObject) -> bytes:
    return encode(body) + b"\n"


def _no_object(name: str) -> Problem:
    return Problem(
        kind="upstream_failed",
        message=f"The model called '{name}' with arguments that are no JSON object.",
    )


class _Renderer:
    """Writes lines."""

    def __init__(self, request: Request, stamp: Stamp) -> None:
        self._request = request
        self._stamp = stamp
        self._generates = generates(request)
        self._begin(None)
        self._kind: PartKind = "text"
        self._call: PartStarted | None = None
        self._pieces: list[str] = []
        """Of the arguments of the open call."""
        self._calls = 0
        self._broken: Problem | None = None
        """Why a call cannot be told; that it was cut off would be no fault."""
        self._remembers = _has_context(request)
        self._texts: list[str] = []
        """All of the answer, where it is to be remembered."""
        self._end: ChoiceEnded | None = None
        self._over = False

    def feed(self, event: Event) -> bytes:
        """The bytes that tell this event."""
        match event:
            case _ if self._over:
                return b""
            case PartDelta():
                return self._delta(event)
            case Started():
                self._begin(event.created)
                return b""
            case PartStarted():
                self._kind = event.kind
                self._call = event if event.kind == "tool_call" else None
                self._pieces = []
                return b""
            case PartEnded():
                return self._called()
            case ChoiceEnded():
                if self._broken is not None and event.reason != "length":
                    return self._fail(self._broken)
                self._end = event
                return b""
            case Finished():
                return self._finish(event)
            case Failed():
                return self._fail(event.problem)
            case Progress():
                return b""

    def _begin(self, created: int | None) -> None:
        head = {"model": self._stamp.model, "created_at": when(created or self._stamp.created)}
        self._head = encode(head)[:-1]

    def _delta(self, event: PartDelta) -> bytes:
        if self._call is not None:
            self._pieces.append(event.text)
            return b""
        thought = self._kind == "reasoning"
        if self._remembers and not thought:
            self._texts.append(event.text)
        said = encode(event.text)
        if self._generates:
            told = b'"response":"","thinking":%b' if thought else b'"response":%b'
        else:
            told = b'"message":{"role":"assistant","content":"","thinking":%b}'
            told = told if thought else b'"message":{"role":"assistant","content":%b}'
        chances = _chances(event.logprobs, self._request)
        more = b',"logprobs":' + encode(chances) if chances else b""
        return b'%b,%b,"done":false%b}\n' % (self._head, told % said, more)

    def _called(self) -> bytes:
        call, self._call = self._call, None
        if call is None:
            return b""
        arguments = object_of("".join(self._pieces))
        if arguments is None:
            self._broken = self._broken or _no_object(call.name or "")
            return b""
        told = _tell_call(call.id, call.name or "", arguments, self._calls, self._stamp)
        self._calls += 1
        message = {"role": "assistant", "content": "", "tool_calls": [told]}
        body: JsonObject = {"response": "", "tool_calls": [told]}
        body = body if self._generates else {"message": message}
        return b'%b,%b,"done":false}\n' % (self._head, encode(body)[1:-1])

    def _finish(self, event: Finished) -> bytes:
        self._over = True
        reason = self._end.reason if self._end else None
        chances = self._end.logprobs if self._end else None
        body: JsonObject = {"response": ""}
        if not self._generates:
            body = {"message": {"role": "assistant", "content": ""}}
        body |= {"done": True, "done_reason": _reason(reason)}
        if self._remembers:
            body |= context_of(self._request, "".join(self._texts))
        body |= _numbers(event.usage, event.timings, self._stamp)
        if told := _chances(chances, self._request):
            body["logprobs"] = told
        if event.extras is not None:
            body |= event.extras.top
        return b"%b,%b\n" % (self._head, encode(body)[1:])

    def _fail(self, problem: Problem) -> bytes:
        self._over = True
        return _line({"error": error_body(problem)["message"]})


def stream_renderer(request: Request, stamp: Stamp) -> _Renderer:
    """A renderer of lines."""
    return _Renderer(request, stamp)


def render_answer(answer: Answer, request: Request, stamp: Stamp) -> bytes:
    """The answer, whole.

    Raises:
        ProblemError: the model made a call that cannot be told.
    """
    (choice, *_) = answer.choices
    text = (choice.text() or "") + (choice.text(Refusal) or "")
    said: JsonObject = {}
    if (thought := choice.text(Reasoning)) is not None:
        said["thinking"] = thought
    if calls := _tell_calls(choice.tool_calls, choice.reason, stamp):
        said["tool_calls"] = calls
    body: JsonObject = {
        "model": stamp.model,
        "created_at": when(answer.created or stamp.created),
    }
    if generates(request):
        body |= {"response": text} | said
    else:
        body["message"] = {"role": "assistant", "content": text} | said
    body |= {"done": True, "done_reason": _reason(choice.reason)}
    if _has_context(request):
        body |= context_of(request, text)
    if chances := _chances(choice.logprobs, request):
        body["logprobs"] = chances
    return encode(body | _numbers(answer.usage, answer.timings, stamp) | answer.extras)


def _has_context(request: Request) -> bool:
    """Whether a client may want to go on from this answer without saying it again."""
    return isinstance(request.input, Chat) and generates(request)


def _tell_calls(
    calls: list[ToolCall], reason: FinishReason | None, stamp: Stamp
) -> list[JsonObject]:
    told: list[JsonObject] = []
    for call in calls:
        arguments = object_of(call.arguments)
        if arguments is not None:
            told.append(_tell_call(call.id, call.name, arguments, len(told), stamp))
        elif reason != "length":
            raise ProblemError(_no_object(call.name))
    return told


def _tell_call(
    id_: str | None, name: str, arguments: JsonObject, index: int, stamp: Stamp
) -> JsonObject:
    function = {"index": index, "name": name, "arguments": arguments}
    return {"id": id_ or f"call_{stamp.unique}_{index}", "function": function}


def _reason(reason: FinishReason | None) -> str:
    return "length" if reason == "length" else "stop"


def _numbers(usage: Usage | None, timings: JsonObject | None, stamp: Stamp) -> JsonObject:
    usage, timings = usage or Usage(), timings or {}
    told: JsonObject = {}
    if stamp.spent is not None:
        told["total_duration"] = round(stamp.spent() * _NS_OF_S)
    told["prompt_eval_count"] = usage.prompt_tokens
    if (read := _nanoseconds(timings.get("prompt_ms"))) is not None:
        told["prompt_eval_duration"] = read
    told["eval_count"] = usage.completion_tokens
    if (written := _nanoseconds(timings.get("predicted_ms"))) is not None:
        told["eval_duration"] = written
    return told


def _nanoseconds(ms: Json) -> int | None:
    if type(ms) is not float and type(ms) is not int:
        return None
    return round(ms * _NS_OF_MS)


def _chances(entries: list[JsonObject] | None, request: Request) -> list[JsonObject] | None:
    """The probabilities, with as many alternatives as were wanted."""
    if entries is None or request.logprobs is None:
        return None
    return [_chance(entry) | _tops(entry, request.logprobs) for entry in entries]


def _chance(entry: JsonObject) -> JsonObject:
    return {key: entry[key] for key in ("token", "logprob", "bytes") if key in entry}


def _tops(entry: JsonObject, wanted: int) -> JsonObject:
    tops = entry.get("top_logprobs")
    known = [_chance(top) for top in (tops if type(tops) is list else ())[:wanted]]
    return {"top_logprobs": known}


def render_problem(problem: Problem, status: int) -> bytes:  # noqa: ARG001 - other dialects say it
    """Ollama's envelope: a text, and nothing else."""
    return encode({"error": error_body(problem)["message"]})
