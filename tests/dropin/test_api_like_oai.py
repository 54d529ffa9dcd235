"""A drop-in for llama.cpp's `api_like_OAI.py`, in front of the server that it was written for.

Its flags are in test_api_like_oai_start.py, and its template is in test_templates.py. Every row of
docs/api_like_OAI.md names a test of these files.
"""

from __future__ import annotations

import asyncio
import time
from collections.abc import Iterator
from contextlib import contextmanager
from dataclasses import dataclass
from http.client import HTTPConnection
from threading import Thread
from typing import Any

import msgspec
import pytest

from doubles.llama_b1496 import NAME, SEED_IDS, SEED_PROMPT, Llama, llama
from tropilla.config import Config, UpstreamConfig, read_url
from tropilla.exchanges import exchange
from tropilla.server.app import Gateway
from tropilla.server.http import Listener
from tropilla.server.run import listen
from tropilla.templates import Classic
from tropilla.upstream.fleet import Fleet

CLASSIC = Classic()
PREFIX = (
    "A chat between a curious user and an artificial intelligence assistant. "
    "The assistant follows the given rules no matter what.\n"
)
USER = {"role": "user", "content": "How are you?"}
PROMPT = f"{PREFIX}\nUSER: How are you?\nASSISTANT:"
CHAT = {"messages": [USER]}
COMPLETION = {"prompt": SEED_PROMPT}
BOTH = pytest.mark.parametrize(
    ("path", "body"),
    [("/v1/chat/completions", CHAT), ("/v1/completions", COMPLETION)],
    ids=["chat", "completions"],
)


# A gateway in a thread, and a client of it.


@dataclass
class Answer:
    """What a client was told."""

    status: int
    headers: dict[str, str]
    body: bytes

    @property
    def json(self) -> Any:
        return msgspec.json.decode(self.body)

    @property
    def choice(self) -> Any:
        (choice,) = self.json["choices"]
        return choice

    @property
    def error(self) -> Any:
        assert self.headers["content-type"] == "application/json"
        assert self.json.keys() == {"error"}
        return self.json["error"]

    @property
    def chunks(self) -> list[Any]:
        """The JSON of a stream whose every frame is `data: ...` and an empty line."""
        frames = self.body.split(b"\n\n")
        assert (frames.pop(), frames.pop()) == (b"", b"data: [DONE]")
        assert all(frame.startswith(b"data: ") and b"\n" not in frame for frame in frames)
        return [msgspec.json.decode(frame[6:]) for frame in frames]


class Client:
    def __init__(self, port: int) -> None:
        self.port = port

    def ask(self, method: str, path: str, body: bytes | None = None, **headers: str) -> Answer:
        connection = HTTPConnection("127.0.0.1", self.port, timeout=30)
        try:
            named = {name.replace("_", "-"): value for name, value in headers.items()}
            connection.request(method, path, body, named)
            answer = connection.getresponse()
            found = {name.lower(): value for name, value in answer.getheaders()}
            return Answer(answer.status, found, answer.read())
        finally:
            connection.close()

    def post(self, path: str, body: Any, **headers: str) -> Answer:
        sent = {"Content_Type": "application/json", **headers}
        return self.ask("POST", path, msgspec.json.encode(body), **sent)


@contextmanager
def gateway(url: str, **config: Any) -> Iterator[Client]:
    upstream = UpstreamConfig(url=read_url(url))
    it = msgspec.structs.replace(
        Config(listen="127.0.0.1:0", upstreams=(upstream,), any_model=True), **config
    )
    (sock,) = listen(it)
    port = sock.getsockname()[1]
    loops: list[asyncio.AbstractEventLoop] = []
    over = asyncio.Event()

    async def run() -> None:
        fleet = Fleet(it)
        listener = Listener(Gateway(it, fleet))
        await fleet.start()
        await listener.open(sock)
        loops.append(asyncio.get_running_loop())
        await over.wait()
        await listener.close()
        await fleet.stop()

    thread = Thread(target=lambda: asyncio.run(run()))
    thread.start()
    try:
        yield Client(port)
    finally:
        loops[0].call_soon_threadsafe(over.set)
        thread.join()


@pytest.fixture(scope="module")
def server() -> Iterator[Llama]:
    with llama() as double:
        yield double


