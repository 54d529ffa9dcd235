"""Servers that speak OpenAI's API and are no llama.cpp, through a real gateway."""

from __future__ import annotations

import asyncio
import ssl
from collections.abc import AsyncIterator, Awaitable, Callable
from contextlib import asynccontextmanager, suppress
from pathlib import Path
from typing import Any

import msgspec
import pytest
import trustme

from conftest import CHAT, Answer, Serve, Served
from doubles.openai import OpenAiDouble
from doubles.upstream import DONE, Double, answers, chunk, event, streams, told
from serving import ask, serving
from tropilla.config import ModelConfig, UpstreamConfig
from tropilla.upstream import fleet

pytestmark = pytest.mark.anyio

FORMS = pytest.mark.parametrize("stream", [False, True], ids=["whole", "stream"])
PATH, TEXT = "/v1/chat/completions", "/v1/completions"
USAGE = {"include_usage": True}
Servers = Callable[..., Awaitable[OpenAiDouble]]


@pytest.fixture
async def servers(anyio_backend: Any) -> AsyncIterator[Servers]:  # noqa: ARG001
    """Start servers that are no llama.cpp; they end with the test."""
    started: list[OpenAiDouble] = []

    async def start(**settings: Any) -> OpenAiDouble:
        double = OpenAiDouble(**settings)
        started.append(double)
        await double.start()
        return double

    yield start
    for double in started:
        await double.stop()


def at(url: str, model: str | None = None, dialect: Any = "openai", **more: Any) -> Any:
    """A config's models: `m`, wherever it is and whatever it is called there."""
    upstream = UpstreamConfig(url=url, dialect=dialect, model=model, **more)
    return {"m": ModelConfig(upstreams=(upstream,), aliases=("gpt-4", "org/m"))}


async def chat(tropilla: Served, *, stream: bool, **fields: Any) -> Answer:
    if stream:
        fields["stream_options"] = USAGE
    return await tropilla.chat(stream=stream, **fields)


def heard(answer: Answer) -> tuple[str, str]:
    """The text and the reason of an answer, whole or streamed."""
    assert answer.status == 200, answer.body
    if answer.headers["content-type"] == "application/json":
        (choice,) = answer.json["choices"]
        return choice["message"]["content"], choice["finish_reason"]
    *chunks, last, done = answer.events
    assert (last["choices"], done) == ([], "[DONE]")
    return answer.text, chunks[-1]["choices"][0]["finish_reason"]


def usage(answer: Answer) -> Any:
    whole = answer.headers["content-type"] == "application/json"
    return (answer.json if whole else answer.events[-2])["usage"]


# What is asked, and where.


@FORMS
@pytest.mark.parametrize("base", ["/v1", "", "/openai/v1"])
async def test_wherever_its_paths_are(
    gateway: Serve, servers: Servers, base: str, *, stream: bool
) -> None:
    double = await servers(base=base, key="secret")
    url = double.url + base.removesuffix("/v1")
    tropilla = await gateway(models=at(url, api_key="secret", headers={"X-Team": "a"}))
    assert heard(await chat(tropilla, stream=stream)) == (" I'm fine.", "stop")
    asked = double.asked[-1]
    assert asked.path == f"{base}/chat/completions"
    assert asked.headers["authorization"] == "Bearer secret"
    assert asked.headers["x-team"] == "a"
    assert asked.body["stream_options"] == USAGE


async def test_it_is_recognised(gateway: Serve, servers: Servers) -> None:
    double = await servers(models=("m",))
    tropilla = await gateway(double.url)
    traits = tropilla.fleet.upstreams[0].traits
    assert (traits.dialect, traits.tokenizer, traits.strict) == ("openai", "vllm", False)
    assert heard(await chat(tropilla, stream=False)) == (" I'm fine.", "stop")


