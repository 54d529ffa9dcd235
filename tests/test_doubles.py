"""The doubles of servers are what they claim: each build, and a server that is no llama.cpp."""

from __future__ import annotations

import asyncio
import socket
from collections.abc import AsyncIterator, Iterator
from contextlib import contextmanager, suppress
from http.client import HTTPConnection, HTTPResponse, RemoteDisconnected
from threading import Thread
from typing import Any, NamedTuple

import aiohttp
import msgspec
import pytest

from doubles.llama import BUILDS, DEADLINE, NAME, SEED_IDS, SEED_PROMPT, Llama, llama
from doubles.llama_b1496 import llama as b1496
from doubles.openai import OpenAiDouble

CHAT = {"messages": [{"role": "user", "content": "Hello!"}]}
CHATTING = [build for build in BUILDS if build >= 1561]


class Told(NamedTuple):
    """An answer of a double."""

    status: int
    headers: dict[str, str]
    body: bytes

    @property
    def json(self) -> Any:
        return msgspec.json.decode(self.body)

    @property
    def lines(self) -> list[str]:
        """The events of a stream, each a line."""
        *events, last = self.body.decode().split("\n\n")
        assert last == ""
        return events

    @property
    def events(self) -> list[Any]:
        """The data of a stream."""
        data = [line.removeprefix("data: ") for line in self.lines]
        return [one if one == "[DONE]" else msgspec.json.decode(one) for one in data]

    @property
    def text(self) -> str:
        """The text of a native stream."""
        return "".join(event["content"] for event in self.events)


def ask(
    double: Llama, method: str, path: str, body: Any = None, headers: dict[str, str] | None = None
) -> Told:
    connection = HTTPConnection("127.0.0.1", double.port, timeout=DEADLINE)
    try:
        raw = body if body is None or isinstance(body, bytes) else msgspec.json.encode(body)
        connection.request(method, path, raw, headers or {})
        answer = connection.getresponse()
        return Told(answer.status, {n.lower(): v for n, v in answer.getheaders()}, answer.read())
    finally:
        connection.close()


def post(double: Llama, path: str, body: Any, **headers: str) -> Told:
    return ask(double, "POST", path, body, headers)


def get(double: Llama, path: str, **headers: str) -> Told:
    return ask(double, "GET", path, None, headers)


def complete(double: Llama, *, stream: bool = False, **fields: Any) -> Told:
    return post(double, "/completion", {"prompt": "Hello!", "stream": stream, **fields})


def chat(double: Llama, **fields: Any) -> Told:
    return post(double, "/v1/chat/completions", CHAT | fields)


@contextmanager
def streaming(double: Llama, path: str = "/completion", **fields: Any) -> Iterator[HTTPResponse]:
    """A stream that is being read."""
    connection = HTTPConnection("127.0.0.1", double.port, timeout=DEADLINE)
    body = {"prompt": "Hello!", "stream": True, **fields}
    connection.request("POST", path, msgspec.json.encode(body))
    try:
        yield connection.getresponse()
    finally:
        connection.close()


@pytest.fixture(scope="module")
def running() -> Iterator[dict[int, Llama]]:
    """One server of each generation."""
    started: list[Any] = []
    servers: dict[int, Llama] = {}
    for build in BUILDS:
        started.append(llama(build))
        servers[build] = started[-1].__enter__()
    yield servers
    for one in started:
        one.__exit__(None, None, None)


@pytest.fixture
def double(running: dict[int, Llama], build: int) -> Llama:
    """The server of the build that the test is for, as new."""
    running[build].clear()
    return running[build]


every = pytest.mark.parametrize("build", BUILDS)
chatting = pytest.mark.parametrize("build", CHATTING)


def only(*builds: int) -> pytest.MarkDecorator:
    return pytest.mark.parametrize("build", builds)


def since(build: int) -> pytest.MarkDecorator:
    return only(*(one for one in BUILDS if one >= build))


# What is there.

PATHS = {
    "GET /props": 0, "GET /health": 1809, "GET /v1/models": 1561, "GET /slots": 2181,
    "GET /metrics": 2258, "POST /completion": 0, "POST /completions": 2358,
    "POST /v1/completions": 2358, "POST /infill": 0, "POST /v1/chat/completions": 1561,
    "POST /chat/completions": 2284, "POST /tokenize": 0, "POST /detokenize": 0,
    "POST /embedding": 0, "POST /embeddings": 2369, "POST /v1/embeddings": 2004,
    "POST /rerank": 3838, "POST /v1/rerank": 3838, "GET /models": 4000, "GET /lora": 99999,
}  # fmt: skip


