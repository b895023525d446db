"""How a job of the night starts and ends as a process: `--run-key KEY`, the environment, an exit code, one line.

Exit codes: 0 done; 2 bad data or a gate that refuses (never worth a retry); 1 anything else (worth one).
"""

from __future__ import annotations

import argparse
import os
import sys
from collections.abc import Callable, Sequence
from typing import NoReturn

from feature_repo.contracts.environment import Environment
from feature_repo.contracts.errors import GateRefusedError, InputError, NightjarError
from feature_repo.contracts.run import Run
from spark_jobs.io.run_store import read_run

EXIT_FAILED = 1
EXIT_NEVER_RETRY = 2


def run_job(main: Callable[[Environment, Run], object], argv: Sequence[str] | None = None) -> NoReturn:
    """Run `main(environment, run)` for the run named by `--run-key`, then exit the process."""
    parser = argparse.ArgumentParser(description=(sys.modules[main.__module__].__doc__ or "").partition("\n")[0])
    parser.add_argument("--run-key", required=True, help="the folder of the run, made by pin_run")

    def with_run(environment: Environment, arguments: argparse.Namespace) -> object:
        return main(environment, read_run(environment, arguments.run_key))

    run_command(with_run, parser, argv)


def run_command(
    main: Callable[[Environment, argparse.Namespace], object],
    parser: argparse.ArgumentParser,
    argv: Sequence[str] | None = None,
) -> NoReturn:
    """Run `main(environment, arguments)` for a job with arguments of its own, then exit the process."""
    arguments = parser.parse_args(argv)
    try:
        main(Environment.from_mapping(os.environ), arguments)
    except NightjarError as error:
        print(f"error {type(error).__name__}: {error}", file=sys.stderr, flush=True)
        sys.exit(exit_code(error))
    sys.exit(0)


def exit_code(error: NightjarError) -> int:
    """2 for what a retry cannot mend (bad data, a refusing gate), 1 for the rest."""
    return EXIT_NEVER_RETRY if isinstance(error, InputError | GateRefusedError) else EXIT_FAILED
