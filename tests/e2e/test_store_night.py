"""The same night with its tables in a folder and on an S3-like store: the same results, also when it runs again.

    python -m pytest -m soak -s tests/e2e/test_store_night.py

On moto's server; on another with NIGHTJAR_TEST_STORE=http://host:port and its keys in the usual AWS variables.
"""

from __future__ import annotations

import os
import subprocess
import sys
import time
from collections.abc import Iterator, Mapping
from contextlib import contextmanager
from pathlib import Path

import pytest

from feature_repo.contracts import environment as names
from feature_repo.contracts.environment import Environment
from feature_repo.contracts.object_store import STORE_VARIABLES
from feature_repo.contracts.run import MAINTENANCE_FILE
from feature_repo.contracts.tables import TABLES
from infra.bench.nights.small_night import imported_shop, night_hashes
from infra.importing.maintenance import maintain_imports
from infra.local.night import TASKS
from infra.local.programs import attempt
from infra.local.spark_conf import SETTINGS_FILE
from infra.local.variables import REPOSITORY
from spark_jobs.io.light_delta import version
from spark_jobs.io.run_store import read_report
from tests.object_store import test_store

EVENTS = 6_000
RUN = "night"


@pytest.mark.soak
@pytest.mark.timeout(3600)
def test_a_night_on_an_object_store_is_a_night_in_a_folder(
    tmp_path: Path, jars_folder: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    skipped = ("NIGHTJAR_", "MLFLOW_", "AIRFLOW_", "SPARK_", *STORE_VARIABLES)
    clean = {n: v for n, v in os.environ.items() if not n.startswith(skipped)}
    clean.pop("PYSPARK_SUBMIT_ARGS", None)
    clean[names.JARS] = str(jars_folder)
    with shop_in(tmp_path / "folder", clean) as (variables, as_of):
        expected = run_night(variables, as_of, "in a folder")
        pinned = versions(variables)
    assert len(expected[0]) > 12
    with test_store() as store:
        for name, value in store.variables.items():  # what this process itself asks the store with
            monkeypatch.setenv(name, value)
        lakehouse = f"s3a://{store.bucket}/shops/one"
        with shop_in(tmp_path / "store", {**clean, **store.variables, names.LAKEHOUSE: lakehouse}) as (variables, _):
            assert run_night(variables, as_of, "on the store") == expected
            assert versions(variables) == pinned
            assert run_night(variables, as_of, "on the store, again") == expected
            assert maintain_tables(variables) >= 10
            assert night_hashes(variables, as_of) == expected, "after maintenance"
        written = {key.split("/_delta_log/")[0] for key in store.keys("shops/one/default/") if "/_delta_log/" in key}
    assert len(written) == sum(number >= 0 for number in pinned.values())
    assert not (tmp_path / "store" / "lakehouse").exists()


@contextmanager
def shop_in(home: Path, variables: Mapping[str, str]) -> Iterator[tuple[Mapping[str, str], str]]:
    with imported_shop(home, variables, event_count=EVENTS, say=print) as found:
        yield found


def run_night(variables: Mapping[str, str], as_of: str, where: str) -> tuple[dict[str, str], str]:
    """All tasks of the run, one after another; (hashes, published version)."""
    log = Path(variables[names.HOME]) / "logs" / f"{RUN}.log"
    began = time.monotonic()
    took = {task: round(attempt(task, RUN, as_of, variables=variables, log=log).seconds, 1) for task in TASKS}
    print(f"{where}: {time.monotonic() - began:.0f} s {took}", flush=True)
    hashes, published = night_hashes(variables, as_of)
    print(f"{where}: version {published}, {hashes}", flush=True)
    return hashes, published


def versions(variables: Mapping[str, str]) -> dict[str, int]:
    environment = Environment.from_mapping(variables)
    return {name: version(environment, name) for name in TABLES}


def maintain_tables(variables: Mapping[str, str]) -> int:
    """Both engines' upkeep; how many tables they looked after."""
    environment = Environment.from_mapping(variables)
    settings = Path(variables["SPARK_CONF_DIR"])
    job = REPOSITORY / "spark_jobs" / "jobs" / "maintain_tables.py"
    began = time.monotonic()
    done = subprocess.run(
        [
            Path(sys.executable).parent / "spark-submit", "--master", "local[*]", "--properties-file",
            settings / SETTINGS_FILE, job, "--run-key", RUN, "--retention-days", "7",
        ],
        env={**variables, "SPARK_CONF_DIR": str(settings / "none")}, cwd=REPOSITORY, capture_output=True, text=True,
    )  # fmt: skip
    assert done.returncode == 0, done.stderr[-2000:]
    report = read_report(environment, RUN, MAINTENANCE_FILE)["tables"]
    compacted = {name: each["files_before"] - each["files_after"] for name, each in report.items()}
    imports = maintain_imports(environment, dry_run=False, retention_days=7)
    print(f"maintenance: {time.monotonic() - began:.0f} s, files fewer {compacted}", flush=True)
    return len(report) + len(imports)
