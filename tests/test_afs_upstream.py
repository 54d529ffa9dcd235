"""AFS as an upstream: every client dialect over a deployment, through a real gateway."""

from __future__ import annotations

import asyncio
from collections.abc import AsyncIterator, Awaitable, Callable
from dataclasses import replace
from typing import Any

import msgspec
import pytest

from conftest import Answer, Serve, Served
from dialects.afs.fronts import FRONTS, HUMAN, MESSAGES, Front, JsonObject, events_of, fault
from doubles.afs import (
    CHAT,
    COMPLETIONS,
    CONVERSATION,
    GENERATE,
    INFILLING,
    KEY,
    AfsDouble,
    Says,
)
from doubles.upstream import DEADLINE, Double, streams, told
from tropilla.config import ModelConfig, UpstreamConfig
from tropilla.upstream import fleet

pytestmark = pytest.mark.anyio

THERE = "llama3-ffm-8b-chat"
WRONG_KEY = "its api_key in the config has to be the key of this service"
FORMS = pytest.mark.parametrize("stream", [False, True], ids=["whole", "stream"])

Start = Callable[..., Awaitable[AfsDouble]]


@pytest.fixture
async def deployments(anyio_backend: Any) -> AsyncIterator[Start]:  # noqa: ARG001
    """Start deployments of AFS; they end with the test."""
    started: list[AfsDouble] = []

    async def start(**settings: Any) -> AfsDouble:
        double = AfsDouble(**settings)
        started.append(double)
        await double.start()
        return double

    yield start
    for double in started:
        await double.stop()


@pytest.fixture
async def ffm(deployments: Start) -> AfsDouble:
    """A deployment."""
    return await deployments()


def at(*doubles: AfsDouble, key: str = KEY, **more: Any) -> dict[str, ModelConfig]:
    """A config's models: `ffm`, which has another name there."""
    upstreams = [
        UpstreamConfig(url=one.url, dialect="afs", api_key=key, model=THERE, **more)
        for one in doubles
    ]
    return {"ffm": ModelConfig(upstreams=tuple(upstreams))}


every_front = pytest.mark.parametrize("front", FRONTS.values(), ids=FRONTS)


async def ask(tropilla: Served, front: Front, *, stream: bool, **fields: Any) -> Answer:
    body = front.body | {"model": "ffm", "stream": stream} | fields
    return await tropilla.ask("POST", front.path, body)


@every_front
@FORMS
@pytest.mark.parametrize("reason", ["eos_token", "stop_sequence", "length"])
async def test_every_client_hears_the_answer(
    gateway: Serve, ffm: AfsDouble, front: Front, reason: str, *, stream: bool
) -> None:
    ffm.says = [Says(finish_reason=reason, pings=True, done=True)]
    tropilla = await gateway(models=at(ffm))
    answer = await ask(tropilla, front, stream=stream)
    assert front.heard(answer) == ("你好。", front.reasons[reason])
    assert ffm.last.path == front.arrives
    assert ffm.last.body == front.sent | {"model": THERE, "stream": True}


@every_front
async def test_what_was_asked_to_stream_and_answers_whole(
    gateway: Serve, ffm: AfsDouble, front: Front
) -> None:
    ffm.says = [Says(whole=True, finish_reason="length")]
    tropilla = await gateway(models=at(ffm))
    for stream in (False, True):
        answer = await ask(tropilla, front, stream=stream)
        assert front.heard(answer) == ("你好。", front.reasons["length"])


@every_front
@FORMS
async def test_a_deployment_of_2023(
    gateway: Serve, ffm: AfsDouble, front: Front, *, stream: bool
) -> None:
    ffm.says = [Says(old=True)]
    tropilla = await gateway(models=at(ffm))
    answer = await ask(tropilla, front, stream=stream)
    assert front.heard(answer) == ("你好。", front.reasons["eos_token"])


LIMITS = {
    "/v1/chat/completions": {"max_tokens": 9, "stop": "END", "temperature": 0, "seed": 5},
    "/v1/completions": {"max_tokens": 9, "stop": ["END"], "temperature": 0, "seed": 5},
    "/completion": {"n_predict": 9, "stop": ["END"], "temperature": 0, "seed": 5},
    "/infill": {"n_predict": 9, "stop": ["END"], "temperature": 0, "seed": 5},
}
ITS_OWN = {"max_new_tokens": 9, "stop_sequences": ["END"], "temperature": 0, "seed": 5}


