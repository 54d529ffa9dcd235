"""How likely a prompt is, exactly, of a llama-server that does not tell: `echo` with `logprobs`.

A llama-server tells the probability of what it writes, taken before anything is done to it. So it
is made to write the prompt itself: by a grammar of token ids where it reads those (December 2025,
#17816), else a token at a time, by a bias that no other token can beat. Neither changes what is
told. Each range of a prompt is written in one slot, one request after the other, each finding the
one before in the cache; ranges are written side by side in slots that are free.

Nothing here is an estimate: where it cannot be exact it is refused. Leaving ends all of it.
"""

from __future__ import annotations

import asyncio
from collections.abc import Iterator
from dataclasses import dataclass, field

from tropilla import dialects
from tropilla.dialects._openai import decode, read_token_logprobs
from tropilla.ir import (
    Json,
    JsonObject,
    Malformed,
    Problem,
    ProblemError,
    Prompt,
    Request,
    TokenLogprob,
)
from tropilla.upstream.member import Upstream

EXACT = 4364
"""The build since which probabilities are told as they were before sampling (#10783)."""

_PIECE = 64
"""Tokens of one request: what is in vain when the client leaves."""

_LEAST = 64
"""Tokens of a range: below, reading its beginning in another slot takes longer than it saves."""

_MOST_RANGES = 8

_ALTERNATIVES = (64, 4096, 2**20)
"""How many tokens to look among for one that is not told of when it is written."""

_ENOUGH = 1e6
"""A bias that decides: no logit comes near it, and a 32-bit number still holds it."""


@dataclass
class Scored:
    """A prompt, and how likely each of its tokens is where the others stand before it."""

    text: str
    """As the client hears it."""
    ids: list[int]
    entries: list[TokenLogprob]
    """The first token's likelihood stays `None`: nothing stands before it."""
    alone: set[int] = field(default_factory=set)
    """Tokens that no grammar can hold: they may end an answer, or are no whole characters."""


async def read_prompts(
    request: Request, prompts: tuple[Prompt, ...], upstream: Upstream
) -> list[Scored]:
    """The prompts as the upstream reads them, not yet scored.

    Raises:
        ProblemError: it cannot tell.
    """
    if upstream.traits.build < EXACT or not upstream.traits.tokenizes:
        raise ProblemError(_TOO_OLD)
    return [await _read(request, prompt, upstream) for prompt in prompts]


_TOO_OLD = Problem(
    kind="unsupported",
    message="This server cannot tell the probabilities of a prompt: llama.cpp tells them exactly "
    "since b4364.",
    param="logprobs",
    retryable=True,
)


def check_size(prompts: list[Scored], upstream: Upstream) -> None:
    """Refuse what would take too long, or cannot be read.

    Raises:
        Malformed: the prompts are too long.
    """
    most, n_ctx = upstream.max_scored_tokens, upstream.traits.n_ctx
    total = sum(len(one.ids) for one in prompts)
    if total > most:
        raise Malformed(
            f"The prompts have {total} tokens, and 'echo' with 'logprobs' is limited to {most} "
            "('max_scored_tokens' in the config).",
            param="prompt",
            code="too_many_scored_tokens",
        )
    longest = max(len(one.ids) for one in prompts)
    if n_ctx is not None and longest > n_ctx:
        raise Malformed(
            f"The prompt has {longest} tokens, and the context of this server {n_ctx}.",
            param="prompt",
            kind="context_exceeded",
        )


async def _read(request: Request, prompt: Prompt, upstream: Upstream) -> Scored:
    begins = type(prompt) is str
    body = {"content": prompt, "add_special": begins, "parse_special": True, "with_pieces": True}
    told = await _asked(upstream, "/tokenize", _named(request, body))
    ids, pieces = [], []
    match told:
        case {"tokens": list(tokens)}:
            pass
        case _:
            tokens = []
    for token in tokens:
        match token:
            case {"id": int(id_), "piece": str() | list() as piece}:
                ids.append(id_)
                pieces.append(_bytes_of(piece))
            case _:
                raise _strange(_NO_TOKENS)
    if not ids:
        why = "The prompt has no tokens, and this model no mark of a beginning."
        raise Malformed(why, param="prompt")
    if not begins and ids != prompt:
        raise _strange("other tokens than it was given")
    alone = {
        id_
        for id_, piece in zip(ids, pieces, strict=True)
        if _is_mark(piece, upstream.traits.eos) or not _is_text(piece)
    }
    entries = [_entry(id_, piece) for id_, piece in zip(ids, pieces, strict=True)]
    if not begins:
        text = b"".join(pieces).decode("utf-8", "replace")
        return Scored(text, ids, entries, alone)
    text = str(prompt)
    _fit(text.encode("utf-8", "replace"), pieces, entries)
    return Scored(text, ids, entries, alone)


