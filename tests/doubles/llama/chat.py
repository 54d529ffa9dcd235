"""`/v1/chat/completions`: OpenAI's chat as each build has it (since b1561, #4198)."""

from __future__ import annotations

import itertools
from collections.abc import Callable
from typing import Any

from doubles.llama.native import Native, refuse_slot
from doubles.llama.wire import Body, Call, Crashed, NoSlot, Refused, error

_FIELDS: dict[str, Any] = {
    "cache_prompt": False, "temperature": 0.0, "top_k": 40, "top_p": 1.0, "logit_bias": {},
    "frequency_penalty": 0.0, "presence_penalty": 0.0, "seed": -1, "stream": False, "mirostat": 0,
    "mirostat_tau": 5.0, "mirostat_eta": 0.1, "penalize_nl": True, "typical_p": 1.0,
    "repeat_last_n": 64, "ignore_eos": False, "tfs_z": 1.0,
}  # fmt: skip
"""All that is read beside messages, model, max_tokens, stop and grammar, until about b2490: not
`repeat_penalty`, `min_p`, `n_probs`, `n_predict` or `slot_id`, and nothing of OpenAI's that is
not here."""

_numbers = itertools.count(1)


def chat(call: Call) -> None:
    """Answer a chat."""
    build, asked = call.build, call.body()
    if build >= 3648 and call.double.embeddings:
        what = "This server does not support completions. Start it without `--embeddings`"
        raise Refused(501, what)
    body = _params(build, asked)
    body["prompt"] = _prompt(build, asked)
    model = asked.get("model")
    if not isinstance(model, str):
        model = "unknown" if build < 4275 else "gpt-3.5-turbo-0613"
    stream = body.get("stream") is True
    chunks = _Chunks(build, model)
    try:
        with call.slot(body) as release:
            answer = Native(call, body, body["prompt"])
            if not stream:
                _whole(call, answer, chunks, release)
                return
            call.begin()
            for text in answer.texts():
                if text or build >= 4275:
                    call.event(chunks.delta(text))
            release()
            if answer.fault is None:
                call.event(chunks.last(answer))
            elif build >= 1542:
                call.event(answer.fault, "error")
            _end(call)
    except NoSlot:
        if not stream:
            raise Refused(500, "slot unavailable") from None
        refuse_slot(call, stream=True)
    except Refused as refused:
        if not (stream and refused.late):
            raise
        call.begin()
        call.event(error(refused.status, refused.what), "error")
        _end(call)


def _whole(call: Call, answer: Native, chunks: _Chunks, release: Callable[[], None]) -> None:
    try:
        final = answer.whole()
    except Refused as refused:
        if call.build >= 2400:
            raise
        release()
        call.whole(500, refused.what.encode(), "text/plain; charset=utf-8")
    else:
        release()
        call.json(chunks.whole(answer, final))


def _end(call: Call) -> None:
    if call.build >= 3754:  # #9459; after an error too
        call.chunk(b"data: [DONE]\n\n")
    call.end()


# The request.


def _params(build: int, asked: Body) -> Body:
    body = _listed(asked) if build < 2490 else _all(build, asked)
    stop = asked.get("stop")
    words = [stop] if isinstance(stop, str) else [] if stop is None else stop
    if not isinstance(words, list):
        if build < 2608:
            raise Refused(500, "[json.exception.type_error.308] cannot use push_back() with number")
        words = []
    # ChatML's, whatever the template: b2645 still had it, b2800 has not.
    body["stop"] = [*words, "<|im_end|>"] if build < 2700 else words
    return body


def _listed(asked: Body) -> Body:
    body = {name: _read(asked, name, default) for name, default in _FIELDS.items()}
    body["n_predict"] = _read(asked, "max_tokens", -1)
    if "grammar" in asked:
        body["grammar"] = asked["grammar"]
    return body


def _read(asked: Body, name: str, default: Any) -> Any:
    value = asked.get(name)
    if value is None:
        return default
    kinds = (bool,) if isinstance(default, bool) else (int, float, bool)
    if not isinstance(default, dict) and not isinstance(value, kinds):
        # Here it is the thread of the request that fails.
        kind = "boolean" if isinstance(default, bool) else "number"
        raise Refused(500, f"[json.exception.type_error.302] type must be {kind}, but is not")
    return value


