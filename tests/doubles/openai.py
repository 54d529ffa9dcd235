"""An OpenAI-compatible server that is no llama.cpp, after vLLM, with what others do otherwise.

It serves chat, completions and embeddings below `base`, and as vLLM does `/health`, and
`/tokenize` if it is told to. What it says comes a piece for a token, and a test can hold it
between two. There is no `/props` and no `/slots`.
"""

from __future__ import annotations

import asyncio
import base64
import struct
from collections.abc import Callable
from dataclasses import dataclass, field
from typing import Any, Literal

import msgspec
from aiohttp import web

from doubles.llama.control import DEADLINE, Asked
from doubles.llama.words import tokens_of

Body = dict[str, Any]


@dataclass
class OpenAiDouble:
    """A server on a free port of this machine."""

    base: str = "/v1"
    """What stands before its paths; `""` for a server without `/v1`."""
    key: str = ""
    models: tuple[str, ...] = ("m",)
    """Those that it lists; none for a server that has no list."""
    says: list[str] = field(default_factory=lambda: [" I", "'m", " fine", "."])
    thinks: list[str] = field(default_factory=list)
    """What it says before, as reasoning; a piece for a token, too."""
    thinks_as: str = "reasoning_content"
    """The field of reasoning: vLLM has called it `reasoning` since 2025-11."""
    calls: tuple[Body, ...] = ()
    """`{"name", "arguments"}`, said in place of text if the request has tools."""
    reason: str = ""
    """A finish reason in place of the right one."""
    usage: Literal["asked", "always", "every", "never"] = "asked"
    """In streams: if it is asked for, in a chunk without choices (OpenAI, vLLM); in the last chunk
    with choices, always; in every chunk; `never` is none in whole answers either."""
    done: bool = True
    """Whether a stream ends with `[DONE]`."""
    role: bool = True
    """Whether a chat stream begins with a chunk that has the role and an empty content."""
    tokenizes: bool = False
    """Whether it has `/tokenize`."""
    errors: Literal["nested", "flat"] = "nested"
    """`{"error": {...}}`, or the error itself as vLLM had it until 2025."""
    status: int = 200
    """Another one is the answer to whatever wants text; its message is `fault`."""
    fault: str = "Something went wrong."
    error_midstream: bool = False
    """Whether a fault comes in place of the second token."""
    cut: bool = False
    """Whether the connection breaks in place of the second token."""
    asked: list[Asked] = field(default_factory=list)
    gone_away: int = 0
    """How many clients left before their answer was over."""
    generated: int = 0
    url: str = ""
    """Its address without `base`."""
    _turns: asyncio.Semaphore | None = None
    _changed: asyncio.Condition = field(default_factory=asyncio.Condition)
    _runner: web.AppRunner | None = None

    async def start(self) -> None:
        """Begin to listen."""
        app = web.Application()
        app.router.add_get("/health", self._health)
        app.router.add_post("/tokenize", self._tokenize)
        app.router.add_get(f"{self.base}/models", self._models)
        app.router.add_post(f"{self.base}/chat/completions", self._generate)
        app.router.add_post(f"{self.base}/completions", self._generate)
        app.router.add_post(f"{self.base}/embeddings", self._embed)
        self._runner = web.AppRunner(
            app, access_log=None, shutdown_timeout=0, handler_cancellation=True
        )
        await self._runner.setup()
        await web.TCPSite(self._runner, "127.0.0.1", 0).start()
        self.url = f"http://127.0.0.1:{self._runner.addresses[0][1]}"

    async def stop(self) -> None:
        """Listen no more."""
        if self._runner is not None:
            await self._runner.cleanup()

    def last(self) -> Any:
        """The body of the last request."""
        return self.asked[-1].body

    def hold(self, after: int = 0) -> None:
        """Generate so many more tokens, and then wait for `let`."""
        self._turns = asyncio.Semaphore(after)

    def let(self, count: int = 1) -> None:
        """Generate so many tokens more."""
        assert self._turns is not None, "nothing is held"
        for _ in range(count):
            self._turns.release()

    async def until(self, holds: Callable[[], bool]) -> None:
        """Wait until something holds of this server, which must come."""
        async with asyncio.timeout(DEADLINE), self._changed:
            await self._changed.wait_for(holds)

    # What it serves.

    async def _health(self, _: web.Request) -> web.Response:
        return web.Response()

    async def _models(self, request: web.Request) -> web.Response:
        await self._note(request)
        if not self._is_known(request):
            return self._error(401, "Unauthorized")
        if not self.models:
            return self._error(404, "Not Found")
        data = [
            {"id": name, "object": "model", "created": 1, "owned_by": "vllm", "max_model_len": 4096}
            for name in self.models
        ]
        return _json(200, {"object": "list", "data": data})

    async def _tokenize(self, request: web.Request) -> web.Response:
        body = await self._note(request)
        if not self.tokenizes:
            return self._error(404, "Not Found")
        ids = self._ids(body)
        return _json(200, {"count": len(ids), "max_model_len": 4096, "tokens": ids})

    async def _embed(self, request: web.Request) -> web.Response:
        body = await self._note(request)
        wrong = self._wrong(request, body)
        if wrong is not None:
            return wrong
        inputs = body.get("input")
        if not isinstance(inputs, list) or all(type(one) is int for one in inputs):
            inputs = [inputs]
        counts = [len(self._ids({"prompt": one})) for one in inputs]
        data = [
            {"object": "embedding", "index": index, "embedding": _vector(count, body)}
            for index, count in enumerate(counts)
        ]
        usage = {"prompt_tokens": sum(counts), "total_tokens": sum(counts)}
        told = {"object": "list", "data": data, "model": body["model"], "usage": usage}
        return _json(200, told)

    async def _generate(self, request: web.Request) -> web.StreamResponse:
        body = await self._note(request)
        wrong = self._wrong(request, body)
        if wrong is not None:
            return wrong
        if self.status != 200:
            return self._error(self.status, self.fault)
        answer = _Answer(self, body, chat=request.path.endswith("/chat/completions"))
        try:
            if body.get("stream"):
                return await self._streamed(request, answer)
            for _ in range(answer.completion_tokens):
                await self._turn()
            return _json(200, answer.whole())
        except (asyncio.CancelledError, ConnectionError):
            await self._count("gone_away")
            raise

    async def _streamed(self, request: web.Request, answer: _Answer) -> web.StreamResponse:
        response = web.StreamResponse(headers={"Content-Type": "text/event-stream; charset=utf-8"})
        await response.prepare(request)
        if answer.chat and self.role:
            for index in range(answer.n):
                await response.write(answer.chunk(index, {"role": "assistant", "content": ""}))
        for index in range(answer.n):
            for number, delta in enumerate(answer.deltas):
                await self._turn()
                if number and self.cut:
                    assert request.transport is not None
                    request.transport.abort()
                    return response
                if number and self.error_midstream:
                    await response.write(_event(self._fault(500, self.fault)))
                    break
                await response.write(answer.chunk(index, delta))
            else:
                await response.write(answer.chunk(index, {}, reason=answer.reason))
        if self.usage == "asked" and answer.wants_usage:
            await response.write(_event(answer.head() | {"choices": [], "usage": answer.usage()}))
        if self.done:
            await response.write(b"data: [DONE]\n\n")
        await response.write_eof()
        return response

    # How.

    async def _turn(self) -> None:
        if self._turns is not None:
            await self._turns.acquire()
        await self._count("generated")

    async def _count(self, name: str) -> None:
        async with self._changed:
            setattr(self, name, getattr(self, name) + 1)
            self._changed.notify_all()

    async def _note(self, request: web.Request) -> Body:
        headers = {name.lower(): value for name, value in request.headers.items()}
        raw = await request.read()
        self.asked.append(Asked(request.method, request.path, headers, raw))
        try:
            body = msgspec.json.decode(raw) if raw else {}
        except msgspec.DecodeError:
            return {}
        return body if isinstance(body, dict) else {}

    def _is_known(self, request: web.Request) -> bool:
        return not self.key or request.headers.get("Authorization") == f"Bearer {self.key}"

    def _wrong(self, request: web.Request, body: Body) -> web.Response | None:
        if not self._is_known(request):
            return self._error(401, "Unauthorized")
        if self.models and body.get("model") not in self.models:
            return self._error(404, f"The model `{body.get('model')}` does not exist.")
        if not any(name in body for name in ("messages", "prompt", "input")):
            return self._error(400, "[{'type': 'missing', 'msg': 'Field required'}]")
        return None

    def _error(self, status: int, message: str) -> web.Response:
        return _json(status, self._fault(status, message))

    def _fault(self, status: int, message: str) -> Body:
        error = {"message": message, "type": "BadRequestError", "param": None, "code": status}
        return {"object": "error", **error} if self.errors == "flat" else {"error": error}

    def _ids(self, body: Body) -> list[int]:
        if "messages" in body:
            return tokens_of(_conversation(body["messages"]), self.says)
        prompt = body.get("prompt")
        return tokens_of(prompt, self.says) if isinstance(prompt, str) else list(prompt or [])


