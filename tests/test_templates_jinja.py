"""Chat templates in Jinja: the built-in ones as llama.cpp's own, and what strange ones do."""

from __future__ import annotations

from typing import Any

import pytest
from hypothesis import given
from hypothesis import strategies as st

from strategies import law
from tropilla import templates
from tropilla.ir import Chat, Completion, Malformed, Message, Request, Text, Tool, ToolChoice
from tropilla.templates import Classic, Jinja, compiled, flatten, named

TALK = (
    ("system", "You are a helpful assistant"),
    ("user", "Hello"),
    ("assistant", "Hi there"),
    ("user", "Who are you"),
    ("assistant", "   I am an assistant   "),
    ("user", "Another question"),
)

# The outputs that llama.cpp's tests/test-chat-template.cpp expects of its C++ templates.
EXPECTED = {
    "chatml": (
        "<|im_start|>system\nYou are a helpful assistant<|im_end|>\n<|im_start|>user\nHello"
        "<|im_end|>\n<|im_start|>assistant\nHi there<|im_end|>\n<|im_start|>user\nWho are you"
        "<|im_end|>\n<|im_start|>assistant\n   I am an assistant   <|im_end|>\n<|im_start|>user\n"
        "Another question<|im_end|>\n<|im_start|>assistant\n"
    ),
    "llama2": (
        "[INST] You are a helpful assistant\nHello [/INST]Hi there</s>[INST] Who are you [/INST]"
        "   I am an assistant   </s>[INST] Another question [/INST]"
    ),
    "llama2-sys": (
        "[INST] <<SYS>>\nYou are a helpful assistant\n<</SYS>>\n\nHello [/INST]Hi there</s>"
        "[INST] Who are you [/INST]   I am an assistant   </s>[INST] Another question [/INST]"
    ),
    "llama3": (
        "<|start_header_id|>system<|end_header_id|>\n\nYou are a helpful assistant<|eot_id|>"
        "<|start_header_id|>user<|end_header_id|>\n\nHello<|eot_id|>"
        "<|start_header_id|>assistant<|end_header_id|>\n\nHi there<|eot_id|>"
        "<|start_header_id|>user<|end_header_id|>\n\nWho are you<|eot_id|>"
        "<|start_header_id|>assistant<|end_header_id|>\n\nI am an assistant<|eot_id|>"
        "<|start_header_id|>user<|end_header_id|>\n\nAnother question<|eot_id|>"
        "<|start_header_id|>assistant<|end_header_id|>\n\n"
    ),
    "mistral-v7": (
        "[SYSTEM_PROMPT] You are a helpful assistant[/SYSTEM_PROMPT][INST] Hello[/INST] Hi there"
        "</s>[INST] Who are you[/INST]    I am an assistant   </s>[INST] Another question[/INST]"
    ),
    "gemma": (
        "<start_of_turn>user\nYou are a helpful assistant\n\nHello<end_of_turn>\n"
        "<start_of_turn>model\nHi there<end_of_turn>\n<start_of_turn>user\nWho are you"
        "<end_of_turn>\n<start_of_turn>model\nI am an assistant<end_of_turn>\n"
        "<start_of_turn>user\nAnother question<end_of_turn>\n<start_of_turn>model\n"
    ),
    "phi3": (
        "<|system|>\nYou are a helpful assistant<|end|>\n<|user|>\nHello<|end|>\n<|assistant|>\n"
        "Hi there<|end|>\n<|user|>\nWho are you<|end|>\n<|assistant|>\n   I am an assistant   "
        "<|end|>\n<|user|>\nAnother question<|end|>\n<|assistant|>\n"
    ),
    "phi4": (
        "<|im_start|>system<|im_sep|>You are a helpful assistant<|im_end|><|im_start|>user"
        "<|im_sep|>Hello<|im_end|><|im_start|>assistant<|im_sep|>Hi there<|im_end|><|im_start|>"
        "user<|im_sep|>Who are you<|im_end|><|im_start|>assistant<|im_sep|>   I am an assistant"
        "   <|im_end|><|im_start|>user<|im_sep|>Another question<|im_end|><|im_start|>assistant"
        "<|im_sep|>"
    ),
    "vicuna": (
        "You are a helpful assistant\n\nUSER: Hello\nASSISTANT: Hi there</s>\nUSER: Who are you\n"
        "ASSISTANT:    I am an assistant   </s>\nUSER: Another question\nASSISTANT:"
    ),
    "vicuna-orca": (
        "SYSTEM: You are a helpful assistant\nUSER: Hello\nASSISTANT: Hi there</s>\nUSER: Who are "
        "you\nASSISTANT:    I am an assistant   </s>\nUSER: Another question\nASSISTANT:"
    ),
    "openchat": (
        "You are a helpful assistant<|end_of_turn|>GPT4 Correct User: Hello<|end_of_turn|>"
        "GPT4 Correct Assistant: Hi there<|end_of_turn|>GPT4 Correct User: Who are you"
        "<|end_of_turn|>GPT4 Correct Assistant:    I am an assistant   <|end_of_turn|>"
        "GPT4 Correct User: Another question<|end_of_turn|>GPT4 Correct Assistant:"
    ),
    "deepseek": (
        "You are a helpful assistant### Instruction:\nHello\n### Response:\nHi there\n<|EOT|>\n"
        "### Instruction:\nWho are you\n### Response:\n   I am an assistant   \n<|EOT|>\n"
        "### Instruction:\nAnother question\n### Response:\n"
    ),
    "command-r": (
        "<|START_OF_TURN_TOKEN|><|SYSTEM_TOKEN|>You are a helpful assistant<|END_OF_TURN_TOKEN|>"
        "<|START_OF_TURN_TOKEN|><|USER_TOKEN|>Hello<|END_OF_TURN_TOKEN|><|START_OF_TURN_TOKEN|>"
        "<|CHATBOT_TOKEN|>Hi there<|END_OF_TURN_TOKEN|><|START_OF_TURN_TOKEN|><|USER_TOKEN|>"
        "Who are you<|END_OF_TURN_TOKEN|><|START_OF_TURN_TOKEN|><|CHATBOT_TOKEN|>I am an assistant"
        "<|END_OF_TURN_TOKEN|><|START_OF_TURN_TOKEN|><|USER_TOKEN|>Another question"
        "<|END_OF_TURN_TOKEN|><|START_OF_TURN_TOKEN|><|CHATBOT_TOKEN|>"
    ),
}


