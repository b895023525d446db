"""Run book of `nightly_recommendations`.

**Purpose.** Turns the events up to `as_of` into features, trains and compares the models, lets the gate decide, scores
every active user, and publishes one version of recommendations.

**Inputs.** The Delta tables `bronze.events`, `bronze.item_changes` and `bronze.user_changes` (archiver),
`bronze.events_import`, `bronze.items` and `bronze.users` (importer), `bronze.events_kafka` (the stream from Kafka,
where there is one). The first task pins their versions and the `as_of`; every later task and every retry reads exactly
those.

**Outputs.** `silver.*`, `gold.*`, a parent run with nested runs in MLflow, a published version in Redis `online` and in
the publications folder, features in Feast. The pointer flips when all is there; until then yesterday's version serves.
Last of all, what the answers of the past days brought: `silver.impressions`, `gold.metrics_daily`, `metrics.html`.

**Order.** One task after another, but for `materialize_features`, which runs beside `score_users`: both wait for the
gate, and neither reads what the other writes.

**Schedule.** Daily at midnight UTC; the run of an interval [day, next day) has `as_of` = next day. A manual run without
`as_of` takes the day after the last event. The embedded stack starts no scheduled runs unless NIGHTJAR_SCHEDULE=on.
A scheduled night that has not published by 06:00 UTC raises one alert (log, file, webhook: infra/docs/operations.md).

**Normal duration.** 4-5 minutes on two cores for a first night over 100,000 events, mostly the start of Spark task by
task; 6 minutes for 540,000. Later nights derive only the days that changed.

**When it fails.**
- A task that failed with `error DataError` was not retried: the data or a parameter is wrong, and the message says what
  and where. Mend it, then clear the failed task (or trigger a new run); finished tasks need not run again.
- `refine_events` failed and names limits in brackets (`[volume_high]`): the data is not what usually comes. Read
  `quality.html` in the run folder or under `quality/` in MLflow; mend the data, or start a run with `accept_quality`.
- `judge_models` failed with `error GateRefusedError`: tonight's models are not good enough. Nothing was published. Read
  `gate.json` in the run folder, or the gate's report in MLflow; nothing has to be repaired.
- `error DependencyError`, or a process that was killed: it was retried twice, ten seconds apart. See whether Redis and
  MLflow are well (`nightjar status`), then clear the task. Running any task again gives the same tables and lists.
- `attribute_events` failed: the new version is served all the same. Clear the task; it writes whole days again.
- A Spark task stays `scheduled`: the pool `spark` has one slot on purpose; another run is using it, or it is missing
  (Admin > Pools).

**Backfill.** In the UI (or `airflow backfill create`) for past days. It rebuilds the tables of those days and publishes
nothing, unless `publish` is `always`.

**Rollback.** `nightjar rollback` returns to the version before, in under a second; no run is needed.
"""

from __future__ import annotations

import json
from datetime import UTC, datetime, timedelta
from typing import Any

from airflow.sdk import DAG, CronDataIntervalTimetable, Param, chain

from dags.assets import CATALOGUE, GOLD_FEATURES, NIGHT_TABLES, RECOMMENDATIONS
from dags.deadlines import FRESH_BY_SIX
from dags.job_tasks import DEFAULT_ARGS, MACROS, python_job, spark_job