@FORMS
async def test_a_model_by_every_name(gateway: Serve, servers: Servers, *, stream: bool) -> None:
    double = await servers(models=("meta-llama/Llama-3.1-8B", "other"))
    tropilla = await gateway(models=at(double.url, "meta-llama/Llama-3.1-8B"))
    for name in ("m", "gpt-4", "org/m"):
        answer = await chat(tropilla, stream=stream, model=name)
        assert double.last()["model"] == "meta-llama/Llama-3.1-8B"
        body = answer.events[0] if stream else answer.json
        assert body["model"] == name
    assert (await chat(tropilla, stream=False, model="other")).status == 404


async def test_its_models_are_found(gateway: Serve, servers: Servers) -> None:
    double = await servers(models=("meta-llama/Llama-3.1-8B", "other"))
    tropilla = await gateway(double.url)
    listed = (await tropilla.ask("GET", "/v1/models")).json["data"]
    assert {one["id"] for one in listed} == set(double.models)
    for name in double.models:
        assert (await chat(tropilla, stream=False, model=name)).json["model"] == name
        assert double.last()["model"] == name


async def test_a_server_without_a_list_of_models(gateway: Serve, servers: Servers) -> None:
    double = await servers(models=())
    tropilla = await gateway(models=at(double.url, "there"))
    assert heard(await chat(tropilla, stream=True)) == (" I'm fine.", "stop")
    assert double.last()["model"] == "there"


@FORMS
async def test_text_several_prompts_and_echo(
    gateway: Serve, servers: Servers, *, stream: bool
) -> None:
    double = await servers(says=[" one", " two"])
    tropilla = await gateway(models=at(double.url))
    body = {"model": "m", "prompt": ["a", "b"], "echo": True, "stream": stream}
    answer = await tropilla.ask("POST", TEXT, body)
    bodies = answer.events[:-1] if stream else [answer.json]
    texts = {0: "", 1: ""}
    for one in bodies:
        for choice in one["choices"]:
            texts[choice["index"]] += choice["text"]
    assert texts == {0: "a one two", 1: "b one two"}


OLD_SHAPE = {
    "tokens": [" I"],
    "token_logprobs": [-0.5],
    "top_logprobs": [{" I": -0.5, " We": -1.5}],
    "text_offset": [6],
}


@FORMS
async def test_probabilities_in_the_old_shape(
    gateway: Serve, double: Double, *, stream: bool
) -> None:
    choice = {"index": 0, "text": " I", "logprobs": OLD_SHAPE, "finish_reason": None}
    end = {"index": 0, "text": "", "logprobs": None, "finish_reason": "stop"}
    double.on(TEXT, streams(event({"choices": [choice]}), event({"choices": [end]}), DONE))
    tropilla = await gateway(models=at(double.url))
    body = {"model": "m", "prompt": "a", "logprobs": 2, "stream": stream}
    answer = await tropilla.ask("POST", TEXT, body)
    first = answer.events[0] if stream else answer.json
    assert double.requests[-1].json["logprobs"] == 2
    assert first["choices"][0]["logprobs"] == OLD_SHAPE | {"text_offset": [0]}


@FORMS
@pytest.mark.parametrize("name", ["reasoning", "reasoning_content"])
async def test_a_thought_is_heard_under_both_names(
    gateway: Serve, servers: Servers, name: str, *, stream: bool
) -> None:
    double = await servers(thinks=["Hm", "."], thinks_as=name)
    tropilla = await gateway(models=at(double.url))
    answer = await chat(tropilla, stream=stream)
    choices = [one["choices"] for one in answer.events[:-1]] if stream else [answer.json["choices"]]
    said = [choice[0]["delta" if stream else "message"] for choice in choices if choice]
    for either in ("reasoning", "reasoning_content"):
        assert "".join(one.get(either) or "" for one in said) == "Hm."


