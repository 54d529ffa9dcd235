"""The templates of well-known families of models, under the names that llama.cpp gives them.

Each is written so that its prompts are those of llama.cpp's own C++ templates (`llama-chat.cpp`),
without the beginning of text, which the engine adds by itself. `family` knows a template by the
marks in its source, as llama.cpp does where it runs no Jinja.
"""

from __future__ import annotations

_CHATML = """\
{%- for message in messages -%}
{{ '<|im_start|>' + message.role + '\\n' + message.content + '<|im_end|>\\n' }}
{%- endfor -%}
{{ '<|im_start|>assistant\\n' }}"""

_LLAMA2 = """\
{%- set ns = namespace(inside=true) -%}
{{ '[INST] ' }}
{%- for message in messages -%}
{%- if not ns.inside -%}{{ 'BOS[INST] ' }}{%- set ns.inside = true -%}{%- endif -%}
{%- if message.role == 'system' -%}
{{ SYSTEM }}
{%- elif message.role == 'user' -%}
{{ message.content + ' [/INST]' }}
{%- else -%}
{{ message.content + '</s>' }}{%- set ns.inside = false -%}
{%- endif -%}
{%- endfor -%}"""

_LLAMA3 = """\
{%- for message in messages -%}
{{ '<|start_header_id|>' + message.role + '<|end_header_id|>\\n\\n' }}
{{- message.content.strip() + '<|eot_id|>' }}
{%- endfor -%}
{{ '<|start_header_id|>assistant<|end_header_id|>\\n\\n' }}"""

_MISTRAL = """\
{%- set ns = namespace(inside=false) -%}
{%- for message in messages -%}
{%- if not ns.inside -%}{{ 'BEFORE[INST]AFTER' }}{%- set ns.inside = true -%}{%- endif -%}
{%- if message.role == 'system' -%}
{{ message.content + '\\n\\n' }}
{%- elif message.role == 'user' -%}
{{ message.content + 'BEFORE[/INST]' }}
{%- else -%}
{{ 'AFTER' + message.content + '</s>' }}{%- set ns.inside = false -%}
{%- endif -%}
{%- endfor -%}"""

_MISTRAL_V7 = """\
{%- for message in messages -%}
{%- if message.role == 'system' -%}
{{ '[SYSTEM_PROMPT]AFTER' + message.content + '[/SYSTEM_PROMPT]' }}
{%- elif message.role == 'user' -%}
{{ '[INST]AFTER' + message.content + '[/INST]' }}
{%- else -%}
{{ 'AFTER' + message.content + '</s>' }}
{%- endif -%}
{%- endfor -%}"""

_GEMMA = """\
{%- set ns = namespace(system='') -%}
{%- for message in messages -%}
{%- if message.role == 'system' -%}
{%- set ns.system = ns.system + message.content.strip() -%}
{%- else -%}
{{ '<start_of_turn>' + ('model' if message.role == 'assistant' else 'user') + '\\n' }}
{%- if ns.system and message.role == 'user' -%}
{{ ns.system + '\\n\\n' }}{%- set ns.system = '' -%}
{%- endif -%}
{{ message.content.strip() + '<end_of_turn>\\n' }}
{%- endif -%}
{%- endfor -%}
{%- if ns.system -%}
{{ raise_exception('A system message needs a user message after it.') }}
{%- endif -%}
{{ '<start_of_turn>model\\n' }}"""

_PHI3 = """\
{%- for message in messages -%}
{{ '<|' + message.role + '|>\\n' + message.content + '<|end|>\\n' }}
{%- endfor -%}
{{ '<|assistant|>\\n' }}"""

_ZEPHYR = """\
{%- for message in messages -%}
{{ '<|' + message.role + '|>\\n' + message.content + '<|endoftext|>\\n' }}
{%- endfor -%}
{{ '<|assistant|>\\n' }}"""

_CHATGLM4 = """\
{{- '[gMASK]<sop>' }}
{%- for message in messages -%}
{{ '<|' + message.role + '|>\\n' + message.content }}
{%- endfor -%}
{{ '<|assistant|>\\n' }}"""

_MONARCH = """\
{%- for message in messages -%}
{{ ('' if loop.first else '<s>') + message.role + '\\n' + message.content + '</s>\\n' }}
{%- endfor -%}
{{ '<s>assistant\\n' }}"""

_PHI4 = """\
{%- for message in messages -%}
{{ '<|im_start|>' + message.role + '<|im_sep|>' + message.content + '<|im_end|>' }}
{%- endfor -%}
{{ '<|im_start|>assistant<|im_sep|>' }}"""

