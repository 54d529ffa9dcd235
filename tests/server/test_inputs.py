"""What no program should send: each gets a clear answer, and the next request is served.

The upstream is a double that answers right wherever it is asked, so that every refusal here is
Tropilla's own.
"""

from __future__ import annotations

import tracemalloc
from collections.abc import AsyncIterator
from typing import Any

import msgspec
import pytest

from conftest import Answer, Serve, Served
from doubles.upstream import Double, Exchange, answers, streams, told
from tropilla.server.bodies import MOST_DEPTH

pytestmark = pytest.mark.anyio

CHAT = "/v1/chat/completions"
TEXT = "/v1/completions"
VECTORS = "/v1/embeddings"
RESPONSES = "/v1/responses"
AFS = "/models/conversation"
NATIVE = "/completion"
MESSAGES = [{"role": "user", "content": "Hello!"}]
BODIES: dict[str, dict[str, Any]] = {
    CHAT: {"messages": MESSAGES},
    TEXT: {"prompt": "Once"},
    VECTORS: {"input": "Once"},
    RESPONSES: {"input": "Once"},
    AFS: {"messages": MESSAGES},
    NATIVE: {"prompt": "Once"},
}
PATHS = pytest.mark.parametrize("path", BODIES)
SAID = b'data: {"index":0,"content":"x","stop":false}\n\n'
ENDED = b'data: {"index":0,"content":"","stop":true,"stop_type":"eos"}\n\n'


async def vectors(exchange: Exchange) -> None:
    """A vector for each input."""
    given = exchange.json["input"]
    data = [{"index": place, "embedding": [0.5, 1.0]} for place in range(len(given))]
    await exchange.whole(200, msgspec.json.encode({"data": data}))


@pytest.fixture
async def tropilla(gateway: Serve, double: Double) -> AsyncIterator[Served]:
    """A gateway that can answer everything here; it must still do so at the end."""
    double.on(CHAT, streams(*told("x")))
    double.on("/completion", streams(SAID, ENDED))
    double.on(VECTORS, vectors)
    double.on("/tokenize", answers(200, b'{"tokens":[1]}'))
    double.on("/apply-template", answers(200, b'{"prompt":"Once"}'))
    it = await gateway(double)
    yield it
    for path, body in BODIES.items():
        answer = await it.ask("POST", path, body)
        assert answer.status == 200, (path, answer.body)


def field(path: str, json: str) -> bytes:
    """A right body, with more text of JSON in front."""
    return f"{{{json}, ".encode() + msgspec.json.encode(BODIES[path])[1:]


def refused(answer: Answer, status: int = 400) -> dict[str, Any]:
    """The error of a refusal, which is the client's fault."""
    assert answer.status == status, answer.body[:500]
    assert b"Tropilla failed" not in answer.body
    assert len(answer.body) < 20_000
    return answer.error


# Bytes.

NO_JSON = {
    "empty": b"",
    "space": b" \n",
    "a BOM": b"\xef\xbb\xbf{}",
    "UTF-16": "{}".encode("utf-16"),
    "trailing garbage": b"{}x",
    "two objects": b"{}\n{}",
    "an array": b"[{}]",
    "a text": b'"{}"',
    "half a text": b'{"x": "',
    "an unknown escape": b'{"x": "\\q"}',
    "a raw line break in a text": b'{"x": "a\nb"}',
    "a lone surrogate": b'{"x": "\\ud800"}',
    "half a pair": b'{"x": "\\ud83dx"}',
    "no UTF-8": b'{"x": "\xff\xfe"}',
    "overlong UTF-8": b'{"x": "\xc0\xaf"}',
    "a surrogate in UTF-8": b'{"x": "\xed\xa0\x80"}',
    "NaN": b'{"x": NaN}',
    "Infinity": b'{"x": -Infinity}',
    "1e400": b'{"x": 1e400}',
    "a plus": b'{"x": +1}',
    "a zero in front": b'{"x": 01}',
    "a comma too many": b'{"x": 1,}',
    "10,000 arrays": b'{"x": ' + b"[" * 10_000 + b"]" * 10_000 + b"}",
    "10,000 objects": b'{"x": ' + b'{"x":' * 10_000 + b"1" + b"}" * 10_001,
    "10,000 open arrays": b"[" * 10_000,
}


