"""The config file and the environment: what is read, and all that is refused."""

from __future__ import annotations

import codecs
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest
from hypothesis import HealthCheck, given, settings
from hypothesis import strategies as st

from tropilla import templates
from tropilla.config import (
    TINY_NAME,
    Config,
    ConfigError,
    ModelConfig,
    TimeoutsConfig,
    UpstreamConfig,
)
from tropilla.config.load import Loaded, found, load
from tropilla.config.nodes import Refused
from tropilla.ir import Malformed
from tropilla.templates import Classic, Jinja

Load = Callable[..., Config]


@pytest.fixture
def file(tmp_path: Path) -> Path:
    return tmp_path / "t.yaml"


@pytest.fixture
def loads(file: Path) -> Load:
    def loads(text: str | bytes, **environment: str) -> Config:
        return written(file, text, **environment).config

    return loads


@pytest.fixture
def refuses(file: Path) -> Callable[..., list[str]]:
    """What is said of a file, a line each, from its line and column on."""

    def refuses(text: str | bytes, **environment: str) -> list[str]:
        with pytest.raises(Refused) as refused:
            written(file, text, **environment)
        return [line.removeprefix(f"{file}:") for line in str(refused.value).splitlines()]

    return refuses


def written(file: Path, text: str | bytes, **environment: str) -> Loaded:
    file.write_bytes(text.encode() if isinstance(text, str) else text)
    return load(file, environment)


ISSUE = """\
listen: 127.0.0.1:8081
models:
  llama-2-7b-chat:
    aliases: [gpt-3.5-turbo]
    template: classic          # or a built-in name, a Jinja file, or auto (the default)
    upstreams:
      - http://192.0.2.5:8080
      - {url: "http://192.0.2.6:8080", weight: 2}
  ffm:
    upstreams:
      - {url: "https://api-ams.twcc.ai/api", dialect: afs, api_key: "${AFS_KEY}", model: llama3}
api_keys: ["${TROPILLA_KEY}"]
"""


def test_a_whole_file(loads: Load) -> None:
    assert loads(ISSUE, AFS_KEY="a", TROPILLA_KEY="k") == Config(
        listen="127.0.0.1:8081",
        models={
            "llama-2-7b-chat": ModelConfig(
                aliases=("gpt-3.5-turbo",),
                template=Classic(),
                upstreams=(
                    UpstreamConfig(url="http://192.0.2.5:8080"),
                    UpstreamConfig(url="http://192.0.2.6:8080", weight=2.0),
                ),
            ),
            "ffm": ModelConfig(
                upstreams=(
                    UpstreamConfig(
                        url="https://api-ams.twcc.ai/api",
                        dialect="afs",
                        api_key="a",
                        model="llama3",
                    ),
                )
            ),
        },
        api_keys=("k",),
    )


@pytest.mark.parametrize("text", ["", "\n", "# nothing\n", "---\n", "{}", "null"])
def test_nothing_said_is_every_default(loads: Load, text: str) -> None:
    assert loads(text) == Config()


HERE = UpstreamConfig(url="http://h:1")
SETTINGS = ", ".join(Config.__struct_fields__)


@pytest.mark.parametrize(
    ("text", "config"),
    [
        ("upstreams: h:1", Config(upstreams=(HERE,))),
        ("upstreams: [h:1]", Config(upstreams=(HERE,))),
        ("upstreams: {url: h:1}", Config(upstreams=(HERE,))),
        ("models: {m: h:1}", Config(models={"m": ModelConfig(upstreams=(HERE,))})),
        ("models: {m: [h:1]}", Config(models={"m": ModelConfig(upstreams=(HERE,))})),
        (
            "models: {70: {upstreams: h:1, aliases: x}}",
            Config(models={"70": ModelConfig(upstreams=(HERE,), aliases=("x",))}),
        ),
        ("api_keys: k", Config(api_keys=("k",))),
        ("upstreams: []", Config()),
    ],
)
def test_one_value_is_enough(loads: Load, text: str, config: Config) -> None:
    assert loads(text) == config


@pytest.mark.parametrize(
    ("text", "name", "value"),
    [
        ("api_keys: yes", "api_keys", ("yes",)),
        ("api_keys: [on, 12:30, 2024-01-01, 1_000]", "api_keys",
         ("on", "12:30", "2024-01-01", "1_000")),
        ("any_model: True", "any_model", True),
        ("max_body: 0x10", "max_body", 16),
        ("max_body: 0o17", "max_body", 15),
        ("max_body: 010", "max_body", 10),
        ("api_keys: !!str 12", "api_keys", ("12",)),
        ('api_keys: "\\ud83d\\udc0e"', "api_keys", ("\N{HORSE}",)),
        ('{\n\t"api_keys":\t["k"]\n}', "api_keys", ("k",)),
        ("listen: '[::1]:0'", "listen", "[::1]:0"),
    ],
)  # fmt: skip
def test_yaml_is_that_of_1_2(loads: Load, text: str, name: str, value: Any) -> None:
    assert getattr(loads(text), name) == value