@every_front
async def test_limits_and_stops_in_afss_words(gateway: Serve, ffm: AfsDouble, front: Front) -> None:
    tropilla = await gateway(models=at(ffm))
    asked = LIMITS.get(front.path, {"parameters": ITS_OWN})
    assert (await ask(tropilla, front, stream=False, **asked)).status == 200
    # AFS wants more than 0.
    assert ffm.last.body["parameters"] == ITS_OWN | {"temperature": 0.01}


@every_front
@FORMS
async def test_a_stop_and_a_limit_end_the_answer(
    gateway: Serve, ffm: AfsDouble, front: Front, *, stream: bool
) -> None:
    tropilla = await gateway(models=at(ffm))
    if front.path not in LIMITS:
        stopped: JsonObject = {"parameters": {"stop_sequences": ["好"]}}
        limited: JsonObject = {"parameters": {"max_new_tokens": 2}}
    else:
        stopped = {"stop": ["好"]}
        limited = {"max_tokens" if front.path.startswith("/v1") else "n_predict": 2}
    answer = await ask(tropilla, front, stream=stream, **stopped)
    assert front.heard(answer) == ("你", front.reasons["stop_sequence"])
    answer = await ask(tropilla, front, stream=stream, **limited)
    assert front.heard(answer) == ("你好", front.reasons["length"])


async def test_usage(gateway: Serve, ffm: AfsDouble) -> None:
    tropilla = await gateway(models=at(ffm))
    usage = {"prompt_tokens": 17, "completion_tokens": 3, "total_tokens": 20}
    for name in ("chat", "completions"):
        answer = await ask(tropilla, FRONTS[name], stream=False)
        assert answer.json["usage"].items() >= usage.items()
        wanted = {"stream_options": {"include_usage": True}}
        answer = await ask(tropilla, FRONTS[name], stream=True, **wanted)
        *_, last, done = answer.events
        assert (last["choices"], done) == ([], "[DONE]")
        assert last["usage"].items() >= usage.items()
    native = (await ask(tropilla, FRONTS["native"], stream=False)).json
    assert (native["tokens_evaluated"], native["tokens_predicted"]) == (17, 3)
    counts = {"prompt_tokens": 17, "generated_tokens": 3, "total_tokens": 20}
    for stream in (False, True):
        answer = await ask(tropilla, FRONTS["conversation"], stream=stream)
        last = events_of(answer)[-1] if stream else answer.json
        assert last.items() >= counts.items()


async def test_an_afs_client_loses_nothing_that_afs_said(gateway: Serve, ffm: AfsDouble) -> None:
    tropilla = await gateway(models=at(ffm))
    answer = await ask(tropilla, FRONTS["conversation"], stream=False)
    assert answer.json == {
        "generated_text": "你好。", "function_call": None, "details": None,
        "total_time_taken": "1.50 sec", "prompt_tokens": 17, "generated_tokens": 3,
        "total_tokens": 20, "finish_reason": "eos_token",
    }  # fmt: skip


async def test_the_model_has_its_own_name_on_either_side(gateway: Serve, ffm: AfsDouble) -> None:
    models = {"ffm": msgspec.structs.replace(at(ffm)["ffm"], aliases=("gpt-3.5-turbo",))}
    tropilla = await gateway(models=models)
    for name in ("ffm", "gpt-3.5-turbo"):
        answer = await ask(tropilla, FRONTS["chat"], stream=False, model=name)
        assert answer.json["model"] == name
        assert ffm.last.body["model"] == THERE
    listed = (await tropilla.ask("GET", "/v1/models")).json["data"]
    assert [card["id"] for card in listed] == ["ffm", "gpt-3.5-turbo"]
    answer = await ask(tropilla, FRONTS["conversation"], stream=False, model=THERE)
    assert (answer.status, answer.error["code"]) == (404, "model_not_found")
    assert answer.json["detail"] == answer.error["message"]


