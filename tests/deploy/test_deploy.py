"""What deploy/ promises, checked with the programs that will read it."""

from __future__ import annotations

import json
import os
import re
import shutil
import subprocess
import sys
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import jsonschema
import prometheus_client
import pytest
import yaml

from replicator import metrics

ROOT = Path(__file__).parents[2]
DEPLOY = ROOT / "deploy"
ALERTS = DEPLOY / "prometheus" / "alerts.yml"
DASHBOARDS = sorted((DEPLOY / "grafana" / "dashboards").glob("*.json"))


def program(name: str) -> str:
    """Its path: beside this Python or on PATH. In CI nothing may be skipped for want of it."""
    beside = Path(sys.executable).parent / name
    if found := shutil.which(beside) or shutil.which(name):
        return found
    if os.environ.get("CI"):
        pytest.fail(f"{name} is not installed")
    pytest.skip(f"{name} is not installed")


def run(*command: str, cwd: Path = DEPLOY) -> None:
    done = subprocess.run(command, cwd=cwd, capture_output=True, text=True, timeout=120, check=False)
    assert done.returncode == 0, done.stdout + done.stderr


# Dockerfile


def test_dockerfile_passes_hadolint() -> None:
    run(program("hadolint"), "--failure-threshold", "info", "Dockerfile")


def test_image_runs_unprivileged_and_checks_its_health() -> None:
    final = (DEPLOY / "Dockerfile").read_text().rpartition("\nFROM ")[2]
    assert re.search(r"^USER (?!0|root)", final, re.MULTILINE)
    assert "/healthz" in final.partition("HEALTHCHECK")[2]
    assert 'ENTRYPOINT ["replicator"]' in final


def test_docker_context_holds_what_the_image_copies_and_no_settings() -> None:
    lines = (ROOT / ".dockerignore").read_text().splitlines()
    assert "*" in lines
    allowed = {line[1:] for line in lines if line.startswith("!")}
    build = (DEPLOY / "Dockerfile").read_text().rpartition("\nFROM ")[0]
    copied = {name for line in re.findall(r"^COPY (.+)$", build, re.MULTILINE) for name in line.split()[:-1]}
    assert copied == allowed
    assert not {name for name in allowed if "env" in name or "toml" in name} - {"pyproject.toml"}


@pytest.mark.parametrize("healthy, code", [(True, 0), (False, 1)])
def test_healthcheck_command_tells_healthy_from_not(healthy: bool, code: int) -> None:
    """The command of the Dockerfile itself, pointed at a real server."""
    from replicator.web import WebServer

    text = (DEPLOY / "Dockerfile").read_text()
    match = re.search(r"HEALTHCHECK [^[]*CMD (\[.*\])", text, re.DOTALL | re.MULTILINE)
    assert match is not None
    command = json.loads(match[1].splitlines()[0])
    assert command[0] == "python"
    with WebServer("127.0.0.1:0", status=dict, problems=lambda: [] if healthy else ["slot is lost"]) as server:
        check = command[2].replace("http://127.0.0.1:9187/", server.url)
        assert check != command[2]
        done = subprocess.run([sys.executable, "-c", check], capture_output=True, timeout=30, check=False)
    assert done.returncode == code


# Compose: the docker client where it has the plugin; the structure of what we use in any case.

