"""OpenAI's legacy completions: `POST /v1/completions`, text in and text out.

A chunk and a whole answer have the same shape here. `/completions` without `/v1` is this dialect
too, as it was for `api_like_OAI.py`; a llama-server serves its native form there, which Tropilla
serves on `/completion`.
"""

from __future__ import annotations

from tropilla.dialects import Route, Stamp, Wire, _ignored, _lists
from tropilla.dialects._bases import AFS_BASES
from tropilla.dialects._fields import Fields, invalid, missing, read_knobs, texts, wrong_type
from tropilla.dialects._openai import (
    CONTENT_TYPE,
    MOST_STOPS,
    PING,
    ChunkRenderer,
    Chunks,
    distinct,
    encode,
    no_choices,
    parse_problem,
    read_limit,
    read_logit_bias,
    read_reason,
    read_started,
    read_stop_word,
    read_stream_options,
    read_usage,
    render_problem,
    sum_usages,
    write_common,
    write_usage,
)
from tropilla.dialects._streams import CUT_SHORT
from tropilla.ir import (
    Answer,
    Choice,
    ChoiceEnded,
    Completion,
    Event,
    Extras,
    Failed,
    Finished,
    Infill,
    Json,
    JsonObject,
    Malformed,
    PartDelta,
    PartEnded,
    PartStarted,
    Progress,
    Prompt,
    Request,
    Started,
    Text,
    TokenLogprob,
    Traits,
    Usage,
)

__all__ = ["CONTENT_TYPE", "NAME", "PING", "ROUTES", "parse_problem", "render_problem"]

NAME = "openai_completions"
ROUTES = (
    Route(path="/completions"),
    *(Route(path=f"{base}/models/completions", v1=False) for base in AFS_BASES),
)
_MOST_LOGPROBS = 5
_MOST_BEST_OF = 20


# A client's request.


def parse_request(body: JsonObject, path: str) -> Request:  # noqa: ARG001 - one path
    """Read a completion request."""
    fields = Fields(body)
    _ignored.check(fields.rest)
    stream = fields.boolean("stream") or False
    prompts, listed = _parse_prompts(fields)
    n = fields.integer("n", 1, 128) or 1
    suffix = fields.string("suffix") or None
    echo = fields.boolean("echo") or False
    best_of = _parse_best_of(fields, n, stream=stream, suffix=suffix)
    return Request(
        dialect=NAME,
        input=Completion(prompts=prompts, listed=listed, echo=echo, best_of=best_of)
        if suffix is None
        else _parse_infill(prompts, suffix, echo=echo),
        model=fields.string("model"),
        stream=stream,
        include_usage=read_stream_options(fields, stream=stream),
        n=n,
        max_tokens=read_limit(fields, least=0 if suffix is None else 1),
        stop=texts(fields.any("stop"), "stop", MOST_STOPS),
        knobs=read_knobs(fields, openai=True),
        logit_bias=read_logit_bias(fields.any("logit_bias"), "logit_bias"),
        logprobs=fields.integer("logprobs", 0, _MOST_LOGPROBS),
        tokenize=fields.boolean("tokenize") or False,
        extras=fields.rest,
    )


def _parse_best_of(fields: Fields, n: int, *, stream: bool, suffix: str | None) -> int | None:
    best_of = fields.integer("best_of", 1, _MOST_BEST_OF)
    if best_of is None or best_of == n:
        return None
    if best_of < n:
        raise invalid("best_of", f"expected a value >= 'n', which is {n}, but got {best_of}.")
    if stream:
        raise _unsupported("best_of", "which answer is the best is not known in a stream.")
    if suffix is not None:
        raise _unsupported("best_of", "it is not supported together with 'suffix'.")
    return best_of


def _unsupported(param: str, why: str) -> Malformed:
    return Malformed(
        f"Unsupported value for '{param}': {why}",
        param=param,
        code="unsupported_value",
        kind="unsupported",
    )


def _parse_prompts(fields: Fields) -> tuple[tuple[Prompt, ...], bool]:
    if "prompt" not in fields.rest:
        raise missing("prompt")
    match value := fields.any("prompt"):
        case None:
            return ("",), False  # to OpenAI, the beginning of a text
        case str():
            return (value,), False
        case []:
            raise invalid("prompt", "expected at least one prompt.", "empty_array")
        case [int(), *_]:
            return (_token_ids(value, "prompt"),), False
        case list():
            return tuple(_parse_prompt(item, f"prompt.{i}") for i, item in enumerate(value)), True
    raise wrong_type("prompt", "a string, an array of strings or an array of token ids", value)


def _parse_prompt(value: Json, path: str) -> Prompt:
    match value:
        case str():
            return value
        case [int(), *_]:
            return _token_ids(value, path)
    raise wrong_type(path, "a string or an array of token ids", value)


def _token_ids(values: list[Json], path: str) -> list[int]:
    for index, value in enumerate(values):
        if type(value) is not int or not 0 <= value < 2**31:
            raise wrong_type(f"{path}.{index}", "a token id", value)
    return values