def test_a_byte_order_mark_and_other_line_breaks(loads: Load) -> None:
    text = codecs.BOM_UTF8 + b"listen: h:1\r\napi_keys: k\r\n"
    assert loads(text) == Config(listen="h:1", api_keys=("k",))


def test_references_within_the_file(loads: Load) -> None:
    config = loads("""\
models:
  a: [{url: h:1, timeouts: &slow {idle: 9}, headers: &ours {X-Team: herd}}]
  b: [{url: h:2, timeouts: *slow, headers: *ours}]
""")
    (a,), (b,) = (model.upstreams for model in config.models.values())
    assert a.timeouts == b.timeouts == TimeoutsConfig(idle=9.0)
    assert a.headers == b.headers == {"X-Team": "herd"}


def test_few_references_cannot_stand_for_any_number_of_values(
    refuses: Callable[..., list[str]],
) -> None:
    upstreams = f"x: &list [{', '.join(['h:1'] * 1000)}]"
    models = "".join(f"  m{n}: *list\n" for n in range(1000))
    (*_, last) = refuses(f"{upstreams}\nmodels:\n{models}")
    assert "more than 100000 values" in last
    laughs = "".join(f"a{n}: &a{n} [{', '.join([f'*a{n - 1}'] * 9)}]\n" for n in range(1, 60))
    complaints = refuses(f"a0: &a0 [x]\n{laughs}upstreams: *a59\n")
    assert any("upstreams.0: must be a mapping of settings" in line for line in complaints)


def test_settings_of_an_engine(loads: Load, file: Path) -> None:
    assert loads("engine: {slots: 2}").engine.name == TINY_NAME
    engine = loads("engine: {model: sub/a-7b.gguf}").engine
    assert (engine.model, engine.name) == (file.parent / "sub" / "a-7b.gguf", "a-7b")
    assert loads("engine: {model: /x/a.gguf, name: b}").engine.name == "b"


# What stands in the environment.


def test_references_to_the_environment(loads: Load) -> None:
    config = loads(
        'upstreams: ["http://${HOST}:${PORT}/v1"]\napi_keys: ["a${K}b", "$${K}", "$K", "100$"]',
        HOST="h", PORT="8080", K="${HOST}: [1, *x]",
    )  # fmt: skip
    assert config.upstreams == (UpstreamConfig(url="http://h:8080"),)
    assert config.api_keys == ("a${HOST}: [1, *x]b", "${K}", "$K", "100$")


def test_a_variable_that_is_not_there(refuses: Callable[..., list[str]]) -> None:
    text = "api_keys:\n- ${NOPE}\n- ${EMPTY}${NOPE}\n- ${a b}\n- ${\n"
    begins = "`${` begins the name of a variable, as in ${NAME}: write $${ for the two characters."
    assert refuses(text, EMPTY="") == [
        "2:3: api_keys.0: the variable NOPE is not set in the environment.",
        "3:3: api_keys.1: the variable EMPTY is empty in the environment.",
        "3:3: api_keys.1: the variable NOPE is not set in the environment.",
        f"4:3: api_keys.2: {begins}",
        f"5:3: api_keys.3: {begins}",
    ]


@pytest.mark.parametrize(
    "text",
    [
        "upstreams: ${S}",
        "upstreams: http://u:${S}@h:x",
        "upstreams: {url: h, dialect: '${S}'}",
        "upstreams: {url: h, api_key: '${S}\\n'}\nx: 1",
        "listen: ${S}",
        "template: ${S}",
        "template: ${S}/x.jinja",
        "any_model: ${S}",
        "max_body: ${S}",
        "models: {a: h, b: {upstreams: g, aliases: ['${S}', '${S}']}}",
    ],
)
def test_what_stands_in_the_environment_is_not_told(
    refuses: Callable[..., list[str]], text: str
) -> None:
    complaints = refuses(text, S="hunter2 ftp://hunter2")
    assert complaints
    assert "hunter2" not in "".join(complaints)


