"""Chat templates in Jinja: the built-in ones as llama.cpp's own, and what strange ones do."""

from __future__ import annotations

import re
from typing import Any

import pytest
from hypothesis import given
from hypothesis import strategies as st

from strategies import law
from tropilla import templates
from tropilla.ir import Chat, Completion, Malformed, Message, Request, Text, Tool, ToolChoice
from tropilla.templates import Classic, Jinja, compiled, flatten, named, recognised

TALK = (
    ("system", "You are a helpful assistant"),
    ("user", "Hello"),
    ("assistant", "Hi there"),
    ("user", "Who are you"),
    ("assistant", "   I am an assistant   "),
    ("user", "Another question"),
)

# DeepSeek's marks have a bar and an underline of their own.
SENTENCE = "<\uff5cend\u2581of\u2581sentence\uff5c>"
USER = "<\uff5cUser\uff5c>"
ASSISTANT = "<\uff5cAssistant\uff5c>"

# The outputs that llama.cpp's tests/test-chat-template.cpp expects of its C++ templates. Where it
# has no case (llama4, mistral-v7-tekken, zephyr, deepseek3, exaone3), what src/llama-chat.cpp says.
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
    "llama2-sys-bos": (
        "[INST] <<SYS>>\nYou are a helpful assistant\n<</SYS>>\n\nHello [/INST]Hi there</s><s>"
        "[INST] Who are you [/INST]   I am an assistant   </s><s>[INST] Another question [/INST]"
    ),
    "llama2-sys-strip": (
        "[INST] <<SYS>>\nYou are a helpful assistant\n<</SYS>>\n\nHello [/INST]Hi there</s>"
        "[INST] Who are you [/INST]I am an assistant</s>[INST] Another question [/INST]"
    ),
    "mistral-v1": (
        " [INST] You are a helpful assistant\n\nHello [/INST] Hi there</s> [INST] Who are you "
        "[/INST]    I am an assistant   </s> [INST] Another question [/INST]"
    ),
    "mistral-v3": (
        "[INST] You are a helpful assistant\n\nHello[/INST] Hi there</s>[INST] Who are you[/INST]"
        " I am an assistant</s>[INST] Another question[/INST]"
    ),
    "mistral-v3-tekken": (
        "[INST]You are a helpful assistant\n\nHello[/INST]Hi there</s>[INST]Who are you[/INST]"
        "   I am an assistant   </s>[INST]Another question[/INST]"
    ),
    "mistral-v7": (
        "[SYSTEM_PROMPT] You are a helpful assistant[/SYSTEM_PROMPT][INST] Hello[/INST] Hi there"
        "</s>[INST] Who are you[/INST]    I am an assistant   </s>[INST] Another question[/INST]"
    ),
    "mistral-v7-tekken": (
        "[SYSTEM_PROMPT]You are a helpful assistant[/SYSTEM_PROMPT][INST]Hello[/INST]Hi there"
        "</s>[INST]Who are you[/INST]   I am an assistant   </s>[INST]Another question[/INST]"
    ),
    "llama4": (
        "<|header_start|>system<|header_end|>\n\nYou are a helpful assistant<|eot|>"
        "<|header_start|>user<|header_end|>\n\nHello<|eot|>"
        "<|header_start|>assistant<|header_end|>\n\nHi there<|eot|>"
        "<|header_start|>user<|header_end|>\n\nWho are you<|eot|>"
        "<|header_start|>assistant<|header_end|>\n\nI am an assistant<|eot|>"
        "<|header_start|>user<|header_end|>\n\nAnother question<|eot|>"
        "<|header_start|>assistant<|header_end|>\n\n"
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
    "zephyr": (
        "<|system|>\nYou are a helpful assistant<|endoftext|>\n<|user|>\nHello<|endoftext|>\n"
        "<|assistant|>\nHi there<|endoftext|>\n<|user|>\nWho are you<|endoftext|>\n"
        "<|assistant|>\n   I am an assistant   <|endoftext|>\n<|user|>\nAnother question"
        "<|endoftext|>\n<|assistant|>\n"
    ),
    "monarch": (
        "system\nYou are a helpful assistant</s>\n<s>user\nHello</s>\n<s>assistant\nHi there</s>\n"
        "<s>user\nWho are you</s>\n<s>assistant\n   I am an assistant   </s>\n"
        "<s>user\nAnother question</s>\n<s>assistant\n"
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
    "deepseek2": (
        f"You are a helpful assistant\n\nUser: Hello\n\nAssistant: Hi there{SENTENCE}User: Who are "
        f"you\n\nAssistant:    I am an assistant   {SENTENCE}User: Another question\n\nAssistant:"
    ),
    "deepseek3": (
        f"You are a helpful assistant\n\n{USER}Hello{ASSISTANT}Hi there{SENTENCE}{USER}Who are you"
        f"{ASSISTANT}   I am an assistant   {SENTENCE}{USER}Another question{ASSISTANT}"
    ),
    "chatglm4": (
        "[gMASK]<sop><|system|>\nYou are a helpful assistant<|user|>\nHello<|assistant|>\nHi there"
        "<|user|>\nWho are you<|assistant|>\n   I am an assistant   <|user|>\nAnother question"
        "<|assistant|>\n"
    ),
    "exaone3": (
        "[|system|]You are a helpful assistant[|endofturn|]\n[|user|]Hello\n"
        "[|assistant|]Hi there[|endofturn|]\n[|user|]Who are you\n"
        "[|assistant|]I am an assistant[|endofturn|]\n[|user|]Another question\n[|assistant|]"
    ),
    "granite": (
        "<|start_of_role|>system<|end_of_role|>You are a helpful assistant<|end_of_text|>\n"
        "<|start_of_role|>user<|end_of_role|>Hello<|end_of_text|>\n"
        "<|start_of_role|>assistant<|end_of_role|>Hi there<|end_of_text|>\n"
        "<|start_of_role|>user<|end_of_role|>Who are you<|end_of_text|>\n"
        "<|start_of_role|>assistant<|end_of_role|>   I am an assistant   <|end_of_text|>\n"
        "<|start_of_role|>user<|end_of_role|>Another question<|end_of_text|>\n"
        "<|start_of_role|>assistant<|end_of_role|>"
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


def test_it_goes_on_so_where_the_assistant_speaks_alone() -> None:
    prompt = named("chatml").prompt(messages(("assistant", "Well, ")))
    assert prompt == "<|im_start|>assistant\nWell, "


def test_gemma_loses_nothing_of_the_system() -> None:
    gemma = named("gemma")
    prompt = gemma.prompt(messages(("system", "Be."), ("system", "Act."), ("user", "Hi")))
    assert prompt.startswith("<start_of_turn>user\nBe.Act.\n\nHi<end_of_turn>")
    with pytest.raises(Malformed, match="needs a user message after it"):
        gemma.prompt(messages(("user", "Hi"), ("system", "Be.")))


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
        ("{{ 'x' * 1000000000 }}", "too large|out of fuel"),  # since minijinja 3.1
        ("{% macro a() %}{{ a() }}{% endmacro %}{{ a() }}", "recursion"),
        ("{% include '/etc/passwd' %}", "not found"),
        ("{{ raise_exception('Roles must alternate!') }}", "refuses this: Roles must alternate!"),
        ("{{ strftime_now('%d') }}", "unknown"),
        ("{{ messages[5].content.strip() }}", "undefined"),
        ("{% for i in range(70) %}{{ 'x' * 1000000 }}{% endfor %}", "far too long|out of fuel"),
    ],
)
def test_a_template_that_misbehaves_is_told(source: str, words: str) -> None:
    with pytest.raises(Malformed) as caught:
        compiled("strange", source).prompt(messages(("user", "x")))
    problem = caught.value.problem
    assert (problem.kind, problem.param) == ("unsupported", "messages")
    assert problem.message.startswith("The strange template ")
    assert re.search(words, problem.message)
    assert "\n" not in problem.message


def test_nothing_of_python_can_be_reached() -> None:
    source = "{{ messages.__class__ }}{{ messages[0].__init__ }}"
    assert compiled("x", source).prompt(messages(("user", "x"))) == ""


def test_what_does_not_compile_is_told_with_its_line() -> None:
    with pytest.raises(Malformed, match=r"line 2: syntax error"):
        compiled("x", "fine\n{% for %}")


TURNS = (
    "{{ bos_token }}{% for m in messages %}{{ '[' + m.content + ']' }}"
    "{% if m.role == 'assistant' %}{{ eos_token }}{% endif %}{% endfor %}"
)
EVERY = "{% for m in messages %}{{ bos_token + m.content }}{% endfor %}"


def test_the_beginning_of_text_is_the_engines() -> None:
    talk = messages(("user", "a"), ("user", "b"))
    assert compiled("x", TURNS, bos="<s>").prompt(talk) == "[a][b]"
    # Only the first: a template may want it before every turn.
    assert compiled("x", EVERY, bos="<s>").prompt(talk) == "a<s>b"
    assert compiled("x", EVERY).prompt(talk[:1]) == "a"


@pytest.mark.parametrize(("source", "name"), [(TURNS, "eos_token"), (EVERY, "bos_token")])
def test_a_mark_that_nobody_told_is_not_left_out(source: str, name: str) -> None:
    talk = messages(("user", "a"), ("assistant", "b"), ("user", "c"))
    with pytest.raises(Malformed, match=f"puts {name} between turns"):
        compiled("x", source).prompt(talk)
    flat, _ = flatten(asked(Chat(messages=talk)), compiled("x", source), bos="<s>", eos="</s>")
    assert isinstance(flat.input, Completion)
    assert flat.input.prompts == ("[a][b]</s>[c]" if source == TURNS else "a<s>b<s>c",)


@pytest.mark.parametrize("role", ["user", "system"])
def test_a_template_that_reads_parts_gets_parts(role: str) -> None:
    parts = (
        "{% for m in messages %}{% for part in m.content %}"
        "{% if part.type == 'text' %}{{ part.text }}{% endif %}{% endfor %};{% endfor %}"
    )
    assert compiled("x", parts).prompt(messages((role, "Hi"), ("user", "Ho"))) == "Hi;Ho;"
    either = "{% if messages[0].content is string %}text{% else %}" + parts + "{% endif %}"
    assert compiled("x", either).prompt(messages((role, "Hi"))) == "Hi;"
    both = "{% set c = messages[0].content %}{{ c if c is string else c[0].text + '!' }}"
    assert compiled("x", both).prompt(messages((role, "Hi"))) == "Hi"


@pytest.mark.parametrize(
    ("source", "prompt"),
    [
        ("{% generation %}\n{{ 'a' }}\n{%- endgeneration %}\nb", "ab"),
        ("a {%- generation -%} b {%- endgeneration -%} c", "abc"),
        ("{{ {'a': ['<é>', 1]} | tojson }}", '{"a": ["<é>", 1]}'),
        ("{{ {'a': 1} | tojson(indent=4, ensure_ascii=False) }}", '{\n    "a": 1\n}'),
        ("  {% if true %}\nx\n  {% endif %}\ny", "x\ny"),
        ("{{ 'b</t>c'.split('</t>')[-1].lstrip('x').title() }}", "C"),
        ("{% for k, v in {'a': 1}.items() %}{{ k }}{{ v }}{% endfor %}", "a1"),
        ("{{ strftime_now is defined }}{{ tools is defined }}", "FalseFalse"),
    ],
)
def test_what_templates_of_models_do(source: str, prompt: str) -> None:
    assert compiled("x", source).prompt(messages(("user", "Hi"))) == prompt


# What is particular to the template of a model that is known by this name.
MARKS = {
    "chatml": "{{'<|im_start|>' + message['role']}}",
    "phi4": "{{'<|im_start|>system<|im_sep|>' + message['content']}}",
    "llama2": "{{ '[INST] ' + message['content'] + ' [/INST]' }}",
    "llama2-sys": "{{ '[INST] <<SYS>>' + system + '<</SYS>>' }}",
    "llama2-sys-bos": "{{ bos_token + '[INST] <<SYS>>' }}",
    "llama2-sys-strip": "{{ bos_token + '[INST] <<SYS>>' + content.strip() }}",
    "mistral-v1": "{{- ' [INST] ' + system_message }}",
    "mistral-v3": "{{ '[AVAILABLE_TOOLS] [' }}{{ '[INST] ' }}",
    "mistral-v3-tekken": '{{ "[AVAILABLE_TOOLS][" }}{{- "[INST]" + message["content"] }}',
    "mistral-v7": "{{ '[SYSTEM_PROMPT] ' }}{{ '[INST] ' }}",
    "llama3": "{{ '<|start_header_id|>' + message['role'] + '<|end_header_id|>' }}",
    "llama4": "{{ '<|header_start|>' + message['role'] + '<|header_end|>' }}",
    "gemma": "{{ '<start_of_turn>' + role }}",
    "phi3": "{{'<|user|>' + message['content'] + '<|end|>' + '<|assistant|>'}}",
    "zephyr": "{{ '<|user|>' + message['content'] + '<|endoftext|>' }}{{ '<|assistant|>' }}",
    "monarch": "{{bos_token + message['role'] + message['content'] + eos_token}}",
    "vicuna": "{{'USER: ' + message['content']}}{{'ASSISTANT: '}}",
    "vicuna-orca": "{{'SYSTEM: '}}{{'USER: ' + message['content']}}{{'ASSISTANT: '}}",
    "openchat": "{{ 'GPT4 Correct ' + message['role'].title() }}",
    "deepseek": "{{'### Instruction:' + message['content']}}{{'<|EOT|>'}}",
    "deepseek2": "{{ 'Assistant: ' + message['content'] + eos_token }}",
    "deepseek3": "{{ '" + USER + "' }}{{ '" + ASSISTANT + "' }}",
    "command-r": "{{ '<|START_OF_TURN_TOKEN|><|USER_TOKEN|>' + content.strip() }}",
    "chatglm4": "[gMASK]<sop><|{{ item['role'] }}|><|user|><|assistant|>",
    "exaone3": "{{ '[|system|]' }}{{ '[|assistant|]' }}{{ '[|endofturn|]' }}",
    "granite": "{{ '<|start_of_role|>user<|end_of_role|>' }}",
}


@pytest.mark.parametrize("name", MARKS)
def test_a_template_that_a_server_tells_is_recognised(name: str) -> None:
    assert recognised(MARKS[name]) == named(name)


@pytest.mark.parametrize(
    "source",
    [
        "",
        "{{ messages[0].content }}",
        "<|im_start|>{{ 'User: ' }}<end_of_utterance>",  # SmolVLM, no ChatML
        "<|user|>{{ messages[0].content }}<|assistant|>",  # Falcon, GLM-Edge and more
        "[|system|][|assistant|][|endofturn|][|tool|]",  # EXAONE 4
    ],
)
def test_what_is_not_known_is_not_guessed(source: str) -> None:
    assert recognised(source) is None


def test_what_a_server_tells_is_not_run() -> None:
    # Run, this one would end the process: it writes a value that holds itself.
    hostile = "<|im_start|>{% set ns = namespace() %}{% set ns.a = ns %}{{ ns }}"
    template = recognised(hostile)
    assert template == named("chatml")
    assert template.prompt(messages(("user", "Hi"))).startswith("<|im_start|>user\nHi")


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


@law(200)
@given(
    st.sampled_from(templates.NAMES),
    st.lists(st.tuples(st.sampled_from(["system", "user", "assistant"]), st.text()), max_size=5),
)
def test_no_built_in_template_leaves_a_text_out(name: str, talk: Any) -> None:
    try:
        prompt = named(name).prompt(messages(*talk))
    except Malformed:
        assert name == "gemma"
        return
    at = 0
    for _, text in talk:
        found = prompt.find(text.strip(), at)
        # Gemma's system speaks in the next turn of the user.
        assert found >= at or (name == "gemma" and text.strip() in prompt)
        at = max(at, found)
