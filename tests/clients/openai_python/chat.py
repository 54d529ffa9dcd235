"""Chat completions: whole, streamed and gathered by the SDK's helper."""

from __future__ import annotations

from openai import OpenAI
from openai.types.chat import ChatCompletion

from clients.openai_python.harness import HELLO, MODEL, check, is_one_answer, text_of


@check
def chat(client: OpenAI) -> None:
    got = client.chat.completions.create(model=MODEL, messages=HELLO)
    assert isinstance(got, ChatCompletion)
    assert got.id.startswith("chatcmpl-")
    assert got.object == "chat.completion"
    assert got.created > 1_600_000_000
    assert got.model == MODEL
    (choice,) = got.choices
    assert choice.index == 0
    assert choice.finish_reason in {"stop", "length"}
    assert choice.logprobs is None
    assert choice.message.role == "assistant"
    assert choice.message.content
    assert choice.message.refusal is None
    assert not choice.message.tool_calls
    assert got.usage
    assert got.usage.prompt_tokens > 0
    assert got.usage.completion_tokens > 0
    assert got.usage.total_tokens == got.usage.prompt_tokens + got.usage.completion_tokens
    assert got._request_id


@check
def a_conversation(client: OpenAI) -> None:
    got = client.chat.completions.create(
        model=MODEL,
        messages=[
            {"role": "developer", "content": "Be brief."},
            {"role": "user", "content": [{"type": "text", "text": "Hello"}]},
            {"role": "assistant", "content": "Hello.", "refusal": None},
            {"role": "user", "content": "And now?", "name": "ana"},
        ],
        max_completion_tokens=5,
        user="someone",
        metadata={"a": "b"},
        store=False,
    )
    assert got.choices[0].message.content
    assert got.usage
    assert got.usage.completion_tokens <= 5


@check
def stream(client: OpenAI) -> None:
    chunks = list(client.chat.completions.create(model=MODEL, messages=HELLO, stream=True))
    is_one_answer(chunks)
    assert all(chunk.choices for chunk in chunks)
    assert all(chunk.usage is None for chunk in chunks)


@check
def stream_with_usage(client: OpenAI) -> None:
    *chunks, last = client.chat.completions.create(
        model=MODEL, messages=HELLO, stream=True, stream_options={"include_usage": True}
    )
    is_one_answer(chunks)
    assert all(chunk.usage is None for chunk in chunks)
    assert last.choices == []
    assert last.usage
    assert last.usage.total_tokens == last.usage.prompt_tokens + last.usage.completion_tokens


@check
def stream_helper_gathers_the_same_answer(client: OpenAI) -> None:
    whole = client.chat.completions.create(model=MODEL, messages=HELLO, temperature=0, seed=7)
    with client.chat.completions.stream(
        model=MODEL, messages=HELLO, temperature=0, seed=7, stream_options={"include_usage": True}
    ) as helper:
        events = list(helper)
        gathered = helper.get_final_completion()
    assert {"chunk", "content.delta", "content.done"} == {event.type for event in events}
    deltas = [event for event in events if event.type == "content.delta"]
    (done,) = [event for event in events if event.type == "content.done"]
    mine, theirs = gathered.choices[0], whole.choices[0]
    assert mine.message.role == "assistant"
    assert mine.message.content == theirs.message.content == done.content == deltas[-1].snapshot
    assert mine.message.content == "".join(event.delta for event in deltas)
    assert mine.finish_reason == theirs.finish_reason
    assert gathered.usage
    assert whole.usage
    assert gathered.usage.completion_tokens == whole.usage.completion_tokens


@check
def three_choices(client: OpenAI) -> None:
    got = client.chat.completions.create(model=MODEL, messages=HELLO, n=3, max_tokens=6)
    assert [choice.index for choice in got.choices] == [0, 1, 2]
    assert all(choice.message.content for choice in got.choices)
    assert got.usage
    assert got.usage.completion_tokens > 6
    chunks = list(
        client.chat.completions.create(model=MODEL, messages=HELLO, n=3, max_tokens=6, stream=True)
    )
    is_one_answer(chunks, choices=3)