@pytest.mark.parametrize(
    "text",
    [
        "api_keys: [[hunter2]]",
        "api_keys: {hunter2}",
        "api_keys: *hunter2",
        "api_keys: !hunter2 x",
        "api_keys: !hunter2!hunter2 x",
        "api_keys: &hunter2 [a, &hunter2 b]",
        "api_keys: @hunter2",
        "api_keys: %hunter2",
        "api_keys: 'hunter2\nx: [",
        'api_keys: "hunter2\\qhunter2"',
        "api_keys: hunter2: hunter2",
        'api_keys: "hunter2\\nhunter2"',
        "upstreams: http://u:hunter2@h:x",
        "upstreams: http://u:hunter2@h:hunter2/hunter2@h:x",
        "upstreams: http://u:hunter2/@h",
        "upstreams: u:hunter2@h:99999",
        "upstreams: http://h/?key=hunter2",
        "upstreams: http://[hunter2@h",
        "upstreams: {url: h, api_key: [hunter2]}",
        "upstreams: {url: h, headers: {Authorization: {hunter2: 1}}}",
        "upstreams: {url: h, headers: {Authorization: ['hunter2']}}",
        'upstreams: {url: h, headers: {Authorization: "hunter2\\r\\nX: hunter2"}}',
        "upstreams: {url: h, headers: hunter2}",
    ],
)
def test_a_secret_is_not_told(refuses: Callable[..., list[str]], text: str) -> None:
    complaints = refuses(text)
    assert complaints
    assert "hunter2" not in "".join(complaints)


# What is refused.


def test_all_that_is_wrong_is_told_at_once(refuses: Callable[..., list[str]]) -> None:
    text = """\
listen: 8081
modles: {}
any_model: yes
models:
  a:
    aliases: [b, a, c, c]
    upstreams:
      - {url: "http://u:p@h:99999", weight: 0, dialect: llamacp}
      - {weight: 1}
  b:
    upstrems: x
  c:
api_keys: [1, ""]
max_body: "12"
max_body: 3
upstreams: {url: h, model: x, timeouts: {connect: .inf, idle: -1}}
engine: {slots: 300}
template: clasic
"""
    assert [": ".join(line.split(": ")[:2]) for line in refuses(text)] == [
        "1:9: listen",
        "2:1: modles",
        "3:12: any_model",
        "6:15: models.a.aliases.0",
        "6:18: models.a.aliases.1",
        "6:21: models.a.aliases.2",
        "6:24: models.a.aliases.3",
        "8:15: models.a.upstreams.0.url",
        "8:45: models.a.upstreams.0.weight",
        "8:57: models.a.upstreams.0.dialect",
        "9:9: models.a.upstreams.1",
        "11:5: models.b.upstrems",
        "11:5: models.b",
        "12:5: models.c",
        "13:12: api_keys.0",
        "13:15: api_keys.1",
        "14:11: max_body",
        "15:1: max_body",
        "16:28: upstreams.0.model",
        "16:51: upstreams.0.timeouts.connect",
        "16:63: upstreams.0.timeouts.idle",
        "17:9: engine",
        "17:17: engine.slots",
        "18:11: template",
    ]


