"""`make deploycheck`: lint all that is in deploy/, by what can be had on this machine.

Helm itself renders the chart, as its own library; Kubernetes' schemas judge what comes out, and
Tropilla its settings in it. What is not on this machine is said, and is no failure.
"""

from __future__ import annotations

import shutil
import subprocess
import sys
import tempfile
from collections.abc import Iterator
from importlib import import_module
from pathlib import Path
from typing import Any

import yaml

ROOT = Path(__file__).parents[2]
DEPLOY = ROOT / "deploy"
CHART = DEPLOY / "helm" / "tropilla"
TOOLS = ROOT / ".venvs" / "deploy" / "bin"
TROPILLA = ROOT / ".venv" / "bin" / "tropilla"
KUBERNETES = ("1.27", "1.34")
"""The oldest that the chart says it is for, and a new one."""
VALUES: dict[str, dict[str, Any]] = {
    "as it comes": {},
    "with everything": {
        "secretName": "tropilla", "restartOnConfigChange": True,
        "autoscaling": {"enabled": True}, "networkPolicy": {"enabled": True, "from": [
            {"namespaceSelector": {"matchLabels": {"name": "clients"}}}]},
        "serviceMonitor": {"enabled": True, "keyName": "TROPILLA_ADMIN_KEY"},
        "ingress": {"enabled": True, "host": "llm.example.com", "className": "nginx",
                    "tlsSecretName": "tls"},
        "podAnnotations": {"a": "b"}, "nodeSelector": {"a": "b"},
        "service": {"annotations": {"a": "b"}},
        "tolerations": [{"key": "a", "operator": "Exists"}],
        "imagePullSecrets": [{"name": "r"}],
        "config": {"api_keys": ["${TROPILLA_KEY}"], "workers": 2},
    },
    "least": {"podDisruptionBudget": {"enabled": False}, "replicaCount": 1},
}  # fmt: skip


class Failed(Exception):  # noqa: N818 - what was found, no failure of this
    """Something in deploy/ is wrong."""


def run(
    *command: str | Path, environment: dict[str, str] | None = None, silent: bool = False
) -> None:
    """Run a tool; one that is `silent` where all is well has nothing to say.

    Raises:
        Failed: it found something.
    """
    told = subprocess.run(  # noqa: S603 - the tools of the lock
        list(map(str, command)), cwd=DEPLOY, env=environment, check=False,
        stdout=subprocess.PIPE, stderr=subprocess.STDOUT, text=True,
    )  # fmt: skip
    if told.returncode or (silent and told.stdout):
        raise Failed(told.stdout)


def dockerfile() -> str:
    """The Dockerfile, by hadolint."""
    run(TOOLS / "hadolint", "Dockerfile")
    return "hadolint: Dockerfile"


def compose() -> str:
    """compose.yaml, by the schema of the Compose specification."""
    run(TOOLS / "check-jsonschema", "--builtin-schema", "vendor.compose-spec", "compose.yaml")
    return "compose-spec's schema: compose.yaml"


def texts() -> str:
    """All YAML, by yamllint."""
    run(TOOLS / "yamllint", "--strict", ".")
    return "yamllint: all YAML but the chart's templates"


def rules() -> str:
    """Prometheus' configuration and alerts, by promtool."""
    if shutil.which("promtool") is None:
        return "NOT RUN: promtool is not here (Debian: apt-get install prometheus)"
    folder = DEPLOY / "prometheus"
    run("promtool", "check", "rules", folder / "alerts.yaml")
    run("promtool", "test", "rules", folder / "alerts_test.yaml")
    run("promtool", "check", "config", "--syntax-only", folder / "prometheus.yml")
    return "promtool: alerts, their tests, prometheus.yml"


def unit() -> str:
    """The unit, by systemd."""
    if shutil.which("systemd-analyze") is None:
        return "NOT RUN: systemd-analyze is not here"
    with tempfile.TemporaryDirectory() as folder:
        # It minds that the program is not there.
        told = (DEPLOY / "systemd" / "tropilla.service").read_text(encoding="utf-8")
        path = Path(folder, "tropilla.service")
        path.write_text(told.replace("/opt/tropilla/bin/tropilla", "/bin/true"), encoding="utf-8")
        run("systemd-analyze", "verify", path, silent=True)
        run("systemd-analyze", "security", "--offline=true", "--threshold=20", path)
    return "systemd-analyze: verify, and an exposure below 2.0"


def settings() -> str:
    """The settings of compose.yaml, by Tropilla."""
    named = ("TROPILLA_KEY", "TROPILLA_ADMIN_KEY", "TROPILLA_SECRET", "POSTGRES_PASSWORD")
    environment = dict.fromkeys((*named, "VALKEY_PASSWORD"), "abc")
    run(TROPILLA, "config", "check", "tropilla.yaml", environment=environment)
    return "tropilla config check: tropilla.yaml"


def chart() -> str:
    """The chart, by Helm, by Kubernetes' schemas, and by Tropilla."""
    helm = import_module("helm_python")  # only this check has it

    found = helm.lint(str(CHART))
    if bad := [one for one in _messages(found) if "ERROR" in one or "WARNING" in one]:
        raise Failed("\n".join(bad))
    kinds: set[str] = set()
    for what, values in VALUES.items():
        with helm.Chart.load(str(CHART)) as loaded:
            rendered = loaded.render(values, name="gw", namespace="llm")
        for one in _documents(rendered.values()):
            kinds.add(one["kind"])
            _judge(one, what)
    return f"Helm {helm.helm_sdk_version()} and Kubernetes' schemas: {', '.join(sorted(kinds))}"


def _messages(found: Any) -> list[str]:
    return [str(one) for one in getattr(found, "messages", found)]


def _documents(texts: Any) -> Iterator[dict[str, Any]]:
    for text in texts:
        yield from (one for one in yaml.safe_load_all(text) if one)


def _judge(one: dict[str, Any], what: str) -> None:
    with tempfile.TemporaryDirectory() as folder:
        path = Path(folder, "one.yaml")
        if one["kind"] == "ConfigMap":
            path.write_text(one["data"]["tropilla.yaml"], encoding="utf-8")
            run(TROPILLA, "config", "check", path, environment={"TROPILLA_KEY": "abc"})
        if one["apiVersion"].startswith("monitoring.coreos.com/"):
            return  # the operator's own, of which Kubernetes has no schema
        path.write_text(yaml.safe_dump(one), encoding="utf-8")
        for version in KUBERNETES:
            try:
                run(TOOLS / "kubernetes-validate", "--strict", "-k", version, path)
            except Failed as error:
                raise Failed(f"{what}, {one['kind']}, Kubernetes {version}: {error}") from None


def main() -> int:
    """Run every check; whether one has found something."""
    failed = 0
    for check in (dockerfile, compose, texts, rules, unit, settings, chart):
        try:
            print(f"ok      {check()}".replace("ok      NOT RUN", "NOT RUN"))
        except Failed as error:
            failed += 1
            print(f"FAILED  {check.__doc__}\n{error}")
    return int(failed > 0)


if __name__ == "__main__":
    sys.exit(main())