@PATHS
async def test_what_is_no_json_object(tropilla: Served, path: str) -> None:
    raw = await tropilla.connect()
    for name, body in NO_JSON.items():
        await raw.post(path, body)
        error = refused(await raw.answer())
        assert (error["type"], error["param"]) == ("invalid_request_error", None), name
        # The connection is still good.
        await raw.post(path, BODIES[path])
        assert (await raw.answer()).status == 200, name


DEEP = {
    "messages": '"messages": %s',
    "a message": '"messages": [{"role": "user", "content": %s}]',
    "a tool's schema": '"tools": [{"type": "function", "function": '
    '{"name": "f", "parameters": %s}}]',
    "a format": '"response_format": {"type": "json_schema", "json_schema": '
    '{"name": "n", "schema": %s}}',
    "an extra": '"chat_template_kwargs": %s',
    "metadata": '"metadata": %s',
    "logit_bias": '"logit_bias": %s',
    "parameters": '"parameters": %s',
}


@PATHS
@pytest.mark.parametrize("depth", [190, 900, 10_000])
async def test_depth_is_no_defect_wherever_it_is(tropilla: Served, path: str, depth: int) -> None:
    nested = '{"properties":' * depth + "{}" + "}" * depth
    raw = await tropilla.connect()
    for name, place in DEEP.items():
        whole = msgspec.json.encode(BODIES[path])[1:-1]
        # Of two equal keys the last one counts.
        await raw.post(path, b"{%b, %b}" % (whole, (place % nested).encode()))
        answer = await raw.answer()
        assert answer.status in ({200, 400} if depth < MOST_DEPTH else {400}), (
            name,
            answer.body[:500],
        )
        assert b"Tropilla failed" not in answer.body


@PATHS
async def test_of_two_equal_keys_the_last_one_counts(
    tropilla: Served, double: Double, path: str
) -> None:
    # As in every reader of JSON that clients and servers use, llama.cpp's among them.
    answer = await tropilla.ask("POST", path, field(path, '"model": 1, "model": "m"'))
    assert answer.status == 200
    assert double.requests[-1].json["model"] == "m"
    refused(await tropilla.ask("POST", path, field(path, '"model": "m", "model": 1')))


# Numbers.

HUGE = (2**31, 2**63, 2**64, 10**400)
COUNTS = [
    (CHAT, "max_tokens"), (CHAT, "max_completion_tokens"), (CHAT, "n"), (CHAT, "top_logprobs"),
    (CHAT, "seed"), (CHAT, "top_k"), (TEXT, "max_tokens"), (TEXT, "n"), (TEXT, "best_of"),
    (TEXT, "logprobs"), (TEXT, "seed"), (VECTORS, "dimensions"), (NATIVE, "n_predict"),
    (RESPONSES, "max_output_tokens"),
    (NATIVE, "n_probs"), (NATIVE, "n_cmpl"), (NATIVE, "seed"), (AFS, "parameters.seed"),
    (AFS, "parameters.max_new_tokens"), (AFS, "parameters.top_k"),
]  # fmt: skip


def with_field(path: str, name: str, value: Any) -> dict[str, Any]:
    """A right body with one field more; a dot reaches into an object."""
    outer, _, inner = name.rpartition(".")
    more = {"logprobs": True} if name == "top_logprobs" else {}
    return BODIES[path] | more | ({outer: {inner: value}} if outer else {name: value})


