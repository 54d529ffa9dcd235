"""llama.cpp's own API: `POST /completion` and `/infill`, from the first server to today's.

As a front it gives everything that a llama-server gave, in its own shape. As a back it sends
what every generation of the server reads alike (`stop` as an array, `logit_bias` as pairs,
`n_predict`), and reads both the old names and the new (seed: b1496; `stop_type` since b4275).
"""

from __future__ import annotations

import math

from tropilla.dialects import Route, Stamp, Wire, _ages, _formats, _streams
from tropilla.dialects._fields import (
    Fields,
    count_of,
    missing,
    read_knobs,
    texts,
    write_knobs,
    wrong_type,
)
from tropilla.dialects._ignored import extras_for_llamacpp
from tropilla.dialects._openai import (
    CONTENT_TYPE,
    PING,
    decode,
    distinct,
    encode,
    error_body,
    parse_problem,
    read_logit_bias,
    read_token_logprobs,
    write_logit_bias,
)
from tropilla.dialects._streams import CUT_SHORT
from tropilla.framing import Frame, sse
from tropilla.ir import (
    Answer,
    Chat,
    Choice,
    ChoiceEnded,
    Completion,
    Event,
    Extras,
    Failed,
    Finished,
    FinishReason,
    Format,
    Infill,
    Json,
    JsonObject,
    Malformed,
    PartDelta,
    PartEnded,
    PartStarted,
    Problem,
    Progress,
    Prompt,
    Request,
    Started,
    Text,
    TokenLogprob,
    Traits,
    Usage,
)

__all__ = ["CONTENT_TYPE", "NAME", "PING", "ROUTES", "parse_problem"]

NAME = "llamacpp"
ROUTES = (Route(path="/completion", v1=False), Route(path="/infill", v1=False))
_MOST_CHOICES = 128
"""More than a server has slots for; each is kept here while it is written."""
_MOST_STOPS = 128
_MOST_PROBABILITIES = 1000
"""Of each token: a whole vocabulary of them is hundreds of kilobytes a token."""


# A client's request.


def parse_request(body: JsonObject, path: str) -> Request:
    """Read a native request; what the IR does not model goes to the engine as it is."""
    fields = Fields(body)
    stream = fields.boolean("stream") or False
    if path == "/infill":
        asked: Infill | Completion = Infill(
            prefix=fields.string("input_prefix") or "",
            suffix=fields.string("input_suffix") or "",
            prompt=fields.string("prompt"),
        )
    else:
        prompts, listed = _parse_prompts(fields.any("prompt"))
        asked = Completion(prompts=prompts, listed=listed)
    schema = fields.object("json_schema")
    if schema is not None:
        _formats.check(schema, "json_schema", "invalid_json_schema")
    n_probs = fields.integer("n_probs", 0, _MOST_PROBABILITIES)
    return Request(
        dialect=NAME,
        input=asked,
        model=fields.string("model"),
        stream=stream,
        n=_first(fields, "n_cmpl", "n") or 1,
        max_tokens=_read_limit(fields),
        stop=texts(fields.any("stop"), "stop", _MOST_STOPS),
        knobs=read_knobs(fields, openai=False),
        logit_bias=read_logit_bias(fields.any("logit_bias"), "logit_bias", openai=False),
        logprobs=n_probs or None,
        format=None if schema is None else Format(kind="json_schema", schema=schema),
        tokenize=fields.boolean("tokenize") or False,
        extras=fields.rest,
    )


def _first(fields: Fields, *names: str) -> int | None:
    values = [fields.integer(name, 1, _MOST_CHOICES) for name in names]
    return next((value for value in values if value is not None), None)


def _read_limit(fields: Fields) -> int | None:
    # In this order, as the server reads them (b8144).
    values = [
        fields.integer(name, -1) for name in ("n_predict", "max_completion_tokens", "max_tokens")
    ]
    limit = next((value for value in values if value is not None), None)
    return None if limit == -1 else limit


def _parse_prompts(value: Json) -> tuple[tuple[Prompt, ...], bool]:
    """One prompt, or a list of them: a list that holds a bare token id is one prompt."""
    match value:
        case None:
            raise missing("prompt")
        case str() | dict():
            return (value,), False
        case []:
            raise wrong_type("prompt", "a prompt", value)
        case list():
            if any(type(item) is int for item in value):
                return (value,), False
            for index, item in enumerate(value):
                if not isinstance(item, str | list | dict):
                    raise wrong_type(f"prompt.{index}", "a prompt", item)
            return tuple(value), True
    raise wrong_type("prompt", "a string, token ids or a list of prompts", value)


