"""What a server that speaks OpenAI's API alone is told of llama.cpp's fields: otherwise, or not.

vLLM, llama-cpp-python, Ollama, OpenAI and many more: each reads what it knows, and most ignore
the rest without a word. So what none of them knows is not sent, and the client is told; what holds
an answer to a form is refused, because an answer without it would be a wrong one.
"""

from __future__ import annotations

from tropilla.dialects._fields import kindred_extras
from tropilla.ir import JsonObject, Malformed, Request, Traits

_EVERYWHERE = ("temperature", "top_p", "presence_penalty", "frequency_penalty")
_WIDELY = ("top_k", "min_p")
"""vLLM, SGLang, llama-cpp-python and TabbyAPI have these; OpenAI refuses them."""

_IDLE: dict[str, tuple[float, ...]] = {
    "top_k": (0, -1), "min_p": (0,), "typical_p": (1,), "repeat_penalty": (1,), "mirostat": (0,),
}  # fmt: skip
"""With these values a knob does nothing: nothing is lost without it."""

_LLAMACPP = frozenset({
    "adaptive_decay", "adaptive_target", "backend_sampling", "cache_prompt", "dry_allowed_length",
    "dry_base", "dry_multiplier", "dry_penalty_last_n", "dry_sequence_breakers",
    "dynatemp_exponent", "dynatemp_range", "grammar_lazy", "grammar_triggers", "id_slot", "lora",
    "min_keep", "n_cache_reuse", "n_discard", "n_indent", "n_keep", "n_probs", "penalize_nl",
    "post_sampling_probs", "preserved_tokens", "reasoning_budget_tokens", "reasoning_control",
    "reasoning_format", "repeat_last_n", "return_progress", "return_tokens", "samplers",
    "slot_id", "sse_ping_interval", "t_max_predict_ms", "t_max_prompt_ms", "tfs_z",
    "timings_per_token", "top_n_sigma", "verbose", "xtc_probability", "xtc_threshold",
})  # fmt: skip
"""What a llama-server alone reads."""

_OURS = frozenset({"response_fields"})
"""What Tropilla does itself with the answer."""

_BINDING = {
    "grammar": "say it as 'response_format'.",
    "json_schema": "say it as 'response_format'.",
    "image_data": "say the image in a message of a chat.",
    "system_prompt": "say it in the prompt.",
}


def fit(request: Request, traits: Traits) -> tuple[JsonObject, list[str]]:
    """The knobs and the extra fields for such a server, and what of them is lost.

    Raises:
        Malformed: of kind `unsupported`, for what must not be lost.
    """
    if any(type(bias.token) is str for bias in request.logit_bias):
        raise Malformed(
            "Only a llama.cpp server knows tokens by their texts, and this model has none: "
            "give their ids.",
            param="logit_bias",
            kind="unsupported",
        )
    said, dropped = _knobs(request, traits)
    for name, value in kindred_extras(request).items():
        if name in _BINDING and value:
            raise Malformed(
                f"Only a llama.cpp server reads '{name}', and this model has none: "
                f"{_BINDING[name]}",
                param=name,
                kind="unsupported",
            )
        if name in _LLAMACPP:
            dropped += [name] if value is not None else []
        elif name not in _OURS and name not in _BINDING:
            said[name] = value
    return said, dropped


def _knobs(request: Request, traits: Traits) -> tuple[JsonObject, list[str]]:
    knobs = {name: getattr(request.knobs, name) for name in request.knobs.__struct_fields__}
    knobs = {name: value for name, value in knobs.items() if value is not None}
    said = {name: knobs.pop(name) for name in _EVERYWHERE if name in knobs}
    seed = knobs.pop("seed", None)
    # llama.cpp's way to ask for chance; elsewhere it is a seed like any other.
    if seed is not None and (seed != -1 or request.dialect != "llamacpp"):
        said["seed"] = seed
    if not traits.strict:
        said |= {name: knobs.pop(name) for name in _WIDELY if name in knobs}
        penalty = knobs.pop("repeat_penalty", None)
        if penalty is not None:
            # vLLM's name for it, and llama-cpp-python's: each ignores the other.
            said["repetition_penalty"] = said["repeat_penalty"] = penalty
    dropped = [name for name, value in knobs.items() if value not in _IDLE.get(name, ())]
    if "mirostat" not in dropped:
        dropped = [name for name in dropped if not name.startswith("mirostat_")]
    return said, dropped
