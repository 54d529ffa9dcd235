"""The servers that may answer: doubles of each generation and kind, and the real engine."""

from __future__ import annotations

from collections.abc import AsyncIterator, Callable
from contextlib import AbstractAsyncContextManager, asynccontextmanager
from typing import Any, NamedTuple

from doubles.afs import KEY, AfsDouble, Says
from doubles.llama import BUILDS, llama
from doubles.openai import OpenAiDouble
from doubles.valve import Valve, valve
from tropilla.config import UpstreamConfig


class Stage(NamedTuple):
    """A server that runs behind a valve, and how it can be brought to refuse."""

    config: UpstreamConfig
    valve: Valve
    text: str | None
    """What it says to everything; `None` is what its model makes of it."""
    word: str | None
    """A stop word in it; `None` is three letters in its middle."""
    refuse: Callable[[], str]
    """Make the next request fail; what the client hears of that."""


class Back(NamedTuple):
    """One kind of server."""

    name: str
    stage: Callable[[str], AbstractAsyncContextManager[Stage]]
    """Starts it; the argument is the address of the real engine."""


def _llama(build: int) -> Back:
    """The double of a llama.cpp server of this build."""

    @asynccontextmanager
    async def stage(_: str) -> AsyncIterator[Stage]:
        with llama(build) as double:
            async with valve(double.url) as through:

                def refuse() -> str:
                    if build < 1915:
                        double.gone.add("/completion")
                        return "File Not Found"
                    double.error_midstream, double.error_after = "It broke.", 0
                    return "It broke."

                config = UpstreamConfig(url=through.url)
                yield Stage(config, through, " I'm fine.", None, refuse)

    return Back(f"llama.cpp b{build}", stage)


@asynccontextmanager
async def _engine(url: str) -> AsyncIterator[Stage]:
    async with valve(url) as through:
        yield Stage(UpstreamConfig(url=through.url), through, None, None, lambda: "8192")


@asynccontextmanager
async def _openai(_: str) -> AsyncIterator[Stage]:
    # Of the two ways to be OpenAI-compatible the poorer one: no usage, no [DONE].
    double = OpenAiDouble(usage="never", done=False)
    await double.start()
    async with valve(double.url) as through:

        def refuse() -> str:
            double.status = 500
            return double.fault

        yield Stage(UpstreamConfig(url=through.url), through, " I'm fine.", None, refuse)
    await double.stop()


@asynccontextmanager
async def _afs(_: str) -> AsyncIterator[Stage]:
    double = AfsDouble()
    await double.start()
    async with valve(double.url) as through:

        def refuse() -> str:
            body: Any = {"detail": "No capacity for this model."}
            double.says = [Says(status=500, body=body)]
            return "No capacity"

        config = UpstreamConfig(url=through.url, dialect="afs", api_key=KEY, model="ffm")
        yield Stage(config, through, "你好。", "好", refuse)
    await double.stop()


BACKS = (
    *map(_llama, BUILDS),
    Back("today's llama.cpp", _engine),
    Back("OpenAI-compatible", _openai),
    Back("AFS", _afs),
)