class _Answer:
    """What is said to one request."""

    def __init__(self, double: OpenAiDouble, body: Body, *, chat: bool) -> None:
        self._double = double
        self._model = body.get("model", "m")
        self.chat = chat
        self.n: int = body.get("n") or 1
        self.wants_usage = bool((body.get("stream_options") or {}).get("include_usage"))
        self._prompt_tokens = len(double._ids(body))
        limit = body.get("max_completion_tokens") or body.get("max_tokens")
        stop = body.get("stop") or []
        stops = [stop] if isinstance(stop, str) else stop
        spoken = [*((piece, True) for piece in double.thinks), *((p, False) for p in double.says)]
        self._calls = double.calls if chat and body.get("tools") else ()
        if self._calls:
            spoken = spoken[: len(double.thinks)]
        told = spoken[:limit]
        self.reason = "length" if len(told) < len(spoken) else "stop"
        text = "".join(piece for piece, thought in told if not thought)
        ends = [text.index(word) for word in stops if word in text]
        if ends:
            text, self.reason = text[: min(ends)], "stop"
        if self._calls:
            self.reason = "tool_calls"
        self.reason = double.reason or self.reason
        self._text = text
        self._thought = "".join(piece for piece, thought in told if thought)
        self.deltas = self._deltas(told)
        self.completion_tokens = len(self.deltas)

    def _deltas(self, told: list[tuple[str, bool]]) -> list[Body]:
        deltas: list[Body] = []
        left = self._text
        for piece, thought in told:
            if thought:
                deltas.append({self._double.thinks_as: piece})
            elif left:
                deltas.append({"content": left[: len(piece)]})
                left = left[len(piece) :]
        for number, call in enumerate(self._calls):
            head = {"index": number, "id": f"call_{number}", "type": "function"}
            named = {**head, "function": {"name": call["name"], "arguments": ""}}
            argued = {"index": number, "function": {"arguments": call["arguments"]}}
            deltas += [{"tool_calls": [named]}, {"tool_calls": [argued]}]
        return deltas

    def usage(self) -> Body:
        completion = self.completion_tokens * self.n
        return {
            "prompt_tokens": self._prompt_tokens,
            "completion_tokens": completion,
            "total_tokens": self._prompt_tokens + completion,
        }

    def head(self, *, whole: bool = False) -> Body:
        kind = "chat.completion" if whole else "chat.completion.chunk"
        kind = kind if self.chat else "text_completion"
        name = "chatcmpl-1" if self.chat else "cmpl-1"
        return {"id": name, "object": kind, "created": 1, "model": self._model}

    def whole(self) -> Body:
        choices = [self._choice(index) for index in range(self.n)]
        told = self.head(whole=True) | {"choices": choices}
        return told if self._double.usage == "never" else told | {"usage": self.usage()}

    def _choice(self, index: int) -> Body:
        shared = {"index": index, "logprobs": None, "finish_reason": self.reason}
        if not self.chat:
            return shared | {"text": self._text}
        message: Body = {"role": "assistant", "content": self._text or None}
        if self._thought:
            message[self._double.thinks_as] = self._thought
        if self._calls:
            message["tool_calls"] = [
                {"id": f"call_{number}", "type": "function", "function": call}
                for number, call in enumerate(self._calls)
            ]
        return shared | {"message": message}

    def chunk(self, index: int, delta: Body, reason: str | None = None) -> bytes:
        said = {"delta": delta} if self.chat else {"text": delta.get("content", "")}
        choice = {"index": index, "logprobs": None, "finish_reason": reason, **said}
        told = self.head() | {"choices": [choice]}
        usage = self._double.usage
        if usage == "every" or (usage == "always" and reason is not None):
            told["usage"] = self.usage()
        return _event(told)


def _conversation(messages: list[Body]) -> str:
    return "".join(f"{one.get('role')}: {one.get('content')}\n" for one in messages)


def _vector(count: int, body: Body) -> list[float] | str:
    vector = [float(count), 1.0, 0.0, 0.0][: body.get("dimensions") or 4]
    if body.get("encoding_format") != "base64":
        return vector
    return base64.b64encode(struct.pack(f"<{len(vector)}f", *vector)).decode()


def _json(status: int, body: Any) -> web.Response:
    return web.Response(
        status=status, body=msgspec.json.encode(body), content_type="application/json"
    )


def _event(body: Body) -> bytes:
    return b"data: %b\n\n" % msgspec.json.encode(body)