def messages(*talk: tuple[Any, str], **more: Any) -> tuple[Message, ...]:
    return tuple(Message(role=role, parts=(Text(text=text),), **more) for role, text in talk)


def asked(chat: Chat, **fields: Any) -> Request:
    return Request(dialect="openai_chat", input=chat, **fields)


@pytest.mark.parametrize("name", templates.NAMES)
def test_a_built_in_template_writes_what_llama_cpp_writes(name: str) -> None:
    template = named(name)
    if isinstance(template, Classic):
        assert template == Classic()
        return
    assert template.prompt(messages(*TALK)) == EXPECTED[name]
    # What ends a turn in its prompts ends an answer.
    (stop,) = template.stops
    assert stop in EXPECTED[name]


def test_there_is_no_other() -> None:
    assert set(templates.NAMES) == {"classic", *EXPECTED}
    with pytest.raises(KeyError):
        named("llama-9")


def test_a_developer_is_the_system() -> None:
    prompt = named("chatml").prompt(messages(("developer", "Be."), ("user", "Hi")))
    assert prompt.startswith("<|im_start|>system\nBe.")


def test_an_answer_goes_on_after_the_assistants_words() -> None:
    prompt = named("chatml").prompt(messages(("user", "Hi"), ("assistant", "Well, ")))
    assert prompt.endswith("<|im_start|>assistant\nWell, ")


def test_the_text_of_a_message_is_never_a_template() -> None:
    prompt = named("chatml").prompt(messages(("user", "{{ 7 * 7 }}{% raw %}")))
    assert "{{ 7 * 7 }}{% raw %}" in prompt