@every
def test_each_build_has_its_paths(double: Llama, build: int) -> None:
    for name, first in PATHS.items():
        method, path = name.split()
        body = CHAT | {"prompt": "x"} if method == "POST" else None
        assert (ask(double, method, path, body).status != 404) == (build >= first), name
    has_settings = get(double, "/model.json").status == 200
    assert has_settings == (build < 2084)


@every
def test_what_is_not_there_is_refused_as_the_build_does_it(double: Llama, build: int) -> None:
    told = get(double, "/nothing")
    assert told.status == 404
    if build < 2400:
        assert told.body == b"File Not Found"
        assert told.headers["content-type"].startswith("text/plain")
    else:
        error = {"code": 404, "message": "File Not Found", "type": "not_found_error"}
        assert told.json == {"error": error}
    assert told.headers["server"] == "llama.cpp"


@every
def test_a_body_that_is_no_json(double: Llama, build: int) -> None:
    told = post(double, "/completion", b"{")
    assert told.status == 500
    assert b"parse_error" in told.body
    assert told.body.startswith(b"500 Internal Server Error\n") == (build < 2400)


@every
def test_props(double: Llama, build: int) -> None:
    keys = {
        1496: {"user_name", "assistant_name"},
        1915: {"user_name", "assistant_name"},
        2400: {"user_name", "assistant_name", "default_generation_settings", "total_slots"},
        3000: {"system_prompt", "default_generation_settings", "total_slots"},
        4300: {"default_generation_settings", "total_slots", "chat_template", "model_path"},
    }
    props = get(double, "/props").json
    assert props.keys() == keys[build]
    if build >= 2400:
        assert props["default_generation_settings"]["n_ctx"] == 512
        assert props["total_slots"] == double.slots


@since(1915)
def test_health(double: Llama, build: int) -> None:
    told = get(double, "/health")
    slots = {"slots_idle": 4, "slots_processing": 0} if build in {2400, 3000} else {}
    assert (told.status, told.json) == (200, {"status": "ok", **slots})
    double.busy = 1
    told = get(double, "/health")
    assert told.status == 200
    assert (told.json["status"] == "no slot available") == bool(slots)
    assert get(double, "/health?fail_on_no_slot").status == (503 if slots else 200)


@since(1561)
def test_models(double: Llama) -> None:
    (card,) = get(double, "/v1/models").json["data"]
    assert (card["owned_by"], NAME in card["id"]) == ("llamacpp", True)


# While it loads.


@only(1915, 4300)
def test_a_server_that_loads_says_so(double: Llama, build: int) -> None:
    double.loading = True
    told = get(double, "/health")
    assert told.status == 503
    if build == 1915:
        assert told.json == {"status": "loading model"}
        assert complete(double).status == 404
    else:
        error = {"code": 503, "message": "Loading model", "type": "unavailable_error"}
        assert told.json == complete(double).json == {"error": error}


@only(1496, 2400, 3000)
def test_a_server_that_loads_says_nothing(double: Llama) -> None:
    double.loading = True
    told: list[Told] = []
    asking = Thread(target=lambda: told.append(get(double, "/props")))
    asking.start()
    double.until(lambda: bool(double.asked))
    assert told == []
    double.loading = False
    asking.join()
    assert told[0].status == 200


# Keys.


@every
def test_keys(build: int) -> None:
    with llama(build, key="k") as double:
        wrong, right = (
            complete(double),
            post(double, "/completion", {"prompt": "x"}, Authorization="Bearer k"),
        )
        assert right.status == 200
        if build < 1643:
            assert wrong.status == 200
        elif build < 2400:
            assert (wrong.status, wrong.body) == (401, b"Unauthorized")
        else:
            error = {"code": 401, "message": "Invalid API Key", "type": "authentication_error"}
            assert (wrong.status, wrong.json) == (401, {"error": error})
        locked = {
            path for path in ("/props", "/health", "/slots") if get(double, path).status == 401
        }
        assert locked == ({"/props"} if build in {2400, 3000} else {"/props", "/slots"}
                          if build >= 3898 else set())  # fmt: skip
        assert (post(double, "/tokenize", {}).status == 401) == (build >= 2400)


# Tokens.


