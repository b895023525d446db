"""`python -m infra.exporter --port 9103`: /metrics about the night, on loopback unless told otherwise."""

from __future__ import annotations

import argparse
import logging
import os
import signal
import sys
import threading
from collections.abc import Iterator, Mapping
from pathlib import Path

from prometheus_client import CollectorRegistry, start_http_server
from prometheus_client.core import Metric
from prometheus_client.process_collector import ProcessCollector

from feature_repo.contracts.environment import AIRFLOW_URL, Environment
from feature_repo.contracts.errors import NightjarError
from infra.exporter.lakehouse import Lakehouse
from infra.exporter.night import run_metrics, task_metrics
from infra.exporter.served import feature_metrics, publication_metrics
from infra.exporter.snapshot import Snapshot, Source
from infra.local.airflow_api import AirflowApi
from infra.local.airflow_home import USER as LOCAL_USER
from infra.local.airflow_home import AirflowHome
from infra.local.night import last_night_of

AIRFLOW_USER = "NIGHTJAR_AIRFLOW_USER"
AIRFLOW_PASSWORD = "NIGHTJAR_AIRFLOW_PASSWORD"  # noqa: S105 - the name of a variable
"""Who asks Airflow. Without a password the one of the embedded stack is used, where there is one."""


def sources(variables: Mapping[str, str]) -> dict[str, Source]:
    """What is read, by name. Airflow only where its address and a login are known."""
    environment = Environment.from_mapping(variables)
    found: dict[str, Source] = {
        "runs": lambda: run_metrics(environment),
        "publication": lambda: publication_metrics(environment),
        "features": lambda: feature_metrics(environment),
        "lakehouse": Lakehouse(environment).metrics,
    }
    login = _airflow_login(variables, Path(environment.home))
    if login is not None:
        airflow = AirflowApi(variables[AIRFLOW_URL], *login)

        def tasks() -> Iterator[Metric]:
            return task_metrics(last_night_of(airflow))

        found["airflow"] = tasks
    return found


def _airflow_login(variables: Mapping[str, str], home: Path) -> tuple[str, str] | None:
    if not variables.get(AIRFLOW_URL):
        return None
    if variables.get(AIRFLOW_PASSWORD):
        return variables.get(AIRFLOW_USER, LOCAL_USER), variables[AIRFLOW_PASSWORD]
    local = AirflowHome(home)
    return (LOCAL_USER, local.password()) if local.folder.is_dir() else None


def main() -> int:
    """Entry point; the exit code."""
    logging.basicConfig(level=logging.WARNING, format="%(asctime)s %(name)s %(message)s")
    parser = argparse.ArgumentParser(prog="python -m infra.exporter", description="Metrics of the night.")
    parser.add_argument("--host", default="127.0.0.1", help="address to listen on (default: 127.0.0.1)")
    parser.add_argument("--port", type=int, default=9103, help="port to listen on (default: 9103)")
    parser.add_argument("--interval", type=float, default=15.0, help="seconds between refreshes (default: 15)")
    arguments = parser.parse_args()
    stopping = threading.Event()
    for number in (signal.SIGTERM, signal.SIGINT):
        signal.signal(number, lambda *_: stopping.set())
    registry = CollectorRegistry()
    ProcessCollector(registry=registry)
    try:
        snapshot = Snapshot(sources(os.environ))
        start_http_server(arguments.port, addr=arguments.host, registry=registry)
    except (NightjarError, OSError) as error:
        print(f"error {type(error).__name__}: {error}", file=sys.stderr)
        return 1
    registry.register(snapshot)
    while not stopping.is_set():
        snapshot.refresh()
        stopping.wait(arguments.interval)
    return 0


if __name__ == "__main__":
    sys.exit(main())