_VICUNA = """\
{%- for message in messages -%}
{%- if message.role == 'system' -%}
{{ SYSTEM }}
{%- elif message.role == 'user' -%}
{{ 'USER: ' + message.content + '\\n' }}
{%- else -%}
{{ 'ASSISTANT: ' + message.content + '</s>\\n' }}
{%- endif -%}
{%- endfor -%}
{{ 'ASSISTANT:' }}"""

_OPENCHAT = """\
{%- for message in messages -%}
{%- if message.role != 'system' -%}
{{ 'GPT4 Correct ' + message.role.title() + ': ' }}
{%- endif -%}
{{ message.content + '<|end_of_turn|>' }}
{%- endfor -%}
{{ 'GPT4 Correct Assistant:' }}"""

_DEEPSEEK = """\
{%- for message in messages -%}
{%- if message.role == 'system' -%}
{{ message.content }}
{%- elif message.role == 'user' -%}
{{ '### Instruction:\\n' + message.content + '\\n' }}
{%- else -%}
{{ '### Response:\\n' + message.content + '\\n<|EOT|>\\n' }}
{%- endif -%}
{%- endfor -%}
{{ '### Response:\\n' }}"""

_DEEPSEEK2 = """\
{%- for message in messages -%}
{%- if message.role == 'system' -%}
{{ message.content + '\\n\\n' }}
{%- elif message.role == 'user' -%}
{{ 'User: ' + message.content + '\\n\\n' }}
{%- else -%}
{{ 'Assistant: ' + message.content + '<\uff5cend\u2581of\u2581sentence\uff5c>' }}
{%- endif -%}
{%- endfor -%}
{{ 'Assistant:' }}"""

_DEEPSEEK3 = """\
{%- for message in messages -%}
{%- if message.role == 'system' -%}
{{ message.content + '\\n\\n' }}
{%- elif message.role == 'user' -%}
{{ '<\uff5cUser\uff5c>' + message.content }}
{%- else -%}
{{ '<\uff5cAssistant\uff5c>' + message.content + '<\uff5cend\u2581of\u2581sentence\uff5c>' }}
{%- endif -%}
{%- endfor -%}
{{ '<\uff5cAssistant\uff5c>' }}"""

_GRANITE = """\
{%- for message in messages -%}
{{ '<|start_of_role|>' + message.role + '<|end_of_role|>' }}
{{- message.content + '<|end_of_text|>\\n' }}
{%- endfor -%}
{{ '<|start_of_role|>assistant<|end_of_role|>' }}"""

_EXAONE3 = """\
{%- for message in messages -%}
{{ '[|' + message.role + '|]' + message.content.strip() }}
{{- '\\n' if message.role == 'user' else '[|endofturn|]\\n' }}
{%- endfor -%}
{{ '[|assistant|]' }}"""

_COMMAND_R = """\
{%- set names = {'system': 'SYSTEM', 'user': 'USER', 'assistant': 'CHATBOT'} -%}
{%- for message in messages -%}
{{ '<|START_OF_TURN_TOKEN|><|' + names[message.role] + '_TOKEN|>' }}
{{- message.content.strip() + '<|END_OF_TURN_TOKEN|>' }}
{%- endfor -%}
{{ '<|START_OF_TURN_TOKEN|><|CHATBOT_TOKEN|>' }}"""

_LLAMA4 = (
    _LLAMA3.replace("start_header_id", "header_start")
    .replace("end_header_id", "header_end")
    .replace("eot_id", "eot")
)

_TURN = "message.content + '</s>'"
_SYS = "'<<SYS>>\\n' + message.content + '\\n<</SYS>>\\n\\n'"


def _stripped(source: str) -> str:
    return source.replace("message.content", "message.content.strip()")


def _llama2(system: str, *, bos: str = "") -> str:
    return _LLAMA2.replace("SYSTEM", system).replace("BOS", bos)


def _spaced(source: str, *, before: str = "", after: str = "") -> str:
    """One of Mistral's: they differ in the spaces around their marks."""
    return source.replace("BEFORE", before).replace("AFTER", after)


