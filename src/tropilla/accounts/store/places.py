"""Where a store is that nobody has named: a file of this user's, as the system keeps such files."""

from __future__ import annotations

import os
from collections.abc import Mapping
from pathlib import Path

AUTO = "auto"


def place(store: str, environment: Mapping[str, str] = os.environ) -> str | None:
    """The address of a store by what the settings say; `None` for none."""
    match store:
        case "none":
            return None
        case "auto":
            return f"sqlite:///{state_folder(environment) / 'accounts.db'}"
    return store


def state_folder(environment: Mapping[str, str] = os.environ) -> Path:
    """Where this user's programs keep what lasts (XDG_STATE_HOME)."""
    kept = environment.get("XDG_STATE_HOME", "")
    base = Path(kept) if kept.startswith("/") else Path("~/.local/state").expanduser()
    return base / "tropilla"