@pytest.mark.parametrize(("path", "name"), COUNTS)
async def test_a_huge_number(tropilla: Served, path: str, name: str) -> None:
    for value in HUGE:
        text = msgspec.json.encode(with_field(path, name, "@")).replace(b'"@"', b"%d" % value)
        answer = await tropilla.ask("POST", path, text)
        assert answer.status in ({200, 400} if value < 2**63 else {400}), answer.body[:500]
        assert b"Tropilla failed" not in answer.body
        # What has more digits than any double is refused before it has a name.
        if answer.status == 400 and value < 10**300:
            assert answer.error["param"] == name


RANGES = [
    (CHAT, "n", (0, 129)), (CHAT, "top_logprobs", (-1, 21)), (CHAT, "temperature", (-0.1, 2.1)),
    (CHAT, "top_p", (-0.1, 1.1)), (CHAT, "presence_penalty", (-2.1, 2.1)),
    (CHAT, "frequency_penalty", (-2.1, 2.1)), (CHAT, "max_tokens", (-2,)),
    (CHAT, "max_completion_tokens", (-2, 0)), (CHAT, "stop", ([*"abcde"],)),
    (CHAT, "logit_bias", ({"1": 101}, {"1": -101})), (CHAT, "messages", ([],)),
    (TEXT, "n", (0, 129)), (TEXT, "logprobs", (-1, 6)), (TEXT, "temperature", (-0.1, 2.1)),
    (TEXT, "top_p", (-0.1, 1.1)), (TEXT, "presence_penalty", (-2.1, 2.1)),
    (TEXT, "frequency_penalty", (-2.1, 2.1)), (TEXT, "max_tokens", (-2,)),
    (TEXT, "best_of", (0, 21)), (TEXT, "stop", ([*"abcde"],)), (TEXT, "prompt", ([],)),
    (VECTORS, "dimensions", (0, -1)), (VECTORS, "input", ("", [], ["x"] * 2049)),
    (VECTORS, "encoding_format", ("hex",)),
    (RESPONSES, "max_output_tokens", (0, -1)), (RESPONSES, "top_logprobs", (-1, 21)),
    (RESPONSES, "temperature", (-0.1, 2.1)), (RESPONSES, "top_p", (-0.1, 1.1)),
    (NATIVE, "n_predict", (-2,)), (NATIVE, "n_probs", (-1,)), (NATIVE, "n_cmpl", (0, 129)),
    (NATIVE, "n", (0, 129, 2**62)),
    (AFS, "parameters.temperature", (-0.1,)), (AFS, "parameters.top_p", (-0.1, 1.1)),
    (AFS, "parameters.top_k", (0,)), (AFS, "parameters.max_new_tokens", (-2, 0)),
    (AFS, "parameters.frequence_penalty", (-1, 0)), (AFS, "parameters.seed", (-1,)),
    (AFS, "messages", ([],)),
]  # fmt: skip


@pytest.mark.parametrize(
    ("path", "name", "value"), [(path, name, one) for path, name, many in RANGES for one in many]
)
async def test_what_is_out_of_range_is_named(
    tropilla: Served, path: str, name: str, value: Any
) -> None:
    error = refused(await tropilla.ask("POST", path, with_field(path, name, value)))
    told_of = error["param"]
    assert told_of == name or told_of.startswith(f"{name}."), error
    assert name in error["message"]


EDGES = [
    (CHAT, {"n": 1, "temperature": 0, "top_p": 0, "presence_penalty": -2, "frequency_penalty": 2}),
    (CHAT, {"temperature": 2, "top_p": 1, "logprobs": True, "top_logprobs": 20, "max_tokens": 1}),
    (CHAT, {"stop": [*"abcd"], "logit_bias": {"1": 100, "2": -100}, "seed": 2**63 - 1}),
    (CHAT, {"seed": -(2**63) + 1, "max_tokens": -1, "stop": []}),
    (TEXT, {"temperature": 2, "top_p": 1, "max_tokens": 1, "stop": [*"abcd"]}),
    (AFS, {"parameters": {"temperature": 0, "top_p": 1, "top_k": 1, "max_new_tokens": 1}}),
    (NATIVE, {"n_predict": 1, "temperature": -1, "stop": [*"abcdefgh"]}),
]


