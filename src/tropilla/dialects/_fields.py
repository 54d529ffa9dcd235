"""A JSON object read field by field: each typed, each error naming its path, the rest kept.

`null` is the same as absent, as it is for OpenAI and for llama.cpp. The messages follow the form
of OpenAI's own, because programs show them to people.
"""

from __future__ import annotations

from typing import Any

from tropilla.ir import Json, JsonObject, Knobs, Malformed, Request

_KIND_NAMES = {
    bool: "a boolean", int: "an integer", float: "a decimal", str: "a string",
    list: "an array", dict: "an object", type(None): "null",
}  # fmt: skip


def wrong_type(path: str, expected: str, value: Json) -> Malformed:
    """The error for a value of the wrong type."""
    got = _KIND_NAMES.get(type(value), "something else")
    return Malformed(
        f"Invalid type for '{path}': expected {expected}, but got {got} instead.",
        param=path,
        code="invalid_type",
    )


def invalid(path: str, why: str, code: str = "invalid_value") -> Malformed:
    """The error for a value of the right type that cannot be."""
    return Malformed(f"Invalid value for '{path}': {why}", param=path, code=code)


def missing(path: str) -> Malformed:
    """The error for a required field that is not there."""
    return Malformed(
        f"Missing required parameter: '{path}'.", param=path, code="missing_required_parameter"
    )


def count_of(group: Json, name: str) -> int | None:
    """What an upstream has counted, in a group of numbers; `None` where it says nothing of it."""
    value = group.get(name) if type(group) is dict else None
    return value if type(value) is int and value >= 0 else None


_MOST = 2**63 - 1


class Fields:
    """Takes known fields out of an object; what nobody took is left in `rest`."""

    __slots__ = ("path", "rest")

    def __init__(self, body: Json, path: str = "") -> None:
        if type(body) is not dict:
            raise wrong_type(path or "body", "an object", body)
        self.rest: JsonObject = body.copy()
        self.path = path

    def at(self, name: str | int) -> str:
        """The path of a field, as OpenAI writes it: `messages.0.content`."""
        return f"{self.path}.{name}" if self.path else str(name)

    def any(self, name: str) -> Json:
        """A field of any type; `None` where it is absent."""
        return self.rest.pop(name, None)

    def _typed(self, name: str, kind: type[Any], expected: str) -> Any:
        value = self.rest.pop(name, None)
        if value is None or type(value) is kind:
            return value
        raise wrong_type(self.at(name), expected, value)

    def string(self, name: str) -> str | None:
        """A text."""
        value: str | None = self._typed(name, str, "a string")
        return value

    def boolean(self, name: str) -> bool | None:
        """`true` or `false`."""
        value: bool | None = self._typed(name, bool, "a boolean")
        return value

    def array(self, name: str, most: int | None = None) -> list[Json] | None:
        """A list of anything, and not too much of it."""
        value: list[Json] | None = self._typed(name, list, "an array")
        if value is not None and most is not None:
            check_length(value, self.at(name), most)
        return value

    def object(self, name: str) -> JsonObject | None:
        """An object of anything."""
        value: JsonObject | None = self._typed(name, dict, "an object")
        return value

    def required(self, name: str) -> str:
        """A text that must be there."""
        value = self.string(name)
        if value is None:
            raise missing(self.at(name))
        return value

    def choice(self, name: str, allowed: tuple[str, ...]) -> str | None:
        """One of a few texts."""
        value = self.string(name)
        if value is not None and value not in allowed:
            raise invalid(self.at(name), f"'{value}'. Supported values are: {_listed(allowed)}.")
        return value

    def integer(self, name: str, least: int | None = None, most: int | None = None) -> int | None:
        """A whole number; `2.0` is one."""
        value = self.rest.pop(name, None)
        if value is None:
            return None
        if type(value) is float and value.is_integer():
            value = int(value)
        if type(value) is not int:
            raise wrong_type(self.at(name), "an integer", value)
        # What no engine's 64 bits can hold is not sent to one.
        least = -_MOST if least is None else least
        self._within(name, value, least, _MOST if most is None else most, "integer")
        return value

    def number(
        self, name: str, least: float | None = None, most: float | None = None
    ) -> float | None:
        """A number."""
        value = self.rest.pop(name, None)
        if value is None:
            return None
        if type(value) is not float and type(value) is not int:
            raise wrong_type(self.at(name), "a decimal", value)
        self._within(name, value, least, most, "decimal")
        return value

    def _within(
        self, name: str, value: float, least: float | None, most: float | None, kind: str
    ) -> None:
        if least is not None and value < least:
            raise invalid(
                self.at(name),
                f"expected a value >= {least}, but got {value} instead.",
                f"{kind}_below_min_value",
            )
        if most is not None and value > most:
            raise invalid(
                self.at(name),
                f"expected a value <= {most}, but got {value} instead.",
                f"{kind}_above_max_value",
            )