@pytest.mark.parametrize(
    ("text", "complaint"),
    [
        ("[a]", "1:1: must be a mapping of settings, not a list."),
        ("text", "1:1: must be a mapping of settings, not a text."),
        ("port: 1", "1:1: port: there is no such setting; listen: HOST:PORT says it."),
        ("models: {m: {upstreams: h, url: x}}",
         ("1:28: models.m.url: there is no such setting; it belongs to an upstream, below "
         "upstreams.")),
        ("zzz: 1", f"1:1: zzz: there is no such setting; there are: {SETTINGS}."),
        ("{<<: {listen: x}}", f"1:2: <<: there is no such setting; there are: {SETTINGS}."),
        ("models: {}", "1:9: models: is empty: name one, or leave it out."),
        ("models:", "1:8: models: has no value: give it one, or leave it out."),
        ("api_keys:", "1:10: api_keys: has no value: give it one, or leave it out."),
        ("models: {m: []}", "1:13: models.m.upstreams: is empty: it needs one at least."),
        ("models: {m: 1}", "1:13: models.m: must be a mapping of settings, not a whole number."),
        ("models: h", "1:9: models: must be a mapping of names, not a text."),
        ("models: {'': h}", ("1:10: models: this name cannot be used: it is empty, or has "
                            "characters that do not belong in it.")),
        ("models: {m: h, m: g}", "1:16: models.m: is set twice; the first time in line 1."),
        ("models: {[a]: h}", "1:10: models: a key in it is no name."),
        ("upstreams: {url: h, headers: {a b: x}}",
         ("1:31: upstreams.0.headers: this name cannot be used: it is empty, or has characters "
         "that do not belong in it.")),
        ("models: {a: [h, h/v1]}",
         ("1:17: models.a.upstreams.1: is the same server as one before it: weight says how much "
         "of the work it gets.")),
        ("models: {a: h, b: {upstreams: {url: h, timeouts: {idle: 1}}}}",
         ("1:31: models.b.upstreams.0: is the same server as models.a.upstreams.0 (line 1), with "
         "other timeouts: a server has one set.")),
        ("models: {a: h, b: {upstreams: {url: h, slots: 1}}}",
         ("1:31: models.b.upstreams.0: is the same server as models.a.upstreams.0 (line 1), with "
         "other slots: a server has one set.")),
        ("models: {a: {upstreams: h, aliases: x}, b: {upstreams: g, aliases: x}}",
         "1:68: models.b.aliases.0: 'x' is an alias of a already (line 1): take another name."),
        ("template: classic\nmodels: {m: {upstreams: h, template: auto}}",
         ("2:38: models.m.template: auto does not undo template: leave that out, and name it "
         "where it is wanted.")),
        ("models: {m: {template: classic, upstreams: {url: h, template: auto}}}",
         ("1:63: models.m.upstreams.0.template: auto does not undo models.m.template: leave that "
         "out, and name it where it is wanted.")),
        ("template: {stop: 1, usr_name: x}",
         "1:18: template.stop: must be a text, not a whole number: put it in quotes."),
        ("template: {stop: x, usr_name: x}",
         "1:21: template.usr_name: there is no such setting (did you mean user_name?)."),
        ("template: [classic]", ("1:11: template: must be a template's name, its file, or a "
                                "mapping of classic's texts, not a list.")),
        ("max_body: !!int x", "1:11: max_body: is not what its tag says."),
        ("max_body: !!python/object/apply:os.getcwd []",
         "1:11: max_body: has a tag (`!`) that means nothing here: leave it out."),
        ("max_body: 1.0", "1:11: max_body: must be a whole number, not a number."),
        ("max_body: " + "9" * 5000, "1:11: max_body: must be a whole number, not a number."),
        ("upstreams: {url: h, weight: " + "9" * 400 + "}",
         "1:29: upstreams.0.weight: must be a finite number."),
        ("upstreams: {url: h, weight: 0x" + "9" * 400 + "}",
         "1:29: upstreams.0.weight: must be a finite number."),
        ("max_body: 0", "1:11: max_body: must be at least 1 and at most 1099511627776."),
        ("engine: {model: ''}", "1:17: engine.model: must not be empty."),
        ("upstreams: &x [*x]", "1:12: upstreams.0: refers to itself."),
        ("a: 1\n---\nb: 2", "2:1: a config file has only one document: there is a second one."),
        ("api_keys: [a", "1:13: this is not YAML: expected ',' or ']', but got '<stream end>'."),
        ("upstreams: {url: ${X}}",
         "1:19: a `{` cannot stand here: within braces or brackets, put `${NAME}` in quotes."),
        ("api_keys: a: b", ("1:12: a `: ` cannot stand here: put a text that has one in quotes, or "
                           "mend the indent.")),
        ("api_keys: *a", ("1:11: a `*` refers to what no `&` names: put a text that begins with "
                         "`*` in quotes.")),
        ("\tlisten: h:1", ("1:1: a value cannot begin with this character (a tab, `@`, `` ` `` "
                          "and `%` are such): put it in quotes, and indent with spaces.")),
        ("a: 1\nb: \x01", "2:4: there is a control character in the file."),
        ('api_keys: "\\ud83d"', "1:11: api_keys: is no text."),
        (b"api_keys: x\nlisten: \xff", "2:9: the file is not in UTF-8."),
        ("[" * 5000, " the file is nested too deeply."),
        ("#" * 1_100_000, " a config file has at most 1048576 bytes."),
    ],
)  # fmt: skip
def test_what_is_refused(refuses: Callable[..., list[str]], text: str, complaint: str) -> None:
    assert complaint in refuses(text)


@pytest.mark.parametrize(
    "listen", ["8081", ":8081", "::1:8081", "h:", "h:70000", "h:http", "a b:1"]
)
def test_an_address_to_listen_on_that_is_none(
    refuses: Callable[..., list[str]], listen: str
) -> None:
    (complaint,) = refuses(f"listen: '{listen}'")
    assert f"'{listen}' is not HOST:PORT" in complaint


