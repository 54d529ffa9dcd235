"""What OpenAI's wire APIs share: common fields of a request, usage, error envelope, SSE end.

Two forms of one field are read wherever llama.cpp has its own beside OpenAI's.
"""

from __future__ import annotations

import math
import re
from collections.abc import Iterable, Sequence
from typing import Any

import msgspec

from tropilla.dialects import Stamp, _others, _problems, _streams
from tropilla.dialects._fields import (
    Fields,
    count_of,
    invalid,
    write_knobs,
    wrong_type,
)
from tropilla.dialects._ignored import extras_for_llamacpp
from tropilla.framing import SSE_DONE, SSE_PING, Frame, sse
from tropilla.ir import (
    Bias,
    Choice,
    Event,
    Failed,
    Finished,
    FinishReason,
    Json,
    JsonObject,
    Knobs,
    Malformed,
    Problem,
    Request,
    Started,
    TokenLogprob,
    Traits,
    Usage,
)

MOST_STOPS = 4
"""Stop texts of one request."""
MOST_MESSAGES = 4096
"""More of them would keep everybody else waiting while they are read."""
MOST_TOOLS = 1024
"""The same of tools."""
MOST_BIASES = 16_384
"""And of tokens that are made likelier."""

CONTENT_TYPE = "text/event-stream; charset=utf-8"
PING = SSE_PING

encode = msgspec.json.Encoder().encode
_decode = msgspec.json.Decoder().decode


def decode(data: bytes) -> Json:
    """An upstream's JSON.

    Raises:
        Malformed: it is none.
    """
    try:
        return _decode(data)
    except (msgspec.DecodeError, RecursionError, UnicodeDecodeError) as error:
        raise Malformed(f"The upstream sent something that is not JSON: {error}.") from None


def read_limit(fields: Fields, least: int = 1) -> int | None:
    """The most tokens to write: the newest name first, then the old, then llama.cpp's.

    -1 is llama.cpp's way to say "no limit", also under the other names. `least` is 0 where a
    prompt alone may be asked for.
    """
    limits = [
        (name, fields.integer(name))
        for name in ("max_completion_tokens", "max_tokens", "n_predict")
    ]
    for name, limit in limits:
        if limit is not None:
            if limit == -1:
                return None
            if limit < least:
                raise invalid(
                    fields.at(name),
                    f"expected a value >= {least}, but got {limit} instead.",
                    "integer_below_min_value",
                )
            return limit
    return None


def read_logit_bias(value: Json, path: str, *, openai: bool = True) -> tuple[Bias, ...]:
    """`{"id": amount}`, or llama.cpp's `[[id or text, amount or false], ...]`.

    With `openai`, the range is OpenAI's.
    """
    if value is None:
        return ()
    if (type(value) is dict or type(value) is list) and len(value) > MOST_BIASES:
        why = f"expected at most {MOST_BIASES}, but got {len(value)} instead."
        raise invalid(path, why, "array_above_max_length")
    if type(value) is dict:
        pairs: list[Any] = [
            [int(token) if _TOKEN_ID.fullmatch(token) else token, amount]
            for token, amount in value.items()
        ]
    elif type(value) is list:
        pairs = value
    else:
        raise wrong_type(path, "an object", value)
    most = 100 if openai else math.inf
    return tuple(_read_bias(pair, f"{path}.{i}", most) for i, pair in enumerate(pairs))


# No longer than any id is: Python refuses to read a number of thousands of digits.
_TOKEN_ID = re.compile("[0-9]{1,18}")


def _read_bias(pair: Json, path: str, most: float) -> Bias:
    match pair:
        case [bool(), _]:
            pass
        case [int() | str() as token, False as amount]:
            return Bias(token=token, amount=amount)
        case [int() | str() as token, bool()]:
            pass
        case [int() | str() as token, int() | float() as amount]:
            if not -most <= amount <= most:
                raise invalid(
                    path, f"expected a bias between {-most} and {most}, but got {amount}."
                )
            return Bias(token=token, amount=amount)
    raise wrong_type(path, "a token and its bias", pair)


def write_logit_bias(biases: tuple[Bias, ...], traits: Traits) -> Json:
    """Pairs for llama.cpp, which every build of it reads; the object for anybody else."""
    if traits.llamacpp:
        return [[bias.token, bias.amount] for bias in biases]
    return {str(bias.token): -100 if bias.amount is False else bias.amount for bias in biases}


