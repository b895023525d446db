"""The configuration for containers and clusters, as far as it can be held to the code without running it."""

from __future__ import annotations

import json
import re
from dataclasses import fields
from importlib.util import find_spec
from pathlib import Path
from typing import Any

import pytest
import yaml

from feature_repo.contracts import environment as names
from feature_repo.contracts.environment import Environment
from feature_repo.contracts.object_store import ObjectStore
from infra.exporter.__main__ import AIRFLOW_PASSWORD, AIRFLOW_USER
from infra.local.redis_server import ServerBinary, server_command
from serving.settings import MULTIPROCESS_FOLDER, PREFIX, ServingSettings
from tests.conftest import ROOT

COMPOSE = ROOT / "infra" / "compose"
K8S = ROOT / "infra" / "k8s"
ONE_SHOT = {"s3-bucket", "airflow-init"}
PROFILES = {"serving", "pipeline", "monitoring", "all"}
KNOWN_VARIABLES = {
    *(v for v in vars(names).values() if isinstance(v, str)),
    *(PREFIX + field.name.upper() for field in fields(ServingSettings)),
    AIRFLOW_USER,
    AIRFLOW_PASSWORD,
}


def compose() -> dict[str, Any]:
    return yaml.safe_load((COMPOSE / "compose.yaml").read_text(encoding="utf-8"))


SERVICES: dict[str, Any] = compose()["services"]


def manifests() -> list[dict[str, Any]]:
    files = sorted(path for path in K8S.glob("*.yaml") if not path.name.startswith("values-"))
    return [one for path in files for one in yaml.safe_load_all(path.read_text(encoding="utf-8"))]


def containers() -> list[tuple[str, dict[str, Any], dict[str, Any]]]:
    """(name of the workload, pod spec, container)"""
    pods = [
        (m["metadata"]["name"], m["spec"]["template"]["spec"]) for m in manifests() if "template" in m.get("spec", {})
    ]
    return [(name, pod, container) for name, pod in pods for container in pod["containers"]]


@pytest.mark.parametrize("name", SERVICES)
def test_a_service_is_pinned_watched_unprivileged_and_on_loopback(name: str) -> None:
    service = SERVICES[name]
    assert set(service["profiles"]) <= PROFILES
    assert "all" in service["profiles"]
    image = service["image"]
    assert image.startswith("nightjar:") or (":" in image and not image.endswith(":latest"))
    if image.startswith("nightjar:"):
        assert service["cap_drop"] == ["ALL"]
    else:
        assert str(service["user"]).split(":")[0] not in ("0", "root")
    assert name in ONE_SHOT or "healthcheck" in service
    for port in service.get("ports", []):
        assert port.startswith("127.0.0.1:"), port
    for needed, condition in service.get("depends_on", {}).items():
        wanted = "service_completed_successfully" if needed in ONE_SHOT else "service_healthy"
        assert condition["condition"] in (wanted, "service_started")
        assert set(service["profiles"]) <= set(SERVICES[needed]["profiles"]), f"{name} starts without {needed}"


def test_the_image_is_not_roots_and_takes_its_packages_from_the_lock() -> None:
    lines = (COMPOSE / "Dockerfile").read_text(encoding="utf-8").splitlines()
    last_stage = lines[max(n for n, line in enumerate(lines) if line.startswith("FROM ")) :]
    assert "USER nightjar" in last_stage
    assert sum("--require-hashes" in line for line in lines) == 2


def test_no_secret_has_a_default() -> None:
    text = (COMPOSE / "compose.yaml").read_text(encoding="utf-8")
    used = set(re.findall(r"\$\{([A-Z0-9_]+)", text))
    sample = dict(
        line.split("=", 1) for line in (COMPOSE / "env.sample").read_text().splitlines() if re.match(r"[A-Z]", line)
    )
    assert set(sample) == used
    assert {v for k, v in sample.items() if k != "NIGHTJAR_TAG"} == {"change-me"}
    assert re.findall(r"\$\{(?!NIGHTJAR_TAG)[A-Z0-9_]+(?!:\?|[A-Z0-9_])", text) == []


def test_variables_and_modules_are_those_of_the_code() -> None:
    variables: set[str] = set()
    modules: set[str] = set()
    for service in SERVICES.values():
        variables |= set(service.get("environment", {}))
        command = service.get("command", [])
        modules |= {command[n + 1] for n, word in enumerate(command[:-1]) if word == "-m"}
    for _, _, container in containers():
        variables |= {one["name"] for one in container.get("env", [])}
        words = container.get("args", [])
        modules |= {words[n + 1] for n, word in enumerate(words[:-1]) if word == "-m"}
    places = next(m for m in manifests() if m["kind"] == "ConfigMap")["data"]
    variables |= set(places)
    ours = {v for v in variables if v.startswith(("NIGHTJAR_", "MLFLOW_TRACKING"))}
    assert ours <= KNOWN_VARIABLES
    assert names.REDIS_LOG_URL in ours
    assert modules == {
        "serving",
        "serving.speed.consumer",
        "serving.speed.archiver",
        "infra.exporter",
        "airflow",
        "mlflow",
    }
    assert [module for module in modules if find_spec(module) is None] == []


@pytest.mark.parametrize("role", ["log", "online"])
def test_both_roles_keep_what_the_embedded_ones_keep(role: Any, tmp_path: Path) -> None:
    local = server_command(
        ServerBinary("valkey-server", "PATH"), role, port=1, folder=tmp_path, pid_file=tmp_path / "p"
    )
    in_pod = next(container["args"] for name, _, container in containers() if name == f"redis-{role}")
    for words in (SERVICES[f"redis-{role}"]["command"], in_pod):
        for option in ("--appendonly", "--maxmemory-policy"):
            assert words[words.index(option) + 1] == local[local.index(option) + 1]
        if role == "log":
            assert words[words.index("--appendfsync") + 1] == "always"
        assert "--requirepass" in words


