"""Who may do what: every route, by every method, with every kind of key; and the holes of others.

The routes are those of the gateway's own table, so that one that is added is tried at once. What
has no right gets no 2xx, and leaves no trace at an upstream.
"""

from __future__ import annotations

from collections.abc import Iterator
from pathlib import Path
from typing import Any

import msgspec
import pytest

from conftest import CHAT, Answer, Serve, Served
from doubles.upstream import Double, answers, streams, told
from tropilla.accounts.keys.rights import OPERATOR
from tropilla.accounts.keys.ring import Ring, Terms, open_ring
from tropilla.accounts.store import open_store
from tropilla.config import (
    AccountsConfig,
    BudgetConfig,
    KeyConfig,
    LimitsConfig,
    ModelConfig,
    TermsConfig,
    UpstreamConfig,
)
from tropilla.server.routes import (
    Action,
    Forward,
    Generate,
    Manage,
    Measure,
    Methods,
    Own,
    View,
    is_public,
    marked,
    patterns,
    right_of,
    table,
)

pytestmark = pytest.mark.anyio

PATH = "/v1/chat/completions"
METHODS = ("GET", "HEAD", "POST", "PUT", "PATCH", "DELETE")
BODY = {
    "model": "m", "messages": [{"role": "user", "content": "x"}], "prompt": "x", "input": "x",
    "inputs": "x", "content": "x", "query": "x", "documents": ["x"], "max_tokens": 1, "name": "x",
}  # fmt: skip
ROLES = {
    "nobody": None, "wrong": None, "expired": None, "revoked": None, "rotated": None,
    "half an admin": None, "static": "static", "account": "account", "of another model": "account",
    "admin": "admin",
}  # fmt: skip
"""The kinds of keys, and who one is by them."""
MAY = {
    "ask": {"static", "account"},
    "look": {"static", "account", "admin"},
    "operate": {"static", "admin"},
    "give": {"admin"},
}


def routes() -> Iterator[tuple[str, str, str | None, Action]]:
    """Every path, method and marking header that means something."""
    groups: list[tuple[str | None, dict[str, Methods]]] = [(None, {**table(), **patterns()})]
    groups += list(marked().items())
    for header, paths in groups:
        for path, methods in paths.items():
            for method, action in methods.items():
                shown = path.replace("{slot}", "1").replace("{key}", "victim")
                while "{" in shown:
                    before, _, rest = shown.partition("{")
                    shown = before + "m" + rest.partition("}")[2]
                yield shown, method, header, action


SHOWN = {
    "nobody": None, "wrong": "wrong", "half an admin": "the-admin", "admin": "the-admin-key",
    "static": "static", "account": "account", "of another model": "elsewhere", "expired": "over",
}  # fmt: skip


def wanted(path: str, action: Action) -> str:
    """The right that a route is to want, said here once more: who adds one has to think of it."""
    if path.startswith("/api/keys"):
        return "give"
    if path in {"/api/herd", "/api/route", "/api/logs", "/api/health", "/metrics"}:
        return "operate"
    match action:
        case Forward(admin=admin):
            return "operate" if admin else "ask"
        case Own() | View():
            return "look"
    return "ask"


def test_every_route_wants_its_right() -> None:
    for path, _, _, action in routes():
        assert right_of(action) == wanted(path, action), path
    assert [one for one in routes() if is_public(one[3])]
    for path, _, _, action in routes():
        told_to_all = {"/health", "/v1/health", "/health/live", "/health/ready", "/docs"}
        assert not is_public(action) or isinstance(action, View) or path in told_to_all


class Stage:
    """A gateway with every kind of key."""

    def __init__(self, tropilla: Served, ring: Ring, double: Double, keys: dict[str, Any]) -> None:
        self.tropilla = tropilla
        self.ring = ring
        self.double = double
        self.keys = keys

    async def ask(self, role: str, method: str, path: str, body: Any = None, **more: str) -> Answer:
        headers = dict(more)
        if self.keys[role] is not None:
            headers["Authorization"] = f"Bearer {self.keys[role]}"
        return await self.tropilla.ask(method, path, body, headers)


