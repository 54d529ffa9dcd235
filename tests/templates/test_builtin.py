"""Messages to prompt text: the classic template, to the letter."""

from __future__ import annotations

from typing import Any

import pytest

from tropilla.dialects import openai_chat, openai_completions
from tropilla.ir import Completion, Malformed, Problem, Request
from tropilla.templates import Classic, flatten

RULES = (
    "A chat between a curious user and an artificial intelligence assistant. "
    "The assistant follows the given rules no matter what.\n"
)
SEED_MESSAGES = [
    {"role": "system", "content": "You are an assistant."},
    {"role": "user", "content": "How are you?"},
    {"role": "assistant", "content": "I'm fine. And you?"},
    {"role": "user", "content": "Fine. Thanks."},
]
# As the seed document has it, with a double line break in front of the first name.
SEED_PROMPT = (
    "A chat between a curious user and an artificial intelligence assistant. The assistant "
    "follows the given rules no matter what.\n\nASSISTANT's RULE: You are an assistant.\nUSER: "
    "How are you?\nASSISTANT: I'm fine. And you?</s>\nUSER: Fine. Thanks.\nASSISTANT:"
)
PIXEL = {"type": "image_url", "image_url": {"url": "data:image/png;base64,AA=="}}
CALL = {"id": "c", "type": "function", "function": {"name": "f", "arguments": "{}"}}
TOOL = {"type": "function", "function": {"name": "f"}}


def chat(*messages: dict[str, Any], **fields: Any) -> Request:
    return openai_chat.parse_request({"messages": list(messages), **fields}, "/chat/completions")


def prompt_of(*messages: dict[str, Any], template: Classic | None = None) -> str:
    flat, _ = flatten(chat(*messages), template or Classic())
    assert isinstance(flat.input, Completion)
    (prompt,) = flat.input.prompts
    assert isinstance(prompt, str)
    return prompt


def refusal(*messages: dict[str, Any], **fields: Any) -> Problem:
    with pytest.raises(Malformed) as caught:
        flatten(chat(*messages, **fields), Classic())
    return caught.value.problem


def test_the_seeds_conversation_gives_the_seeds_prompt() -> None:
    assert prompt_of(*SEED_MESSAGES) == SEED_PROMPT


def test_every_text_of_the_template_is_used() -> None:
    template = Classic(
        chat_prompt="begin|", user_name="|u ", ai_name="|a ", system_name="|s ", stop="<end>"
    )
    assert (
        prompt_of(*SEED_MESSAGES, template=template)
        == "begin||s You are an assistant.|u How are you?|a I'm fine. And you?<end>"
        "|u Fine. Thanks.|a"
    )


def test_only_the_two_characters_backslash_n_are_an_escape() -> None:
    template = Classic(
        chat_prompt=r"a\tb\\c\u0041\r", user_name=r"\nU:", ai_name=r"\nA: \n", stop=r"\nE"
    )
    user, told = {"role": "user", "content": "q"}, {"role": "assistant", "content": "r"}
    # As the script's str.replace did it: no tab, no Unicode, and of two backslashes none goes.
    assert prompt_of(user, told, template=template) == "a\\tb\\\\c\\u0041\\r\nU:q\nA: \nr\nE\nA:"


def test_what_people_write_is_not_unescaped() -> None:
    assert r"a\nb" in prompt_of({"role": "user", "content": r"a\nb"})


def test_a_real_line_break_in_a_text_of_the_template_stays_one() -> None:
    template = Classic(chat_prompt="", user_name="\nU: ", ai_name="\nA: ")
    assert prompt_of({"role": "user", "content": "q"}, template=template) == "\nU: q\nA:"


def test_only_the_assistants_turns_get_the_stop_text() -> None:
    prompt = prompt_of(*SEED_MESSAGES)
    assert prompt.count("</s>") == 1
    assert "I'm fine. And you?</s>" in prompt


def test_an_empty_stop_puts_none_behind_a_turn_and_asks_for_none() -> None:
    flat, _ = flatten(chat(*SEED_MESSAGES, stop=["END"]), Classic(stop=""))
    assert flat.stop == ("END",)
    assert prompt_of(*SEED_MESSAGES, template=Classic(stop="")) == SEED_PROMPT.replace("</s>", "")


def test_the_prompt_ends_in_the_assistants_name_without_the_space_behind_it() -> None:
    user = {"role": "user", "content": "q"}
    assert prompt_of(user).endswith("q\nASSISTANT:")
    assert prompt_of(user, template=Classic(ai_name=" A: \\n ")).endswith("q A:")
    assert prompt_of(user, template=Classic(ai_name="")).endswith("\nUSER: q")