async def test_headers_that_go_with_every_request(gateway: Serve, ffm: AfsDouble) -> None:
    tropilla = await gateway(models=at(ffm, headers={"X-Project": "p"}), api_keys=("ours",))
    answer = await tropilla.ask(
        "POST", "/api/models/conversation", FRONTS["conversation"].body | {"model": "ffm"},
        {"X-API-KEY": "ours", "X-API-HOST": "theirs", "X-Project": "theirs", "Cookie": "c=1"},
    )  # fmt: skip
    assert answer.status == 200
    for one in (*ffm.probed, ffm.last):
        assert (one.headers["x-api-key"], one.headers["x-project"]) == (KEY, "p")
        assert not one.headers.keys() & {"x-api-host", "cookie", "authorization"}


@FORMS
async def test_knobs_that_afs_does_not_have_are_named(
    gateway: Serve, ffm: AfsDouble, *, stream: bool
) -> None:
    tropilla = await gateway(models=at(ffm))
    knobs = {"presence_penalty": 0.5, "frequency_penalty": 0, "logit_bias": {"5": 1}, "min_p": 0.1}
    answer = await ask(tropilla, FRONTS["chat"], stream=stream, **knobs, user="u")
    dropped = set(answer.headers["x-tropilla-dropped"].split(", "))
    assert dropped >= {"presence_penalty", "logit_bias", "min_p"}
    assert "frequency_penalty" not in dropped  # 0 does nothing
    assert "parameters" not in ffm.last.body


@pytest.mark.parametrize(
    ("front", "fields", "param"),
    [
        ("chat", {"response_format": {"type": "json_object"}}, "response_format"),
        ("chat", {"logprobs": True}, "logprobs"),
        ("chat", {"stop": ["1", "2", "3", "4", "5"]} | {"max_tokens": 5}, "stop"),
        ("chat", {"messages": [{"role": "user", "content": [
            {"type": "image_url", "image_url": {"url": "data:image/png;base64,AA=="}}]}]},
         "messages.0.content"),
        ("completions", {"prompt": [1, 2]}, "prompt"),
        ("native", {"grammar": "root ::= [a-z]"}, "grammar"),
        ("completions", {"tokenize": True}, "tokenize"),
        ("chat", {"tokenize": True}, "tokenize"),
    ],
)  # fmt: skip
async def test_what_afs_cannot_do_is_refused(
    gateway: Serve, ffm: AfsDouble, front: str, fields: JsonObject, param: str
) -> None:
    tropilla = await gateway(models=at(ffm))
    answer = await ask(tropilla, FRONTS[front], stream=False, **fields)
    assert (answer.status, answer.error["param"]) == (400, param)
    assert ffm.asked == []


async def test_several_answers_are_asked_for_one_by_one(gateway: Serve, ffm: AfsDouble) -> None:
    tropilla = await gateway(models=at(ffm))
    answer = await ask(tropilla, FRONTS["completions"], stream=False, prompt=["a", "b"], n=2)
    assert [one["index"] for one in answer.json["choices"]] == [0, 1, 2, 3]
    assert [one.body["inputs"] for one in ffm.asked] == ["a", "a", "b", "b"]


# Tools.

WEATHER = {"name": "get_weather", "parameters": {"type": "object", "properties": {}}}
TOOLS = {"tools": [{"type": "function", "function": WEATHER}]}
FUNCTIONS = {"functions": [WEATHER]}
ARGUMENTS = '{"city":"Taipei"}'
CALL = {"name": "get_weather", "arguments": ARGUMENTS}
LEAK = f"<function=get_weather>{ARGUMENTS}</function>"
LEAKS = Says(deltas=("Let me", " see. to", "ol<func", *LEAK.removeprefix("<func")))
SAID = {
    "told": Says(deltas=("Let me see.",), calls=(CALL,), finish_reason="tool_calls"),
    "told whole": Says(
        deltas=("Let me see.",), calls=(CALL,), finish_reason="tool_calls", whole=True
    ),
    "leaked": LEAKS,
    "leaked whole": Says(deltas=("Let me see. tool" + LEAK,), whole=True),
}
every_call = pytest.mark.parametrize("says", SAID.values(), ids=SAID)


