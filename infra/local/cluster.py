"""A Spark standalone cluster on loopback: a master and two workers of one core each, from pyspark's own folder.

While it is up, the connection `spark_default` names its master; nothing else about a night changes. Its programs are
those of the stack (same pid files, same logs), and `nightjar down` stops them with the rest.
"""

from __future__ import annotations

import json
import os
import socket
import time
from collections.abc import Mapping
from pathlib import Path
from typing import NamedTuple

import httpx
import psutil

from feature_repo.contracts.environment import Environment
from feature_repo.contracts.errors import DependencyError
from infra.local.ports import is_free
from infra.local.processes import PidFolder, is_alive
from infra.local.setup import prepare
from infra.local.variables import CLUSTER_FILE, REPOSITORY, SPARK_CONNECTION, stack_variables

MASTER = "spark-master"
WORKERS = ("spark-worker-1", "spark-worker-2")
CLUSTER_NAMES = (MASTER, *WORKERS)

USUAL_PORT = 7077
WORKER_CORES = 1
WORKER_MEMORY = "3g"
START_TIMEOUT_SECONDS = 90.0
_GRACE_SECONDS = 5.0


class Cluster(NamedTuple):
    """master: `spark://127.0.0.1:PORT`; status_url: the master's page for people, /json for programs."""

    master: str
    status_url: str


def cluster_up(variables: Mapping[str, str] | None = None) -> Cluster:
    """Start what is not running, wait until both workers have registered, and point the connection at the master.

    The stack's own processes learn of it at the next `up`. Raises DependencyError with the end of the master's log.
    """
    known = os.environ if variables is None else variables
    home = Path(Environment.from_mapping(known).home)
    prepare(known)
    pids = PidFolder(home / "run", str(home))
    found = _read(home)
    if found is None or pids.find(MASTER) is None:
        pids.stop(CLUSTER_NAMES, grace_seconds=_GRACE_SECONDS)
        port = _free_port(USUAL_PORT)
        page = _free_port(port + 1)
        found = Cluster(f"spark://127.0.0.1:{port}", f"http://127.0.0.1:{page}")
        options = ["--host", "127.0.0.1", "--port", str(port), "--webui-port", str(page)]
        _start(pids, home, known, MASTER, "org.apache.spark.deploy.master.Master", options)
        _wait(home, found, 0)
    for name in WORKERS:
        if pids.find(name) is None:
            options = [
                "--host", "127.0.0.1", "--cores", str(WORKER_CORES), "--memory", WORKER_MEMORY,
                "--work-dir", str(home / "spark" / name), "--webui-port", str(_free_port(8081)), found.master,
            ]  # fmt: skip
            _start(pids, home, known, name, "org.apache.spark.deploy.worker.Worker", options)
    _wait(home, found, len(WORKERS))
    path = home / CLUSTER_FILE
    path.write_text(json.dumps(found._asdict()))
    return found


def cluster_down(variables: Mapping[str, str] | None = None) -> list[str]:
    """Stop the cluster and point the connection back at this machine; names of what was running."""
    home = Path(Environment.from_mapping(os.environ if variables is None else variables).home)
    (home / CLUSTER_FILE).unlink(missing_ok=True)
    return PidFolder(home / "run", str(home)).stop(CLUSTER_NAMES, grace_seconds=_GRACE_SECONDS)


def find_worker(variables: Mapping[str, str], name: str) -> psutil.Process | None:
    """The running process of one worker."""
    home = Path(Environment.from_mapping(variables).home)
    return PidFolder(home / "run", str(home)).find(name)


def live_workers(cluster: Cluster) -> int:
    """How many workers the master counts as alive; -1 when it does not answer."""
    try:
        answer = httpx.get(f"{cluster.status_url}/json/", timeout=5, trust_env=False)
        workers = answer.json()["workers"]
    except (httpx.HTTPError, ValueError, KeyError):
        return -1
    return sum(worker["state"] == "ALIVE" for worker in workers)


def _read(home: Path) -> Cluster | None:
    try:
        return Cluster(**json.loads((home / CLUSTER_FILE).read_text()))
    except (OSError, ValueError, TypeError):
        return None


def _start(
    pids: PidFolder, home: Path, variables: Mapping[str, str], name: str, program: str, options: list[str]
) -> None:
    import pyspark

    folder = Path(pyspark.__file__).parent
    child = stack_variables(variables)
    child.pop(SPARK_CONNECTION, None)
    child |= {
        "SPARK_HOME": str(folder),
        "SPARK_DAEMON_MEMORY": "512m",
        # what executors run comes from this checkout, as it does on the driver
        "PYTHONPATH": os.pathsep.join(filter(None, [str(REPOSITORY), child.get("PYTHONPATH")])),
    }
    command = [str(folder / "bin" / "spark-class"), program, *options]
    pids.start(name, command, variables=child, cwd=REPOSITORY, log=home / "logs" / f"{name}.log")


def _wait(home: Path, cluster: Cluster, workers: int) -> None:
    pids = PidFolder(home / "run", str(home))
    deadline = time.monotonic() + START_TIMEOUT_SECONDS
    while live_workers(cluster) < workers:
        master = pids.find(MASTER)
        if master is None or not is_alive(master) or time.monotonic() > deadline:
            log = home / "logs" / f"{MASTER}.log"
            end = "\n".join(log.read_text(errors="replace").splitlines()[-15:]) if log.exists() else "(no log)"
            raise DependencyError(f"the Spark cluster does not come up. The end of {log}:\n{end}")
        time.sleep(0.2)


def _free_port(first: int) -> int:
    """The first free port from `first` on, else any."""
    for port in range(first, first + 100):
        if is_free(port):
            return port
    with socket.socket() as probe:
        probe.bind(("127.0.0.1", 0))
        return int(probe.getsockname()[1])
