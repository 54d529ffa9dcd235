"""The row of the matrix: how a client of Anthropic asks, and reads the answer."""

from __future__ import annotations

from typing import Any

from matrix.fronts import Front, JsonObject, Told, Want

_REASONS = {"end_turn": "stop", "stop_sequence": "stop", "max_tokens": "length"}


def _ask(want: Want) -> JsonObject:
    asked: JsonObject = {
        "model": "m", "max_tokens": want.limit, "temperature": 0, "stream": want.stream,
        "messages": [{"role": "user", "content": want.text}],
    }  # fmt: skip
    return asked | ({"stop_sequences": list(want.stop)} if want.stop else {})


def _whole(body: Any) -> Told:
    text = "".join(block["text"] for block in body["content"])
    return Told(text, _REASONS[body["stop_reason"]], *_counts(body["usage"]))


def _counts(usage: Any) -> tuple[int, int]:
    read = usage["input_tokens"] + usage["cache_read_input_tokens"]
    return read, usage["output_tokens"]


def _stream(told: list[Any]) -> Told:
    start, *middle, end, stop = told
    assert (start["type"], stop["type"]) == ("message_start", "message_stop")
    text = "".join(one["delta"]["text"] for one in middle if one["type"] == "content_block_delta")
    return Told(text, _REASONS[end["delta"]["stop_reason"]], *_counts(end["usage"]))


FRONTS = (Front("Anthropic Messages", "/v1/messages", _ask, _whole, _stream, named=True),)
