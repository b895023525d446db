"""How a task starts a job: through spark-submit, or as a plain Python process.

Both keep three promises:
- exit code 2 (bad data, a gate that refuses) fails the task at once: a retry would see the same data;
- nothing of an earlier try runs beside the new one: what a killed worker left is stopped first;
- a task that is killed from outside takes its processes with it.
"""

from __future__ import annotations

import os
import subprocess
import sys
from collections.abc import Sequence
from pathlib import Path
from typing import Any

from airflow.providers.apache.spark.operators.spark_submit import SparkSubmitOperator
from airflow.sdk import BaseOperator
from airflow.sdk.exceptions import AirflowException, AirflowFailException

JOBS_FOLDER = Path(__file__).resolve().parents[1] / "spark_jobs" / "jobs"
NEVER_RETRY_EXIT_CODE = 2
_LAST_LINES = 20


class SparkJobOperator(SparkSubmitOperator):
    """Submit spark_jobs/jobs/<job>.py with `--run-key`. The connection alone says where Spark is."""

    template_fields: Sequence[str] = (*SparkSubmitOperator.template_fields, "run_key")

    def __init__(self, *, job: str, run_key: str, **options: Any) -> None:
        super().__init__(
            application=str(JOBS_FOLDER / f"{job}.py"),
            application_args=["--run-key", run_key],
            name=f"nightjar-{job}",
            **options,
        )
        self.job = job
        self.run_key = run_key

    def execute(self, context: Any) -> None:
        """Raises AirflowFailException when the job says that no retry can help."""
        stop_leftovers(self.application, self.run_key)
        try:
            super().execute(context)
        except AirflowException as error:
            stop_leftovers(self.application, self.run_key)
            # the hook has no other way to tell the exit code
            if f"Error code is: {NEVER_RETRY_EXIT_CODE}." in str(error):
                raise AirflowFailException(f"{self.job} refuses; no retry can help, see the log above") from error
            raise

    def on_kill(self) -> None:
        """Kill spark-submit, and the Python driver that would outlive it."""
        super().on_kill()
        stop_leftovers(self.application, self.run_key)


class PythonJobOperator(BaseOperator):
    """Run `python -m spark_jobs.jobs.<job> --run-key KEY [arguments]` and log what it prints."""

    template_fields: Sequence[str] = ("run_key", "arguments")

    def __init__(self, *, job: str, run_key: str, arguments: Sequence[str] = (), **options: Any) -> None:
        super().__init__(**options)
        self.job = job
        self.run_key = run_key
        self.arguments = list(arguments)
        self._process: subprocess.Popen[str] | None = None

    def execute(self, context: Any) -> None:  # noqa: ARG002
        """Raises AirflowFailException when the job says that no retry can help, AirflowException on other failures."""
        module = f"spark_jobs.jobs.{self.job}"
        stop_leftovers(module, self.run_key)
        command = [sys.executable, "-m", module, "--run-key", self.run_key, *self.arguments]
        self.log.info("Running %s", subprocess.list2cmdline(command))
        last: list[str] = []
        with subprocess.Popen(
            command, stdin=subprocess.DEVNULL, stdout=subprocess.PIPE, stderr=subprocess.STDOUT,
            text=True, errors="replace",
        ) as process:  # fmt: skip
            self._process = process
            assert process.stdout is not None
            for line in process.stdout:
                self.log.info("%s", line.rstrip())
                last = [*last[1 - _LAST_LINES :], line.rstrip()]
        if process.returncode == NEVER_RETRY_EXIT_CODE:
            raise AirflowFailException(f"{self.job} refuses; no retry can help: {_reason(last)}")
        if process.returncode != 0:
            raise AirflowException(f"{self.job} ended with exit code {process.returncode}: {_reason(last)}")

    def on_kill(self) -> None:
        """Stop the job."""
        if self._process is not None and self._process.poll() is None:
            self._process.kill()
        stop_leftovers(f"spark_jobs.jobs.{self.job}", self.run_key)


def stop_leftovers(program: str, run_key: str) -> None:
    """Kill every process of this installation that still runs `program` for this run: what an earlier try left.

    Only processes of this user, whose command line has both as whole words and whose NIGHTJAR_HOME is this task's;
    never this process or one it descends from. Without a NIGHTJAR_HOME nothing is killed.
    """
    import psutil

    home = os.environ.get("NIGHTJAR_HOME")
    if not home or not program or not run_key:
        return
    spared = {1, os.getpid(), *(parent.pid for parent in psutil.Process().parents())}
    found = []
    for process in psutil.process_iter():
        try:
            words = process.cmdline()
            if process.pid in spared or program not in words or run_key not in words:
                continue
            if process.uids().real == os.getuid() and process.environ().get("NIGHTJAR_HOME") == home:
                process.kill()
                found.append(process)
        except (psutil.Error, OSError):  # gone, or not ours to ask
            continue
    psutil.wait_procs(found, timeout=10)


def _reason(lines: Sequence[str]) -> str:
    return next((line for line in reversed(lines) if line.startswith("error ")), lines[-1] if lines else "no output")