@pytest.fixture(scope="module")
def gateways(server: Llama) -> Iterator[dict[str, Client]]:
    with gateway(server.url) as auto, gateway(server.url, template=CLASSIC) as classic:
        yield {"auto": auto, "classic": classic}


@pytest.fixture
def old(server: Llama) -> Llama:
    server.clear()
    return server


@pytest.fixture
def tropilla(gateways: dict[str, Client], old: Llama) -> Client:  # noqa: ARG001 - cleared first
    """As `tropilla serve --llama-api URL --template classic`."""
    return gateways["classic"]


@pytest.fixture
def auto(gateways: dict[str, Client], old: Llama) -> Client:  # noqa: ARG001 - cleared first
    """As `tropilla serve --llama-api URL`."""
    return gateways["auto"]


# What reaches the server.

COPIED: dict[str, Any] = {
    "temperature": 0.25, "top_k": 7, "top_p": 0.5, "presence_penalty": 0.5,
    "frequency_penalty": -0.5, "repeat_penalty": 1.25, "mirostat": 2, "mirostat_tau": 4.5,
    "mirostat_eta": 0.25, "seed": 42,
}  # fmt: skip
ASKED = COPIED | {"max_tokens": 12, "logit_bias": {"15043": -2.5, "13": 3}, "stop": ["END", "##"]}
SENT = COPIED | {
    "n_predict": 12, "logit_bias": [[15043, -2.5], [13, 3]], "n_keep": -1, "cache_prompt": True,
    "stream": True, "model": NAME,
}  # fmt: skip


@BOTH
@pytest.mark.parametrize("stream", [False, True])
def test_every_mapped_field(
    tropilla: Client,
    old: Llama,
    path: str,
    body: Any,
    stream: bool,  # noqa: FBT001
) -> None:
    asked = body | ASKED | {"stream": stream, "model": "gpt-3.5-turbo"}
    assert tropilla.post(path, asked).status == 200
    prompt = PROMPT if body is CHAT else SEED_PROMPT
    assert old.last() == {"prompt": prompt, **SENT}
    assert old.paths == ["/completion"]


@BOTH
@pytest.mark.parametrize("stream", [False, True])
def test_the_server_is_always_asked_to_stream(
    tropilla: Client,
    old: Llama,
    path: str,
    body: Any,
    stream: bool,  # noqa: FBT001
) -> None:
    tropilla.post(path, body | {"stream": stream})
    prompt = PROMPT if body is CHAT else SEED_PROMPT
    assert old.last() == {
        "prompt": prompt, "n_keep": -1, "cache_prompt": True, "stream": True, "model": NAME,
    }  # fmt: skip


@BOTH
def test_null_is_absent(tropilla: Client, old: Llama, path: str, body: Any) -> None:
    tropilla.post(path, body | dict.fromkeys([*ASKED, "stream", "tokenize", "model"]))
    assert old.last().keys() == {"prompt", "n_keep", "cache_prompt", "stream", "model"}


def test_the_server_is_told_that_it_gets_json(tropilla: Client, old: Llama) -> None:
    # A form of more than 8192 bytes is refused by servers before b1647.
    tropilla.ask("POST", "/completions", msgspec.json.encode({"prompt": "x" * 9000}))
    assert old.asked[-1].headers["content-type"] == "application/json"
    assert old.paths == ["/completion"]


def test_a_string_stop_is_one_stop(tropilla: Client, old: Llama) -> None:
    old.says = ["THE ", "E", "ND"]
    answer = tropilla.post("/v1/completions", COMPLETION | {"stop": "END"})
    assert answer.choice["text"] == "THE "
    # Until b4410 or so a server loses text around stop words: they are looked for here.
    assert "stop" not in old.last()


def test_what_a_token_says_before_a_stop_word_is_told(tropilla: Client, old: Llama) -> None:
    old.says = ["Well", ".\n\n", "USER: more"]
    for stream in (False, True):
        asked = COMPLETION | {"stop": ["\n\n", "USER:"], "stream": stream}
        answer = tropilla.post("/v1/completions", asked)
        choices = [chunk["choices"][0] for chunk in answer.chunks] if stream else [answer.choice]
        assert "".join(choice["text"] for choice in choices) == "Well."
        assert choices[-1]["finish_reason"] == "stop"