@pytest.mark.parametrize(
    ("role", "fields", "param"),
    [
        ("tool", {"tool_call_id": "1"}, "messages.0.role"),
        ("function", {}, "messages.0.role"),
    ],
)
def test_a_role_that_it_does_not_know(role: str, fields: Any, param: str) -> None:
    with pytest.raises(Malformed) as caught:
        named("llama3").prompt(messages((role, "x"), **fields))
    assert (caught.value.problem.kind, caught.value.problem.param) == ("unsupported", param)


@pytest.mark.parametrize(
    ("source", "words"),
    [
        ("{% for i in range(9999) %}{% for j in range(9999) %}x{% endfor %}{% endfor %}", "fuel"),
        ("{{ 'x' * 1000000000 }}", "too large"),
        ("{% macro a() %}{{ a() }}{% endmacro %}{{ a() }}", "recursion"),
        ("{% include '/etc/passwd' %}", "not found"),
        ("{{ raise_exception('Roles must alternate!') }}", "refuses this: Roles must alternate!"),
        ("{{ strftime_now('%d') }}", "unknown"),
        ("{{ messages[5].content.strip() }}", "undefined"),
    ],
)
def test_a_template_that_misbehaves_is_told(source: str, words: str) -> None:
    with pytest.raises(Malformed) as caught:
        compiled("strange", source).prompt(messages(("user", "x")))
    problem = caught.value.problem
    assert (problem.kind, problem.param) == ("unsupported", "messages")
    assert problem.message.startswith("The strange template ")
    assert words in problem.message
    assert "\n" not in problem.message


def test_nothing_of_python_can_be_reached() -> None:
    source = "{{ messages.__class__ }}{{ messages[0].__init__ }}"
    assert compiled("x", source).prompt(messages(("user", "x"))) == ""


def test_what_does_not_compile_is_told_with_its_line() -> None:
    with pytest.raises(Malformed, match=r"line 2: syntax error"):
        compiled("x", "fine\n{% for %}")


@pytest.mark.parametrize(
    ("source", "eos", "stops"),
    [
        ("{{ '<|im_end|>' }}", "", ("<|im_end|>",)),
        ("{{ '<|im_end|>' }}", "</s>", ("</s>", "<|im_end|>")),
        ("{{ '<|im_end|>' }}", "<|im_end|>", ("<|im_end|>",)),
        ("{{ 'USER' }}", "", ()),
    ],
)
def test_what_ends_an_answer_is_read_in_the_template(source: str, eos: str, stops: Any) -> None:
    assert compiled("x", source, eos=eos).stops == stops


def test_the_templates_stop_comes_before_the_clients() -> None:
    chat = Chat(messages=messages(("user", "Hi")))
    flat = flatten(asked(chat, stop=("END", "<|im_end|>")), named("chatml"))
    assert flat.request.stop == ("<|im_end|>", "END")
    assert isinstance(flat.request.input, Completion)
    # A text is not made of turns.
    text = Request(dialect="openai_completions", input=Completion(prompts=("x",)))
    assert flatten(text, named("chatml")).request == text


def test_what_is_lost_is_named_and_tools_are_refused() -> None:
    tools = (Tool(name="f"),)
    chat = Chat(
        messages=messages(("user", "Hi"), name="Ann"), reasoning_effort="low",
        parallel_tool_calls=True, tools=tools, tool_choice=ToolChoice(mode="none"),
    )  # fmt: skip
    dropped = flatten(asked(chat), Classic()).dropped
    assert set(dropped) == {"tools", "reasoning_effort", "parallel_tool_calls", "name"}
    for template in (Classic(), named("gemma")):
        with pytest.raises(Malformed) as caught:
            flatten(asked(Chat(messages=messages(("user", "Hi")), tools=tools)), template)
        assert caught.value.problem.param == "tools"


@law(200)
@given(
    st.text(alphabet="{}%- 'amsgeifor.[]()|=x\n", max_size=60),
    st.lists(
        st.tuples(st.sampled_from(["system", "user", "assistant", "tool"]), st.text()), max_size=4
    ),
)
def test_any_template_gives_a_prompt_or_is_malformed(source: str, talk: Any) -> None:
    try:
        prompt = compiled("x", source).prompt(messages(*talk))
    except Malformed:
        return
    assert isinstance(prompt, str)
    assert isinstance(compiled("x", source), Jinja)