def _parse_infill(prompts: tuple[Prompt, ...], suffix: str, *, echo: bool) -> Infill:
    match prompts:
        case (str(prefix),) if not echo:
            return Infill(prefix=prefix, suffix=suffix)
    raise _unsupported("suffix", "it needs one prompt of text, and no 'echo'.")


# A request to an upstream.


def render_request(request: Request, traits: Traits) -> Wire:
    """Say a request as a completion."""
    body, dropped = write_common(request, traits)
    match request.input:
        case Completion(prompts=prompts, listed=listed, echo=echo):
            if not traits.llamacpp and not all(_is_plain(prompt) for prompt in prompts):
                raise _unsupported("prompt", "only llama.cpp reads prompts of this kind.")
            body["prompt"] = list(prompts) if listed else prompts[0]
            if echo:
                body["echo"] = True
        case Infill(prefix=prefix, suffix=suffix, prompt=None):
            body["prompt"], body["suffix"] = prefix, suffix
        case _:
            raise Malformed("A completion endpoint cannot read this.", kind="unsupported")
    if request.format is not None and request.format.kind != "text":
        raise Malformed(
            "A completion endpoint cannot be held to a format.",
            param="response_format",
            kind="unsupported",
        )
    if request.logprobs is not None:
        if traits.llamacpp:
            body["logprobs"] = max(request.logprobs, 1)
        else:
            body["logprobs"] = min(request.logprobs, _MOST_LOGPROBS)
            dropped += ["logprobs"] if request.logprobs > _MOST_LOGPROBS else []
    return Wire(path="/v1/completions", body=body, dropped=tuple(dropped))


def _is_plain(prompt: Prompt) -> bool:
    match prompt:
        case str():
            return True
        case [_, *_]:
            return all(type(item) is int for item in prompt)
    return False


# What an upstream answers.

_TOP = {
    "id", "object", "created", "model", "system_fingerprint", "choices", "usage", "timings",
}  # fmt: skip
_CHOICE = {"index", "text", "finish_reason", "logprobs"}


def stream_parser(request: Request, *, extras: bool) -> _Parser:
    """A parser of completion chunks."""
    return _Parser(request.choices, request.n, extras=extras)


class _Parser(Chunks):
    def __init__(self, choices: int, n: int, *, extras: bool) -> None:
        super().__init__()
        self._wanted = choices
        self._n = n
        self._extras = extras
        self._open: set[int] = set()
        self._ended: set[int] = set()
        self._started = False
        self._usage: Usage | None = None
        self._usages: dict[int, Usage] = {}
        self._so_far: Usage | None = None
        self._timings: JsonObject | None = None
        self._last: JsonObject = {}

    def _read(self, chunk: JsonObject, events: list[Event]) -> None:
        choices, usage = chunk.get("choices"), read_usage(chunk.get("usage"))
        if type(choices) is not list and (choices is not None or usage is None):
            raise Malformed("A chunk of the upstream's stream has no 'choices'.")
        if not self._started:
            self._started = True
            events.append(read_started(chunk))
        if usage is not None:
            self._take_usage(usage, choices)
        timings = chunk.get("timings")
        if type(timings) is dict:
            self._timings = timings
        top = {key: chunk[key] for key in chunk.keys() - _TOP} if self._extras else {}
        if not choices:
            self._last |= top
        for choice in choices or ():
            self._choice(choice, top, events)
            top = {}

    def _take_usage(self, usage: Usage, choices: Json) -> None:
        """Usage alone is the total; beside the end of a choice it may be that choice's own.

        In any other chunk it is only of what was told so far (vLLM's `continuous_usage_stats`).
        """
        match choices:
            case [{"index": int(index), "finish_reason": str()}]:
                self._usages[index] = usage
            case None | []:
                self._usage = usage
            case _:
                self._so_far = usage

    def _choice(self, value: Json, top: JsonObject, events: list[Event]) -> None:
        match value:
            case {"text": str(text)}:
                # Some servers write "" where others write null.
                index, reason = value.get("index", 0), value.get("finish_reason") or None
            case _:
                raise Malformed("A choice of the upstream's stream has no 'text'.")
        if type(index) is not int or not 0 <= index < self._wanted:
            raise Malformed("A choice of the upstream's stream has no valid 'index'.")
        rest = {key: value[key] for key in value.keys() - _CHOICE} if self._extras else {}
        extras = Extras(top=top, choice=rest) if top or rest else None
        logprobs = _lists.read(value.get("logprobs"))
        if index in self._ended:
            if text:
                raise Malformed("The upstream's stream goes on after a choice has ended.")
            self._last |= top
            return
        if text or (reason is None and (logprobs or extras)):
            if index not in self._open:
                self._open.add(index)
                events.append(PartStarted(choice=index, kind="text"))
            events.append(PartDelta(choice=index, text=text, logprobs=logprobs, extras=extras))
            logprobs = extras = None
        if reason is not None:
            self._close(index, events)
            self._ended.add(index)
            events.append(
                ChoiceEnded(
                    choice=index,
                    reason=read_reason(reason),
                    stop_word=read_stop_word(value),
                    logprobs=logprobs,
                    extras=extras,
                )
            )

    def _close(self, index: int, events: list[Event]) -> None:
        if index in self._open:
            self._open.remove(index)
            events.append(PartEnded(choice=index))

    def _finish(self, events: list[Event]) -> None:
        if len(self._ended) < self._wanted:
            self._fail(CUT_SHORT, events)
            return
        self._over = True
        extras = Extras(top=self._last) if self._last else None
        own = [self._usages[index] for index in sorted(self._usages)]
        usage = self._usage or sum_usages(own, self._n) or self._so_far
        events.append(Finished(usage=usage, timings=self._timings, extras=extras))

    def _close_open(self, events: list[Event]) -> None:
        for index in sorted(self._open):
            self._close(index, events)