@every_call
@FORMS
async def test_an_openai_client_calls_a_tool(
    gateway: Serve, ffm: AfsDouble, says: Says, *, stream: bool
) -> None:
    ffm.says = [says]
    tropilla = await gateway(models=at(ffm))
    answer = await ask(tropilla, FRONTS["chat"], stream=stream, **TOOLS, tool_choice="auto")
    assert ffm.last.body["tools"] == TOOLS["tools"]
    assert ffm.last.body["tool_choice"] == "auto"
    if stream:
        choices = [one["choices"][0] for one in answer.events[:-1]]
        assert answer.text.strip() == "Let me see."
        (begin, *more) = [
            call for one in choices for call in one["delta"].get("tool_calls") or ()
        ]  # fmt: skip
        arguments = "".join(one["function"]["arguments"] for one in (begin, *more))
        call = begin | {"function": begin["function"] | {"arguments": arguments}}
        reason = choices[-1]["finish_reason"]
    else:
        (choice,) = answer.json["choices"]
        assert choice["message"]["content"].strip() == "Let me see."
        (call,) = choice["message"]["tool_calls"]
        reason = choice["finish_reason"]
    assert (call["function"], reason) == (CALL, "tool_calls")
    assert call["id"]


@every_call
@FORMS
@pytest.mark.parametrize("old", [False, True], ids=["tools", "functions"])
async def test_an_afs_client_calls_a_tool_in_its_own_form(
    gateway: Serve, ffm: AfsDouble, says: Says, *, stream: bool, old: bool
) -> None:
    ffm.says = [says]
    tropilla = await gateway(models=at(ffm))
    tools = FUNCTIONS if old else TOOLS
    answer = await ask(tropilla, FRONTS["conversation"], stream=stream, **tools)
    assert ffm.last.body.items() >= tools.items()
    last = events_of(answer)[-1] if stream else answer.json
    assert FRONTS["conversation"].heard(answer)[0].strip() == "Let me see."
    if old:
        assert last["function_call"] == CALL
        assert "tool_calls" not in last
    else:
        assert [call["function"] for call in last["tool_calls"]] == [CALL]
        assert last["function_call"] is None


async def test_the_result_of_a_tool_goes_on(gateway: Serve, ffm: AfsDouble) -> None:
    tropilla = await gateway(models=at(ffm))
    call = {"id": "call_1", "type": "function", "function": CALL}
    messages = [
        *MESSAGES["messages"],
        {"role": "assistant", "content": None, "tool_calls": [call]},
        {"role": "tool", "tool_call_id": "call_1", "content": "Sunny."},
    ]
    await ask(tropilla, FRONTS["chat"], stream=False, messages=messages, **TOOLS)
    assert ffm.last.body["messages"] == [
        HUMAN,
        {"role": "assistant", "content": None, "tool_calls": [call]},
        {"role": "tool", "tool_call_id": "call_1", "content": "Sunny."},
    ]


# Errors.


VALIDATION = {"detail": [{"loc": ["body", "messages"], "msg": "too many", "type": "value"}]}


@every_front
@FORMS
@pytest.mark.parametrize(
    ("says", "status", "message"),
    [
        (Says(status=401, body={"detail": f"Bad key: {KEY}."}), 502, WRONG_KEY),
        (Says(status=403, body=b"<html>no</html>"), 502, WRONG_KEY),
        (Says(status=422, body=VALIDATION), 400, "messages: too many"),
        (Says(status=400, body={"detail": "Input is too long."}), 400, "Input is too long."),
        (Says(status=429, body={"detail": "Slow down."}), 429, "Slow down."),
        (Says(status=500, body={"error": {"message": "Boom."}}), 502, "Boom."),
        (Says(status=502, body=b"<html>Bad gateway</html>"), 502, "answered 502"),
        (Says(body={"detail": "Model not found."}), 502, "Model not found."),
        (Says(body={"error": "No."}), 502, "No."),
        (Says(body={"message": "No."}), 502, "No."),
        (Says(body={"generated_text": None}), 502, "no 'generated_text'"),
        (Says(body=b"<html>Sign in</html>"), 502, "not JSON"),
    ],
    ids=["401", "403", "422", "400", "429", "500", "html of 502", "200 detail", "200 error",
         "200 message", "200 without text", "200 html"],
)  # fmt: skip
async def test_a_refusal_in_the_clients_envelope(
    gateway: Serve,
    ffm: AfsDouble,
    front: Front,
    says: Says,
    status: int,
    message: str,
    *,
    stream: bool,
) -> None:
    ffm.says = [says]
    tropilla = await gateway(models=at(ffm))
    answer = await ask(tropilla, front, stream=stream)
    assert (answer.status, message in fault(front, answer)) == (status, True), answer.body
    assert KEY.encode() not in answer.body
    assert b"<html" not in answer.body


