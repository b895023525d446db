"""Every DAG of the folder: which there are, their tasks, run books, owners, parameters, assets; nothing heavy."""

from __future__ import annotations

import importlib
import json
import os
import subprocess
import sys
from copy import copy
from datetime import timedelta
from pathlib import Path
from typing import Any

import pytest

from infra.local.night import TASKS as NIGHT_TASKS

ROOT = Path(__file__).parents[2]

TASKS_OF = {
    "maintain_tables": {"maintain_tables", "maintain_imports", "maintain_archive"},
    "nightly_recommendations": set(NIGHT_TASKS),
    "promote": {"promote_version"},
    "rederive_features": {"rederive_features"},
    "rollback_recommendations": {"rollback_version"},
    "sync_catalogue": {"sync_inbox"},
}
PARAMETERS = {
    "maintain_tables": 2, "nightly_recommendations": 14, "promote": 2, "rederive_features": 2,
    "rollback_recommendations": 2, "sync_catalogue": 0,
}  # fmt: skip
"""How many each DAG has."""

RUN_BOOK = ("Purpose", "Inputs", "Outputs", "Schedule", "Normal duration", "When it fails", "Backfill", "Rollback")

READ_THE_FOLDER = """
import json, sys
from airflow.dag_processing.dagbag import DagBag
bag = DagBag(sys.argv[1])
heavy = [m for m in ("pyspark", "pandas", "numpy", "mlflow", "feast", "deltalake", "redis") if m in sys.modules]
seconds = {s.file: s.duration.total_seconds() for s in bag.dagbag_stats}
tasks = {dag_id: sorted(t.task_id for t in dag.tasks) for dag_id, dag in bag.dags.items()}
print(json.dumps({"tasks": tasks, "errors": bag.import_errors, "heavy": heavy, "seconds": seconds}))
"""


@pytest.fixture(params=sorted(TASKS_OF))
def dag(request: pytest.FixtureRequest, airflow_home: Path) -> Any:
    """Each DAG in turn."""
    return load(request.param)


def load(dag_id: str) -> Any:
    return importlib.import_module(f"dags.{dag_id}").dag


def test_the_folder_holds_exactly_these_dags_and_imports_nothing_heavy(
    airflow_home: Path, record_property: Any
) -> None:
    done = subprocess.run(
        [sys.executable, "-c", READ_THE_FOLDER, str(ROOT / "dags")],
        env={**os.environ, "AIRFLOW_HOME": str(airflow_home)},
        capture_output=True,
        text=True,
        timeout=120,
    )
    assert done.returncode == 0, done.stderr[-2000:]
    found = json.loads(done.stdout.splitlines()[-1])
    for file, seconds in found["seconds"].items():
        record_property(f"parse_seconds {file}", seconds)
        print(f"parsed {file} in {seconds:.3f} s")
    assert found["errors"] == {}
    assert found["tasks"] == {dag_id: sorted(tasks) for dag_id, tasks in TASKS_OF.items()}
    assert found["heavy"] == []


def test_the_file_of_a_dag_is_named_like_it(dag: Any) -> None:
    assert Path(dag.fileloc).stem == dag.dag_id


def test_a_person_finds_owner_tags_description_and_run_book(dag: Any) -> None:
    assert {task.owner for task in dag.tasks} == {"nightjar"}
    assert "nightjar" in dag.tags
    assert len(dag.tags) >= 2
    assert dag.description
    assert dag.doc_md.startswith(f"Run book of `{dag.dag_id}`.")
    found = [part for part in RUN_BOOK if f"**{part}.**" in dag.doc_md]
    assert tuple(found) == RUN_BOOK
    positions = [dag.doc_md.index(f"**{part}.**") for part in RUN_BOOK]
    assert positions == sorted(positions)


def test_no_run_lasts_for_ever_or_beside_another(dag: Any) -> None:
    assert dag.max_active_runs == 1
    assert dag.catchup is False
    assert dag.dagrun_timeout is not None
    for task in dag.tasks:
        assert (task.retries, task.retry_delay) == (2, timedelta(seconds=10))
        assert timedelta() < task.execution_timeout <= dag.dagrun_timeout


