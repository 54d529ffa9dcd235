"""`/completion` and `/infill`: what each build reads of a request, and what it answers."""

from __future__ import annotations

import struct
from collections.abc import Callable, Iterator
from typing import Any

from doubles.llama.control import Llama
from doubles.llama.wire import Body, Call, Crashed, Hung, NoSlot, Refused, error
from doubles.llama.words import Generation, text_of, tokens_of, tokens_of_prompt

PATH = "/models/TheBloke/Llama-2-7b-Chat-GGUF/llama-2-7b-chat.Q4_K_M.gguf"
NAME = "llama-2-7b-chat.Q4_K_M"
N_CTX = 512

_NUMBERS: dict[str, float] = {
    "n_predict": -1, "n_keep": 0, "n_probs": 0, "seed": -1, "slot_id": -1, "id_slot": -1,
    "temperature": 0.8, "top_k": 40, "top_p": 0.95, "min_p": 0.05, "tfs_z": 1.0, "typical_p": 1.0,
    "repeat_last_n": 64, "repeat_penalty": 1.1, "presence_penalty": 0.0, "frequency_penalty": 0.0,
    "mirostat": 0, "mirostat_tau": 5.0, "mirostat_eta": 0.1,
}  # fmt: skip
_BOOLEANS = {"stream": False, "cache_prompt": False, "penalize_nl": True, "ignore_eos": False}
_TEXTS = {"grammar": ""}


def defaults(build: int) -> Body:
    """What a server uses where a request says nothing."""
    told = {**_NUMBERS, **_BOOLEANS, **_TEXTS, "stop": [], "logit_bias": []}
    told["repeat_penalty"] = 1.1 if build < 2463 else 1.0  # #6127
    told["cache_prompt"] = build >= 4170  # #10501
    without = {
        "min_p": build < 1500,  # #3877
        "tfs_z": build >= 3988,
        "slot_id": build >= 2357,  # #5882
        "id_slot": build < 2357,
    }
    return {name: value for name, value in told.items() if not without.get(name)}


def params_of(build: int, body: Body) -> Body:
    """What is read of a request: `null` is the default, and what it does not know it ignores.

    Raises:
        Crashed, Refused: it has a value of another type than expected.
    """
    params = defaults(build)
    if build >= 3648 and body.get("n_predict") is None:
        # Since when `/completion` takes it too is not known: in July 2024 not yet, b3648 does.
        body = body | {"n_predict": body.get("max_tokens")}
    for names, kinds in (
        (_NUMBERS, (int, float, bool)),
        (_BOOLEANS, (bool,)),
        (_TEXTS, (str,)),
    ):
        for name in names:
            value = body.get(name)
            if value is None or name not in params:
                continue
            if isinstance(value, kinds):
                params[name] = value
            elif build < 2608:
                raise Crashed  # #6452: since, the default is taken
    if build >= 2490:  # #5978
        _grammar(build, params, body)
    params["stop"] = _stops(build, body.get("stop"))
    params["logit_bias"] = _biases(build, body.get("logit_bias"))
    return params


def _grammar(build: int, params: Body, body: Body) -> None:
    schema, grammar = body.get("json_schema"), body.get("grammar")
    if schema is not None and grammar is not None:
        what = 'Either "json_schema" or "grammar" can be specified, but not both'
        raise Refused(400, what, late=build < 4275)
    if "json_schema" in body and "grammar" not in body:
        params["grammar"] = "root ::= object"  # what it makes of any schema here
    if params["grammar"] == "not a grammar":
        raise Refused(400, "Failed to parse grammar", late=True)


def _stops(build: int, stop: Any) -> list[str]:
    """Only a list is read, a text is ignored. An empty text is a stop word like others."""
    words = stop if isinstance(stop, list) else []
    words = [word for word in words if word is not None and word not in ([], {})]
    if all(isinstance(word, str) for word in words):
        return words
    if build < 4275:
        raise Crashed  # the main loop reads them, until #10643
    raise Refused(400, "[json.exception.type_error.302] type must be string, but is number")