# A request to an upstream.


def render_request(request: Request, traits: Traits) -> Wire:
    """Say a request as a native completion or infill."""
    body, unknown = extras_for_llamacpp(request)
    # What Tropilla does itself with the answer: the engine must not do it first.
    body.pop("response_fields", None)
    if body.get("system_prompt") is not None:
        raise Malformed(
            "'system_prompt' is not relayed: servers before b3910 set it for everybody.",
            param="system_prompt",
            kind="unsupported",
        )
    if request.model is not None:
        body["model"] = request.model
    match request.input:
        case Completion(prompts=prompts, listed=listed):
            path, body["prompt"] = "/completion", list(prompts) if listed else prompts[0]
        case Infill(prefix=prefix, suffix=suffix, prompt=prompt):
            path = "/infill"
            body["input_prefix"], body["input_suffix"] = prefix, suffix
            if prompt is not None:
                body["prompt"] = prompt
        case Chat():
            raise Malformed("A native endpoint cannot read a conversation.", kind="unsupported")
    if request.dialect != NAME:
        # As api_like_OAI.py asked for it: keep the whole prompt, and reuse what is cached.
        body.setdefault("n_keep", -1)
        body.setdefault("cache_prompt", True)
    body["stream"] = True
    body |= write_knobs(request.knobs)
    if request.max_tokens is not None:
        body["n_predict"] = request.max_tokens
    if request.stop:
        body["stop"] = list(request.stop)
    if request.n != 1:
        body["n_cmpl"] = request.n
    if request.logit_bias:
        body["logit_bias"] = write_logit_bias(request.logit_bias, traits)
    if request.logprobs is not None:
        body["n_probs"] = max(request.logprobs, 1)
    match request.format:
        case Format(kind="json_schema", schema=schema):
            body["json_schema"] = schema or {}
        case Format(kind="json_object"):
            body["json_schema"] = {"type": "object"}
    dropped = _ages.fit_native(request, body, traits)
    return Wire(path=path, body=body, dropped=(*unknown, *dropped))


# What an upstream answers.


def stream_parser(request: Request, *, extras: bool) -> _Parser:
    """A parser of native chunks."""
    return _Parser(request, extras=extras)


_CHUNK = {"index", "content", "tokens", "stop", "completion_probabilities", "prompt_progress"}