@pytest.mark.parametrize(("path", "fields"), EDGES)
async def test_what_is_just_in_range_is_taken(
    tropilla: Served, path: str, fields: dict[str, Any]
) -> None:
    answer = await tropilla.ask("POST", path, BODIES[path] | fields)
    assert answer.status == 200, answer.body


@pytest.mark.parametrize("path", [TEXT, NATIVE])
async def test_more_answers_than_can_be_kept_are_refused(tropilla: Served, path: str) -> None:
    error = refused(await tropilla.ask("POST", path, {"prompt": ["x"] * 200, "n": 100}))
    assert error["param"] == "prompt"
    assert "20000" in error["message"]


# Types.

ONE_OF_EACH: dict[str, Any] = {
    "text": "x", "int": 1, "decimal": 1.5, "flag": True, "array": [True], "object": {"x": True},
}  # fmt: skip
INT = {"int"}
NUMBER = {"int", "decimal"}
TEXT_ = {"text"}
FLAG = {"flag"}
COMMON = {
    "model": TEXT_, "stream": FLAG, "stream_options": {"object"}, "n": INT, "max_tokens": INT,
    "temperature": NUMBER, "top_p": NUMBER, "presence_penalty": NUMBER,
    "frequency_penalty": NUMBER, "seed": INT, "stop": TEXT_, "logit_bias": set[str](),
    "top_k": INT, "min_p": NUMBER, "repeat_penalty": NUMBER, "user": TEXT_,
}  # fmt: skip
TYPES: dict[str, dict[str, set[str]]] = {
    CHAT: COMMON | {
        "messages": set(), "max_completion_tokens": INT, "logprobs": FLAG, "top_logprobs": INT,
        "response_format": {"object"}, "tools": set(), "tool_choice": {"object", "text"},
        "parallel_tool_calls": FLAG, "functions": set(), "function_call": {"object", "text"},
        "reasoning_effort": TEXT_, "metadata": {"object"}, "modalities": set(), "store": FLAG,
        "service_tier": TEXT_, "verbosity": TEXT_, "prediction": {"object"},
        "prompt_cache_key": TEXT_, "safety_identifier": TEXT_,
    },
    TEXT: COMMON | {
        "prompt": TEXT_, "suffix": TEXT_, "echo": FLAG, "best_of": INT, "logprobs": INT,
    },
    VECTORS: {
        "input": TEXT_, "model": TEXT_, "dimensions": INT, "encoding_format": TEXT_,
    },
    RESPONSES: {
        "input": TEXT_, "instructions": TEXT_, "model": TEXT_, "stream": FLAG,
        "max_output_tokens": INT, "temperature": NUMBER, "top_p": NUMBER, "tools": set(),
        "parallel_tool_calls": FLAG, "store": FLAG, "metadata": {"object"},
        "include": set(), "top_logprobs": INT, "truncation": TEXT_, "reasoning": {"object"},
        "text": {"object"}, "user": TEXT_, "service_tier": TEXT_,
        "previous_response_id": TEXT_, "tool_choice": {"text", "object"},
    },
    NATIVE: {
        "prompt": {"text", "object"}, "model": TEXT_, "stream": FLAG, "n_predict": INT,
        "n_probs": INT, "n_cmpl": INT, "temperature": NUMBER, "top_k": INT, "top_p": NUMBER,
        "min_p": NUMBER, "seed": INT, "stop": TEXT_, "logit_bias": set(),
        "json_schema": {"object"}, "mirostat": INT, "typical_p": NUMBER,
    },
    AFS: {
        "messages": set(), "model": TEXT_, "stream": FLAG, "parameters": {"object"},
        "functions": set(), "tools": set(),
        "parameters.temperature": NUMBER, "parameters.top_k": INT, "parameters.top_p": NUMBER,
        "parameters.max_new_tokens": INT, "parameters.seed": INT,
        "parameters.stop_sequences": TEXT_, "parameters.frequence_penalty": NUMBER,
        "parameters.show_probabilities": FLAG,
    },
}  # fmt: skip