def read_stream_options(fields: Fields, *, stream: bool) -> bool:
    """Whether the client wants usage in its stream."""
    options = fields.object("stream_options")
    if options is None:
        return False
    if not stream:
        raise invalid("stream_options", "it is only allowed when 'stream' is true.")
    told = Fields(options, "stream_options")
    # What it asks for hides the lengths of tokens from who listens to encrypted answers.
    told.boolean("include_obfuscation")
    return bool(told.boolean("include_usage"))


def write_common(request: Request, traits: Traits) -> tuple[JsonObject, list[str]]:
    """The fields that chat and completions have in common, and the names of what is lost.

    Usage is asked for wherever that is not refused.

    Raises:
        Malformed: of kind `unsupported`, when the upstream cannot be told what must not be lost.
    """
    dropped: list[str] = []
    if traits.llamacpp:
        body, dropped = extras_for_llamacpp(request)
        if request.knobs != _NO_KNOBS:
            body |= write_knobs(request.knobs)
    else:
        body, dropped = _others.fit(request, traits)
    if request.model is not None:
        body["model"] = request.model
    body["stream"] = True
    if traits.tells_usage:
        body["stream_options"] = {"include_usage": True}
    if request.max_tokens is not None:
        body["max_tokens"] = request.max_tokens
    if request.stop:
        body["stop"] = list(request.stop)
    if request.n != 1:
        body["n"] = request.n
    if request.logit_bias:
        body["logit_bias"] = write_logit_bias(request.logit_bias, traits)
    return body, dropped


_NO_KNOBS = Knobs()


def no_choices(body: Json) -> Malformed:
    """What is wrong with a whole answer that has no choices; it may say so itself."""
    match body:
        case {"message": str(message)}:  # the error itself, as vLLM had it until 2025
            return Malformed(message)
    return Malformed("The upstream's answer has no 'choices'.")


def distinct(choices: Iterable[Choice]) -> tuple[Choice, ...]:
    """The choices of a whole answer.

    Raises:
        Malformed: two of them claim to be the same one.
    """
    told = tuple(choices)
    if len({choice.index for choice in told}) < len(told):
        raise Malformed("Two choices of the upstream's answer have the same 'index'.")
    return told


def read_token_logprobs(entries: list[Json]) -> list[TokenLogprob]:
    """Token probabilities as they are; renderers may rely on their shape."""
    for entry in entries:
        match entry:
            case {"top_logprobs": None} | {"top_logprobs": []}:
                pass
            case {"top_logprobs": list(tops)} if all(type(top) is dict for top in tops):
                pass
            case dict() if "top_logprobs" not in entry:
                pass
            case _:
                raise Malformed("The token probabilities of the upstream are malformed.")
    return entries


def read_started(body: JsonObject) -> Started:
    """What a chunk, or a whole answer, says of itself; what is not of its type is not said."""
    id_, model, created = body.get("id"), body.get("model"), body.get("created")
    fingerprint = body.get("system_fingerprint")
    return Started(
        id=id_ if type(id_) is str and id_ else None,
        model=model if type(model) is str else None,
        created=created if type(created) is int else None,
        fingerprint=fingerprint if type(fingerprint) is str else None,
    )


class Chunks(_streams.Parser):
    """A parser of OpenAI's streams: it finds their end and their errors, and `_read`s the rest."""

    REPEATS = True

    def _frame(self, frame: Frame, events: list[Event]) -> None:
        if frame.data == b"[DONE]":
            self._finish(events)
            return
        told = decode(frame.data)
        if frame.event == "error":
            self._fail_with(told, events)  # llama.cpp b1542 to b6522
        elif told is None:
            return  # llama-server sends `data: null` where several prompts are streamed
        elif type(told) is not dict:
            raise Malformed("A chunk of the upstream's stream is not an object.")
        elif told.get("error") is not None or ("message" in told and "choices" not in told):
            self._fail_with(told.get("error") or told, events)
        else:
            self._read(told, events)

    def _read(self, chunk: JsonObject, events: list[Event]) -> None:
        raise NotImplementedError


def read_usage(value: Json) -> Usage | None:
    """OpenAI's usage object; anything else is none."""
    if type(value) is not dict:
        return None
    rest: JsonObject = value.copy()
    for name in ("total_tokens", "prompt_tokens", "completion_tokens"):
        rest.pop(name, None)
    return Usage(
        prompt_tokens=count_of(value, "prompt_tokens") or 0,
        completion_tokens=count_of(value, "completion_tokens") or 0,
        cached_tokens=_read_detail(rest, "prompt_tokens_details", "cached_tokens"),
        reasoning_tokens=_read_detail(rest, "completion_tokens_details", "reasoning_tokens"),
        extras=rest,
    )


