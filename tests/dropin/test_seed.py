"""The examples of the page that this project began with, as they are written there.

Only addresses and ports are others: what the page asks of a llama.cpp server and what it asks of
`api_like_OAI.py` is here asked of one Tropilla. It runs in front of the server that the page had,
and with the engine of today. The page has links to AFS, but no example of it.
"""

from __future__ import annotations

import ast
import re
import shlex
import shutil
import subprocess
import sys
from collections.abc import Iterator
from contextlib import ExitStack
from typing import Any, NamedTuple

import msgspec
import pytest

from doubles.llama_b1496 import SEED_IDS, SEED_PROMPT, Llama, llama

# The page.

SERVER = r"""python api_like_OAI.py \
--llama-api http://10.78.26.241:40081 \
--host 0.0.0.0 \
--port 40082"""

COMPLETIONS = r"""curl -X POST http://10.78.26.241:40082/completions \
-H 'Content-Type: application/json' \
-d '{"n_predict":400,"prompt":"Nice to meet you!\n\nHuman: hi\nAssistant:"}'"""

COMPLETIONS_TOKENIZED = r"""curl -X POST http://10.78.26.241:40082/completions \
-H 'Content-Type: application/json' \
-d '{"n_predict":400,"prompt":"Nice to meet you!\n\nHuman: hi\nAssistant:", "tokenize": true}'"""

TOKENIZE = (
    r"""curl -X POST http://10.78.26.241:40081/tokenize """
    r"""-d '{"content": "Nice to meet you!\n\nHuman: hi\nAssistant:"}'"""
)
TOKENIZE_AGAIN = (
    """curl -X POST http://10.78.26.241:30080/tokenize """
    """-d '{"content": " I am a bit confused about your question. What do"}'"""
)
COMPLETION = (
    """curl -X POST http://10.78.26.241:40081/completion """
    """-d '{"n_predict":200, "prompt": "Hello!"}'"""
)
COMPLETION_STREAMED = (
    """curl -X POST http://10.78.26.241:40081/completion """
    """-d '{"n_predict":200, "prompt": "Hello!", "stream": true}'"""
)

# What it answered; the text is cut short here.
COMPLETION_ANSWER = """{
"content":" I'm excited to be here and share my experiences with you.",
"generation_settings":{
"frequency_penalty":0.0,
"grammar":"",
"ignore_eos":false,
"logit_bias":[
],
"mirostat":0,
"mirostat_eta":0.10000000149011612,
"mirostat_tau":5.0,
"model":"/home/*****/LLM_Models/TheBloke/Llama-2-7b-Chat-GGUF/llama-2-7b-chat.Q4_K_M.gguf",
"n_ctx":512,
"n_keep":0,
"n_predict":200,
"n_probs":0,
"penalize_nl":true,
"presence_penalty":0.0,
"repeat_last_n":64,
"repeat_penalty":1.100000023841858,
"seed":4294967295,
"stop":[
],
"stream":false,
"temp":0.800000011920929,
"tfs_z":1.0,
"top_k":40,
"top_p":0.949999988079071,
"typical_p":1.0
},
"model":"/home/*****/LLM_Models/TheBloke/Llama-2-7b-Chat-GGUF/llama-2-7b-chat.Q4_K_M.gguf",
"prompt":"Hello!",
"slot_id":0,
"stop":true,
"stopped_eos":true,
"stopped_limit":false,
"stopped_word":false,
"stopping_word":"",
"timings":{
"predicted_ms":7999.853,
"predicted_n":71,
"predicted_per_second":8.875163081121615,
"predicted_per_token_ms":112.67398591549296,
"prompt_ms":291.459,
"prompt_n":3,
"prompt_per_second":10.29304293228207,
"prompt_per_token_ms":97.153
},
"tokens_cached":74,
"tokens_evaluated":3,
"tokens_predicted":71,
"truncated":false
}"""
COMPLETION_PIECE = """{"content":" I","multimodal":false,"slot_id":0,"stop":false}"""

PYTHON = """import requests
USER_PROMPT = 'Hello'
url = 'http://10.78.26.241:40081/completion'
headers = {}
body = {
"n_predict":5,
"prompt": f'{USER_PROMPT}',
"stream": True
}
res = requests.post(url=url, headers=headers, json=body, stream=True)
print(res)
for line in res.iter_lines():
    print(line)
"""
FINISH_REASON = (
    """finish_reason = "stop" if (data["stopped_eos"] or data["stopped_word"]) """
    """else "length_limit\""""
)