@check
def three_choices_gathered_by_the_helper(client: OpenAI) -> None:
    with client.chat.completions.stream(model=MODEL, messages=HELLO, n=3) as helper:
        gathered = helper.get_final_completion()
    assert [choice.index for choice in gathered.choices] == [0, 1, 2]
    assert all(choice.message.content for choice in gathered.choices)


@check
def logprobs(client: OpenAI) -> None:
    got = client.chat.completions.create(
        model=MODEL, messages=HELLO, max_tokens=4, temperature=0, logprobs=True, top_logprobs=3
    )
    told = got.choices[0].logprobs
    assert told
    assert told.content
    assert got.usage
    assert len(told.content) == got.usage.completion_tokens
    assert "".join(one.token for one in told.content) == got.choices[0].message.content
    for one in told.content:
        assert one.logprob <= 0
        assert len(one.top_logprobs) == 3
        assert one.top_logprobs[0].token == one.token
        assert bytes(one.bytes or ()).decode() == one.token
    chunks = client.chat.completions.create(
        model=MODEL, messages=HELLO, max_tokens=4, logprobs=True, top_logprobs=3, stream=True
    )
    for chunk in chunks:
        choice = chunk.choices[0]
        assert bool(choice.delta.content) == bool(choice.logprobs and choice.logprobs.content)


@check
def logprobs_gathered_by_the_helper(client: OpenAI) -> None:
    with client.chat.completions.stream(
        model=MODEL, messages=HELLO, logprobs=True, top_logprobs=2
    ) as helper:
        kinds = {event.type for event in helper}
        gathered = helper.get_final_completion()
    assert {"logprobs.content.delta", "logprobs.content.done"} <= kinds
    told = gathered.choices[0].logprobs
    assert told
    assert told.content
    assert "".join(one.token for one in told.content) == gathered.choices[0].message.content


@check
def logprobs_alone(client: OpenAI) -> None:
    got = client.chat.completions.create(model=MODEL, messages=HELLO, max_tokens=4, logprobs=True)
    told = got.choices[0].logprobs
    assert told
    assert told.content
    assert all(one.top_logprobs == [] for one in told.content)


@check
def seed(client: OpenAI) -> None:
    texts = [
        client.chat.completions.create(
            model=MODEL, messages=HELLO, seed=number, temperature=1, max_tokens=12
        ).choices[0].message.content
        for number in (5, 5, 6)
    ]  # fmt: skip
    assert texts[0] == texts[1] != texts[2]


@check
def stop(client: OpenAI) -> None:
    whole = client.chat.completions.create(model=MODEL, messages=HELLO, temperature=0)
    text = whole.choices[0].message.content or ""
    first, word = text.split()[:2]
    got = client.chat.completions.create(
        model=MODEL, messages=HELLO, temperature=0, stop=[word, "\u2603"]
    )
    assert got.choices[0].finish_reason == "stop"
    assert (got.choices[0].message.content or "").rstrip() == first
    chunks = list(
        client.chat.completions.create(
            model=MODEL, messages=HELLO, temperature=0, stop=word, stream=True
        )
    )
    assert text_of(chunks).rstrip() == first


@check
def other_parameters(client: OpenAI) -> None:
    got = client.chat.completions.create(
        model=MODEL,
        messages=HELLO,
        frequency_penalty=0.5,
        presence_penalty=0.5,
        top_p=0.9,
        logit_bias={"300": -100},
        service_tier="auto",
        safety_identifier="x",
        prompt_cache_key="x",
        verbosity="low",
        reasoning_effort="low",
        extra_body={"top_k": 20, "min_p": 0.1},
    )
    assert got.choices[0].message.content