def test_a_file_that_cannot_be_read(tmp_path: Path) -> None:
    for path in (tmp_path, tmp_path / "none"):
        with pytest.raises(ConfigError, match="cannot be read"):
            load(path, {})


@settings(suppress_health_check=[HealthCheck.function_scoped_fixture])
@given(
    st.binary(max_size=40)
    | st.text("listen: 0.[]{}&*!|>'\"%@\n-#$?,apikeysmodelsupstreams", max_size=60).map(str.encode)
)
def test_whatever_is_written_only_a_refusal_is_raised(file: Path, data: bytes) -> None:
    file.write_bytes(data)
    try:
        load(file, {})
    except Refused as refused:
        assert refused.complaints  # noqa: PT017 - many inputs are fine


# Templates.


def test_templates(loads: Load, file: Path) -> None:
    (file.parent / "own.jinja").write_text("{{ messages }}")
    (file.parent / "sub").mkdir()
    (file.parent / "sub" / "x").write_text("{# x #}")
    config = loads(
        "models:\n"
        "  none: {upstreams: h:1, template: auto}\n"
        "  old: {upstreams: h:2, template: classic}\n"
        "  texts: {upstreams: h:3, template: {stop: '', user_name: 'U: '}}\n"
        "  file: {upstreams: h:4, template: own.jinja}\n"
        "  path: {upstreams: {url: h:5, template: sub/x}}\n"
    )
    models = config.models
    assert models["none"].template is None
    assert models["old"].template == Classic()
    assert models["texts"].template == Classic(stop="", user_name="U: ")
    one, two = models["file"].template, models["path"].upstreams[0].template
    assert isinstance(one, Jinja)
    assert (one.name, one.source) == (str(file.parent / "own.jinja"), "{{ messages }}")
    assert isinstance(two, Jinja)
    assert two.source == "{# x #}"


def test_a_template_that_cannot_be_used(
    refuses: Callable[..., list[str]], file: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    path = file.parent / "x.j2"
    (complaint,) = refuses("template: x.j2")
    assert complaint == f"1:11: template: {path} cannot be read: No such file or directory."
    path.write_bytes(b"\xff")
    assert "not in UTF-8" in refuses("template: x.j2")[0]

    def broken(name: str, source: str) -> Jinja:  # noqa: ARG001
        raise Malformed("line 1: unexpected end.")

    monkeypatch.setattr(templates, "compiled", broken, raising=False)
    path.write_text("{% if")
    (complaint,) = refuses("template: x.j2")
    assert complaint == f"1:11: template: {path} is no template: line 1: unexpected end."


# The environment.


def test_variables_win_over_the_file(file: Path) -> None:
    text = "listen: h:1\nany_model: true\nallow_admin: true\nmax_body: 9\napi_keys: file\n"
    text += "template: classic\n"
    loaded = written(
        file, text, TROPILLA_LISTEN="g:2", TROPILLA_ANY_MODEL="false", TROPILLA_MAX_BODY="7",
        TROPILLA_API_KEY="a b", TROPILLA_TEMPLATE="auto", TROPILLA_ALLOW_ADMIN="",
    )  # fmt: skip
    assert loaded.config == Config(
        listen="g:2", any_model=False, allow_admin=True, max_body=7, api_keys=("a", "b")
    )
    assert set(loaded.variables) == {
        "TROPILLA_LISTEN", "TROPILLA_ANY_MODEL", "TROPILLA_MAX_BODY", "TROPILLA_API_KEY",
        "TROPILLA_TEMPLATE",
    }  # fmt: skip


def test_variables_without_a_file() -> None:
    assert load(None, {}).config == Config()
    assert load(None, {"TROPILLA_LISTEN": "g:2"}).config == Config(listen="g:2")


def test_variables_that_cannot_be_are_told_with_the_file(file: Path) -> None:
    file.write_text("max_body: x\n")
    with pytest.raises(Refused) as refused:
        load(file, {"TROPILLA_ANY_MODEL": "yes", "TROPILLA_LISTEN": "${X}"})
    inside, any_model, listen = str(refused.value).splitlines()
    assert inside.startswith(f"{file}:1:11: max_body: must be a whole number, not a text")
    assert any_model.startswith("TROPILLA_ANY_MODEL: any_model: must be true or false, not a text")
    assert listen.startswith("TROPILLA_LISTEN: listen: '${X}' is not HOST:PORT")


def test_the_file_of_the_working_directory(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.chdir(tmp_path)
    assert found(None) is None
    (tmp_path / "tropilla.yaml").touch()
    assert found(None) == Path("tropilla.yaml")
    assert found(Path("x")) == Path("x")
