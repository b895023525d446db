"""What every DAG of this folder has in common: owner, tags, retries, the run's key, how its tasks are made."""

from __future__ import annotations

from collections.abc import Sequence
from datetime import timedelta
from typing import Any

from airflow.sdk import Asset

from dags.job_operators import ProgramOperator, PythonJobOperator, SparkJobOperator
from feature_repo.contracts.run import run_key

OWNER = "nightjar"
RUN_KEY = "{{ run_key(dag_run.run_id) }}"
SPARK_POOL = "spark"
"""One slot: one Spark task at a time on one machine, and maintenance never beside a night's task."""

DEFAULT_ARGS: dict[str, Any] = {"owner": OWNER, "retries": 2, "retry_delay": timedelta(seconds=10)}
MACROS: dict[str, Any] = {"run_key": run_key}


def spark_job(
    name: str, *arguments: str, hours: float = 2, outlets: Sequence[Asset] = (), inlets: Sequence[Asset] = ()
) -> SparkJobOperator:
    """A task that submits spark_jobs/jobs/<name>.py."""
    return SparkJobOperator(
        task_id=name, job=name, run_key=RUN_KEY, arguments=arguments, pool=SPARK_POOL,
        execution_timeout=timedelta(hours=hours), outlets=list(outlets), inlets=list(inlets),
    )  # fmt: skip


def python_job(
    name: str, *arguments: str, may_change: Sequence[Asset] = (), inlets: Sequence[Asset] = ()
) -> PythonJobOperator:
    """A task that runs spark_jobs.jobs.<name> without a JVM."""
    return PythonJobOperator(
        task_id=name, job=name, run_key=RUN_KEY, arguments=arguments, may_change=may_change, inlets=list(inlets),
        execution_timeout=timedelta(minutes=30),
    )  # fmt: skip


def program(
    task_id: str, module: str, *arguments: str, marker: str, minutes: float = 30, outlets: Sequence[Asset] = ()
) -> ProgramOperator:
    """A task that runs `python -m <module> <arguments>`: a program that is known here by name only."""
    return ProgramOperator(
        task_id=task_id, module=module, arguments=arguments, marker=marker, outlets=list(outlets),
        execution_timeout=timedelta(minutes=minutes),
    )  # fmt: skip
