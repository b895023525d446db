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
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any

from airflow.providers.apache.spark.operators.spark_submit import SparkSubmitOperator
from airflow.sdk import Asset, AssetAlias, BaseOperator
from airflow.sdk.exceptions import AirflowException, AirflowFailException

from feature_repo.contracts.environment import Environment
from feature_repo.contracts.run import MOST_IN_MEMORY, RUN_FILE, Run, run_folder

JOBS_FOLDER = Path(__file__).resolve().parents[1] / "spark_jobs" / "jobs"
NEVER_RETRY_EXIT_CODE = 2
CHANGED = "changed"
TASK = "NIGHTJAR_TASK"
"""Environment variable of a program that a task has started: the marker of the task."""
LARGE_RUN = 2_000_000
"""Events from which on a job lives long enough for Java's optimising compiler to win back what it costs."""
_WITHOUT_JAVA = frozenset({"refine_events", "build_features"})
"""Jobs that count and write up to MOST_IN_MEMORY events without Java, which has little to do until then."""
_SHORT_JOBS_ONLY = "-XX:TieredStopAtLevel=1"
_JAVA_OPTIONS = ("spark.driver.extraJavaOptions", "spark.executor.extraJavaOptions")
_LAST_LINES = 20


class SparkJobOperator(SparkSubmitOperator):
    """Submit spark_jobs/jobs/<job>.py with `--run-key KEY [arguments]`. The connection alone says where Spark is.

    The settings in SPARK_CONF_DIR are handed over as a file: on the class path, where Spark would put the folder, Java
    could not use its archive of classes.
    """

    template_fields: Sequence[str] = (*SparkSubmitOperator.template_fields, "run_key")

    def __init__(self, *, job: str, run_key: str, arguments: Sequence[str] = (), **options: Any) -> None:
        super().__init__(
            application=str(JOBS_FOLDER / f"{job}.py"),
            application_args=["--run-key", run_key, *arguments],
            name=f"nightjar-{job}",
            **settings_of(os.environ),
            **options,
        )
        self.job = job
        self.run_key = run_key

    def execute(self, context: Any) -> None:
        """Raises AirflowFailException when the job says that no retry can help."""
        stop_leftovers(self.application, self.run_key)
        self.conf = {**(self.conf or {}), **settings_for_size(os.environ, self.run_key, self.job)}
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


def settings_of(variables: Mapping[str, str]) -> dict[str, Any]:
    """The operator's options for the settings in SPARK_CONF_DIR; none where that is not set."""
    folder = variables.get("SPARK_CONF_DIR")
    if not folder:
        return {}
    return {
        "properties_file": os.path.join(folder, "spark-defaults.conf"),
        "env_vars": {"SPARK_CONF_DIR": os.path.join(folder, "none")},
    }


def settings_for_size(variables: Mapping[str, str], run_key: str, job: str) -> dict[str, str]:
    """Settings of a job beside those in SPARK_CONF_DIR, which suit short ones: none unless Java has much to do."""
    environment = Environment.from_mapping(variables)
    pinned = Path(run_folder(environment.runs, environment.tenant, run_key), RUN_FILE)
    settings = Path(variables.get("SPARK_CONF_DIR", ""), "spark-defaults.conf")
    small = MOST_IN_MEMORY if job in _WITHOUT_JAVA else LARGE_RUN - 1
    if not (pinned.is_file() and settings.is_file()) or Run.from_json(pinned.read_bytes()).event_count <= small:
        return {}
    lines = (line.split(maxsplit=1) for line in settings.read_text().splitlines())
    said = {words[0]: words[1] for words in lines if len(words) == 2 and words[0] in _JAVA_OPTIONS}
    return {
        name: " ".join(option for option in options.split() if option != _SHORT_JOBS_ONLY)
        for name, options in said.items()
    }


class ProgramOperator(BaseOperator):
    """Run `python -m <module> <arguments>` and log what it prints.

    A line `changed <name>` on its output adds an event to the asset of that name, when the task has `may_change` it: a
    program that found nothing to do says nothing, and wakes nobody.

    marker   tells, with the module, what an earlier try of this task left; the program gets it as NIGHTJAR_TASK
    """

    template_fields: Sequence[str] = ("arguments", "marker")

    def __init__(
        self,
        *,
        module: str,
        arguments: Sequence[str] = (),
        marker: str,
        may_change: Sequence[Asset] = (),
        **options: Any,
    ) -> None:
        self.assets = {asset.name: asset for asset in may_change}
        aliases = [AssetAlias(f"{name}-changed") for name in self.assets]
        super().__init__(outlets=[*options.pop("outlets", []), *aliases], **options)
        self.module = module
        self.arguments = list(arguments)
        self.marker = marker
        self._process: subprocess.Popen[str] | None = None

    def execute(self, context: Any) -> None:
        """Raises AirflowFailException when the program says that no retry can help, AirflowException on other
        failures."""
        name = self.module.rpartition(".")[2]
        stop_leftovers(self.module, self.marker)
        command = [sys.executable, "-m", self.module, *self.arguments]
        self.log.info("Running %s", subprocess.list2cmdline(command))
        last: list[str] = []
        changed: set[str] = set()
        with subprocess.Popen(
            command, stdin=subprocess.DEVNULL, stdout=subprocess.PIPE, stderr=subprocess.STDOUT,
            text=True, errors="replace", env={**os.environ, TASK: self.marker},
        ) as process:  # fmt: skip
            self._process = process
            assert process.stdout is not None
            for line in process.stdout:
                self.log.info("%s", line.rstrip())
                last = [*last[1 - _LAST_LINES :], line.rstrip()]
                changed |= {asset for asset in self.assets if line.rstrip() == f"{CHANGED} {asset}"}
        if process.returncode == NEVER_RETRY_EXIT_CODE:
            raise AirflowFailException(f"{name} refuses; no retry can help: {_reason(last)}")
        if process.returncode != 0:
            raise AirflowException(f"{name} ended with exit code {process.returncode}: {_reason(last)}")
        for asset in sorted(changed):
            context["outlet_events"][AssetAlias(f"{asset}-changed")].add(self.assets[asset])

    def on_kill(self) -> None:
        """Stop the program."""
        if self._process is not None and self._process.poll() is None:
            self._process.kill()
        stop_leftovers(self.module, self.marker)


class PythonJobOperator(ProgramOperator):
    """Run `python -m spark_jobs.jobs.<job> --run-key KEY [arguments]`."""

    def __init__(self, *, job: str, run_key: str, arguments: Sequence[str] = (), **options: Any) -> None:
        super().__init__(
            module=f"spark_jobs.jobs.{job}", arguments=["--run-key", run_key, *arguments], marker=run_key, **options
        )
        self.job = job


def stop_leftovers(program: str, run_key: str) -> None:
    """Kill every process of this installation that still runs `program` for this run: what an earlier try left.

    Only processes of this user, whose command line has the program as a whole word, whose command line or NIGHTJAR_TASK
    has the run, and whose NIGHTJAR_HOME is this task's; never this process or one it descends from. Without a
    NIGHTJAR_HOME nothing is killed.
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
            if process.pid in spared or program not in words or process.uids().real != os.getuid():
                continue
            variables = process.environ()
            if (run_key in words or variables.get(TASK) == run_key) and variables.get("NIGHTJAR_HOME") == home:
                process.kill()
                found.append(process)
        except (psutil.Error, OSError):  # gone, or not ours to ask
            continue
    psutil.wait_procs(found, timeout=10)


def _reason(lines: Sequence[str]) -> str:
    return next((line for line in reversed(lines) if line.startswith("error ")), lines[-1] if lines else "no output")