def parse_answer(body: Json, request: Request | None = None) -> Answer:  # noqa: ARG001 - it tells all
    """Read an unstreamed completion."""
    match body:
        case {"choices": [_, *_] as choices}:
            pass
        case _:
            raise no_choices(body)
    started, timings = read_started(body), body.get("timings")
    return Answer(
        id=started.id,
        model=started.model,
        created=started.created,
        fingerprint=started.fingerprint,
        choices=distinct(_parse_choice(choice) for choice in choices),
        usage=read_usage(body.get("usage")),
        timings=timings if type(timings) is dict else None,
        extras={key: body[key] for key in body.keys() - _TOP},
    )


def _parse_choice(value: Json) -> Choice:
    match value:
        case {"text": str(text)}:
            index = value.get("index", 0)
        case _:
            raise Malformed("A choice of the upstream's answer has no 'text'.")
    if type(index) is not int or index < 0:
        raise Malformed("A choice of the upstream's answer has no valid 'index'.")
    return Choice(
        index=index,
        parts=(Text(text=text),) if text else (),
        reason=read_reason(value.get("finish_reason")),
        stop_word=read_stop_word(value),
        logprobs=_lists.read(value.get("logprobs")),
        extras={key: value[key] for key in value.keys() - _CHOICE},
    )


# What a client hears.


def stream_renderer(request: Request, stamp: Stamp) -> _Renderer:
    """A renderer of completion chunks."""
    return _Renderer(request, stamp)


class _Renderer(ChunkRenderer):
    """Writes chunks."""

    def __init__(self, request: Request, stamp: Stamp) -> None:
        super().__init__(request, stamp)
        self._lists: dict[int, _lists.Lists] = {}

    def feed(self, event: Event) -> bytes:
        match event:
            case PartDelta():
                return self._delta(event)
            case Started():
                return self._start(event)
            case ChoiceEnded():
                return self._release() + self._end_choice(event)
            case Finished():
                return self._finish(event)
            case Failed():
                return self._fail(event)
            case PartStarted():
                return self._release()
            case PartEnded() | Progress():
                return b""

    def _start(self, event: Started) -> bytes:
        self._begin(_head(event.id, event.created, event.fingerprint, self._stamp), b"")
        return b""

    def _plain(self, index: int, text: str) -> bytes:
        return b'%b"choices":[{"index":%d,"text":%b%b' % (
            self._before,
            index,
            encode(text),
            self._after,
        )

    def _delta(self, event: PartDelta) -> bytes:
        if event.logprobs is None and event.extras is None:
            return self._plain(event.choice, event.text)
        extras = event.extras or Extras()
        choice = self._choice(event.choice, event.text, event.logprobs, extras)
        return self._chunk(choice, extras.top)

    def _choice(
        self, index: int, text: str, logprobs: list[TokenLogprob] | None, extras: Extras
    ) -> JsonObject:
        most, lists = self._request.logprobs, None
        if logprobs is not None and most is not None:
            lists = self._lists.setdefault(index, _lists.Lists(most)).write(logprobs)
        return {
            "index": index,
            "text": text,
            "logprobs": lists,
            "finish_reason": None,
            **extras.choice,
        }

    def _end_choice(self, event: ChoiceEnded) -> bytes:
        extras = event.extras or Extras()
        choice = self._choice(event.choice, "", event.logprobs, extras)
        choice["finish_reason"] = event.reason
        return self._last_of(choice, extras.top)


def _head(
    id_: str | None, created: int | None, fingerprint: str | None, stamp: Stamp
) -> JsonObject:
    head: JsonObject = {
        "id": id_ or f"cmpl-{stamp.unique}",
        "object": "text_completion",
        "created": created or stamp.created,
        "model": stamp.model,
    }
    return head if fingerprint is None else head | {"system_fingerprint": fingerprint}


def render_answer(answer: Answer, request: Request, stamp: Stamp) -> bytes:
    """The completion, whole."""
    body = _head(answer.id, answer.created, answer.fingerprint, stamp)
    body["choices"] = [
        {
            "index": choice.index,
            "text": choice.text() or "",
            "logprobs": None
            if choice.logprobs is None or request.logprobs is None
            else _lists.Lists(request.logprobs).write(choice.logprobs),
            "finish_reason": choice.reason,
            **choice.extras,
        }
        for choice in answer.choices
    ]
    body["usage"] = write_usage(answer.usage)
    body |= answer.extras
    if answer.timings is not None:
        body["timings"] = answer.timings
    return encode(body)