class _Parser(_streams.Parser):
    def __init__(self, request: Request, *, extras: bool) -> None:
        super().__init__()
        self._request = request
        self._extras = extras
        self._open: set[int] = set()
        self._finals: dict[int, JsonObject] = {}
        self._counts: dict[int, int] = {}
        self._limit = request.max_tokens or math.inf  # 0 writes a token, too
        self._started = False

    def _frame(self, frame: Frame, events: list[Event]) -> None:
        if frame.event == "error":
            self._fail_with(decode(frame.data), events)
        elif frame.data != b"[DONE]":
            self._chunk(decode(frame.data), events)

    def _finish(self, events: list[Event]) -> None:
        self._fail(CUT_SHORT, events)  # a whole answer has told its end by itself

    def _chunk(self, chunk: Json, events: list[Event]) -> None:
        if chunk is None:
            return
        if type(chunk) is not dict:
            raise Malformed("A chunk of the upstream's stream is not an object.")
        if chunk.get("error") is not None:
            self._fail_with(chunk["error"], events)
            return
        index, content = chunk.get("index", 0), chunk.get("content")
        if type(index) is not int or not 0 <= index < self._request.choices:
            raise Malformed("A chunk of the upstream's stream has no valid 'index'.")
        if type(content) is not str:
            raise Malformed("A chunk of the upstream's stream has no 'content'.")
        if index in self._finals:
            raise Malformed("The upstream's stream goes on after a choice has ended.")
        if not self._started:
            self._started = True
            events.append(Started())
        final = chunk.get("stop") is True
        progress = None if final else self._progress(index, chunk)
        if progress is not None:
            events.append(progress)
        elif (content or not final) and not self._beyond(index, chunk, final=final):
            self._delta(index, content, chunk, events, final=final)
        if final:
            self._end(index, chunk, events, told=bool(content))

    def _beyond(self, index: int, chunk: JsonObject, *, final: bool) -> bool:
        """Whether this is more than was asked for: before b1778 a server writes a token too many.

        It counts right, and looks at the limit only from the fourth token on (#4798).
        """
        tokens = chunk.get("tokens")
        count = self._counts.get(index, 0) + (len(tokens) if type(tokens) is list else not final)
        self._counts[index] = count
        return count > self._limit

    def _progress(self, index: int, chunk: JsonObject) -> Progress | None:
        match chunk.get("prompt_progress"):
            case {
                "total": int(total),
                "cache": int(cached),
                "processed": int(processed),
                "time_ms": int() | float() as time_ms,
            } if not chunk["content"]:
                return Progress(
                    choice=index,
                    total=total,
                    cached=cached,
                    processed=processed,
                    time_ms=time_ms,
                    extras=self._extras_of(chunk),
                )
        return None

    def _extras_of(self, chunk: JsonObject) -> Extras | None:
        if not self._extras:
            return None
        rest = {key: chunk[key] for key in chunk.keys() - _CHUNK}
        return Extras(choice=rest) if rest else None

    def _delta(
        self, index: int, content: str, chunk: JsonObject, events: list[Event], *, final: bool
    ) -> None:
        if index not in self._open:
            self._open.add(index)
            events.append(PartStarted(choice=index, kind="text"))
        tokens = chunk.get("tokens")
        events.append(
            PartDelta(
                choice=index,
                text=content,
                logprobs=_read_probabilities(chunk.get("completion_probabilities")),
                tokens=tokens if type(tokens) is list and tokens else None,
                extras=None if final else self._extras_of(chunk),
            )
        )

    def _end(self, index: int, chunk: JsonObject, events: list[Event], *, told: bool) -> None:
        self._close(index, events)
        self._finals[index] = chunk
        reason, word = _read_stop(chunk)
        if self._counts.get(index, 0) > self._limit:
            reason, word = "length", None
        probabilities = chunk.get("completion_probabilities")
        events.append(
            ChoiceEnded(
                choice=index,
                reason=reason,
                stop_word=word,
                logprobs=None if told else _read_probabilities(probabilities),
                extras=self._extras_of(chunk),
            )
        )
        if len(self._finals) == self._request.choices:
            self._over = True
            finals = self._finals
            events.append(
                Finished(usage=_usage(finals, self._request.n), timings=_last_timings(finals))
            )

    def _close(self, index: int, events: list[Event]) -> None:
        if index in self._open:
            self._open.remove(index)
            events.append(PartEnded(choice=index))

    def _close_open(self, events: list[Event]) -> None:
        for index in sorted(self._open):
            self._close(index, events)


def _read_stop(final: JsonObject) -> tuple[FinishReason, str | None]:
    """Why it stopped: `stop_type` since b4275, three booleans before."""
    word = final.get("stopping_word")
    word = word if type(word) is str and word else None
    kind = final.get("stop_type")
    if kind == "word" or final.get("stopped_word") is True:
        return "stop", word
    if kind == "eos" or final.get("stopped_eos") is True:
        return "stop", None
    return "length", None


def _usage(finals: dict[int, JsonObject], n: int) -> Usage:
    """Every choice's own tokens; a prompt counts once, however many choices continue it."""
    firsts = [final for index, final in finals.items() if index % n == 0]
    cached = [
        timings["cache_n"]
        for final in firsts
        if (timings := _timings(final)) is not None and type(timings.get("cache_n")) is int
    ]
    return Usage(
        prompt_tokens=sum(count_of(final, "tokens_evaluated") or 0 for final in firsts),
        completion_tokens=sum(
            count_of(final, "tokens_predicted") or 0 for final in finals.values()
        ),
        cached_tokens=sum(cached) if cached else None,
    )


def _timings(final: JsonObject) -> JsonObject | None:
    timings = final.get("timings")
    return timings if type(timings) is dict else None


def _last_timings(finals: dict[int, JsonObject]) -> JsonObject | None:
    timed = [_timings(final) for final in finals.values()]
    return next((timings for timings in reversed(timed) if timings), None)


