"""What others say runs no script in the dashboard, and nobody comes in who should not."""

from __future__ import annotations

import csv
import io
import re
from collections.abc import Awaitable, Callable
from typing import Any
from urllib.parse import quote

import pytest
from playwright.async_api import expect

from conftest import CHAT, Answer, Serve, Served, Start
from dashboard.browser import ADMIN, Look
from doubles.upstream import Double, refuses, streams, told
from tropilla.config import CaptureConfig, KeyConfig

pytestmark = pytest.mark.anyio

Kept = Callable[..., Awaitable[Served]]
Begin = Callable[..., Awaitable[Look]]
PATH = "/v1/chat/completions"
HOSTILE = (
    "<script>window.pwned=1</script>",
    "<img src=x onerror=window.pwned=1>",
    '"><svg onload=window.pwned=1>',
    "' onfocus=window.pwned=1 autofocus='",
    "javascript:window.pwned=1",
    "</title></textarea></script><script>window.pwned=1</script>",
    "{{ 7*7 }}{% raw %}${window.pwned=1}",
    "<a href='javascript:window.pwned=1' hx-get=/v1/models hx-trigger=load>x</a>",
    "&lt;img src=x onerror=window.pwned=1&gt;",
    "=cmd|'/C calc'!A0",
)
PLACES = ("herd", "activity", "usage", "usage?by=key", "keys", "playground", "connect")


async def test_nothing_that_others_say_runs(kept: Kept, look: Begin, doubles: Start) -> None:
    one, other = await doubles(*HOSTILE), await doubles("calm")
    for double in (one, other):
        double.props["build_info"] = HOSTILE[1]
    one.on(PATH, *(streams(*told(text)) for text in HOSTILE))
    other.on(PATH, *(refuses(500, text, HOSTILE[0]) for text in HOSTILE))
    keys = {
        text: KeyConfig(key=f"key-{at}", team=text, tags=(text,)) for at, text in enumerate(HOSTILE)
    }
    tropilla = await kept(one, other, accounts={"keys": keys}, capture=CaptureConfig(enabled=True))
    ids = []
    for at, text in enumerate(HOSTILE):
        headers = {"Authorization": f"Bearer key-{at}", "x-session-id": text}
        body: dict[str, Any] = {"messages": [{"role": "user", "content": text}], "user": text}
        for model in (text, "calm", f"no {text}"):
            answer = await tropilla.ask("POST", PATH, body | {"model": model}, headers)
            ids.append(answer.headers["x-request-id"])
    seen = await look(tropilla)
    await seen.log_in()
    page = seen.page
    for place in (*PLACES, *(f"activity/{id_}" for id_ in ids[:6])):
        await seen.go(place)
        assert await page.evaluate("window.pwned") is None, place
        assert HOSTILE[4] not in [
            await link.get_attribute("href") for link in await page.locator("a").all()
        ]
    await seen.go(f"activity?q={quote(HOSTILE[2])}")
    await expect(page.get_by_label("Search")).to_have_value(HOSTILE[2])
    await seen.go(f"connect?model={quote(HOSTILE[0])}")
    assert HOSTILE[0] in await seen.main()

    # Nor what is made by hand, nor what a model answers.
    await seen.go("keys")
    await page.get_by_text("New key").click()
    await page.get_by_label("Name", exact=True).fill(HOSTILE[1] + " by hand")
    await page.get_by_role("button", name="Make the key").click()
    assert HOSTILE[1] + " by hand" in await seen.main()
    await seen.go("playground")
    await page.locator("#model").select_option(HOSTILE[0])
    await page.get_by_label("Key", exact=True).fill("key-0")
    await page.get_by_label("Your message").fill(HOSTILE[1])
    await page.get_by_role("button", name="Send").click()
    await expect(page.locator(".turn.assistant .text")).to_have_text(HOSTILE[-1])
    await expect(page.locator(".turn.user .text")).to_have_text(HOSTILE[1])
    assert await page.evaluate("window.pwned") is None
    assert seen.wrong == []


def cookie(answer: Answer) -> str:
    return answer.headers["set-cookie"].partition(";")[0]


def token(answer: Answer) -> str:
    found = re.search(rb'name="csrf" value="([0-9a-f]+)"', answer.body)
    assert found is not None
    return found[1].decode()