@FORMS
async def test_tools(gateway: Serve, servers: Servers, *, stream: bool) -> None:
    calls = tuple({"name": name, "arguments": '{"a":1}'} for name in ("f", "g"))
    double = await servers(calls=calls)
    tropilla = await gateway(models=at(double.url))
    named = [{"type": "function", "function": {"name": name}} for name in ("f", "g")]
    tools = [one | {"cache_control": {"type": "x"}} for one in named]
    chosen = {"type": "allowed_tools", "allowed_tools": {"mode": "required", "tools": named}}
    answer = await chat(tropilla, stream=stream, tools=tools, tool_choice=chosen)
    assert (double.last()["tools"], double.last()["tool_choice"]) == (tools, chosen)
    if stream:
        deltas = [one["choices"][0]["delta"] for one in answer.events[:-2]]
        found = [call for delta in deltas for call in delta.get("tool_calls", ())]
        called = [call["function"]["name"] for call in found if "id" in call]
        arguments = "".join(call["function"]["arguments"] for call in found)
    else:
        found = answer.json["choices"][0]["message"]["tool_calls"]
        called = [call["function"]["name"] for call in found]
        arguments = "".join(call["function"]["arguments"] for call in found)
    assert (called, arguments) == (["f", "g"], '{"a":1}{"a":1}')


@FORMS
@pytest.mark.parametrize("told_in", ["asked", "always", "every"])
@pytest.mark.parametrize("path", [PATH, TEXT])
async def test_usage_wherever_it_is_told(
    gateway: Serve, servers: Servers, told_in: Any, path: str, *, stream: bool
) -> None:
    double = await servers(usage=told_in)
    tropilla = await gateway(models=at(double.url))
    body = CHAT | {"prompt": "Hello!", "stream": stream}
    body |= {"stream_options": USAGE} if stream else {}
    told_ = usage(await tropilla.ask("POST", path, body))
    assert (told_["completion_tokens"], "estimated" in told_) == (4, False)


@FORMS
@pytest.mark.parametrize("loss", ["done", "role"])
async def test_what_some_streams_lack(
    gateway: Serve, servers: Servers, loss: str, *, stream: bool
) -> None:
    double = await servers(**{loss: False})
    tropilla = await gateway(models=at(double.url))
    assert heard(await chat(tropilla, stream=stream)) == (" I'm fine.", "stop")


# What it does not know.


async def test_what_is_dropped_is_named(gateway: Serve, servers: Servers) -> None:
    double = await servers()
    tropilla = await gateway(models=at(double.url))
    answer = await chat(tropilla, stream=False, top_k=5, mirostat=2, cache_prompt=True)
    assert answer.headers["x-tropilla-dropped"] == "mirostat, cache_prompt"
    body = double.last()
    assert body["top_k"] == 5
    assert not {"mirostat", "cache_prompt"} & body.keys()


@pytest.mark.parametrize("fields", [{"grammar": "root ::= 'a'"}, {"logit_bias": [["a", 1]]}])
async def test_what_must_not_be_dropped_is_refused(
    gateway: Serve, servers: Servers, fields: Any
) -> None:
    double = await servers()
    tropilla = await gateway(models=at(double.url))
    asked = len(double.asked)
    answer = await chat(tropilla, stream=False, **fields)
    assert (answer.status, answer.error["code"]) == (400, "unsupported_value")
    assert answer.error["param"] == next(iter(fields))
    assert len(double.asked) == asked


async def test_an_address_in_a_message_is_refused_for_every_upstream(
    gateway: Serve, double: Double, servers: Servers
) -> None:
    other = await servers()
    part = {"type": "image_url", "image_url": {"url": "http://127.0.0.1:9/x.png"}}
    for models in (at(double.url, dialect="llamacpp"), at(other.url)):
        tropilla = await gateway(models=models)
        answer = await chat(tropilla, stream=True, messages=[{"role": "user", "content": [part]}])
        assert answer.status == 400
        assert answer.error["param"] == "messages.0.content.0.image_url.url"
        assert "fetches nothing" in answer.error["message"]
    assert double.requests == []


# Of OpenAI's own server only the address is known before it is asked.


