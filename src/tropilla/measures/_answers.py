"""What the answers of all measures have in common: usage, and entries that have an index."""

from __future__ import annotations

from collections.abc import Sequence

from tropilla.dialects._openai import read_usage
from tropilla.ir import Json, JsonObject, Malformed, Usage


def usage_of(body: JsonObject) -> Usage | None:
    """What an upstream counted. Zero is nothing: servers before b4383 count nothing else."""
    usage = read_usage(body.get("usage"))
    if usage is None or usage.prompt_tokens:
        return usage
    total = body["usage"].get("total_tokens")  # all that some rerankers tell
    return Usage(prompt_tokens=total) if type(total) is int and total > 0 else None


def write_usage(usage: Usage | None) -> JsonObject:
    """OpenAI's usage object of an answer for which no token was written."""
    usage = usage or Usage()
    told = {"prompt_tokens": usage.prompt_tokens, "total_tokens": usage.prompt_tokens}
    return usage.extras | told


def added(usages: Sequence[Usage | None]) -> Usage | None:
    """The usage of several requests; unknown if that of one is."""
    known = [usage for usage in usages if usage is not None]
    if len(known) < len(usages):
        return None
    if len(known) == 1:
        return known[0]
    return Usage(prompt_tokens=sum(usage.prompt_tokens for usage in known))


def indexed(entries: Json, count: int, what: str) -> list[tuple[int, JsonObject]]:
    """Entries with their indices, which may be left out where there is an entry for each of all.

    Raises:
        Malformed: they are no entries, or two of them claim the same index, or one that is none.
    """
    if type(entries) is not list or any(type(entry) is not dict for entry in entries):
        raise Malformed(f"The upstream's answer has no list of {what}.")
    indices = [entry.get("index", place) for place, entry in enumerate(entries)]
    if not all(type(index) is int and 0 <= index < count for index in indices):
        raise Malformed(f"An index in the upstream's list of {what} is wrong.")
    if len(set(indices)) < len(indices):
        raise Malformed(f"Two {what} of the upstream's answer have the same index.")
    return list(zip(indices, entries, strict=True))