@pytest.fixture
async def stage(gateway: Serve, double: Double, tmp_path: Path) -> Any:
    double.on(PATH, streams(*told("yes")))
    config = AccountsConfig(
        store=f"sqlite:///{tmp_path}/accounts.db",
        admin_key="the-admin-key",
        keys={
            "account": KeyConfig(key="account"),
            "elsewhere": KeyConfig(key="elsewhere", models=("other",)),
            "over": KeyConfig(key="over", expires="2001-01-01"),
        },
    )
    store = await open_store(config.store)
    ring = await open_ring(store, None)
    revoked = await ring.create(OPERATOR, "revoked", TermsConfig())
    await ring.revoke(OPERATOR, "revoked")
    rotated = await ring.create(OPERATOR, "rotated", TermsConfig())
    await ring.rotate(OPERATOR, "rotated")
    await ring.create(OPERATOR, "victim", TermsConfig(limits=LimitsConfig(requests=1)))
    double.models = ("m", "o")
    models = {
        name: ModelConfig(upstreams=(UpstreamConfig(url=double.url, model=there),))
        for name, there in (("m", "m"), ("other", "o"))
    }
    tropilla = await gateway(
        upstreams=(), models=models, api_keys=("static",), accounts=config, allow_admin=True
    )
    keys = SHOWN | {"revoked": revoked.key, "rotated": rotated.key}
    yield Stage(tropilla, ring, double, keys)
    await store.close()


async def test_every_route_with_every_kind_of_key(stage: Stage) -> None:
    kept = {one.id: one for one in await stage.ring.all()}
    tried = 0
    for path, method, header, action in routes():
        marks = {} if header is None else {header: "2023-06-01"}
        for kind, role in ROLES.items():
            if role in MAY[right_of(action)] or is_public(action):
                continue
            stage.double.requests.clear()
            body = BODY if method in {"POST", "PUT", "DELETE"} else None
            answer = await stage.ask(kind, method, path, body, **marks)
            tried += 1
            assert answer.status == (401 if role is None else 403), (kind, method, path)
            assert stage.double.requests == [], (kind, method, path)
    assert tried > 500
    assert {one.id: one for one in await stage.ring.all()} == kept, "nobody has changed a key"


async def test_another_spelling_of_a_path_is_no_way_round(stage: Stage) -> None:
    rights: dict[str, set[str]] = {}
    for path, _, _, action in routes():
        rights.setdefault(path, set()).add(right_of(action))
    closed = [path for path, found in rights.items() if found <= {"operate", "give"}]
    assert "/api/keys" in closed
    for path in closed:
        for method in METHODS:
            for other in (f"/{path}", path.replace("/", "/./", 1), path + "%2F"):
                for kind in ("nobody", "account"):
                    answer = await stage.ask(kind, method, other)
                    assert answer.status >= 400, (kind, method, other)
    assert len(await stage.ring.all()) == 3
    assert stage.double.requests == []


async def test_those_who_may_are_let(stage: Stage) -> None:
    stage.double.on("/tokenize", answers(200, b'{"tokens":[1]}'))
    stage.double.on("/props", answers(200, b"{}"))
    for kind, what in (
        ("static", ("ask", "look", "operate")), ("account", ("ask", "look")),
        ("admin", ("look", "operate", "give")),
    ):  # fmt: skip
        for right, method, path in (
            ("ask", "POST", PATH), ("ask", "POST", "/tokenize"), ("ask", "GET", "/props"),
            ("look", "GET", "/v1/models"), ("look", "GET", "/v1/models/m"),
            ("look", "GET", "/api/usage"), ("look", "GET", "/openapi.json"),
            ("operate", "GET", "/api/herd"), ("operate", "POST", "/api/route"),
            ("give", "GET", "/api/keys"), ("give", "GET", "/api/keys/victim"),
        ):  # fmt: skip
            answer = await stage.ask(kind, method, path, CHAT if method == "POST" else None)
            assert answer.status == (200 if right in what else 403), (kind, path, answer.body)