_NAMES = {"type": "object", "additionalProperties": {"type": "string"}}
COMPOSE_SCHEMA: dict[str, Any] = {
    "type": "object",
    "additionalProperties": False,
    "required": ["services"],
    "properties": {
        "name": {"type": "string", "pattern": "^[a-z0-9][a-z0-9_-]*$"},
        "volumes": {"type": "object", "additionalProperties": {"type": ["null", "object"]}},
        "services": {
            "type": "object",
            "additionalProperties": {
                "type": "object",
                "additionalProperties": False,
                "required": ["image"],
                "properties": {
                    # A tag of its own: `latest` is another program tomorrow.
                    "image": {"type": "string", "pattern": "^(replicator|[a-z/]+:v?[0-9][0-9.]*)$"},
                    "build": {
                        "type": "object",
                        "additionalProperties": False,
                        "required": ["context", "dockerfile"],
                        "properties": {"context": {"type": "string"}, "dockerfile": {"type": "string"}},
                    },
                    "command": {"type": "array", "items": {"type": "string"}},
                    "environment": _NAMES,
                    "volumes": {"type": "array", "items": {"type": "string", "pattern": "^[^:]+:/[^:]+(:ro)?$"}},
                    # Published on the loopback interface alone.
                    "ports": {"type": "array", "items": {"type": "string", "pattern": r"^127\.0\.0\.1:\d+:\d+$"}},
                    "depends_on": {
                        "oneOf": [
                            {"type": "array", "items": {"type": "string"}},
                            {
                                "type": "object",
                                "additionalProperties": {
                                    "type": "object",
                                    "properties": {"condition": {"enum": ["service_healthy", "service_started"]}},
                                    "required": ["condition"],
                                },
                            },
                        ]
                    },
                    "healthcheck": {
                        "type": "object",
                        "additionalProperties": False,
                        "required": ["test"],
                        "properties": {
                            "test": {"type": "array", "prefixItems": [{"enum": ["CMD", "CMD-SHELL"]}]},
                            "interval": {"type": "string"},
                            "timeout": {"type": "string"},
                            "retries": {"type": "integer"},
                        },
                    },
                    "restart": {"enum": ["unless-stopped", "on-failure"]},
                    "stop_grace_period": {"type": "string", "pattern": r"^\d+s$"},
                    "read_only": {"type": "boolean"},
                    "cap_drop": {"type": "array", "items": {"type": "string"}},
                    "security_opt": {"type": "array", "items": {"type": "string"}},
                    "tmpfs": {"type": "array", "items": {"type": "string"}},
                },
            },
        },
    },
}


@pytest.fixture(scope="module")
def compose() -> dict[str, Any]:
    document = yaml.safe_load((DEPLOY / "compose.yaml").read_text())
    assert isinstance(document, dict)
    return document


def test_compose_has_the_structure_of_the_specification(compose: dict[str, Any]) -> None:
    jsonschema.Draft202012Validator(COMPOSE_SCHEMA).validate(compose)


def test_compose_passes_docker(tmp_path: Path) -> None:
    docker = shutil.which("docker")
    if docker is None or subprocess.run([docker, "compose", "version"], capture_output=True, check=False).returncode:
        pytest.skip("docker compose is not installed; the structure is checked all the same")
    env = tmp_path / "env"
    env.write_text("SOURCE_PASSWORD=a\nTARGET_PASSWORD=b\nGRAFANA_PASSWORD=c\n")
    run(docker, "compose", "--env-file", str(env), "config", "--quiet")


def test_compose_refers_to_what_exists(compose: dict[str, Any]) -> None:
    services = compose["services"]
    assert {"source", "target", "replicator", "prometheus", "grafana"} <= services.keys()
    for service in services.values():
        assert set(service.get("depends_on", ())) <= services.keys()
        for volume in service.get("volumes", ()):
            origin = volume.split(":")[0]
            assert (DEPLOY / origin).exists() if origin.startswith(".") else origin in compose["volumes"], volume
        if build := service.get("build"):
            assert (DEPLOY / build["context"] / build["dockerfile"]).is_file()
    assert "wal_level=logical" in services["source"]["command"]


def test_no_password_is_committed(compose: dict[str, Any]) -> None:
    """Each comes from .env, and compose stops with a message where it is missing."""
    wanted = set()
    for service in compose["services"].values():
        for name, value in service.get("environment", {}).items():
            if "PASSWORD" in name or "DSN" in name:
                found = re.search(r"\$\{(\w+):\?set it in \.env\}", value)
                assert found is not None, name
                wanted.add(found[1])
                assert re.fullmatch(r"(postgresql://postgres:)?\$\{[^}]+\}(@\w+:5432/app)?", value), name
    example = dict(re.findall(r"^(\w+)=(.*)$", (DEPLOY / ".env.example").read_text(), re.MULTILINE))
    assert example == dict.fromkeys(wanted, "")


# Prometheus and Grafana


def test_prometheus_config_and_rules_are_valid() -> None:
    run(program("promtool"), "check", "config", "prometheus.yml", cwd=DEPLOY / "prometheus")
    run(program("promtool"), "check", "rules", "alerts.yml", cwd=DEPLOY / "prometheus")


def test_alerts_fire_when_they_should_and_only_then() -> None:
    run(program("promtool"), "test", "rules", "alerts_test.yml", cwd=DEPLOY / "prometheus")


