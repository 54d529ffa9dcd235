"""`/docs`: what is served, for people; nothing in it runs, or comes from elsewhere."""

from __future__ import annotations

import base64
import hashlib
import re
from html.parser import HTMLParser

import pytest

from conftest import Serve
from doubles.upstream import Double
from tropilla.config import AccountsConfig, KeyConfig
from tropilla.server.docs import page
from tropilla.server.routes import patterns, table

pytestmark = pytest.mark.anyio

VOID = {"meta", "li", "th", "td", "tr"}


class Page(HTMLParser):
    """What a page is made of."""

    def __init__(self, text: str) -> None:
        super().__init__()
        self.tags: list[str] = []
        self.links: list[str] = []
        self.open: list[str] = []
        self.feed(text)

    def handle_starttag(self, tag: str, attrs: list[tuple[str, str | None]]) -> None:
        self.tags.append(tag)
        if tag not in VOID:
            self.open.append(tag)
        for name, value in attrs:
            assert not name.startswith("on")
            if name in {"href", "src"}:
                self.links.append(value or "")

    def handle_endtag(self, tag: str) -> None:
        assert self.open.pop() == tag


async def test_every_path_is_told(gateway: Serve, double: Double) -> None:
    tropilla = await gateway(double)
    answer = await tropilla.ask("GET", "/docs")
    assert answer.headers["content-type"] == "text/html; charset=utf-8"
    text = answer.body.decode()
    for path in {**table(), **patterns()}:
        assert f"<code>{path}</code>" in text
    for snippet in (f"curl {tropilla.url}/v1/", f"base_url=&quot;{tropilla.url}/v1", "new OpenAI"):
        assert snippet in text
    assert "<li><code>m</code>" in text
    parsed = Page(text)
    assert parsed.open == []
    assert "script" not in parsed.tags
    assert all(link == "/openapi.json" or link.startswith("#") for link in parsed.links)
    ids = re.findall(r'<h2 id="([^"]+)"', text)
    assert {link[1:] for link in parsed.links if link.startswith("#")} == set(ids)


async def test_its_style_is_all_that_a_browser_may_take(gateway: Serve, double: Double) -> None:
    tropilla = await gateway(double)
    answer = await tropilla.ask("GET", "/docs")
    style = re.findall(rb"<style>(.*?)</style>", answer.body, re.DOTALL)
    digest = base64.b64encode(hashlib.sha256(style[0]).digest()).decode()
    policy = answer.headers["content-security-policy"]
    assert policy.startswith(f"default-src 'none'; style-src 'sha256-{digest}'; ")
    assert "unsafe" not in policy
    assert b"style=" not in answer.body


def test_names_of_others_are_escaped() -> None:
    text = page('"><script>x</script>', ["<img src=x onerror=y>'\"$(id)", "b"]).decode()
    parsed = Page(text)
    assert not {"script", "img"} & set(parsed.tags)
    assert "$(id)" not in re.sub(r"<li>.*?</code>", "", text)  # nothing of it stands in a command


async def test_models_are_not_for_everybody(gateway: Serve, double: Double) -> None:
    keys = {"ours": KeyConfig(key="a-key-of-ours")}
    tropilla = await gateway(double, accounts=AccountsConfig(keys=keys))
    text = (await tropilla.ask("GET", "/docs")).body.decode()
    assert "<h2>Models</h2>" not in text
    assert "&quot;MODEL&quot;" in text
