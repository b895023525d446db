"""The same night with its tables in a folder and on an S3-like store: the same results, also when it runs again.

    python -m pytest -m soak -s tests/e2e/test_store_night.py

On moto's server; on another with NIGHTJAR_TEST_STORE=http://host:port and its keys in the usual AWS variables.
"""

from __future__ import annotations

import os
import time
from collections.abc import Mapping
from pathlib import Path

import pytest

from feature_repo.contracts import environment as names
from feature_repo.contracts.environment import Environment
from feature_repo.contracts.object_store import STORE_VARIABLES
from feature_repo.contracts.tables import TABLES
from infra.bench.nights.small_night import imported_shop, night_hashes
from infra.local.night import TASKS
from infra.local.programs import attempt
from spark_jobs.io.light_delta import version
from tests.object_store import test_store

MAINTENANCE = "maintain_tables"


@pytest.mark.soak
@pytest.mark.timeout(3600)
def test_a_night_on_an_object_store_is_a_night_in_a_folder(tmp_path: Path, jars_folder: Path) -> None:
    skipped = ("NIGHTJAR_", "MLFLOW_", "AIRFLOW_", "SPARK_", *STORE_VARIABLES)
    clean = {n: v for n, v in os.environ.items() if not n.startswith(skipped)}
    clean.pop("PYSPARK_SUBMIT_ARGS", None)
    clean[names.JARS] = str(jars_folder)
    folder = _nights(tmp_path / "folder", clean, "in a folder", maintained=False)
    with test_store() as store:
        there = f"s3a://{store.bucket}/shops/one"
        on_store = _nights(
            tmp_path / "store", {**clean, **store.variables, names.LAKEHOUSE: there}, "on the store", maintained=True
        )
        stored = store.keys("shops/one/default/")
    assert len(folder[0][0]) > 12
    for number, hashes in enumerate(on_store):
        assert hashes == folder[0], f"night {number} on the store"
    assert folder[1] == folder[0]
    assert sum("/_delta_log/" in key for key in stored) > 20
    assert not list((tmp_path / "store" / "lakehouse").glob("**/*.parquet")), "nothing of a table lies in the home"


def _nights(
    home: Path, variables: Mapping[str, str], where: str, *, maintained: bool
) -> list[tuple[dict[str, str], str]]:
    """(hashes, published version) after the first night and after the same tasks again (and a compaction)."""
    with imported_shop(home, variables, event_count=6_000, say=print) as (base, as_of):
        for name in ("AWS_ACCESS_KEY_ID", "AWS_SECRET_ACCESS_KEY", "AWS_EC2_METADATA_DISABLED"):
            if name in variables:
                os.environ[name] = variables[name]
        environment = Environment.from_mapping(base)
        found = []
        for number in range(2):
            began = time.monotonic()
            took = {}
            for task in TASKS:
                done = attempt(task, "night", as_of, variables=base, log=home / "logs" / "night.log")
                took[task] = round(done.seconds, 1)
            print(f"{where}, run {number}: {time.monotonic() - began:.0f} s, {took}")
            found.append(night_hashes(base, as_of))
        print(f"{where}: version {found[0][1]}, hashes {found[0][0]}")
        print({name: version(environment, name) for name in TABLES})
    return found