@BOTH
def test_n_predict_is_honoured(tropilla: Client, old: Llama, path: str, body: Any) -> None:
    tropilla.post(path, body | {"n_predict": 400})
    assert old.last()["n_predict"] == 400
    tropilla.post(path, body | {"n_predict": 400, "max_tokens": 12})
    assert old.last()["n_predict"] == 12
    tropilla.post(path, body | {"n_predict": -1})
    assert "n_predict" not in old.last()


def test_what_the_script_left_out_goes_on(tropilla: Client, old: Llama) -> None:
    more = {"grammar": "root ::= [a-z]+", "repeat_last_n": 32, "tfs_z": 0.5, "ignore_eos": True}
    tropilla.post("/v1/chat/completions", CHAT | more)
    assert old.last().items() >= more.items()


def test_suffix_is_filled_in(tropilla: Client, old: Llama) -> None:
    answer = tropilla.post("/v1/completions", {"prompt": "def f(", "suffix": "): pass"})
    assert answer.choice["text"] == " I'm fine."
    sent = old.last("/infill")
    assert (sent["input_prefix"], sent["input_suffix"]) == ("def f(", "): pass")


def test_echo_comes_back(tropilla: Client) -> None:
    answer = tropilla.post("/v1/completions", {"prompt": "Well,", "echo": True})
    assert answer.choice["text"] == "Well, I'm fine."


def test_logprobs_are_given(tropilla: Client, old: Llama) -> None:
    answer = tropilla.post("/v1/completions", COMPLETION | {"logprobs": 2})
    assert old.last()["n_probs"] == 2
    assert answer.choice["logprobs"]["tokens"][:2] == [" I", "'m"]


def test_token_ids_are_passed_through(tropilla: Client, old: Llama) -> None:
    assert tropilla.post("/v1/completions", {"prompt": [1, 2]}).choice["text"] == " I'm fine."
    assert old.last()["prompt"] == [1, 2]


# Who makes the prompt.


def test_a_server_without_chat_gets_the_classic_template(auto: Client, old: Llama) -> None:
    answer = auto.post("/v1/chat/completions", CHAT)
    assert answer.choice["message"]["content"] == " I'm fine."
    assert old.paths == ["/completion"]
    assert old.last()["prompt"] == PROMPT
    old.says = ["Fine.", "</s>", "USER: x"]
    assert auto.post("/v1/chat/completions", CHAT).choice["message"]["content"] == "Fine."


def test_a_server_with_chat_makes_the_prompt_itself() -> None:
    with llama(chat=True) as double, gateway(double.url) as client:
        answer = client.post("/v1/chat/completions", CHAT)
        assert answer.choice["message"]["content"] == " I'm fine."
        assert double.paths[0] == "/v1/chat/completions"
        assert double.last(double.paths[0])["messages"] == [USER]


def test_the_classic_template_is_used_for_any_server_if_it_is_chosen() -> None:
    with llama(chat=True) as double, gateway(double.url, template=CLASSIC) as client:
        client.post("/v1/chat/completions", CHAT)
        assert (double.paths, double.last()["prompt"]) == (["/completion"], PROMPT)


def test_raw_text_gets_the_stop_text_only_with_the_classic_template(
    auto: Client, gateways: dict[str, Client], old: Llama
) -> None:
    old.says = ["a</s>", "bEND", "c"]
    asked = COMPLETION | {"stop": ["END"]}
    assert auto.post("/v1/completions", asked).choice["text"] == "a</s>b"
    assert gateways["classic"].post("/v1/completions", asked).choice["text"] == "a"


@pytest.mark.parametrize(
    ("more", "param"),
    [
        ({"tools": [{"type": "function", "function": {"name": "f"}}]}, "tools"),
        ({"functions": [{"name": "f"}]}, "tools"),
        ({"messages": [USER, {"role": "tool", "tool_call_id": "c", "content": "4"}]},
         "messages.1.role"),
        ({"messages": [{"role": "user", "content": [
            {"type": "image_url", "image_url": {"url": "data:image/png;base64,AA=="}}]}]},
         "messages.0.content"),
    ],
    ids=["tools", "functions", "tool message", "image"],
)  # fmt: skip
@pytest.mark.parametrize("name", ["auto", "classic"])
def test_what_the_classic_template_cannot_say_is_refused(
    gateways: dict[str, Client], old: Llama, name: str, more: dict[str, Any], param: str
) -> None:
    answer = gateways[name].post("/v1/chat/completions", CHAT | more)
    assert (answer.status, answer.error["param"]) == (400, param)
    assert old.paths == []