BROKEN = {
    "cut": (Says(cut=True), "ended the stream"),
    "error": (Says(tail=b'data: {"error":{"message":"Too long."}}\n\n'), "Too long."),
    "key": (
        Says(tail=b'data: {"error":{"code":401,"message":"%b"}}\n\n' % KEY.encode()), WRONG_KEY,
    ),
    "garbage": (Says(tail=b"data: {\n\n" * 20), "is no answer"),
}  # fmt: skip


@every_front
@FORMS
@pytest.mark.parametrize(("says", "message"), BROKEN.values(), ids=BROKEN)
async def test_an_answer_that_breaks_off(
    gateway: Serve, ffm: AfsDouble, front: Front, says: Says, message: str, *, stream: bool
) -> None:
    ffm.says = [replace(says, held=True)]
    tropilla = await gateway(models=at(ffm))
    raw = await tropilla.connect()
    await raw.post(front.path, front.body | {"model": "ffm", "stream": stream})
    if stream:
        await raw.see("。".encode())  # from here on there is no other status
    ffm.go_on.set()
    answer = await raw.answer()
    assert answer.status == (200 if stream else 502)
    assert message in fault(front, answer)
    assert KEY.encode() not in answer.body


@pytest.mark.parametrize(
    "says",
    [
        Says(status=429, body={"detail": "Slow down."}),
        Says(status=401, body={"detail": "Bad key."}),
        Says(status=503, body={"detail": "Busy."}),
        Says(body={"detail": "No."}),
        Says(body=b"<html>Sign in</html>"),
    ],
    ids=["429", "401", "503", "200 detail", "200 html"],
)
async def test_another_deployment_may_do(
    gateway: Serve, ffm: AfsDouble, deployments: Start, says: Says
) -> None:
    other = await deployments()
    ffm.says = [says]
    tropilla = await gateway(models=at(ffm, other))
    for stream in (False, True):
        answer = await ask(tropilla, FRONTS["chat"], stream=stream)
        assert FRONTS["chat"].heard(answer) == ("你好。", "stop")
    assert len(other.asked) == 2


async def test_a_llama_server_may_do_for_afs(
    gateway: Serve, ffm: AfsDouble, double: Double
) -> None:
    double.on("/v1/chat/completions", streams(*told("Hello.")))
    ffm.says = [Says(status=429, body={"detail": "Slow down."})]
    theirs, ours = at(ffm)["ffm"].upstreams, (UpstreamConfig(url=double.url, model="m"),)
    tropilla = await gateway(models={"ffm": ModelConfig(upstreams=theirs + ours)})
    answer = await ask(tropilla, FRONTS["conversation"], stream=False)
    assert answer.json["generated_text"] == "Hello."
    assert len(ffm.asked) == 1


async def test_a_limit_is_not_asked_twice(gateway: Serve, ffm: AfsDouble) -> None:
    ffm.says = [Says(status=429, body={"detail": "Slow down."}, headers={"Retry-After": "30"})]
    tropilla = await gateway(models=at(ffm))
    answer = await ask(tropilla, FRONTS["chat"], stream=False)
    assert (answer.status, answer.error["code"]) == (429, "rate_limit_exceeded")
    assert answer.headers["retry-after"] == "30"
    assert len(ffm.asked) == 1


# What it turns out to be.


@pytest.fixture
def hasty(monkeypatch: pytest.MonkeyPatch) -> None:
    """What cannot be reached is soon given up."""
    monkeypatch.setattr(fleet, "_RETRY_SECONDS", (0.01,))


@pytest.mark.usefixtures("hasty")
@pytest.mark.parametrize("without", [frozenset[str](), frozenset({CONVERSATION})])
async def test_a_wrong_key_is_told(
    gateway: Serve, deployments: Start, without: frozenset[str]
) -> None:
    ffm = await deployments(without=without)
    tropilla = await gateway(models=at(ffm, key="a-wrong-key"), ready=False)
    await tropilla.until(lambda: tropilla.fleet.upstreams[0].state == "down")
    for front in (FRONTS["chat"], FRONTS["conversation"]):
        answer = await ask(tropilla, front, stream=True)
        assert answer.status == 503
        assert "refused the key (401): its api_key in the config" in fault(front, answer)
        assert b"a-wrong-key" not in answer.body
    assert ffm.asked == []


