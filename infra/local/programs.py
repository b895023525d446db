"""The night's programs as processes of their own, in the order of the DAG, without a scheduler.

A bench that kills and repeats them needs to know exactly when they run; what they do is what the DAG's tasks do.
"""

from __future__ import annotations

import os
import resource
import signal
import subprocess
import sys
import time
from collections.abc import Mapping
from pathlib import Path
from typing import NamedTuple

from feature_repo.contracts.errors import NightjarError
from infra.local.night import SPARK_TASKS, TASKS
from infra.local.spark_conf import SETTINGS_FILE
from infra.local.variables import REPOSITORY

_POLL_SECONDS = 0.005
_LAST_CHARACTERS = 2_000


class Attempt(NamedTuple):
    """One try of one task, in wall seconds and in processor seconds of all its processes.

    `killed` is False when the program ended before the kill came.
    """

    task: str
    seconds: float
    killed: bool
    cpu_seconds: float = 0.0


def command_of(task: str, run_key: str, as_of: str, master: str = "local[*]", settings: str = "") -> list[str]:
    """The command line of a task, as the DAG's operators build it. `settings`: the folder of spark-defaults.conf."""
    if task not in SPARK_TASKS:
        command = [sys.executable, "-m", f"spark_jobs.jobs.{task}", "--run-key", run_key]
        return [*command, "--dag-run-id", run_key, "--as-of", as_of] if task == TASKS[0] else command
    submit = Path(sys.executable).parent / "spark-submit"
    program = REPOSITORY / "spark_jobs" / "jobs" / f"{task}.py"
    file = str(Path(settings) / SETTINGS_FILE)
    options = ["--master", master, "--name", f"nightjar-{task}", "--properties-file", file]
    return [str(submit), *options, str(program), "--run-key", run_key]


def attempt(
    task: str,
    run_key: str,
    as_of: str,
    *,
    variables: Mapping[str, str],
    log: Path,
    kill_after: float | None = None,
    master: str = "local[*]",
) -> Attempt:
    """Run one task; with `kill_after` (seconds) SIGKILL it and all its processes at that moment of its life.

    `master`: where Spark is, as the connection `spark_default` would say.

    Raises NightjarError with the end of its log when it fails by itself.
    """
    settings = variables.get("SPARK_CONF_DIR", "")
    child = {**variables, "SPARK_CONF_DIR": str(Path(settings) / "none")}
    with log.open("ab") as output:
        began, used = time.monotonic(), _children_cpu_seconds()
        process = subprocess.Popen(
            command_of(task, run_key, as_of, master, settings),
            env=child, cwd=REPOSITORY, stdin=subprocess.DEVNULL, stdout=output, stderr=subprocess.STDOUT,
            start_new_session=True,
        )  # fmt: skip
        try:
            while process.poll() is None:
                if kill_after is not None and time.monotonic() - began >= kill_after:
                    os.killpg(process.pid, signal.SIGKILL)
                    process.wait()
                    return Attempt(task, time.monotonic() - began, True, _children_cpu_seconds() - used)
                time.sleep(_POLL_SECONDS)
        finally:
            if process.poll() is None:  # somebody stopped the bench
                os.killpg(process.pid, signal.SIGKILL)
    if process.returncode != 0:
        raise NightjarError(
            f"{task} of {run_key} ended with exit code {process.returncode}. The end of {log}:\n{_tail(log)}"
        )
    return Attempt(task, time.monotonic() - began, False, _children_cpu_seconds() - used)


def _children_cpu_seconds() -> float:
    """Processor time of all children that have ended, their own children included."""
    used = resource.getrusage(resource.RUSAGE_CHILDREN)
    return used.ru_utime + used.ru_stime


def _tail(log: Path) -> str:
    return log.read_bytes()[-_LAST_CHARACTERS:].decode(errors="replace")