# The answer, whole.


def test_a_chat_answer(tropilla: Client) -> None:
    before = int(time.time())
    answer = tropilla.post("/v1/chat/completions", CHAT | {"model": "gpt-3.5-turbo"})
    body = answer.json
    assert (answer.status, answer.headers["content-type"]) == (200, "application/json")
    assert (body["object"], body["model"]) == ("chat.completion", "gpt-3.5-turbo")
    assert body["id"].startswith("chatcmpl-")
    assert before <= body["created"] <= time.time()
    assert answer.choice["index"] == 0
    assert answer.choice["message"]["role"] == "assistant"
    assert answer.choice["message"]["content"] == " I'm fine."
    assert answer.choice["finish_reason"] == "stop"


def test_a_text_answer(tropilla: Client) -> None:
    answer = tropilla.post("/v1/completions", COMPLETION)
    assert answer.json["object"] == "text_completion"
    assert answer.json["id"].startswith("cmpl-")
    assert answer.choice == {
        "index": 0, "text": " I'm fine.", "logprobs": None, "finish_reason": "stop",
    }  # fmt: skip


@pytest.mark.parametrize("prefix", ["", "/v1"])
@pytest.mark.parametrize("path", ["/chat/completions", "/completions"])
def test_the_paths_of_the_script(tropilla: Client, prefix: str, path: str) -> None:
    body = CHAT if "chat" in path else COMPLETION
    assert tropilla.post(prefix + path, body).json["object"].endswith("completion")


def test_usage_is_what_the_server_counted(tropilla: Client) -> None:
    usage = tropilla.post("/v1/completions", COMPLETION).json["usage"]
    counted = {"prompt_tokens": 16, "completion_tokens": 4, "total_tokens": 20}  # BOS and 15
    assert usage.items() >= counted.items()


def test_why_it_stopped(tropilla: Client, old: Llama) -> None:
    def reason(**more: Any) -> Any:
        return tropilla.post("/v1/completions", COMPLETION | more).choice["finish_reason"]

    assert reason() == "stop"  # stopped_eos
    assert reason(stop=["fine"]) == "stop"  # stopped_word
    old.ends = "never"
    assert reason(max_tokens=5) == "length"  # stopped_limit


def test_each_answer_has_an_id_of_its_own(tropilla: Client) -> None:
    first, second = (tropilla.post("/v1/completions", COMPLETION).json["id"] for _ in "ab")
    assert first != second


def test_without_a_model_the_answer_names_the_one_that_is_served(tropilla: Client) -> None:
    assert tropilla.post("/v1/chat/completions", CHAT).json["model"] == NAME


def test_truncated_is_not_told(tropilla: Client) -> None:
    assert "truncated" not in tropilla.post("/v1/completions", COMPLETION).json


# tokenize.


def test_prompt_token_of_a_completion(tropilla: Client, old: Llama) -> None:
    answer = tropilla.post("/v1/completions", COMPLETION | {"tokenize": True})
    assert answer.json["promptToken"] == SEED_IDS
    assert old.paths == ["/tokenize", "/completion"]


def test_prompt_token_of_a_chat_is_of_the_whole_prompt(tropilla: Client, old: Llama) -> None:
    answer = tropilla.post("/v1/chat/completions", CHAT | {"tokenize": True})
    assert old.last("/tokenize") == {"content": PROMPT}
    assert answer.json["promptToken"] == [byte + 3 for byte in PROMPT.encode()]


@BOTH
def test_no_prompt_token_unless_it_is_wanted(
    tropilla: Client, old: Llama, path: str, body: Any
) -> None:
    assert "promptToken" not in tropilla.post(path, body).json
    assert "promptToken" not in tropilla.post(path, body | {"tokenize": False}).json
    assert "/tokenize" not in old.paths


@BOTH
def test_a_stream_has_no_prompt_token_and_does_not_ask_for_it(
    tropilla: Client, old: Llama, path: str, body: Any
) -> None:
    answer = tropilla.post(path, body | {"tokenize": True, "stream": True})
    assert b"promptToken" not in answer.body
    assert old.paths == ["/completion"]


