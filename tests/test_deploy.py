"""What deploy/ names is there: series, settings, files; `make deploycheck` lints the rest."""

from __future__ import annotations

import re
import shutil
import subprocess
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import msgspec
import pytest
import yaml
from prometheus_client.parser import text_string_to_metric_families

from conftest import Serve
from tropilla.config.load import load
from tropilla.observing.metrics import Metrics

DEPLOY = Path(__file__).parents[1] / "deploy"
DASHBOARD = DEPLOY / "grafana" / "dashboards" / "tropilla.json"
ALERTS = DEPLOY / "prometheus" / "alerts.yaml"
SERIES = re.compile(r"\b((?:tropilla_|llamacpp:)[a-z_:]+)(?:\{([^}]*)\})?")
GROUPS = re.compile(r"\bby \(([a-z_, ]+)\)")
LABEL = re.compile(r'([a-z_]+)(?:=~?|!=|!~)"')
OF_A_SCRAPE = {"instance", "job", "le"}


def expressions() -> Iterator[str]:
    """Every expression of the dashboard, and of the alerts."""
    dashboard = msgspec.json.decode(DASHBOARD.read_bytes())
    for panel in dashboard["panels"]:
        yield from (target["expr"] for target in panel["targets"])
    yield from (one["definition"] for one in dashboard["templating"]["list"] if "definition" in one)
    for group in yaml.safe_load(ALERTS.read_text(encoding="utf-8"))["groups"]:
        yield from (rule["expr"] for rule in group["rules"])


def own() -> dict[str, set[str]]:
    """The series that Tropilla counts, each with its labels."""
    found: dict[str, set[str]] = {}
    for collector, names in Metrics()._own._collector_to_names.items():
        labels = set(getattr(collector, "_labelnames", ()))
        found |= dict.fromkeys(names, labels)
    return found


@pytest.mark.anyio
async def test_every_series_is_there_with_its_labels(gateway: Serve, engine: str) -> None:
    tropilla = await gateway(engine)
    await tropilla.chat(max_tokens=2)
    known = own()
    told = (await tropilla.ask("GET", "/metrics")).body.decode()
    for family in text_string_to_metric_families(told):
        known.setdefault(family.name, set())
        for sample in family.samples:
            known.setdefault(sample.name, set()).update(sample.labels)
    used: set[str] = set()
    for expression in expressions():
        for name, matchers in SERIES.findall(expression):
            assert name in known, expression
            used.add(name)
            assert set(LABEL.findall(matchers)) <= known[name] | OF_A_SCRAPE, expression
        labels = {one.strip() for told in GROUPS.findall(expression) for one in told.split(",")}
        there = set().union(*(known[name] for name, _ in SERIES.findall(expression)))
        assert labels <= there | OF_A_SCRAPE, expression
    assert len(used) > 20
    # What is counted is shown, or it would not be worth counting.
    shown = {name.removesuffix("_bucket") for name in used}
    counted = {name for name in known if name.startswith("tropilla_") and name.endswith("_total")}
    assert counted <= shown


def test_panels_have_places_and_names_of_their_own() -> None:
    dashboard: dict[str, Any] = msgspec.json.decode(DASHBOARD.read_bytes())
    places: set[tuple[int, int]] = set()
    for panel in dashboard["panels"]:
        at = panel["gridPos"]
        cells = {
            (x, y)
            for x in range(at["x"], at["x"] + at["w"])
            for y in range(at["y"], at["y"] + at["h"])
        }
        assert not cells & places
        assert at["x"] + at["w"] <= 24
        places |= cells
    assert len({panel["id"] for panel in dashboard["panels"]}) == len(dashboard["panels"])


@pytest.mark.skipif(
    shutil.which("promtool") is None,
    reason="promtool is not on this machine (Debian: apt-get install prometheus)",
)
@pytest.mark.parametrize(
    "command",
    [["check", "rules", "alerts.yaml"], ["test", "rules", "alerts_test.yaml"],
     ["check", "config", "--syntax-only", "prometheus.yml"]],
)  # fmt: skip
def test_promtool_has_nothing_to_say(command: list[str]) -> None:
    told = subprocess.run(
        ["promtool", *command], cwd=ALERTS.parent, capture_output=True, check=False, text=True
    )
    assert told.returncode == 0, told.stdout + told.stderr


def test_the_settings_of_compose_are_settings() -> None:
    environment = {
        "TROPILLA_KEY": "a", "TROPILLA_ADMIN_KEY": "b", "POSTGRES_PASSWORD": "c",
        "VALKEY_PASSWORD": "d", "TROPILLA_SECRET": "e",
    }  # fmt: skip
    config = load(DEPLOY / "tropilla.yaml", environment).config
    assert config.accounts.store == "postgresql://tropilla:c@postgres/tropilla"
    assert config.accounts.shared == "valkey://:d@valkey:6379"
    compose = yaml.safe_load((DEPLOY / "compose.yaml").read_text(encoding="utf-8"))
    asked = compose["services"]["gateway"]["environment"]
    assert set(environment) <= set(asked)
    assert config.port == 8081


def test_files_that_are_mounted_and_copied_are_there() -> None:
    compose = yaml.safe_load((DEPLOY / "compose.yaml").read_text(encoding="utf-8"))
    mounted = [
        one.partition(":")[0] for service in compose["services"].values()
        for one in service.get("volumes", ()) if one.startswith("./")
    ]  # fmt: skip
    assert mounted
    assert all((DEPLOY / one).exists() for one in mounted)
    assert all((DEPLOY / one["file"]).exists() for one in compose["configs"].values())
    docker = (DEPLOY / "Dockerfile").read_text(encoding="utf-8")
    for line in re.findall(r"^COPY (?!--from)(.+)$", docker, re.MULTILINE):
        for one in line.split()[:-1]:
            assert (DEPLOY.parent / one).exists()
            ignored = (DEPLOY / "Dockerfile.dockerignore").read_text(encoding="utf-8")
            assert f"!{one}" in ignored.splitlines()
