"""How a job of the night starts and ends as a process: `--run-key KEY`, the environment, an exit code, one line.

Exit codes: 0 done; 2 bad data or a gate that refuses (never worth a retry); 1 anything else (worth one).

What a power cut tore of the tables that a job writes is taken back before it begins.

A job gives way to those who answer people on the same machine (`spark_jobs.giving_way`).

A job that fails closes the night's run in MLflow as FAILED, says there which job and why, and leaves `failed.json` in
the run folder; the next job of that run, or its retry, finds the file and opens the run again.
"""

from __future__ import annotations

import argparse
import os
import sys
from collections.abc import Callable, Iterator, Sequence
from contextlib import contextmanager
from pathlib import Path
from typing import NoReturn

from feature_repo.contracts.environment import Environment
from feature_repo.contracts.errors import DependencyError, GateRefusedError, InputError, NightjarError
from feature_repo.contracts.run import FAILED_FILE, Run
from spark_jobs.giving_way import give_way
from spark_jobs.io import tracking
from spark_jobs.io.commits import take_back_torn
from spark_jobs.io.run_store import folder_of, read_run, write_report
from spark_jobs.io.store_check import check_store

EXIT_FAILED = 1
EXIT_NEVER_RETRY = 2


def run_job(main: Callable[[Environment, Run], object], argv: Sequence[str] | None = None) -> NoReturn:
    """Run `main(environment, run)` for the run named by `--run-key`, then exit the process."""
    parser = argparse.ArgumentParser(description=(sys.modules[main.__module__].__doc__ or "").partition("\n")[0])
    parser.add_argument("--run-key", required=True, help="the folder of the run, made by pin_run")

    job = Path(sys.modules[main.__module__].__file__ or "job").stem

    def with_run(environment: Environment, arguments: argparse.Namespace) -> object:
        run = read_run(environment, arguments.run_key)
        with reported(environment, run, job):
            take_back_torn(environment, {job})
            return main(environment, run)

    run_command(with_run, parser, argv)


@contextmanager
def reported(environment: Environment, run: Run, job: str) -> Iterator[None]:
    """The night's run in MLflow is RUNNING inside, and FAILED after an error, which goes on to the caller.

    MLflow that does not answer never hides the job's own error, nor stops a job from starting: it is said on stderr.
    """
    mark = folder_of(environment, run.run_key) / FAILED_FILE
    if mark.exists():
        try:
            tracking.resume_night(environment, run.mlflow_run_id)
            mark.unlink(missing_ok=True)
        except DependencyError as error:
            print(f"the night's MLflow run stays closed: {error}", file=sys.stderr, flush=True)
    try:
        yield
    except Exception as error:
        words = f"{type(error).__name__}: {error}"
        write_report(environment, run.run_key, FAILED_FILE, {"job": job, "error": words})
        try:
            tracking.fail_night(environment, run.mlflow_run_id, job=job, words=words)
        except DependencyError as unsaid:
            print(f"MLflow was not told: {unsaid}", file=sys.stderr, flush=True)
        raise


def run_command(
    main: Callable[[Environment, argparse.Namespace], object],
    parser: argparse.ArgumentParser,
    argv: Sequence[str] | None = None,
) -> NoReturn:
    """Run `main(environment, arguments)` for a job with arguments of its own, then exit the process."""
    arguments = parser.parse_args(argv)
    give_way()
    try:
        environment = Environment.from_mapping(os.environ)
        check_store(environment)
        main(environment, arguments)
    except NightjarError as error:
        print(f"error {type(error).__name__}: {error}", file=sys.stderr, flush=True)
        sys.exit(exit_code(error))
    sys.exit(0)


def exit_code(error: NightjarError) -> int:
    """2 for what a retry cannot mend (bad data, a refusing gate), 1 for the rest."""
    return EXIT_NEVER_RETRY if isinstance(error, InputError | GateRefusedError) else EXIT_FAILED