def _fit(text: bytes, pieces: list[bytes], entries: list[TokenLogprob]) -> None:
    """Let the tokens make up the text, which has no mark around it, and no space before it.

    Where they never do, because the model reads another text than was sent, they stay as they are.
    """
    count = len(pieces)
    for first, last in ((0, count), (1, count), (1, count - 1), (0, count - 1)):
        inside = b"".join(pieces[first:last])
        if text in {inside, inside.removeprefix(b" ")}:
            break
    else:
        first, last, inside = 0, count, text
    for entry in (*entries[:first], *entries[last:]):
        entry["bytes"] = []
    if inside != text and first < last:
        entries[first] |= _entry(entries[first]["id"], pieces[first][1:])


def _bytes_of(piece: Json) -> bytes:
    """A piece is a text, or where it is no whole character its bytes."""
    if type(piece) is str:
        return piece.encode("utf-8", "replace")
    try:
        return bytes(piece)
    except (TypeError, ValueError):
        raise _strange(_NO_TOKENS) from None


def _is_mark(piece: bytes, eos: str | None) -> bool:
    """Whether a token looks like one that ends an answer: `</s>`, `<|im_end|>`, `[EOS]`.

    To write one by a grammar is an error, which may have ended an older server.
    """
    told = eos is not None and piece == eos.encode()
    return told or not piece or (len(piece) > 2 and piece.endswith((b">", b"]")))


def _is_text(piece: bytes) -> bool:
    try:
        piece.decode()
    except UnicodeDecodeError:
        return False
    return True


def _entry(id_: int, piece: bytes) -> TokenLogprob:
    return {
        "id": id_,
        "token": piece.decode("utf-8", "replace"),
        "bytes": list(piece),
        "logprob": None,
        "top_logprobs": [],
    }


@dataclass
class _Range:
    """The tokens from `at` up to `end`, to be written one request after the other."""

    prompt: Scored
    at: int
    end: int
    most: int = _PIECE