@pytest.mark.parametrize(
    ("path", "name"), [(path, name) for path, names in TYPES.items() for name in names]
)
async def test_every_wrong_type_names_its_field(tropilla: Served, path: str, name: str) -> None:
    for kind, value in ONE_OF_EACH.items():
        if kind in TYPES[path][name]:
            continue
        answer = await tropilla.ask("POST", path, with_field(path, name, value))
        assert answer.status == 400, (kind, answer.body[:300])
        told_of = answer.error["param"]
        assert told_of == name or told_of.startswith(f"{name}."), (kind, answer.error)


def of_content(*parts: Any) -> dict[str, Any]:
    return {"messages": [{"role": "user", "content": list(parts)}]}


PICTURE = {"url": "data:image/png;base64,AAAA"}


def of_tool(tool: Any) -> dict[str, Any]:
    return {"messages": MESSAGES, "tools": [tool]}


NAMED = [
    (CHAT, {"messages": [1]}, "messages.0"),
    (CHAT, {"messages": [*MESSAGES, {}]}, "messages.1.role"),
    (CHAT, {"messages": [{"role": "x", "content": ""}]}, "messages.0.role"),
    (CHAT, {"messages": [{"role": "user"}]}, "messages.0.content"),
    (CHAT, {"messages": [{"role": "user", "content": 1}]}, "messages.0.content"),
    (CHAT, {"messages": [{"role": "tool", "content": "x"}]}, "messages.0.tool_call_id"),
    (CHAT, of_content(1), "messages.0.content.0"),
    (CHAT, of_content({"type": "text", "text": "a"}, {"type": 1}), "messages.0.content.1.type"),
    (CHAT, of_content({"type": "text", "text": "a"}, {}), "messages.0.content.1.type"),
    (CHAT, of_content({"type": "nonsense"}), "messages.0.content.0.type"),
    (CHAT, of_content({"type": "text"}), "messages.0.content.0.text"),
    (CHAT, of_content({"type": "text", "text": 1}), "messages.0.content.0.text"),
    (CHAT, of_content({"type": "image_url"}), "messages.0.content.0.image_url"),
    (
        CHAT,
        of_content({"type": "image_url", "image_url": {}}),
        "messages.0.content.0.image_url.url",
    ),
    (
        CHAT,
        of_content({"type": "image_url", "image_url": PICTURE | {"detail": "wow"}}),
        "messages.0.content.0.image_url.detail",
    ),
    (
        CHAT,
        of_content({"type": "text", "text": "a"}, {"type": "file", "file": {"file_id": "f"}}),
        "messages.0.content.1.type",
    ),
    (CHAT, of_tool(1), "tools.0"),
    (CHAT, of_tool({}), "tools.0.type"),
    (CHAT, of_tool({"type": "function", "function": 1}), "tools.0.function"),
    (CHAT, of_tool({"type": "function", "function": {}}), "tools.0.function.name"),
    (CHAT, {"messages": MESSAGES, "stop": ["x", 1]}, "stop.1"),
    (CHAT, {"messages": MESSAGES, "response_format": {}}, "response_format.type"),
    (CHAT, {"messages": MESSAGES, "metadata": {"a": 1}}, "metadata.a"),
    (CHAT, {"messages": MESSAGES, "metadata": {"a": "x" * 513}}, "metadata.a"),
    (RESPONSES, {"input": "x", "metadata": {"k" * 65: "x"}}, f"metadata.{'k' * 65}"),
    (TEXT, {"prompt": ["x", 1]}, "prompt.1"),
    (TEXT, {"prompt": [1, "x"]}, "prompt.1"),
    (TEXT, {"prompt": [[1], [2, "x"]]}, "prompt.1.1"),
    (TEXT, {"prompt": [-1]}, "prompt.0"),
    (TEXT, {}, "prompt"),
    (VECTORS, {"input": ["x", 1]}, "input.1"),
    (VECTORS, {"input": [[1], [2, "x"]]}, "input.1.1"),
    (VECTORS, {}, "input"),
    (RESPONSES, {}, "input"),
    (RESPONSES, {"input": [1]}, "input.0"),
    (RESPONSES, {"input": "x", "text": {"format": {}}}, "text.format.type"),
    (RESPONSES, {"input": "x", "include": [1]}, "include.0"),
    (NATIVE, {}, "prompt"),
    (NATIVE, {"prompt": ["x", True]}, "prompt.1"),
    (AFS, {"messages": [1]}, "messages.0"),
    (AFS, {"messages": [{"role": "x", "content": ""}]}, "messages.0.role"),
    (AFS, {"messages": MESSAGES, "parameters": {"stop": [1]}}, "parameters.stop.0"),
]