def _read_probabilities(value: Json) -> list[TokenLogprob] | None:
    """Token probabilities in the IR's shape, which is today's; the old one is turned into it.

    Before b4364 an entry was `{content, probs: [{tok_str, prob}]}`.
    """
    if type(value) is not list or not value:
        return None
    return read_token_logprobs([_read_old_probability(entry) for entry in value])


def _read_old_probability(entry: Json) -> Json:
    match entry:
        case {"content": str(said), "probs": list(probs)}:
            tops = [
                _logprob_of(top["tok_str"], top["prob"])
                for top in probs
                if type(top) is dict
                and type(top.get("tok_str")) is str
                and type(top.get("prob")) in {int, float}
            ]
            chosen = next((top for top in tops if top["token"] == said), _logprob_of(said, 0))
            return chosen | {"top_logprobs": tops}
    return entry


def _logprob_of(token: str, prob: float) -> TokenLogprob:
    # OpenAI's value for a token too unlikely to be told of.
    logprob = math.log(prob) if prob > 0 else -9999.0
    return {"token": token, "logprob": logprob, "bytes": list(token.encode())}


def parse_answer(body: Json, request: Request | None = None) -> Answer:
    """Read an unstreamed native answer: one object, or a list of them."""
    finals = body if type(body) is list else [body]
    choices, by_index = [], {}
    for final in finals:
        match final:
            case {"content": str(content)}:
                index = final.get("index", 0)
            case _:
                raise Malformed("The upstream's answer has no 'content'.")
        if type(index) is not int or index < 0:
            raise Malformed("The upstream's answer has no valid 'index'.")
        reason, word = _read_stop(final)
        tokens = final.get("tokens")
        by_index[index] = final
        choices.append(
            Choice(
                index=index,
                parts=(Text(text=content),) if content else (),
                reason=reason,
                stop_word=word,
                logprobs=_read_probabilities(final.get("completion_probabilities")),
                tokens=tokens if type(tokens) is list else [],
                extras={key: final[key] for key in final.keys() - _CHUNK},
            )
        )
    if not choices:
        raise Malformed("The upstream's answer is empty.")
    return Answer(
        choices=distinct(choices),
        usage=_usage(by_index, request.n if request else 1),
        timings=_last_timings(by_index),
    )


# What a client hears.


def stream_renderer(request: Request, stamp: Stamp) -> _Renderer:
    """A renderer of native chunks."""
    return _Renderer(request, stamp)


class _Renderer:
    def __init__(self, request: Request, stamp: Stamp) -> None:
        self._request = request
        self._stamp = stamp
        self._told: dict[int, int] = {}
        self._held: list[ChoiceEnded] = []

    def feed(self, event: Event) -> bytes:
        match event:
            case PartDelta():
                return self._delta(event)
            case ChoiceEnded(extras=None):
                # Its numbers come with the end of the answer.
                self._held.append(event)
                return b""
            case ChoiceEnded():
                return sse(encode(self._final(event, None, None)))
            case Finished():
                finals = [self._final(held, event.usage, event.timings) for held in self._held]
                return b"".join(sse(encode(final)) for final in finals)
            case Failed():
                return sse(encode({"error": _native_error(event.problem, 500)}))
            case Progress():
                return self._progress(event)
            case Started() | PartStarted() | PartEnded():
                return b""

    def _delta(self, event: PartDelta) -> bytes:
        index = event.choice
        self._told[index] = self._told.get(index, 0) + max(1, len(event.tokens or ()))
        body: JsonObject = {
            "index": index,
            "content": event.text,
            "tokens": event.tokens or [],
            "stop": False,
            "id_slot": -1,
            "tokens_predicted": self._told[index],
        }
        if event.extras is not None:
            body |= event.extras.choice
        _add_old_names(body)
        if event.logprobs is not None:
            body["completion_probabilities"] = event.logprobs
        return sse(encode(body))

    def _progress(self, event: Progress) -> bytes:
        if not self._request.extras.get("return_progress"):
            return b""
        body: JsonObject = {"index": event.choice, "content": "", "tokens": [0], "stop": False}
        if event.extras is not None:
            body |= event.extras.choice
        body["prompt_progress"] = {
            "total": event.total,
            "cache": event.cached,
            "processed": event.processed,
            "time_ms": event.time_ms,
        }
        return sse(encode(body))

    def _final(
        self, event: ChoiceEnded, usage: Usage | None, timings: JsonObject | None
    ) -> JsonObject:
        choice = Choice(
            index=event.choice,
            reason=event.reason,
            stop_word=event.stop_word,
            logprobs=event.logprobs,
            extras=event.extras.choice if event.extras else {},
        )
        return _final(choice, usage, timings, self._request, self._stamp)


