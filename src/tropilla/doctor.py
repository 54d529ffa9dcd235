"""What is there, and what is wrong with it: every upstream of a config, asked once.

Nothing is generated. Each finding is one line: what the server is, or what is wrong and what to
do about it. Keys are never shown.
"""

from __future__ import annotations

import asyncio
from collections.abc import Iterable, Iterator

from tropilla.config import Config
from tropilla.ir import Problem, ProblemError, Traits, Value
from tropilla.upstream.member import Upstream, upstreams_of
from tropilla.upstream.probe import kind_of, probe

_SECONDS = 15.0
_SMALL = 2048
"""Tokens of context below which most conversations soon end."""

_ABILITIES = ("chat", "tools", "vision", "audio", "embeddings", "rerank", "infill")


class Finding(Value, frozen=True, kw_only=True):
    """What one upstream is; `wrong` is empty if it can serve."""

    address: str
    what: str = ""
    models: tuple[str, ...] = ()
    slots: int | None = None
    n_ctx: int | None = None
    can: tuple[str, ...] = ()
    wrong: str = ""
    hints: tuple[str, ...] = ()


async def examine(config: Config) -> list[Finding]:
    """Ask every upstream of a config, all at once."""
    upstreams = list(upstreams_of(config))
    try:
        return list(await asyncio.gather(*(_examine(one) for one in upstreams)))
    finally:
        for one in upstreams:
            await one.link.close()


async def _examine(upstream: Upstream) -> Finding:
    try:
        async with asyncio.timeout(_SECONDS):
            upstream.learn(await probe(upstream.link, upstream.dialect))
    except ProblemError as error:
        return Finding(address=upstream.name, wrong=_remedy(error.problem))
    except TimeoutError:
        return Finding(address=upstream.name, wrong=_SILENT)
    traits = upstream.traits
    return Finding(
        address=upstream.name,
        what=kind_of(traits),
        models=tuple(upstream.offers),
        slots=traits.slots,
        n_ctx=traits.n_ctx,
        can=tuple(name for name in _ABILITIES if getattr(traits, name)),
        wrong=_missing(upstream),
        hints=tuple(_hints(traits)),
    )


_SILENT = (
    "It takes connections and says nothing: it may still load its model (llama.cpp from b2300 to "
    "b3598 is silent until it has). Wait, and look again; if it stays so, start it again."
)


def _remedy(problem: Problem) -> str:
    match problem.kind:
        case "loading":
            return "It loads its model. Wait, and look again."
        case "timeout":
            return _SILENT
        case "unavailable":
            return f"{problem.message} Does it run, and are host, port and http or https right?"
    return problem.message


def _missing(upstream: Upstream) -> str:
    """That a server with a list of models lacks one that the config wants of it."""
    models = upstream.traits.models
    if not upstream.offers:
        return "It has no model: load one, or name the models that it has in the config."
    if not models or (upstream.traits.llamacpp and not upstream.traits.router):
        return ""
    lacking = sorted({str(upstream.there(name)) for name in upstream.offers} - models.keys())
    if not lacking:
        return ""
    return (
        f"It has no model {', '.join(lacking)}, which the config asks for. "
        f"It has: {', '.join(models)}."
    )


def _hints(traits: Traits) -> Iterator[str]:
    if traits.llamacpp and not traits.chat:
        yield (
            "It has no chat of its own: the prompt is made here, by the classic template if the "
            "config names no other. No tools, no pictures."
        )
    elif traits.llamacpp and traits.build < 4599 and not traits.router:
        yield "It is too old for tools (b4599) and pictures (b5331)."
    if traits.n_ctx is not None and traits.n_ctx < _SMALL:
        yield (
            f"A slot has a context of {traits.n_ctx} tokens only: start it with more "
            "(--ctx-size), or with fewer slots (--parallel)."
        )


def table(findings: Iterable[Finding]) -> str:
    """The findings as lines: those that can serve in columns, the others with what is wrong."""
    found = list(findings)
    rows = [_row(one) for one in found]
    widths = [max(map(len, column)) for column in zip(*filter(None, rows), strict=True)]
    address = max((len(one.address) for one in found), default=0)
    lines = []
    for one, row in zip(found, rows, strict=True):
        if row is None:
            lines.append(f"no  {one.address.ljust(address)}  {one.wrong}")
            continue
        cells = [cell.ljust(width) for cell, width in zip(row, widths, strict=True)]
        lines.append("  ".join(["ok", one.address.ljust(address), *cells]).rstrip())
        lines += [f"    {' ' * address}  {hint}" for hint in one.hints]
    return "\n".join(lines)


def _row(one: Finding) -> tuple[str, ...] | None:
    if one.wrong:
        return None
    size = f"{one.slots or '?'} x {one.n_ctx}" if one.n_ctx else ""
    return one.what, ", ".join(one.models), size, " ".join(one.can)
