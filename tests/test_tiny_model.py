"""The model that ships with Tropilla: its bytes, and what the real engine writes with it."""

from __future__ import annotations

import contextlib
import hashlib
import http.client
import os
import re
import socket
import subprocess
import sys
import tempfile
import time
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any

import msgspec
import pytest

ROOT = Path(__file__).resolve().parent.parent
MODEL = ROOT / "src" / "tropilla" / "models" / "tiny.gguf"
SCRIPT = ROOT / "tools" / "make_tiny_model.py"
CORPUS = ROOT / "tools" / "tiny_corpus.txt"
SHA256 = "a80af0c584f287ea06df756f6afbe49a2d712202ee9fc8ab6ea16e66b519076e"
PATIENCE = 60.0

# The engine lives as long as its standard input: it cannot outlive the tests.
ENGINE = """
import sys, xllamacpp
params = xllamacpp.CommonParams()
params.model.path, params.hostnames = sys.argv[1], [sys.argv[2]]
params.n_parallel, params.n_ctx, params.use_jinja, params.warmup = 4, 8192, True, False
server = xllamacpp.Server(params)
sys.stdin.read()
"""

TOOLS = [
    {
        "type": "function",
        "function": {
            "name": "get_weather",
            "parameters": {
                "type": "object",
                "properties": {"city": {"type": "string"}, "days": {"type": "integer"}},
                "required": ["city", "days"],
            },
        },
    }
]

Ask = Callable[..., Any]


class UnixConnection(http.client.HTTPConnection):
    def __init__(self, path: str) -> None:
        super().__init__("localhost", timeout=PATIENCE)
        self._path = path

    def connect(self) -> None:
        self.sock = socket.socket(socket.AF_UNIX, socket.SOCK_STREAM)
        self.sock.settimeout(self.timeout)
        self.sock.connect(self._path)


def fetch(path: str, route: str, body: Any = None) -> tuple[int, bytes]:
    with contextlib.closing(UnixConnection(path)) as connection:
        if body is None:
            connection.request("GET", route)
        else:
            connection.request("POST", route, msgspec.json.encode(body))
        response = connection.getresponse()
        return response.status, response.read()


def wait_until_healthy(child: subprocess.Popen[bytes], path: str) -> None:
    deadline = time.monotonic() + PATIENCE
    while time.monotonic() < deadline:
        with contextlib.suppress(OSError):
            if fetch(path, "/health")[0] == 200:
                return
        with contextlib.suppress(subprocess.TimeoutExpired):
            pytest.fail(f"the engine ended with {child.wait(0.02)}")
    pytest.fail("the engine did not become healthy")


@pytest.fixture(scope="module")
def ask() -> Iterator[Ask]:
    """Ask the engine something: a route, and the fields of the body if it is a POST."""
    pytest.importorskip("xllamacpp")
    with tempfile.TemporaryDirectory() as folder:
        path = f"{folder}/x.sock"
        command = [sys.executable, "-c", ENGINE, str(MODEL), path]
        child = subprocess.Popen(command, stdin=subprocess.PIPE, stderr=subprocess.DEVNULL)

        def ask(route: str, **body: Any) -> Any:
            status, answer = fetch(path, route, body or None)
            assert status == 200, answer
            return msgspec.json.decode(answer)

        try:
            wait_until_healthy(child, path)
            yield ask
        finally:
            child.kill()
            child.communicate(timeout=PATIENCE)


def chat(ask: Ask, text: str, **fields: Any) -> Any:
    messages = [{"role": "user", "content": text}]
    body = {"messages": messages, "max_tokens": 300, **fields}
    return ask("/v1/chat/completions", **body)["choices"][0]


def words(text: str) -> list[str]:
    return re.findall("[a-z]+", text.lower())


def test_the_committed_file_is_the_known_one() -> None:
    assert hashlib.sha256(MODEL.read_bytes()).hexdigest() == SHA256


def test_rebuilding_gives_the_same_bytes() -> None:
    pytest.importorskip("gguf")
    # More threads would wait for each other on a busy machine.
    alone = os.environ | {"OPENBLAS_NUM_THREADS": "1"}
    command = [sys.executable, str(SCRIPT), "--check"]
    subprocess.run(command, check=True, timeout=10 * PATIENCE, env=alone)


def test_it_writes_varied_english(ask: Ask) -> None:
    known = set(words(CORPUS.read_text(encoding="utf-8")))
    choices = [chat(ask, "Tell me a story", seed=s, temperature=0.8) for s in range(12)]
    texts = [choice["message"]["content"] for choice in choices]
    written = words(" ".join(texts))
    assert sum(word in known for word in written) >= 0.8 * len(written)
    assert len(written) >= 12 * 5
    assert len(set(texts)) >= 9
    assert len({text.partition(".")[0] for text in texts}) >= 5