@every
def test_tokens_are_counted_alike_everywhere(double: Llama, build: int) -> None:
    double.says = ["Well", ", ", "hello", "!"]
    told = complete(double).json
    ids = post(double, "/tokenize", {"content": told["content"]}).json["tokens"]
    assert len(ids) == 4
    assert post(double, "/detokenize", {"tokens": ids}).json["content"] == "Well, hello!"
    # Since b1778 (#4798) EOS is counted.
    assert told["tokens_predicted"] == told["timings"]["predicted_n"] == 4 + (build >= 1778)
    prompt = post(double, "/tokenize", {"content": "Hello!"}).json["tokens"]
    assert told["tokens_evaluated"] == told["timings"]["prompt_n"] == len(prompt) + 1  # BOS


def test_the_vector_of_the_seed() -> None:
    with b1496() as double:
        assert post(double, "/tokenize", {"content": SEED_PROMPT}).json == {"tokens": SEED_IDS}
        assert post(double, "/detokenize", {"tokens": SEED_IDS}).json == {"content": SEED_PROMPT}


@every
def test_special_tokens_and_pieces(double: Llama, build: int) -> None:
    told = post(double, "/tokenize", {"content": "x", "add_special": True}).json
    assert len(told["tokens"]) == (2 if build >= 2600 else 1)
    told = post(double, "/tokenize", {"content": "x", "with_pieces": True}).json
    assert told["tokens"] == ([{"id": 123, "piece": "x"}] if build >= 3748 else [123])


# Where an answer ends.


@every
@pytest.mark.parametrize("limit", [0, 1, 2, 3, 5])
def test_a_limit(double: Llama, build: int, limit: int) -> None:
    double.ends = "never"
    told = complete(double, n_predict=limit).json
    pieces = sum(
        event["content"] != "" for event in complete(double, stream=True, n_predict=limit).events
    )
    old = {0: 4, 1: 4, 2: 5, 3: 4, 5: 6}[limit]
    assert pieces == (old if build < 1778 else max(1, limit))
    assert told["tokens_predicted"] == (old - 1 if build < 1778 else max(1, limit))
    how = [name for name in ("stopped_eos", "stopped_word", "stopped_limit") if told.get(name)]
    assert (how, told.get("stop_type")) == (
        (["stopped_limit"], None) if build < 4275 else ([], "limit")
    )


@every
def test_a_stop_word(double: Llama, build: int) -> None:
    double.says = ["one ", "two E", "ND", " three"]
    whole = complete(double, stop=["END"]).json
    assert (whole["content"], whole["stopping_word"]) == ("one two ", "END")
    stream = complete(double, stream=True, stop=["END"])
    # What stood before the word and was held is lost to streams until b3930 (#9867).
    assert stream.text == ("one two " if build >= 3930 else "one ")
    assert [event["content"] for event in stream.events][1] == ""
    assert stream.events[-1]["stopping_word"] == "END"


@every
def test_what_is_held_for_a_stop_word_at_the_end_is_lost_to_streams(double: Llama) -> None:
    double.says = ["one ", "E"]
    assert complete(double, stop=["END"]).json["content"] == "one E"
    assert complete(double, stream=True, stop=["END"]).text == "one "


@every
def test_forms_of_stop(double: Llama) -> None:
    assert complete(double, stop="fine").json["content"] == " I'm fine."  # not read
    assert complete(double, stop=[]).json["content"] == " I'm fine."
    assert complete(double, stop=[""]).json["content"] == ""
    double.ends = "word"
    told = complete(double, stop=["END"]).json
    assert (told["content"], told["stopping_word"]) == (" I'm fine.", "END")


# The forms of native answers.


@every
def test_a_native_stream(double: Llama, build: int) -> None:
    told = complete(double, stream=True)
    assert told.headers["content-type"] == "text/event-stream"
    *events, last = told.events
    assert told.text == " I'm fine."
    keys = {"content", "stop"}
    keys |= (
        {"slot_id", "multimodal"} if build < 2357
        else {"id_slot", "multimodal"} if build < 4275
        else {"index", "id_slot", "tokens_predicted", "tokens_evaluated"}
    )  # fmt: skip
    assert all(event.keys() == keys and not event["stop"] for event in events)
    assert last["stop"] is True
    assert {"stop_type", "index"} <= last.keys() if build >= 4275 else last["stopped_eos"]


@every
def test_after_a_stream_the_connection_stays_until_b4000(double: Llama, build: int) -> None:
    with socket.create_connection(("127.0.0.1", double.port)) as client:
        body = b'{"prompt":"x","stream":true}'
        head = b"POST /completion HTTP/1.1\r\nContent-Length: %d\r\n\r\n" % len(body)
        client.sendall(head + body)
        told = b""
        while not told.endswith(b"0\r\n\r\n"):
            told += client.recv(65536)
        client.sendall(b"GET /props HTTP/1.1\r\n\r\n")
        assert bool(_heard(client)) == (build < 4000)


