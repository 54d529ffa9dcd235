"""A model that says nothing, but takes its time to read: random weights, the tiny model's words.

The tiny model reads a prompt in no time, so a cache saves it nothing that could be measured.
"""

from __future__ import annotations

from pathlib import Path

import gguf
import numpy as np

from tropilla.config import TINY_MODEL

WIDTH, LAYERS, HEADS, HIDDEN, CONTEXT = 384, 6, 6, 1024, 16384
_COPIED = "tokenizer."


def write(path: Path) -> None:
    """Write it: about 20 million weights, 40 MB."""
    tiny = gguf.GGUFReader(TINY_MODEL)
    writer = gguf.GGUFWriter(path, "llama")
    writer.add_context_length(CONTEXT)
    writer.add_embedding_length(WIDTH)
    writer.add_block_count(LAYERS)
    writer.add_feed_forward_length(HIDDEN)
    writer.add_head_count(HEADS)
    writer.add_head_count_kv(HEADS)
    writer.add_layer_norm_rms_eps(1e-5)
    writer.add_rope_dimension_count(WIDTH // HEADS)
    for name, field in tiny.fields.items():
        if name.startswith(_COPIED):
            kind = field.types[0]
            of = field.types[-1] if kind == gguf.GGUFValueType.ARRAY else None
            writer.add_key_value(name, field.contents(), kind, of)
    vocabulary = len(tiny.fields["tokenizer.ggml.tokens"].data)
    chance = np.random.default_rng(1)

    def matrix(name: str, rows: int, columns: int) -> None:
        values = chance.normal(0, columns**-0.5, (rows, columns)).astype(np.float16)
        writer.add_tensor(name, values)

    def norm(name: str) -> None:
        writer.add_tensor(name, np.ones(WIDTH, dtype=np.float32))

    matrix("token_embd.weight", vocabulary, WIDTH)
    matrix("output.weight", vocabulary, WIDTH)
    norm("output_norm.weight")
    for layer in range(LAYERS):
        at = f"blk.{layer}"
        norm(f"{at}.attn_norm.weight")
        norm(f"{at}.ffn_norm.weight")
        for which in ("q", "k", "v", "output"):
            matrix(f"{at}.attn_{which}.weight", WIDTH, WIDTH)
        matrix(f"{at}.ffn_gate.weight", HIDDEN, WIDTH)
        matrix(f"{at}.ffn_up.weight", HIDDEN, WIDTH)
        matrix(f"{at}.ffn_down.weight", WIDTH, HIDDEN)
    writer.write_header_to_file()
    writer.write_kv_data_to_file()
    writer.write_tensors_to_file()
    writer.close()
