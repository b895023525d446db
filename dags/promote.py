"""Run book of `promote`.

**Purpose.** Makes a version that a person has chosen the champion of the next nights, whatever the gate thought of it,
and serves what it published while that is still warm.

**Inputs.** The registered models and their files in MLflow; the verified versions in Redis `online` with their bundles.

**Outputs.** MLflow's alias `champion` and tags on the registered version (when, by whom, why); the pointer, when the
version's publication is among the last three; a line in `audit/<tenant>.jsonl`.

**Schedule.** None: started by hand, or with `nightjar promote VERSION`, which does the same at once.

**Normal duration.** Ten seconds, most of it the start of MLflow's client.

**When it fails.**
- `error DataError`: there is no such version (the message lists those there are), or its files are missing or changed.
  Nothing was changed.
- `error DependencyError`: Redis or MLflow does not answer; retried twice. Running again for the same version changes
  nothing more.

**Backfill.** None.

**Rollback.** `rollback_recommendations`, or promote the version that was served before.
"""

from __future__ import annotations

from datetime import UTC, datetime, timedelta

from airflow.sdk import DAG, Param

from dags.assets import RECOMMENDATIONS
from dags.job_tasks import DEFAULT_ARGS, MACROS, python_job

PARAMS = {
    "version": Param(
        type="string",
        pattern=r"^([1-9]\d*|\d{4}-\d{2}-\d{2}-[0-9a-f]{8})$",
        description="A number of the registered model in MLflow, or a publication as `nightjar versions` lists it.",
    ),
    "reason": Param(
        type="string",
        minLength=3,
        maxLength=500,
        description="Why this version: it is kept with the model in MLflow.",
    ),
}

with DAG(
    dag_id="promote",
    description="Serve a version that a person has chosen, and make it the champion.",
    doc_md=__doc__,
    schedule=None,
    start_date=datetime(2024, 1, 1, tzinfo=UTC),
    catchup=False,
    max_active_runs=1,
    dagrun_timeout=timedelta(minutes=30),
    params=PARAMS,
    default_args=DEFAULT_ARGS,
    user_defined_macros=MACROS,
    tags=["nightjar", "publishes", "by-hand"],
) as dag:
    python_job(
        "promote_version",
        "--version={{ params.version }}",
        "--reason={{ params.reason }}",
        may_change=[RECOMMENDATIONS],
    )
