"""Run book of `rederive_features`.

**Purpose.** Computes user and item features anew for every `as_of` day in [from, to): after a change to a feature's
definition, or to have history to train on.

**Inputs.** `silver.events`, `bronze.items`, `bronze.users` and their changes at the versions that the first try pins.

**Outputs.** The partitions of those days in the feature tables of gold; `rederive.json` in the run folder with the pins
and the rows of each day. Nothing is published: neither Redis nor Feast's online store is touched, and what is served
stays.

**Schedule.** None: started by hand, or with `nightjar run rederive --from DAY --to DAY`.

**Normal duration.** Half a minute for the start of Spark, then about five seconds a day for 100,000 events.

**When it fails.**
- `error DataError`: the days are no interval, or silver does not reach that far. The message says which days there are.
  It was not retried. Run the night for the missing days first (a backfill).
- Anything else was retried twice. Days that are done are done; running again writes the same rows.

**Backfill.** This is one; give the days as parameters.

**Rollback.** Delta keeps the former partitions for 30 days: read them by version, or run again with the former code.
"""

from __future__ import annotations

from datetime import UTC, datetime, timedelta

from airflow.sdk import DAG, Param

from dags.assets import GOLD_FEATURES
from dags.job_tasks import DEFAULT_ARGS, MACROS, spark_job

PARAMS = {
    "from": Param(
        type="string",
        format="date",
        description="The first as_of day (UTC) to compute features for.",
    ),
    "to": Param(
        type="string",
        format="date",
        description="The as_of day (UTC) to end before: it is not computed itself.",
    ),
}

with DAG(
    dag_id="rederive_features",
    description="Compute the features of past days anew; publishes nothing.",
    doc_md=__doc__,
    schedule=None,
    start_date=datetime(2024, 1, 1, tzinfo=UTC),
    catchup=False,
    max_active_runs=1,
    dagrun_timeout=timedelta(hours=12),
    params=PARAMS,
    default_args=DEFAULT_ARGS,
    user_defined_macros=MACROS,
    tags=["nightjar", "backfill", "by-hand"],
) as dag:
    spark_job(
        "rederive_features",
        "--from={{ params['from'] }}",
        "--to={{ params['to'] }}",
        hours=12,
        outlets=[GOLD_FEATURES],
    )