@pytest.mark.usefixtures("hasty")
@pytest.mark.parametrize("page", [False, True], ids=["nothing", "web site"])
async def test_what_is_not_afs_is_told(gateway: Serve, deployments: Start, *, page: bool) -> None:
    paths = frozenset({CONVERSATION, GENERATE, INFILLING})
    ffm = await deployments(without=paths, page=page)
    tropilla = await gateway(models=at(ffm), ready=False)
    await tropilla.until(lambda: tropilla.fleet.upstreams[0].state == "down")
    answer = await ask(tropilla, FRONTS["chat"], stream=False)
    assert (answer.status, "not as AFS does" in answer.error["message"]) == (503, True)


PROMPT = (
    "A chat between a curious user and an artificial intelligence assistant. "
    "The assistant follows the given rules no matter what.\n\nUSER: Hello!\nASSISTANT:"
)


@pytest.mark.parametrize("name", ["chat", "conversation"])
@FORMS
async def test_a_deployment_that_only_continues_text(
    gateway: Serve, deployments: Start, name: str, *, stream: bool
) -> None:
    ffm = await deployments(without=frozenset({CONVERSATION, INFILLING}))
    tropilla = await gateway(models=at(ffm))
    answer = await ask(tropilla, FRONTS[name], stream=stream)
    assert FRONTS[name].heard(answer)[0] == "你好。"
    assert ffm.last.path == GENERATE
    assert ffm.last.body == {
        "inputs": PROMPT, "model": THERE, "stream": True, "parameters": {"stop_sequences": ["</s>"]}
    }  # fmt: skip
    # Of the four stops that AFS takes, the template has one.
    for fields, param in ((TOOLS, "tools"), ({"stop": ["1", "2", "3", "4"]}, "stop")):
        refused = await ask(tropilla, FRONTS["chat"], stream=stream, **fields)
        assert (refused.status, refused.error["param"]) == (400, param)


async def test_a_client_that_leaves_ends_the_answer(gateway: Serve, ffm: AfsDouble) -> None:
    ffm.says = [Says(held=True)]
    tropilla = await gateway(models=at(ffm))
    for front in FRONTS.values():
        ffm.left.clear()
        raw = await tropilla.connect()
        await raw.post(front.path, front.body | {"model": "ffm", "stream": True})
        await raw.see("。".encode())
        raw.leave()
        await asyncio.wait_for(ffm.left.wait(), DEADLINE)
        assert not tropilla.fleet.upstreams[0].leases


# OpenAI's paths of AFS: an upstream like any other.


@pytest.mark.parametrize(("name", "path"), [("chat", CHAT), ("completions", COMPLETIONS)])
@FORMS
async def test_afs_by_openais_paths(
    gateway: Serve, ffm: AfsDouble, name: str, path: str, *, stream: bool
) -> None:
    url = f"{ffm.url}/models"
    upstream = UpstreamConfig(url=url, dialect="openai", api_key=KEY, model=THERE)
    tropilla = await gateway(models={"ffm": ModelConfig(upstreams=(upstream,))})
    front = FRONTS[name]
    options = {"stream_options": {"include_usage": True}} if stream else {}
    answer = await ask(tropilla, front, stream=stream, max_tokens=9, **options)
    assert front.heard(answer) == ("你好。", "stop")
    usage = (answer.events[-2] if stream else answer.json)["usage"]
    assert usage["total_tokens"] == 20
    assert ffm.last.path == path
    assert ffm.last.body.items() >= {"model": THERE, "stream": True, "max_tokens": 9}.items()
    assert ffm.last.headers["authorization"] == f"Bearer {KEY}"


async def test_an_afs_client_over_openais_paths(gateway: Serve, ffm: AfsDouble) -> None:
    upstream = UpstreamConfig(url=f"{ffm.url}/models", dialect="openai", api_key=KEY, model=THERE)
    tropilla = await gateway(models={"ffm": ModelConfig(upstreams=(upstream,))})
    for name, path in (("conversation", CHAT), ("generate", COMPLETIONS)):
        answer = await ask(tropilla, FRONTS[name], stream=False)
        assert FRONTS[name].heard(answer) == ("你好。", "eos_token")
        assert ffm.last.path == path
