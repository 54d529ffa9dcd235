"""What files say of themselves, by their names and by their heads, and what they need."""

from __future__ import annotations

import io
import struct
from contextlib import suppress
from pathlib import Path
from typing import Any

import pytest
from gguf import GGUFWriter
from hypothesis import given
from hypothesis import strategies as st

from tropilla.config import TINY_MODEL
from tropilla.models import names, sizing
from tropilla.models.gguf import Header, NotGguf, read_header
from tropilla.models.memory import free_memory

HEAD = TINY_MODEL.read_bytes()[:262144]
GB = 10**9


def header(tmp_path: Path, **values: Any) -> Header:
    """A file as llama.cpp's own library writes it, read by us."""
    writer = GGUFWriter(tmp_path / "x.gguf", "qwen3")
    writer.add_array("tokenizer.ggml.tokens", ["a", "b"] * 3000)
    writer.add_array("tokenizer.ggml.scores", [1.0] * 6000)
    for name, value in values.items():
        key = f"qwen3.{name.replace('__', '.')}"
        if isinstance(value, list):
            writer.add_array(key, value)
        else:
            writer.add_uint32(key, value)
    writer.write_header_to_file()
    writer.write_kv_data_to_file()
    writer.close()
    with (tmp_path / "x.gguf").open("rb") as file:
        return read_header(file)


def test_the_tiny_model() -> None:
    told = read_header(io.BytesIO(HEAD))
    assert (told.architecture, told.context, told.layers) == ("llama", 8192, 1)


def test_the_bytes_of_a_token(tmp_path: Path) -> None:
    # Qwen3 8B: 36 layers, 8 heads of keys and values, 128 numbers each, 2 bytes a number.
    told = header(
        tmp_path, block_count=36, context_length=40960, embedding_length=4096,
        attention__head_count=32, attention__head_count_kv=8, attention__key_length=128,
        attention__value_length=128,
    )  # fmt: skip
    assert told.token_bytes == 36 * 8 * (128 + 128) * 2
    assert told.context == 40960


def test_the_bytes_of_a_token_where_layers_differ(tmp_path: Path) -> None:
    told = header(
        tmp_path, block_count=4, context_length=4096, embedding_length=512,
        attention__head_count=8, attention__head_count_kv=[0, 2, 0, 4],
    )  # fmt: skip
    assert told.token_bytes == (2 + 4) * (64 + 64) * 2


def test_a_model_that_says_little(tmp_path: Path) -> None:
    told = header(tmp_path)
    assert (told.context, told.token_bytes) == (0, 0)
    plan = sizing.plan(told, GB, 8 * GB)
    assert (plan.slots, plan.ctx_size) == (4, 0)
    assert "each with the context that the model has" in plan.said()


@pytest.mark.parametrize(
    "data",
    [
        b"", b"GGUF", b"GGML" + HEAD[4:], HEAD[:50],
        b"GGUF" + struct.pack("<IQQ", 1, 0, 0),
        b"GGUF" + struct.pack("<IQQ", 3, 0, 2**60),
        b"GGUF" + struct.pack("<IQQQ", 3, 0, 1, 2**60),
        b"GGUF" + struct.pack("<IQQQ1sI", 3, 0, 1, 1, b"k", 99),
        b"GGUF" + struct.pack("<IQQQ1sIIQ", 3, 0, 1, 1, b"k", 9, 4, 2**60),
        b"GGUF" + struct.pack("<IQQQ1sIIQ", 3, 0, 1, 1, b"k", 9, 9, 1),
    ],
)  # fmt: skip
def test_what_is_no_model(data: bytes) -> None:
    with pytest.raises(NotGguf):
        read_header(io.BytesIO(data))


@given(st.integers(4, 2000), st.binary(min_size=1, max_size=16))
def test_damage_is_not_gguf_or_nothing(at: int, bytes_: bytes) -> None:
    with suppress(NotGguf):
        read_header(io.BytesIO(HEAD[:at] + bytes_ + HEAD[at + len(bytes_) :]))


@pytest.mark.parametrize(
    ("name", "quant"),
    [
        ("Qwen3-8B-Q4_K_M.gguf", "Q4_K_M"),
        ("Q4_K_M/Big-Q4_K_M-00001-of-00003.gguf", "Q4_K_M"),
        ("gemma-3-4b-it-UD-Q4_K_XL.gguf", "Q4_K_XL"),
        ("llama-2-7b.q5_1.gguf", "Q5_1"),
        ("x.IQ2_XXS.gguf", "IQ2_XXS"),
        ("gpt-oss-20b-MXFP4.gguf", "MXFP4"),
        ("x-BF16.gguf", "BF16"),
        ("ggml-model-f16.gguf", "F16"),
        ("mine.gguf", "mine"),
    ],
)
def test_the_quantisation_is_in_the_name(name: str, quant: str) -> None:
    assert names.Model((names.File(name, 1),)).quant == quant