def _biases(build: int, bias: Any) -> list[list[Any]]:
    """Pairs of an id and a number or false; anything else, an object too, is skipped silently."""
    kinds = (int,) if build < 2123 else (int, str)
    return [
        pair
        for pair in (bias if isinstance(bias, list) else [])
        if isinstance(pair, list)
        and len(pair) == 2
        and type(pair[0]) in kinds
        and (type(pair[1]) in {int, float} or pair[1] is False)
    ]


# Prompts.


def prompts_of(double: Llama, body: Body) -> tuple[list[Any], bool]:
    """The prompts of a request, and whether they are several."""
    build = double.build
    if "prompt" not in body:
        if build >= 3655:
            raise Refused(400, "[json.exception.out_of_range.403] key 'prompt' not found")
        if build >= 2400:
            raise Refused(400, 'Either "prompt" or "messages" must be provided', late=True)
        return [""], False
    prompt = body["prompt"]
    if build >= 3655:
        return _prompts(prompt)
    if not isinstance(prompt, str | list) and not (prompt is None and build < 2372):
        if build < 2372:
            return [""], False  # has no text, so it is an empty prompt
        raise Crashed  # the main loop tokenizes it
    if not isinstance(prompt, list):
        return [prompt or ""], False
    if build < 1591:  # #4232
        return [prompt], False
    if not prompt and build >= 2372:
        raise Refused(400, '"prompt" cannot be an empty array', late=True)
    numbers = any(type(item) in {int, float} for item in prompt)
    if len(prompt) > 1 and numbers and build < 2076:
        double.stalled = True  # #4476, #5300
        double.must_wait(lambda: not double.stalled, None)
        raise Hung
    if numbers and 2357 <= build < 2372:
        raise Crashed  # #5955
    if any(isinstance(item, list) for item in prompt) and len(prompt) == 1:
        raise Crashed  # a list in a list of one is no token
    if len(prompt) == 1 or numbers:
        return [prompt], False
    return list(prompt), True


def _prompts(prompt: Any) -> tuple[list[Any], bool]:
    """Since the tokens of a prompt are made where the request is read."""
    texts = isinstance(prompt, str)
    if not texts and not isinstance(prompt, list):
        raise Refused(
            400,
            '"prompt" must be a string, an list of tokens, a list of mixed strings & tokens, '
            "or a list of prompts",
        )
    if not prompt and not texts:
        raise Refused(400, '"prompt" must not be empty')
    if texts or any(type(item) is int for item in prompt):
        return [prompt], False
    for item in prompt:
        if not isinstance(item, str | list):
            raise Refused(
                400,
                'element of "prompt" must be a string, an list of tokens, or a list of mixed '
                "strings & tokens",
            )
    return list(prompt), len(prompt) > 1


# The answer.


def complete(call: Call) -> None:
    """`/completion`; in b2358 to b4401 also `/completions` and `/v1/completions`."""
    serve(call, call.body())


def infill(call: Call) -> None:
    """`/infill`."""
    double, build, body = call.double, call.build, call.body()
    if build >= 3900:  # b3648 asked no questions, b4027 does
        if not double.fills:
            what = "prefix token is missing. suffix token is missing. middle token is missing. "
            raise Refused(501, f"Infill is not supported by this model: {what}")
        for name in ("input_prefix", "input_suffix"):
            if name not in body:
                raise Refused(400, f'"{name}" is required')
    texts = [body.get(name) or "" for name in ("input_prefix", "input_suffix")]
    if any(not isinstance(text, str) for text in texts):
        raise Crashed
    # What a prompt says is not used, but it has to be there: until some build before b1937 not
    # empty, else the answer is; from b2357 until some build before b4027, else it is refused.
    if build < 1800 and not body.get("prompt"):
        serve(call, body | {"prompt": ""}, infill=True)
        return
    if "prompt" in body or not 2357 <= build < 3900:
        body = body | {"prompt": "".join(texts)}
    serve(call, body, more=3, infill=True)  # as many tokens tell its parts


