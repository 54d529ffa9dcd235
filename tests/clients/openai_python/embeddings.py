"""Embeddings: in base64, which is what the SDK asks for by itself, and in numbers."""

from __future__ import annotations

import base64
import struct

from openai import OpenAI

from clients.openai_python.harness import check, connect

MODEL = "embedder"
TEXTS = ["The llama eats.", "Ünïcödé ✓"]


@check
def base64_and_numbers(_: OpenAI) -> None:
    # The SDK asks for base64 and decodes it, which its strict mode does not know; with "float" it
    # takes numbers as they are.
    client = connect(strict=False)
    packed = client.embeddings.create(model=MODEL, input=TEXTS)
    plain = client.embeddings.create(model=MODEL, input=TEXTS, encoding_format="float")
    assert packed.object == "list"
    assert [one.index for one in packed.data] == [0, 1]
    assert packed.usage.prompt_tokens == packed.usage.total_tokens > 0
    for one, other in zip(packed.data, plain.data, strict=True):
        assert one.object == "embedding"
        assert len(one.embedding) > 10
        as_float32 = struct.unpack(
            f"{len(other.embedding)}f", struct.pack(f"{len(other.embedding)}f", *other.embedding)
        )
        assert list(as_float32) == [float(number) for number in one.embedding]


@check
def base64_as_text(client: OpenAI) -> None:
    got = client.embeddings.with_raw_response.create(
        model=MODEL, input=TEXTS[0], encoding_format="base64"
    )
    (one,) = got.http_response.json()["data"]
    assert len(base64.b64decode(one["embedding"], validate=True)) % 4 == 0


@check
def token_ids(_: OpenAI) -> None:
    got = connect(strict=False).embeddings.create(model=MODEL, input=[[300, 301], [302]])
    assert [one.index for one in got.data] == [0, 1]