PARAMS = {
    "as_of": Param(
        None,
        type=["null", "string"],
        format="date",
        description="Day (UTC) whose first instant ends what the run may see. Empty: a manual run takes the day after "
        "the last event, the others the end of their data interval.",
    ),
    "publish": Param(
        "auto",
        enum=["auto", "never", "always"],
        description="auto: unless it is a backfill or older than what is served.",
    ),
    "test_days": Param(
        None,
        type=["null", "integer"],
        minimum=1,
        maximum=90,
        description="Length of the test window before as_of, in days. Empty: the default, or less for a short history.",
    ),
    "trials": Param(
        None,
        type=["null", "integer"],
        minimum=0,
        maximum=50,
        description="Recipes that each model family tries around its default before the comparison. 0: none. Empty: 3.",
    ),
    "trial_events": Param(
        None,
        type=["null", "integer"],
        minimum=10_000,
        description="Interactions that a trial learns from at most; of a larger shop those of a sample of its people. "
        "Empty: 1,000,000.",
    ),
    "slice_by": Param(
        None,
        type=["null", "string"],
        description="Attributes of people by whose values models are compared as well: region,plan. Empty: region.",
    ),
    "models": Param(
        None,
        type=["null", "string"],
        description="Which models are trained, by name: popularity trending segment_popularity item_knn als "
        "rp3beta graph_filter ease sequential_rules content blend ranker. Empty: those that the size of the data "
        "affords.",
    ),
    "recipes": Param(
        None,
        type=["null", "string"],
        description="A file of recipes (see `nightjar recipes`), or default: none. Empty: those that were applied.",
    ),
    "max_quarantined_share": Param(
        None,
        type=["null", "number"],
        minimum=0,
        maximum=1,
        description="The run stops when a larger share of the events breaks a rule. Empty: the default.",
    ),
    "accept_quality": Param(
        None,
        type=["null", "string"],
        description="Limits of the quality gate that may be broken in this run, as its message names them: "
        "volume_high,missing_day. Empty: none.",
    ),
    "quality_limits": Param(
        None,
        type=["null", "string"],
        description="A TOML or JSON file with limits of the quality gate. Empty: NIGHTJAR_QUALITY_LIMITS.",
    ),
    "exclude_seen": Param(
        None,
        type=["null", "string"],
        enum=[None, "interacted", "purchased", "none"],
        description="Which items a user already knows are left out of the lists. Empty: the default.",
    ),
    "rescore": Param(
        None,
        type=["null", "string"],
        enum=[None, "auto", "touched", "all"],
        description="touched: only people and items that something happened to get new lists, the others keep "
        "yesterday's for up to a week. all: everything, from nothing. Empty or auto: touched from 100,000 people on.",
    ),
    "shares": Param(
        None,
        type=["null", "string"],
        enum=[None, "kept", "none"],
        description="kept: lists tell what each part of the model has of each item, for answers with `explain`. "
        "none: they do not, and are up to 18 % smaller. Empty: kept.",
    ),
}
_OF_THE_DAG = ("as_of", "publish")


def job_params(params: dict[str, Any]) -> str:
    """The parameters that the jobs read, as JSON; those left empty are left out, so the jobs' defaults hold."""
    return json.dumps({k: v for k, v in params.items() if k not in _OF_THE_DAG and v is not None}, sort_keys=True)


def job_run_type(dag_run: Any) -> str:
    """manual, scheduled or backfill. A run started by an asset or another DAG is scheduled when it has an interval."""
    kind = getattr(dag_run.run_type, "value", str(dag_run.run_type))
    if kind in ("manual", "backfill"):
        return str(kind)
    return "scheduled" if dag_run.data_interval_end else "manual"


def interval_end(dag_run: Any) -> str:
    """End of the data interval, RFC 3339; empty for a manual run without one."""
    return dag_run.data_interval_end.isoformat() if dag_run.data_interval_end else ""


def started_on(dag_run: Any) -> str:
    """The UTC day on which the run was started."""
    return (dag_run.start_date or dag_run.run_after).astimezone(UTC).date().isoformat()


with DAG(
    dag_id="nightly_recommendations",
    description="From events to published recommendations: refine, train, judge, score, publish, flip.",
    doc_md=__doc__,
    schedule=CronDataIntervalTimetable("0 0 * * *", timezone="UTC"),
    start_date=datetime(2009, 1, 1, tzinfo=UTC),  # before the first event of any shop that may be backfilled
    catchup=False,
    max_active_runs=1,
    params=PARAMS,
    dagrun_timeout=timedelta(hours=6),
    deadline=FRESH_BY_SIX,
    default_args=DEFAULT_ARGS,
    user_defined_macros={
        **MACROS,
        "job_params": job_params,
        "job_run_type": job_run_type,
        "interval_end": interval_end,
        "started_on": started_on,
    },
    tags=["nightjar", "nightly", "publishes"],
) as dag:
    chain(
        python_job(
            "pin_run",
            "--dag-run-id={{ dag_run.run_id }}",
            "--run-type={{ job_run_type(dag_run) }}",
            "--as-of={{ params.as_of or 'auto' }}",
            "--data-interval-end={{ interval_end(dag_run) }}",
            "--publish={{ params.publish }}",
            "--today={{ started_on(dag_run) }}",
            "--params={{ job_params(params) }}",
            inlets=[CATALOGUE],
        ),
        spark_job("refine_events"),
        spark_job("build_features", outlets=[GOLD_FEATURES]),
        spark_job("train_models"),
        python_job("judge_models"),
        [spark_job("score_users"), python_job("materialize_features")],
        python_job("verify_publication"),
        python_job("flip_version", may_change=[NIGHT_TABLES, RECOMMENDATIONS]),
        python_job("attribute_events"),
    )
