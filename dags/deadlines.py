"""The deadline of the night: what a scheduled night has to have published by 06:00 UTC, or somebody is told.

Airflow checks it: a run that has not succeeded when its deadline passes (it runs, or it failed) gets its callback,
once, on the executor. A run that succeeds in time has none. The callback starts a job that looks at what is served, so
that a night which failed and was made good by hand is no alarm.
"""

from __future__ import annotations

import logging
import subprocess
import sys
from datetime import timedelta
from typing import Any

from airflow.sdk import (  # type: ignore[attr-defined]  # public, but missing in the stub
    DeadlineAlert,
    DeadlineReference,
    SyncCallback,
)

JOB = "spark_jobs.jobs.check_freshness"
_TIMEOUT_SECONDS = 120

logger = logging.getLogger("nightjar.deadlines")


def night_is_late(context: dict[str, Any]) -> None:
    """Raise the alarm for a scheduled night; backfills and runs by hand have no hour to keep.

    Raises RuntimeError when the job that looks fails: Airflow then shows the callback as failed.
    """
    run = context["dag_run"]
    if run["run_type"] != "scheduled" or not run["data_interval_end"]:
        logger.info("%s is no scheduled night: no deadline", run["dag_run_id"])
        return
    command = [
        sys.executable, "-m", JOB, f"--dag-run-id={run['dag_run_id']}", f"--state={run['state']}",
        f"--data-interval-end={run['data_interval_end']}", f"--due={context['deadline']['deadline_time']}",
    ]  # fmt: skip
    done = subprocess.run(
        command, stdin=subprocess.DEVNULL, stdout=subprocess.PIPE, stderr=subprocess.STDOUT,
        text=True, errors="replace", timeout=_TIMEOUT_SECONDS,
    )  # fmt: skip
    for line in done.stdout.splitlines():
        logger.warning("%s", line)
    if done.returncode != 0:
        raise RuntimeError(f"{JOB} ended with exit code {done.returncode}")


FRESH_BY_SIX = DeadlineAlert(
    name="fresh by 06:00 UTC",
    # the logical date is the start of the interval, a day before the run may start; a run by hand has none
    reference=DeadlineReference.DAGRUN_LOGICAL_DATE,
    interval=timedelta(hours=30),
    callback=SyncCallback("dags.deadlines.night_is_late"),
)
