"""The same night on this machine, on a cluster, and on a cluster whose workers are killed: the same results."""

from __future__ import annotations

import os
from collections.abc import Mapping
from pathlib import Path

import pytest

from feature_repo.contracts import environment as names
from infra.bench.nights.cluster_night import cluster_night

GUARD = Path(__file__).with_name("driver_guard")


def guarded(variables: Mapping[str, str]) -> dict[str, str]:
    """Those of a driver, in which the light engine can neither read nor write rows that grow with people."""
    known = variables.get("PYTHONPATH")
    return {**variables, "PYTHONPATH": os.pathsep.join([str(GUARD), *([known] if known else [])])}


@pytest.mark.soak
@pytest.mark.timeout(3600)
def test_a_cluster_night_is_a_local_night(tmp_path: Path, jars_folder: Path) -> None:
    moved = {n: v for n, v in os.environ.items() if not n.startswith(("NIGHTJAR_", "MLFLOW_", "AIRFLOW_", "SPARK_"))}
    moved.pop("PYSPARK_SUBMIT_ARGS", None)
    report = cluster_night(
        tmp_path / "home",
        {**moved, names.JARS: str(jars_folder)},
        event_count=6_000,
        say=lambda text: print(text),
        of_drivers=guarded,
    )
    assert report["workers_killed"] == 2
    assert report["compared"] > 12
    assert report["identical"], report["differing"]