def _listed(names: tuple[str, ...]) -> str:
    quoted = [f"'{name}'" for name in names]
    return ", ".join(quoted) if len(quoted) < 2 else f"{', '.join(quoted[:-1])}, and {quoted[-1]}"


def check_length(value: list[Json], path: str, most: int) -> None:
    """See that a list is not too long.

    Raises:
        Malformed: it is.
    """
    if len(value) > most:
        raise invalid(
            path,
            f"expected at most {most}, but got {len(value)} instead.",
            "array_above_max_length",
        )


def texts(value: Json, path: str, most: int | None = None) -> tuple[str, ...]:
    """One text or a list of them: a string is one stop word, never its letters."""
    if value is None:
        return ()
    if type(value) is str:
        return (value,) if value else ()
    if type(value) is not list:
        raise wrong_type(path, "a string or an array of strings", value)
    if most is not None:
        check_length(value, path, most)
    for index, item in enumerate(value):
        if type(item) is not str:
            raise wrong_type(f"{path}.{index}", "a string", item)
    return tuple(item for item in value if item)


def read_knobs(fields: Fields, *, openai: bool) -> Knobs:
    """The sampling knobs, under the names that OpenAI and llama.cpp share.

    With `openai`, the ranges are OpenAI's; without, the engine decides what it can do.
    """
    low, high, two = (-2, 2, 2) if openai else (None, None, None)
    return Knobs(
        temperature=fields.number("temperature", 0 if openai else None, two),
        top_k=fields.integer("top_k"),
        top_p=fields.number("top_p", 0 if openai else None, 1 if openai else None),
        min_p=fields.number("min_p"),
        typical_p=fields.number("typical_p"),
        presence_penalty=fields.number("presence_penalty", low, high),
        frequency_penalty=fields.number("frequency_penalty", low, high),
        repeat_penalty=fields.number("repeat_penalty"),
        mirostat=fields.integer("mirostat"),
        mirostat_tau=fields.number("mirostat_tau"),
        mirostat_eta=fields.number("mirostat_eta"),
        seed=fields.integer("seed"),
    )


_KNOB_NAMES = Knobs.__struct_fields__
_NO_SEED = 0xFFFFFFFF


def write_knobs(knobs: Knobs) -> JsonObject:
    """The knobs that are set, as fields.

    A llama.cpp seed is 32 bits wide, and all ones ask for chance; OpenAI's is 64 bits wide. A
    seed out of range is folded into it, so that equal seeds still give equal texts.
    """
    body = {name: value for name in _KNOB_NAMES if (value := getattr(knobs, name)) is not None}
    seed = knobs.seed
    if seed is not None and not -1 <= seed <= _NO_SEED:
        body["seed"] = seed % _NO_SEED
    return body


_FAMILY = {"openai_chat", "openai_completions", "llamacpp"}
_RESPONSES = "openai_responses"
_RESPONSES_OWN = frozenset({
    "access_programs", "background", "background_options", "client_metadata",
    "context_management", "image", "include", "instructions", "max_tool_calls",
    "previous_response_id", "reasoning", "store", "top_logprobs", "truncation",
})  # fmt: skip
"""What OpenAI's Responses have and no other API, or mean otherwise."""


def kindred_extras(request: Request) -> JsonObject:
    """The fields that the IR does not model, where OpenAI's APIs and llama.cpp's mean the same."""
    if request.dialect == _RESPONSES:
        return {n: value for n, value in request.extras.items() if n not in _RESPONSES_OWN}
    return dict(request.extras) if request.dialect in _FAMILY else {}