CHUNKS = """\
{"id":"chatcmpl-123","object":"chat.completion.chunk","created":1694268190,\
"model":"gpt-3.5-turbo-0613", "system_fingerprint": "fp_44709d6fcb", \
"choices":[{"index":0,"delta":{"role":"assistant","content":""},"finish_reason":null}]}
{"id":"chatcmpl-123","object":"chat.completion.chunk","created":1694268190,\
"model":"gpt-3.5-turbo-0613", "system_fingerprint": "fp_44709d6fcb", \
"choices":[{"index":0,"delta":{"content":"Hello"},"finish_reason":null}]}
{"id":"chatcmpl-123","object":"chat.completion.chunk","created":1694268190,\
"model":"gpt-3.5-turbo-0613", "system_fingerprint": "fp_44709d6fcb", \
"choices":[{"index":0,"delta":{},"finish_reason":"stop"}]}"""

# The page lost its indentation.
CONVERT_CHAT = r"""chat_prompt='A chat between a curious user and an artificial intelligence assistant. The assistant follows the given rules no matter what.\\n'
user_name="\\nUSER: "
ai_name="\\nASSISTANT: "
system_name="\\nASSISTANT's RULE: "
session_stop="</s>"
def convert_chat(messages):
    prompt = "" + chat_prompt.replace("\\n", "\n")
    system_n = system_name.replace("\\n", "\n")
    user_n = user_name.replace("\\n", "\n")
    ai_n = ai_name.replace("\\n", "\n")
    stop = session_stop.replace("\\n", "\n")
    for line in messages:
        if (line["role"] == "system"):
            prompt += f"{system_n}{line['content']}"
        if (line["role"] == "user"):
            prompt += f"{user_n}{line['content']}"
        if (line["role"] == "assistant"):
            prompt += f"{ai_n}{line['content']}{stop}"
    prompt += ai_n.rstrip()
    return prompt
messages = [
{"role":"system", "content":"You are an assistant."},
{"role":"user", "content":"How are you?"},
{"role":"assistant", "content":"I'm fine. And you?"},
{"role":"user", "content":"Fine. Thanks."},
]
"""  # noqa: E501 - as it is written there


# What runs.


class Served(NamedTuple):
    """A Tropilla that was started as the page starts the script, and the server behind it."""

    address: str
    old: Llama | None

    def here(self, text: str) -> str:
        """An example, with this address for each of the page's."""
        return re.sub(r"http://10\.78\.26\.241:\d+", self.address, text)

    def run(self, command: str) -> bytes:
        """What a line of the page prints."""
        line = self.here(command).replace("curl", "curl -sS", 1)
        done = subprocess.run(["sh", "-c", line], capture_output=True, timeout=60, check=True)
        return done.stdout


@pytest.fixture(scope="module", params=["2023", "today"])
def served(request: pytest.FixtureRequest) -> Iterator[Served]:
    with ExitStack() as stack:
        old = stack.enter_context(llama()) if request.param == "2023" else None
        _, _, flag, _, *listen = shlex.split(SERVER.replace("\\\n", ""))
        listen[listen.index("40082")] = "0"
        command = [sys.executable, "-m", "tropilla", "serve", *listen]
        command += [flag, old.url] if old else []  # without, the engine of today runs
        process = stack.enter_context(
            subprocess.Popen(command, stdout=subprocess.PIPE, stderr=subprocess.DEVNULL, text=True)
        )
        stack.callback(process.terminate)
        assert process.stdout is not None
        found = re.search(r"listens on http://[^/]+:(\d+)/v1", process.stdout.readline())
        assert found
        yield Served(f"http://127.0.0.1:{found[1]}", old)


pytestmark = pytest.mark.skipif(shutil.which("curl") is None, reason="curl is not on this machine")


def shape(value: Any) -> Any:
    """The fields of a value, and of what kind each is."""
    if isinstance(value, dict):
        return {name: shape(item) for name, item in value.items()}
    if type(value) in {int, float}:
        return "number"
    return type(value).__name__


def check_fields(answer: Any, page: Any) -> None:
    """Every field that the page shows is there, and of the same kind."""
    shown, told = shape(page), shape(answer)
    for name, kind in shown.items():
        if isinstance(kind, dict):
            assert told[name].items() >= kind.items(), name
        else:
            assert told[name] == kind, name


def data_of(lines: list[bytes]) -> list[Any]:
    """The data of a stream, line by line; `iter_lines` loses an empty one now and then."""
    told = [line for line in lines if line]
    assert all(line.startswith(b"data: ") for line in told), told
    return [msgspec.json.decode(line.removeprefix(b"data: ")) for line in told]


# To the script.


def test_completions(served: Served) -> None:
    answer = msgspec.json.decode(served.run(COMPLETIONS))
    (choice,) = answer["choices"]
    assert choice["text"]
    assert choice["finish_reason"] in {"stop", "length"}
    assert answer["usage"]["total_tokens"] > answer["usage"]["prompt_tokens"] > 0
    assert "promptToken" not in answer
    if served.old:
        sent = served.old.last()
        assert (sent["prompt"], sent["n_predict"]) == (SEED_PROMPT, 400)