def _heard(client: socket.socket) -> bytes:
    with suppress(ConnectionResetError):
        return client.recv(65536)
    return b""


@every
def test_settings_are_called_as_the_build_does(double: Llama, build: int) -> None:
    told = complete(double, temperature=0.25, logit_bias=[[5, 1.5]]).json["generation_settings"]
    assert told.get("temp" if build < 1710 else "temperature") == 0.25
    assert ("min_p" in told, "tfs_z" in told) == (build >= 1500, build < 3988)
    assert told["repeat_penalty"] == pytest.approx(1.1 if build < 2463 else 1.0)
    assert told["logit_bias"] == ([[5, 1.5]] if build < 4275 else [{"token": 5, "bias": 1.5}])
    assert ("model" in told) == (build < 4275)


@every
def test_biases_of_texts_and_objects(double: Llama, build: int) -> None:
    def read(bias: Any) -> int:
        return len(complete(double, logit_bias=bias).json["generation_settings"]["logit_bias"])

    assert read({"5": 1}) == 0
    assert read([["x", 1], [6, False]]) == (1 if build < 2123 else 2)


@every
def test_probabilities(double: Llama) -> None:
    told = complete(double, n_probs=2).json["completion_probabilities"]
    assert told[0]["content"] == " I"
    assert told[0]["probs"][0].keys() == {"tok_str", "prob"}
    assert len(told) == 5  # EOS has some, too
    assert "completion_probabilities" in complete(double, stream=True, n_probs=2).events[0]
    assert "completion_probabilities" not in complete(double).json


@every
def test_defaults_of_max_tokens(double: Llama, build: int) -> None:
    double.ends, double.says = "eos", ["a", "b", "c", "d", "e", "f", "g"]
    assert len(complete(double, max_tokens=2).json["content"]) == (2 if build >= 3648 else 7)


# Prompts.


@every
def test_a_list_of_prompts(double: Llama, build: int) -> None:
    told = complete(double, prompt=["one", "two"])
    if build < 1591:
        assert told.json["content"] == " I'm fine."
        assert told.json["tokens_evaluated"] == 7
        return
    results = told.json
    if build == 1915:
        word, results = results
        assert word == "results"
    elif build < 3655:
        results = results["results"]
    assert [one["content"] for one in results] == [" I'm fine."] * 2
    assert [one.get("index") for one in results] == ([0, 1] if build >= 3655 else [None] * 2)


@since(1915)
def test_a_stream_of_several_prompts(double: Llama, build: int) -> None:
    events = complete(double, stream=True, prompt=["one", "two"]).events
    if build >= 3655:
        assert {event["index"] for event in events} == {0, 1}
        assert "".join(event["content"] for event in events) == " I'm fine." * 2
        return
    (event,) = events  # the first token of each, and no more
    results = event[1] if build < 2400 else event["results"]
    assert [one["content"] for one in results] == [" I", " I"]


@every
def test_a_list_of_one_prompt_is_a_prompt(double: Llama) -> None:
    assert complete(double, prompt=["one"]).json["content"] == " I'm fine."


@only(1496, 2400, 3000, 4300)
def test_token_ids(double: Llama) -> None:
    told = complete(double, prompt=[5, 6, 7]).json
    assert (told["content"], told["tokens_evaluated"]) == (" I'm fine.", 3)


def test_token_ids_stall_b1915() -> None:
    with llama(1915) as double:
        stuck = HTTPConnection("127.0.0.1", double.port, timeout=DEADLINE)
        stuck.request("POST", "/completion", msgspec.json.encode({"prompt": [5, 6]}))
        double.until(lambda: double.stalled)
        other = HTTPConnection("127.0.0.1", double.port, timeout=DEADLINE)
        other.request("POST", "/completion", msgspec.json.encode({"prompt": "x"}))
        double.until(lambda: len(double.asked) == 2)
        assert get(double, "/health").status == 200
        double.clear()
        answer = other.getresponse()
        assert answer.status == 200
        stuck.close()
        other.close()


@pytest.mark.parametrize(
    ("build", "path", "body"),
    [
        (1915, "/completion", {"prompt": "x", "temperature": "hot"}),
        (1496, "/completion", {"prompt": "x", "stream": "false"}),
        (2400, "/completion", {"prompt": "x", "n_predict": "5"}),
        (3000, "/completion", {"prompt": "x", "stop": [5]}),
        (3000, "/completion", {"prompt": 5}),
        (2400, "/completion", {"prompt": [[5, 6]]}),
        (2371, "/completion", {"prompt": [5, 6]}),
        (2400, "/v1/chat/completions", {}),
        (1915, "/v1/chat/completions", CHAT | {"grammar": {}}),
    ],
)
def test_what_ends_a_server(build: int, path: str, body: dict[str, Any]) -> None:
    with llama(build) as double:
        with pytest.raises(ConnectionError):
            post(double, path, body)
        assert double.dead
        with pytest.raises(ConnectionError):
            get(double, "/props")
        double.clear()
        assert complete(double).status == 200