JINJA: dict[str, tuple[str, ...]] = {
    "chatml": (_CHATML, "<|im_end|>"),
    "llama2": (_llama2("message.content + '\\n'"), "</s>"),
    "llama2-sys": (_llama2(_SYS), "</s>"),
    "llama2-sys-bos": (_llama2(_SYS, bos="<s>"), "</s>"),
    "llama2-sys-strip": (_stripped(_llama2(_SYS)), "</s>"),
    "mistral-v1": (_spaced(_MISTRAL, before=" ", after=" "), "</s>"),
    "mistral-v3": (_spaced(_MISTRAL, after=" ").replace(_TURN, _stripped(_TURN)), "</s>"),
    "mistral-v3-tekken": (_spaced(_MISTRAL), "</s>"),
    "mistral-v7": (_spaced(_MISTRAL_V7, after=" "), "</s>"),
    "mistral-v7-tekken": (_spaced(_MISTRAL_V7), "</s>"),
    "llama3": (_LLAMA3, "<|eot_id|>"),
    "llama4": (_LLAMA4, "<|eot|>"),
    "gemma": (_GEMMA, "<end_of_turn>"),
    "phi3": (_PHI3, "<|end|>"),
    "phi4": (_PHI4, "<|im_end|>"),
    "zephyr": (_ZEPHYR, "<|endoftext|>"),
    "monarch": (_MONARCH, "</s>"),
    "vicuna": (_VICUNA.replace("SYSTEM", "message.content + '\\n\\n'"), "</s>"),
    "vicuna-orca": (_VICUNA.replace("SYSTEM", "'SYSTEM: ' + message.content + '\\n'"), "</s>"),
    "openchat": (_OPENCHAT, "<|end_of_turn|>"),
    "deepseek": (_DEEPSEEK, "<|EOT|>"),
    "deepseek2": (_DEEPSEEK2, "<\uff5cend\u2581of\u2581sentence\uff5c>"),
    "deepseek3": (_DEEPSEEK3, "<\uff5cend\u2581of\u2581sentence\uff5c>"),
    "command-r": (_COMMAND_R, "<|END_OF_TURN_TOKEN|>"),
    "chatglm4": (_CHATGLM4, "<|user|>"),
    "exaone3": (_EXAONE3, "[|endofturn|]"),
    "granite": (_GRANITE, "<|end_of_text|>"),
}
"""The source of each, and what ends a turn."""

_MARKS: tuple[tuple[str | None, tuple[str, ...]], ...] = (
    ("phi4", ("<|im_start|>", "<|im_sep|>")),
    (None, ("<|im_start|>", "<end_of_utterance>")),
    ("chatml", ("<|im_start|>",)),
    ("mistral-v7", ("[INST]", "[SYSTEM_PROMPT]")),
    ("mistral-v1", ("' [INST] ' + system_message",)),
    ("mistral-v1", (" [INST]", "[AVAILABLE_TOOLS]")),
    ("mistral-v3-tekken", ('"[INST]"', "[AVAILABLE_TOOLS]")),
    ("mistral-v3", ("[INST]", "[AVAILABLE_TOOLS]")),
    ("llama2-sys-strip", ("[INST]", "content.strip()")),
    ("llama2-sys-bos", ("[INST]", "bos_token + '[INST]")),
    ("llama2-sys", ("[INST]", "<<SYS>>")),
    ("llama2", ("[INST]",)),
    ("phi3", ("<|assistant|>", "<|end|>")),
    ("chatglm4", ("[gMASK]<sop>",)),
    ("zephyr", ("<|user|>", "<|endoftext|>")),
    (None, ("<|user|>", "<|assistant|>")),
    ("monarch", ("bos_token + message['role']",)),
    ("gemma", ("<start_of_turn>",)),
    ("openchat", ("GPT4 Correct ",)),
    ("vicuna-orca", ("USER: ", "ASSISTANT: ", "SYSTEM: ")),
    ("vicuna", ("USER: ", "ASSISTANT: ")),
    ("deepseek", ("### Instruction:", "<|EOT|>")),
    ("command-r", ("<|START_OF_TURN_TOKEN|>", "<|USER_TOKEN|>")),
    ("llama3", ("<|start_header_id|>", "<|end_header_id|>")),
    ("deepseek2", ("'Assistant: ' + message['content'] + eos_token",)),
    ("deepseek3", ("<\uff5cAssistant\uff5c>", "<\uff5cUser\uff5c>")),
    (None, ("[|endofturn|]", "[|tool|]")),
    ("exaone3", ("[|system|]", "[|assistant|]", "[|endofturn|]")),
    ("granite", ("<|start_of_role|>",)),
    ("llama4", ("<|header_start|>", "<|header_end|>")),
)
"""What stands in the templates of a family; the first that fits. None: one that is not here."""


def family(source: str) -> str | None:
    """The name of the family that a template's source belongs to; None if it is none of these."""
    for name, marks in _MARKS:
        if all(mark in source for mark in marks):
            return name
    return None