def test_tokenize_is_true_or_false(tropilla: Client) -> None:
    answer = tropilla.post("/v1/completions", COMPLETION | {"tokenize": 1})
    assert (answer.status, answer.error["param"]) == (400, "tokenize")


# The answer, streamed.


def test_a_chat_stream(tropilla: Client) -> None:
    answer = tropilla.post("/v1/chat/completions", CHAT | {"stream": True})
    assert answer.headers["content-type"] == "text/event-stream; charset=utf-8"
    chunks = answer.chunks
    assert {chunk["object"] for chunk in chunks} == {"chat.completion.chunk"}
    assert len({chunk["id"] for chunk in chunks}) == 1
    first, *middle, last = [choice for chunk in chunks for choice in chunk["choices"]]
    assert (first["delta"]["role"], first["delta"]["content"]) == ("assistant", "")
    assert "".join(choice["delta"]["content"] for choice in middle) == " I'm fine."
    assert all(choice["finish_reason"] is None for choice in (first, *middle))
    assert (last["delta"], last["finish_reason"]) == ({}, "stop")


def test_a_text_stream(tropilla: Client, old: Llama) -> None:
    old.ends = "never"
    answer = tropilla.post("/v1/completions", COMPLETION | {"stream": True, "max_tokens": 5})
    chunks = answer.chunks
    assert {chunk["object"] for chunk in chunks} == {"text_completion"}
    choices = [choice for chunk in chunks for choice in chunk["choices"]]
    assert (
        "".join(choice["text"] for choice in choices) == " I'm fine. I"
    )  # of b1496's one too many
    assert choices[-1]["finish_reason"] == "length"


@BOTH
def test_a_stream_tells_usage_only_if_it_is_wanted(tropilla: Client, path: str, body: Any) -> None:
    plain = tropilla.post(path, body | {"stream": True})
    assert not any(chunk.get("usage") for chunk in plain.chunks)
    wanted = {"stream": True, "stream_options": {"include_usage": True}}
    *others, last = tropilla.post(path, body | wanted).chunks
    assert not any(chunk["usage"] for chunk in others)
    assert last["choices"] == []
    assert last["usage"]["completion_tokens"] == 4


# What made the script fail.


@pytest.mark.parametrize("content_type", [None, "application/x-www-form-urlencoded", "text/plain"])
def test_a_body_needs_no_content_type(tropilla: Client, content_type: str | None) -> None:
    headers = {"Content_Type": content_type} if content_type else {}
    answer = tropilla.ask("POST", "/completions", msgspec.json.encode(COMPLETION), **headers)
    assert (answer.status, answer.choice["text"]) == (200, " I'm fine.")


@pytest.mark.parametrize(
    ("path", "needed"), [("/v1/chat/completions", "messages"), ("/v1/completions", "prompt")]
)
def test_a_body_that_is_no_request(tropilla: Client, path: str, needed: str) -> None:
    for body in (b"", b"{", b"null", b"[]", b'"x"', b"{}"):
        answer = tropilla.ask("POST", path, body, Content_Type="application/json")
        assert (answer.status, answer.error["type"]) == (400, "invalid_request_error")
        assert answer.error["param"] == (needed if body == b"{}" else None)


@pytest.mark.parametrize(
    ("fields", "param"),
    [
        ({"stop": 5}, "stop"),
        ({"temperature": "hot"}, "temperature"),
        ({"temperature": 3}, "temperature"),
        ({"max_tokens": -2}, "max_tokens"),
        ({"logit_bias": {"5": 101}}, "logit_bias.0"),
        ({"best_of": 2}, "best_of"),
        ({"prompt": {}}, "prompt"),
    ],
)
def test_a_field_that_cannot_be_is_named(
    tropilla: Client, old: Llama, fields: dict[str, Any], param: str
) -> None:
    answer = tropilla.post("/v1/completions", COMPLETION | fields)
    assert (answer.status, answer.error["param"]) == (400, param)
    assert old.paths == []


def test_a_list_of_biases_is_read(tropilla: Client, old: Llama) -> None:
    pairs = [[15043, -2.5], [13, False]]
    assert tropilla.post("/v1/completions", COMPLETION | {"logit_bias": pairs}).status == 200
    assert old.last()["logit_bias"] == pairs


