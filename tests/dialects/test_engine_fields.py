"""What a llama-server is told beside what the IR models: known fields, in their bounds.

Each of these bounds was found where the engine dies or works for minutes (b11549), but for those
that only keep numbers in the range of its types.
"""

from __future__ import annotations

from typing import Any

import pytest

from grammar import TODAY
from tropilla.dialects import _engine_fields, named
from tropilla.dialects._openai import MOST_BIASES
from tropilla.dialects._others import _LLAMACPP
from tropilla.ir import JsonObject, Malformed

FRONTS: dict[str, tuple[str, JsonObject]] = {
    "llamacpp": ("/completion", {"prompt": "x"}),
    "openai_chat": ("/chat/completions", {"messages": [{"role": "user", "content": "x"}]}),
    "openai_completions": ("/completions", {"prompt": "x"}),
}
every_front = pytest.mark.parametrize("front", FRONTS)


def said(front: str, **fields: Any) -> tuple[JsonObject, tuple[str, ...]]:
    path, body = FRONTS[front]
    request = named(front).parse_request(body | fields, path)
    wire = named(front).render_request(request, TODAY)
    return wire.body, wire.dropped


KILLS: list[tuple[JsonObject, str]] = [
    ({"grammar": "root ::= " + "(" * 60_000 + '"a"' + ")" * 60_000}, "grammar"),
    ({"grammar": "root ::= " + "(" * 65 + '"a"' + ")" * 65}, "grammar"),
    ({"grammar": "root ::= " + " | ".join(['"a"'] * 100_000)}, "grammar"),
    ({"grammar": "root ::= " + " | ".join(["a"] * 2001)}, "grammar"),
    ({"grammar": 'root ::= "a"{1,2001}'}, "grammar"),
    ({"grammar": 'root ::= "a"{99999999999999999999}'}, "grammar"),
    ({"grammar": 'root ::= "' + "a" * 65_536 + '"'}, "grammar"),
    ({"grammar": {}}, "grammar"),
    ({"dry_multiplier": 1, "dry_penalty_last_n": 2**31 - 1}, "dry_penalty_last_n"),
    ({"repeat_last_n": 2**31 - 1}, "repeat_last_n"),
    ({"repeat_last_n": -7}, "repeat_last_n"),
    ({"n_keep": -2}, "n_keep"),
    ({"n_keep": "x"}, "n_keep"),
    ({"min_keep": -1}, "min_keep"),
    ({"id_slot": 2**31}, "id_slot"),
    ({"n_indent": -1}, "n_indent"),
    ({"dry_allowed_length": -5}, "dry_allowed_length"),
    ({"dry_base": 1e300}, "dry_base"),
    ({"cache_prompt": 1}, "cache_prompt"),
    ({"reasoning_format": 1}, "reasoning_format"),
    ({"samplers": ["x"] * 129}, "samplers"),
    ({"samplers": [1]}, "samplers.0"),
    ({"dry_sequence_breakers": ["x" * 1025]}, "dry_sequence_breakers.0"),
    ({"lora": [{"id": -1, "scale": 1}]}, "lora.0.id"),
    ({"lora": [{"id": 1, "scale": 1e300}]}, "lora.0.scale"),
    ({"chat_template_kwargs": {"chat_template": "x"}}, "chat_template_kwargs.chat_template"),
    ({"chat_template_kwargs": "x"}, "chat_template_kwargs"),
    ({"logit_bias": {str(token): 1 for token in range(MOST_BIASES + 1)}}, "logit_bias"),
    ({"logit_bias": [[5, 1]] * (MOST_BIASES + 1)}, "logit_bias"),
]


@every_front
@pytest.mark.parametrize(("fields", "param"), KILLS)
def test_what_is_out_of_its_bounds_is_refused(front: str, fields: JsonObject, param: str) -> None:
    with pytest.raises(Malformed) as caught:
        said(front, **fields)
    assert caught.value.problem.param == param
    assert len(caught.value.problem.message) < 300


@every_front
@pytest.mark.parametrize(
    "fields",
    [
        {"n_discard": -5},
        {"grammar_lazy": True, "grammar_triggers": [{"type": 2, "value": "(" * 60_000}]},
        {"chat_parser": "x", "chat_format": 3},
        {"chat_template": "{{ x }}"},
        {"preserved_tokens": ["x"]},
        {"sse_ping_interval": -1},
        {"speculative.n_max": 10**9},
        {"nobody_knows": [1]},
    ],
    ids=lambda fields: next(iter(fields)),
)
def test_what_no_client_should_set_is_not_said(front: str, fields: JsonObject) -> None:
    body, dropped = said(front, **fields)
    assert not body.keys() & fields.keys()
    assert set(dropped) == fields.keys()


@every_front
def test_what_it_reads_is_said_as_it_came(front: str) -> None:
    fields: JsonObject = {
        "n_keep": -1, "repeat_last_n": -1, "id_slot": -1, "min_keep": 0,
        "dry_penalty_last_n": 2**20,
        "dry_multiplier": 0.8, "dry_base": 1.75, "dry_sequence_breakers": ["\n", "x" * 1024],
        "samplers": ["top_k"] * 128, "cache_prompt": False, "xtc_probability": 0.5,
        "lora": [{"id": 0, "scale": -0.5}], "chat_template_kwargs": {"enable_thinking": False},
        "t_max_predict_ms": 5, "timings_per_token": True, "reasoning_format": "none",
        "grammar": "root ::= " + "(" * 64 + '"(((" [(|]{1,2000}' + ")" * 64 + " # (((",
    }  # fmt: skip
    body, dropped = said(front, **fields)
    assert body.items() >= fields.items()
    assert dropped == ()
    body, _ = said(front, logit_bias=[[5, 1]] * MOST_BIASES)
    assert len(body["logit_bias"]) == MOST_BIASES


def test_a_number_of_texts_is_not_asked_for() -> None:
    with pytest.raises(Malformed) as caught:
        said("llamacpp", stop=["x"] * 129)
    assert caught.value.problem.param == "stop"
    with pytest.raises(Malformed) as caught:
        said("llamacpp", n_probs=1001)
    assert caught.value.problem.param == "n_probs"


@pytest.mark.parametrize(
    "schema",
    [
        {"$ref": "#/$defs/a", "$defs": {"a": {"$ref": "#/$defs/a"}}},
        {"type": "object", "properties": {f"a{number}": {} for number in range(3000)}},
        {"type": "string", "pattern": "^" + "(" * 17 + "a" + ")" * 17 + "$"},
        {"type": "string", "pattern": "^" + "a" * 1024 + "$"},
    ],
)
def test_a_native_schema_is_looked_at_as_any_other(schema: JsonObject) -> None:
    with pytest.raises(Malformed) as caught:
        said("llamacpp", json_schema=schema)
    assert caught.value.problem.param is not None
    assert caught.value.problem.param.startswith("json_schema")


def test_what_is_known_here_is_what_others_are_not_told() -> None:
    never = {
        "grammar_lazy",
        "grammar_triggers",
        "n_discard",
        "preserved_tokens",
        "sse_ping_interval",
    }
    assert never == _LLAMACPP - _engine_fields.KNOWN