def test_completions_without_a_content_type_failed_then(served: Served) -> None:
    line = COMPLETIONS.replace("-H 'Content-Type: application/json' \\\n", "")
    assert "-H" not in line
    assert msgspec.json.decode(served.run(line))["choices"][0]["text"]


def test_completions_with_the_tokens_of_the_prompt(served: Served) -> None:
    answer = msgspec.json.decode(served.run(COMPLETIONS_TOKENIZED))
    assert answer["choices"][0]["text"]
    tokens = msgspec.json.decode(served.run(TOKENIZE))["tokens"]
    assert answer["promptToken"] == tokens


def test_the_chunks_of_a_chat(served: Served) -> None:
    first, middle, last = map(msgspec.json.decode, CHUNKS.splitlines())
    body = '{"messages":[{"role":"user","content":"Hello!"}],"stream":true,"max_tokens":400}'
    lines = served.run(
        f"curl -X POST http://10.78.26.241:40082/v1/chat/completions -d '{body}'"
    ).splitlines()
    assert lines[-2:] == [b"data: [DONE]", b""]
    begin, *pieces, end = data_of(lines[:-2])
    for told, page in ((begin, first), *((piece, middle) for piece in pieces), (end, last)):
        # A server of 2023 does not say which build it is.
        fields = page.keys() - ({"system_fingerprint"} if served.old else set())
        assert told.keys() >= fields
        assert told["object"] == page["object"]
        ((said,), (shown,)) = told["choices"], page["choices"]
        assert said.keys() >= shown.keys()
        assert said["delta"].keys() >= shown["delta"].keys()
        assert said["finish_reason"] == shown["finish_reason"]
    assert begin["choices"][0]["delta"].items() >= first["choices"][0]["delta"].items()
    assert end["choices"][0]["delta"] == {}
    assert len({chunk["id"] for chunk in (begin, *pieces, end)}) == 1


def test_the_prompt_of_a_chat(served: Served) -> None:
    page: dict[str, Any] = {}
    exec(CONVERT_CHAT, page)
    prompt = page["convert_chat"](page["messages"])
    assert prompt == (
        "A chat between a curious user and an artificial intelligence assistant. The assistant "
        "follows the given rules no matter what.\n\nASSISTANT's RULE: You are an assistant.\n"
        "USER: How are you?\nASSISTANT: I'm fine. And you?</s>\nUSER: Fine. Thanks.\nASSISTANT:"
    )
    body = shlex.quote(msgspec.json.encode({"messages": page["messages"]}).decode())
    served.run(f"curl -X POST http://10.78.26.241:40082/chat/completions -d {body}")
    if served.old:
        assert served.old.last()["prompt"] == prompt


# To the server.


def test_tokenize(served: Served) -> None:
    tokens = msgspec.json.decode(served.run(TOKENIZE)).pop("tokens")
    assert all(type(token) is int for token in tokens)
    if served.old:
        assert tokens == SEED_IDS
    again = msgspec.json.decode(served.run(TOKENIZE_AGAIN))
    assert again.keys() == {"tokens"}
    assert again["tokens"]


def test_a_completion(served: Served) -> None:
    answer = msgspec.json.decode(served.run(COMPLETION))
    page = msgspec.json.decode(COMPLETION_ANSWER)
    check_fields(answer, page)
    assert answer["content"]
    assert answer["stop"] is True
    assert answer["generation_settings"]["n_predict"] == 200


def test_a_completion_that_is_streamed(served: Served) -> None:
    *pieces, last = data_of(served.run(COMPLETION_STREAMED).splitlines())
    for piece in pieces:
        check_fields(piece, msgspec.json.decode(COMPLETION_PIECE))
        assert piece["stop"] is False
    check_fields(last, msgspec.json.decode(COMPLETION_ANSWER))
    assert (last["content"], last["stop"]) == ("", True)
    assert last["generation_settings"]["stream"] is True
    assert "".join(piece["content"] for piece in pieces)


def test_the_program(served: Served) -> None:
    if served.old:
        served.old.ends = "never"
    done = subprocess.run(
        [sys.executable, "-c", served.here(PYTHON)], capture_output=True, timeout=60, check=True
    )
    status, *printed = done.stdout.decode().splitlines()
    assert status == "<Response [200]>"
    *pieces, last = data_of([ast.literal_eval(line) for line in printed])
    for piece in pieces:
        check_fields(piece, msgspec.json.decode(COMPLETION_PIECE))
    check_fields(last, msgspec.json.decode(COMPLETION_ANSWER))
    assert last["tokens_predicted"] <= 5  # today's model may have said all before
    if served.old:
        found: dict[str, Any] = {"data": last}
        exec(FINISH_REASON, found)
        assert found["finish_reason"] == "length_limit"


def test_a_path_that_is_not_there(served: Served) -> None:
    told = served.run("curl -X POST http://10.78.26.241:40081/nothing")
    assert b"File Not Found" in told
