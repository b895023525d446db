"""Run book of `rollback_recommendations`.

**Purpose.** Serves an earlier version of the recommendations again: one pointer moves, nothing is computed or copied.

**Inputs.** The verified versions in Redis `online` (the last three) and their bundles.

**Outputs.** The pointer; MLflow's alias `champion`; `rollback.json` in the run folder: what was served, what is, why.

**Schedule.** None: started by hand, or with `nightjar rollback`, which does the same at once without Airflow.

**Normal duration.** Three seconds; the pointer itself moves within milliseconds of the start of the job.

**When it fails.**
- `error DataError`: there is no such version, it was not verified, its bundle is gone, or it is served already. The
  message lists the versions there are. Nothing was changed.
- `error DependencyError`: Redis does not answer; retried twice. When MLflow alone is silent the rollback stands and its
  log says so: the pointer is the truth.
- Running the task again never rolls back a second time: the first try wrote down its target.

**Backfill.** None.

**Rollback.** Run it again with the version that `rollback.json` calls `previous`.
"""

from __future__ import annotations

from datetime import UTC, datetime, timedelta

from airflow.sdk import DAG, Param

from dags.assets import RECOMMENDATIONS
from dags.job_tasks import DEFAULT_ARGS, MACROS, python_job

PARAMS = {
    "version": Param(
        None,
        type=["null", "string"],
        pattern=r"^\d{4}-\d{2}-\d{2}-[0-9a-f]{8}$",
        description="The version to serve, as `nightjar versions` lists it. Empty: the one served before this one.",
    ),
    "reason": Param(
        "",
        type="string",
        maxLength=500,
        description="Why, for whoever reads the run later.",
    ),
}

with DAG(
    dag_id="rollback_recommendations",
    description="Serve an earlier version again.",
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
        "rollback_version",
        "--version={{ params.version or '' }}",
        "--reason={{ params.reason }}",
        may_change=[RECOMMENDATIONS],
    )