async def logged_in(tropilla: Served) -> tuple[dict[str, str], str]:
    """The headers of a browser that has logged in, and the token of its forms."""
    page = await tropilla.ask("GET", "/ui/login")
    form = f"csrf={token(page)}&key={ADMIN}".encode()
    told = await tropilla.ask("POST", "/ui/login", form, {"cookie": cookie(page)})
    assert told.status == 200, "the client follows to the herd, without its cookie"
    raw = await tropilla.connect()
    head = [f"Cookie: {cookie(page)}", "Content-Type: application/x-www-form-urlencoded"]
    await raw.post("/ui/login", form, *head)
    headers = {"cookie": cookie(await raw.answer())}
    herd = await tropilla.ask("GET", "/ui/herd", headers=headers)
    return headers, token(herd)


async def test_a_cookie_is_kept_from_scripts_and_from_other_sites(
    kept: Kept, double: Double
) -> None:
    tropilla = await kept(double)
    page = await tropilla.ask("GET", "/ui/login")
    told = page.headers["set-cookie"]
    for word in ("HttpOnly", "SameSite=Strict", "Path=/ui", "Max-Age="):
        assert word in told
    policy = page.headers["content-security-policy"]
    assert "unsafe" not in policy
    assert "default-src 'none'" in policy
    assert "access-control-allow-origin" not in page.headers
    assert page.headers["cache-control"] == "no-store"
    headers = {"x-forwarded-proto": "https"}
    assert (
        "; Secure"
        in (await tropilla.ask("GET", "/ui/login", headers=headers)).headers["set-cookie"]
    )


@pytest.mark.parametrize("place", ["", "/herd", "/herd/live", "/activity", "/activity/req_1",
                                   "/usage/csv", "/usage/data", "/keys", "/nothing"])  # fmt: skip
async def test_nobody_sees_a_page_without_the_admin_key(
    kept: Kept, double: Double, place: str
) -> None:
    keys = {"a": KeyConfig(key="client")}
    tropilla = await kept(double, accounts={"keys": keys}, api_keys=("static",))
    for headers in (
        {},
        {"Authorization": f"Bearer {ADMIN}"},
        {"Authorization": "Bearer static"},
        {"cookie": "tropilla_ui=admin.x.99999999999.0000"},
        {"cookie": "tropilla_ui=admin.x"},
        {"cookie": 'tropilla_ui;;=;tropilla_ui="a'},
    ):
        answer = await tropilla.ask("GET", f"/ui{place}", headers=headers)
        assert b"<h1>Log in</h1>" in answer.body
    for key in ("client", "static", "wrong"):
        page = await tropilla.ask("GET", "/ui/login")
        form = f"csrf={token(page)}&key={key}".encode()
        told = await tropilla.ask("POST", "/ui/login", form, {"cookie": cookie(page)})
        assert told.status == 403


async def test_a_form_is_taken_from_its_own_page_alone(kept: Kept, double: Double) -> None:
    tropilla = await kept(double)
    headers, good = await logged_in(tropilla)
    drain = f"/ui/herd/{tropilla.fleet.upstreams[0].number}"
    own = tropilla.url
    for form, more in (
        (b"what=drain", {}),
        (b"what=drain&csrf=0000", {}),
        (f"what=drain&csrf={good}".encode(), {"origin": "http://evil.example"}),
        (f"what=drain&csrf={good}".encode(), {"origin": "null"}),
        (f"what=drain&csrf={good}".encode(), {"sec-fetch-site": "cross-site"}),
        (f"what=drain&csrf={good}".encode(), {"origin": own, "sec-fetch-site": "same-site"}),
    ):
        assert (await tropilla.ask("POST", drain, form, headers | more)).status == 403
        assert not tropilla.fleet.upstreams[0].held_back
    form = f"what=drain&csrf={good}".encode()
    more = {"origin": own, "sec-fetch-site": "same-origin"}
    assert (await tropilla.ask("POST", drain, form, headers | more)).status == 200
    assert tropilla.fleet.upstreams[0].held_back
    # Nor is a page read by another's script; a link may lead here.
    for site, mode, status in (("cross-site", "cors", 403), ("cross-site", "navigate", 200)):
        told = {"sec-fetch-site": site, "sec-fetch-mode": mode}
        assert (await tropilla.ask("GET", "/ui/herd", headers=headers | told)).status == status