@pytest.mark.parametrize(
    ("url", "strict"),
    [
        ("https://api.openai.com/v1", True),
        ("https://eu.api.openai.com", True),
        ("https://me.openai.azure.com/openai/v1", True),
        ("https://me.services.ai.azure.com/", True),
        ("https://notopenai.com", False),
        ("https://openai.com.example.org", False),
        ("http://127.0.0.1:8000/openai.com", False),
        ("https://openai.com@example.org", False),
        ("unix:///run/openai.com", False),
    ],
)
def test_whose_address_it_is(url: str, *, strict: bool) -> None:
    from tropilla.upstream import probe

    assert probe._is_strict(url) is strict


@FORMS
async def test_openai_is_told_the_new_name_of_the_limit(
    gateway: Serve, servers: Servers, monkeypatch: pytest.MonkeyPatch, *, stream: bool
) -> None:
    monkeypatch.setattr("tropilla.upstream.probe._STRICT", ("127.0.0.1",))
    double = await servers()
    tropilla = await gateway(models=at(double.url))
    answer = await chat(tropilla, stream=stream, max_tokens=2, top_k=5)
    assert heard(answer) == (" I'm", "length")
    body = double.last()
    assert body["max_completion_tokens"] == 2
    assert not {"max_tokens", "top_k"} & body.keys()
    assert answer.headers["x-tropilla-dropped"] == "top_k"


# A server that minds being asked for usage.

MINDS = {
    "vLLM before 0.4.3": (
        400,
        {
            "object": "error",
            "message": "[{'type': 'extra_forbidden', 'loc': ('body', 'stream_options'), "
            "'msg': 'Extra inputs are not permitted', 'input': {'include_usage': True}}]",
            "type": "BadRequestError",
            "param": None,
            "code": 400,
        },
    ),
    "FastAPI": (
        422,
        {
            "detail": [
                {"type": "extra_forbidden", "loc": ["body", "stream_options"], "msg": "Extra"}
            ]
        },
    ),
    "by its name": (
        400,
        {"error": {"message": "Unknown field.", "param": "stream_options", "code": None}},
    ),
}


@FORMS
@pytest.mark.parametrize(("status", "body"), MINDS.values(), ids=MINDS)
async def test_it_is_asked_again_without(
    gateway: Serve, double: Double, status: int, body: Any, *, stream: bool
) -> None:
    double.on(PATH, answers(status, msgspec.json.encode(body)), streams(*told("Hello")))
    tropilla = await gateway(models=at(double.url))
    assert heard(await chat(tropilla, stream=stream)) == ("Hello", "stop")
    assert heard(await chat(tropilla, stream=stream)) == ("Hello", "stop")
    sent = ["stream_options" in one.json for one in double.requests]
    assert sent == [True, False, False], "it is remembered"


async def test_it_is_asked_again_but_once(gateway: Serve, double: Double) -> None:
    status, body = MINDS["FastAPI"]
    double.on(PATH, answers(status, msgspec.json.encode(body)))
    tropilla = await gateway(models=at(double.url))
    answer = await chat(tropilla, stream=True)
    assert (answer.status, answer.error["param"]) == (400, "stream_options")
    assert len(double.requests) == 2


# What it refuses.

REFUSALS: list[tuple[int, Any, int, dict[str, Any]]] = [
    (
        400,
        {"error": {"message": "Bad", "type": "x", "param": "top_p", "code": "invalid_value"}},
        400,
        {"message": "Bad", "param": "top_p", "code": "invalid_value"},
    ),
    (
        400,
        {"error": {"message": "Filtered", "param": "prompt", "code": "content_filter"}},
        400,
        {"message": "Filtered", "param": "prompt", "code": "content_filter"},
    ),
    (
        400,
        {"object": "error", "message": "This model's maximum context length is 9", "code": 400},
        400,
        {"code": "context_length_exceeded"},
    ),
    (
        422,
        {"detail": [{"loc": ["body", "n"], "msg": "Too many"}]},
        400,
        {"message": "n: Too many", "param": "n"},
    ),
    (
        429,
        {"error": {"message": "Pay", "code": "insufficient_quota"}},
        429,
        {"message": "Pay", "code": "insufficient_quota", "type": "rate_limit_error"},
    ),
    (404, {"error": {"message": "No such model", "code": "model_not_found"}}, 502, {}),
    (500, {"error": {"message": "Oh no"}}, 502, {"message": "Oh no"}),
    (503, {"error": {"message": "Busy"}}, 503, {"message": "Busy"}),
]