THERE = [
    "a-BF16.gguf", "a-Q4_K_M.gguf", "a-Q4_K_S.gguf", "a-UD-Q4_K_M.gguf", "a-Q8_0.gguf",
    "mmproj-a-Q4_K_M.gguf", "imatrix.gguf", "README.md", "b-Q2_K-00001-of-00002.gguf",
    "b-Q2_K-00002-of-00002.gguf", "c-Q3_K-00001-of-00002.gguf",
]  # fmt: skip


@pytest.mark.parametrize(
    ("quant", "first"),
    [
        (None, "a-Q4_K_M.gguf"),
        ("q4_k_m", "a-Q4_K_M.gguf"),
        ("UD-Q4_K_M", "a-UD-Q4_K_M.gguf"),
        ("a-UD-Q4_K_M.gguf", "a-UD-Q4_K_M.gguf"),
        ("Q4_K_S", "a-Q4_K_S.gguf"),
        ("Q2_K", "b-Q2_K-00001-of-00002.gguf"),
        ("BF16", "a-BF16.gguf"),
    ],
)
def test_the_right_file_is_chosen(quant: str | None, first: str) -> None:
    found = names.choose([names.File(one, 1) for one in THERE], quant)
    assert found.files[0].name == first
    assert len(found.files) == 1 + ("00001" in first)


@pytest.mark.parametrize(
    ("there", "first"),
    [(["x-Q2_K.gguf", "x-Q8_0.gguf"], "x-Q8_0.gguf"), (["mmproj-z-Q8_0.gguf", "z.gguf"], "z.gguf")],
)
def test_without_the_usual_one(there: list[str], first: str) -> None:
    assert names.choose([names.File(one, 1) for one in there], None).files[0].name == first


@pytest.mark.parametrize(
    ("quant", "why"), [("Q4_K", "it has BF16, Q4_K_M"), ("Q3_K", "not all 2 parts")]
)
def test_no_other_file_is_taken(quant: str, why: str) -> None:
    with pytest.raises(names.NotFound, match=why):
        names.choose([names.File(one, 1) for one in THERE], quant)


EIGHT_B = Header(architecture="llama", context=131072, layers=32, cache_width=32 * 8 * 256)


@pytest.mark.parametrize(
    ("free", "asked", "slots", "ctx_size", "fits"),
    [
        (64, {}, 4, 16384, True),
        (16, {}, 4, 16384, True),
        (12, {}, 4, 9984, True),
        (8, {}, 1, 13312, True),
        (4, {}, 1, 2048, False),
        (None, {}, 4, 16384, True),
        (64, {"slots": 1}, 1, 65536, True),
        (64, {"slots": 16}, 16, 4096, True),
        (12, {"slots": 8}, 8, 4864, True),
        (64, {"ctx_size": 32768}, 4, 32768, True),
        (16, {"ctx_size": 32768}, 2, 32768, True),
        (8, {"ctx_size": 32768}, 1, 32768, False),
        (64, {"ctx_size": 131072, "slots": 2}, 2, 131072, True),
    ],
)
def test_what_fits(
    free: int | None,
    asked: dict[str, int],
    slots: int,
    ctx_size: int,
    fits: bool,  # noqa: FBT001 - as parametrised
) -> None:
    plan = sizing.plan(EIGHT_B, 4_900_000_000, free and free * GB, **asked)
    assert (plan.slots, plan.ctx_size, plan.fits) == (slots, ctx_size, fits)
    assert f"of {ctx_size} tokens: 4.9 GB model" in plan.said()


def test_a_small_model_has_what_it_has() -> None:
    plan = sizing.plan(Header(context=2048, layers=1, cache_width=192), 10**6, 8 * GB)
    assert (plan.slots, plan.ctx_size) == (4, 2048)


def test_bytes_in_words() -> None:
    told = [sizing.bytes_said(one) for one in (1, 999, 1500, 999_600, 20 * 10**6, 3 * 10**13)]
    assert told == ["1 B", "999 B", "1.5 kB", "1.0 MB", "20 MB", "30.0 TB"]


def test_memory_of_this_machine() -> None:
    free = free_memory()
    assert free is None or free > 0


@pytest.mark.skipif("sys.platform != 'linux'", reason="as Linux tells it")
def test_memory_of_a_container(tmp_path: Path) -> None:
    (tmp_path / "proc/self").mkdir(parents=True)
    assert free_memory(tmp_path) is None
    (tmp_path / "proc/meminfo").write_text("MemTotal: 9 kB\nMemAvailable:    4000000 kB\n")
    assert free_memory(tmp_path) == 4_096_000_000
    (tmp_path / "proc/self/cgroup").write_text("0::/a/b\n")
    inner = tmp_path / "sys/fs/cgroup/a/b"
    inner.mkdir(parents=True)
    for folder, most in ((inner, "max"), (inner.parent, "2000000000")):
        (folder / "memory.max").write_text(f"{most}\n")
        (folder / "memory.current").write_text("1500000000\n")
        (folder / "memory.stat").write_text("anon 1\ninactive_file 500000000\nactive_file 7\n")
    assert free_memory(tmp_path) == 1_000_000_007
