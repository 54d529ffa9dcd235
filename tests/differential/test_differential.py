"""The same question to Tropilla and to the engine itself, streamed and whole: the same answer.

What "the same" is, `said.py` says: text, reasoning, tool calls, logprobs, reasons and counts, to
the last digit. Where the two differ on purpose, the case names it.
"""

from __future__ import annotations

from collections.abc import AsyncIterator
from typing import Any

import aiohttp
import msgspec
import pytest

from conftest import served
from differential.cases import CHAT, LONG, NATIVE, TEXT, TOOL, Body, Case, Differs, cases
from differential.said import said
from tropilla.config import Config, UpstreamConfig

pytestmark = pytest.mark.anyio


class Both:
    """Tropilla, and the engine behind it."""

    def __init__(self, ours: aiohttp.ClientSession, theirs: aiohttp.ClientSession) -> None:
        self._ours = ours
        self._theirs = theirs

    async def ours(self, path: str, body: Body) -> tuple[int, bytes]:
        """What Tropilla answers."""
        return await _post(self._ours, path, body)

    async def theirs(self, path: str, body: Body) -> tuple[int, bytes]:
        """What the engine answers."""
        return await _post(self._theirs, path, body)


async def _post(session: aiohttp.ClientSession, path: str, body: Body) -> tuple[int, bytes]:
    async with session.post(path, data=msgspec.json.encode(body)) as answer:
        return answer.status, await answer.read()


@pytest.fixture(scope="module")
async def both(engine: str) -> AsyncIterator[Both]:
    config = Config(listen="127.0.0.1:0", upstreams=(UpstreamConfig(url=engine),))
    # The engine ends a connection now and then, whoever may be about to ask on it again.
    socket = aiohttp.UnixConnector(engine.removeprefix("unix://"), force_close=True)
    async with (
        served(config) as tropilla,
        aiohttp.ClientSession(tropilla.url) as ours,
        aiohttp.ClientSession("http://engine", connector=socket) as theirs,
    ):
        await tropilla.until(lambda: all(one.state == "ready" for one in tropilla.fleet.upstreams))
        yield Both(ours, theirs)


def form(case: Case, *, stream: bool) -> Body:
    """A case's body, streamed or whole."""
    if not stream:
        return case.body
    told = {} if case.path == NATIVE else {"stream_options": {"include_usage": True}}
    return case.body | {"stream": True} | told


def as_the_engine_must_be_asked(case: Case) -> Case:
    """For the same answer."""
    body = dict(case.body)
    if case.differs is Differs.FORBIDDEN:
        del body["tools"], body["tool_choice"]
    elif case.differs is Differs.NAMED:
        body |= {"tools": [TOOL], "tool_choice": "required"}
    elif case.differs is Differs.ALONE:
        body["top_logprobs"] = 1
    return case._replace(body=body)


def as_tropilla_tells_it(case: Case, told: Any) -> Any:
    """The engine's answer, with what Tropilla adds or takes away on purpose."""
    if case.differs is Differs.SUMMED:
        # In all of these rows each choice is as long as the other.
        prompt, completion, _ = told["usage"]
        completion *= case.body["n"]
        told["usage"] = [prompt, completion, prompt + completion]
    elif case.differs is Differs.ALONE:
        for choice in told["choices"]:
            choice["logprobs"] = [(token, logprob, {}) for token, logprob, _ in choice["logprobs"]]
    return told


CASES = list(cases())


@pytest.mark.parametrize("case", CASES, ids=[f"{one.path} {one.name}" for one in CASES])
async def test_the_same_answer(both: Both, case: Case) -> None:
    asked = as_the_engine_must_be_asked(case)
    ours: dict[bool, Any] = {}
    theirs: dict[bool, Any] = {}
    for stream in (False, True):
        status, body = await both.ours(case.path, form(case, stream=stream))
        assert status == 200, body
        ours[stream] = said(case.path, body, stream=stream)
        status, body = await both.theirs(case.path, form(asked, stream=stream))
        assert status == 200, body
        theirs[stream] = as_tropilla_tells_it(case, said(case.path, body, stream=stream))
    assert ours[True] == theirs[True]
    if case.differs is Differs.FOLDED:
        assert without_ids(case, theirs[False]) != without_ids(case, theirs[True])
    else:
        assert ours[False] == theirs[False]
    assert without_ids(case, ours[False]) == without_ids(case, ours[True])


def without_ids(case: Case, told: Any) -> Any:
    """A native stream always tells the tokens' ids, a whole answer if it is asked to."""
    if case.path == NATIVE and not case.body.get("return_tokens"):
        return [one | {"tokens": []} for one in told]
    return told


def test_there_are_enough_of_them() -> None:
    assert len({(one.path, one.name) for one in CASES}) == len(CASES)
    assert 2 * len(CASES) >= 200
    assert {one.differs for one in CASES} == {None, *Differs}


@pytest.mark.parametrize("stream", [False, True], ids=["whole", "streamed"])
@pytest.mark.parametrize("path", [CHAT, TEXT, NATIVE])
async def test_what_does_not_fit_is_refused_with_the_same_counts(
    both: Both, path: str, *, stream: bool
) -> None:
    text = LONG * 15
    asks: Body = (
        {"messages": [{"role": "user", "content": text}]} if path == CHAT else {"prompt": text}
    )
    body = {"model": "m", "stream": stream} | asks
    theirs, told = await both.theirs(path, body)
    ours, answer = await both.ours(path, body)
    assert (theirs, ours) == (400, 400)
    counts = msgspec.json.decode(told)["error"]
    error = msgspec.json.decode(answer)["error"]
    assert str(counts["n_prompt_tokens"]) in error["message"]
    assert str(counts["n_ctx"]) in error["message"]


async def test_a_conversation_that_grows_over_what_is_remembered(both: Both) -> None:
    async def talk(ask: Any) -> list[Any]:
        messages: list[Body] = []
        answers = []
        for words in ("Hello!", "And then?", "Why?", "¿Y después?"):
            messages.append({"role": "user", "content": words})
            body = {"model": "m", "messages": messages, "temperature": 0, "max_tokens": 40}
            status, answer = await ask(CHAT, body)
            assert status == 200
            answers.append(said(CHAT, answer, stream=False))
            text = answers[-1]["choices"][0]["text"]
            messages.append({"role": "assistant", "content": text})
        return answers

    assert await talk(both.ours) == await talk(both.theirs)