def test_spark_gets_the_jars_that_the_image_fetched_and_what_a_store_needs() -> None:
    lines = (COMPOSE / "spark" / "spark-defaults.conf").read_text(encoding="utf-8").splitlines()
    settings = dict(line.split(" ", 1) for line in lines if line.startswith("spark."))
    image = (COMPOSE / "Dockerfile").read_text(encoding="utf-8")
    folder = re.findall(r"NIGHTJAR_JARS=(/\S+)", image)
    assert folder == ["/opt/nightjar/jars"] * 2
    assert settings["spark.driver.extraClassPath"] == settings["spark.executor.extraClassPath"] == f"{folder[0]}/*"
    assert "spark.jars" not in settings
    store = ObjectStore("lakehouse", "http://s3:7070", "us-east-1", virtual_hosts=False)
    needed = store.spark_settings()
    assert needed.keys() == {name for name in settings if "s3a" in name}
    for name, value in needed.items():
        read = {"http://s3:7070": "${env.AWS_ENDPOINT_URL:-}", "us-east-1": "${env.AWS_REGION:-us-east-1}"}
        assert settings[name] == read.get(value, value)


def test_who_reads_tables_is_told_of_the_store_that_holds_them() -> None:
    over = yaml.safe_load((COMPOSE / "lakehouse-on-s3.yaml").read_text(encoding="utf-8"))["services"]
    readers = {name for name, service in SERVICES.items() if names.LAKEHOUSE in service.get("environment", {})}
    assert len(readers) == 10
    assert over.keys() == readers | {"s3", "s3-bucket"}
    for name in readers:
        told = over[name]["environment"]
        environment = Environment.from_mapping(told)
        assert environment.store == ObjectStore("lakehouse", "http://s3:7070", "us-east-1", virtual_hosts=False)
        assert {told["AWS_ACCESS_KEY_ID"], told["AWS_SECRET_ACCESS_KEY"]} < set(
            SERVICES["s3-bucket"]["environment"].values()
        )
        assert over[name]["build"]["args"]["LAKEHOUSE"].startswith("s3a://lakehouse")
        assert set(SERVICES[name]["profiles"]) <= set(over["s3-bucket"]["profiles"])
    assert '"lakehouse"' in SERVICES["s3-bucket"]["command"][-1]
    assert "--nometa" not in over["s3"]["command"]
    optional = {"secretRef": {"name": "nightjar-store", "optional": True}}
    pods = {name for name, _, container in containers() if optional in container.get("envFrom", [])}
    assert pods == {"api", "consumer", "archiver", "exporter", "spark-worker"}


def test_prometheus_scrapes_what_compose_starts() -> None:
    config = yaml.safe_load((ROOT / "infra" / "prometheus" / "prometheus.yml").read_text(encoding="utf-8"))
    targets = [t for job in config["scrape_configs"] for group in job["static_configs"] for t in group["targets"]]
    hosts = {target.removeprefix("redis://").split(":")[0] for target in targets}
    assert len(targets) == 9
    assert hosts - {"localhost"} <= set(SERVICES)
    ours = {target.split(":")[0]: target.split(":")[1] for target in targets if target.split(":")[0] in
            ("api", "consumer", "archiver", "exporter")}  # fmt: skip
    assert len(ours) == 4
    for name, port in ours.items():
        assert port in SERVICES[name]["command"], name
        in_pod = next(c for workload, _, c in containers() if workload == name)
        assert port in in_pod["args"]


@pytest.mark.parametrize("name", sorted({name for name, _, _ in containers()}))
def test_a_pod_is_unprivileged_limited_and_probed(name: str) -> None:
    found = [(pod, container) for workload, pod, container in containers() if workload == name]
    assert len(found) == 1
    pod, container = found[0]
    assert pod["securityContext"]["runAsNonRoot"] is True
    assert container["securityContext"]["allowPrivilegeEscalation"] is False
    assert "memory" in container["resources"]["limits"]
    assert "livenessProbe" in container or "readinessProbe" in container or name == "spark-worker"
    mounted = {mount["name"] for mount in container.get("volumeMounts", [])}
    claimed = {m["metadata"]["name"] for one in manifests() if one["metadata"]["name"] == name
               for m in one.get("spec", {}).get("volumeClaimTemplates", [])}  # fmt: skip
    assert mounted == {volume["name"] for volume in pod.get("volumes", [])} | claimed


def test_pods_that_share_a_home_do_not_share_their_counters() -> None:
    api = next(container for name, _, container in containers() if name == "api")
    assert {one["name"]: one["value"] for one in api["env"]}[MULTIPROCESS_FOLDER].startswith("/tmp/")


def test_grafana_is_given_what_it_provisions() -> None:
    mounts = {mount.split(":")[1]: mount.split(":")[0] for mount in SERVICES["grafana"]["volumes"]}
    provider = yaml.safe_load((ROOT / "infra/grafana/provisioning/dashboards/nightjar.yml").read_text())["providers"][0]
    folder = (COMPOSE / mounts[provider["options"]["path"]]).resolve()
    assert sorted(path.stem for path in folder.glob("*.json")) == ["events", "nightly", "serving"]
    home = SERVICES["grafana"]["environment"]["GF_DASHBOARDS_DEFAULT_HOME_DASHBOARD_PATH"]
    assert json.loads((folder / home.rpartition("/")[2]).read_text())["uid"] == "nightjar-serving"
