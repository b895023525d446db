"""How commands speak: tables for people, `--json` for programs, exit codes for scripts."""

from __future__ import annotations

import json
import os
import sys
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from enum import IntEnum
from typing import Any

from rich.console import Console

from feature_repo.contracts.errors import DependencyError, GateRefusedError, InputError, NightjarError

PIPE_WIDTH = 120
"""Columns of output that no terminal shows (a file, a pipe), unless COLUMNS says otherwise."""


def _console(*, stderr: bool) -> Console:
    stream = sys.stderr if stderr else sys.stdout
    width = None if stream.isatty() or os.environ.get("COLUMNS") else PIPE_WIDTH
    return Console(stderr=stderr, highlight=False, width=width)


out = _console(stderr=False)
err = _console(stderr=True)


class ExitCode(IntEnum):
    """What the exit codes of `nightjar` mean."""

    OK = 0
    FAILED = 1
    BAD_INPUT = 2
    DEPENDENCY_DOWN = 3
    GATE_REFUSED = 4
    RUN_FAILED = 5
    NOT_RUNNING = 6


class RunFailedError(NightjarError):
    """A DAG run ended as failed."""


class NotRunningError(NightjarError):
    """The embedded stack, or one of its services, is not running."""


def exit_code(error: NightjarError) -> ExitCode:
    """The exit code of a domain error."""
    for kind, code in (
        (InputError, ExitCode.BAD_INPUT),
        (GateRefusedError, ExitCode.GATE_REFUSED),
        (RunFailedError, ExitCode.RUN_FAILED),
        (NotRunningError, ExitCode.NOT_RUNNING),
        (DependencyError, ExitCode.DEPENDENCY_DOWN),
    ):
        if isinstance(error, kind):
            return code
    return ExitCode.FAILED


def emit(data: Any, *, as_json: bool, render: Callable[[], None]) -> None:
    """`data` as one JSON document on stdout, or whatever `render` prints for a person."""
    if as_json:
        print(json.dumps(data, indent=2, ensure_ascii=False, default=str))
    else:
        render()


@contextmanager
def step(title: str, *, quiet: bool = False) -> Iterator[None]:
    """A spinner with `title` for work that may take over two seconds; silent when not a terminal or `quiet`."""
    if quiet or not err.is_terminal:
        yield
        return
    with err.status(title):
        yield
