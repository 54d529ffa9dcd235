"""What schemathesis is told of this gateway: a model that is there, and little work for it."""

from __future__ import annotations

import os
from typing import Any

import schemathesis  # type: ignore[import-not-found]

from fuzz.bounds import bound


@schemathesis.hook  # type: ignore[untyped-decorator]
def before_call(_context: Any, case: Any, _kwargs: dict[str, Any]) -> None:
    """Ask for what is there, and for little of it."""
    body = case.body
    if type(body) is not dict:
        return
    if type(body.get("model", "")) is str and len(body.get("model", "")) != 1:
        embeds = "embedding" in case.path.rpartition("/")[2]
        body["model"] = os.environ["FUZZ_EMBEDDER" if embeds else "FUZZ_MODEL"]
    bound(body, case.path)


@schemathesis.check  # type: ignore[untyped-decorator]
def no_failure_of_ours(_context: Any, response: Any, case: Any) -> None:
    """No 5xx, but an upstream's own answer that was only passed on, and what is not done here."""
    passed_on = "Passed on" in case.operation.tags and b'"param"' not in response.content
    assert response.status_code < 500 or response.status_code == 501 or passed_on