@since(3000)
def test_a_wrong_type_is_the_default_since_b2608(double: Llama) -> None:
    told = complete(double, temperature="hot").json["generation_settings"]
    assert told["temperature"] == pytest.approx(0.8)


@every
def test_without_a_prompt(double: Llama, build: int) -> None:
    told = post(double, "/completion", {})
    if build < 2357:
        assert (told.json["content"], told.json["tokens_predicted"]) == ("", 0)
        return
    assert (told.status, told.json["error"]["type"]) == (400, "invalid_request_error")
    (line,) = [*post(double, "/completion", {"stream": True}).body.decode().split("\n\n")][:1]
    # The main loop found out, so the head of the stream was sent.
    assert line.startswith("error: {" if build < 3655 else '{"error":')


@every
def test_infill(double: Llama, build: int) -> None:
    parts = {"input_prefix": "def f(", "input_suffix": "): pass"}
    told = post(double, "/infill", parts)
    if build in {2400, 3000}:
        assert told.status == 400
    else:
        assert told.json["content"] == ("" if build == 1496 else " I'm fine.")
    told = post(double, "/infill", parts | {"prompt": "x"})
    assert told.json["content"] == " I'm fine."


def test_a_model_without_infill_tokens() -> None:
    with llama(4300, fills=False) as double:
        told = post(double, "/infill", {"input_prefix": "x", "input_suffix": ""})
        assert (told.status, told.json["error"]["type"]) == (501, "not_supported_error")


# Chat.


@chatting
def test_a_chat(double: Llama, build: int) -> None:
    told = chat(double, model="gpt-4").json
    (choice,) = told["choices"]
    assert choice["message"] == {"role": "assistant", "content": " I'm fine."}
    assert (told["object"], told["model"]) == ("chat.completion", "gpt-4")
    usage = told["usage"]
    assert (usage["completion_tokens"], usage["total_tokens"]) == (5, 5 + usage["prompt_tokens"])
    assert ("timings" in told) == (build >= 4275)
    assert chat(double).json["model"] == ("unknown" if build < 4275 else "gpt-3.5-turbo-0613")


@chatting
def test_a_limit_of_chat_is_told_in_streams_and_else_since_b4275(double: Llama, build: int) -> None:
    double.ends = "never"
    told = chat(double, max_tokens=2).json["choices"][0]
    assert told["message"]["content"] == " I'm"
    assert told["finish_reason"] == ("length" if build >= 4275 else "stop")
    events = [
        event for event in chat(double, max_tokens=2, stream=True).events if event != "[DONE]"
    ]
    assert events[-1]["choices"][0]["finish_reason"] == "length"


@chatting
def test_a_chat_stream(double: Llama, build: int) -> None:
    events = chat(double, stream=True).events
    assert ("[DONE]" in events) == (build >= 3754)
    *chunks, last = [event for event in events if event != "[DONE]"]
    deltas = [chunk["choices"][0]["delta"] for chunk in chunks]
    assert all(delta.keys() == {"content"} for delta in deltas)
    assert [delta["content"] for delta in deltas] == double.says + [""] * (build >= 4275)
    assert last["choices"] == [{"delta": {}, "finish_reason": "stop", "index": 0}]
    assert ("usage" in last) == (build >= 2600)
    ids = {chunk["id"] for chunk in (*chunks, last)}
    assert len(ids) == (len(chunks) + 1 if build < 2400 else 1)


@chatting
def test_what_of_openai_each_build_reads(double: Llama, build: int) -> None:
    def refuses(**fields: Any) -> bool:
        told = chat(double, **fields)
        assert told.status in {200, 500}
        return told.status == 500

    parts = [{"role": "user", "content": [{"type": "text", "text": "Hello!"}]}]
    schema = {"type": "json_schema", "json_schema": {"name": "x", "schema": {}}}
    asked: dict[str, dict[str, Any]] = {
        "n": {"n": 2},
        "tools": {"tools": []},
        "tool_choice": {"tool_choice": None},
        "top_logprobs": {"top_logprobs": 1},
        "parts": {"messages": parts},
        "null": {"messages": [{"role": "user", "content": None}]},
        "json_object": {"response_format": {"type": "json_object"}},
        "json_schema": {"response_format": schema},
        "stop": {"stop": "x"},
    }
    refused = {name for name, fields in asked.items() if refuses(**fields)}
    later = {"n", "tools", "tool_choice", "top_logprobs"}
    assert (
        refused
        == {
            1915: {"parts"},
            2400: {"parts"},
            3000: later | {"json_schema"},
            4300: later | {"null"},
        }[build]
    )