def test_a_key_that_is_right(old: Llama) -> None:
    with gateway(old.url, api_keys=("k",)) as client:
        for header in ("Bearer k", "bearer k"):
            assert client.post("/v1/completions", COMPLETION, Authorization=header).status == 200


def test_a_key_that_is_wrong_or_missing(old: Llama) -> None:
    with gateway(old.url, api_keys=("k",)) as client:
        answers = [
            client.post("/v1/completions", COMPLETION, Authorization=header)
            for header in ("Bearer wrong", "Bearer", "k", "Basic k")
        ]
        answers.append(client.post("/v1/completions", COMPLETION))
    assert [answer.status for answer in answers] == [401] * 5
    assert {answer.error["code"] for answer in answers} == {"invalid_api_key"}
    assert old.paths == []


def test_options_tells_a_browser_that_it_may_ask(tropilla: Client) -> None:
    answer = tropilla.ask(
        "OPTIONS", "/v1/chat/completions", Origin="https://app.example",
        Access_Control_Request_Headers="authorization, content-type",
    )  # fmt: skip
    assert (answer.status, answer.headers["access-control-allow-origin"]) == (204, "*")
    assert "POST" in answer.headers["access-control-allow-methods"]
    assert "authorization" in answer.headers["access-control-allow-headers"]
    chat = tropilla.post("/v1/chat/completions", CHAT, Origin="https://app.example")
    assert chat.headers["access-control-allow-origin"] == "*"


def test_other_paths_and_methods_are_refused_in_json(tropilla: Client) -> None:
    assert tropilla.post("/v1/nothing", {}).error["code"] == "unknown_url"
    assert tropilla.ask("GET", "/v1/completions").error["code"] == "method_not_allowed"


def test_models_are_listed(tropilla: Client) -> None:
    (model,) = tropilla.ask("GET", "/v1/models").json["data"]
    assert model["id"] == NAME


def test_an_address_without_http_is_reached(old: Llama) -> None:
    with gateway(old.url.removeprefix("http://")) as client:
        assert client.post("/v1/completions", COMPLETION).status == 200


def test_the_path_of_the_address_is_kept() -> None:
    with llama(base="/base") as double, gateway(double.url) as client:
        assert double.url.endswith("/base")
        assert client.post("/v1/completions", COMPLETION).status == 200
        assert double.paths == ["/completion"]


@pytest.mark.usefixtures("hasty_probes")
def test_a_server_that_is_down() -> None:
    with llama() as double:
        url = double.url
    with gateway(url) as client:
        for stream in (False, True):
            answer = client.post("/v1/completions", COMPLETION | {"stream": stream})
            assert (answer.status, answer.error["code"]) == (503, "no_upstream")
            assert url in answer.error["message"]


@BOTH
@pytest.mark.parametrize("stream", [False, True])
def test_the_servers_own_404_is_no_answer(
    tropilla: Client,
    old: Llama,
    path: str,
    body: Any,
    stream: bool,  # noqa: FBT001
) -> None:
    old.gone = {"/completion"}
    answer = tropilla.post(path, body | {"stream": stream})
    assert (answer.status, answer.error["code"]) == (502, "upstream_error")
    assert "File Not Found" in answer.error["message"]


@pytest.mark.parametrize("stream", [False, True])
def test_a_server_without_a_free_slot_is_asked_until_it_has_one(
    tropilla: Client,
    old: Llama,
    stream: bool,  # noqa: FBT001
) -> None:
    old.busy = 3
    answer = tropilla.post("/v1/completions", COMPLETION | {"stream": stream})
    assert answer.status == 200
    assert old.paths == ["/completion"] * 4


@pytest.mark.parametrize("stream", [False, True])
def test_a_server_that_never_has_a_free_slot_is_told_of(
    tropilla: Client,
    old: Llama,
    monkeypatch: pytest.MonkeyPatch,
    stream: bool,  # noqa: FBT001
) -> None:
    monkeypatch.setattr(exchange, "BUSY_SECONDS", (0.01,))
    old.busy = 9
    answer = tropilla.post("/v1/completions", COMPLETION | {"stream": stream})
    assert (answer.status, answer.error["code"]) == (503, "no_free_slot")
    assert old.paths == ["/completion"] * 2
