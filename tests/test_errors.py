"""`docs/errors.md` says what is: every kind of problem has its row there, as it is answered."""

from __future__ import annotations

import re
from pathlib import Path
from typing import get_args

import msgspec
import pytest
from jsonschema import Draft202012Validator  # type: ignore[import-untyped]

from tropilla import dialects
from tropilla.ir import Problem, ProblemKind
from tropilla.server.app import _NEVER, STATUS

PAGE = (Path(__file__).parents[1] / "docs" / "errors.md").read_text(encoding="utf-8")
ROWS = [
    [cell.strip() for cell in line.strip("|").split("|")]
    for line in PAGE.splitlines()
    if re.match(r"\|.*\| \d{3} \|", line)
]
KINDS: tuple[ProblemKind, ...] = get_args(ProblemKind)


def row_of(kind: ProblemKind) -> list[str]:
    problem = Problem(kind=kind, message="why")
    body = dialects.named("openai_chat").render_problem(problem, STATUS[kind])
    error = msgspec.json.decode(body)["error"]
    code = "null" if error["code"] is None else f"`{error['code']}`"
    type_ = f"`{error['type']}`"
    found = [
        row
        for row in ROWS
        if row[1] == str(STATUS[kind]) and row[2].startswith(type_) and row[3].startswith(code)
    ]
    assert len(found) == 1, (kind, error)
    return found[0]


def test_every_row_is_of_a_kind() -> None:
    assert len(ROWS) == len(KINDS)
    assert len({tuple(row_of(kind)) for kind in KINDS}) == len(KINDS)


@pytest.mark.parametrize("kind", KINDS)
def test_a_row_says_what_sdks_do(kind: ProblemKind) -> None:
    _, status, type_, _, again, headers = row_of(kind)
    # OpenAI's SDKs ask again after these, unless they are told not to.
    by_itself = int(status) in {408, 409, 429} or int(status) >= 500
    assert again == ("yes" if by_itself and kind not in _NEVER else "no")
    assert ("`x-should-retry: false`" in headers) == (kind in _NEVER)
    native = dialects.named("llamacpp").render_problem(Problem(kind=kind, message="why"), 1)
    told = msgspec.json.decode(native)["error"]
    assert told["code"] == 1
    assert f"`{told['type']}`" == type_.split(" / ")[-1]


OPENAI = [name for name in dialects.names() if not dialects.schemas(name)]


@pytest.mark.parametrize("name", dialects.names())
def test_every_dialect_has_its_own_envelope(name: str) -> None:
    for kind in KINDS:
        body = dialects.named(name).render_problem(Problem(kind=kind, message="why"), STATUS[kind])
        told = msgspec.json.decode(body)
        if schemas := dialects.schemas(name):
            validator = Draft202012Validator({"$defs": schemas, **schemas[f"{name.title()}Error"]})
            assert not list(validator.iter_errors(told))
        assert b"why" in body


@pytest.mark.parametrize("name", OPENAI)
def test_every_dialect_of_openais_kind_has_all_four_keys(name: str) -> None:
    for kind in KINDS:
        body = dialects.named(name).render_problem(Problem(kind=kind, message="why"), STATUS[kind])
        told = msgspec.json.decode(body)
        assert told["error"].keys() == {"message", "type", "param", "code"}
        assert told["error"]["message"] == told.get("detail", "why") == "why"


def test_an_error_does_not_repeat_megabytes() -> None:
    problem = Problem(kind="malformed", message="m" * 10**6, param="p" * 10**6)
    for name in dialects.names():
        assert len(dialects.named(name).render_problem(problem, 400)) < 20_000


def test_every_code_of_a_wrong_request_is_told() -> None:
    source = Path(dialects.__file__).with_name("_fields.py").read_text(encoding="utf-8")
    for code in re.findall(r'code="(\w+)"|code: str = "(\w+)"', source):
        assert f"`{''.join(code)}`" in PAGE