def _read_detail(rest: JsonObject, group: str, name: str) -> int | None:
    """Take one count out of a group of details; those that say nothing new go with it."""
    details = rest.pop(group, None)
    if type(details) is not dict:
        return None
    others = {
        key: value
        for key, value in details.items()
        if key != name and (value != 0 or key not in _NO_DETAILS[group])
    }
    if others:
        rest[group] = others
    return count_of(details, name)


_NO_DETAILS = {
    "prompt_tokens_details": {"cached_tokens": 0, "audio_tokens": 0},
    "completion_tokens_details": {
        "reasoning_tokens": 0,
        "audio_tokens": 0,
        "accepted_prediction_tokens": 0,
        "rejected_prediction_tokens": 0,
    },
}


def sum_usages(usages: Sequence[Usage], n: int) -> Usage | None:
    """The usage of a whole answer, where the upstream told each choice's own.

    llama-server does, for n > 1 and for several prompts (PR #27318 is open). A prompt counts once,
    however many choices continue it.
    """
    if len(usages) < 2:
        return usages[0] if usages else None
    firsts = usages[::n]
    cached = [usage.cached_tokens for usage in firsts if usage.cached_tokens is not None]
    thought = [usage.reasoning_tokens for usage in usages if usage.reasoning_tokens is not None]
    return Usage(
        prompt_tokens=sum(usage.prompt_tokens for usage in firsts),
        completion_tokens=sum(usage.completion_tokens for usage in usages),
        cached_tokens=sum(cached) if cached else None,
        reasoning_tokens=sum(thought) if thought else None,
        extras=usages[-1].extras,
    )


def write_usage(usage: Usage | None) -> JsonObject:
    """OpenAI's usage object, with every key that its newest clients know."""
    usage = usage or Usage()
    counts = {
        "prompt_tokens_details": {"cached_tokens": usage.cached_tokens or 0},
        "completion_tokens_details": {"reasoning_tokens": usage.reasoning_tokens or 0},
    }
    details = {
        group: none | usage.extras.get(group, {}) | counts[group]
        for group, none in _NO_DETAILS.items()
    }
    return {
        "prompt_tokens": usage.prompt_tokens,
        "completion_tokens": usage.completion_tokens,
        "total_tokens": usage.total_tokens,
        **usage.extras,
        **details,
    }


_REASONS: dict[str, FinishReason] = {
    "stop": "stop",
    "length": "length",
    "tool_calls": "tool_calls",
    "content_filter": "content_filter",
    "function_call": "function_call",
}


def read_reason(value: Json) -> FinishReason:
    """A finish reason; one that OpenAI does not know means that the model stopped."""
    return _REASONS.get(value, "stop") if type(value) is str else "stop"


def read_stop_word(choice: JsonObject, body: JsonObject | None = None) -> str | None:
    """The stop word that ended a choice of a chunk, or of a whole answer.

    vLLM tells it, in a field of its own; a llama-server that was asked to tell all it knows.
    """
    word = choice.get("stop_reason")
    match (body or {}).get("__verbose"):
        case {"stopping_word": str(named), "index": index} if index == choice.get("index", 0):
            word = named or None
    return word if type(word) is str and choice.get("finish_reason") == "stop" else None


def parse_problem(status: int, body: bytes) -> Problem:
    """Read an upstream's refusal."""
    try:
        told = _decode(body)
    except (msgspec.DecodeError, RecursionError, UnicodeDecodeError):
        told = None
    match told:
        case {"error": dict(error)}:
            pass
        case {"object": "error", "message": str()}:
            error = told  # the error itself is how vLLM said it until 2025
        case {"detail": [{"msg": str(message), "loc": list(steps)}, *_]}:
            # FastAPI's, of a field that cannot be.
            at = ".".join(str(step) for step in steps if step != "body")
            error = {"message": f"{at}: {message}", "param": at}
        case _:
            return _problems.parse(status, body)
    problem = _problems.of_error(error, status)
    code = error.get("code")
    if status == 401:
        # What such a server says may show the key.
        why = (
            "The upstream refused this gateway's own key (401): its api_key in the config is wrong."
        )
        return msgspec.structs.replace(problem, message=why)
    if problem.kind == "malformed" and _TOO_LONG.search(problem.message):
        return msgspec.structs.replace(problem, kind="context_exceeded", code=None)
    if problem.kind == "limited" and type(code) is str:
        return msgspec.structs.replace(problem, code=code)
    return problem