def render_answer(answer: Answer, request: Request, stamp: Stamp) -> bytes:
    """The native answer, whole: a list where several were asked for."""
    finals = [
        _final(choice, answer.usage, answer.timings, request, stamp) | answer.extras
        for choice in answer.choices
    ]
    listed = request.choices > 1 or getattr(request.input, "listed", False)
    return encode(finals if listed and len(finals) > 1 else finals[0])


def _final(
    choice: Choice,
    usage: Usage | None,
    timings: JsonObject | None,
    request: Request,
    stamp: Stamp,
) -> JsonObject:
    body: JsonObject = {
        "index": choice.index,
        "content": choice.text() or "",
        "tokens": choice.tokens if request.extras.get("return_tokens") else [],
        "id_slot": -1,
        "stop": True,
        "model": stamp.model,
        "truncated": False,
        "stop_type": _stop_type(choice),
        "stopping_word": choice.stop_word or "",
    }
    # Numbers of the whole answer, where the upstream gave no other: they are told once, so that
    # a client's sum over all choices is right.
    if usage is not None and choice.index == 0:
        body["tokens_predicted"] = usage.completion_tokens
        body["tokens_evaluated"] = usage.prompt_tokens
    if timings is not None and choice.index == 0:
        body["timings"] = timings
    body |= choice.extras
    _add_old_names(body)
    body["model"] = stamp.model
    for name, kind in _STOPS.items():
        body.setdefault(name, body["stop_type"] == kind)
    settings = body.get("generation_settings")
    if type(settings) is dict:
        body["generation_settings"] = _settings(settings, request, stamp)
    if choice.logprobs is not None:
        body["completion_probabilities"] = choice.logprobs
    wanted = request.extras.get("response_fields")
    return _project(body, wanted) if type(wanted) is list and wanted else body


def _add_old_names(body: JsonObject) -> None:
    """What clients of 2023 read in every chunk: `slot_id` has been `id_slot` since b2357."""
    body.setdefault("slot_id", body["id_slot"])
    body.setdefault("multimodal", False)


_STOPS = {"stopped_eos": "eos", "stopped_word": "word", "stopped_limit": "limit"}
"""What they read at the end (`stop_type` since b4275)."""


def _settings(settings: JsonObject, request: Request, stamp: Stamp) -> JsonObject:
    """The settings of an answer, with what they were called, or were, in 2023."""
    told: JsonObject = {"model": stamp.model, "tfs_z": 1.0, "penalize_nl": True}
    if "temperature" in settings:
        told["temp"] = settings["temperature"]
    if stamp.n_ctx is not None:
        told["n_ctx"] = stamp.n_ctx
    told |= settings
    # The engine is always asked to stream; the client is told what it asked for.
    return told | {"stream": request.stream} if "stream" in settings else told


def _stop_type(choice: Choice) -> str:
    if choice.reason == "length":
        return "limit"
    return "word" if choice.stop_word is not None else "eos"


def _project(body: JsonObject, wanted: list[Json]) -> JsonObject:
    """llama.cpp's `response_fields`: only these, a slash reaching into an object (b4370)."""
    found: JsonObject = {}
    for name in wanted:
        value: Json = body
        for step in str(name).split("/"):
            value = value.get(step) if type(value) is dict else None
        if value is not None:
            found[str(name)] = value
    return found


def render_problem(problem: Problem, status: int) -> bytes:
    """llama.cpp's envelope, which puts the status into `code`."""
    return encode({"error": _native_error(problem, status)})


def _native_error(problem: Problem, status: int) -> JsonObject:
    error = error_body(problem) | {"code": status}
    kind = _TYPES.get(problem.kind)
    return error if kind is None else error | {"type": kind}


_TYPES: dict[str, str] = {
    "context_exceeded": "exceed_context_size_error",
    "unauthenticated": "authentication_error",
    "forbidden": "permission_error",
    "not_found": "not_found_error",
    "unknown_model": "not_found_error",
    "unsupported": "not_supported_error",
    "loading": "unavailable_error",
    "unavailable": "unavailable_error",
}