class Scoring:
    """Scores prompts, several ranges at once."""

    def __init__(self, request: Request, prompts: list[Scored], upstream: Upstream) -> None:
        self._request = request
        self._upstream = upstream
        free = (upstream.seen(None).slots or 1) - upstream.leases + 1
        self._width = min(max(free, 1), _MOST_RANGES)
        self._waiting = list(_ranges(prompts, self._width))[::-1]
        self._running: set[asyncio.Task[_Range]] = set()
        self._by_grammar = True
        """Until the server shows that it reads no token ids in a grammar."""

    async def step(self) -> bool:
        """Come a piece further; whether it is over.

        Raises:
            ProblemError: the upstream failed.
        """
        while self._waiting and len(self._running) < self._width:
            self._go_on(self._waiting.pop())
        if not self._running:
            return True
        done, self._running = await asyncio.wait(self._running, return_when=asyncio.FIRST_COMPLETED)
        failures = [error for task in done if (error := task.exception()) is not None]
        if failures:
            raise failures[0]
        for one in [task.result() for task in done]:
            if one.at < one.end:
                self._go_on(one)
        return False

    def _go_on(self, one: _Range) -> None:
        self._running.add(asyncio.create_task(self._write(one)))

    async def stop(self) -> None:
        """Leave what is not done."""
        for task in self._running:
            task.cancel()
        await asyncio.gather(*self._running, return_exceptions=True)
        self._running = set()

    async def _write(self, one: _Range) -> _Range:
        """Have the next tokens of a range written."""
        wanted = self._next(one)
        body = _body(self._request, one.prompt.ids[: one.at], wanted)
        try:
            told = await self._ask(body)
        except ProblemError as error:
            if len(wanted) == 1 or not self._minds_grammar(error.problem):
                raise
            one.most = len(wanted) // 2  # something in it is no token for a grammar
            return one
        written = 0
        for id_, entry in zip(wanted, _entries(told), strict=False):
            if entry.get("id") != id_:
                break
            one.prompt.entries[one.at] |= {
                "logprob": entry.get("logprob"),
                "top_logprobs": _tops(entry),
            }
            one.at += 1
            written += 1
        if not written and len(wanted) == 1:
            await self._look(one)
        one.most = max(len(wanted) // 2, 1) if not written else _PIECE
        return one

    async def _ask(self, body: JsonObject) -> JsonObject:
        return await _asked(self._upstream, "/completion", _named(self._request, body))

    def _minds_grammar(self, problem: Problem) -> bool:
        """Whether the server may do without the grammar what it did not do with it."""
        if problem.kind == "malformed" and "grammar" in problem.message:
            self._by_grammar = False
            return True
        return problem.kind == "upstream_failed" and not problem.died

    async def _look(self, one: _Range) -> None:
        """Look for a token among the likeliest ones, where another one is written.

        A server does not tell of a token that ends within a character.
        """
        told = await _asked(self._upstream, "/tokenize", _named(self._request, {"content": "a"}))
        match told.get("tokens"):
            case [*_, int(another)]:
                pass
            case _:
                raise _strange(_NO_TOKENS)
        wanted = one.prompt.ids[one.at]
        for count in _ALTERNATIVES:
            body = _body(self._request, one.prompt.ids[: one.at], [another]) | {"n_probs": count}
            tops = [top for entry in _entries(await self._ask(body)) for top in _tops(entry)]
            for top in tops:
                if top.get("id") == wanted:
                    most = max(self._request.logprobs or 0, 1)
                    one.prompt.entries[one.at] |= {
                        "logprob": top.get("logprob"),
                        "top_logprobs": tops[:most],
                    }
                    one.at += 1
                    return
            if len(tops) < count:
                break
        raise _strange("no probability of one of its tokens")

    def _next(self, one: _Range) -> list[int]:
        """The tokens that one request can have written."""
        ids, alone = one.prompt.ids, one.prompt.alone
        if not self._by_grammar:
            return ids[one.at : one.at + 1]
        end = min(one.end, one.at + one.most)
        stops = (at for at in range(one.at, end) if ids[at] in alone)
        return ids[one.at : max(next(stops, end), one.at + 1)]


def _ranges(prompts: list[Scored], width: int) -> Iterator[_Range]:
    """Every prompt whole, or in several ranges where there are slots for them."""
    each = max(width // len(prompts), 1)
    for prompt in prompts:
        size = len(prompt.ids) - 1
        parts = max(min(each, size // _LEAST), 1)
        for part in range(parts):
            start, end = 1 + size * part // parts, 1 + size * (part + 1) // parts
            if start < end:
                yield _Range(prompt, start, end)


def _body(request: Request, before: list[int], wanted: list[int]) -> JsonObject:
    body: JsonObject = {
        "prompt": before,
        "n_predict": len(wanted),
        "n_probs": max(request.logprobs or 0, 1),
        "cache_prompt": True,
        # What decides is nothing but the grammar, or the bias.
        "temperature": 0,
        "samplers": ["top_k"],
        "top_k": 1,
        "mirostat": 0,
        "post_sampling_probs": False,
        "backend_sampling": False,
        "ignore_eos": False,
        "response_fields": ["completion_probabilities"],
    }
    if "lora" in request.extras:
        body["lora"] = request.extras["lora"]
    if len(wanted) == 1:
        return body | {"logit_bias": [[wanted[0], _ENOUGH]]}
    return body | {"grammar": "root ::= " + " ".join(f"<[{id_}]>" for id_ in wanted)}


def _entries(told: JsonObject) -> list[TokenLogprob]:
    match told.get("completion_probabilities"):
        case [*entries] if all(type(entry) is dict for entry in entries):
            try:
                return read_token_logprobs(entries)
            except Malformed as error:
                raise ProblemError(_failure(error.problem.message)) from None
    return []


def _tops(entry: TokenLogprob) -> list[TokenLogprob]:
    tops: list[TokenLogprob] = entry.get("top_logprobs") or []
    return tops


def _named(request: Request, body: JsonObject) -> JsonObject:
    return body if request.model is None else body | {"model": request.model}


async def _asked(upstream: Upstream, path: str, body: JsonObject) -> JsonObject:
    """A question of llama.cpp's own, and its answer.

    Raises:
        ProblemError: there was none.
    """
    status, answer = await upstream.link.ask("POST", path, body, seconds=None)
    if status != 200:
        problem = dialects.named("llamacpp").parse_problem(status, answer)
        if path == "/tokenize" and type(body["content"]) is list and status in {400, 500}:
            raise Malformed(
                f"The prompt has token ids that this model does not know: {problem.message}",
                param="prompt",
            )
        raise ProblemError(problem)
    try:
        told = decode(answer)
    except Malformed as error:
        raise ProblemError(_failure(error.problem.message)) from None
    return told if type(told) is dict else {}


async def text_of(ids: list[int], request: Request, upstream: Upstream) -> str:
    """The text of token ids, as the upstream writes it.

    Raises:
        ProblemError: it cannot be asked, or does not know them.
    """
    traits = upstream.traits
    match traits.tokenizes, traits.tokenizer:
        case True, _:
            name = "content"
        case _, "vllm":
            name = "prompt"
        case _:
            raise ProblemError(_NO_TEXT)
    body = _named(request, {"tokens": ids})
    status, answer = await upstream.link.ask("POST", "/detokenize", body, seconds=60)
    told = decode(answer) if status == 200 else {}
    match told:
        case {**fields} if type(fields.get(name)) is str:
            return str(fields[name])
    if status in {400, 422, 500}:
        raise Malformed("The prompt has token ids that this model does not know.", param="prompt")
    raise ProblemError(_failure("The upstream gave no text of token ids."))


_NO_TEXT = Problem(
    kind="unsupported",
    message="This server cannot be asked for the text of token ids: 'echo' needs a text.",
    param="echo",
    retryable=True,
)


def _failure(message: str) -> Problem:
    return Problem(kind="upstream_failed", message=message, retryable=True)


def _strange(what: str) -> ProblemError:
    return ProblemError(_failure(f"The prompt cannot be scored: the upstream told {what}."))


_NO_TOKENS = "its tokens in a form that is not known here"
