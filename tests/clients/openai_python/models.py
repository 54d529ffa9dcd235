"""The list of models, and one of them by any name."""

from __future__ import annotations

from openai import OpenAI

from clients.openai_python.harness import ALIAS, MODEL, check


@check
def listed(client: OpenAI) -> None:
    listed = {model.id: model for model in client.models.list()}
    assert {MODEL, ALIAS, "embedder"} <= listed.keys()
    for model in listed.values():
        assert model.object == "model"
        assert model.created > 0
        assert model.owned_by


@check
def retrieved(client: OpenAI) -> None:
    assert client.models.retrieve(MODEL).id == MODEL


@check
def a_name_with_a_slash(client: OpenAI) -> None:
    assert "/" in ALIAS
    assert client.models.retrieve(ALIAS).id == ALIAS
    got = client.chat.completions.create(
        model=ALIAS, messages=[{"role": "user", "content": "Hello!"}]
    )
    assert got.model == ALIAS
