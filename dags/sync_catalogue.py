"""Run book of `sync_catalogue`.

**Purpose.** Brings what has arrived in the inbox (items, users and events as files) into the bronze tables, so that the
next night knows it.

**Inputs.** The files in the inbox folder and the mappings saved with them (`nightjar import --help`).

**Outputs.** `bronze.items`, `bronze.users`, `bronze.events_import`, `bronze.quarantine_import`; a report as JSON in the
task's log; the asset `catalogue`.

**Schedule.** Hourly, at 40 minutes past, so that the last one before midnight precedes the night. The embedded stack
starts no scheduled runs unless NIGHTJAR_SCHEDULE=on; by hand: `nightjar run sync`, or `nightjar import sync`.

**Normal duration.** 5-10 seconds when nothing is new, then about a second for 10,000 lines.

**When it fails.**
- `error DataError`: a file cannot be read at all, and the message names it. It was not retried. Mend or remove the
  file, then trigger again. Rows that break a rule are no failure: they are in `bronze.quarantine_import`.
- Anything else was retried twice, ten seconds apart. A file that was taken in already is not taken in twice.

**Backfill.** None: files carry their own dates. A file that arrives late is derived by the next night, whatever days it
is about.

**Rollback.** Import the former file again: rows of the same source are replaced. What is published does not change
before the next night.
"""

from __future__ import annotations

from datetime import UTC, datetime, timedelta

from airflow.sdk import DAG, CronDataIntervalTimetable

from dags.assets import CATALOGUE
from dags.job_tasks import DEFAULT_ARGS, MACROS, RUN_KEY, program

with DAG(
    dag_id="sync_catalogue",
    description="Take in what has arrived in the inbox: items, users, events.",
    doc_md=__doc__,
    schedule=CronDataIntervalTimetable("40 * * * *", timezone="UTC"),
    start_date=datetime(2024, 1, 1, tzinfo=UTC),
    catchup=False,
    max_active_runs=1,
    dagrun_timeout=timedelta(hours=2),
    default_args=DEFAULT_ARGS,
    user_defined_macros=MACROS,
    tags=["nightjar", "data-in"],
) as dag:
    program(
        "sync_inbox", "infra.cli.main", "import", "sync", "--json", marker=RUN_KEY, minutes=100, outlets=[CATALOGUE]
    )