@chatting
def test_parts_of_content(double: Llama, build: int) -> None:
    parts = [{"type": "text", "text": "Hello!" * 9}]
    told = chat(double, messages=[{"role": "user", "content": parts}])
    plain = chat(double, messages=[{"role": "user", "content": "Hello!" * 9}]).json["usage"]
    if build < 2608:
        assert told.status == 500
    else:
        lost = plain["prompt_tokens"] - told.json["usage"]["prompt_tokens"]
        assert lost == (54 if build < 3500 else -1)  # all of it, or a line break too many


@chatting
def test_a_format_becomes_a_grammar(double: Llama, build: int) -> None:
    told = complete(double, json_schema={"type": "object"}).json["generation_settings"]
    assert bool(told["grammar"]) == (build >= 2490)


@chatting
def test_probabilities_of_a_chat(double: Llama, build: int) -> None:
    told = chat(double, logprobs=True, top_logprobs=2).json
    assert ("completion_probabilities" in told) == (build == 3000)
    assert "logprobs" not in told["choices"][0]
    assert ("completion_probabilities" in chat(double, logprobs=False).json) == (build == 3000)


@chatting
def test_chatml_ends_a_chat_until_b2700(double: Llama, build: int) -> None:
    double.says = ["one", "<|im_end|>", "two"]
    told = chat(double).json["choices"][0]["message"]["content"]
    assert told == ("one" if build < 2700 else "one<|im_end|>two")


# Embeddings and rerank.


@every
def test_embeddings(build: int) -> None:
    with llama(build) as off, llama(build, embeddings=True) as on:
        told = post(off, "/embedding", {"content": "x"})
        if build in {2400, 3000}:
            assert (told.status, told.headers["content-type"][:10]) == (501, "text/plain")
        else:
            assert any(told.json["embedding"]) == (build >= 3500)
        assert sum(post(on, "/embedding", {"content": "x"}).json["embedding"]) == 1.0
        if build >= 2004:
            told = post(on, "/v1/embeddings", {"input": ["x", "y"]})
            assert [one["index"] for one in told.json["data"]] == [0, 1]
            assert told.json["usage"] == {"prompt_tokens": 0, "total_tokens": 0}
        assert complete(on).status == (501 if build >= 3648 else 200)


def test_rerank() -> None:
    asked = {"query": "ab", "documents": ["zz", "ab", "az"], "top_n": 1}
    with llama(4300) as off, llama(4300, reranks=True) as on:
        assert post(off, "/v1/rerank", asked).status == 501
        told = post(on, "/v1/rerank", asked).json["results"]
        assert [one["index"] for one in told] == [0, 1, 2]
        assert [one["relevance_score"] for one in told] == [0.0, 2.0, 1.0]
        assert post(on, "/rerank", {"query": "x"}).status == 400


# Slots, errors, and clients that leave.


@only(1496)
@pytest.mark.parametrize("fields", [{"busy": 1}, {"slots": 0}])
def test_an_old_server_without_a_slot_refuses(fields: dict[str, int], build: int) -> None:
    with llama(build, **fields) as double:
        told = complete(double, stream=True)
        assert (told.status, told.body) == (200, b"")
        double.busy = 1
        assert (complete(double).status, complete(double).status) == (
            404, 200 if double.slots else 404,
        )  # fmt: skip


@since(1915)
def test_since_b1915_requests_wait_for_a_slot(double: Llama) -> None:
    double.hold()
    told: list[Told] = []
    asking = [Thread(target=lambda: told.append(complete(double))) for _ in range(double.slots + 1)]
    for one in asking:
        one.start()
    double.until(lambda: len(double.asked) == double.slots + 1)
    double.until(lambda: double.working == double.slots)
    double.free()
    for one in asking:
        one.join()
    assert [one.status for one in told] == [200] * (double.slots + 1)
    double.until(lambda: double.working == 0)