def _all(build: int, asked: Body) -> Body:
    """Everything goes on to the native API, and some of OpenAI's is refused (#5978 and later)."""
    body = {name: value for name, value in asked.items() if name != "messages"}
    if build < 3600:
        # OpenAI's defaults; 1.0 in b2998, not yet in b2800.
        temperature = 0.0 if build < 2900 else 1.0
        for name, default in (("temperature", temperature), ("top_p", 1.0)):
            body[name] = default if asked.get(name) is None else asked[name]
    if asked.get("n_predict") is None:
        body["n_predict"] = asked.get("max_tokens")
    if "response_format" in asked:
        _format(build, body, asked["response_format"])
    n = asked.get("n")
    if isinstance(n, int | float) and n != 1:
        raise Refused(500, "Only one completion choice is allowed")
    # Until some build between b3000 and b4295 the mere field is enough, `false` or not.
    wanted = "logprobs" in asked if build < 3600 else asked.get("logprobs") is True
    if wanted:
        top = asked.get("top_logprobs")
        body["n_probs"] = 20 if top is None else top
    elif "top_logprobs" in asked and (build < 3600 or asked["top_logprobs"] is not None):
        raise Refused(500, "top_logprobs requires logprobs to be set to true")
    for name in ("tools", "tool_choice"):  # until b4599
        if name in asked:
            raise Refused(500, f"Unsupported param: {name}")
    return body


def _format(build: int, body: Body, wanted: Any) -> None:
    wanted = wanted if isinstance(wanted, dict) else {}
    match wanted.get("type"):
        case "json_object":
            body["json_schema"] = wanted.get("schema") or {}
        case "json_schema" if build >= 3778:  # refused in b3777 (#9522); b4027 takes it
            body["json_schema"] = (wanted.get("json_schema") or {}).get("schema") or {}
        case str(kind) if kind not in {"", "text"}:
            what = 'response_format type must be one of "text" or "json_object", but got: '
            raise Refused(500, what + kind)


def _prompt(build: int, asked: Body) -> str:
    """ChatML; the model's own template since b2217 (#5593), which here is the same."""
    messages = asked.get("messages")
    if not isinstance(messages, list):
        if build < 2840:
            raise Crashed  # #7133, #7143
        what = "[json.exception.out_of_range.403] key 'messages' not found"
        raise Refused(500, what)
    told = [
        f"<|im_start|>{message.get('role') or ''}\n{_content(build, message)}<|im_end|>\n"
        for message in messages
    ]
    return "".join([*told, "<|im_start|>assistant\n"])


def _content(build: int, message: Body) -> str:
    content = message.get("content")
    if isinstance(content, str):
        return content
    if build < 3500:
        if content is None:
            return ""
        if build < 2608:
            kind = "array" if isinstance(content, list) else "not"
            what = f"[json.exception.type_error.302] type must be string, but is {kind}"
            raise Refused(500, what)
        return ""  # the text is lost, and nothing says so
    if isinstance(content, list):  # #8367; of parts only the texts are taken, pictures are lost
        return "".join(f"\n{part['text']}" for part in content if "text" in part)
    what = "Invalid 'content' type" if "content" in message else "Missing 'content'"
    raise Refused(500, f"{what} (ref: https://github.com/ggerganov/llama.cpp/issues/8367)")


# The answer.


class _Chunks:
    def __init__(self, build: int, model: str) -> None:
        self._build = build
        self._model = model
        self._id = self._new_id()

    @staticmethod
    def _new_id() -> str:
        return f"chatcmpl-{next(_numbers):032}"

    def whole(self, answer: Native, final: Body) -> Body:
        reason = "stop"
        if self._build >= 4275 and answer.written.stopped == "limit":
            reason = "length"  # before, a comparison that is always true says "stop" (#7198)
        message = {"content": final["content"], "role": "assistant"}
        told = {
            "choices": [{"finish_reason": reason, "index": 0, "message": message}],
            "created": 1700000000,
            "id": self._id,
            "model": self._model,
            "object": "chat.completion",
            "usage": _usage(answer),
        }
        if self._build >= 4275:
            told["timings"] = answer.timings()
        elif "completion_probabilities" in final:
            told["completion_probabilities"] = final["completion_probabilities"]
        return told

    def delta(self, text: str) -> Body:
        """No chunk has the role, in all of these builds."""
        return self._chunk({"content": text}, None)

    def last(self, answer: Native) -> Body:
        told = self._chunk({}, "length" if answer.written.stopped == "limit" else "stop")
        if self._build >= 2600:  # b2645 has it, b2586 has not
            told["usage"] = _usage(answer)
        if self._build >= 4275:
            told["timings"] = answer.timings()
        return told

    def _chunk(self, delta: Body, reason: str | None) -> Body:
        choice = {"finish_reason": reason, "index": 0, "delta": delta}
        return {
            "choices": [choice],
            "created": 1700000000,
            "id": self._id if self._build >= 2400 else self._new_id(),  # #5988
            "model": self._model,
            "object": "chat.completion.chunk",
        }


def _usage(answer: Native) -> Body:
    predicted, evaluated = answer.written.predicted, answer.evaluated
    return {
        "completion_tokens": predicted,
        "prompt_tokens": evaluated,
        "total_tokens": predicted + evaluated,
    }