async def test_a_key_of_another_model_reaches_no_upstream(stage: Stage) -> None:
    """Whatever says the name, and wherever: body, query, both, twice, or nobody."""
    for path, *_ in routes():
        stage.double.on(path, answers(400, b"{}"))
    for path, method, header, action in routes():
        if right_of(action) != "ask" or not isinstance(action, Generate | Measure | Forward):
            continue
        marks = {} if header is None else {header: "2023-06-01"}
        twice = b'{"model":"other","prompt":"x","content":"x","model":"m"}'
        tries: list[tuple[str, Any]] = [
            (path, BODY), (f"{path}?model=m", BODY | {"model": "other"}),
            (f"{path}?model=other", BODY), (f"{path}?model=other&model=m", BODY), (path, twice),
        ]  # fmt: skip
        for where, body in tries:
            stage.double.requests.clear()
            answer = await stage.ask("of another model", method, where, body, **marks)
            asked = stage.double.requests
            assert all(b'"m"' not in one.body for one in asked), (where, answer.status)
            assert all("model=m" not in one.path for one in asked), (where, answer.status)
            if isinstance(action, Forward):
                assert answer.status in {400, 403, 404}, (where, body, answer.status)
                assert asked == []


async def test_what_is_passed_on_names_one_model_however_it_is_read(
    gateway: Serve, double: Double
) -> None:
    double.models = ("m", "n")
    double.on("/tokenize", answers(200, b'{"tokens":[1]}'))
    keys = {"of m": KeyConfig(key="of-m", models=("m",))}
    tropilla = await gateway(double, accounts=AccountsConfig(store="none", keys=keys))
    mine = {"x-api-key": "of-m"}
    twice = b'{"model":"n","content":"x","model":"m"}'
    assert (await tropilla.ask("POST", "/tokenize", twice, mine)).status == 200
    (asked,) = double.requests
    assert asked.body == b'{"model":"m","content":"x"}', "others take the first of two"
    form = b"model=m&content=x"
    assert (await tropilla.ask("POST", "/tokenize", form, mine)).status == 400
    hidden = await tropilla.ask("POST", "/tokenize?model=m", form, mine)
    assert (hidden.status, len(double.requests)) == (403, 1)


FIELDS: dict[str, Any] = {
    "name": "mine", "team": "red", "models": None, "limits": {"requests": 10**9},
    "budgets": [], "priority": 100, "expires": None, "tags": ["x"],
}  # fmt: skip


def test_every_field_of_a_key_is_tried() -> None:
    assert FIELDS.keys() == set(Terms.__struct_fields__)


@pytest.mark.parametrize("kind", [one for one, role in ROLES.items() if role != "admin"])
async def test_no_field_of_a_key_is_anybodys_but_the_admins(stage: Stage, kind: str) -> None:
    before = await stage.ring.all()
    for field, value in FIELDS.items():
        for path in ("/api/keys", "/api/keys/victim", "/api/keys/account", "/api/keys/victim/"):
            answer = await stage.ask(kind, "POST", path, {"name": "new", field: value})
            assert answer.status in {401, 403}, (kind, field, path)
    for path in ("/api/keys/victim/rotate", "/api/keys/rotated/rotate"):
        assert (await stage.ask(kind, "POST", path, {"grace": 5})).status in {401, 403}
    assert (await stage.ask(kind, "DELETE", "/api/keys/victim")).status in {401, 403}
    assert await stage.ring.all() == before


# The holes of others (reliability notes: incidents), each shut.


@pytest.mark.parametrize("header", ["authorization", "x-api-key", "api-key"])
async def test_every_spelling_of_a_key_has_the_same_terms(stage: Stage, header: str) -> None:
    # Another gateway let a restricted key do everything, shown as x-api-key.
    shown = "Bearer elsewhere" if header == "authorization" else "elsewhere"
    answer = await stage.tropilla.ask("POST", PATH, CHAT, {header: shown})
    assert (answer.status, answer.error["code"]) == (404, "model_not_found")
    assert stage.double.requests == []


async def test_several_keys_are_one_and_never_more(stage: Stage) -> None:
    headers = {"Authorization": "Bearer elsewhere", "x-api-key": "static"}
    assert (await stage.tropilla.ask("POST", PATH, CHAT, headers)).status == 404
    headers = {"Authorization": "Bearer account", "x-api-key": "the-admin-key"}
    assert (await stage.tropilla.ask("GET", "/api/keys", None, headers)).status == 403