# vLLM and llama-cpp-python have no code for it.
_TOO_LONG = re.compile("maximum context length|maximum model length|model's context length")


def render_problem(problem: Problem, status: int) -> bytes:  # noqa: ARG001 - other dialects say it
    """OpenAI's envelope, with all four keys."""
    return encode({"error": error_body(problem)})


def error_body(problem: Problem) -> JsonObject:
    """The inside of OpenAI's error envelope."""
    kind, code = _ERRORS[problem.kind]
    param = problem.param
    return {
        "message": _bounded(problem.message),
        "type": kind,
        "param": None if param is None else _bounded(param),
        "code": problem.code or code,
        **problem.extras,
    }


_MOST_TOLD = 4000
"""Of what a client sent, an error does not repeat megabytes."""


def _bounded(text: str) -> str:
    return text if len(text) <= _MOST_TOLD else text[:_MOST_TOLD] + "..."


_ERRORS: dict[str, tuple[str, str | None]] = {
    "malformed": ("invalid_request_error", None),
    "too_large": ("invalid_request_error", "request_too_large"),
    "too_slow": ("invalid_request_error", "request_timeout"),
    "unsupported_media": ("invalid_request_error", "unsupported_media_type"),
    "context_exceeded": ("invalid_request_error", "context_length_exceeded"),
    "unsupported": ("invalid_request_error", "unsupported_value"),
    "unauthenticated": ("invalid_request_error", "invalid_api_key"),
    "forbidden": ("invalid_request_error", "forbidden"),
    "not_found": ("invalid_request_error", "unknown_url"),
    "method_not_allowed": ("invalid_request_error", "method_not_allowed"),
    "conflict": ("invalid_request_error", "idempotency_key_reused"),
    "not_implemented": ("invalid_request_error", "not_implemented"),
    "unknown_model": ("invalid_request_error", "model_not_found"),
    "limited": ("rate_limit_error", "rate_limit_exceeded"),
    "loading": ("server_error", "model_loading"),
    "unavailable": ("server_error", "no_upstream"),
    "upstream_failed": ("server_error", "upstream_error"),
    "timeout": ("server_error", "upstream_timeout"),
    "internal": ("server_error", "internal_error"),
}


class ChunkRenderer:
    """What the streams of chat and of completions have alike: a constant head, and their ends.

    The constant part of a chunk is made once; a token costs one join.
    """

    __slots__ = ("_after", "_before", "_head", "_held", "_request", "_stamp")

    def __init__(self, request: Request, stamp: Stamp) -> None:
        self._request = request
        self._stamp = stamp
        self._head: JsonObject = {}
        self._before = b""
        self._after = b""
        self._held: JsonObject | None = None

    def _begin(self, head: JsonObject, after: bytes) -> None:
        """Take the fields of every chunk, and what follows the text of a plain choice."""
        self._head = head
        self._before = b"data: %b," % encode(head)[:-1]
        self._after = after + b',"logprobs":null,"finish_reason":null}]'
        self._after += b',"usage":null}\n\n' if self._request.include_usage else b"}\n\n"

    def _chunk(self, choice: JsonObject, top: JsonObject) -> bytes:
        body = self._head | {"choices": [choice]}
        if self._request.include_usage:
            body["usage"] = None
        return sse(encode(body | top))

    def _last_of(self, choice: JsonObject, top: JsonObject) -> bytes:
        """The chunk that ends a choice.

        Without a usage chunk the last of these carries what the end of the answer brings
        (llama.cpp's timings), so it waits for that.
        """
        if self._request.include_usage:
            return self._chunk(choice, top)
        self._held = self._head | {"choices": [choice]} | top
        return b""

    def _release(self) -> bytes:
        held, self._held = self._held, None
        return b"" if held is None else sse(encode(held))

    def _finish(self, event: Finished) -> bytes:
        tail: JsonObject = dict(event.extras.top) if event.extras else {}
        if event.timings is not None:
            tail["timings"] = event.timings
        if self._request.include_usage:
            usage = {"choices": [], "usage": write_usage(event.usage)}
            return sse(encode(self._head | usage | tail)) + SSE_DONE
        if self._held is not None:
            self._held |= tail
        return self._release() + SSE_DONE

    def _fail(self, event: Failed) -> bytes:
        return self._release() + sse(encode({"error": error_body(event.problem)})) + SSE_DONE