async def test_another_admin_key_ends_every_session(kept: Kept, double: Double) -> None:
    import msgspec

    tropilla = await kept(double)
    headers, _ = await logged_in(tropilla)
    assert b"<h1>Herd</h1>" in (await tropilla.ask("GET", "/ui/herd", headers=headers)).body
    config = tropilla.gateway._config
    accounts = msgspec.structs.replace(config.accounts, admin_key="another")
    tropilla.gateway.reload(msgspec.structs.replace(config, accounts=accounts))
    assert b"<h1>Log in</h1>" in (await tropilla.ask("GET", "/ui/herd", headers=headers)).body


async def test_a_gateway_without_keys_is_open_on_its_own_machine_alone(
    gateway: Serve, double: Double
) -> None:
    tropilla = await gateway(double)
    assert b"<h1>Herd</h1>" in (await tropilla.ask("GET", "/ui/herd")).body
    # A name that leads here is somebody's who may have it lead here now.
    there = {"host": f"evil.example:{tropilla.port}"}
    assert b"<h1>Log in</h1>" in (await tropilla.ask("GET", "/ui/herd", headers=there)).body
    # Keys are for the admin key alone, here too.
    page = await tropilla.ask("GET", "/ui/playground")
    headers = {"cookie": cookie(page), "x-csrf-token": "0"}
    assert (await tropilla.ask("POST", "/ui/playground/key", b"", headers)).status == 403
    other = await gateway(double, listen="0.0.0.0:0")
    assert b"<h1>Log in</h1>" in (await other.ask("GET", "/ui/herd")).body


@pytest.mark.parametrize(
    ("method", "path", "status"),
    [
        ("GET", "/ui/static/../house.py", 404),
        ("GET", "/ui/static/%2e%2e%2fhouse.py", 404),
        ("GET", "/ui/static/nothing.js", 404),
        ("GET", "/ui/activity/%00%ff", 404),
        ("GET", "/ui/connect/nobody", 404),
        ("GET", "/ui/herd/a/b/c", 404),
        ("GET", "/ui/usage?by=%27&span=-1&show=x", 404),
        ("POST", "/ui/herd/99", 403),
        ("DELETE", "/ui/herd", 405),
    ],
)
async def test_what_is_not_there_is_told_so(
    gateway: Serve, double: Double, method: str, path: str, status: int
) -> None:
    tropilla = await gateway(double)
    assert (await tropilla.ask(method, path)).status == status


async def test_a_form_that_is_no_good_is_told_so(kept: Kept, double: Double) -> None:
    tropilla = await kept(double)
    headers, good = await logged_in(tropilla)
    for fields, word in (
        ("name=", "name"),
        ("name=a&requests=many", "requests"),
        ("name=a&tokens=-1", "tokens"),
        ("name=a&budget=1e99&unit=tokens", "budget"),
        ("name=a&expires=never", "expires"),
        ("name=%ff%00", "name"),
    ):
        form = f"csrf={good}&{fields}".encode()
        answer = await tropilla.ask("POST", "/ui/keys", form, headers)
        assert answer.status == 400
        assert word in re.findall(r'role="alert">([^<]*)', answer.body.decode())[0]
    answer = await tropilla.ask(
        "POST", "/ui/keys/nobody", f"csrf={good}&what=revoke".encode(), headers
    )
    assert answer.status == 400


async def test_two_keys_of_one_name_are_told_apart(kept: Kept, double: Double) -> None:
    double.on(PATH, streams(*told("Hello")))
    tropilla = await kept(double)
    admin = {"Authorization": f"Bearer {ADMIN}"}
    ids = []
    for name in ("bob", "bob", "carol"):
        made = (await tropilla.ask("POST", "/api/keys", {"name": name}, admin)).json
        mine = {"Authorization": f"Bearer {made['key']}"}
        assert (await tropilla.ask("POST", PATH, CHAT, mine)).status == 200
        ids.append(made["id"])
        await tropilla.ask("DELETE", f"/api/keys/{made['id']}", None, admin)
    headers, _ = await logged_in(tropilla)
    sheet = await tropilla.ask("GET", "/ui/usage/csv?by=key", headers=headers)
    lines = list(csv.DictReader(io.StringIO(sheet.body.decode())))
    assert {line["key"]: line["requests"] for line in lines} == {
        f"bob ({ids[0]})": "1", f"bob ({ids[1]})": "1", "carol": "1",
    }  # fmt: skip
    activity = (await tropilla.ask("GET", "/ui/activity", headers=headers)).body.decode()
    assert f"bob ({ids[0]})" in activity
    assert f"bob ({ids[1]})" in activity
