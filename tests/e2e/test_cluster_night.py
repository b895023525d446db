"""The same night on this machine, on a cluster, and on a cluster whose workers are killed: the same results. Nothing
that grows with people goes through a driver of the cluster."""

from __future__ import annotations

import os
from collections.abc import Mapping
from pathlib import Path

import pytest

from feature_repo.contracts import environment as names
from infra.bench.nights.cluster_night import cluster_night
from infra.local.spark_conf import SETTINGS_FILE

GUARD = Path(__file__).with_name("driver_guard")
MOST_HEARD = "256k"
"""What the driver of a cluster may hear of one Spark job: sums, names, and tables of items, of 200 here."""


def guarded(variables: Mapping[str, str]) -> dict[str, str]:
    """Those of a driver, in which the light engine can neither read nor write rows that grow with people, and which
    hears little."""
    known = variables.get("PYTHONPATH")
    usual = Path(variables["SPARK_CONF_DIR"])
    own = usual.with_name("spark-guarded")
    own.mkdir(exist_ok=True)
    text = (usual / SETTINGS_FILE).read_text()
    (own / SETTINGS_FILE).write_text(f"{text}spark.driver.maxResultSize {MOST_HEARD}\n")
    path = os.pathsep.join([str(GUARD), *([known] if known else [])])
    return {**variables, "PYTHONPATH": path, "SPARK_CONF_DIR": str(own)}


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