def serve(call: Call, body: Body, *, more: int = 0, infill: bool = False) -> None:
    """Answer natively."""
    if call.build >= 3648 and call.double.embeddings:
        what = "This server does not support completions. Start it without `--embeddings`"
        raise Refused(501, what)
    stream = body.get("stream") is True
    silent = infill and call.build < 3648
    try:
        prompts, several = prompts_of(call.double, body)
        with call.slot(body) as release:
            if several:
                _serve_several(call, body, prompts)
                return
            answer = Native(call, body, prompts[0], more=more)
            if not stream:
                final = answer.whole()
                release()
                call.json(final)
                return
            call.begin()
            for event in answer.events(silent=silent):
                if event["stop"]:
                    release()
                call.event(event)
            release()
            if answer.fault is not None:
                call.event(answer.fault, "error")
            call.end()
    except NoSlot:
        refuse_slot(call, stream=stream)
    except Refused as refused:
        if not (stream and refused.late):
            raise
        call.begin()
        if not silent:
            call.event(error(refused.status, refused.what), "error")
        call.end()


def refuse_slot(call: Call, *, stream: bool) -> None:
    """No slot is free, and that is all that the client hears."""
    if not stream:
        raise Refused(404)  # "slot unavailable", overwritten by the error handler
    call.begin()
    if call.build >= 1542:  # #4131; before, the stream is empty
        call.event({"content": "slot unavailable"}, "error")
    call.end()


def _serve_several(call: Call, body: Body, prompts: list[Any]) -> None:
    # One after the other: with several slots they end, and stand in the answer, in any order
    # (until #9308 numbered them).
    build = call.build
    answers = [Native(call, body, prompt, index=i) for i, prompt in enumerate(prompts)]
    if body.get("stream") is not True:
        results: Any = [answer.whole() for answer in answers]
        call.json(results if build >= 3655 else _results(build, results))
        return
    call.begin()
    if build >= 3655:
        for answer in answers:
            for event in answer.events():
                call.event(event)
    else:
        # It is over once each has sent its first event, and that is all that is sent.
        firsts = [next(answer.events()) for answer in answers]
        call.event(_results(build, firsts))
    call.end()


def _results(build: int, results: list[Body]) -> Any:
    # What C++ makes of {"results", [...]} has become an object between b1915 and b2400.
    return ["results", results] if build < 2400 else {"results": results}


