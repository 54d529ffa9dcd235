"""The templates of well-known families of models, under the names that llama.cpp gives them.

Each is written so that its prompts are those of llama.cpp's own C++ templates (`llama-chat.cpp`),
without the beginning of text, which the engine adds by itself.
"""

from __future__ import annotations

_CHATML = """\
{%- for message in messages -%}
{{ '<|im_start|>' + message.role + '\\n' + message.content + '<|im_end|>\\n' }}
{%- endfor -%}
{{ '<|im_start|>assistant\\n' }}"""

_LLAMA2 = """\
{%- set ns = namespace(inside=false) -%}
{%- for message in messages -%}
{%- if not ns.inside -%}{{ '[INST] ' }}{%- set ns.inside = true -%}{%- endif -%}
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

_MISTRAL_V7 = """\
{%- for message in messages -%}
{%- if message.role == 'system' -%}
{{ '[SYSTEM_PROMPT] ' + message.content + '[/SYSTEM_PROMPT]' }}
{%- elif message.role == 'user' -%}
{{ '[INST] ' + message.content + '[/INST]' }}
{%- else -%}
{{ ' ' + message.content + '</s>' }}
{%- endif -%}
{%- endfor -%}"""

_GEMMA = """\
{%- set ns = namespace(system='') -%}
{%- for message in messages -%}
{%- if message.role == 'system' -%}
{%- set ns.system = message.content.strip() -%}
{%- else -%}
{{ '<start_of_turn>' + ('model' if message.role == 'assistant' else 'user') + '\\n' }}
{%- if ns.system and message.role == 'user' -%}
{{ ns.system + '\\n\\n' }}{%- set ns.system = '' -%}
{%- endif -%}
{{ message.content.strip() + '<end_of_turn>\\n' }}
{%- endif -%}
{%- endfor -%}
{{ '<start_of_turn>model\\n' }}"""

_PHI3 = """\
{%- for message in messages -%}
{{ '<|' + message.role + '|>\\n' + message.content + '<|end|>\\n' }}
{%- endfor -%}
{{ '<|assistant|>\\n' }}"""

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

_COMMAND_R = """\
{%- set names = {'system': 'SYSTEM', 'user': 'USER', 'assistant': 'CHATBOT'} -%}
{%- for message in messages -%}
{{ '<|START_OF_TURN_TOKEN|><|' + names[message.role] + '_TOKEN|>' }}
{{- message.content.strip() + '<|END_OF_TURN_TOKEN|>' }}
{%- endfor -%}
{{ '<|START_OF_TURN_TOKEN|><|CHATBOT_TOKEN|>' }}"""

_SYS = "'<<SYS>>\\n' + message.content + '\\n<</SYS>>\\n\\n'"

JINJA: dict[str, tuple[str, ...]] = {
    "chatml": (_CHATML, "<|im_end|>"),
    "llama2": (_LLAMA2.replace("SYSTEM", "message.content + '\\n'"), "</s>"),
    "llama2-sys": (_LLAMA2.replace("SYSTEM", _SYS), "</s>"),
    "llama3": (_LLAMA3, "<|eot_id|>"),
    "mistral-v7": (_MISTRAL_V7, "</s>"),
    "gemma": (_GEMMA, "<end_of_turn>"),
    "phi3": (_PHI3, "<|end|>"),
    "phi4": (_PHI4, "<|im_end|>"),
    "vicuna": (_VICUNA.replace("SYSTEM", "message.content + '\\n\\n'"), "</s>"),
    "vicuna-orca": (_VICUNA.replace("SYSTEM", "'SYSTEM: ' + message.content + '\\n'"), "</s>"),
    "openchat": (_OPENCHAT, "<|end_of_turn|>"),
    "deepseek": (_DEEPSEEK, "<|EOT|>"),
    "command-r": (_COMMAND_R, "<|END_OF_TURN_TOKEN|>"),
}
"""The source of each, and what ends a turn. Mistral's first models take `llama2`."""