def test_every_parameter_says_what_it_is_and_what_it_may_be(dag: Any) -> None:
    assert len(dag.params) == PARAMETERS[dag.dag_id]
    for name in dag.params:
        param = dag.params.get_param(name)
        assert param.description, name
        assert len(param.description) > 20, name
        assert {"type", "enum"} & set(param.schema), name


@pytest.mark.parametrize(
    ("dag_id", "name", "good", "bad"),
    [
        ("maintain_tables", "dry_run", True, "maybe"),
        ("maintain_tables", "retention_days", 7, 6),
        ("maintain_tables", "retention_days", 30, 31),
        ("promote", "version", "2024-03-08-0a1b2c3d", "latest"),
        ("promote", "version", "12", "0"),
        ("promote", "reason", "looks better", ""),
        ("rederive_features", "from", "2024-03-01", "yesterday"),
        ("rederive_features", "to", "2024-03-08", "8.3.2024"),
        ("rollback_recommendations", "version", None, "2024-03-08"),
        ("rollback_recommendations", "reason", "", None),
    ],
)
def test_params_take_good_values_and_refuse_bad_ones(
    airflow_home: Path, dag_id: str, name: str, good: object, bad: object
) -> None:
    from airflow.sdk.exceptions import ParamValidationError

    param = copy(load(dag_id).params.get_param(name))  # resolve() keeps the value
    assert param.resolve(good) == good
    with pytest.raises(ParamValidationError):
        param.resolve(bad)


@pytest.mark.parametrize(
    ("dag_id", "name"),
    [("promote", "version"), ("promote", "reason"), ("rederive_features", "from"), ("rederive_features", "to")],
)
def test_what_only_a_person_can_know_has_no_default(airflow_home: Path, dag_id: str, name: str) -> None:
    from airflow.sdk.exceptions import ParamValidationError

    with pytest.raises(ParamValidationError):
        copy(load(dag_id).params.get_param(name)).resolve()


def test_assets_connect_the_dags_without_a_loop(airflow_home: Path) -> None:
    from airflow.sdk import Asset

    writes: dict[str, set[str]] = {}
    started_by: dict[str, set[str]] = {}
    reads: dict[str, set[str]] = {}
    for dag_id in TASKS_OF:
        dag = load(dag_id)
        writes[dag_id] = {o.name for t in dag.tasks for o in t.outlets if isinstance(o, Asset)}
        writes[dag_id] |= {name for t in dag.tasks for name in getattr(t, "assets", {})}
        reads[dag_id] = {i.name for t in dag.tasks for i in t.inlets if isinstance(i, Asset)}
        condition = getattr(dag.timetable, "asset_condition", None)
        started_by[dag_id] = {a.name for a in condition.objects} if condition else set()
    assert writes == {
        "maintain_tables": set(),
        "nightly_recommendations": {"gold_features", "night_tables", "recommendations"},
        "promote": {"recommendations"},
        "rederive_features": {"gold_features"},
        "rollback_recommendations": {"recommendations"},
        "sync_catalogue": {"catalogue"},
    }
    assert {d: names for d, names in started_by.items() if names} == {"maintain_tables": {"night_tables"}}
    assert {d: names for d, names in reads.items() if names} == {"nightly_recommendations": {"catalogue"}}


@pytest.mark.parametrize(
    ("dag_id", "expression"), [("nightly_recommendations", "0 0 * * *"), ("sync_catalogue", "40 * * * *")]
)
def test_what_starts_by_the_clock(airflow_home: Path, dag_id: str, expression: str) -> None:
    dag = load(dag_id)
    assert type(dag.timetable).__name__ == "CronDataIntervalTimetable"
    assert (dag.timetable.expression, str(dag.timetable.timezone)) == (expression, "UTC")


def test_maintenance_shares_the_pool_of_the_night(airflow_home: Path) -> None:
    pools = {t.task_id: t.pool for d in TASKS_OF for t in load(d).tasks if hasattr(t, "application")}
    assert len(pools) == 6
    assert set(pools.values()) == {"spark"}
