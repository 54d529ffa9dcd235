"""What a client may ask for beyond plain text, over every kind of server.

Either it works, or the client is told: a 400 that names the parameter and says why.
"""

from __future__ import annotations

from typing import Any, NamedTuple

import pytest

from conftest import CHAT, Serve
from matrix.backs import BACKS, Back
from matrix.conftest import REFUSED
from tropilla.config import ModelConfig

pytestmark = pytest.mark.anyio

CHAT_PATH, TEXT_PATH = "/v1/chat/completions", "/v1/completions"
TOOL = {"type": "function", "function": {"name": "f", "parameters": {"type": "object"}}}
SCHEMA = {"type": "object", "properties": {"a": {"type": "boolean"}}, "required": ["a"]}
PICTURE = {"type": "image_url", "image_url": {"url": "data:image/png;base64,AA=="}}


class Feature(NamedTuple):
    """Something that a client may ask for."""

    name: str
    path: str
    body: dict[str, Any]
    param: str
    """What the refusal names."""
    not_by: tuple[str, ...] = ()
    """Who cannot do it, by the beginning of their names."""


OLD = ("llama.cpp b",)
FEATURES = (
    Feature("tools", CHAT_PATH, CHAT | {"tools": [TOOL]}, "tools", OLD),
    Feature("`tool_choice: none`", CHAT_PATH, CHAT | {"tools": [TOOL], "tool_choice": "none"}, ""),
    Feature(
        "JSON object", CHAT_PATH, CHAT | {"response_format": {"type": "json_object"}},
        "response_format", ("AFS",),
    ),
    Feature(
        "JSON schema",
        CHAT_PATH,
        CHAT | {
            "response_format": {
                "type": "json_schema",
                "json_schema": {"name": "x", "schema": SCHEMA, "strict": True},
            }
        },
        "response_format",
        ("AFS",),
    ),
    Feature(
        "logprobs in chat", CHAT_PATH, CHAT | {"logprobs": True, "top_logprobs": 2}, "logprobs",
        ("llama.cpp b1915", "llama.cpp b2400", "llama.cpp b3000", "AFS"),
    ),
    Feature(
        "logprobs of completions", TEXT_PATH, {"model": "m", "prompt": "x", "logprobs": 2},
        "logprobs", ("AFS",),
    ),
    Feature("n = 2", CHAT_PATH, CHAT | {"n": 2}, "n"),
    Feature("two prompts", TEXT_PATH, {"model": "m", "prompt": ["x", "y"]}, "prompt"),
    Feature(
        "a prompt of token ids", TEXT_PATH, {"model": "m", "prompt": [1, 2, 3]}, "prompt",
        ("llama.cpp b1915", "AFS"),
    ),
    Feature(
        "a hole to be filled (`suffix`)", TEXT_PATH,
        {"model": "m", "prompt": "The ", "suffix": " sat."}, "suffix",
    ),
    Feature(
        "a system and a developer message, content in parts", CHAT_PATH,
        {
            "model": "m",
            "messages": [
                {"role": "system", "content": "Be."},
                {"role": "developer", "content": [{"type": "text", "text": "kind"}]},
                {"role": "user", "content": [
                    {"type": "text", "text": "Hi"}, {"type": "text", "text": "you"},
                ]},
            ],
        },
        "messages",
    ),
    Feature(
        "a picture", CHAT_PATH,
        {"model": "m", "messages": [{"role": "user", "content": [PICTURE]}]},
        "messages",
        (*OLD, "today's", "AFS"),
    ),
)  # fmt: skip


@pytest.mark.parametrize("back", BACKS, ids=lambda back: back.name)
@pytest.mark.parametrize("feature", FEATURES, ids=lambda feature: feature.name)
async def test_it_works_or_the_client_is_told(
    gateway: Serve, engine: str, feature: Feature, back: Back
) -> None:
    async with back.stage(engine) as stage:
        tropilla = await gateway(models={"m": ModelConfig(upstreams=(stage.config,))})
        answer = await tropilla.ask("POST", feature.path, feature.body | {"max_tokens": 8})
    if not back.name.startswith(feature.not_by or ("nobody",)):
        assert answer.status == 200, answer.body
        REFUSED[feature.name, back.name] = ""
        return
    assert answer.status == 400, answer.body
    assert answer.error["param"].startswith(feature.param)
    REFUSED[feature.name, back.name] = answer.error["message"]