@every
def test_an_error_in_a_stream(double: Llama, build: int) -> None:
    double.error_midstream = "It broke."
    first, *others = complete(double, stream=True).lines
    assert first.startswith("data: ")
    if build < 1542:
        assert others == []
        return
    (line,) = others
    error = msgspec.json.decode(line.removeprefix("error: "))
    assert error == (
        {"content": "It broke."} if build < 2400
        else {"code": 500, "message": "It broke.", "type": "server_error"}
    )  # fmt: skip
    more = chat(double, stream=True).lines[1:]
    assert more == ([line, "data: [DONE]"] if build >= 3754 else [line])
    assert complete(double).status == (404 if build < 2400 else 500)
    told = chat(double)
    assert (told.status, b"It broke." in told.body) == (500, True)


@every
def test_an_error_before_the_first_token(double: Llama, build: int) -> None:
    double.error_midstream, double.error_after = "It broke.", 0
    told = complete(double, stream=True)
    assert (told.status, told.body.startswith(b"error: ")) == (200, build >= 1542)


@every
def test_a_held_stream_and_a_client_that_leaves(double: Llama) -> None:
    double.hold(2)
    with streaming(double) as answer:
        assert b'" I"' in answer.readline()
        answer.readline()
        assert b"'m" in answer.readline()
        double.until(lambda: double.generated == 2)
        double.let()
        answer.readline()
        assert b" fine" in answer.readline()
        answer.close()
    double.until(lambda: double.gone_away == 1)
    assert (double.generated, double.working) == (3, 0)


@every
def test_without_a_stream_the_leaving_of_a_client_is_not_noticed(double: Llama) -> None:
    double.hold(1)
    asking = socket.create_connection(("127.0.0.1", double.port))
    body = b'{"prompt":"x"}'
    asking.sendall(b"POST /completion HTTP/1.1\r\nContent-Length: %d\r\n\r\n%b" % (len(body), body))
    double.until(lambda: double.generated == 1)
    asking.close()
    double.let(3)
    double.until(lambda: double.generated == 4)
    assert (double.gone_away, double.working) == (0, 1)
    double.free()
    double.until(lambda: double.gone_away == 1)
    double.until(lambda: double.working == 0)


@every
def test_an_endless_stream_ends_with_its_client(double: Llama) -> None:
    double.ends = "never"
    with streaming(double) as answer:
        for _ in range(20):
            answer.readline()
        answer.close()
    double.until(lambda: double.gone_away == 1)


@every
def test_a_form(double: Llama, build: int) -> None:
    form = {"Content-Type": "application/x-www-form-urlencoded"}
    long = msgspec.json.encode({"content": "x" * 9000})
    assert ask(double, "POST", "/tokenize", long, form).status == (404 if build < 1647 else 200)


@every
def test_a_path_that_is_gone(double: Llama) -> None:
    double.gone = {"/completion"}
    assert complete(double).status == 404


def test_a_base_path() -> None:
    with llama(3000, base="/base") as double:
        assert get(double, "/base/health").status == 200
        assert get(double, "/health").status == 404
        assert double.asked[0].path == "/health"


@every
def test_origins(double: Llama, build: int) -> None:
    told = get(double, "/props", Origin="https://app.example")
    allowed = told.headers["access-control-allow-origin"]
    assert allowed == ("*" if build < 1825 else "https://app.example")


def test_a_server_that_ends_leaves_nobody_waiting() -> None:
    with llama(3000) as double:
        double.hold()
        connection = HTTPConnection("127.0.0.1", double.port, timeout=DEADLINE)
        connection.request("POST", "/completion", msgspec.json.encode({"prompt": "x"}))
        double.until(lambda: double.working == 1)
    with pytest.raises((RemoteDisconnected, ConnectionError)):
        connection.getresponse()
    connection.close()


# A server that is no llama.cpp.


@pytest.fixture
async def other(anyio_backend: Any) -> AsyncIterator[OpenAiDouble]:  # noqa: ARG001
    double = OpenAiDouble()
    await double.start()
    yield double
    await double.stop()


@pytest.fixture
async def session(other: OpenAiDouble) -> AsyncIterator[aiohttp.ClientSession]:
    async with aiohttp.ClientSession(other.url) as it:
        yield it


OPENAI = CHAT | {"model": "m"}


async def told_by(
    session: aiohttp.ClientSession, body: Any, path: str = "/v1/chat/completions"
) -> Told:
    async with session.post(path, json=body) as answer:
        headers = {name.lower(): value for name, value in answer.headers.items()}
        return Told(answer.status, headers, await answer.read())