def test_it_ends_its_answers(ask: Ask) -> None:
    choices = [chat(ask, "Hello!", seed=seed, temperature=0.8) for seed in range(12)]
    assert sum(choice["finish_reason"] == "stop" for choice in choices) >= 11


def test_it_goes_on_if_it_must(ask: Ask) -> None:
    choice = chat(ask, "Hello!", ignore_eos=True, max_tokens=500, seed=1)
    assert choice["finish_reason"] == "length"
    assert len(set(words(choice["message"]["content"]))) > 50


@pytest.mark.parametrize("topic", ["story", "llama", "weather", "wool", "food", "night", "model"])
def test_temperature_zero_is_deterministic_and_ends(ask: Ask, topic: str) -> None:
    first, second = (chat(ask, f"The {topic}?", temperature=0, seed=seed) for seed in (1, 2))
    assert first["message"] == second["message"]
    assert first["finish_reason"] == "stop"


def test_the_answer_depends_on_the_question(ask: Ask) -> None:
    about = {
        topic: {chat(ask, f"The {topic}?", seed=seed)["message"]["content"] for seed in range(8)}
        for topic in ("weather", "wool")
    }
    assert len(about["weather"] & about["wool"]) <= 2


def test_it_remembers_the_question_over_a_long_prompt(ask: Ask) -> None:
    long = "The llamas walk on the path. " * 250 + "And now the weather?"
    choice = chat(ask, long, temperature=0)
    assert choice["message"] == chat(ask, "The weather?", temperature=0)["message"]


@pytest.mark.parametrize("temperature", [0.0, 0.8, 1.5])
def test_json_mode(ask: Ask, temperature: float) -> None:
    form = {"type": "json_object"}
    for seed in range(4):
        fields = {"seed": seed, "temperature": temperature, "max_tokens": 200}
        choice = chat(ask, "Some JSON, please", response_format=form, **fields)
        assert isinstance(msgspec.json.decode(choice["message"]["content"]), dict)


def test_the_template_knows_tools(ask: Ask) -> None:
    capabilities = ask("/props")["chat_template_caps"]
    assert capabilities["supports_tools"]
    assert capabilities["supports_tool_calls"]
    assert capabilities["supports_system_role"]


@pytest.mark.parametrize("tool_choice", ["required", "auto"])
def test_it_calls_a_tool(ask: Ask, tool_choice: str) -> None:
    choice = chat(ask, "How is the weather in Lima?", tools=TOOLS, tool_choice=tool_choice, seed=1)
    assert choice["finish_reason"] == "tool_calls"
    (call,) = choice["message"]["tool_calls"]
    assert call["function"]["name"] == "get_weather"
    arguments = msgspec.json.decode(call["function"]["arguments"])
    assert isinstance(arguments["city"], str)
    assert isinstance(arguments["days"], int)


def test_it_speaks_after_the_result_of_a_tool(ask: Ask) -> None:
    function = {"name": "get_weather", "arguments": '{"city": "Lima", "days": 1}'}
    messages = [
        {"role": "system", "content": "Be kind."},
        {"role": "user", "content": "How is the weather in Lima?"},
        {
            "role": "assistant",
            "content": None,
            "tool_calls": [{"id": "1", "type": "function", "function": function}],
        },
        {"role": "tool", "tool_call_id": "1", "content": "sunny"},
    ]
    answer = ask("/v1/chat/completions", messages=messages, tools=TOOLS, seed=1, max_tokens=300)
    (choice,) = answer["choices"]
    assert choice["finish_reason"] == "stop"
    assert words(choice["message"]["content"])


def test_infill(ask: Ask) -> None:
    fields = {"input_prefix": "The llama went home. ", "input_suffix": " It was night."}
    assert words(ask("/infill", **fields, n_predict=100, seed=1)["content"])


@pytest.mark.parametrize("prompt", ["", "Once upon a time", "Über 99 ¿?"])
def test_completion_of_any_prompt(ask: Ask, prompt: str) -> None:
    answer = ask("/v1/completions", prompt=prompt, max_tokens=50, seed=1)
    assert words(answer["choices"][0]["text"])


@pytest.mark.parametrize(
    "text",
    ["Hello, wörld 😀\n\n\ttab", " The llamas  are calm. ", "{'x': [1, 2]}", "日本語", "a\0b\r\n"],
)
def test_tokens_round_trip(ask: Ask, text: str) -> None:
    tokens = ask("/tokenize", content=text)["tokens"]
    assert ask("/detokenize", tokens=tokens)["content"] == text


def test_common_words_are_one_token(ask: Ask) -> None:
    assert len(ask("/tokenize", content=" the llamas and the weather")["tokens"]) == 5
