r"""Token probabilities as OpenAI's completions have them: parallel lists, and places in the text.

A token that is no whole character is written as OpenAI writes it, `bytes:\xe2\x82`. The token
that was chosen is always among the likeliest ones, beside as many as were asked for.
"""

from __future__ import annotations

import codecs
import re

from tropilla.dialects._openai import read_token_logprobs
from tropilla.ir import Json, JsonObject, Malformed, TokenLogprob

_UNLIKELY = -9999.0
"""OpenAI's value for a token too unlikely to be told of; llama.cpp's is the least 32-bit number."""


def read(value: Json) -> list[TokenLogprob] | None:
    """OpenAI's parallel lists, or the chat shape that a llama-server gives here."""
    match value:
        case {"content": list(entries)} if entries:
            return read_token_logprobs(entries)
        case {"tokens": [_, *_] as tokens, "token_logprobs": list(logprobs)} if len(tokens) == len(
            logprobs
        ):
            tops = value.get("top_logprobs") or [None] * len(tokens)
            if type(tops) is not list or len(tops) != len(tokens):
                raise Malformed("The upstream's 'top_logprobs' do not match its tokens.")
            return [
                _entry(str(token), logprob)
                | {
                    "top_logprobs": [
                        _entry(text, chance)
                        for text, chance in (top.items() if type(top) is dict else ())
                    ]
                }
                for token, logprob, top in zip(tokens, logprobs, tops, strict=True)
            ]
    return None


def _entry(token: str, logprob: Json) -> TokenLogprob:
    return {"token": token, "logprob": logprob, "bytes": list(_bytes_of(token))}


_BYTES = re.compile(r"bytes:(?:\\x[0-9a-fA-F]{2})+")


def _bytes_of(token: str) -> bytes:
    if _BYTES.fullmatch(token):
        return bytes.fromhex(token.removeprefix("bytes:").replace("\\x", ""))
    return token.encode("utf-8", "replace")


class Lists:
    """Writes the lists of one choice, a piece after the other.

    Args:
        most: how many of the likeliest tokens are wanted; with 0 there is no list of them.
    """

    def __init__(self, most: int) -> None:
        self._most = most
        self._at = 0
        self._text = codecs.getincrementaldecoder("utf-8")("replace")

    def write(self, entries: list[TokenLogprob]) -> JsonObject:
        """The lists of the next tokens; their places are characters of the text told so far."""
        offsets = []
        for entry in entries:
            offsets.append(self._at)
            self._at += len(self._text.decode(_said(entry)))
        logprobs = [_likelihood(entry) for entry in entries]
        tops = [self._tops(entry) for entry in entries] if self._most else None
        return {
            "tokens": [_token(entry) for entry in entries],
            "token_logprobs": logprobs,
            "top_logprobs": tops,
            "text_offset": offsets,
        }

    def _tops(self, entry: TokenLogprob) -> JsonObject | None:
        """The likeliest tokens by their texts; of two with the same text the likelier one."""
        chosen = _likelihood(entry)
        if chosen is None:
            return None
        told: JsonObject = {}
        for top in (entry.get("top_logprobs") or ())[: self._most]:
            chance = _likelihood(top)
            if chance is not None:
                told.setdefault(_token(top), chance)
        told.setdefault(_token(entry), chosen)
        return told


def _likelihood(entry: TokenLogprob) -> float | None:
    value = entry.get("logprob")
    return max(value, _UNLIKELY) if isinstance(value, int | float) else None


def _said(entry: TokenLogprob) -> bytes:
    """What a token adds to the text."""
    match entry.get("bytes"):
        case list(data) if all(type(byte) is int and 0 <= byte < 256 for byte in data):
            return bytes(data)
    return str(entry.get("token", "")).encode("utf-8", "replace")


def _token(entry: TokenLogprob) -> str:
    """How a token is shown: one that marks something has a name, and adds nothing to the text."""
    data = _said(entry)
    try:
        data.decode()
    except UnicodeDecodeError:
        return "bytes:" + "".join(f"\\x{byte:02x}" for byte in data)
    return str(entry.get("token", ""))