@pytest.mark.anyio
async def test_openai_whole(other: OpenAiDouble, session: aiohttp.ClientSession) -> None:
    other.thinks, other.thinks_as = ["Hm", "m."], "reasoning"
    told = (await told_by(session, OPENAI | {"n": 2, "stop": "fine"})).json
    assert [one["message"]["content"] for one in told["choices"]] == [" I'm "] * 2
    assert told["choices"][0]["message"]["reasoning"] == "Hmm."
    assert told["usage"]["completion_tokens"] == 2 * 5
    other.usage = "never"
    assert "usage" not in (await told_by(session, OPENAI)).json


@pytest.mark.anyio
async def test_openai_stream(other: OpenAiDouble, session: aiohttp.ClientSession) -> None:
    asked = OPENAI | {"stream": True, "max_tokens": 3}
    first, *events = (await told_by(session, asked)).events
    assert first["choices"][0]["delta"] == {"role": "assistant", "content": ""}
    assert events.pop() == "[DONE]"
    assert [one["choices"][0]["finish_reason"] for one in events] == [None] * 3 + ["length"]
    wanted = asked | {"stream_options": {"include_usage": True}}
    *_, last, _ = (await told_by(session, wanted)).events
    assert (last["choices"], last["usage"]["completion_tokens"]) == ([], 3)
    other.usage, other.done, other.role = "always", False, False
    *events, last = (await told_by(session, asked)).events
    assert last["usage"]["completion_tokens"] == 3
    assert [one["choices"][0]["delta"] for one in events] == [
        {"content": piece} for piece in other.says[:3]
    ]


@pytest.mark.anyio
async def test_openai_counts_alike(other: OpenAiDouble, session: aiohttp.ClientSession) -> None:
    asked = {"model": "m", "prompt": "Hello, you!"}
    assert (await told_by(session, asked, "/tokenize")).status == 404
    other.tokenizes = True
    count = (await told_by(session, asked, "/tokenize")).json["count"]
    told = (await told_by(session, asked, "/v1/completions")).json
    assert (told["choices"][0]["text"], told["usage"]["prompt_tokens"]) == (" I'm fine.", count)


@pytest.mark.anyio
async def test_openai_tools(other: OpenAiDouble, session: aiohttp.ClientSession) -> None:
    other.calls = ({"name": "f", "arguments": "{}"},)
    (choice,) = (await told_by(session, OPENAI | {"tools": [{}]})).json["choices"]
    assert choice["finish_reason"] == "tool_calls"
    assert choice["message"]["tool_calls"][0]["function"] == other.calls[0]
    assert choice["message"]["content"] is None
    assert (await told_by(session, OPENAI)).json["choices"][0]["finish_reason"] == "stop"


@pytest.mark.anyio
async def test_openai_embeddings(session: aiohttp.ClientSession) -> None:
    asked = {"model": "m", "input": ["ab", "c"], "dimensions": 2}
    told = (await told_by(session, asked, "/v1/embeddings")).json
    assert [one["embedding"] for one in told["data"]] == [[2.0, 1.0], [1.0, 1.0]]
    told = (await told_by(session, asked | {"encoding_format": "base64"}, "/v1/embeddings")).json
    assert told["data"][0]["embedding"] == "AAAAQAAAgD8="


@pytest.mark.anyio
async def test_openai_errors(other: OpenAiDouble, session: aiohttp.ClientSession) -> None:
    told = await told_by(session, OPENAI | {"model": "x"})
    assert (told.status, "does not exist" in told.json["error"]["message"]) == (404, True)
    assert (await told_by(session, {"model": "m"})).status == 400
    other.status, other.errors = 429, "flat"
    told = await told_by(session, OPENAI)
    assert (told.status, told.json["object"], told.json["code"]) == (429, "error", 429)
    other.status, other.error_midstream, other.errors = 200, True, "nested"
    _, _, error, done = (await told_by(session, OPENAI | {"stream": True})).events
    assert (error["error"]["message"], done) == (other.fault, "[DONE]")
    other.error_midstream, other.cut = False, True
    with pytest.raises(aiohttp.ClientPayloadError):
        await told_by(session, OPENAI | {"stream": True})
    other.key = "k"
    assert (await told_by(session, OPENAI)).status == 401


@pytest.mark.anyio
@pytest.mark.parametrize("stream", [False, True])
async def test_openai_notices_who_leaves(
    other: OpenAiDouble, session: aiohttp.ClientSession, *, stream: bool
) -> None:
    other.hold(2)
    asking = asyncio.ensure_future(told_by(session, OPENAI | {"stream": stream}))
    await other.until(lambda: other.generated == 2)
    asking.cancel()
    await other.until(lambda: other.gone_away == 1)
    assert other.generated == 2
    with pytest.raises(asyncio.CancelledError):
        await asking