@FORMS
@pytest.mark.parametrize(("status", "body", "heard_as", "fields"), REFUSALS, ids=repr)
async def test_a_refusal_is_told(
    gateway: Serve,
    double: Double,
    status: int,
    body: Any,
    heard_as: int,
    fields: dict[str, Any],
    *,
    stream: bool,
) -> None:
    double.on(PATH, answers(status, msgspec.json.encode(body)))
    tropilla = await gateway(models=at(double.url))
    answer = await chat(tropilla, stream=stream)
    assert answer.status == heard_as
    assert {"message", "type", "param", "code"} <= answer.error.keys()
    assert fields.items() <= answer.error.items()


@FORMS
async def test_when_to_ask_again_is_told(gateway: Serve, double: Double, *, stream: bool) -> None:
    limit = msgspec.json.encode({"error": {"message": "Slow"}})
    double.on(PATH, answers(429, limit, "application/json", "Retry-After: 7"))
    tropilla = await gateway(models=at(double.url))
    answer = await chat(tropilla, stream=stream)
    assert (answer.status, answer.headers["retry-after"]) == (429, "7")


@FORMS
async def test_the_key_of_the_gateway_reaches_no_client(
    gateway: Serve, double: Double, *, stream: bool
) -> None:
    error = {"error": {"message": "Incorrect API key: sk-abc", "code": "invalid_api_key"}}
    double.on(PATH, answers(401, msgspec.json.encode(error)))
    tropilla = await gateway(models=at(double.url, api_key="sk-abc"))
    answer = await chat(tropilla, stream=stream)
    assert answer.status == 502
    assert "own key" in answer.error["message"]
    assert b"sk-" not in answer.body


@pytest.mark.parametrize("errors", ["nested", "flat"])
@pytest.mark.parametrize("path", [PATH, TEXT])
async def test_an_error_in_the_middle(
    gateway: Serve, servers: Servers, errors: Any, path: str
) -> None:
    double = await servers(error_midstream=True, fault="It broke.", errors=errors)
    tropilla = await gateway(models=at(double.url))
    body = CHAT | {"prompt": "Hello!"}
    answer = await tropilla.ask("POST", path, body)
    assert (answer.status, answer.error["message"]) == (502, "It broke.")
    double.hold(after=1)
    raw = await tropilla.connect()
    await raw.post(path, body | {"stream": True})
    await raw.see(b'" I"')
    double.let()
    *_, error, done, _ = (await raw.answer()).body.split(b"\n\n")
    assert msgspec.json.decode(error.removeprefix(b"data: "))["error"]["message"] == "It broke."
    assert done == b"data: [DONE]"


@pytest.mark.parametrize(
    "body", [{"error": {"message": "Oh no"}}, {"object": "error", "message": "Oh no", "code": 500}]
)
async def test_an_error_with_status_200(gateway: Serve, double: Double, body: Any) -> None:
    double.on(PATH, answers(200, msgspec.json.encode(body)))
    tropilla = await gateway(models=at(double.url))
    answer = await chat(tropilla, stream=False)
    assert (answer.status, answer.error["message"]) == (502, "Oh no")


@FORMS
async def test_who_answers_whole_though_asked_to_stream(
    gateway: Serve, double: Double, *, stream: bool
) -> None:
    message = {
        "role": "assistant",
        "content": None,
        "function_call": {"name": "f", "arguments": "{}"},
    }
    choice = {"index": 0, "message": message, "finish_reason": "function_call"}
    double.on(PATH, answers(200, msgspec.json.encode({"choices": [choice]})))
    tropilla = await gateway(models=at(double.url))
    answer = await chat(tropilla, stream=stream)
    if stream:
        told_ = [one["choices"][0] for one in answer.events[:-2]]
        call = next(one["delta"]["tool_calls"][0] for one in told_ if "tool_calls" in one["delta"])
        reason = told_[-1]["finish_reason"]
    else:
        (told_,) = answer.json["choices"]
        (call,) = told_["message"]["tool_calls"]
        reason = told_["finish_reason"]
    assert (call["function"]["name"], reason) == ("f", "tool_calls")
    assert call["id"]


