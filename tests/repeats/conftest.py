"""Where answers are kept."""

from __future__ import annotations

from pathlib import Path

import msgspec
import pytest

from tropilla.config import AccountsConfig


@pytest.fixture(params=["memory", "sqlite"])
def kept(request: pytest.FixtureRequest, tmp_path: Path) -> AccountsConfig:
    """Where one gateway has them: what is promised holds in both."""
    if request.param == "memory":
        return AccountsConfig(store="none")
    return AccountsConfig(store=f"sqlite:///{tmp_path}/accounts.db")


@pytest.fixture
def shared(store_url: str, tmp_path: Path) -> AccountsConfig:
    """Where several gateways have them together."""
    return AccountsConfig(store=store_url, spool=tmp_path / "spool")


@pytest.fixture
def managed(shared: AccountsConfig) -> AccountsConfig:
    """The same, with somebody who gives keys."""
    return msgspec.structs.replace(
        shared, admin_key="the-admin-key", secret="a secret of 32 letters and digits"
    )
