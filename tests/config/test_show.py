"""`config show`: every setting that is in force, nothing secret, and a config again."""

from __future__ import annotations

from pathlib import Path

import msgspec
import pytest
import yaml

from tropilla.config import (
    Config,
    EngineConfig,
    ModelConfig,
    TimeoutsConfig,
    UpstreamConfig,
)
from tropilla.config.load import Loaded, load
from tropilla.config.show import show
from tropilla.templates import Classic, Jinja

ONE = UpstreamConfig(url="http://h:1")
WHOLE = Config(
    listen="[::1]:0",
    models={
        "a": ModelConfig(
            upstreams=(
                UpstreamConfig(
                    url="https://h/base",
                    dialect="afs",
                    model="1e3",
                    weight=2.5,
                    headers={},
                    template=Classic(),
                    timeouts=TimeoutsConfig(connect=0.5, idle=1000.0),
                ),
            ),
            aliases=("yes", "12:30", "0o17", "~", "${X}", "\N{HORSE}", " a: b #c", "1.0", "x\ny"),
        ),
        "on": ModelConfig(upstreams=(ONE,), template=Classic(stop="", user_name=r"\nU: ")),
    },
    upstreams=(UpstreamConfig(url="unix:///run/a@b.sock"),),
    any_model=True,
    allow_admin=True,
    max_body=7,
)


def reread(config: Config, tmp_path: Path) -> Config:
    path = tmp_path / "shown.yaml"
    path.write_text(show(Loaded(config)), encoding="utf-8")
    return load(path, {}).config


@pytest.mark.parametrize(
    "config",
    [
        Config(),
        WHOLE,
        Config(upstreams=(ONE,), template=Classic()),
        Config(upstreams=(ONE,), models={"m": ModelConfig(upstreams=(ONE,), template=Classic())}),
        Config(template=Classic(), models={"m": ModelConfig(upstreams=(ONE,))}),
        Config(engine=EngineConfig(model=Path("/x/a b.gguf"), name="n", slots=9)),
    ],
)
def test_what_is_shown_is_the_config_again(config: Config, tmp_path: Path) -> None:
    assert reread(config, tmp_path) == config


def test_every_setting_is_shown() -> None:
    shown = yaml.safe_load(show(Loaded(WHOLE)))
    upstream = shown["models"]["a"]["upstreams"][0]
    names = [set(struct.__struct_fields__) for struct in (Config, ModelConfig, UpstreamConfig)]
    assert [set(shown) | {"engine"}, set(shown["models"]["a"]), set(upstream)] == names
    assert set(yaml.safe_load(show(Loaded(Config())))["engine"]) == {
        *EngineConfig.__struct_fields__
    }


def test_a_template_is_shown_by_its_name() -> None:
    config = msgspec.structs.replace(Config(), template=Jinja(name="/x/own.jinja", source="{{ }}"))
    assert "template: /x/own.jinja\n" in show(Loaded(config))


def test_no_secret_is_shown(tmp_path: Path) -> None:
    path = tmp_path / "t.yaml"
    path.write_text("""\
api_keys: [hunter2, "${S}"]
models: {m: {upstreams: {url: "http://u:hunter2@h/p@q", api_key: hunter2,
             headers: {Authorization: hunter2, X: "${S}"}}}}
upstreams:
  - "http://${S}:${S}@${S}.example/"
  - {url: g, model: ~, api_key: "${S}"}
template: {stop: "${S}", ai_name: "$${S} "}
listen: ${S}:1
""")
    shown = show(load(path, {"S": "hunter2"}))
    assert "hunter2" not in shown
    tree = yaml.safe_load(shown)
    assert tree["models"]["m"]["upstreams"][0]["url"] == "http://***@h/p@q"
    assert tree["models"]["m"]["upstreams"][0]["headers"] == {"Authorization": "***", "X": "***"}
    assert tree["upstreams"][0]["url"] == "http://***@${S}.example/"
    assert (tree["api_keys"], tree["listen"]) == (["***", "***"], "${S}:1")
    assert (tree["template"]["stop"], tree["template"]["ai_name"]) == ("${S}", "$${S} ")


def test_it_says_where_it_came_from(tmp_path: Path) -> None:
    path = tmp_path / "t.yaml"
    path.write_text("listen: ${HERE}")
    environment = {"HERE": "h:1", "TROPILLA_LISTEN": "g:2", "TROPILLA_API_KEY": "hunter2"}
    first, *rest = show(load(path, environment)).splitlines()
    assert first == f"# From {path}, TROPILLA_LISTEN, TROPILLA_API_KEY; the rest are defaults."
    assert "listen: g:2" in rest
    assert "hunter2" not in "".join(rest)
    assert show(load(None, {})).startswith("# From nowhere")