async def test_azures_first_chunk(gateway: Serve, double: Double) -> None:
    first = {"id": "", "model": "", "choices": [], "prompt_filter_results": [{"prompt_index": 0}]}
    double.on(PATH, streams(event(first), chunk("Hello"), chunk(reason="stop"), DONE))
    tropilla = await gateway(models=at(double.url))
    assert heard(await chat(tropilla, stream=True)) == ("Hello", "stop")


async def test_who_leaves_ends_the_servers_work(gateway: Serve, servers: Servers) -> None:
    double = await servers()
    double.hold(after=1)
    tropilla = await gateway(models=at(double.url))
    raw = await tropilla.connect()
    await raw.post(PATH, CHAT | {"stream": True})
    await raw.see(b'"content":" I"')
    raw.leave()
    await double.until(lambda: double.gone_away == 1)


# TLS.


@pytest.fixture(scope="session")
def authority() -> trustme.CA:
    """An authority that nobody knows."""
    return trustme.CA()


@asynccontextmanager
async def behind_tls(port: int, authority: trustme.CA) -> AsyncIterator[str]:
    """The address of a server, with a certificate of that authority."""
    context = ssl.create_default_context(ssl.Purpose.CLIENT_AUTH)
    authority.issue_cert("127.0.0.1").configure_cert(context)

    async def pass_on(reader: asyncio.StreamReader, writer: asyncio.StreamWriter) -> None:
        there, back = await asyncio.open_connection("127.0.0.1", port)
        await asyncio.gather(pump(reader, back), pump(there, writer))

    server = await asyncio.start_server(pass_on, "127.0.0.1", 0, ssl=context)
    yield f"https://127.0.0.1:{server.sockets[0].getsockname()[1]}"
    server.close()


async def pump(reader: asyncio.StreamReader, writer: asyncio.StreamWriter) -> None:
    with suppress(ConnectionError, ssl.SSLError):
        while data := await reader.read(65536):
            writer.write(data)
    writer.close()


async def test_a_certificate_that_nobody_knows_is_refused(
    gateway: Serve, servers: Servers, authority: trustme.CA, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(fleet, "_HOPEFUL_TRIES", 0)
    double = await servers()
    async with behind_tls(int(double.url.rpartition(":")[2]), authority) as url:
        tropilla = await gateway(models=at(url, api_key="secret"), ready=False)
        await tropilla.until(lambda: tropilla.fleet.upstreams[0].state == "down")
        answer = await chat(tropilla, stream=False)
    assert answer.status == 503
    assert f"TLS with the upstream {url} failed" in answer.error["message"]
    assert "certificate" in answer.error["message"].lower()
    assert double.asked == [], "and it saw no key"


async def test_an_authority_of_ones_own(
    servers: Servers, authority: trustme.CA, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """It is told by OpenSSL's own variable, which is read when the program starts."""
    known = tmp_path / "ca.pem"
    authority.cert_pem.write_to_path(str(known))
    monkeypatch.setenv("SSL_CERT_FILE", str(known))
    double = await servers()
    config = tmp_path / "tropilla.yaml"

    def ask_it() -> tuple[int, bytes]:
        with serving("--config", str(config)) as (_, address, _):
            return ask(address, "POST", PATH, CHAT)

    async with behind_tls(int(double.url.rpartition(":")[2]), authority) as url:
        upstream = f'{{url: "{url}", dialect: openai, model: m}}'
        config.write_text(f"models:\n  m:\n    upstreams: [{upstream}]\n", encoding="utf-8")
        status, body = await asyncio.to_thread(ask_it)
    assert status == 200, body
    assert msgspec.json.decode(body)["choices"][0]["message"]["content"] == " I'm fine."