def rules() -> Iterator[dict[str, Any]]:
    for group in yaml.safe_load(ALERTS.read_text())["groups"]:
        yield from group["rules"]


def test_every_alert_says_what_to_do_and_has_a_scenario() -> None:
    scenarios = (DEPLOY / "prometheus" / "alerts_test.yml").read_text()
    for rule in rules():
        assert rule["labels"]["severity"] in ("page", "ticket")
        assert len(rule["annotations"]["summary"]) > 20
        assert len(rule["annotations"]["description"]) > 80, f"{rule['alert']}: more of a runbook, please"
        assert f'alertname="{rule["alert"]}"' in scenarios, f"{rule['alert']} never fires in alerts_test.yml"


def expressions() -> list[tuple[str, str]]:
    found = [(rule["alert"], rule["expr"]) for rule in rules()]
    for path in DASHBOARDS:
        for panel in json.loads(path.read_text())["panels"]:
            found += [(f"{path.name}: {panel['title']}", target["expr"]) for target in panel["targets"]]
    return found


def test_every_expression_asks_for_series_that_exist() -> None:
    """Names, labels and the values of labels, held against a real exposition."""
    metrics.init_tables(["t"])
    metrics.init_maps(["m"])
    series: dict[str, dict[str, set[str]]] = {}
    for line in prometheus_client.generate_latest().decode().splitlines():
        if match := re.match(r"(replicator_\w+)(?:\{(.*)\})? ", line):
            labels = series.setdefault(match[1], {})
            for label, value in re.findall(r'(\w+)="([^"]*)"', match[2] or ""):
                labels.setdefault(label, set()).add(value)
    asked = 0
    for where, expression in expressions():
        for name, selector in re.findall(r"(replicator_\w+)(?:\{([^}]*)\})?", expression):
            asked += 1
            assert name in series, f"{where}: no metric {name}"
            for label, _, value in re.findall(r'(\w+)(=~|!=|=)"([^"]*)"', selector):
                assert label in series[name], f"{where}: {name} has no label {label}"
                assert set(value.split("|")) <= series[name][label], f"{where}: {name} is never {label}={value}"
        for label in re.findall(r"by \((\w+)\)", expression):
            assert label in {"le", *(each for labels in series.values() for each in labels)}, f"{where}: {label}"
    assert asked > 30


@pytest.mark.parametrize("path", DASHBOARDS, ids=lambda path: path.name)
def test_dashboard_stands_on_the_provisioned_data_source(path: Path, tmp_path: Path) -> None:
    dashboard = json.loads(path.read_text())
    source = yaml.safe_load((DEPLOY / "grafana/provisioning/datasources/prometheus.yaml").read_text())
    uid = source["datasources"][0]["uid"]
    assert {panel["datasource"]["uid"] for panel in dashboard["panels"]} == {uid}
    ids = [panel["id"] for panel in dashboard["panels"]]
    assert len(set(ids)) == len(ids)
    places = [panel["gridPos"] for panel in dashboard["panels"]]
    for i, a in enumerate(places):
        for b in places[:i]:
            apart_x = a["x"] + a["w"] <= b["x"] or b["x"] + b["w"] <= a["x"]
            apart_y = a["y"] + a["h"] <= b["y"] or b["y"] + b["h"] <= a["y"]
            assert apart_x or apart_y, (a, b)
    # promtool parses an expression as PromQL only inside a rule.
    rule = [{"record": f"check_{i}", "expr": expr} for i, (_, expr) in enumerate(expressions())]
    (tmp_path / "rules.yml").write_text(yaml.safe_dump({"groups": [{"name": "dashboard", "rules": rule}]}))
    run(program("promtool"), "check", "rules", str(tmp_path / "rules.yml"))


def test_grafana_finds_the_dashboards_where_compose_mounts_them(compose: dict[str, Any]) -> None:
    provider = yaml.safe_load((DEPLOY / "grafana/provisioning/dashboards/replicator.yaml").read_text())
    path = provider["providers"][0]["options"]["path"]
    grafana = compose["services"]["grafana"]
    assert f"./grafana/dashboards:{path}:ro" in grafana["volumes"]
    assert grafana["environment"]["GF_DASHBOARDS_DEFAULT_HOME_DASHBOARD_PATH"] == f"{path}/{DASHBOARDS[0].name}"
