"""Legacy completions, with echo and logprobs."""

from __future__ import annotations

from openai import OpenAI
from openai.types import CompletionChoice

from clients.openai_python.harness import MODEL, check, connect

PROMPT = "The llama"


@check
def whole_and_streamed(client: OpenAI) -> None:
    whole = client.completions.create(
        model=MODEL, prompt=PROMPT, max_tokens=16, temperature=0, seed=7
    )
    assert whole.object == "text_completion"
    assert whole.model == MODEL
    assert whole.choices[0].text
    assert whole.choices[0].finish_reason in {"stop", "length"}
    assert whole.choices[0].logprobs is None
    assert whole.usage
    assert whole.usage.completion_tokens > 0
    # The SDK's type wants a reason in every chunk, but OpenAI sends null until the last.
    *chunks, last = connect(strict=False).completions.create(
        model=MODEL, prompt=PROMPT, max_tokens=16, temperature=0, seed=7, stream=True,
        stream_options={"include_usage": True},
    )  # fmt: skip
    assert "".join(chunk.choices[0].text for chunk in chunks) == whole.choices[0].text
    assert chunks[-1].choices[0].finish_reason == whole.choices[0].finish_reason
    assert last.choices == []
    assert last.usage
    assert last.usage.completion_tokens == whole.usage.completion_tokens


@check
def several_prompts(client: OpenAI) -> None:
    got = client.completions.create(
        model=MODEL, prompt=[PROMPT, "The sun"], n=2, max_tokens=4, logprobs=1
    )
    assert [choice.index for choice in got.choices] == [0, 1, 2, 3]
    for choice in got.choices:
        told = choice.logprobs
        assert told
        assert told.tokens
        assert told.token_logprobs
        assert told.text_offset
        assert len(told.tokens) == len(told.token_logprobs) == len(told.text_offset)
        assert "".join(told.tokens) == choice.text


@check
def prompts_of_token_ids(client: OpenAI) -> None:
    got = client.completions.create(
        model=MODEL, prompt=[[300, 301], [302, 303, 304]], max_tokens=4, temperature=0
    )
    assert [choice.index for choice in got.choices] == [0, 1]
    assert got.usage
    assert got.usage.prompt_tokens >= 5


@check
def echo(client: OpenAI) -> None:
    got = client.completions.create(
        model=MODEL, prompt=PROMPT, max_tokens=4, temperature=0, echo=True
    )
    assert got.choices[0].text.startswith(PROMPT)
    assert len(got.choices[0].text) > len(PROMPT)
    chunks = connect(strict=False).completions.create(
        model=MODEL, prompt=PROMPT, max_tokens=4, temperature=0, echo=True, stream=True
    )
    assert "".join(chunk.choices[0].text for chunk in chunks) == got.choices[0].text


def ask_with_echo(tokens: int) -> CompletionChoice:
    """The prompt, with how likely it is, and so many tokens more."""
    # The first token has no probability, which the SDK's strict type does not know.
    got = connect(strict=False).completions.create(
        model=MODEL, prompt=PROMPT, max_tokens=tokens, temperature=0, echo=True, logprobs=2
    )
    assert got.usage
    assert got.usage.completion_tokens == tokens
    (choice,) = got.choices
    told = choice.logprobs
    assert told
    assert told.tokens
    assert told.token_logprobs
    assert told.top_logprobs
    assert told.text_offset
    assert told.token_logprobs[0] is None
    assert told.top_logprobs[0] is None
    for token, logprob, tops in zip(
        told.tokens[1:], told.token_logprobs[1:], told.top_logprobs[1:], strict=True
    ):
        assert logprob <= 0
        assert tops[token] == logprob
    # A token that only marks the beginning has no place in the text.
    ends = [*told.text_offset[1:], len(choice.text)]
    for token, start, end in zip(told.tokens, told.text_offset, ends, strict=True):
        assert choice.text[start:end] in {token, ""}
    assert told.text_offset[0] == 0
    return choice


@check
def echo_with_logprobs(_: OpenAI) -> None:
    """How likely a text is, as evaluations ask it: nothing is written."""
    assert ask_with_echo(0).text == PROMPT


@check
def echo_with_logprobs_and_more_text(_: OpenAI) -> None:
    read, written = ask_with_echo(0), ask_with_echo(4)
    assert written.text.startswith(PROMPT)
    assert len(written.text) > len(PROMPT)
    assert read.logprobs
    assert read.logprobs.token_logprobs
    assert written.logprobs
    assert written.logprobs.token_logprobs
    pairs = zip(read.logprobs.token_logprobs, written.logprobs.token_logprobs, strict=False)
    for one, other in list(pairs)[1:]:
        assert abs(one - other) < 1e-4


@check
def suffix(client: OpenAI) -> None:
    got = client.completions.create(model=MODEL, prompt="The ", suffix=" sat.", max_tokens=4)
    assert got.choices[0].text is not None


@check
def best_of(client: OpenAI) -> None:
    got = client.completions.create(
        model=MODEL, prompt=PROMPT, n=2, best_of=3, max_tokens=4, temperature=1, seed=3
    )
    assert [choice.index for choice in got.choices] == [0, 1]