async def test_what_begins_like_a_key_is_none(stage: Stage) -> None:
    # A cache that knew keys by their first twenty characters let others in.
    one = await stage.ring.create(OPERATOR, "long", TermsConfig())
    tropilla = stage.tropilla
    kept = tropilla.gateway._accounts
    assert kept is not None
    await kept.look()
    stage.keys["long"], stage.keys["like it"] = one.key, one.key[:20] + "x" * 17
    assert (await stage.ask("long", "GET", "/v1/models")).status == 200
    assert (await stage.ask("like it", "GET", "/v1/models")).status == 401


async def test_what_is_kept_of_a_key_is_no_key(stage: Stage) -> None:
    # A digest that was shown to others was taken for a password.
    one = (await stage.ring.all())[-1]
    for stolen in (one.digest, one.seal, one.id, one.name, one.tail):
        stage.keys["stolen"] = stolen
        assert (await stage.ask("stolen", "GET", "/v1/models")).status == 401
    answer = await stage.ask("admin", "GET", "/api/keys")
    assert one.digest.encode() not in answer.body


@pytest.mark.parametrize("key", ["' OR '1'='1", "x' UNION SELECT * FROM keys --", '"; DROP', "%"])
async def test_a_key_is_never_sql(stage: Stage, key: str) -> None:
    stage.keys["sly"] = key
    assert (await stage.ask("sly", "GET", "/v1/models")).status == 401
    path = "/api/keys/" + "".join(f"%{byte:02x}" for byte in key.encode())
    assert (await stage.ask("admin", "GET", path)).status == 404
    assert len(await stage.ring.all()) == 3


async def test_a_host_is_no_path(stage: Stage) -> None:
    # Where the path was made again from Host, a Host with a path in it opened everything.
    raw = await stage.tropilla.connect()
    for host in ("t/health?", "t/health#", "health"):
        head = f"GET /api/keys HTTP/1.1\r\nHost: {host}\r\nConnection: keep-alive\r\n\r\n"
        await raw.send(head.encode())
        status, _ = await raw.head()
        assert status in {400, 401}
        raw = await stage.tropilla.connect()


@pytest.mark.parametrize(
    "more",
    [
        {"user_config": {"model_list": []}}, {"api_base": "http://192.0.2.1"},
        {"base_url": "http://192.0.2.1"}, {"api_key": "x"}, {"metadata": {"tags": "admin"}},
        {"user": "the-admin-key"}, {"max_budget": 10**9}, {"priority": 100}, {"key": "static"},
    ],
)  # fmt: skip
async def test_no_field_of_a_request_is_a_right(stage: Stage, more: dict[str, Any]) -> None:
    answer = await stage.ask("of another model", "POST", PATH, CHAT | more)
    assert answer.status == 404
    assert stage.double.requests == []


async def test_an_empty_list_of_models_is_none(gateway: Serve, double: Double) -> None:
    # Elsewhere a key whose last model was taken away could ask for all of them.
    keys = {"none": KeyConfig(key="none", models=())}
    tropilla = await gateway(double, accounts=AccountsConfig(store="none", keys=keys))
    headers = {"x-api-key": "none"}
    assert (await tropilla.ask("POST", PATH, CHAT, headers)).status == 404
    assert (await tropilla.ask("GET", "/v1/models", headers=headers)).json["data"] == []


async def test_what_is_there_is_not_told_to_whom_it_is_not_for(stage: Stage) -> None:
    told = {}
    for model in ("m", "nowhere"):
        answer = await stage.ask("of another model", "POST", PATH, CHAT | {"model": model})
        told[model] = answer.error["message"].replace(f"'{model}'", "MODEL")
        one = await stage.ask("of another model", "GET", f"/v1/models/{model}")
        told[f"card of {model}"] = one.error["message"].replace(f"'{model}'", "MODEL")
    assert len(set(told.values())) == 1, told
    listed = (await stage.ask("of another model", "GET", "/v1/models")).json["data"]
    assert [(one["id"], one["aliases"]) for one in listed] == [("other", [])]
    for path in ("/api/herd", "/api/route", "/metrics"):
        method = "POST" if path == "/api/route" else "GET"
        assert (await stage.ask("of another model", method, path, CHAT)).status == 403