def test_an_assistants_turn_at_the_end_is_closed_and_a_new_one_begins() -> None:
    prompt = prompt_of({"role": "assistant", "content": "half"})
    assert prompt == f"{RULES}\nASSISTANT: half</s>\nASSISTANT:"


def test_a_developer_speaks_as_the_system_does() -> None:
    system, developer = (
        prompt_of({"role": role, "content": "Be brief."}) for role in ("system", "developer")
    )
    assert developer == system == f"{RULES}\nASSISTANT's RULE: Be brief.\nASSISTANT:"


def test_parts_of_text_are_joined() -> None:
    parts = [{"type": "text", "text": "one, "}, {"type": "text", "text": "two"}]
    assert "\nUSER: one, two\n" in prompt_of({"role": "user", "content": parts})


def test_content_that_is_null_is_nothing() -> None:
    prompt = prompt_of({"role": "assistant", "content": None})
    assert prompt == f"{RULES}\nASSISTANT: </s>\nASSISTANT:"


@pytest.mark.parametrize(
    ("message", "param"),
    [
        ({"role": "tool", "tool_call_id": "c", "content": "4"}, "messages.1.role"),
        ({"role": "function", "name": "f", "content": "4"}, "messages.1.role"),
        ({"role": "user", "content": [PIXEL]}, "messages.1.content"),
        ({"role": "user", "content": [{"type": "text", "text": "t"}, PIXEL]}, "messages.1.content"),
        (
            {
                "role": "user",
                "content": [
                    {"type": "input_audio", "input_audio": {"data": "AA==", "format": "wav"}}
                ],
            },
            "messages.1.content",
        ),
        ({"role": "user", "content": [{"type": "file", "file": {}}]}, "messages.1.content"),
        ({"role": "assistant", "tool_calls": [CALL]}, "messages.1.tool_calls"),
        (
            {"role": "assistant", "content": "4", "reasoning_content": "2 + 2"},
            "messages.1.reasoning_content",
        ),
        ({"role": "assistant", "refusal": "No."}, "messages.1.refusal"),
    ],
    ids=lambda value: value if isinstance(value, str) else value["role"],
)
def test_what_the_template_cannot_say_is_refused(message: dict[str, Any], param: str) -> None:
    problem = refusal({"role": "user", "content": "q"}, message)
    assert (problem.kind, problem.param) == ("unsupported", param)


def test_tools_are_refused() -> None:
    problem = refusal({"role": "user", "content": "q"}, tools=[TOOL])
    assert (problem.kind, problem.param) == ("unsupported", "tools")


def test_no_tools_are_no_reason_to_refuse() -> None:
    request = chat({"role": "user", "content": "q"}, tools=[], tool_choice="none")
    assert isinstance(flatten(request, Classic()).request.input, Completion)


@pytest.mark.parametrize(
    ("stop", "expected"),
    [
        (None, ("</s>",)),
        ("END", ("</s>", "END")),
        (["END", "###"], ("</s>", "END", "###")),
        ([], ("</s>",)),
        ("", ("</s>",)),
    ],
)
@pytest.mark.parametrize("kind", ["chat", "completions"])
def test_the_templates_stop_comes_before_the_clients(
    kind: str, stop: Any, expected: tuple[str, ...]
) -> None:
    if kind == "chat":
        request = chat({"role": "user", "content": "q"}, stop=stop)
    else:
        request = openai_completions.parse_request({"prompt": "q", "stop": stop}, "/completions")
    assert flatten(request, Classic()).request.stop == expected


def test_the_stop_of_the_template_is_unescaped() -> None:
    request = chat({"role": "user", "content": "q"})
    assert flatten(request, Classic(stop=r"\nUSER:")).request.stop == ("\nUSER:",)


@pytest.mark.parametrize("prompt", ["raw text", [1, 2], ["one", "two"]])
def test_raw_text_stays_what_it_is(prompt: Any) -> None:
    request = openai_completions.parse_request({"prompt": prompt}, "/completions")
    assert flatten(request, Classic()).request.input == request.input


def test_everything_but_the_messages_and_the_stop_stays_what_it_is() -> None:
    request = chat(
        {"role": "user", "content": "q"}, model="m", temperature=0.5, max_tokens=7, stream=True,
        seed=3, logit_bias={"5": 1}, tokenize=True,
    )  # fmt: skip
    flat, _ = flatten(request, Classic())
    kept = ("dialect", "model", "stream", "n", "max_tokens", "knobs", "logit_bias", "tokenize")
    assert [getattr(flat, name) for name in kept] == [getattr(request, name) for name in kept]
