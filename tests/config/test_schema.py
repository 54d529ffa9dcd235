"""The JSON Schema, the example file and the page of settings agree with what is read."""

from __future__ import annotations

import re
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import jsonschema  # type: ignore[import-untyped]
import msgspec
import pytest
import yaml

from tropilla.config import (
    AccountsConfig,
    Config,
    EngineConfig,
    FailuresConfig,
    LimitsConfig,
    ModelConfig,
    PriceConfig,
    QueueConfig,
    RepeatsConfig,
    ResponsesConfig,
    TimeoutsConfig,
    TracesConfig,
    UpstreamConfig,
)
from tropilla.config.kinds import described, settings
from tropilla.config.load import KEY_VARIABLE, VARIABLES, load
from tropilla.config.nodes import Refused
from tropilla.config.schema import schema
from tropilla.templates import Classic

ROOT = Path(__file__).parents[2]
EXAMPLE = ROOT / "tropilla.example.yaml"
PAGE = (ROOT / "docs" / "config.md").read_text(encoding="utf-8")
STRUCTS = (
    Config, ModelConfig, UpstreamConfig, TimeoutsConfig, EngineConfig, QueueConfig, ResponsesConfig,
)  # fmt: skip
ENVIRONMENT = dict.fromkeys(("TROPILLA_KEY", "LLAMA_KEY", "AFS_KEY"), "k")

FINE = [
    "",
    "listen: h:1",
    "api_keys: k",
    "api_keys: []",
    "api_keys: ['${AFS_KEY}']",
    "upstreams: h",
    "upstreams: [h, {url: g}]",
    "upstreams: {url: h, api_key: null, dialect: openai, weight: 1.5}",
    "upstreams: {url: h, dialect: '${DIALECT}'}",
    "upstreams: {url: h, headers: {X-Team: herd}, timeouts: {idle: 1}}",
    "models: {m: h}",
    "models: {m: [h, {url: g, model: x}]}",
    "models: {m: {upstreams: h, aliases: a}}",
    "models: {m: {upstreams: [h], aliases: [a, b], template: classic}}",
    "template: auto",
    "template: null",
    "template: {stop: ''}",
    "engine: {slots: 256, ctx_size: 0, model: x.gguf}",
    "any_model: true",
    "max_body: 1",
]
BROKEN = [
    "x",
    "[]",
    "modles: {}",
    "listen: 1",
    "listen: ''",
    "listen: null",
    "api_keys: ['']",
    "api_keys: 1",
    'api_keys: "a\\nb"',
    "api_keys: {a: b}",
    "models: {}",
    "models: []",
    "models: {'': h}",
    "models: {m: null}",
    "models: {m: []}",
    "models: {m: 1}",
    "models: {m: {aliases: a}}",
    "models: {m: {upstreams: h, aliases: 1}}",
    "models: {m: {upstreams: h, url: h}}",
    "upstreams: [{}]",
    "upstreams: [[h]]",
    "upstreams: 1",
    "upstreams: {url: h, weight: 0}",
    "upstreams: {url: h, weight: x}",
    "upstreams: {url: h, dialect: llamacp}",
    "upstreams: {url: h, headers: {a b: x}}",
    "upstreams: {url: h, headers: {a: 1}}",
    "upstreams: {url: h, timeouts: {idle: 0}}",
    "upstreams: {url: h, timeouts: 5}",
    "upstreams: {url: h, api_key: 1}",
    "template: []",
    "template: {stopp: x}",
    "engine: {slots: -1}",
    "engine: {slots: 257}",
    "engine: {slots: true}",
    "engine: {slots: '4'}",
    "engine: {ctx_size: -1}",
    "any_model: yes",
    "any_model: 1",
    "max_body: 0",
]


@pytest.fixture(scope="module")
def validator() -> jsonschema.Draft202012Validator:
    jsonschema.Draft202012Validator.check_schema(schema())
    return jsonschema.Draft202012Validator(schema())


class Editor(yaml.SafeLoader):
    """What an editor sees: YAML whose yes and no are texts."""


Editor.yaml_implicit_resolvers = {
    first: [(tag, form) for tag, form in found if not tag.endswith(("bool", "timestamp"))]
    for first, found in yaml.SafeLoader.yaml_implicit_resolvers.items()
}
Editor.add_implicit_resolver("tag:yaml.org,2002:bool", re.compile("(?:true|false)$"), list("tf"))


def seen(text: str) -> Any:
    return yaml.load(text, Loader=Editor)


@pytest.mark.parametrize("text", FINE)
def test_what_is_fine_is_so_for_both(
    validator: jsonschema.Draft202012Validator, tmp_path: Path, text: str
) -> None:
    path = tmp_path / "t.yaml"
    path.write_text(text)
    load(path, ENVIRONMENT | {"DIALECT": "afs"})
    validator.validate(seen(text))