@pytest.mark.parametrize(("path", "body", "param"), NAMED)
async def test_the_path_of_what_is_wrong_is_told(
    tropilla: Served, path: str, body: dict[str, Any], param: str
) -> None:
    error = refused(await tropilla.ask("POST", path, body))
    assert error["param"] == param
    assert param in error["message"]


# Texts.

LONG = "x" * 10_000_000


@PATHS
async def test_a_long_text_is_taken(tropilla: Served, double: Double, path: str) -> None:
    body = msgspec.json.encode(BODIES[path]).replace(b"Hello!", b"@").replace(b"Once", b"@")
    raw = await tropilla.connect()
    await raw.post(path, body.replace(b"@", LONG.encode()))
    answer = await raw.answer()
    assert answer.status == 200, answer.body[:300]
    assert len(double.requests[-1].body) > len(LONG)


@pytest.mark.parametrize(
    ("path", "body"),
    [
        (CHAT, {"messages": MESSAGES, "reasoning_effort": LONG}),
        (CHAT, {"messages": MESSAGES, "metadata": {LONG: 1}}),
        (CHAT, {"messages": [{"role": LONG, "content": ""}]}),
        (CHAT, of_content({"type": LONG})),
        (CHAT, of_tool({"type": "function", "function": {"name": LONG}})),
        (VECTORS, {"input": "x", "encoding_format": LONG}),
        (AFS, {"messages": [{"role": LONG, "content": ""}]}),
    ],
)
async def test_a_refusal_does_not_repeat_a_long_text(
    tropilla: Served, path: str, body: dict[str, Any]
) -> None:
    raw = await tropilla.connect()
    await raw.post(path, body)
    refused(await raw.answer())


CONTROLS = "".join(chr(code) for code in range(32)) + "\x7f\x85\u2028\ufeff\U0010ffff"


@pytest.mark.parametrize("text", ["", " ", CONTROLS], ids=["empty", "space", "controls"])
async def test_odd_texts_reach_the_upstream_as_they_are(
    tropilla: Served, double: Double, text: str
) -> None:
    assert (await tropilla.chat(messages=[{"role": "user", "content": text}])).status == 200
    assert double.requests[-1].json["messages"][0]["content"] == text


# Names, which go into lists, logs and headers.

NAMES = {
    "empty": "", "line breaks": "m\r\nx-evil: 1\r\n\r\n<html>", "NUL": "m\0", "ANSI": "\x1b[31mm",
    "a megabyte": "m" * 1_000_000, "Unicode": "m\N{GRINNING FACE}", "a path": "../../etc/passwd",
    "a format": "%s%n{0}",
}  # fmt: skip


@PATHS
@pytest.mark.parametrize("name", NAMES.values(), ids=NAMES)
async def test_the_name_of_a_model_ends_nowhere_raw(
    gateway: Serve,
    doubles: Any,
    caplog: pytest.LogCaptureFixture,
    path: str,
    name: str,
) -> None:
    one, other = await doubles("m"), await doubles("other")
    tropilla = await gateway(one, other)
    for body in (BODIES[path] | {"model": name}, BODIES[path] | {"model": name, "stream": True}):
        answer = await tropilla.ask("POST", path, body)
        assert answer.status == 404
        assert len(answer.body) < 5000
        assert answer.error["param"] == "model"
        assert "x-evil" not in answer.headers
    assert not any("evil" in record.getMessage() for record in caplog.records)
    assert not any("mmm" in record.getMessage() for record in caplog.records)


