"""The services of the embedded stack: what each runs, what it needs first, and how it shows that it is well."""

from __future__ import annotations

import hashlib
import json
import sys
import time
from collections.abc import Callable, Mapping
from datetime import datetime
from functools import partial
from pathlib import Path
from typing import NamedTuple
from urllib.parse import urlsplit

import httpx

from feature_repo.contracts import environment as names
from infra.local.airflow_home import AirflowHome
from infra.local.redis_server import Role, answers, find_server, server_command

STEADY_SECONDS = 1.5
"""How long a service must have lived before it counts as well: one that dies at once is not."""


class Service(NamedTuple):
    """One program of the stack.

    needs     names that must be well before it starts; `airflow-db` is a step, not a service
    is_well   asked again and again after the start, with the seconds since then (and by `status`, with infinity)
    before    called right before the start
    setting   environment variable that, when somebody sets it, names a server of theirs: then ours is not started
    runs_our_code  restarted when the code version or an address changes, not only when its command does
    """

    name: str
    command: list[str]
    variables: Mapping[str, str]
    is_well: Callable[[float], bool]
    needs: tuple[str, ...] = ()
    url: str | None = None
    before: Callable[[], object] | None = None
    setting: str | None = None
    runs_our_code: bool = True
    start_timeout_seconds: float = 180.0

    def fingerprint(self) -> str:
        """A hash of how it is started; a running service with another one is restarted by `up`."""
        prefixes = ("NIGHTJAR_", "AIRFLOW_", "MLFLOW_", "SPARK_", "JAVA_HOME") if self.runs_our_code else ()
        relevant = sorted((n, v) for n, v in self.variables.items() if prefixes and n.startswith(prefixes))
        return hashlib.sha256(json.dumps([self.command, relevant]).encode()).hexdigest()[:16]


NAMES = (
    "redis-log", "redis-online", "mlflow", "airflow-api", "scheduler", "dag-processor", "api", "consumer", "archiver",
    "exporter",
)  # fmt: skip
"""In the order in which they are shown; stopped in reverse."""

AIRFLOW_NAMES = ("airflow-api", "scheduler", "dag-processor")
AIRFLOW_DATABASE = "airflow-db"

PORT_OF: Mapping[str, str] = {
    "redis-log": "redis-log", "redis-online": "redis-online", "mlflow": "mlflow", "airflow-api": "airflow",
    "api": "api", "consumer": "consumer", "archiver": "archiver", "exporter": "exporter",
}  # fmt: skip
"""Service -> the name of its port."""


def build_services(home: Path, ports: Mapping[str, int], variables: Mapping[str, str]) -> dict[str, Service]:
    """Every service on these ports; `variables` is `stack_variables()`."""
    airflow = AirflowHome(home)
    airflow_url = f"http://127.0.0.1:{ports['airflow']}"
    airflow_variables = airflow.variables(variables, url=airflow_url, port=ports["airflow"])
    python = sys.executable
    services = [
        _redis("log", home, ports["redis-log"], variables),
        _redis("online", home, ports["redis-online"], variables),
        _mlflow(home, ports["mlflow"], variables),
        Service(
            "airflow-api",
            [python, "-m", "airflow", "api-server", "--host", "127.0.0.1", "--port", str(ports["airflow"])],
            airflow_variables,
            lambda _: _get(f"{airflow_url}/api/v2/monitor/health") is not None,
            needs=(AIRFLOW_DATABASE,),
            url=airflow_url,
        ),
        Service(
            "scheduler",
            [python, "-m", "airflow", "scheduler", "--skip-serve-logs"],
            airflow_variables,
            lambda since: _beats(airflow_url, "scheduler", since),
            needs=(AIRFLOW_DATABASE,),
        ),
        Service(
            "dag-processor",
            [python, "-m", "airflow", "dag-processor"],
            airflow_variables,
            lambda since: _beats(airflow_url, "dag_processor", since),
            needs=(AIRFLOW_DATABASE,),
        ),
        Service(
            "api",
            [python, "-m", "serving", "--host", "127.0.0.1", "--port", str(ports["api"]), "--workers", "2"],
            # Redis shares this machine with Spark and Airflow: their bursts shall not cost people their lists
            {"NIGHTJAR_SERVING_ONLINE_TIMEOUT_MS": "50", **variables},
            lambda _: _get(f"http://127.0.0.1:{ports['api']}/health/live") is not None,
            needs=("redis-log", "redis-online"),
            url=f"http://127.0.0.1:{ports['api']}",
        ),
        *(
            Service(
                name,
                [python, "-m", f"serving.speed.{name}", "--metrics-port", str(ports[name])],
                variables,
                partial(_shows_metrics, ports[name]),
                needs=("redis-log", "redis-online"),
                url=f"http://127.0.0.1:{ports[name]}/metrics",
            )
            for name in ("consumer", "archiver")
        ),
        Service(
            "exporter",
            [python, "-m", "infra.exporter", "--port", str(ports["exporter"])],
            variables,
            partial(_shows_metrics, ports["exporter"]),
            needs=("redis-online",),
            url=f"http://127.0.0.1:{ports['exporter']}/metrics",
        ),
    ]
    return {service.name: service for service in services}