@pytest.mark.parametrize("text", BROKEN)
def test_what_is_broken_is_so_for_both(
    validator: jsonschema.Draft202012Validator, tmp_path: Path, text: str
) -> None:
    path = tmp_path / "t.yaml"
    path.write_text(text)
    with pytest.raises(Refused):
        load(path, {})
    assert not validator.is_valid(seen(text))


def test_every_setting_is_in_the_schema_and_described() -> None:
    made = schema()
    for struct in STRUCTS:
        shape = made["$defs"].get(struct.__name__.removesuffix("Config"), made)
        shape = shape["anyOf"][0] if "anyOf" in shape else shape
        assert list(shape["properties"]) == list(settings(struct))
        assert described(struct).keys() == settings(struct).keys()
        assert all(one["description"] for one in shape["properties"].values())
        assert shape["additionalProperties"] is False
    assert made["$defs"]["Upstream"]["anyOf"][0]["required"] == ["url"]
    assert made["properties"]["max_body"]["default"] == Config().max_body
    assert set(made["$defs"]["Classic"]["properties"]) == set(Classic.__struct_fields__)


# The example.


def test_the_example_is_fine(validator: jsonschema.Draft202012Validator) -> None:
    config = load(EXAMPLE, ENVIRONMENT).config
    validator.validate(seen(EXAMPLE.read_text(encoding="utf-8")))
    assert config.api_keys == ("k",)
    assert list(config.models) == ["llama-2-7b-chat", "qwen3-30b", "ffm", "gpt-oss-120b"]


def test_the_example_shows_every_default_that_it_names() -> None:
    config = load(EXAMPLE, ENVIRONMENT).config
    for name in ("listen", "any_model", "allow_admin", "max_body"):
        assert getattr(config, name) == getattr(Config(), name)


def test_the_engine_of_the_example_is_fine(tmp_path: Path) -> None:
    lines = EXAMPLE.read_text(encoding="utf-8").splitlines()
    start = lines.index("# engine:")
    path = tmp_path / "engine.yaml"
    path.write_text("\n".join(line.removeprefix("# ") for line in lines[start:]))
    engine = load(path, {}).config.engine
    assert (engine.model, engine.name) == (tmp_path / "models/qwen3-4b-q4_k_m.gguf", "qwen3-4b")


# The page.


def snippets(language: str) -> Iterator[str]:
    yield from re.findall(rf"```{language}\n(.*?)```", PAGE, re.DOTALL)


@pytest.mark.parametrize("text", [*snippets("yaml"), *snippets("json")])
def test_the_examples_of_the_page_are_fine(
    validator: jsonschema.Draft202012Validator, tmp_path: Path, text: str
) -> None:
    path = tmp_path / "t.yaml"
    path.write_text(text, encoding="utf-8")
    assert load(path, ENVIRONMENT).config != Config()
    validator.validate(seen(text))


INNER: dict[str, type[msgspec.Struct]] = {
    "timeouts": TimeoutsConfig,
    "failures": FailuresConfig,
    "price": PriceConfig,
    "accounts": AccountsConfig,
    "traces": TracesConfig,
    "limits": LimitsConfig,
    "repeats": RepeatsConfig,
}


def test_the_page_has_a_row_for_every_setting_with_its_default() -> None:
    rows = {row[0]: row for row in (line.split(" | ") for line in PAGE.splitlines())}
    for struct in STRUCTS:
        for setting in settings(struct).values():
            if setting.name not in INNER and struct not in INNER.values():
                assert f"| `{setting.name}`" in rows
    for name, inner in INNER.items():
        for setting in settings(inner).values():
            default = msgspec.json.encode(setting.default).decode().strip('"').removesuffix(".0")
            row = rows[f"| `{name}.{setting.name}`"]
            assert setting.default in (None, {}) or f"`{default}`" in row[2]
    for name in ("listen", "max_body"):
        assert f"`{getattr(Config(), name)}`" in rows[f"| `{name}`"][2]
    assert f"`{EngineConfig().slots}`" in rows["| `slots`"][2]
    for setting in settings(QueueConfig).values():
        assert f"`{setting.default:g}`" in rows[f"| `{setting.name}`"][2]
    for name in ("store", "ttl", "max_bytes"):
        default = getattr(ResponsesConfig(), name)
        told = default if isinstance(default, str) else int(default)
        assert f"`{told}`" in rows[f"| `{name}`"][2]


def test_the_page_names_every_variable() -> None:
    named = set(re.findall(r"^\| `(TROPILLA_\w+)`", PAGE, re.MULTILINE))
    ours = {*VARIABLES, KEY_VARIABLE, "TROPILLA_CONFIG", "TROPILLA_UPSTREAM_API_KEY"}
    assert named == ours


def test_the_page_links_to_files_that_exist() -> None:
    for target in re.findall(r"\]\(([^)#]+)\)", PAGE):
        assert (ROOT / "docs" / target).exists(), target


def test_the_schema_is_json() -> None:
    assert msgspec.json.decode(msgspec.json.encode(schema())) == schema()
