"""Run book of `maintain_tables`.

**Purpose.** Keeps the Delta tables quick to read and free of what nobody may keep: small files of a day become one, big
days are clustered by subject, files that no version of the last 30 days needs are deleted.

**Inputs.** The Delta logs of all tables.

**Outputs.** The same tables with the same rows in fewer files; reports in the run folder: per table the files and bytes
before and after, the days compacted and clustered, the files deleted. Each table is maintained by its own writer:
silver and gold by Spark, the imported tables by the importer's engine, the archive by the running archiver.

**Schedule.** After every night (asset `night_tables`). The embedded stack starts it by hand only (`nightjar run
maintenance`) unless NIGHTJAR_SCHEDULE=on.

**Normal duration.** A minute on two cores, most of it the start of Spark and the listing of files; two minutes after a
first night over a long history.

**When it fails.** Nothing depends on it: the tables are whole at every moment and the next run does what was left.
- `error DependencyError` about the archiver: it is not running (`nightjar status`); its tables wait for the next run.
- A conflict with a commit of a night: cannot happen on one machine (pool `spark` has one slot); on a cluster with more
  slots the loser is retried.

**Backfill.** None.

**Rollback.** None is needed: rows never change. A deleted file does not come back, and no version younger than
`retention_days` needs it.
"""

from __future__ import annotations

from datetime import UTC, datetime, timedelta

from airflow.sdk import DAG, Param

from dags.assets import NIGHT_TABLES
from dags.job_tasks import DEFAULT_ARGS, MACROS, RUN_KEY, program, spark_job

PARAMS = {
    "dry_run": Param(False, type="boolean", description="Say what would be done, and do nothing."),
    "retention_days": Param(
        30,
        type="integer",
        minimum=7,
        maximum=30,
        description="Files that no version of this many days needs are deleted. Not below 7, so that no running or "
        "failed night loses what it reads; not above 30, the longest that history of people is kept.",
    ),
}
_OPTIONS = ("--dry-run={{ params.dry_run }}", "--retention-days={{ params.retention_days }}")

with DAG(
    dag_id="maintain_tables",
    description="Compact, cluster and vacuum the Delta tables, each by its own writer.",
    doc_md=__doc__,
    schedule=[NIGHT_TABLES],
    start_date=datetime(2024, 1, 1, tzinfo=UTC),
    catchup=False,
    max_active_runs=1,
    dagrun_timeout=timedelta(hours=4),
    params=PARAMS,
    default_args=DEFAULT_ARGS,
    user_defined_macros=MACROS,
    tags=["nightjar", "maintenance"],
) as dag:
    spark_job("maintain_tables", *_OPTIONS)
    program("maintain_imports", "infra.importing.maintenance", "--run-key", RUN_KEY, *_OPTIONS, marker=RUN_KEY)
    program("maintain_archive", "serving.speed.maintenance", "--run-key", RUN_KEY, *_OPTIONS, marker=RUN_KEY)
