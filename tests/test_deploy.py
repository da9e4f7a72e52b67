"""What lies in deploy/ names only what the server has: metrics, commands, settings."""

from __future__ import annotations

import json
import re
from pathlib import Path

import httpx
import pytest
import yaml

from afdc_server.service.settings import ENV_PREFIX, ServerSettings
from tests.service.world import running

DEPLOY = Path(__file__).resolve().parents[1] / "deploy"
METRIC = re.compile(r"\bafdc_[a-z_]+\b")


@pytest.fixture(scope="module")
def metrics(tmp_path_factory: pytest.TempPathFactory) -> set[str]:
    """Names of every metric that a server tells of."""
    with running(tmp_path_factory.mktemp("metrics")) as world:
        httpx.get(f"{world.address}/healthz")  # the first request to be counted
        text = httpx.get(f"{world.address}/metrics").text
    return {line.split("{")[0].split(" ")[0] for line in text.splitlines() if line and not line.startswith("#")}


def test_alerts_name_metrics_that_exist(metrics: set[str]) -> None:
    rules = yaml.safe_load((DEPLOY / "alerts.yml").read_text())["groups"][0]["rules"]
    named = {name for rule in rules for name in METRIC.findall(rule["expr"])}
    assert named <= metrics
    assert all(rule["annotations"]["summary"] for rule in rules)


def test_the_dashboard_names_metrics_that_exist(metrics: set[str]) -> None:
    panels = json.loads((DEPLOY / "grafana" / "dashboards" / "afdc.json").read_text())["panels"]
    named = {name for panel in panels for target in panel["targets"] for name in METRIC.findall(target["expr"])}
    assert named
    assert named <= metrics


def test_every_alert_has_its_place_in_the_docs() -> None:
    operations = (DEPLOY.parent / "docs" / "operations.md").read_text()
    rules = yaml.safe_load((DEPLOY / "alerts.yml").read_text())["groups"][0]["rules"]
    assert [rule["alert"] for rule in rules if rule["alert"] not in operations] == []


@pytest.mark.parametrize("name", ["compose.yaml", "Containerfile", "afdc-server.service"])
def test_variables_are_settings(name: str) -> None:
    found = re.findall(rf"{ENV_PREFIX}([A-Z_]+)", (DEPLOY / name).read_text())
    assert {one.lower().rstrip("_") for one in found} - {""} <= set(ServerSettings.model_fields)


COMPILED = ("TORCHINDUCTOR_CACHE_DIR", "TORCH_EXTENSIONS_DIR", "TRITON_CACHE_DIR", "VLLM_CACHE_ROOT")


@pytest.mark.parametrize(
    ("name", "kept"), [("Containerfile", r"VOLUME (\S+)"), ("afdc-server.service", r"AFDC_SERVICE_DATA=(\S+)")]
)
def test_compiled_code_is_loaded_from_the_data_folder(name: str, kept: str) -> None:
    """Not from /tmp: Docker mounts a tmpfs noexec, and hardened machines do."""
    text = (DEPLOY / name).read_text()
    folder = re.search(kept, text)
    assert folder
    values = dict(re.findall(r"\b([A-Z_]+)=(\S+)", text))
    assert [one for one in COMPILED if not values.get(one, "").startswith(f"{folder[1]}/compiled/")] == []


def test_the_container_writes_to_its_volume_and_tmp_alone() -> None:
    server = yaml.safe_load((DEPLOY / "compose.yaml").read_text())["services"]["server"]
    assert server["read_only"]
    assert server["tmpfs"] == ["/tmp"]  # noqa: S108 - a mount of the container
    assert [volume.split(":")[1] for volume in server["volumes"]] == ["/data"]


def test_the_compose_file_publishes_nothing_to_the_world() -> None:
    services = yaml.safe_load((DEPLOY / "compose.yaml").read_text())["services"]
    ports = [port for service in services.values() for port in service.get("ports", [])]
    assert ports
    assert all(str(port).startswith("127.0.0.1:") for port in ports)
    assert "USER afdc" in (DEPLOY / "Containerfile").read_text()


def test_no_secret_of_a_server_gets_into_the_image() -> None:
    left_out = (DEPLOY.parent / ".dockerignore").read_text().split()
    assert {".git", ".venv", "afdc-data", "runs"} <= set(left_out)
