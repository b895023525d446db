"""The environment of every process of a local stack, and the address book that tells others where it is.

What a person set in their own environment wins: a Redis or MLflow address given there is used, and that server is
not started.
"""

from __future__ import annotations

import json
import os
import subprocess
import sys
from collections.abc import Mapping
from pathlib import Path

from feature_repo.contracts import environment as names
from feature_repo.contracts.environment import Environment
from feature_repo.contracts.object_store import STORE_VARIABLES
from feature_repo.contracts.whole_files import write_whole
from infra.local.setup import Tools

REPOSITORY = Path(__file__).resolve().parents[2]
"""The checkout: where dags/ and the job files are."""

BOOK_FILE = "run/environment.json"
SPARK_CONNECTION = "AIRFLOW_CONN_SPARK_DEFAULT"
CLUSTER_FILE = "run/cluster.json"
"""There while a Spark cluster of this installation is up: where its master is."""

_ADDRESSES = (
    names.TENANT, names.LAKEHOUSE, names.PUBLICATIONS, names.RUNS, names.JARS, names.REDIS_LOG_URL,
    names.REDIS_ONLINE_URL, names.MLFLOW_URI, names.API_URL, names.AIRFLOW_URL,
)  # fmt: skip
_BOOK_ONLY = (names.CODE_VERSION, "JAVA_HOME", "SPARK_CONF_DIR")

SETTINGS: Mapping[str, str] = {
    "TZ": "UTC",
    "OPENBLAS_NUM_THREADS": "1",
    "OMP_NUM_THREADS": "1",
    "PYTHONUNBUFFERED": "1",
    "FEAST_USAGE": "False",
    "DO_NOT_TRACK": "true",
    "MLFLOW_DISABLE_TELEMETRY": "true",
    "SPARK_LOCAL_IP": "127.0.0.1",
    "GIT_PYTHON_REFRESH": "quiet",
    # process titles are written over the environment otherwise, and with it over what tells our processes apart
    "SPT_NOENV": "1",
}


def stack_environment(variables: Mapping[str, str] | None = None) -> Environment:
    """The places of the local stack: `variables` (default: os.environ), then its address book, then the defaults."""
    return Environment.from_mapping(known_addresses(os.environ if variables is None else variables))


def known_addresses(variables: Mapping[str, str]) -> dict[str, str]:
    """`variables` over what the address book of its NIGHTJAR_HOME says. An address set to nothing counts as unset."""
    given = {name: value for name, value in variables.items() if value or name not in _ADDRESSES}
    return {**read_book(Environment.from_mapping(given).home), **given}


def stack_variables(variables: Mapping[str, str] | None = None) -> dict[str, str]:
    """The whole environment of a child process that is to work with the local stack. Needs a stack that was started."""
    known = known_addresses(os.environ if variables is None else variables)
    environment = Environment.from_mapping(known)
    book = read_book(environment.home)
    child = {**known, **SETTINGS, **{n: book[n] for n in _BOOK_ONLY if n in book}}
    # a script's own folder for byte code is one thing, never writing any is another: every start would compile again
    child.pop("PYTHONDONTWRITEBYTECODE", None)
    programs = str(Path(sys.executable).parent)
    if programs not in child.get("PATH", "").split(os.pathsep):
        child["PATH"] = os.pathsep.join(filter(None, [programs, child.get("PATH", os.defpath)]))
    child[names.HOME] = environment.home
    for name in ("NO_PROXY", "no_proxy"):  # the parts of the stack talk to one another directly
        child[name] = ",".join(filter(None, [child.get(name), "127.0.0.1,localhost"]))
    child["PYSPARK_PYTHON"] = child["PYSPARK_DRIVER_PYTHON"] = sys.executable
    connection: dict[str, object] = {"conn_type": "spark", "host": "local[*]"}
    if master := cluster_master(environment.home):
        host, _, port = master.rpartition(":")
        connection |= {"host": host, "port": int(port)}
    child.setdefault(SPARK_CONNECTION, json.dumps(connection))
    return child


def write_book(variables: Mapping[str, str], ports: Mapping[str, int], tools: Tools) -> dict[str, str]:
    """Write the address book of a stack on these ports and return it. Addresses in `variables` take precedence."""
    local = {
        names.REDIS_LOG_URL: f"redis://127.0.0.1:{ports['redis-log']}/0",
        names.REDIS_ONLINE_URL: f"redis://127.0.0.1:{ports['redis-online']}/0",
        names.MLFLOW_URI: f"http://127.0.0.1:{ports['mlflow']}",
        names.AIRFLOW_URL: f"http://127.0.0.1:{ports['airflow']}",
        names.API_URL: f"http://127.0.0.1:{ports['api']}",
    }
    given = {name: variables[name] for name in _ADDRESSES if variables.get(name)}
    environment = Environment.from_mapping({**variables, **local, **given})
    book = {
        names.HOME: environment.home,
        names.TENANT: environment.tenant,
        names.LAKEHOUSE: environment.lakehouse,
        names.PUBLICATIONS: environment.publications,
        names.RUNS: environment.runs,
        names.JARS: environment.jars,
        **local,
        **given,
        **({n: variables[n] for n in STORE_VARIABLES if variables.get(n)} if environment.store is not None else {}),
        names.CODE_VERSION: code_version(),
        "JAVA_HOME": tools.java.home,
        "SPARK_CONF_DIR": tools.spark_conf,
    }
    write_whole(Path(environment.home) / BOOK_FILE, json.dumps(book, indent=1).encode("utf-8"))
    return book


def read_book(home: str) -> dict[str, str]:
    """The address book under a NIGHTJAR_HOME; empty before the first `up`."""
    try:
        values = json.loads((Path(home) / BOOK_FILE).read_text())
    except (OSError, ValueError):
        return {}
    return {str(name): str(value) for name, value in values.items()} if isinstance(values, dict) else {}


def cluster_master(home: str) -> str | None:
    """`spark://127.0.0.1:PORT` while a cluster of this NIGHTJAR_HOME is up."""
    try:
        return str(json.loads((Path(home) / CLUSTER_FILE).read_text())["master"])
    except (OSError, ValueError, KeyError, TypeError):
        return None


def code_version() -> str:
    """`git describe` of the checkout, marked when it has changes; the package's version where there is no git."""
    command = ["git", "-C", str(REPOSITORY), "describe", "--tags", "--always", "--dirty"]
    try:
        done = subprocess.run(command, capture_output=True, text=True, timeout=20)
        if done.returncode == 0 and done.stdout.strip():
            return done.stdout.strip()
    except (OSError, subprocess.TimeoutExpired):
        pass
    from importlib.metadata import version

    return version("nightjar")
