"""W3C Trace Context: what a client tells, and what an upstream hears of it without spans here."""

from __future__ import annotations

import pytest

from conftest import CHAT, Serve
from doubles.upstream import Double, answers, streams, told
from tropilla.observing.trace import read

ID, SPAN = "0af7651916cd43dd8448eb211c80319c", "b7ad6b7169203331"
GOOD = f"00-{ID}-{SPAN}-01"
PATH = "/v1/chat/completions"


@pytest.mark.parametrize(
    ("parent", "sampled"),
    [
        (GOOD, True),
        (f"00-{ID}-{SPAN}-00", False),
        (f"00-{ID}-{SPAN}-ff", True),
        (f"cc-{ID}-{SPAN}-01-what-will-be", True),
    ],
)
def test_a_trace_is_read(parent: str, sampled: bool) -> None:  # noqa: FBT001
    trace = read(parent, "")
    assert trace is not None
    assert (trace.id, trace.parent, trace.sampled) == (ID, SPAN, sampled)


@pytest.mark.parametrize(
    "parent",
    [
        "", "00", GOOD + "-more", f"ff-{ID}-{SPAN}-01", f"00-{'0' * 32}-{SPAN}-01",
        f"00-{ID}-{'0' * 16}-01", GOOD.upper(), f"{GOOD}, {GOOD}", f" {GOOD}", f"00-{ID}-{SPAN}-1",
        f"00-{ID[1:]}-{SPAN}-01", GOOD + "\n",
    ],
)  # fmt: skip
def test_what_is_none_is_left_alone(parent: str) -> None:
    assert read(parent, "a=1") is None


@pytest.mark.parametrize(
    ("state", "kept"),
    [
        ("congo=t61rcWkgMzE,rojo=00f067aa0ba902b7", True),
        ("a=1, ,b=2", True),
        ("a=1,a=2", False),
        ("A=1", False),
        ("a", False),
        ("a=\x7f", False),
        ("a=" + "x" * 256, True),
        ("a=" + "x" * 257, False),
        (",".join(f"k{n}=1" for n in range(33)), False),
        (",".join(f"k{n}={'x' * 200}" for n in range(3)), False),
    ],
)
def test_what_others_noted_is_kept_where_it_is_right(state: str, kept: bool) -> None:  # noqa: FBT001
    trace = read(GOOD, state)
    assert trace is not None
    assert trace.state == (state if kept else "")


@pytest.mark.anyio
async def test_without_spans_it_goes_on_as_it_came(gateway: Serve, double: Double) -> None:
    double.on(PATH, streams(*told("a")))
    tropilla = await gateway(double)
    headers = {"traceparent": GOOD, "tracestate": "a=1"}
    for sent in (headers, {"traceparent": "nonsense", "tracestate": "a=1"}, {}):
        await tropilla.ask("POST", PATH, CHAT, sent)
        heard = double.requests[-1].headers
        wanted = sent if sent is headers else {}
        assert {name: heard[name] for name in headers if name in heard} == wanted


@pytest.mark.anyio
async def test_what_is_passed_on_has_it_too(gateway: Serve, double: Double) -> None:
    tropilla = await gateway(double)
    double.on("/detokenize", answers(200, b"{}"))
    await tropilla.ask("POST", "/detokenize", {"tokens": [1]}, {"traceparent": GOOD})
    assert double.requests[-1].headers["traceparent"] == GOOD