@pytest.mark.parametrize("name", ["a\r\nb: c", "\N{SNOWMAN}", "x" * 65, "a,b", "\0"])
async def test_a_field_that_is_dropped_is_named_only_where_a_header_can_hold_it(
    tropilla: Served, name: str
) -> None:
    body = BODIES[AFS] | {"stream": False}
    asked = {"inputs": ["x"], name: 1, "fine": 1}
    answer = await tropilla.ask("POST", "/models/embeddings", asked)
    assert answer.status == 200, answer.body
    assert answer.headers["x-tropilla-dropped"] == "fine"
    assert (await tropilla.ask("POST", AFS, body | {name: 1})).status == 200


@pytest.mark.parametrize(
    "target", ["/v1/models/%0d%0ax-evil:%201", "/v1/%00", "/%0d%0a", "/v1/models/" + "m" * 60_000]
)
async def test_a_path_ends_nowhere_raw(tropilla: Served, target: str) -> None:
    answer = await tropilla.ask("GET", target)
    assert answer.status in {400, 404, 431}
    assert "x-evil" not in answer.headers
    assert len(answer.body) < 5000
    assert answer.error.keys() >= {"message", "type", "param", "code"}


@pytest.mark.parametrize(
    "line", [b"X-A: a\x00b", b"X A: b", b": b", b"X-A\x01: b", b"Content-Length: 5x"]
)
async def test_a_broken_header_is_refused_in_the_envelope(tropilla: Served, line: bytes) -> None:
    raw = await tropilla.connect()
    await raw.send(b"POST /v1/chat/completions HTTP/1.1\r\nHost: t\r\n%b\r\n\r\n" % line)
    refused(await raw.answer())
    assert await raw.rest() == b""


# Headers of a body.


@PATHS
async def test_an_encoded_body_is_refused(tropilla: Served, path: str) -> None:
    raw = await tropilla.connect()
    for encoding in ("gzip", "br", "zstd", "nonsense", "gzip, identity", ""):
        await raw.post(path, b"\x1f\x8b\x08", f"Content-Encoding: {encoding}")
        error = refused(await raw.answer(), 415)
        assert "plain" in error["message"]


@PATHS
async def test_a_wrong_content_type_is_passed_over(tropilla: Served, path: str) -> None:
    for kind in ("text/plain", "application/xml", "multipart/form-data", "x", ""):
        answer = await tropilla.ask("POST", path, BODIES[path], {"content-type": kind})
        assert answer.status == 200, kind


SIZE = 100 * 1024 * 1024


@PATHS
async def test_100_megabytes_that_are_announced_are_refused_at_once(
    tropilla: Served, path: str
) -> None:
    raw = await tropilla.connect()
    await raw.send(f"POST {path} HTTP/1.1\r\nHost: t\r\nContent-Length: {SIZE}\r\n\r\n".encode())
    error = refused(await raw.answer(), 413)
    assert error["code"] == (413 if path == NATIVE else "request_too_large")


async def test_100_megabytes_in_chunks_are_refused_and_not_kept(tropilla: Served) -> None:
    raw = await tropilla.connect()
    await raw.send(b"POST %b HTTP/1.1\r\nHost: t\r\n" % CHAT.encode())
    await raw.send(b"Transfer-Encoding: chunked\r\n\r\n")
    piece = b"100000\r\n" + b" " * 0x100000 + b"\r\n"
    tracemalloc.start()
    try:
        for _ in range(SIZE // 0x100000):
            await raw.send(piece)
        await raw.send(b"0\r\n\r\n")
        refused(await raw.answer(), 413)
        _, most = tracemalloc.get_traced_memory()
    finally:
        tracemalloc.stop()
    assert most < SIZE * 0.6  # the limit is 32 MiB