class Native:
    """One answer, as an object or as events."""

    def __init__(
        self, call: Call, body: Body, prompt: Any, *, index: int = 0, more: int = 0
    ) -> None:
        self._call = call
        self._build = call.build
        self._index = index
        self.params = params_of(call.build, body)
        self._client = call.client(body)
        self._prompt = prompt
        says = call.double.says
        self.ids = tokens_of_prompt(prompt, says)
        self.evaluated = len(self.ids) + more
        self._model = body.get("model") if isinstance(body.get("model"), str) else None
        empty = not self.ids or (prompt == "" and not more and call.build < 2357)
        if empty:
            self.evaluated = 0
        self.written = Generation(call.build, [] if empty else says, call.double.ends, self.params)
        self._empty = empty
        self.fault: Body | None = None

    def whole(self) -> Body:
        """The answer as an object."""
        for _ in self.texts():
            pass
        if self.fault is not None:
            raise Refused(500 if self._build >= 2400 else 404, self._call.double.error_midstream)
        return self.final(self.written.text)

    def texts(self) -> Iterator[str]:
        """Generate; a text for every token, which may be empty."""
        if self._empty:
            return
        double = self._call.double
        if self._client is None and double.ends == "never" and self.params["n_predict"] == -1:
            double.must_wait(lambda: False, None)
        turn: Callable[[], None] = lambda: double.turn(self._client)  # noqa: E731
        for number, text in enumerate(self.written.run(turn)):
            if number >= double.error_after and double.error_midstream:
                what = double.error_midstream
                self.fault = error(500, what) if self._build >= 2400 else {"content": what}
                return
            yield text

    def events(self, *, silent: bool = False) -> Iterator[Body]:
        """The answer as events; after a fault `fault` is what goes into an `error:` line."""
        for text in self.texts():
            yield self.partial(text)
        if self.fault is None:
            yield self.final("")
        elif silent or self._build < 1542:
            self.fault = None

    def partial(self, text: str) -> Body:
        """The event of a token."""
        build, written = self._build, self.written
        told: Body = {"content": text, "stop": False}
        if build < 2357:
            told |= {"slot_id": 0, "multimodal": False}
        elif build < 4275:
            told |= {"id_slot": 0, "multimodal": False}
        else:
            # The slot is only told at the end.
            told |= {
                "index": self._index,
                "id_slot": -1,
                "tokens_predicted": written.predicted,
                "tokens_evaluated": self.evaluated,
            }
            if written.stopped == "word":
                told["timings"] = self.timings()
        probabilities = [probability(text)] if text else []
        if self.params["n_probs"] and (probabilities or build < 4275):
            told["completion_probabilities"] = probabilities
        return told

    def final(self, text: str) -> Body:
        """The whole answer, or the last event."""
        build, written = self._build, self.written
        told: Body = {
            "content": text,
            "stop": True,
            "model": PATH if build < 3600 else self._model or "gpt-3.5-turbo-0613",
            "prompt": self._prompt,
            "generation_settings": settings(build, self.params),
            "stopping_word": written.word,
            "timings": self.timings(),
            "tokens_cached": self.evaluated + written.predicted,
            "tokens_evaluated": self.evaluated,
            "tokens_predicted": written.predicted,
            "truncated": False,
            "slot_id" if build < 2357 else "id_slot": 0,
        }
        if build < 4275:
            told |= {f"stopped_{how}": written.stopped == how for how in ("eos", "word", "limit")}
        else:
            told["stop_type"] = written.stopped or "none"
            told["index"] = self._index
            told["has_new_line"] = "\n" in written.text
            told["prompt"] = text_of(self.ids)
        if self.params["n_probs"]:
            told["completion_probabilities"] = self.probabilities()
        return told

    def probabilities(self) -> list[Body]:
        """Those of every token, without those of a stop word unless they were streamed."""
        pieces = self.written.pieces
        if not self.params["stream"] and self.written.stopped == "word":
            pieces = pieces[: max(0, len(pieces) - len(tokens_of(self.written.word, pieces)))]
        return [probability(piece) for piece in pieces]

    def timings(self) -> Body:
        """How fast it was."""
        return {
            "prompt_n": self.evaluated,
            "prompt_ms": 234.539,
            "prompt_per_token_ms": 117.2695,
            "prompt_per_second": 8.527366450782173,
            "predicted_n": self.written.predicted,
            "predicted_ms": 469.622,
            "predicted_per_token_ms": 93.9244,
            "predicted_per_second": 10.646860666663827,
        }


def probability(piece: str) -> Body:
    """The form of before b4364 (#10783)."""
    probs = [{"tok_str": piece, "prob": 0.5}, {"tok_str": " x", "prob": 0.25}]
    return {"content": piece, "probs": probs}


def settings(build: int, params: Body) -> Body:
    """`generation_settings`."""
    hidden = {"slot_id", "id_slot", "cache_prompt"}
    told = {name: value for name, value in params.items() if name not in hidden}
    told["seed"] %= 2**32
    if build < 2998:
        told["n_keep"] = 0  # the server's own; the request's in b3000, not yet in b2431
    told = {name: _single(one) if type(one) is float else one for name, one in told.items()}
    biases = params["logit_bias"]
    if build < 4275:
        if build < 1710:
            told["temp"] = told.pop("temperature")  # #4668, 2023-12-28
        return told | {"model": PATH, "n_ctx": N_CTX}
    told["max_tokens"] = told["n_predict"]
    told["logit_bias"] = [{"token": one, "bias": bias} for one, bias in biases]
    return told


def _single(value: float) -> float:
    """What a C++ float makes of a number."""
    (rounded,) = struct.unpack("f", struct.pack("f", value))
    return float(rounded)