def _redis(role: Role, home: Path, port: int, variables: Mapping[str, str]) -> Service:
    name = f"redis-{role}"
    command = server_command(
        find_server(variables), role, port=port, folder=home / name, pid_file=home / name / "redis.pid"
    )
    setting = names.REDIS_LOG_URL if role == "log" else names.REDIS_ONLINE_URL
    address = urlsplit(variables.get(setting, ""))
    return Service(
        name,
        command,
        variables,
        lambda _: answers(address.port or port, host=address.hostname or "127.0.0.1"),
        url=variables.get(setting),
        setting=setting,
        runs_our_code=False,
    )


def _mlflow(home: Path, port: int, variables: Mapping[str, str]) -> Service:
    folder = home / "mlflow"
    database = folder / "mlflow.db"
    ready = folder / "database.ready"
    url = variables[names.MLFLOW_URI]

    def drop_half_made_database() -> None:
        folder.mkdir(parents=True, exist_ok=True)
        if not ready.exists():
            for path in folder.glob("mlflow.db*"):
                path.unlink()

    def is_well(_: float) -> bool:
        well = _get(f"{url}/health") is not None
        if well and folder.is_dir() and not ready.exists():
            ready.touch()
        return well

    command = [
        sys.executable, "-m", "mlflow", "server", "--host", "127.0.0.1", "--port", str(port), "--workers", "1",
        "--backend-store-uri", f"sqlite:///{database}", "--artifacts-destination", str(folder / "artifacts"),
        "--serve-artifacts",
    ]  # fmt: skip
    return Service(
        "mlflow",
        command,
        {**variables, "MLFLOW_SERVER_ENABLE_JOB_EXECUTION": "false"},
        is_well,
        url=url,
        before=drop_half_made_database,
        setting=names.MLFLOW_URI,
        runs_our_code=False,
    )


def _shows_metrics(port: int, since: float) -> bool:
    """Whether it lived for a moment and shows its metrics."""
    return since >= STEADY_SECONDS and _get(f"http://127.0.0.1:{port}/metrics") is not None


def _get(url: str) -> httpx.Response | None:
    """The answer when it is a 200, else None."""
    try:
        response = httpx.get(url, timeout=10, trust_env=False)  # our own loopback: never through a proxy
    except httpx.HTTPError:
        return None
    return response if response.status_code == 200 else None


def _beats(airflow_url: str, component: str, since: float) -> bool:
    """Whether a component of Airflow has given a heartbeat since it was started, `since` seconds ago."""
    response = _get(f"{airflow_url}/api/v2/monitor/health")
    if response is None:
        return False
    state = response.json().get(component) or {}
    beat = state.get(f"latest_{component}_heartbeat")
    if state.get("status") != "healthy" or not beat:
        return False
    return datetime.fromisoformat(beat).timestamp() >= time.time() - since
