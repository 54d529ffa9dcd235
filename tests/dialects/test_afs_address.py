"""AFS: where it is served, how its key is shown, and who else is found below its bases."""

from __future__ import annotations

import pytest

from tropilla.dialects import afs, openai_chat, openai_completions

PUBLIC = "https://api-ams.twcc.ai/api"
PRIVATE = "https://12345.afs.twcc.ai/text-generation/api"


@pytest.mark.parametrize(
    ("url", "dialect"),
    [
        (PUBLIC, "afs"),
        (PRIVATE, "afs"),
        ("https://203-145-216-1.ccs.twcc.ai:12345", "afs"),
        (f"{PUBLIC}/models", "openai"),
        (f"{PRIVATE}/v4/models/", "openai"),
        ("https://example.org/api", None),
        ("https://nottwcc.ai/api", None),
        ("https://twcc.ai.example.org/api", None),
    ],
)
def test_what_is_spoken_at_an_address(url: str, dialect: str | None) -> None:
    assert afs.dialect_at(url) == dialect


def test_only_public_mode_hears_which_service_is_meant() -> None:
    shown = {"X-API-KEY": "k", "X-API-HOST": "afs-inference"}
    assert afs.credentials(PUBLIC, "k") == shown
    assert afs.credentials("https://API-AMS.twcc.ai:443/api", "k") == shown
    assert afs.credentials(PRIVATE, "k") == {"X-API-KEY": "k"}
    assert afs.credentials("http://127.0.0.1:8080/api-ams.twcc.ai", "k") == {"X-API-KEY": "k"}
    assert afs.credentials(PRIVATE, None) == {}


def test_openais_paths_are_served_below_every_base_too() -> None:
    for dialect, path in ((openai_chat, "/chat/completions"), (openai_completions, "/completions")):
        first, *others = dialect.ROUTES
        assert (first.path, first.v1) == (path, True)
        assert {(route.path, route.v1) for route in others} == {
            (f"{base}/models{path}", False)
            for base in ("", "/api", "/text-generation/api", "/text-generation/api/v4")
        }