async def test_a_key_of_one_model_need_not_say_which(stage: Stage) -> None:
    body = {"messages": CHAT["messages"]}
    answer = await stage.ask("of another model", "POST", PATH, body)
    assert (answer.status, answer.json["model"]) == (200, "other")


async def test_any_model_is_not_any_for_a_key_of_some(gateway: Serve, double: Double) -> None:
    double.on(PATH, streams(*told("yes")))
    keys = {"some": KeyConfig(key="some", models=("gone", "m"))}
    accounts = AccountsConfig(store="none", keys=keys)
    tropilla = await gateway(double, accounts=accounts, any_model=True)
    headers = {"x-api-key": "some"}
    told_ = [
        (await tropilla.ask("POST", PATH, CHAT | {"model": model}, headers)).status
        for model in ("m", "gone", "nowhere")
    ]
    assert told_ == [200, 404, 404]
    body = {"messages": CHAT["messages"]}
    nameless = await tropilla.ask("POST", PATH, body, headers)
    assert (nameless.status, nameless.error["param"]) == (400, "model")


async def test_one_sees_what_one_has_used_and_no_other(stage: Stage) -> None:
    for kind in ("account", "of another model", "static"):
        model = "other" if kind == "of another model" else "m"
        assert (await stage.ask(kind, "POST", PATH, CHAT | {"model": model})).status == 200
    told_ = {}
    for kind in ("account", "of another model", "admin"):
        for query in ("by=key", "by=key&key=config:account"):
            rows = (await stage.ask(kind, "GET", f"/api/usage?{query}")).json["data"]
            told_[kind, query] = {row["key"] for row in rows}
    assert told_["account", "by=key"] == {"config:account"}
    mine = told_["of another model", "by=key&key=config:account"]
    assert mine == {"config:elsewhere"}
    assert len(told_["admin", "by=key"]) == 3


async def test_what_others_keep_is_not_there(stage: Stage) -> None:
    asked = {"model": "m", "input": "x"}
    stage.double.on(PATH, streams(*told("yes")))
    kept = await stage.ask("account", "POST", "/v1/responses", asked)
    id_ = kept.json["id"]
    for kind in ("static", "of another model"):
        assert (await stage.ask(kind, "GET", f"/v1/responses/{id_}")).status == 404
    assert (await stage.ask("account", "GET", f"/v1/responses/{id_}")).status == 200


async def test_numbers_that_are_none_are_no_terms(stage: Stage) -> None:
    # A budget that is NaN is never exceeded; a negative price pays the client.
    for body in (
        b'{"name":"n","budgets":[{"money":NaN}]}', b'{"name":"n","budgets":[{"money":1e999}]}',
        b'{"name":"n","budgets":[{"money":-1}]}', b'{"name":"n","limits":{"requests":-1}}',
        b'{"name":"n","limits":{"tokens":9223372036854775808}}',
    ):  # fmt: skip
        answer = await stage.ask("admin", "POST", "/api/keys", body)
        assert answer.status == 400, body
        assert answer.error["type"] == "invalid_request_error"
    assert len(await stage.ring.all()) == 3


async def test_no_key_stands_in_an_answer(stage: Stage) -> None:
    for path, method, _, action in routes():
        if isinstance(action, Own | Manage) and method == "GET":
            for kind in ("static", "account", "admin"):
                answer = await stage.ask(kind, method, path)
                for key in ("the-admin-key", '"elsewhere"', '"static"'):
                    assert key.encode() not in answer.body, (path, key)


def test_a_budget_has_no_room_for_an_overflow() -> None:
    with pytest.raises(msgspec.ValidationError):
        msgspec.convert({"tokens": 2**53}, BudgetConfig)
    with pytest.raises(msgspec.ValidationError):
        msgspec.convert({"money": 1e7}, BudgetConfig)
